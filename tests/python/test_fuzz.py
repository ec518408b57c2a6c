"""Some hundred random changes of a good file for each reader; `make fuzz` tries many more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from readers import READERS, attempt, seed


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    assert attempt(READERS[name], tmp_path, seed(READERS[name], tmp_path))


@pytest.mark.parametrize("name", READERS)
def test_random_changes_are_read_or_an_emmet_error(name: str, tmp_path: Path) -> None:
    reader, choose = READERS[name], random.Random(name)
    good = seed(reader, tmp_path)
    for _ in range(200):
        attempt(reader, tmp_path, _changed(good, choose))


def _changed(content: bytes, choose: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        start = choose.randrange(len(changed) + 1)
        stop = start + choose.choice([0, 1, 1, 2, 8])
        changed[start:stop] = choose.choice(
            [b"", choose.randbytes(1), changed[:9], b"-1", b"null", b"[]", b"1e999", b"\xff", b"9" * 20, b'"', b"{}"]
        )
    return bytes(changed)
