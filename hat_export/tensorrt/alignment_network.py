"""The alignment score as a TensorRT network around the plugin, without an ONNX graph."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from hat_export.bundle.bundle import IMAGE_OUTPUTS
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.runtime.backends.alignment_inputs import FACTORS, ORDER, ROWS, STARTS, plugin_inputs
from hat_export.runtime.trt_library import TensorRT, find_gpu
from hat_export.spec import ModelSpec
from hat_export.tensorrt.alignment_plugin import (
    LevelShape,
    add_alignment,
    plugin_module,
    register_alignment_plugin,
)

#: Precision of the encoders -> type in which the plugin takes their features, which hold numbers of
#: that type already.
FEATURE_TYPES = {"fp32": "float32", "bf16": "bfloat16"}
DEFAULT_FEATURE_TYPE = "float16"


@dataclass(frozen=True)
class PluginRequest:
    """An alignment engine that is made of plugin layers.

    Attributes:
        spec: The architecture.
        precision: Of the encoders.
        longest: Most words of a caption.
    """

    spec: ModelSpec
    precision: str
    longest: int


def check_plugin(library: TensorRT, spec: ModelSpec) -> None:
    """Refuse what can't have the plugin, before anything is written or built.

    Raises:
        InputError: if the model's score isn't the plugin's.
        BackendUnavailableError: if the library, a GPU or Triton is missing.
    """
    without = "leave --alignment plugin out"
    try:
        plugin_module(library)
    except BackendUnavailableError as error:
        raise BackendUnavailableError(f"{error}: use --runtime tensorrt, or {without}") from None
    if spec.direction != "i2t":
        raise InputError(
            f"--alignment plugin: this model scores {spec.direction}, the plugin i2t; {without}"
        )
    if find_gpu() is None:
        raise BackendUnavailableError(
            f"--alignment plugin needs an NVIDIA GPU to build; {without}, or build where one is"
        )
    if importlib.util.find_spec("triton") is None:
        raise BackendUnavailableError(
            "--alignment plugin needs Triton to compile its kernel: pip install triton; or "
            f"{without}"
        )


def fill_network(library: TensorRT, network: Any, request: PluginRequest, capability: int) -> None:
    """Fill an empty network: per level the norms of regions and a plugin layer, then their sum.

    Args:
        library: Full TensorRT.
        network: ``INetworkDefinition``, strongly typed.
        request: What is scored.
        capability: Compute capability that kernels are compiled for.
    """
    from hat_export.kernels.alignment_triton_tables import slot_for

    trt, plugin = library.module, plugin_module(library)
    register_alignment_plugin(trt, plugin, capability)
    spec = request.spec
    tensors = {
        tensor.name: network.add_input(
            tensor.name,
            getattr(trt, tensor.dtype),
            tuple(-1 if isinstance(size, str) else size for size in tensor.shape),
        )
        for tensor in plugin_inputs(spec)
    }
    kind = getattr(trt, FEATURE_TYPES.get(request.precision, DEFAULT_FEATURE_TYPE))

    def features(name: str) -> Any:
        return (
            tensors[name] if kind == trt.float32 else _output(network.add_cast(tensors[name], kind))
        )

    operation = trt.ElementWiseOperation
    scores = []
    levels = zip(IMAGE_OUTPUTS, ROWS, FACTORS, spec.level_regions, strict=True)
    for regions, rows, factor, count in levels:
        whole = tensors[regions]
        squares = _output(network.add_elementwise(whole, whole, operation.PROD))
        total = _output(network.add_reduce(squares, trt.ReduceOperation.SUM, 1 << 2, False))
        norms = _output(network.add_unary(total, trt.UnaryOperation.SQRT))
        inputs = (features(regions), norms, features(rows), tensors[factor])
        shape = LevelShape(count, spec.dim, slot_for(request.longest), spec.softmax_lambda)
        captions = (tensors[STARTS], tensors[ORDER])
        scores.append(add_alignment(plugin, network, (*inputs, *captions), shape))
    first, second, third = scores
    outer = _output(network.add_elementwise(third, first, operation.SUM))
    result = _output(network.add_elementwise(outer, second, operation.SUM))
    result.name = "scores"
    network.mark_output(result)


def _output(layer: Any) -> Any:
    return layer.get_output(0)
