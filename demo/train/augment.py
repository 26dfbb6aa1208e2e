"""Augmentation of drawings on a white background."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def augment(
    images: Tensor, may_flip: Tensor, generator: torch.Generator, strength: float
) -> Tensor:
    """Randomly warped, recoloured, blurred and partly erased copies of drawings.

    Args:
        images: float [images, 3, H, W] in [0, 1], white background.
        may_flip: bool [images], false where left and right carry meaning.
        generator: Source of randomness.
        strength: 0 leaves the pictures as they are, 1 is the full range.

    Returns:
        float [images, 3, H, W] in [0, 1].
    """
    ink = _warp(1 - images, may_flip, generator, strength)
    ink = _recolour(ink, generator, strength)
    ink = _blur_some(ink, generator, strength)
    return (1 - _erase_some(ink, generator, strength)).clamp(0, 1)


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _warp(ink: Tensor, may_flip: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Rotation up to 15 degrees, scale, aspect ratio, shear, translation, horizontal flip."""
    count = ink.shape[0]

    def draw(limit: float) -> Tensor:
        return _uniform(generator, -limit * strength, limit * strength, count)

    angle, shear = draw(math.radians(15)), draw(0.12)
    zoom, aspect = torch.exp(draw(0.22) + 0.08 * strength), torch.exp(draw(0.14))
    flip = torch.where((torch.rand(count, generator=generator) < 0.5) & may_flip, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = (
        torch.stack([flip * aspect * cosine, shear - sine, draw(0.12)], 1),
        torch.stack([flip * sine, cosine / aspect, draw(0.12)], 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(ink.shape), align_corners=False)
    return functional.grid_sample(ink, grid, align_corners=False)


def _recolour(ink: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Saturation, a slight mixing of the colour channels and gain; white stays white."""
    count = ink.shape[0]
    grey = ink.mean(1, keepdim=True)
    saturation = 1 + strength * _uniform(generator, -0.6, 0.6, count, 1, 1, 1)
    drained = torch.rand(count, 1, 1, 1, generator=generator) < 0.08 * strength
    ink = grey + (ink - grey) * torch.where(drained, 0.0, saturation)
    mixing = torch.eye(3) + torch.randn(count, 3, 3, generator=generator) * (0.07 * strength)
    ink = torch.einsum("nij,njhw->nihw", mixing, ink)
    return ink * (1 + strength * _uniform(generator, -0.25, 0.25, count, 1, 1, 1))


def _blur_some(ink: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """A 3 x 3 binomial blur, or its opposite (sharpening), mixed in by a random amount."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    blurred = functional.conv2d(ink, kernel, padding=1, groups=3)
    amount = strength * _uniform(generator, -0.6, 0.9, ink.shape[0], 1, 1, 1)
    return ink + amount * (blurred - ink)


def _erase_some(ink: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """One white rectangle of up to 40 % of each side in a third of the pictures."""
    count, _, height, width = ink.shape
    inside = torch.ones(count, 1, 1, 1, dtype=torch.bool)
    for axis, size in ((2, height), (3, width)):
        shape = [count, 1, 1, 1]
        shape[axis] = size
        position = torch.linspace(0, 1, size).view([size if i == axis else 1 for i in range(4)])
        centre = torch.rand(count, 1, 1, 1, generator=generator)
        half = _uniform(generator, 0.05, 0.2, count, 1, 1, 1)
        inside = inside & ((position - centre).abs() < half)
    chosen = torch.rand(count, 1, 1, 1, generator=generator) < strength / 3
    return ink.masked_fill(inside & chosen, 0)
