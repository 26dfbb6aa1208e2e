"""Does a candidate retrieve what the reference retrieves? Recall, deltas and every changed rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from hat_export.errors import InputError
from hat_export.report import Report, Table
from hat_export.retrieval import RECALL_AT, Retrieval, rank

#: Two scores closer than this are a tie. Features of two correct float32 runtimes differ by some
#: 1e-6; where a word's dot products are all near zero, their normalisation makes that more: on the
#: demo model's 5 million pairs the scores differ by up to 2.3e-5. One up and one down, two scores
#: swap within twice that.
TIE_MARGIN = 5e-5

#: What a budget may limit: the drop of a recall (in either direction) or of rsum, in points.
BUDGET_KEYS = ("r1", "r5", "r10", "rsum")


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
    """

    direction: str
    query: int
    before: int
    after: int
    margin: float

    @property
    def tie(self) -> bool:
        """Whether everything that changed sides was a tie within float32's noise."""
        return self.margin <= TIE_MARGIN


@dataclass(frozen=True)
class Parity:
    """Outcome of a comparison on one dataset.

    Attributes:
        reference: Metrics of the reference.
        candidate: Metrics of the candidate.
        changed: Queries whose rank changed.
        score_difference: Largest absolute difference of a score.
        images: Number of images.
        captions: Number of captions.
    """

    reference: Retrieval
    candidate: Retrieval
    changed: tuple[ChangedRank, ...]
    score_difference: float
    images: int
    captions: int

    def deltas(self) -> dict[str, float]:
        """Candidate minus reference, in points: ``i2t_r1`` ... ``t2i_r10`` and ``rsum``."""
        found = {"rsum": self.candidate.rsum - self.reference.rsum}
        for side in ("i2t", "t2i"):
            before, after = getattr(self.reference, side), getattr(self.candidate, side)
            found |= {f"{side}_r{at}": after.recall(at) - before.recall(at) for at in RECALL_AT}
        return found

    def violations(self, budget: Mapping[str, float]) -> list[str]:
        """Which limits are exceeded.

        Args:
            budget: Largest allowed drop in points by key of :data:`BUDGET_KEYS`; a recall's limit
                holds for both directions.
        """
        found = []
        for name, delta in self.deltas().items():
            limit = budget.get(name.split("_")[-1])
            # A millionth of a point: recalls are counts over counts, their difference rounds.
            if limit is not None and -delta > limit + 1e-6:
                found.append(f"{name} dropped by {-delta:.2f} points, allowed {limit:g}")
        return found


def parse_budget(text: str) -> dict[str, float]:
    """A budget such as ``r1=0.2,rsum=0.5``.

    Raises:
        InputError: on an unknown key or a value that is no number from 0 up.
    """
    budget = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        key = key.strip()
        if key not in BUDGET_KEYS:
            raise InputError(
                f"budget {text!r}: unknown key {key!r}; expected KEY=POINTS with KEY one of "
                f"{', '.join(BUDGET_KEYS)}"
            )
        try:
            limit = float(value)
        except ValueError:
            limit = -1.0
        if not 0 <= limit < float("inf"):
            raise InputError(f"budget {text!r}: {value!r} is not a number of points from 0 up")
        budget[key] = limit
    return budget


def compare(
    reference: Float32[np.ndarray, "images captions"],
    candidate: Float32[np.ndarray, "images captions"],
    owners: list[int],
) -> Parity:
    """Compare two score matrices of one dataset.

    Args:
        reference: Scores of the reference.
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
    changed = []
    owner = np.asarray(owners)
    for direction in ("i2t", "t2i"):
        old, new = getattr(before, direction).worst, getattr(after, direction).worst
        for query in np.flatnonzero(old != new):
            margin = _margin(reference, candidate, owner, direction, int(query))
            changed.append(
                ChangedRank(direction, int(query), int(old[query]) + 1, int(new[query]) + 1, margin)
            )
    return Parity(
        reference=before,
        candidate=after,
        changed=tuple(changed),
        score_difference=float(np.abs(reference - candidate).max()),
        images=reference.shape[0],
        captions=reference.shape[1],
    )


def _margin(
    reference: np.ndarray, candidate: np.ndarray, owner: np.ndarray, direction: str, query: int
) -> float:
    """Largest reference distance between the right answer and an item that changed sides."""
    if direction == "t2i":
        right = int(owner[query])
        gaps = [scores[:, query] - scores[right, query] for scores in (reference, candidate)]
    else:
        own = owner == query
        gaps = []
        for scores in (reference, candidate):
            gap = scores[query] - scores[query, own].max()
            gap[own] = -1.0  # the image's own captions never count against it
            gaps.append(gap)
    moved = (gaps[0] >= 0) != (gaps[1] >= 0)
    return float(np.abs(gaps[0][moved]).max())


def parity_report(
    parity: Parity,
    names: tuple[str, str],
    dataset: str,
    budget: Mapping[str, float],
    environment: Mapping[str, Any],
    folds: tuple[int, Mapping[str, float], Mapping[str, float]] | None = None,
) -> Report:
    """The report of a comparison.

    Args:
        parity: The comparison.
        names: What to call reference and candidate.
        dataset: What to call the dataset.
        budget: Limits, see :meth:`Parity.violations`.
        environment: Machine and versions.
        folds: Number of folds, and the mean metrics over them of reference and candidate, from
            :func:`hat_export.retrieval.fold_mean`.
    """
    violations = parity.violations(budget)
    ties = sum(item.tie for item in parity.changed)
    total = parity.images + parity.captions
    limits = ", ".join(f"{key} {value:g}" for key, value in budget.items())
    verdict = "FAILED: " + "; ".join(violations) if violations else "passed"
    summary = (
        f"Parity {verdict} (largest allowed drop in points: {limits}).",
        f"{total - len(parity.changed)} of {total} ranks identical; {len(parity.changed)} changed, "
        f"{ties} of them between items that tie within {TIE_MARGIN:g}. "
        f"Largest score difference {parity.score_difference:.2g}.",
    )
    data = {
        "reference": {"name": names[0], **parity.reference.to_json()},
        "candidate": {"name": names[1], **parity.candidate.to_json()},
        "dataset": dataset,
        "images": parity.images,
        "captions": parity.captions,
        "deltas": parity.deltas(),
        "budget": dict(budget),
        "violations": violations,
        "score_difference": parity.score_difference,
        "tie_margin": TIE_MARGIN,
        "changed": [asdict(item) | {"tie": item.tie} for item in parity.changed],
        "environment": dict(environment),
    }
    tables = [_recall_table(parity, names, dataset)]
    if parity.changed:
        tables.append(_changed_table(parity))
    if folds:
        count, before, after = folds
        data["folds"] = {"count": count, "reference": dict(before), "candidate": dict(after)}
        tables.insert(1, _fold_table(count, names, before, after))
    title = f"Recall parity: {names[1]} against {names[0]}"
    return Report("parity", title, not violations, summary, tuple(tables), data)


def _recall_table(parity: Parity, names: tuple[str, str], dataset: str) -> Table:
    columns = ("", *(f"{side} R@{at}" for side in ("i2t", "t2i") for at in RECALL_AT), "rsum")
    rows = []
    for name, result in zip(names, (parity.reference, parity.candidate), strict=True):
        recalls = [ranks.recall(at) for ranks in (result.i2t, result.t2i) for at in RECALL_AT]
        rows.append((name, *(f"{value:.2f}" for value in (*recalls, result.rsum))))
    deltas = parity.deltas()
    keys = [f"{side}_r{at}" for side in ("i2t", "t2i") for at in RECALL_AT]
    rows.append(("difference", *(f"{deltas[key]:+.2f}" for key in (*keys, "rsum"))))
    won = [
        ranks.recall_if_ties_won(at) - ranks.recall(at)
        for ranks in (parity.candidate.i2t, parity.candidate.t2i)
        for at in RECALL_AT
    ]
    rows.append(("if all ties were won", *(f"{value:+.2f}" for value in (*won, sum(won)))))
    note = (
        f"{dataset}: {parity.images} images, {parity.captions} captions. Percent of queries. "
        "A score equal to the right answer's counts as ranked before it."
    )
    return Table("Recall", columns, tuple(rows), note)


def _fold_table(
    count: int, names: tuple[str, str], before: Mapping[str, float], after: Mapping[str, float]
) -> Table:
    keys = [f"{side}_r{at}" for side in ("i2t", "t2i") for at in RECALL_AT]
    columns = ("", *(key.replace("_r", " R@") for key in keys), "rsum")
    rows = tuple(
        (name, *(f"{found[key]:.2f}" for key in (*keys, "rsum")))
        for name, found in zip(names, (before, after), strict=True)
    )
    note = f"Mean over {count} consecutive folds of the images, each with its own captions."
    return Table(f"Recall over {count} folds", columns, rows, note)


def _changed_table(parity: Parity, most: int = 20) -> Table:
    worst = sorted(parity.changed, key=lambda item: -item.margin)[:most]
    rows = tuple(
        (
            f"{item.direction} {item.query}",
            str(item.before),
            str(item.after),
            f"{item.margin:.2g}",
            "yes" if item.tie else "no",
        )
        for item in worst
    )
    note = f"{len(parity.changed)} in all; widest margin first, at most {most} shown."
    columns = ("query", "rank before", "rank after", "margin", "tie")
    return Table("Changed ranks", columns, rows, note)
