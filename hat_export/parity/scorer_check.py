"""Does a session's own score agree with the native kernel, which scores the whole dataset?

The published formula in PyTorch takes hours for 1,000 images with 5,000 captions of official size,
the kernel minutes. So the kernel scores both sides, and a sample of pairs is encoded again and
scored by everything that a session can score with. That also finds a cache that isn't the model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.data.dataset import CaptionDataset
from hat_export.parity.comparison import Scores
from hat_export.runtime.session import Session

#: Images and captions of the sample, spread evenly.
SAMPLE_IMAGES = 40
SAMPLE_CAPTIONS = 100


@dataclass(frozen=True)
class OwnScores:
    """What a session itself gives for some pairs.

    Attributes:
        images: Which images of the dataset.
        captions: Which captions.
        scores: By name of the scorer, float32 [images, captions].
    """

    images: Int64[np.ndarray, " images"]
    captions: Int64[np.ndarray, " captions"]
    scores: Mapping[str, Float32[np.ndarray, "images captions"]]


@dataclass(frozen=True)
class ScorerCheck:
    """One scorer beside the kernel.

    Attributes:
        side: Whose it is.
        scorer: Its name.
        pairs: Number of pairs.
        difference: Largest absolute difference.
        tolerance: Largest difference that passes.
    """

    side: str
    scorer: str
    pairs: int
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def sentence(self) -> str:
        """The difference in one sentence, without a full stop."""
        return (
            f"{self.side}: its {self.scorer} differs from the kernel's by {self.difference:.2g} "
            f"(tolerance {self.tolerance:g}) on {self.pairs:,} pairs"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields by name; a difference of None is one that isn't finite."""
        difference = self.difference if math.isfinite(self.difference) else None
        return {**asdict(self), "difference": difference, "passed": self.passed}


def own_scores(session: Session, dataset: CaptionDataset) -> OwnScores:
    """Encode a sample of a dataset and score it by everything that the session has.

    Args:
        session: Any backend.
        dataset: Images and captions.
    """
    captions = dataset.captions
    some = [_spread(len(dataset.entries), SAMPLE_IMAGES), _spread(len(captions), SAMPLE_CAPTIONS)]
    pictures = [dataset.store.open(dataset.entries[position].name) for position in some[0]]
    images = session.encode_images(pictures)
    texts = session.encode_texts([captions[position] for position in some[1]])
    scores = {name: score(images, texts) for name, score in session.scorers().items()}
    return OwnScores(some[0], some[1], scores)


def check_scorers(
    side: str, own: OwnScores, scores: Scores, tolerance: float
) -> tuple[ScorerCheck, ...]:
    """Compare a session's own scores with those of the whole dataset.

    Args:
        side: What to call the session.
        own: From :func:`own_scores`.
        scores: Of the whole dataset.
        tolerance: Largest difference that passes.
    """
    kernel = np.asarray(scores[np.ix_(own.images, own.captions)])
    return tuple(
        ScorerCheck(side, name, kernel.size, float(np.abs(kernel - found).max()), tolerance)
        for name, found in own.scores.items()
    )


def _spread(total: int, count: int) -> np.ndarray:
    count = min(total, count)
    return np.arange(count, dtype=np.int64) * total // count
