"""Updates against float64 NumPy: their two forms, their application to weights of every dtype, their files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import closed_forms
from closed_forms import Array, relative_error
from emmet import EmmetError, FormatError, NonFiniteError, Preservation, ShapeError, Update, solve

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FORMS = ["low rank", "dense"]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def update_of(form: str, rows: int = 6, columns: int = 10) -> Update:
    if form == "dense":
        return Update.from_dense(numbers(rows, columns))
    return Update.from_factors(numbers(rows, 2), numbers(2, columns, seed=1))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


class TestForms:
    @given(rows=st.integers(1, 12), columns=st.integers(1, 12), rank=st.integers(1, 12))
    @example(rows=6, columns=6, rank=3)  # of equal size: dense
    def test_keeps_the_smaller_one(self, rows: int, columns: int, rank: int) -> None:
        left, right = numbers(rows, rank), numbers(rank, columns, seed=1)
        update = Update.from_factors(left, right)
        assert update.is_low_rank == (rank * (rows + columns) < rows * columns)
        assert update.shape == (rows, columns)
        assert update.rank == (rank if update.is_low_rank else min(rows, columns))
        product = left.numpy() @ right.numpy()
        assert relative_error(update.dense().numpy(), product) < 1e-13

    def test_factors_are_those_given(self) -> None:
        update = update_of("low rank")
        assert torch.equal(update.left, numbers(6, 2))
        assert torch.equal(update.right, numbers(2, 10, seed=1))

    def test_dense_has_no_factors(self) -> None:
        update = update_of("dense")
        assert torch.equal(update.dense(), numbers(6, 10))
        for name in ("left", "right"):
            with pytest.raises(EmmetError, match=r"got a dense one; use dense\(\)"):
                getattr(update, name)

    @pytest.mark.parametrize("form", FORMS)
    def test_dense_is_the_callers_own(self, form: str) -> None:
        update = update_of(form)
        before = update.dense()
        update.dense().zero_()
        assert torch.equal(update.dense(), before)

    def test_is_float64_and_has_no_graph(self) -> None:
        left, right = numbers(6, 2).float().requires_grad_(), numbers(2, 10).requires_grad_()
        update = Update.from_factors(left, right)
        for tensor in (update.left, update.right, update.dense(), Update.from_dense(right).dense()):
            assert tensor.dtype == torch.float64
            assert not tensor.requires_grad


class TestApply:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("form", FORMS)
    def test_adds_in_place_where_the_weight_is(self, form: str, dtype: torch.dtype, device: torch.device) -> None:
        update, before = update_of(form), numbers(6, 10, seed=3).to(dtype)
        weight = before.to(device, copy=True)
        address = weight.data_ptr()
        update.apply_(weight)
        assert weight.data_ptr() == address
        torch.testing.assert_close(weight.cpu(), (before.double() + update.dense()).to(dtype))

    @given(
        form=st.sampled_from(FORMS),
        dtype=st.sampled_from(DTYPES),
        transposed=st.booleans(),
        shape=st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.just((1030, 7)),
        scale=st.sampled_from([1e-3, 1.0, 100.0]),
        contiguous=st.booleans(),
    )
    def test_adds_in_float64_and_rounds_at_the_end(
        self,
        form: str,
        dtype: torch.dtype,
        transposed: bool,
        shape: tuple[int, int],
        scale: float,
        contiguous: bool,
    ) -> None:
        update = update_of(form, *shape)
        values = (scale * numbers(*shape, seed=2)).to(dtype)
        storage = torch.ones(2 * shape[0], 3 * shape[1], dtype=dtype)
        target = values.clone() if contiguous else storage[::2, ::3].copy_(values)
        weight = target.T.contiguous().T if transposed and contiguous else target
        update.apply_(weight.T if transposed else weight, transposed=transposed)

        total = values.double().numpy() + update.dense().numpy()
        expected = torch.from_numpy(total).to(dtype)
        if dtype == torch.float64:  # a product of factors and a sum may be rounded in another order
            assert np.abs(weight.numpy() - total).max() < 1e-14 * max(1, np.abs(total).max())
        else:
            assert torch.equal(weight, expected)
        assert (storage[1::2] == 1).all()
        assert (storage[:, 1::3] == 1).all()

    def test_adds_to_linear_and_conv1d_alike(self) -> None:
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 10)  # y = x · weight, as in GPT-2
        linear = torch.nn.Linear(10, 6)
        with torch.no_grad():
            linear.weight.copy_(conv1d.weight.T)
            linear.bias.copy_(conv1d.bias)
        update, x = update_of("low rank"), torch.randn(3, 10)
        before = linear(x)
        update.apply_(linear.weight)
        update.apply_(conv1d.weight, transposed=True)
        assert torch.equal(conv1d.weight.T, linear.weight)
        change = x.double() @ update.dense().T
        assert torch.allclose(linear(x) - before, change.float(), atol=1e-5)
        assert torch.allclose(conv1d(x) - before, change.float(), atol=1e-5)

    def test_keeps_a_parameter_a_leaf_that_learns(self) -> None:
        weight = torch.nn.Parameter(torch.zeros(6, 10))
        update_of("dense").apply_(weight)
        assert torch.equal(weight.data, numbers(6, 10).float())
        assert weight.is_leaf
        weight.sum().backward()
        assert weight.grad is not None

    def test_makes_a_key_give_its_residual(self) -> None:
        preservation = Preservation.from_second_moment(torch.eye(10, dtype=torch.float64))
        keys, residuals, weight = numbers(3, 10), numbers(3, 6, seed=1), numbers(6, 10, seed=2)
        before = keys @ weight.T
        solve(preservation, keys, residuals).apply_(weight)
        assert torch.allclose(keys @ weight.T, before + residuals, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_leaves_a_weight_that_is_not_finite_as_it_is(self, form: str, dtype: torch.dtype, bad: float) -> None:
        weight = numbers(600, 10, seed=2).to(dtype)
        weight[-1, -1] = bad
        before = bits(weight)
        with pytest.raises(NonFiniteError, match="finite weight after the update"):
            update_of(form, 600, 10).apply_(weight)
        assert bits(weight) == before

    def test_leaves_a_weight_that_would_overflow_as_it_is(self) -> None:
        weight = torch.full((6, 10), 60000, dtype=torch.float16)
        before = bits(weight)
        with pytest.raises(NonFiniteError):
            Update.from_dense(torch.full((6, 10), 1e4)).apply_(weight)
        assert bits(weight) == before

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("shape", [(6, 9), (9, 6), (60,), (1, 6, 10), ()])
    def test_refuses_a_weight_of_another_shape(self, shape: tuple[int, ...], transposed: bool) -> None:
        weight = torch.ones(shape)
        with pytest.raises(ShapeError, match=r"d_out 6 and d_in 10, got \[.*check the layer and `transposed`"):
            update_of("dense").apply_(weight, transposed=transposed)
        assert (weight == 1).all()

    def test_refuses_the_other_orientation(self) -> None:
        with pytest.raises(ShapeError, match="transposed"):
            update_of("dense").apply_(torch.zeros(10, 6))
        with pytest.raises(ShapeError, match="transposed"):
            update_of("dense").apply_(torch.zeros(6, 10), transposed=True)


def best_approximation(delta: Array, moment: Array, rank: int) -> tuple[Array, Array]:
    """Of Δ in the metric of C by its singular values: L⁻¹ times what is best for ΔL. And all singular values."""
    factor = np.linalg.cholesky(moment)
    left, values, right = np.linalg.svd(delta @ factor, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ np.linalg.solve(factor.T, right[:rank].T).T, values


class TestCompress:
    MOMENT = closed_forms.moment(np.random.default_rng(0), 24, condition=1e4)
    METRIC = Preservation.from_second_moment(torch.from_numpy(MOMENT))

    @given(seed=st.integers(0, 100), d_out=st.sampled_from([4, 30]), edits=st.integers(1, 20), rank=st.integers(1, 22))
    def test_is_the_best_of_its_rank_in_the_metric(self, seed: int, d_out: int, edits: int, rank: int) -> None:
        update = Update.from_factors(numbers(d_out, edits, seed=seed), numbers(edits, 24, seed=seed + 1000))
        compressed = update.compress(self.METRIC, rank=rank)
        expected, values = best_approximation(update.dense().numpy(), self.MOMENT, rank)
        assert relative_error(compressed.dense().numpy(), expected) < 1e-9
        lost = self.METRIC.cost(update.dense() - compressed.dense())
        assert lost == pytest.approx(np.square(values[rank:]).sum(), abs=1e-12 * np.square(values).sum())
        if compressed.is_low_rank:
            assert compressed.rank == min(rank, edits, d_out)

    def test_is_not_the_plain_singular_value_decomposition(self) -> None:
        update = Update.from_dense(numbers(30, 24))
        left, values, right = torch.linalg.svd(update.dense(), full_matrices=False)
        plain = (left[:, :5] * values[:5]) @ right[:5]
        cost = self.METRIC.cost(update.dense() - update.compress(self.METRIC, rank=5).dense())
        assert cost < 0.5 * self.METRIC.cost(update.dense() - plain)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("tolerance", [0.0, 1e-3, 0.1, 0.5, 0.99])
    def test_takes_the_least_rank_within_a_tolerance(self, form: str, tolerance: float) -> None:
        scales = torch.logspace(0, -4, 9, dtype=torch.float64)
        left, right = numbers(30, 9) * scales, numbers(9, 24, seed=1)
        update = Update.from_factors(left, right) if form == "low rank" else Update.from_dense(left @ right)
        compressed = update.compress(self.METRIC, tolerance=tolerance).dense()
        _, values = best_approximation(update.dense().numpy(), self.MOMENT, 1)
        lost = np.sqrt([np.square(values[rank:]).sum() for rank in range(len(values))] / np.square(values).sum())
        rank = int(np.linalg.matrix_rank(compressed.numpy(), tol=1e-12 * float(compressed.norm())))
        assert rank == max(1, int(np.argmax(lost <= max(tolerance, 1e-14))))
        cost = self.METRIC.cost(update.dense() - compressed) / self.METRIC.cost(update.dense())
        assert cost <= max(tolerance, 1e-12) ** 2

    def test_of_the_full_rank_is_the_update(self) -> None:
        for form in FORMS:
            update = update_of(form, 30, 24)
            for limit in ({"rank": 100}, {"tolerance": 0.0}):
                compressed = update.compress(self.METRIC, **limit)
                assert relative_error(compressed.dense().numpy(), update.dense().numpy()) < 1e-11

    def test_says_how_it_misses_the_edits(self) -> None:
        keys, residuals = numbers(8, 24), numbers(8, 30, seed=1)
        update = solve(self.METRIC, keys, residuals)
        assert update.constraint_residual(keys, residuals) < 1e-12
        compressed = update.compress(self.METRIC, rank=3)
        missed = keys.numpy() @ compressed.dense().numpy().T - residuals.numpy()
        expected = np.linalg.norm(missed) / np.linalg.norm(residuals.numpy())
        assert compressed.constraint_residual(keys, residuals) == pytest.approx(expected, rel=1e-9)
        assert expected > 0.1
        assert compressed.diagnostics.to_dict() == update.diagnostics.to_dict()
        assert update.constraint_residual(keys[0], torch.zeros(30)) == 0

    def test_of_an_update_in_a_null_space_stays_there(self) -> None:
        threshold = 0.1
        metric = Preservation.null_space(torch.from_numpy(self.MOMENT), threshold)
        update = solve(metric, numbers(8, 24), numbers(8, 30, seed=1), ridge=1.0)
        compressed = update.compress(metric, rank=3).dense().numpy()
        left, values, right = np.linalg.svd(update.dense().numpy())  # the metric is the identity there
        assert relative_error(compressed, (left[:, :3] * values[:3]) @ right[:3]) < 1e-10
        with pytest.raises(EmmetError, match="expected an update inside the null space of the metric"):
            update_of("dense", 30, 24).compress(metric, rank=3)

    @pytest.mark.parametrize(
        ("limit", "text"),
        [
            ({}, "expected a rank or a tolerance, got neither"),
            ({"rank": 1, "tolerance": 0.1}, "got both"),
            ({"rank": 0}, "expected a rank of at least 1, got 0"),
            ({"tolerance": 1.0}, "expected a tolerance from 0 to below 1, got 1"),
            ({"tolerance": float("nan")}, "got nan"),
            ({"rank": 1}, "delta [..., 24], got [6, 10]"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, limit: dict[str, Any], text: str) -> None:
        with pytest.raises(EmmetError, match=re.escape(text)):
            update_of("dense").compress(self.METRIC, **limit)
        with pytest.raises(ShapeError, match="as many residuals as keys, got 2 and 3"):
            update_of("dense").constraint_residual(numbers(3, 10), numbers(2, 6))


class TestInput:
    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (lambda: Update.from_factors(torch.ones(6, 2), torch.ones(3, 9)), ShapeError, "got [6, 2] and [3, 9]"),
            (lambda: Update.from_factors(torch.ones(6), torch.ones(1, 9)), ShapeError, "left with two dimensions"),
            (lambda: Update.from_factors(torch.ones(6, 1), torch.ones(9)), ShapeError, "right with two dimensions"),
            (lambda: Update.from_factors(torch.ones(6, 1), torch.ones(1, 9).int()), ShapeError, "got Int"),
            (lambda: Update.from_factors(torch.ones(2, 1) / 0, torch.ones(1, 2)), NonFiniteError, "finite left"),
            (
                lambda: Update.from_factors(torch.ones(6, 0), torch.ones(0, 9)),
                ShapeError,
                "neither of size 0, got [6, 0]",
            ),
            (lambda: Update.from_dense(torch.ones(6)), ShapeError, "dense with two dimensions"),
            (lambda: Update.from_dense(torch.ones(2, 2) * torch.nan), NonFiniteError, "finite dense, got NaN in row 1"),
            (lambda: update_of("dense").apply_(torch.ones(6, 10).int()), ShapeError, "weight of float16"),
            (lambda: update_of("dense").save("/nowhere/update"), EmmetError, "/nowhere/update"),
            (lambda: Update.load("/nowhere/update"), EmmetError, "/nowhere/update"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, call: Callable[[], object], error: type[EmmetError], text: str
    ) -> None:
        with pytest.raises(error, match=re.escape(text)) as caught:
            call()
        assert type(caught.value) is error
        assert isinstance(caught.value, ValueError)
        assert "\n" not in str(caught.value)


class TestFile:
    @pytest.mark.parametrize("edits", [2, 12])  # low rank and dense
    def test_is_read_back_to_the_bit(self, tmp_path: Path, edits: int) -> None:
        preservation = Preservation.from_second_moment(torch.eye(10, dtype=torch.float64))
        saved = solve(preservation, numbers(edits, 10), numbers(edits, 6, seed=1), ridge=1 / 3)
        assert saved.is_low_rank == (edits == 2)
        saved.save(tmp_path / "update")
        loaded = Update.load(tmp_path / "update")
        assert loaded.is_low_rank == saved.is_low_rank
        assert torch.equal(loaded.dense(), saved.dense())
        assert loaded.diagnostics.to_dict() == saved.diagnostics.to_dict()
        assert loaded.diagnostics.seconds_system == 0 < saved.diagnostics.seconds_system

    @pytest.mark.parametrize("form", FORMS)
    def test_cut_short_is_refused(self, tmp_path: Path, form: str) -> None:
        path = tmp_path / "update"
        update_of(form).save(path)
        content = path.read_bytes()
        for length in (0, 7, 40, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(FormatError, match=str(path)):
                Update.load(path)

    def test_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "metric"
        Preservation.from_second_moment(torch.eye(4)).save(path)
        with pytest.raises(FormatError, match=r"of format emmet\.update\.1, got emmet\.preservation\.2"):
            Update.load(path)


def test_a_file_of_empty_factors_with_huge_sides_is_refused() -> None:
    corpus = Path(__file__).parents[1] / "fuzz" / "corpus"
    with pytest.raises(FormatError, match="expected entries in the matrix 'left', got the shape"):
        Update.load(corpus / "empty-factors")
