"""The alignment score by the native kernel: of features, and of their reduced form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from hat_export.kernels import alignment_cpu
from hat_export.score.captions import PreparedCaptions
from hat_export.score.features import ImageFeatures, ReducedImages, TextFeatures
from hat_export.score.projection import Projections
from hat_export.spec import LEVEL_ORDER, ModelSpec


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
