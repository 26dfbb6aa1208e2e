"""QuantizeLinear and DequantizeLinear around the products of a graph: standard ONNX.

ONNX Runtime turns the pattern into an integer product, TensorRT into an int8 or fp8 one. For both,
the scale of a weight is per output channel (axis 1 of the ``[inner, outer]`` matrix), that of an
activation is one number.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def activation_pair(
    value: str, scale: float, zero_point: np.ndarray
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Quantize a tensor and make it float32 again.

    Args:
        value: Name of the tensor.
        scale: Step between two quantized values.
        zero_point: Scalar that 0 becomes; its type is the quantized type.

    Returns:
        Nodes, initializers, and the name of the rounded float32 tensor.
    """
    tensors = [
        numpy_helper.from_array(np.array(scale, np.float32), f"{value}/scale"),
        numpy_helper.from_array(zero_point, f"{value}/zero_point"),
    ]
    parameters = [tensor.name for tensor in tensors]
    quantized, rounded = f"{value}/quantized", f"{value}/rounded"
    nodes = [
        helper.make_node(
            "QuantizeLinear", [value, *parameters], [quantized], name=f"{value}/QuantizeLinear"
        ),
        helper.make_node(
            "DequantizeLinear",
            [quantized, *parameters],
            [rounded],
            name=f"{value}/DequantizeLinear",
        ),
    ]
    return nodes, tensors, rounded


def stored_weight(
    weight: str, values: np.ndarray, scale: np.ndarray, block: int = 0
) -> tuple[onnx.NodeProto, list[onnx.TensorProto], str]:
    """A weight that is stored in few bits and made float32 where it is used.

    Args:
        weight: Name of the float32 weight that it stands for.
        values: Quantized [inner, outer]; zero is 0.
        scale: float32 [outer], or [inner / block, outer] with a block size.
        block: Values along axis 0 that share a scale; 0: all of them.

    Returns:
        Node, initializers, and the name of the float32 tensor.
    """
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(values), f"{weight}/values"),
        numpy_helper.from_array(np.ascontiguousarray(scale), f"{weight}/scale"),
    ]
    restored = f"{weight}/restored"
    node = helper.make_node(
        "DequantizeLinear",
        [tensor.name for tensor in tensors],
        [restored],
        name=f"{weight}/DequantizeLinear",
        axis=0 if block else 1,
        block_size=block,
    )
    return node, tensors, restored
