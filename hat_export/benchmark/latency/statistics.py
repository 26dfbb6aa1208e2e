"""Quantiles of durations, and how far they can be trusted.

Within a run: a bootstrap of two stages, passes and then blocks of consecutive rounds in each.
Neighbouring rounds are alike, since what else the machine does comes and goes over many of them;
drawing single rounds would take them for independent and promise too much (the circular block
bootstrap of Politis and Romano, 1992). Targets of one run share its rounds and are drawn together:
what slowed a round down slowed them all.

Between two runs: the logarithm of a target's time, one value a pass. Passes of a run differ by what
two runs differ by as well, the layout of memory and what the machine did meanwhile, so that their
spread gives the standard error. The anchor that was timed beside them is a covariate: how far a
target follows it is estimated from all passes of both runs, with one to one as the prior, so that
it corrects where the machine changes as a whole and adds no noise where only the anchor does. A run
has few passes but many cases, and the variance of a case is moderated by that of all (Smyth,
"Linear models and empirical Bayes methods", 2004, with a fixed weight). Student's t gives the
interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

#: Of the intervals in a report.
CONFIDENCE = 0.95
RESAMPLES = 2000
#: Fixed, so that the same samples give the same interval.
SEED = 2308

#: Degrees of freedom that the variance of all cases counts beside a case's own ones.
PRIOR_DEGREES = 16
#: Sum of squares of the anchor's logarithm that "one to one" counts: eight passes that vary by 3 %.
PRIOR_SQUARES = 8 * 0.03**2

#: A value a round, pass by pass.
Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that it is trusted to lie in.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def scaled(self, factor: float) -> Interval:
        """In another unit."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Statistics of durations: milliseconds, and the coefficient of variation as a share."""
    values = 1e3 * np.asarray(seconds, np.float64)
    found = {"min_ms": float(values.min()), "mean_ms": float(values.mean())}
    for percent in (50, 90, 95, 99):
        found[f"p{percent}_ms"] = float(np.percentile(values, percent))
    found["max_ms"] = float(values.max())
    found["cv"] = float(values.std() / values.mean())
    return found


def block_length(rounds: int) -> int:
    """Rounds that are drawn together: about the square root of their number."""
    return max(1, round(math.sqrt(rounds)))


def draw(lengths: Sequence[int], resamples: int = RESAMPLES) -> np.ndarray:
    """Indices of resampled rounds in the sequence of all passes' rounds.

    Args:
        lengths: Rounds of each pass.
        resamples: How many samples.

    Returns:
        int64 [resamples, about the number of rounds].
    """
    random = np.random.default_rng(SEED)
    sizes = np.asarray(lengths)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    per_pass = int(np.median(sizes))
    length = block_length(per_pass)
    blocks = -(-per_pass // length)
    chosen = random.integers(0, len(sizes), (resamples, len(sizes), 1, 1))
    starts = random.random((resamples, len(sizes), blocks, 1)) * sizes[chosen]
    places = (starts.astype(np.int64) + np.arange(length)) % sizes[chosen]
    drawn: np.ndarray = (places + offsets[chosen]).reshape(resamples, -1)
    return drawn


def median_interval(rounds: Rounds) -> Interval:
    """Interval of the median over rounds."""
    values = np.concatenate([np.asarray(part, np.float64) for part in rounds])
    samples = np.median(values[draw([len(part) for part in rounds])], axis=1)
    return _interval(float(np.median(values)), samples)


def paired_ratio(first: Rounds, second: Rounds) -> Interval:
    """Ratio of the medians of two targets that were timed in the same rounds, first / second."""
    a, b = (np.concatenate([np.asarray(p, np.float64) for p in side]) for side in (first, second))
    drawn = draw([len(part) for part in first])
    samples = np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)
    return _interval(float(np.median(a) / np.median(b)), samples)


def _interval(value: float, samples: np.ndarray) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples, (tail, 100 - tail))
    return Interval(value, float(low), float(high))


@dataclass(frozen=True)
class Passes:
    """One case in one run.

    Attributes:
        target: Logarithm of the target's time, one value a pass.
        anchor: Logarithm of the anchor's time, one value a pass.
    """

    target: tuple[float, ...]
    anchor: tuple[float, ...]

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Deviations from the run's mean, of the target and of the anchor."""
        target, anchor = np.asarray(self.target), np.asarray(self.anchor)
        return target - target.mean(), anchor - anchor.mean()


@dataclass(frozen=True)
class Sides:
    """One case in two runs.

    Attributes:
        old: The run before.
        new: The run after.
    """

    old: Passes
    new: Passes

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the variance within the runs."""
        return len(self.old.target) + len(self.new.target) - 2


def ratios_of_runs(cases: Sequence[Sides], confidence: float) -> list[Interval]:
    """Ratio new / old of every case, with an interval.

    Args:
        cases: At least one of them with two passes in a run.
        confidence: Of each interval.
    """
    centred = [[side.centred() for side in (case.old, case.new)] for case in cases]
    flat = [pair for sides in centred for pair in sides]
    squares = PRIOR_SQUARES + sum(float(x @ x) for _, x in flat)
    products = PRIOR_SQUARES + sum(float(y @ x) for y, x in flat)
    slope = min(1.0, max(0.0, products / squares))
    rests = [sum(float(np.square(y - slope * x).sum()) for y, x in sides) for sides in centred]
    all_degrees = sum(case.degrees for case in cases)
    common = sum(rests) / all_degrees
    found = []
    for case, rest in zip(cases, rests, strict=True):
        prior = min(PRIOR_DEGREES, all_degrees)
        degrees = prior + case.degrees
        variance = (prior * common + rest) / degrees
        moved = float(np.mean(case.new.anchor) - np.mean(case.old.anchor))
        change = float(np.mean(case.new.target) - np.mean(case.old.target)) - slope * moved
        share = 1 / len(case.old.target) + 1 / len(case.new.target) + moved**2 / squares
        half = student_quantile(0.5 + confidence / 2, degrees) * math.sqrt(variance * share)
        found.append(Interval(*(math.exp(change + shift) for shift in (0.0, -half, half))))
    return found


def student_quantile(share: float, degrees: int) -> float:
    """Quantile of Student's t, by its expansion around the normal (Abramowitz and Stegun 26.7.5).

    Args:
        share: Between 0 and 1.
        degrees: Of freedom; from 8 on the error stays under 0.5 % up to a share of 0.9995.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
