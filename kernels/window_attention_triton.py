"""Swin's window attention on a GPU as one Triton kernel (Triton is all that it imports).

A program attends for one head of one window. It finds the window's tokens in the row-major map by
index, the cyclic shift included, so that nothing is rolled, cut or put back; position bias and
shift mask are added in registers; the tokens of a window are padded to a power of two there (49 to
64) and nowhere in memory. The CPU's counterpart is ``operators/attention_kernel.hpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

#: Added between tokens that the shift brought into one window; checkpoints were trained with it.
SHIFT_MASK = tl.constexpr(-100.0)
WARPS = 4

#: Triton ships no types: without one of its own, its decorator would take the functions' away.
_jit: Callable[[Callable[..., Any]], Any] = triton.jit


@_jit
def window_attention_kernel(
    qkv: tl.tensor,
    qkv_bias: tl.tensor,
    position_bias: tl.tensor,
    mixed: tl.tensor,
    side: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    window: tl.constexpr,
    shift: tl.constexpr,
    tokens: tl.constexpr,
    head_dim: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Attention of one head of one window; a grid of images * windows * heads.

    Args:
        qkv: Pointer to [images, side * side, 3, heads, head_dim].
        qkv_bias: Pointer to [3, heads, head_dim].
        position_bias: Pointer to fp32 [heads, window^2, window^2].
        mixed: Pointer to [images, side * side, heads, head_dim], written.
        side: Tokens along a side of the map, a multiple of ``window``.
        heads: Heads.
        scale: fp32, by which logits are multiplied.
        window: Tokens along a side of a window.
        shift: Cyclic shift towards the upper left, in tokens, less than ``window``.
        tokens: Power of two, at least window^2 and 16.
        head_dim: Power of two, at least 16.
        precision: Of products of fp32 (``input_precision`` of ``tl.dot``).
    """
    program = tl.program_id(0)
    head = program % heads
    windows = side // window
    group = program // heads % (windows * windows)
    image = (program // heads // (windows * windows)).to(tl.int64)
    token = tl.arange(0, tokens)
    area: tl.constexpr = window * window
    real = token < area
    row = group // windows * window + token // window + shift
    column = group % windows * window + token % window + shift
    # Only windows at the lower or right edge reach past it.
    below, beyond = row >= side, column >= side
    zone = 2 * below.to(tl.int32) + beyond.to(tl.int32)
    place = tl.where(below, row - side, row) * side + tl.where(beyond, column - side, column)
    place = image * side * side + place

    feature = head * head_dim + tl.arange(0, head_dim)
    width = heads * head_dim
    at = qkv + place[:, None] * (3 * width) + feature[None, :]
    query = tl.load(at, mask=real[:, None], other=0.0)
    query = (query + tl.load(qkv_bias + feature)[None, :]).to(qkv.dtype.element_ty)
    # The keys' bias adds the same to all logits of a query, and changes no weight.
    key = tl.load(at + width, mask=real[:, None], other=0.0)
    value = tl.load(at + 2 * width, mask=real[:, None], other=0.0)
    value = (value + tl.load(qkv_bias + 2 * width + feature)[None, :]).to(qkv.dtype.element_ty)

    logits = tl.dot(query, tl.trans(key), input_precision=precision) * scale
    pair = token[:, None] * area + token[None, :]
    inside = real[:, None] & real[None, :]
    logits += tl.load(position_bias + head * area * area + pair, mask=inside, other=0.0)
    if shift > 0:
        logits += tl.where(zone[:, None] != zone[None, :], SHIFT_MASK, 0.0)
    logits = tl.where(real[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    result = tl.dot(weights.to(value.dtype), value, input_precision=precision)
    to = mixed + place[:, None] * width + feature[None, :]
    tl.store(to, result.to(mixed.dtype.element_ty), mask=real[:, None])


def constants(window: int, shift: int, head_dim: int) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    return {
        "window": window,
        "shift": shift,
        "tokens": max(16, triton.next_power_of_2(window * window)),
        "head_dim": head_dim,
        "precision": "ieee",
    }


def launch(
    qkv: Any, qkv_bias: Any, position_bias: Any, mixed: Any, heads: int, window: int, shift: int
) -> None:
    """Run the kernel on the current device and stream.

    Args:
        qkv: Tensor [images, side * side, 3 * heads * head_dim], contiguous.
        qkv_bias: Tensor [3 * heads * head_dim] of the same type.
        position_bias: fp32 tensor [heads, window^2, window^2].
        mixed: Tensor [images, side * side, heads * head_dim] of the same type, written.
        heads: Heads.
        window: Tokens along a side of a window.
        shift: Cyclic shift, in tokens.

    Raises:
        ValueError: if a size doesn't fit the others.
    """
    images, tokens, triple = qkv.shape
    head_dim = triple // (3 * heads)
    side = round(tokens**0.5)
    if side * side != tokens or side % window or not 0 <= shift < window:
        raise ValueError(f"{tokens} tokens are no square of windows of {window}, shift {shift}")
    if head_dim < 16 or head_dim & (head_dim - 1) or triple != 3 * heads * head_dim:
        raise ValueError(f"expected heads of a power of two from 16, got {triple} / 3 / {heads}")
    if tuple(position_bias.shape) != (heads, window**2, window**2):
        raise ValueError(f"position bias of {tuple(position_bias.shape)} for {heads} heads")
    grid = (images * (side // window) ** 2 * heads,)
    if not grid[0]:
        return
    window_attention_kernel[grid](
        qkv,
        qkv_bias,
        position_bias,
        mixed,
        side,
        heads,
        head_dim**-0.5,
        **constants(window, shift, head_dim),
        num_warps=WARPS,
        enable_fp_fusion=True,  # fused multiply-add; Triton's default is about to change
    )


def compile_ptx(capability: int, data_type: str, window: int, shift: int, head_dim: int) -> str:
    """The kernel in PTX for a device that needn't be there.

    Args:
        capability: Compute capability, 10 * major + minor.
        data_type: ``fp16``, ``bf16`` or ``fp32``, of everything but the position bias.
        window: Tokens along a side of a window.
        shift: Cyclic shift, in tokens.
        head_dim: Width of a head.
    """
    fixed = constants(window, shift, head_dim)
    types = dict.fromkeys(("qkv", "qkv_bias", "mixed"), f"*{data_type}")
    types |= {"position_bias": "*fp32", "side": "i32", "heads": "i32", "scale": "fp32"}
    types |= dict.fromkeys(fixed, "constexpr")
    names = window_attention_kernel.arg_names
    divisible = {(index,): [["tt.divisibility", 16]] for index in range(4)}
    kernel = triton.compile(
        ASTSource(window_attention_kernel, {name: types[name] for name in names}, fixed, divisible),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": WARPS, "enable_fp_fusion": True},
    )
    ptx: str = kernel.asm["ptx"]
    return ptx
