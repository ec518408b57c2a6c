"""A packed forward pass gives each token what a pass over its row alone gives, and computes no padding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emmet.architectures import discover
from emmet.hooks import on_input
from emmet.packing import Layout, PastLayer, can_pack
from emmet.tokens import pad_rows
from tiny import FAMILIES, PADDED_ATTENTION, SLIDING_WINDOW, tiny_model

VOCABULARY = 64
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
TOKENS = sum(map(len, ROWS))


def tiny(family: str = "llama", attention: str | None = None) -> PreTrainedModel:
    model = tiny_model(family, vocab_size=VOCABULARY, attn_implementation=attention)
    return model.requires_grad_(False)


def layout_of(model: PreTrainedModel, rows: Sequence[Sequence[int]] = ROWS) -> Layout:
    return Layout(model.base_model, *pad_rows(rows), packs=can_pack(model.base_model))


def logits(model: PreTrainedModel, layout: Layout) -> Tensor:
    """Padded [rows, tokens, vocab]."""
    with layout.attention():
        found: Tensor = model(**layout.inputs(model)).logits
    return layout.unpack(found)


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_as_it_is_alone(family: str, attention: str | None) -> None:
    model = tiny(family, attention)
    layout = layout_of(model)
    assert layout.rows == (len(ROWS) if family in PADDED_ATTENTION else 1)
    found = logits(model, layout)
    for row, of_row in zip(ROWS, found, strict=True):
        expected = model(torch.tensor([row])).logits[0]
        torch.testing.assert_close(of_row[: len(row)], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_are_as_of_rows_alone(family: str) -> None:
    model = tiny(family)
    layout = layout_of(model)
    weight = discover(model).projection(1).weight.requires_grad_()
    (found,) = torch.autograd.grad(logits(model, layout)[layout.mask.bool()].square().sum(), weight)
    alone = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS])
    (expected,) = torch.autograd.grad(alone.square().sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_padding_is_not_computed() -> None:
    model = tiny()
    seen: list[torch.Size] = []
    with on_input(model.model.layers[1].mlp, lambda states: seen.append(states.shape)):
        logits(model, layout_of(model))
        logits(model, layout_of(model, [[5, 6], [7, 8]]))
    assert [tuple(shape[:2]) for shape in seen] == [(1, TOKENS), (2, 2)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_past_is_seen_by_its_row_alone(family: str) -> None:
    model = tiny(family)
    pasts = [[1, 2], [3, 4, 5, 6], [7], [8, 9]]
    past_ids, past_mask = pad_rows(pasts, side="left")
    prefix = Layout(model.base_model, past_ids, past_mask, packs=True)
    cache = DynamicCache()
    with prefix.attention():
        model(**prefix.inputs(model, cache))
    ids, mask = pad_rows(ROWS)
    layout = Layout(model.base_model, ids, torch.cat([past_mask, mask], dim=1), packs=True)
    unpack = prefix.unpack_heads
    past = Cache(layers=[PastLayer(layout, unpack(layer.keys), unpack(layer.values)) for layer in cache.layers])
    with layout.attention():
        found = layout.unpack(model(**layout.inputs(model, past)).logits)
    for past, row, of_row in zip(pasts, ROWS, found, strict=True):
        expected = model(torch.tensor([past + row])).logits[0, len(past) :]
        torch.testing.assert_close(of_row[: len(row)], expected, rtol=1e-4, atol=1e-5)


def test_states_are_packed_and_unpacked() -> None:
    layout = layout_of(tiny())
    padded = torch.arange(4.0 * 5 * 2).view(4, 5, 2)
    packed = layout.pack(padded)
    assert packed.shape == (1, TOKENS, 2)
    assert torch.equal(layout.unpack(packed), padded * layout.mask.unsqueeze(-1))
    rows, columns = torch.tensor([0, 2, 3]), torch.tensor([1, 4, 0])
    assert torch.equal(packed[layout.places(rows, columns)], padded[rows, columns])
    some = layout.selected(torch.tensor([True, False, False, True]))
    assert torch.equal(some.ids, layout.ids[[0, 3]])
    assert some.pack(padded[[0, 3]]).shape == (1, 5, 2)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_rows_longer_than_a_window_stay_padded(family: str) -> None:
    model = tiny(family)
    long = [*ROWS, list(range(SLIDING_WINDOW + 1))]
    assert layout_of(model, [*ROWS, list(range(SLIDING_WINDOW))]).rows == 1
    layout = layout_of(model, long)
    assert layout.rows == len(long)
    expected = model(torch.tensor([long[-1]])).logits[0]
    torch.testing.assert_close(logits(model, layout)[-1], expected, rtol=1e-4, atol=1e-5)


def test_attention_that_is_more_than_a_mask_stays_as_it_is() -> None:
    model = tiny("gpt2", "eager")
    assert can_pack(model.base_model)
    model.config.reorder_and_upcast_attn = True
    assert not can_pack(model.base_model)


def test_the_model_is_as_before_afterwards() -> None:
    model = tiny()
    layout, names = layout_of(model), set(ALL_ATTENTION_FUNCTIONS)
    model.model.layers[2].forward = None
    with pytest.raises(TypeError):
        logits(model, layout)
    assert model.config._attn_implementation == "sdpa"
    assert set(ALL_ATTENTION_FUNCTIONS) == names
