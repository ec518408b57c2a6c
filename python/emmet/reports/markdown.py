"""A report as Markdown: all but the charts, whose figures are in the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .document import Document, Table


def markdown(document: Document) -> str:
    """The document as GitHub shows it."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    yield f"# {document.title}"
    yield ""
    if any(section.charts for section in document.sections):
        yield from ("The charts are in [report.html](report.html).", "")
    yield from (f"- {name}: {text}" for name, text in document.facts)
    for section in document.sections:
        yield ""
        yield f"## {section.title}"
        if section.text:
            yield from ("", section.text)
        for table in section.tables:
            yield ""
            yield from _table(table)
    if document.failures:
        yield ""
        yield "## Failures"
        yield ""
        yield from (f"- {failure}" for failure in document.failures)


def _table(table: Table) -> Iterator[str]:
    yield _row(table.header)
    yield _row(["---:" if table.is_figure(column) else "---" for column in range(len(table.header))])
    yield from map(_row, table.rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
