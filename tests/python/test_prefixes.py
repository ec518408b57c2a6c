from __future__ import annotations

import torch

from emmet.prefixes import sample_prefixes
from tiny import tiny_model, tiny_tokenizer


def test_prefixes_are_set_by_the_seed_and_leave_the_global_one_alone():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    state = torch.get_rng_state()
    first = sample_prefixes(model, tokenizer, count=6, length=8, seed=3)
    assert first == sample_prefixes(model, tokenizer, count=6, length=8, seed=3)
    assert first != sample_prefixes(model, tokenizer, count=6, length=8, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first) == 6
    assert all(prefix.endswith(". ") for prefix in first)
    starts = ("The", "Therefore", "Because", "I", "You", "The")
    assert all(prefix.startswith(start) for prefix, start in zip(first, starts, strict=True))


def test_no_prefixes():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    assert sample_prefixes(model, tokenizer, count=0, length=8, seed=0) == ()


def test_no_special_token_follows_what_a_prefix_begins_with():
    """A model continues other text after an end of the text."""
    plain, ended = tiny_tokenizer(), tiny_tokenizer(eos=True)
    model = tiny_model("llama", vocab_size=len(plain))
    assert sample_prefixes(model, ended, count=5, length=8, seed=0) == sample_prefixes(
        model, plain, count=5, length=8, seed=0
    )
