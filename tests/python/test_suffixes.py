"""Rows that are cut at δ give the logits that they give alone, whatever they share, and what they share is run once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from emmet.architectures import Architecture, discover
from emmet.hooks import frozen, on_input, on_output
from emmet.suffixes import Injection, Row, Suffixes
from emmet.trial import tried
from tiny import FAMILIES, SLIDING_WINDOW, tiny_model

VOCABULARY = 64
LAYER = 1
CONTEXT = (3, 4, 5, 6, 7)
GROUPS = [
    [Row((*CONTEXT, 8, 9, 10, 11), 6, [7, 8]), Row((*CONTEXT, 12), 5, [5]), Row((*CONTEXT, 8, 13, 14), 7, [7])],
    [Row((8, 9, 10, 11), 1, [2, 3]), Row((12,), 0, [0]), Row((15, 13, 14), 2, [2])],
    [Row((16, 17), 1, [1])],
]
ROWS = [row for group in GROUPS for row in group]


def of_family(family: str) -> tuple[Architecture, Injection]:
    arch = discover(tiny_model(family, vocab_size=VOCABULARY))
    return arch, tried(arch, Injection.find(arch, LAYER))


def shifts() -> Tensor:
    return torch.randn(len(ROWS), 64, generator=torch.Generator().manual_seed(0))


def alone(arch: Architecture, injection: Injection, row: Row, shift: Tensor) -> Tensor:
    """Logits [reads, vocab] of one row, with a shift added at its subject."""

    def shifted(states: Tensor) -> Tensor:
        added = torch.zeros_like(states.reshape(1, -1, states.shape[-1]))
        added[0, row.subject] = shift
        return states + added.view_as(states)

    with torch.no_grad(), on_output(injection.site(arch).module, shifted):
        found: Tensor = arch.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, list(row.reads)]
    return found


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_rows_alone(family: str, shares: bool) -> None:
    arch, injection = of_family(family)
    assert injection.shares
    injection = replace(injection, shares=shares)
    delta = shifts()[:, : arch.d_model]
    with frozen(arch.model):
        found = Suffixes(arch, injection, GROUPS).logits(delta)
    expected = torch.cat([alone(arch, injection, *one) for one in zip(ROWS, delta, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_padding_is_not_counted_in_a_window(family: str) -> None:
    """One row fills the window, so that the others would see too little if they had padding between their tokens."""
    arch, injection = of_family(family)
    long = tuple(20 + i for i in range(SLIDING_WINDOW))
    group = [Row((*CONTEXT, *long, 8), len(CONTEXT) + len(long), [len(CONTEXT) + len(long)]), *GROUPS[0]]
    delta = torch.zeros(len(group), arch.d_model)
    with frozen(arch.model):
        found = Suffixes(arch, injection, [group]).logits(delta)
    expected = torch.cat([alone(arch, injection, row, torch.zeros(arch.d_model)) for row in group])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_start_is_what_the_model_computes_at_the_subject() -> None:
    arch, injection = of_family("llama")
    with frozen(arch.model):
        start = Suffixes(arch, injection, GROUPS).start
    seen: list[Tensor] = []
    with torch.no_grad(), on_output(arch.layers[LAYER], seen.append):
        for row in ROWS:
            arch.model(input_ids=torch.tensor([row.ids]), use_cache=False)
    expected = torch.stack([states[0, row.subject] for states, row in zip(seen, ROWS, strict=True)])
    torch.testing.assert_close(start, expected, rtol=1e-4, atol=1e-5)


def test_what_a_group_begins_with_is_run_once() -> None:
    arch, injection = of_family("llama")
    tokens = [0] * len(arch)

    def count(layer: int, states: Tensor) -> None:
        tokens[layer] += states.shape[0] * states.shape[1]

    with frozen(arch.model):
        watched_first = on_input(arch.layers[0].mlp, lambda states: count(0, states))
        with watched_first, on_input(arch.layers[3].mlp, lambda states: count(3, states)):
            suffixes = Suffixes(arch, injection, GROUPS)
        once = len(CONTEXT)
        assert tokens[0] == once + sum(len(row.ids) for row in ROWS) - 3 * once
        assert tokens[3] == once + sum(row.subject for row in ROWS) - 3 * once
        with on_input(arch.layers[3].mlp, lambda states: count(3, states)):
            suffixes.logits(shifts()[:, : arch.d_model])
        assert tokens[3] == once + sum(len(row.ids) for row in ROWS) - 3 * once


def test_some_rows_are_as_they_were_among_all() -> None:
    arch, injection = of_family("llama")
    delta = shifts()[:, : arch.d_model]
    kept = torch.tensor([True, False, True, False, False, True, True])
    read = torch.tensor([kept[i] for i, row in enumerate(ROWS) for _ in row.reads])
    with frozen(arch.model):
        whole = Suffixes(arch, injection, GROUPS)
        some = whole.selected(kept)
        torch.testing.assert_close(some.logits(delta[kept]), whole.logits(delta)[read], rtol=1e-4, atol=1e-5)
        assert torch.equal(some.start, whole.start[kept])
        assert len(whole.logits(delta)) == len(read)
