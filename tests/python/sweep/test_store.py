"""A run's file holds what was written, and is not taken for that of another run."""

from __future__ import annotations

from pathlib import Path

import pytest

from emmet import FormatError
from emmet.sweep.store import RunFile

OUTCOMES = [
    {"first": 0, "end": 2, "layers": [{"layer": 1, "ridge": 0.1}], "records": [{"id": "é", "ES": 1 / 3, "PS": None}]},
    {"first": 2, "end": 4, "layers": [], "records": [], "error": "so it is"},
]


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs" / "a.json", {"layers": (1, 2), "ridge": 1e-12})
    assert file.read() == []
    file.write(OUTCOMES[:1])
    assert file.read() == OUTCOMES[:1]
    file.write(OUTCOMES)
    assert file.read() == OUTCOMES
    assert [path.name for path in file.path.parent.iterdir()] == ["a.json"]


def test_a_file_of_another_sweep_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    RunFile(path, {"model": "a", "records": 1, "ridge": 0}).write(OUTCOMES)
    with pytest.raises(FormatError, match=r"a.json is of another sweep, which differs in drift, model, records: name"):
        RunFile(path, {"model": "b", "ridge": 0, "drift": 5}).read()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run": 3, "batches": []}', '{"run": {}, "batches": [', "\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(FormatError, match=r"a.json is not what `emmet sweep` wrote there: .*delete it"):
        RunFile(path, {}).read()


@pytest.mark.parametrize(("part", "other"), [("0.1", "0.2"), ('"first": 2', '"first": 3'), ('"end"', '"dne"')])
def test_a_changed_file_is_refused(tmp_path: Path, part: str, other: str) -> None:
    file = RunFile(tmp_path / "a.json", {"ridge": 0})
    file.write(OUTCOMES)
    text = file.path.read_text()
    assert part in text
    file.path.write_text(text.replace(part, other, 1))
    with pytest.raises(FormatError, match=r"a.json is not what `emmet sweep` wrote there: .*delete it"):
        file.read()


def test_an_outcome_that_lacks_something_is_refused(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "a.json", {})
    file.write([{"first": 0, "end": 2, "layers": []}])
    with pytest.raises(FormatError, match="delete it"):
        file.read()
