"""Score matrix of a whole dataset in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.dataset import CaptionDataset
from hat_export.errors import InputError
from hat_export.features import ImageFeatures, TextFeatures
from hat_export.preprocess import ImageLike
from hat_export.session import Session

#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TextBlock:
    """Captions of like length, encoded together.

    Attributes:
        positions: Where the captions stand in the dataset.
        features: Their features.
    """

    positions: Int64[np.ndarray, " captions"]
    features: TextFeatures


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def encode_captions(
    session: Session, captions: Sequence[str], batch: int, progress: Progress = silent
) -> list[TextBlock]:
    """Encode captions in batches of like length, so that little padding is computed or stored.

    Args:
        session: Any backend.
        captions: Texts.
        batch: Captions at a time.
        progress: Called after each batch.
    """
    ids, mask = session.tokenizer.encode(captions)
    lengths = mask.sum(1)
    order = np.argsort(lengths, kind="stable")
    blocks = []
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        words = int(lengths[chosen].max())
        features = session.encode_texts(ids[chosen, :words], mask[chosen, :words])
        _reject_nan("captions", features.levels)
        blocks.append(TextBlock(chosen, features))
        progress("captions", min(start + batch, len(order)), len(order))
    return blocks


def encode_image_blocks(
    session: Session, images: Iterator[ImageLike], total: int, batch: int
) -> Iterator[tuple[int, ImageFeatures]]:
    """Encode images in batches; yields the first image's number and the features."""
    start = 0
    while start < total:
        count = min(batch, total - start)
        features = session.encode_images([next(images) for _ in range(count)])
        _reject_nan("images", features.levels)
        yield start, features
        start += count


def score_dataset(
    session: Session, dataset: CaptionDataset, batch: int = 50, progress: Progress = silent
) -> Float32[np.ndarray, "images captions"]:
    """Score every image of a dataset with every caption of it.

    Images are encoded, scored and forgotten block by block.

    Args:
        session: Any backend.
        dataset: Images and captions.
        batch: Images at a time, and captions at a time.
        progress: Called after each batch.

    Returns:
        float32 [images, captions], captions in dataset order.

    Raises:
        InputError: if a feature is NaN or infinite.
        DatasetError: if an image can't be read.
    """
    captions = dataset.captions
    texts = encode_captions(session, captions, batch, progress)
    total = len(dataset.entries)
    scores = np.empty((total, len(captions)), np.float32)
    for start, images in encode_image_blocks(session, dataset.images(), total, batch):
        for block in texts:
            part = session.score(images, block.features)
            scores[start : start + len(images), block.positions] = part
        progress("images scored", start + len(images), total)
    return scores


def _reject_nan(what: str, levels: Sequence[np.ndarray]) -> None:
    for level, values in enumerate(levels, start=1):
        if not np.isfinite(values).all():
            raise InputError(
                f"the encoder gave NaN or infinite features for {what} at level {level}; "
                "the weights or the precision can't be right"
            )
