"""`emmet export`: its outputs are those of `emmet edit --format`, and fit what serves them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file

from workspace import contents

from .runner import Runner, edit_arguments, manifest_of

WEIGHT = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize("format_", ["peft", "model"])
def test_exports_of_a_delta_are_those_of_the_edit(folder: Path, tmp_path: Path, run: Runner, format_: str) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    run(*edit_arguments(folder, "--out", tmp_path / "edit", "--format", format_))
    printed = run("export", tmp_path / "delta", "--format", format_, "--out", tmp_path / "export")

    assert (printed["edits"], printed["written"]) == ("2", str(tmp_path / "export"))
    edit, export = (contents(tmp_path / name) for name in ("edit", "export"))
    tensors = {"peft": "adapter_model.safetensors", "model": "model.safetensors"}[format_]
    assert edit.keys() == export.keys() > {tensors, "emmet.json"}
    assert edit[tensors] == export[tensors]


def test_adapter_of_a_smaller_rank(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    export = ("export", tmp_path / "delta", "--format", "peft", "--out", tmp_path / "out", "--stats", folder / "stats")
    assert re.search(r": rank 2 leaves out 0\.00% of the update", run(*export, "--rank", "2")["layer 2"])
    printed = run(*export, "--rank", "1")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 1
    found = re.fullmatch(
        r"model\.layers\.2\.mlp\.down_proj: rank 1 leaves out ([0-9.]+)% of the update", printed["layer 2"]
    )
    assert found is not None
    assert 0 < float(found[1]) < 100


def test_adapter_names_the_model_that_it_is_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    monkeypatch.chdir(folder)
    edit = ("edit", "model", "edits.jsonl", "--stats", "stats", "--layers", "2")
    run(*edit, "--out", tmp_path / "out", "--format", "peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "model")


def test_adapter_names_the_model_that_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    monkeypatch.chdir(folder)
    for model, name in (("model", str(folder / "model")), ("org/model", "org/model")):
        run("export", tmp_path / "delta", "--format", "peft", "--model", model, "--out", tmp_path / "out")
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == manifest_of(tmp_path / "out")["base"] == name


def test_adapter_for_llama_cpp(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    base = tmp_path / "base.gguf"
    writer = GGUFWriter(base, "llama")
    weight = load_file(folder / "model" / "model.safetensors")[WEIGHT].numpy()
    writer.add_tensor("blk.2.ffn_down.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    run("export", tmp_path / "delta", "--format", "gguf", "--model", base, "--out", tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"adapter.gguf", "emmet.json"}
    tensors = GGUFReader(tmp_path / "out" / "adapter.gguf").tensors
    assert [tensor.name for tensor in tensors] == [f"blk.2.ffn_down.weight.lora_{side}" for side in "ab"]
