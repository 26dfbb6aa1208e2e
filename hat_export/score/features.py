"""What the encoders give and the score takes: features of images and captions at three levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.errors import InputError
from hat_export.score.projection import stored_widths
from hat_export.spec import LEVELS, ModelSpec


@dataclass(frozen=True)
class ImageFeatures:
    """Region features of some images.

    Attributes:
        levels: Per level, float32 [images, regions, d], not normalised.
    """

    levels: tuple[Float32[np.ndarray, "images regions dim"], ...]

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check("image features", self.levels, "images, regions, d")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.levels[0])

    def __getitem__(self, which: slice) -> ImageFeatures:
        """Some of the images."""
        return ImageFeatures(tuple(level[which] for level in self.levels))

    @classmethod
    def concatenate(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """All images of several batches, in order."""
        levels = zip(*(part.levels for part in parts), strict=True)
        return cls(tuple(np.concatenate(level) for level in levels))


@dataclass(frozen=True)
class TextFeatures:
    """Word features of some captions.

    Attributes:
        levels: Per level, float32 [captions, words, d], not normalised; rows past a caption's
            length have no meaning.
        lengths: True lengths in words, [CLS] and [SEP] counted; at least 1.
    """

    levels: tuple[Float32[np.ndarray, "captions words dim"], ...]
    lengths: Int64[np.ndarray, " captions"]

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check("text features", self.levels, "captions, words, d")
        captions, words = self.levels[0].shape[:2]
        if self.lengths.shape != (captions,) or self.lengths.dtype != np.int64:
            raise InputError(
                f"lengths are {self.lengths.dtype} {list(self.lengths.shape)}; "
                f"expected int64 [{captions}]"
            )
        if captions and not 1 <= self.lengths.min() <= self.lengths.max() <= words:
            raise InputError(f"lengths must lie between 1 and {words} words")

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.lengths)

    def __getitem__(self, which: slice | Int64[np.ndarray, " chosen"]) -> TextFeatures:
        """Some of the captions, by their positions, cut to the longest of them."""
        lengths = self.lengths[which]
        words = int(lengths.max(initial=1))
        return TextFeatures(tuple(level[which, :words] for level in self.levels), lengths)

    @property
    def mask(self) -> Int64[np.ndarray, "captions words"]:
        """1 on real words, 0 on padding."""
        words = self.levels[0].shape[1]
        return (np.arange(words)[None] < self.lengths[:, None]).astype(np.int64)

    @classmethod
    def concatenate(cls, parts: Sequence[TextFeatures]) -> TextFeatures:
        """All captions of several batches, padded to the longest."""
        words = max(part.levels[0].shape[1] for part in parts)

        def padded(level: np.ndarray) -> np.ndarray:
            return np.pad(level, ((0, 0), (0, words - level.shape[1]), (0, 0)))

        levels = zip(*(map(padded, part.levels) for part in parts), strict=True)
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(tuple(np.concatenate(level) for level in levels), lengths)


@dataclass(frozen=True)
class ReducedImages:
    """Image features in reduced form, which an index keeps and the native kernel scores.

    Attributes:
        levels: float32 [images, regions, width]: the normed stage output at levels 1 and 2
            (256 and 512 wide at official size), the features x at level 3 (d wide).
    """

    levels: tuple[Float32[np.ndarray, "images regions width"], ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.levels[0])

    def check(self, spec: ModelSpec) -> None:
        """Refuse features of another shape or kind.

        Raises:
            InputError: naming the level.
        """
        if len(self.levels) != LEVELS:
            raise InputError(f"{len(self.levels)} levels of image features; expected {LEVELS}")
        shapes = zip(spec.level_regions, stored_widths(spec), strict=True)
        for number, (level, shape) in enumerate(zip(self.levels, shapes, strict=True), start=1):
            if level.dtype != np.float32 or level.shape != (len(self), *shape):
                raise InputError(
                    f"level {number} of the image features is {level.dtype} {list(level.shape)}; "
                    f"expected float32 {[len(self), *shape]} (the stage output at levels 1 and 2, "
                    "the projected features at level 3)"
                )


def _check(what: str, levels: Sequence[np.ndarray], axes: str) -> None:
    kinds = {(level.dtype.str, level.ndim, *level.shape[:1], *level.shape[2:]) for level in levels}
    if len(levels) != LEVELS or len(kinds) != 1 or levels[0].ndim != 3:
        shapes = ", ".join(f"{level.dtype} {list(level.shape)}" for level in levels)
        raise InputError(f"{what}: expected {LEVELS} arrays float32 [{axes}]; got {shapes}")
    if levels[0].dtype != np.float32:
        raise InputError(f"{what} are {levels[0].dtype}; expected float32")
