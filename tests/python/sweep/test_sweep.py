"""A sweep comes to what doing it by hand comes to, and to the same after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import emmet
from emmet import ConfigError, Edit, EditConfig, EditError, Editor, FormatError, StatisticsError
from emmet.corpora import TextFile
from emmet.edits import Neighbour, Record
from emmet.evaluate import evaluate
from emmet.evaluate.drift import measure_drift
from emmet.progress import Progress, silent
from emmet.statistics import Statistics
from emmet.sweep import Plan, run, sweep, task, workbench
from emmet.sweep.results import Results
from tiny import tiny_model, tiny_tokenizer
from workspace import contents

FACTS = [
    ("The mother tongue of {} is", "Danielle Darrieux", "English", "French"),
    ("The capital of {} is", "France", "Berlin", "Paris"),
    ("{} plays the", "Toko Yasuda", "piano", "guitar"),
    ("The official religion of {} is", "Edwin of Northumbria", "Islam", "Christianity"),
    ("{} is located in the country of", "Autonomous University of Madrid", "France", "Spain"),
    ("{} was created by", "Apple A5", "Google", "Apple"),
    ("The native language of {} is", "Michel Rocard", "English", "French"),
]
RECORDS = [
    Record(
        Edit(prompt, subject, target, str(number)),
        "counterfact",
        answer,
        (f"So {prompt.format(subject)}",),
        (neighbour,),
    )
    for number, (prompt, subject, target, answer) in enumerate(FACTS)
    for neighbour in [Neighbour(prompt.format("Germany"), answer)]
]
TEXT = "In the United States, the people who live in Paris speak French; where is the Eiffel Tower? " * 40
CONFIG = EditConfig(prefixes=("It is said that. ",), steps=3, clamp=4, weight_decay=0.001, learning_rate=0.1)
PLAN = Plan(methods=["emmet:0", "memit:0.5"], batch_sizes=[1, 3], layers=[[1]], config=CONFIG)
LAYERS = [0, 1, 2]


class Lab:
    """A tiny model with statistics, and a folder for all that a sweep writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "text.txt").write_text(TEXT)
        self.tokenizer = tiny_tokenizer()
        self.model = tiny_model("llama", vocab_size=len(self.tokenizer))
        self.statistics: Statistics = emmet.collect_statistics(
            self.model, self.tokenizer, folder / "text.txt", layers=LAYERS, tokens=800
        )

    def sweep(
        self,
        plan: Plan = PLAN,
        records: Sequence[Record] = RECORDS,
        out: str = "out",
        values: str = "values",
        progress: Progress = silent,
        **more: Any,
    ) -> Results:
        arguments = {"statistics": self.statistics, "value_cache": self.folder / values, **more}
        return sweep(self.model, self.tokenizer, records, plan, self.folder / out, progress=progress, **arguments)

    def editor(self, **settings: Any) -> Editor:
        return Editor(self.model, self.tokenizer, config=replace(CONFIG, **settings), statistics=self.statistics)

    def scores(self, editor: Editor, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The metrics of each record, with nothing but the editor and the evaluation."""
        found = evaluate(editor.arch, self.tokenizer, records)
        return [{name: record[name] for name in found.metrics if name != "S"} for record in found.per_record]

    def report(self, out: str = "out") -> tuple[bytes, bytes]:
        return (self.folder / out / "report.md").read_bytes(), (self.folder / out / "report.html").read_bytes()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("EMMET_CACHE", str(tmp_path / "cache"))
    return Lab(tmp_path)


def assert_same_scores(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert {name: one[name] for name in other} == pytest.approx(other, abs=1e-4)  # percent


@pytest.mark.parametrize(
    ("method", "layers", "ridge"),
    [
        ("emmet", [1], 0.0),
        ("emmet", [1], "auto"),
        ("memit", [1], 0.5),
        ("memit", LAYERS, 0.5),
        ("rome", [2], 0.0),
        ("alphaedit", [1], 1.0),
    ],
)
def test_every_batch_is_what_the_editor_makes_of_it(lab: Lab, method: str, layers: list[int], ridge: Any) -> None:
    before = {name: value.clone() for name, value in lab.model.state_dict().items()}
    plan = Plan(methods=[f"{method}:{ridge}"], batch_sizes=[1, 3], layers=[layers], config=CONFIG)
    results = lab.sweep(plan)
    assert all(torch.equal(value, before[name]) for name, value in lab.model.state_dict().items())

    editor = lab.editor(method=method, layers=layers, ridge=ridge, absorb=0.0)  # ROME makes one edit after the other
    for one, size in zip(results.runs, [1, 3], strict=True):
        firsts = range(0, len(RECORDS) // size * size, size)
        assert [(outcome["first"], outcome["end"]) for outcome in one.outcomes] == [(i, i + size) for i in firsts]
        for outcome in one.outcomes:
            records = RECORDS[outcome["first"] : outcome["end"]]
            handle = editor.edit([record.edit for record in records])
            assert_same_scores(outcome["records"], lab.scores(editor, records))
            for layer, figures in zip(layers, outcome["layers"], strict=True):
                update = handle.delta.layers[layer].update.dense()
                old = before[f"{editor.arch.projection(layer).name}.weight"].double()
                assert figures["relative_change"] == pytest.approx((update.norm() / old.norm()).item(), rel=1e-3)
                solves = [report.diagnostics for report in handle.diagnostics if report.layer == layer]
                assert figures["ridge"] == max(solve.ridge for solve in solves)
                assert figures["condition"] == pytest.approx(max(solve.condition for solve in solves), rel=1e-3)
                cost = solves[0].preservation_cost if len(solves) == 1 and method != "alphaedit" else None
                assert figures["preservation_cost"] == (cost and pytest.approx(cost, rel=1e-3))
            handle.undo()


def test_zsre_has_scores_of_its_own(lab: Lab) -> None:
    records = [replace(record, kind="zsre") for record in RECORDS]
    results = lab.sweep(replace(PLAN, methods=["emmet:0"], batch_sizes=[3]), records)
    editor = lab.editor(layers=[1], ridge=0.0, absorb=0.0)
    editor.edit([record.edit for record in records[:3]])
    expected = lab.scores(editor, records[:3])
    assert_same_scores(results.runs[0].outcomes[0]["records"], expected)
    scores = results.runs[0].scores
    assert scores is not None
    assert set(scores.metrics) - {"S"} == set(expected[0]) != set(lab.scores(editor, RECORDS[:3])[0])


def test_sequential_batches_are_made_on_top_of_each_other_and_scored_at_the_end(lab: Lab) -> None:
    plan = Plan(methods=["memit:0.5"], batch_sizes=[2], layers=[[1]], sequential=True, absorb=[0, 50], scored=3)
    runs = lab.sweep(replace(plan, config=CONFIG)).runs
    before = lab.editor(layers=[1]).arch.projection(1).weight.detach().clone()
    changes = []
    for absorb, one in zip([0, 50], runs, strict=True):
        (outcome,) = one.outcomes
        assert (outcome["first"], outcome["end"]) == (0, 4)
        editor = lab.editor(method="memit", layers=[1], ridge=0.5, absorb=absorb)
        handles = [editor.edit([record.edit for record in records]) for records in (RECORDS[:2], RECORDS[2:4])]
        assert_same_scores(outcome["records"], lab.scores(editor, RECORDS[:3]))
        changes.append(((editor.arch.projection(1).weight - before).norm() / before.norm()).item())
        assert outcome["layers"][0]["relative_change"] == pytest.approx(changes[-1], rel=1e-4)
        for handle in reversed(handles):
            handle.undo()
    assert abs(changes[0] / changes[1] - 1) > 1e-3


def test_the_unedited_model_is_scored_on_what_the_runs_score(lab: Lab) -> None:
    results = lab.sweep(replace(PLAN, scored=4))
    expected = evaluate(lab.editor(layers=[1]).arch, lab.tokenizer, RECORDS[:4])
    assert results.unedited.metrics == expected.metrics


def test_pooled_scores_are_those_of_all_batches(lab: Lab) -> None:
    results = lab.sweep()
    for one in results.runs:
        assert one.scores is not None
        found = one.scores.metrics["EM"]
        margins = [record["EM"] for outcome in one.outcomes for record in outcome["records"]]
        assert found is not None
        assert found.records == len(margins) == (7 if one.run.batch_size == 1 else 6)
        assert found.mean == pytest.approx(sum(margins) / len(margins))


def test_drift_is_that_of_a_delta(lab: Lab) -> None:
    text = str(lab.folder / "text.txt")
    plan = replace(PLAN, methods=["emmet:0"], drift=text, drift_tokens=300)
    drifts = [[outcome.get("drift") for outcome in one.outcomes] for one in lab.sweep(plan).runs]
    assert [drift is not None for drift in drifts[0]] == [True] * 4 + [False] * 3
    editor = lab.editor(method="emmet", layers=[1], ridge=0.0)
    handle = editor.edit([record.edit for record in RECORDS[:3]])
    handle.undo()
    expected = measure_drift(editor.arch, lab.tokenizer, handle.delta, text, tokens=300).text
    for name in ("tokens", "kl", "perplexity_before", "perplexity_after", "top_1_agreement"):
        assert drifts[1][0][name] == pytest.approx(getattr(expected, name), rel=1e-3), name


def test_combinations_share_what_is_read_before_the_first(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor reads all weights below its layers, and a digest of a text or a second moment all of it."""
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **named: calls.update([name]) or function(*args, **named))

    count(workbench, "Editor")
    count(TextFile, "digest")
    count(run, "tensor_digest")
    plan = replace(PLAN, drift=str(lab.folder / "text.txt"), drift_tokens=100)
    lab.sweep(replace(plan, methods=["emmet:0"], batch_sizes=[1]), out="one")
    of_one = calls.copy()
    lab.sweep(replace(plan, methods=["emmet:0", "emmet:1", "memit:0.5"]))
    assert calls - of_one == of_one


# Going on


class Interrupt:
    """A progress that raises, or kills the process, at so many records scored."""

    def __init__(self, at: int, *, kill: bool = False) -> None:
        self._at = at
        self._kill = kill

    def __call__(self, stage: str, done: int, _total: int) -> None:
        if stage == "sweep" and done >= self._at:
            if self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [0, 3, 7, 9, 15, 20, 32, 33])
def test_an_interrupted_sweep_comes_to_the_same_report(lab: Lab, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "RECORDS_A_WRITE", 2)
    lab.sweep(out="whole", values="other values")
    with pytest.raises(KeyboardInterrupt):
        lab.sweep(progress=Interrupt(at))
    assert not (lab.folder / "out" / "report.md").exists()
    lab.sweep()
    assert lab.report() == lab.report("whole")


KILLED = """
import sys
from pathlib import Path
from test_sweep import Interrupt, Lab
from emmet.sweep import task
task.RECORDS_A_WRITE = 2
Lab(Path(sys.argv[1])).sweep(progress=Interrupt(17, kill=True))
"""


def test_a_killed_sweep_comes_to_the_same_report(lab: Lab) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(lab.folder)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    stored = [json.loads(path.read_text()) for path in sorted((lab.folder / "out" / "runs").iterdir())]
    assert [len(run["batches"]) for run in stored] == [7, 1, 1]  # batches of one and of three, and the unedited model
    lab.sweep(out="whole", values="other values")
    lab.sweep()
    assert lab.report() == lab.report("whole")


def test_what_was_done_is_not_done_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.sweep()
    before = {path: path.stat().st_mtime_ns for path in (lab.folder / "out" / "runs").iterdir()}
    monkeypatch.setattr(task.Task, "_outcome", None)  # what calls it now, fails
    lab.sweep()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_more_combinations_add_to_a_sweep(lab: Lab) -> None:
    lab.sweep(replace(PLAN, methods=["emmet:0"], batch_sizes=[3]))
    first = (lab.folder / "out" / "runs" / "emmet-layers-1-ridge-0-batch-3.json").read_bytes()
    results = lab.sweep()
    assert len(results.runs) == 4
    assert (lab.folder / "out" / "runs" / "emmet-layers-1-ridge-0-batch-3.json").read_bytes() == first


def test_a_run_is_extended_to_more_records(lab: Lab) -> None:
    short = lab.sweep(replace(PLAN, scored=2))
    longer = lab.sweep(replace(PLAN, scored=6))
    assert longer.runs[0].outcomes[:2] == short.runs[0].outcomes
    assert [len(outcome["records"]) for outcome in longer.runs[1].outcomes] == [3, 3]  # and not 2 any more


def test_scoring_fewer_records_leaves_what_there_is(lab: Lab) -> None:
    lab.sweep()
    before = contents(lab.folder / "out" / "runs")
    fewer = lab.sweep(replace(PLAN, scored=3))
    assert [len(outcome["records"]) for outcome in fewer.runs[0].outcomes] == [1, 1, 1]
    assert contents(lab.folder / "out" / "runs") == before


def test_another_number_of_sequential_edits_is_another_sweep(lab: Lab) -> None:
    plan = Plan(methods=["emmet:1"], batch_sizes=[2], layers=[[1]], sequential=True, config=CONFIG)
    lab.sweep(replace(plan, scored=4))
    with pytest.raises(FormatError, match="is of another sweep, which differs in edits: name another folder"):
        lab.sweep(replace(plan, scored=2))


@pytest.mark.parametrize("what", ["settings", "records", "model", "statistics"])
def test_another_sweep_in_the_same_folder_is_refused(lab: Lab, what: str) -> None:
    lab.sweep(replace(PLAN, methods=["emmet:0"], batch_sizes=[3]))
    plan = replace(PLAN, config=replace(CONFIG, steps=2)) if what == "settings" else PLAN
    records = RECORDS[1:] if what == "records" else RECORDS
    statistics: Any = lab.statistics
    if what == "model":
        with torch.no_grad():
            lab.model.lm_head.weight[0, 0] += 1  # which keys do not depend on
        statistics = emmet.collect_statistics(lab.model, lab.tokenizer, lab.folder / "text.txt", layers=[1], tokens=800)
    if what == "statistics":
        statistics = emmet.collect_statistics(lab.model, lab.tokenizer, lab.folder / "text.txt", layers=[1], tokens=500)
    with pytest.raises(FormatError, match=f"is of another sweep, which differs in {what}: name another folder"):
        lab.sweep(plan, records, statistics=statistics)


# What may go wrong


@pytest.mark.parametrize("ridge", ["0", "1e-15"])
def test_a_batch_that_cannot_be_solved_is_reported(lab: Lab, ridge: str) -> None:
    """Without prefixes two edits of one subject have the same key where their prompts start with it."""
    twin = replace(RECORDS[2], edit=replace(RECORDS[2].edit, prompt="{} sings with the"))
    plan = Plan(methods=[f"emmet:{ridge}"], batch_sizes=[1, 2], layers=[[1]], config=replace(CONFIG, prefixes=()))
    one, two = lab.sweep(plan, [RECORDS[2], twin, *RECORDS[:2]]).runs
    assert one.failures == []
    (failure,) = two.failures
    assert [len(outcome["records"]) for outcome in two.outcomes] == [0, 2]
    markdown = lab.report()[0].decode()
    assert f"- EMMET μ = {ridge}, layer 1, batches of 2: 1 failed: {failure}" in markdown
    assert "| 2, 1 failed |" in markdown


def test_repetitions_are_left_out_and_counted(lab: Lab) -> None:
    again = replace(RECORDS[0], edit=replace(RECORDS[0].edit, target="Latin"))
    plan = replace(PLAN, methods=["emmet:0"])
    lab.sweep(plan, out="once")
    results = lab.sweep(plan, [RECORDS[0], again, *RECORDS[1:], RECORDS[3]])
    assert (results.facts["records"], results.facts["repetitions"]) == (9, 2)
    left_out = "9 of records; 2 left out, as an earlier one has the same prompt and subject; 7 scored"
    assert left_out in lab.report()[0].decode()
    unedited, once = ((lab.folder / out / "runs" / "unedited.json").read_bytes() for out in ("out", "once"))
    assert unedited == once


@pytest.mark.parametrize(
    ("plan", "records", "error", "message"),
    [
        (replace(PLAN, layers=[[1], [4]]), RECORDS, ConfigError, "layer 4 does not exist"),
        (replace(PLAN, layers=[[3]]), RECORDS, StatisticsError, "there are no statistics of layer 3"),
        (replace(PLAN, batch_sizes=[8]), RECORDS, ConfigError, "a batch of 8 needs as many records"),
        (PLAN, [], EditError, "expected records of one kind, got none"),
        (replace(PLAN, drift="nowhere.txt"), RECORDS, StatisticsError, "nowhere.txt"),
        (PLAN, [replace(RECORDS[1], kind="zsre"), *RECORDS], EditError, "of one kind, got counterfact and zsre"),
    ],
)
def test_input_at_fault_is_refused_before_anything_is_computed(
    lab: Lab, plan: Plan, records: Sequence[Record], error: type[Exception], message: str
) -> None:
    stages = []
    with pytest.raises(error, match=message):
        lab.sweep(plan, records, progress=lambda stage, _done, _total: stages.append(stage))
    assert "values" not in stages
    assert not (lab.folder / "out").exists()


def test_records_that_do_not_fit_the_model_are_refused_before_statistics_are_collected(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMMET_CACHE", str(tmp_path / "cache"))
    too_long = replace(RECORDS[0], edit=replace(RECORDS[0].edit, subject="Danielle " * 300))
    with pytest.raises(EditError, match="context of the model"):
        lab.sweep(records=[too_long, *RECORDS], statistics=None, corpus=lab.folder / "text.txt")
    assert not (tmp_path / "cache").exists()
