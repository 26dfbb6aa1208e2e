"""A chart of cost against recall, as SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 620, 320, 60, 44, 14, 130


@dataclass(frozen=True)
class Point:
    """One plan.

    Attributes:
        name: Its label.
        cost: Less is better.
        gain: More is better.
        front: Whether no other point beats it in both.
    """

    name: str
    cost: float
    gain: float
    front: bool


def pareto_plot(title: str, cost: str, gain: str, points: Sequence[Point]) -> str:
    """Points, those on the front filled and joined by steps.

    Args:
        title: For screen readers.
        cost: Title of the horizontal axis.
        gain: Title of the vertical axis.
        points: At least one.
    """
    costs, gains = [p.cost for p in points], [p.gain for p in points]
    high = 1.05 * max(costs)
    room = max(0.08 * (max(gains) - min(gains)), 0.1)
    low_gain, high_gain = min(gains) - room, max(gains) + room

    def x(value: float) -> float:
        return LEFT + value / high * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (value - low_gain) / (high_gain - low_gain)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    floor = HEIGHT - BOTTOM
    parts = [
        f'<path d="M{LEFT},{TOP}V{floor}H{WIDTH - RIGHT}" fill="none" stroke="var(--ink)"/>',
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, cost, "middle"),
        _text(6, TOP + 10, gain),
    ]
    for share in (0.0, 0.5, 1.0):
        at, level = share * high, low_gain + share * (high_gain - low_gain)
        parts.append(_text(x(at), floor + 18, f"{at:.3g}", "middle"))
        parts.append(_text(LEFT - 6, y(level) + 4, f"{level:.1f}", "end"))
    front = sorted((p for p in points if p.front), key=lambda p: p.cost)
    steps = [f"M{x(front[0].cost):.1f},{floor}"] if front else []
    steps += [f"H{x(p.cost):.1f}V{y(p.gain):.1f}" for p in front]
    parts.append(
        f'<path d="{"".join(steps)}" fill="none" stroke="var(--good)" stroke-dasharray="4 3"/>'
    )
    for point in points:
        fill = "var(--good)" if point.front else "var(--paper)"
        shown = html.escape(f"{point.name}: {point.cost:.3g} {cost}, {gain} {point.gain:.2f}")
        parts.append(
            f'<circle cx="{x(point.cost):.1f}" cy="{y(point.gain):.1f}" r="5" fill="{fill}" '
            f'stroke="var(--good)"><title>{shown}</title></circle>'
        )
        parts.append(_text(x(point.cost) + 8, y(point.gain) - 6, point.name))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" class="plot" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--ink)" '
        f'font-size="12">{html.escape(text)}</text>'
    )
