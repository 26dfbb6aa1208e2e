"""The fused alignment score for torch tensors: the CPU kernel or, on CUDA devices, the Triton one.

Importing this module registers the operator ``torch.ops.hat_export.alignment_i2t``, which
``torch.compile`` keeps as one node. It prepares the captions at every call; who scores the same
captions many times on a GPU prepares them once (:func:`prepare_captions`) and calls
:func:`score`. Inference only: train with :mod:`hat_export.model.alignment`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hat_export.errors import BackendUnavailableError, InputError
from hat_export.kernels import alignment_cpu
from hat_export.kernels.alignment_triton_tables import DataType, slot_for, tile_for

AlignmentDirection = Literal["i2t", "t2i"]

_DATA_TYPES: dict[torch.dtype, DataType] = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
}
_OLDEST_CAPABILITY = 80
#: The interpreter has no device; it runs the tiles of this one.
_INTERPRETED_CAPABILITY = 80
#: Bounds the float64 copy of padded words in prepare_captions (50 MB at 32 words of width 768).
_CAPTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class DeviceCaptions:
    """What one level needs of a block of captions, on a device; see :func:`prepare_captions`.

    Attributes:
        words: fp16, bf16 or fp32 [total_words, width], real words only, caption after caption.
        word_offset: fp32 [total_words], the words' inner products with the projection's bias;
            None at full width.
        factor: fp32 [captions, longest, longest], upper triangular F with F^T F = the Gram matrix
            of a caption's words at full width, zero past its length. |F e| is the norm of
            the words weighted by e, without the square root of a difference that e^T G e is.
        caption_start: int64 [captions + 1], in words.
        groups: (slot, int32 [captions of the group]): captions by the columns that they take.
    """

    words: Tensor
    word_offset: Tensor | None
    factor: Tensor
    caption_start: Tensor
    groups: tuple[tuple[int, Tensor], ...]


def _kernel() -> ModuleType:
    try:
        from hat_export.kernels import alignment_triton
    except ImportError as error:
        raise BackendUnavailableError(
            f"the GPU alignment kernel needs Triton, which can't be imported ({error}): install "
            "triton as your torch asks for it, or move the features to the CPU"
        ) from None
    return alignment_triton


def _capability(kernel: ModuleType, device: torch.device) -> int:
    """Compute capability to take the tiles of, after a check that the device can run the kernel."""
    if kernel.INTERPRETED:
        return _INTERPRETED_CAPABILITY
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "the GPU alignment kernel needs a CUDA device and torch finds none: install a CUDA "
            "build of torch and the NVIDIA driver, or use hat_export.kernels.alignment_cpu"
        )
    if device.type != "cuda":
        raise InputError(f"regions are on {device}: expected a CUDA device (regions.cuda())")
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < _OLDEST_CAPABILITY:
        raise BackendUnavailableError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}: the "
            "GPU alignment kernel needs 8.0 or newer; use hat_export.kernels.alignment_cpu"
        )
    return 10 * major + minor


def _check(tensor: Tensor, name: str, shape: str, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(f"{name}: expected {expected} {shape}, got {tensor.dtype}")
    if tensor.ndim != shape.count(",") + 1 or tensor.numel() == 0:
        raise InputError(f"{name}: expected {shape}, none of them 0, got {list(tensor.shape)}")


def region_norms(regions: Tensor) -> Tensor:
    """Euclidean norms of regions, accumulated in fp32.

    Args:
        regions: Float [images, regions, d].

    Returns:
        fp32 [images, regions].
    """
    return cast(Tensor, torch.linalg.vector_norm(regions, dim=2, dtype=torch.float32))


def prepare_captions(
    words: Tensor,
    lengths: Tensor,
    dtype: torch.dtype,
    projection: Tensor | None = None,
    bias: Tensor | None = None,
) -> DeviceCaptions:
    """Prepares captions for scoring at one level, as alignment_cpu's function of this name does.

    Args:
        words: Float [captions, words, d]; rows past a caption's length may hold anything.
        lengths: Integers [captions], 1 to words; at most 64.
        dtype: float16, bfloat16 or float32: the type of the regions.
        projection: Float [d, width], the weight of the level's Linear layer, to score against
            the image encoder stage's own output.
        bias: Float [d], its bias; given exactly if the projection is.

    Returns:
        The captions, on the words' device.

    Raises:
        InputError: A tensor has another kind or shape, a length is out of range, or a word isn't
            finite (in ``dtype``).
    """
    if dtype not in _DATA_TYPES:
        raise InputError(f"captions for {dtype}: expected float16, bfloat16 or float32")
    _check(words, "words", "[captions, words, d]", (*_DATA_TYPES, torch.float64))
    captions, padded, dim = words.shape
    if lengths.shape != (captions,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise InputError(
            f"lengths: expected integers [{captions}], one per caption, got {lengths.dtype} "
            f"{list(lengths.shape)}"
        )
    counts: list[int] = lengths.tolist()
    if min(counts) < 1 or max(counts) > padded:
        raise InputError(
            f"lengths: expected 1 to {padded}, the words of the tensor, got {min(counts)} to "
            f"{max(counts)}"
        )
    if (projection is None) != (bias is None):
        raise InputError("projection and bias: expected both or neither")
    if projection is not None and bias is not None:
        _check(projection, "projection", "[d, width]", (*_DATA_TYPES, torch.float64))
        _check(bias, "bias", "[d]", (*_DATA_TYPES, torch.float64))
        if projection.shape[0] != dim or bias.shape[0] != dim:
            raise InputError(
                f"projection and bias: expected [{dim}, width] and [{dim}] as the words have, got "
                f"{list(projection.shape)} and {list(bias.shape)}"
            )
    longest = max(counts)
    slots = [slot_for(count) for count in counts]
    device = words.device
    real = torch.arange(longest, device=device) < lengths.to(device)[:, None]
    packed: list[Tensor] = []
    offsets: list[Tensor] = []
    factor = torch.zeros(captions, longest, longest, dtype=torch.float32, device=device)
    for first in range(0, captions, _CAPTIONS_AT_ONCE):
        part = slice(first, first + _CAPTIONS_AT_ONCE)
        # float64, since consumers weigh words against each other that may nearly cancel; this is
        # work per caption, next to nothing beside the pairs.
        clean = words[part, :longest].double().masked_fill(~real[part, :, None], 0)
        if not torch.isfinite(clean).all():
            which = first + int(torch.nonzero(~torch.isfinite(clean).all(2))[0, 0])
            raise InputError(f"words of caption {which} aren't finite: check the text features")
        own = clean[real[part]]
        if projection is None:
            # Dot products, norms and Gram matrix then are of the same rounded features, whose
            # rounding cancels in the cosine: it is an exact one of slightly other vectors.
            clean = clean.to(dtype).double()
        triangle = torch.linalg.qr(clean.transpose(1, 2), mode="r").R
        factor[part, : triangle.shape[1]] = triangle.float()
        if projection is not None and bias is not None:
            offsets.append((own @ bias.to(device).double()).float())
            own = own @ projection.to(device).double()
        packed.append(own.to(dtype))
    all_words = torch.cat(packed)
    if not torch.isfinite(all_words).all():
        raise InputError(f"words leave the range of {dtype}: use bfloat16 or float32")
    start = torch.zeros(captions + 1, dtype=torch.int64)
    start[1:] = torch.tensor(counts).cumsum(0)
    groups = tuple(
        (
            slot,
            torch.tensor([i for i, own_slot in enumerate(slots) if own_slot == slot],
                         dtype=torch.int32, device=device),
        )
        for slot in sorted(set(slots))
    )  # fmt: skip
    return DeviceCaptions(
        all_words, torch.cat(offsets) if offsets else None, factor, start.to(device), groups
    )


def score(
    regions: Tensor,
    norms: Tensor,
    captions: DeviceCaptions,
    softmax_lambda: float,
    direction: AlignmentDirection = "i2t",
    total: Tensor | None = None,
) -> Tensor:
    """Scores images with captions at one level on a CUDA device, by the Triton kernel.

    A score depends on its image, its caption and the device's compute capability only, and on
    whether a caption has 16 words or fewer, or 32; sums always run in the same order.

    Args:
        regions: fp16, bf16 or fp32 [images, regions, width], as wide as the captions' words:
            projected regions, or the encoder stage's output where the captions hold its
            projection.
        norms: fp32 [images, regions], norms of the projected regions (:func:`region_norms`).
        captions: From :func:`prepare_captions`, of the regions' type and device.
        softmax_lambda: Inverse temperature of the attention softmax, above 0, at most 1000.
        direction: ``i2t``; the GPU kernel has no ``t2i``.
        total: fp32 [images, captions], contiguous: scores are added to it in place.

    Returns:
        fp32 [images, captions]; ``total`` if that was given.

    Raises:
        InputError: An argument has another kind, shape, device or range; or a score isn't finite,
            since the features aren't or sums of their products leave fp32's range.
        BackendUnavailableError: Triton or a CUDA device of compute capability 8.0 is missing, the
            device has too little shared memory, or the direction is t2i.
    """
    kernel = _kernel()
    capability = _capability(kernel, regions.device)
    if direction != "i2t":
        raise BackendUnavailableError(
            f"the GPU alignment kernel scores i2t only, not {direction!r}: use "
            "hat_export.kernels.alignment_cpu or hat_export.model.alignment"
        )
    _check(regions, "regions", "[images, regions, width]", tuple(_DATA_TYPES))
    _check(norms, "norms", "[images, regions]", (torch.float32,))
    images, count, width = regions.shape
    if norms.shape != (images, count):
        raise InputError(f"norms: expected {[images, count]}, got {list(norms.shape)}")
    if captions.words.shape[1] != width or captions.words.dtype != regions.dtype:
        raise InputError(
            f"regions are {regions.dtype} {width} wide and the captions' words "
            f"{captions.words.dtype} {captions.words.shape[1]}: expected the same (prepare the "
            "captions with the regions' type, and with the projection for unprojected regions)"
        )
    if not (math.isfinite(softmax_lambda) and 0 < softmax_lambda <= 1000):
        raise InputError(f"softmax lambda: expected above 0, at most 1000, got {softmax_lambda!r}")
    number = len(captions.factor)
    for name, tensor in (("norms", norms), ("captions", captions.words), ("total", total)):
        if tensor is not None and tensor.device != regions.device:
            raise InputError(f"{name} are on {tensor.device}, regions on {regions.device}")
    if total is not None and not (
        total.dtype == torch.float32 and total.shape == (images, number) and total.is_contiguous()
    ):
        raise InputError(f"total: expected a contiguous float32 tensor {[images, number]}")
    if images * number >= 2**31:
        raise InputError(f"{images} images x {number} captions: score fewer than 2^31 at once")
    scores = total
    if scores is None:
        scores = torch.empty(images, number, dtype=torch.float32, device=regions.device)
    regions, norms = regions.contiguous(), norms.contiguous()
    data_type = _DATA_TYPES[regions.dtype]
    for slot, order in captions.groups:
        tile = tile_for(capability, data_type, width, count, slot)
        fixed = kernel.constants(
            tile, slot, count, offset=captions.word_offset is not None, add=total is not None
        )
        grid = (images * -(-len(order) // tile.captions),)
        arguments = (
            regions,
            norms,
            captions.words,
            # Never read without an offset, but a pointer has to be there.
            norms if captions.word_offset is None else captions.word_offset,
            captions.factor,
            captions.caption_start,
            order,
            scores,
            images,
            len(order),
            count,
            width,
            captions.factor.shape[1],
            number,
            softmax_lambda * math.log2(math.e),
        )
        if kernel.INTERPRETED:
            kernel.launch(grid, arguments, fixed, tile)
        else:
            with torch.cuda.device(regions.device):
                kernel.launch(grid, arguments, fixed, tile)
    if not torch.isfinite(scores).all():
        image, caption = torch.nonzero(~torch.isfinite(scores))[0].tolist()
        raise InputError(
            f"score of image {image} with caption {caption} isn't finite: expected finite "
            "features whose inner products' squares sum to less than 1e38; check the features "
            "for NaN and infinity"
        )
    return scores


def _floats(tensor: Tensor, name: str) -> NDArray[np.float32]:
    """The tensor's own memory as an array."""
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise InputError(
            f"{name}: expected float32 on the CPU as the regions are, got {tensor.dtype} on "
            f"{tensor.device}"
        )
    # Under no_grad a tensor may still say that it requires a gradient, which numpy() refuses.
    array: NDArray[np.float32] = tensor.detach().numpy()
    return array


def _score_on_cpu(
    regions: Tensor,
    words: Tensor,
    lengths: Tensor,
    softmax_lambda: float,
    norms: Tensor | None,
    projection: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    captions = alignment_cpu.prepare_captions(
        _floats(words, "words"),
        lengths.cpu().numpy(),
        None if projection is None else _floats(projection, "projection"),
        None if bias is None else _floats(bias, "bias"),
    )
    features = _floats(regions, "regions")
    sizes = alignment_cpu.region_norms(features) if norms is None else _floats(norms, "norms")
    threads = min(torch.get_num_threads(), 1024)
    return torch.from_numpy(
        alignment_cpu.score(features, sizes, captions, softmax_lambda, "i2t", threads)
    )


def _needs_norms(norms: Tensor | None, projection: Tensor | None) -> None:
    if projection is not None and norms is None:
        raise InputError(
            "norms: expected [images, regions] with a projection, since those of the projected "
            "regions can't be had from the regions that are given"
        )


@torch.library.custom_op(
    "hat_export::alignment_i2t",
    mutates_args=(),
    schema=(
        "(Tensor regions, Tensor words, Tensor lengths, float softmax_lambda, "
        "Tensor? norms=None, Tensor? projection=None, Tensor? bias=None) -> Tensor"
    ),
)
def alignment_i2t(
    regions: Tensor,
    words: Tensor,
    lengths: Tensor,
    softmax_lambda: float,
    norms: Tensor | None = None,
    projection: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Scores images with padded captions at one level, regions attending to words.

    Args:
        regions: [images, regions, width]: fp32 on the CPU; fp16, bf16 or fp32 on a CUDA device.
        words: Of the same device, [captions, words, d]; rows past a caption's length may hold
            anything. fp32 on the CPU.
        lengths: Integers [captions], 1 to words.
        softmax_lambda: Inverse temperature of the attention softmax, above 0, at most 1000.
        norms: fp32 [images, regions], norms of the projected regions; by default those of
            ``regions``, which then are projected already.
        projection: [d, width], the weight of the level's Linear layer, where ``regions`` are the
            image encoder stage's output; needs ``norms`` and ``bias``.
        bias: [d], its bias.

    Returns:
        fp32 [images, captions].

    Raises:
        InputError: As :func:`score` and alignment_cpu.score; or a gradient is asked for.
        BackendUnavailableError: As :func:`score` and alignment_cpu.score.
    """
    _needs_norms(norms, projection)
    if regions.device.type == "cpu":
        return _score_on_cpu(regions, words, lengths, softmax_lambda, norms, projection, bias)
    captions = prepare_captions(words, lengths, regions.dtype, projection, bias)
    sizes = region_norms(regions) if norms is None else norms
    return score(regions, sizes, captions, softmax_lambda)


@alignment_i2t.register_fake
def _shape(
    regions: Tensor,
    words: Tensor,
    lengths: Tensor,
    softmax_lambda: float,
    norms: Tensor | None = None,
    projection: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    _needs_norms(norms, projection)
    return regions.new_empty((regions.shape[0], words.shape[0]), dtype=torch.float32)


def _refuse_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    raise InputError(
        "alignment_i2t has no gradient and an input requires one: call it under "
        "torch.inference_mode(), or train with hat_export.model.alignment"
    )


def _no_gradients(ctx: Any, gradient: Tensor) -> None:
    raise AssertionError("unreachable: _refuse_gradients has raised")


alignment_i2t.register_autograd(_no_gradients, setup_context=_refuse_gradients)
