"""The adapter of `emmet export --format gguf` in llama.cpp itself: it changes the answers, by as much as the edit does.

Run by `make test-llama`, which builds llama-cpp-python first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from llama_cpp import Llama

import emmet
from emmet.edits import Record, read_records
from emmet.export import save_gguf
from emmet.loading import load

RECORDS = read_records(Path(__file__).parents[2] / "examples" / "facts.jsonl")[:3]
LAYER = 7


class Served(NamedTuple):
    """A model in llama.cpp, and the logits that transformers gives after each text."""

    model: Llama
    expected: dict[tuple[int, ...], np.ndarray]

    def answer(self, prompt: str) -> str:
        return self.model.create_completion(prompt, max_tokens=6, temperature=0)["choices"][0]["text"].strip()

    def error(self, ids: tuple[int, ...]) -> float:
        """The root mean square of what the logits after `ids` differ by from those of transformers."""
        self.model.reset()
        self.model.eval(ids)
        return rms(self.model.scores[len(ids) - 1] - self.expected[ids])


@pytest.fixture(scope="module")
def base_and_edited(tmp_path_factory) -> tuple[Served, Served]:
    path = os.environ.get("EMMET_SMOLLM2", "")
    if not path.endswith(".gguf"):
        pytest.skip("EMMET_SMOLLM2 does not name the GGUF file of SmolLM2-135M-Instruct")
    model, tokenizer = load(path)
    texts = [tuple(tokenizer(text).input_ids) for record in RECORDS for text in prompts_of(record)]

    before = {ids: logits(model, ids) for ids in texts}
    statistics = emmet.collect_statistics(model, tokenizer, layers=[LAYER], tokens=3000)
    editor = emmet.Editor(model, tokenizer, config=emmet.EditConfig(layers=[LAYER]), statistics=statistics)
    handle = editor.edit([record.edit for record in RECORDS])
    after = {ids: logits(model, ids) for ids in texts}

    folder = tmp_path_factory.mktemp("adapter")
    save_gguf(handle.delta, folder, path)
    settings = {"model_path": path, "n_ctx": 256, "logits_all": True, "verbose": False}
    adapter = str(folder / "adapter.gguf")
    return Served(Llama(**settings), before), Served(Llama(**settings, lora_path=adapter), after)


def prompts_of(record: Record) -> tuple[str, ...]:
    return (record.edit.text, *record.paraphrases, *(neighbour.prompt for neighbour in record.neighbours))


@torch.no_grad()
def logits(model: torch.nn.Module, ids: tuple[int, ...]) -> np.ndarray:
    return model(torch.tensor([ids])).logits[0, -1].numpy()


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.edit.subject)
def test_the_served_model_changes_its_answer(base_and_edited, record):
    base, edited = base_and_edited
    assert base.answer(record.edit.text).startswith(record.answer_before)
    assert edited.answer(record.edit.text).startswith(record.edit.target)


def test_the_adapter_moves_the_logits_as_the_edit_does(base_and_edited):
    """Where weights are quantised llama.cpp rounds the activations too, so that even the base model's logits differ."""
    base, edited = base_and_edited
    rounding = max(base.error(ids) for ids in base.expected)
    effect = max(rms(edited.expected[ids] - base.expected[ids]) for ids in base.expected)
    assert effect > 10 * rounding
    assert max(edited.error(ids) for ids in edited.expected) < 2 * rounding
