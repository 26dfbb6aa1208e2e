"""Two measures against each other, and the points that no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hat_export.report.plots import svg

WIDTH, HEIGHT, LEFT, RIGHT, TOP = 500.0, 240.0, 64.0, 24.0, 30.0


@dataclass(frozen=True)
class Point:
    """One target.

    Attributes:
        name: Its label.
        cost: Less is better.
        gain: More is better.
    """

    name: str
    cost: float
    gain: float


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats or equals in both measures, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.gain)):
        if not best or point.gain > best[-1].gain:
            best.append(point)
    return best


def plot_pareto(title: str, cost_title: str, gain_title: str, points: Sequence[Point]) -> str:
    """Points with their front as a step line.

    Args:
        title: What it shows.
        cost_title: Of the horizontal, logarithmic axis.
        gain_title: Of the vertical axis.
        points: At least one, costs above 0.
    """
    bottom = TOP + HEIGHT
    costs, gains = [p.cost for p in points], [p.gain for p in points]
    x = svg.logarithmic(min(costs) / 1.3, max(costs) * 1.3, LEFT, WIDTH - RIGHT)
    room = max(0.1 * (max(gains) - min(gains)), 0.2)
    y = svg.linear(min(gains) - room, max(gains) + room, bottom, TOP)
    best = front(points)
    steps = [(x(best[0].cost), bottom)]
    for before, after in zip(best, [*best[1:], None], strict=True):
        end = x(after.cost) if after else WIDTH - RIGHT
        steps += [(x(before.cost), y(before.gain)), (end, y(before.gain))]
    line = svg.element(
        "polyline",
        points=" ".join(f"{a:.1f},{b:.1f}" for a, b in steps),
        fill="none",
        stroke="var(--series-1)",
        stroke_dasharray="4 3",
    )
    axes = svg.axis_below(x, TOP, bottom, cost_title)
    axes += svg.axis_left(y, LEFT, WIDTH - RIGHT, gain_title, "{:.1f}".format)
    marks = []
    for number, point in enumerate(points, start=1):
        shown = f"{point.name}: {svg.number(point.cost)}, {point.gain:.2f}"
        fill = svg.SERIES[0] if point in best else "var(--paper)"
        at = {"cx": x(point.cost), "cy": y(point.gain)}
        marks.append(
            svg.element("circle", svg.titled(shown), **at, r=5, fill=fill, stroke=svg.SERIES[0])
        )
        marks.append(svg.label(x(point.cost) + 8, y(point.gain) - 8, str(number)))
    names = "".join(
        svg.label(LEFT, bottom + 58 + 18 * index, f"{index + 1}  {svg.shortened(p.name, 60)}")
        for index, p in enumerate(points)
    )
    return svg.canvas(WIDTH, bottom + 58 + 18 * len(points), title, [axes, line, *marks, names])
