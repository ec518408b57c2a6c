"""CounterFact's metrics equal values worked out by hand, and MEMIT's procedure with one full forward pass a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tiny
from emmet.architectures import discover
from emmet.edits import Edit, Neighbour, Record, read_records
from emmet.evaluate import Report, counterfact, evaluate, summarise
from emmet.evaluate.counterfact import METRICS
from emmet.evaluate.scoring import Pair, Score
from emmet.loading import load

FULL = Record(
    edit=Edit("The mother tongue of {} is", "Danielle Darrieux", "English", id="darrieux"),
    kind="counterfact",
    answer_before="French",
    paraphrases=("Danielle Darrieux spoke", "Danielle Darrieux, who speaks"),
    neighbours=(
        Neighbour("The mother tongue of Michel Rocard is", "French"),
        Neighbour("Michel Rocard is a native speaker of", "French"),
        Neighbour("The people who live in Paris speak", "French"),
    ),
)
SHORT = Record(
    edit=Edit("The capital of {} is", "Spain", "Paris"),
    kind="counterfact",
    answer_before="Madrid",
    paraphrases=("Where is the capital of Spain? In",),
    neighbours=(Neighbour("The capital of France is located in", "Paris in France"),),
)


def report_of(records: Sequence[Record], scores: Mapping[Pair, tuple[float, Sequence[bool]]]) -> Report:
    """The report on records whose continuations have these mean NLLs and hits."""
    found = {pair: Score(nll, tuple(hits)) for pair, (nll, hits) in scores.items()}
    return summarise(records[0].kind, [counterfact.row(record, found) for record in records])


def test_metrics_equal_values_worked_out_by_hand() -> None:
    half, quarter, eighth = (-math.log(p) for p in (1 / 2, 1 / 4, 1 / 8))
    hit, miss = (True,), (False,)
    prompts = (FULL.edit.text, *FULL.paraphrases, *(neighbour.prompt for neighbour in FULL.neighbours))
    english = [(half, hit), (quarter, (True, False)), (half, (True, True)), (half, hit), (eighth, miss), (quarter, hit)]
    french = [(quarter, miss), (half, miss), (eighth, miss), (quarter, miss), (half, hit), (quarter, hit)]
    spain = {
        (SHORT.edit.text, "Paris"): (quarter, miss),
        (SHORT.edit.text, "Madrid"): (half, hit),
        (SHORT.paraphrases[0], "Paris"): (half, hit),
        (SHORT.paraphrases[0], "Madrid"): (eighth, miss),
        (SHORT.neighbours[0].prompt, "Paris in France"): (half, (True, True, True)),
        (SHORT.neighbours[0].prompt, "Paris"): (eighth, miss),
    }
    darrieux = {
        **{(prompt, "English"): score for prompt, score in zip(prompts, english, strict=True)},
        **{(prompt, "French"): score for prompt, score in zip(prompts, french, strict=True)},
    }

    report = report_of([FULL, SHORT], {**darrieux, **spain})

    first, second = report.per_record
    by_hand = {  # of the first record, of the second
        "ES": (100, 0),
        "PS": (50, 100),  # English leads in one of two
        "NS": (100 / 3, 100),  # French leads in one of three, and a draw is not a lead
        "EM": (25, -25),
        "PM": (100 * (-1 / 4 + 3 / 8) / 2, 37.5),
        "NM": (100 * (-1 / 4 + 3 / 8 + 0) / 3, 37.5),
        "accuracy": (100, 0),
        "paraphrase_accuracy": (50, 100),  # a text counts only if all its tokens are hit
        "neighbour_accuracy": (200 / 3, 100),
    }
    for metric, (of_first, of_second) in by_hand.items():
        assert first[metric] == pytest.approx(of_first), metric
        assert second[metric] == pytest.approx(of_second), metric
        found = report.metrics[metric]
        assert found is not None
        assert found.mean == pytest.approx((of_first + of_second) / 2), metric
        assert found.records == 2
    s = report.metrics["S"]
    assert s is not None
    assert s.mean == pytest.approx(3 / (1 / 50 + 1 / 75 + 3 / 200))
    assert first["nll"] == {
        "prompt": [[half, quarter]],
        "paraphrases": [[quarter, half], [half, eighth]],
        "neighbours": [[quarter, half], [half, eighth], [quarter, quarter]],
    }


def test_records_with_less_are_measured_by_what_they_have() -> None:
    bare = Record(FULL.edit, "emmet", None, (), ())
    with_neighbour = Record(
        edit=Edit("The capital of {} is", "Spain", "Paris"),
        kind="emmet",
        answer_before=None,
        paraphrases=("In Spain, in",),
        neighbours=(Neighbour("The capital of France is", "Paris in France"),),
    )
    scores = {
        (bare.edit.text, "English"): (1.0, (True,)),
        ("The capital of Spain is", "Paris"): (1.0, (False,)),
        ("In Spain, in", "Paris"): (1.0, (True,)),
        ("The capital of France is", "Paris in France"): (1.0, (True, False)),
        ("The capital of France is", "Paris"): (2.0, (True,)),
    }
    alone = report_of([bare], scores)
    both = report_of([bare, with_neighbour], scores)
    assert set(scores) == {pair for record in (bare, with_neighbour) for pair in counterfact.pairs(record)}

    assert {metric: found.mean for metric, found in alone.metrics.items() if found} == {"accuracy": 100.0}
    measured = {metric: (found.mean, found.records) for metric, found in both.metrics.items() if found}
    assert measured == {
        "NS": (100.0, 1),
        "NM": (pytest.approx(100 * (math.exp(-1) - math.exp(-2))), 1),
        "accuracy": (50.0, 2),
        "paraphrase_accuracy": (100.0, 1),
        "neighbour_accuracy": (0.0, 1),
    }
    assert both.per_record[0]["nll"] == {"prompt": [[1.0]], "paraphrases": [], "neighbours": []}


@torch.no_grad()
def plain_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, continuation: str
) -> tuple[float, bool]:
    """Mean token NLL, and whether each token is top-1."""
    start = len(tokenizer(prompt).input_ids)
    ids = tokenizer(f"{prompt} {continuation}").input_ids
    log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    nlls = [-log_probabilities[i - 1, ids[i]].item() for i in range(start, len(ids))]
    return float(np.mean(nlls)), all(log_probabilities[i - 1].argmax() == ids[i] for i in range(start, len(ids)))


def plain_metrics(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> dict[str, float]:
    """All metrics of one record as MEMIT's code computes them."""

    def scores(prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        answers = (record.edit.target, record.answer_before)
        new, true = ([plain_score(model, tokenizer, prompt, str(answer)) for prompt in prompts] for answer in answers)
        return np.array(new).T, np.array(true).T

    metrics: dict[str, float] = {}
    for prefix, name, prompts in (
        ("E", "accuracy", [record.edit.text]),
        ("P", "paraphrase_accuracy", record.paraphrases),
    ):
        (new, is_top_1), (true, _) = scores(prompts)
        metrics[f"{prefix}S"] = 100 * np.mean(true > new)
        metrics[f"{prefix}M"] = 100 * np.mean(np.exp(-new) - np.exp(-true))
        metrics[name] = 100 * np.mean(is_top_1)
    (new, _), (true, is_top_1) = scores([neighbour.prompt for neighbour in record.neighbours])
    metrics["NS"] = 100 * np.mean(true < new)
    metrics["NM"] = 100 * np.mean(np.exp(-true) - np.exp(-new))
    metrics["neighbour_accuracy"] = 100 * np.mean(is_top_1)
    return metrics


def assert_equal_to_plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]
) -> None:
    found = evaluate(discover(model), tokenizer, records).per_record
    hits = [of_record[metric] for of_record in found for metric in METRICS if metric.endswith("accuracy")]
    assert min(hits) < max(hits)
    for record, of_record in zip(records, found, strict=True):
        expected = plain_metrics(model, tokenizer, record)
        assert expected.keys() == METRICS.keys() - {"S"}
        assert {metric: of_record[metric] for metric in expected} == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen3", "gemma3_text", "bloom"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("bos", [False, True])
def test_metrics_equal_the_published_procedure(family: str, padding_side: str, bos: bool) -> None:
    tokenizer = tiny.tiny_tokenizer(bos=bos, padding_side=padding_side)  # type: ignore[arg-type]
    model = tiny.tiny_model(family, vocab_size=len(tokenizer))
    favoured = tokenizer(" French", add_special_tokens=False).input_ids
    bias = torch.zeros(len(tokenizer)).index_fill(0, torch.tensor(favoured), 20.0)
    model.get_output_embeddings().bias = torch.nn.Parameter(bias)  # random guesses among 400 tokens would hit nothing
    short = Record(SHORT.edit, "counterfact", "Madrid", SHORT.paraphrases, (Neighbour("Madrid is in", "Madrid"),))
    assert_equal_to_plain(model, tokenizer, [FULL, short])


def test_real_records_on_a_real_model_equal_the_published_procedure(smollm2_folder: Path, data_folder: Path) -> None:
    records = read_records(data_folder / "counterfact" / "edit-10k.jsonl")[:48]
    model, tokenizer = load(smollm2_folder, dtype=torch.float32)
    assert_equal_to_plain(model, tokenizer, records)
