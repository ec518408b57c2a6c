"""Whether the documentation site covers what is public."""

from __future__ import annotations

from pathlib import Path

import emmet
from emmet import errors

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_documents_every_exported_name() -> None:
    reference = (DOCS / "reference-python.md").read_text(encoding="utf-8").splitlines()
    documented = {line.rpartition(":: emmet.")[2] for line in reference if line.startswith(".. auto")}
    assert "errors" in documented  # with all its names
    assert {*emmet.__all__} - {*errors.__all__, "__version__"} <= documented


def test_contents_list_every_page() -> None:
    listed = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= set(listed)
