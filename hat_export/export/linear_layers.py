"""Linear layers of a packed graph, as one operator or in the products that tools know.

Two passes that undo each other. What rewrites weights (quantization) knows ``MatMul`` with a weight
[depth, columns]; it takes the layers apart first, and fuses those that it left alone again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hat_export.export.packed import HAT_EXPORT, from_panels, to_panels

#: Domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"
#: Endings of a weight's name in either form.
PANELS, TRANSPOSED = ".weight/panels", ".weight^T"
LINEAR = "Linear"


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


def fuse_linear(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The reverse of :func:`split_linear`.

    A product is fused if its right side is a stored float32 matrix of a linear layer, with a sum or
    a GELU that follows it if nothing else uses the product and the sum is with a stored vector.

    Args:
        model: A graph for ONNX Runtime; not changed.

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
        if not _is_layer(node, stored):
            nodes.append(node)
            continue
        count += 1
        value, weight = node.input
        array = numpy_helper.to_array(stored[weight]).T
        panels = weight.removesuffix(TRANSPOSED) + PANELS
        if panels not in weights:
            weights[panels] = numpy_helper.from_array(to_panels(array), panels)
        last, bias = node, ""
        following = users.get(node.output[0], [])
        if len(following) == 1 and node.output[0] not in outputs:
            bias = _bias(following[0], node.output[0], stored)
            if bias or following[0].op_type == "Gelu":
                last = following[0]
                absorbed.add(last.name)
        fused = helper.make_node(
            LINEAR,
            [value, panels, bias] if bias else [value, panels],
            last.output,
            name=_renamed(node.name, "MatMul", LINEAR),
            domain=HAT_EXPORT,
            columns=len(array),
            gelu=int(last.op_type in ("BiasGelu", "Gelu")),
        )
        nodes.append(fused)
    return _rebuilt(model, nodes, weights), count


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
