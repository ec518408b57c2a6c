"""Charts put points where their values belong, and tell in words what they show."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emmet.reports.drawing import round_steps
from emmet.reports.line_chart import LineChart, Mark, Point, Series

SERIES = [
    Series("one", [Point(0, 10, 5, 15, "1: 10"), Point(1, 20, 20, 20, "2: 20"), Point(3, 30, 25, 35, "8: 30")]),
    Series("two & <more>", [Point(0, 12, 12, 12, "1: 12"), Point(3, 14, 13, 16, "8: 14")]),
]


def chart(**more: object) -> LineChart:
    ticks = [Mark(0, "1"), Mark(1, "2"), Mark(3, "8")]
    return LineChart("a title", "a description", "size", ticks, SERIES, **more)


def drawn(chart: LineChart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg("name"))


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def x_labels(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [text for text in of_class(root, "tick") if text.get("text-anchor") == "middle"]


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[0-9.]+) (-?[0-9.]+)", path)]


def scale(root: ElementTree.Element) -> tuple[float, float]:
    """Offset and factor that turn a height in the drawing into a value, from the labels of the grid."""
    lines = [numbers(line.attrib["d"])[0][1] for line in of_class(root, "grid")]
    labels = [float(text.text or "") for text in of_class(root, "tick") if text.get("text-anchor") == "end"]
    factor = (labels[-1] - labels[0]) / (lines[-1] - lines[0])
    return labels[0] - factor * lines[0], factor


def test_points_and_bands_are_where_their_values_belong() -> None:
    root = drawn(chart())
    offset, factor = scale(root)
    for series, line, band in zip(SERIES, of_class(root, "line"), of_class(root, "band"), strict=True):
        places = numbers(line.attrib["d"])
        assert [offset + factor * y for _, y in places] == pytest.approx([point.y for point in series.points], abs=0.02)
        expected = [point.high for point in series.points] + [point.low for point in reversed(series.points)]
        edge = [offset + factor * y for _, y in numbers(band.attrib["d"])]
        assert edge == pytest.approx(expected, abs=0.02)
    (x0, _), (x1, _), (x3, _) = numbers(of_class(root, "line")[0].attrib["d"])
    assert (x3 - x0) / (x1 - x0) == pytest.approx(3, abs=0.01)
    assert {text.text: float(text.attrib["x"]) for text in x_labels(root)} == {"1": x0, "2": x1, "8": x3}


def test_everything_is_inside_the_drawing() -> None:
    root = drawn(chart(marks=[Mark(-1, "far to the left"), Mark(5, "far to the right"), Mark(5.05, "too")]))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for path in [*of_class(root, "line"), *of_class(root, "band"), *of_class(root, "mark"), *of_class(root, "grid")]:
        assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers(path.attrib["d"]))
    assert [text.text for text in of_class(root, "mark-label")] == ["far to the left", "far to the right, too"]


def test_who_does_not_see_it_is_told() -> None:
    root = drawn(chart())
    assert root.get("role") == "img"
    told = {element.get("id"): element.text for element in root if element.tag in ("title", "desc")}
    assert list(told.values()) == ["a title", "a description"]
    assert root.attrib["aria-labelledby"].split() == list(told)
    tips = [title.text for marker in of_class(root, "marker") for title in marker]
    assert tips == [f"{series.name}, {point.label}" for series in SERIES for point in series.points]


@pytest.mark.parametrize(("baseline", "shown"), [(None, False), (30, True), (5, True), (-100, False), (99, False)])
def test_the_baseline_is_shown_where_it_does_not_squeeze_the_lines(baseline: float | None, shown: bool) -> None:
    root = drawn(chart(baseline=baseline))
    assert bool(of_class(root, "baseline")) == shown
    if shown:
        offset, factor = scale(root)
        ((_, y), _) = numbers(of_class(root, "baseline")[0].attrib["d"])
        assert offset + factor * y == pytest.approx(baseline, abs=0.02)


def test_labels_of_the_x_axis_leave_out_what_does_not_fit() -> None:
    ticks = [Mark(i, f"{10**i}") for i in range(12)]
    series = [Series("one", [Point(0, 1, 1, 1, ""), Point(11, 2, 2, 2, "")])]
    root = drawn(LineChart("t", "d", "x", ticks, series))
    labels = x_labels(root)
    assert 2 < len(labels) < 12
    ends = [(float(text.attrib["x"]), 3.5 * len(text.text or "")) for text in labels]
    assert all(x - half > before + half_before for (before, half_before), (x, half) in pairwise(ends))


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6), min_size=1, max_size=6))
def test_grid_lines_are_round_and_hold_all_values(values: list[float]) -> None:
    steps = round_steps(values)
    assert 2 <= len(steps) <= 7
    assert steps[0] <= min(values) + 1e-9 * abs(min(values))
    assert steps[-1] >= max(values) - 1e-9 * abs(max(values))
    differences = [later - earlier for earlier, later in pairwise(steps)]
    assert differences == pytest.approx([differences[0]] * len(differences))
    assert min(abs(math.log10(differences[0] / digit) % 1 - whole) for digit in (1, 2, 5) for whole in (0, 1)) < 1e-9
