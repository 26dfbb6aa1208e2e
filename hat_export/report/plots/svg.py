"""What all plots share: escaped elements, scales with round ticks, axes, a legend."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: CSS variables of the page (:mod:`hat_export.report.report`), in the order in which series take
#: them.
SERIES = tuple(f"var(--series-{number})" for number in range(1, 7))
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")

#: Average width of a character of the page's sans-serif at 12 px, generously.
CHARACTER = 6.7


def colour(index: int) -> str:
    """Colour of a series; they repeat after :data:`SERIES`."""
    return SERIES[index % len(SERIES)]


def element(name: str, content: str = "", **attributes: object) -> str:
    """An SVG element; ``content`` is markup, attribute values are escaped.

    Underscores in attribute names become dashes; a trailing one is dropped (``class_``).
    """
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{html.escape(text)}"')
    return f"<{name}{''.join(parts)}>{content}</{name}>"


def label(x: float, y: float, text: str, anchor: str = "start", **attributes: object) -> str:
    """A text."""
    return element("text", html.escape(text), x=x, y=y, text_anchor=anchor, **attributes)


def titled(text: str) -> str:
    """What browsers show under the pointer."""
    return element("title", html.escape(text))


def canvas(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """The ``<svg>``: as wide as the page allows, never wider than drawn."""
    content = titled(title) + "".join(parts)
    return element(
        "svg",
        content,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        role="img",
        aria_label=title,
        class_="plot",
    )


def shortened(text: str, characters: int) -> str:
    """A text cut in its middle, where targets of one family are alike."""
    if len(text) <= characters:
        return text
    head = (characters - 1) // 2
    return f"{text[:head]}…{text[len(text) - (characters - 1 - head) :]}"


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``.
        start: Place of ``low``.
        stop: Place of ``high``.
        logarithmic: Whether equal ratios are equally far apart.
        ticks: Values that get a label.
    """

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Place of a value."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low * 1e-3))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)


def linear(low: float, high: float, start: float, stop: float, ticks: int = 5) -> Scale:
    """A linear scale whose ends are round."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / max(1, ticks))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = tuple(round(number * step, 12) for number in range(first, last + 1))
    return Scale(values[0], values[-1], start, stop, False, values)


def logarithmic(low: float, high: float, start: float, stop: float) -> Scale:
    """A logarithmic scale with ticks at 1, 2 and 5 times powers of ten; both ends above 0."""
    low, high = low / 1.05, high * 1.05
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 200 else (1,)
    values = tuple(step * 10.0**power for power in powers for step in steps)
    return Scale(low, high, start, stop, True, tuple(v for v in values if low <= v <= high))


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if step <= power * factor * 1.001)


def number(value: float) -> str:
    """A value with three significant digits, grouped."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def axis_below(
    scale: Scale, top: float, bottom: float, title: str, form: Callable[[float], str] = number
) -> str:
    """A horizontal axis with grid lines upwards to ``top``."""
    parts = []
    for tick in scale.ticks:
        x = scale(tick)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(label(x, bottom + 16, form(tick), "middle"))
    middle = (scale.start + scale.stop) / 2
    parts.append(label(middle, bottom + 34, title, "middle", class_="axis"))
    return "".join(parts)


def axis_left(
    scale: Scale, left: float, right: float, title: str, form: Callable[[float], str] = number
) -> str:
    """A vertical axis with grid lines to ``right``; its title stands above it."""
    parts = []
    for tick in scale.ticks:
        y = scale(tick)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(label(left - 6, y + 4, form(tick), "end"))
    parts.append(label(4, min(scale.start, scale.stop) - 12, title, class_="axis"))
    return "".join(parts)


def legend(names: Sequence[str], left: float, top: float, lines: bool = False) -> str:
    """One line a series."""
    parts = []
    for index, name in enumerate(names):
        y = top + 18 * index
        if lines:
            parts.append(
                element(
                    "line",
                    x1=left,
                    x2=left + 24,
                    y1=y - 4,
                    y2=y - 4,
                    stroke=colour(index),
                    stroke_width=2,
                    stroke_dasharray=DASHES[index % len(DASHES)] or None,
                )
            )
        else:
            parts.append(element("rect", x=left, y=y - 10, width=12, height=12, fill=colour(index)))
        parts.append(label(left + (30 if lines else 18), y, name))
    return "".join(parts)
