"""Writes the report of a sweep."""

from __future__ import annotations

from pathlib import Path

from ..reports import markdown, page
from ..storage import write_text
from .document import document
from .results import Results


def write_report(results: Results, folder: Path) -> None:
    """Write report.md and report.html, which say the same; equal results give equal bytes."""
    content = document(results)
    write_text(folder / "report.md", markdown(content))
    write_text(folder / "report.html", page(content))
