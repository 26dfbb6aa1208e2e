"""The alignment score as a plugin of full TensorRT: the Triton kernel, compiled into the engine.

Written against ``tensorrt.plugin`` of TensorRT 10.8 to 11 (TensorRT-RTX has none). A plugin layer
scores one level of prepared captions (:func:`hat_export.kernels.alignment_torch.prepare_captions`);
the engine needs neither Python nor Triton to run. The standard alignment engine needs no plugin:
this one has to earn its place on a GPU, by not writing the products of words and regions to memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hat_export.errors import BackendUnavailableError, InputError
from hat_export.kernels.alignment_triton_tables import DataType
from hat_export.runtime.trt_library import TensorRT

NAMESPACE, NAME = "hat_export", "alignment_i2t"
PLUGIN_ID = f"{NAMESPACE}::{NAME}"
#: Types that TensorRT may choose for each input and the output; regions and words have the same.
FEATURE_TYPES = "FP16|BF16|FP32"
FIXED_TYPES = {1: "FP32", 3: "FP32", 4: "INT64", 5: "INT32", 6: "FP32"}


@dataclass(frozen=True)
class LevelShape:
    """What a plugin layer knows when its kernel is compiled.

    Attributes:
        region_count: Regions of an image.
        width: Length of a dot product.
        slot: Columns of a caption: the narrowest that holds the longest.
        softmax_lambda: Inverse temperature of the attention softmax.
    """

    region_count: int
    width: int
    slot: int
    softmax_lambda: float


def plugin_module(library: TensorRT) -> Any:
    """``tensorrt.plugin``.

    Raises:
        BackendUnavailableError: if the library has no plugins that are compiled ahead of time.
    """
    import importlib

    try:
        plugin = importlib.import_module(f"{library.module.__name__}.plugin")
    except ImportError:
        plugin = None
    if plugin is None or not hasattr(plugin, "aot_impl"):
        raise BackendUnavailableError(
            f"{library} has no tensorrt.plugin with aot_impl; the alignment plugin needs full "
            "TensorRT 10.8 or newer"
        )
    return plugin


def register_alignment_plugin(trt: Any, plugin: Any, capability: int) -> None:
    """Make the plugin known to TensorRT's registry; once a process, but for any capability.

    Args:
        trt: The library's module.
        plugin: :func:`plugin_module`.
        capability: Compute capability that kernels are compiled for.
    """
    # A second registration is refused; the functions of a registered plugin may be replaced.
    if not hasattr(getattr(plugin.op, NAMESPACE, None), NAME):
        plugin.register(PLUGIN_ID, lazy_register=True)(_describe(trt, plugin))
    compile_level = _compile(trt, plugin, capability)
    autotune = _autotune(plugin)
    # TensorRT takes every hint for one of its own types.
    compile_level.__annotations__ = {
        "return": tuple[str, str, plugin.KernelLaunchParams, plugin.SymIntExprs]
    }
    autotune.__annotations__ = {}
    plugin.autotune(PLUGIN_ID)(autotune)
    plugin.aot_impl(PLUGIN_ID)(compile_level)


def _describe(trt: Any, plugin: Any) -> Callable[..., Any]:
    def describe(
        regions: Any,
        region_norms: Any,
        words: Any,
        factor: Any,
        caption_start: Any,
        caption_order: Any,
        slot: int,
        softmax_lambda: float,
    ) -> Any:
        shape = (regions.shape_expr[0], caption_order.shape_expr[0])
        return plugin.from_shape_expr(shape, dtype=trt.float32)

    # TensorRT reads the hints to tell tensors from attributes, and wants its own types there.
    tensors = "regions region_norms words factor caption_start caption_order".split()
    describe.__annotations__ = {
        **dict.fromkeys(tensors, plugin.TensorDesc),
        "slot": int,
        "softmax_lambda": float,
        "return": plugin.TensorDesc,
    }
    return describe


def _autotune(plugin: Any) -> Callable[..., Any]:
    def autotune(
        regions: Any,
        region_norms: Any,
        words: Any,
        factor: Any,
        caption_start: Any,
        caption_order: Any,
        outputs: Any,
    ) -> list[Any]:
        combination = plugin.AutoTuneCombination()
        combination.pos([0, 2], FEATURE_TYPES)
        for position, kind in FIXED_TYPES.items():
            combination.pos([position], kind)
        return [combination]

    return autotune


def _compile(trt: Any, plugin: Any, capability: int) -> Callable[..., Any]:
    types: dict[Any, DataType] = {trt.float16: "fp16", trt.bfloat16: "bf16", trt.float32: "fp32"}

    def compile_level(
        regions: Any,
        region_norms: Any,
        words: Any,
        factor: Any,
        caption_start: Any,
        caption_order: Any,
        slot: int,
        softmax_lambda: float,
        outputs: Sequence[Any],
        tactic: int,
    ) -> tuple[str, str, Any, Any]:
        from hat_export.kernels.alignment_plugin_triton import compile_plugin_kernel

        region_count, width = (int(size) for size in regions.shape[1:])
        if min(region_count, width) < 1:
            raise InputError("alignment plugin: regions and width must be fixed, only images vary")
        kernel = compile_plugin_kernel(
            capability,
            types[regions.dtype],
            width,
            region_count,
            slot,
            softmax_lambda * math.log2(math.e),
        )
        images, captions = regions.shape_expr[0], caption_order.shape_expr[0]
        launch = plugin.KernelLaunchParams()
        launch.grid_x = images * plugin.cdiv(captions, kernel.captions_per_program)
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared
        longest = factor.shape_expr[1]
        sizes = (images, captions, regions.shape_expr[1], regions.shape_expr[2], longest)
        extra = plugin.SymIntExprs(len(sizes))
        for position, size in enumerate(sizes):
            extra[position] = plugin.SymInt32(size)
        return kernel.name, kernel.ptx, launch, extra

    return compile_level


def add_alignment(plugin: Any, network: Any, inputs: Sequence[Any], level: LevelShape) -> Any:
    """Add one level's plugin layer to a network.

    Args:
        plugin: :func:`plugin_module`, with the plugin registered.
        network: ``INetworkDefinition``.
        inputs: The plugin's six tensors, in order.
        level: The level's sizes.

    Returns:
        Its output tensor, float32 [images, captions].
    """
    make = getattr(getattr(plugin.op, NAMESPACE), NAME)
    layer = network.add_plugin(
        make(*inputs, slot=level.slot, softmax_lambda=float(level.softmax_lambda)), aot=True
    )
    return layer.get_output(0)
