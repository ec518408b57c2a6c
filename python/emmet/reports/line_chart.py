"""Line charts with bands as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .drawing import CHARACTER, MARKER, WIDTH, Drawing, circle, joined, round_steps

# In SVG units.
_HEIGHT = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 30, 44
_MARK_ROW = 13  # the labels of marks go in two of these in turn, so that neighbours do not run into each other

SERIES_COLOURS = 8
"""The style sheet colours the classes "series-0" to "series-7"; further series repeat them with a dashed line."""


@dataclass(frozen=True)
class Point:
    """A value at a position of the x axis, with its interval, as a person would read them in `label`."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Series:
    """Points to join by a line, in order."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Mark:
    """A line across the whole chart at a position of an axis, and what it stands for."""

    at: float
    label: str


@dataclass(frozen=True)
class LineChart:
    """A chart with named positions on the x axis. `baseline` is drawn where the values come near it.

    `title` is shown; `description` is what a person who does not see the chart is told.
    """

    title: str
    description: str
    x_label: str
    ticks: Sequence[Mark]
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    baseline: float | None = None

    @property
    def legend(self) -> Sequence[str]:
        return [series.name for series in self.series]

    def svg(self, name: str) -> str:
        """The chart as an <svg> element. `name` makes the ids in it differ from those of other charts on a page."""
        return _LineDrawing(self, name).svg()


def series_class(index: int) -> str:
    """The classes of the elements of a series, by which they get their colour and dashes."""
    return f"series-{index % SERIES_COLOURS}" + " dashed" * (index >= SERIES_COLOURS)


def marker_path(index: int, x: float, y: float) -> str:
    """The outline of a series' marker: a circle, square, diamond or triangle."""
    r = MARKER
    return (
        circle(x, y),
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x:.1f} {y - 1.4 * r:.1f}l{1.4 * r} {1.4 * r}l{-1.4 * r} {1.4 * r}l{-1.4 * r} {-1.4 * r}z",
        f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r} {2.3 * r}h{-2.6 * r}z",
    )[index % 4]


class _LineDrawing(Drawing):
    """A line chart while it is drawn."""

    def __init__(self, chart: LineChart, name: str) -> None:
        super().__init__(name, chart.title, chart.description, _HEIGHT)
        self._chart = chart
        self._top = _TOP + (2 * _MARK_ROW if chart.marks else 0)
        self._x_range = _padded(tick.at for tick in (*chart.ticks, *chart.marks))
        values = [value for series in chart.series for point in series.points for value in (point.low, point.high)]
        self._baseline = chart.baseline if _is_near(chart.baseline, values) else None
        self._y_ticks = round_steps([*values, *([] if self._baseline is None else [self._baseline])])
        self._draw()

    def _draw(self) -> None:
        chart = self._chart
        self.text(_LEFT, 16, chart.title, "chart-title", "start")
        for tick in self._y_ticks:
            self._line(_LEFT, self._y(tick), WIDTH - _RIGHT, self._y(tick), "grid")
            self.text(_LEFT - 6, self._y(tick) + 4, f"{tick:.6g}", "tick", "end")
        for x, label in self._spaced_ticks():
            self.text(x, _HEIGHT - _BOTTOM + 16, label, "tick", "middle")
        self.text((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 8, chart.x_label, "axis", "middle")
        for row, (x, label) in enumerate(self._joined_marks()):
            half = CHARACTER * len(label) / 2
            self.text(min(x, WIDTH - half), _TOP + _MARK_ROW * (row % 2), label, "mark-label", "middle")
        for mark in chart.marks:
            self._line(self._x(mark.at), self._top, self._x(mark.at), _HEIGHT - _BOTTOM, "mark", mark.label)
        if self._baseline is not None:
            y = self._y(self._baseline)
            self._line(_LEFT, y, WIDTH - _RIGHT, y, "baseline", f"unedited model: {self._baseline:.1f}")
        for index, series in enumerate(chart.series):
            self._band(index, series)
        for index, series in enumerate(chart.series):
            self._points(index, series)

    def _band(self, index: int, series: Series) -> None:
        there = [(self._x(point.x), self._y(point.high)) for point in series.points]
        back = [(self._x(point.x), self._y(point.low)) for point in reversed(series.points)]
        self.path(f"{joined(there + back)}z", f"band {series_class(index)}")

    def _points(self, index: int, series: Series) -> None:
        places = [(self._x(point.x), self._y(point.y)) for point in series.points]
        self.path(joined(places), f"line {series_class(index)}")
        for (x, y), point in zip(places, series.points, strict=True):
            tip = f"{series.name}, {point.label}"
            self.path(marker_path(index, x, y), f"marker {series_class(index)}", tip)

    def _spaced_ticks(self) -> Iterator[tuple[float, str]]:
        """The ticks whose labels fit in beside those before, and where they go."""
        free = -math.inf
        for tick in self._chart.ticks:
            x, half = self._x(tick.at), CHARACTER * len(tick.label) / 2
            if x - half > free:
                yield x, tick.label
                free = x + half + CHARACTER

    def _joined_marks(self) -> list[tuple[float, str]]:
        """Where the labels of the marks go, of which those too close together are made one."""
        labels: list[tuple[float, str]] = []
        for mark in sorted(self._chart.marks, key=lambda mark: mark.at):
            x = self._x(mark.at)
            if labels and x - labels[-1][0] < 2 * CHARACTER:
                labels[-1] = (labels[-1][0], f"{labels[-1][1]}, {mark.label}")
            else:
                labels.append((x, mark.label))
        return labels

    def _x(self, position: float) -> float:
        low, high = self._x_range
        return _LEFT + (position - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self._y_ticks[0], self._y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - self._top - _BOTTOM)

    def _line(self, x1: float, y1: float, x2: float, y2: float, style: str, tip: str | None = None) -> None:
        self.path(joined([(x1, y1), (x2, y2)]), style, tip)


def _padded(positions: Iterable[float]) -> tuple[float, float]:
    """The range of positions with some room at both ends."""
    positions = list(positions)
    low, high = min(positions), max(positions)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def _is_near(baseline: float | None, values: Sequence[float]) -> bool:
    """Whether a baseline can be shown without squeezing the values into less than half of the chart."""
    if baseline is None:
        return False
    span = max(values) - min(values)
    return max(*values, baseline) - min(*values, baseline) <= 2 * max(span, 5)
