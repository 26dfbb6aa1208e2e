"""Retrieval metrics by the official protocol: recall@K, median and mean rank, rsum.

Tie rule: an item that scores exactly as high as the right one counts as ranked before it. A model
can't gain recall by giving equal scores; how much the opposite rule would add is reported beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from hat_export.errors import InputError

RECALL_AT = (1, 5, 10)

#: Scores that are compared at a time; the comparisons take some ten bytes for each.
BLOCK_VALUES = 4 << 20


@dataclass(frozen=True)
class Ranks:
    """Rank of the right answer per query, counted from 0.

    Attributes:
        worst: Ties counted against the right answer; what is reported.
        best: Ties counted in its favour.
    """

    worst: Int64[np.ndarray, " queries"]
    best: Int64[np.ndarray, " queries"]

    def recall(self, at: int) -> float:
        """Share of queries, in percent, whose right answer is among the first ``at``."""
        return 100.0 * float(np.mean(self.worst < at))

    def recall_if_ties_won(self, at: int) -> float:
        """The same with every tie decided in favour of the right answer."""
        return 100.0 * float(np.mean(self.best < at))

    @property
    def median(self) -> float:
        """Median rank counted from 1; between two middle ranks the lower whole number."""
        return float(np.floor(np.median(self.worst)) + 1)

    @property
    def mean(self) -> float:
        """Mean rank counted from 1."""
        return float(np.mean(self.worst) + 1)

    def to_json(self) -> dict[str, Any]:
        """Metrics of one direction."""
        return {
            "queries": len(self.worst),
            **{f"r{at}": self.recall(at) for at in RECALL_AT},
            **{f"r{at}_if_ties_won": self.recall_if_ties_won(at) for at in RECALL_AT},
            "median_rank": self.median,
            "mean_rank": self.mean,
        }


@dataclass(frozen=True)
class Retrieval:
    """Ranks in both directions.

    Attributes:
        i2t: Image to text: per image, the rank of the best of its captions.
        t2i: Text to image: per caption, the rank of its image.
    """

    i2t: Ranks
    t2i: Ranks

    @property
    def rsum(self) -> float:
        """Sum of the six recalls in percent."""
        return sum(ranks.recall(at) for ranks in (self.i2t, self.t2i) for at in RECALL_AT)

    def to_json(self) -> dict[str, Any]:
        """All metrics as plain JSON values."""
        return {"i2t": self.i2t.to_json(), "t2i": self.t2i.to_json(), "rsum": self.rsum}


def rank(scores: Float[np.ndarray, "images captions"], owners: Sequence[int]) -> Retrieval:
    """Rank every image's captions and every caption's image.

    Args:
        scores: Higher is better; may lie in a file (``numpy.memmap``).
        owners: For every caption, the index of its image; every image has at least one.

    Returns:
        Ranks in both directions.

    Raises:
        InputError: on NaN or infinite scores (under the usual reversed argsort one NaN a row
            would make a perfect recall) or owners that don't fit.
    """
    images, captions = scores.shape
    owner = np.asarray(owners, np.int64)
    if owner.shape != (captions,) or set(np.unique(owner).tolist()) != set(range(images)):
        raise InputError(
            f"scores are {images} x {captions}; expected an owner from 0 to {images - 1} for each "
            "caption, and a caption for each image"
        )
    broken = sum(int((~np.isfinite(block)).sum()) for _, block in row_blocks(scores))
    if broken:
        raise InputError(
            f"{broken} of {scores.size} scores are NaN or infinite; ranks have no meaning"
        )
    right = np.asarray(scores[owner, np.arange(captions)])
    best = np.full(images, -np.inf)
    np.maximum.at(best, owner, right)
    t2i_higher, t2i_equal = (np.zeros(captions, np.int64) for _ in range(2))
    i2t_higher, i2t_equal = (np.zeros(images, np.int64) for _ in range(2))
    for start, block in row_blocks(scores):
        rows = slice(start, start + len(block))
        t2i_higher += (block > right).sum(0)
        t2i_equal += (block == right).sum(0)
        own = owner[None, :] == np.arange(rows.start, rows.stop)[:, None]
        i2t_higher[rows] = (block > best[rows, None]).sum(1)
        i2t_equal[rows] = ((block == best[rows, None]) & ~own).sum(1)
    return Retrieval(
        i2t=Ranks(worst=i2t_higher + i2t_equal, best=i2t_higher),
        t2i=Ranks(worst=t2i_higher + t2i_equal - 1, best=t2i_higher),  # less the answer itself
    )


def row_blocks(
    scores: Float[np.ndarray, "images captions"],
) -> Iterator[tuple[int, Float[np.ndarray, "images captions"]]]:
    """Blocks of rows in memory, so that a matrix in a file is never read as a whole.

    Yields:
        First row, and the rows.
    """
    count = max(1, BLOCK_VALUES // max(1, scores.shape[1]))
    for start in range(0, len(scores), count):
        yield start, np.asarray(scores[start : start + count])


def fold_mean(
    scores: Float[np.ndarray, "images captions"], owners: Sequence[int], folds: int
) -> dict[str, float]:
    """Mean metrics over consecutive folds of images (COCO 1K: 5 folds of 1,000).

    Args:
        scores: As in :func:`rank`.
        owners: As in :func:`rank`.
        folds: Number of folds; must divide the number of images.

    Returns:
        ``i2t_r1`` ... ``t2i_mean_rank`` and ``rsum``, each the mean over the folds.

    Raises:
        InputError: if the folds don't divide the images.
    """
    images = scores.shape[0]
    if folds < 1 or images % folds:
        raise InputError(f"{folds} folds do not divide {images} images")
    owner = np.asarray(owners, np.int64)
    size = images // folds
    rows: list[dict[str, float]] = []
    for start in range(0, images, size):
        mine = (owner >= start) & (owner < start + size)
        fold = rank(scores[start : start + size, mine], (owner[mine] - start).tolist())
        row = {"rsum": fold.rsum}
        for side, ranks in (("i2t", fold.i2t), ("t2i", fold.t2i)):
            row |= {f"{side}_r{at}": ranks.recall(at) for at in RECALL_AT}
            row |= {f"{side}_median_rank": ranks.median, f"{side}_mean_rank": ranks.mean}
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
