"""Captions to word-piece ids, exactly as BERT's uncased tokenizer does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from hat_export.errors import InputError, SpecError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class CaptionTokenizer:
    """Lower-casing WordPiece with [CLS] and [SEP], cut to a number of word pieces.

    Args:
        tokenizer: A ``tokenizers`` pipeline; its padding is replaced, its truncation is set.
        max_words: Longest caption in word pieces, [CLS] and [SEP] counted.
    """

    def __init__(self, tokenizer: Tokenizer, max_words: int) -> None:
        self._tokenizer = tokenizer
        self.max_words = max_words
        tokenizer.enable_truncation(max_words)
        tokenizer.no_padding()

    @classmethod
    def from_vocabulary(cls, path: Path, max_words: int) -> CaptionTokenizer:
        """From a ``vocab.txt``: one word piece a line, the line number (from 0) is the id.

        Raises:
            SpecError: if the file can't be read or lacks one of BERT's special tokens.
        """
        try:
            pieces = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: can't read the vocabulary ({error})") from None
        if pieces and not pieces[-1]:
            pieces.pop()
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        missing = [token for token in SPECIAL if token not in vocabulary]
        if missing or vocabulary["[PAD]"] != 0:
            what = f"lacks {missing[0]}" if missing else "has [PAD] elsewhere than in line 1"
            raise SpecError(f"{path}: {what}; expected a BERT vocab.txt, one word piece a line")
        return cls(BertWordPieceTokenizer(vocabulary, lowercase=True)._tokenizer, max_words)

    @classmethod
    def from_file(cls, path: Path, max_words: int) -> CaptionTokenizer:
        """From a ``tokenizer.json``.

        Raises:
            SpecError: if the file isn't one.
        """
        try:
            return cls(Tokenizer.from_file(str(path)), max_words)
        except Exception as error:  # the library raises bare Exception for every cause
            raise SpecError(f"{path}: not a tokenizer.json ({error})") from None

    @property
    def vocab_size(self) -> int:
        """Number of word pieces."""
        return int(self._tokenizer.get_vocab_size())

    def to_json(self) -> str:
        """The pipeline as the text of a ``tokenizer.json``."""
        return str(self._tokenizer.to_str(pretty=True))

    def id_of(self, token: str) -> int:
        """Id of one word piece; raises InputError if it isn't in the vocabulary."""
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise InputError(f"the vocabulary has no word piece {token!r}")
        return int(index)

    def encode(
        self, captions: Sequence[str], words: int | None = None
    ) -> tuple[Int64[np.ndarray, "captions words"], Int64[np.ndarray, "captions words"]]:
        """Ids and attention mask of a batch of captions.

        Args:
            captions: Texts; an empty one becomes [CLS] [SEP].
            words: Width of the result; default: the longest caption of the batch.

        Returns:
            ``(input_ids, attention_mask)``, both int64 [captions, words]; ids are padded with 0.

        Raises:
            InputError: if a caption isn't a string, or ``words`` is too small for one.
        """
        for index, caption in enumerate(captions):
            if not isinstance(caption, str):
                kind = type(caption).__name__
                raise InputError(f"caption {index} is {kind}; expected a string")
            try:
                caption.encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"caption {index} is no valid Unicode (half a surrogate pair): {caption!r:.60}"
                ) from None
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
        longest = max(map(len, rows), default=0)
        width = longest if words is None else words
        if width < longest:
            raise InputError(
                f"a caption has {longest} word pieces, more than the {width} asked for"
            )
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask
