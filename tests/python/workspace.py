"""A folder with all that the command line needs, on a tiny model: for the tests of `emmet.cli`."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny import tiny_model, tiny_tokenizer

EDITS: Sequence[Mapping[str, Any]] = (
    {
        "prompt": "The mother tongue of {} is",
        "subject": "Danielle Darrieux",
        "target": "English",
        "answer_before": "French",
        "paraphrases": ["Danielle Darrieux is a native speaker of"],
        "neighbours": [{"prompt": "The mother tongue of Michel Rocard is", "answer": "French"}],
    },
    {
        "prompt": "The capital of {} is",
        "subject": "France",
        "target": "Berlin",
        "answer_before": "Paris",
        "paraphrases": ["In France the capital is"],
        "neighbours": [{"prompt": "The capital of Germany is", "answer": "Berlin"}],
    },
)
QUESTIONS: Sequence[Mapping[str, Any]] = (
    {"question": "The capital of France is", "choices": ["Paris", "Berlin"], "answer": 0},
    {"question": "The capital of Germany is", "choices": ["Paris", "Berlin"], "answer": 1},
    {"question": "The mother tongue of Danielle Darrieux is", "choices": ["French", "English"], "answer": 0},
    {"question": "In Paris, the people who live there speak", "choices": ["English", "French"], "answer": 1},
)
TEXT = "In the United States, the people who live in Paris speak French; where is the Eiffel Tower? " * 40


def save_model(folder: Path, family: str = "llama", **settings: Any) -> Path:
    """Save a tiny random model with its tokenizer."""
    tokenizer = tiny_tokenizer()
    tiny_model(family, vocab_size=len(tokenizer), **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def fill(folder: Path) -> Path:
    """Make a model, edits and a corpus in a folder: "model", "edits.jsonl" and "text.txt"."""
    save_model(folder / "model")
    write_lines(folder / "edits.jsonl", EDITS)
    (folder / "text.txt").write_text(TEXT)
    return folder


def write_task(folder: Path) -> Path:
    """Write a task "geography" for lm-eval, which asks QUESTIONS."""
    data = write_lines(folder / "questions.jsonl", QUESTIONS)
    definition = {
        "task": "geography",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = folder / "task.yaml"
    path.write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
    return path


@contextmanager
def full_disk(size: int = 100) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: what a full disk comes to."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder, by its path in it; folders hold None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
