"""Runs `emmet` in this process, and reads what it prints and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from emmet import cli


class Runner:
    """Runs `emmet` and reads what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> dict[str, str]:
        """What a run that succeeds prints, by the name that each line begins with."""
        self._capsys.readouterr()
        assert cli.main(list(map(str, arguments))) == 0
        return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in self._capsys.readouterr().out.splitlines())


def edit_arguments(folder: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("edit", folder / "model", folder / "edits.jsonl", "--stats", folder / "stats", "--layers", "2", *more)


def manifest_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "emmet.json").read_text())
    return found


def metrics(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report / "metrics.json").read_text())
    return found
