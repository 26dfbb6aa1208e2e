"""The operator Int8Linear: its sums are exact in every way that this CPU has of making them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hat_export.export.linear_layers import INT8_PRODUCT, MICROSOFT, FuseLinear
from hat_export.export.panels import to_int8_panels
from operator_runs import FAILED, INVALID, exact_gelu, path, run

__all__ = ["path"]

#: As HAT_EXPORT_INT8_PRODUCTS names them.
WAYS = ("scalar", "avx2", "avx2-small", "avxvnni", "vnni", "amx")
#: Rows, depth, columns: below, at and over the sizes of tiles, blocks and panels.
SIZES = [
    (1, 1, 1),
    (5, 3, 70),
    (16, 64, 64),
    (17, 65, 63),
    (33, 513, 130),
    (385, 40, 65),
    (0, 8, 8),
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HAT_EXPORT_INT8_PRODUCTS", request.param)
    layer = Layer(np.ones((1, 1), np.int8), np.ones(1, np.float32))
    try:
        layer(np.ones((1, 1), np.float32))
    except INVALID:
        pytest.skip(f"this CPU has no {request.param}")
    return str(request.param)


class Layer:
    """A quantized weight [depth, columns]."""

    def __init__(self, values: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None):
        self.values, self.scale, self.bias = values, scale, bias

    def __call__(self, x: np.ndarray, **options: Any) -> np.ndarray:
        feed = {
            "x": x,
            "weight": to_int8_panels(self.values),
            "scale": self.scale,
            "totals": self.values.sum(0, dtype=np.int32),
        }
        if self.bias is not None:
            feed["bias"] = self.bias
        largest = int(np.abs(self.values.astype(int)).max(initial=0))
        attributes = {"columns": len(self.scale), "gelu": 0, "largest_weight": largest} | options
        return run("Int8Linear", feed, **attributes)[0]


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in 255 steps of their own, and the steps; in float32, as the operator does it."""
    high, low = x.max(1, initial=0), x.min(1, initial=0)
    step = ((high - low) / np.float32(255)).astype(np.float32)
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    zero = np.rint(-low * inverse)
    return np.clip(np.rint(x * inverse[:, None] + zero[:, None]), 0, 255) - zero[:, None], step


def random_layer(depth: int, columns: int, limit: int, biased: bool = True) -> Layer:
    random = np.random.default_rng(depth + columns)
    return Layer(
        random.integers(-limit, limit + 1, (depth, columns)).astype(np.int8),
        random.uniform(0.001, 0.01, columns).astype(np.float32),
        random.standard_normal(columns).astype(np.float32) if biased else None,
    )


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("gelu", [False, True])
def test_sums_are_exact(way: str, sizes: tuple[int, int, int], gelu: bool) -> None:
    rows, depth, columns = sizes
    layer = random_layer(depth, columns, 64 if way == "avx2-small" else 127, biased=not gelu)
    x = np.random.default_rng(rows).standard_normal((rows, depth), np.float32)
    numbers, step = rounded(x)
    sums = numbers.astype(np.int64) @ layer.values.astype(np.int64)
    exact = sums * (step[:, None].astype(np.float64) * layer.scale)
    exact += 0 if layer.bias is None else layer.bias
    found = layer(x, gelu=int(gelu))
    # Three roundings of float32, and GELU's own 2.5e-7; no sum is off by one.
    size = np.abs(sums) * (step[:, None].astype(np.float64) * layer.scale) + 4
    if gelu:
        exact = exact_gelu(exact)
    assert (np.abs(found - exact) <= 2.0**-22 * size).all()
    assert (np.abs(found - exact) < 0.5 * step[:, None] * layer.scale).all() or gelu
    np.testing.assert_array_equal(layer(x, gelu=int(gelu), threads=3), found)
    np.testing.assert_array_equal(layer(x[:1], gelu=int(gelu)), found[:1])


def test_the_largest_numbers_do_not_saturate(way: str) -> None:
    """255 * 127 * 4 in 16 bits would be wrong by far."""
    limit = 64 if way == "avx2-small" else 127
    values = np.full((4096, 64), limit, np.int8)
    values[:, 1::2] *= -1
    x = np.full((3, 4096), 2.0, np.float32)
    found = Layer(values, np.ones(64, np.float32))(x)
    expected = np.where(np.arange(64) % 2, -1, 1) * 2.0 * 4096 * limit
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)), rtol=1e-6)


def test_every_instruction_set_gives_the_same(path: str) -> None:
    layer = random_layer(200, 130, 127)
    x = np.random.default_rng(0).standard_normal((9, 200), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAT_EXPORT_KERNEL_PATH", "scalar")
        reference = layer(x)
    np.testing.assert_array_equal(layer(x), reference)


def test_odd_rows(path: str) -> None:
    """Zeros, one sign only, the smallest and largest numbers; what isn't finite stays visible."""
    layer = Layer(np.ones((3, 2), np.int8), np.ones(2, np.float32))
    rows = [[0, 0, 0], [1, 2, 255], [-1, -2, -255], [1e-44, 0, 1e-44], [3e38, -3e38, 0]]
    rows += [[np.nan, 1, 2], [1, np.inf, 2], [-np.inf, 1, 1]]
    found = layer(np.array(rows, np.float32))
    assert found[0].tolist() == [0, 0]
    np.testing.assert_allclose(found[1:3, 0], [258, -258], rtol=1e-6)
    np.testing.assert_allclose(found[3], 0, atol=1e-37)
    assert np.isnan(found[5:]).all()


def test_wrong_inputs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = random_layer(8, 5, 127), np.zeros((2, 3, 8), np.float32)
    assert layer(x).shape == (2, 3, 5)
    with pytest.raises(INVALID, match=r"scale: expected the shape \[5\]"):
        Layer(layer.values, layer.scale[:4])(x, columns=5)
    with pytest.raises(INVALID, match=r"weight: expected the shape \[1, 16, 64, 4\]"):
        Layer(np.zeros((65, 5), np.int8), layer.scale)(x[..., :7].repeat(5, 2)[..., :7], columns=5)
    with pytest.raises(FAILED, match="largest_weight: expected an integer from 0 to 128"):
        layer(x, largest_weight=300)
    monkeypatch.setenv("HAT_EXPORT_INT8_PRODUCTS", "avx3")
    with pytest.raises(INVALID, match=r"HAT_EXPORT_INT8_PRODUCTS: .*got avx3"):
        layer(x)


def test_products_with_bias_and_gelu_become_one_operator() -> None:
    layer = random_layer(70, 66, 127)
    stored = {"w": layer.values, "s": layer.scale, "b": layer.bias}
    value = [helper.make_tensor_value_info(name, 1, [4, size]) for name, size in
             (("x", 70), ("y", 66), ("z", 66))]  # fmt: skip
    nodes = [
        helper.make_node(INT8_PRODUCT, ["x", "w", "s", "", "b"], ["p"], "a/" + INT8_PRODUCT,
                         domain=MICROSOFT),
        helper.make_node("Gelu", ["p"], ["y"], "a/Gelu"),
        helper.make_node(INT8_PRODUCT, ["x", "w", "s"], ["z"], "b/" + INT8_PRODUCT,
                         domain=MICROSOFT),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", value[:1], value[1:],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    assert not FuseLinear()(model).modified
    made, _, report = FuseLinear(int8=True)(model)
    assert report.counts["Int8Linear"] == 2
    assert [node.name for node in made.graph.node] == ["a/Int8Linear", "b/Int8Linear"]
    assert [options(node) for node in made.graph.node] == [
        {"columns": 66, "gelu": gelu, "largest_weight": 127} for gelu in (1, 0)
    ]
    assert {tensor.name for tensor in made.graph.initializer} == {
        *("w/panels", "w/totals", "s", "b"),
    }


def options(node: onnx.NodeProto) -> dict[str, int]:
    return {item.name: item.i for item in node.attribute}
