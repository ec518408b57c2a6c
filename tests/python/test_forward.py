from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emmet.architectures import discover
from emmet.forward import (
    Site,
    batches_by_length,
    batches_of_one_length,
    last_token_states,
    later_token_states,
    model_inputs,
)
from tiny import FAMILIES, tiny_model


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_index_once_and_stay_within_the_budget(lengths, budget):
    batches = list(batches_by_length(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 40))
def test_batches_of_one_length_are_as_few_as_can_be(lengths, rows):
    batches = list(batches_of_one_length(lengths, rows))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len({lengths[i] for i in batch}) == 1 and len(batch) <= rows for batch in batches)
    assert len(batches) == sum(-(-lengths.count(length) // rows) for length in set(lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_the_last_tokens_equal_those_of_single_rows(family):
    model = tiny_model(family, vocab_size=60)
    arch = discover(model)
    rows = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), (15, 16)]
    keys = last_token_states(arch, rows, Site.keys(arch, 2))
    outputs = last_token_states(arch, rows, Site(arch.layers[2], at_input=False, width=arch.d_model))
    for row, key, output in zip(rows, keys, outputs, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(output.float(), hidden[3][0, -1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(key, last_token_states(arch, [row], Site.keys(arch, 2))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_all_later_tokens_are_those_of_the_last_ones_of_all_beginnings(family):
    arch = discover(tiny_model(family, vocab_size=60))
    rows = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), (15, 16)]
    beginnings = [row[:length] for row in rows for length in range(2, len(row) + 1)]
    for site in (Site.keys(arch, 2), Site(arch.layers[1], at_input=False, width=arch.d_model)):
        expected = last_token_states(arch, beginnings, site)
        found = later_token_states(arch, rows, site, torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


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
