"""Low precision as a GPU computes it, on a CPU: to check results, not for speed.

ONNX Runtime's CPU provider runs most float16 operators in float32 and keeps what lies between them
in float32 too, so that it neither rounds nor overflows where a GPU does, and it has no bfloat16
kernels at all. Here every tensor that a graph holds in low precision is rounded to it explicitly.
Sums inside one operator are float32, as on tensor cores.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from hat_export.bundle.bundle import Bundle
from hat_export.runtime.backends.onnxruntime_backend import OnnxRuntimeSession
from hat_export.runtime.onnx_graphs import copy_of, tensor_types, with_nodes

LOW_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph that rounds wherever a mixed-precision graph does.

    Args:
        model: From :func:`hat_export.export.mixed_precision.MixedPrecision`; not changed.

    Returns:
        Same inputs and outputs; weights hold their rounded values.
    """
    low = {name: kind for name, kind in tensor_types(model).items() if kind in LOW_TYPES}
    rounded_weights = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
        for tensor in model.graph.initializer
        if tensor.name in low
    ]
    nodes: list[onnx.NodeProto] = []
    for node in map(copy_of, model.graph.node):
        nodes.append(node)
        rounded = [value for value in node.output if value in low]
        if rounded and node.op_type == "Cast":  # becomes the rounding below
            node.op_type = "Identity"
            del node.attribute[:]
        for position, value in enumerate(node.output):
            if value in low:
                node.output[position] = f"{value}/exact"
        for value in rounded:
            exact, small = f"{value}/exact", f"{value}/low"
            nodes.append(helper.make_node("Cast", [exact], [small], to=low[value]))
            nodes.append(helper.make_node("Cast", [small], [value], to=TensorProto.FLOAT))
    return with_nodes(model, nodes, rounded_weights)


class EmulatedSession(OnnxRuntimeSession):
    """A bundle's graphs on the CPU with the roundings of their precision."""

    backend_name = "emulation"
    precisions = ("fp32", "fp16", "bf16", "int8", "fp8")

    def _options(self) -> onnxruntime.SessionOptions:
        options = super()._options()
        # Q/DQ run as they stand: fused into integer kernels they would round elsewhere.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def _model(self, path: Path) -> bytes:
        content: bytes = emulated(onnx.load(path)).SerializeToString()
        return content


def open_session(bundle: Bundle, threads: int) -> EmulatedSession:
    """Entry point of the backend table."""
    return EmulatedSession(bundle, threads)
