"""Folders that a user names for results: complete or untouched, and never what cannot be made again."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from .errors import EmmetError
from .storage import cache_folder, flush, naming_full_disk, parse_json, temporary_name

# Every folder that emmet writes holds this file, whose "format" is "emmet.KIND.VERSION".
MANIFEST = "emmet.json"

Kind: TypeAlias = Literal["update", "ledger", "sweep"]
"""What a folder holds: edits in one of the formats for them, which a new output replaces, or an account of work."""

_UPDATES = {"delta", "model", "peft", "gguf"}
_REPLACED_AS_A_WHOLE = ("update", "ledger")

# Of renameat2(2), in Linux.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_folder(path: Path) -> None:
    """Raise EmmetError unless files can be written to the folder `path`, which need not exist yet, and stay there.

    They may not in one of emmet's own with a manifest: it is replaced as a whole, or has files of the same names.
    """
    _check_place(path)
    found = _kind_of(path)
    if found is not None:
        message = f"expected a folder of its own, got {path}, which holds {_described(found)}; name another"
        raise EmmetError(message)


def check_output(path: Path, kind: Kind) -> None:
    """Raise EmmetError unless `path` is new, an empty folder or one of this kind that emmet wrote."""
    _check_place(path)
    if path.is_dir() and any(path.iterdir()):
        found = _kind_of(path)
        if found != kind:
            message = f"expected a new or empty folder for the output, got {path}, which holds {_described(found)}; "
            message += "name another"
            raise EmmetError(message)


def _check_place(path: Path) -> None:
    """Raise EmmetError unless a folder can be written there, and lies in none that emmet replaces as a whole."""
    resolved = path.resolve()
    try:
        existing = next(place for place in (resolved, *resolved.parents) if place.exists())
    except OSError as error:  # in a folder that may not be searched, or too long a name
        message = f"cannot write to {path}: {error.strerror}; {_another(path)}"
        raise EmmetError(message) from error
    if not existing.is_dir() or not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        message = f"cannot write to {path}, as {existing} is not a folder that you may write to; {_another(path)}"
        raise EmmetError(message)
    for place in resolved.parents:
        found = _kind_of(place)
        if found in _REPLACED_AS_A_WHOLE:
            message = f"expected a folder of its own, got {path}, which goes when emmet replaces {place} with "
            message += f"{_described(found)}; {_another(path)}"
            raise EmmetError(message)


def _another(path: Path) -> str:
    """What to do about a folder, which the user may not have named."""
    return "name another with EMMET_CACHE" if path.is_relative_to(cache_folder()) else "name another"


def _described(kind: str | None) -> str:
    """What a folder of a kind holds."""
    return {None: "other files", "update": "edits"}.get(kind, f"a {kind}")


def _kind_of(path: Path) -> str | None:
    """The kind of a folder that emmet wrote; None for others."""
    try:
        name = str(parse_json((path / MANIFEST).read_text(encoding="utf-8"))["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    emmet, _, kind = name.rpartition(".")[0].partition(".")
    return None if emmet != "emmet" else "update" if kind in _UPDATES else kind


@contextmanager
def output_folder(path: Path, kind: Kind = "update") -> Iterator[Path]:
    """Yield a temporary folder to fill; it replaces `path` when the body is done and is removed if the body raises.

    Raises EmmetError for a folder that holds anything but a former output of this kind, and where the disk is full.
    """
    check_output(path, kind)
    with naming_full_disk(path):
        place = path.resolve()  # a link to a folder stays one
        temporary = temporary_name(place)
        temporary.mkdir()
        try:
            yield temporary
            flush(temporary)
            if not place.exists():
                temporary.rename(place)
            elif not _exchange(temporary, place):
                _replace(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders swap names in one step, so that a killed process leaves either; False where that is not known."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    done: int = swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _replace(new: Path, path: Path) -> None:
    """Give `new` the name of the folder `path`, which is removed. Between two steps there is none of this name."""
    retired = temporary_name(path)
    path.rename(retired)
    try:
        new.rename(path)
    except BaseException:
        retired.rename(path)
        raise
    shutil.rmtree(retired)
