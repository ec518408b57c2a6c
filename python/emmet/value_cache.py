"""Value vectors kept on disk in parts, so that a run of many edits that is killed goes on where it was.

FOLDER/<hash of what all edits share>/<hash of the edits in the part>.safetensors. What they share is the model with
every weight, the tokenizer, the place of v* and the settings of its optimisation. So an edited model never meets the
values of the unedited one, and another list of the same edits finds those that are there.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .architectures import Architecture
from .config import OF_THE_PREFIXES, OF_THE_SOLVE, ResolvedConfig
from .distributed import ALONE, World
from .edits import Edit
from .errors import EmmetWarning, FormatError
from .fingerprint import Identity
from .integrity import read_with_checksum, write_with_checksum
from .output import check_folder
from .progress import Progress, silent, within
from .storage import first_line, parse_json
from .suffixes import Injection
from .tokens import Prompt
from .values import Values, by_length, optimise_values

# Of the files; to be raised as well when `optimise_values` comes to other values for the same settings.
_FORMAT = "emmet values 5"

# Of the settings, those that values do not depend on, or only through the prompts and the place of v*. All others
# count, new ones too.
_IDLE_SETTINGS = {*OF_THE_SOLVE, *OF_THE_PREFIXES, "batch_size"}

_TENSORS = ("targets", "loss", "steps")


def cached_values(
    folder: Path,
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    config: ResolvedConfig,
    injection: Injection,
    progress: Progress = silent,
    world: World = ALONE,
    *,
    identity: Identity | None = None,
    part_size: int = 128,
) -> Values:
    """The values of `optimise_values`, of which only those are computed that `folder` lacks.

    Values found are those computed, bit for bit. Each `part_size` edits that were computed are written at once, or as
    many for each process of `world`, of which only the first reads and writes. A run that is killed loses the part that
    it was at. The same edits in other batches differ in their last bits.

    `identity` is of the model and the tokenizer; None has them read. A file that is damaged costs a warning and its
    values are computed again. Processes may share a folder. Raises what `optimise_values` raises, and EmmetError if
    `folder` cannot be written to.
    """
    check_folder(folder)
    identity = identity or Identity(arch, tokenizer, ())
    place = folder / _shared_key(identity, config, injection)
    keys = [_edit_key(edit, contexts) for edit, contexts in zip(edits, prompts, strict=True)]
    rows = world.agreed(_stored_rows(place, set(keys)) if world.rank == 0 else {})
    # In the order of batches, and in whole batches, so that parts of any size have the same ones.
    missing = [i for i in by_length(prompts) if keys[i] not in rows]
    part_size = -(-part_size // config.batch_size) * config.batch_size * world.size
    for first in range(0, len(missing), part_size):
        part = missing[first : first + part_size]
        of_part = within(progress, (len(edits) - len(missing) + first) * config.steps, len(edits) * config.steps)
        part_edits, part_prompts = [edits[i] for i in part], [prompts[i] for i in part]
        values = optimise_values(arch, tokenizer, part_edits, part_prompts, config, injection, of_part, world)
        part_keys = [keys[i] for i in part]
        if world.rank == 0:
            _write_part(place, part_keys, values)
        rows |= zip(part_keys, _single_rows(values), strict=True)
    values = Values.joined([rows[key] for key in keys])
    return Values(values.targets.to(arch.model.device), values.loss, values.steps)


def _shared_key(identity: Identity, config: ResolvedConfig, injection: Injection) -> str:
    return _hash(
        _FORMAT,
        identity.fingerprint(),
        [injection.layer, injection.at_projection],
        {name: value for name, value in asdict(config).items() if name not in _IDLE_SETTINGS},
    )


def _edit_key(edit: Edit, contexts: Sequence[Prompt]) -> str:
    tokens = [(prompt.ids, prompt.subject, prompt.target.start, prompt.target.stop) for prompt in contexts]
    return _hash(edit.prompt, edit.subject, edit.target, tokens)


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _stored_rows(place: Path, wanted: set[str]) -> dict[str, Values]:
    """The values that are wanted and stored, one by one on the CPU; where two files have one, the first by name."""
    rows: dict[str, Values] = {}
    for path in sorted(place.glob("*.safetensors")):
        try:
            keys, values = _read_part(path)
        except FormatError as error:
            warnings.warn(f"{error}; its values are computed again", EmmetWarning, stacklevel=3)
            continue
        for key, row in zip(keys, _single_rows(values), strict=True):
            if key in wanted:
                rows.setdefault(key, row)
    return rows


def _single_rows(values: Values) -> list[Values]:
    targets = values.targets.cpu()
    return [Values(targets[i : i + 1], values.loss[i : i + 1], values.steps[i : i + 1]) for i in range(len(targets))]


def _write_part(place: Path, keys: Sequence[str], values: Values) -> None:
    tensors = {name: getattr(values, name).cpu() for name in _TENSORS}
    metadata = {"format": _FORMAT, "edits": json.dumps(keys)}
    write_with_checksum(place / f"{_hash(*keys)}.safetensors", tensors, metadata)


def _read_part(path: Path) -> tuple[list[str], Values]:
    """Keys and values of a file that `_write_part` wrote, bit for bit. Raises FormatError for any other."""
    tensors, metadata = read_with_checksum(path, _FORMAT)
    try:
        keys, values = parse_json(metadata["edits"]), Values(*(tensors[name] for name in _TENSORS))
        if len(keys) == len(values.targets) == len(values.loss) == len(values.steps):
            return keys, values
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path} is not what emmet wrote there ({first_line(error)}); remove it"
        raise FormatError(message) from error
    message = f"{path} is not what emmet wrote there (a value for each edit); remove it"
    raise FormatError(message)
