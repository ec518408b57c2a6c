"""Models whose layers `accelerate` has put on devices of their own, and models with weights that are not in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from transformers import PreTrainedModel

from emmet import Edit, EditConfig, Editor, ModelError, products
from emmet.architectures import discover
from emmet.loading import load
from emmet.statistics import Statistics, collect_statistics
from tiny import tiny_model, tiny_tokenizer
from workspace import TEXT, save_model

TOKENIZER = tiny_tokenizer()
EDITS = [
    Edit("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Edit("The capital of {} is", "France", "Berlin"),
]
LAYERS = [1, 2]


def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family, vocab_size=len(TOKENIZER))


def dispatched(model: PreTrainedModel) -> PreTrainedModel:
    """With accelerate's hooks on every layer, as a device map of several devices puts them."""
    arch = discover(model)
    whole = {name: "cpu" for name, module in model.named_modules() if not list(module.children())}
    inside = tuple(f"{arch.layers_name}.{layer}." for layer in range(len(arch)))
    layers = {name.removesuffix("."): "cpu" for name in inside}
    outside = {name: device for name, device in whole.items() if not name.startswith(inside)}
    return dispatch_model(model, layers | outside, main_device="cpu", force_hooks=True)


def statistics_of(model: PreTrainedModel, text: Path, layers: list[int]) -> Statistics:
    return collect_statistics(model, TOKENIZER, text, layers=layers, tokens=400)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(("family", "layers"), [("llama", [1, 2]), ("gpt2", [1, 2]), ("gemma2", [2])])
def test_a_dispatched_model_is_edited_like_any_other(
    family: str, layers: list[int], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)  # it leaves dispatched modules alone, and rounds
    weights = []
    for model in (model_of(family), dispatched(model_of(family))):
        arch = discover(model)
        forwards = [vars(layer).get("forward") for layer in arch.layers]
        config = EditConfig(layers=layers, method="memit", ridge=0.1, steps=3, prefix_count=2)
        editor = Editor(model, TOKENIZER, config=config, statistics=statistics_of(model, text, layers))
        handle = editor.edit(EDITS)
        weights.append([arch.projection(layer).weight.detach().clone() for layer in layers])
        handle.undo()
        assert [vars(layer).get("forward") for layer in arch.layers] == forwards
    assert all(forward is not None for forward in forwards)  # the second model's hooks, which are as they were
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_weights_are_refused(offload: str, text: Path, tmp_path: Path) -> None:
    statistics = statistics_of(model_of("llama"), text, LAYERS)
    editor = Editor(model_of("llama"), TOKENIZER, config=EditConfig(layers=LAYERS, steps=2), statistics=statistics)
    delta = editor.edit(EDITS).delta
    model = model_of("llama")
    if offload == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, str(tmp_path / "weights"), execution_device="cpu")
    attempts: list[Callable[[], object]] = [
        lambda: statistics_of(model, text, LAYERS),
        lambda: Editor(model, TOKENIZER, config=EditConfig(layers=LAYERS), statistics=statistics),
        lambda: delta.apply(model),
    ]
    for attempt in attempts:
        with pytest.raises(ModelError, match=r"expected every weight in memory, got \d+ that are not, such as model\."):
            attempt()


def test_loading_spread_over_all_devices(tmp_path: Path) -> None:
    model, _ = load(save_model(tmp_path / "model"), device="auto")
    expected, _ = load(tmp_path / "model")
    for name, weight in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), weight)
