"""Sampled text follows the model's own distribution, and comes from the given generator alone."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from emmet.sampling import sample
from tiny import FAMILIES, tiny_model

VOCAB = 30
PROMPT = torch.tensor([[5, 9, 7]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_tokens_are_those_of_whole_forward_passes(family: str) -> None:
    """Longer than the sliding window of the models that have one."""
    model = tiny_model(family, vocab_size=VOCAB)
    prompts = torch.tensor([[5, 9, 7], [1, 2, 3]])
    ids = sample(model, prompts, max_new_tokens=30, generator=generator(), top_k=1)
    assert ids.shape == (2, 33)
    assert torch.equal(ids[:, :3], prompts)
    with torch.no_grad():
        likeliest = model(ids, use_cache=False).logits.argmax(-1)
    assert torch.equal(ids[:, 3:], likeliest[:, 2:-1])


@pytest.mark.parametrize("top_k", [None, 4, 1000])
def test_frequencies_match_the_distribution(top_k: int | None) -> None:
    model = tiny_model("gpt2", vocab_size=VOCAB)
    rows = 20_000
    ids = sample(model, PROMPT.expand(rows, -1), max_new_tokens=1, generator=generator(), top_k=top_k)
    with torch.no_grad():
        logits = model(PROMPT).logits[0, -1].double()
    if top_k is not None and top_k < VOCAB:
        logits[logits < logits.sort().values[-top_k]] = -torch.inf
    expected = torch.softmax(logits, -1)
    frequencies = torch.bincount(ids[:, -1], minlength=VOCAB) / rows
    deviation = (expected * (1 - expected) / rows).sqrt()
    assert torch.all((frequencies - expected).abs() <= 5 * deviation)


def test_a_row_depends_on_what_was_sampled_in_it() -> None:
    """Second tokens, given the first one, follow the distribution after it."""
    model = tiny_model("llama", vocab_size=VOCAB)
    ids = sample(model, PROMPT.expand(20_000, -1), max_new_tokens=2, generator=generator())
    first = int(ids[:, 3].mode().values)
    seconds = ids[ids[:, 3] == first, 4]
    with torch.no_grad():
        expected = torch.softmax(model(torch.cat([PROMPT[0], torch.tensor([first])])[None]).logits[0, -1].double(), -1)
    frequencies = torch.bincount(seconds, minlength=VOCAB) / len(seconds)
    assert torch.all((frequencies - expected).abs() <= 5 * (expected * (1 - expected) / len(seconds)).sqrt())


def test_only_the_generator_decides() -> None:
    model = tiny_model("llama", vocab_size=VOCAB)

    def drawn(seed: int) -> torch.Tensor:
        return sample(model, PROMPT.expand(4, -1), max_new_tokens=12, generator=generator(seed))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(3), first)
    assert len({tuple(row) for row in first.tolist()}) == 4


def with_dropout() -> PreTrainedModel:
    model = tiny_model("gpt2", vocab_size=VOCAB)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return model.train()


def test_a_model_in_training_samples_as_in_evaluation_and_stays_in_training() -> None:
    model = with_dropout()
    ids = sample(model, PROMPT, max_new_tokens=20, generator=generator())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(sample(model.eval(), PROMPT, max_new_tokens=20, generator=generator()), ids)


def test_no_new_tokens() -> None:
    model = tiny_model("llama", vocab_size=VOCAB)
    assert torch.equal(sample(model, PROMPT, max_new_tokens=0, generator=generator()), PROMPT)


def test_progress_counts_tokens() -> None:
    seen = []
    sample(
        tiny_model("llama", vocab_size=VOCAB),
        PROMPT.expand(2, -1),
        max_new_tokens=3,
        generator=generator(),
        progress=lambda *report: seen.append(report),
    )
    assert seen == [("sampling", 2, 6), ("sampling", 4, 6), ("sampling", 6, 6)]
