"""Residual branch, its bias, sum and LayerNorm as one custom operator.

ONNX Runtime's SkipLayerNormalization, which does the same, is slower than the separate operators.
"""

from __future__ import annotations

import onnx

from hat_export.export.graph_index import (
    GraphIndex,
    MismatchError,
    attributes_of,
    live_nodes,
    make_node,
    renamed,
    scope_of,
)
from hat_export.export.panels import HAT_EXPORT
from hat_export.export.passes import Pass, Report
from hat_export.runtime.onnx_graphs import copy_of, with_nodes

#: What stands between a stage's name and the number of its block.
BLOCKS = ".blocks."


class FuseAddLayerNorm(Pass):
    """``LayerNorm(tokens + (branch + bias))`` as ``AddLayerNorm``, which gives the sum too.

    An operator is named after its LayerNorm, which is the next block's. So the sum that no
    LayerNorm follows, at the end of a stage, is named after the stage, not after its last block.
    """

    operators = ("AddLayerNorm",)

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Fuse every LayerNorm of a sum with a linear layer's result."""
        index = GraphIndex(model)
        fused: dict[str, onnx.NodeProto] = {}
        absorbed: set[str] = set()
        for node in model.graph.node:
            if node.op_type != "LayerNormalization":
                continue
            try:
                total = index.made_by(node.input[0], "Add").output[0]
                if total in fused:
                    raise MismatchError(f"{total} is normed more than once")
                fused[total] = _fused(index, node, total)
            except MismatchError as difference:
                report.left[node.name] = str(difference)
                continue
            absorbed.add(node.output[0])
            report.counts["AddLayerNorm"] += 1
        if not fused:
            return model, False
        nodes = [
            fused.get(node.output[0]) or _of_the_stage(index, node)
            for node in model.graph.node
            if node.output[0] not in absorbed
        ]
        return with_nodes(model, live_nodes(nodes, index.outputs)), True


def _fused(index: GraphIndex, norm: onnx.NodeProto, total: str) -> onnx.NodeProto:
    given = attributes_of(norm)
    if given.get("axis", -1) != -1 or len(norm.input) != 3:
        raise MismatchError(
            f"{norm.name} isn't a LayerNorm over the last axis with gain and offset"
        )
    tokens, branch, bias = _residual(index, index.maker[total])
    return make_node(
        "AddLayerNorm",
        [branch, tokens, *norm.input[1:], bias],
        [norm.output[0], total],
        renamed(norm.name, norm.op_type, "AddLayerNorm"),
        {"epsilon": given["epsilon"]},
        HAT_EXPORT,
    )


def _residual(index: GraphIndex, add: onnx.NodeProto) -> tuple[str, str, str]:
    """The stream of a sum, the matmul's result that is added to it, and that one's bias."""
    tokens, branch = add.input
    if branch in index.stored:
        raise MismatchError(f"{add.name} adds a stored tensor")
    matmul, bias = index.biased_product(branch)
    return tokens, matmul.output[0], bias


def _of_the_stage(index: GraphIndex, node: onnx.NodeProto) -> onnx.NodeProto:
    scope = scope_of(node.name)
    stage = scope.rpartition(BLOCKS)[0]
    if node.op_type != "Add" or not stage:
        return node
    try:
        _residual(index, node)
    except MismatchError:
        return node
    readers = index.users.get(node.output[0], [])
    if any(reader.name.startswith(f"{stage}{BLOCKS}") for reader in readers):
        return node
    result = copy_of(node)
    result.name = f"{stage}/{node.op_type}"
    return result
