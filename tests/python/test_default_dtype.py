"""The default dtype of torch, which is for others to choose, changes no bit of what emmet computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emmet import Edit, EditConfig, Editor
from emmet.architectures import discover
from emmet.config import OPTIMIZERS, Optimizer
from emmet.edits import Neighbour, Record
from emmet.evaluate import evaluate
from emmet.optimisers import MarginNewton
from emmet.statistics import Statistics, collect_statistics
from test_optimisers import Logistic, minimise
from tiny import tiny_model, tiny_tokenizer
from workspace import TEXT

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model("llama", vocab_size=len(TOKENIZER))
EDITS = [
    Edit("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Edit("The capital of {} is", "France", "Berlin"),
]
RECORD = Record(
    EDITS[0],
    "counterfact",
    "French",
    ("Danielle Darrieux is a native speaker of",),
    (Neighbour("The mother tongue of Michel Rocard is", "French"),),
    ("Danielle Darrieux lives in",),
)
DTYPES = [torch.bfloat16, torch.float16, torch.float64]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def moment(corpus: str | Path) -> Tensor:
    return collect_statistics(MODEL, TOKENIZER, corpus, layers=[1], tokens=400)[1].second_moment


@pytest.mark.parametrize("name", ["text", "self"])
def test_statistics(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text(TEXT)
    corpus = tmp_path / name if name == "text" else name
    expected = moment(corpus)
    for dtype in DTYPES:
        with default_dtype(dtype):
            assert_same_bits({"C": moment(corpus)}, {"C": expected})


def edited(config: EditConfig, statistics: Statistics) -> dict[str, Any]:
    editor = Editor(MODEL, TOKENIZER, config=config, statistics=statistics)
    handle = editor.edit(EDITS)
    found = {"prefixes": editor.prefixes, "weight": editor.arch.projection(1).weight.clone(), **vars(handle.values)}
    handle.undo()
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_edits(tmp_path: Path, optimizer: Optimizer) -> None:
    (tmp_path / "text").write_text(TEXT)
    statistics = collect_statistics(MODEL, TOKENIZER, tmp_path / "text", layers=[1], tokens=400)
    steps = None if optimizer == "gradient" else 8
    config = EditConfig(layers=[1], optimizer=optimizer, steps=steps, learning_rate=0.1)
    expected = edited(config, statistics)
    for dtype in DTYPES:
        with default_dtype(dtype):
            assert_same_bits(edited(config, statistics), expected)


def test_newtons_radius() -> None:
    """Among many edits some have a radius that is just too small for a step."""
    problem, radius = Logistic(64, seed=5), torch.ones(64)
    expected = minimise(MarginNewton(radius), problem, 64, 12)
    for dtype in DTYPES:
        with default_dtype(dtype):
            assert_same_bits({"loss": minimise(MarginNewton(radius), problem, 64, 12)}, {"loss": expected})


def test_evaluation() -> None:
    def report() -> dict[str, Any]:
        return evaluate(discover(MODEL), TOKENIZER, [RECORD], write_texts=True).to_json()

    expected = report()
    for dtype in DTYPES:
        with default_dtype(dtype):
            assert_same_bits(report(), expected)
