"""Score matrix of a whole dataset in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.base.progress import SILENT, Progress
from hat_export.data.dataset import CaptionDataset
from hat_export.data.preprocess import ImageLike
from hat_export.errors import InputError
from hat_export.runtime.session import Session
from hat_export.score.alignment import ScorableImages, score_reduced
from hat_export.score.captions import PreparedCaptions, prepare
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.score.tiles import blocks, encoded_tiles, order_by_length

ImagesT = TypeVar("ImagesT")
TextsT = TypeVar("TextsT")


@dataclass(frozen=True)
class CaptionBatch:
    """Captions that are encoded together.

    Attributes:
        positions: Where they stand among all.
        ids: Word pieces, padded to the longest of the batch.
        mask: 1 on real word pieces.
    """

    positions: Int64[np.ndarray, " captions"]
    ids: Int64[np.ndarray, "captions words"]
    mask: Int64[np.ndarray, "captions words"]


def caption_batches(
    session: Session, captions: Sequence[str], batch: int
) -> Iterator[CaptionBatch]:
    """Captions in batches of like length, so that little padding is computed or stored.

    Args:
        session: Whose tokenizer cuts them up.
        captions: Texts.
        batch: Captions at a time.
    """
    if not captions:
        return
    ids, mask = session.tokenizer.encode(captions)
    lengths = mask.sum(1)
    order = order_by_length(lengths)
    for block in blocks(0, len(order), batch):
        chosen = order[block.start : block.stop]
        words = int(lengths[chosen].max())
        yield CaptionBatch(chosen, ids[chosen, :words], mask[chosen, :words])


def encode_caption_batch(session: Session, batch: CaptionBatch) -> TextFeatures:
    """Word features of a batch.

    Raises:
        InputError: if one is NaN or infinite.
    """
    features = session.encode_texts(batch.ids, batch.mask)
    reject_nan("captions", features.levels)
    return features


def encode_captions(
    session: Session, captions: Sequence[str], batch: int, progress: Progress = SILENT
) -> Iterator[tuple[Int64[np.ndarray, " captions"], TextFeatures]]:
    """Encode captions in the batches of :func:`caption_batches`.

    Args:
        session: Any backend.
        captions: Texts.
        batch: Captions at a time.
        progress: Told after each batch.

    Yields:
        Where the captions of a batch stand in the dataset, and their features.
    """
    done = 0
    for some in caption_batches(session, captions, batch):
        yield some.positions, encode_caption_batch(session, some)
        done += len(some.positions)
        progress.count("captions", done, len(captions))


def score_dataset(
    session: Session, dataset: CaptionDataset, batch: int = 50, progress: Progress = SILENT
) -> Float32[np.ndarray, "images captions"]:
    """Score every image of a dataset with every caption of it.

    Images are encoded, scored and forgotten block by block. Where the session scores with the
    native kernel, features stay in their reduced form, which is smaller and faster to score.

    Args:
        session: Any backend.
        dataset: Images and captions.
        batch: Images at a time, and captions at a time.
        progress: Told after each batch.

    Returns:
        float32 [images, captions], captions in dataset order.

    Raises:
        InputError: if a feature is NaN or infinite.
        DatasetError: if an image can't be read.
    """
    if session.scores_reduced:
        return _score_tiles(_reduced(session), session, dataset, batch, progress)
    return _score_tiles(_full(session), session, dataset, batch, progress)


def _score_tiles(
    score: _Scoring[ImagesT, TextsT],
    session: Session,
    dataset: CaptionDataset,
    batch: int,
    progress: Progress,
) -> np.ndarray:
    captions = dataset.captions
    positions, texts = [], []
    for some, features in encode_captions(session, captions, batch, progress):
        positions.append(some)
        texts.append(score.prepare(features))
    total = len(dataset.entries)
    scores = np.empty((total, len(captions)), np.float32)
    if not captions:
        return scores
    pictures = dataset.images()
    images: ImagesT | None = None
    for tile in encoded_tiles(total, np.concatenate(positions), batch):
        if images is None or tile.opens:
            images = score.encode([next(pictures) for _ in tile.images])
        prepared = texts[tile.captions.start // batch]
        scores[tile.rows, tile.columns] = score.run(images, prepared)
        if tile.closes:
            progress.count("images scored", tile.images.stop, total)
    return scores


@dataclass(frozen=True)
class _Scoring(Generic[ImagesT, TextsT]):
    """How images and captions are kept, and how they are scored."""

    prepare: Callable[[TextFeatures], TextsT]
    encode: Callable[[Sequence[ImageLike]], ImagesT]
    run: Callable[[ImagesT, TextsT], np.ndarray]


def _full(session: Session) -> _Scoring[ImageFeatures, TextFeatures]:
    def encode(images: Sequence[ImageLike]) -> ImageFeatures:
        features = session.encode_images(images)
        reject_nan("images", features.levels)
        return features

    return _Scoring(lambda features: features, encode, session.score)


def _reduced(session: Session) -> _Scoring[ScorableImages, PreparedCaptions]:
    projections = session.projections

    def encode(images: Sequence[ImageLike]) -> ScorableImages:
        reduced = session.reduce_images(images)
        reject_nan("images", reduced.levels)
        return ScorableImages.make(reduced, projections)

    def run(images: ScorableImages, captions: PreparedCaptions) -> np.ndarray:
        return score_reduced(images, captions, session.spec, session.threads)

    return _Scoring(lambda features: prepare(features, projections), encode, run)


def reject_nan(what: str, levels: Sequence[np.ndarray]) -> None:
    """Refuse features that no score can be made of.

    Raises:
        InputError: naming the level.
    """
    for level, values in enumerate(levels, start=1):
        if not np.isfinite(values).all():
            raise InputError(
                f"the encoder gave NaN or infinite features for {what} at level {level}; "
                "the weights or the precision can't be right"
            )
