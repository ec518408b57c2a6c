"""What the tests of all commands share: a folder to work in, a cache of their own, and a way to run `emmet`."""

from __future__ import annotations

from pathlib import Path

import pytest

from emmet import cli
from workspace import fill

from .runner import Runner


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, edits, a corpus and statistics of all layers."""
    folder = fill(tmp_path_factory.mktemp("workspace"))
    corpus = str(folder / "text.txt")
    out = str(folder / "stats")
    assert cli.main(["stats", str(folder / "model"), "--corpus", corpus, "--layers", "0-3", "--out", out]) == 0
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EMMET_CACHE", str(folder))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)
