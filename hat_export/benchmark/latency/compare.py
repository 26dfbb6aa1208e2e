"""Two runs of the same cases: slower, faster, or no difference that could be told.

The machine is taken out by the time that threads waited for a core
(:class:`hat_export.base.timer.RunQueueWait`) and by the reference workload that was timed beside
every round, the noise is taken from the passes of both runs
(:mod:`hat_export.benchmark.latency.statistics`). All cases together shall raise a false alarm in at
most 5 % of the comparisons of equals, so each gets its share of that (Bonferroni). A change has to
exceed the margin with its whole interval: what is smaller than the margin is of no interest even if
it is certain.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hat_export.benchmark.latency.record import Measured, Run
from hat_export.benchmark.latency.statistics import CONFIDENCE, Interval, Sides, ratios_of_runs
from hat_export.errors import InputError
from hat_export.report.report import Report, Table

#: Relative change that is of no interest.
MARGIN = 0.02
KIND = "latency comparison"


@dataclass(frozen=True)
class Change:
    """One case in both runs.

    Attributes:
        case: The new run's.
        before: Median of the old run, in seconds.
        after: Median of the new run, in seconds.
        waited: Share of the calls' time, old and new, in which a thread got no core.
        passes: Passes of the old run and of the new one.
        ratio: Time new / old, the machine's own change taken out.
        verdict: ``slower``, ``faster`` or ``no difference``.
    """

    case: Measured
    before: float
    after: float
    waited: tuple[float, float]
    passes: tuple[int, int]
    ratio: Interval
    verdict: str


def compare_runs(
    old: Run, new: Run, margin: float = MARGIN, pairs: Sequence[tuple[str, str]] = ()
) -> list[Change]:
    """Judge every case that both runs have.

    Args:
        old: The run before.
        new: The run after.
        margin: Relative change that is of no interest.
        pairs: Targets old and new that belong together; by default those of the same name, and
            the only target of each where the names differ.

    Raises:
        InputError: if nothing is comparable, or a run has too few passes.
    """
    names = dict(pairs) or _pairs(old, new)
    before = {(timing.target, *timing.key): timing for timing in old.timings}
    wanted = {after: first for first, after in names.items()}
    both = [
        (before[(wanted[timing.target], *timing.key)], timing)
        for timing in new.timings
        if timing.target in wanted and (wanted[timing.target], *timing.key) in before
    ]
    if not both:
        raise InputError(
            "the two runs have no case in common; measure the same targets at the same sizes and "
            f"threads. Old: {_shown(old)}. New: {_shown(new)}"
        )
    sides = [Sides(first.logs, second.logs) for first, second in both]
    if not sum(side.degrees for side in sides):
        raise InputError(
            "both runs have one pass only, which does not show by how much two runs of the same "
            "differ; measure with --passes 3"
        )
    confidence = confidence_each(len(both))
    return [
        Change(
            second,
            first.median,
            second.median,
            (first.waited, second.waited),
            (len(first.passes), len(second.passes)),
            ratio,
            _verdict(ratio, margin),
        )
        for (first, second), ratio in zip(both, ratios_of_runs(sides, confidence), strict=True)
    ]


def confidence_each(cases: int) -> float:
    """Confidence of each of some intervals that hold together at the usual one (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / cases


def _pairs(old: Run, new: Run) -> dict[str, str]:
    before = list(dict.fromkeys(timing.target for timing in old.timings))
    after = list(dict.fromkeys(timing.target for timing in new.timings))
    if len(before) == len(after) == 1:
        return {before[0]: after[0]}
    return {name: name for name in before if name in after}


def _shown(run: Run) -> str:
    cases = [f"{t.target} {t.component} {t.size} ({t.threads} threads)" for t in run.timings]
    return ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")


def _verdict(ratio: Interval, margin: float) -> str:
    if ratio.low > 1 + margin:
        return "slower"
    if ratio.high < 1 / (1 + margin):
        return "faster"
    return "no difference"


def comparison_report(
    old: Run, new: Run, changes: Sequence[Change], names: tuple[str, str], margin: float
) -> Report:
    """The verdict of a comparison; failed where a case became slower.

    Args:
        old: The run before.
        new: The run after.
        changes: From :func:`compare_runs`.
        names: What to call the runs.
        margin: As given to :func:`compare_runs`.
    """
    rows = tuple(
        (
            f"{c.case.component} {c.case.size}",
            c.case.target,
            str(c.case.threads),
            f"{1e3 * c.before:.3f}",
            f"{1e3 * c.after:.3f}",
            f"{c.ratio.value - 1:+.1%}",
            f"{c.ratio.low - 1:+.1%} to {c.ratio.high - 1:+.1%}",
            f"{_visible(c.ratio, margin):.1%}",
            f"{c.waited[0]:.0%} / {c.waited[1]:.0%}",
            c.verdict,
        )
        for c in changes
    )
    columns = (
        *("", "target", "threads", "old p50 ms", "new p50 ms", "change"),
        *("interval", "would show from", "waited", "verdict"),
    )
    level = confidence_each(len(changes))
    wanted = passes_wanted(changes, margin)
    note = (
        "Change: of the time without waits for a core, corrected by the anchor as far as the "
        "targets follow it, so that a machine that is busy or slower as a whole is no change; the "
        "medians are as they were. Intervals "
        f"at {level:.2%} each, {CONFIDENCE:.0%} for all together, "
        f"from the passes of both runs. Slower or faster: the whole interval lies beyond "
        f"{margin:.0%}. Would show from: a slowdown of that size would be found, half of the time."
    )
    counts = {word: sum(c.verdict == word for c in changes) for word in ("slower", "faster")}
    slower = [c for c in changes if c.verdict == "slower"]
    summary = [
        f"{counts['slower']} of {len(changes)} cases slower, {counts['faster']} faster, "
        f"{len(changes) - sum(counts.values())} without a difference."
    ]
    summary += [
        f"Slower: {c.case.component} {c.case.size} of {c.case.target} by {c.ratio.value - 1:.1%} "
        f"({c.ratio.low - 1:.1%} to {c.ratio.high - 1:.1%})."
        for c in slower
    ]
    summary += _advice(changes, wanted)
    summary += _differences(old, new)
    data = {
        "old": names[0],
        "new": names[1],
        "margin": margin,
        "passes_wanted": wanted,
        "confidence_each": level,
        "changes": [
            {
                "target": c.case.target,
                "component": c.case.component,
                "size": c.case.size,
                "threads": c.case.threads,
                "old_ms": 1e3 * c.before,
                "new_ms": 1e3 * c.after,
                "waited": list(c.waited),
                "ratio": c.ratio.to_json(),
                "verdict": c.verdict,
            }
            for c in changes
        ],
    }
    table = Table("Changes", columns, rows, note)
    title = f"Latency: {names[0]} and {names[1]}"
    return Report(KIND, title, not slower, tuple(summary), (table,), data)


def _visible(ratio: Interval, margin: float) -> float:
    """Smallest slowdown whose interval would lie beyond the margin, at this run's noise."""
    return (1 + margin) * ratio.value / ratio.low - 1


#: The slowdown that a comparison is meant to find, and how often.
SOUGHT = 0.10
SOUGHT_SHARE = 0.9


def passes_wanted(changes: Sequence[Change], margin: float) -> int | None:
    """Passes of both runs that would find a slowdown of a tenth in any case, nine times of ten.

    Half an interval shrinks with the root of the passes; beyond it, the estimate itself scatters.

    Args:
        changes: From :func:`compare_runs`.
        margin: As given to it.

    Returns:
        About how many; None if the margin leaves no such slowdown.
    """
    room = math.log((1 + SOUGHT) / (1 + margin))
    if room <= 0:
        return None
    normal = statistics.NormalDist()
    tail = normal.inv_cdf(0.5 + confidence_each(len(changes)) / 2)
    half = room / (1 + normal.inv_cdf(SOUGHT_SHARE) / tail)
    return max(
        math.ceil(
            statistics.harmonic_mean(change.passes)
            * (math.log(change.ratio.high / change.ratio.value) / half) ** 2
        )
        for change in changes
    )


def _advice(changes: Sequence[Change], wanted: int | None) -> list[str]:
    if wanted is None:
        return []
    finds = f"a slowdown of {SOUGHT:.0%} in any case would be found {SOUGHT_SHARE:.0%} of the time"
    if wanted <= min(min(change.passes) for change in changes):
        return [f"At this noise {finds}."]
    return [f"At this noise it takes about --passes {wanted} in both runs, so that {finds}."]


#: Difference of the anchor's speed between two runs that the report warns of.
MOVED = 0.15


def _differences(old: Run, new: Run) -> list[str]:
    """What else differs between the runs and may be the cause."""
    lines = []
    speeds = [
        statistics.median(value for timing in run.timings for value in timing.logs.anchor)
        for run in (old, new)
    ]
    moved = math.exp(speeds[1] - speeds[0]) - 1
    if abs(moved) > MOVED:
        lines.append(
            f"The anchor took {moved:+.0%}: the machine's own speed differs between the runs. "
            "Changes hold as far as targets follow the anchor; measure both in one run to be sure."
        )
    for part in ("machine", "versions"):
        first, second = (_part(run.environment, part) for run in (old, new))
        changed = [
            f"{key} {first.get(key)} -> {second.get(key)}"
            for key in sorted(first | second)
            if first.get(key) != second.get(key) and key != "load_average"
        ]
        if changed:
            lines.append(f"The {part} differ: {', '.join(changed)}.")
    return lines


def _part(environment: Any, part: str) -> dict[str, Any]:
    found = environment.get(part)
    return found if isinstance(found, dict) else {}
