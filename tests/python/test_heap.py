"""What was freed goes back to the system, and what is kept is bounded."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from emmet import heap


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(heap._malloc_trim is None, reason="the C library cannot")
def test_gaps_are_given_back() -> None:
    small = [torch.ones(10_000) for _ in range(5000)]  # 200 MB, below what is mapped one by one
    kept = small[::100]
    del small
    before = resident()
    heap.trim_heap()
    assert before - resident() > 100e6
    assert all(one.sum() == 10_000 for one in kept)


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_malloc_trim", None)
    heap.trim_heap()


@pytest.mark.parametrize(("given", "kept"), [(None, "128"), ("7", "7")])
def test_the_environment_may_say_how_many_kernels(
    monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "")
    if given is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, given)
    heap.bound_kernel_cache()
    assert os.environ[name] == kept
