"""Everything in emmet that reads a file, with a good file for each: what fuzzing and its tests try.

A reader may raise EmmetError, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from emmet import Edit, EditConfig, EmmetError, Preservation, Update
from emmet.config import ResolvedConfig
from emmet.delta import Delta, LayerDelta
from emmet.edits import read_records
from emmet.ledger import Base, Batch, Entry, Given, Ledger
from emmet.statistics import LayerStatistics, Source
from emmet.value_cache import _read_part, _write_part
from emmet.values import Values
from workspace import EDITS, write_lines

EDIT = Edit("The mother tongue of {} is", "Danielle Darrieux", "English")
CONFIG = ResolvedConfig(
    layers=[1],
    prefixes=["It is."],
    **{"ridge": 0.0, "learning_rate": 0.5, "steps": 20, "clamp": 4.0, "weight_decay": 0.5},
    **{"null_space_threshold": 0.02, "null_space_alpha": 1.0},
)


class Reader(NamedTuple):
    """A reader of a file or folder; what writes a good one there; and which file in it is fuzzed, if it is a folder."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    file: str = ""


def _write_records(path: Path) -> None:
    write_lines(path, EDITS)


def _write_statistics(path: Path) -> None:
    source = Source("text.txt", "hash", "tokenizer", 100, 10, None)
    LayerStatistics(1, torch.eye(2).double(), 100, "fingerprint", "float32", (source,)).save(path.parent)
    (path.parent / "layer.1.safetensors").rename(path)


def _write_delta(path: Path) -> None:
    update = Update.from_factors(torch.ones(2, 1).double(), torch.ones(1, 3).double())
    layers = {1: LayerDelta("model.layers.1.mlp", False, "digest", update)}
    Delta((EDIT,), CONFIG, ("It is.",), "base", layers, ()).save(path)


def _write_ledger(path: Path) -> None:
    entry = Entry(1, EDIT, "2000-01-01T00:00:00+00:00", "me", replace(CONFIG, absorb_prompts=True))
    given = {
        1: Given(torch.ones(1, 3).double(), torch.ones(1, 2).double(), torch.ones(2, 3).double(), torch.tensor([0, 0]))
    }
    base = Base("base", {1: "weights"}, "rest", {1: "moments"})
    Ledger((Batch((entry,), ("It is.",), torch.ones(1, 2), given),), 1).save(path, base)


def _write_values(path: Path) -> None:
    _write_part(path.parent / "parts", ["key"], Values(torch.ones(1, 2), torch.ones(1), torch.ones(1).long()))
    (written,) = (path.parent / "parts").iterdir()
    written.rename(path)


READERS = {
    "records": Reader(_write_records, read_records),
    "settings": Reader(
        lambda path: path.write_text(EditConfig(layers=[1]).to_json()),
        lambda path: EditConfig.from_json(path.read_text(encoding="utf-8", errors="surrogateescape")),
    ),
    "statistics": Reader(_write_statistics, LayerStatistics.load),
    "metric": Reader(lambda path: Preservation.from_second_moment(torch.eye(2).double()).save(path), Preservation.load),
    "update": Reader(lambda path: Update.from_dense(torch.ones(2, 3).double()).save(path), Update.load),
    "values": Reader(_write_values, _read_part),
    "delta-manifest": Reader(_write_delta, Delta.load, "emmet.json"),
    "delta-layer": Reader(_write_delta, Delta.load, "layer.1.safetensors"),
    "ledger-manifest": Reader(_write_ledger, Ledger.load, "emmet.json"),
    "ledger-tensors": Reader(_write_ledger, Ledger.load, "ledger.safetensors"),
}


def seed(reader: Reader, folder: Path) -> bytes:
    """Write a good file or folder as folder/input, and return the content of the file that is fuzzed."""
    reader.write(folder / "input")
    return (folder / "input" / reader.file).read_bytes()


def attempt(reader: Reader, folder: Path, content: bytes) -> bool:
    """Read folder/input with this content; whether it was accepted. Raises whatever is not an EmmetError."""
    (folder / "input" / reader.file).write_bytes(content)
    try:
        reader.read(folder / "input")
    except EmmetError:
        return False
    return True
