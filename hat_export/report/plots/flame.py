"""Flame views: nested parts of a whole, each as wide as its share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hat_export.report.plots import svg

WIDTH, ROW = 1000.0, 24.0
#: Narrower parts are left out; their parent shows the gap.
NARROWEST = 0.7


@dataclass
class Node:
    """A part.

    Attributes:
        value: Its whole duration.
        children: Its parts by name, in order of first appearance.
    """

    value: float = 0.0
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, path: tuple[str, ...], value: float) -> None:
        """Add a duration to a part and to everything around it."""
        self.value += value
        if path:
            self.children.setdefault(path[0], Node()).add(path[1:], value)

    @property
    def depth(self) -> int:
        """Levels below this part."""
        return 1 + max((child.depth for child in self.children.values()), default=-1)


def plot_flame(title: str, unit: str, root: Node) -> str:
    """The whole on top, its parts below it from left to right in order of appearance.

    Args:
        title: What it shows.
        unit: Of the durations.
        root: The whole.
    """
    parts: list[str] = []
    _level(root.children, 0.0, 0, root.value, unit, parts)
    return svg.canvas(WIDTH, ROW * (root.depth) + 8, title, parts)


def _level(
    children: Mapping[str, Node],
    left: float,
    depth: int,
    whole: float,
    unit: str,
    parts: list[str],
) -> None:
    for index, (name, node) in enumerate(children.items()):
        width = WIDTH * node.value / whole if whole else 0.0
        if width >= NARROWEST:
            shown = f"{name}: {svg.number(node.value)} {unit}, {node.value / whole:.1%}"
            parts.append(
                svg.element(
                    "rect",
                    svg.titled(shown),
                    x=left,
                    y=ROW * depth + 2,
                    width=max(0.5, width - 1),
                    height=ROW - 2,
                    rx=2,
                    fill=svg.colour(depth + 3 * (index % 2)),
                    fill_opacity=0.45,
                )
            )
            room = int((width - 8) / svg.CHARACTER)
            if room >= 3:
                text = svg.shortened(name, room)
                parts.append(svg.label(left + 4, ROW * depth + 17, text, pointer_events="none"))
            _level(node.children, left, depth + 1, whole, unit, parts)
        left += width
