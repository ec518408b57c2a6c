"""Second moments of keys against float64 NumPy."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emmet import Covariance, EmmetError, NonFiniteError, ShapeError
from threads import runs_beside_python

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Units of rounding in which products of these dtypes are summed, 4096 rows at a time at most.
ROUNDING = {dtype: 2.0**-53 if dtype == torch.float64 else 2.0**-24 for dtype in DTYPES}


def random_keys(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    # With a mean, as activations have: sums then grow with the number of rows.
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape) + 0.5).to(dtype)


def moment_of(keys: torch.Tensor, mask: torch.Tensor | None = None) -> Covariance:
    moment = Covariance(keys.shape[-1])
    moment.add(keys, mask)
    return moment


def assert_sum(found: torch.Tensor, keys: torch.Tensor) -> None:
    """The sum is XᵀX but for what rounding may do to a sum of as many products: √rows units, 8 for the tails."""
    rows = keys.reshape(-1, keys.shape[-1]).double().numpy()
    bound = 8 * np.sqrt(min(len(rows), 4096)) * ROUNDING[keys.dtype] * (np.abs(rows).T @ np.abs(rows))
    assert found.dtype == torch.float64
    assert torch.equal(found, found.mT)
    assert (np.abs(found.numpy() - rows.T @ rows) <= bound).all()


class TestSum:
    @given(
        dtype=st.sampled_from(DTYPES),
        rows=st.integers(1, 60) | st.just(5000),
        dim=st.integers(1, 30) | st.sampled_from([256, 257, 300]),
        scale=st.sampled_from([1e-2, 1.0, 100.0]),
    )
    def test_is_that_of_outer_products(self, dtype: torch.dtype, rows: int, dim: int, scale: float) -> None:
        keys = (scale * random_keys(rows, dim)).to(dtype)
        moment = moment_of(keys)
        assert_sum(moment.sum(), keys)
        assert moment.count() == rows
        assert torch.equal(moment.second_moment(), moment.sum() / rows)

    @given(cuts=st.lists(st.integers(0, 50), max_size=4).map(sorted), seed=st.integers(0, 9))
    def test_does_not_depend_on_how_keys_are_handed_over(self, cuts: list[int], seed: int) -> None:
        keys = random_keys(50, 12, seed=seed)
        added, merged = Covariance(12), Covariance(12)
        for part in torch.tensor_split(keys, cuts):
            added.add(part)
            merged.merge(moment_of(part))
        for moment in (added, merged):
            assert_sum(moment.sum(), keys)
            assert moment.count() == 50

    @given(selected=st.lists(st.booleans(), min_size=12, max_size=12), dtype=st.sampled_from([torch.bool, torch.long]))
    def test_counts_only_what_the_mask_selects(self, selected: list[bool], dtype: torch.dtype) -> None:
        keys, chosen = random_keys(3, 4, 8), torch.tensor(selected).view(3, 4)
        keys[~chosen] = torch.nan  # what is not selected is not even looked at
        moment = moment_of(keys, chosen.to(dtype))
        assert moment.count() == sum(selected)
        assert_sum(moment.sum(), keys[chosen])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_summed_where_the_keys_are(self, dtype: torch.dtype, device: torch.device) -> None:
        keys, mask = random_keys(40, 300, dtype=dtype), torch.arange(40) % 3 > 0
        moment = Covariance(300, device)
        moment.add(keys.to(device), mask.to(device))
        assert moment.device == moment.sum().device == device
        assert_sum(moment.sum().cpu(), keys[mask])

    def test_continues_from_a_sum(self) -> None:
        first, second = random_keys(20, 8), random_keys(30, 8, seed=1)
        start = moment_of(first)
        resumed = Covariance.from_sum(start.sum(), start.count())
        resumed.add(second)
        start.add(second)
        assert torch.equal(resumed.sum(), start.sum())
        assert resumed.count() == 50

    def test_is_of_keys_as_they_were(self) -> None:
        keys = random_keys(20, 8)
        moment = moment_of(keys)
        before = moment.sum()
        keys.zero_()
        moment.sum().zero_()
        assert torch.equal(moment.sum(), before)

    def test_takes_keys_of_a_graph_and_of_inference_mode(self) -> None:
        keys = random_keys(20, 8)
        with torch.inference_mode():
            moment = moment_of(keys.clone())
        moment.add(keys.requires_grad_())
        assert not moment.sum().requires_grad
        assert_sum(moment.sum(), torch.cat([keys, keys]).detach())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_is_the_same_in_autocast(self, dtype: torch.dtype) -> None:
        keys = 300 * random_keys(300, 40, dtype=torch.float32)  # whose squares overflow in float16
        with torch.autocast("cpu", dtype):
            found = moment_of(keys).sum()
        assert_sum(found, keys)

    def test_has_a_size(self) -> None:
        moment = Covariance(8, device=torch.device("cpu"))
        assert (moment.dim, moment.count(), moment.device) == (8, 0, torch.device("cpu"))


class TestInput:
    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (lambda _: Covariance(0), ShapeError, "positive width of keys, got 0"),
            (lambda _: Covariance(4, device="nowhere"), EmmetError, "nowhere"),
            (lambda _: Covariance(4).second_moment(), EmmetError, "at least one key, got none"),
            (lambda m: m.add(torch.ones(3, 5)), ShapeError, "keys [..., 4], got [3, 5]"),
            (lambda m: m.add(torch.ones(3, 4).long()), ShapeError, "got Long"),
            (lambda m: m.add(torch.tensor([[0, 0, 0, 0], [0, 0, torch.nan, 0]])), NonFiniteError, "got NaN in row 2"),
            (lambda m: m.add(torch.full((2, 4), -torch.inf)), NonFiniteError, "got Inf in row 1 of 2;"),
            (lambda m: m.add(torch.ones(3, 4), torch.ones(4).bool()), ShapeError, "a mask [3]"),
            (lambda m: m.add(torch.ones(3, 4, device="meta")), ShapeError, "keys on cpu, got meta"),
            (lambda m: m.add(torch.ones(3, 4), torch.ones(3, device="meta").bool()), ShapeError, "mask on cpu, got"),
            (lambda m: m.add(torch.ones(3, 4), torch.ones(3)), ShapeError, "a mask of booleans or integers"),
            (lambda m: m.merge(Covariance(5)), ShapeError, "keys of width 4, got 5"),
            (lambda m: Covariance.from_sum(m.sum()[:2], 3), ShapeError, "expected sum [d, d], got [2, 4]"),
            (lambda m: Covariance.from_sum(m.sum() * torch.nan, 3), NonFiniteError, "finite sum"),
            (lambda m: Covariance.from_sum(m.sum().triu(), 3), ShapeError, "expected a symmetric sum, got one"),
            (lambda m: Covariance.from_sum(m.sum(), 0), EmmetError, "number of keys behind the sum, got 0"),
        ],
    )
    def test_says_in_one_line_what_is_wrong_and_adds_nothing(
        self, call: Callable[[Covariance], object], error: type[EmmetError], text: str
    ) -> None:
        moment = moment_of(random_keys(3, 4))
        before = moment.sum()
        with pytest.raises(error, match=re.escape(text)) as caught:
            call(moment)
        assert type(caught.value) is error
        assert isinstance(caught.value, ValueError)
        assert "\n" not in str(caught.value)
        assert torch.equal(moment.sum(), before)
        assert moment.count() == 3


def test_other_python_threads_run_while_it_is_made() -> None:
    assert runs_beside_python(lambda: Covariance(6000))
