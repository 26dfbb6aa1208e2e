"""Scaled dot-product attention: as one operator, and the pass that takes it apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hat_export.export.graph import OPSET, GraphBuilder
from hat_export.export.graph_index import GraphIndex, MismatchError, attributes_of
from hat_export.export.passes import Pass, Report, older_opset, unnamed_nodes
from hat_export.runtime.onnx_graphs import tensor_types, with_nodes

#: How attention is written: the standard operator of opset 23; matrix products and a softmax for
#: runtimes that don't know it; or this project's own operators for ONNX Runtime on a CPU.
AttentionForm = Literal["onnx", "decomposed", "packed"]

#: Operators that count as fused attention, per form.
FUSED_OPERATORS: dict[AttentionForm, tuple[str, ...]] = {
    "onnx": ("Attention",),
    "decomposed": (),
    "packed": ("WindowAttention", "MaskedAttention"),
}


def attend(graph: GraphBuilder, query: str, key: str, value: str, bias: str, head_dim: int) -> str:
    """Attention of already separated heads.

    Args:
        graph: Where the node goes.
        query: [batch, heads, tokens, head_dim], like ``key`` and ``value``.
        key: See ``query``.
        value: See ``query``.
        bias: float, added to the logits; broadcasts to [batch, heads, tokens, tokens].
        head_dim: Width of a head; logits are scaled by its inverse square root.

    Returns:
        [batch, heads, tokens, head_dim].
    """
    return graph.node("Attention", [query, key, value, bias], {"scale": float(head_dim) ** -0.5})


class DecomposeAttention(Pass):
    """Every float32 ``Attention`` as products and a softmax; the low formats' stay whole.

    For runtimes that don't know the operator, and for TensorRT, which has fused kernels for the low
    formats only: a node in float32 makes its build fail. The nodes that stand for a layer begin
    with its name.
    """

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """Attention as :func:`attend` writes it."""
        yield from older_opset(model, OPSET)
        yield from unnamed_nodes(model)
        for node in model.graph.node:
            if node.op_type == "Attention" and (
                len(node.input) != 4 or set(attributes_of(node)) != {"scale"}
            ):
                yield f"{node.name} has more than query, key, value, bias and scale"

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Replace the float32 ones."""
        if not any(node.op_type == "Attention" for node in model.graph.node):
            return model, False
        types = tensor_types(model)
        nodes: list[onnx.NodeProto] = []
        scales = []
        for node in model.graph.node:
            if node.op_type != "Attention":
                nodes.append(node)
            elif types[node.output[0]] != TensorProto.FLOAT:
                report.left[node.name] = "not float32"
                nodes.append(node)
            else:
                value = np.array(attributes_of(node)["scale"], np.float32)
                scales.append(numpy_helper.from_array(value, f"{node.name}/scale"))
                nodes += _pieces(node, scales[-1].name)
                report.counts["Attention"] += 1
        return (with_nodes(model, nodes, scales), True) if scales else (model, False)

    def ensures(self, model: onnx.ModelProto) -> Iterator[str]:
        """No float32 attention is left whole."""
        names = [node.name for node in model.graph.node if node.op_type == "Attention"]
        if not names:
            return
        types = tensor_types(model)
        for node in model.graph.node:
            if node.op_type == "Attention" and types[node.output[0]] == TensorProto.FLOAT:
                yield f"{node.name} is one operator in float32 still"


def _pieces(node: onnx.NodeProto, scale: str) -> list[onnx.NodeProto]:
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


class Heads(NamedTuple):
    """Where an ``Attention`` node's queries, keys and values come from.

    Attributes:
        split: The ``Reshape`` that separates them and the heads.
        product: The matmul of one linear layer for all three, without its bias.
        bias: Name of that layer's bias.
        folded: The value [3, ...] that they are taken from.
    """

    split: onnx.NodeProto
    product: str
    bias: str
    folded: str


def match_heads(
    index: GraphIndex, node: onnx.NodeProto, perm: tuple[int, ...], refolded: bool
) -> Heads:
    """One linear layer, a reshape and a transposition give query, key and value.

    Args:
        index: Of the graph.
        node: An ``Attention`` node.
        perm: The transposition.
        refolded: Whether another reshape follows it.

    Raises:
        MismatchError: if they come from elsewhere.
    """
    if len(node.input) != 4 or set(attributes_of(node)) != {"scale"}:
        raise MismatchError(f"{node.name} has more than query, key, value, bias and scale")
    picks = [index.made_by(value, "Gather", axis=0) for value in node.input[:3]]
    folded = picks[0].input[0]
    for number, pick in enumerate(picks):
        place = index.array(pick.input[1])
        if pick.input[0] != folded or place.ndim or int(place) != number:
            raise MismatchError(f"{pick.name} isn't part {number} of {folded}")
    moved = index.made_by(folded, "Reshape").input[0] if refolded else folded
    transposed = index.made_by(moved, "Transpose", perm=list(perm))
    split = index.made_by(transposed.input[0], "Reshape")
    matmul, bias = index.biased_product(split.input[0])
    head_dim = index.shape(split)[-1]
    if np.float32(attributes_of(node)["scale"]) != np.float32(float(head_dim) ** -0.5):
        raise MismatchError(f"{node.name} isn't scaled by the inverse square root of {head_dim}")
    return Heads(split, matmul.output[0], bias, folded)
