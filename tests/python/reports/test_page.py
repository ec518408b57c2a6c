"""Both forms of a report hold all that it says, and the page needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

from emmet.reports import Document, Section, Table, markdown, page
from emmet.reports.interval_chart import Interval, IntervalChart
from emmet.reports.line_chart import LineChart, Mark, Point, Series


def line_chart(title: str) -> LineChart:
    points = [Point(0, 10, 5, 15, "1: 10"), Point(1, 20, 20, 20, "2: 20")]
    series = [Series(f"line {number}", points) for number in range(10)]
    return LineChart(title, "a description", "size", [Mark(0, "1"), Mark(1, "2")], series)


SCORES = Table(["method", "layers", "ES", "PS"], [["EMMET", "7", "99.0", "–"], ["MEMIT", "5-7", "98.0", "9"]], names=2)
MEANINGS = Table(["metric", "%", "meaning"], [["ES", "99.0", "efficacy: p(new) > p(old)"]], names=1, notes=1)
DOCUMENT = Document(
    title="a <model> & more",
    facts=[("records", "600 of counterfact.json"), ("intervals", "95 %")],
    sections=[
        Section("Scores", "Bands & lines.", [line_chart("ES"), line_chart("PS")], [SCORES]),
        Section("Metrics", "", [IntervalChart("Percent", "one", [Interval("ES", 99, 98, 100)])], [MEANINGS, SCORES]),
    ],
    failures=["EMMET: <2> failed"],
)


def parsed(html: str) -> ElementTree.Element:
    assert html.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(html.split("\n", 1)[1])  # all tags are closed, so that an XML parser checks them


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    html = page(DOCUMENT)
    root = parsed(html)
    tags = {element.tag for element in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|url\(|@import|\bsrc=|\bon[a-z]+=", html)
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(set(ids)) == len(ids)
    for element in root.iter():
        assert set(element.get("aria-labelledby", "").split()) <= set(ids)
    assert len([element for element in root.iter("svg") if element.get("role") == "img"]) == 3
    assert root.findtext("head/title") == root.findtext(".//h1") == DOCUMENT.title


def test_both_forms_hold_everything() -> None:
    text, root = markdown(DOCUMENT), parsed(page(DOCUMENT))
    expected = [table for section in DOCUMENT.sections for table in section.tables]
    for table, found in zip(expected, root.findall(".//table"), strict=True):
        rows = [["".join(cell.itertext()) for cell in row] for row in found.iter("tr")]
        assert rows == [list(table.header), *map(list, table.rows)]
        assert all(f"| {' | '.join(row)} |" in text for row in table.rows)
    told = "".join(root.find("body").itertext())  # type: ignore[union-attr]
    for section in DOCUMENT.sections:
        assert f"## {section.title}\n" in text
        assert section.text in text
        assert section.text in told
    for name, fact in DOCUMENT.facts:
        assert f"- {name}: {fact}\n" in text
        assert fact in told
    assert "- EMMET: <2> failed\n" in text
    assert "EMMET: <2> failed" in told


def test_figures_stand_at_the_right_and_names_and_notes_at_the_left() -> None:
    assert "| --- | --- | ---: | ---: |\n" in markdown(DOCUMENT)
    assert "| --- | ---: | --- |\n" in markdown(DOCUMENT)
    row = parsed(page(replace(DOCUMENT, sections=[Section("one", "", [], [MEANINGS])]))).find(".//tbody/tr")
    assert row is not None
    cells = [(cell.tag, cell.get("scope"), cell.get("class")) for cell in row]
    assert cells == [("th", "row", None), ("td", None, "figure"), ("td", None, None)]


def test_every_line_of_a_chart_is_in_the_legend_with_its_own_look() -> None:
    section = parsed(page(DOCUMENT)).find(".//section")
    assert section is not None
    legend = {
        "".join(item.itertext()).strip(): {(path.get("class") or "") for path in item.iter("path")}
        for item in section.findall("ul/li")
    }
    assert list(legend) == [f"line {number}" for number in range(10)]
    assert len({frozenset(look) for look in legend.values()}) == 10
    drawn = {path.get("class") for path in section.find("div/figure/svg").iter("path")}  # type: ignore[union-attr]
    assert set().union(*legend.values()) <= drawn


def test_bars_in_texts_do_not_split_cells_of_markdown() -> None:
    table = replace(SCORES, rows=[["a|b", "7", "1", "2"]])
    assert "| a\\|b |" in markdown(replace(DOCUMENT, sections=[Section("one", "", [], [table])]))
