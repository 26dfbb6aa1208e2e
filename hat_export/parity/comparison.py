"""Two score matrices of one dataset: metrics of both, and every rank that changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.errors import InputError
from hat_export.score.metrics import RECALL_AT, Ranks, Retrieval, rank, row_blocks

#: Two scores closer than this are a tie. Features of two correct float32 runtimes differ by some
#: 1e-6; where a word's dot products are all near zero, their normalisation makes that more: on the
#: demo model's 5 million pairs the scores differ by up to 2.3e-5. One up and one down, two scores
#: swap within twice that.
TIE_MARGIN = 5e-5

DIRECTIONS = ("i2t", "t2i")

#: Queries whose rows or columns are looked at together.
QUERY_BLOCK = 256

Scores = Float32[np.ndarray, "images captions"]


@dataclass(frozen=True)
class ChangedRank:
    """A query whose right answer has another rank.

    Attributes:
        direction: ``i2t`` or ``t2i``.
        query: Number of the image or caption.
        before: Rank by the reference, counted from 1.
        after: Rank by the candidate, counted from 1.
        margin: By the reference, the largest score distance between the right answer and an item
            that changed sides.
        score_before: Score of the right answer by the reference; for i2t of the best caption.
        score_after: The same by the candidate.
    """

    direction: str
    query: int
    before: int
    after: int
    margin: float
    score_before: float
    score_after: float

    @property
    def tie(self) -> bool:
        """Whether everything that changed sides was a tie within float32's noise."""
        return self.margin <= TIE_MARGIN

    @property
    def severity(self) -> tuple[bool, float]:
        """What the worst come first by: a lost recall, then how many times the rank has grown."""
        lost = any(self.before <= at < self.after for at in RECALL_AT)
        return lost, self.after / self.before


@dataclass(frozen=True)
class Parity:
    """Outcome of a comparison on one dataset.

    Attributes:
        reference: Metrics of the reference.
        candidate: Metrics of the candidate.
        changed: Queries whose rank changed, worst first.
        score_difference: Largest absolute difference of a score.
        owners: For every caption, the index of its image.
    """

    reference: Retrieval
    candidate: Retrieval
    changed: tuple[ChangedRank, ...]
    score_difference: float
    owners: Int64[np.ndarray, " captions"]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.reference.i2t.worst)

    @property
    def captions(self) -> int:
        """Number of captions."""
        return len(self.owners)


def compare_scores(reference: Scores, candidate: Scores, owners: Sequence[int]) -> Parity:
    """Compare two score matrices of one dataset.

    Args:
        reference: Scores of the reference; may lie in a file.
        candidate: Scores of the candidate.
        owners: For every caption, the index of its image.

    Raises:
        InputError: on NaN, or matrices of different shapes.
    """
    if reference.shape != candidate.shape:
        raise InputError(
            f"scores are {list(reference.shape)} and {list(candidate.shape)}; expected one shape"
        )
    before, after = rank(reference, owners), rank(candidate, owners)
    owner = np.asarray(owners, np.int64)
    changed: list[ChangedRank] = []
    for direction in DIRECTIONS:
        old, new = (_ranks(side, direction).worst for side in (before, after))
        queries = np.flatnonzero(old != new)
        for part, margins, scores in _margins(reference, candidate, owner, direction, queries):
            changed += [
                ChangedRank(
                    direction,
                    int(query),
                    int(old[query]) + 1,
                    int(new[query]) + 1,
                    float(margin),
                    float(first),
                    float(second),
                )
                for query, margin, first, second in zip(part, margins, *scores, strict=True)
            ]
    difference = max(
        float(np.abs(block - candidate[start : start + len(block)]).max())
        for start, block in row_blocks(reference)
    )
    changed.sort(key=lambda item: item.severity, reverse=True)
    return Parity(before, after, tuple(changed), difference, owner)


def _ranks(metrics: Retrieval, direction: str) -> Ranks:
    return metrics.i2t if direction == "i2t" else metrics.t2i


def _margins(
    reference: Scores, candidate: Scores, owner: np.ndarray, direction: str, queries: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Queries block by block, with their margins and their right answers' scores on both sides."""
    for start in range(0, len(queries), QUERY_BLOCK):
        part = queries[start : start + QUERY_BLOCK]
        gaps, right = [], []
        for scores in (reference, candidate):
            if direction == "t2i":
                asked = np.asarray(scores[:, part]).T
                answer = asked[np.arange(len(part)), owner[part]]
                gap = asked - answer[:, None]
            else:
                asked = np.asarray(scores[part])
                own = owner[None] == part[:, None]
                answer = np.where(own, asked, -np.inf).max(1)
                # The image's own captions never count against it.
                gap = np.where(own, np.float32(-1), asked - answer[:, None])
            gaps.append(gap)
            right.append(answer)
        moved = (gaps[0] >= 0) != (gaps[1] >= 0)
        yield part, np.where(moved, np.abs(gaps[0]), 0).max(1), (right[0], right[1])
