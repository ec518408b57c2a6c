"""The factors of an update: they give it back, are balanced, and as few as can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_delta import random_update

from emmet import Update
from emmet.export.lora import factorise


@pytest.mark.parametrize("imbalance", [1e-9, 1.0, 1e9])
def test_factors_give_the_update_and_share_its_scale(imbalance):
    update = random_update(30, 70, rank=5, imbalance=imbalance)
    a, b = factorise(update)
    np.testing.assert_allclose(b @ a, update.left.numpy() @ update.right.numpy(), atol=1e-14)
    np.testing.assert_allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-12)
    in_half = b.half().double() @ a.half().double()  # entries of 2⁻¹¹ relative error, so products of twice that
    assert (in_half - update.dense()).norm() < 2 * 2**-11 * update.dense().norm()


@pytest.mark.parametrize("form", [Update.from_dense, lambda dense: Update.from_factors(dense, torch.eye(70))])
def test_factors_are_as_few_as_the_update_allows(form):
    dense = random_update(30, 70, rank=5).dense()
    factors = factorise(form(dense))
    assert factors.rank == 5
    np.testing.assert_allclose(factors.b @ factors.a, dense, atol=1e-14)


def test_repeated_directions_need_one_factor():
    update = random_update(30, 70, rank=3)
    twice = Update.from_factors(torch.cat([update.left, update.left], 1), torch.cat([update.right, update.right]))
    factors = factorise(twice)
    assert factors.rank == 3
    np.testing.assert_allclose(factors.b @ factors.a, 2 * update.dense(), atol=1e-14)


def test_padding_adds_zeros_and_rounds_to_float32():
    factors = factorise(random_update(30, 70, rank=3))
    a, b = factors.padded(8)
    assert (a.shape, b.shape) == ((8, 70), (30, 8))
    assert a.dtype == b.dtype == torch.float32
    assert torch.equal(a[:3], factors.a.float())
    assert torch.equal(b[:, :3], factors.b.float())
    assert not a[3:].any()
    assert not b[:, 3:].any()


def test_an_update_of_zeros_has_factors_of_zeros():
    a, b = factorise(Update.from_dense(torch.zeros(30, 70))).padded(1)
    assert torch.equal(b @ a, torch.zeros(30, 70))
