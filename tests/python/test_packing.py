"""Linear modules compute the real tokens of a padded batch as they would have, and nothing comes of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from emmet.packing import linear_modules, without_padding

FEW = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
MASK = FEW.repeat(6, 1)
REAL = MASK.bool()


@pytest.fixture(params=["Linear", "Conv1D"])
def linear(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 7) if request.param == "Linear" else Conv1D(7, 5)


def states(fill: float = 0.0) -> Tensor:
    filled = torch.randn(18, 4, 5, generator=torch.Generator().manual_seed(1))
    filled[~REAL] = fill
    return filled.requires_grad_()


def test_real_tokens_and_their_gradients_are_as_without(linear: nn.Module) -> None:
    padded, packed = states(), states()
    upstream = torch.randn(18, 4, 7, generator=torch.Generator().manual_seed(2)) * MASK.unsqueeze(-1)
    expected = linear(padded)
    with without_padding([linear], MASK):
        found = linear(packed)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[REAL], expected[REAL])
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(packed.grad, padded.grad)


def test_padding_is_not_computed_and_stays_finite(linear: nn.Module) -> None:
    computed: list[torch.Size] = []
    inner = linear.forward
    linear.forward = lambda tokens: (computed.append(tokens.shape), inner(tokens))[1]
    packed = states(fill=float("nan"))
    with without_padding([linear], MASK):
        found = linear(packed)
    assert computed == [(1, 48, 5)]
    assert found.isfinite().all()
    found.sum().backward()
    assert (packed.grad[~REAL] == 0).all()


def test_few_tokens_are_computed_as_they_come(linear: nn.Module) -> None:
    tokens = torch.randn(3, 4, 5)
    expected = linear(tokens)
    with without_padding([linear], FEW):
        assert torch.equal(linear(tokens), expected)


def test_other_shapes_are_computed_as_they_come(linear: nn.Module) -> None:
    tokens = torch.randn(72, 5)
    expected = linear(tokens)
    with without_padding([linear], MASK):
        assert torch.equal(linear(tokens), expected)


def test_modules_are_as_before_afterwards(linear: nn.Module) -> None:
    with without_padding([linear], torch.ones(18, 4)):
        assert "forward" not in vars(linear)  # there is no padding to leave out
    with pytest.raises(KeyError), without_padding([linear], MASK):
        raise KeyError
    assert "forward" not in vars(linear)


def test_linear_modules_are_found_at_any_depth() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    parts = [nn.Sequential(inner, Conv1D(2, 2)), nn.Linear(2, 2)]
    assert linear_modules(parts) == [inner[0], parts[0][1], parts[1]]
