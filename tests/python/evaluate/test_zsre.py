"""zsRE's metrics equal values worked out by hand, and MEMIT's procedure with one full forward pass a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tiny
from emmet.architectures import discover
from emmet.edits import Edit, Neighbour, Record, read_records
from emmet.evaluate import evaluate, summarise, zsre
from emmet.evaluate.scoring import Score
from emmet.evaluate.zsre import METRICS
from emmet.loading import load

RECORDS = [
    Record(
        edit=Edit("What is the native language of {}?", "Danielle Darrieux", "French and the French"),
        kind="zsre",
        answer_before=None,
        paraphrases=("Which language does Danielle Darrieux speak?",),
        neighbours=(Neighbour("nq question: where is the colosseum?", "the Paris and Madrid"),),
    ),
    Record(
        edit=Edit("Where is {} located?", "Autonomous University of Madrid", "Madrid"),
        kind="zsre",
        answer_before=None,
        paraphrases=("In which city is the Autonomous University of Madrid?",),
        neighbours=(Neighbour("nq question: who created the apple a5?", "French and Paris"),),
    ),
]


def test_metrics_equal_values_worked_out_by_hand() -> None:
    first, second = RECORDS
    lone = Record(Edit("Who made {}?", "Apple A5", "Apple", id="apple"), "zsre", None, (), ())
    hits = {
        (first.edit.text, first.edit.target): (True, True, False, True),
        (first.paraphrases[0], first.edit.target): (True, False, False, False),
        (first.neighbours[0].prompt, first.neighbours[0].answer): (False, False),
        (second.edit.text, second.edit.target): (True,),
        (second.paraphrases[0], second.edit.target): (True,),
        (second.neighbours[0].prompt, second.neighbours[0].answer): (True, False, True),
        (lone.edit.text, "Apple"): (False,),
    }

    records = [first, second, lone]
    assert set(hits) == {pair for record in records for pair in zsre.pairs(record)}
    scores = {pair: Score(1.0, of_pair) for pair, of_pair in hits.items()}
    rows = [zsre.row(record, scores) for record in records]
    metrics = summarise("zsre", rows).metrics

    assert list(metrics)[: len(METRICS)] == list(METRICS)
    means = {metric: (found.mean, found.records) for metric, found in metrics.items() if found}
    efficacy, paraphrase, specificity = (75 + 100 + 0) / 3, (25 + 100) / 2, (0 + 200 / 3) / 2
    assert means == {
        "efficacy": (pytest.approx(efficacy), 3),
        "paraphrase": (pytest.approx(paraphrase), 2),
        "specificity": (pytest.approx(specificity), 2),
        "S": (pytest.approx(3 / (1 / efficacy + 1 / paraphrase + 1 / specificity)), 2),
    }
    assert rows[2] == {"efficacy": 0.0, "paraphrase": None, "specificity": None}


@torch.no_grad()
def plain_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> float:
    """All logits of the text on its own."""
    start = len(tokenizer(prompt).input_ids)
    ids = torch.tensor(tokenizer(f"{prompt} {answer}").input_ids)
    likeliest = model(ids[None]).logits[0].argmax(-1)
    return 100 * float((likeliest[start - 1 : -1] == ids[start:]).double().mean())


def plain_metrics(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> dict[str, float]:
    (paraphrase,), (neighbour,) = record.paraphrases, record.neighbours
    return {
        "efficacy": plain_accuracy(model, tokenizer, record.edit.text, record.edit.target),
        "paraphrase": plain_accuracy(model, tokenizer, paraphrase, record.edit.target),
        "specificity": plain_accuracy(model, tokenizer, neighbour.prompt, neighbour.answer),
    }


def assert_equal_to_plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]
) -> None:
    rows = evaluate(discover(model), tokenizer, records).per_record
    expected = [plain_metrics(model, tokenizer, record) for record in records]
    for found, of_record in zip(rows, expected, strict=True):
        assert {metric: found[metric] for metric in of_record} == pytest.approx(of_record)
    assert any(accuracy > 0 for of_record in expected for accuracy in of_record.values())


@pytest.mark.parametrize("family", ["gptj", "llama", "gemma2", "phi", "falcon"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("bos", [False, True])
def test_metrics_equal_the_published_procedure(family: str, padding_side: str, bos: bool) -> None:
    tokenizer = tiny.tiny_tokenizer(bos=bos, padding_side=padding_side)  # type: ignore[arg-type]
    model = tiny.tiny_model(family, vocab_size=len(tokenizer))
    favoured = tokenizer(" French and the Paris Madrid", add_special_tokens=False).input_ids
    bias = torch.zeros(len(tokenizer)).index_fill(0, torch.tensor(favoured), 8.0)
    model.get_output_embeddings().bias = torch.nn.Parameter(bias)  # random guesses among 400 tokens would hit nothing
    assert_equal_to_plain(model, tokenizer, RECORDS)


def test_real_records_on_a_real_model_equal_the_published_procedure(smollm2_folder: Path, data_folder: Path) -> None:
    records = read_records(data_folder / "zsre" / "train-1k.jsonl")[:48]
    model, tokenizer = load(smollm2_folder, dtype=torch.float32)
    assert all(record.neighbours[0].prompt.endswith("?") for record in records)
    assert_equal_to_plain(model, tokenizer, records)
