"""Linear layers of a packed graph, as one operator or in the products that tools know.

Two passes that undo each other. What rewrites weights (quantization) knows ``MatMul`` with a weight
[depth, columns]; it takes the layers apart first, and fuses those that it left alone again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hat_export.export.packed import HAT_EXPORT, from_panels, to_int8_panels, to_panels

#: Domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"
#: Endings of a weight's name in either form.
PANELS, TRANSPOSED = ".weight/panels", ".weight^T"
LINEAR, INT8_LINEAR = "Linear", "Int8Linear"
#: ONNX Runtime's product in 8 bits, its input rounded in steps that fit the whole batch.
INT8_PRODUCT = "DynamicQuantizeMatMul"


def split_linear(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Every ``Linear`` as ``MatMul`` and what follows it: ``Add``, ``BiasGelu`` or ``Gelu``.

    Args:
        model: A packed graph; not changed.

    Returns:
        A new graph, and how many layers were taken apart.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, onnx.TensorProto] = {}
    count = 0
    for node in model.graph.node:
        if node.op_type != LINEAR or node.domain != HAT_EXPORT:
            nodes.append(node)
            continue
        count += 1
        options = {item.name: item.i for item in node.attribute}
        value, panels, *bias = node.input
        weight = panels.removesuffix(PANELS) + TRANSPOSED
        if weight not in weights:
            array = from_panels(numpy_helper.to_array(stored[panels]), options["columns"])
            weights[weight] = numpy_helper.from_array(np.ascontiguousarray(array.T), weight)
        nodes += _pieces(node, value, weight, bias, bool(options["gelu"]))
    return _rebuilt(model, nodes, weights), count


def fuse_linear(model: onnx.ModelProto, int8: bool = False) -> tuple[onnx.ModelProto, int]:
    """The reverse of :func:`split_linear`, and the same for products in 8 bits if asked for.

    A product is fused if its right side is a stored float32 matrix of a linear layer, with a sum or
    a GELU that follows it if nothing else uses the product and the sum is with a stored vector.
    ``DynamicQuantizeMatMul`` becomes ``Int8Linear``, which rounds every row in steps of its own:
    more exact, and no row's result depends on what else is in the batch.

    Args:
        model: A graph for ONNX Runtime; not changed.
        int8: Whether to fuse products in 8 bits too.

    Returns:
        A new graph, and how many layers were fused.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {value.name: [] for value in model.graph.output}
    outputs = set(users)
    for node in model.graph.node:
        for value in node.input:
            users.setdefault(value, []).append(node)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, onnx.TensorProto] = {}
    absorbed: set[str] = set()
    count = 0
    for node in model.graph.node:
        if node.name in absorbed:
            continue
        if _is_layer(node, stored):
            kind, bias = LINEAR, ""
            inputs, options = _panels(node, stored, weights)
        elif int8 and _is_int8_layer(node, stored):
            kind, bias = INT8_LINEAR, node.input[4] if len(node.input) > 4 else ""
            inputs, options = _int8_panels(node, stored, weights)
        else:
            nodes.append(node)
            continue
        count += 1
        last = node
        following = users.get(node.output[0], [])
        if len(following) == 1 and node.output[0] not in outputs:
            added = "" if bias else _bias(following[0], node.output[0], stored)
            if added or following[0].op_type == "Gelu":
                bias = bias or added
                last = following[0]
                absorbed.add(last.name)
        fused = helper.make_node(
            kind,
            [node.input[0], *inputs, *([bias] if bias else [])],
            last.output,
            name=_renamed(node.name, node.op_type, kind),
            domain=HAT_EXPORT,
        )
        options["gelu"] = int(last.op_type in ("BiasGelu", "Gelu"))
        fused.attribute.extend(helper.make_attribute(*option) for option in options.items())
        nodes.append(fused)
    return _rebuilt(model, nodes, weights), count


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
    name = _renamed(node.name, LINEAR, "MatMul")
    yield helper.make_node("MatMul", [value, weight], [product], name=name)
    if kind:
        name = _renamed(node.name, LINEAR, kind)
        domain = MICROSOFT if kind == "BiasGelu" else ""
        yield helper.make_node(kind, [product, *bias], node.output, name=name, domain=domain)


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


def _renamed(name: str, old: str, new: str) -> str:
    path, _, last = name.rpartition("/")
    return f"{path}/{last.replace(old, new, 1)}" if path else last.replace(old, new, 1)


def _rebuilt(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], weights: dict[str, onnx.TensorProto]
) -> onnx.ModelProto:
    """The model with other nodes, and the initializers that they use."""
    used = {value for node in nodes for value in node.input}
    result = onnx.ModelProto()
    for field in ("ir_version", "producer_name"):
        setattr(result, field, getattr(model, field))
    result.metadata_props.extend(model.metadata_props)
    versions = {item.domain: item.version for item in model.opset_import}
    domains = {"", *(node.domain for node in nodes)}
    result.opset_import.extend(
        helper.make_opsetid(domain, versions.get(domain, 1)) for domain in sorted(domains)
    )
    graph = result.graph
    graph.name = model.graph.name
    graph.node.extend(nodes)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.initializer.extend(t for t in model.graph.initializer if t.name in used)
    graph.initializer.extend(weights.values())
    return result
