"""A run as plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from hat_export.benchmark.latency.record import Measured, Run
from hat_export.benchmark.latency.statistics import median_interval
from hat_export.report.plots.curve import Line, plot_curve
from hat_export.report.plots.distribution import plot_distribution
from hat_export.report.plots.pareto import Point, plot_pareto
from hat_export.report.plots.waterfall import plot_waterfall
from hat_export.report.report import Figure

#: Component, size and threads: what is comparable between targets.
Key = tuple[str, str, int]


def figures_of(
    run: Run, groups: Mapping[Key, Sequence[Measured]], recalls: Mapping[str, float]
) -> tuple[Figure, ...]:
    """Distributions, throughput over batch and threads, components, their parts, recall.

    Args:
        run: What was measured.
        groups: Its cases, those of every target together.
        recalls: rsum by target; may be empty.
    """
    return (
        *_distributions(groups),
        *_curves(run),
        *_waterfalls(run),
        *_parts(run),
        *_pareto(run, recalls),
    )


def _distributions(groups: Mapping[Key, Sequence[Measured]]) -> list[Figure]:
    """One plot a component, at its first size and number of threads."""
    chosen: dict[str, Key] = {}
    for key in groups:
        chosen.setdefault(key[0], key)
    figures: list[Figure] = []
    for component, key in chosen.items():
        series = [(t.label, [1e3 * s for s in t.calls]) for t in groups[key]]
        title = f"{component} {key[1]}, {key[2]} threads"
        note = (
            "Every dot is a call; the box spans p10 to p90, the bar is the median, the dashed line "
            "p99. Calls beyond the axis stand at its edge."
        )
        plot = plot_distribution(f"Latency of {title}", "ms", series)
        figures.append(Figure(f"Distribution: {title}", plot, note if not figures else ""))
    return figures


def _curves(run: Run) -> list[Figure]:
    """Throughput over batch and over threads, where several were measured."""
    figures: list[Figure] = []
    for component, what in (("images", "images"), ("texts", "captions")):
        timings = [t for t in run.timings if t.component == component]
        lines = _lines(timings, lambda t: (t.label, t.threads), lambda t: t.items, "threads")
        if lines:
            plot = plot_curve(f"{component}: {what} a second", f"{what} per call", "items/s", lines)
            figures.append(Figure(f"Throughput over batch: {component}", plot))
        lines = _lines(timings, lambda t: (t.label, t.size), lambda t: t.threads, "a call")
        if lines:
            plot = plot_curve(f"{component}: {what} a second", "threads", "items/s", lines)
            figures.append(Figure(f"Throughput over threads: {component}", plot))
    return figures


def _lines(
    timings: Sequence[Measured],
    series: Callable[[Measured], tuple[str, object]],
    place: Callable[[Measured], int],
    word: str,
) -> list[Line]:
    """A line for each series that was measured at more than one place."""
    found: dict[tuple[str, object], list[tuple[float, float, float, float]]] = {}
    for timing in timings:
        middle = median_interval(timing.rounds)
        speed, low, high = (timing.items / s for s in (middle.value, middle.high, middle.low))
        found.setdefault(series(timing), []).append((float(place(timing)), speed, low, high))
    return [
        Line(f"{name}, {value} {word}", tuple(sorted(points)))
        for (name, value), points in found.items()
        if len({point[0] for point in points}) > 1
    ]


def _waterfalls(run: Run) -> list[Figure]:
    """From picture to features and from caption to ranking, each target's own medians."""
    bands = []
    for name in dict.fromkeys(t.label for t in run.timings):
        smallest: dict[str, Measured] = {}
        for timing in run.timings:
            if timing.label == name:
                smallest.setdefault(timing.component, timing)
        steps = [
            (f"{component} {smallest[component].size}", 1e3 * smallest[component].median)
            for component in ("preprocessing", "images", "texts", "scores")
            if component in smallest
        ]
        if len(steps) > 1:
            bands.append((name, steps))
    if not bands:
        return []
    plot = plot_waterfall("Components one after the other", "ms", bands)
    note = "Medians of the first size of each component, one after the other."
    return [Figure("Components", plot, note)]


def _parts(run: Run) -> list[Figure]:
    """What the calls of a target that tells it are made of."""
    bands = []
    for timing in run.timings:
        if timing.parts:
            steps = [
                (name, 1e3 * statistics.median(seconds))
                for name, seconds in (("the rest", timing.rest), *timing.parts.items())
            ]
            name = f"{timing.component} {timing.size}, {timing.label}"
            bands.append((name, [(part, max(0.0, value)) for part, value in steps]))
    if not bands:
        return []
    note = "Medians; the rest is the host's and lies before, between and after the others."
    return [Figure("Parts of a call", plot_waterfall("Parts of a call", "ms", bands), note)]


def _pareto(run: Run, recalls: Mapping[str, float]) -> list[Figure]:
    for component in ("end to end", "images", "texts"):
        points = []
        for timing in run.timings:
            if timing.component == component and timing.target in recalls:
                shown = f"{timing.label}, {timing.size}, {timing.threads} threads"
                points.append(Point(shown, 1e3 * timing.median, recalls[timing.target]))
        if points:
            title = f"Recall over latency: {component}"
            plot = plot_pareto(title, f"p50 ms of {component}", "rsum", points)
            note = (
                "rsum: sum of R@1, 5 and 10 in both directions, from the parity reports given. "
                "Filled: no other target is both faster and better."
            )
            return [Figure(title, plot, note)]
    return []
