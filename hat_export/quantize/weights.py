"""Weights in 8 and 4 bits: per output channel, or per block of input channels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int8, UInt8

#: Ranges that are tried for 4-bit blocks, as shares of the largest magnitude: clipping the largest
#: value a little makes the steps of all others finer.
SHRINKS = np.linspace(1.0, 0.7, 13, dtype=np.float32)

#: Added to the Gram matrix's diagonal, as a share of its mean: channels that calibration hardly saw
#: must not take up large errors.
DAMPING = 0.01
#: Rows between two updates of the whole rest of the matrix.
UPDATE_ROWS = 64

#: Largest magnitude of fp8 e4m3 (without infinities, as in ONNX's FLOAT8E4M3FN).
FP8_LARGEST = 448.0


def per_channel(
    weight: Float32[np.ndarray, "inner outer"], limit: int, gram: np.ndarray | None = None
) -> tuple[Int8[np.ndarray, "inner outer"], Float32[np.ndarray, " outer"]]:
    """Symmetric int8 with a scale for each column.

    Args:
        weight: The matrix of ``x @ W``.
        limit: Largest magnitude of a quantized value.
        gram: For :func:`compensated` rounding; None rounds each value by itself.

    Returns:
        Quantized values and scales; without compensation ``values * scales`` is within half a step
        of the weight.
    """
    scale = channel_scales(np.abs(weight).max(0), limit)
    if gram is not None:
        return compensated(weight, scale[None], limit, gram, len(weight)), scale
    rounded = np.rint(weight / scale)
    return np.clip(rounded, -limit, limit).astype(np.int8), scale


def compensated(
    weight: Float32[np.ndarray, "inner outer"],
    scale: Float32[np.ndarray, "blocks outer"],
    limit: int,
    gram: Float32[np.ndarray, "inner inner"],
    size: int,
) -> Int8[np.ndarray, "inner outer"]:
    """Round a matrix row by row, each row taking up the errors of those before it.

    What counts is not the error of a weight but that of the product with what really comes in. Its
    channels are correlated: the error made by rounding one row can mostly be undone by the rows
    that follow. Source: Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323.

    Args:
        weight: The matrix of ``x @ W``.
        scale: Of every block of rows.
        limit: Largest magnitude of a quantized value.
        gram: ``x^T x`` summed over calibration data.
        size: Rows of a block.

    Returns:
        Quantized values.
    """
    inner = len(weight)
    mean = float(np.trace(gram)) / inner
    hessian = gram.astype(np.float64)
    hessian[np.diag_indices(inner)] += DAMPING * mean if mean > 0 else 1.0
    # Row i of the upper Cholesky factor of the inverse says how rows after i make up for its error.
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    rest = weight.astype(np.float32).copy()
    values = np.empty(weight.shape, np.int8)
    for start in range(0, inner, UPDATE_ROWS):
        end = min(start + UPDATE_ROWS, inner)
        errors = np.empty((end - start, weight.shape[1]), np.float32)
        for row in range(start, end):
            step = scale[row // size]
            rounded = np.clip(np.rint(rest[row] / step), -limit, limit)
            values[row] = rounded.astype(np.int8)
            error = (rest[row] - rounded * step) / factor[row, row]
            errors[row - start] = error
            rest[row + 1 : end] -= np.outer(factor[row, row + 1 : end], error)
        rest[end:] -= factor[start:end, end:].T @ errors
    return values


def channel_scales(largest: np.ndarray, limit: float) -> np.ndarray:
    """Scales that map the largest magnitudes to the limit; 1 for channels of zeros."""
    scale = (largest / np.float32(limit)).astype(np.float32)
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)


def block_size(inner: int, bits: int) -> int:
    """Values that share a scale.

    A power of two from 16, as ONNX Runtime's kernels want it. 128 values a scale cost 3 % of an
    8-bit weight and 6 % of a 4-bit one; fewer where the layer is narrower, since a block isn't
    filled beyond its end for free.
    """
    largest = 128 if bits == 8 else 64
    while largest > 16 and (largest > inner or inner % largest):
        largest //= 2
    return largest


def blockwise(
    rows: Float32[np.ndarray, "rows inner"],
    bits: int,
    size: int,
    gram: Float32[np.ndarray, "inner inner"] | None = None,
) -> tuple[UInt8[np.ndarray, "rows blocks bytes"], Float32[np.ndarray, "rows blocks"]]:
    """Symmetric unsigned integers around ``2^(bits - 1)``, a scale for each block of a row.

    Args:
        rows: Rows are quantized by themselves: the transposed matrix of ``x @ W``, or a table.
        bits: 8 or 4.
        size: Values of a row that share a scale; the last block is filled up with zeros.
        gram: For :func:`compensated` rounding; None rounds each value by itself.

    Returns:
        Values, two to a byte (the first in the lower half) in 4 bits, and scales.
    """
    count, inner = rows.shape
    blocks = -(-inner // size)
    filled = np.zeros((count, blocks * size), np.float32)
    filled[:, :inner] = rows
    filled = filled.reshape(count, blocks, size)
    half = 1 << (bits - 1)
    scale = _block_scales(filled, half - 1, SHRINKS if bits == 4 else SHRINKS[:1])
    if gram is None:
        signed = np.clip(np.rint(filled / scale[..., None]), 1 - half, half - 1)
    else:
        signed = np.zeros(filled.shape, np.float32)
        rounded = compensated(
            np.ascontiguousarray(rows.T), np.ascontiguousarray(scale.T), half - 1, gram, size
        )
        signed.reshape(count, -1)[:, :inner] = rounded.T
    values = (signed + half).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values, scale


def _block_scales(blocks: np.ndarray, limit: int, shrinks: np.ndarray) -> np.ndarray:
    """The scale of least squared error for each block, among shares of its largest magnitude."""
    full = channel_scales(np.abs(blocks).max(-1), limit)
    best, least = full, np.full(full.shape, np.inf, np.float32)
    for shrink in shrinks:
        scale = full * shrink
        restored = np.clip(np.rint(blocks / scale[..., None]), -limit, limit) * scale[..., None]
        error = np.square(restored - blocks).sum(-1)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best.astype(np.float32)
