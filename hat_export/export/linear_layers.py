"""Linear layers as one custom operator, or in the matmuls that tools know.

Two passes that undo each other. What rewrites weights (quantization) knows ``MatMul`` with a weight
[depth, columns]; it takes the layers apart first, and fuses those that it left alone again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from hat_export.export.graph_index import GraphIndex, attributes_of, make_node, renamed
from hat_export.export.panels import HAT_EXPORT, from_panels, to_int8_panels, to_panels
from hat_export.export.passes import Pass, Report, remaining, unnamed_nodes
from hat_export.runtime.onnx_graphs import with_nodes

#: Domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"
#: Endings of a weight's name in either form.
PANELS, TRANSPOSED = ".weight/panels", ".weight^T"
LINEAR, INT8_LINEAR = "Linear", "Int8Linear"
#: ONNX Runtime's product in 8 bits, its input rounded in steps that fit the whole batch.
INT8_PRODUCT = "DynamicQuantizeMatMul"


class SplitLinear(Pass):
    """Every ``Linear`` as ``MatMul`` and what follows it: ``Add``, ``BiasGelu`` or ``Gelu``."""

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """Nodes with names of their own, from which the pieces' are made."""
        yield from unnamed_nodes(model)

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Take all layers apart."""
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes: list[onnx.NodeProto] = []
        weights: dict[str, onnx.TensorProto] = {}
        for node in model.graph.node:
            if node.op_type != LINEAR or node.domain != HAT_EXPORT:
                nodes.append(node)
                continue
            report.counts[LINEAR] += 1
            options = attributes_of(node)
            value, panels, *bias = node.input
            weight = panels.removesuffix(PANELS) + TRANSPOSED
            if weight not in weights:
                array = from_panels(numpy_helper.to_array(stored[panels]), options["columns"])
                weights[weight] = numpy_helper.from_array(np.ascontiguousarray(array.T), weight)
            nodes += _pieces(node, value, weight, bias, bool(options["gelu"]))
        return (with_nodes(model, nodes, weights.values()), True) if weights else (model, False)

    def ensures(self, model: onnx.ModelProto) -> Iterator[str]:
        """None is left."""
        yield from remaining(model, (LINEAR,))


class FuseLinear(Pass):
    """The reverse of :class:`SplitLinear`, and the same for matmuls in 8 bits if asked for.

    A matmul is fused if its right side is a stored float32 matrix of a linear layer, with a sum and
    a GELU that follow it if nothing else uses the product and the sum is with a stored vector.
    ``DynamicQuantizeMatMul`` becomes ``Int8Linear``, which rounds every row in steps of its own:
    more exact, and no row's result depends on what else is in the batch.

    Args:
        int8: Whether to fuse matmuls in 8 bits too.
    """

    operators = (LINEAR, INT8_LINEAR)

    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """Nodes with names of their own, by which absorbed ones are told."""
        yield from unnamed_nodes(model)

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Fuse every layer."""
        index = GraphIndex(model)
        nodes: list[onnx.NodeProto] = []
        weights: dict[str, onnx.TensorProto] = {}
        absorbed: set[str] = set()
        for node in model.graph.node:
            if node.name in absorbed:
                continue
            if _is_layer(node, index.stored):
                kind, bias = LINEAR, ""
                inputs, options = _panels(node, index.stored, weights)
            elif self.int8 and _is_int8_layer(node, index.stored):
                kind, bias = INT8_LINEAR, node.input[4] if len(node.input) > 4 else ""
                inputs, options = _int8_panels(node, index.stored, weights)
            else:
                if node.op_type in ("MatMul", INT8_PRODUCT):
                    report.left[node.name] = "no linear layer with a stored weight of its kind"
                nodes.append(node)
                continue
            report.counts[kind] += 1
            bias, following = _following(index, node, bias)
            absorbed.update(one.name for one in following)
            last = following[-1] if following else node
            options["gelu"] = int(last.op_type in ("BiasGelu", "Gelu"))
            inputs = [node.input[0], *inputs, *([bias] if bias else [])]
            name = renamed(node.name, node.op_type, kind)
            nodes.append(make_node(kind, inputs, last.output, name, options, HAT_EXPORT))
        if not report.counts:
            return model, False
        return with_nodes(model, nodes, weights.values()), True


def _following(
    index: GraphIndex, node: onnx.NodeProto, bias: str
) -> tuple[str, list[onnx.NodeProto]]:
    """The bias and the GELU of a layer, where it alone has them.

    Args:
        index: Of the graph.
        node: The layer's matmul.
        bias: The stored vector that the matmul adds itself; empty if none.

    Returns:
        The stored vector that is added, and the nodes that the layer takes up.
    """
    taken: list[onnx.NodeProto] = []
    value = node.output[0]
    following = index.only_user(value)
    added = _bias(following, value, index.stored) if following and not bias else ""
    if following and added:
        bias = added
        taken.append(following)
        value = following.output[0]
        if following.op_type == "BiasGelu":
            return bias, taken
        following = index.only_user(value)
    if following and following.op_type == "Gelu" and not attributes_of(following):
        taken.append(following)
    return bias, taken


def _panels(
    node: onnx.NodeProto,
    stored: dict[str, onnx.TensorProto],
    weights: dict[str, onnx.TensorProto],
) -> tuple[list[str], dict[str, int]]:
    """The inputs of ``Linear`` that hold a float32 layer's weight, and its attributes."""
    array = numpy_helper.to_array(stored[node.input[1]]).T
    name = node.input[1].removesuffix(TRANSPOSED) + PANELS
    if name not in weights:
        weights[name] = numpy_helper.from_array(to_panels(array), name)
    return [name], {"columns": len(array)}


def _int8_panels(
    node: onnx.NodeProto,
    stored: dict[str, onnx.TensorProto],
    weights: dict[str, onnx.TensorProto],
) -> tuple[list[str], dict[str, int]]:
    """The same of a layer in 8 bits: weight, scale, and the sums of its columns."""
    values, scale = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
    panels, totals = f"{node.input[1]}/panels", f"{node.input[1]}/totals"
    if panels not in weights:
        weights[panels] = numpy_helper.from_array(to_int8_panels(values), panels)
        weights[totals] = numpy_helper.from_array(values.sum(0, dtype=np.int32), totals)
    largest = int(np.abs(values.astype(np.int16)).max(initial=0))
    return [panels, node.input[2], totals], {"columns": len(scale), "largest_weight": largest}


def _pieces(
    node: onnx.NodeProto, value: str, weight: str, bias: list[str], gelu: bool
) -> Iterator[onnx.NodeProto]:
    kind = {(True, True): "BiasGelu", (True, False): "Add", (False, True): "Gelu"}.get(
        (bool(bias), gelu)
    )
    product = f"{node.output[0]}/product" if kind else node.output[0]
    name = renamed(node.name, LINEAR, "MatMul")
    yield make_node("MatMul", [value, weight], [product], name)
    if kind:
        name = renamed(node.name, LINEAR, kind)
        domain = MICROSOFT if kind == "BiasGelu" else ""
        yield make_node(kind, [product, *bias], node.output, name, domain=domain)


def _is_layer(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "MatMul" or node.domain:
        return False
    weight = stored.get(node.input[1])
    return (
        weight is not None
        and weight.data_type == onnx.TensorProto.FLOAT
        and len(weight.dims) == 2
        and weight.name.endswith(TRANSPOSED)
    )


def _is_int8_layer(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != INT8_PRODUCT or node.domain != MICROSOFT or any(node.input[3:4]):
        return False
    values, scale = stored.get(node.input[1]), stored.get(node.input[2])
    return (
        values is not None
        and scale is not None
        and values.data_type == onnx.TensorProto.INT8
        and list(scale.dims) == list(values.dims[1:])
    )


def _bias(node: onnx.NodeProto, product: str, stored: dict[str, onnx.TensorProto]) -> str:
    """The stored vector that the node adds to the product; empty if it does anything else."""
    if node.op_type not in ("Add", "BiasGelu"):
        return ""
    others = [value for value in node.input if value != product]
    vector = len(others) == 1 and others[0] in stored and len(stored[others[0]].dims) == 1
    return others[0] if vector else ""
