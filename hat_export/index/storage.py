"""Storage precisions of an index: how float32 rows become fewer bytes, and back.

The error of a stored value ``v`` is at most:

========  =====================================  =======================================
name      error of one value                     bytes per value
========  =====================================  =======================================
float32   0                                      4
float16   2^-11 |v|, or 2^-25 below 2^-14        2; values beyond 65504 are refused
bfloat16  2^-8 |v|                               2
int8      max|row| / 254, at least 1.5e-36       1, and 4 per row for its float32 scale
========  =====================================  =======================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hat_export.errors import InputError

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Storage:
    """One precision.

    Attributes:
        name: As it stands in an index file.
        dtype: Of the stored values, little-endian.
        scaled: Whether each row has a float32 scale.
        encode: float32 [..., width] to stored values and scales [...] (None without).
        decode: The inverse, to float32; allocates nothing but the result (float32: not even that).
    """

    name: str
    dtype: np.dtype[Any]
    scaled: bool
    encode: Callable[[Float32], tuple[NDArray[Any], Float32 | None]]
    decode: Callable[[NDArray[Any], Float32 | None], Float32]


def _to_float32(values: Float32) -> tuple[NDArray[Any], None]:
    return values.astype("<f4"), None


def _to_float16(values: Float32) -> tuple[NDArray[Any], None]:
    # Rounding takes everything from 65520 on to infinity.
    if values.size and float(np.abs(values).max()) >= 65520:
        raise InputError("a feature is beyond float16's 65504; store bfloat16 or float32")
    return values.astype("<f2"), None


def _from_float(stored: NDArray[Any], scales: Float32 | None) -> Float32:
    return stored.astype(np.float32, copy=False)


def _to_bfloat16(values: Float32) -> tuple[NDArray[Any], None]:
    """The upper half of a float32, rounded to nearest with ties to an even last bit."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    upper = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    if ((upper & np.uint32(0x7F80)) == 0x7F80).any():
        raise InputError("a feature is beyond bfloat16's 3.39e38; store float32")
    return upper.astype("<u2"), None


def _from_bfloat16(stored: NDArray[Any], scales: Float32 | None) -> Float32:
    bits = stored.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _to_int8(values: Float32) -> tuple[NDArray[Any], Float32]:
    scales = (np.abs(values).max(-1) / np.float32(127)).astype(np.float32)
    # A row of zeros is stored as zeros, and so is one whose scale would be denormal: such a scale
    # has too few digits.
    scales[scales < np.finfo(np.float32).tiny] = 0
    divisor = np.where(scales > 0, scales, np.float32(1))[..., None]
    stored = np.clip(np.rint(values / divisor), -127, 127).astype(np.int8)
    stored[scales == 0] = 0
    return stored, scales


def _from_int8(stored: NDArray[Any], scales: Float32 | None) -> Float32:
    if scales is None:
        raise InputError("int8 values without scales; expected one float32 scale per row")
    values = stored.astype(np.float32)
    values *= scales[..., None]
    return values


#: Every storage precision by name.
STORAGES: dict[str, Storage] = {
    storage.name: storage
    for storage in (
        Storage("float32", np.dtype("<f4"), False, _to_float32, _from_float),
        Storage("float16", np.dtype("<f2"), False, _to_float16, _from_float),
        Storage("bfloat16", np.dtype("<u2"), False, _to_bfloat16, _from_bfloat16),
        Storage("int8", np.dtype("i1"), True, _to_int8, _from_int8),
    )
}


def storage_named(name: str) -> Storage:
    """The storage precision of a name.

    Raises:
        InputError: if there is none.
    """
    if name not in STORAGES:
        raise InputError(f"storage precision {name!r}: expected one of {', '.join(STORAGES)}")
    return STORAGES[name]


def encode(storage: Storage, values: Float32, what: str) -> tuple[NDArray[Any], Float32 | None]:
    """Stored values and scales of finite float32 rows.

    Args:
        storage: The precision.
        values: float32 [..., width].
        what: What they are, for the error.

    Raises:
        InputError: if they aren't float32 or finite, or don't fit into the precision.
    """
    if values.dtype != np.float32:
        raise InputError(f"{what}: {values.dtype}; expected float32")
    if not np.isfinite(values).all():
        raise InputError(f"{what}: NaN or infinite; an index holds finite features only")
    return storage.encode(values)
