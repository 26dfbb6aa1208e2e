"""Binding of the fused CPU alignment kernel (``alignment/``), with ctypes and numpy only.

Everything that a caption brings to a level is prepared once by :func:`prepare_captions`, and
scored against any number of images by :func:`score`. :func:`level_scores` does both for padded
arrays. The GIL is released while the kernel runs.

The library is looked for beside this file; the environment variable
``HAT_EXPORT_KERNEL_LIBRARY`` names another file, and ``HAT_EXPORT_KERNEL_PATH`` (``auto``,
``scalar``, ``avx2``, ``avx512``, ``neon``) the instruction set that the path ``auto`` means.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer

from hat_export.errors import BackendUnavailableError, InputError
from hat_export.spec import Direction

KernelPath = Literal["auto", "scalar", "avx2", "avx512", "neon"]

LIBRARY_VARIABLE = "HAT_EXPORT_KERNEL_LIBRARY"
_ABI = 1
_PATHS: tuple[KernelPath, ...] = ("auto", "scalar", "avx2", "avx512", "neon")
_DIRECTIONS: tuple[Direction, ...] = ("i2t", "t2i")
_PATH_UNAVAILABLE = 8
_BAD_ENVIRONMENT = 9


class _Request(ctypes.Structure):
    """``hat_alignment_request`` of alignment.h, field by field."""

    _fields_ = [
        ("regions", ctypes.c_void_p),
        ("region_norms", ctypes.c_void_p),
        ("words", ctypes.c_void_p),
        ("word_offset", ctypes.c_void_p),
        ("gram", ctypes.c_void_p),
        ("caption_start", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("images", ctypes.c_int64),
        ("regions_per_image", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("captions", ctypes.c_int64),
        ("scores_stride", ctypes.c_int64),
        ("softmax_lambda", ctypes.c_float),
        ("direction", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("path", ctypes.c_int32),
        ("add", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class LevelCaptions:
    """What one level needs of a block of captions; made by :func:`prepare_captions`.

    Attributes:
        words: float32 [total_words, width], real words only, caption after caption.
        word_offset: float32 [total_words], the words' inner products with the projection's bias;
            none at full width.
        gram: float64 [sum of squared lengths], every caption's [words, words] inner products at
            full width, row by row.
        caption_start: int64 [captions + 1], in words.
    """

    words: Float32[np.ndarray, "total_words width"]
    word_offset: Float32[np.ndarray, " total_words"] | None
    gram: Float64[np.ndarray, " squares"]
    caption_start: Int64[np.ndarray, " starts"]


def library_file() -> Path:
    """Where the kernel's library is, or should be."""
    override = os.environ.get(LIBRARY_VARIABLE)
    return Path(override) if override else _installed_file()


@functools.cache  # a query of a search asks a dozen times
def _installed_file() -> Path:
    suffix = "dylib" if sys.platform == "darwin" else "so"
    name = f"libhat_alignment.{suffix}"
    # An editable installation keeps this file in the source tree and the library in the
    # environment; the package's search path has both folders.
    package = sys.modules.get(__package__ or "")
    places = [Path(__file__).parent, *map(Path, getattr(package, "__path__", ()))]
    return next((place / name for place in places if (place / name).is_file()), places[0] / name)


@functools.cache
def _load(file: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise BackendUnavailableError(
            f"the alignment kernel's library {file} can't be loaded ({error}): install a C++20 "
            f"compiler and reinstall hat-export, or set {LIBRARY_VARIABLE} to a built library"
        ) from None
    try:
        version = library.hat_alignment_abi()
        library.hat_alignment_message.restype = ctypes.c_char_p
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        library.hat_alignment_message.argtypes = [ctypes.c_int32]
        library.hat_alignment_norms.argtypes = [pointer, size, size, pointer]
        library.hat_alignment_gram.argtypes = [pointer, pointer, size, size, pointer]
        library.hat_alignment_score.argtypes = [ctypes.POINTER(_Request)]
        library.hat_alignment_resolve_path.argtypes = [
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
        ]
    except AttributeError:
        version = None
    if version != _ABI:
        raise BackendUnavailableError(
            f"{file} isn't the alignment kernel of this version (interface {version}, expected "
            f"{_ABI}): reinstall hat-export"
        )
    return library


def _library() -> ctypes.CDLL:
    return _load(library_file())


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        message = cast(bytes, library.hat_alignment_message(status)).decode()
        unavailable = status in (_PATH_UNAVAILABLE, _BAD_ENVIRONMENT)
        raise (BackendUnavailableError if unavailable else InputError)(
            f"alignment kernel: {message}"
        )


def available_paths() -> tuple[KernelPath, ...]:
    """Instruction sets that the library has and this CPU can run, slowest first.

    Raises:
        BackendUnavailableError: The library is missing.
    """
    bits = _library().hat_alignment_available_paths()
    return tuple(name for index, name in enumerate(_PATHS) if bits >> index & 1)


def resolve_path(path: KernelPath = "auto") -> KernelPath:
    """The instruction set that ``path`` stands for here.

    Raises:
        BackendUnavailableError: The library is missing, or this CPU or build hasn't the path.
        InputError: There is no path of that name.
    """
    library = _library()
    resolved = ctypes.c_int32()
    status = library.hat_alignment_resolve_path(_path_code(path), ctypes.byref(resolved))
    _check(library, status)
    return _PATHS[resolved.value]


def _path_code(path: str) -> int:
    if path not in _PATHS:
        raise InputError(f"kernel path {path!r}: expected one of {', '.join(_PATHS)}")
    return _PATHS.index(path)


def _floats(array: np.ndarray, name: str, shape: str) -> Float32[np.ndarray, ...]:
    """The array in C order, after a check of its kind; ``shape`` such as ``[images, dim]``."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name}: expected a float32 array {shape}, got {kind}")
    if array.ndim != shape.count(",") + 1 or array.size == 0:
        raise InputError(f"{name}: expected {shape}, none of them 0, got {list(array.shape)}")
    return np.ascontiguousarray(array)


def region_norms(
    regions: Float32[np.ndarray, "images regions dim"],
) -> Float32[np.ndarray, "images regions"]:
    """Euclidean norms of regions, accumulated in float64.

    Args:
        regions: float32 [images, regions, dim].

    Returns:
        float32 [images, regions].

    Raises:
        InputError: The array has another kind or shape.
        BackendUnavailableError: The library is missing.
    """
    regions = _floats(regions, "regions", "[images, regions, dim]")
    images, count, dim = regions.shape
    norms = np.empty((images, count), np.float32)
    library = _library()
    status = library.hat_alignment_norms(
        regions.ctypes.data, images * count, dim, norms.ctypes.data
    )
    _check(library, status)
    return norms


def prepare_captions(
    words: Float32[np.ndarray, "captions words dim"],
    lengths: Integer[np.ndarray, " captions"],
    projection: Float32[np.ndarray, "dim width"] | None = None,
    bias: Float32[np.ndarray, " dim"] | None = None,
) -> LevelCaptions:
    """Prepares captions for scoring at one level.

    With the projection of the level's image encoder stage (``x = projection @ h + bias``), the
    captions score against that stage's output ``h`` itself, whose dot products are shorter:
    ``c . x = (projection^T c) . h + c . bias``. That form is for i2t only.

    Args:
        words: float32 [captions, words, dim]; rows past a caption's length may hold anything.
        lengths: Integers [captions], 1 to words.
        projection: float32 [dim, width], the weight of the level's Linear layer.
        bias: float32 [dim], its bias; given exactly if the projection is.

    Returns:
        The captions, of width dim, or of the projection's width.

    Raises:
        InputError: An array has another kind or shape, or a length is out of range.
        BackendUnavailableError: The library is missing.
    """
    words = _floats(words, "words", "[captions, words, dim]")
    captions, longest, dim = words.shape
    lengths = np.asarray(lengths)
    if lengths.shape != (captions,) or not np.issubdtype(lengths.dtype, np.integer):
        raise InputError(
            f"lengths: expected integers [{captions}], one per caption, got {lengths.dtype} "
            f"{list(lengths.shape)}"
        )
    if lengths.min() < 1 or lengths.max() > longest:
        raise InputError(
            f"lengths: expected 1 to {longest}, the words of the array, got "
            f"{lengths.min()} to {lengths.max()}"
        )
    real = np.arange(longest) < lengths[:, None]
    packed = np.ascontiguousarray(words[real])
    start = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    gram = np.empty(int(np.square(lengths, dtype=np.int64).sum()), np.float64)
    library = _library()
    status = library.hat_alignment_gram(
        packed.ctypes.data, start.ctypes.data, captions, dim, gram.ctypes.data
    )
    _check(library, status)
    if (projection is None) != (bias is None):
        raise InputError("projection and bias: expected both or neither")
    if projection is None or bias is None:
        return LevelCaptions(packed, None, gram, start)
    projection = _floats(projection, "projection", "[dim, width]")
    bias = _floats(bias, "bias", "[dim]")
    if projection.shape[0] != dim or bias.shape[0] != dim:
        raise InputError(
            f"projection and bias: expected [{dim}, width] and [{dim}] as the words have, got "
            f"{list(projection.shape)} and {list(bias.shape)}"
        )
    return LevelCaptions(np.ascontiguousarray(packed @ projection), packed @ bias, gram, start)


def score(
    regions: Float32[np.ndarray, "images regions width"],
    norms: Float32[np.ndarray, "images regions"],
    captions: LevelCaptions,
    softmax_lambda: float,
    direction: Direction = "i2t",
    threads: int = 1,
    path: KernelPath = "auto",
    total: Float32[np.ndarray, "images captions"] | None = None,
) -> Float32[np.ndarray, "images captions"]:
    """Scores images with captions at one level.

    A score depends on its image, its caption and the path only; not on the threads, nor on what
    else is in the block.

    Args:
        regions: float32 [images, regions, width], as wide as the captions' words: projected
            regions, or the encoder stage's output where the captions hold its projection.
        norms: float32 [images, regions], norms of the projected regions (:func:`region_norms`).
        captions: From :func:`prepare_captions`; for t2i without a projection.
        softmax_lambda: Inverse temperature of the attention softmax, above 0, at most 1000.
        direction: ``i2t`` or ``t2i``.
        threads: 1 to 1024.
        path: Instruction set.
        total: float32 [images, captions], C-contiguous: scores are added to it in place.

    Returns:
        float32 [images, captions]; ``total`` if that was given.

    Raises:
        InputError: An argument has another kind, shape or range; or a score isn't finite, since
            the features aren't or their inner products leave float32's range.
        BackendUnavailableError: The library is missing, or this CPU or build hasn't the path.
    """
    regions = _floats(regions, "regions", "[images, regions, width]")
    norms = _floats(norms, "norms", "[images, regions]")
    images, count, width = regions.shape
    if norms.shape != (images, count):
        raise InputError(f"norms: expected {[images, count]}, got {list(norms.shape)}")
    if captions.words.shape[1] != width:
        raise InputError(
            f"regions are {width} wide and the captions' words {captions.words.shape[1]}: expected "
            "the same (prepare the captions with the projection for unprojected regions)"
        )
    if direction not in _DIRECTIONS:
        raise InputError(f"direction {direction!r}: expected i2t or t2i")
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise InputError(f"threads: expected an integer from 1 to 1024, got {threads!r}")
    if not (math.isfinite(softmax_lambda) and 0 < softmax_lambda <= 1000):
        raise InputError(f"softmax lambda: expected above 0, at most 1000, got {softmax_lambda!r}")
    shape = (images, len(captions.caption_start) - 1)
    if total is not None and not (
        isinstance(total, np.ndarray)
        and total.dtype == np.float32
        and total.shape == shape
        and total.flags.c_contiguous
        and total.flags.writeable
    ):
        raise InputError(f"total: expected a writeable, C-contiguous float32 array {list(shape)}")
    scores = np.empty(shape, np.float32) if total is None else total
    offset = captions.word_offset
    request = _Request(
        regions=regions.ctypes.data,
        region_norms=norms.ctypes.data,
        words=captions.words.ctypes.data,
        word_offset=None if offset is None else offset.ctypes.data,
        gram=captions.gram.ctypes.data,
        caption_start=captions.caption_start.ctypes.data,
        scores=scores.ctypes.data,
        images=images,
        regions_per_image=count,
        width=width,
        captions=shape[1],
        scores_stride=shape[1],
        softmax_lambda=softmax_lambda,
        direction=_DIRECTIONS.index(direction),
        threads=threads,
        path=_path_code(path),
        add=total is not None,
    )
    library = _library()
    _check(library, library.hat_alignment_score(ctypes.byref(request)))
    if not np.isfinite(scores).all():
        image, caption = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(
            f"score of image {image} with caption {caption} isn't finite: expected finite "
            "features with inner products below 1e38; check the features for NaN and infinity"
        )
    return scores


def level_scores(
    regions: Float32[np.ndarray, "images regions dim"],
    words: Float32[np.ndarray, "captions words dim"],
    lengths: Integer[np.ndarray, " captions"],
    softmax_lambda: float,
    direction: Direction = "i2t",
    threads: int = 1,
    path: KernelPath = "auto",
) -> Float32[np.ndarray, "images captions"]:
    """Scores images with padded captions at one level, at full width.

    Args:
        regions: float32 [images, regions, dim].
        words: float32 [captions, words, dim]; rows past a caption's length may hold anything.
        lengths: Integers [captions], 1 to words.
        softmax_lambda: As in :func:`score`.
        direction: As in :func:`score`.
        threads: As in :func:`score`.
        path: As in :func:`score`.

    Returns:
        float32 [images, captions].

    Raises:
        InputError: As in :func:`score`.
        BackendUnavailableError: As in :func:`score`.
    """
    captions = prepare_captions(words, lengths)
    norms = region_norms(regions)
    return score(regions, norms, captions, softmax_lambda, direction, threads, path)
