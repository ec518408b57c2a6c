from __future__ import annotations

import pytest
import torch

from emmet import Edit
from emmet.architectures import discover
from emmet.keys import in_contexts, prompt_keys, subject_keys
from published import token_of
from tiny import tiny_model, tiny_tokenizer

EDITS = [Edit("{} plays the", "Miles Davis", "piano"), Edit("The twin city of {} is", "Lyon", "Manila")]


def key(model, tokenizer, edit: Edit, prefix: str) -> torch.Tensor:
    """The definition: one row, the input of the MLP's output projection at the subject's last token."""
    text = prefix + edit.text
    token = token_of(tokenizer, text, len(prefix) + edit.subject_span[1] - 1)
    seen = []
    handle = discover(model).projection(1).module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.tensor([tokenizer(text).input_ids]))
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])[token].double()


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bloom"])
def test_a_key_is_half_the_bare_prompts_and_half_the_prefixed_ones(family):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    prefixes = ("The first. ", "It is said that. ", "So. ")
    prompts = [in_contexts(tokenizer, edit, prefixes) for edit in EDITS]
    found = subject_keys(discover(model), prompts, layer=1)
    for edit, row in zip(EDITS, found, strict=True):
        prefixed = torch.stack([key(model, tokenizer, edit, prefix) for prefix in prefixes])
        expected = (key(model, tokenizer, edit, "") + prefixed.mean(0)) / 2
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bloom"])
def test_keys_of_prompts_are_those_of_their_tokens_before_the_target_but_the_first(family):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    seen = []
    discover(model).projection(1).module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    expected = []
    for edit in EDITS:
        with torch.no_grad():
            model(torch.tensor([tokenizer(edit.text).input_ids]))
        states = seen.pop()
        expected.append(states.reshape(-1, states.shape[-1])[1:])
    keys, owners = prompt_keys(discover(model), [in_contexts(tokenizer, edit, ("So. ",)) for edit in EDITS], layer=1)
    torch.testing.assert_close(keys, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert owners.tolist() == [0] * len(expected[0]) + [1] * len(expected[1])


def test_without_prefixes_a_key_is_the_bare_prompts():
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    found = subject_keys(discover(model), [in_contexts(tokenizer, edit, ()) for edit in EDITS], layer=1)
    expected = torch.stack([key(model, tokenizer, edit, "") for edit in EDITS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
