"""The preservation metric against float64 NumPy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import closed_forms
from closed_forms import EPS, Array, Problem, problem, problems, relative_error, tolerance
from emmet import (
    EmmetError,
    FormatError,
    NonFiniteError,
    NotPositiveDefiniteError,
    Preservation,
    ShapeError,
    Update,
    solve,
)
from threads import runs_beside_python


def metric(moment: Array, jitter: float | None = None) -> Preservation:
    return Preservation.from_second_moment(torch.from_numpy(moment), jitter)


def moment_of(preservation: Preservation) -> Array:
    factor = preservation.factor.numpy()
    return factor @ factor.T


def well_conditioned(d: int = 10) -> Array:
    return closed_forms.moment(np.random.default_rng(d), d, condition=100.0)


def from_tokens(count: int, d: int = 40, dtype: type = np.float64) -> Array:
    """The second moment of so many keys, summed in this type."""
    keys = np.random.default_rng(0).standard_normal((count, d)).astype(dtype)
    return (keys.T @ keys / dtype(count)).astype(np.float64)


class TestMetric:
    @given(problems())
    def test_solve_and_gram_and_cost_are_their_definitions(self, case: Problem) -> None:
        preservation, keys = metric(case.moment), torch.from_numpy(case.keys)
        bound = tolerance(case.moment)
        assert preservation.jitter == 0
        solved = np.linalg.solve(case.moment, case.keys.T).T
        assert relative_error(preservation.solve(keys).numpy(), solved) < bound
        assert relative_error(preservation.gram(keys).numpy(), case.gram()) < bound
        cost = np.trace(case.keys @ case.moment @ case.keys.T)
        assert preservation.cost(keys) == pytest.approx(cost, rel=1e-6)

    @given(problems())
    def test_whiten_and_unwhiten_are_the_two_halves_of_solve(self, case: Problem) -> None:
        preservation, keys = metric(case.moment), torch.from_numpy(case.keys)
        factor = np.linalg.cholesky(case.moment)
        bound = tolerance(case.moment)
        assert relative_error(preservation.factor.numpy(), factor) < bound
        assert relative_error(preservation.whiten(keys).numpy(), np.linalg.solve(factor, case.keys.T).T) < bound
        assert torch.equal(preservation.unwhiten(preservation.whiten(keys)), preservation.solve(keys))

    def test_has_a_size(self) -> None:
        preservation = metric(well_conditioned())
        assert (preservation.dim, preservation.rank, preservation.device) == (10, 10, torch.device("cpu"))

    @pytest.mark.parametrize("count", [1, 40])
    def test_solves_and_absorbs_where_it_is(self, count: int, device: torch.device) -> None:
        moment, keys = well_conditioned(50), torch.randn(count, 50, dtype=torch.float64)
        preservation = Preservation.from_second_moment(torch.from_numpy(moment).to(device))
        absorbed = preservation.absorb(keys.to(device), 2.0)
        assert preservation.device == absorbed.device == device
        expected = np.linalg.solve(moment + 2.0 * keys.numpy().T @ keys.numpy(), keys.numpy().T).T
        assert relative_error(absorbed.solve(keys.to(device)).cpu().numpy(), expected) < 1e-9

    def test_refuses_keys_of_another_device(self) -> None:
        with pytest.raises(ShapeError, match="expected keys on cpu, got meta"):
            metric(well_conditioned()).solve(torch.ones(3, 10, device="meta"))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_computes_in_float64_whatever_comes_in(self, dtype: torch.dtype) -> None:
        preservation, keys = metric(well_conditioned()), torch.randn(3, 10, dtype=dtype)
        assert preservation.solve(keys).dtype == torch.float64
        assert torch.equal(preservation.solve(keys), preservation.solve(keys.double()))

    def test_takes_one_key_and_any_layout(self) -> None:
        preservation, keys = metric(well_conditioned()), torch.randn(6, 20, dtype=torch.float64)[::2, ::2]
        solved = preservation.solve(keys)
        assert solved.shape == (3, 10)
        assert torch.allclose(solved, preservation.solve(keys.contiguous()), rtol=1e-12)
        assert preservation.solve(keys[1]).shape == (10,)
        assert torch.allclose(preservation.solve(keys[1]), solved[1], rtol=1e-12)

    def test_gram_is_symmetric_to_the_bit(self) -> None:
        gram = metric(well_conditioned(50)).gram(torch.randn(70, 50))
        assert torch.equal(gram, gram.mT)


class TestJitter:
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_is_relative_to_the_mean_of_the_diagonal(self, scale: float) -> None:
        moment = scale * well_conditioned()
        preservation = metric(moment, 0.5)
        assert preservation.jitter == 0.5
        expected = moment + 0.5 * np.diag(moment).mean() * np.eye(10)
        assert relative_error(moment_of(preservation), expected) < 1e-14

    def test_is_zero_where_none_is_needed(self) -> None:
        assert metric(well_conditioned()).jitter == 0
        assert metric(closed_forms.moment(np.random.default_rng(0), 24, condition=1e10)).jitter == 0
        assert metric(from_tokens(41)).jitter == 0

    def test_is_the_smallest_that_helps_after_too_few_tokens(self) -> None:
        assert metric(from_tokens(20)).jitter == 1e-10
        # Sums in float32 are off by 1e-7 or so of the largest eigenvalue, which may make the smallest negative.
        assert 1e-8 <= metric(from_tokens(20, dtype=np.float32)).jitter <= 1e-5

    def test_does_not_take_rounding_errors_for_information(self) -> None:
        twins = np.array([[1, 1], [1, 1 + 1e-15]])  # two neurons that always agree: the second pivot is 1e-15
        assert metric(twins).jitter == 1e-10
        with pytest.raises(NotPositiveDefiniteError):
            metric(twins, 0)

    def test_lets_a_dead_neuron_be(self) -> None:
        moment = well_conditioned()
        moment[3] = moment[:, 3] = 0
        preservation = metric(moment)
        assert preservation.jitter == 1e-10
        assert relative_error(moment_of(preservation), moment) < 1e-9
        with pytest.raises(NotPositiveDefiniteError, match="even with jitter 0; collect statistics over more tokens"):
            metric(moment, 0)

    def test_does_not_hide_a_matrix_that_is_no_second_moment(self) -> None:
        moment = well_conditioned()
        moment[0, 0] = -1
        for jitter in (None, 1e-3):
            with pytest.raises(NotPositiveDefiniteError):
                metric(moment, jitter)


class TestAbsorb:
    @given(
        case=problems() | problems(isotropic=True),
        weight=st.floats(-3, 3).map(lambda exponent: 10.0**exponent),
    )
    def test_equals_factorising_the_sum(self, case: Problem, weight: float) -> None:
        absorbed = metric(case.moment).absorb(torch.from_numpy(case.keys), weight)
        expected = case.moment + weight * case.keys.T @ case.keys
        assert relative_error(moment_of(absorbed), expected) < 100 * EPS * len(expected)

    @pytest.mark.parametrize("count", [1, 3, 4, 100])  # by rotations up to 32 keys, by one factorisation from there
    def test_equals_factorising_the_sum_for_few_and_many_keys(self, count: int) -> None:
        moment, keys = well_conditioned(60), np.random.default_rng(1).standard_normal((count, 60))
        before = metric(moment)
        factor = before.factor.clone()
        absorbed = before.absorb(torch.from_numpy(keys), 2.5)
        expected = metric(moment + 2.5 * keys.T @ keys)
        assert torch.allclose(absorbed.factor, expected.factor, rtol=1e-9, atol=1e-12)
        assert torch.equal(before.factor, factor)
        assert torch.equal(absorbed.factor, absorbed.factor.tril())
        assert (absorbed.factor.diagonal() > 0).all()

    @pytest.mark.parametrize("count", [1, 3, 4, 50])
    def test_keeps_the_digits_of_the_moment_beside_large_keys(self, count: int) -> None:
        moment = closed_forms.moment(np.random.default_rng(0), 60, condition=1e4)
        keys = 1e5 * np.random.default_rng(1).standard_normal((count, 60))
        probes = np.random.default_rng(2).standard_normal((5, 60))
        # Woodbury's identity, which does not add the squares of the keys to the small eigenvalues of the moment.
        solved, system = np.linalg.solve(moment, keys.T), np.linalg.solve(moment, probes.T)
        expected = system - solved @ np.linalg.solve(np.eye(count) + keys @ solved, keys @ system)
        absorbed = metric(moment).absorb(torch.from_numpy(keys))
        assert relative_error(absorbed.solve(torch.from_numpy(probes)).numpy(), expected.T) < 1e-7

    def test_one_by_one_equals_all_at_once(self) -> None:
        keys = torch.randn(30, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        one_by_one = metric(well_conditioned(40))
        for key in keys:
            one_by_one = one_by_one.absorb(key)
        assert torch.allclose(one_by_one.factor, metric(well_conditioned(40)).absorb(keys).factor, rtol=1e-9)

    def test_keeps_the_jitter(self) -> None:
        assert metric(well_conditioned(), 0.25).absorb(torch.randn(1, 10)).jitter == 0.25

    def test_of_weight_zero_changes_nothing(self) -> None:
        before = metric(well_conditioned())
        for count in (1, 8):
            after = before.absorb(torch.randn(count, 10), 0.0)
            assert torch.allclose(after.factor, before.factor, rtol=1e-14, atol=1e-15)

    def test_protects_what_it_has_absorbed(self) -> None:
        case = problem(np.random.default_rng(0), 20, 2)
        first, second = torch.from_numpy(case.keys)
        residual = torch.ones(3, dtype=torch.float64)
        before = metric(case.moment)
        disturbance = [
            torch.linalg.norm(closed_form(preservation, second, residual) @ first).item()
            for preservation in (before, before.absorb(first, 1e4))
        ]
        assert disturbance[1] < 1e-3 * disturbance[0]


def closed_form(preservation: Preservation, key: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    solved = preservation.solve(key)
    return torch.outer(residual, solved) / (solved @ key)


class TestInput:
    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (lambda c: Preservation.from_second_moment(c[:3]), ShapeError, "second_moment [d, d], got [3, 10]"),
            (lambda c: Preservation.from_second_moment(c[0]), ShapeError, "second_moment [d, d], got [10]"),
            (lambda c: Preservation.from_second_moment(c[:0, :0]), ShapeError, "got [0, 0]"),
            (lambda c: Preservation.from_second_moment(c.long()), ShapeError, "got Long"),
            (lambda c: Preservation.from_second_moment(c.triu()), ShapeError, "symmetric second_moment"),
            (lambda c: Preservation.from_second_moment(c * torch.nan), NonFiniteError, "got NaN in row 1 of 10"),
            (lambda c: Preservation.from_second_moment(c / 0), NonFiniteError, "finite second_moment"),
            (lambda c: Preservation.from_second_moment(-c), NotPositiveDefiniteError, "more tokens"),
            (lambda c: Preservation.from_second_moment(0 * c), NotPositiveDefiniteError, "more tokens"),
            (lambda c: Preservation.from_second_moment(c, -1), EmmetError, "jitter >= 0, got -1"),
            (lambda c: Preservation.from_second_moment(c, float("nan")), EmmetError, "jitter >= 0, got nan"),
            (lambda c: Preservation.from_second_moment(c).solve(c[:, :9]), ShapeError, "keys [..., 10], got [10, 9]"),
            (lambda c: Preservation.from_second_moment(c).gram(c[:0]), ShapeError, "n > 0"),
            (lambda c: Preservation.from_second_moment(c).whiten(c.log()), NonFiniteError, "finite keys, got NaN"),
            (lambda c: Preservation.from_second_moment(c).unwhiten(c[:, :9]), ShapeError, "whitened [..., 10]"),
            (lambda c: Preservation.from_second_moment(c).cost(c[:, :9]), ShapeError, "delta [..., 10]"),
            (lambda c: Preservation.from_second_moment(c).absorb(c[0], -1), EmmetError, "weight >= 0, got -1"),
            (lambda c: Preservation.from_second_moment(c).to("nowhere"), EmmetError, "nowhere"),
            (lambda c: Preservation.from_second_moment(c).save("/nowhere/metric"), EmmetError, "/nowhere/metric"),
            (lambda _: Preservation.load("/nowhere/metric"), EmmetError, "/nowhere/metric"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, call: Callable[[torch.Tensor], object], error: type[EmmetError], text: str
    ) -> None:
        with pytest.raises(error, match=re.escape(text)) as caught:
            call(torch.from_numpy(well_conditioned()))
        assert type(caught.value) is error
        assert isinstance(caught.value, ValueError)
        assert "\n" not in str(caught.value)

    def test_takes_a_moment_that_float32_made_slightly_asymmetric(self) -> None:
        moment = well_conditioned()
        moment[0, 1] *= 1 + 1e-7
        assert metric(moment).jitter == 0


class TestNullSpace:
    """C has eigenvalues from 1 down to 0.01, so that a threshold of 0.2 keeps a part of them."""

    @given(
        seed=st.integers(0, 2**32 - 1),
        count=st.integers(1, 40),
        earlier_counts=st.lists(st.sampled_from([1, 2, 30]), max_size=3),
        alpha=st.floats(-1, 1).map(lambda exponent: 10.0**exponent),
    )
    def test_gives_the_published_update_after_any_earlier_batches(
        self, seed: int, count: int, earlier_counts: list[int], alpha: float
    ) -> None:
        rng = np.random.default_rng(seed)
        case = problem(rng, 40, count, isotropic=True)
        earlier = [rng.standard_normal((keys, 40)) for keys in earlier_counts]
        preservation = Preservation.null_space(torch.from_numpy(case.moment), 0.2, alpha)
        for keys in earlier:
            preservation = preservation.absorb(torch.from_numpy(keys))
        update = solve(preservation, torch.from_numpy(case.keys), torch.from_numpy(case.residuals), ridge=1.0)
        expected = closed_forms.alphaedit(case, np.concatenate([*earlier, np.zeros((0, 40))]), 0.2, alpha)
        assert 0 < preservation.rank < preservation.dim == 40
        assert relative_error(update.dense().numpy(), expected) < 1e-8

    def test_without_a_ridge_meets_the_constraint_and_stays_inside(self) -> None:
        case = problem(np.random.default_rng(0), 40, 3)
        preservation = Preservation.null_space(torch.from_numpy(case.moment), 0.2)
        update = solve(preservation, torch.from_numpy(case.keys), torch.from_numpy(case.residuals))
        assert update.diagnostics.constraint_residual < 1e-10
        values, vectors = np.linalg.eigh(case.moment)
        outside = update.dense().numpy() @ vectors[:, values >= 0.2]
        assert np.abs(outside).max() < 1e-12 * np.abs(update.dense().numpy()).max()

    @pytest.mark.parametrize("threshold", [1.0 + 1e-9, 1e6])
    def test_of_a_high_threshold_is_everything(self, threshold: float) -> None:
        preservation = Preservation.null_space(torch.from_numpy(well_conditioned()), threshold, 4.0)
        keys = torch.randn(3, 10, dtype=torch.float64)
        assert preservation.rank == 10
        assert torch.allclose(preservation.solve(keys), keys / 4, rtol=1e-12)
        assert preservation.cost(keys) == pytest.approx(4 * float(keys.square().sum()))

    @pytest.mark.parametrize("threshold", [0.0, 0.01 - 1e-9])
    def test_of_a_low_threshold_is_refused(self, threshold: float) -> None:
        with pytest.raises(
            EmmetError, match=r"expected a null space, got none: .* the smallest is 0\.0[01].*largest 1"
        ):
            Preservation.null_space(torch.from_numpy(well_conditioned()), threshold)

    @pytest.mark.parametrize(
        ("moment", "threshold", "alpha", "error"),
        [
            (-np.eye(4), 0.5, 1.0, NotPositiveDefiniteError),
            (np.eye(4)[:3], 0.5, 1.0, ShapeError),
            (np.eye(4) * np.nan, 0.5, 1.0, NonFiniteError),
            (np.eye(4), -0.5, 1.0, EmmetError),
            (np.eye(4), 2.0, 0.0, EmmetError),
            (np.eye(4), 2.0, math.inf, EmmetError),
        ],
    )
    def test_refuses_what_is_none(self, moment: Array, threshold: float, alpha: float, error: type[EmmetError]) -> None:
        with pytest.raises(EmmetError) as caught:
            Preservation.null_space(torch.from_numpy(moment), threshold, alpha)
        assert type(caught.value) is error

    def test_is_saved_and_loaded(self, tmp_path: Path) -> None:
        keys = torch.randn(3, 40)
        saved = Preservation.null_space(torch.from_numpy(from_tokens(100)), 1.0, 2.0).absorb(keys)
        saved.save(tmp_path / "metric")
        loaded = Preservation.load(tmp_path / "metric")
        assert (loaded.rank, loaded.dim) == (saved.rank, 40)
        assert torch.equal(loaded.solve(keys), saved.solve(keys))
        assert torch.equal(loaded.to("cpu").absorb(keys).solve(keys), saved.absorb(keys).solve(keys))


class TestFile:
    @pytest.mark.parametrize("count", [0, 1, 8])  # as factorised, after rotations, after a new factorisation
    def test_is_read_back_to_the_bit(self, tmp_path: Path, count: int) -> None:
        saved = metric(well_conditioned(16), 1 / 3)
        if count:
            saved = saved.absorb(torch.randn(count, 16))
        saved.save(tmp_path / "metric")
        loaded = Preservation.load(tmp_path / "metric", device="cpu")
        keys = torch.randn(5, 16)
        assert torch.equal(loaded.factor, saved.factor)
        assert torch.equal(loaded.solve(keys), saved.solve(keys))
        assert loaded.jitter == saved.jitter

    def test_cut_short_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "metric"
        metric(well_conditioned()).save(path)
        content = path.read_bytes()
        for length in (0, 7, 40, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(FormatError, match=str(path)):
                Preservation.load(path)

    def test_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "update"
        Update.from_dense(torch.eye(4)).save(path)
        with pytest.raises(FormatError, match=r"of format emmet\.preservation\.2, got emmet\.update\.1"):
            Preservation.load(path)
        path.write_text("not safetensors at all")
        with pytest.raises(FormatError):
            Preservation.load(path)


class TestInFloat32:
    def test_constraints_hold_as_exactly_and_the_metric_is_rounded(self) -> None:
        case = problem(np.random.default_rng(0), 40, 6)
        exact, keys, residuals = metric(case.moment), torch.from_numpy(case.keys), torch.from_numpy(case.residuals)
        update = solve(exact.in_float32(), keys, residuals)
        assert update.diagnostics.constraint_residual < 1e-12
        assert relative_error(update.dense().numpy() @ case.keys.T, case.residuals.T) < 1e-12
        error = relative_error(update.dense().numpy(), closed_forms.emmet(case))
        assert 0 < error < closed_forms.condition(case.moment) * torch.finfo(torch.float32).eps

    def test_takes_half_the_bytes_and_gives_float64(self) -> None:
        exact = metric(well_conditioned())
        rounded = exact.in_float32()
        assert rounded.factor.dtype == torch.float32
        assert rounded.solve(torch.randn(3, 10)).dtype == torch.float64
        delta = torch.randn(2, 10, dtype=torch.float64)
        assert rounded.cost(delta) == pytest.approx(exact.cost(delta), rel=1e-6)

    def test_can_neither_absorb_nor_be_saved(self, tmp_path: Path) -> None:
        rounded = metric(well_conditioned()).in_float32()
        with pytest.raises(EmmetError, match="expected a metric in float64 to absorb"):
            rounded.absorb(torch.randn(1, 10))
        with pytest.raises(EmmetError, match="expected a metric in float64 to save"):
            rounded.save(tmp_path / "metric")
        assert not (tmp_path / "metric").exists()


def test_other_python_threads_run_while_a_moment_is_factorised() -> None:
    moment = torch.eye(2000, dtype=torch.float64)
    assert runs_beside_python(lambda: Preservation.from_second_moment(moment))
