"""A ledger: the edits that are in a model, where each came from, and what is needed to take single ones back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ._core import Update
from .config import EditConfig, ResolvedConfig
from .edits import Edit
from .errors import EmmetError, FormatError
from .output import MANIFEST, output_folder
from .storage import parse_json, read_tensors, write_json, write_tensors

_FORMAT = "emmet.ledger.1"
TENSORS = "ledger.safetensors"

# Of the memories, of which a solve takes copies.
_KEYS_AT_ONCE = 4096


@dataclass(frozen=True)
class Entry:
    """One edit of a ledger.

    `id` counts from 1, and is not used again when the edit is removed. `time` is when it was made: UTC, ISO 8601.
    `config` are the settings by which it was made, the method among them.
    """

    id: int
    edit: Edit
    time: str
    author: str
    config: ResolvedConfig


class Given(NamedTuple):
    """What the solve of a batch was given at one layer: keys [n, d_in] and residuals [n, d_out], float64.

    `others` [m, d_in] are the keys that later edits preserve besides, in the dtype in which they were read, and
    `owners` [m] the rows of their edits.
    """

    keys: Tensor
    residuals: Tensor
    others: Tensor
    owners: Tensor

    @staticmethod
    def without_others(keys: Tensor, residuals: Tensor) -> Given:
        return Given(keys, residuals, keys[:0], torch.empty(0, dtype=torch.long))

    @property
    def memories(self) -> Iterator[Tensor]:
        """The keys that later edits preserve: rows [m, d_in], some thousand at a time."""
        for keys in (self.keys, self.others):
            yield from torch.split(keys, _KEYS_AT_ONCE) if len(keys) else ()

    def select(self, rows: Sequence[int]) -> Given:
        places = torch.full((len(self.keys),), -1)
        places[rows] = torch.arange(len(rows))
        owners = places[self.owners]
        return Given(self.keys[rows], self.residuals[rows], self.others[owners >= 0], owners[owners >= 0])

    def to(self, device: torch.device) -> Given:
        return Given(self.keys.to(device), self.residuals.to(device), self.others.to(device), self.owners)


@dataclass(frozen=True, eq=False)
class Batch:
    """Edits that were solved at once.

    values [n, d_model] are their v*, and `prefixes` the contexts in which these and the keys were found. By layer,
    `given` is what the solves were given, and `updates` what they made of it; a ledger that was read from a file has
    none until the editor that loads it solves again.
    """

    entries: tuple[Entry, ...]
    prefixes: tuple[str, ...]
    values: Tensor
    given: Mapping[int, Given] = field(default_factory=dict)
    updates: Mapping[int, Update] = field(default_factory=dict)

    @property
    def config(self) -> ResolvedConfig:
        return self.entries[0].config

    def without(self, ids: Collection[int]) -> Batch:
        """The batch without some edits. What its solves were given stays that of the others, but is not solved."""
        rows = [row for row, entry in enumerate(self.entries) if entry.id not in ids]
        return replace(
            self,
            entries=tuple(self.entries[row] for row in rows),
            values=self.values[rows],
            given={layer: given.select(rows) for layer, given in self.given.items()},
            updates={},
        )


@dataclass(frozen=True)
class Base:
    """The model that the edits of a ledger are for, as it is without them, and the statistics they preserve.

    `name` is where the model was loaded from, None if that is unknown. `weights` and `moments` are digests of the
    edited weights and of the second moments, by layer, and `rest` is one of everything else in the model.
    """

    name: str | None
    weights: Mapping[int, str]
    rest: str
    moments: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Ledger:
    """The edits that are in effect, in the order in which they were made. `last_id` is the last id that was used."""

    batches: tuple[Batch, ...] = ()
    last_id: int = 0

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(entry for batch in self.batches for entry in batch.entries)

    def next_entries(
        self, edits: Sequence[Edit], *, time: str, author: str, config: ResolvedConfig
    ) -> tuple[Entry, ...]:
        """Entries for new edits, whose ids follow the last."""
        return tuple(Entry(id_, edit, time, author, config) for id_, edit in enumerate(edits, start=self.last_id + 1))

    def with_batch(self, batch: Batch) -> Ledger:
        return Ledger((*self.batches, batch), max(self.last_id, *(entry.id for entry in batch.entries)))

    def replaced_by(self, edits: Sequence[Edit]) -> tuple[Entry, ...]:
        """The entries whose prompt and subject one of these edits has too: both cannot hold."""
        facts = {(edit.prompt, edit.subject) for edit in edits}
        return tuple(entry for entry in self.entries if (entry.edit.prompt, entry.edit.subject) in facts)

    def first_with(self, ids: Collection[int]) -> int:
        """The index of the first batch that holds one of these edits. Raises EmmetError if any edit is in none."""
        known = [entry.id for entry in self.entries]
        unknown = sorted(set(ids).difference(known), key=str)
        if unknown or not ids:
            message = f"expected ids of edits in the ledger, got {_listed(unknown)}; it has {_listed(known)}"
            raise EmmetError(message)
        return next(i for i, batch in enumerate(self.batches) if any(entry.id in ids for entry in batch.entries))

    def save(self, directory: str | PathLike[str], base: Base) -> None:
        """Write a folder with emmet.json and ledger.safetensors, which C++ reads by `emmet::read_safetensors`.

        Raises EmmetError if the folder holds files that emmet did not write.
        """
        tensors = {name: tensor for index, batch in enumerate(self.batches) for name, tensor in _tensors(index, batch)}
        with output_folder(Path(directory), "ledger") as folder:
            write_tensors(folder / TENSORS, tensors, {"format": _FORMAT})
            write_json(folder / MANIFEST, self._manifest(base))

    @staticmethod
    def load(directory: str | PathLike[str]) -> tuple[Ledger, Base]:
        """Read a folder that `save` wrote. Raises FormatError if it is not one, or damaged."""
        folder = Path(directory)
        try:
            manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != _FORMAT:
                message = f"expected a ledger of format {_FORMAT}, got {manifest['format']!r} in {folder}"
                message += "; give a folder that `Editor.save` wrote"
                raise FormatError(message)
            tensors = read_tensors(folder / TENSORS).tensors
            return _from_manifest(manifest, tensors), _base(**manifest["base"])
        except FormatError:
            raise
        except OSError as error:
            message = f"cannot read the ledger {folder}: {error.strerror}; expected a folder that `Editor.save` wrote"
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{folder} is not a ledger, or its {MANIFEST} and {TENSORS} do not fit together"
            message += "; restore both from a copy"
        raise FormatError(message)

    def _manifest(self, base: Base) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "emmet": version("emmet-edit"),
            "base": asdict(base),
            "last_id": self.last_id,
            "batches": [
                {
                    "config": json.loads(batch.config.to_json()),
                    "prefixes": list(batch.prefixes),
                    "entries": [
                        {"id": entry.id, "edit": asdict(entry.edit), "time": entry.time, "author": entry.author}
                        for entry in batch.entries
                    ],
                }
                for batch in self.batches
            ],
        }


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "none"


def _tensors(index: int, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    yield f"batch.{index}.values", batch.values
    for layer, given in batch.given.items():
        yield f"batch.{index}.layer.{layer}.keys", given.keys
        yield f"batch.{index}.layer.{layer}.residuals", given.residuals
        if batch.config.absorb_prompts:
            yield f"batch.{index}.layer.{layer}.others", given.others
            yield f"batch.{index}.layer.{layer}.owners", given.owners


def _from_manifest(manifest: Any, tensors: dict[str, Tensor]) -> Ledger:
    """The ledger of a manifest, whose tensors are taken out of `tensors`. Raises ValueError and others for nonsense."""
    batches = tuple(_batch(tensors, index, **batch) for index, batch in enumerate(manifest["batches"]))
    ledger = Ledger(batches, _of(int, manifest["last_id"]))
    ids = [entry.id for entry in ledger.entries]
    if tensors or ids != sorted(set(ids)) or not all(0 < id_ <= ledger.last_id for id_ in ids):
        raise ValueError
    return ledger


def _batch(tensors: dict[str, Tensor], index: int, *, config: Any, prefixes: Any, entries: Any) -> Batch:
    made_by = ResolvedConfig(**asdict(EditConfig.from_json(json.dumps(config))))
    read = tuple(_entry(config=made_by, **entry) for entry in entries)

    def take(name: str) -> Tensor:
        return _checked_rows(tensors.pop(f"batch.{index}.{name}"), len(read))

    def take_given(layer: int) -> Given:
        given = Given.without_others(take(f"layer.{layer}.keys"), take(f"layer.{layer}.residuals"))
        if not made_by.absorb_prompts:
            return given
        owners = _checked_owners(tensors.pop(f"batch.{index}.layer.{layer}.owners"), len(read))
        others = tensors.pop(f"batch.{index}.layer.{layer}.others")
        if others.shape != (len(owners), given.keys.shape[1]) or not bool(others.isfinite().all()):
            raise ValueError
        return given._replace(others=others, owners=owners)

    return Batch(
        entries=read,
        prefixes=tuple(_of(str, prefix) for prefix in _of(list, prefixes)),
        values=take("values"),
        given={layer: take_given(layer) for layer in made_by.layers},
    )


def _entry(*, id: Any, edit: Any, time: Any, author: Any, config: ResolvedConfig) -> Entry:
    return Entry(_of(int, id), Edit(**edit), _of(str, time), _of(str, author), config)


def _base(*, name: Any, weights: Any, rest: Any, moments: Any) -> Base:
    return Base(None if name is None else _of(str, name), _digests(weights), _of(str, rest), _digests(moments))


def _digests(by_layer: Any) -> dict[int, str]:
    return {int(layer): _of(str, digest) for layer, digest in by_layer.items()}


def _checked_rows(tensor: Tensor, rows: int) -> Tensor:
    shaped = tensor.ndim == 2 and len(tensor) == rows > 0
    if not (shaped and tensor.is_floating_point() and bool(tensor.isfinite().all())):
        raise ValueError
    return tensor


def _checked_owners(owners: Tensor, edits: int) -> Tensor:
    if owners.ndim != 1 or owners.dtype != torch.long or not bool(((owners >= 0) & (owners < edits)).all()):
        raise ValueError
    return owners


_Kind = TypeVar("_Kind")


def _of(kind: type[_Kind], value: Any) -> _Kind:
    if type(value) is not kind:
        raise TypeError
    return value
