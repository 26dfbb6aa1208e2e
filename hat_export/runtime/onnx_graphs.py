"""What every rewrite of an ONNX graph needs: element types, and a model with other nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

#: Fields of a model that a rewrite leaves as they are; unset ones stay unset.
_KEPT_FIELDS = (
    *("ir_version", "producer_name", "producer_version"),
    *("domain", "model_version", "doc_string"),
)


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type (``TensorProto.DataType``) of every tensor of a graph, weights included."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    typed = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in typed}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def with_nodes(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    tensors: Iterable[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """The model with other nodes; nothing is shared with the old one.

    Args:
        model: Not changed.
        nodes: All nodes of the result.
        tensors: Further initializers, or others under the same name.

    Returns:
        Same inputs and outputs; of the initializers those that a node reads, the old ones first;
        of the domains those that a node is from. Types of inner tensors are left out: they may
        have changed.
    """
    import onnx

    used = {value for node in nodes for value in node.input}
    new = {tensor.name: tensor for tensor in tensors}
    result = onnx.ModelProto()
    for field in _KEPT_FIELDS:
        if model.HasField(field):
            setattr(result, field, getattr(model, field))
    result.metadata_props.extend(model.metadata_props)
    result.functions.extend(model.functions)
    versions = {item.domain: item.version for item in model.opset_import}
    domains = {"", *(node.domain for node in nodes)}
    result.opset_import.extend(
        onnx.helper.make_opsetid(domain, versions.get(domain, 1)) for domain in sorted(domains)
    )
    graph = result.graph
    graph.name = model.graph.name
    if model.graph.HasField("doc_string"):
        graph.doc_string = model.graph.doc_string
    graph.node.extend(nodes)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.initializer.extend(
        tensor
        for tensor in model.graph.initializer
        if tensor.name in used and tensor.name not in new
    )
    graph.initializer.extend(tensor for tensor in new.values() if tensor.name in used)
    return result


def with_tensors(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model with other content in some of its initializers.

    Args:
        model: Not changed.
        arrays: float32, by the initializer's name.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in arrays:
            array = np.ascontiguousarray(arrays[tensor.name], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return result


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that can be changed while the model it comes from stays as it is."""
    import onnx

    result = onnx.NodeProto()
    result.CopyFrom(node)
    return result
