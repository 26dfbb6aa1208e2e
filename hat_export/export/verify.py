"""Comparison of a bundle with PyTorch at several batch sizes and caption lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hat_export.base.progress import Progress
from hat_export.bundle.precision import Precision
from hat_export.runtime.backends.onnxruntime_backend import OnnxRuntimeSession
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.runtime.session import Session
from hat_export.spec import ModelSpec

#: One, two, odd, and a batch that no runtime would have been specialised for.
IMAGE_BATCHES = (1, 2, 3, 17)
CAPTION_BATCHES = (1, 2, 3, 17)


#: Largest difference of a score of the same features: float32 against float32, three levels of at
#: most 2e-6 from float64 each, doubled, and some room for runtimes with a coarser exponential.
SAME_FEATURES_TOLERANCE = 2e-5

#: What is compared: both encoders, the score by the native kernel, the score by the graph.
KINDS = ("images", "texts", "scores", "alignment graph")


@dataclass(frozen=True)
class Comparison:
    """Largest difference of one run.

    Attributes:
        what: One of :data:`KINDS`.
        batch: Images, or captions.
        words: Width of the captions; 0 for images.
        difference: Largest absolute difference over all outputs.
        tolerance: Largest difference that passes.
    """

    what: str
    batch: int
    words: int
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        """One clause for an error message."""
        size = f"{self.batch} x {self.words} words" if self.words else f"batch {self.batch}"
        return f"{self.what} at {size}: {self.difference:.3g} (tolerance {self.tolerance:g})"


@dataclass(frozen=True)
class Verification:
    """All comparisons of an export.

    Attributes:
        comparisons: In the order in which they ran.
    """

    comparisons: tuple[Comparison, ...]

    @property
    def failures(self) -> list[str]:
        """What is over its tolerance."""
        return [str(comparison) for comparison in self.comparisons if not comparison.passed]

    def largest(self, what: str) -> float:
        """Largest difference among the runs of one kind."""
        return max(item.difference for item in self.comparisons if item.what == what)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            what: {
                "largest_difference": self.largest(what),
                "tolerance": next(i.tolerance for i in self.comparisons if i.what == what),
                "runs": [
                    {"batch": item.batch, "words": item.words, "difference": item.difference}
                    for item in self.comparisons
                    if item.what == what
                ],
            }
            for what in KINDS
        }


def caption_lengths(spec: ModelSpec) -> tuple[int, ...]:
    """Widths to test: the shortest possible, small, odd, and the longest."""
    wanted = (2, 3, 5, 16, 17, spec.max_words)
    return tuple(sorted({words for words in wanted if words <= spec.max_words}))


def verify_bundle(
    reference: Session,
    candidate: OnnxRuntimeSession,
    precision: Precision,
    progress: Progress,
) -> Verification:
    """Run both on the same inputs, batch by batch and length by length.

    Args:
        reference: PyTorch.
        candidate: The bundle.
        precision: What its encoders compute in; scores are always float32.
        progress: Told before each part.

    Returns:
        Every difference found; nothing is raised.
    """
    spec = reference.spec
    found = []
    for batch in IMAGE_BATCHES:
        progress.step(f"comparing images, batch {batch}")
        pixels = noise_pixels(spec, batch, seed=100 + batch)
        ours, theirs = candidate.encode_images(pixels), reference.encode_images(pixels)
        difference = _worst(ours.levels, theirs.levels)
        found.append(Comparison("images", batch, 0, difference, precision.feature_tolerance))
    images = reference.encode_images(noise_pixels(spec, 3, seed=7))
    for words in caption_lengths(spec):
        progress.step(f"comparing captions of up to {words} words")
        for batch in CAPTION_BATCHES:
            ids, mask = noise_captions(spec, batch, words, seed=1000 * words + batch)
            texts, expected = candidate.encode_texts(ids, mask), reference.encode_texts(ids, mask)
            real = mask.astype(bool)
            difference = _worst(
                [level[real] for level in texts.levels], [level[real] for level in expected.levels]
            )
            found.append(Comparison("texts", batch, words, difference, precision.feature_tolerance))
            scores = reference.score(images, expected)
            for what, score in (
                ("scores", candidate.score),
                ("alignment graph", candidate.score_with_graph),
            ):
                difference = _largest(score(images, expected), scores)
                found.append(Comparison(what, batch, words, difference, SAME_FEATURES_TOLERANCE))
    return Verification(tuple(found))


def _worst(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Largest absolute difference over the levels; NaN if any holds one, which max() may lose."""
    return float(np.max([_largest(*pair) for pair in zip(ours, theirs, strict=True)]))


def _largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference; NaN if either holds one."""
    return float(np.abs(ours - theirs).max())
