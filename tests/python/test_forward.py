from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_model

from emmet.architectures import discover
from emmet.forward import Site, batches_by_length, last_token_states, model_inputs


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_index_once_and_stay_within_the_budget(lengths, budget):
    batches = list(batches_by_length(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_the_last_tokens_equal_those_of_single_rows(family):
    model = tiny_model(family, vocab_size=60)
    arch = discover(model)
    rows = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), (15, 16)]
    keys = last_token_states(arch, rows, Site.keys(arch, 2))
    outputs = last_token_states(arch, rows, Site(arch.layers[2], at_input=False))
    for row, key, output in zip(rows, keys, outputs, strict=True):
        seen = {}
        handles = [
            arch.projection(2).module.register_forward_pre_hook(lambda _, args: seen.update(key=args[0])),
            arch.layers[2].register_forward_hook(lambda _m, _a, out: seen.update(out=out)),
        ]
        with torch.no_grad():
            model(torch.tensor([row]))
        for handle in handles:
            handle.remove()
        out = seen["out"] if isinstance(seen["out"], torch.Tensor) else seen["out"][0]
        torch.testing.assert_close(key, seen["key"].reshape(len(row), -1)[-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output, out[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_changes_no_logits(family):
    model = tiny_model(family, vocab_size=60)
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        expected = model(ids).logits[0]
        for left, right in ((2, 0), (0, 2), (3, 1)):
            padded = torch.nn.functional.pad(ids, (left, right))
            mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
            found = model(**model_inputs(model, padded, mask)).logits[0, left : left + 3]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
