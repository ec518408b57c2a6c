"""Files that are whole or absent: written under a temporary name in the same folder, flushed, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import EmmetError, FormatError

_READ_SIZE = 1 << 20

# What errors of a full disk say, whichever library raises them.
_NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_SHORT_WRITE = re.compile("[0-9]+ requested and [0-9]+ written")  # NumPy, which does not say why


class TensorFile(NamedTuple):
    """The contents of a safetensors file: named CPU tensors and string metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def cache_folder() -> Path:
    """Where emmet keeps what it can compute again: EMMET_CACHE, else "emmet" in XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("EMMET_CACHE"):
        return Path(chosen)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "emmet"


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's content. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_SIZE):
            digest.update(block)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line; its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn an error of the body that says that there is no more room into an EmmetError that names `path`.

    By its text, as only some of the libraries that write files raise an OSError with its number.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        reason = next((words for words in _NO_ROOM if words in text), None)
        if reason is None and _SHORT_WRITE.search(text):
            reason = first_line(error)
        if reason is None:
            raise
        message = f"cannot write {path}: {reason}; make room, or name another place"
        raise EmmetError(message) from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the body is done and is removed if the body raises.

    Missing parent folders are made. Raises EmmetError where the disk is full.
    """
    with naming_full_disk(path):
        temporary = temporary_name(path)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        try:
            yield temporary
            temporary.chmod(mode)  # safetensors makes files that only their owner may read
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is renamed to `path` when the body is done and removed if the body raises.

    If `path` has come into being meanwhile, that one stays: for folders whose name determines what is in them. Raises
    EmmetError where the disk is full.
    """
    with naming_full_disk(path):
        temporary = temporary_name(path)
        temporary.mkdir()
        try:
            yield temporary
            if not path.exists():
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Bring a file, or all files of a folder, to the disk."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def temporary_name(path: Path) -> Path:
    """A new hidden name beside `path`, on the same file system; missing parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def parse_json(text: str, **options: Any) -> Any:
    """`json.loads`, but nesting beyond Python's limits is a ValueError too, as all that it cannot read."""
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        message = f"nested too deeply: {error}"
        raise ValueError(message) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. The tensors may lie on any device."""
    with new_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Bring the metadata of a safetensors file into order: the library writes it in another one each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


def read_tensors(path: Path) -> TensorFile:
    """Read a safetensors file. Raises FormatError if it is missing, truncated or malformed."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # not a mapping: it cannot be iterated
            tensors = {name: file.get_tensor(name) for name in names}
            return TensorFile(tensors, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        message = f"{path} is not a readable safetensors file: {first_line(error)}; write it again"
        raise FormatError(message) from error
