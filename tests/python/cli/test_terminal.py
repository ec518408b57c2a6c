"""Progress bars and warnings: what they show, and when there are none."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from emmet import EmmetWarning, cli
from emmet.cli import terminal

from .runner import edit_arguments


def test_bars_show_rate_and_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_BAR_DELAY", 0.0)
    arguments = ["edit", str(folder / "model"), str(folder / "edits.jsonl"), "--layers", "1", "--out"]
    assert cli.main([*arguments, str(tmp_path / "delta")]) == 0
    bars = re.split(r"[\r\n]+", capsys.readouterr().err)
    for stage in ("loading", "sampling", "statistics", "prefixes", "values"):
        last = [bar for bar in bars if bar.startswith(stage)][-1]
        assert re.fullmatch(rf"{stage}: +\d+%\|.+\| \d+/\d+ \[[\d:]+<[\d:?]+, +[\d.?]+(it/s|s/it)\] *", last), last


def test_stages_of_less_than_two_seconds_show_no_bar(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(list(map(str, edit_arguments(folder, "--out", tmp_path / "delta")))) == 0
    assert capfd.readouterr().err == ""


def test_quiet_shows_no_bars(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_BAR_DELAY", 0.0)
    assert cli.main(list(map(str, edit_arguments(folder, "--quiet", "--out", tmp_path / "delta")))) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("edits ")


@pytest.mark.parametrize("shown", [True, False])
def test_own_warnings_are_lines(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    others: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_place, **_more: others.append(str(message))
        with terminal.warnings_as_lines(shown=shown):
            for _ in range(2):
                warnings.warn("few tokens", EmmetWarning, stacklevel=1)
            warnings.warn("of a library", stacklevel=1)
        warnings.warn("afterwards", EmmetWarning, stacklevel=1)
    assert capsys.readouterr().err == ("emmet: warning: few tokens\n" if shown else "")
    assert others == ["of a library", "afterwards"]
