"""Every matrix product of an encoder: the work that no implementation can leave out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hat_export.spec import LEVEL_STAGES, ModelSpec


@dataclass(frozen=True, order=True)
class Product:
    """``batch`` products of [rows, inner] with [inner, columns].

    Attributes:
        batch: 1 where the right side is a weight; else one product a window or caption and head.
        rows: M.
        inner: K.
        columns: N.
    """

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Floating point operations; a multiplication and an addition are two."""
        return 2 * self.batch * self.rows * self.inner * self.columns

    def __str__(self) -> str:
        times = f"{self.batch} x " if self.batch > 1 else ""
        return f"{times}{self.rows} x {self.inner} x {self.columns}"


def image_products(spec: ModelSpec, images: int) -> Counter[Product]:
    """How often each product occurs in one call of the image encoder."""
    found: Counter[Product] = Counter()
    tokens = images * spec.stage_sides[0] ** 2
    found[Product(1, tokens, 3 * spec.patch_size**2, spec.embed_dim)] += 1
    for stage, (side, depth) in enumerate(zip(spec.stage_sides, spec.depths, strict=True)):
        tokens, width, heads = images * side**2, spec.embed_dim << stage, spec.image_heads[stage]
        if stage:
            found[Product(1, tokens, 2 * width, width)] += 1  # merging of 2 x 2 patches
        area = min(spec.window_size, side) ** 2
        found += _layers(depth, tokens, width, 4 * width, tokens // area * heads, area, heads)
        if stage in LEVEL_STAGES:
            found[Product(1, tokens, width, spec.dim)] += 1
    return found


def text_products(spec: ModelSpec, captions: int, words: int) -> Counter[Product]:
    """How often each product occurs in one call of the text encoder, all captions of one length."""
    heads, layers = spec.text_heads, max(spec.text_level_layers) + 1
    tokens, width, hidden = captions * words, spec.text_dim, spec.text_hidden
    found = _layers(layers, tokens, width, hidden, captions * heads, words, heads)
    found[Product(1, tokens, width, spec.dim)] += len(spec.text_level_layers)
    return found


def _layers(
    depth: int, tokens: int, width: int, hidden: int, groups: int, area: int, heads: int
) -> Counter[Product]:
    """Transformer layers: ``groups`` windows or captions x heads attend over ``area`` tokens."""
    found: Counter[Product] = Counter()
    found[Product(1, tokens, width, 3 * width)] += depth
    found[Product(1, tokens, width, width)] += depth
    found[Product(1, tokens, width, hidden)] += depth
    found[Product(1, tokens, hidden, width)] += depth
    found[Product(groups, area, width // heads, area)] += depth
    found[Product(groups, area, area, width // heads)] += depth
    return found
