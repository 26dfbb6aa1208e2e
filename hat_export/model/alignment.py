"""The hierarchical alignment score in PyTorch: batched, differentiable, exportable.

The score is the paper's stacked cross attention with the attended vectors' inner products taken
from identities, so that for i2t no attended vector is ever formed (``s`` is the matrix of
word-region dot products, ``a`` the attention, ``G`` a caption's Gram matrix):

    x_r . v_r = sum_w a[r, w] s[w, r]          |v_r|^2 = a_r^T G a_r
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hat_export.spec import COSINE_FLOOR, LEAKY_SLOPE, NORM_EPSILON, Direction


def level_scores(
    regions: Tensor,
    words: Tensor,
    mask: Tensor,
    softmax_lambda: float,
    direction: Direction = "i2t",
) -> Tensor:
    """Score of every image with every caption at one level.

    Args:
        regions: float [images, regions, d].
        words: float [captions, words, d]; rows past a caption's length may hold anything finite.
        mask: bool [captions, words], true on real words; every caption has at least one.
        softmax_lambda: Inverse temperature of the attention softmax.
        direction: ``i2t`` (regions attend to words) or ``t2i`` (words attend to regions).

    Returns:
        float [images, captions], the mean cosine of each asking vector with what it attends to.
    """
    images, count, dim = regions.shape
    captions, length, _ = words.shape
    dots = words.reshape(captions * length, dim) @ regions.reshape(images * count, dim).t()
    dots = dots.reshape(captions, length, images, count)
    real = mask.reshape(captions, length, 1, 1)
    leaky = functional.leaky_relu(dots, LEAKY_SLOPE)
    if direction == "i2t":
        norm = leaky.square().sum(3, keepdim=True).sqrt() + NORM_EPSILON
        logits = (softmax_lambda * leaky / norm).masked_fill(~real, -torch.inf)
        attention = logits.softmax(1)
        inner = (attention * dots.masked_fill(~real, 0)).sum(1)
        flat = attention.reshape(captions, length, images * count)
        clean = words.masked_fill(~mask.reshape(captions, length, 1), 0)
        gram = clean @ clean.transpose(1, 2)
        squared = (flat * (gram @ flat)).sum(1).reshape(captions, images, count)
        # Rounding can leave a tiny negative number where the attended vector is zero.
        product = squared.clamp_min(0).sqrt() * regions.norm(dim=2)
        cosine: Tensor = inner / product.clamp_min(COSINE_FLOOR)
        return cosine.mean(2).t()
    leaky = leaky.masked_fill(~real, 0)
    norm = leaky.square().sum(1, keepdim=True).sqrt() + NORM_EPSILON
    attention = (softmax_lambda * leaky / norm).softmax(3)
    attended = attention.permute(2, 0, 1, 3).reshape(images, captions * length, count) @ regions
    inner = (attention * dots).sum(3)
    size = attended.norm(dim=2).reshape(images, captions, length).permute(1, 2, 0)
    product = size * words.norm(dim=2).reshape(captions, length, 1)
    cosine = (inner / product.clamp_min(COSINE_FLOOR)).masked_fill(~mask[:, :, None], 0)
    mean: Tensor = cosine.sum(1) / mask.sum(1, keepdim=True)
    return mean.t()


def alignment_scores(
    regions: Sequence[Tensor],
    words: Sequence[Tensor],
    mask: Tensor,
    softmax_lambda: float,
    direction: Direction = "i2t",
) -> Tensor:
    """Sum of the level scores (order of the official sum: level 3, level 1, level 2).

    Args:
        regions: Per level, float [images, regions, d].
        words: Per level, float [captions, words, d].
        mask: bool [captions, words].
        softmax_lambda: As in :func:`level_scores`.
        direction: As in :func:`level_scores`.

    Returns:
        float [images, captions].
    """
    first, second, third = (
        level_scores(region, word, mask, softmax_lambda, direction)
        for region, word in zip(regions, words, strict=True)
    )
    return third + first + second
