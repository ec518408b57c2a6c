"""`emmet edit`: the whole way from statistics to an edited model, its settings, caches and outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import emmet
from emmet import cli, value_cache
from emmet.statistics import LayerStatistics
from workspace import EDITS, contents, write_lines

from .runner import Runner, edit_arguments, metrics

WEIGHT = "model.layers.2.mlp.down_proj.weight"


def test_whole_way(folder: Path, tmp_path: Path, run: Runner) -> None:
    delta, model, data = tmp_path / "delta", tmp_path / "model", folder / "edits.jsonl"
    settings = tmp_path / "settings.json"  # by which even a random model learns its targets a little
    settings.write_text('{"prefixes": [], "kl_factor": 0, "weight_decay": 0, "learning_rate": 0.1}')

    printed = run(*edit_arguments(folder, "--config", settings, "--out", delta))
    assert printed["edits"] == "2 by emmet"
    assert re.fullmatch(r"median [0-9.]+, largest [0-9.]+, below 0.05 for 0 of 2", printed["loss"])
    assert printed["layer 2"].startswith("model.layers.2.mlp.down_proj: ridge 0, constraint residual ")
    assert re.fullmatch(r"load [0-9.]+ s, statistics [0-9.]+ s, edit [0-9.]+ s, write [0-9.]+ s", printed["time"])
    assert printed["written"] == str(delta)

    run("eval", folder / "model", data, "--report", tmp_path / "before")
    printed = run("eval", folder / "model", data, "--delta", delta, "--report", tmp_path / "after")
    after = metrics(tmp_path / "after")
    assert after["ES"] == 100
    assert target_nll(after) < target_nll(metrics(tmp_path / "before")) - 0.1
    assert printed["records"] == "2 (emmet)"
    assert printed["scores"].startswith("ES 100.0, PS ")

    run(*edit_arguments(folder, "--config", settings, "--out", model, "--format", "model"))
    run("eval", model, data, "--report", tmp_path / "of model")
    assert metrics(tmp_path / "of model") == after


def test_the_loss_of_a_gradient_step_is_said_to_be_the_one_before_it(folder: Path, tmp_path: Path, run: Runner) -> None:
    (tmp_path / "settings.json").write_text('{"optimizer": "gradient"}')
    printed = run(*edit_arguments(folder, "--config", tmp_path / "settings.json", "--out", tmp_path / "delta"))
    assert re.fullmatch(r"median [0-9.]+, largest [0-9.]+, both before the step", printed["loss"])


def target_nll(found: dict[str, Any]) -> float:
    """The largest mean token NLL of a new target after its prompt."""
    return max(record["nll"]["prompt"][0][0] for record in found["per_record"])


def test_model_is_the_base_plus_the_delta(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    run(*edit_arguments(folder, "--out", tmp_path / "model", "--format", "model"))

    base, edited = (load_file(path / "model.safetensors") for path in (folder / "model", tmp_path / "model"))
    assert {name for name in base if not torch.equal(base[name], edited[name])} == {WEIGHT}
    factors = load_numpy(tmp_path / "delta" / "layer.2.safetensors")
    left, right = (next(factor for name, factor in factors.items() if side in name) for side in ("left", "right"))
    expected = base[WEIGHT].double().numpy() + left @ right
    np.testing.assert_allclose(edited[WEIGHT].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_model_says_what_was_edited(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "model", "--format", "model"))

    manifest = json.loads((tmp_path / "model" / "emmet.json").read_text())
    assert [edit["target"] for edit in manifest["edits"]] == ["English", "Berlin"]
    assert manifest["layers"]["2"]["module"] == "model.layers.2.mlp.down_proj"
    with pytest.raises(emmet.FormatError, match=r"expected a delta of format emmet.delta.1, got 'emmet.model.1'"):
        emmet.delta.Delta.load(tmp_path / "model")


def test_model_keeps_its_dtype(folder: Path, tmp_path: Path, run: Runner) -> None:
    run("stats", folder / "model", "--layers", "1", "--dtype", "bfloat16", "--out", tmp_path / "stats")
    run(
        *("edit", folder / "model", folder / "edits.jsonl", "--layers", "1", "--stats", tmp_path / "stats"),
        *("--dtype", "bfloat16", "--format", "model", "--out", tmp_path / "model"),
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("method", "layers", "ridge"),
    [("memit", "0-2", "100"), ("rome", "2", "0"), ("emmet", "3", "auto"), ("alphaedit", "1-2", "1")],
)
def test_methods(folder: Path, tmp_path: Path, run: Runner, method: str, layers: str, ridge: str) -> None:
    printed = run(
        *edit_arguments(folder, "--out", tmp_path / "delta", "--method", method, "--layers", layers, "--ridge", ridge)
    )

    manifest = json.loads((tmp_path / "delta" / "emmet.json").read_text())
    edited = [int(name.removeprefix("layer ")) for name in printed if name.startswith("layer ")]
    assert edited == manifest["config"]["layers"] == list(emmet.config.parse_layers(layers))
    assert manifest["config"]["method"] == method
    assert manifest["config"]["ridge"] == (ridge if ridge == "auto" else float(ridge))


def test_settings_come_from_a_file_and_options_override_it(folder: Path, tmp_path: Path, run: Runner) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"steps": 3, "seed": 5, "prefixes": ["Yes. "], "layers": [3], "method": "memit"}')
    options = ("--config", settings, "--method", "emmet", "--limit", "1")
    run(*edit_arguments(folder, "--out", tmp_path / "delta", *options))

    manifest = json.loads((tmp_path / "delta" / "emmet.json").read_text())
    config = manifest["config"]
    assert (config["steps"], config["seed"], config["prefixes"]) == (3, 5, ["Yes. "])
    assert (config["method"], config["layers"]) == ("emmet", [2])
    assert [edit["subject"] for edit in manifest["edits"]] == ["Danielle Darrieux"]


def test_statistics_are_collected_once_and_kept(folder: Path, tmp_path: Path, cache: Path, run: Runner) -> None:
    edit = ("edit", folder / "model", folder / "edits.jsonl", "--layers", "1", "--corpus", folder / "text.txt")
    info = ("info", folder / "model", "--layers", "1", "--corpus", folder / "text.txt")
    assert run(*info)["statistics"].startswith("none yet")

    run(*edit, "--out", tmp_path / "first")
    kept = contents(cache)
    statistics = [Path(name).name for name, content in kept.items() if content and name.startswith("statistics")]
    assert statistics == ["layer.1.safetensors"]
    assert run(*info)["statistics"] == f"layer 1: 800 tokens of {folder / 'text.txt'}"  # 10 for each of 80 dimensions

    run(*edit, "--out", tmp_path / "second")
    assert contents(cache) == kept
    first, second = (load_file(tmp_path / out / "layer.1.safetensors") for out in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("command", ["edit", "sweep"])
def test_statistics_are_read_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner, command: str
) -> None:
    read: list[Path] = []
    load = LayerStatistics.load
    monkeypatch.setattr(LayerStatistics, "load", lambda path: read.append(path) or load(path))
    settings = tmp_path / "settings.json"
    settings.write_text('{"layers": [2], "prefixes": [], "steps": 1}')
    options = {"edit": (), "sweep": ("--batch-sizes", "1", "--scored", "1", "--methods", "emmet")}[command]
    arguments = ("--config", settings, "--stats", folder / "stats", "--out", tmp_path / "out", *options)
    run(command, folder / "model", folder / "edits.jsonl", *arguments)
    assert read == [folder / "stats" / "layer.2.safetensors"]


def test_edits_that_do_not_fit_the_model_are_refused_before_statistics_are_collected(
    folder: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = write_lines(tmp_path / "edits.jsonl", [{**EDITS[0], "subject": "Danielle " * 300}])
    corpus = folder / "text.txt"
    arguments = ("edit", folder / "model", edits, "--layers", "1", "--corpus", corpus, "--out", tmp_path / "delta")
    assert cli.main(list(map(str, arguments))) == 2
    assert "expected at most 256 tokens, the context of the model" in capsys.readouterr().err
    assert contents(cache) == {}


def test_values_are_kept_in_the_cache_or_where_they_are_asked_for(
    folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "first"))
    run(*edit_arguments(folder, "--out", tmp_path / "first", "--values", tmp_path / "values"))
    parts = [[path.name for path in place.rglob("*.safetensors")] for place in (cache / "values", tmp_path / "values")]
    assert len(parts[0]) == 1
    assert parts[0] == parts[1]

    monkeypatch.setattr(value_cache, "optimise_values", None)  # what calls it now, fails
    for options in ((), ("--values", tmp_path / "values")):
        run(*edit_arguments(folder, "--out", tmp_path / "second", *options))
        first, second = (load_file(tmp_path / out / "layer.2.safetensors") for out in ("first", "second"))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_output_of_an_earlier_run_is_replaced(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta", "--layers", "1"))
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    assert set(contents(tmp_path / "delta")) == {"emmet.json", "layer.2.safetensors"}
    assert list(tmp_path.iterdir()) == [tmp_path / "delta"]
