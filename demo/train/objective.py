"""Training objectives: the paper's hinge loss and two contrastive warm-ups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def hardest_negative_hinge(scores: Tensor, same: Tensor, margin: float = 0.2) -> Tensor:
    """The paper's triplet loss on the hardest negatives, summed over both directions.

    Args:
        scores: float [n, n], image ``i`` with caption ``j``; the diagonal is right.
        same: bool [n, n], true where ``i`` and ``j`` show the same concept: no negatives.
        margin: Wanted distance between a right pair and its hardest negative.

    Returns:
        Scalar, mean over the batch. Source: VSE++ (Faghri et al.), HAT section 3.4.
    """
    right = scores.diagonal()
    wrong = scores.masked_fill(same, -torch.inf)
    images = (margin + wrong.amax(1) - right).clamp_min(0)
    captions = (margin + wrong.amax(0) - right).clamp_min(0)
    return images.mean() + captions.mean()


def contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE with several right answers: -log of the softmax mass on them, row by row."""
    # A large finite number: -inf in both sums would give NaN gradients.
    right = logits.masked_fill(~positive, -1e4).logsumexp(1)
    return (logits.logsumexp(1) - right).mean()


def symmetric_contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean of the two directions of :func:`contrast`."""
    return (contrast(logits, positive) + contrast(logits.t(), positive.t())) / 2


def pooled_contrast(
    regions: Sequence[Tensor], words: Sequence[Tensor], mask: Tensor, same: Tensor, scales: Tensor
) -> Tensor:
    """Contrast of mean-pooled features at every level: images with captions and with images.

    The image-image half asks for two drawings of one concept to be neighbours, which is what
    carries over to drawings in a style never seen.

    Args:
        regions: Per level, float [n, regions, d].
        words: Per level, float [n, words, d].
        mask: bool [n, words].
        same: bool [n, n], true where two entries show the same concept (diagonal included).
        scales: float [levels], inverse temperatures.

    Returns:
        Scalar, mean over levels.
    """
    other = same & ~torch.eye(len(same), dtype=torch.bool)
    paired = bool(other.any(1).all())
    total = scales.new_zeros(())
    for region, word, scale in zip(regions, words, scales, strict=True):
        image = functional.normalize(region.mean(1), dim=1)
        text = functional.normalize((word * mask[:, :, None]).sum(1), dim=1)
        total = total + symmetric_contrast(scale * (image @ text.t()), same)
        if paired:
            itself = torch.eye(len(same), dtype=torch.bool)
            between = (scale * (image @ image.t())).masked_fill(itself, -1e4)
            total = total + contrast(between, other)
    return total / len(regions)
