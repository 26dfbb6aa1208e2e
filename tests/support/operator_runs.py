"""Runs one custom operator of the project in ONNX Runtime, on a chosen instruction set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hat_export.kernels import alignment_cpu, operators

PATHS = ("scalar", "avx2", "avx512", "neon")
INVALID = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
#: What a session raises whose operator refuses its attributes.
FAILED = (INVALID, onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in alignment_cpu.available_paths():
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setenv("HAT_EXPORT_KERNEL_PATH", request.param)
    return str(request.param)


def operator_model(
    kind: str, inputs: dict[str, np.ndarray], outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """A model of one operator, for inputs of any shape."""
    types = {
        "float32": TensorProto.FLOAT,
        "int8": TensorProto.INT8,
        "int32": TensorProto.INT32,
        "int64": TensorProto.INT64,
    }
    names = [f"out{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(kind, list(inputs), names, domain="hat_export", **attributes)],
        "one",
        [
            helper.make_tensor_value_info(name, types[str(value.dtype)], None)
            for name, value in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("hat_export", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def open_operator(
    model: onnx.ModelProto, threads: int = 1, library: bool = True
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(str(operators.library_path()))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    kind: str, inputs: dict[str, np.ndarray], outputs: int = 1, threads: int = 1, **attributes: Any
) -> list[np.ndarray]:
    session = open_operator(operator_model(kind, inputs, outputs, **attributes), threads)
    found: list[np.ndarray] = session.run(None, inputs)
    return found


def exact_gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x) in float64."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    result: np.ndarray = x * 0.5 * (1 + erf(x / math.sqrt(2)))
    return result
