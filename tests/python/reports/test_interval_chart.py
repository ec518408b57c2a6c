"""Interval charts put values where they belong, and tell in words what they show."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from emmet.reports.interval_chart import Interval, IntervalChart

ROWS = [Interval("ES", 97.5, 93.75, 100), Interval("paraphrase_accuracy", 40, 20, 60), Interval("EM", -12, -20, -4)]


def drawn(rows: list[Interval]) -> ElementTree.Element:
    return ElementTree.fromstring(IntervalChart("Percent", "what it shows", rows).svg("name"))


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[0-9.]+) (-?[0-9.]+)", path)]


def value_at(root: ElementTree.Element, x: float) -> float:
    """What a place stands for, by the labels of the grid."""
    places = [(float(text.attrib["x"]), float(text.text or "")) for text in of_class(root, "tick")]
    (x0, first), (x1, last) = places[0], places[-1]
    return first + (x - x0) / (x1 - x0) * (last - first)


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[:2], ROWS])
def test_values_and_intervals_are_where_they_belong(rows: list[Interval]) -> None:
    root = drawn(rows)
    for row, line, marker in zip(rows, of_class(root, "line"), of_class(root, "marker"), strict=True):
        (low, y), (high, _), *_ = numbers(line.attrib["d"])
        ((left, height), *_) = numbers(marker.attrib["d"])
        found = [value_at(root, x) for x in (low, high, left + 4)]
        assert found == pytest.approx([row.low, row.high, row.value], abs=0.1)
        assert height == y
        assert {row.name, f"{row.value:.1f}"} <= {text.text for text in of_class(root, "name")}
    assert value_at(root, numbers(of_class(root, "grid")[-1].attrib["d"])[0][0]) == pytest.approx(100)


def test_everything_is_inside_the_drawing_and_names_are_not_cut() -> None:
    root = drawn(ROWS)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for path in [*of_class(root, "line"), *of_class(root, "grid")]:
        assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers(path.attrib["d"]))
    for text in of_class(root, "name"):
        assert float(text.attrib["x"]) - 7 * len(text.text or "") >= 0
        assert float(text.attrib["y"]) < height


def test_who_does_not_see_it_is_told() -> None:
    root = drawn(ROWS[:1])
    assert [element.text for element in root if element.tag in ("title", "desc")] == ["Percent", "what it shows"]
    tips = {title.text for marker in of_class(root, "marker") for title in marker}
    assert tips == {"ES: 97.5, 95 % interval 93.8 to 100.0"}
