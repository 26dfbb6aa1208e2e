"""Weights as this project's own operators for ONNX Runtime read them (``kernels/operators``)."""

from __future__ import annotations

import numpy as np

#: Domain of this project's operators.
HAT_EXPORT = "hat_export"
#: Columns of a weight that lie together in the file, as ``kernels/operators/kernels.hpp`` has it.
PANEL_COLUMNS = 64
#: What the depth of an int8 weight is padded to a multiple of.
INT8_DEPTH = 64


def to_panels(weight: np.ndarray) -> np.ndarray:
    """A linear layer's weight as the ``Linear`` operator reads it, from front to back.

    Args:
        weight: float32 [columns, depth], as PyTorch has it.

    Returns:
        float32 [panels, depth, 64]; columns past the last are zero.
    """
    columns, depth = weight.shape
    panels = -(-columns // PANEL_COLUMNS)
    padded = np.zeros((panels * PANEL_COLUMNS, depth), np.float32)
    padded[:columns] = weight
    return np.ascontiguousarray(padded.reshape(panels, PANEL_COLUMNS, depth).transpose(0, 2, 1))


def from_panels(panels: np.ndarray, columns: int) -> np.ndarray:
    """The weight [columns, depth] that :func:`to_panels` was given."""
    return panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[:columns]


def to_int8_panels(values: np.ndarray) -> np.ndarray:
    """A quantized weight as the ``Int8Linear`` operator reads it.

    Args:
        values: int8 [depth, columns], as in ``x @ W``.

    Returns:
        int8 [panels, padded depth / 4, 64, 4]: of each column four values together; the depth is
        padded to a multiple of 64, and depth and columns with zeros.
    """
    depth, columns = values.shape
    panels, padded = -(-columns // PANEL_COLUMNS), -(-depth // INT8_DEPTH) * INT8_DEPTH
    whole = np.zeros((padded, panels * PANEL_COLUMNS), np.int8)
    whole[:depth, :columns] = values
    split = whole.reshape(padded // 4, 4, panels, PANEL_COLUMNS)
    return np.ascontiguousarray(split.transpose(2, 0, 3, 1))
