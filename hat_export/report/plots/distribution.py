"""Distributions: every call as a dot, with its box from the 10 % to the 90 % quantile."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from hat_export.report.plots import svg

WIDTH, ROW, LEFT, RIGHT = 500.0, 46.0, 162.0, 16.0
#: Dots of a row; more would only cover each other.
MOST_DOTS = 250


def plot_distribution(title: str, unit: str, series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A row for each series: dots, a box from p10 to p90, the median, and p99.

    Args:
        title: What it shows.
        unit: Of the values, for the axis.
        series: Name and values above 0.
    """
    everything = np.concatenate([np.asarray(values, np.float64) for _, values in series])
    # The farthest calls would press all others together: what lies beyond is marked at the edge.
    low = float(everything.min())
    high = max(float(np.percentile(values, 99)) for _, values in series)
    bottom = 12 + ROW * len(series)
    scale = svg.logarithmic(low, max(high, 1.02 * low), LEFT, WIDTH - RIGHT)
    if high / low < 3:
        scale = svg.linear(low, high, LEFT, WIDTH - RIGHT)
    parts = [svg.axis_below(scale, 4, bottom, unit)]
    for row, (name, values) in enumerate(series):
        middle = 12 + ROW * (row + 0.5)
        parts.append(svg.label(LEFT - 8, middle + 4, svg.shortened(name, 23), "end"))
        parts.append(_row(np.asarray(values, np.float64), scale, middle, row, name, unit))
    return svg.canvas(WIDTH, bottom + 42, title, parts)


def _row(
    values: np.ndarray, scale: svg.Scale, middle: float, index: int, name: str, unit: str
) -> str:
    jitter = random.Random(0)
    shade = svg.colour(index)
    chosen = values
    if len(values) > MOST_DOTS:
        chosen = values[np.linspace(0, len(values) - 1, MOST_DOTS).astype(int)]
    dots = "".join(
        svg.element(
            "circle",
            cx=min(max(scale(float(value)), scale.start), scale.stop),
            cy=middle + jitter.uniform(-13, 13),
            r=1.8,
        )
        for value in chosen
    )
    p10, p50, p90, p99 = (float(v) for v in np.percentile(values, (10, 50, 90, 99)))
    shown = (
        f"{name}: p10 {svg.number(p10)}, p50 {svg.number(p50)}, p90 {svg.number(p90)}, "
        f"p99 {svg.number(p99)} {unit}"
    )
    box = svg.element(
        "rect",
        svg.titled(shown),
        x=scale(p10),
        y=middle - 10,
        width=max(1.0, scale(p90) - scale(p10)),
        height=20,
        fill=shade,
        fill_opacity=0.25,
        stroke=shade,
    )
    marks = svg.element(
        "line",
        x1=scale(p50),
        x2=scale(p50),
        y1=middle - 14,
        y2=middle + 14,
        stroke=shade,
        stroke_width=3,
    )
    edge = min(scale(p99), scale.stop)
    marks += svg.element(
        "line", x1=edge, x2=edge, y1=middle - 8, y2=middle + 8, stroke=shade, stroke_dasharray="2 2"
    )
    return svg.element("g", dots, fill=shade, fill_opacity=0.35) + box + marks
