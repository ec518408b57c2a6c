"""Fixtures for what a machine may or may not have: the real model, the data sets and a GPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("emmet", deadline=None)  # other processes may hold an example up
settings.load_profile("emmet")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU where there is one. With EMMET_REQUIRE_CUDA=1 it has to be there."""
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("EMMET_REQUIRE_CUDA") == "1":
            pytest.fail("EMMET_REQUIRE_CUDA is 1, but torch finds no GPU")
        pytest.skip("torch finds no GPU")
    return torch.device(request.param, 0 if request.param == "cuda" else None)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct: a Hugging Face folder or a GGUF file."""
    return _path_from("EMMET_SMOLLM2", "SmolLM2-135M-Instruct, a Hugging Face folder or a GGUF file")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that holds the data sets counterfact, wikitext-2 and zsre."""
    return _path_from("EMMET_DATA", "the folder of counterfact, wikitext-2 and zsre")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started with it ignored (in the background)."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def _path_from(variable: str, content: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names {content}")
    path = Path(value)
    if not path.exists():  # set but wrong is a mistake, not a reason to skip
        pytest.fail(f"{variable} is {value}, which does not exist: it names {content}")
    return path
