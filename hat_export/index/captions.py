"""Captions prepared for scoring against an image index, in memory or in a file of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from hat_export.errors import IndexFileError, InputError
from hat_export.index.base import FeatureIndex
from hat_export.index.record_file import RecordFile
from hat_export.index.storage import encode, storage_named
from hat_export.kernels.alignment_cpu import LevelCaptions
from hat_export.score.captions import PreparedCaptions, prepare
from hat_export.score.features import TextFeatures
from hat_export.score.projection import Projections, pooled_width, stored_widths
from hat_export.spec import LEVELS, REDUCED_LEVELS, ModelSpec


def spec_sha256(spec: ModelSpec) -> str:
    """Hash of a spec's fields, as hex digits."""
    return hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode()).hexdigest()


class CaptionIndex(FeatureIndex):
    """Prepared captions in a ``.hatidx`` file; made by :meth:`create` or :meth:`open`.

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

    @classmethod
    def create(
        cls,
        path: Path,
        spec: ModelSpec,
        model: str,
        projections: Projections | None,
        precision: str = "float32",
    ) -> Self:
        """An empty caption index.

        Args:
            path: Where; must not exist.
            spec: Architecture.
            model: SHA-256 of the model's weights, or any other name of them.
            projections: Of the model, to fold the words; None to keep their full width.
            precision: A name of :data:`hat_export.index.storage.STORAGES`.

        Raises:
            InputError: on an unknown precision or projections of another architecture.
            OutputError: if the path exists or can't be written.
        """
        storage_named(precision)
        if projections is not None:
            projections.check(spec)
        metadata = {
            "kind": cls.kind,
            "spec": spec.to_json(),
            "spec_sha256": spec_sha256(spec),
            "model": model,
            "projections_sha256": None if projections is None else projections.sha256,
            "precision": precision,
            "widths": list(_widths(spec, projections is not None)),
            "pooled_width": pooled_width(spec),
        }
        return cls(RecordFile.create(path, metadata))

    @property
    def projections_sha256(self) -> str | None:
        """Hash of the projections that the words were folded with."""
        value: str | None = self.file.metadata["projections_sha256"]
        return value

    def append(
        self, ids: Sequence[str], texts: TextFeatures, projections: Projections | None
    ) -> None:
        """Add captions: all or none of them.

        Args:
            ids: One new identifier per caption.
            texts: Their word features.
            projections: Those that the index was created with.

        Raises:
            InputError: if the features, ids or projections don't fit.
            OutputError: if the file can't be written.
        """
        check_projections(self.file, projections)
        if texts.levels[0].shape[2] != self.spec.dim:
            raise InputError(
                f"text features are {texts.levels[0].shape[2]} wide; expected {self.spec.dim}"
            )
        if not len(texts):
            self.file.append([], ids)
            return
        captions = prepare(texts, projections)
        payloads = [self._payload(captions.one(number)) for number in range(len(captions))]
        self.file.append(payloads, ids)

    def pooled(self) -> Float32[np.ndarray, "captions pooled"]:
        """Pooled vectors of all captions: float32 [captions, 3 d], a unit vector per level."""
        size = 4 * pooled_width(self.spec)
        content = self.file.gather(np.arange(len(self)), 8, size)
        return content.view("<f4").astype(np.float32, copy=False)

    def block(self, start: int, stop: int) -> PreparedCaptions:
        """Captions ``start`` to ``stop`` (not counted), decoded to float32; at least one."""
        return self.take(range(start, stop))

    def take(self, positions: Sequence[int]) -> PreparedCaptions:
        """Some captions in the given order, decoded to float32; at least one."""
        return PreparedCaptions.concatenate(
            [self._decoded(self.file.record(position)) for position in positions]
        )

    def verify(self) -> None:
        """Check every byte; errors as in :meth:`RecordFile.verify`."""
        self.file.verify()

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
        for level, width in enumerate(_widths(self.spec, self.folded), start=1):
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
        for level, width in enumerate(_widths(self.spec, self.folded), start=1):
            at += -at % 8
            gram = part("<f8", words * words).astype(np.float64)
            folded = self.folded and level in REDUCED_LEVELS
            offset = part("<f4", words).astype(np.float32) if folded else None
            scales = part("<f4", words).astype(np.float32) if self.storage.scaled else None
            stored = part(self.storage.dtype, words * width).reshape(words, width)
            levels.append(LevelCaptions(self.storage.decode(stored, scales), offset, gram, start))
        return PreparedCaptions(tuple(levels), pooled[None])


def check_projections(file: RecordFile, projections: Projections | None) -> None:
    """Refuse projections other than those that an index was created with.

    Raises:
        InputError: naming the index.
    """
    given = None if projections is None else projections.sha256
    if given != file.metadata["projections_sha256"]:
        raise InputError(
            f"{file.path}: was made with other projections than those given; use the model that "
            f"the index was made with ({file.metadata['model']})"
        )


def _widths(spec: ModelSpec, folded: bool) -> tuple[int, ...]:
    return stored_widths(spec) if folded else (spec.dim,) * LEVELS
