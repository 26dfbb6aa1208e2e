"""Plots: well-formed, escaped, in the right places."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from hat_export.report.plots import svg
from hat_export.report.plots.curve import Line, plot_curve
from hat_export.report.plots.distribution import plot_distribution
from hat_export.report.plots.flame import Node, plot_flame
from hat_export.report.plots.pareto import Point, front, plot_pareto
from hat_export.report.plots.waterfall import plot_waterfall

EVIL = "<script>alert('1')</script> & \"x\""


def tree() -> Node:
    root = Node()
    root.add(("layer", EVIL), 3.0)
    root.add(("layer", "b"), 1.0)
    root.add(("other",), 4.0)
    return root


PLOTS = {
    "distribution": plot_distribution(EVIL, EVIL, [(EVIL, [1.0, 2.0, 50.0]), ("b", [5.0])]),
    "curve": plot_curve(EVIL, EVIL, EVIL, [Line(EVIL, ((1, 10, 9, 11), (8, 20, 18, 22)))]),
    "waterfall": plot_waterfall(EVIL, EVIL, [(EVIL, [(EVIL, 1.0), ("b", 2.0)])]),
    "pareto": plot_pareto(EVIL, EVIL, EVIL, [Point(EVIL, 1.0, 300.0), Point("b", 2.0, 290.0)]),
    "flame": plot_flame(EVIL, EVIL, tree()),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_well_formed_and_escaped(name: str) -> None:
    text = PLOTS[name]
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert "<script" not in text
    assert not re.search(r"https?:|url\(|href", text)
    assert EVIL in [element.text for element in root.iter("title")]
    width = float(root.attrib["viewBox"].split()[2])
    for element in root.iter():
        for key in ("x", "x1", "x2", "cx"):
            if key in element.attrib:
                assert -1 <= float(element.attrib[key]) <= width + 1, element.attrib


def test_scales_put_round_values_at_their_places() -> None:
    scale = svg.linear(0, 97, 0, 100)
    assert scale.ticks == (0, 20, 40, 60, 80, 100)
    assert scale(50) == 50
    logarithmic = svg.logarithmic(1, 100, 0, 100)
    assert logarithmic.ticks == (1, 2, 5, 10, 20, 50, 100)
    assert logarithmic(10) == pytest.approx(50)
    assert svg.linear(5, 5, 0, 1).ticks[0] <= 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.5, "1.5"),
        (12.34, "12.3"),
        (99.96, "100"),
        (12345, "12,345"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert svg.number(value) == text


def test_the_front_holds_what_nothing_beats() -> None:
    points = [Point("slow", 9, 10), Point("fast", 1, 5), Point("beaten", 3, 5), Point("mid", 4, 8)]
    assert [point.name for point in front(points)] == ["fast", "mid", "slow"]
    assert [p.name for p in front([Point("a", 1, 1), Point("b", 1, 1)])] == ["a"]


def test_a_flame_adds_up() -> None:
    root = tree()
    assert root.value == 8
    assert root.children["layer"].value == 4
    assert root.depth == 2
    widths = [float(w) for w in re.findall(r'<rect x="0" y="2" width="([\d.]+)"', PLOTS["flame"])]
    assert widths == [499]


def test_long_names_keep_both_ends() -> None:
    assert svg.shortened("abcdefghij", 5) == "ab…ij"
    assert svg.shortened("abc", 5) == "abc"
