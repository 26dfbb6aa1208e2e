"""Features and scores in files: the same as in memory, across models, and after interruptions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hat_export
import hat_export.score.tiles
from hat_export.base.progress import SILENT
from hat_export.data.dataset import CaptionDataset, CaptionedImage, ImageStore
from hat_export.errors import InputError, OutputError
from hat_export.model.checkpoint import load_hat
from hat_export.model.hat import HAT
from hat_export.parity import scores as scores_module
from hat_export.parity.embeddings import (
    DatasetDigests,
    EncodedDataset,
    EncoderKeys,
    encode_dataset,
    encoder_keys,
)
from hat_export.parity.scores import LevelScores, Scorer, score_levels, summed
from hat_export.runtime.backends.torch_backend import TorchSession
from hat_export.runtime.session import Session
from hat_export.spec import Direction
from progress_calls import CountCalls

#: The kernel against PyTorch in float32, and features in other batches.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CaptionDataset:
    """Six pictures, the last one a copy of the first, and captions of which two are the same."""
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    for index in range(5):
        pixels = random.integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "5.png").write_bytes((folder / "0.png").read_bytes())
    words = "red dog cat old house tree runs sleeps".split()
    entries = [
        CaptionedImage(
            f"{index}.png", tuple(" ".join(random.choice(words, 1 + n)) for n in range(3)), {}
        )
        for index in range(6)
    ]
    entries[5] = CaptionedImage("5.png", entries[0].captions, {})
    return CaptionDataset("six", tuple(entries), ImageStore([folder]))


@pytest.fixture(scope="module")
def torch_session(tiny_checkpoint: Path) -> Iterator[Session]:
    with hat_export.load(tiny_checkpoint, threads=1) as session:
        yield session


def encoded(
    session: Session, dataset: CaptionDataset, folder: Path, name: str, progress=SILENT
) -> EncodedDataset:
    digests = DatasetDigests.read(dataset)
    keys = EncoderKeys(f"{name}-image", f"{name}-text")
    return encode_dataset(session, keys, dataset, digests, folder, 2, progress)


def scored(found: EncodedDataset, folder: Path) -> LevelScores:
    return score_levels(found, found, Scorer.of(found.spec), folder, threads=1)


def expected(images: Session, texts: Session, dataset: CaptionDataset) -> np.ndarray:
    features = images.encode_images(list(dataset.images()))
    return images.score(features, texts.encode_texts(dataset.captions))


def other_model(session: TorchSession, direction: Direction) -> TorchSession:
    """The same architecture with all weights a little different."""
    spec = dataclasses.replace(session.spec, direction=direction)
    model = HAT(spec).eval()
    state = session.model.state_dict()
    model.load_state_dict({name: 1.1 * tensor for name, tensor in state.items()}, strict=True)
    return TorchSession(model, session.tokenizer, 1)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_files_give_what_memory_gives(
    torch_session: TorchSession, dataset: CaptionDataset, tmp_path: Path, direction: Direction
) -> None:
    session = other_model(torch_session, direction)
    found = scored(encoded(session, dataset, tmp_path, "a"), tmp_path)
    np.testing.assert_allclose(found.total, expected(session, session, dataset), atol=TOLERANCE)
    for images in (0, 5):  # one picture under two names
        np.testing.assert_array_equal(found.total[images], found.total[0])
    again = summed(found.levels, tmp_path / "sum.npy")
    np.testing.assert_array_equal(again, found.total)


def test_images_of_one_model_with_captions_of_another(
    torch_session: TorchSession, dataset: CaptionDataset, tmp_path: Path
) -> None:
    other = other_model(torch_session, "i2t")
    one, two = (
        encoded(session, dataset, tmp_path, name)
        for name, session in (("a", torch_session), ("b", other))
    )
    found = score_levels(one, two, Scorer.of(one.spec), tmp_path, threads=1)
    np.testing.assert_allclose(found.total, expected(torch_session, other, dataset), atol=TOLERANCE)
    assert np.abs(found.total - scored(one, tmp_path).total).max() > 1e-3


def test_nothing_is_encoded_twice(
    torch_session: TorchSession, dataset: CaptionDataset, tmp_path: Path
) -> None:
    first = encoded(torch_session, dataset.limit(3), tmp_path, "a")
    assert first.reused == (0, 0)
    # Images 0, 2 and 4 are there; the copy of image 0 is the same picture.
    assert encoded(torch_session, dataset, tmp_path, "a").reused[0] == 3
    different = len(set(dataset.captions))
    assert encoded(torch_session, dataset, tmp_path, "a").reused == (5, different)


def test_interrupted_encoding_goes_on(
    torch_session: TorchSession, dataset: CaptionDataset, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "images encoded" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(torch_session, dataset, tmp_path, "a", CountCalls(stop))
    # What a kill in the midst of an append leaves behind is discarded.
    (path,) = tmp_path.glob("images-*")
    with path.open("ab") as file:
        file.write(b"half a record")
    found = encoded(torch_session, dataset, tmp_path, "a")
    assert found.reused == (4, 0)
    np.testing.assert_allclose(
        scored(found, tmp_path).total,
        expected(torch_session, torch_session, dataset),
        atol=TOLERANCE,
    )


def test_interrupted_scoring_goes_on(
    torch_session: TorchSession, dataset: CaptionDataset, tmp_path: Path, monkeypatch
) -> None:
    found = encoded(torch_session, dataset, tmp_path, "a")
    whole = scored(found, tmp_path / "whole")
    # One caption and one image at a time.
    monkeypatch.setattr(hat_export.score.tiles, "STREAMED_CAPTION_BYTES", 1)
    monkeypatch.setattr(hat_export.score.tiles, "STREAMED_IMAGE_BYTES", 1)
    seen: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 7:
            raise KeyboardInterrupt

    arguments = (found, found, Scorer.of(found.spec), tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        score_levels(*arguments, progress=CountCalls(stop))
    seen.clear()
    again = score_levels(
        *arguments, progress=CountCalls(lambda what, done, total: seen.append(done))
    )
    assert seen[0] == 6  # the caption that was interrupted is scored again
    # The projection is folded into another number of words at a time, which rounds differently.
    np.testing.assert_allclose(again.total, whole.total, atol=1e-6)


def test_damaged_features_are_encoded_again(
    torch_session: TorchSession, dataset: CaptionDataset, tmp_path: Path
) -> None:
    encoded(torch_session, dataset, tmp_path, "a").close()
    (path,) = tmp_path.glob("captions-*")
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1
    path.write_bytes(content)
    again = encoded(torch_session, dataset, tmp_path, "a")
    assert again.reused == (5, 0)
    (line,) = again.discarded
    assert re.search(r"captions-a-text\.hatidx: record \d+ .* is damaged", line)
    again.texts.verify()


@pytest.mark.parametrize("name", ["level1.npy", "total.npy", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_damaged_scores_are_made_again(
    torch_session: TorchSession,
    dataset: CaptionDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: str,
) -> None:
    found = encoded(torch_session, dataset, tmp_path, "a")
    monkeypatch.setattr(hat_export.score.tiles, "STREAMED_CAPTION_BYTES", 1)  # many blocks
    whole = np.array(scored(found, tmp_path).total)
    (path,) = tmp_path.glob(f"scores-*/{name}")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-9] ^= 4
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    np.testing.assert_array_equal(scored(found, tmp_path).total, whole)


def test_a_full_disk_is_told_before_scores_are_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"can't be written .*--cache"):
        scores_module.new_matrix(tmp_path / "huge.npy", (1 << 20, 1 << 25))


def test_keys_know_what_features_depend_on(
    tiny_checkpoint: Path, tiny_bundle: Path, torch_session: TorchSession
) -> None:
    other = other_model(torch_session, "t2i")
    lambda_only = TorchSession(
        HAT(dataclasses.replace(torch_session.spec, softmax_lambda=3.0)).eval(),
        torch_session.tokenizer,
        1,
    )
    lambda_only.model.load_state_dict(load_hat(tiny_checkpoint).model.state_dict())
    own = encoder_keys(tiny_checkpoint, torch_session)
    assert encoder_keys(tiny_checkpoint, lambda_only) == own  # features don't depend on lambda
    changed = encoder_keys(tiny_checkpoint, other)
    assert changed.image != own.image
    assert changed.text != own.text
    with hat_export.open_bundle(tiny_bundle, threads=1) as session:
        bundle = encoder_keys(tiny_bundle, session)
    assert len({bundle.image, bundle.text, own.image, own.text}) == 4


def test_models_of_different_width_are_told_apart(torch_session: TorchSession) -> None:
    wider = dataclasses.replace(torch_session.spec, dim=64)
    with pytest.raises(InputError, match="48 wide, those of 'tiny' 64"):
        scores_module.check_fit(torch_session.spec, wider)
