"""The projections that tie an index to its model, and the pooled vectors of coarse search.

At levels 1 and 2 an index keeps the image encoder's normed stage outputs ``h``; the model's
features are ``x = weight @ h + bias``. Captions are folded instead: ``c . x = (weight^T c) . h +
c . bias``, which is shorter wherever the stage is narrower than the feature space.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.base.arrays import read_arrays, write_arrays
from hat_export.errors import BundleError, InputError
from hat_export.spec import LEVELS, REDUCED_LEVELS, ModelSpec


@dataclass(frozen=True)
class Projection:
    """The Linear layer of one level's image features.

    Attributes:
        weight: float32 [d, width].
        bias: float32 [d].
    """

    weight: Float32[np.ndarray, "dim width"]
    bias: Float32[np.ndarray, " dim"]

    def __post_init__(self) -> None:
        """Check kinds and shapes."""
        for name, array in (("weight", self.weight), ("bias", self.bias)):
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise InputError(f"projection {name}: expected finite float32, got {array.dtype}")
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise InputError(
                f"projection: expected weight [d, width] and bias [d]; got "
                f"{list(self.weight.shape)} and {list(self.bias.shape)}"
            )

    def apply(
        self, hidden: Float32[np.ndarray, "images regions width"]
    ) -> Float32[np.ndarray, "images regions dim"]:
        """Features of stage outputs."""
        features: np.ndarray = hidden @ self.weight.T + self.bias
        return features


@dataclass(frozen=True)
class Projections:
    """The projections of the reduced levels of one model.

    Attributes:
        first: Of level 1.
        second: Of level 2.
    """

    first: Projection
    second: Projection

    @property
    def levels(self) -> tuple[Projection | None, Projection | None, None]:
        """Per level; None where the features themselves are kept."""
        return (self.first, self.second, None)

    @cached_property
    def sha256(self) -> str:
        """Hash of all weights and biases, as hex digits; computed once."""
        digest = hashlib.sha256()
        for level in (self.first, self.second):
            for array in (level.weight, level.bias):
                digest.update(f"{list(array.shape)}".encode())
                digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def check(self, spec: ModelSpec) -> None:
        """Refuse projections of another architecture.

        Raises:
            InputError: naming the level and its shapes.
        """
        for level, projection in zip(REDUCED_LEVELS, (self.first, self.second), strict=True):
            expected = (spec.dim, spec.level_widths[level - 1])
            if projection.weight.shape != expected:
                raise InputError(
                    f"projection of level {level} is {list(projection.weight.shape)}; "
                    f"{spec.name!r} has {list(expected)}"
                )


def write_projections(path: Path, projections: Projections) -> None:
    """Write the projections to a ``.safetensors``."""
    arrays: dict[str, np.ndarray] = {}
    for level, projection in zip(
        REDUCED_LEVELS, (projections.first, projections.second), strict=True
    ):
        arrays |= {f"weight_{level}": projection.weight, f"bias_{level}": projection.bias}
    write_arrays(path, arrays)


def read_projections(path: Path) -> Projections:
    """Read what :func:`write_projections` wrote.

    Raises:
        BundleError: if the file isn't one.
    """
    try:
        arrays = read_arrays(path)
        first, second = (
            Projection(arrays[f"weight_{level}"], arrays[f"bias_{level}"])
            for level in REDUCED_LEVELS
        )
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise BundleError(f"{path}: not readable projections ({error}); export again") from None
    return Projections(first, second)


def stored_widths(spec: ModelSpec) -> tuple[int, int, int]:
    """Width per level of what an index keeps of an image: 256, 512, 768 at official size."""
    first, second, _ = spec.level_widths
    return (first, second, spec.dim)


def pool(
    rows: Float32[np.ndarray, "items rows dim"], real: Int64[np.ndarray, " items"] | None = None
) -> Float32[np.ndarray, "items dim"]:
    """Mean of the rows' directions, as a unit vector.

    The score is a mean of cosines: were the attended vector the same for every region, it would be
    the inner product of that vector's direction with the mean of the regions' directions. So long
    rows don't outweigh short ones here.

    Args:
        rows: float32 [items, rows, d].
        real: How many first rows of each item count; all if None.

    Returns:
        float32 [items, d]; zeros where the mean vanishes.
    """
    unit = _unit(rows.astype(np.float64))
    if real is not None:
        # Rows past the length may hold anything, NaN too.
        unit = np.where((np.arange(rows.shape[1]) < real[:, None])[..., None], unit, 0)
    return _unit(unit.sum(1)).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = vectors / np.where(length > 0, length, 1)
    return unit


def pooled_width(spec: ModelSpec) -> int:
    """Numbers in the pooled vector of an image or caption: d per level, level 1 first."""
    return LEVELS * spec.dim
