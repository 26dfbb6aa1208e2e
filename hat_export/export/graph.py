"""A small builder of ONNX graphs whose node names say which layer of the model they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: First opset with the standard ``Attention`` operator.
OPSET = 23
#: ONNX IR version that came with that opset; runtimes refuse newer ones than they know.
IR_VERSION = 11

Dim = int | str


class GraphBuilder:
    """Collects nodes, initializers, inputs and outputs, then makes a model.

    Args:
        name: Graph name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._scope: list[str] = []
        self._used: dict[str, int] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything made inside, as PyTorch module names nest."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[Dim]) -> str:
        """Declare a graph input; a string in ``shape`` is a dynamic dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), list(shape)))
        return name

    def output(self, value: str, name: str, dtype: type[np.generic], shape: Sequence[Dim]) -> None:
        """Declare ``value`` a graph output under a public name."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"{name}/output"))
        self._outputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), list(shape)))

    def weight(self, name: str, value: np.ndarray) -> str:
        """A learned tensor under its own name (made unique by the caller)."""
        if name not in self._initializers:
            array = np.ascontiguousarray(value)
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def constant(self, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """An index vector, shape or scalar; equal ones are stored once."""
        # ascontiguousarray would turn a scalar into a vector of one.
        array = np.array(value, dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = name
            self._initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> str:
        """Append a node with one output and return that output's name."""
        return self.node_with_outputs(kind, inputs, 1, attributes, domain)[0]

    def node_with_outputs(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: int,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> list[str]:
        """Append a node and return the names of its outputs."""
        path = "/".join([*self._scope, kind])
        number = self._used.get(path, 0)
        self._used[path] = number + 1
        name = path if number == 0 else f"{path}_{number}"
        made_outputs = [f"{name}:{index}" for index in range(outputs)]
        made = helper.make_node(kind, list(inputs), made_outputs, name=name, domain=domain)
        for key, value in (attributes or {}).items():
            made.attribute.append(helper.make_attribute(key, value))
        self._nodes.append(made)
        return made_outputs

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Reshape to constants; 0 copies a dimension, -1 infers one."""
        return self.node("Reshape", [value, self.constant(list(shape))])

    def transpose(self, value: str, order: Sequence[int]) -> str:
        """Permute the axes."""
        return self.node("Transpose", [value], {"perm": list(order)})

    def linear(self, value: str, name: str, weights: Mapping[str, np.ndarray]) -> str:
        """``x @ W^T + b`` for the layer whose tensors are ``name.weight`` and ``name.bias``."""
        matrix = self.weight(f"{name}.weight^T", weights[f"{name}.weight"].T)
        product = self.node("MatMul", [value, matrix])
        if f"{name}.bias" not in weights:
            return product
        return self.node("Add", [product, self.weight(f"{name}.bias", weights[f"{name}.bias"])])

    def layer_norm(
        self, value: str, name: str, weights: Mapping[str, np.ndarray], epsilon: float
    ) -> str:
        """LayerNorm over the last axis."""
        inputs = [
            value,
            self.weight(f"{name}.weight", weights[f"{name}.weight"]),
            self.weight(f"{name}.bias", weights[f"{name}.bias"]),
        ]
        return self.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon})

    def model(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished, unchecked model."""
        graph = helper.make_graph(
            self._nodes,
            self.name,
            self._inputs,
            self._outputs,
            initializer=list(self._initializers.values()),
        )
        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="hat-export")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, dict(metadata))
        return model


def _onnx_type(dtype: type[np.generic]) -> TensorProto.DataType:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
