"""The text encoder as an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hat_export.export.attention import attend
from hat_export.export.graph import Dim, GraphBuilder
from hat_export.spec import LEVEL_SUFFIXES, ModelSpec

LAYER_NORM_EPSILON = 1e-12
#: Added to the logits of padding; far enough below any logit for a weight of exactly 0.
PADDING_MASK = -10000.0

Weights = Mapping[str, np.ndarray]


def text_graph(spec: ModelSpec, weights: Weights) -> GraphBuilder:
    """``input_ids``, ``attention_mask`` [captions, words] to ``text_level1..3``.

    Args:
        spec: The architecture.
        weights: float32 state dict of :class:`hat_export.model.hat.HAT`.
    """
    graph = GraphBuilder("text_encoder")
    ids = graph.input("input_ids", np.int64, ["captions", "words"])
    mask = graph.input("attention_mask", np.int64, ["captions", "words"])
    with graph.scope("text_transformer.embeddings"):
        hidden = _embed(graph, ids, spec, weights)
    with graph.scope("text_transformer.mask"):
        bias = _padding_bias(graph, mask)
    states: dict[int, str] = {}
    for layer in range(max(spec.text_level_layers) + 1):
        name = f"text_transformer.encoder.layer.{layer}"
        with graph.scope(name):
            hidden = _layer(graph, hidden, bias, spec, name, weights)
        states[layer] = hidden
    _text_levels(graph, states, spec, weights)
    return graph


def _text_levels(
    graph: GraphBuilder, states: Mapping[int, str], spec: ModelSpec, weights: Weights
) -> None:
    """Project the three levels' hidden states and make them outputs."""
    for level, (layer, suffix) in enumerate(
        zip(spec.text_level_layers, LEVEL_SUFFIXES, strict=True), start=1
    ):
        with graph.scope(f"text_level{level}"):
            features = graph.linear(states[layer], f"cross_modal_text_transform{suffix}", weights)
        shape: list[Dim] = ["captions", "words", spec.dim]
        graph.output(features, f"text_level{level}", np.float32, shape)


def _embed(graph: GraphBuilder, ids: str, spec: ModelSpec, weights: Weights) -> str:
    """Sum of word, position and type embeddings, normed: [captions, words, text_dim]."""
    prefix = "text_transformer.embeddings"
    words = f"{prefix}.word_embeddings.weight"
    embedded = graph.node("Gather", [graph.weight(words, weights[words]), ids])
    # Token types are always 0, so their row is part of the position table.
    table = weights[f"{prefix}.position_embeddings.weight"][: spec.max_words]
    table = table + weights[f"{prefix}.token_type_embeddings.weight"][0]
    length = graph.node("Shape", [ids], {"start": 1, "end": 2})
    positions = graph.weight(f"{prefix}.position_and_type_embeddings", table)
    starts = graph.constant([0])
    positions = graph.node("Slice", [positions, starts, length, graph.constant([0])])
    total = graph.node("Add", [embedded, positions])
    return graph.layer_norm(total, f"{prefix}.LayerNorm", weights, LAYER_NORM_EPSILON)


def _padding_bias(graph: GraphBuilder, mask: str) -> str:
    """[captions, 1, words, words]: 0 on real words, a large negative number on padding."""
    real = graph.node("Cast", [mask], {"to": 1})
    away = graph.node("Sub", [graph.constant(1.0, np.float32), real])
    bias = graph.node("Mul", [away, graph.constant(PADDING_MASK, np.float32)])
    row = graph.node("Unsqueeze", [bias, graph.constant([1, 2])])
    length = graph.node("Shape", [mask], {"start": 1, "end": 2})
    shape = graph.node("Concat", [graph.constant([1, 1]), length, graph.constant([1])], {"axis": 0})
    return graph.node("Expand", [row, shape])


def _joined_projection(name: str, weights: Weights) -> dict[str, np.ndarray]:
    """Weight and bias of query, key and value of the layer ``name`` as one linear layer."""
    attention = f"{name}.attention.self"
    return {
        f"{attention}.qkv.{kind}": np.concatenate(
            [weights[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
        )
        for kind in ("weight", "bias")
    }


def _layer(
    graph: GraphBuilder, hidden: str, bias: str, spec: ModelSpec, name: str, weights: Weights
) -> str:
    """One post-norm transformer layer."""
    heads, head_dim = spec.text_heads, spec.text_dim // spec.text_heads
    attention = f"{name}.attention.self"
    joined = _joined_projection(name, weights)
    # One product for query, key and value: three times fewer, three times wider.
    parts = graph.linear(hidden, f"{attention}.qkv", joined)
    parts = graph.reshape(parts, (0, 0, 3, heads, head_dim))
    parts = graph.transpose(parts, (2, 0, 3, 1, 4))
    query, key, value = (
        graph.node("Gather", [parts, graph.constant(index)], {"axis": 0}) for index in range(3)
    )
    mixed = attend(graph, query, key, value, bias, head_dim)
    mixed = graph.transpose(mixed, (0, 2, 1, 3))
    mixed = graph.reshape(mixed, (0, 0, spec.text_dim))
    output = graph.linear(mixed, f"{name}.attention.output.dense", weights)
    hidden = graph.layer_norm(
        graph.node("Add", [hidden, output]),
        f"{name}.attention.output.LayerNorm",
        weights,
        LAYER_NORM_EPSILON,
    )
    middle = graph.node("Gelu", [graph.linear(hidden, f"{name}.intermediate.dense", weights)])
    output = graph.linear(middle, f"{name}.output.dense", weights)
    return graph.layer_norm(
        graph.node("Add", [hidden, output]), f"{name}.output.LayerNorm", weights, LAYER_NORM_EPSILON
    )
