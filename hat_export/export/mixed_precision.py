"""Half precision (fp16, bf16) for an encoder graph, with what would overflow kept in float32.

A pass over a finished float32 graph. Types are explicit afterwards (a strongly typed graph): every
tensor is float32 or the low format and a ``Cast`` stands where the two meet. Inputs and outputs
stay float32, so that a caller needs to know nothing. LayerNormalization takes its mean and variance
in float32 in any case (``stash_type`` 1, the operator's default).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hat_export.bundle.precision import PRECISIONS
from hat_export.export.observe import Feed, largest_magnitudes
from hat_export.export.passes import Pass, Report, unnamed_nodes
from hat_export.runtime.onnx_graphs import copy_of, tensor_types, with_nodes

#: Names of the low precisions and their ONNX element types.
LOW_FORMATS = {"fp16": int(TensorProto.FLOAT16), "bf16": int(TensorProto.BFLOAT16)}

#: Activations seen in calibration may be this many times larger on other data before they overflow.
HEADROOM = 4.0


class MixedPrecision(Pass):
    """A float32 graph in a low precision, with the same inputs and outputs.

    Weights are stored once per format used.

    Args:
        precision: A key of :data:`LOW_FORMATS`.
        kept: Nodes that go on computing in float32, with the reason (:func:`find_kept`).
    """

    def __init__(self, precision: str, kept: Mapping[str, str]) -> None:
        self.precision = precision
        self.low = LOW_FORMATS[precision]
        self.kept = kept

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """A float32 graph of uniquely named nodes."""
        yield from unnamed_nodes(model)
        low = [t.name for t in model.graph.initializer if t.data_type in LOW_FORMATS.values()]
        if low:
            yield f"{len(low)} weights are in a low precision already, the first {low[0]}"

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Put every node but the kept ones into the low format."""
        writing = _Formats(model, self.precision)
        outputs = {value.name for value in model.graph.output}
        for node in model.graph.node:
            if node.name in self.kept:
                report.left[node.name] = self.kept[node.name]
            is_kept = _stays_fp32(node, self.kept, outputs)
            report.counts[self.precision] += not is_kept
            writing.add(node, TensorProto.FLOAT if is_kept else self.low)
        if not report.counts.total():
            return model, False
        return with_nodes(model, writing.nodes, writing.stored.values()), True


class _Formats:
    """A graph written anew, each float value in the format that its reader wants.

    Attributes:
        nodes: Written so far.
        stored: Weights in the formats they are used in.
    """

    def __init__(self, model: onnx.ModelProto, precision: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, onnx.TensorProto] = {}
        self._precision = precision
        self._floats = _float_values(model)
        self._weights = {t.name: t for t in model.graph.initializer if t.name in self._floats}
        #: Format in which each float value exists, and its name in other formats once made.
        self._formats: dict[str, int] = {
            value.name: TensorProto.FLOAT
            for value in model.graph.input
            if value.name in self._floats
        }
        self._variants: dict[tuple[str, int], str] = {}

    def add(self, node: onnx.NodeProto, wanted: int) -> None:
        """Write a node that computes in a format."""
        made = copy_of(node)
        for position, value in enumerate(made.input):
            if value in self._floats:
                made.input[position] = self._in_format(value, wanted)
        self.nodes.append(made)
        self._formats |= {value: wanted for value in made.output if value in self._floats}

    def _in_format(self, value: str, wanted: int) -> str:
        if value in self._weights:
            return _store(self._weights[value], wanted, self._precision, self.stored)
        if self._formats[value] == wanted:
            return value
        key = (value, wanted)
        if key not in self._variants:
            made = f"{value}/{'fp32' if wanted == TensorProto.FLOAT else self._precision}"
            cast = helper.make_node("Cast", [value], [made], name=f"{made}/Cast", to=wanted)
            self.nodes.append(cast)
            self._variants[key] = made
        return self._variants[key]


def find_kept(
    model: onnx.ModelProto, precision: str, feeds: Iterable[Feed], threads: int
) -> dict[str, str]:
    """Nodes that must stay in float32, each with the reason.

    Args:
        model: float32 graph.
        precision: A key of :data:`LOW_FORMATS`.
        feeds: Inputs to run it on; the largest magnitude of every tensor is taken over all.
        threads: Threads of the run.

    Returns:
        Node name to reason: a result, an input or a weight comes nearer to the end of the format's
        range than :data:`HEADROOM` allows.

    Raises:
        ValueError: if a tensor is already not finite in float32; names the node.
    """
    floats = _float_values(model)
    values = [value for node in model.graph.node for value in node.output if value in floats]
    largest = largest_magnitudes(model, values, feeds, threads)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            # Weights don't change with the data, so they need no headroom.
            magnitude = np.abs(numpy_helper.to_array(tensor)).max(initial=0)
            largest[tensor.name] = float(magnitude) / HEADROOM
    end = PRECISIONS[precision].largest
    limit = end / HEADROOM
    kept = {}
    for node in model.graph.node:
        # A node whose input is too large would overflow in the cast before it.
        for value in (*node.output, *node.input):
            magnitude = largest.get(value, 0.0)
            if not np.isfinite(magnitude):
                raise ValueError(f"{node.name}: {value} is not finite in float32")
            if magnitude > limit:
                kept[node.name] = f"{value} reaches {magnitude:.3g}, {precision} ends at {end:g}"
                break
    return kept


def _stays_fp32(node: onnx.NodeProto, kept: Mapping[str, str], outputs: set[str]) -> bool:
    # A Cast says itself what it makes; graph outputs are float32 for every caller.
    return node.name in kept or node.op_type == "Cast" or bool(outputs & set(node.output))


def _store(
    tensor: onnx.TensorProto, wanted: int, precision: str, stored: dict[str, onnx.TensorProto]
) -> str:
    """The name of a weight in the wanted format, stored at its first use."""
    name = tensor.name if wanted == TensorProto.FLOAT else f"{tensor.name}/{precision}"
    if name not in stored:
        dtype = helper.tensor_dtype_to_np_dtype(wanted)
        array = numpy_helper.to_array(tensor).astype(dtype)
        stored[name] = numpy_helper.from_array(array, name)
    return name


def _float_values(model: onnx.ModelProto) -> set[str]:
    return {name for name, kind in tensor_types(model).items() if kind == TensorProto.FLOAT}
