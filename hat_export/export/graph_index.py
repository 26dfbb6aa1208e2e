"""Who makes and who reads what in a graph: what passes match patterns with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class MismatchError(Exception):
    """A pattern doesn't fit; the message says what is different, for a pass's report."""


class GraphIndex:
    """A graph's values by name.

    Args:
        model: Must not change while the index is used.

    Attributes:
        stored: Initializers by name.
        maker: The node that makes a value.
        users: The nodes that read a value.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.maker: dict[str, onnx.NodeProto] = {}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for value in node.output:
                self.maker[value] = node
            for value in node.input:
                self.users.setdefault(value, []).append(node)

    def array(self, name: str) -> np.ndarray:
        """A stored tensor.

        Raises:
            MismatchError: if the value is computed.
        """
        if name not in self.stored:
            raise MismatchError(f"{name} is computed, not stored")
        return numpy_helper.to_array(self.stored[name])

    def is_matrix(self, name: str) -> bool:
        """Whether a value is a stored matrix of float32."""
        tensor = self.stored.get(name)
        is_float = tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT
        return is_float and tensor is not None and len(tensor.dims) == 2

    def is_vector(self, name: str) -> bool:
        """Whether a value is a stored vector."""
        return name in self.stored and len(self.stored[name].dims) == 1

    def only_user(self, value: str) -> onnx.NodeProto | None:
        """The node that alone reads a value, which is no output of the graph; else None."""
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and value not in self.outputs else None

    def made_by(self, value: str, kind: str, **attributes: Any) -> onnx.NodeProto:
        """The node that makes a value.

        Args:
            value: Its name.
            kind: The operator that is expected.
            **attributes: Its attributes that are expected.

        Raises:
            MismatchError: if another operator makes it, none, or one with other attributes.
        """
        return _expected(self.maker.get(value), f"{value} is made by", kind, attributes)

    def read_by(self, value: str, kind: str, **attributes: Any) -> onnx.NodeProto:
        """The node that alone reads a value; arguments and errors as :meth:`made_by`."""
        return _expected(self.only_user(value), f"{value} is read by", kind, attributes)

    def shape(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """The shape that a ``Reshape`` gives, 0 and -1 as in the graph.

        Raises:
            MismatchError: if it is computed.
        """
        return tuple(int(size) for size in self.array(node.input[1]))

    def biased_product(self, value: str) -> tuple[onnx.NodeProto, str]:
        """The matmul and the bias of a linear layer, where its result alone is read.

        Args:
            value: The layer's result.

        Returns:
            The ``MatMul`` node with a stored matrix, and the name of the stored vector.

        Raises:
            MismatchError: if it is anything else.
        """
        add = self.made_by(value, "Add")
        if self.only_user(value) is None:
            raise MismatchError(f"{value} is read by several nodes")
        product, bias = add.input
        if not self.is_vector(bias):
            raise MismatchError(f"{add.name} doesn't add a stored vector")
        matmul = self.made_by(product, "MatMul")
        if not self.is_matrix(matmul.input[1]) or self.only_user(product) is None:
            raise MismatchError(f"{matmul.name} isn't a linear layer of its own")
        return matmul, bias


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; text as bytes, as ONNX has it."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def make_node(
    kind: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str,
    attributes: dict[str, Any] | None = None,
    domain: str = "",
) -> onnx.NodeProto:
    """A node whose attributes stand in the order given."""
    made = helper.make_node(kind, inputs, outputs, name=name, domain=domain)
    made.attribute.extend(helper.make_attribute(*item) for item in (attributes or {}).items())
    return made


def live_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that some output depends on, in their order.

    Args:
        nodes: Every value is made before it is read.
        outputs: Names of values.
    """
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def scope_of(name: str) -> str:
    """The layer in a node's name: ``layer/MatMul_3`` is of ``layer``."""
    return name.partition("/")[0]


def renamed(name: str, old: str, new: str) -> str:
    """A node's name with another operator at its end."""
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.replace(old, new, 1)}"


def _expected(
    node: onnx.NodeProto | None, found: str, kind: str, attributes: dict[str, Any]
) -> onnx.NodeProto:
    if node is None or node.op_type != kind or node.domain:
        raise MismatchError(f"{found} {node.op_type if node else 'no single node'}, not {kind}")
    given = attributes_of(node)
    for key, value in attributes.items():
        if given.get(key) != value:
            raise MismatchError(f"{node.name} has {key} {given.get(key)}, expected {value}")
    return node
