"""Some hundred random changes of a good file for each reader; `make fuzz` tries many more."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mutations import change_bytes, change_values
from readers import READERS, attempt, seed


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    assert attempt(READERS[name], tmp_path, seed(READERS[name], tmp_path))


@pytest.mark.parametrize("change", [change_bytes, change_values])
@pytest.mark.parametrize("name", READERS)
def test_random_changes_are_read_or_an_emmet_error(
    name: str, change: Callable[[bytes, random.Random], bytes], tmp_path: Path
) -> None:
    reader, choose = READERS[name], random.Random(name)
    good = seed(reader, tmp_path)
    for _ in range(200):
        attempt(reader, tmp_path, change(good, choose))


@pytest.mark.parametrize("name", READERS)
def test_deep_nesting_is_refused(name: str, tmp_path: Path) -> None:
    """Python's parser has another error for it."""
    seed(READERS[name], tmp_path)
    assert not attempt(READERS[name], tmp_path, b"[" * 100_000)
