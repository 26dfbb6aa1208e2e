"""The i2t alignment score of one level as one Triton kernel (Triton is all that it imports).

A program scores one image with one or two captions. As in attention kernels, the asking side
(regions) makes the rows of the tile and the answering side (words) its columns, so that the
softmax over a caption's words stays within a few lanes. What is particular here is the norm over
*all* regions that precedes the softmax: either the tile of dot products holds all regions, or it
is computed twice (see ``alignment/README_GPU.md``).

:mod:`hat_export.kernels.alignment_torch` launches it; sizes of tiles come from
:mod:`hat_export.kernels.alignment_triton_tables`.
"""

# A branch on a compile-time argument is taken or left for good: names that one branch makes are
# read only in the other branches on the same argument.
# mypy: disable-error-code="possibly-undefined"

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.errors import OutOfResources

from hat_export.errors import BackendUnavailableError
from hat_export.kernels.alignment_triton_tables import DataType, Tile, tile_for

LEAKY_SLOPE = tl.constexpr(0.1)
NORM_EPSILON = tl.constexpr(1e-8)
COSINE_FLOOR = tl.constexpr(1e-8)

#: Triton ships no types: without one of its own, its decorator would take the functions' away.
_jit: Callable[[Callable[..., Any]], Any] = triton.jit


@_jit
def _dots(
    regions: tl.tensor,
    words: tl.tensor,
    region: tl.tensor,
    row: tl.tensor,
    offset: tl.tensor,
    in_image: tl.tensor,
    real: tl.tensor,
    width: tl.tensor,
    width_block: tl.constexpr,
    precision: tl.constexpr,
) -> tl.tensor:
    """Dot products of a block of regions with a block of words.

    Args:
        regions: Pointer to the image's [regions, width].
        words: Pointer to [total_words, width].
        region: int64 [rows], indices of regions.
        row: int64 [columns], indices of words.
        offset: fp32 [columns], added to the words' dot products.
        in_image: bool [rows]; the other rows come out as the offset.
        real: bool [columns]; the other columns come out as the offset.
        width: Length of a dot product.
        width_block: Elements of the dot product taken in one step.
        precision: ``input_precision`` of tl.dot; matters for fp32 only.

    Returns:
        fp32 [rows, columns].
    """
    dots = tl.zeros((region.shape[0], row.shape[0]), tl.float32)
    element = tl.arange(0, width_block)
    region_at = regions + region[:, None] * width + element[None, :]
    word_at = words + row[None, :] * width + element[:, None]
    for first in range(0, width, width_block):
        inside = first + element < width
        left = tl.load(region_at, mask=in_image[:, None] & inside[None, :], other=0.0)
        right = tl.load(word_at, mask=inside[:, None] & real[None, :], other=0.0)
        dots = tl.dot(left, right, dots, input_precision=precision)
        region_at += width_block
        word_at += width_block
    return dots + offset[None, :]


@_jit
def _transposed_factor(
    factor: tl.tensor, caption: tl.tensor, longest: tl.tensor, slot: tl.constexpr
) -> tl.tensor:
    """F^T of a caption, fp32 [slot, slot], zero past its length."""
    word = tl.arange(0, slot)
    # Element [w, i] of the result is F[i, w].
    return tl.load(
        factor + caption * longest * longest + word[None, :] * longest + word[:, None],
        mask=(word[None, :] < longest) & (word[:, None] < longest),
        other=0.0,
    )


@_jit
def _cosine_sum(
    logits: tl.tensor, dots: tl.tensor, factor_t: tl.tensor, norm: tl.tensor, in_image: tl.tensor
) -> tl.tensor:
    """Sum over regions of the cosine of a region with what it attends to in one caption.

    The softmax's denominator cancels in the cosine and is left out: only the floor needs it.

    Args:
        logits: fp32 [rows, slot], in base 2; -inf past the caption's length.
        dots: fp32 [rows, slot].
        factor_t: fp32 [slot, slot], F^T.
        norm: fp32 [rows], norms of the regions.
        in_image: bool [rows].

    Returns:
        fp32 scalar.
    """
    weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
    total = tl.sum(weights, 1)
    inner = tl.sum(weights * dots, 1)
    # |v| = |C^T e| = |F e|; TF32 alone would lose more than the words' own rounding.
    attended = tl.dot(weights, factor_t, input_precision="tf32x3")
    product = tl.sqrt(tl.sum(attended * attended, 1)) * norm
    cosine = inner / tl.maximum(product, total * COSINE_FLOOR)
    # A product beyond fp32 would quietly make the cosine 0: NaN instead, so that it shows.
    cosine = tl.where(product < float("inf"), cosine, float("nan"))
    return tl.sum(tl.where(in_image, cosine, 0.0), 0)


@_jit
def alignment_i2t_kernel(
    regions: tl.tensor,
    region_norms: tl.tensor,
    words: tl.tensor,
    word_offset: tl.tensor,
    factor: tl.tensor,
    caption_start: tl.tensor,
    caption_order: tl.tensor,
    scores: tl.tensor,
    images: tl.tensor,
    captions: tl.tensor,
    region_count: tl.tensor,
    width: tl.tensor,
    longest: tl.tensor,
    scores_stride: tl.tensor,
    logit_scale: tl.tensor,
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
    """Scores ``images`` x ``captions`` pairs; grid [images * ceil(captions/captions_per_block)].

    Args:
        regions: fp16, bf16 or fp32 [images, region_count, width].
        region_norms: fp32 [images, region_count], norms at full width.
        words: [total_words, width] of the regions' type, real words only, caption after caption.
        word_offset: fp32 [total_words], if ``has_offset``.
        factor: fp32 [all captions, longest, longest], F with F^T F = the caption's Gram matrix,
            zero past the caption's length.
        caption_start: int64 [all captions + 1], in words.
        caption_order: int32 [captions], the captions to score, none longer than ``slot``.
        scores: fp32 [images, all captions], rows ``scores_stride`` apart.
        images: Number of images.
        captions: Length of ``caption_order``.
        region_count: Regions of an image.
        width: Length of a dot product.
        longest: Size of a caption's factor.
        scores_stride: In floats.
        logit_scale: lambda * log2(e).
        slot: Columns of the tile that a caption takes: a power of two, at least 16.
        captions_per_block: Captions of a program: 1 or 2.
        region_block: Regions of a tile: a power of two.
        width_block: Elements of the dot product taken in one step.
        images_per_group: Images whose programs run together, so that words are read from L2.
        all_regions_at_once: Whether ``region_count <= region_block``: no second computation.
        has_offset: Whether ``word_offset`` is there (reduced form).
        add: Whether the scores are added to what is there.
        precision: ``input_precision`` of the dot products.
    """
    # Programs run about in the order of their numbers: a caption block meets the images of a
    # group one after the other, and then comes the next caption block with the same images.
    blocks = tl.cdiv(captions, captions_per_block)
    group = tl.program_id(0) // (images_per_group * blocks)
    inside = tl.program_id(0) % (images_per_group * blocks)
    group_size = min(images - group * images_per_group, images_per_group)
    image = (group * images_per_group + inside % group_size).to(tl.int64)
    block = inside // group_size

    # In the last block, the second of two slots may repeat its neighbour, whose score is then not
    # stored: real data makes no NaN.
    first_which = block * captions_per_block
    first_caption = tl.load(caption_order + first_which).to(tl.int64)
    column = tl.arange(0, captions_per_block * slot)
    if captions_per_block == 1:
        start = tl.load(caption_start + first_caption)
        length = tl.load(caption_start + first_caption + 1) - start
    else:
        second_which = min(first_which + 1, captions - 1)
        second_caption = tl.load(caption_order + second_which).to(tl.int64)
        caption = tl.where(column < slot, first_caption, second_caption)
        start = tl.load(caption_start + caption)
        length = tl.load(caption_start + caption + 1) - start
    real = column % slot < length
    row = start + column % slot
    if has_offset:
        offset = tl.load(word_offset + row, mask=real, other=0.0)
    else:
        offset = tl.zeros((captions_per_block * slot,), tl.float32)

    regions += image * region_count * width
    region_norms += image * region_count
    region_index = tl.arange(0, region_block)

    # Pass 1: every word's norm over the regions.
    squares = tl.zeros((captions_per_block * slot,), tl.float32)
    if all_regions_at_once:
        in_image = region_index < region_count
        dots = _dots(
            regions, words, region_index.to(tl.int64), row, offset, in_image, real, width,
            width_block, precision,
        )  # fmt: skip
        leaky = tl.where(dots > 0, dots, dots * LEAKY_SLOPE)
        squares += tl.sum(tl.where(in_image[:, None], leaky * leaky, 0.0), 0)
    else:
        for first in range(0, region_count, region_block):
            region = first + region_index
            in_image = region < region_count
            tile = _dots(
                regions, words, region.to(tl.int64), row, offset, in_image, real, width,
                width_block, precision,
            )  # fmt: skip
            leaky = tl.where(tile > 0, tile, tile * LEAKY_SLOPE)
            squares += tl.sum(tl.where(in_image[:, None], leaky * leaky, 0.0), 0)
    # A sum beyond fp32 would quietly make the attention uniform: NaN instead, so that it shows.
    squares = tl.where(squares < float("inf"), squares, float("nan"))
    scale = logit_scale / (tl.sqrt(squares) + NORM_EPSILON)

    # Pass 2: attention and cosines.
    first_factor = _transposed_factor(factor, first_caption, longest, slot)
    first_sum = 0.0
    if captions_per_block == 2:
        second_factor = _transposed_factor(factor, second_caption, longest, slot)
        second_sum = 0.0
    bias = tl.where(real, 0.0, float("-inf"))
    for first in range(0, region_count, region_block):
        region = first + region_index
        in_image = region < region_count
        if all_regions_at_once:
            tile = dots
        else:
            tile = _dots(
                regions, words, region.to(tl.int64), row, offset, in_image, real, width,
                width_block, precision,
            )  # fmt: skip
        leaky = tl.where(tile > 0, tile, tile * LEAKY_SLOPE)
        logits = leaky * scale[None, :] + bias[None, :]
        norm = tl.load(region_norms + region, mask=in_image, other=0.0)
        if captions_per_block == 1:
            first_sum += _cosine_sum(logits, tile, first_factor, norm, in_image)
        else:
            pair: tl.constexpr = (region_block, 2, slot)
            first_logits, second_logits = tl.split(tl.reshape(logits, pair).permute(0, 2, 1))
            first_dots, second_dots = tl.split(tl.reshape(tile, pair).permute(0, 2, 1))
            first_sum += _cosine_sum(first_logits, first_dots, first_factor, norm, in_image)
            second_sum += _cosine_sum(second_logits, second_dots, second_factor, norm, in_image)

    score_at = scores + image * scores_stride + first_caption
    score = first_sum / region_count
    if add:
        score += tl.load(score_at)
    tl.store(score_at, score)
    if captions_per_block == 2:
        stored = first_which + 1 < captions
        score_at = scores + image * scores_stride + second_caption
        score = second_sum / region_count
        if add:
            score += tl.load(score_at, mask=stored, other=0.0)
        tl.store(score_at, score, mask=stored)


#: Whether Triton interprets its kernels on the CPU (TRITON_INTERPRET=1 at import): for tests.
INTERPRETED: bool = triton.knobs.runtime.interpret

IMAGES_PER_GROUP = 8
#: TF32 has fp16's precision: three products of it make up for fp32's. Nothing but fp32 is touched.
PRECISION = "tf32x3"

#: Compute capabilities that the project compiles for and whose resources its tests bound.
CAPABILITIES = (80, 86, 89, 90, 120)
#: (regions, width) of the full-size model's levels in the reduced form.
LEVELS = ((784, 256), (196, 512), (49, 768))
_ALIGNED = (
    "regions region_norms words word_offset factor caption_start caption_order scores width"
).split()


def constants(
    tile: Tile, slot: int, region_count: int, *, offset: bool, add: bool
) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    return {
        "slot": slot,
        "captions_per_block": tile.captions,
        "region_block": tile.regions,
        "width_block": tile.width,
        "images_per_group": IMAGES_PER_GROUP,
        "all_regions_at_once": region_count <= tile.regions,
        "has_offset": offset,
        "add": add,
        "precision": PRECISION,
    }


def launch(grid: tuple[int], arguments: tuple[Any, ...], fixed: dict[str, Any], tile: Tile) -> None:
    """Runs the kernel on the current device and stream.

    Args:
        grid: Number of programs.
        arguments: The kernel's run-time arguments, in its order; pointers as tensors.
        fixed: From :func:`constants`.
        tile: That of ``fixed``.

    Raises:
        BackendUnavailableError: The device has too little shared memory for the tile.
    """
    try:
        alignment_i2t_kernel[grid](
            *arguments,
            **fixed,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,  # fused multiply-add; Triton's default is about to change
        )
    except OutOfResources as error:
        raise BackendUnavailableError(
            f"the GPU alignment kernel's tile {tile} doesn't fit this device ({error}): add a "
            "smaller one to TILES in alignment_triton_tables.py, or score on the CPU"
        ) from None


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes of a device.

    Attributes:
        registers: Per thread.
        spilled: Bytes per thread that registers spill to memory.
        shared: Bytes of shared memory per program.
        ptx: The kernel in PTX.
        cubin: The kernel for exactly this compute capability.
    """

    registers: int
    spilled: int
    shared: int
    ptx: str
    cubin: bytes


def compile_for(
    capability: int, data_type: DataType, width: int, region_count: int, slot: int
) -> Resources:
    """Compiles the kernel for a device that needn't be there.

    Args:
        capability: Compute capability, 10 * major + minor.
        data_type: Type of regions and words.
        width: Length of a dot product.
        region_count: Regions of an image.
        slot: Columns of a caption.
    """
    tile = tile_for(capability, data_type, width, region_count, slot)
    fixed = constants(tile, slot, region_count, offset=True, add=True)
    types = {
        "regions": f"*{data_type}",
        "words": f"*{data_type}",
        "caption_start": "*i64",
        "caption_order": "*i32",
        "logit_scale": "fp32",
        **dict.fromkeys(("region_norms", "word_offset", "factor", "scores"), "*fp32"),
        **dict.fromkeys(("images", "captions", "region_count", "width"), "i32"),
        **dict.fromkeys(("longest", "scores_stride"), "i32"),
        **dict.fromkeys(fixed, "constexpr"),
    }
    # What a launch finds out about torch's pointers, and about a width such as 256.
    kernel = compiled(alignment_i2t_kernel, types, fixed, _ALIGNED, tile, capability)
    ptx = kernel.asm["ptx"]
    registers, spilled = _assembled(capability, ptx)
    return Resources(registers, spilled, kernel.metadata.shared, ptx, kernel.asm["cubin"])


def compiled(
    kernel: Any,
    types: dict[str, str],
    fixed: dict[str, Any],
    aligned: Sequence[str],
    tile: Tile,
    capability: int,
) -> Any:
    """Compiles a kernel of Triton for a device that needn't be there.

    Args:
        kernel: The kernel.
        types: Type of every argument.
        fixed: Values of the compile-time arguments.
        aligned: Arguments that are multiples of 16: addresses in bytes, or numbers.
        tile: Gives warps and stages.
        capability: Compute capability, 10 * major + minor.
    """
    names = kernel.arg_names
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    return triton.compile(
        ASTSource(kernel, {name: types[name] for name in names}, fixed, divisible),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
    )


def _assembled(capability: int, ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes, as ptxas tells them."""
    # Triton's own choice: which of its assemblers knows a target has changed between releases.
    assembler = get_ptxas(capability)
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        log = subprocess.run(
            [
                *(assembler.path, "--verbose", f"--gpu-name={target[1]}"),
                *(source, "--output-file", Path(folder, "kernel.cubin")),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", log)
    spilled = re.search(r"(\d+) bytes spill stores", log)
    assert registers is not None
    assert spilled is not None
    return int(registers[1]), int(spilled[1])


def _print_resources() -> None:
    slot = 32
    print(f"Triton {triton.__version__}, {slot} columns a caption, with offset and addition")
    print("| type | regions x width | target | tile | registers | spilled | shared |")
    print("|---|---|---|---|---|---|---|")
    data_types: tuple[DataType, ...] = ("fp16", "fp32")
    for data_type, (regions, width), capability in product(data_types, LEVELS, CAPABILITIES):
        tile = tile_for(capability, data_type, width, regions, slot)
        found = compile_for(capability, data_type, width, regions, slot)
        print(
            f"| {data_type} | {regions} x {width} | sm_{capability} "
            f"| {tile.regions} x {tile.captions * slot} x {tile.width}, {tile.warps} warps, "
            f"{tile.stages} stages | {found.registers} | {found.spilled} B "
            f"| {found.shared / 1024:.0f} KiB |",
            flush=True,
        )


if __name__ == "__main__":
    _print_resources()
