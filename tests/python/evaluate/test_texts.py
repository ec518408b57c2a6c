"""Entropy and reference score equal values worked out by hand; texts are sampled as published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny
from emmet.architectures import Architecture, discover
from emmet.edits import Edit, Record
from emmet.errors import EditError, NonFiniteError
from emmet.evaluate import texts
from emmet.evaluate.references import WordWeights
from emmet.evaluate.texts import entropy, evaluate_texts

ATTRIBUTE = ("P103", "Q1860")
RECORD = Record(
    edit=Edit("The mother tongue of {} is", "Danielle Darrieux", "English"),
    kind="counterfact",
    answer_before="French",
    paraphrases=(),
    neighbours=(),
    generation_prompts=("Danielle Darrieux lives in", "Where Danielle Darrieux is from, people speak", "Danielle in"),
    attribute=ATTRIBUTE,
)
OTHER = Record(Edit("The capital of {} is", "France", "Berlin"), "counterfact", "Paris", (), ())
REFERENCES = {ATTRIBUTE: ["Ann speaks English in London", "English is spoken by Bob"], ("P36", "Q64"): ["Berlin"]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tiny_tokenizer(bos=True)


@pytest.fixture
def arch(tokenizer: PreTrainedTokenizerFast) -> Architecture:
    return discover(tiny.tiny_model("llama", vocab_size=len(tokenizer)))


def test_entropy_equals_values_worked_out_by_hand() -> None:
    assert entropy("so so so so so") == 0
    assert entropy("one two") == 0
    assert entropy("one") == entropy("") == 0
    # 2-grams ab ba ab bc; 3-grams aba bab abc
    of_pairs = 0.5 * 1 + 2 * 0.25 * 2
    assert entropy("a b a b c") == pytest.approx((2 / 3 * of_pairs + 4 / 3 * math.log2(3)) / 2)
    # a punctuation mark is a word, white space and nothing else parts: don ' t stop . .
    assert entropy("don't  stop..") == pytest.approx((2 / 3 * math.log2(5) + 4 / 3 * math.log2(4)) / 2)
    assert entropy("A b a b c") > entropy("a b a b c")


def test_metrics_are_those_of_the_texts(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = evaluate_texts(arch, tokenizer, [RECORD, OTHER], REFERENCES)
    written = first["texts"]
    assert isinstance(written, list)
    assert [text.startswith(prompt) for text, prompt in zip(written, RECORD.generation_prompts, strict=True)]
    assert first["GE"] == pytest.approx(100 * sum(map(entropy, written)) / 3)
    expected = WordWeights(["Ann speaks English in London", "English is spoken by Bob", "Berlin"]).similarity(
        " ".join(written), "Ann speaks English in London English is spoken by Bob"
    )
    assert first["RS"] == pytest.approx(100 * expected)
    assert expected > 0
    assert second == {"GE": None, "RS": None, "texts": []}


def test_texts_are_whole_and_of_the_five_likeliest_tokens(
    arch: Architecture, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    decode = type(tokenizer).batch_decode

    def batch_decode(self: PreTrainedTokenizerFast, ids: torch.Tensor, **settings: object) -> Sequence[str]:
        seen.append(ids)
        return decode(self, ids, **settings)

    monkeypatch.setattr(type(tokenizer), "batch_decode", batch_decode)
    evaluate_texts(arch, tokenizer, [RECORD])
    assert sum(map(len, seen)) == 3
    for ids in seen:
        assert ids.shape[1] == 100
        prompts = [tokenizer(prompt).input_ids for prompt in RECORD.generation_prompts]
        start = next(len(prompt) for prompt in prompts if prompt == ids[0, : len(prompt)].tolist())
        with torch.no_grad():
            likely = arch.model(ids).logits.topk(6).indices
        ranks = (likely[:, start - 1 : -1] == ids[:, start:, None]).float().argmax(-1)
        assert (likely[:, start - 1 : -1, :5] == ids[:, start:, None]).any(-1).all()
        assert ranks.unique().tolist() == [0, 1, 2, 3, 4]


def test_texts_come_from_the_seed(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    first, again, other = (evaluate_texts(arch, tokenizer, [RECORD], seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_progress_counts_texts(
    arch: Architecture, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "ROWS", 1)
    calls: list[tuple[str, int, int]] = []
    evaluate_texts(arch, tokenizer, [RECORD], progress=lambda *call: calls.append(call))
    assert calls == [("texts", 1, 3), ("texts", 2, 3), ("texts", 3, 3)]


def test_records_without_prompts_are_refused(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditError, match="with generation prompts, got none"):
        evaluate_texts(arch, tokenizer, [OTHER, OTHER])


@pytest.mark.parametrize("attribute", [None, ("P1", "Q1")])
def test_records_without_references_are_refused(
    attribute: tuple[str, str] | None, arch: Architecture, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(EditError, match="reference texts for the records, got none"):
        evaluate_texts(arch, tokenizer, [replace(RECORD, attribute=attribute)], REFERENCES)


def test_a_prompt_that_fills_the_text_is_refused(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    long = "Danielle" + " Paris" * 100
    with pytest.raises(EditError, match=r"the generation prompt 'Danielle Paris .* has \d+ tokens, but a text has 100"):
        evaluate_texts(arch, tokenizer, [replace(RECORD, generation_prompts=(long,))])


def test_a_short_context_bounds_the_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    arch = discover(tiny.tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=40))
    (found,) = evaluate_texts(arch, tokenizer, [RECORD])
    assert found["GE"]


def test_weights_that_are_not_finite_are_reported(arch: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    with torch.no_grad():
        arch.projection(1).weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        evaluate_texts(arch, tokenizer, [RECORD])
