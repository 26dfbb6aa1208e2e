"""Profiles as tables and flame views."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hat_export.benchmark.profile.trace import Event, Trace
from hat_export.report.plots.flame import Node, plot_flame
from hat_export.report.report import Figure, Report, Table

KIND = "profile"
SCHEMA_VERSION = 1
#: Nodes that are listed one by one.
LISTED_NODES = 15


@dataclass(frozen=True)
class Profile:
    """One graph's profile after its warm-up.

    Attributes:
        graph: ``image`` or ``text``.
        size: What was encoded, as text.
        plain_seconds: Median of a call without the profiler.
        trace: Of the counted runs.
        warm_up: Runs at its begin that don't count.
    """

    graph: str
    size: str
    plain_seconds: float
    trace: Trace
    warm_up: int

    @property
    def events(self) -> list[Event]:
        """Of the counted runs."""
        return [event for event in self.trace.events if event.run >= self.warm_up]

    @property
    def runs(self) -> tuple[float, ...]:
        """Seconds of the counted runs."""
        return self.trace.runs[self.warm_up :]


@dataclass(frozen=True)
class Total:
    """Some nodes of a run together.

    Attributes:
        seconds: Median over the runs.
        calls: Node executions a run.
    """

    seconds: float
    calls: int


def totals(profile: Profile, keys: Sequence[str]) -> dict[tuple[str, ...], Total]:
    """Time by attributes of the events, longest first.

    Args:
        profile: The profile.
        keys: Attributes of :class:`~hat_export.benchmark.profile.trace.Event`.
    """
    count = len(profile.runs)
    seconds: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * count)
    calls: dict[tuple[str, ...], int] = defaultdict(int)
    for event in profile.events:
        key = tuple(str(getattr(event, name)) for name in keys)
        seconds[key][event.run - profile.warm_up] += event.seconds
        calls[key] += 1
    found = {
        key: Total(statistics.median(values), round(calls[key] / count))
        for key, values in seconds.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def profile_report(
    name: str, profiles: Sequence[Profile], threads: int, environment: Mapping[str, Any]
) -> Report:
    """The report of some profiles.

    Args:
        name: What to call the bundle.
        profiles: At least one.
        threads: Of the session.
        environment: Machine and versions.
    """
    tables, figures, summary, data = [], [], [], []
    for profile in profiles:
        operators, layers = totals(profile, ("operator",)), totals(profile, ("layer",))
        nodes = totals(profile, ("node", "operator"))
        whole = sum(total.seconds for total in operators.values())
        title = f"{profile.graph} {profile.size}"
        tables += [
            _table(f"{title}: operators", ("operator",), operators, whole),
            _table(f"{title}: layers", ("layer",), layers, whole),
            _table(
                f"{title}: longest nodes",
                ("node", "operator"),
                dict(list(nodes.items())[:LISTED_NODES]),
                whole,
            ),
        ]
        figures.append(_flame(title, profile))
        run = statistics.median(profile.runs)
        first, second = list(operators.items())[:2]
        summary.append(
            f"{title}: {1e3 * profile.plain_seconds:.2f} ms a call without the profiler, "
            f"{1e3 * run:.2f} ms with it, {1e3 * whole:.2f} ms of that inside operators; "
            f"{first[0][0]} takes {first[1].seconds / whole:.0%}, "
            f"{second[0][0]} {second[1].seconds / whole:.0%}."
        )
        data.append(
            {
                "graph": profile.graph,
                "size": profile.size,
                "plain_seconds": profile.plain_seconds,
                "run_seconds": list(profile.runs),
                "operators": _json(operators),
                "layers": _json(layers),
                "nodes": _json(nodes),
            }
        )
    content = {
        "schema_version": SCHEMA_VERSION,
        "target": name,
        "threads": threads,
        "profiles": data,
        "environment": dict(environment),
    }
    title = f"Profile: {name}, {threads} threads"
    return Report(KIND, title, None, tuple(summary), tuple(tables), content, tuple(figures))


def _table(
    title: str, names: tuple[str, ...], found: Mapping[tuple[str, ...], Total], whole: float
) -> Table:
    rows = tuple(
        (*key, str(total.calls), f"{1e3 * total.seconds:.3f}", f"{total.seconds / whole:.1%}")
        for key, total in found.items()
    )
    note = "Medians over the counted runs; shares are of the time inside operators."
    return Table(title, (*names, "calls a run", "ms a run", "share"), rows, note)


def _json(found: Mapping[tuple[str, ...], Total]) -> list[dict[str, Any]]:
    return [
        {"name": key[0], "calls": total.calls, "seconds": total.seconds}
        for key, total in found.items()
    ]


def _flame(title: str, profile: Profile) -> Figure:
    """Layers in the order in which they run, each divided into its operators."""
    root = Node()
    found = totals(profile, ("layer", "operator"))
    for key in dict.fromkeys((event.layer, event.operator) for event in profile.events):
        root.add((*layer_path(key[0]), key[1]), 1e3 * found[key].seconds)
    plot = plot_flame(f"Flame view: {title}", "ms", root)
    note = (
        "Medians over the counted runs, in the order of execution; width is time, each row divides "
        "the one above. Point at a part for its time."
    )
    return Figure(f"Flame view: {title}", plot, note, full=True)


def layer_path(layer: str) -> tuple[str, ...]:
    """``vit_model.layers.2.blocks.7`` as (vit_model, layers.2, blocks.7)."""
    return tuple(re.findall(r"[^.]+(?:\.\d+)?", layer))
