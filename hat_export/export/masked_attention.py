"""BERT's attention as one custom operator, which reads the attention mask itself."""

from __future__ import annotations

import numpy as np
import onnx

from hat_export.export.attention import match_heads
from hat_export.export.bert import PADDING_MASK
from hat_export.export.graph_index import GraphIndex, MismatchError, live_nodes, make_node, renamed
from hat_export.export.panels import HAT_EXPORT
from hat_export.export.passes import Pass, Report
from hat_export.runtime.onnx_graphs import with_nodes


class FuseMaskedAttention(Pass):
    """Attention with padding masked out, as ``MaskedAttention``."""

    operators = ("MaskedAttention",)

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Fuse from the product of queries, keys and values to where heads are joined again."""
        index = GraphIndex(model)
        (kind,) = self.operators
        fused: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            if node.op_type != "Attention":
                continue
            try:
                inputs, heads, result = _match(index, node)
            except MismatchError as difference:
                report.left[node.name] = str(difference)
                continue
            name = renamed(node.name, node.op_type, kind)
            fused[result] = make_node(kind, inputs, [result], name, {"heads": heads}, HAT_EXPORT)
            report.counts[kind] += 1
        if not fused:
            return model, False
        nodes = [fused.get(node.output[0], node) for node in model.graph.node]
        return with_nodes(model, live_nodes(nodes, index.outputs)), True


def _match(index: GraphIndex, node: onnx.NodeProto) -> tuple[list[str], int, str]:
    """Inputs of the operator, number of heads, and the value that it gives."""
    found = match_heads(index, node, (2, 0, 3, 1, 4), refolded=False)
    split = index.shape(found.split)
    if len(split) != 5 or split[:3] != (0, 0, 3):
        raise MismatchError(f"{found.split.name} cuts into {split}, not words of three times heads")
    moved = index.read_by(node.output[0], "Transpose", perm=[0, 2, 1, 3])
    joined = index.read_by(moved.output[0], "Reshape")
    if index.shape(joined) != (0, 0, split[3] * split[4]):
        raise MismatchError(f"{joined.name} gives {index.shape(joined)}, not words of all heads")
    return [found.product, found.bias, _mask(index, node.input[3])], split[3], joined.output[0]


def _mask(index: GraphIndex, bias: str) -> str:
    """The attention mask that a bias of the logits is made from."""
    # Expanding repeats the row of a caption for each of its words, as broadcasting does.
    row = index.made_by(index.made_by(bias, "Expand").input[0], "Unsqueeze")
    scaled = index.made_by(row.input[0], "Mul")
    away = index.made_by(scaled.input[0], "Sub")
    cast = index.made_by(away.input[1], "Cast", to=int(onnx.TensorProto.FLOAT))
    expected = ((row, 1, [1, 2]), (scaled, 1, PADDING_MASK), (away, 0, 1.0))
    for node, position, value in expected:
        if not np.array_equal(index.array(node.input[position]), value):
            raise MismatchError(f"{node.name} has another constant than {value}")
    return str(cast.input[0])
