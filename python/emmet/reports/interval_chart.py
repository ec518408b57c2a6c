"""Charts of single values with their intervals, one below the other, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .drawing import CHARACTER, WIDTH, Drawing, circle, joined, round_steps

_TOP, _ROW, _BOTTOM = 32, 22, 28
_END = 2.5  # half the height of the ends of an interval


@dataclass(frozen=True)
class Interval:
    """A value by its name, with its interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class IntervalChart:
    """A row for each value: its name, a point with its interval on the axis that all share, and the figure.

    The axis goes from 0 or below to 100 or above. `title` is shown; `description` is what a person who
    does not see the chart is told.
    """

    title: str
    description: str
    rows: Sequence[Interval]

    @property
    def legend(self) -> Sequence[str]:
        return ()

    def svg(self, name: str) -> str:
        """The chart as an <svg> element. `name` makes the ids in it differ from those of other charts on a page."""
        bottom = _TOP + _ROW * len(self.rows)
        drawing = Drawing(name, self.title, self.description, bottom + _BOTTOM)
        drawing.text(0, 16, self.title, "chart-title", "start")
        left = CHARACTER * max(len(row.name) for row in self.rows) + CHARACTER
        right = WIDTH - 6 * CHARACTER
        ticks = round_steps([0.0, 100.0, *(end for row in self.rows for end in (row.low, row.high))])

        def place(value: float) -> float:
            return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

        for tick in ticks:
            drawing.path(joined([(place(tick), _TOP), (place(tick), bottom)]), "grid")
            drawing.text(place(tick), bottom + 16, f"{tick:.6g}", "tick", "middle")
        for number, row in enumerate(self.rows):
            y = _TOP + _ROW * (number + 0.5)
            tip = f"{row.name}: {row.value:.1f}, 95 % interval {row.low:.1f} to {row.high:.1f}"
            drawing.text(left - CHARACTER, y + 4, row.name, "name", "end")
            ends = "".join(joined([(place(end), y - _END), (place(end), y + _END)]) for end in (row.low, row.high))
            drawing.path(joined([(place(row.low), y), (place(row.high), y)]) + ends, "line series-0", tip)
            drawing.path(circle(place(row.value), y), "marker series-0", tip)
            drawing.text(WIDTH, y + 4, f"{row.value:.1f}", "name", "end")
        return drawing.svg()
