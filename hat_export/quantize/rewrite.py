"""Applies a plan to a float32 encoder graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from hat_export.export.linear_layers import INT8_PRODUCT, MICROSOFT
from hat_export.export.passes import Pass, Report, unnamed_nodes
from hat_export.export.qdq import activation_pair, stored_weight
from hat_export.quantize.layers import Layer, find_layers
from hat_export.quantize.plan import Plan
from hat_export.quantize.schemes import TARGETS, Scheme, Target
from hat_export.quantize.weights import (
    FP8_LARGEST,
    block_size,
    blockwise,
    channel_scales,
    per_channel,
)
from hat_export.runtime.onnx_graphs import copy_of, with_nodes

#: MatMulNBits with activations in int8 blocks: far more exact than weights of 4 bits, and the
#: fastest of its ways.
INT8_PRODUCTS = 4

#: Lowest and highest value of a tensor, by layer name.
Ranges = Mapping[str, tuple[float, float]]


class QuantizeLayers(Pass):
    """The layers of a float32 encoder quantized as planned.

    Args:
        plan: What to do; layers that the graph lacks are for the other encoder.
        ranges: Of the inputs of the layers with static ranges.
        grams: Products of the channels of the layers' inputs, by layer, where rounding shall make
            up for its errors.
    """

    def __init__(
        self, plan: Plan, ranges: Ranges, grams: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.plan = plan
        self.ranges = ranges
        self.grams = grams or {}

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """Nodes with names of their own, and the ranges that the plan needs."""
        yield from unnamed_nodes(model)
        for layer in find_layers(model):
            scheme = self.plan.scheme_of(layer.name)
            static = scheme is not None and not layer.table and scheme.activations == "static"
            if static and layer.name not in self.ranges:
                yield f"the range of what {layer.name} gets isn't known"

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Quantize what the plan has a scheme for."""
        writing = _Rewriting(model, self.plan, self.ranges, self.grams)
        writing.run(report)
        if not report.counts:
            return model, False
        return with_nodes(model, writing.nodes, writing.added.values()), True


class _Rewriting:
    def __init__(
        self, model: onnx.ModelProto, plan: Plan, ranges: Ranges, grams: Mapping[str, np.ndarray]
    ) -> None:
        self.grams = grams
        self.model = model
        self.plan = plan
        self.ranges = ranges
        self.target: Target = TARGETS[plan.target]
        self.layers = {layer.node: layer for layer in find_layers(model)}
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, onnx.TensorProto] = {}
        self.rounded: dict[str, str] = {}
        self.uses: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for value in node.input:
                self.uses.setdefault(value, []).append(node)
        self.absorbed: set[str] = set()

    def run(self, report: Report) -> None:
        for node in self.model.graph.node:
            layer = self.layers.get(node.name)
            scheme = self.plan.scheme_of(layer.name) if layer else None
            if node.name in self.absorbed:
                continue
            if layer is None or scheme is None:
                if layer is not None:
                    report.left[layer.name] = self.plan.kept.get(layer.name, "not in the plan")
                self.nodes.append(node)
                continue
            report.counts[scheme.name] += 1
            if layer.table:
                self._table(layer, scheme, node)
            elif scheme.activations == "dynamic":
                self._dynamic(layer, node)
            elif scheme.activations == "static":
                self._static(layer, scheme, node)
            else:
                self._weights(layer, scheme, node)

    def _weight(self, layer: Layer) -> np.ndarray:
        return numpy_helper.to_array(self.stored[layer.weight])

    def _store(self, name: str, array: np.ndarray) -> str:
        self.added[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _own(self, kind: str, node: onnx.NodeProto, inputs: Sequence[str], **options: int) -> None:
        """Put one of ONNX Runtime's operators in the place of a node."""
        made = helper.make_node(
            kind, inputs, node.output, name=f"{node.name}/{kind}", domain=MICROSOFT
        )
        made.attribute.extend(helper.make_attribute(key, value) for key, value in options.items())
        self.nodes.append(made)

    def _dynamic(self, layer: Layer, node: onnx.NodeProto) -> None:
        values, scale = per_channel(
            self._weight(layer), self.target.weight_limit, self.grams.get(layer.name)
        )
        inputs = [
            layer.value,
            self._store(f"{layer.weight}/values", values),
            self._store(f"{layer.weight}/scale", scale),
        ]
        following = self._bias(node)
        if following is None:
            self._own(INT8_PRODUCT, node, inputs)
            return
        add, bias = following
        self.absorbed.add(add.name)
        joined = copy_of(node)
        del joined.output[:]
        joined.output.extend(add.output)
        self._own(INT8_PRODUCT, joined, [*inputs, "", bias])

    def _bias(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
        """The sum with a stored vector that alone follows a product, and the vector."""
        uses = self.uses.get(node.output[0], [])
        if len(uses) != 1 or uses[0].op_type != "Add":
            return None
        others = [value for value in uses[0].input if value != node.output[0]]
        if len(others) != 1 or others[0] not in self.stored:
            return None
        return (uses[0], others[0]) if len(self.stored[others[0]].dims) == 1 else None

    def _static(self, layer: Layer, scheme: Scheme, node: onnx.NodeProto) -> None:
        if layer.value not in self.rounded:
            scale, zero = self._activation(self.ranges[layer.name], scheme)
            nodes, tensors, rounded = activation_pair(layer.value, scale, zero)
            self.nodes += nodes
            self.added |= {tensor.name: tensor for tensor in tensors}
            self.rounded[layer.value] = rounded
        weight = self._weight(layer)
        if scheme.name == "fp8":
            channel = channel_scales(np.abs(weight).max(0), FP8_LARGEST)
            values = (weight / channel).astype(ml_dtypes.float8_e4m3fn)
        else:
            # Where the activations are signed, one product is at most 127 * 127 and two of them
            # fit 16 bits: nothing can saturate.
            values, channel = per_channel(
                weight, self.target.weight_limit, self.grams.get(layer.name)
            )
        self._product(layer, node, self.rounded[layer.value], values, channel)

    def _activation(self, limits: tuple[float, float], scheme: Scheme) -> tuple[float, np.ndarray]:
        low, high = limits
        largest = max(-low, high)
        if scheme.name == "fp8":
            scale = float(channel_scales(np.array(largest), FP8_LARGEST))
            return scale, np.zeros((), ml_dtypes.float8_e4m3fn)
        if self.target.signed_activations:
            return float(channel_scales(np.array(largest), 127)), np.zeros((), np.int8)
        scale = float(channel_scales(np.array(high - low), 255))
        return scale, np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8)

    def _weights(self, layer: Layer, scheme: Scheme, node: onnx.NodeProto) -> None:
        weight, gram = self._weight(layer), self.grams.get(layer.name)
        if scheme.bits == 8:
            # In blocks, ONNX Runtime would round the activations to int8 as well, which is the
            # larger error of the two. So a product is float32, at about float32's speed.
            self._product(layer, node, layer.value, *per_channel(weight, 127, gram))
            return
        size = block_size(layer.inner, scheme.bits)
        values, scale = blockwise(weight.T, scheme.bits, size, gram)
        if self.target.standard:
            whole = np.stack([values & 15, values >> 4], -1).reshape(layer.outer, -1)
            signed = whole[:, : layer.inner].T.astype(np.int8) - 8
            self._product(layer, node, layer.value, signed.astype(ml_dtypes.int4), scale.T, size)
            return
        inputs = [
            layer.value,
            self._store(f"{layer.weight}/values", values),
            self._store(f"{layer.weight}/scale", scale),
        ]
        options = {"K": layer.inner, "N": layer.outer, "bits": scheme.bits, "block_size": size}
        self._own("MatMulNBits", node, inputs, accuracy_level=INT8_PRODUCTS, **options)

    def _product(
        self,
        layer: Layer,
        node: onnx.NodeProto,
        value: str,
        values: np.ndarray,
        scale: np.ndarray,
        block: int = 0,
    ) -> None:
        """The same MatMul of a stored weight."""
        restore, tensors, weight = stored_weight(layer.weight, values, scale, block)
        self.added |= {tensor.name: tensor for tensor in tensors}
        self.nodes.append(restore)
        self.nodes.append(helper.make_node("MatMul", [value, weight], node.output, name=node.name))

    def _table(self, layer: Layer, scheme: Scheme, node: onnx.NodeProto) -> None:
        size = block_size(layer.outer, scheme.bits)
        values, scale = blockwise(self._weight(layer), scheme.bits, size)
        inputs = [
            self._store(f"{layer.weight}/values", values.reshape(layer.inner, -1)),
            layer.value,
            self._store(f"{layer.weight}/scale", scale),
        ]
        options = {"bits": scheme.bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
        self._own("GatherBlockQuantized", node, inputs, **options)
