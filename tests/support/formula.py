"""The score as its definition reads, in float64, one pair after the other.

Every test of a faster way compares with this one. Nothing is shared with the package, constants
neither, and attended vectors are formed. ``tests/score/test_golden_alignment.py`` checks it against
the recorded scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAKY_SLOPE = 0.1
NORM_EPSILON = 1e-8
COSINE_FLOOR = 1e-8


def pair_score(
    regions: np.ndarray, words: np.ndarray, softmax_lambda: float, direction: str
) -> float:
    """Score of one image with one caption at one level.

    The side that asks (regions for i2t, words for t2i) attends to the other: with the dot products
    s after a leaky ReLU, each vector that is attended to has its row of s scaled to unit length;
    the attention is the softmax of lambda times that over the vectors attended to. The score is the
    mean cosine of an asking vector with the sum that it attends to.

    Args:
        regions: [regions, d].
        words: [words, d], of the caption's true length.
        softmax_lambda: Inverse temperature of the softmax.
        direction: ``i2t`` or ``t2i``.
    """
    x, c = regions.astype(np.float64), words.astype(np.float64)
    asking, attended_to = (x, c) if direction == "i2t" else (c, x)
    dots = attended_to @ asking.T
    leaky = np.where(dots > 0, dots, LEAKY_SLOPE * dots)
    leaky = leaky / (np.sqrt(np.square(leaky).sum(1, keepdims=True)) + NORM_EPSILON)
    logits = softmax_lambda * leaky
    weights = np.exp(logits - logits.max(0))
    attended = (weights / weights.sum(0)).T @ attended_to
    sizes = np.linalg.norm(asking, axis=1) * np.linalg.norm(attended, axis=1)
    cosines = (asking * attended).sum(1) / np.maximum(sizes, COSINE_FLOOR)
    return float(cosines.mean())


def level_scores(
    regions: np.ndarray,
    words: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    softmax_lambda: float,
    direction: str = "i2t",
) -> np.ndarray:
    """Score of every image with every caption at one level.

    Args:
        regions: [images, regions, d].
        words: [captions, words, d]; rows past a caption's length may hold anything.
        lengths: True lengths of the captions.
        softmax_lambda: As for :func:`pair_score`.
        direction: As for :func:`pair_score`.

    Returns:
        float64 [images, captions].
    """
    real = [padded[: int(length)] for padded, length in zip(words, lengths, strict=True)]
    return np.array([[pair_score(x, c, softmax_lambda, direction) for c in real] for x in regions])
