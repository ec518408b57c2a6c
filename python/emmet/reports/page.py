"""A report as a web page: one file, without scripts, for any width, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources

from .document import Document, Section, Table
from .line_chart import marker_path, series_class


def page(document: Document) -> str:
    """The document as HTML 5."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield '<meta name="color-scheme" content="light dark"/>'
    yield f"<title>{escape(document.title)}</title>"
    yield f"<style>\n{style}</style>"
    yield "</head>"
    yield "<body>"
    yield "<header>"
    yield f"<h1>{escape(document.title)}</h1>"
    yield "<dl>"
    for name, text in document.facts:
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
    yield "</dl>"
    yield "</header>"
    yield "<main>"
    for number, section in enumerate(document.sections, start=1):
        yield from _section(number, section)
    if document.failures:
        yield '<section aria-labelledby="failures">'
        yield '<h2 id="failures">Failures</h2>'
        yield "<ul>"
        yield from (f"<li>{escape(failure)}</li>" for failure in document.failures)
        yield "</ul>"
        yield "</section>"
    yield "</main>"
    yield "</body>"
    yield "</html>"


def _section(number: int, section: Section) -> Iterator[str]:
    name = f"section-{number}"
    yield f'<section aria-labelledby="{name}">'
    yield f'<h2 id="{name}">{escape(section.title)}</h2>'
    if section.text:
        yield f"<p>{escape(section.text)}</p>"
    if section.charts:
        yield from _legend(section.charts[0].legend)
        yield '<div class="charts">'
        for i, chart in enumerate(section.charts):
            yield f"<figure>{chart.svg(f'{name}-chart-{i}')}</figure>"
        yield "</div>"
    for table in section.tables:
        yield from _table(table, section.title)
    yield "</section>"


def _legend(names: Sequence[str]) -> Iterator[str]:
    """What each line is; all charts of a section have the same."""
    if not names:
        return
    yield '<ul class="legend">'
    for index, name in enumerate(names):
        style = series_class(index)
        line = (
            f'<path class="line {style}" d="M0 8L28 8"/><path class="marker {style}" d="{marker_path(index, 14, 8)}"/>'
        )
        yield f'<li><svg viewBox="0 0 28 16" width="28" height="16" aria-hidden="true">{line}</svg> {escape(name)}</li>'
    yield "</ul>"


def _table(table: Table, caption: str) -> Iterator[str]:
    # Wider than a phone: it scrolls by itself, and takes the focus so that a keyboard can scroll it.
    yield f'<div class="table" role="region" aria-label="{escape(caption)}: figures" tabindex="0">'
    yield "<table>"
    yield f"<caption>{escape(caption)}: figures</caption>"
    yield f"<thead>{_row(table, table.header, len(table.header), 'col')}</thead>"
    yield "<tbody>"
    yield from (_row(table, row, table.names, "row") for row in table.rows)
    yield "</tbody>"
    yield "</table>"
    yield "</div>"


def _row(table: Table, cells: Sequence[str], names: int, scope: str) -> str:
    row = ""
    for column, cell in enumerate(cells):
        tag, more = ("th", f' scope="{scope}"') if column < names else ("td", "")
        style = ' class="figure"' if table.is_figure(column) else ""
        row += f"<{tag}{more}{style}>{escape(cell)}</{tag}>"
    return f"<tr>{row}</tr>"
