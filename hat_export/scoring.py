"""The alignment score of features by the native kernel."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from hat_export.features import ImageFeatures, TextFeatures
from hat_export.kernels import alignment_cpu
from hat_export.spec import ModelSpec


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
    total: np.ndarray | None = None
    # The official order of the sum: level 3, level 1, level 2.
    for level in (2, 0, 1):
        regions = images.levels[level]
        total = alignment_cpu.score(
            regions,
            alignment_cpu.region_norms(regions),
            alignment_cpu.prepare_captions(texts.levels[level], texts.lengths),
            spec.softmax_lambda,
            spec.direction,
            threads,
            total=total,
        )
    assert total is not None
    return total
