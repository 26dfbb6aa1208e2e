"""Curves: a value over a size, one line a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hat_export.report.plots import svg

WIDTH, HEIGHT, LEFT, RIGHT, TOP = 500.0, 220.0, 64.0, 20.0, 30.0


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: For the legend.
        points: x, y, and the ends of y's interval.
    """

    name: str
    points: tuple[tuple[float, float, float, float], ...]


def plot_curve(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """Lines with their intervals over a logarithmic x; y begins at 0.

    Args:
        title: What it shows.
        x_title: Under the horizontal axis.
        y_title: Above the vertical axis.
        lines: At least one, with x above 0.
    """
    points = [point for line in lines for point in line.points]
    bottom = TOP + HEIGHT
    sizes = sorted({point[0] for point in points})
    low, high = sizes[0], max(sizes[-1], 1.2 * sizes[0])
    x = svg.Scale(low / 1.1, high * 1.1, LEFT, WIDTH - RIGHT, True, tuple(sizes))
    y = svg.linear(0, max(point[3] for point in points), bottom, TOP)
    parts = [
        svg.axis_below(x, TOP, bottom, x_title),
        svg.axis_left(y, LEFT, WIDTH - RIGHT, y_title),
    ]
    for index, line in enumerate(lines):
        parts.append(_line(line, x, y, index))
    parts.append(svg.legend([line.name for line in lines], LEFT, bottom + 60, lines=True))
    return svg.canvas(WIDTH, bottom + 60 + 18 * len(lines), title, parts)


def _line(line: Line, x: svg.Scale, y: svg.Scale, index: int) -> str:
    shade = svg.colour(index)
    places = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _, _ in line.points)
    parts = [
        svg.element(
            "polyline",
            points=places,
            fill="none",
            stroke=shade,
            stroke_width=2,
            stroke_dasharray=svg.DASHES[index % len(svg.DASHES)] or None,
        )
    ]
    for a, b, low, high in line.points:
        parts.append(svg.element("line", x1=x(a), x2=x(a), y1=y(low), y2=y(high), stroke=shade))
        shown = svg.titled(
            f"{line.name}, {svg.number(a)}: {svg.number(b)} "
            f"({svg.number(low)} to {svg.number(high)})"
        )
        parts.append(svg.element("circle", shown, cx=x(a), cy=y(b), r=4, fill=shade))
    return "".join(parts)
