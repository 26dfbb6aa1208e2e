"""One matrix product in float32 by each library that may be installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hat_export.benchmark.roofline.products import Product

Call = Callable[[], Any]


def exact_product(library: str, product: Product, threads: int) -> Call:
    """A product made ready, on small integers, for which every order of sums is exact.

    Args:
        library: One of :data:`LIBRARIES`.
        product: Its sizes.
        threads: Threads to use; OpenBLAS takes them from its environment variable alone.
    """
    random = np.random.default_rng(0)
    lead = (product.batch,) if product.batch > 1 else ()
    left = random.integers(-4, 5, (*lead, product.rows, product.inner)).astype(np.float32)
    right = random.integers(-4, 5, (*lead, product.inner, product.columns)).astype(np.float32)
    call = LIBRARIES[library](left, right, threads)
    call()
    return call


def numpy_product(left: np.ndarray, right: np.ndarray, threads: int) -> Call:
    """OpenBLAS (or whatever numpy was built with)."""
    out = np.matmul(left, right)
    return lambda: np.matmul(left, right, out=out)


def mkl_product(left: np.ndarray, right: np.ndarray, threads: int) -> Call:
    """MKL, by PyTorch."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    out = torch.matmul(a, b)
    return lambda: torch.matmul(a, b, out=out)


def mlas_product(left: np.ndarray, right: np.ndarray, threads: int) -> Call:
    """MLAS, by an ONNX Runtime MatMul whose weight is a constant that it packs beforehand."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape))

    weight = left.ndim == 2
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["out"])],
        "product",
        [tensor("left", left)] if weight else [tensor("left", left), tensor("right", right)],
        [tensor("out", np.matmul(left[..., :1, :], right))],
        [numpy_helper.from_array(right, "right")] if weight else [],
    )
    graph.output[0].CopyFrom(
        helper.make_tensor_value_info("out", TensorProto.FLOAT, [*left.shape[:-1], right.shape[-1]])
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_cpu_input("left", left)
    if not weight:
        binding.bind_cpu_input("right", right)
    out = np.empty((*left.shape[:-1], right.shape[-1]), np.float32)
    binding.bind_output("out", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    return lambda: (session.run_with_iobinding(binding), out)


def openvino_product(left: np.ndarray, right: np.ndarray, threads: int) -> Call:
    """oneDNN by OpenVINO, sizes and weight constant."""
    import openvino
    from openvino import opset13 as ops

    a = ops.parameter(left.shape, np.float32)
    parameters = [a]
    if left.ndim == 2:
        b = ops.constant(right)
    else:
        b = ops.parameter(right.shape, np.float32)
        parameters.append(b)
    model = openvino.Model([ops.matmul(a, b, False, False)], parameters, "product")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [left] if left.ndim == 2 else [left, right]
    for place, value in enumerate(inputs):
        request.set_input_tensor(place, openvino.Tensor(value, shared_memory=True))
    # A tensor of shared memory doesn't keep the array alive that it points to.
    return lambda: (request.infer(), inputs)


#: The libraries of the bound.
LIBRARIES: dict[str, Callable[[np.ndarray, np.ndarray, int], Call]] = {
    "OpenBLAS": numpy_product,
    "MKL": mkl_product,
    "MLAS": mlas_product,
    "oneDNN (OpenVINO)": openvino_product,
}
