"""The command line: the whole way from statistics to an edited model, its outputs and its exit codes."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import emmet
from emmet import EmmetError, Update, cli, editor, presets, value_cache
from emmet.delta import Delta
from emmet.export import save_peft
from workspace import EDITS, TEXT, contents, save_model, write_lines, write_task

WEIGHT = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, edits, a corpus and statistics of all layers."""
    folder = tmp_path_factory.mktemp("workspace")
    save_model(folder / "model")
    write_lines(folder / "edits.jsonl", EDITS)
    (folder / "text.txt").write_text(TEXT)
    corpus = str(folder / "text.txt")
    out = str(folder / "stats")
    assert cli.main(["stats", str(folder / "model"), "--corpus", corpus, "--layers", "0-3", "--out", out]) == 0
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EMMET_CACHE", str(folder))
    return folder


class Runner:
    """Runs `emmet` and reads what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> dict[str, str]:
        """What a run that succeeds prints, by the name that each line begins with."""
        self._capsys.readouterr()
        assert cli.main(list(map(str, arguments))) == 0
        return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in self._capsys.readouterr().out.splitlines())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


def manifest_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "emmet.json").read_text())
    return found


def metrics(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report / "metrics.json").read_text())
    return found


def target_nll(found: dict[str, Any]) -> float:
    """The largest mean token NLL of a new target after its prompt."""
    return max(record["nll"]["prompt"][0][0] for record in found["per_record"])


def edit_arguments(folder: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("edit", folder / "model", folder / "edits.jsonl", "--stats", folder / "stats", "--layers", "2", *more)


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
    assert printed["percent"].startswith("ES 100.0, PS ")

    run(*edit_arguments(folder, "--config", settings, "--out", model, "--format", "model"))
    run("eval", model, data, "--report", tmp_path / "of model")
    assert metrics(tmp_path / "of model") == after


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


def test_ledger(folder: Path, tmp_path: Path, run: Runner) -> None:
    ledger, delta, stats = tmp_path / "ledger", tmp_path / "delta", folder / "stats"
    printed = run(*edit_arguments(folder, "--out", delta, "--ledger", ledger, "--author", "A. Reviewer"))
    assert printed["ledger"] == f"{ledger}: 2 edits, of which 1 and above are new"
    assert "replaced" not in printed
    assert run("ledger", "list", ledger)["edits"] == "2"

    newer = write_lines(tmp_path / "newer.jsonl", [{**EDITS[1], "target": "Rome"}])
    arguments = ("edit", folder / "model", newer, "--stats", stats, "--layers", "2")
    printed = run(*arguments, "--out", delta, "--ledger", ledger)
    assert printed["ledger"] == f"{ledger}: 2 edits, of which 3 and above are new"
    assert printed["replaced"] == "edit 2: 'The capital of France is' → 'Berlin', which is now 'Rome'"
    listed = run("ledger", "list", ledger)
    assert (listed["model"], listed["edits"]) == (str(folder / "model"), "2")
    assert re.fullmatch(
        r"'The mother tongue of Danielle Darrieux is' → 'English' by emmet, \d{4}-\d\d-\d\dT.*, A\. Reviewer",
        listed["1"],
    )
    assert "'Rome' by emmet" in listed["3"]
    assert [edit["target"] for edit in manifest_of(delta)["edits"]] == ["English", "Rome"]

    printed = run("ledger", "remove", ledger, "3", "--stats", stats, "--out", delta)
    assert (printed["edits"], printed["written"]) == ("1 left", str(delta))
    assert [edit["target"] for edit in manifest_of(delta)["edits"]] == ["English"]
    run(*edit_arguments(folder, "--out", tmp_path / "alone", "--limit", "1"))
    left, alone = (Update.load(out / "layer.2.safetensors").dense() for out in (delta, tmp_path / "alone"))
    torch.testing.assert_close(left, alone, rtol=0, atol=1e-4 * float(alone.abs().max()))

    run("ledger", "remove", ledger, "1", "--stats", stats, "--out", delta)
    assert run("ledger", "list", ledger)["edits"] == "0"
    assert set(contents(delta)) == {"emmet.json"}
    assert "got one that has none left" in refused_export(delta, tmp_path / "adapter")


def refused_export(delta: Path, out: Path) -> str:
    with pytest.raises(EmmetError) as caught:
        save_peft(Delta.load(delta), out)
    return str(caught.value)


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


def test_model_samples_the_corpus_unless_one_is_given(folder: Path, tmp_path: Path, run: Runner) -> None:
    printed = run("stats", folder / "model", "--layers", "1,3", "--tokens", "300", "--out", tmp_path / "stats")
    assert printed["statistics"] == "layer 3: 300 tokens of self"
    run("stats", folder / "model", "--layers", "1,3", "--tokens", "300", "--seed", "1", "--out", tmp_path / "other")
    moments = [load_file(tmp_path / name / "layer.1.safetensors")["second_moment"] for name in ("stats", "other")]
    assert not torch.allclose(*moments)


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


def test_drift_of_a_delta(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    arguments = ("eval", folder / "model", folder / "edits.jsonl", "--delta", tmp_path / "delta", "--report")
    run(*arguments, tmp_path / "plain")
    printed = run(*arguments, tmp_path / "drift", "--drift", folder / "text.txt")
    assert re.fullmatch(r"KL \S+ nats, perplexity \S+ → \S+, top-1 agreement \S+ %", printed["drift"])
    found = metrics(tmp_path / "drift")
    drift = found.pop("drift")
    assert found == metrics(tmp_path / "plain")  # of the edited model
    assert drift["kl"] > 0
    assert drift["layers"].keys() == {"2"}
    assert "## Drift from the unedited model" in (tmp_path / "drift" / "report.md").read_text(encoding="utf-8")


def test_texts_and_references(folder: Path, tmp_path: Path, run: Runner) -> None:
    record = {
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "subject": "Danielle Darrieux",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
        },
        "generation_prompts": ["Danielle Darrieux lives in"],
    }
    data = write_lines(tmp_path / "counterfact.jsonl", [record])
    references = [{"relation_id": "P103", "target_id": "Q1860", "samples": [{"text": "Danielle lives in London"}]}]
    (tmp_path / "snippets.json").write_text(json.dumps(references))
    evaluation = ("eval", folder / "model", data, "--report", tmp_path / "report")

    run(*evaluation)
    assert not {"GE", "RS"} & metrics(tmp_path / "report").keys()
    run(*evaluation, "--texts")
    with_texts = metrics(tmp_path / "report")
    assert with_texts["GE"] > 0
    assert with_texts["RS"] is None
    run(*evaluation, "--references", tmp_path / "snippets.json")
    with_references = metrics(tmp_path / "report")
    assert with_references["GE"] == with_texts["GE"]
    assert with_references["RS"] > 0


def test_tasks_before_and_after(folder: Path, tmp_path: Path, run: Runner) -> None:
    pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
    task = write_task(tmp_path)
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    evaluation = ("eval", folder / "model", folder / "edits.jsonl", "--tasks", task, "--report", tmp_path / "report")

    printed = run(*evaluation)
    unedited = metrics(tmp_path / "report")
    assert re.fullmatch(r"acc \S+", printed["geography"])
    assert "tasks_before" not in unedited
    run(*evaluation, "--delta", tmp_path / "delta")
    edited = metrics(tmp_path / "report")
    assert edited["tasks_before"] == unedited["tasks"]
    assert edited["tasks"]["geography"]["acc"].keys() == {"value", "standard_error"}
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| task | metric | unedited | this model |" in report


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


def test_bars_show_rate_and_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_BAR_DELAY", 0.0)
    arguments = ["edit", str(folder / "model"), str(folder / "edits.jsonl"), "--layers", "1", "--out"]
    assert cli.main([*arguments, str(tmp_path / "delta")]) == 0
    bars = re.split(r"[\r\n]+", capsys.readouterr().err)
    for stage in ("loading", "sampling", "statistics", "prefixes", "values"):
        last = [bar for bar in bars if bar.startswith(stage)][-1]
        assert re.fullmatch(rf"{stage}: +\d+%\|.+\| \d+/\d+ \[[\d:]+<[\d:?]+, +[\d.?]+(it/s|s/it)\] *", last), last


def test_stages_of_less_than_two_seconds_show_no_bar(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(list(map(str, edit_arguments(folder, "--out", tmp_path / "delta")))) == 0
    assert capfd.readouterr().err == ""


def test_quiet_shows_no_bars(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_BAR_DELAY", 0.0)
    assert cli.main(list(map(str, edit_arguments(folder, "--quiet", "--out", tmp_path / "delta")))) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("edits ")


def test_output_of_an_earlier_run_is_replaced(folder: Path, tmp_path: Path, run: Runner) -> None:
    run(*edit_arguments(folder, "--out", tmp_path / "delta", "--layers", "1"))
    run(*edit_arguments(folder, "--out", tmp_path / "delta"))
    assert set(contents(tmp_path / "delta")) == {"emmet.json", "layer.2.safetensors"}
    assert list(tmp_path.iterdir()) == [tmp_path / "delta"]


@pytest.mark.usefixtures("interruptible")
def test_interrupt_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(editor, "solve", lambda *_: signal.raise_signal(signal.SIGINT))
    assert cli.main(list(map(str, edit_arguments(folder, "--out", tmp_path / "delta")))) == 130
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "emmet: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_emmet_itself_propagate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        message = "a bug"
        raise RuntimeError(message)

    monkeypatch.setattr(editor, "solve", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(list(map(str, edit_arguments(folder, "--out", tmp_path / "delta"))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["stats", "edit", "export", "eval", "sweep", "info"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert f"\n  emmet {command} " in printed.split("examples:")[1]
    assert max(map(len, printed.splitlines())) <= 120


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"emmet {emmet.__version__}\n"


def test_module_runs_and_help_does_not_wait_for_transformers() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "emmet", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: emmet ")
    assert "emmet.cli" in run.stderr
    assert "transformers" not in run.stderr
