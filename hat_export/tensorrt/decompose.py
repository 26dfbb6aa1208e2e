"""Attention in float32 taken apart: TensorRT has fused kernels for the low formats only.

An ``Attention`` node in float32 makes its build fail. What stays in float32 because it would
overflow, and a whole graph in float32, is therefore written as products and a softmax.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hat_export.runtime.onnx_types import tensor_types


def decompose_fp32_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every float32 ``Attention`` node.

    Args:
        model: As :mod:`hat_export.export.attention` writes it: query, key, value, additive bias
            and the attribute ``scale``; heads already separated. Not changed.

    Returns:
        The same function; the nodes that stand for a layer begin with its name.
    """
    types = tensor_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.op_type != "Attention" or types[node.output[0]] != TensorProto.FLOAT:
            nodes.append(node)
            continue
        scale = f"{node.name}/scale"
        value = np.array(_scale(node), np.float32)
        result.graph.initializer.append(numpy_helper.from_array(value, scale))
        nodes += _products(node, scale)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _scale(node: onnx.NodeProto) -> float:
    return next(float(item.f) for item in node.attribute if item.name == "scale")


def _products(node: onnx.NodeProto, scale: str) -> list[onnx.NodeProto]:
    query, key, value, bias = node.input
    steps: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("Mul", [query, scale], {}),
        ("Transpose", [key], {"perm": [0, 1, 3, 2]}),
        ("MatMul", [f"{node.name}/Mul:0", f"{node.name}/Transpose:0"], {}),
        ("Add", [f"{node.name}/MatMul:0", bias], {}),
        ("Softmax", [f"{node.name}/Add:0"], {"axis": -1}),
    )
    made = [
        helper.make_node(
            kind, inputs, [f"{node.name}/{kind}:0"], name=f"{node.name}/{kind}", **attributes
        )
        for kind, inputs, attributes in steps
    ]
    last = helper.make_node(
        "MatMul", [f"{node.name}/Softmax:0", value], [node.output[0]], name=f"{node.name}/MatMul_1"
    )
    return [*made, last]
