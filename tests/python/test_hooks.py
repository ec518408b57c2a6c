from __future__ import annotations

import pytest
import torch
from torch import nn

from emmet.hooks import at_positions, frozen, hidden_states, on_input, on_output, raw_outputs, start_above, stop_after
from tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


class SomeError(Exception):
    pass


@pytest.fixture
def model():
    return tiny_model("llama", vocab_size=50)


def traces(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules())


def test_inputs_and_outputs_are_seen_and_replaced(model):
    layer = model.model.layers[1].mlp.down_proj
    seen, put_out = [], []
    with torch.no_grad(), on_input(layer, seen.append), on_output(layer, put_out.append):
        model(IDS)
    torch.testing.assert_close(seen[0] @ layer.weight.T, put_out[0])
    with torch.no_grad(), on_input(layer, torch.zeros_like), on_output(layer, put_out.append):
        model(IDS)
    assert put_out[1].abs().max() == 0
    with torch.no_grad(), on_output(layer, lambda value: value * 0 + 3), raw_outputs(layer) as raw:
        model(IDS)
    assert (raw[0] == 3).all()
    assert traces(model) == 0


def test_tuples_keep_their_form():
    class Layer(nn.Module):
        def forward(self, hidden):
            return hidden, "more"

    layer = Layer()
    with on_output(layer, lambda hidden: hidden + 1):
        output = layer(torch.zeros(2))
    assert output[1] == "more"
    assert hidden_states(output).tolist() == [1, 1]


def test_a_pass_stops_after_a_module_and_only_such_an_end_is_swallowed(model):
    reached = []
    with on_output(model.model.layers[2], reached.append), stop_after(model.model.layers[1]):
        model(IDS)
    assert reached == []
    with pytest.raises(SomeError), stop_after(model.model.layers[1]):
        raise SomeError
    assert traces(model) == 0


def test_a_pass_starts_above_the_skipped_layers(model):
    hidden = []
    with torch.no_grad():
        with on_output(model.model.layers[1], hidden.append):
            expected = model(IDS).logits
        with start_above(list(model.model.layers)[:2], hidden[0], as_tuple=False):
            found = model(torch.zeros_like(IDS)).logits
    torch.testing.assert_close(found, expected)
    with pytest.raises(SomeError), start_above(list(model.model.layers), hidden[0], as_tuple=False):
        raise SomeError
    assert traces(model) == 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the latter caps its logits
def test_logits_only_where_they_are_read(family):
    model = tiny_model(family, vocab_size=50)
    rows, columns = torch.tensor([1, 0, 1]), torch.tensor([3, 0, 2])
    with torch.no_grad():
        expected = model(IDS).logits[rows, columns]
        with at_positions(model.lm_head, rows, columns):
            found = model(IDS).logits
    assert found.shape == (1, 3, 50)
    torch.testing.assert_close(found[0], expected)


def test_frozen_restores_modes_and_gradient_flags(model):
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [weight.requires_grad for weight in model.parameters()]
    with torch.no_grad(), frozen(model):
        assert torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        assert not any(weight.requires_grad for weight in model.parameters())
    with pytest.raises(SomeError), frozen(model):
        raise SomeError
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == flags
