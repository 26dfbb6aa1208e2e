"""Which layer of an exported graph is wrong, seen against a graph of the same layout.

Marking every tensor as an output, as other tools do, stops the runtime from fusing operators: what
is compared then isn't what runs. Here a graph gets a few further outputs at a time, only between
layers, and its own outputs must stay what they were, bit for bit. Besides, every layer is cut out
and run by itself on what the reference feeds it, so that its own error shows without that of all
before it. The layer at fault is then cut node by node from its beginning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from hat_export.base.progress import SILENT, Progress
from hat_export.errors import BundleError, InputError
from hat_export.export.observe import open_graph

#: Further outputs that a graph gets at a time.
PROBES = 4

#: Largest relative error of a layer by the precision of its graph: about 100 times what float32
#: gives where sums are taken in another order, and 10 times the rounding unit of fp16 and bf16.
BOUNDS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}
#: Of any other precision, quantized ones for instance.
OTHER_BOUND = 0.1

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """Two tensors compared.

    Attributes:
        cosine: Of the flattened tensors.
        largest: Largest absolute difference.
        relative: Norm of the difference over the reference's norm.
    """

    cosine: float
    largest: float
    relative: float

    @classmethod
    def of(cls, reference: np.ndarray, candidate: np.ndarray) -> Difference:
        """Compare in float64."""
        one, other = (array.astype(np.float64).ravel() for array in (reference, candidate))
        norms = np.linalg.norm(one), np.linalg.norm(other)
        difference = other - one
        product = float(norms[0] * norms[1])
        return cls(
            float(one @ other) / product if product else float(norms[0] == norms[1]),
            float(np.abs(difference).max(initial=0.0)),
            float(np.linalg.norm(difference) / norms[0]) if norms[0] else float(norms[1] > 0),
        )

    def to_json(self) -> dict[str, float | None]:
        """All numbers by name; None for NaN and infinity, which JSON hasn't."""
        numbers = {"cosine": self.cosine, "largest": self.largest, "relative": self.relative}
        return {name: value if math.isfinite(value) else None for name, value in numbers.items()}

    @classmethod
    def worst(cls, found: Sequence[Difference]) -> Difference:
        """The worst of each over several tensors."""
        return cls(
            float(np.min([item.cosine for item in found])),  # NaN is the worst
            float(np.max([item.largest for item in found])),
            float(np.max([item.relative for item in found])),
        )


@dataclass(frozen=True)
class LayerError:
    """One layer.

    Attributes:
        graph: ``image`` or ``text``.
        layer: Its name, as in the checkpoint.
        total: What leaves the layer in a run of the whole graph, against the reference.
        own: The same where the layer gets the reference's inputs.
    """

    graph: str
    layer: str
    total: Difference
    own: Difference


@dataclass(frozen=True)
class NodeError:
    """One node of the layer at fault, which got the reference's inputs.

    Attributes:
        node: Its name.
        operator: Its type.
        weights: Names of the weights that it reads.
        error: Of its first output.
    """

    node: str
    operator: str
    weights: tuple[str, ...]
    error: Difference


@dataclass(frozen=True)
class Localization:
    """What the comparison of one graph found.

    Attributes:
        graph: ``image`` or ``text``.
        bound: Largest relative error of a layer.
        layers: In graph order.
        nodes: Of the first layer over the bound, in graph order; empty if there is none.
        disturbed: Probes that changed what the graph computes; their values aren't used.
    """

    graph: str
    bound: float
    layers: tuple[LayerError, ...]
    nodes: tuple[NodeError, ...] = ()
    disturbed: tuple[str, ...] = ()

    @property
    def first(self) -> LayerError | None:
        """The first layer whose own error is over the bound."""
        return next((item for item in self.layers if not item.own.relative <= self.bound), None)

    @property
    def first_node(self) -> NodeError | None:
        """The first node of that layer over the bound."""
        return next((item for item in self.nodes if not item.error.relative <= self.bound), None)

    def sentence(self) -> str:
        """The result in one sentence."""
        layer = self.first
        if layer is None:
            worst = max(self.layers, key=lambda item: item.own.relative)
            return (
                f"No layer of the {self.graph} graph is over {self.bound:g}: the largest own error "
                f"is {worst.own.relative:.2g}, of {worst.layer}."
            )
        text = (
            f"First layer of the {self.graph} graph over {self.bound:g}: {layer.layer}, own "
            f"relative error {layer.own.relative:.2g}"
        )
        node = self.first_node
        if node:
            reads = f" (reads {', '.join(node.weights)})" if node.weights else ""
            text += f"; within it first {node.node}{reads} with {node.error.relative:.2g}"
        return f"{text}."

    def to_json(self) -> dict[str, Any]:
        """All numbers by name."""
        first, node = self.first, self.first_node
        return {
            "graph": self.graph,
            "bound": self.bound,
            "first_layer": first.layer if first else None,
            "first_node": node.node if node else None,
            "layers": [
                {"layer": item.layer, "total": item.total.to_json(), "own": item.own.to_json()}
                for item in self.layers
            ],
            "nodes": [
                {
                    "node": item.node,
                    "operator": item.operator,
                    "weights": list(item.weights),
                    "error": item.error.to_json(),
                }
                for item in self.nodes
            ],
            "disturbed": list(self.disturbed),
        }


class _Graph:
    """A graph that can be probed and cut."""

    def __init__(self, model: onnx.ModelProto, packed: bool, threads: int) -> None:
        self.model = model
        self._packed = packed
        self._threads = threads
        self.producer = {value: node for node in model.graph.node for value in node.output}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]

    @property
    def layers(self) -> list[str]:
        """Names of the layers in graph order."""
        return list(dict.fromkeys(layer_of(value) for value in self.producer))

    def crossing(self) -> dict[str, list[str]]:
        """Per layer, the tensors that other layers read or that leave the graph."""
        found: dict[str, dict[str, None]] = {layer: {} for layer in self.layers}
        for node in self.model.graph.node:
            for value in node.input:
                if value in self.producer and layer_of(value) != layer_of(node.output[0]):
                    found[layer_of(value)][value] = None
        for value in self.outputs:
            found[layer_of(value)][value] = None
        return {layer: list(values) for layer, values in found.items()}

    def run(self, feeds: Arrays, further: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The graph's outputs and some further tensors."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        added = [value for value in further if value not in self.outputs]
        model.graph.output.extend(_untyped(value) for value in added)
        return self._run(model, feeds, [*self.outputs, *added])

    def run_cut(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Only the nodes between some known tensors and some wanted ones."""
        seen: set[str] = set()
        read: dict[str, None] = {}
        waiting = list(wanted)
        chosen: set[str] = set()
        while waiting:
            value = waiting.pop()
            if not value or value in seen:
                continue
            seen.add(value)
            if (value in feeds and value not in wanted) or value not in self.producer:
                read[value] = None
                continue
            node = self.producer[value]
            chosen.add(node.output[0])
            waiting += node.input
        nodes = [node for node in self.model.graph.node if node.output[0] in chosen]
        given = [value for value in read if value not in self.weights]
        graph = helper.make_graph(
            nodes,
            "cut",
            [_input(value, feeds[value]) for value in given],
            [_untyped(value) for value in wanted],
            initializer=[self.weights[value] for value in read if value in self.weights],
        )
        model = helper.make_model(graph, opset_imports=list(self.model.opset_import))
        model.ir_version = self.model.ir_version
        return self._run(model, {value: feeds[value] for value in given}, wanted)

    def _run(
        self, model: onnx.ModelProto, feeds: Arrays, wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        try:
            session = open_graph(model, self._threads, self._packed)
        except Exception as error:  # the library's exceptions share no base but Exception
            line = str(error).splitlines()[0]
            raise BundleError(f"a part of the graph can't be loaded ({line})") from None
        return dict(zip(wanted, session.run(list(wanted), dict(feeds)), strict=True))


def layer_of(value: str) -> str:
    """The layer that a tensor belongs to: ``layer/Operator_3:0`` is of ``layer``."""
    return value.split("/", maxsplit=1)[0]


def localize_difference(
    name: str,
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Arrays,
    bound: float,
    packed: bool = False,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Localization:
    """Compare two graphs of one layout layer by layer.

    Args:
        name: ``image`` or ``text``.
        reference: The graph that is right.
        candidate: The graph that is judged.
        feeds: Inputs of both.
        bound: Largest relative error of a layer.
        packed: Whether they hold this project's own operators.
        threads: Threads of the runtime.
        progress: Told after each layer.

    Raises:
        InputError: if a layer of the reference isn't in the candidate.
    """
    right, judged = (_Graph(model, packed, threads) for model in (reference, candidate))
    ours, theirs = right.crossing(), judged.crossing()
    common = {
        layer: [value for value in values if value in theirs.get(layer, [])]
        for layer, values in ours.items()
    }
    missing = [layer for layer, values in common.items() if not values]
    if missing:  # further tensors of the candidate, such as conversions, are its own affair
        raise InputError(
            f"{name} graphs of different layout ({', '.join(missing[:3])} only in the reference); "
            "export both with the same --target to localize"
        )
    total = sum(map(len, common.values()))
    wanted = [value for values in common.values() for value in values]
    expected, disturbed = _probed(right, feeds, wanted, progress, f"{name} reference", total)
    found, others = _probed(judged, feeds, wanted, progress, f"{name} candidate", total)
    disturbed |= others
    layers = []
    known = {**feeds, **expected}
    for number, (layer, all_values) in enumerate(common.items(), start=1):
        values = [value for value in all_values if value not in disturbed]
        progress.count(f"{name} layers alone", number, len(common))
        if not values:
            continue
        own = judged.run_cut(_before(known, layer), values)
        layers.append(
            LayerError(
                name,
                layer,
                Difference.worst([Difference.of(expected[v], found[v]) for v in values]),
                Difference.worst([Difference.of(expected[v], own[v]) for v in values]),
            )
        )
    result = Localization(name, bound, tuple(layers), (), tuple(sorted(disturbed)))
    if result.first is None:
        return result
    nodes = _nodes(right, judged, result.first.layer, _before(known, result.first.layer))
    return Localization(name, bound, tuple(layers), nodes, result.disturbed)


def _before(known: Arrays, layer: str) -> dict[str, np.ndarray]:
    """Known tensors that don't come from the layer itself."""
    return {value: array for value, array in known.items() if layer_of(value) != layer}


def _probed(
    graph: _Graph,
    feeds: Arrays,
    wanted: Sequence[str],
    progress: Progress,
    what: str,
    total: int,
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Tensors between layers, few at a time; and those that can't be had without a change."""
    plain = graph.run(feeds)
    found: dict[str, np.ndarray] = {}
    disturbed: set[str] = set()
    for start in range(0, len(wanted), PROBES):
        some = wanted[start : start + PROBES]
        values = graph.run(feeds, some)
        if _same(plain, values):
            found |= {value: values[value] for value in some}
        else:  # one of them stops a fusion: find out which
            for value in some:
                alone = graph.run(feeds, [value])
                found[value] = alone[value]
                if not _same(plain, alone):
                    disturbed.add(value)
        progress.count(f"{what}, tensors", min(start + PROBES, total), total)
    return found, disturbed


def _same(plain: Arrays, probed: Arrays) -> bool:
    return all(np.array_equal(array, probed[name], equal_nan=True) for name, array in plain.items())


def _nodes(right: _Graph, judged: _Graph, layer: str, known: Arrays) -> tuple[NodeError, ...]:
    """Every node of a layer, cut from the layer's beginning."""
    found = []
    for node in right.model.graph.node:
        value = node.output[0]
        if layer_of(value) != layer or value not in judged.producer:
            continue
        before, after = (graph.run_cut(known, [value])[value] for graph in (right, judged))
        if before.shape != after.shape or not np.issubdtype(before.dtype, np.floating):
            continue
        weights = tuple(item for item in node.input if item in right.weights)
        named = tuple(item for item in weights if not item.startswith("constant_"))
        error = Difference.of(before, after)
        found.append(NodeError(node.name or value, node.op_type, named, error))
    return tuple(found)


def _untyped(name: str) -> onnx.ValueInfoProto:
    """An output whose type and shape the runtime works out by itself."""
    value = onnx.ValueInfoProto()
    value.name = name
    return value


def _input(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def bound_of(precision: str) -> float:
    """Largest relative error of a layer in a precision."""
    return BOUNDS.get(precision, OTHER_BOUND)
