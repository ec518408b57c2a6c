"""Tasks of lm-eval run on a model in memory: its scores are those of the task's definition."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import tiny
from emmet.errors import ConfigError
from emmet.evaluate.downstream import Tasks, TaskScore, _scores
from workspace import QUESTIONS, write_task

TOKENIZER = tiny.tiny_tokenizer()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
    return write_task(tmp_path)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny.tiny_model("llama", vocab_size=len(TOKENIZER))


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, question: str, choice: str) -> float:
    ids = torch.tensor(TOKENIZER(f"{question} {choice}").input_ids)
    log_probabilities = model(ids[None]).logits[0].log_softmax(-1)
    start = len(TOKENIZER(question).input_ids)
    return sum(log_probabilities[i - 1, ids[i]].item() for i in range(start, len(ids)))


def plain_accuracy(model: PreTrainedModel) -> torch.Tensor:
    """Whether each question's right choice is the likeliest: [questions]."""
    hits = []
    for question in QUESTIONS:
        likely = [log_likelihood(model, question["question"], choice) for choice in question["choices"]]
        hits.append(likely.index(max(likely)) == question["answer"])
    return torch.tensor(hits).double()


def favour(model: PreTrainedModel, words: str) -> None:
    favoured = torch.tensor(TOKENIZER(words).input_ids)
    bias = torch.zeros(len(TOKENIZER)).index_fill(0, favoured, 30.0)
    model.get_output_embeddings().bias = torch.nn.Parameter(bias)


def test_figures_that_are_not_finite_are_none() -> None:
    found = _scores(
        {"alias": "x", "ppl,none": math.inf, "ppl_stderr,none": "N/A", "acc,first": 1, "acc_stderr,first": 0.5}
    )
    assert found == {"ppl": TaskScore(None, None), "acc,first": TaskScore(1.0, 0.5)}


def test_scores_are_those_of_the_model_as_it_is(task: Path, model: PreTrainedModel) -> None:
    tasks = Tasks([str(task)])
    accuracies = []
    for words in (" Paris French", " Berlin English"):
        favour(model, words)
        hits = plain_accuracy(model)
        error = hits.std().item() / len(hits) ** 0.5
        accuracies.append(hits.mean().item())
        found = tasks.score(model, TOKENIZER)
        assert found == {"geography": {"acc": TaskScore(accuracies[-1], pytest.approx(error))}}
    assert accuracies == [0.75, 0.25]


def test_the_model_is_left_as_it_was_and_nothing_is_printed(
    task: Path, model: PreTrainedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    calls: list[tuple[str, int, int]] = []
    Tasks([str(task)]).score(model, TOKENIZER, lambda *call: calls.append(call))
    assert calls == [("tasks", 0, 1), ("tasks", 1, 1)]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "it/s" not in printed.err


def test_an_unknown_task_is_named(task: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot load the task no such task: .*; give a task of lm-eval"):
        Tasks([str(task), "no such task"])


def test_a_task_without_its_data_is_named(task: Path) -> None:
    (task.parent / "questions.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"cannot load the task .*task\.yaml: "):
        Tasks([str(task)])


def test_without_lm_eval_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match=r"need the package lm-eval: pip install 'emmet-edit\[downstream\]'"):
        Tasks(["lambada"])
