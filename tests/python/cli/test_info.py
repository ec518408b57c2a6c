"""`emmet info`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from emmet import presets
from workspace import save_model

from .runner import Runner


def test_info(folder: Path, run: Runner) -> None:
    printed = run("info", folder / "model", "--method", "memit", "--layers", "1-2", "--stats", folder / "stats")
    assert printed["model"] == f"{folder / 'model'}: LlamaForCausalLM in float32"
    assert printed["size"] == "4 layers of width 32, a context of 256 tokens"
    assert printed["method"].startswith("memit, ridge ")
    assert printed["defaults"].startswith("by depth")
    assert printed["layer 2"] == "model.layers.2.mlp.down_proj: Linear, 32 × 80 (output × input)"
    assert printed["statistics"] == f"layer 2: 800 tokens of {folder / 'text.txt'}"


def test_info_names_the_source_of_published_settings_and_the_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    published = dataclasses.replace(presets.depth_relative("rome", 4), layers=(3,), source="a paper")
    monkeypatch.setattr(presets, "find", lambda _config, method: published if method == "rome" else None)
    printed = run("info", save_model(tmp_path / "model", "gpt2"), "--method", "rome")
    assert printed["defaults"] == "a paper"
    assert printed["layer 3"] == "transformer.h.3.mlp.c_proj: Conv1D, 80 × 32 (input × output)"
