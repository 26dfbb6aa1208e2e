"""The layers of an encoder graph that can be quantized: products, and the table of words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from hat_export.export.linear_layers import SplitLinear

#: How the exports name the weight of a linear layer, already transposed for ``x @ W``.
WEIGHT_SUFFIX = ".weight^T"
#: How they name the table of word embeddings.
TABLE_SUFFIX = ".word_embeddings.weight"

#: A row of a quantized table consists of whole blocks of at least this many values.
TABLE_BLOCK = 16

#: Weights of fewer values than this aren't worth an operator.
SMALLEST = 1024


@dataclass(frozen=True)
class Layer:
    """A layer.

    Attributes:
        name: Module name in the PyTorch model; the same in all forms of a graph.
        node: Name of its MatMul or Gather node.
        weight: Name of its weight in the graph.
        value: Name of the tensor that is multiplied; of the ids for a table.
        inner: Rows of the weight: the width of its input, or the number of words.
        outer: Columns of the weight.
        table: Whether rows are looked up rather than multiplied.
    """

    name: str
    node: str
    weight: str
    value: str
    inner: int
    outer: int
    table: bool

    @property
    def values(self) -> int:
        """Number of weights."""
        return self.inner * self.outer

    @property
    def block(self) -> str:
        """The part of the model that it belongs to, the unit of a coarse search."""
        parts = self.name.split(".")
        for key in ("blocks", "layer"):
            if key in parts:
                return ".".join(parts[: parts.index(key) + 2])
        return self.name


def load_products(path: Path) -> onnx.ModelProto:
    """An encoder graph whose linear layers are products, whatever its form."""
    return SplitLinear()(onnx.load(path)).model


def find_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Every layer of a float32 graph that can be quantized, in graph order."""
    weights = {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }
    found = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            value, weight = node.input
            name, table = weight.removesuffix(WEIGHT_SUFFIX), False
        elif node.op_type == "Gather" and node.input[0] in weights:
            weight, value = node.input
            name, table = weight.removesuffix(".weight"), True
            if weights[weight][1] % TABLE_BLOCK:
                continue
        else:
            continue
        inner, outer = weights[weight]
        if inner * outer >= SMALLEST and weight.endswith((WEIGHT_SUFFIX, TABLE_SUFFIX)):
            found.append(Layer(name, node.name, weight, value, inner, outer, table))
    return tuple(found)
