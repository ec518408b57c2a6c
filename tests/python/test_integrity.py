"""A file with a checksum is read as it was written, or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emmet.errors import FormatError
from emmet.integrity import read_with_checksum, write_with_checksum
from emmet.storage import read_tensors

METADATA = {"format": "test 1", "count": "12"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.safetensors"
    tensors = {"moment": torch.arange(12).double().view(3, 4).T, "half": torch.ones(5, dtype=torch.bfloat16)}
    write_with_checksum(path, tensors, METADATA)
    return path


def refused(path: Path) -> None:
    with pytest.raises(FormatError, match=f"^{re.escape(str(path))}.*(damaged|not a readable|expected the format)"):
        read_with_checksum(path, "test 1")


def test_content_comes_back(path: Path) -> None:
    tensors, metadata = read_with_checksum(path, "test 1")
    assert metadata == METADATA
    assert torch.equal(tensors["moment"], torch.arange(12).double().view(3, 4).T)
    assert tensors["half"].dtype == torch.bfloat16


def test_every_flipped_bit_is_found(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        if content[place : place + 1] == b" ":  # the padding of the header, which means nothing
            continue
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused(path)


def test_a_file_of_another_format_is_named_as_such(path: Path) -> None:
    with pytest.raises(FormatError, match='expected the format "test 2", got "test 1"'):
        read_with_checksum(path, "test 2")


@pytest.mark.parametrize("change", ["tensor left out", "tensor renamed", "number changed", "entry added", "no sum"])
def test_other_content_is_refused(path: Path, change: str) -> None:
    tensors, metadata = load_file(path), read_tensors(path).metadata
    if change == "tensor left out":
        del tensors["half"]
    elif change == "tensor renamed":
        tensors["other"] = tensors.pop("half")
    elif change == "number changed":
        metadata["count"] = "13"
    elif change == "entry added":
        metadata["more"] = ""
    else:
        del metadata["checksum"]
    save_file(tensors, path, metadata)
    refused(path)
