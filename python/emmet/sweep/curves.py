"""Charts of a sweep's runs: which axis, which lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from .. import presets
from ..evaluate.intervals import Estimate
from ..reports.line_chart import LineChart, Mark, Point, Series
from .plan import ONE_METRIC, Run, layers_text, ridge_text
from .results import Results, RunResult

_OF_VALUES = (
    "optimizer",
    "learning_rate",
    "contexts_per_step",
    "steps",
    "clamp",
    "weight_decay",
    "kl_factor",
    "stop_loss",
)

Measure = Callable[[RunResult], Estimate | None]


@dataclass(frozen=True)
class Axis:
    """An x axis: the place of a run on it, and what that place is called."""

    label: str
    place: Callable[[Run], float]
    name: Callable[[Run], str]


@dataclass(frozen=True)
class Line:
    """A line: its name, its runs, and what is shown of them."""

    name: str
    runs: Sequence[RunResult]
    measure: Measure


def batch_size_axis() -> Axis:
    """Batch sizes, each twice the last at the same distance."""
    return Axis("batch size", lambda run: math.log2(run.batch_size), lambda run: f"{run.batch_size:,}")


def ridge_axis(runs: Sequence[RunResult]) -> Axis:
    """Ridges, each ten times the last at the same distance, and 0 such a distance before all others."""
    exponents = [math.log10(ridge) for ridge in (one.run.config.ridge for one in runs) if ridge and ridge != "auto"]
    zero = min(*exponents, *(mark.at for mark in published_ridges())) - 1

    def place(run: Run) -> float:
        ridge = run.config.ridge
        return math.log10(ridge) if ridge and ridge != "auto" else zero

    return Axis("ridge μ", place, lambda run: ridge_text(run.config.ridge))


def layers_axis(runs: Sequence[RunResult]) -> Axis:
    """Sets of layers, side by side in their order."""
    places = {layers: place for place, layers in enumerate(sorted({one.run.config.layers for one in runs}))}
    return Axis("layers", lambda run: places[run.config.layers], lambda run: layers_text(run.config.layers))


def metric_charts(results: Results, runs: Sequence[RunResult], axis: Axis) -> list[LineChart]:
    """A chart for each metric, with a line for each method and ridge."""
    charts = []
    for metric in results.metrics:
        unedited = results.unedited.metrics[metric]
        lines = [Line(name, of_solver, score(metric)) for name, of_solver in grouped(runs, solver).items()]
        charts += line_charts(f"{metric} in percent", axis, lines, baseline=unedited.mean if unedited else None)
    return charts


def ridge_charts(results: Results, runs: Sequence[RunResult]) -> list[LineChart]:
    """A chart for all runs that differ in the ridge alone, with a line for each metric.

    EMMET and MEMIT with the same ridge are the same, so that one of them is shown, unless their values were found with
    different settings.
    """
    charts = []
    one_curve = len(grouped((one for one in runs if one.run.config.method in ONE_METRIC), value_settings)) < 2
    for name, of_curve in grouped(runs, lambda run: _ridge_curve(run, one_curve)).items():
        curve = list({one.run.config.ridge: one for one in reversed(of_curve)}.values())
        lines = [Line(metric, curve, score(metric)) for metric in results.metrics]
        charts += line_charts(f"{name}, percent", ridge_axis(curve), lines, marks=published_ridges())
    return charts


def _ridge_curve(run: Run, one_curve: bool) -> str:
    parts = [batches(run).capitalize()]
    if run.config.method not in ONE_METRIC or not one_curve:
        parts.append(run.config.method)
    if run.sequential:
        parts.append(f"absorb {run.config.absorb:g}")
    return ", ".join(parts)


def line_charts(
    title: str, axis: Axis, lines: Iterable[Line], *, marks: Sequence[Mark] = (), baseline: float | None = None
) -> list[LineChart]:
    """A chart of those lines that have two points or more; none if there is none."""
    lines = list(lines)
    series = [one for one in (_series(line, axis) for line in lines) if len(one.points) > 1]
    if not series:
        return []
    names = {axis.place(one.run): axis.name(one.run) for line in lines for one in line.runs}
    ticks = [Mark(place, names[place]) for place in sorted(names)]
    shown = ", ".join(one.name for one in series)
    description = f"{title} against {axis.label}, a line each for {shown}. The figures are in the table."
    return [LineChart(title, description, axis.label, ticks, series, marks, baseline)]


def _series(line: Line, axis: Axis) -> Series:
    points = []
    for one in sorted(line.runs, key=lambda one: axis.place(one.run)):
        found = line.measure(one)
        if found is not None:
            label = f"{axis.label} {axis.name(one.run)}: {estimate_text(found)}"
            points.append(Point(axis.place(one.run), found.mean, found.low, found.high, label))
    return Series(line.name, points)


def published_ridges() -> list[Mark]:
    """Where the ridges of the papers are."""
    return [Mark(math.log10(ridge), f"{method.upper()} {ridge:,g}") for method, ridge in presets.published_ridges()]


# What to group runs by, and to call them.


def grouped(runs: Iterable[RunResult], key: Callable[[Run], str]) -> dict[str, list[RunResult]]:
    """Runs by what `key` says of them, in the order that they come in."""
    groups: dict[str, list[RunResult]] = {}
    for one in runs:
        groups.setdefault(key(one.run), []).append(one)
    return groups


def solver(run: Run) -> str:
    """Method, ridge, and what becomes of earlier edits: all that tells solvers apart."""
    method = run.config.method.upper()
    name = method if run.config.method == "rome" else f"{method} μ = {ridge_text(run.config.ridge)}"
    return f"{name}, absorb {run.config.absorb:g}" if run.sequential else name


def layers(run: Run) -> str:
    layers = run.config.layers
    return f"layer{'s' * (len(layers) > 1)} {layers_text(layers)}"


def batches(run: Run) -> str:
    return f"batches of {run.batch_size:,}"


def value_settings(run: Run) -> str:
    """How the values of a run were found."""
    return ", ".join(f"{name} {getattr(run.config, name)}" for name in _OF_VALUES)


# What to show of them.


def score(metric: str) -> Measure:
    """A metric over all records of a run."""
    return lambda one: one.scores.metrics[metric] if one.scores else None


def over_batches(figures: Callable[[RunResult], list[float]]) -> Measure:
    """The mean over batches, between the least and the most."""

    def measure(one: RunResult) -> Estimate | None:
        found = figures(one)
        return Estimate(fmean(found), min(found), max(found), len(found)) if found else None

    return measure


def estimate_text(found: Estimate | None) -> str:
    """A mean with its interval, "84.1 [80.2, 87.3]"."""
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]" if found else "–"
