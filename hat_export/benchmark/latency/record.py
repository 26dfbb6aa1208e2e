"""A run as JSON, and back: the ``data`` of a latency report.

Every counted call is kept, pass by pass and round by round, so that another version of the
statistics can be applied to an old run. A file is read as what anybody may have written.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hat_export.base.timer import REFERENCE_DESCRIPTION
from hat_export.benchmark.latency.cases import COMPONENTS, Case
from hat_export.benchmark.latency.measure import STABILITY, Pass, Timing
from hat_export.benchmark.latency.statistics import Passes, Rounds, median_interval, quantiles
from hat_export.errors import InputError
from hat_export.report.reader import read_report

#: Of ``data``; raised when a field changes its meaning or goes away.
SCHEMA_VERSION = 2
KIND = "latency"

#: Of seconds, operations and bytes; products and quotients of them stay finite.
SMALLEST, LARGEST = 1e-30, 1e30
LARGEST_COUNT = 1 << 31


@dataclass(frozen=True)
class Measured:
    """A timed case without its call.

    Attributes:
        target: Name of the target.
        component: One of :data:`~hat_export.benchmark.latency.cases.COMPONENTS`.
        size: As in :class:`~hat_export.benchmark.latency.cases.Case`.
        threads: Threads of the session.
        items: What a call handles.
        passes: The samples.
        run: Name of its run, where several runs are shown together; else empty.
    """

    target: str
    component: str
    size: str
    threads: int
    items: int
    passes: tuple[Pass, ...]
    run: str = ""

    @property
    def label(self) -> str:
        """What to call it: the target, and the run where there are several."""
        return f"{self.target} [{self.run}]" if self.run else self.target

    @property
    def key(self) -> tuple[str, str, int]:
        """What is comparable: component, size, threads."""
        return self.component, self.size, self.threads

    @property
    def calls(self) -> list[float]:
        """Seconds of every counted call."""
        return [seconds for part in self.passes for calls in part.rounds for seconds in calls]

    @property
    def rounds(self) -> Rounds:
        """Median seconds of every round, pass by pass."""
        return [part.medians for part in self.passes]

    @property
    def own_rounds(self) -> Rounds:
        """The same without waits for a core."""
        return [part.own_medians for part in self.passes]

    @property
    def waited(self) -> float:
        """Share of the calls' time in which a thread got no core."""
        waits = sum(seconds for part in self.passes for calls in part.waits for seconds in calls)
        return waits / sum(self.calls)

    @property
    def median(self) -> float:
        """Median of all calls, in seconds."""
        return quantiles(self.calls)["p50_ms"] / 1e3

    @property
    def parts(self) -> dict[str, list[float]]:
        """By name of a part, its seconds in every counted call; empty where they aren't known."""
        return {
            name: [value for part in self.passes for calls in part.parts[name] for value in calls]
            for name in self.passes[0].parts
        }

    @property
    def rest(self) -> list[float]:
        """Seconds of every counted call outside of all its parts."""
        parts = self.parts.values()
        return [call - sum(of) for call, *of in zip(self.calls, *parts, strict=True)]

    @property
    def logs(self) -> Passes:
        """Logarithms of the medians of target, without waits, and anchor in every pass."""
        return Passes(
            tuple(math.log(statistics.median(part.own_medians)) for part in self.passes),
            tuple(math.log(statistics.median(part.anchor)) for part in self.passes),
        )

    @property
    def stable(self) -> bool:
        """Whether every pass became stable before it was counted."""
        return all(part.stable for part in self.passes)


@dataclass(frozen=True)
class Run:
    """A whole run.

    Attributes:
        timings: Every case, cases of one group together.
        targets: Per target its name, path, backend, size, starts and memory.
        settings: What the run was asked for.
        environment: Machine, versions and hardware.
        bounds: Lower bounds of some cases (:mod:`hat_export.benchmark.roofline`); empty if not
            measured.
    """

    timings: tuple[Measured, ...]
    targets: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    bounds: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The ``data`` of a report."""
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": dict(self.settings),
            "targets": [dict(target) for target in self.targets],
            "timings": [_timing_json(timing) for timing in self.timings],
            "bounds": dict(self.bounds),
            "included": COMPONENTS,
            "stability": STABILITY,
            "anchor": REFERENCE_DESCRIPTION,
            "environment": dict(self.environment),
        }


def measured(timings: Sequence[Timing]) -> tuple[Measured, ...]:
    """What is kept of timings."""
    return tuple(measured_case(timing.case, timing.passes) for timing in timings)


def measured_case(case: Case, passes: tuple[Pass, ...]) -> Measured:
    """A case's samples without its call."""
    return Measured(case.target, *case.key, case.items, passes)


def _timing_json(timing: Measured) -> dict[str, Any]:
    found = quantiles(timing.calls)
    return {
        "target": timing.target,
        "component": timing.component,
        "size": timing.size,
        "threads": timing.threads,
        "items": timing.items,
        "calls": len(timing.calls),
        **found,
        "p50_interval_ms": median_interval(timing.rounds).scaled(1e3).to_json(),
        "items_per_second": 1e3 * timing.items / found["p50_ms"],
        "stable": timing.stable,
        "waited": timing.waited,
        "part_p50_ms": {
            name: 1e3 * statistics.median(seconds) for name, seconds in timing.parts.items()
        },
        "run": timing.run,
        "passes": [
            {
                "warm_up_turns": part.warm_up_turns,
                "stable": part.stable,
                "last_change": part.change,
                "anchor_seconds": [round(value, 8) for value in part.anchor],
                "round_seconds": [[round(v, 8) for v in calls] for calls in part.rounds],
                "wait_seconds": [[round(v, 8) for v in calls] for calls in part.waits],
                "part_seconds": {
                    name: [[round(v, 9) for v in calls] for calls in rounds]
                    for name, rounds in part.parts.items()
                },
            }
            for part in timing.passes
        ],
    }


def run_of(content: Mapping[str, Any], path: Path) -> Run:
    """The run in a latency report.

    Args:
        content: From :func:`hat_export.report.reader.read_report`.
        path: Its file, for messages.

    Raises:
        InputError: on another version or a damaged report.
    """
    data = content["data"]
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: a latency report of schema version {version}; this version reads "
            f"{SCHEMA_VERSION}: measure again"
        )
    try:
        timings = tuple(_read_timing(entry) for entry in data["timings"])
        if not timings:
            raise ValueError("no timings")
        mappings = [dict(data[name]) for name in ("settings", "environment", "bounds")]
        targets = tuple(dict(target) for target in data["targets"])
        _check_targets(targets)
        _check_bounds(mappings[2])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: a damaged latency report ({type(error).__name__}: {error}); measure again"
        ) from None
    return Run(timings, targets, *mappings)


def read_run(path: Path) -> Run:
    """The run in a latency report's file; InputError if there is none."""
    return run_of(read_report(path, (KIND,)), path)


def _read_timing(entry: Mapping[str, Any]) -> Measured:
    passes = tuple(
        Pass(
            tuple(tuple(_seconds(value) for value in calls) for calls in part["round_seconds"]),
            tuple(tuple(_seconds(v, True) for v in calls) for calls in part["wait_seconds"]),
            tuple(_seconds(value) for value in part["anchor_seconds"]),
            int(part["warm_up_turns"]),
            bool(part["stable"]),
            _seconds(part["last_change"], True),
            {
                str(name): tuple(tuple(_seconds(v, True) for v in calls) for calls in rounds)
                for name, rounds in part.get("part_seconds", {}).items()
            },
        )
        for part in entry["passes"]
    )
    if not passes or not all(map(_complete, passes)):
        raise ValueError("a timing without rounds")
    if any(list(part.parts) != list(passes[0].parts) for part in passes):
        raise ValueError("passes with different parts")
    component = str(entry["component"])
    if component not in COMPONENTS:
        raise ValueError(f"component {component}")
    names = (str(entry["target"]), component, str(entry["size"]))
    counts = (int(entry["threads"]), int(entry["items"]))
    if not 1 <= min(counts) <= max(counts) <= LARGEST_COUNT:
        raise ValueError(f"threads and items {counts}")
    return Measured(*names, *counts, passes, str(entry.get("run", "")))


def _check_targets(targets: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what the report could not show."""
    for target in targets:
        if not isinstance(target["name"], str):
            raise ValueError("a target without a name")
        for start in target.get("starts") or ():
            for name in ("python", "opened", "first_result"):
                _seconds(start[name])


def _check_bounds(bounds: Mapping[str, Any]) -> None:
    """Refuse what the report could not show."""
    cases = bounds.get("cases", [])
    for case in cases:
        for name in ("seconds", "flops", "bytes"):
            _seconds(case[name])
        if not {"target", "component", "size", "threads", "by"} <= set(case):
            raise ValueError("a bound of nothing")
    machines = bounds.get("machines", [])
    for machine in machines:
        for name in ("threads", "peak_flops", "bandwidth"):
            _seconds(machine[name])
        for name in ("libraries", "left_out"):
            if not all(isinstance(text, str) for text in machine[name]):
                raise ValueError(f"{name} of a machine")
    if cases and not machines:
        raise ValueError("bounds of no machine")


def _complete(part: Pass) -> bool:
    """Whether there are rounds, each with calls, waits shorter than they, parts, an anchor."""
    if (
        not part.rounds
        or len(part.rounds) != len(part.anchor)
        or len(part.waits) != len(part.anchor)
    ):
        return False
    shape = [len(calls) for calls in part.rounds]
    if any([len(calls) for calls in rounds] != shape for rounds in part.parts.values()):
        return False
    return all(
        calls and len(calls) == len(waits) and all(map(float.__lt__, waits, calls))
        for calls, waits in zip(part.rounds, part.waits, strict=True)
    )


def _seconds(value: Any, zero: bool = False) -> float:
    """A number above 0, or 0 where that is allowed, of a size that is measured somewhere."""
    number = float(value)
    if not (SMALLEST <= number <= LARGEST or (number == 0 and zero)):
        raise ValueError(f"number {value} out of range")
    return number
