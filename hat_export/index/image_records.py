"""The records of the compact image index: what scoring needs of an image, and nothing more.

At levels 1 and 2 that is the image encoder's normed stage output ``h``, at level 3 the projected
features ``x``, and at every level the norms ``|x|`` of the projected regions; besides a pooled
vector for coarse search. In float16 an image of the published model takes 0.69 MB, where its
features at full width in float32 take 3.16 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.errors import IndexFileError, InputError
from hat_export.index.base import FeatureIndex
from hat_export.index.record_file import RecordFile
from hat_export.index.record_format import ALIGNMENT
from hat_export.index.storage import Storage, encode
from hat_export.kernels.alignment_cpu import region_norms
from hat_export.score.projection import Projections, pool, pooled_width, stored_widths
from hat_export.spec import ModelSpec

#: Pooled vectors that are kept in memory, in bytes: 116,000 images of official size. A query then
#: costs a matrix product instead of reading and decoding a part of every record.
POOLED_BYTES = 1 << 30


@dataclass(frozen=True)
class Section:
    """One array of every record.

    Attributes:
        offset: First byte within the record; a multiple of 64.
        dtype: Of its values, little-endian.
        shape: Of one record's array.
    """

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape))


def record_layout(spec: ModelSpec, storage: Storage) -> dict[str, Section]:
    """Where each array of an image lies in its record.

    The pooled vector and level 3 come first: coarse search reads them and nothing else, and so
    touches few pages of the file.

    Args:
        spec: Architecture.
        storage: Precision of the features.

    Returns:
        ``pooled``, then per level ``norms_n``, ``scales_n`` (int8 only) and ``values_n``.
    """
    single = np.dtype("<f4")
    pooled = single if storage.name == "float32" else np.dtype("<f2")
    parts: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = [
        ("pooled", pooled, (pooled_width(spec),))
    ]
    shapes = list(zip(spec.level_regions, stored_widths(spec), strict=True))
    for level in (3, 1, 2):
        regions, width = shapes[level - 1]
        parts.append((f"norms_{level}", single, (regions,)))
        if storage.scaled:
            parts.append((f"scales_{level}", single, (regions,)))
        parts.append((f"values_{level}", storage.dtype, (regions, width)))
    layout: dict[str, Section] = {}
    offset = 0
    for name, dtype, shape in parts:
        section = Section(offset, dtype, shape)
        layout[name] = section
        offset += section.size + -section.size % ALIGNMENT
    return layout


class ImageRecords(FeatureIndex):
    """Images in a ``.hatidx`` file, as records: what lies where in them, read and made.

    Attributes:
        file: The container.
        spec: Architecture that the features belong to.
        storage: Precision of the features; norms are float32, pooled vectors float32 in a float32
            index and float16 in the others.
        layout: Where each array lies in a record.
    """

    kind = "images"

    def __init__(self, file: RecordFile) -> None:
        super().__init__(file)
        self.layout = record_layout(self.spec, self.storage)
        self._check_sizes()
        self._pooled = np.empty((0, pooled_width(self.spec)), np.float32)

    @property
    def projections(self) -> Projections:
        """Those that it was made with.

        Raises:
            InputError: if they weren't given yet, or the file says that there are none.
        """
        found = super().projections
        if found is None:
            raise InputError(
                f"{self.file.path}: names no projections, without which images aren't stored; "
                "build the index again"
            )
        return found

    def level(
        self, level: int, positions: Int64[np.ndarray, " images"]
    ) -> tuple[Float32[np.ndarray, "images regions width"], Float32[np.ndarray, "images regions"]]:
        """Features and region norms of some images at one level, decoded.

        Takes memory for the float32 result and for its encoded form.

        Args:
            level: 1, 2 or 3.
            positions: Which images.

        Returns:
            float32 [images, regions, width] and float32 [images, regions].
        """
        scales = self._array(f"scales_{level}", positions) if self.storage.scaled else None
        values = self.storage.decode(self._array(f"values_{level}", positions), scales)
        return values, self._array(f"norms_{level}", positions)

    def pooled(
        self, positions: Int64[np.ndarray, " images"]
    ) -> Float32[np.ndarray, "images pooled"]:
        """Pooled vectors of some images: float32 [images, 3 d], a unit vector per level."""
        return self._array("pooled", positions).astype(np.float32)

    def all_pooled(self) -> Float32[np.ndarray, "images pooled"] | None:
        """Pooled vectors of all images, kept in memory from the first call on.

        Returns:
            float32 [images, 3 d]; None if they take more than :data:`POOLED_BYTES`.
        """
        if 4 * len(self) * self._pooled.shape[1] > POOLED_BYTES:
            return None
        if len(self._pooled) < len(self):
            added = self.pooled(np.arange(len(self._pooled), len(self)))
            self._pooled = np.concatenate([self._pooled, added])
        return self._pooled

    def _forget_pooled(self) -> None:
        """Positions have changed."""
        self._pooled = self._pooled[:0]

    def _check_sizes(self) -> None:
        """Refuse records of another size than the layout's, which would be read as others'."""
        last = self.layout["values_2"]
        expected = last.offset + last.size
        expected += 4 + -(expected + 4) % ALIGNMENT
        if (self.file.record_bytes != expected).any():
            raise IndexFileError(
                f"{self.file.path}: a record is not of {expected} bytes; build the index again"
            )

    def _array(self, name: str, positions: np.ndarray) -> np.ndarray:
        section = self.layout[name]
        content = self.file.gather(positions, section.offset, section.size)
        return content.view(section.dtype).reshape(len(positions), *section.shape)

    def _payload(self, name: str, levels: list[np.ndarray]) -> bytes:
        """The record of an image."""
        last = self.layout["values_2"]
        content = bytearray(last.offset + last.size)

        def put(section: str, values: np.ndarray) -> None:
            part = self.layout[section]
            encoded = values.astype(part.dtype).tobytes()
            content[part.offset : part.offset + part.size] = encoded

        pooled = []
        folds = zip(levels, self.projections.levels, strict=True)
        for level, (hidden, fold) in enumerate(folds, start=1):
            what = f"image {name!r}, level {level}"
            stored, scales = encode(self.storage, hidden[0], what)
            features = hidden if fold is None else fold.apply(hidden)
            put(f"values_{level}", stored)
            put(f"norms_{level}", region_norms(features)[0])
            if scales is not None:
                put(f"scales_{level}", scales)
            pooled.append(pool(features)[0])
        put("pooled", np.concatenate(pooled))
        return bytes(content)
