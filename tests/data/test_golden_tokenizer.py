"""Word-piece ids of 30 captions, as the official tokenizer made them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import InputError, SpecError
from hat_export.model.checkpoint import BERT_VOCABULARY
from hat_reference_inputs import CAPTIONS


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.from_vocabulary(BERT_VOCABULARY, 32)


def test_packaged_vocabulary_is_the_recorded_one() -> None:
    digest = hashlib.sha256(BERT_VOCABULARY.read_bytes()).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def test_the_recorded_captions_are_the_recipe_s(golden_captions: list[dict[str, Any]]) -> None:
    assert [entry["caption"] for entry in golden_captions] == CAPTIONS


@pytest.mark.parametrize("index", range(30))
def test_ids(
    tokenizer: CaptionTokenizer, golden_captions: list[dict[str, Any]], index: int
) -> None:
    entry = golden_captions[index]
    ids, mask = tokenizer.encode([entry["caption"]])
    assert ids[0].tolist() == entry["ids"]
    assert mask[0].sum() == entry["length"]


def test_batch_is_padded_with_zeros(
    tokenizer: CaptionTokenizer, golden_model: dict[str, np.ndarray]
) -> None:
    ids, mask = tokenizer.encode(CAPTIONS, words=32)
    np.testing.assert_array_equal(ids, golden_model["ids"])
    np.testing.assert_array_equal(mask.sum(1), golden_model["lengths"])
    np.testing.assert_array_equal(mask, np.arange(32) < golden_model["lengths"][:, None])


def test_without_a_width_the_longest_caption_decides(tokenizer: CaptionTokenizer) -> None:
    ids, mask = tokenizer.encode(["dogs run", "it's a train!"])
    assert ids.shape == mask.shape == (2, 8)


def test_tokenizer_json_gives_the_same_ids(tokenizer: CaptionTokenizer, tmp_path: Path) -> None:
    saved = tmp_path / "tokenizer.json"
    saved.write_text(tokenizer.to_json(), encoding="utf-8")
    again = CaptionTokenizer.from_file(saved, 32)
    np.testing.assert_array_equal(again.encode(CAPTIONS)[0], tokenizer.encode(CAPTIONS)[0])


def test_empty_caption_is_cls_sep(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.encode([""])[0].tolist() == [[101, 102]]


def test_no_captions(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.encode([])[0].shape == (0, 0)


def test_a_width_too_small_is_refused(tokenizer: CaptionTokenizer) -> None:
    with pytest.raises(InputError, match="5 word pieces, more than the 4"):
        tokenizer.encode(["Dogs run."], words=4)


def test_a_caption_must_be_text(tokenizer: CaptionTokenizer) -> None:
    with pytest.raises(InputError, match="caption 1 is NoneType"):
        tokenizer.encode(["Dogs run.", None])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\n[UNK]\n[CLS]\n", r"lacks \[SEP\]"),
        ("a\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n", r"\[PAD\] elsewhere than in line 1"),
    ],
)
def test_bad_vocabulary(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SpecError, match=message):
        CaptionTokenizer.from_vocabulary(path, 32)


def test_missing_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"vocab\.txt: can't read"):
        CaptionTokenizer.from_vocabulary(tmp_path / "vocab.txt", 32)
