"""`emmet eval`: drift, texts and tasks; its metrics are tested with those of `emmet edit`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from emmet import cli
from emmet.errors import NonFiniteError
from emmet.evaluate.downstream import TaskScore
from workspace import write_lines, write_task

from .runner import Runner, edit_arguments, metrics


def test_drift_of_a_delta(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    arguments = ("eval", folder / "model", folder / "edits.jsonl", "--delta", tmp_path / "delta", "--report")
    run(*arguments, tmp_path / "plain")
    printed = run(*arguments, tmp_path / "drift", "--drift", folder / "text.txt")
    assert re.fullmatch(r"KL \S+ nats, perplexity \S+ → \S+, top-1 agreement \S+ %", printed["drift"])
    found = metrics(tmp_path / "drift")
    drift = found.pop("drift")
    assert found == metrics(tmp_path / "plain")  # of the edited model
    assert drift["kl"] > 0
    assert drift["layers"].keys() == {"2"}
    assert "## Drift from the unedited model" in (tmp_path / "drift" / "report.md").read_text(encoding="utf-8")


def test_texts_and_references(folder: Path, tmp_path: Path, run: Runner) -> None:
    record = {
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "subject": "Danielle Darrieux",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
        },
        "generation_prompts": ["Danielle Darrieux lives in"],
    }
    data = write_lines(tmp_path / "counterfact.jsonl", [record])
    references = [{"relation_id": "P103", "target_id": "Q1860", "samples": [{"text": "Danielle lives in London"}]}]
    (tmp_path / "snippets.json").write_text(json.dumps(references))
    evaluation = ("eval", folder / "model", data, "--report", tmp_path / "report")

    run(*evaluation)
    assert not {"GE", "RS"} & metrics(tmp_path / "report").keys()
    run(*evaluation, "--texts")
    with_texts = metrics(tmp_path / "report")
    assert with_texts["GE"] > 0
    assert with_texts["RS"] is None
    run(*evaluation, "--references", tmp_path / "snippets.json")
    with_references = metrics(tmp_path / "report")
    assert with_references["GE"] == with_texts["GE"]
    assert with_references["RS"] > 0


def test_what_was_measured_before_a_failure_is_kept(
    folder: Path, tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(*_: object, **__: object) -> None:
        message = "expected finite predictions"
        raise NonFiniteError(message)

    scores = iter([{"piqa": {"acc": TaskScore(0.5, None)}}, {"piqa": {"acc": TaskScore(None, None)}}])
    monkeypatch.setattr("emmet.evaluate.Tasks", lambda names: names)
    monkeypatch.setattr("emmet.cli.eval._run_tasks", lambda *_: next(scores))
    monkeypatch.setattr("emmet.evaluate.measure_drift", overflows)
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    arguments = ("eval", folder / "model", folder / "edits.jsonl", "--delta", tmp_path / "delta", "--tasks", "piqa")
    arguments += ("--report", tmp_path / "report", "--drift", folder / "text.txt")
    assert cli.main(list(map(str, arguments))) == 2
    found = metrics(tmp_path / "report")
    assert found["tasks"]["piqa"]["acc"]["value"] == 0.5
    assert found["tasks_before"]["piqa"]["acc"]["value"] is None
    assert "| piqa | acc | – | 0.5 |" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_tasks_before_and_after(folder: Path, tmp_path: Path, run: Runner) -> None:
    pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
    task = write_task(tmp_path)
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    evaluation = ("eval", folder / "model", folder / "edits.jsonl", "--tasks", task, "--report", tmp_path / "report")

    printed = run(*evaluation)
    unedited = metrics(tmp_path / "report")
    assert re.fullmatch(r"acc \S+", printed["geography"])
    assert "tasks_before" not in unedited
    run(*evaluation, "--delta", tmp_path / "delta")
    edited = metrics(tmp_path / "report")
    assert edited["tasks_before"] == unedited["tasks"]
    assert edited["tasks"]["geography"]["acc"].keys() == {"value", "standard_error"}
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| task | metric | unedited | this model |" in report
