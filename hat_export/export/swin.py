"""The image encoder as an ONNX graph.

Swin's cyclic shift, window partition and patch merging only move tokens. The graph therefore keeps
the tokens of a stage in window order and tracks at build time which token stands where: a shift and
a partition, or a reverse and a merging, become one ``Gather`` with a constant index, and only where
the order has to change. Relative position bias and shift mask are one constant per block.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hat_export.export.attention import attend
from hat_export.export.graph import Dim, GraphBuilder
from hat_export.spec import LEVEL_STAGES, LEVEL_SUFFIXES, REDUCED_LEVELS, ModelSpec

LAYER_NORM_EPSILON = 1e-5
SHIFT_MASK = -100.0

Weights = Mapping[str, np.ndarray]


def image_graph(spec: ModelSpec, weights: Weights) -> GraphBuilder:
    """``pixel_values`` [images, 3, H, W] to ``image_level1..3`` [images, regions, d].

    ``image_stage1`` and ``image_stage2`` [images, regions, width], the normed stage outputs before
    the projection, are outputs too: they are what a compact index keeps.

    Args:
        spec: The architecture.
        weights: float32 state dict of :class:`hat_export.model.hat.HAT`.
    """
    graph = GraphBuilder("image_encoder")
    side = spec.image_size
    pixels = graph.input("pixel_values", np.float32, ["images", 3, side, side])
    order = window_order(spec.stage_sides[0], _window_of(spec, 0), 0)
    with graph.scope("vit_model.patch_embed"):
        tokens = _embed_patches(graph, pixels, spec, weights, order)
    stages: list[str] = []
    norms = dict(zip(LEVEL_STAGES, ("norm_1", "norm_2", "norm"), strict=True))
    for stage, (stage_side, depth) in enumerate(zip(spec.stage_sides, spec.depths, strict=True)):
        prefix = f"vit_model.layers.{stage}"
        window = _window_of(spec, stage)
        if stage:
            target = window_order(stage_side, window, 0)
            with graph.scope(f"{prefix}.downsample"):
                tokens = _merge_patches(graph, tokens, spec, stage, weights, order, target)
            order = target
        for block in range(depth):
            shift = window // 2 if block % 2 and window < stage_side else 0
            target = window_order(stage_side, window, shift)
            with graph.scope(f"{prefix}.blocks.{block}"):
                tokens = _reorder(graph, tokens, order, target)
                order = target
                tokens = _block(
                    graph, tokens, spec, stage, f"{prefix}.blocks.{block}", shift, weights
                )
        if stage in norms:
            level = LEVEL_STAGES.index(stage)
            suffix = LEVEL_SUFFIXES[level]
            with graph.scope(f"image_level{level + 1}"):
                features = _reorder(graph, tokens, order, np.arange(stage_side**2))
                features = graph.layer_norm(
                    features, f"vit_model.{norms[stage]}", weights, LAYER_NORM_EPSILON
                )
                name = f"cross_modal_image_transform{suffix}"
                projected = graph.linear(features, name, weights)
            shape: list[Dim] = ["images", stage_side**2, spec.dim]
            graph.output(projected, f"image_level{level + 1}", np.float32, shape)
            stages.append(features)
    for level in REDUCED_LEVELS:
        shape = ["images", spec.level_regions[level - 1], spec.level_widths[level - 1]]
        graph.output(stages[level - 1], f"image_stage{level}", np.float32, shape)
    return graph


def window_order(side: int, window: int, shift: int) -> np.ndarray:
    """Which token (row-major) stands at each place when windows lie one after the other.

    Args:
        side: Tokens along one side of the feature map.
        window: Tokens along one side of a window.
        shift: Cyclic shift towards the upper left, in tokens.

    Returns:
        int64 [side * side].
    """
    raster = np.roll(np.arange(side * side).reshape(side, side), (-shift, -shift), (0, 1))
    count = side // window
    split = raster.reshape(count, window, count, window)
    return split.transpose(0, 2, 1, 3).reshape(-1)


def attention_bias(table: np.ndarray, side: int, window: int, shift: int) -> np.ndarray:
    """Relative position bias plus shift mask of one block.

    Args:
        table: float32 [(2 window - 1)^2, heads], ``relative_position_bias_table``.
        side: Tokens along one side of the feature map.
        window: Tokens along one side of a window.
        shift: Cyclic shift in tokens; 0 for none.

    Returns:
        float32 [1, heads, tokens, tokens] without a shift, else
        [1, windows * heads, tokens, tokens]: the mask differs from window to window.
    """
    place = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1)
    place = place.reshape(-1, 2)
    offset = place[:, None] - place[None] + window - 1
    index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
    bias = table[index].transpose(2, 0, 1)
    if not shift:
        return np.ascontiguousarray(bias[None])
    mask = shift_mask(side, window, shift)
    both = bias[None] + mask[:, None]
    return np.ascontiguousarray(both.reshape(1, -1, *both.shape[2:]))


def shift_mask(side: int, window: int, shift: int) -> np.ndarray:
    """What keeps tokens apart that a cyclic shift has brought into one window.

    Args:
        side: Tokens along one side of the feature map.
        window: Tokens along one side of a window.
        shift: Cyclic shift in tokens, at least 1.

    Returns:
        float32 [windows, tokens, tokens]: 0, or :data:`SHIFT_MASK`.
    """
    zone = np.zeros(side, np.int64)
    zone[side - window : side - shift] = 1
    zone[side - shift :] = 2
    # Zones are laid out on the shifted map, so windows are cut without a further shift.
    regions = (3 * zone[:, None] + zone[None]).reshape(-1)[window_order(side, window, 0)]
    regions = regions.reshape(-1, window * window)
    mask = np.where(regions[:, :, None] != regions[:, None, :], np.float32(SHIFT_MASK), 0)
    return mask.astype(np.float32)


def _window_of(spec: ModelSpec, stage: int) -> int:
    """Tokens along one side of a window; a small map is one window."""
    return min(spec.window_size, spec.stage_sides[stage])


def _reorder(graph: GraphBuilder, tokens: str, order: np.ndarray, target: np.ndarray) -> str:
    """Tokens [images, L, C] in ``order`` brought into the ``target`` order."""
    if np.array_equal(order, target):
        return tokens
    return graph.node("Gather", [tokens, graph.constant(_places(order)[target])], {"axis": 1})


def _places(order: np.ndarray) -> np.ndarray:
    """The inverse permutation: at which place each token stands."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _embed_patches(
    graph: GraphBuilder, pixels: str, spec: ModelSpec, weights: Weights, order: np.ndarray
) -> str:
    """Patches as rows of a matrix product, which is what a convolution of stride = size is."""
    patch, count = spec.patch_size, spec.stage_sides[0]
    # [images, 3, rows, patch, columns, patch] -> [images, rows, columns, 3, patch, patch]
    split = graph.reshape(pixels, (0, 3, count, patch, count, patch))
    rows = graph.transpose(split, (0, 2, 4, 1, 3, 5))
    rows = graph.reshape(rows, (0, count * count, 3 * patch * patch))
    rows = _reorder(graph, rows, np.arange(count * count), order)
    name = "vit_model.patch_embed.proj"
    flat = {
        f"{name}.weight": weights[f"{name}.weight"].reshape(spec.embed_dim, -1),
        f"{name}.bias": weights[f"{name}.bias"],
    }
    tokens = graph.linear(rows, name, flat)
    return graph.layer_norm(tokens, "vit_model.patch_embed.norm", weights, LAYER_NORM_EPSILON)


def _merge_patches(
    graph: GraphBuilder,
    tokens: str,
    spec: ModelSpec,
    stage: int,
    weights: Weights,
    order: np.ndarray,
    target: np.ndarray,
) -> str:
    """Concatenate 2 x 2 neighbours (rows first), normalise, halve the width."""
    side, merged = spec.stage_sides[stage - 1], spec.stage_sides[stage]
    row, column = np.divmod(target, merged)
    # Order of the four neighbours in the checkpoint: (0, 0), (1, 0), (0, 1), (1, 1).
    corners = [(2 * row + down) * side + 2 * column + right for right in (0, 1) for down in (0, 1)]
    wanted = np.stack(corners, 1).reshape(-1)
    moved = graph.node("Gather", [tokens, graph.constant(_places(order)[wanted])], {"axis": 1})
    width = spec.embed_dim << (stage - 1)
    joined = graph.reshape(moved, (0, merged * merged, 4 * width))
    name = f"vit_model.layers.{stage}.downsample"
    normed = graph.layer_norm(joined, f"{name}.norm", weights, LAYER_NORM_EPSILON)
    return graph.linear(normed, f"{name}.reduction", weights)


def _block(
    graph: GraphBuilder,
    tokens: str,
    spec: ModelSpec,
    stage: int,
    name: str,
    shift: int,
    weights: Weights,
) -> str:
    """One Swin block on tokens in window order."""
    normed = graph.layer_norm(tokens, f"{name}.norm1", weights, LAYER_NORM_EPSILON)
    attended = _window_attention(graph, normed, spec, stage, f"{name}.attn", shift, weights)
    tokens = graph.node("Add", [tokens, graph.linear(attended, f"{name}.attn.proj", weights)])
    normed = graph.layer_norm(tokens, f"{name}.norm2", weights, LAYER_NORM_EPSILON)
    hidden = graph.node("Gelu", [graph.linear(normed, f"{name}.mlp.fc1", weights)])
    return graph.node("Add", [tokens, graph.linear(hidden, f"{name}.mlp.fc2", weights)])


def _window_attention(
    graph: GraphBuilder,
    tokens: str,
    spec: ModelSpec,
    stage: int,
    name: str,
    shift: int,
    weights: Weights,
) -> str:
    """Attention within each window; the bias is one constant, never repeated per image.

    Where windows are shifted, each has a mask of its own: they are folded into the heads, so that
    the constant [1, windows * heads, ...] holds for every image. Where they are not, all windows
    share one bias [1, heads, ...] and are folded into the batch.
    """
    side, window, heads = spec.stage_sides[stage], _window_of(spec, stage), spec.image_heads[stage]
    area, width = window * window, spec.embed_dim << stage
    windows, head_dim = side * side // area, width // heads
    qkv = graph.linear(tokens, f"{name}.qkv", weights)
    table = weights[f"{name}.relative_position_bias_table"]
    bias = graph.weight(f"{name}.bias", attention_bias(table, side, window, shift))
    parts = graph.reshape(qkv, (0, windows, area, 3, heads, head_dim))
    parts = graph.transpose(parts, (3, 0, 1, 4, 2, 5))
    folded_heads = windows * heads if shift else heads
    parts = graph.reshape(parts, (3, -1, folded_heads, area, head_dim))
    query, key, value = (
        graph.node("Gather", [parts, graph.constant(index)], {"axis": 0}) for index in range(3)
    )
    mixed = attend(graph, query, key, value, bias, head_dim)
    mixed = graph.reshape(mixed, (-1, windows, heads, area, head_dim))
    mixed = graph.transpose(mixed, (0, 1, 3, 2, 4))
    return graph.reshape(mixed, (-1, side * side, width))
