"""Safetensors files that hold a checksum of their content, so that no damage goes unnoticed, be it a flipped bit."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import FormatError
from .storage import TensorFile, read_tensors, write_tensors

_CHECKSUM = "checksum"  # in the metadata


def write_with_checksum(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file for `read_with_checksum`. The tensors may lie on any device."""
    write_tensors(path, tensors, {**metadata, _CHECKSUM: _checksum(tensors, metadata)})


def read_with_checksum(path: Path, expected_format: str) -> TensorFile:
    """Read a file that `write_with_checksum` wrote with this "format" in its metadata, bit for bit.

    Raises FormatError for any other.
    """
    tensors, metadata = read_tensors(path)
    found = metadata.get("format", "none")
    if found != expected_format:
        message = f'{path}: expected the format "{expected_format}", got "{found}"; remove it and make it anew'
        raise FormatError(message)
    if metadata.pop(_CHECKSUM, None) != _checksum(tensors, metadata):
        message = f"{path} is not what emmet wrote there: it is damaged, or of an earlier version"
        message += "; remove it and make it anew"
        raise FormatError(message)
    return TensorFile(tensors, metadata)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The CRC-32 of names, dtypes, shapes, bits and metadata: against accidents, and several GB a second."""
    described = {name: [str(tensor.dtype), list(tensor.shape), _bits(tensor)] for name, tensor in tensors.items()}
    text = json.dumps([described, dict(metadata)], sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _bits(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
