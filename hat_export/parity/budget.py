"""Budgets: how far recall may drop, judged on the interval and not on the luck of one sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hat_export.errors import InputError
from hat_export.parity.statistics import RECALLS, Delta, images_needed, label
from hat_export.score.metrics import RECALL_AT

#: What a budget may limit: the drop of a recall in both directions, in one, or that of rsum.
BUDGET_KEYS = (*(f"r{at}" for at in RECALL_AT), *RECALLS, "rsum")

#: Recalls are counts over counts: their difference rounds by far less than this part of a point.
ROUNDING = 1e-6


#: A fifth of a point of each recall is one image of 500; half a point of their sum.
DEFAULT_BUDGET = "r1=0.2,r5=0.2,r10=0.2,rsum=0.5"


class Verdict(StrEnum):
    """What a budget has to say."""

    passed = "passed"
    failed = "failed"
    undecided = "could not judge"


@dataclass(frozen=True)
class Judgement:
    """One limit held against one metric.

    Attributes:
        metric: Name of the metric, e.g. ``i2t_r1``.
        limit: Largest allowed drop in points.
        drop: Observed drop in points; negative for a gain.
        worst: The interval's worst end, as a drop.
        verdict: ``passed`` if even the worst end keeps the limit, ``failed`` if the observed drop
            doesn't, else undecided.
        needed: Images with which the worst end would keep the limit if the drop stayed as it is;
            None where none would do, or none are needed.
    """

    metric: str
    limit: float
    drop: float
    worst: float
    verdict: Verdict
    needed: int | None

    def sentence(self) -> str:
        """The judgement in one sentence, without a full stop."""
        text = f"{label(self.metric)} {_change(self.drop)}, allowed drop {self.limit:g}"
        if self.verdict is Verdict.undecided:
            text += f", and with {self.worst:.2f} points the interval's worst end is beyond that"
            text += (
                f": it takes about {self.needed:,} images to tell"
                if self.needed
                else ": a drop of just what is allowed is told by no number of images"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return {**asdict(self), "verdict": self.verdict.value}


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


def judge(
    deltas: Mapping[str, Delta], budget: Mapping[str, float], images: int
) -> tuple[Judgement, ...]:
    """Hold every limit against every metric that it is for.

    Args:
        deltas: From :func:`hat_export.parity.statistics.deltas`.
        budget: Largest allowed drop in points by key of :data:`BUDGET_KEYS`; ``r1`` holds for both
            directions, ``i2t_r1`` goes before it.
        images: Number of images, which the number of those needed exceeds.
    """
    found = []
    for metric in (*RECALLS, "rsum"):
        limit = budget.get(metric, budget.get(metric.split("_")[-1]))
        if limit is None:
            continue
        delta = deltas[metric]
        drop, worst = 0.0 - delta.difference, 0.0 - delta.low
        needed = None
        if drop > limit + ROUNDING:
            verdict = Verdict.failed
        elif worst > limit + ROUNDING:
            verdict = Verdict.undecided
            needed = images_needed(delta.spread or 0.0, limit - drop)
            # The interval isn't quite symmetric: at least more than there were.
            needed = max(needed, images + 1) if needed else None
        else:
            verdict = Verdict.passed
        found.append(Judgement(metric, limit, drop, worst, verdict, needed))
    return tuple(found)


def overall(judgements: tuple[Judgement, ...], strict: bool) -> Verdict:
    """The verdict on all limits together.

    Args:
        judgements: From :func:`judge`.
        strict: Whether what can't be judged has failed.
    """
    verdicts = {item.verdict for item in judgements}
    if Verdict.failed in verdicts or (strict and Verdict.undecided in verdicts):
        return Verdict.failed
    return Verdict.undecided if Verdict.undecided in verdicts else Verdict.passed


def _change(drop: float) -> str:
    if abs(drop) < ROUNDING:
        return "did not change"
    return f"{'dropped' if drop > 0 else 'gained'} {abs(drop):.2f} points"
