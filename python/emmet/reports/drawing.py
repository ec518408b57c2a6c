"""SVG without scripts, in colours that the page's style sheet decides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

WIDTH = 360
"""Of all charts, in SVG units. At phone width one unit is about a pixel."""

CHARACTER = 7
"""About the width of one at the style sheet's size, in SVG units."""

MARKER = 4
"""Half the width of a marker, in SVG units."""


class Drawing:
    """An <svg> element, drawn from the back to the front.

    `title` and `description` are what a person who does not see it is told.
    """

    def __init__(self, name: str, title: str, description: str, height: float) -> None:
        ids = f"{name}-title", f"{name}-description"
        self._root = ElementTree.Element(
            "svg",
            {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-labelledby": " ".join(ids), "class": "chart"},
        )
        for tag, id_, text in (("title", ids[0], title), ("desc", ids[1], description)):
            ElementTree.SubElement(self._root, tag, {"id": id_}).text = text

    def svg(self) -> str:
        return ElementTree.tostring(self._root, encoding="unicode", short_empty_elements=False)

    def path(self, d: str, style: str, tip: str | None = None) -> None:
        """A path of the class `style`, with a text for who points at it."""
        element = ElementTree.SubElement(self._root, "path", {"d": d, "class": style})
        if tip:
            ElementTree.SubElement(element, "title").text = tip

    def text(self, x: float, y: float, text: str, style: str, anchor: str) -> None:
        where = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style, "text-anchor": anchor}
        ElementTree.SubElement(self._root, "text", where).text = text


def joined(places: Iterable[tuple[float, float]]) -> str:
    """The path through places."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def circle(x: float, y: float) -> str:
    """The outline of a round marker."""
    return f"M{x - MARKER:.1f} {y:.1f}a{MARKER} {MARKER} 0 1 0 {2 * MARKER} 0a{MARKER} {MARKER} 0 1 0 {-2 * MARKER} 0z"


def round_steps(values: Sequence[float]) -> list[float]:
    """Two to seven round numbers at equal distances, from below all values to above them."""
    low, high = min(values), max(values)
    span = high - low or max(abs(high), 1) / 10
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    last = math.ceil(high / step)
    return [step * i for i in range(min(math.floor(low / step), last - 1), last + 1)]
