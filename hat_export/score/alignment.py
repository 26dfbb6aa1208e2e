"""The alignment score by the native kernel of features and of their reduced form; blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from hat_export.kernels import alignment_cpu
from hat_export.score.captions import PreparedCaptions
from hat_export.score.features import ImageFeatures, ReducedImages, TextFeatures
from hat_export.score.projection import Projections
from hat_export.score.tiles import Tile, feature_tiles
from hat_export.spec import LEVEL_ORDER, ModelSpec

#: Scores some images with some captions, float32 [images, captions].
ScoreFeatures = Callable[[ImageFeatures, TextFeatures], np.ndarray]


@dataclass(frozen=True)
class ScorableImages:
    """Images in reduced form with what their scores need besides.

    Attributes:
        reduced: Stage outputs at levels 1 and 2, features at level 3.
        norms: Per level, float32 [images, regions]: norms of the projected regions.
    """

    reduced: ReducedImages
    norms: tuple[Float32[np.ndarray, "images regions"], ...]

    @classmethod
    def make(cls, reduced: ReducedImages, projections: Projections) -> ScorableImages:
        """Project the regions, keep their norms, forget the rest."""
        folds = zip(reduced.levels, projections.levels, strict=True)
        features = (hidden if fold is None else fold.apply(hidden) for hidden, fold in folds)
        return cls(reduced, tuple(alignment_cpu.region_norms(level) for level in features))


def score_reduced(
    images: ScorableImages, captions: PreparedCaptions, spec: ModelSpec, threads: int
) -> Float32[np.ndarray, "images captions"]:
    """Score images in reduced form with captions that hold the projections (i2t only).

    Args:
        images: At least one.
        captions: Prepared with the same projections.
        spec: Says lambda.
        threads: Threads of the kernel.

    Returns:
        float32 [images, captions], the sum of the three levels.
    """
    total = np.zeros((len(images.reduced), len(captions)), np.float32)
    for level in LEVEL_ORDER:
        alignment_cpu.score(
            images.reduced.levels[level - 1],
            images.norms[level - 1],
            captions.levels[level - 1],
            spec.softmax_lambda,
            spec.direction,
            threads,
            total=total,
        )
    return total


def score_with_kernel(
    images: ImageFeatures, texts: TextFeatures, spec: ModelSpec, threads: int
) -> Float32[np.ndarray, "images captions"]:
    """Score every image with every caption, level by level, on the CPU.

    Args:
        images: Region features.
        texts: Word features.
        spec: Says the direction and lambda.
        threads: Threads of the kernel.

    Returns:
        float32 [images, captions], the sum of the three levels.

    Raises:
        BackendUnavailableError: if the kernel's library is missing.
    """
    if not len(images) or not len(texts):
        return np.zeros((len(images), len(texts)), np.float32)
    total = np.zeros((len(images), len(texts)), np.float32)
    for level in LEVEL_ORDER:
        regions = images.levels[level - 1]
        alignment_cpu.score(
            regions,
            alignment_cpu.region_norms(regions),
            alignment_cpu.prepare_captions(texts.levels[level - 1], texts.lengths),
            spec.softmax_lambda,
            spec.direction,
            threads,
            total=total,
        )
    return total


@dataclass(frozen=True)
class FeatureBlock:
    """Features that are scored together.

    Attributes:
        tile: Where they stand among all.
        images: The images of the tile.
        texts: The captions of the tile, cut to the longest.
    """

    tile: Tile
    images: ImageFeatures
    texts: TextFeatures


def feature_blocks(images: ImageFeatures, texts: TextFeatures) -> Iterator[FeatureBlock]:
    """Blocks for a formula whose memory grows with images x regions x captions x words.

    Args:
        images: All images.
        texts: All captions.

    Yields:
        Blocks of bounded memory, captions of like length together.
    """
    regions = max(level.shape[1] for level in images.levels)
    some = texts[:0]
    for tile in feature_tiles(len(images), regions, texts.lengths):
        if tile.opens:
            some = texts[tile.columns]
        yield FeatureBlock(tile, images[tile.rows], some)
