"""The test that a bundle carries: fixed inputs and what PyTorch made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hat_export.base.arrays import read_arrays, write_arrays
from hat_export.bundle.bundle import SELF_TEST, Bundle
from hat_export.bundle.precision import PRECISIONS
from hat_export.errors import BundleError, InputError
from hat_export.runtime.session import Session
from hat_export.spec import LEVELS, ModelSpec

if TYPE_CHECKING:
    from hat_export.score.features import ImageFeatures, TextFeatures

IMAGES = 2
CAPTIONS = 3
#: Every so many channels of a feature are kept, so that the file stays small.
CHANNEL_STEP = 24
REGION_STEP = 7


def self_test_inputs(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Fixed inputs: smooth noise pictures and random word pieces, from raw PCG64 integers.

    Returns:
        ``pixel_values`` float32 [2, 3, H, W], ``input_ids`` and ``attention_mask`` int64 [3, W].
    """
    pixels = noise_pixels(spec, IMAGES, seed=1)
    ids, mask = noise_captions(spec, CAPTIONS, spec.max_words, seed=2)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def noise_pixels(spec: ModelSpec, images: int, seed: int) -> np.ndarray:
    """Preprocessed pictures of coarse coloured blocks with grain; float32 [images, 3, H, W]."""
    side = spec.image_size
    raw = np.random.PCG64(seed).random_raw(images * 3 * (64 + side * side))
    coarse, grain = np.split((raw >> np.uint64(56)).astype(np.float32), [images * 3 * 64])
    blocks = np.repeat(coarse.reshape(images, 3, 8, 8), -(-side // 8), 2)[:, :, :side]
    blocks = np.repeat(blocks, -(-side // 8), 3)[..., :side]
    pixels = (0.8 * blocks + 0.2 * grain.reshape(images, 3, side, side)) / np.float32(255)
    mean = np.asarray(spec.mean, np.float32)[:, None, None]
    std = np.asarray(spec.std, np.float32)[:, None, None]
    return ((pixels - mean) / std).astype(np.float32)


def noise_captions(
    spec: ModelSpec, captions: int, words: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random word pieces: the first caption is ``words`` long, the others shorter, down to 2."""
    raw = np.random.PCG64(seed).random_raw(captions * (words + 1))
    ids = (raw[: captions * words] % np.uint64(spec.vocab_size)).astype(np.int64)
    ids = ids.reshape(captions, words)
    lengths = 2 + (raw[captions * words :] % np.uint64(max(1, words - 1))).astype(np.int64)
    lengths = np.minimum(lengths, words)
    lengths[0] = words
    if captions > 1:
        lengths[1] = min(2, words)
    mask = (np.arange(words)[None] < lengths[:, None]).astype(np.int64)
    return ids * mask, mask


def write_self_test(path: Path, spec: ModelSpec, reference: Session) -> None:
    """Run the reference on the fixed inputs and store a sample of what it gives."""
    inputs = self_test_inputs(spec)
    images, texts, scores = _run(inputs, reference)
    stored = dict(inputs) | {"scores": scores}
    for level in range(LEVELS):
        stored[f"image_level{level + 1}"] = _sample_regions(images, level)
        stored[f"text_level{level + 1}"] = _sample_words(texts, level)
    write_arrays(path, stored)


def read_self_test(bundle: Bundle) -> dict[str, np.ndarray]:
    """The arrays of a bundle's self-test, its inputs of the right kind and shape.

    Raises:
        BundleError: if they aren't.
    """
    path, spec = bundle.arrays(SELF_TEST), bundle.manifest.spec
    try:
        stored = read_arrays(path)
        expected = {
            name: (value.dtype, value.shape) for name, value in self_test_inputs(spec).items()
        }
        for name, facts in expected.items():
            if (stored[name].dtype, stored[name].shape) != facts:
                raise ValueError(f"{name} is {stored[name].dtype} {list(stored[name].shape)}")
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: not a readable self-test ({error}); export again") from None
    return stored


def run_self_test(bundle: Bundle, session: Session) -> dict[str, float]:
    """Repeat the export's fixed inputs and compare.

    Returns:
        Largest difference per output.

    Raises:
        BundleError: if an output differs from what the export stored.
    """
    path = bundle.arrays(SELF_TEST)
    # A quantized bundle states what its own steps may do; any other keeps to its precision.
    limits = bundle.manifest.quantization or PRECISIONS[bundle.manifest.precision]
    try:
        stored = read_self_test(bundle)
        images, texts, scores = _run(stored, session)
        expected = {}
        for level in range(LEVELS):
            name = f"level{level + 1}"
            expected[f"image_{name}"] = (
                _sample_regions(images, level),
                limits.feature_tolerance,
            )
            expected[f"text_{name}"] = (_sample_words(texts, level), limits.feature_tolerance)
        expected["scores"] = (scores, limits.score_tolerance)
        for name, (value, _) in expected.items():
            if stored[name].shape != value.shape:
                raise ValueError(f"{name} is of shape {list(stored[name].shape)}")
        differences = {
            name: float(np.abs(value - stored[name]).max()) for name, (value, _) in expected.items()
        }
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise BundleError(f"{path}: not a readable self-test ({error}); export again") from None
    for name, (_, tolerance) in expected.items():
        if not differences[name] <= tolerance:  # also true for NaN
            raise BundleError(
                f"{bundle.path}: self-test failed on {session.backend}: {name} differs by "
                f"{differences[name]:.3g} from what was exported (tolerance {tolerance:g}); this "
                "runtime computes something else: report its version, or export again"
            )
    return differences


def _run(
    inputs: dict[str, np.ndarray], session: Session
) -> tuple[ImageFeatures, TextFeatures, np.ndarray]:
    images = session.encode_images(inputs["pixel_values"])
    texts = session.encode_texts(inputs["input_ids"], inputs["attention_mask"])
    return images, texts, session.score(images, texts)


def _sample_regions(images: ImageFeatures, level: int) -> np.ndarray:
    return images.levels[level][:, ::REGION_STEP, ::CHANNEL_STEP]


def _sample_words(texts: TextFeatures, level: int) -> np.ndarray:
    sample = texts.levels[level][:, :, ::CHANNEL_STEP]
    return np.where(texts.mask[:, :, None] > 0, sample, np.float32(0))
