"""The records of a caption index: captions prepared for scoring, in a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from hat_export.errors import IndexFileError
from hat_export.index.base import FeatureIndex
from hat_export.index.record_file import RecordFile
from hat_export.index.storage import encode
from hat_export.kernels.alignment_cpu import LevelCaptions
from hat_export.score.captions import PreparedCaptions
from hat_export.score.projection import pooled_width, stored_widths
from hat_export.spec import LEVELS, REDUCED_LEVELS, ModelSpec


class CaptionRecords(FeatureIndex):
    """Prepared captions in a ``.hatidx`` file, as records: what lies where in them, read and made.

    Attributes:
        file: The container.
        spec: Architecture that the captions belong to.
        storage: Precision of the words; Gram matrices are float64, the rest float32.
        folded: Whether the words are folded for an image index.
    """

    kind = "captions"

    def __init__(self, file: RecordFile) -> None:
        super().__init__(file)
        self.folded: bool = self.file.metadata["projections_sha256"] is not None
        if (self.file.record_bytes < self._bytes_of(1)).any():
            raise self._damaged()

    def pooled(self) -> Float32[np.ndarray, "captions pooled"]:
        """Pooled vectors of all captions: float32 [captions, 3 d], a unit vector per level."""
        size = 4 * pooled_width(self.spec)
        content = self.file.gather(np.arange(len(self)), 8, size)
        return content.view("<f4").astype(np.float32, copy=False)

    def take(self, positions: Sequence[int]) -> PreparedCaptions:
        """Some captions in the given order, decoded to float32; at least one."""
        return PreparedCaptions.concatenate(
            [self._decoded(self.file.record(position)) for position in positions]
        )

    def _payload(self, caption: PreparedCaptions) -> bytes:
        words = len(caption.levels[0].words)
        content = bytearray(np.array([words, 0], "<u4").tobytes())
        content += caption.pooled.astype("<f4").tobytes()
        for number, level in enumerate(caption.levels, start=1):
            # The float64 part comes first, so that every part stays aligned to its item size.
            content += bytes(-len(content) % 8)
            content += level.gram.astype("<f8").tobytes()
            if level.word_offset is not None:
                content += level.word_offset.astype("<f4").tobytes()
            stored, scales = encode(self.storage, level.words, f"words of level {number}")
            if scales is not None:
                content += scales.astype("<f4").tobytes()
            content += stored.tobytes()
        return bytes(content)

    def _bytes_of(self, words: int) -> int:
        """Bytes of a record of so many words, without padding but with its checksum."""
        at = 8 + 4 * pooled_width(self.spec)
        for level, width in enumerate(word_widths(self.spec, self.folded), start=1):
            at += -at % 8 + 8 * words * words + self.storage.dtype.itemsize * words * width
            at += 4 * words * (self.folded and level in REDUCED_LEVELS)
            at += 4 * words * self.storage.scaled
        return at + 4

    def _damaged(self) -> IndexFileError:
        return IndexFileError(f"{self.file.path}: a record is damaged; build the index again")

    def _decoded(self, record: np.ndarray) -> PreparedCaptions:
        words = int(record[:4].view("<u4")[0])
        if not 1 <= words <= self.spec.max_words or self._bytes_of(words) > len(record) + 4:
            raise self._damaged()
        at = 8

        def part(dtype: str | np.dtype[Any], count: int) -> np.ndarray:
            nonlocal at
            first, at = at, at + np.dtype(dtype).itemsize * count
            return np.frombuffer(record[first:at].tobytes(), dtype)

        pooled = part("<f4", pooled_width(self.spec)).astype(np.float32)
        start = np.array([0, words], np.int64)
        levels = []
        for level, width in enumerate(word_widths(self.spec, self.folded), start=1):
            at += -at % 8
            gram = part("<f8", words * words).astype(np.float64)
            folded = self.folded and level in REDUCED_LEVELS
            offset = part("<f4", words).astype(np.float32) if folded else None
            scales = part("<f4", words).astype(np.float32) if self.storage.scaled else None
            stored = part(self.storage.dtype, words * width).reshape(words, width)
            levels.append(LevelCaptions(self.storage.decode(stored, scales), offset, gram, start))
        return PreparedCaptions(tuple(levels), pooled[None])


def word_widths(spec: ModelSpec, folded: bool) -> tuple[int, ...]:
    """Width of the words per level."""
    return stored_widths(spec) if folded else (spec.dim,) * LEVELS
