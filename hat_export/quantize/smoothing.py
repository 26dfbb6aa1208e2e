"""Outliers moved from activations into weights, as SmoothQuant does it, where it helps.

``x W = (x / s) (s W)`` for any positive ``s`` per channel. A channel of ``x`` that is far larger
than the others makes the steps of all of them coarse; divided by its ``s`` it doesn't, and the
weight, which has a scale for each of its columns, takes the factor up. Source: Xiao et al.,
"SmoothQuant", ICML 2023, arXiv 2211.10438.

The division costs nothing where what makes ``x`` can take it: the LayerNorm in front of Swin's
products, and the values of attention in front of its output projection (attention is linear in
them). BERT normalises after the sum, so that its hidden states are the residual stream as well:
there, and behind GELU, nothing can be folded, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from hat_export.export.passes import Pass, Report
from hat_export.quantize.calibration import Observer
from hat_export.quantize.layers import WEIGHT_SUFFIX, Layer, find_layers
from hat_export.quantize.weights import per_channel
from hat_export.runtime.onnx_graphs import with_tensors

#: How much of an outlier goes to the weight: 0.5 halves it on a logarithmic scale.
STRENGTHS = (0.25, 0.5, 0.75)
#: Smoothing must take at least this share of the error away to be worth another weight.
GAIN = 0.1

#: Attention's output projection, and the layer that makes its values.
_PROJECTIONS = {".attn.proj": ".attn.qkv", ".attention.output.dense": ".attention.self.qkv"}
#: Operators that normalise, and the place of their gain and offset among the inputs.
_NORMS = {"LayerNormalization": 1, "AddLayerNorm": 2}


@dataclass(frozen=True)
class Smoothed:
    """What was done to one layer.

    Attributes:
        strength: Which of :data:`STRENGTHS`.
        before: Relative error of the layer's int8 product on the sample rows.
        after: The same, smoothed.
    """

    strength: float
    before: float
    after: float


@dataclass(frozen=True)
class Smoothing:
    """Where smoothing helps in a graph.

    Attributes:
        layers: What it does, by layer name.
        weights: Initializers with the factors in them.
        left: Layers that it does nothing for, with the reason.
    """

    layers: Mapping[str, Smoothed]
    weights: Mapping[str, np.ndarray]
    left: Mapping[str, str]


class Smooth(Pass):
    """Outliers in the weights instead of in the activations; equal in exact arithmetic.

    Args:
        found: From :func:`find_smoothing`, of the same graph.
    """

    def __init__(self, found: Smoothing) -> None:
        self.found = found

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """The weights, in their shapes."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for name, array in self.found.weights.items():
            if shapes.get(name) != array.shape:
                yield f"it has no weight {name} of {list(array.shape)}"

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Put the weights in."""
        report.left.update(self.found.left)
        if not self.found.layers:
            return model, False
        report.counts["smoothed layers"] = len(self.found.layers)
        return with_tensors(model, self.found.weights), True


def find_smoothing(
    model: onnx.ModelProto, observers: Mapping[str, Observer], limit: int
) -> Smoothing:
    """Look where moving outliers is free and makes the int8 product more exact.

    Args:
        model: float32 graph; not changed.
        observers: By layer name.
        limit: Largest magnitude of a quantized weight.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weights: dict[str, np.ndarray] = {}
    done: dict[str, Smoothed] = {}
    left: dict[str, str] = {}

    def array(name: str) -> np.ndarray:
        # A weight may take factors of two layers: as values' maker, and behind a LayerNorm.
        return weights[name] if name in weights else numpy_helper.to_array(stored[name])

    for layer in find_layers(model):
        if layer.table or layer.name not in observers:
            continue
        places = _foldable(model, layer, stored)
        if not places:
            left[layer.name] = "nothing in front of it can take the division"
            continue
        found = _best(observers[layer.name], array(layer.weight), limit)
        if found is None:
            left[layer.name] = f"its error falls by less than {GAIN:.0%}"
            continue
        factors, done[layer.name] = found
        weights[layer.weight] = array(layer.weight) * factors[:, None]
        for name, first in places:
            divided = array(name).copy()
            divided[..., first : first + layer.inner] /= factors
            weights[name] = divided
    return Smoothing(done, weights, left)


def _best(observer: Observer, weight: np.ndarray, limit: int) -> tuple[np.ndarray, Smoothed] | None:
    rows = observer.rows
    exact = rows @ weight
    size = float(np.linalg.norm(exact)) or 1.0
    columns = np.maximum(np.abs(weight).max(1), np.finfo(np.float32).tiny)
    largest = observer.largest
    seen = largest > 0  # a channel that is always 0 has no range, and its factor no effect
    before = float(np.linalg.norm(_product(rows, weight, largest, limit) - exact)) / size
    best = None
    for strength in STRENGTHS:
        factors = np.ones(len(largest), np.float32)
        factors[seen] = largest[seen] ** strength / columns[seen] ** (1 - strength)
        factors[seen] /= np.exp(np.log(factors[seen]).mean())
        smoothed = _product(rows / factors, weight * factors[:, None], largest / factors, limit)
        after = float(np.linalg.norm(smoothed - exact)) / size
        if after < before * (1 - GAIN) and (best is None or after < best[1].after):
            best = factors, Smoothed(strength, before, after)
    return best


def _product(rows: np.ndarray, weight: np.ndarray, largest: np.ndarray, limit: int) -> np.ndarray:
    """The product in symmetric int8, the activations with one scale for all."""
    scale = max(float(largest.max()) / 127, float(np.finfo(np.float32).tiny))
    values, channel = per_channel(weight, limit)
    result: np.ndarray = (np.rint(rows / scale) @ values.astype(np.float32)) * (scale * channel)
    return result


def _foldable(
    model: onnx.ModelProto, layer: Layer, stored: Mapping[str, onnx.TensorProto]
) -> list[tuple[str, int]]:
    """Initializers to divide instead of the layer's input, and the first channel there."""
    for end, source in _PROJECTIONS.items():
        if layer.name.endswith(end):
            maker = layer.name.removesuffix(end) + source
            # Queries, keys and values lie one after the other.
            return [
                (f"{maker}{WEIGHT_SUFFIX}", 2 * layer.inner),
                (f"{maker}.bias", 2 * layer.inner),
            ]
    uses = sum(layer.value in node.input for node in model.graph.node)
    if uses != 1 or any(output.name == layer.value for output in model.graph.output):
        return []
    for node in model.graph.node:
        if node.op_type in _NORMS and node.output[0] == layer.value:
            first = _NORMS[node.op_type]
            names = list(node.input[first : first + 2])
            if all(_users(model, name) == 1 and name in stored for name in names):
                return [(name, 0) for name in names]
    return []


def _users(model: onnx.ModelProto, value: str) -> int:
    return sum(value in node.input for node in model.graph.node)
