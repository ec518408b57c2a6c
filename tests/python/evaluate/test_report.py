"""Reports: picked by the records' kind, written as JSON and as Markdown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from emmet.architectures import Architecture, discover
from emmet.edits import Edit, Neighbour, Record, read_records
from emmet.errors import EditError
from emmet.evaluate import Report, counterfact, evaluate, summarise, texts, zsre
from emmet.evaluate import report as report_module
from emmet.evaluate.downstream import TaskScore
from emmet.evaluate.drift import Drift, LayerDrift, TextDrift
from emmet.evaluate.intervals import Estimate

RECORD = Record(
    edit=Edit("The capital of {} is", "Spain", "Paris", id="spain"),
    kind="counterfact",
    answer_before="Madrid",
    paraphrases=("The capital of Spain, where is it? In",),
    neighbours=(Neighbour("The capital of France is", "Paris"),),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def arch(tokenizer: PreTrainedTokenizerFast) -> Architecture:
    return discover(tiny.tiny_model("gpt2", vocab_size=len(tokenizer)))


@pytest.fixture
def report() -> Report:
    metrics = {"ES": Estimate(97.875, 93.75, 100.0, 48), "PS": None}
    return Report("counterfact", metrics, [{"id": "é", "ES": 100.0}, {"id": None, "ES": 0.0}])


def test_json_holds_the_metrics_at_its_top(report: Report) -> None:
    assert report.to_json() == {
        "ES": 97.875,
        "PS": None,
        "kind": "counterfact",
        "records": 2,
        "records_measured": {"ES": 48, "PS": 0},
        "intervals": {"ES": [93.75, 100.0], "PS": None},
        "per_record": [{"id": "é", "ES": 100.0}, {"id": None, "ES": 0.0}],
    }


def test_a_metric_of_0_is_not_one_that_is_missing(tmp_path: Path) -> None:
    report = Report("zsre", {"S": Estimate(0.0, 0.0, 0.0, 3)}, [{}] * 3)
    assert report.to_json()["S"] == 0.0
    assert report.to_json()["intervals"] == {"S": [0.0, 0.0]}
    assert f"| S | 0.0 | 0.0 to 0.0 | 3 | {zsre.METRICS['S']} |" in written(report, tmp_path)


def written(report: Report, folder: Path) -> str:
    report.write(folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def test_markdown_is_a_table(report: Report, tmp_path: Path) -> None:
    assert written(report, tmp_path).splitlines() == [
        "# Evaluation: 2 records (counterfact)",
        "",
        "The charts are in [report.html](report.html).",
        "",
        "- intervals: 95 %, by bootstrap over records",
        "",
        "## Metrics",
        "",
        "| metric | value | 95 % interval | records | meaning |",
        "| --- | ---: | ---: | ---: | --- |",
        f"| ES | 97.9 | 93.8 to 100.0 | 48 | {counterfact.METRICS['ES']} |",
        f"| PS | – | – | 0 | {counterfact.METRICS['PS']} |",
    ]


def test_drift_and_tasks_are_added_where_they_were_measured(report: Report, tmp_path: Path) -> None:
    layers = {7: LayerDrift(0.0321, 1.5), 8: LayerDrift(0.1, None)}
    drift = Drift("wiki.txt", TextDrift(9960, 0.0125, 20.0, 25.0, 98.75), layers)
    tasks = {"piqa": {"acc": TaskScore(0.625, 0.0123), "f1": TaskScore(0.5, None)}}
    before = {"piqa": {"acc": TaskScore(0.75, 0.01)}}
    whole = replace(report, drift=drift, tasks=tasks, tasks_before=before)

    found = whole.to_json()
    assert found["drift"] == drift.to_json()
    assert found["tasks"] == {
        "piqa": {"acc": {"value": 0.625, "standard_error": 0.0123}, "f1": {"value": 0.5, "standard_error": None}}
    }
    assert found["tasks_before"] == {"piqa": {"acc": {"value": 0.75, "standard_error": 0.01}}}
    assert {key: found[key] for key in report.to_json()} == report.to_json()
    assert written(whole, tmp_path).splitlines() == [
        *written(report, tmp_path).splitlines(),
        "",
        "## Drift from the unedited model (9,960 tokens of wiki.txt)",
        "",
        "| KL divergence | perplexity | top-1 agreement |",
        "| ---: | ---: | ---: |",
        "| 0.0125 nats | 20.00 → 25.00 (× 1.250) | 98.8 % |",
        "",
        "| layer | ‖Δ‖ / ‖W‖ | preservation cost |",
        "| --- | ---: | ---: |",
        "| 7 | 0.0321 | 1.5 |",
        "| 8 | 0.1 | – |",
        "",
        "## Downstream tasks",
        "",
        "| task | metric | unedited | this model |",
        "| --- | --- | ---: | ---: |",
        "| piqa | acc | 0.75 ± 0.01 | 0.625 ± 0.012 |",
        "| piqa | f1 | – | 0.5 |",
    ]


def test_the_report_is_written_in_three_forms(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    report.write(folder)
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == report.to_json()
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "report.md", "report.html"}
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<title>ES: 97.9, 95 % interval 93.8 to 100.0</title>" in html
    assert "PS:" not in html  # no record has it


def test_what_no_record_has_gives_no_chart(tmp_path: Path) -> None:
    Report("zsre", {"S": None}, [{}]).write(tmp_path)
    assert "<svg" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["counterfact", "emmet"])
def test_counterfact_and_our_own_records_have_its_metrics(
    kind: str, arch: Architecture, tokenizer: PreTrainedTokenizerFast
) -> None:
    record = replace(RECORD, kind=kind)  # type: ignore[arg-type]
    found = evaluate(arch, tokenizer, [record]).to_json()
    assert list(found)[:4] == ["ES", "PS", "NS", "S"]
    assert set(found) > set(counterfact.METRICS)
    assert found["kind"] == kind


def test_zsre_records_have_its_metrics(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    calls: list[tuple[str, int, int]] = []
    report = evaluate(arch, tokenizer, [replace(RECORD, kind="zsre")], lambda *call: calls.append(call))
    found = report.to_json()
    assert list(found)[:4] == list(zsre.METRICS) == ["efficacy", "paraphrase", "specificity", "S"]
    assert "ES" not in found
    assert ("score", 3, 3) in calls


def test_our_own_jsonl_without_anything_else_gives_an_accuracy(
    arch: Architecture, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text('{"prompt": "The capital of {} is", "subject": "Spain", "target": "Paris"}\n', encoding="utf-8")
    report = evaluate(arch, tokenizer, read_records(path))
    report.write(tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    measured = {metric for metric, records in found["records_measured"].items() if records}
    assert measured == {"accuracy", "generated", "stops"}
    assert found["records_measured"]["accuracy"] == found["records"] == 1


def test_records_of_two_kinds_are_refused(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditError, match="one kind, got counterfact and zsre: evaluate one file"):
        evaluate(arch, tokenizer, [RECORD, replace(RECORD, kind="zsre"), RECORD])


def test_no_records_are_refused(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditError, match="got no records"):
        evaluate(arch, tokenizer, [])


def test_a_record_that_is_too_long_is_named(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    edit = Edit("The capital of {} is " + "located in " * 100, "Spain", "Paris")
    with pytest.raises(EditError, match=r"'The capital of Spain is located.* with 'Paris' needs a context of"):
        evaluate(arch, tokenizer, [RECORD, replace(RECORD, edit=edit)])


def test_a_record_that_is_too_long_is_found_before_texts_are_written(
    arch: Architecture, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "sample", None)  # what calls it now, fails
    edit = Edit("The capital of {} is " + "located in " * 100, "Spain", "Paris")
    with pytest.raises(EditError, match="with 'Paris' needs a context of"):
        evaluate(arch, tokenizer, [replace(RECORD, edit=edit, generation_prompts=("Spain is",))], write_texts=True)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ((), "with generation prompts, got none"),
        (("Spain is " + "located in " * 100,), "^the generation prompt 'Spain"),
    ],
)
def test_generation_prompts_at_fault_are_found_before_records_are_scored(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    prompts: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(report_module, "score_continuations", None)  # what calls it now, fails
    with pytest.raises(EditError, match=message):
        evaluate(arch, tokenizer, [replace(RECORD, generation_prompts=prompts)], write_texts=True)


def test_evaluations_are_pooled_by_their_records(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    records = [replace(RECORD, edit=Edit("The capital of {} is", name, "Paris")) for name in ("Spain", "France", "it")]
    at_once = evaluate(arch, tokenizer, records)
    apart = [evaluate(arch, tokenizer, part) for part in (records[:1], records[1:])]
    stored = [json.loads(json.dumps(report.to_json())) for report in apart]
    pooled = summarise("counterfact", [record for report in stored for record in report["per_record"]])
    assert pooled.metrics.keys() == at_once.metrics.keys()
    for metric, found in pooled.metrics.items():
        expected = at_once.metrics[metric]
        assert found is not None
        assert expected is not None
        assert found.records == 3
        assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_no_records_cannot_be_pooled() -> None:
    with pytest.raises(EditError, match="at least one record"):
        summarise("zsre", [])
