"""A folder with all that the command line needs, on a tiny model: for the tests of `emmet.cli`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder, by its path in it; folders hold None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
