"""The solver against the published closed forms in float64 NumPy."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import closed_forms
from closed_forms import Array, Problem, condition, problem, problems, relative_error, singles, tolerance
from emmet import (
    DependentKeysError,
    EmmetError,
    NonFiniteError,
    NotPositiveDefiniteError,
    Preservation,
    ShapeError,
    Update,
    emmet,
    memit,
    rome,
    solve,
    solve_each,
)
from threads import runs_beside_python

# Where numbers are so well conditioned that both sides keep most of their digits.
CLOSE = 1e-8
# The bound on the condition number that an automatic ridge keeps, and what its estimate may be off by.
MAX_CONDITION = 1e8
SLACK = 1.1

exponents = st.floats(-3, 3)


def tensors(problem: Problem) -> tuple[Preservation, torch.Tensor, torch.Tensor]:
    preservation = Preservation.from_second_moment(torch.from_numpy(problem.moment))
    return preservation, torch.from_numpy(problem.keys), torch.from_numpy(problem.residuals)


def delta(update: Update) -> Array:
    return update.dense().numpy()


def comparable_lambda(problem: Problem, exponent: float) -> float:
    """A weight of C that neither side of MEMIT's objective drowns in, times 10 to this exponent."""
    return float(10**exponent * np.mean(np.diag(problem.gram())))


def well_conditioned(n: int, d: int = 10) -> Problem:
    return problem(np.random.default_rng(n), d, n)


def with_too_few_digits() -> tuple[Preservation, torch.Tensor]:
    """A metric in float32 that would need float64, and its 400 eigenvectors, the one where C is largest first."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((400, 400)))
    moment = torch.from_numpy((basis * np.logspace(0, -15, 400)) @ basis.T)
    metric = Preservation.from_second_moment((moment + moment.T) / 2, jitter=0).in_float32()
    return metric, torch.from_numpy(basis.T.copy())


class TestDevices:
    @pytest.mark.parametrize("ridge", [0.0, 0.5])
    @pytest.mark.parametrize("n", [1, 7])
    def test_is_solved_where_the_metric_is(self, n: int, ridge: float, device: torch.device) -> None:
        case = well_conditioned(n)
        preservation, keys, residuals = tensors(case)
        update = solve(preservation.to(device), keys.to(device), residuals.to(device), ridge)
        assert update.device == device
        assert relative_error(delta(update.to("cpu")), delta(solve(preservation, keys, residuals, ridge))) < CLOSE

    def test_tensors_of_another_device_are_refused(self) -> None:
        preservation, keys, residuals = tensors(well_conditioned(3))
        with pytest.raises(ShapeError, match="expected residuals on cpu, got meta"):
            solve(preservation, keys, residuals.to("meta"))


class TestDefinitions:
    @pytest.mark.parametrize("n", range(1, 21))
    def test_memit_is_its_definition(self, n: int) -> None:
        case = well_conditioned(n)
        for lambda_ in (0.1, 1.0, 15000.0):
            assert relative_error(delta(memit(*tensors(case), lambda_)), closed_forms.memit(case, lambda_)) < CLOSE

    @pytest.mark.parametrize("n", range(1, 11))
    def test_emmet_is_its_definition(self, n: int) -> None:
        case = well_conditioned(n)
        assert relative_error(delta(emmet(*tensors(case))), closed_forms.emmet(case)) < CLOSE

    def test_rome_is_its_definition(self) -> None:
        case = well_conditioned(1)
        assert relative_error(delta(rome(*tensors(case))), closed_forms.rome(case)) < CLOSE

    @given(case=problems(), exponent=exponents)
    def test_memit_on_any_problem(self, case: Problem, exponent: float) -> None:
        lambda_ = comparable_lambda(case, exponent)
        system = lambda_ * case.moment + case.keys.T @ case.keys
        error = relative_error(delta(memit(*tensors(case), lambda_)), closed_forms.memit(case, lambda_))
        assert error < max(tolerance(system), tolerance(case.moment))

    @given(case=problems(max_keys_per_dimension=1))
    def test_emmet_on_any_problem(self, case: Problem) -> None:
        error = relative_error(delta(emmet(*tensors(case))), closed_forms.emmet(case))
        assert error < tolerance(case.moment, case.gram())


class TestManyOutputs:
    """More rows of Δ than are found at a time, of so many edits that it is not kept as factors; d_in is odd."""

    @pytest.fixture
    def case(self) -> Problem:
        made = problem(np.random.default_rng(0), 131, 125, d_out=1100)
        made.residuals[:, 512:1024] = 0.0
        return made

    @pytest.mark.parametrize("ridge", [0.0, 0.5])
    def test_all_rows_are_the_definition(self, case: Problem, ridge: float) -> None:
        expected = closed_forms.memit(case, ridge) if ridge else closed_forms.emmet(case)
        update = solve(*tensors(case), ridge)
        assert not update.is_low_rank
        assert relative_error(delta(update), expected) < CLOSE
        reached = case.keys @ expected.T
        missing = np.linalg.norm(reached - case.residuals) / np.linalg.norm(case.residuals)
        assert update.diagnostics.constraint_residual == pytest.approx(missing, rel=1e-6, abs=1e-9)
        cost = np.trace(expected @ case.moment @ expected.T)
        assert update.diagnostics.preservation_cost == pytest.approx(cost, rel=1e-6)
        assert update.diagnostics.ridge == ridge
        assert 1 < update.diagnostics.condition < 1e12

    def test_a_float32_factor_meets_the_constraint(self, case: Problem) -> None:
        preservation, keys, residuals = tensors(case)
        update = solve(preservation.in_float32(), keys, residuals, 0.0)
        assert update.constraint_residual(keys, residuals) < 1e-6
        assert relative_error(delta(update), closed_forms.emmet(case)) < 1e-2

    def test_alphaedit_in_a_null_space_of_odd_dimension(self, case: Problem) -> None:
        values = np.linalg.eigvalsh(case.moment)
        threshold = float((values[122] + values[123]) / 2)
        metric = Preservation.null_space(torch.from_numpy(case.moment), threshold)
        assert metric.rank == 123
        few = Problem(case.moment, case.keys[:122], case.residuals[:122])
        found = solve(metric, torch.from_numpy(few.keys), torch.from_numpy(few.residuals), 1.0)
        assert relative_error(delta(found), closed_forms.alphaedit(few, np.zeros((1, 131)), threshold, 1.0)) < CLOSE


class TestEach:
    """Many edits that know nothing of each other."""

    @given(case=problems(), exponent=exponents)
    def test_with_a_ridge_each_is_memit(self, case: Problem, exponent: float) -> None:
        lambda_ = comparable_lambda(case, exponent)
        for one, update in zip(singles(case), solve_each(*tensors(case), lambda_), strict=True):
            system = lambda_ * one.moment + one.keys.T @ one.keys
            error = relative_error(delta(update), closed_forms.memit(one, lambda_))
            assert error < max(tolerance(system), tolerance(one.moment))

    @given(case=problems())
    def test_without_each_is_rome(self, case: Problem) -> None:
        for one, update in zip(singles(case), solve_each(*tensors(case)), strict=True):
            assert relative_error(delta(update), closed_forms.rome(one)) < tolerance(one.moment)
            missed = update.constraint_residual(torch.from_numpy(one.keys), torch.from_numpy(one.residuals))
            assert max(missed, update.diagnostics.constraint_residual) < CLOSE

    def test_is_solved_where_the_metric_is(self, device: torch.device) -> None:
        preservation, keys, residuals = tensors(well_conditioned(7))
        updates = solve_each(preservation.to(device), keys.to(device), residuals.to(device), 0.5)
        for update, expected in zip(updates, solve_each(preservation, keys, residuals, 0.5), strict=True):
            assert update.device == device
            assert relative_error(delta(update.to("cpu")), delta(expected)) < CLOSE

    def test_a_float32_factor_meets_the_constraint(self) -> None:
        preservation, keys, residuals = tensors(well_conditioned(7))
        for key, residual, update in zip(
            keys, residuals, solve_each(preservation.in_float32(), keys, residuals), strict=True
        ):
            assert update.constraint_residual(key, residual) < 1e-14

    def test_names_a_key_that_is_zero(self) -> None:
        preservation, keys, residuals = tensors(well_conditioned(5))
        keys[3] = 0
        with pytest.raises(DependentKeysError, match="zero ones of edits 4;") as caught:
            solve_each(preservation, keys, residuals, "auto")
        assert caught.value.groups == [[3]]

    def test_names_edits_for_which_a_metric_has_too_few_digits(self) -> None:
        metric, eigenvectors = with_too_few_digits()
        keys = eigenvectors[[300, 0]]  # the latter where C is largest, and C⁻¹ smallest
        with pytest.raises(NotPositiveDefiniteError, match="too ill-conditioned for edits 1;"):
            solve(metric, keys[1:], torch.ones(1, 3))
        with pytest.raises(NotPositiveDefiniteError, match="too ill-conditioned for edits 2;"):
            solve_each(metric, keys, torch.ones(2, 3))


class TestIdentities:
    @given(case=problems(), exponent=exponents)
    def test_memit_is_emmet_with_a_ridge(self, case: Problem, exponent: float) -> None:
        ridge = comparable_lambda(case, exponent)
        update = emmet(*tensors(case), ridge=ridge)
        assert np.array_equal(delta(update), delta(memit(*tensors(case), ridge)))
        assert update.diagnostics.ridge == ridge

    @given(case=problems(max_keys_per_dimension=1))
    def test_emmet_of_one_edit_is_rome(self, case: Problem) -> None:
        one = Problem(case.moment, case.keys[:1], case.residuals[:1])
        update = delta(emmet(*tensors(one)))
        assert np.array_equal(update, delta(rome(*tensors(one))))
        assert relative_error(update, closed_forms.rome(one)) < tolerance(case.moment)

    @given(case=problems(), exponent=exponents, weight=st.floats(1e-3, 1e5))
    def test_the_published_program_is_memit(self, case: Problem, exponent: float, weight: float) -> None:
        epsilon = comparable_lambda(case, exponent) / weight
        published = closed_forms.published_emmet(case, weight, epsilon)
        system = case.gram() + weight * epsilon * np.eye(len(case.keys))
        error = relative_error(delta(memit(*tensors(case), weight * epsilon)), published)
        assert error < tolerance(case.moment, system)

    @given(case=problems(max_keys_per_dimension=1), scale=st.floats(-6, 6))
    def test_the_scale_of_the_moment_cancels(self, case: Problem, scale: float) -> None:
        scaled = Problem(10**scale * case.moment, case.keys, case.residuals)
        error = relative_error(delta(emmet(*tensors(scaled))), delta(emmet(*tensors(case))))
        assert error < tolerance(case.moment, case.gram())


class TestConstraint:
    """Without a ridge every key gets its residual, or the keys that stand in the way are named."""

    @given(case=problems(max_keys_per_dimension=1) | problems(max_keys_per_dimension=1, isotropic=True))
    @example(problem(np.random.default_rng(0), 15, 15, condition=1e9, isotropic=True))
    def test_holds(self, case: Problem) -> None:
        try:
            update = emmet(*tensors(case))
        except DependentKeysError:
            assert condition(case.gram()) > 1e11
            return
        assert relative_error(delta(update) @ case.keys.T, case.residuals.T) < 1e-6
        assert update.diagnostics.constraint_residual < 1e-10

    @given(
        case=problems(max_keys_per_dimension=1).filter(lambda case: len(case.keys) > 2),
        distance=st.sampled_from([0, 1e-12, 1e-11, 1e-10, 1e-9]),
        length=st.sampled_from([1.0, -1.0, 1e-6, 3e4]),
    )
    def test_names_keys_that_coincide(self, case: Problem, distance: float, length: float) -> None:
        case.keys[-1] = length * (case.keys[0] + distance * case.keys[-1])
        with pytest.raises(DependentKeysError) as caught:
            emmet(*tensors(case))
        assert caught.value.groups == [[0, len(case.keys) - 1]]
        assert f"of edits {{1, {len(case.keys)}}};" in str(caught.value)

    @given(
        case=problems(max_keys_per_dimension=1).filter(lambda case: len(case.keys) > 3),
        distance=st.sampled_from([0, 1e-12, 1e-10, 1e-9]),
        coefficient=st.floats(0.1, 10),
    )
    def test_names_keys_that_depend_without_coinciding(
        self, case: Problem, distance: float, coefficient: float
    ) -> None:
        case.keys[-1] = case.keys[0] - coefficient * case.keys[1] + distance * case.keys[-1]
        with pytest.raises(DependentKeysError) as caught:
            emmet(*tensors(case))
        assert caught.value.groups == [[0, 1, len(case.keys) - 1]]

    def test_names_each_dependency_of_several(self) -> None:
        case = well_conditioned(8)
        case.keys[6] = case.keys[0] + case.keys[1]
        case.keys[7] = case.keys[2] - case.keys[3]
        with pytest.raises(DependentKeysError) as caught:
            emmet(*tensors(case))
        assert caught.value.groups == [[0, 1, 6], [2, 3, 7]]

    def test_names_a_dependency_beside_keys_that_are_merely_close(self) -> None:
        case = well_conditioned(5)
        case.keys[1] = case.keys[0] + 1e-4 * case.keys[1]
        case.keys[4] = case.keys[2] + case.keys[3]
        with pytest.raises(DependentKeysError) as caught:
            emmet(*tensors(case))
        assert caught.value.groups == [[2, 3, 4]]

    def test_names_a_key_that_is_zero(self) -> None:
        case = well_conditioned(5)
        case.keys[3] = 0
        with pytest.raises(DependentKeysError) as caught:
            emmet(*tensors(case))
        assert caught.value.groups == [[3]]

    def test_blames_no_keys_where_the_metric_has_too_few_digits(self) -> None:
        metric, eigenvectors = with_too_few_digits()  # which are as independent as keys can be
        with pytest.raises(NotPositiveDefiniteError, match="too ill-conditioned;"):
            emmet(metric, eigenvectors[:3], torch.ones(3, 3))

    def test_names_many_keys_that_are_hardly_independent(self) -> None:
        n, eigenvalue = 200, 1.5e-10  # the smallest of their cosines; the largest is near n
        keys = torch.cat([torch.ones(n, 1), eigenvalue**0.5 * torch.eye(n)], dim=1).double()
        with pytest.raises(DependentKeysError) as caught:
            emmet(Preservation.from_second_moment(torch.eye(n + 1)), keys, torch.ones(n, 3))
        assert caught.value.groups == [list(range(n))]

    def test_cannot_hold_for_more_keys_than_dimensions(self) -> None:
        with pytest.raises(DependentKeysError) as caught:
            emmet(*tensors(well_conditioned(11)))
        assert caught.value.groups == [list(range(11))]
        assert "11 edits in 10 dimensions" in str(caught.value)


class TestAutomaticRidge:
    @given(case=problems(max_keys_per_dimension=1) | problems(isotropic=True))
    def test_bounds_the_condition_number_and_no_more(self, case: Problem) -> None:
        update = emmet(*tensors(case), ridge="auto")
        ridge, gram = update.diagnostics.ridge, case.gram()
        if ridge == 0:
            assert condition(gram) < SLACK * MAX_CONDITION
            return
        unit = np.eye(len(gram))
        assert np.linalg.cond(gram + ridge * unit) < SLACK * MAX_CONDITION
        assert np.linalg.cond(gram + 0.4 * ridge * unit) > MAX_CONDITION

    @pytest.mark.parametrize("n", [1, 5, 9])
    def test_is_zero_where_none_is_needed(self, n: int) -> None:
        case = well_conditioned(n)
        update = emmet(*tensors(case), ridge="auto")
        assert update.diagnostics.ridge == 0
        assert np.array_equal(delta(update), delta(emmet(*tensors(case))))

    @pytest.mark.parametrize("distance", [0, 1e-12, 1e-9])
    def test_solves_keys_that_coincide(self, distance: float) -> None:
        case = well_conditioned(6)
        case.keys[5] = case.keys[2] + distance * case.keys[5]
        case.residuals[5] = case.residuals[2]
        update = emmet(*tensors(case), ridge="auto")
        assert 0 < update.diagnostics.ridge < 1e-6
        assert relative_error(delta(update) @ case.keys.T, case.residuals.T) < 1e-5


class TestDiagnostics:
    @given(case=problems(), exponent=exponents)
    def test_are_what_they_say(self, case: Problem, exponent: float) -> None:
        update = solve(*tensors(case), ridge=comparable_lambda(case, exponent))
        found, change = update.diagnostics, delta(update)
        residual = relative_error(change @ case.keys.T, case.residuals.T)
        assert found.constraint_residual == pytest.approx(residual, abs=1e-9)
        assert found.preservation_cost == pytest.approx(np.trace(change @ case.moment @ change.T), rel=1e-6)
        assert found.seconds_whiten >= 0
        assert found.seconds_system >= 0
        assert found.to_dict() == {name: getattr(found, name) for name in found.to_dict()}

    @given(case=problems(max_keys_per_dimension=1))
    def test_condition_is_that_of_the_scaled_system(self, case: Problem) -> None:
        gram = case.gram()
        found = emmet(*tensors(case)).diagnostics.condition
        assert found == pytest.approx(condition(gram), rel=0.05 + tolerance(case.moment, gram))


class TestInput:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_computes_in_float64_whatever_comes_in(self, dtype: torch.dtype) -> None:
        preservation, keys, residuals = tensors(well_conditioned(5))
        keys, residuals = keys.to(dtype), residuals.to(dtype)
        update = solve(preservation, keys, residuals).dense()
        assert update.dtype == torch.float64
        assert torch.equal(update, solve(preservation, keys.double(), residuals.double()).dense())

    def test_takes_one_edit_without_a_row_dimension(self) -> None:
        preservation, keys, residuals = tensors(well_conditioned(1))
        expected = solve(preservation, keys, residuals).dense()
        assert torch.equal(solve(preservation, keys[0], residuals[0]).dense(), expected)

    def test_takes_tensors_that_need_gradients(self) -> None:
        preservation, keys, residuals = tensors(well_conditioned(1))
        update = solve(preservation, keys.requires_grad_(), residuals.requires_grad_())
        assert not update.left.requires_grad
        assert not update.right.requires_grad

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_changes_nothing(self, dtype: torch.dtype) -> None:
        preservation, keys, residuals = tensors(well_conditioned(8, d=60))
        metric, keys, residuals = preservation.in_float32(), keys.float(), residuals.float()

        def compressed() -> torch.Tensor:
            weight = torch.zeros(residuals.shape[1], 60)
            solve(metric, keys, residuals, 0.1).compress(metric, rank=3).apply_(weight)
            return weight

        expected = compressed()
        with torch.autocast("cpu", dtype):
            assert torch.equal(compressed(), expected)

    def test_changes_none_of_its_arguments(self) -> None:
        preservation, keys, residuals = tensors(well_conditioned(8))
        before = [tensor.clone() for tensor in (preservation.factor, keys, residuals)]
        solve(preservation, keys, residuals)
        after = (preservation.factor, keys, residuals)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (lambda p, k, r: solve(p, k[:, :9], r), ShapeError, "expected keys [..., 10], got [3, 9]"),
            (lambda p, k, r: solve(p, k, r[:2]), ShapeError, "as many residuals as keys, got 2 and 3"),
            (lambda p, k, r: solve(p, k[:0], r[:0]), ShapeError, "n > 0"),
            (lambda p, k, r: solve(p, k, r[0, 0]), ShapeError, "expected residuals [n, d_out], got [];"),
            (lambda p, k, r: solve(p, k.long(), r), ShapeError, "float64, got Long"),
            (lambda p, k, r: rome(p, k, r), ShapeError, "one key for ROME, got 3"),
            (lambda p, k, r: solve(p, k * torch.nan, r), NonFiniteError, "finite keys, got NaN in row 1 of"),
            (lambda p, k, r: solve(p, k, r / 0), NonFiniteError, "finite residuals, got Inf in row 1 of"),
            (lambda p, k, r: solve(p, k, r, ridge=-1), EmmetError, "ridge >= 0, got -1"),
            (lambda p, k, r: solve(p, k, r, ridge=float("nan")), EmmetError, "ridge >= 0, got nan"),
            (lambda p, k, r: solve(p, k, r, ridge="none"), EmmetError, 'a number >= 0 or "auto", got "none"'),
            (lambda p, k, r: solve_each(p, k, r[:2]), ShapeError, "as many residuals as keys, got 2 and 3"),
            (lambda p, k, r: solve_each(p, k / 0, r), NonFiniteError, "finite keys, got Inf in row 1 of"),
            (lambda p, k, r: memit(p, k, r, 0), EmmetError, "lambda > 0 for MEMIT, got 0"),
            (lambda p, k, r: solve(p, k[[0, 0, 1]], r, ridge=1e-20), NotPositiveDefiniteError, "use a larger ridge"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, call: Callable[..., object], error: type[EmmetError], text: str
    ) -> None:
        with pytest.raises(error, match=re.escape(text)) as caught:
            call(*tensors(well_conditioned(3)))
        assert type(caught.value) is error
        assert isinstance(caught.value, ValueError)
        assert "\n" not in str(caught.value)


class TestThreads:
    def test_same_input_gives_the_same_bytes(self) -> None:
        case = tensors(problem(np.random.default_rng(0), 200, 120, d_out=50))
        first = solve(*case).dense()
        assert all(torch.equal(solve(*case).dense(), first) for _ in range(3))

    def test_calls_at_once_give_what_calls_alone_give(self) -> None:
        cases = [tensors(problem(np.random.default_rng(n), 150, n, d_out=40)) for n in (10, 80, 150)]
        alone = [solve(*case).dense() for case in cases]
        found: list[list[torch.Tensor]] = [[] for _ in cases]

        def work(index: int) -> None:
            for _ in range(5):
                found[index].append(solve(*cases[index]).dense())

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for expected, results in zip(alone, found, strict=True):
            assert len(results) == 5
            assert all(torch.equal(result, expected) for result in results)

    def test_other_python_threads_run_meanwhile(self) -> None:
        d = 1000
        preservation = Preservation.from_second_moment(torch.eye(d, dtype=torch.float64))
        keys = torch.eye(d, dtype=torch.float64)
        assert runs_beside_python(lambda: solve(preservation, keys, keys))
