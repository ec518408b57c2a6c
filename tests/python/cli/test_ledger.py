"""`emmet edit --ledger` and `emmet ledger`: edits on top of others, and edits that are taken back."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from emmet import Editor, EmmetError, Update, cli
from emmet.cli.inputs import UnchangedLedger
from emmet.delta import Delta
from emmet.export import save_peft
from emmet.output import MANIFEST
from workspace import EDITS, contents, write_lines

from .runner import Runner, edit_arguments, manifest_of


def test_ledger(folder: Path, tmp_path: Path, run: Runner) -> None:
    ledger, delta, stats = tmp_path / "ledger", tmp_path / "delta", folder / "stats"
    printed = run(*edit_arguments(folder, "--out", delta, "--ledger", ledger, "--author", "A. Reviewer"))
    assert printed["ledger"] == f"{ledger}: 2 edits, of which 1 and above are new"
    assert "replaced" not in printed
    assert run("ledger", "list", ledger)["edits"] == "2"

    newer = write_lines(tmp_path / "newer.jsonl", [{**EDITS[1], "target": "Rome"}])
    arguments = ("edit", folder / "model", newer, "--stats", stats, "--layers", "2")
    printed = run(*arguments, "--out", delta, "--ledger", ledger)
    assert printed["ledger"] == f"{ledger}: 2 edits, of which 3 and above are new"
    assert printed["replaced"] == "edit 2: 'The capital of France is' → 'Berlin', which is now 'Rome'"
    listed = run("ledger", "list", ledger)
    assert (listed["model"], listed["edits"]) == (str(folder / "model"), "2")
    assert re.fullmatch(
        r"'The mother tongue of Danielle Darrieux is' → 'English' by emmet, \d{4}-\d\d-\d\dT.*, A\. Reviewer",
        listed["1"],
    )
    assert "'Rome' by emmet" in listed["3"]
    assert [edit["target"] for edit in manifest_of(delta)["edits"]] == ["English", "Rome"]

    printed = run("ledger", "remove", ledger, "3", "--stats", stats, "--out", delta)
    assert (printed["edits"], printed["written"]) == ("1 left", str(delta))
    assert [edit["target"] for edit in manifest_of(delta)["edits"]] == ["English"]
    run(*edit_arguments(folder, "--out", tmp_path / "alone", "--limit", "1"))
    left, alone = (Update.load(out / "layer.2.safetensors").dense() for out in (delta, tmp_path / "alone"))
    torch.testing.assert_close(left, alone, rtol=0, atol=1e-4 * float(alone.abs().max()))

    run("ledger", "remove", ledger, "1", "--stats", stats, "--out", delta)
    assert run("ledger", "list", ledger)["edits"] == "0"
    assert set(contents(delta)) == {"emmet.json"}
    assert "got one that has none left" in refused_export(delta, tmp_path / "adapter")


def test_a_ledger_that_another_command_wrote_meanwhile_is_kept(
    folder: Path,
    tmp_path: Path,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ledger = tmp_path / "ledger"
    edit = Editor.edit

    def edit_beside_another(editor: Editor, *arguments: Any, **settings: Any) -> Any:
        monkeypatch.setattr(Editor, "edit", edit)
        run(*edit_arguments(folder, "--out", tmp_path / "other", "--ledger", ledger, "--limit", "1"))
        return edit(editor, *arguments, **settings)

    monkeypatch.setattr(Editor, "edit", edit_beside_another)
    refused = edit_arguments(folder, "--out", tmp_path / "delta", "--ledger", ledger)
    assert cli.main(list(map(str, refused))) == 2
    assert "got a changed one: another command has written it meanwhile" in capsys.readouterr().err
    assert run("ledger", "list", ledger)["edits"] == "1"
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("command", ["edit", "remove"])
def test_a_ledger_that_is_written_while_a_command_waits_for_it_keeps_its_output(
    folder: Path, tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    ledger, delta, stats = tmp_path / "ledger", tmp_path / "delta", folder / "stats"
    edit = edit_arguments(folder, "--ledger", ledger)
    run(*edit, "--out", delta, "--limit", "1")
    before = contents(delta)
    held = UnchangedLedger.held

    def held_after_another(unchanged: UnchangedLedger) -> Any:
        monkeypatch.setattr(UnchangedLedger, "held", held)
        run(*edit, "--out", tmp_path / "other")
        return held(unchanged)

    monkeypatch.setattr(UnchangedLedger, "held", held_after_another)
    commands = {"edit": edit, "remove": ("ledger", "remove", ledger, "1", "--stats", stats)}
    assert cli.main(list(map(str, (*commands[command], "--out", delta)))) == 2
    assert contents(delta) == before
    assert run("ledger", "list", ledger)["edits"] == "2"


def test_commands_write_a_ledger_one_after_the_other(tmp_path: Path) -> None:
    ledger = tmp_path / "new" / "ledger"
    first, second = UnchangedLedger(ledger), UnchangedLedger(ledger)
    events: list[str] = []

    def write_too() -> None:
        with pytest.raises(EmmetError, match="another command has written it meanwhile"), second.held():
            events.append("both")
        events.append("refused")

    other = threading.Thread(target=write_too)
    with first.held():
        other.start()
        other.join(0.2)
        ledger.mkdir()
        (ledger / MANIFEST).write_text("{}")
        events.append("written")
    other.join()
    assert events == ["written", "refused"]


def refused_export(delta: Path, out: Path) -> str:
    with pytest.raises(EmmetError) as caught:
        save_peft(Delta.load(delta), out)
    return str(caught.value)
