"""What a report says: sections with charts and tables, whatever they are written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Chart(Protocol):
    """A chart of a page. `legend` names its lines, where they need names."""

    @property
    def legend(self) -> Sequence[str]: ...

    def svg(self, name: str) -> str:
        """The chart as an <svg> element. `name` makes the ids in it differ from those of other charts on a page."""
        ...


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header.

    The first `names` columns say what a row is about, the last `notes` columns explain it, and the others hold figures.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int
    notes: int = 0

    def is_figure(self, column: int) -> bool:
        """Whether a column holds figures, which stand at its right."""
        return self.names <= column < len(self.header) - self.notes


@dataclass(frozen=True)
class Section:
    """A heading, what there is to know, charts with the same legend, and tables of what they show."""

    title: str
    text: str
    charts: Sequence[Chart]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Document:
    """The whole report. `facts` say what was measured on what, and `failures` why parts of it failed."""

    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    failures: Sequence[str] = ()
