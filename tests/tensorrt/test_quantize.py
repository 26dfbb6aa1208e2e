"""Explicit Q/DQ: ranges, scales, what is quantized, and how far results move."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from hat_export.export.graph import GraphBuilder
from hat_export.export.mixed_precision import MixedPrecision
from hat_export.runtime.backends.emulation_backend import emulated
from hat_export.tensorrt.quantize import (
    QUANTIZED_FORMATS,
    SMALLEST_SCALE,
    Histogram,
    QuantizeMatMuls,
    activation_ranges,
    quantized_products,
)

WIDTH = 64


def layer(name: str = "encoder.fc") -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weights = {
        f"{name}.weight": random.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        f"{name}.bias": random.standard_normal(WIDTH).astype(np.float32),
    }
    weights[f"{name}.weight"][3] = 1e-6  # an output whose scale would be beneath fp16's numbers
    graph = GraphBuilder("layer")
    x = graph.input("x", np.float32, ["rows", WIDTH])
    graph.output(graph.linear(x, name, weights), "y", np.float32, ["rows", WIDTH])
    return graph.model({})


def rows() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((512, WIDTH)).astype(np.float32)}


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, feed)[0]
    return result


@pytest.mark.parametrize(
    ("scheme", "relative"),
    [
        # Rounding both factors of a sum of 64 products: steps of 1/127 of about four deviations,
        # uniform over half a step, give 0.9 % each.
        ("int8", 0.02),
        # e4m3 has three bits of fraction: 2^-4 at most and 1.8 % in the mean square, each.
        ("fp8", 0.05),
    ],
)
def test_the_result_moves_by_what_the_format_explains(scheme: str, relative: float) -> None:
    model, feed = layer(), rows()
    products = quantized_products(model)
    ranges = activation_ranges(model, products, scheme, [feed], threads=1)
    expected = run(model, feed)
    quantized = QuantizeMatMuls(scheme, products, ranges)(model).model
    low = MixedPrecision("fp16", {})(quantized).model
    moved = run(emulated(low), feed) - expected
    error = float(np.sqrt((moved**2).mean() / (expected**2).mean()))
    assert relative / 20 < error < relative


@pytest.mark.parametrize("scheme", QUANTIZED_FORMATS)
def test_weights_are_stored_in_the_low_format_with_a_scale_per_channel(scheme: str) -> None:
    model = layer()
    products = quantized_products(model)
    result = QuantizeMatMuls(scheme, products, {"x": 3.0})(model).model
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    name = "encoder.fc.weight^T"
    assert name not in stored  # only once, in the low format
    assert stored[f"{name}/{scheme}"].data_type == QUANTIZED_FORMATS[scheme].onnx_type
    scales = numpy_helper.to_array(stored[f"{name}/{scheme}/scale"])
    assert scales.shape == (WIDTH,)
    assert scales.min() == np.float32(SMALLEST_SCALE)
    # Scales become float16 in a mixed-precision graph: they must be float16 numbers already.
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    kinds = [node.op_type for node in result.graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2


def test_everything_around_the_products_is_fp16() -> None:
    model = layer()
    low = QuantizeMatMuls("int8", quantized_products(model), {"x": 3.0})(model).model
    mixed = MixedPrecision("fp16", {})(low).model
    kinds = {t.data_type for t in mixed.graph.initializer}
    assert kinds == {TensorProto.FLOAT16, TensorProto.INT8}


def test_layers_next_to_the_input_and_the_output_are_left_alone() -> None:
    assert quantized_products(layer("vit_model.patch_embed.proj")) == ()
    assert quantized_products(layer("cross_modal_image_transform_1")) == ()
    assert len(quantized_products(layer("text_transformer.encoder.layer.0.output.dense"))) == 1


def test_a_layer_that_shares_its_input_shares_its_quantization() -> None:
    graph = GraphBuilder("two")
    x = graph.input("x", np.float32, ["rows", 4])
    weights = {"a.weight": np.eye(4, dtype=np.float32), "b.weight": np.ones((4, 4), np.float32)}
    graph.output(graph.linear(x, "a", weights), "p", np.float32, ["rows", 4])
    graph.output(graph.linear(x, "b", weights), "q", np.float32, ["rows", 4])
    model = graph.model({})
    low = QuantizeMatMuls("int8", quantized_products(model), {"x": 1.0})(model).model
    assert [node.op_type for node in low.graph.node].count("QuantizeLinear") == 1


def test_rare_outliers_are_clipped_and_common_values_are_not() -> None:
    histogram = Histogram()
    random = np.random.default_rng(0)
    for _ in range(4):
        histogram.add(random.standard_normal(50_000).astype(np.float32))
    assert 3.5 < histogram.best_range(127) <= histogram.largest
    histogram.add(np.array([1000.0], np.float32))
    assert histogram.largest == 1000
    # One value in 200,000: its own error against that of all the others.
    step = histogram.best_range(127) / 127
    others = 200_000 * step**2 / 12
    assert others < 200_000 * (1000 / 127) ** 2 / 12
    assert histogram.best_range(127) < 1000


def test_a_histogram_counts_the_same_however_the_data_comes() -> None:
    data = np.abs(np.random.default_rng(0).standard_normal(10_000)).astype(np.float32)
    whole, pieces = Histogram(), Histogram()
    whole.add(data)
    for part in np.array_split(np.sort(data), 7):
        pieces.add(part)
    # Bins of at most twice the width.
    assert pieces.best_range(127) == pytest.approx(whole.best_range(127), rel=2e-3)
    assert pieces.largest == whole.largest


def test_an_input_that_is_always_zero_has_a_scale() -> None:
    model = layer()
    zeros = {"x": np.zeros((3, WIDTH), np.float32)}
    ranges = activation_ranges(model, quantized_products(model), "int8", [zeros], threads=1)
    assert ranges == {"x": 0.0}
    low = QuantizeMatMuls("int8", quantized_products(model), ranges)(model).model
    assert np.isfinite(run(low, zeros)).all()
