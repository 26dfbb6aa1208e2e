"""Element types of the tensors in an ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type (``TensorProto.DataType``) of every tensor of a graph, weights included."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    typed = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in typed}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
