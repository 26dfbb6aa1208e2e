"""Scaled dot-product attention, as one operator or taken apart."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hat_export.export.graph import GraphBuilder

#: How attention is written: the standard operator of opset 23; matrix products and a softmax for
#: runtimes that don't know it; or this project's own operators for ONNX Runtime
#: (:mod:`hat_export.export.packed`).
AttentionForm = Literal["onnx", "decomposed", "packed"]

#: Operators that count as fused attention, per form.
FUSED_OPERATORS: dict[AttentionForm, tuple[str, ...]] = {
    "onnx": ("Attention",),
    "decomposed": (),
    "packed": ("WindowAttention", "MaskedAttention"),
}


def attend(
    graph: GraphBuilder,
    query: str,
    key: str,
    value: str,
    bias: str,
    head_dim: int,
    form: AttentionForm,
) -> str:
    """Attention of already separated heads.

    Args:
        graph: Where the nodes go.
        query: [batch, heads, tokens, head_dim], like ``key`` and ``value``.
        key: See ``query``.
        value: See ``query``.
        bias: float, added to the logits; broadcasts to [batch, heads, tokens, tokens].
        head_dim: Width of a head; logits are scaled by its inverse square root.
        form: How it is written.

    Returns:
        [batch, heads, tokens, head_dim].
    """
    scale = float(head_dim) ** -0.5
    if form == "onnx":
        return graph.node("Attention", [query, key, value, bias], {"scale": scale})
    scaled = graph.node("Mul", [query, graph.constant(scale, np.float32)])
    logits = graph.node("MatMul", [scaled, graph.transpose(key, (0, 1, 3, 2))])
    biased = graph.node("Add", [logits, bias])
    return graph.node("MatMul", [graph.node("Softmax", [biased], {"axis": -1}), value])
