"""How much of a ranking a candidate keeps: the reference's ten best answers that stay.

Recall counts one answer a query, and only where it crosses rank 1, 5 or 10: on a thousand images
its interval is wider than all differences between careful quantizations. Ten answers a query say
ten times as much, and need no labels: the reference's own ranking is what has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from hat_export.errors import InputError
from hat_export.parity.comparison import Scores
from hat_export.parity.statistics import CONFIDENCE, SEED
from hat_export.score.metrics import row_blocks

#: Answers of a query that are looked at.
AT = 10
RESAMPLES = 2_000


@dataclass(frozen=True)
class Kept:
    """Shares in percent of the reference's best answers that the candidate keeps.

    Attributes:
        i2t: Captions of an image.
        t2i: Images of a caption.
        both: Mean of the two.
        low: Lower end of the 95 % interval of ``both``.
        high: Upper end.
    """

    i2t: float
    t2i: float
    both: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """All numbers by name."""
        return asdict(self)

    def sentence(self) -> str:
        """For reports."""
        return (
            f"Top {AT} kept: {self.both:.2f} % ({self.low:.2f} to {self.high:.2f}) of the "
            f"reference's {AT} best answers, i2t {self.i2t:.2f} %, t2i {self.t2i:.2f} %."
        )


def top_kept(
    reference: Scores, candidate: Scores, owners: Sequence[int], seed: int = SEED
) -> Kept | None:
    """Compare the best answers of two score matrices.

    An answer is one of the best if its score reaches the tenth best of its query: of items that tie
    there all count, on both sides. The interval is a bootstrap over images, each drawn with its
    captions, as :mod:`hat_export.parity.statistics` does it.

    Args:
        reference: Higher is better; may lie in a file.
        candidate: The same pairs.
        owners: For every caption, the index of its image.
        seed: Of the resampling.

    Returns:
        The shares; None with too few images or captions to choose ten of.

    Raises:
        InputError: if the matrices differ in shape.
    """
    if reference.shape != candidate.shape:
        raise InputError(
            f"scores are {list(reference.shape)} and {list(candidate.shape)}; expected one shape"
        )
    images, captions = reference.shape
    if min(images, captions) <= AT:
        return None
    owner = np.asarray(owners, np.int64)
    i2t = np.concatenate([_shares(*pair) for pair in _blocks(reference, candidate)])
    t2i = np.concatenate([_shares(*pair) for pair in _blocks(reference.T, candidate.T)])
    of_image = np.bincount(owner, weights=t2i, minlength=images)
    count = np.bincount(owner, minlength=images)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(images, np.full(images, 1 / images), RESAMPLES)
    samples = (drawn @ i2t / images + drawn @ of_image / (drawn @ count)) / 2
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(100 * samples, [tail, 100 - tail])
    first, second = 100 * float(i2t.mean()), 100 * float(t2i.mean())
    return Kept(first, second, (first + second) / 2, float(low), float(high))


def _blocks(
    reference: np.ndarray, candidate: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Queries of both sides, block by block."""
    for start, block in row_blocks(reference):
        yield block, np.asarray(candidate[start : start + len(block)])


def _shares(before: np.ndarray, after: np.ndarray) -> Float64[np.ndarray, " queries"]:
    """Share of each query's best answers that stay."""
    best, still = (_among_best(side) for side in (before, after))
    return np.asarray((best & still).sum(1) / best.sum(1), np.float64)


def _among_best(scores: np.ndarray) -> np.ndarray:
    tenth = -np.partition(-scores, AT - 1, axis=1)[:, AT - 1]
    return np.asarray(scores >= tenth[:, None])
