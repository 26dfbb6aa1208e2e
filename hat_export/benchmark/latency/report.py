"""A run as tables and sentences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hat_export.benchmark.latency.cases import COMPONENTS
from hat_export.benchmark.latency.figures import Key, figures_of
from hat_export.benchmark.latency.measure import STABILITY
from hat_export.benchmark.latency.record import KIND, Measured, Run
from hat_export.benchmark.latency.statistics import (
    CONFIDENCE,
    Interval,
    Sides,
    median_interval,
    paired_ratio,
    quantiles,
    ratios_of_runs,
)
from hat_export.benchmark.roofline.bound import advice, preprocessing_advice
from hat_export.report.report import Report, Table


def latency_report(run: Run, recalls: Mapping[str, float] | None = None) -> Report:
    """The report of a run; ratios are against the first target of each group.

    Args:
        run: What was measured.
        recalls: rsum by target, from parity reports; gives the recall-latency plot.
    """
    names = list(dict.fromkeys(timing.label for timing in run.timings))
    groups = _groups(run)
    tables = [
        _medians(groups),
        _tails(run),
        *_parts(run),
        *_targets(run),
        *_bounds(run),
        _facts(run.environment),
    ]
    data = run.to_json() | ({"recalls": dict(recalls)} if recalls else {})
    return Report(
        KIND,
        f"Latency: {', '.join(names)}",
        None,
        (*_summary(run, groups, names), *_unmatched(run, recalls)),
        tuple(tables),
        data,
        figures_of(run, groups, recalls or {}),
    )


def _groups(run: Run) -> dict[Key, list[Measured]]:
    groups: dict[Key, list[Measured]] = {}
    for timing in run.timings:
        groups.setdefault(timing.key, []).append(timing)
    return groups


def _span(interval: Interval, digits: int) -> str:
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _speed(base: Measured, timing: Measured) -> Interval | None:
    """How many times faster than the base; None where two runs of one pass can't tell."""
    if base.run == timing.run:
        return paired_ratio(base.own_rounds, timing.own_rounds)
    sides = Sides(timing.logs, base.logs)
    return ratios_of_runs([sides], CONFIDENCE)[0] if sides.degrees else None


def _medians(groups: Mapping[Key, Sequence[Measured]]) -> Table:
    rows = []
    for (component, size, threads), group in groups.items():
        for timing in group:
            middle = median_interval(timing.rounds).scaled(1e3)
            speed = _speed(group[0], timing) if timing is not group[0] else None
            rows.append(
                (
                    f"{component} {size}",
                    timing.label,
                    str(threads),
                    _milliseconds(1e3 * timing.median),
                    _span(middle, 2 if middle.value < 1000 else 0),
                    f"{timing.items / timing.median:,.0f}"
                    if timing.items > timing.median
                    else f"{timing.items / timing.median:.2f}",
                    f"{speed.value:.2f}x" if speed else "",
                    _span(speed, 2) if speed else "",
                    f"{timing.waited:.0%}",
                    "yes" if timing.stable else "NO",
                )
            )
    columns = (
        *("", "target", "threads", "p50 ms", "95 % interval", "items/s"),
        *("speed", "95 % interval ", "waited", "stable"),
    )
    included = " ".join(
        f"{component}: {text}."
        for component, text in COMPONENTS.items()
        if any(key[0] == component for key in groups)
    )
    note = (
        "Targets are called in turn within one run, each after a pause in which the threads of the "
        "other stop spinning. Speed is against the first target of the same rows, from the same "
        "rounds, without the time that threads waited for a core that something else used; waited: "
        "the share of that time. Intervals are block bootstraps over passes and rounds. Items are "
        f"images, captions or pairs. Stable: {STABILITY}. Included in {included}"
    )
    return Table("Latency", columns, tuple(rows), note)


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _tails(run: Run) -> Table:
    rows = []
    for timing in run.timings:
        found = quantiles(timing.calls)
        names = ("min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
        warm_up = "/".join(str(part.warm_up_turns) for part in timing.passes)
        rows.append(
            (
                f"{timing.component} {timing.size}",
                timing.label,
                str(timing.threads),
                *(_milliseconds(found[name]) for name in names),
                f"{found['cv']:.1%}",
                str(len(timing.calls)),
                warm_up,
            )
        )
    columns = (
        *("", "target", "threads", "min", "mean", "p50", "p90", "p95", "p99", "max", "CV"),
        *("calls", "warm-up turns"),
    )
    note = (
        "Milliseconds of every counted call; CV: standard deviation over mean. A quantile needs "
        "calls beyond it: p99 of fewer than 100 calls is about the largest."
    )
    return Table("Distribution", columns, tuple(rows), note)


def _parts(run: Run) -> list[Table]:
    """Parts of calls, for the targets that tell them: one table for each set of parts."""
    names = dict.fromkeys(tuple(timing.parts) for timing in run.timings if timing.parts)
    tables = []
    for columns in names:
        rows = []
        for timing in run.timings:
            if tuple(timing.parts) != columns:
                continue
            medians = [statistics.median(seconds) for seconds in timing.parts.values()]
            rows.append(
                (
                    f"{timing.component} {timing.size}",
                    timing.label,
                    str(timing.threads),
                    _milliseconds(1e3 * timing.median),
                    *(_milliseconds(1e3 * seconds) for seconds in medians),
                    _milliseconds(1e3 * max(0.0, statistics.median(timing.rest))),
                )
            )
        note = (
            "Medians in milliseconds. Parts are timed on the device, by its own clock; the rest of "
            "a call is the host's: batching, copies into page-locked memory, launches, waiting. "
            "Medians of parts need not add up to that of the whole."
        )
        start = ("", "target", "threads", "p50 of the call")
        tables.append(Table("Parts of a call", (*start, *columns, "the rest"), tuple(rows), note))
    return tables


def _targets(run: Run) -> list[Table]:
    rows = []
    for target in run.targets:
        starts = target.get("starts") or []
        rows.append(
            (
                str(target["name"]),
                str(target.get("precision", "")),
                _megabytes(target.get("bytes")),
                " / ".join(f"{start['first_result']:.2f}" for start in starts) or "not measured",
                f"{starts[-1]['opened'] - starts[-1]['python']:.2f}" if starts else "not measured",
                _megabytes(starts[-1].get("peak_bytes")) if starts else "not measured",
                _megabytes(target.get("peak_bytes")),
            )
        )
    if not rows:
        return []
    columns = (
        *("", "precision", "size MB", "cold start s", "of that opening s"),
        *("peak MB after it", "peak MB at work"),
    )
    included = run.settings.get("cold_start_included", "")
    work = run.settings.get("memory_work", "")
    note = f"Each in a process of its own. Cold start: {included}. At work: {work}."
    return [Table("Size, start and memory", columns, tuple(rows), note)]


def _megabytes(value: Any) -> str:
    return f"{value / 1e6:,.0f}" if isinstance(value, (int, float)) else "not measured"


def _bounds(run: Run) -> list[Table]:
    cases = run.bounds.get("cases", [])
    if "reason" in run.bounds:
        return [Table("Bounds", ("", ""), (("not measured", str(run.bounds["reason"])),))]
    if not cases:
        return []
    limits = {
        (c.get("run", ""), *(c[name] for name in ("target", "component", "size", "threads"))): c
        for c in cases
    }
    rows = []
    for timing in run.timings:
        name = f"{timing.component} {timing.size}"
        start = (name, timing.label, str(timing.threads), _milliseconds(1e3 * timing.median))
        if timing.component == "preprocessing":
            text = preprocessing_advice(timing.median / timing.items, _encoding(run, timing))
            rows.append((*start, "", "", "", "", text))
            continue
        limit = limits.get((timing.run, timing.target, *timing.key))
        if limit is None:
            rows.append((*start, "not measured", "", "", "", ""))
            continue
        rows.append(
            (
                *start,
                _milliseconds(1e3 * limit["seconds"]),
                f"{limit['seconds'] / timing.median:.0%}",
                f"{limit['flops'] / timing.median / 1e9:,.0f}",
                f"{limit['flops'] / limit['bytes']:,.0f}",
                advice(timing.component, timing.median, limit),
            )
        )
    columns = (
        *("", "target", "threads", "p50 ms", "bound ms", "of the bound", "GFLOP/s"),
        *("FLOPs a byte", "advice"),
    )
    machines = "; ".join(
        f"{m['threads']} threads: {m['peak_flops'] / 1e9:,.0f} GFLOP/s in a product of side 1536, "
        f"{m['bandwidth'] / 1e9:.1f} GB/s in a copy"
        for m in run.bounds["machines"]
    )
    libraries = ", ".join(run.bounds["machines"][0]["libraries"])
    left_out = "".join(f" {text}." for m in run.bounds["machines"] for text in m["left_out"])
    note = (
        "Bound: the larger of the time of all matrix products, each by the fastest of "
        f"{libraries} at exactly its size and by its fastest call, and the time to move weights, "
        f"inputs and outputs once. Measured in float32 beside this run, {machines}. A share over "
        "100 % means that the machine was slower while the bound was measured. Scores are bounded "
        "by their products at full width and the machine's peak: the reduced form of a compact "
        f"index takes less.{left_out}"
    )
    return [Table("Bounds", columns, tuple(rows), note)]


def _encoding(run: Run, timing: Measured) -> float | None:
    """Fewest seconds in which the same target encodes one image at the same threads."""
    return min(
        (
            other.median / other.items
            for other in run.timings
            if other.component == "images"
            and (other.label, other.threads) == (timing.label, timing.threads)
        ),
        default=None,
    )


def _facts(environment: Mapping[str, Any]) -> Table:
    rows = tuple((key.replace("_", " "), str(value)) for key, value in flat(environment))
    return Table("Machine", ("what", "value"), rows)


def flat(environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Facts of all parts of an environment, as rows."""
    rows: list[tuple[str, Any]] = []
    for key, value in environment.items():
        rows += list(value.items()) if isinstance(value, Mapping) else [(key, value)]
    return rows


def _summary(
    run: Run, groups: Mapping[Key, Sequence[Measured]], names: Sequence[str]
) -> tuple[str, ...]:
    """Per target after the first: how much faster or slower it is; what was not stable."""
    lines = []
    for name in names[1:]:
        speeds: dict[str, list[Interval]] = {}
        for (component, _, _), group in groups.items():
            for timing in group[1:]:
                speed = _speed(group[0], timing) if timing.label == name else None
                if speed:
                    speeds.setdefault(component, []).append(speed)
        parts = [
            f"{component} {min(s.value for s in found):.2f} to {max(s.value for s in found):.2f}"
            if len(found) > 1
            else f"{component} {found[0].value:.2f} ({_span(found[0], 2)})"
            for component, found in speeds.items()
        ]
        if parts:
            lines.append(f"Speed of {name} against {names[0]}: {', '.join(parts)}.")
    if not lines:
        lines.append(f"{len(run.timings)} cases of {names[0]}.")
    restless = [f"{t.component} {t.size} of {t.label}" for t in run.timings if not t.stable]
    if restless:
        more = f" and {len(restless) - 3} more" if len(restless) > 3 else ""
        lines.append(
            f"{len(restless)} of {len(run.timings)} cases never became stable before counting: "
            f"{'; '.join(restless[:3])}{more}. Their figures may hold warm-up or the machine's "
            "unrest."
        )
    drift = _drift(run)
    if drift > 0.1:
        lines.append(
            f"The machine's speed moved by {drift:.0%} during the run (its anchor's medians); "
            "ratios within a row group hold, absolute times are of this moment."
        )
    return tuple(lines)


def _unmatched(run: Run, recalls: Mapping[str, float] | None) -> list[str]:
    """Recalls were given, but of other targets."""
    targets = {timing.target for timing in run.timings}
    if not recalls or targets & set(recalls):
        return []
    return [
        f"No recall over latency: the parity reports are of {', '.join(recalls)}, none of which is "
        "a target here."
    ]


def _drift(run: Run) -> float:
    medians = [quantiles(part.anchor)["p50_ms"] for timing in run.timings for part in timing.passes]
    return max(medians) / min(medians) - 1
