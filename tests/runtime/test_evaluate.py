"""Score matrices of whole datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hat_export
from hat_export.data.dataset import CaptionDataset
from hat_export.data.karpathy import read_karpathy
from hat_export.errors import InputError
from hat_export.runtime.evaluate import encode_captions, score_dataset
from hat_export.score.features import ImageFeatures
from progress_calls import CountCalls


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CaptionDataset:
    """Seven noise pictures with two or three captions each."""
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    images = []
    for index in range(7):
        pixels = random.integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        words = random.choice(["red", "dog", "cat", "old", "house", "tree"], (3, 5))
        texts = [" ".join(row[: 1 + index % 5]) for row in words][: 2 + index % 2]
        sentences = [{"raw": text} for text in texts]
        images.append({"filename": f"{index}.png", "split": "test", "sentences": sentences})
    (folder / "dataset_x.json").write_text(json.dumps({"images": images}))
    return read_karpathy(folder, "test")


def test_blocks_give_what_one_call_gives(
    tiny_checkpoint: Path, tiny_bundle: Path, dataset: CaptionDataset
) -> None:
    with hat_export.load(tiny_checkpoint, threads=1) as reference:
        pictures = list(dataset.images())
        expected = reference.score(
            reference.encode_images(pictures), reference.encode_texts(dataset.captions)
        )
        for batch in (2, 50):
            np.testing.assert_allclose(
                score_dataset(reference, dataset, batch), expected, atol=2e-5
            )
    with hat_export.open_bundle(tiny_bundle, threads=1) as session:
        assert session.scores_reduced
        for batch in (3, 50):
            scores = score_dataset(session, dataset, batch)
            np.testing.assert_allclose(scores, expected, atol=2e-5)


def test_captions_are_encoded_by_length(tiny_bundle: Path, dataset: CaptionDataset) -> None:
    with hat_export.open_bundle(tiny_bundle, threads=1) as session:
        blocks = list(encode_captions(session, dataset.captions, 4))
    lengths = np.concatenate([features.lengths for _, features in blocks])
    assert (np.diff(lengths) >= 0).all()
    positions = np.concatenate([chosen for chosen, _ in blocks])
    assert sorted(positions.tolist()) == list(range(len(dataset.captions)))


def test_progress_reaches_the_end(tiny_bundle: Path, dataset: CaptionDataset) -> None:
    seen: dict[str, tuple[int, int]] = {}
    with hat_export.open_bundle(tiny_bundle, threads=1) as session:
        score_dataset(
            session,
            dataset,
            3,
            CountCalls(lambda what, done, total: seen.update({what: (done, total)})),
        )
    captions = len(dataset.captions)
    assert seen == {"captions": (captions, captions), "images scored": (7, 7)}


def test_nan_features_are_refused(
    tiny_checkpoint: Path, dataset: CaptionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hat_export.load(tiny_checkpoint, threads=1) as session:
        encode = session.encode_images

        def broken(images: object) -> ImageFeatures:
            features = encode(images)  # type: ignore[arg-type]
            features.levels[1][0, 0, 0] = np.nan
            return features

        monkeypatch.setattr(session, "encode_images", broken)
        with pytest.raises(InputError, match="NaN or infinite features for images at level 2"):
            score_dataset(session, dataset)
