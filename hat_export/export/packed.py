"""Encoders in this project's own fused operators (``kernels/operators``).

They run in ONNX Runtime on a CPU. Attention takes the packed product of queries, keys and values
and finds heads, windows and shifts by index, so that no tensor is reshaped, transposed or gathered
for it. A linear layer adds its bias and takes its GELU while the product is in registers. Residual
branch, bias, sum and LayerNorm are one operator too: ONNX Runtime's SkipLayerNormalization, which
does the same, is slower than the separate operators. All is written so from the start; nothing is
left to an optimizer's recognition.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hat_export.export import bert, swin
from hat_export.export.graph import Dim, GraphBuilder
from hat_export.spec import LEVEL_STAGES, LEVEL_SUFFIXES, REDUCED_LEVELS, ModelSpec

#: Domain of this project's operators.
HAT_EXPORT = "hat_export"
#: Columns of a weight that lie together in the file, as ``kernels/operators/kernels.hpp`` has it.
PANEL_COLUMNS = 64
#: What the depth of an int8 weight is padded to a multiple of.
INT8_DEPTH = 64

Weights = Mapping[str, np.ndarray]


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


class PackedBuilder(GraphBuilder):
    """A graph whose linear layers are ``Linear`` operators."""

    def linear(self, value: str, name: str, weights: Weights, gelu: bool = False) -> str:
        """``x @ W^T + b`` of the layer ``name``, and its GELU if asked for."""
        bias = f"{name}.bias"
        inputs = [value, self._panels(name, weights)]
        if bias in weights:
            inputs.append(self.weight(bias, weights[bias]))
        return self._linear(inputs, len(weights[f"{name}.weight"]), gelu)

    def product(self, value: str, name: str, weights: Weights) -> str:
        """``x @ W^T``; the bias is added by whatever follows."""
        inputs = [value, self._panels(name, weights)]
        return self._linear(inputs, len(weights[f"{name}.weight"]), False)

    def _panels(self, name: str, weights: Weights) -> str:
        return self.weight(f"{name}.weight/panels", to_panels(weights[f"{name}.weight"]))

    def _linear(self, inputs: list[str], columns: int, gelu: bool) -> str:
        attributes = {"columns": columns, "gelu": int(gelu)}
        return self.node("Linear", inputs, attributes, domain=HAT_EXPORT)


def packed_image_graph(spec: ModelSpec, weights: Weights) -> GraphBuilder:
    """As :func:`hat_export.export.swin.image_graph`; tokens stay in row-major order throughout.

    Args:
        spec: The architecture.
        weights: float32 state dict of :class:`hat_export.model.hat.HAT`.
    """
    graph = PackedBuilder("image_encoder")
    side = spec.image_size
    pixels = graph.input("pixel_values", np.float32, ["images", 3, side, side])
    epsilon = swin.LAYER_NORM_EPSILON
    with graph.scope("vit_model.patch_embed"):
        tokens = swin.embed_patches(graph, pixels, spec, weights, _raster(spec, 0))
    stages: list[str] = []
    norms = dict(zip(LEVEL_STAGES, ("norm_1", "norm_2", "norm"), strict=True))
    for stage, (stage_side, depth) in enumerate(zip(spec.stage_sides, spec.depths, strict=True)):
        prefix = f"vit_model.layers.{stage}"
        if stage:
            with graph.scope(f"{prefix}.downsample"):
                orders = _raster(spec, stage - 1), _raster(spec, stage)
                tokens = swin.merge_patches(graph, tokens, spec, stage, weights, *orders)
        branch = branch_bias = ""
        for block in range(depth):
            name = f"{prefix}.blocks.{block}"
            with graph.scope(name):
                norm = f"{name}.norm1"
                if branch:
                    normed, tokens = _add_and_norm(
                        graph, branch, tokens, branch_bias, norm, weights, epsilon
                    )
                else:
                    normed = graph.layer_norm(tokens, norm, weights, epsilon)
                mixed = _window_attention(
                    graph, normed, spec, stage, f"{name}.attn", block % 2 == 1, weights
                )
                projected = graph.product(mixed, f"{name}.attn.proj", weights)
                normed, tokens = _add_and_norm(
                    graph,
                    projected,
                    tokens,
                    f"{name}.attn.proj.bias",
                    f"{name}.norm2",
                    weights,
                    epsilon,
                )
                hidden = graph.linear(normed, f"{name}.mlp.fc1", weights, gelu=True)
                branch_bias = f"{name}.mlp.fc2.bias"
                # Where no LayerNorm follows, nothing else adds the bias.
                alone = block + 1 == depth and stage not in norms
                multiply = graph.linear if alone else graph.product
                branch = multiply(hidden, f"{name}.mlp.fc2", weights)
        if stage in norms:
            level = LEVEL_STAGES.index(stage)
            with graph.scope(f"image_level{level + 1}"):
                norm = f"vit_model.{norms[stage]}"
                features, tokens = _add_and_norm(
                    graph, branch, tokens, branch_bias, norm, weights, epsilon
                )
                name = f"cross_modal_image_transform{LEVEL_SUFFIXES[level]}"
                projected = graph.linear(features, name, weights)
            shape: list[Dim] = ["images", stage_side**2, spec.dim]
            graph.output(projected, f"image_level{level + 1}", np.float32, shape)
            stages.append(features)
        else:
            with graph.scope(prefix):
                tokens = graph.node("Add", [tokens, branch])
    for level in REDUCED_LEVELS:
        shape = ["images", spec.level_regions[level - 1], spec.level_widths[level - 1]]
        graph.output(stages[level - 1], f"image_stage{level}", np.float32, shape)
    return graph


def packed_text_graph(spec: ModelSpec, weights: Weights) -> GraphBuilder:
    """As :func:`hat_export.export.bert.text_graph`.

    Args:
        spec: The architecture.
        weights: float32 state dict of :class:`hat_export.model.hat.HAT`.
    """
    graph = PackedBuilder("text_encoder")
    ids = graph.input("input_ids", np.int64, ["captions", "words"])
    mask = graph.input("attention_mask", np.int64, ["captions", "words"])
    with graph.scope("text_transformer.embeddings"):
        hidden = bert.embed(graph, ids, spec, weights)
    states: dict[int, str] = {}
    for layer in range(max(spec.text_level_layers) + 1):
        name = f"text_transformer.encoder.layer.{layer}"
        with graph.scope(name):
            hidden = _text_layer(graph, hidden, mask, spec, name, weights)
        states[layer] = hidden
    bert.text_levels(graph, states, spec, weights)
    return graph


def _text_layer(
    graph: PackedBuilder, hidden: str, mask: str, spec: ModelSpec, name: str, weights: Weights
) -> str:
    attention = f"{name}.attention.self.qkv"
    joined = bert.joined_projection(name, weights)
    mixed = graph.node(
        "MaskedAttention",
        [
            graph.product(hidden, attention, joined),
            graph.weight(f"{attention}.bias", joined[f"{attention}.bias"]),
            mask,
        ],
        {"heads": spec.text_heads},
        domain=HAT_EXPORT,
    )
    epsilon = bert.LAYER_NORM_EPSILON
    output = f"{name}.attention.output"
    projected = graph.product(mixed, f"{output}.dense", weights)
    hidden, _ = _add_and_norm(
        graph, projected, hidden, f"{output}.dense.bias", f"{output}.LayerNorm", weights, epsilon
    )
    middle = graph.linear(hidden, f"{name}.intermediate.dense", weights, gelu=True)
    output = f"{name}.output"
    projected = graph.product(middle, f"{output}.dense", weights)
    hidden, _ = _add_and_norm(
        graph, projected, hidden, f"{output}.dense.bias", f"{output}.LayerNorm", weights, epsilon
    )
    return hidden


def _raster(spec: ModelSpec, stage: int) -> np.ndarray:
    return np.arange(spec.stage_sides[stage] ** 2)


def _add_and_norm(
    graph: PackedBuilder,
    branch: str,
    tokens: str,
    bias: str,
    norm: str,
    weights: Weights,
    epsilon: float,
) -> tuple[str, str]:
    """``total = tokens + branch + bias`` and its LayerNorm; returns (normed, total)."""
    inputs = [branch, tokens]
    inputs += [
        graph.weight(each, weights[each]) for each in (f"{norm}.weight", f"{norm}.bias", bias)
    ]
    normed, total = graph.node_with_outputs(
        "AddLayerNorm", inputs, 2, {"epsilon": epsilon}, domain=HAT_EXPORT
    )
    return normed, total


def _window_attention(
    graph: PackedBuilder,
    tokens: str,
    spec: ModelSpec,
    stage: int,
    name: str,
    shifted: bool,
    weights: Weights,
) -> str:
    window = swin.window_of(spec, stage)
    table = weights[f"{name}.relative_position_bias_table"]
    bias = swin.attention_bias(table, spec.stage_sides[stage], window, 0)[0]
    return graph.node(
        "WindowAttention",
        [
            graph.product(tokens, f"{name}.qkv", weights),
            graph.weight(f"{name}.qkv.bias", weights[f"{name}.qkv.bias"]),
            graph.weight(f"{name}.position_bias", bias),
        ],
        {
            "heads": spec.image_heads[stage],
            "window": window,
            "shift": window // 2 if shifted and window < spec.stage_sides[stage] else 0,
        },
        domain=HAT_EXPORT,
    )
