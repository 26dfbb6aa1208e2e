"""Names as a builder gives them, for graphs that passes have rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from hat_export.export.graph_index import scope_of
from hat_export.export.passes import Pass, Report, unnamed_nodes
from hat_export.runtime.onnx_graphs import copy_of, with_nodes


class NameByScope(Pass):
    """Nodes, values and constants named and numbered anew, in graph order.

    ``layer/MatMul_2:0`` is the result of the third ``MatMul`` of a layer, as
    :class:`hat_export.export.graph.GraphBuilder` has it: graphs of one form are compared by these
    names, whatever passes made them. Initializers stand in the order of their first use, equal
    constants once.
    """

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """Names whose first part is the layer."""
        yield from unnamed_nodes(model)

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Name everything anew."""
        tensors = _Tensors(model)
        outputs = {value.name for value in model.graph.output}
        values: dict[str, str] = {}
        numbers: Counter[str] = Counter()
        nodes = []
        for node in model.graph.node:
            made = copy_of(node)
            made.input[:] = [values.get(value) or tensors.name(value) for value in node.input]
            nodes.append(made)
            if outputs.intersection(node.output):
                continue
            path = f"{scope_of(node.name)}/{node.op_type}"
            made.domain = node.domain  # given even where it is the standard one
            made.name = f"{path}_{numbers[path]}" if numbers[path] else path
            numbers[path] += 1
            for place, value in enumerate(node.output):
                values[value] = made.output[place] = f"{made.name}:{place}"
        report.counts["names"] = len(nodes)
        return with_nodes(model, nodes, tensors.used.values()), True


class _Tensors:
    """Initializers in the order of their first use.

    Attributes:
        used: By their new name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.used: dict[str, onnx.TensorProto] = {}
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants: dict[tuple[int, tuple[int, ...], bytes], str] = {}

    def name(self, value: str) -> str:
        """The new name of an initializer; of anything else its own."""
        tensor = self._stored.get(value)
        if tensor is None:
            return value
        # Whole numbers and scalars are written by a builder; weights have the model's names.
        if tensor.dims and tensor.data_type != onnx.TensorProto.INT64:
            self.used.setdefault(value, tensor)
            return value
        array = numpy_helper.to_array(tensor)
        key = (tensor.data_type, array.shape, np.ascontiguousarray(array).tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            name = self._constants[key]
            self.used[name] = numpy_helper.from_array(array, name)
        return self._constants[key]
