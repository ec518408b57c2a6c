"""Metrics of single records, averaged, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EditError

_DRAWS = 1000
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean of a metric over the `records` that have it, with its 95 % interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    records: int


def percent(values: Iterable[float]) -> float | None:
    """100 times the mean of the values; None if there are none."""
    values = list(values)
    return 100 * sum(values) / len(values) if values else None


def estimate(
    records: Sequence[Mapping[str, float | None]], metrics: Iterable[str], parts_of_s: Sequence[str], seed: int = 0
) -> dict[str, Estimate | None]:
    """Average each of the metrics over the records that have it; "S" is the harmonic mean of the averages of its parts.

    The intervals are those of the percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over records, which are
    taken as independent; where all records have one value, the interval is that value. Raises EditError if there are no
    records.
    """
    if not records:
        message = "expected at least one record to evaluate, got none"
        raise EditError(message)
    names = list(records[0])
    values = np.array([[record[name] for name in names] for record in records], dtype=np.float64)  # NaN for None
    known = ~np.isnan(values)
    count = len(values)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    weights = np.vstack([np.ones(count), draws])  # how often each record counts; the first row is the sample itself
    parts = [names.index(name) for name in parts_of_s]
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where a draw has no value; S is 0 if a part is
        means = (weights @ np.nan_to_num(values)) / (weights @ known)
        s = len(parts) / (1 / means[:, parts]).sum(axis=1)
    measured = known.sum(axis=0)
    estimates = {name: _estimate(means[:, i], measured[i]) for i, name in enumerate(names)}
    estimates["S"] = _estimate(s, measured[parts].min())
    return {metric: estimates[metric] for metric in metrics}


def _estimate(means: NDArray[np.float64], records: int) -> Estimate | None:
    if not records:
        return None
    low, high = np.nanpercentile(means[1:], _INTERVAL)
    return Estimate(float(means[0]), float(low), float(high), int(records))
