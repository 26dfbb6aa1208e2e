"""int8 and fp8 for the linear layers of an encoder, written as explicit Q/DQ.

The form that TensorRT takes since it has no calibrators of its own: in front of a product,
``QuantizeLinear`` and ``DequantizeLinear`` with a range found on calibration data; its weights
stored in the low format, dequantized with one scale per output channel. Both are symmetric.
TensorRT turns the pattern into products in the low format; a CPU runs it as it stands, with the
same roundings.

Left as they are: attention (its fused kernel takes fp16), norms, residuals and Gelu, and the layers
of :data:`KEPT`, which are few, small and next to the input or the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hat_export.export.observe import Feed, mark_outputs, observe_tensors, open_graph
from hat_export.export.passes import Pass, Report
from hat_export.runtime.onnx_graphs import copy_of, with_nodes


@dataclass(frozen=True)
class QuantizedFormat:
    """A format of products.

    Attributes:
        onnx_type: Element type in ONNX.
        largest: The number that a range is mapped to.
        uniform: Whether its steps are all of one size, so that clipping rare large values makes
            the others finer.
    """

    onnx_type: int
    largest: float
    uniform: bool


QUANTIZED_FORMATS = {
    # Symmetric: -128 is left out, so that a weight and its negative are equally far.
    "int8": QuantizedFormat(int(TensorProto.INT8), 127.0, uniform=True),
    "fp8": QuantizedFormat(int(TensorProto.FLOAT8E4M3FN), 448.0, uniform=False),
}

#: Layers that stay as they are, by a part of their weight's name: the patch embedding sees pixels
#: through 48 inputs, the projections make the features themselves.
KEPT = ("patch_embed", "cross_modal_")

#: Smallest scale: float16's smallest normal number, since scales are stored in float16.
SMALLEST_SCALE = 2.0**-14
HISTOGRAM_BINS = 2048


def quantized_products(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the matmuls with a weight that :class:`QuantizeMatMuls` can rewrite."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and not any(part in node.input[1] for part in KEPT)
    )


class QuantizeMatMuls(Pass):
    """Q/DQ around the inputs and weights of matmuls; the graph stays float32 around them.

    Args:
        scheme: A key of :data:`QUANTIZED_FORMATS`.
        products: Names of ``MatMul`` nodes whose second input is a weight [in, out].
        ranges: Input of each matmul to the largest magnitude that it shall hold exactly.
    """

    def __init__(self, scheme: str, products: Sequence[str], ranges: Mapping[str, float]) -> None:
        self.scheme = scheme
        self.products = frozenset(products)
        self.ranges = ranges

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """The matmuls, and a range for the input of each."""
        matmuls = {node.name: node for node in model.graph.node if node.op_type == "MatMul"}
        for product in sorted(self.products):
            if product not in matmuls:
                yield f"it has no MatMul {product}"
            elif matmuls[product].input[0] not in self.ranges:
                yield f"the range of {matmuls[product].input[0]} isn't known"

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Quantize the matmuls."""
        form = QUANTIZED_FORMATS[self.scheme]
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        made: dict[str, onnx.TensorProto] = {}
        nodes: list[onnx.NodeProto] = []
        quantized: dict[str, str] = {}

        def store(name: str, array: np.ndarray, onnx_type: int) -> str:
            dtype = helper.tensor_dtype_to_np_dtype(onnx_type)
            made[name] = numpy_helper.from_array(array.astype(dtype), name)
            return name

        zero = store(f"{self.scheme}/zero", np.zeros((), np.float32), form.onnx_type)
        for node in map(copy_of, model.graph.node):
            if node.name in self.products:
                report.counts[self.scheme] += 1
                value, weight = node.input
                if value not in quantized:
                    quantized[value] = f"{value}/{self.scheme}"
                    scale = _scale(np.array(self.ranges[value]), form)
                    scale_name = store(f"{value}/{self.scheme}/scale", scale, TensorProto.FLOAT)
                    nodes += _pair(value, quantized[value], scale_name, zero, self.scheme)
                low = f"{weight}/{self.scheme}"
                if low not in made:
                    array = numpy_helper.to_array(weights[weight])
                    scales = _scale(np.abs(array).max(0), form)
                    store(f"{low}/scale", scales, TensorProto.FLOAT)
                    store(f"{low}/zero", np.zeros(len(scales), np.float32), form.onnx_type)
                    rounded = np.clip(array / scales, -form.largest, form.largest)
                    store(low, np.rint(rounded) if form.uniform else rounded, form.onnx_type)
                    inputs = [low, f"{low}/scale", f"{low}/zero"]
                    name = f"{low}/DequantizeLinear"
                    nodes.append(
                        helper.make_node(
                            "DequantizeLinear", inputs, [f"{low}:0"], name=name, axis=1
                        )
                    )
                node.input[:] = [quantized[value], f"{low}:0"]
            nodes.append(node)
        return (with_nodes(model, nodes, made.values()), True) if quantized else (model, False)


def _scale(magnitude: np.ndarray, form: QuantizedFormat) -> np.ndarray:
    """Size of one step, as float16 holds it: the graph's scales become float16 later."""
    scale = np.maximum(magnitude / form.largest, SMALLEST_SCALE)
    return np.asarray(scale.astype(np.float16).astype(np.float32))


def _pair(value: str, output: str, scale: str, zero: str, scheme: str) -> list[onnx.NodeProto]:
    low = f"{value}/{scheme}/quantized"
    return [
        helper.make_node("QuantizeLinear", [value, scale, zero], [low], name=f"{low}/Quantize"),
        helper.make_node(
            "DequantizeLinear", [low, scale, zero], [output], name=f"{low}/Dequantize"
        ),
    ]


def activation_ranges(
    model: onnx.ModelProto,
    products: Sequence[str],
    scheme: str,
    feeds: Iterable[Feed],
    threads: int,
) -> dict[str, float]:
    """For each product's input, the magnitude that the format's largest number shall stand for.

    For a format of equal steps the one with the least squared error over all values seen: rare
    large values are clipped where that makes the many others finer by more. For fp8, whose steps
    grow with the value, the largest magnitude.

    Args:
        model: float32 graph.
        products: From :func:`quantized_products`.
        scheme: A key of :data:`QUANTIZED_FORMATS`.
        feeds: Inputs to run it on; results are kept as histograms, never as tensors.
        threads: Threads of the run.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    values = sorted({node.input[0] for node in model.graph.node if node.name in products})
    mark_outputs(watched, values)
    seen = {value: Histogram() for value in values}
    for _, found in observe_tensors(open_graph(watched, threads), values, feeds):
        for value, array in found.items():
            seen[value].add(array)
    form = QUANTIZED_FORMATS[scheme]
    return {
        value: histogram.best_range(form.largest) if form.uniform else histogram.largest
        for value, histogram in seen.items()
    }


class Histogram:
    """Magnitudes in bins of equal width; the width doubles when a larger value comes."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._end = 0.0
        self._counts = np.zeros(HISTOGRAM_BINS, np.int64)

    def add(self, array: np.ndarray) -> None:
        """Count the values of an array."""
        magnitudes = np.abs(array).ravel()
        largest = float(magnitudes.max(initial=0.0))
        self.largest = max(self.largest, largest)
        if not self._end:
            self._end = largest
        while self._end < largest:
            self._end *= 2
            pairs = self._counts.reshape(-1, 2).sum(1)
            self._counts = np.concatenate([pairs, np.zeros_like(pairs)])
        if self._end:
            self._counts += np.histogram(magnitudes, HISTOGRAM_BINS, (0.0, self._end))[0]

    def best_range(self, steps: float) -> float:
        """The range that is cut into ``steps`` equal steps with the least squared error.

        Rounding to a step of width w has the mean squared error w^2 / 12 (values spread evenly
        over a step); a value beyond the range is moved to its end.
        """
        if not self._end:
            return 0.0
        centres = (np.arange(HISTOGRAM_BINS) + 0.5) * (self._end / HISTOGRAM_BINS)
        total = np.cumsum(self._counts)
        moment = np.cumsum(self._counts * centres)
        square = np.cumsum(self._counts * centres**2)
        ends = (np.arange(HISTOGRAM_BINS) + 1) * (self._end / HISTOGRAM_BINS)
        beyond = total[-1] - total
        clipped = (square[-1] - square) - 2 * ends * (moment[-1] - moment) + ends**2 * beyond
        rounded = total * (ends / steps) ** 2 / 12
        return float(min(self.largest, ends[int(np.argmin(clipped + rounded))]))
