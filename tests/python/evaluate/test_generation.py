"""What a model writes of itself: the same as transformers' own greedy decoding, and judged by the definition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import repeat

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import tiny
from emmet.architectures import discover
from emmet.edits import Edit, Record
from emmet.errors import EditError, NonFiniteError
from emmet.evaluate import generation
from emmet.evaluate.generation import evaluate_generation, pair
from emmet.evaluate.scoring import Score, score_continuations

EOS = tiny.SPECIAL_TOKENS.index(tiny.EOS)


def record(target: str, prompt: str = "The capital of {} is", subject: str = "France") -> Record:
    return Record(Edit(prompt, subject, target), "emmet", None, (), ())


@pytest.fixture(scope="module", params=["byte_level", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return tiny.tiny_tokenizer(kind=request.param, bos=True, eos=True)


def model_for(tokenizer: PreTrainedTokenizerFast, family: str = "llama") -> PreTrainedModel:
    return tiny.tiny_model(family, vocab_size=len(tokenizer))


def evaluate_written(
    tokenizer: PreTrainedTokenizerFast, target: str, ids: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[bool, bool, object]:
    """Whether a model that writes these tokens generates the target, whether it stops, and the text that was read."""

    def next_tokens(*_: object) -> Iterator[Tensor]:
        return (torch.tensor([token]) for token in ids)

    monkeypatch.setattr(generation, "next_tokens", next_tokens)
    (found,) = evaluate_generation(discover(model_for(tokenizer)), tokenizer, [record(target)], {})
    assert {found["generated"], found["stops"]} <= {0.0, 100.0}
    return found["generated"] == 100, found["stops"] == 100, found["continuation"]


@pytest.mark.parametrize(
    ("target", "text", "generated", "stops"),
    [
        ("English", " English.", True, True),
        ("English", " English and French", True, True),
        ("English", "\n\n English\nand", True, True),
        ("English", "English, the", True, True),
        ("English", " Englishman in", True, False),
        ("English", " English2", True, False),
        ("English", " Englishé", True, False),
        ("English", " English's", True, True),
        ("English", " english.", False, False),
        ("English", " the English", False, False),
        ("English", " Eng", None, None),  # still open
        (" New  York ", " New York.", True, True),
        ("New York", " New\n York City", True, True),
        ("New York", " New York", None, None),
        ("New York", " New Yor!", False, False),
        ("Malmö", " Malmö.", True, True),
        ("Malmö", " Malmo.", False, False),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_a_text_is_judged_by_its_beginning(
    target: str,
    text: str,
    generated: bool | None,
    stops: bool | None,
    ends: bool,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if ends:  # of its own accord; what comes after that is no longer read
        ids = [*ids, EOS, *tokenizer(" York lish", add_special_tokens=False).input_ids]
    found = evaluate_written(tokenizer, target, ids, monkeypatch)
    if generated is None or stops is None:
        whole = ends and text.strip() == target
        generated, stops = whole, whole
    assert found[:2] == (generated, stops)


def test_other_tokens_may_end_a_text_too(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for(tokenizer)
    end_of_turn, english = (tokenizer(text, add_special_tokens=False).input_ids for text in ("Q", " English"))
    script = [*english, end_of_turn[-1], *english]

    def next_tokens(*_: object) -> Iterator[Tensor]:
        return (torch.tensor([token]) for token in script)

    monkeypatch.setattr(generation, "next_tokens", next_tokens)
    verdicts = []
    for ends in (EOS, [EOS, end_of_turn[-1]]):
        model.generation_config.eos_token_id = ends
        (found,) = evaluate_generation(discover(model), tokenizer, [record("English")], {})
        verdicts.append((found["generated"], found["stops"], str(found["continuation"]).strip()))
    assert verdicts == [(100.0, 0.0, "EnglishQ"), (100.0, 100.0, "English")]


def test_white_space_without_an_end_is_given_up(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tokenizer(" ", add_special_tokens=False).input_ids[-1]

    def next_tokens(*_: object) -> Iterator[Tensor]:
        return (torch.tensor([token]) for token in repeat(space))

    monkeypatch.setattr(generation, "next_tokens", next_tokens)
    (found,) = evaluate_generation(discover(model_for(tokenizer)), tokenizer, [record("English")], {})
    assert (found["generated"], found["stops"]) == (0, 0)


def plain_verdict(text: str, target: str) -> tuple[bool, bool]:
    """By regular expressions, on a text that is longer than needed."""
    pattern = r"\s*" + r"\s+".join(map(re.escape, target.split()))
    return bool(re.match(pattern, text)), bool(re.match(pattern + r"(?![^\W_])", text))


PROMPTS = ("The capital of {} is", "In {}, where the people who live there speak", "{} is located in", "Where is {}?")


def model_that_writes_words(tokenizer: PreTrainedTokenizerFast, family: str) -> PreTrainedModel:
    model = model_for(tokenizer, family)
    words = [bool(re.fullmatch(" [A-Za-z]+", tokenizer.decode([token]))) for token in range(len(tokenizer))]
    model.get_output_embeddings().bias = torch.nn.Parameter(20.0 * torch.tensor(words))
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_texts_are_those_of_greedy_decoding(family: str) -> None:
    """By transformers' own `generate`, one prompt at a time; the targets are what it writes, or the beginning of it."""
    tokenizer = tiny.tiny_tokenizer()
    model = model_that_writes_words(tokenizer, family)
    records, expected = [], []
    for prompt in PROMPTS:
        ids = tokenizer(prompt.replace("{}", "France"), return_tensors="pt").input_ids
        written = model.generate(ids, do_sample=False, max_new_tokens=30, eos_token_id=None)[0, ids.shape[1] :]
        text = str(tokenizer.decode(written))
        first, second, *_ = text.split()
        for target in (first, first[:1], f"{first} {second}", f"{first}  {second[:1]}", "Paris"):
            records.append(record(target, prompt))
            expected.append((*plain_verdict(text, target), text))

    scores = score_continuations(discover(model), tokenizer, map(pair, records), beyond=list(map(pair, records)))
    found = evaluate_generation(discover(model), tokenizer, records, scores)
    assert found == evaluate_generation(discover(model), tokenizer, records, {})

    for verdict, (generated, stops, text) in zip(found, expected, strict=True):
        assert (verdict["generated"], verdict["stops"]) == (100.0 * generated, 100.0 * stops)
        assert text.startswith(str(verdict["continuation"]).rstrip("\ufffd"))
    assert {verdict[:2] for verdict in expected} == {(True, True), (True, False), (False, False)}


def test_what_scores_tell_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.tiny_tokenizer()
    arch = discover(model_that_writes_words(tokenizer, "llama"))
    (decoded,) = evaluate_generation(arch, tokenizer, [record("Paris")], {})
    first, *_ = str(decoded["continuation"]).split()
    records = [record(first), record("Paris"), record("The")]
    scores = score_continuations(arch, tokenizer, map(pair, records), beyond=list(map(pair, records)))
    monkeypatch.setattr(generation, "next_tokens", None)
    found = evaluate_generation(arch, tokenizer, records, scores)
    assert [(row["generated"], row["stops"]) for row in found] == [(100, 100), (0, 0), (0, 0)]


def test_scores_of_a_prompt_with_other_tokens_are_not_used() -> None:
    """The second space is a token of its own before the target, but is left to the model to write."""
    tokenizer = tiny.tiny_tokenizer()
    arch = discover(model_that_writes_words(tokenizer, "llama"))
    spaced = record("Paris", "The capital of {} is  ")
    wrong = {pair(spaced): Score(1.0, (True,), tuple(tokenizer(" Paris is").input_ids))}
    assert evaluate_generation(arch, tokenizer, [spaced], wrong) == evaluate_generation(arch, tokenizer, [spaced], {})
    used = {pair(record("Paris")): wrong[pair(spaced)]}
    (found,) = evaluate_generation(arch, tokenizer, [record("Paris")], used)
    assert found["generated"] == 100


def test_batches_hold_prompts_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.tiny_tokenizer()
    arch = discover(model_for(tokenizer))
    records = [record("Paris", prompt) for prompt in (*PROMPTS, *PROMPTS)]
    alone = [evaluate_generation(arch, tokenizer, [one], {})[0] for one in records]
    calls: list[tuple[str, int, int]] = []
    monkeypatch.setattr(generation, "ROWS", 1)
    assert evaluate_generation(arch, tokenizer, records, {}, lambda *call: calls.append(call)) == alone
    assert calls == [("generate", done, 8) for done in range(1, 9)]


def test_a_space_at_the_end_of_a_prompt_is_left_to_the_model() -> None:
    tokenizer = tiny.tiny_tokenizer()
    arch = discover(model_for(tokenizer))
    with_space, without = (record("Paris", prompt) for prompt in ("The capital of {} is ", "The capital of {} is"))
    assert evaluate_generation(arch, tokenizer, [with_space], {}) == evaluate_generation(arch, tokenizer, [without], {})


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    tokenizer = tiny.tiny_tokenizer()
    arch = discover(model_for(tokenizer))
    long = record("Paris", "The capital of {} is" + " Paris" * (tiny.MAX_POSITIONS - 12))
    with pytest.raises(
        EditError, match=r"'The capital of France is Paris .*context of \d+ tokens, but this model has 256"
    ):
        evaluate_generation(arch, tokenizer, [record("Paris"), long], {})


def test_weights_that_are_not_finite_are_reported() -> None:
    tokenizer = tiny.tiny_tokenizer()
    arch = discover(model_for(tokenizer))
    with torch.no_grad():
        arch.projection(1).weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        evaluate_generation(arch, tokenizer, [record("Paris")], {})
