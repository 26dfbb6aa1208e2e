"""uint8 x int8 on a CPU without VNNI: the naive range saturates, the one for cpu-avx2 can't.

A CPU that has VNNI never takes the saturating path by itself. So the same instruction is executed
directly (``native/pmaddubsw.cpp``), on the weights of a real layer; and ONNX Runtime itself is run
on an emulated Haswell where QEMU's user mode is installed (``apt-get install qemu-user``).
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hat_export.base.machine import cpu_features
from hat_export.model.checkpoint import load_hat
from hat_export.quantize.schemes import TARGETS
from hat_export.quantize.weights import per_channel
from places import MODEL, TESTS

NAIVE, OURS = TARGETS["cpu-vnni"].weight_limit, TARGETS["cpu-avx2"].weight_limit
#: Rounding of 7 and 8 bits is far below, saturation far above.
TOLERANCE = 0.02

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def avx2_product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    compiler = shutil.which("c++")
    if "avx2" not in cpu_features() or compiler is None:
        pytest.skip("needs an x86-64 CPU with AVX2 and a C++ compiler")
    library = tmp_path_factory.mktemp("native") / "pmaddubsw.so"
    source = TESTS / "native" / "pmaddubsw.cpp"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).product

    def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        rows, inner = left.shape
        left, columns = np.ascontiguousarray(left), np.ascontiguousarray(right.T)
        out = np.empty((rows, len(columns)), np.int32)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (left, columns, out)]
        function(*pointers, *map(ctypes.c_int64, (rows, inner, len(columns))))
        return out

    return product


@pytest.fixture(scope="module")
def layer() -> np.ndarray:
    """A weight of the demo model, [inner, outer]."""
    model = load_hat(MODEL).model
    weight: np.ndarray = model.state_dict()["vit_model.layers.3.blocks.0.mlp.fc2.weight"].numpy().T
    return weight


def loud_rows(weight: np.ndarray, rows: int = 8) -> np.ndarray:
    """uint8 activations at the upper end where the weight is positive, at 0 where it isn't.

    The worst that data can do: each row is made for one column.
    """
    columns = np.argsort(-np.abs(weight).sum(0))[:rows]
    return np.where(weight[:, columns].T > 0, 255, 0).astype(np.uint8)


def relative_error(product: Product, weight: np.ndarray, limit: int) -> float:
    left = loud_rows(weight)
    values, scale = per_channel(weight, limit)
    exact = left.astype(np.float64) @ weight.astype(np.float64)
    found = product(left, values) * scale.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def exact_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.int32) @ right.astype(np.int32)


def test_the_instruction_saturates_where_weights_use_their_whole_range(
    avx2_product: Product,
) -> None:
    left = np.full((1, 32), 255, np.uint8)
    assert avx2_product(left, np.full((32, 1), 127, np.int8))[0, 0] == 16 * 32767  # not 1036320
    assert avx2_product(left, np.full((32, 1), OURS, np.int8))[0, 0] == 32 * 255 * OURS
    # And our limit is the largest that holds: one more saturates.
    assert avx2_product(left, np.full((32, 1), OURS + 1, np.int8))[0, 0] != 32 * 255 * (OURS + 1)


def test_a_real_layer_is_wrong_with_naive_weights_and_right_with_ours(
    avx2_product: Product, layer: np.ndarray
) -> None:
    # A flat distribution has more values near the ends than trained weights have: both are tried.
    flat = np.random.default_rng(0).uniform(-1, 1, layer.shape).astype(np.float32)
    assert relative_error(avx2_product, flat, NAIVE) > TOLERANCE
    for weight in (layer, flat):
        assert relative_error(avx2_product, weight, OURS) < TOLERANCE
        values, _ = per_channel(weight, OURS)
        left = loud_rows(weight)
        np.testing.assert_array_equal(avx2_product(left, values), exact_product(left, values))
        naive, _ = per_channel(weight, NAIVE)
        assert (avx2_product(left, naive) != exact_product(left, naive)).any()


SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from hat_export.quantize.weights import per_channel
random = np.random.default_rng(0)
rows = random.uniform(0.7, 1, (32, 256)).astype(np.float32)
weight = random.uniform(0.3, 1, (256, 64)).astype(np.float32)
found = {}
for limit in json.loads(sys.argv[2]):
    values, scale = per_channel(weight, limit)
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [32, 64])],
        [numpy_helper.from_array(values, "w"), numpy_helper.from_array(scale, "s")])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    exact = rows.astype(float) @ weight
    error = session.run(None, {"x": rows})[0] - exact
    found[limit] = float(np.linalg.norm(error) / np.linalg.norm(exact))
print(json.dumps(found))
"""


def test_onnxruntime_on_a_cpu_without_vnni() -> None:
    """ONNX Runtime's own AVX2 path, on an emulated Haswell."""
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        pytest.skip("qemu-user isn't installed")
    arguments = [json.dumps([path for path in sys.path if path]), json.dumps([NAIVE, OURS])]
    python = str(Path(sys.executable).resolve())
    done = subprocess.run(
        [emulator, "-cpu", "Haswell", python, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout)
    assert found[str(NAIVE)] > TOLERANCE
    assert found[str(OURS)] < TOLERANCE
