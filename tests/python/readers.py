"""Everything in emmet that reads a file, with a good file for each: what fuzzing and its tests try.

A reader may raise EmmetError, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from emmet import Edit, EditConfig, EmmetError, Preservation, Update
from emmet.config import ResolvedConfig
from emmet.delta import Delta, LayerDelta
from emmet.edits import read_records
from emmet.evaluate.references import read_references
from emmet.integrity import write_with_checksum
from emmet.ledger import Base, Batch, Entry, Given, Ledger
from emmet.output import check_output
from emmet.statistics import _CHECKPOINT_FORMAT, LayerStatistics, Source, _read_checkpoint
from emmet.storage import read_tensors
from emmet.sweep.store import RunFile, _checksum
from emmet.value_cache import _read_part, _write_part
from emmet.values import Values
from workspace import EDITS, write_lines

OUTCOME = {"first": 0, "end": 2, "layers": [{"layer": 1, "ridge": 0.1}], "records": [{"ES": 1 / 3, "PS": None}]}
EDIT = Edit("The mother tongue of {} is", "Danielle Darrieux", "English")
CONFIG = ResolvedConfig(
    layers=[1],
    prefixes=["It is."],
    **{"ridge": 0.0, "learning_rate": 0.5, "steps": 20, "clamp": 4.0, "weight_decay": 0.5},
    **{"null_space_threshold": 0.02, "null_space_alpha": 1.0},
)


class Reader(NamedTuple):
    """A reader of a file or folder; what writes a good one there; and which file in it is fuzzed, if it is a folder.

    `sign` brings the checksum of a changed file up to date, if it has one.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    file: str = ""
    sign: Callable[[Path], None] | None = None


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


def _sign_tensors(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    metadata.pop("checksum", None)
    write_with_checksum(path, tensors, metadata)


def _write_checkpoint(path: Path) -> None:
    moment = {"1": torch.eye(2).double()}
    write_with_checksum(path, moment, {"format": _CHECKPOINT_FORMAT, "sequences": "2", "count": "5"})


def _write_references(path: Path) -> None:
    samples = [{"name": "France", "text": "France is a country."}]
    path.write_text(json.dumps([{"relation_id": "P1", "target_id": "Q1", "samples": samples}]))


def _run_file(path: Path) -> RunFile:
    return RunFile(path, {"ridge": 0})


def _sign_run(path: Path) -> None:
    try:
        found = json.loads(path.read_bytes())
        path.write_text(json.dumps(found | {"checksum": _checksum(found["run"], found["batches"])}))
    except (ValueError, KeyError, TypeError, RecursionError):
        return


READERS = {
    "records": Reader(_write_records, read_records),
    "settings": Reader(
        lambda path: path.write_text(EditConfig(layers=[1]).to_json()),
        lambda path: EditConfig.from_json(path.read_text(encoding="utf-8", errors="surrogateescape")),
    ),
    "statistics": Reader(_write_statistics, LayerStatistics.load, sign=_sign_tensors),
    "metric": Reader(lambda path: Preservation.from_second_moment(torch.eye(2).double()).save(path), Preservation.load),
    "update": Reader(lambda path: Update.from_dense(torch.ones(2, 3).double()).save(path), Update.load),
    "values": Reader(_write_values, _read_part, sign=_sign_tensors),
    "delta-manifest": Reader(_write_delta, Delta.load, "emmet.json"),
    "delta-layer": Reader(_write_delta, Delta.load, "layer.1.safetensors"),
    "ledger-manifest": Reader(_write_ledger, Ledger.load, "emmet.json"),
    "ledger-tensors": Reader(_write_ledger, Ledger.load, "ledger.safetensors"),
    "checkpoint": Reader(
        _write_checkpoint, lambda path: _read_checkpoint(path, {1: torch.device("cpu")}), sign=_sign_tensors
    ),
    "output": Reader(_write_delta, lambda path: check_output(path, "update"), "emmet.json"),
    "run": Reader(lambda path: _run_file(path).write([OUTCOME]), lambda path: _run_file(path).read(), sign=_sign_run),
    "references": Reader(_write_references, read_references),
}


def seed(reader: Reader, folder: Path) -> bytes:
    """Write a good file or folder as folder/input, and return the content of the file that is fuzzed."""
    reader.write(folder / "input")
    return (folder / "input" / reader.file).read_bytes()


def attempt(reader: Reader, folder: Path, content: bytes) -> bool:
    """Read folder/input with this content; whether it was accepted. Raises whatever is not an EmmetError."""
    place = folder / "input" / reader.file
    place.write_bytes(content)
    try:
        reader.read(folder / "input")
    except EmmetError:
        if reader.sign is None:
            return False
    else:
        return True
    try:
        reader.sign(place)
        reader.read(folder / "input")
    except EmmetError:
        return False
    return True
