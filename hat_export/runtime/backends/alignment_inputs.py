"""What the alignment plugin takes: captions packed and factored on the host.

Engines whose alignment is the plugin have other inputs than the ONNX graph: real words only, one
caption after the other, and per caption a triangle F with F^T F = its Gram matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hat_export.bundle.bundle import IMAGE_OUTPUTS, TEXT_OUTPUTS, TensorSpec
from hat_export.bundle.engines import Profile, Range
from hat_export.spec import ModelSpec

#: Names by level.
ROWS = tuple(f"{name}_rows" for name in TEXT_OUTPUTS)
FACTORS = tuple(f"{name}_factor" for name in TEXT_OUTPUTS)
STARTS, ORDER = "caption_start", "caption_order"


def plugin_inputs(spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """Inputs of an alignment engine with the plugin.

    ``rows`` counts words, ``starts`` is one more than the captions.

    Args:
        spec: The architecture.
    """
    regions = [
        TensorSpec(name, "float32", ("images", count, spec.dim))
        for name, count in zip(IMAGE_OUTPUTS, spec.level_regions, strict=True)
    ]
    rows = [TensorSpec(name, "float32", ("rows", spec.dim)) for name in ROWS]
    factors = [TensorSpec(name, "float32", ("captions", "words", "words")) for name in FACTORS]
    starts = TensorSpec(STARTS, "int64", ("starts",))
    return (*regions, *rows, *factors, starts, TensorSpec(ORDER, "int32", ("captions",)))


def plugin_profile(profile: Profile) -> Profile:
    """A profile with the sizes of packed captions; captions have at least one word.

    Args:
        profile: Ranges of ``images``, ``captions`` and ``words``.
    """
    captions, words = profile["captions"], profile["words"]
    rows = Range(captions.smallest, captions.best * words.best, captions.largest * words.largest)
    return {**profile, "rows": rows, "starts": Range(*(size + 1 for size in captions))}


def pack_captions(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The plugin's inputs of some captions.

    Args:
        feed: As for the ONNX graph: ``text_level*`` float32 [captions, words, d], and
            ``attention_mask`` int64 [captions, words] with at least one word a caption.

    Returns:
        By name, as :func:`plugin_inputs` lists them, without the images.
    """
    mask = feed["attention_mask"].astype(bool)
    captions, words = mask.shape
    found: dict[str, np.ndarray] = {
        STARTS: np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int64),
        ORDER: np.arange(captions, dtype=np.int32),
    }
    for name, rows, factor in zip(TEXT_OUTPUTS, ROWS, FACTORS, strict=True):
        found[rows] = feed[name][mask]
        # float64, since the kernel weighs words against each other that may nearly cancel.
        clean = np.where(mask[:, :, None], feed[name], 0).astype(np.float64)
        triangle = np.asarray(np.linalg.qr(clean.transpose(0, 2, 1), mode="r"))
        found[factor] = np.zeros((captions, words, words), np.float32)
        found[factor][:, : triangle.shape[1]] = triangle
    return found
