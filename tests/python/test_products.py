"""Products by oneDNN are torch's, with their gradients, and leave no trace in a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from emmet import products
from emmet._core import linear, prefers_onednn
from emmet.products import quick_products
from tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of weights that products are computed with by oneDNN, on a CPU that prefers it."""
    seen: list[torch.Size] = []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(weight.shape)
        return linear(x, weight, bias)

    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "linear", watched)
    return seen


def logits_and_gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), embedded)
    return logits.detach(), gradient


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])  # without biases, by columns, and with biases
def test_logits_and_gradients_are_torchs(family, calls):
    model = tiny_model(family, vocab_size=50).requires_grad_(False)
    expected = logits_and_gradient(model)
    assert not calls
    with quick_products(model):
        found = logits_and_gradient(model)
    assert len(calls) > 2 * model.config.num_hidden_layers
    torch.testing.assert_close(found, expected)


def test_no_trace_is_left():
    model = tiny_model("llama", vocab_size=50)
    with quick_products(model):
        with pytest.raises(KeyboardInterrupt), quick_products(model):
            raise KeyboardInterrupt
        assert "forward" in vars(model.lm_head)  # the outer one still holds
    assert not any("forward" in vars(module) for module in model.modules())


class Doubled(nn.Linear):
    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


def replaced() -> nn.Linear:
    module = nn.Linear(4, 3)
    vars(module)["forward"] = lambda states: states
    return module


@pytest.mark.parametrize("make", [lambda: Doubled(4, 3), lambda: nn.Linear(4, 3).double(), replaced])
def test_other_modules_are_left_alone(make, calls):
    module = make().requires_grad_(False)
    states = torch.randn(2, 4, dtype=module.weight.dtype)
    expected = module(states)
    with quick_products(module):
        assert torch.equal(module(states), expected)
    assert not calls


@pytest.mark.parametrize("change", [lambda x: x.clamp_(-0.5, 0.5), lambda x: x.mul_(2)])
def test_what_it_gives_can_be_changed_in_place(change):
    module = nn.Linear(4, 3).requires_grad_(False)
    states = torch.randn(1, 2, 4, requires_grad=True)
    expected = torch.autograd.grad(change(module(states)).sum(), states)
    with quick_products(module):
        found = torch.autograd.grad(change(module(states)).sum(), states)
    torch.testing.assert_close(found, expected)


def test_weights_that_need_gradients_get_them(calls):
    module = nn.Linear(4, 3)
    with quick_products(module):
        module(torch.randn(2, 4)).sum().backward()
    assert module.weight.grad is not None
    assert not calls


def test_no_rows_and_named_arguments():
    module = nn.Linear(4, 3).requires_grad_(False)
    with quick_products(module):
        assert module(torch.randn(2, 0, 4)).shape == (2, 0, 3)
        assert module(input=torch.randn(2, 4)).shape == (2, 3)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # to flip the switch is enough for it
def test_torchs_switch_is_heeded():
    with torch.backends.mkldnn.flags(enabled=False):
        assert not prefers_onednn()


def test_autocast_is_heeded(calls):
    module = nn.Linear(4, 3).requires_grad_(False)
    with quick_products(module), torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(2, 4)).dtype == torch.bfloat16
    assert not calls


def test_a_cpu_that_does_not_prefer_it_goes_on_as_before(calls, monkeypatch):
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)
    module = nn.Linear(4, 3).requires_grad_(False)
    with quick_products(module):
        module(torch.randn(2, 4))
    assert not calls
