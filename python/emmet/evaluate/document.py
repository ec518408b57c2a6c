"""What the report of an evaluation says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..reports import Document, Section, Table
from ..reports.interval_chart import Interval, IntervalChart
from . import texts
from .downstream import TaskScore, TaskScores
from .drift import Drift

if TYPE_CHECKING:
    from .report import Report


def document(report: Report, definitions: Mapping[str, str]) -> Document:
    """The metrics with their intervals and meanings (`definitions`), and the drift and the tasks that were measured."""
    sections = [_metrics(report, definitions)]
    if report.drift is not None:
        sections.append(_drift(report.drift))
    if report.tasks is not None:
        sections.append(_tasks(report.tasks, report.tasks_before or {}))
    facts = [("intervals", "95 %, by bootstrap over records")]
    return Document(f"Evaluation: {len(report.per_record):,} records ({report.kind})", facts, sections)


def _metrics(report: Report, definitions: Mapping[str, str]) -> Section:
    rows = []
    for metric, found in report.metrics.items():
        figures = ("–", "–", "0")
        if found:
            figures = (f"{found.mean:.1f}", f"{found.low:.1f} to {found.high:.1f}", f"{found.records:,}")
        rows.append((metric, *figures, definitions[metric]))
    table = Table(("metric", "value", "95 % interval", "records", "meaning"), rows, names=1, notes=1)
    intervals = [
        Interval(metric, found.mean, found.low, found.high)
        for metric, found in report.metrics.items()
        if found and metric not in texts.METRICS  # of other scales
    ]
    charts = []
    if intervals:
        description = (
            f"{', '.join(row.name for row in intervals)}, each with its interval. The figures are in the table."
        )
        charts = [IntervalChart("Percent, with 95 % intervals", description, intervals)]
    return Section("Metrics", "", charts, [table])


def _drift(drift: Drift) -> Section:
    text = drift.text
    perplexity = f"{text.perplexity_before:.2f} → {text.perplexity_after:.2f} (× {text.perplexity_ratio:.3f})"
    predictions = Table(
        ("KL divergence", "perplexity", "top-1 agreement"),
        [(f"{text.kl:.3g} nats", perplexity, f"{text.top_1_agreement:.1f} %")],
        names=0,
    )
    layers = [
        (str(layer), f"{change.relative_change:.3g}", _cost(change.preservation_cost))
        for layer, change in drift.layers.items()
    ]
    weights = Table(("layer", "‖Δ‖ / ‖W‖", "preservation cost"), layers, names=1)
    return Section(
        f"Drift from the unedited model ({text.tokens:,} tokens of {drift.corpus})", "", [], [predictions, weights]
    )


def _cost(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:.3g}"


def _tasks(tasks: TaskScores, before: TaskScores) -> Section:
    rows = list(_task_rows(tasks, before))
    return Section("Downstream tasks", "", [], [Table(("task", "metric", "unedited", "this model"), rows, names=2)])


def _task_rows(tasks: TaskScores, before: TaskScores) -> Iterator[tuple[str, str, str, str]]:
    for task, scores in tasks.items():
        for metric, score in scores.items():
            yield task, metric, _task_cell(before.get(task, {}).get(metric)), _task_cell(score)


def _task_cell(score: TaskScore | None) -> str:
    if score is None or score.value is None:
        return "–"
    return f"{score.value:.4g}" if score.standard_error is None else f"{score.value:.4g} ± {score.standard_error:.2g}"
