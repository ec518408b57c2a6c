"""`emmet stats`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from .runner import Runner


def test_model_samples_the_corpus_unless_one_is_given(folder: Path, tmp_path: Path, run: Runner) -> None:
    printed = run("stats", folder / "model", "--layers", "1,3", "--tokens", "300", "--out", tmp_path / "stats")
    assert printed["statistics"] == "layer 3: 300 tokens of self"
    run("stats", folder / "model", "--layers", "1,3", "--tokens", "300", "--seed", "1", "--out", tmp_path / "other")
    moments = [load_file(tmp_path / name / "layer.1.safetensors")["second_moment"] for name in ("stats", "other")]
    assert not torch.allclose(*moments)
