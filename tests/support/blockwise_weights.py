"""Undoes the blockwise rounding of weights."""

from __future__ import annotations

import numpy as np


def unblocked(values: np.ndarray, scale: np.ndarray, bits: int, inner: int) -> np.ndarray:
    """The float32 rows [rows, inner] that ``blockwise`` stored.

    Args:
        values: uint8 [rows, blocks, bytes]; two values a byte at 4 bits, the first in the low half.
        scale: float32 [rows, blocks].
        bits: 4 or 8.
        inner: Length of a row without the padding of its last block.
    """
    if bits == 4:
        values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], -1)
    half = np.float32(1 << (bits - 1))
    restored = (values.astype(np.float32) - half) * scale[..., None]
    return np.ascontiguousarray(restored.reshape(len(values), -1)[:, :inner])
