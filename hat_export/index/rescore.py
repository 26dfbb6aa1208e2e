"""How many candidates two-stage search needs for a given recall, and what they cost.

For one query the right item is found among the first K exactly if it is a candidate, and fewer than
K candidates score as high. With the items in coarse order, the number of those among the first N
only grows with N: so each query counts as found on one interval of N, and the recall at every N
comes from one pass over the score matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from hat_export.base.timer import Timer
from hat_export.errors import InputError
from hat_export.index.images import ImageIndex
from hat_export.index.search import Hits, top_positions
from hat_export.score.features import TextFeatures
from hat_export.score.metrics import RECALL_AT

#: Losses of recall, in percentage points, for which a number of candidates is chosen.
DEFAULT_LOSSES = (0.0, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Recall of two-stage search at every number of candidates.

    Attributes:
        queries: Captions that it was measured with.
        exact: Per K of :data:`RECALL_AT`, recall@K of the exact scores in percent.
        recalls: Per K, float64 [images]: recall@K in percent with 1, 2, ... candidates.
        rescore: Per loss in percentage points, the smallest number of candidates from which on no
            recall@K is lower than the exact one by more than that.
    """

    queries: int
    exact: dict[int, float]
    recalls: dict[int, Float64[np.ndarray, " images"]]
    rescore: dict[float, int]

    def recall(self, at: int, rescore: int) -> float:
        """Recall@``at`` in percent with some number of candidates, at least 1."""
        curve = self.recalls[at]
        return float(curve[min(rescore, len(curve)) - 1])

    def to_json(self) -> dict[str, Any]:
        """Exact recalls, the chosen numbers, and the curve at 1, 2, 5, 10, 20, ... candidates."""
        images = len(self.recalls[RECALL_AT[0]])
        steps = sorted(set(_steps(images)) | set(self.rescore.values()))
        return {
            "queries": self.queries,
            "images": images,
            "exact": {f"r{at}": value for at, value in self.exact.items()},
            "rescore": [{"loss": loss, "rescore": n} for loss, n in self.rescore.items()],
            "curve": [
                {"rescore": n, **{f"r{at}": self.recall(at, n) for at in RECALL_AT}} for n in steps
            ],
        }


def calibrate(
    exact: Float32[np.ndarray, "images captions"],
    coarse: Float32[np.ndarray, "images captions"],
    owners: Sequence[int],
    losses: Sequence[float] = DEFAULT_LOSSES,
) -> Calibration:
    """Measure the recall, caption to image, of rescoring the first N by a coarse score.

    An image that scores exactly as high as the right one counts as ranked before it, as in
    :mod:`hat_export.score.metrics`; with all images as candidates the recalls are those.

    Args:
        exact: Exact scores.
        coarse: Coarse scores; equal ones are taken in order of position, as search does.
        owners: For every caption, the position of its image.
        losses: Tolerated losses of recall, in percentage points.

    Raises:
        InputError: if shapes don't fit, a score isn't finite or a loss is negative.
    """
    images, captions = exact.shape
    owner = np.asarray(owners, np.int64)
    if coarse.shape != exact.shape or owner.shape != (captions,) or not exact.size:
        raise InputError(
            f"exact scores {list(exact.shape)}, coarse scores {list(coarse.shape)} and "
            f"{owner.size} owners: expected equal shapes, not empty, and an owner per caption"
        )
    if owner.min() < 0 or owner.max() >= images:
        raise InputError(f"owners: expected positions from 0 to {images - 1}")
    if not (np.isfinite(exact).all() and np.isfinite(coarse).all()):
        raise InputError("a score is NaN or infinite; a calibration has no meaning")
    if any(not loss >= 0 for loss in losses):
        raise InputError(f"losses {list(losses)}: expected percentage points of at least 0")
    # Queries that start or stop to be found at N + 1 candidates.
    changes = {at: np.zeros(images + 1, np.int64) for at in RECALL_AT}
    for caption, right in enumerate(owner.tolist()):
        order = top_positions(coarse[:, caption], images)
        place = int(np.flatnonzero(order == right)[0])
        rivals = exact[order, caption] >= exact[right, caption]
        rivals[place] = False
        before = np.cumsum(rivals)
        for at in RECALL_AT:
            lost = int(np.searchsorted(before, at))
            if place < lost:
                changes[at][place] += 1
                changes[at][lost] -= 1
    recalls = {at: 100.0 * np.cumsum(change)[:-1] / captions for at, change in changes.items()}
    final = {at: float(curve[-1]) for at, curve in recalls.items()}
    rescore = {}
    for loss in losses:
        # A hair's breadth for the rounding of percentages: far below one query of a million.
        short = [curve < final[at] - loss - 1e-9 for at, curve in recalls.items()]
        fails = np.flatnonzero(np.any(short, axis=0))
        rescore[float(loss)] = int(fails[-1]) + 2 if len(fails) else 1
    return Calibration(captions, final, recalls, rescore)


@dataclass(frozen=True)
class SearchPoint:
    """One setting of the search.

    Attributes:
        rescore: Candidates scored exactly.
        recalls: Per K of :data:`RECALL_AT`, recall@K in percent.
        median_ms: Median duration of one caption's search, in milliseconds.
        p90_ms: Duration that 90 % of the searches stayed below, in milliseconds.
    """

    rescore: int
    recalls: dict[int, float]
    median_ms: float
    p90_ms: float


@dataclass(frozen=True)
class SearchReport:
    """Recall and latency of two-stage search over numbers of candidates.

    Attributes:
        candidates: How they were found.
        images: Images in the index.
        captions: Captions searched for.
        precision: Storage precision of the index.
        threads: Threads of the kernel.
        points: Settings, fewest candidates first; the last one is the exact search.
    """

    candidates: str
    images: int
    captions: int
    precision: str
    threads: int
    points: tuple[SearchPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; durations in milliseconds, recalls in percent."""
        return {
            "candidates": self.candidates,
            "images": self.images,
            "captions": self.captions,
            "precision": self.precision,
            "threads": self.threads,
            "points": [
                {
                    "rescore": point.rescore,
                    **{f"r{at}": value for at, value in point.recalls.items()},
                    "median_ms": point.median_ms,
                    "p90_ms": point.p90_ms,
                }
                for point in self.points
            ],
        }


def measure_search(
    index: ImageIndex,
    texts: TextFeatures,
    owners: Sequence[int],
    candidates: str,
    rescores: Sequence[int],
    threads: int = 1,
    timer: Timer | None = None,
) -> SearchReport:
    """Search caption by caption at several numbers of candidates, and exactly.

    For each caption all settings run one after the other, so that a change in the machine's load
    meets all of them. A duration covers preparing the caption and both stages, not encoding it.

    Args:
        index: The images.
        texts: Word features of the captions; at least one.
        owners: For every caption, the position of its image.
        candidates: A name of :data:`hat_export.index.search.CANDIDATES`.
        rescores: Numbers of candidates, each at least 10 (for recall@10) or all images.
        threads: Threads of the kernel.
        timer: What times the searches.

    Raises:
        InputError: as :meth:`hat_export.index.images.ImageIndex.search`, or if there is nothing to
            search for.
    """
    if not len(texts) or not len(index) or len(owners) != len(texts):
        raise InputError(
            f"{len(texts)} captions with {len(owners)} owners in an index of {len(index)} images: "
            "expected at least one caption and image, and an owner per caption"
        )
    timer = timer or Timer()
    settings = sorted({min(n, len(index)) for n in rescores} | {len(index)})
    seconds: dict[int, list[float]] = {n: [] for n in settings}
    found: dict[int, dict[int, int]] = {n: dict.fromkeys(RECALL_AT, 0) for n in settings}
    for number, owner in enumerate(owners):
        caption = texts[number : number + 1]
        for n in settings:
            run = partial(index.search, caption, max(RECALL_AT), candidates, n, threads)
            hits, own = _timed_search(timer, run)
            seconds[n].append(own)
            # Only what search returns counts: ties are in order of position here.
            place = np.flatnonzero(hits.positions == owner)
            for at in RECALL_AT:
                found[n][at] += bool(len(place)) and bool(place[0] < at)
    points = tuple(
        SearchPoint(
            n,
            {at: 100.0 * count / len(texts) for at, count in found[n].items()},
            1e3 * float(np.median(seconds[n])),
            1e3 * float(np.quantile(seconds[n], 0.9)),
        )
        for n in settings
    )
    return SearchReport(candidates, len(index), len(texts), index.storage.name, threads, points)


def _timed_search(timer: Timer, run: Callable[[], list[Hits]]) -> tuple[Hits, float]:
    """What a search for one caption finds, and its seconds without waits for a core."""
    found: list[Hits] = []
    with timer.calls() as timed:
        call = timed(lambda: found.extend(run()))
    (hits,) = found
    return hits, call.own


def _steps(images: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... below the number of images, and that number."""
    steps = []
    scale = 1
    while scale < images:
        steps += [n for n in (scale, 2 * scale, 5 * scale) if n < images]
        scale *= 10
    return [*steps, images]
