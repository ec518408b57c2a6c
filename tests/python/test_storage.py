"""Files are whole or absent, and a malformed safetensors file is a FormatError that names it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from emmet import Update
from emmet.errors import EmmetError, FormatError
from emmet.storage import (
    cache_folder,
    file_hash,
    first_line,
    new_file,
    new_folder,
    parse_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from tiny import tiny_tokenizer
from workspace import full_disk


def test_new_file_replaces_the_old_one_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), new_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]

    write_text(path, "nëw")
    assert path.read_text(encoding="utf-8") == "nëw"
    assert list(path.parent.iterdir()) == [path]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_tensors(tmp_path / "tensors", {"x": torch.zeros(1)}, {})
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(RuntimeError), new_folder(path) as temporary:  # noqa: PT012
        (temporary / "part").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []

    with new_folder(path) as temporary:
        (temporary / "part").touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["part"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new" * 1000),
        lambda path: write_tensors(path, {"x": torch.zeros(1000)}, {}),
    ],
)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    refused = re.escape(f"cannot write {path}: File too large; make room, or name another place")
    with full_disk(), pytest.raises(EmmetError, match=f"^{refused}$"):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# Each says it in its own words; NumPy, by which GGUF files are written, does not say why.
@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: Update.from_dense(torch.ones(50, 50)).save(path), "File too large"),
        (lambda path: tiny_tokenizer().save_pretrained(path), "File too large"),
        (lambda path: np.zeros(100_000).tofile(path), "[0-9]+ requested and [0-9]+ written"),
    ],
)
def test_a_full_disk_is_named_whatever_library_finds_it(
    tmp_path: Path, write: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "folder"
    refused = re.escape(f"cannot write {path}: ") + reason
    with pytest.raises(EmmetError, match=f"^{refused}; "), new_folder(path) as temporary, full_disk():
        write(temporary / "file")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_in_writing_propagate(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "file"):
        (tmp_path / "missing").read_text()
    assert list(tmp_path.iterdir()) == []


def test_new_folder_leaves_one_that_another_process_made(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with new_folder(path) as temporary:
        (temporary / "mine").touch()
        path.mkdir()
        (path / "theirs").touch()
    assert [file.name for file in path.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"name": "Darrieux – é", "numbers": [1, 0.1, None]}
    write_json(tmp_path / "value.json", value)
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == value


def test_json_without_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "file.safetensors"
    tensor = (100 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    write_tensors(path, {"plain": tensor, "transposed": tensor.T}, {"who": "emmet"})
    tensors, metadata = read_tensors(path)
    assert metadata == {"who": "emmet"}
    assert tensors.keys() == {"plain", "transposed"}
    assert tensors["plain"].dtype == dtype
    assert torch.equal(tensors["plain"], tensor)
    assert torch.equal(tensors["transposed"], tensor.T)


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_truncated_tensors_are_a_format_error(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"x": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FormatError, match=r"file\.safetensors") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are not tensors, but there are enough bytes for a header")
    for wrong in (path, tmp_path, tmp_path / "missing"):
        with pytest.raises(FormatError, match=str(wrong)):
            read_tensors(wrong)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMMET_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("EMMET_CACHE")
    assert cache_folder() == tmp_path / "shared" / "emmet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "emmet"


def test_file_hash_covers_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert file_hash(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_first_line() -> None:
    assert first_line(ValueError("\none\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


WRITE = """
import sys
from pathlib import Path
import torch
from emmet.storage import write_tensors
write_tensors(Path(sys.argv[1]), {"b": torch.ones(2), "a": torch.zeros(3)}, METADATA)
"""


def test_the_same_tensors_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    metadata = {
        name: f'"{name}" is\n\t\x01 ü → \U0001f600 \\' for name in ["format", "key", "edits", "digest", "count"]
    }
    script = WRITE.replace("METADATA", repr(metadata))
    for number in range(3):
        subprocess.run([sys.executable, "-c", script, tmp_path / str(number)], check=True)
    contents = {(tmp_path / str(number)).read_bytes() for number in range(3)}
    assert len(contents) == 1
    assert read_tensors(tmp_path / "0").metadata == metadata


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", '{"a": }'])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|line 1 column"):
        parse_json(text)
