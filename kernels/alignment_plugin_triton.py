"""The alignment kernel with its arguments in the order in which TensorRT passes them.

A plugin that is compiled ahead of time gets inputs, then 32-bit integers, then outputs, and nothing
else: scalars in floating point are compile-time constants. The work is that of
:mod:`hat_export.kernels.alignment_triton`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from hat_export.errors import EngineError
from hat_export.kernels.alignment_triton import alignment_i2t_kernel, compiled, constants
from hat_export.kernels.alignment_triton_tables import DataType, tile_for

_jit: Callable[[Callable[..., Any]], Any] = triton.jit

#: The inputs and the output of the plugin, in its order, with their types where those are fixed.
TENSORS = {
    "regions": None,
    "region_norms": "fp32",
    "words": None,
    "factor": "fp32",
    "caption_start": "i64",
    "caption_order": "i32",
}
SIZES = ("images", "captions", "region_count", "width", "longest")


@_jit
def alignment_plugin_kernel(
    regions: tl.tensor,
    region_norms: tl.tensor,
    words: tl.tensor,
    factor: tl.tensor,
    caption_start: tl.tensor,
    caption_order: tl.tensor,
    images: tl.tensor,
    captions: tl.tensor,
    region_count: tl.tensor,
    width: tl.tensor,
    longest: tl.tensor,
    scores: tl.tensor,
    logit_scale: tl.constexpr,
    slot: tl.constexpr,
    captions_per_block: tl.constexpr,
    region_block: tl.constexpr,
    width_block: tl.constexpr,
    images_per_group: tl.constexpr,
    all_regions_at_once: tl.constexpr,
    has_offset: tl.constexpr,
    add: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Scores of one level; arguments as those of the same name in ``alignment_i2t_kernel``."""
    alignment_i2t_kernel(
        regions,
        region_norms,
        words,
        region_norms,  # stands where an offset would, and is never read
        factor,
        caption_start,
        caption_order,
        scores,
        images,
        captions,
        region_count,
        width,
        longest,
        captions,
        logit_scale,
        slot,
        captions_per_block,
        region_block,
        width_block,
        images_per_group,
        all_regions_at_once,
        has_offset,
        add,
        precision,
    )


@dataclass(frozen=True)
class PluginKernel:
    """A kernel as a plugin hands it to TensorRT.

    Attributes:
        name: Entry point.
        ptx: Its code; parameters are exactly inputs, sizes, output.
        captions_per_program: Captions that a program scores.
        threads: Threads of a program.
        shared: Bytes of shared memory of a program.
    """

    name: str
    ptx: str
    captions_per_program: int
    threads: int
    shared: int


def compile_plugin_kernel(
    capability: int,
    data_type: DataType,
    width: int,
    region_count: int,
    slot: int,
    logit_scale: float,
) -> PluginKernel:
    """Compile for a device, which needn't be there.

    Args:
        capability: Compute capability, 10 * major + minor.
        data_type: Type of regions and words.
        width: Length of a dot product.
        region_count: Regions of an image.
        slot: Columns of a caption.
        logit_scale: lambda * log2(e).
    """
    tile = tile_for(capability, data_type, width, region_count, slot)
    fixed = constants(tile, slot, region_count, offset=False, add=False)
    fixed |= {"logit_scale": logit_scale}
    types = {name: f"*{kind or data_type}" for name, kind in TENSORS.items()}
    types |= dict.fromkeys(SIZES, "i32") | {"scores": "*fp32"}
    types |= dict.fromkeys(fixed, "constexpr")
    # TensorRT's tensors begin at multiples of 256 bytes.
    aligned = [*TENSORS, "scores", *(["width"] if width % 16 == 0 else [])]
    kernel = compiled(alignment_plugin_kernel, types, fixed, aligned, tile, capability)
    parameters = len(TENSORS) + len(SIZES) + 1
    return PluginKernel(
        name=kernel.metadata.name,
        ptx=without_hidden_parameters(kernel.asm["ptx"], parameters),
        captions_per_program=tile.captions,
        threads=32 * tile.warps,
        shared=kernel.metadata.shared,
    )


def without_hidden_parameters(ptx: str, parameters: int) -> str:
    """PTX whose entry has only its declared parameters.

    Triton appends pointers to scratch memory, which TensorRT wouldn't pass.

    Args:
        ptx: One entry.
        parameters: How many were declared.

    Raises:
        EngineError: if the kernel uses one of the others, or has fewer.
    """
    entry = re.search(r"\.visible \.entry \w+\(\s*(.*?)\s*\)", ptx, re.DOTALL)
    if entry is None:
        raise EngineError("the compiled alignment kernel has no entry; expected PTX of Triton 3")
    declared = [line.strip() for line in entry[1].split(",\n")]
    if len(declared) < parameters:
        raise EngineError(
            f"the compiled alignment kernel has {len(declared)} parameters; expected {parameters}"
        )
    rest = ptx[entry.end() :]
    for hidden in declared[parameters:]:
        name = hidden.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", rest):
            raise EngineError(
                f"the compiled alignment kernel uses Triton's scratch memory ({name}), which "
                "TensorRT doesn't provide; use another version of Triton"
            )
    kept = ",\n\t".join(declared[:parameters])
    return ptx[: entry.start(1)] + kept + ptx[entry.end(1) :]
