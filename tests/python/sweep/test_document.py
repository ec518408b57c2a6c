"""The report says what was measured: nothing else, and the same in both forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig

from emmet.evaluate import summarise
from emmet.reports import Document, Section
from emmet.sweep import Plan
from emmet.sweep.document import document
from emmet.sweep.plan import Run
from emmet.sweep.results import Results, RunResult
from emmet.sweep.store import Outcome

FACTS: dict[str, Any] = {
    "emmet": "1.2.3",
    "model": "a <model> & more",
    "dtype": "float32",
    "data": "facts.json 5:9",
    "records": 12,
    "repetitions": 4,
    "edited": 8,
    "scored": 8,
    "statistics": {"7": "60,000 tokens of wiki.txt"},
    "drift": None,
}
METRICS = ("ES", "PS", "NS", "EM", "PM", "NM", "accuracy", "paraphrase_accuracy", "neighbour_accuracy")


def records(es: Sequence[float], ns: float = 100.0) -> list[dict[str, Any]]:
    return [{"id": None, **dict.fromkeys(METRICS, 50.0), "ES": value, "NS": ns} for value in es]


def outcome(run: Run, first: int, **more: Any) -> Outcome:
    figures = {"ridge": 0.0, "condition": 2.0, "constraint_residual": 1e-15, "preservation_cost": 4.0}
    layers = [{"layer": layer, "relative_change": 0.1 * run.batch_size, **figures} for layer in run.config.layers]
    end = first + run.batch_size
    return {"first": first, "end": end, "layers": layers, "records": records([100.0, 0.0]), **more}


def results(outcomes: Callable[[Run], list[Outcome]], facts: dict[str, Any] | None = None, **plan: Any) -> Results:
    settings: dict[str, Any] = {"methods": ["emmet:0", "memit:15000"], "batch_sizes": [2, 4], "layers": [[7]], **plan}
    runs = Plan(**settings).runs(LlamaConfig(num_hidden_layers=12))
    found = [RunResult.of(run, "counterfact", outcomes(run)) for run in runs]
    return Results({**FACTS, **(facts or {})}, summarise("counterfact", records([0.0, 0.0, 0.0, 100.0])), found)


def two_batches(run: Run) -> list[Outcome]:
    return [outcome(run, 0), outcome(run, run.batch_size)]


def titled(content: Document, start: str) -> Section:
    (section,) = [section for section in content.sections if section.title.startswith(start)]
    return section


def column(section: Section, name: str) -> list[str]:
    return [row[section.tables[0].header.index(name)] for row in section.tables[0].rows]


def test_scores_against_batch_size() -> None:
    section = titled(document(results(two_batches)), "Scores against batch size, layer 7")
    assert column(section, "method") == ["unedited", *["EMMET μ = 0"] * 2, *["MEMIT μ = 15000"] * 2]
    assert column(section, "batch size") == ["–", "2", "4", "2", "4"]
    assert column(section, "records") == ["4", *["4"] * 4]
    assert [text.split()[0] for text in column(section, "ES")] == ["25.0", *["50.0"] * 4]
    assert column(section, "NS")[1] == "100.0 [100.0, 100.0]"
    assert column(section, "S")[1].startswith("60.0 ")  # the harmonic mean of 50, 50 and 100
    assert [chart.title.split()[0] for chart in section.charts] == ["ES", "PS", "NS", "S"]
    for chart in section.charts:
        assert [series.name for series in chart.series] == ["EMMET μ = 0", "MEMIT μ = 15000"]
        assert [[point.x for point in series.points] for series in chart.series] == [[1, 2]] * 2
        assert [tick.label for tick in chart.ticks] == ["2", "4"]
    es = section.charts[0]
    assert es.baseline == 25
    assert es.series[0].points[0].y == 50
    assert es.series[0].points[0].low < 50 < es.series[0].points[0].high


def test_ridges_of_both_methods_are_on_one_curve_with_the_published_ones() -> None:
    found = results(two_batches, methods=["rome", "emmet:0", "emmet:100", "emmet:auto", "memit:100", "memit:15000"])
    section = titled(document(found), "Efficacy and specificity against ridge, layer 7")
    assert [chart.title for chart in section.charts] == ["Batches of 2, percent", "Batches of 4, percent"]
    chart = section.charts[0]
    assert [series.name for series in chart.series] == ["ES", "PS", "NS", "S"]
    places = {tick.label: tick.at for tick in chart.ticks}
    assert [point.x for point in chart.series[0].points] == [places[ridge] for ridge in ("0", "100", "15000")]
    assert places["100"] == 2
    assert places["15000"] == pytest.approx(math.log10(15000))
    marks = {mark.label: mark.at for mark in chart.marks}
    assert marks["EMMET 0.1"] == pytest.approx(-1)
    assert marks["MEMIT 15,000"] == places["15000"]
    assert places["0"] < min(marks.values())
    assert column(section, "method")[1:] == ["EMMET μ = 0", "EMMET μ = 100", "MEMIT μ = 100", "MEMIT μ = 15000"] * 2


def test_ridge_curves_of_other_metrics_and_of_sequences_are_apart() -> None:
    found = results(two_batches, methods=["emmet:0", "emmet:9", "alphaedit:1", "alphaedit:9"], batch_sizes=[4])
    section = titled(document(found), "Efficacy and specificity against ridge")
    assert [chart.title for chart in section.charts] == ["Batches of 4, percent", "Batches of 4, alphaedit, percent"]
    found = results(two_batches, methods=["memit:3", "memit:9"], batch_sizes=[4], sequential=True, absorb=[0, 1])
    content = document(found)
    charts = titled(content, "Efficacy and specificity against ridge").charts
    assert [chart.title for chart in charts] == [f"Batches of 4, absorb {absorb}, percent" for absorb in (0, 1)]
    assert column(titled(content, "All runs"), "method")[1:3] == ["MEMIT μ = 3, absorb 0", "MEMIT μ = 3, absorb 1"]


def test_ridge_curves_of_other_values_are_apart() -> None:
    found = results(two_batches, methods=["emmet:0", "emmet:9", "memit:1", "memit:9"], batch_sizes=[4])
    memit = [
        replace(one, run=replace(one.run, config=replace(one.run.config, clamp=0.75)))
        for one in found.runs
        if one.run.config.method == "memit"
    ]
    others = [one for one in found.runs if one.run.config.method == "emmet"]
    section = titled(document(replace(found, runs=[*others, *memit])), "Efficacy and specificity against ridge")
    assert [chart.title for chart in section.charts] == ["Batches of 4, emmet, percent", "Batches of 4, memit, percent"]


def test_layers_and_drift() -> None:
    content = document(results(two_batches, layers=[[2], [7], [5, 6, 7]], methods=["emmet:0"]))
    section = titled(content, "Scores against layers, batches of 4")
    assert [tick.label for tick in section.charts[0].ticks] == ["2", "5-7", "7"]
    drift = titled(content, "Drift against batch size, layers 5-7")
    (chart,) = drift.charts
    assert [point.y for point in chart.series[0].points] == pytest.approx([0.2, 0.4])
    assert column(drift, "‖Δ‖/‖W‖") == ["0.2", "0.4"]
    assert column(drift, "batches") == ["2", "2"]


def test_drift_of_predictions_where_it_was_measured() -> None:
    def measured(run: Run) -> list[Outcome]:
        drift = {"tokens": 9, "kl": 0.5 * run.batch_size, "perplexity_before": 20.0, "top_1_agreement": 90.0}
        return [outcome(run, 0, drift={**drift, "perplexity_after": 30.0}), outcome(run, run.batch_size)]

    content = document(results(measured, {"drift": "2,000 tokens of test.txt"}))
    section = titled(content, "Drift against batch size")
    assert len(section.charts) == 3
    assert [point.y for point in section.charts[1].series[0].points] == [1, 2]
    assert column(section, "KL") == ["1", "2", "1", "2"]
    assert column(section, "perplexity before")[0] == "20"
    assert dict(content.facts)["drift"].startswith("of the predictions of 2,000 tokens of test.txt")


def test_failed_batches_are_left_out_of_scores_and_named() -> None:
    def failing(run: Run) -> list[Outcome]:
        failed = {"first": 0, "end": run.batch_size, "layers": [], "records": [], "error": "keys | coincide"}
        rest = [outcome(run, run.batch_size)] if run.config.ridge else [{**failed, "first": run.batch_size}]
        return [failed, *rest]

    content = document(results(failing))
    whole = titled(content, "All runs")
    assert column(whole, "records") == ["4", "0", "0", "2", "2"]
    assert column(whole, "ES")[1] == "–"
    assert column(whole, "batches")[1:] == ["2, 2 failed"] * 2 + ["2, 1 failed"] * 2
    assert content.failures[0] == "EMMET μ = 0, layer 7, batches of 2: 2 failed: keys | coincide"
    assert len(content.failures) == 4
    assert [series.name for series in titled(content, "Scores").charts[0].series] == ["MEMIT μ = 15000"]


def test_records_without_neighbours() -> None:
    def without(run: Run) -> list[Outcome]:
        bare = [{**record, "NS": None, "NM": None, "neighbour_accuracy": None} for record in records([100.0, 0.0])]
        return [outcome(run, 0, records=bare)]

    section = titled(document(results(without)), "Scores against batch size")
    assert [chart.title.split()[0] for chart in section.charts] == ["ES", "PS"]
    assert column(section, "NS")[1:] == ["–"] * 4


def test_one_place_on_every_axis_gives_no_chart() -> None:
    content = document(results(two_batches, methods=["emmet:0"], batch_sizes=[2]))
    assert [section.title for section in content.sections] == ["All runs"]
