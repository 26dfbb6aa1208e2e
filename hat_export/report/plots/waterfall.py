"""Waterfalls: how parts follow each other to a whole, one band a target."""

from __future__ import annotations

from collections.abc import Sequence

from hat_export.report.plots import svg

WIDTH, BAR, LEFT, RIGHT = 500.0, 20.0, 150.0, 60.0

#: Name and duration of each step.
Steps = Sequence[tuple[str, float]]


def plot_waterfall(title: str, unit: str, bands: Sequence[tuple[str, Steps]]) -> str:
    """Each step begins where the one before it ends.

    Args:
        title: What it shows.
        unit: Of the durations, for the axis.
        bands: Name and steps of each target.
    """
    highest = max(sum(value for _, value in steps) for _, steps in bands)
    scale = svg.linear(0, highest, LEFT, WIDTH - RIGHT)
    parts, y = [], 8.0
    for index, (name, steps) in enumerate(bands):
        parts.append(svg.label(4, y + 14, svg.shortened(name, 60), class_="axis"))
        y += BAR + 2
        begun, total = 0.0, sum(value for _, value in steps)
        for step, value in steps:
            parts.append(svg.label(LEFT - 8, y + 14, svg.shortened(step, 21), "end"))
            shown = f"{name}, {step}: {svg.number(value)} {unit}, {value / total:.0%}"
            parts.append(
                svg.element(
                    "rect",
                    svg.titled(shown),
                    x=scale(begun),
                    y=y + 2,
                    width=max(1.0, scale(value) - scale(0)),
                    height=BAR - 4,
                    fill=svg.colour(index),
                )
            )
            begun += value
            parts.append(svg.label(scale(begun) + 6, y + 14, f"{svg.number(value)}"))
            y += BAR
        y += 10
    axis = svg.axis_below(scale, 4, y, unit)
    return svg.canvas(WIDTH, y + 42, title, [axis, *parts])
