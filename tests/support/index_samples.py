"""Small random models, images and captions for the tests of indexes and search."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import formula
from hat_export.score.features import ReducedImages, TextFeatures
from hat_export.score.projection import Projection, Projections, stored_widths
from hat_export.spec import OFFICIAL, ModelSpec

#: 16, 4 and 1 regions, 8, 16 and 12 wide: a record of a few kilobytes.
SMALL = replace(
    OFFICIAL,
    name="small",
    image_size=32,
    resize_size=32,
    window_size=1,
    embed_dim=4,
    image_heads=(1, 1, 1, 1),
    dim=12,
)

#: 64, 16 and 4 regions, 32, 64 and 96 wide.
MEDIUM = replace(
    OFFICIAL,
    name="medium",
    image_size=64,
    resize_size=64,
    window_size=2,
    embed_dim=16,
    image_heads=(1, 1, 1, 1),
    dim=96,
)


@dataclass(frozen=True)
class Sample:
    """Some images and captions of one model.

    Attributes:
        spec: Architecture.
        projections: Of levels 1 and 2.
        images: Reduced form.
        texts: Word features.
    """

    spec: ModelSpec
    projections: Projections
    images: ReducedImages
    texts: TextFeatures

    @property
    def image_ids(self) -> list[str]:
        return [f"image-{number}.jpg" for number in range(len(self.images))]

    @property
    def caption_ids(self) -> list[str]:
        return [f"caption {number}" for number in range(len(self.texts))]

    def some_images(self, first: int, last: int) -> ReducedImages:
        return ReducedImages(tuple(level[first:last] for level in self.images.levels))


def sample(spec: ModelSpec, images: int, captions: int, seed: int = 0, words: int = 9) -> Sample:
    """Normed stage outputs as LayerNorm gives them, and captions that lean towards an image."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    widths = stored_widths(spec)
    folds = [
        Projection(normal(spec.dim, width) / np.float32(width**0.5), normal(spec.dim))
        for width in widths[:2]
    ]
    levels = tuple(
        normal(images, regions, width)
        for regions, width in zip(spec.level_regions, widths, strict=True)
    )
    lengths = random.integers(1, words + 1, captions)
    lengths[:1] = words
    texts = []
    for level, fold in zip(levels, (*folds, None), strict=True):
        features = level if fold is None else fold.apply(level)
        means = features.mean(1)[np.arange(captions) % images]
        texts.append(normal(captions, words, spec.dim) + means[:, None])
    return Sample(
        spec,
        Projections(*folds),
        ReducedImages(levels),
        TextFeatures(tuple(texts), lengths.astype(np.int64)),
    )


def exact_scores(data: Sample) -> np.ndarray:
    """The score as its definition reads, from projected features, in float64."""
    total = np.zeros((len(data.images), len(data.texts)))
    folds = data.projections.levels
    for hidden, words, fold in zip(data.images.levels, data.texts.levels, folds, strict=True):
        regions = hidden.astype(np.float64)
        if fold is not None:
            regions = regions @ fold.weight.T.astype(np.float64) + fold.bias
        smooth = data.spec.softmax_lambda
        total += formula.level_scores(regions, words, data.texts.lengths, smooth)
    return total
