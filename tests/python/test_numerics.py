"""The solver on ill-scaled and ill-conditioned input, against 80 digits: a right answer or a typed error, never NaN."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch

import closed_forms
from closed_forms import Array, Problem, problem, singles, tolerance
from emmet import DependentKeysError, EmmetError, NonFiniteError, Preservation, Update, solve, solve_each

D = 6
SCALES = [1e-8, 1e-4, 1.0, 1e4, 1e8]
CONDITIONS = [1.0, 1e4, 1e8, 1e10, 1e12, 1e14]
CONSTRAINT = 1e-6  # what `solve` promises without a ridge


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(80):
        yield


def metric_of(case: Problem) -> tuple[Preservation, Array]:
    """The metric, and the second moment that it stands for: the given one, and the jitter on its diagonal."""
    metric = Preservation.from_second_moment(torch.from_numpy(case.moment))
    return metric, case.moment + metric.jitter * np.mean(np.diag(case.moment)) * np.eye(len(case.moment))


def solved(metric: Preservation, case: Problem, ridge: float) -> Update:
    return solve(metric, torch.from_numpy(case.keys), torch.from_numpy(case.residuals), ridge)


def exact(moment: Array, case: Problem, ridge: float) -> mpmath.matrix:
    """Δ = R (KᵀC⁻¹K + μI)⁻¹ KᵀC⁻¹, with keys and residuals as rows."""
    keys, residuals = mpmath.matrix(case.keys.tolist()), mpmath.matrix(case.residuals.tolist())
    inverse = mpmath.inverse(mpmath.matrix(moment.tolist()))
    system = keys * inverse * keys.T + mpmath.mpf(ridge) * mpmath.eye(len(case.keys))
    return residuals.T * mpmath.inverse(system) * keys * inverse


def distance(found: Array, expected: mpmath.matrix) -> float:
    """‖found − expected‖ / ‖expected‖ in the Frobenius norm."""
    norm = mpmath.mnorm(expected, "f")
    return (
        float(mpmath.mnorm(mpmath.matrix(found.tolist()) - expected, "f") / norm)
        if norm
        else float(np.abs(found).max())
    )


def violation(found: Array, case: Problem) -> float:
    """‖ΔK − R‖ / ‖R‖."""
    keys, residuals = mpmath.matrix(case.keys.tolist()), mpmath.matrix(case.residuals.tolist())
    error = mpmath.mnorm(mpmath.matrix(found.tolist()) * keys.T - residuals.T, "f")
    return float(error / mpmath.mnorm(residuals, "f"))


@pytest.mark.parametrize("n", [1, 3, D])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_constraints_hold_to_what_is_promised(condition: float, n: int) -> None:
    for scale, size in itertools.product(SCALES, SCALES):
        case = problem(np.random.default_rng(n), D, n, d_out=4, condition=condition)
        case = Problem(size * case.moment, scale * case.keys, case.residuals)
        metric, moment = metric_of(case)
        gram = case.keys @ np.linalg.solve(moment, case.keys.T)
        try:
            found = solved(metric, case, 0.0).dense().numpy()
        except DependentKeysError:
            assert closed_forms.condition(gram) > 1e11, "refused keys that can be told apart"
            continue
        assert np.isfinite(found).all()
        assert violation(found, case) < CONSTRAINT
        assert distance(found, exact(moment, case, 0.0)) < tolerance(moment, gram)


@pytest.mark.parametrize("n", [1, 3, D, D + 1, 2 * D])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_ridge_gives_the_minimiser(condition: float, n: int) -> None:
    for scale, ridge in itertools.product(SCALES, [1e-6, 1.0, 1e6]):
        case = problem(np.random.default_rng(n), D, n, d_out=4, condition=condition)
        case = Problem(case.moment, scale * case.keys, case.residuals)
        metric, moment = metric_of(case)
        system = case.keys @ np.linalg.solve(moment, case.keys.T) + ridge * np.eye(n)
        try:
            found = solved(metric, case, ridge).dense().numpy()
        except EmmetError:
            assert closed_forms.condition(system) > 1e11, "refused a system that is definite"
            continue
        assert np.isfinite(found).all()
        assert distance(found, exact(moment, case, ridge)) < tolerance(moment, system)


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_edits_alone_are_as_exact(condition: float, ridge: float) -> None:
    for scale in SCALES:
        case = problem(np.random.default_rng(3), D, 3, d_out=4, condition=condition)
        case = Problem(case.moment, scale * case.keys, case.residuals)
        metric, moment = metric_of(case)
        updates = solve_each(metric, torch.from_numpy(case.keys), torch.from_numpy(case.residuals), ridge)
        for one, update in zip(singles(case), updates, strict=True):
            assert distance(update.dense().numpy(), exact(moment, one, ridge)) < tolerance(moment)
            if ridge == 0:
                assert violation(update.dense().numpy(), one) < CONSTRAINT


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("copies", [2, 4])
def test_keys_that_are_the_same_are_named(scale: float, copies: int) -> None:
    case = problem(np.random.default_rng(0), D, 5)
    rows = [0] * copies + [1, 2]
    case = Problem(case.moment, scale * case.keys[rows], case.residuals[np.arange(len(rows)) % 5])
    with pytest.raises(DependentKeysError) as caught:
        solved(metric_of(case)[0], case, 0.0)
    assert caught.value.groups == [list(range(copies))]


@pytest.mark.parametrize("n", [1, D, D + 1])
@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_no_residual_is_no_update(n: int, ridge: float) -> None:
    case = problem(np.random.default_rng(n), D, n)
    case = Problem(case.moment, case.keys, np.zeros_like(case.residuals))
    if n > D and ridge == 0:
        with pytest.raises(DependentKeysError, match="7 edits in 6 dimensions"):
            solved(metric_of(case)[0], case, ridge)
        return
    update = solved(metric_of(case)[0], case, ridge)
    assert not update.dense().any()
    assert update.diagnostics.constraint_residual == 0


# Beyond what float64 can square, or holds with all digits.
EXTREMES = [5e-324, 1e-310, 1e-200, 1e-160, 1e-150, 1e150, 1e155, 1e200, 1e300]
WITHIN_RANGE = [1e-150, 1e150]


def assert_says_what_is_wrong(error: EmmetError, extreme: float) -> None:
    assert extreme not in WITHIN_RANGE
    assert str(error).startswith("expected ")  # not what torch says


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("of", ["moment", "keys", "residuals"])
@pytest.mark.parametrize("ridge", [0.0, 1.0, "auto"])
def test_extremes_give_the_right_update_or_an_error(of: str, extreme: float, ridge: float | str) -> None:
    case = problem(np.random.default_rng(0), D, 3)
    parts = {"moment": case.moment, "keys": case.keys, "residuals": case.residuals}
    case = Problem(**parts | {of: extreme * parts[of]})
    weight = torch.zeros(4, D, dtype=torch.float64)
    try:
        metric, moment = metric_of(case)
        update = solve(metric, torch.from_numpy(case.keys), torch.from_numpy(case.residuals), ridge)
        update.apply_(weight)
    except EmmetError as error:
        assert_says_what_is_wrong(error, extreme)
        assert not weight.any()
        return
    assert weight.isfinite().all()
    expected = exact(moment, case, update.diagnostics.ridge)
    smallest = 1e-300  # where products of parts fall below the normal numbers, digits are lost
    assert np.abs(weight.numpy() - np.array(expected.tolist(), dtype=float)).max() < smallest or (
        distance(weight.numpy(), expected) < 1e-6
    )


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("of", ["moment", "keys", "residuals"])
@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_extremes_of_edits_alone(of: str, extreme: float, ridge: float) -> None:
    case = problem(np.random.default_rng(0), D, 3)
    parts = {"moment": case.moment, "keys": case.keys, "residuals": case.residuals}
    case = Problem(**parts | {of: extreme * parts[of]})
    try:
        metric, moment = metric_of(case)
        updates = solve_each(metric, torch.from_numpy(case.keys), torch.from_numpy(case.residuals), ridge)
    except EmmetError as error:
        assert_says_what_is_wrong(error, extreme)
        return
    for one, update in zip(singles(case), updates, strict=True):
        found, expected = update.dense().numpy(), exact(moment, one, ridge)
        assert np.isfinite(found).all()
        smallest = 1e-300  # where products of parts fall below the normal numbers, digits are lost
        assert np.abs(found - np.array(expected.tolist(), dtype=float)).max() < smallest or (
            distance(found, expected) < 1e-6
        )


@pytest.mark.parametrize(("n", "ridge"), [(3, 0.0), (3, 1.0), (3, "auto"), (D + 1, 1.0), (D + 1, "auto")])
@pytest.mark.parametrize("of", ["keys", "residuals"])
def test_an_overflow_is_called_so(of: str, ridge: float | str, n: int) -> None:
    case = problem(np.random.default_rng(0), D, n)
    keys, residuals = (
        torch.from_numpy((1e200 if name == of else 1) * getattr(case, name)) for name in ("keys", "residuals")
    )
    with pytest.raises(NonFiniteError, match=f"squared lengths of the {of} .*got an overflow; scale the input"):
        solve(metric_of(case)[0], keys, residuals, ridge)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_update_beyond_the_weights_dtype_changes_nothing(dtype: torch.dtype) -> None:
    case = problem(np.random.default_rng(0), D, 3)
    case = Problem(case.moment, case.keys, 1e40 * case.residuals)
    weight = torch.ones(4, D, dtype=dtype)
    with pytest.raises(NonFiniteError):
        solved(metric_of(case)[0], case, 0.0).apply_(weight)
    assert torch.equal(weight, torch.ones(4, D, dtype=dtype))


@pytest.mark.parametrize("n", [1, D])
def test_subnormal_entries_among_normal_ones(n: int) -> None:
    case = problem(np.random.default_rng(n), D, n)
    case.keys[0, 0], case.residuals[0, 0] = 5e-324, -1e-310
    metric, moment = metric_of(case)
    found = solved(metric, case, 0.0).dense().numpy()
    assert distance(found, exact(moment, case, 0.0)) < 1e-10
