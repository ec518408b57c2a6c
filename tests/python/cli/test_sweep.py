"""`emmet sweep`: the whole way, an interrupt on it, and options that are refused before a model is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from emmet import cli
from emmet.cli import terminal
from emmet.sweep import task
from workspace import EDITS, TEXT, contents, save_model, write_lines

SETTINGS = {"prefixes": ["It is said that. "], "steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, records, of which one is there twice, settings, a text and statistics."""
    folder = tmp_path_factory.mktemp("workspace")
    save_model(folder / "model")
    third = {**EDITS[0], "subject": "Michel Rocard"}
    write_lines(folder / "records.jsonl", [*EDITS, third, EDITS[0], {**EDITS[1], "subject": "Germany"}])
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "method.json").write_text(json.dumps({**SETTINGS, "method": "emmet"}))
    (folder / "text.txt").write_text(TEXT)
    collect = ["stats", folder / "model", "--corpus", folder / "text.txt", "--layers", "1-2", "--out", folder / "stats"]
    assert cli.main(list(map(str, collect))) == 0
    return folder


def arguments(folder: Path, out: Path, *more: str | Path) -> list[str]:
    sources = ["sweep", folder / "model", folder / "records.jsonl", "--config", folder / "settings.json"]
    return list(map(str, [*sources, "--stats", folder / "stats", "--out", out, *more]))


COMBINATIONS = ("--methods", "rome,emmet:0,memit", "--ridges", "0.5,2", "--batch-sizes", "1,2", "--layers", "1", "1-2")


def test_whole_way(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drift = ("--drift", folder / "text.txt", "--drift-tokens", "200")
    assert cli.main(arguments(folder, tmp_path / "out", *COMBINATIONS, *drift, "--values", tmp_path / "values")) == 0
    printed = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    names = [
        f"{solver}-batch-{size}"
        for layers in ("1", "1-2")
        for solver in (
            f"rome-layers-{layers}-ridge-0",
            f"emmet-layers-{layers}-ridge-0",
            f"memit-layers-{layers}-ridge-0.5",
            f"memit-layers-{layers}-ridge-2",
        )
        for size in (1, 2)
    ]
    assert list(printed) == ["records", *names, "time", "written"]
    assert printed["records"] == "4 scored, 1 repetitions left out"
    assert printed[names[0]].startswith("ES ")
    files = contents(tmp_path / "out")
    runs = {f"runs/{name}.json" for name in [*names, "unedited"]}
    assert set(files) == {"emmet.json", "report.html", "report.md", "runs", *runs}
    report = (files["report.md"] or b"").decode()
    assert "- records: 5 of records.jsonl; 1 left out" in report
    assert "- drift: of the predictions of 200 tokens of text.txt" in report
    assert str(tmp_path) not in report + (files["report.html"] or b"").decode()
    assert any((tmp_path / "values").rglob("*.safetensors"))


def test_chosen_records_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    plan = ("--methods", "emmet", "--batch-sizes", "1", "--layers", "2", "--scored", "2")
    plan += ("--sequential", "--absorb", "0.5")
    assert cli.main(arguments(folder, tmp_path / "out", "--records", "1:4", *plan)) == 0
    (path,) = (tmp_path / "out" / "runs").glob("emmet-*")
    assert path.name == "emmet-layers-2-ridge-auto-batch-1-sequential-absorb-0.5.json"
    (batch,) = json.loads(path.read_text())["batches"]
    assert (batch["first"], batch["end"], len(batch["records"])) == (0, 2, 2)
    assert "3 of records.jsonl 1:4" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complete, calls = task.Task.complete, []

    def interrupted(self: task.Task, *rest: object) -> object:
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(terminal, "_BAR_DELAY", 600.0)  # seconds: no bar among the errors, however slow the machine
    monkeypatch.setattr(task.Task, "complete", interrupted)
    assert cli.main(arguments(folder, tmp_path / "out", *COMBINATIONS)) == 130
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2
    monkeypatch.setattr(task.Task, "complete", complete)
    assert cli.main(arguments(folder, tmp_path / "out", *COMBINATIONS)) == 0
    assert cli.main(arguments(folder, tmp_path / "whole", *COMBINATIONS)) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert capsys.readouterr().err == "emmet: interrupted\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "emet"), "unknown method 'emet', did you mean 'emmet'?: choose rome, memit, emmet, alphaedit"),
        (("--ridges", "0"), "the ridge of memit must be a number above 0 (emmet takes any), got 0.0"),
        (
            ("--ridges", "1,lots"),
            "argument --ridges: expected a number or \"auto\", got 'lots'",
        ),
        (("--layers", "2-1"), "argument --layers: expected layers as in \"7\" or \"4-8,10\", got '2-1' in '2-1'"),
        (("--batch-sizes", "1,0"), "argument --batch-sizes: expected a whole number of at least 1, got '0'"),
        (("--batch-sizes", "5"), "a batch of 5 needs as many records of different prompts or subjects, got 4"),
        (("--records", "3"), "argument --records: expected records as in \"5000:5500\", got '3'"),
        (("--records", "9:"), "there are no records 9: in {folder}/records.jsonl, which has 5"),
        (("--layers", "3"), "there are no statistics of layer 3, only of 1, 2"),
        (("--drift", "nowhere.txt"), "cannot read nowhere.txt"),
        (
            ("--config", "{folder}/method.json"),
            "expected settings without a method, got one in {folder}/method.json; name it with --methods",
        ),
        (("--values", "{folder}/text.txt"), "cannot write to {folder}/text.txt"),
        (("--out", "{folder}/model"), "expected a new or empty folder for the output, got {folder}/model"),
    ],
)
def test_options_at_fault_are_refused_before_the_model_is_loaded(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("emmet.cli.sweep.load_model", None)  # what calls it now, fails
    options = [option.format(folder=folder) for option in ("--batch-sizes", "1", *more)]
    assert cli.main(arguments(folder, tmp_path / "out", *options)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"emmet: error: {message.format(folder=folder)}")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
