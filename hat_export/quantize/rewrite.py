"""Applies a plan to a float32 encoder graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from hat_export.export.linear_layers import INT8_PRODUCT, MICROSOFT
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

#: MatMulNBits with activations in int8 blocks: far more exact than weights of 4 bits, and the
#: fastest of its ways.
INT8_PRODUCTS = 4

#: Lowest and highest value of a tensor, by layer name.
Ranges = Mapping[str, tuple[float, float]]


def quantize_graph(
    model: onnx.ModelProto,
    plan: Plan,
    ranges: Ranges,
    grams: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A graph with its layers quantized as planned.

    Args:
        model: float32 graph; not changed.
        plan: What to do; layers that the graph lacks are for the other encoder.
        ranges: Of the inputs of the layers with static ranges.
        grams: Products of the channels of the layers' inputs, by layer, where rounding shall make
            up for its errors.

    Returns:
        A new graph with the same inputs and outputs.
    """
    return _Rewriting(model, plan, ranges, grams or {}).run()


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

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        for node in graph.node:
            layer = self.layers.get(node.name)
            scheme = self.plan.scheme_of(layer.name) if layer else None
            if node.name in self.absorbed:
                continue
            if layer is None or scheme is None:
                self.nodes.append(node)
            elif layer.table:
                self._table(layer, scheme, node)
            elif scheme.activations == "dynamic":
                self._dynamic(layer, node)
            elif scheme.activations == "static":
                self._static(layer, scheme, node)
            else:
                self._weights(layer, scheme, node)
        used = {value for node in self.nodes for value in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        made = helper.make_graph(
            self.nodes, graph.name, graph.input, graph.output, [*kept, *self.added.values()]
        )
        opsets = {item.domain: item.version for item in self.model.opset_import}
        opsets |= {node.domain: opsets.get(node.domain, 1) for node in self.nodes}
        result = helper.make_model(
            made,
            opset_imports=[helper.make_opsetid(*item) for item in opsets.items()],
            producer_name=self.model.producer_name,
            ir_version=self.model.ir_version,
        )
        result.metadata_props.extend(self.model.metadata_props)
        return result

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
        joined = onnx.NodeProto()
        joined.CopyFrom(node)
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
