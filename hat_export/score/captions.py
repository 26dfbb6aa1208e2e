"""Captions prepared for scoring: words packed, folded for images in reduced form, and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from hat_export.kernels.alignment_cpu import LevelCaptions, prepare_captions
from hat_export.score.features import TextFeatures
from hat_export.score.projection import Projections, pool
from hat_export.spec import LEVELS


@dataclass(frozen=True)
class PreparedCaptions:
    """What scoring needs of some captions.

    Attributes:
        levels: Per level, the packed words: folded at levels 1 and 2 if made with projections.
        pooled: float32 [captions, 3 d], a unit vector per level (:func:`pool`).
    """

    levels: tuple[LevelCaptions, ...]
    pooled: Float32[np.ndarray, "captions pooled"]

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.pooled)

    def one(self, position: int) -> PreparedCaptions:
        """A single caption, as views: exactly the numbers that the whole has of it."""
        levels = []
        for level in self.levels:
            lengths = np.diff(level.caption_start)
            first, last = level.caption_start[position : position + 2]
            squares = int(np.square(lengths[:position]).sum())
            length = int(lengths[position])
            offset = None if level.word_offset is None else level.word_offset[first:last]
            gram = level.gram[squares : squares + length * length]
            start = np.array([0, length], np.int64)
            levels.append(LevelCaptions(level.words[first:last], offset, gram, start))
        return PreparedCaptions(tuple(levels), self.pooled[position : position + 1])

    @classmethod
    def concatenate(cls, parts: Sequence[PreparedCaptions]) -> PreparedCaptions:
        """All captions of several blocks, in order; at least one block."""
        levels = tuple(_joined([part.levels[n] for part in parts]) for n in range(LEVELS))
        return cls(levels, np.concatenate([part.pooled for part in parts]))


def _joined(parts: Sequence[LevelCaptions]) -> LevelCaptions:
    lengths = np.concatenate([np.diff(part.caption_start) for part in parts])
    offsets = [part.word_offset for part in parts if part.word_offset is not None]
    return LevelCaptions(
        np.concatenate([part.words for part in parts]),
        np.concatenate(offsets) if offsets else None,
        np.concatenate([part.gram for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def prepare(texts: TextFeatures, projections: Projections | None) -> PreparedCaptions:
    """Prepare captions for scoring.

    Args:
        texts: Word features; at least one caption.
        projections: Of the model: for an image index. None for images at full width.

    Returns:
        The captions, in order.

    Raises:
        InputError: if there is none, or widths don't fit.
        BackendUnavailableError: if the kernel's library is missing.
    """
    folds = projections.levels if projections is not None else (None,) * LEVELS
    levels = tuple(
        prepare_captions(words, texts.lengths)
        if fold is None
        else prepare_captions(words, texts.lengths, fold.weight, fold.bias)
        for words, fold in zip(texts.levels, folds, strict=True)
    )
    pooled = np.concatenate([pool(words, texts.lengths) for words in texts.levels], axis=1)
    return PreparedCaptions(levels, pooled)
