"""The C++ examples, built alone with the installed emmet as docs/how-to-cpp.md says, and run on what Python wrote."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from smoke import TEXT, tiny_model
from test_wheel import ROOT, needs_cmake, run

import emmet

pytestmark = [pytest.mark.packaging, needs_cmake]

WEIGHT = "model.layers.0.mlp.down_proj.weight"
STAGES = ("load metric", "load ledger", "solve", "apply", "undo")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that they are built in."""
    build = tmp_path_factory.mktemp("examples")
    prefix = run(sys.executable, "-m", "emmet", "--cmake-prefix")
    source = ROOT / "cpp/examples"
    run("cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DPython_EXECUTABLE={sys.executable}")
    run("cmake", "--build", build)
    return build


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metric, the ledger and the model of an edit that Python made."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "corpus.txt").write_text(TEXT * 100)
    model, tokenizer = tiny_model()
    model.save_pretrained(folder)
    statistics = emmet.collect_statistics(model, tokenizer, folder / "corpus.txt", layers=[0])
    config = emmet.EditConfig(layers=[0], prefixes=["Not French"], steps=5)
    editor = emmet.Editor(model, tokenizer, config=config, statistics=statistics)
    editor.preservation(0).save(str(folder / "metric.safetensors"))
    editor.edit([emmet.Edit("The mother tongue of {} is", "Danielle Darrieux", "English")])
    editor.save(folder / "ledger")
    editor.delta().save(folder / "delta")
    return folder


def test_minimal_meets_its_constraint(examples: Path) -> None:
    error = re.fullmatch(r"the key now gives its value to (\S+) \(relative\)", run(examples / "minimal"))
    assert error is not None
    assert float(error[1]) < 1e-5  # in float32


@pytest.mark.parametrize("given", ["nothing", "files"])
def test_hot_edit_changes_a_weight_under_running_inference(
    given: str, examples: Path, request: pytest.FixtureRequest
) -> None:
    arguments: list[str | Path] = []
    if given == "files":
        folder = request.getfixturevalue("files")
        arguments = [folder / "metric.safetensors", folder / "ledger", folder / "model.safetensors", WEIGHT]
    printed = run(examples / "hot_edit", *arguments).splitlines()

    assert [re.sub(r" +\d+\.\d{3} ms$", "", line) for line in printed[:-1]] == list(STAGES)
    passes = re.fullmatch(r"passes of inference: (\d+) without the edit, (\d+) with it, (\d+) torn", printed[-1])
    assert passes is not None
    without, edited, torn = map(int, passes.groups())
    assert without >= 198  # a hundred before the edit and a hundred after it is undone, but for those under way
    assert edited >= 99
    assert torn == 0
