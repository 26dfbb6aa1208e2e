"""Scores and two-stage search from an index: images by captions, and captions by images.

The exact score visits every region of every image. Search finds candidates by a coarse score that
is much cheaper, and scores only those exactly: how many it takes for a given recall is measured by
:mod:`hat_export.index.rescore`. Users call the methods of
:class:`~hat_export.index.images.ImageIndex` and :class:`~hat_export.index.captions.CaptionIndex`.

Equal scores are ordered by position: what was indexed first comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.base.progress import SILENT, Progress
from hat_export.errors import InputError
from hat_export.index.caption_records import CaptionRecords
from hat_export.index.image_records import ImageRecords
from hat_export.kernels.alignment_cpu import score
from hat_export.score import tiles
from hat_export.score.alignment import ScorableImages, score_reduced
from hat_export.score.captions import PreparedCaptions, prepare
from hat_export.score.features import ReducedImages, TextFeatures
from hat_export.score.projection import Projections, pool
from hat_export.score.tiles import Tiling, blocks, indexed_tiles
from hat_export.spec import LEVEL_ORDER

Captions = TextFeatures | CaptionRecords

#: Coarse scores of every image with some captions, float32 [images, captions].
CoarseScores = Callable[[ImageRecords, PreparedCaptions, int], np.ndarray]


@dataclass(frozen=True)
class Hits:
    """The best images of one caption, or captions of one image, best first.

    Attributes:
        ids: Their identifiers.
        positions: Where they stand in the index, int64 [hits].
        scores: Their exact scores, float32 [hits].
    """

    ids: tuple[str, ...]
    positions: Int64[np.ndarray, " hits"]
    scores: Float32[np.ndarray, " hits"]


def score_images(
    index: ImageRecords, captions: Captions, threads: int = 1, progress: Progress = SILENT
) -> Float32[np.ndarray, "images captions"]:
    """What :meth:`hat_export.index.images.ImageIndex.score` says.

    Besides the result this holds one block of captions and one block of images
    (:func:`hat_export.score.tiles.indexed_tiles`).
    """
    _check(index, captions)
    scores = np.zeros((len(index), len(captions)), np.float32)
    every = np.arange(len(index))
    block: PreparedCaptions | None = None
    for tile in _tiles(index, len(index), len(captions), LEVEL_ORDER):
        if block is None or tile.opens:
            block = _prepared(index, captions, tile.captions)
        total = scores[tile.rows, tile.columns]
        _add_levels(index, every[tile.rows], block, LEVEL_ORDER, threads, total)
        progress.count("pairs scored", tile.done, scores.size)
    return scores


def level3_scores(
    index: ImageRecords, captions: PreparedCaptions, threads: int = 1
) -> Float32[np.ndarray, "images captions"]:
    """Exact score of the coarsest level alone: a ninth of the multiplications at official size.

    Args:
        index: The images.
        captions: Folded captions.
        threads: Threads of the kernel.

    Returns:
        float32 [images, captions].
    """
    scores = np.zeros((len(index), len(captions)), np.float32)
    every = np.arange(len(index))
    for tile in _tiles(index, len(index), 1, (3,)):
        _add_levels(index, every[tile.rows], captions, (3,), threads, scores[tile.rows])
    return scores


def pooled_scores(
    index: ImageRecords,
    captions: PreparedCaptions,
    threads: int = 1,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Float32[np.ndarray, "images captions"]:
    """Weighted sum of the levels' cosines between pooled vectors: one small matrix product.

    Args:
        index: The images.
        captions: Captions.
        threads: Not used: numpy's own setting holds for its matrix product.
        weights: Of levels 1, 2 and 3; equal, since the exact score is a plain sum.

    Returns:
        float32 [images, captions].
    """
    weight = np.repeat(np.asarray(weights, np.float32), index.spec.dim)
    kept = index.all_pooled()
    if kept is not None:
        everything: np.ndarray = kept @ (captions.pooled * weight).T
        return everything
    scores = np.empty((len(index), len(captions)), np.float32)
    every = np.arange(len(index))
    for tile in indexed_tiles(len(index), 1, 4 * len(weight)):
        scores[tile.rows] = index.pooled(every[tile.rows]) @ (captions.pooled * weight).T
    return scores


@dataclass(frozen=True)
class CandidateSource:
    """A coarse score.

    Attributes:
        scores: Computes it.
        levels: Levels of the exact score that it already holds; the others are added to it.
    """

    scores: CoarseScores
    levels: tuple[int, ...]


#: Every way to find candidates, by name.
CANDIDATES: dict[str, CandidateSource] = {
    "level3": CandidateSource(level3_scores, (3,)),
    "pooled": CandidateSource(pooled_scores, ()),
}


def candidate_source(name: str) -> CandidateSource:
    """The way to find candidates of a name.

    Raises:
        InputError: if there is none.
    """
    if name not in CANDIDATES:
        raise InputError(f"candidates {name!r}: expected one of {', '.join(CANDIDATES)}")
    return CANDIDATES[name]


def coarse_scores(
    index: ImageRecords, captions: Captions, candidates: str, threads: int = 1
) -> Float32[np.ndarray, "images captions"]:
    """What :meth:`hat_export.index.images.ImageIndex.coarse_scores` says."""
    source = candidate_source(candidates)
    _check(index, captions)
    scores = np.empty((len(index), len(captions)), np.float32)
    for block in blocks(0, len(captions), tiles.CAPTIONS_PER_BLOCK):
        some = _prepared(index, captions, block)
        scores[:, block.start : block.stop] = source.scores(index, some, threads)
    return scores


def search_images(
    index: ImageRecords,
    captions: Captions,
    top_k: int,
    candidates: str = "pooled",
    rescore: int | None = None,
    threads: int = 1,
) -> list[Hits]:
    """What :meth:`hat_export.index.images.ImageIndex.search` says."""
    source = candidate_source(candidates)
    rescore = _checked_rescore(len(index), top_k, rescore)
    _check(index, captions)
    hits = []
    for block in blocks(0, len(captions), tiles.CAPTIONS_PER_BLOCK):
        some = _prepared(index, captions, block)
        coarse = source.scores(index, some, threads)
        for number in range(len(some)):
            chosen = np.sort(top_positions(coarse[:, number], rescore))
            total = np.zeros(len(chosen), np.float32)
            if source.levels:
                total += coarse[chosen, number]
            rest = tuple(level for level in LEVEL_ORDER if level not in source.levels)
            caption = some.one(number)
            for tile in _tiles(index, len(chosen), 1, rest):
                column = total[tile.rows, None]
                _add_levels(index, chosen[tile.rows], caption, rest, threads, column)
            hits.append(_best(index.ids, chosen, total, top_k))
    return hits


def search_captions(
    index: CaptionRecords,
    images: ReducedImages,
    top_k: int,
    rescore: int | None = None,
    threads: int = 1,
) -> list[Hits]:
    """What :meth:`hat_export.index.captions.CaptionIndex.search` says."""
    projections = index.projections
    if projections is None:
        raise InputError(
            f"{index.file.path}: its captions are of full width, and a search takes folded ones; "
            "make an index with the model's projections"
        )
    images.check(index.spec)
    rescore = _checked_rescore(len(index), top_k, rescore)
    coarse = None if rescore >= len(index) else index.pooled()
    hits = []
    for number in range(len(images)):
        image = ReducedImages(tuple(level[number : number + 1] for level in images.levels))
        chosen = np.arange(len(index))
        if coarse is not None:
            vector = _pooled(image, projections)
            chosen = np.sort(top_positions(coarse @ vector, rescore))
        scorable = ScorableImages.make(image, projections)
        scores = np.empty(len(chosen), np.float32)
        for tile in indexed_tiles(1, len(chosen), 0):
            captions = index.take(chosen[tile.columns].tolist())
            scores[tile.columns] = score_reduced(scorable, captions, index.spec, threads)[0]
        hits.append(_best(index.ids, chosen, scores, top_k))
    return hits


def top_positions(
    scores: Float32[np.ndarray, " items"], count: int
) -> Int64[np.ndarray, " chosen"]:
    """Positions of the highest scores, best first; equal scores in order of position.

    Args:
        scores: float32 [items], no NaN.
        count: How many; all if there are fewer.
    """
    if count < 1:
        return np.zeros(0, np.int64)
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > last)
    equal = np.flatnonzero(scores == last)[: count - len(above)]
    chosen = np.concatenate([above, equal])
    return chosen[np.lexsort((chosen, -scores[chosen]))]


def _checked_rescore(items: int, top_k: int, rescore: int | None) -> int:
    """How many candidates are scored exactly."""
    rescore = items if rescore is None else rescore
    if top_k < 1 or (rescore < top_k and rescore < items):
        raise InputError(
            f"top_k {top_k} with rescore {rescore}: expected 1 <= top_k <= rescore candidates"
        )
    return rescore


def _best(ids: Sequence[str], chosen: np.ndarray, scores: np.ndarray, top_k: int) -> Hits:
    """The best of the chosen positions by their scores."""
    best = top_positions(scores, top_k)
    positions = chosen[best]
    names = tuple(ids[position] for position in positions.tolist())
    return Hits(names, positions, scores[best])


def _pooled(image: ReducedImages, projections: Projections) -> np.ndarray:
    folds = zip(image.levels, projections.levels, strict=True)
    return np.concatenate(
        [pool(hidden if fold is None else fold.apply(hidden))[0] for hidden, fold in folds]
    )


def _check(index: ImageRecords, captions: Captions) -> None:
    """Refuse captions of another model."""
    if isinstance(captions, CaptionRecords):
        captions.use(index.projections)
    elif captions.levels[0].shape[2] != index.spec.dim:
        raise InputError(
            f"text features are {captions.levels[0].shape[2]} wide; {index.file.path} has "
            f"{index.spec.dim}"
        )


def _prepared(index: ImageRecords, captions: Captions, block: range) -> PreparedCaptions:
    """A block of captions, folded."""
    if isinstance(captions, CaptionRecords):
        return captions.take(block)
    return prepare(captions[block.start : block.stop], index.projections)


def _tiles(index: ImageRecords, images: int, captions: int, levels: tuple[int, ...]) -> Tiling:
    """Blocks of images that stay bounded at the largest of some levels."""
    largest = max(int(np.prod(index.layout[f"values_{level}"].shape)) for level in levels)
    return indexed_tiles(images, captions, 4 * largest)


def _add_levels(
    index: ImageRecords,
    positions: np.ndarray,
    captions: PreparedCaptions,
    levels: tuple[int, ...],
    threads: int,
    total: np.ndarray,
) -> None:
    """Add level scores of some images to ``total`` [images, captions], one level at a time."""
    for level in levels:
        regions, norms = index.level(level, positions)
        smooth = index.spec.softmax_lambda
        prepared = captions.levels[level - 1]
        total += score(regions, norms, prepared, smooth, "i2t", threads)
