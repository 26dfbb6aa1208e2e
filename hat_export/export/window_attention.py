"""Swin's attention as one custom operator, on tokens that stay in row-major order.

The standard graph brings tokens into window order, since ``Attention`` needs each window's side by
side. ``WindowAttention`` finds windows and shifts by index. Where it takes the place of attention,
the tokens need no order but one: the pass goes through the graph, keeps count of where each token
stood, and lets all values hold them row by row.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from hat_export.export.attention import match_heads
from hat_export.export.graph_index import (
    GraphIndex,
    MismatchError,
    attributes_of,
    live_nodes,
    make_node,
    renamed,
)
from hat_export.export.panels import HAT_EXPORT
from hat_export.export.passes import Pass, Report
from hat_export.export.swin import shift_mask, window_order
from hat_export.runtime.onnx_graphs import copy_of, with_nodes

#: Operators that treat every token by itself, all of it in their first input.
_TOKEN_WISE = ("Gelu", "LayerNormalization")


class FuseWindowAttention(Pass):
    """Attention in windows, with the reordering around it, as ``WindowAttention``."""

    operators = ("WindowAttention",)

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Fuse what the operator can do; all else gets its tokens in the order that it had."""
        index = GraphIndex(model)
        windows: dict[str, _Windows] = {}
        for node in model.graph.node:
            if node.op_type == "Attention":
                try:
                    found = _match(index, node)
                except MismatchError as difference:
                    report.left[node.name] = str(difference)
                else:
                    windows[found.result] = found
        rewriting = _RowMajor(index, windows, report)
        for node in model.graph.node:
            rewriting.add(node)
        if not report.counts:
            return model, False
        nodes = live_nodes(rewriting.nodes, index.outputs)
        return with_nodes(model, nodes, rewriting.tensors.values()), True


class _Windows(NamedTuple):
    """One attention layer on tokens in window order.

    Attributes:
        node: The ``Attention`` node.
        product: Queries, keys and values of all heads without their bias, [images, tokens, 3 d].
        qkv_bias: Name of that bias.
        result: The mixed values [images, tokens, d].
        heads: Number of heads.
        windows: Number of windows.
        area: Tokens of a window.
    """

    node: onnx.NodeProto
    product: str
    qkv_bias: str
    result: str
    heads: int
    windows: int
    area: int


def _match(index: GraphIndex, node: onnx.NodeProto) -> _Windows:
    found = match_heads(index, node, (3, 0, 1, 4, 2, 5), refolded=True)
    split = index.shape(found.split)
    if len(split) != 6 or split[0] != 0 or split[3] != 3:
        raise MismatchError(
            f"{found.split.name} cuts into {split}, not windows of three times heads"
        )
    _, count, area, _, heads, width = split
    merged = index.read_by(node.output[0], "Reshape")
    moved = index.read_by(merged.output[0], "Transpose", perm=[0, 1, 3, 2, 4])
    last = index.read_by(moved.output[0], "Reshape")
    shapes = (
        (index.maker[found.folded], (3, -1, index.array(node.input[3]).shape[1], area, width)),
        (merged, (-1, count, heads, area, width)),
        (last, (-1, count * area, heads * width)),
    )
    for reshape, expected in shapes:
        if index.shape(reshape) != expected:
            raise MismatchError(f"{reshape.name} gives {index.shape(reshape)}, expected {expected}")
    return _Windows(node, found.product, found.bias, last.output[0], heads, count, area)


def _geometry(index: GraphIndex, found: _Windows, order: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Window, shift and relative position bias [heads, area, area] of a layer.

    Raises:
        MismatchError: if the tokens' order or the bias is another than the operator has for them.
    """
    side, window = isqrt(found.windows * found.area), isqrt(found.area)
    if side**2 != len(order) or window**2 != found.area:
        raise MismatchError(
            f"{found.node.name} has {found.windows} windows of {found.area}: no squares"
        )
    shift = int(order[0]) // side
    if not np.array_equal(window_order(side, window, shift), order):
        raise MismatchError(f"the tokens of {found.node.name} aren't in the order of windows")
    bias = index.array(found.node.input[3])
    if bias.shape[0] != 1 or bias.shape[1] not in (found.heads, found.windows * found.heads):
        raise MismatchError(f"the bias of {found.node.name} is {list(bias.shape)}")
    each = bias.reshape(-1, found.heads, found.area, found.area)
    mask = shift_mask(side, window, shift)[:, None] if shift else 0
    # No token of the first window is moved around the edge: its bias is free of the mask.
    if not np.array_equal(each, each[:1] + mask):
        raise MismatchError(f"the bias of {found.node.name} isn't position and a shift by {shift}")
    return window, shift, each[0]


class _RowMajor:
    """A graph written anew, node by node, with the tokens of every value row by row.

    Values are named as before, and so are those that an ordering alone told apart: ``names`` has
    what stands for them.

    Args:
        index: Of the graph as it was.
        windows: Attention layers by their result.
        report: Where counts and reasons go.
    """

    def __init__(self, index: GraphIndex, windows: dict[str, _Windows], report: Report) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}
        self._index = index
        self._windows = windows
        self._report = report
        self._names: dict[str, str] = {}
        #: Number of tokens of the values [images, tokens, width] of which it is known.
        self._counts: dict[str, int] = {}
        #: The order that a value's tokens had; those not named had them row by row, or have none.
        self._orders: dict[str, np.ndarray] = {}
        #: Orders behind a reshape that joins neighbours, by the value that it reads.
        self._joined: dict[str, np.ndarray] = {}
        self._before: dict[str, str] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Write the next node."""
        result = node.output[0]
        if result in self._windows and self._fuse(self._windows[result]):
            return
        if node.op_type == "Gather" and self._moved(node):
            return
        made, data = copy_of(node), self._token_wise(node)
        if data or node.input[0] in self._joined:
            made.input[:] = [self._names.get(value, value) for value in node.input]
        else:
            made.input[:] = [self._as_before(value) for value in node.input]
        self.nodes.append(made)
        if result in self._windows:
            self._row_by_row(self._windows[result])
        elif data:
            self._stands(result, self._counts.get(data), self._orders.get(data))
        elif node.op_type == "Reshape" and node.input[1] in self._index.stored:
            shape = self._index.shape(node)
            if len(shape) == 3 and shape[1] > 0:
                self._stands(result, shape[1], self._joined.get(node.input[0]))

    def _stands(self, value: str, count: int | None, order: np.ndarray | None) -> None:
        if count is not None:
            self._counts[value] = count
        if order is not None and not np.array_equal(order, np.arange(len(order))):
            self._orders[value] = order

    def _order(self, value: str) -> np.ndarray:
        return self._orders.get(value, np.arange(self._counts[value]))

    def _token_wise(self, node: onnx.NodeProto) -> str:
        """The input whose tokens a node treats one by one; empty if it doesn't."""
        data, *others = map(str, node.input)
        if node.op_type in _TOKEN_WISE:
            return data if attributes_of(node).get("axis", -1) == -1 else ""
        if node.op_type == "MatMul":
            return data if self._index.is_matrix(others[0]) else ""
        if node.op_type != "Add":
            return ""
        if self._index.is_vector(others[0]):
            return data
        if any(value not in self._counts for value in node.input):
            return ""
        return data if np.array_equal(self._order(data), self._order(others[0])) else ""

    def _moved(self, node: onnx.NodeProto) -> bool:
        """Leave out a change of the tokens' order; True if the node is dealt with."""
        data, place = node.input
        count = self._counts.get(data)
        if attributes_of(node).get("axis") != 1 or count is None or place not in self._index.stored:
            return False
        places = self._index.array(place)
        if not np.array_equal(np.sort(places, axis=None), np.arange(count)):
            return False
        order, result = self._order(data)[places], node.output[0]
        following = self._index.only_user(result)
        groups = count
        if following is not None and following.op_type == "Reshape":
            shape = self._index.shape(following)
            groups = shape[1] if len(shape) == 3 and shape[0] == 0 else count
        if groups == count:
            self._names[result] = self._names.get(data, data)
            self._stands(result, count, order)
            return True
        # Neighbours are joined to one token. Rows of the smaller map follow those of the larger.
        neighbours = order.reshape(groups, -1)
        ranks = np.argsort(neighbours[:, 0])
        self._gather(node.name, self._names.get(data, data), neighbours[ranks].reshape(-1), result)
        self._joined[result] = np.argsort(ranks)
        return True

    def _fuse(self, found: _Windows) -> bool:
        tokens = found.windows * found.area
        order = self._orders.get(found.product, np.arange(tokens))
        try:
            window, shift, bias = _geometry(self._index, found, order)
        except MismatchError as difference:
            self._report.left[found.node.name] = str(difference)
            return False
        name = f"{found.node.input[3].removesuffix('.bias')}.position_bias"
        self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(bias), name)
        inputs = [self._names.get(found.product, found.product), found.qkv_bias, name]
        (kind,) = FuseWindowAttention.operators
        self.nodes.append(
            make_node(
                kind,
                inputs,
                [found.result],
                renamed(found.node.name, found.node.op_type, kind),
                {"heads": found.heads, "window": window, "shift": shift},
                HAT_EXPORT,
            )
        )
        self._stands(found.result, tokens, order)
        self._report.counts[kind] += 1
        return True

    def _row_by_row(self, found: _Windows) -> None:
        """Put the result of a layer that stays as it is into the order of all other values."""
        order = self._orders.get(found.product)
        if order is not None:
            self._names[found.result] = f"{found.result}/rows"
            places, name = np.argsort(order), f"{found.result}/rows/Gather"
            self._gather(name, found.result, places, self._names[found.result])
        self._stands(found.result, found.windows * found.area, order)

    def _as_before(self, value: str) -> str:
        """The value with its tokens in the order that they had."""
        if value not in self._orders:
            return self._names.get(value, value)
        if value not in self._before:
            self._before[value] = f"{value}/in_order"
            name = f"{value}/Gather"
            source = self._names.get(value, value)
            self._gather(name, source, self._orders[value], self._before[value])
        return self._before[value]

    def _gather(self, name: str, source: str, places: np.ndarray, result: str) -> None:
        stored = f"{name}/places"
        self.tensors[stored] = numpy_helper.from_array(places.astype(np.int64), stored)
        self.nodes.append(make_node("Gather", [source, stored], [result], name, {"axis": 1}))
