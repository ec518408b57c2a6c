"""What the report of a sweep says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from ..reports import Document, Section, Table
from .curves import (
    Line,
    batch_size_axis,
    batches,
    estimate_text,
    grouped,
    layers,
    layers_axis,
    line_charts,
    metric_charts,
    over_batches,
    ridge_charts,
    score,
    solver,
    value_settings,
)
from .plan import layers_text
from .results import Results, RunResult
from .task import DRIFT_BATCHES

_BANDS = "Bands are 95 % intervals. The dotted line is the unedited model, where that is near."


def document(results: Results) -> Document:
    """What there is to report of a sweep. A line takes two points; what has fewer is in the tables alone."""
    sections = [*_by_batch_size(results), *_by_ridge(results), *_by_layers(results), *_drift(results)]
    return Document(
        title=f"Sweep: {results.facts['model']} on {results.facts['data']}",
        facts=list(_facts(results)),
        sections=[*(section for section in sections if section.charts), _all_runs(results)],
        failures=list(_failures(results)),
    )


def _facts(results: Results) -> Iterator[tuple[str, str]]:
    facts = results.facts
    repeated = f"{facts['repetitions']:,} left out, as an earlier one has the same prompt and subject"
    yield "model", f"{facts['model']} in {facts['dtype']}"
    yield "records", f"{facts['records']:,} of {facts['data']}; {repeated}; {facts['scored']:,} scored"
    for source in dict.fromkeys(facts["statistics"].values()):
        of_source = [int(layer) for layer, of_layer in facts["statistics"].items() if of_layer == source]
        yield "statistics", f"{source}, of layers {layers_text(of_source)}"
    for settings, runs in grouped(results.runs, value_settings).items():
        yield f"values of {', '.join(dict.fromkeys(one.run.config.method for one in runs))}", settings
    if any(one.run.sequential for one in results.runs):
        kept = "with all keys of their prompts" if results.runs[0].run.config.absorb_prompts else "by their own keys"
        yield "batches", "made one after the other, each on top of those before; all are scored after the last"
        yield "absorb", f"the weight of earlier edits, preserved {kept}"
    else:
        yield "batches", "each is made in the unedited model, scored on its own records, and taken back"
    if facts["drift"]:
        yield "drift", f"of the predictions of {facts['drift']}, by up to {DRIFT_BATCHES} batches of each run"
    yield "intervals", "95 %, by bootstrap over records"
    yield "emmet", facts["emmet"]


def _failures(results: Results) -> Iterator[str]:
    for one in results.runs:
        for reason, count in Counter(one.failures).items():
            yield f"{solver(one.run)}, {layers(one.run)}, {batches(one.run)}: {count} failed: {reason}"


def _by_batch_size(results: Results) -> Iterator[Section]:
    for name, runs in grouped(results.runs, layers).items():
        charts = metric_charts(results, runs, batch_size_axis())
        yield Section(f"Scores against batch size, {name}", _BANDS, charts, [_scores(results, runs)])


def _by_ridge(results: Results) -> Iterator[Section]:
    text = (
        "The larger the ridge μ, the more an edit gives way to what the layer knew. EMMET and MEMIT are one formula, "
        "so their published settings, marked, are points on one curve. Bands are 95 % intervals."
    )
    with_ridge = [one for one in results.runs if one.run.config.method != "rome" and one.run.config.ridge != "auto"]
    with_ridge.sort(key=lambda one: (one.run.batch_size, one.run.config.ridge))
    for name, runs in grouped(with_ridge, layers).items():
        charts = ridge_charts(results, runs)
        yield Section(f"Efficacy and specificity against ridge, {name}", text, charts, [_scores(results, runs)])


def _by_layers(results: Results) -> Iterator[Section]:
    for name, runs in grouped(results.runs, batches).items():
        charts = metric_charts(results, runs, layers_axis(runs))
        yield Section(f"Scores against layers, {name}", _BANDS, charts, [_scores(results, runs)])


def _drift(results: Results) -> Iterator[Section]:
    text = "The mean over batches, with a band from the least to the most; of several layers the one that changed most."
    for name, runs in grouped(results.runs, layers).items():
        solvers = grouped(runs, solver).items()
        charts = []
        for title, figures in _DRIFT_CHARTS:
            lines = [Line(of_solver, ones, over_batches(figures)) for of_solver, ones in solvers]
            charts += line_charts(title, batch_size_axis(), lines)
        table = _table(runs, [*_SOLVES, *_drift_columns(results)])
        yield Section(f"Drift against batch size, {name}", text, charts, [table])


def _all_runs(results: Results) -> Section:
    text = "All metrics. Of solves, change and cost are the mean over batches, and the other figures the largest."
    every = [*_SOLVES, *_drift_columns(results)]
    return Section("All runs", text, [], [_scores(results, results.runs, list(results.unedited.metrics), every)])


# Tables

_Column = tuple[str, Callable[[RunResult], str]]
_NAMES = ("method", "layers", "batch size")


def _table(runs: Sequence[RunResult], columns: Sequence[_Column]) -> Table:
    rows = [
        [
            solver(one.run),
            layers_text(one.run.config.layers),
            f"{one.run.batch_size:,}",
            *(show(one) for _, show in columns),
        ]
        for one in runs
    ]
    return Table([*_NAMES, *(name for name, _ in columns)], rows, len(_NAMES))


def _scores(
    results: Results, runs: Sequence[RunResult], metrics: Sequence[str] = (), more: Sequence[_Column] = ()
) -> Table:
    """Each run's metrics, by default S and its parts, and more, below those of the unedited model."""
    metrics = metrics or results.metrics
    table = _table(runs, [("records", _records), *map(_score_column, metrics), *more])
    unedited = [estimate_text(results.unedited.metrics[metric]) for metric in metrics]
    first = ["unedited", "–", "–", f"{len(results.unedited.per_record):,}", *unedited, *("–" for _ in more)]
    return Table(table.header, [first, *table.rows], table.names)


def _score_column(metric: str) -> _Column:
    measure = score(metric)
    return metric, lambda one: estimate_text(measure(one))


def _records(one: RunResult) -> str:
    return f"{len(one.scores.per_record):,}" if one.scores else "0"


def _batches(one: RunResult) -> str:
    failed = len(one.failures)
    return f"{len(one.outcomes):,}" + (f", {failed:,} failed" if failed else "")


def _figure_column(
    title: str, figures: Callable[[RunResult], list[float]], combine: Callable[[list[float]], float], digits: int
) -> _Column:
    def show(one: RunResult) -> str:
        found = figures(one)
        return f"{float(f'{combine(found):.{digits}g}'):g}" if found else "–"  # 1000 and not 1e+03

    return title, show


_CHANGE = "‖Δ‖/‖W‖"

_SOLVES: Sequence[_Column] = (
    ("batches", _batches),
    _figure_column(_CHANGE, lambda one: one.figures("relative_change"), fmean, 3),
    _figure_column("preservation cost", lambda one: one.figures("preservation_cost"), fmean, 3),
    _figure_column("ridge", lambda one: one.figures("ridge"), max, 3),
    _figure_column("condition", lambda one: one.figures("condition"), max, 2),
    _figure_column("residual", lambda one: one.figures("constraint_residual"), max, 2),
)

_DRIFT_CHARTS: Sequence[tuple[str, Callable[[RunResult], list[float]]]] = (
    (f"Change of the weight, {_CHANGE}", lambda one: one.figures("relative_change")),
    ("KL from the unedited model, nats a token", lambda one: one.drift("kl")),
    ("Same likeliest token, percent", lambda one: one.drift("top_1_agreement")),
)


def _drift_columns(results: Results) -> list[_Column]:
    """Of the drift of predictions, if it was measured."""
    if not results.facts["drift"]:
        return []
    return [
        _figure_column("KL", lambda one: one.drift("kl"), fmean, 3),
        _figure_column("same top 1, %", lambda one: one.drift("top_1_agreement"), fmean, 3),
        _figure_column("perplexity before", lambda one: one.drift("perplexity_before"), fmean, 4),
        _figure_column("after", lambda one: one.drift("perplexity_after"), fmean, 4),
    ]
