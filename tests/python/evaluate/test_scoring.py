"""Scores equal those of one full, unbatched forward pass a pair."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import tiny
from emmet.architectures import Architecture, discover
from emmet.errors import EditError, NonFiniteError
from emmet.evaluate import scoring
from emmet.evaluate.scoring import Pair, Score, score_continuations

PROMPTS = (
    "The capital of France is",
    "The mother tongue of Danielle Darrieux is",
    "Paris",
    "Regarding the Tower Bridge, where is it? In",
)
CONTINUATIONS = ("Paris", "French", "English", "the United States", "Paris is", "French is")
PAIRS = [(prompt, continuation) for prompt in PROMPTS for continuation in CONTINUATIONS]

TOKENIZERS = [
    {"kind": kind, "bos": bos, "eos": eos, "padding_side": side}
    for kind in ("byte_level", "metaspace")
    for bos, eos in ((False, False), (True, False), (True, True))
    for side in ("left", "right")
]


def tokenizer_of(**settings: object) -> PreTrainedTokenizerFast:
    return _tokenizer(tuple(sorted(settings.items())))


@lru_cache
def _tokenizer(settings: tuple[tuple[str, object], ...]) -> PreTrainedTokenizerFast:
    return tiny.tiny_tokenizer(**dict(settings))


def model_for(tokenizer: PreTrainedTokenizerFast, family: str = "llama") -> PreTrainedModel:
    """A tiny model whose likeliest next token is always one of the continuations' tokens, so that there are hits."""
    model = tiny.tiny_model(family, vocab_size=len(tokenizer))
    head = model.get_output_embeddings()
    favoured = tokenizer(" ".join(CONTINUATIONS), add_special_tokens=False).input_ids
    head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)).index_fill(0, torch.tensor(favoured), 8.0))
    return model


@torch.no_grad()
def plain_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pair: Pair) -> Score:
    """By definition: all logits of the pair on its own, in float64."""
    prompt, continuation = pair
    before, ids = (without_eos(tokenizer, text) for text in (prompt, f"{prompt} {continuation}"))
    assert ids[: len(before)] == before
    log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    steps = range(len(before), len(ids))
    nll = -sum(log_probabilities[i - 1, ids[i]].item() for i in steps) / len(steps)
    likeliest = [int(log_probabilities[i - 1].argmax()) for i in (*steps, len(ids))]
    correct = tuple(likeliest[i - len(before)] == ids[i] for i in steps)
    agreed = [*correct, False].index(False)
    return Score(nll, correct, tuple(likeliest[: agreed + 1]))


def without_eos(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text).input_ids
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def assert_equal_to_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> None:
    beyond = pairs[::2]
    scores = score_continuations(discover(model), tokenizer, pairs, beyond=beyond)
    expected = {pair: plain_score(model, tokenizer, pair) for pair in pairs}
    assert scores.keys() == expected.keys()
    for pair, score in scores.items():
        assert score.nll == pytest.approx(expected[pair].nll, abs=1e-4), pair  # float32, NLLs of about 10
        assert score.correct == expected[pair].correct, pair
        greedy = expected[pair].greedy
        assert score.greedy == (greedy if pair in beyond else greedy[: len(score.correct)]), pair
    hits = [hit for score in expected.values() for hit in score.correct]
    assert any(hits)
    assert not all(hits)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_equal_those_of_single_full_passes(family: str) -> None:
    tokenizer = tokenizer_of(kind="byte_level")
    assert_equal_to_plain(model_for(tokenizer, family), tokenizer, PAIRS)


@pytest.mark.parametrize("settings", TOKENIZERS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_scores_do_not_depend_on_how_the_tokenizer_pads_or_marks_texts(
    family: str, settings: dict[str, object]
) -> None:
    tokenizer = tokenizer_of(**settings)
    assert_equal_to_plain(model_for(tokenizer, family), tokenizer, PAIRS)


def test_scores_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(kind="byte_level")
    model = model_for(tokenizer)
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 64)
    with seen(model.get_input_embeddings()) as ids:
        assert_equal_to_plain(model, tokenizer, PAIRS)
    batches = [batch for batch in ids if len(batch) > 1]
    assert len(batches) > 1
    assert max(batch.numel() for batch in batches) <= 64


def test_a_score_is_what_the_probabilities_of_the_tokens_say() -> None:
    tokenizer = tokenizer_of(kind="byte_level")
    model = tiny.tiny_model("llama", vocab_size=len(tokenizer))
    paris, french = tokenizer(" Paris French").input_ids
    probabilities = torch.full([len(tokenizer)], 0.25 / (len(tokenizer) - 2))
    probabilities[[paris, french]] = torch.tensor([0.5, 0.25])
    head = model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    head.bias = torch.nn.Parameter(probabilities.log())

    scores = score_continuations(discover(model), tokenizer, [("The", "Paris"), ("The", "Paris French")])

    assert scores["The", "Paris"].nll == pytest.approx(math.log(2))
    assert scores["The", "Paris"].correct == (True,)
    assert scores["The", "Paris"].probability == pytest.approx(1 / 2)
    assert scores["The", "Paris French"].nll == pytest.approx(math.log(8) / 2)
    assert scores["The", "Paris French"].correct == (True, False)
    assert scores["The", "Paris French"].probability == pytest.approx(8**-0.5)


@contextmanager
def seen(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the inputs of a module, as other hooks may have changed them."""
    inputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, args, _output: inputs.append(args[0]))
    yield inputs
    handle.remove()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of(kind="byte_level")


@pytest.fixture
def arch(tokenizer: PreTrainedTokenizerFast) -> Architecture:
    return discover(tiny.tiny_model("llama", vocab_size=len(tokenizer)))


def test_logits_are_computed_for_continuations_only(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    with seen(arch.head) as hidden:
        scores = score_continuations(arch, tokenizer, PAIRS)
    assert sum(states.shape[:-1].numel() for states in hidden) == sum(len(score.correct) for score in scores.values())


def test_a_row_that_begins_another_is_not_run(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "The capital of France is"
    with seen(arch.model.get_input_embeddings()) as ids:
        score_continuations(arch, tokenizer, [(prompt, "French"), (prompt, "Paris"), (prompt, "Paris is")])
    assert [batch.tolist() for batch in ids] == [[tokenizer(f"{prompt} Paris").input_ids]]


def test_equal_pairs_are_scored_once(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    calls: list[tuple[str, int, int]] = []
    scores = score_continuations(arch, tokenizer, [*PAIRS, *PAIRS], lambda *call: calls.append(call))
    assert scores.keys() == set(PAIRS)
    assert calls[-1] == ("score", len(PAIRS), len(PAIRS))


def test_progress_counts_up_to_all_pairs(
    arch: Architecture, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 32)
    calls: list[tuple[str, int, int]] = []
    score_continuations(arch, tokenizer, PAIRS, lambda *call: calls.append(call))
    done = [count for _, count, _ in calls]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert done[-1] == len(PAIRS)
    assert {(stage, total) for stage, _, total in calls} == {("score", len(PAIRS))}


def test_no_pairs_have_no_scores(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    assert score_continuations(arch, tokenizer, []) == {}


def test_dropout_is_off_and_the_model_left_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny.tiny_model("llama", vocab_size=len(tokenizer))
    expected = score_continuations(discover(model), tokenizer, PAIRS)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    assert score_continuations(discover(model), tokenizer, PAIRS) == expected
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("pair", [("", "Paris"), (" ", "Paris"), ("The capital", ""), ("The capital", "\n")])
def test_blank_texts_are_refused(pair: Pair, arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditError, match="not blank") as error:
        score_continuations(arch, tokenizer, [("The capital is", "Paris"), pair])
    assert all(repr(text) in str(error.value) for text in pair)


def test_the_context_may_be_filled_but_not_exceeded(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    full = "Paris" + " Paris" * (tiny.MAX_POSITIONS - len(tokenizer("Paris").input_ids))
    assert len(tokenizer(full).input_ids) == tiny.MAX_POSITIONS
    assert score_continuations(arch, tokenizer, [(full, "French")])[full, "French"].nll > 0
    with pytest.raises(EditError, match=f"context of {tiny.MAX_POSITIONS + 1} tokens.* {tiny.MAX_POSITIONS}:") as error:
        score_continuations(arch, tokenizer, [("The capital is", "Paris"), (f"{full} Paris", "French")])
    assert "'French'" in str(error.value)
    assert len(str(error.value)) < 240


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_reported(
    value: float, arch: Architecture, tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.no_grad():
        arch.projection(1).weight[0, 0] = value
    with pytest.raises(NonFiniteError, match="'The capital is' with 'Paris'"):
        score_continuations(arch, tokenizer, [("The capital is", "Paris")])
