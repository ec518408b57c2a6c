"""Averages and their intervals equal their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from emmet.errors import EditError
from emmet.evaluate.intervals import Estimate, estimate, percent


def test_percent() -> None:
    assert percent([True, False, True, True]) == 75
    assert percent(value for value in (0.25, -0.5)) == -12.5
    assert percent([]) is None


def random_percentages(count: int, metrics: int, seed: int) -> np.ndarray:
    return 100 * np.random.default_rng(seed).random((count, metrics))


def test_estimates_equal_a_resampling_loop() -> None:
    count, names = 150, ("a", "b", "c")
    values = random_percentages(count, len(names), seed=1)
    values[::3, 1] = np.nan  # a third of the records lacks "b"
    records = [{name: None if np.isnan(v) else v for name, v in zip(names, row, strict=True)} for row in values]

    found = estimate(records, ("S", *names), parts_of_s=names)

    generator = np.random.default_rng(2)
    draws = []
    for _ in range(10_000):
        means = np.nanmean(values[generator.integers(count, size=count)], axis=0)
        draws.append([3 / np.sum(1 / means), *means])
    means = np.nanmean(values, axis=0)
    assert list(found) == ["S", *names]
    for i, (name, mean) in enumerate(zip(found, [3 / np.sum(1 / means), *means], strict=True)):
        estimated = found[name]
        assert estimated is not None
        assert estimated.mean == pytest.approx(mean, rel=1e-12)
        assert estimated.records == (100 if name in ("b", "S") else count)
        # A 2.5th percentile of n draws is off by sqrt(0.025 · 0.975 / n) / 0.058 deviations: by 0.089 for 1000 and
        # 10,000 draws together. Three times this is less than what parts it from the 5th percentile.
        draws_of_metric = np.array(draws)[:, i]
        tolerance = 3 * 0.089 * draws_of_metric.std()
        assert estimated.low == pytest.approx(np.percentile(draws_of_metric, 2.5), abs=tolerance), name
        assert estimated.high == pytest.approx(np.percentile(draws_of_metric, 97.5), abs=tolerance), name


def test_estimates_repeat_for_one_seed_and_differ_for_another() -> None:
    records = [{"a": float(value)} for (value,) in random_percentages(101, 1, seed=3)]
    first, again, other = (estimate(records, ["a"], ["a"], seed=seed)["a"] for seed in (0, 0, 5))
    assert first == again
    assert first != other


def test_a_metric_without_variation_has_a_point_for_an_interval() -> None:
    found = estimate([{"a": 100.0, "b": 50.0}] * 7, ["a", "b", "S"], ["a", "b"])
    assert found["a"] == Estimate(100.0, 100.0, 100.0, 7)
    assert found["S"] is not None
    assert found["S"].mean == pytest.approx(2 / (1 / 100 + 1 / 50))


def test_s_is_0_if_a_part_is_and_none_if_a_part_is_not_known() -> None:
    records = [{"a": 0.0, "b": 80.0, "c": None}] * 3
    assert estimate(records, ["S"], ["a", "b"])["S"] == Estimate(0.0, 0.0, 0.0, 3)
    found = estimate(records, ["a", "c", "S"], ["a", "c"])
    assert (found["c"], found["S"]) == (None, None)


def test_estimates_of_no_records_are_refused() -> None:
    with pytest.raises(EditError, match="at least one record"):
        estimate([], ["a", "S"], ["a"])
