"""`emmet` itself: exit codes, help and version."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import emmet
from emmet import cli, editor
from workspace import contents, full_disk

from .runner import edit_arguments


@pytest.mark.usefixtures("interruptible")
def test_interrupt_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(editor, "solve", lambda *_: signal.raise_signal(signal.SIGINT))
    assert cli.main(list(map(str, edit_arguments(folder, "--out", tmp_path / "delta")))) == 130
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "emmet: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_emmet_itself_propagate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        message = "a bug"
        raise RuntimeError(message)

    monkeypatch.setattr(editor, "solve", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(list(map(str, edit_arguments(folder, "--out", tmp_path / "delta"))))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_that_names_the_output(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(list(map(str, edit_arguments(folder, "--out", tmp_path / "delta")))) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    again = edit_arguments(folder, "--out", tmp_path / "delta", "--format", "model", "--quiet")
    with full_disk(5000):  # the values are in the cache by now
        assert cli.main(list(map(str, again))) == 2
    error = f"emmet: error: cannot write {tmp_path / 'delta'}: File too large; make room, or name another place\n"
    assert capsys.readouterr().err == error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["stats", "edit", "export", "eval", "sweep", "info"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert f"\n  emmet {command} " in printed.split("examples:")[1]
    assert max(map(len, printed.splitlines())) <= 120


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"emmet {emmet.__version__}\n"


def test_module_runs_and_help_does_not_wait_for_transformers() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "emmet", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: emmet ")
    assert "emmet.cli" in run.stderr
    assert "transformers" not in run.stderr
