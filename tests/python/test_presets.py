"""Presets: the published numbers, found for the right models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from emmet import presets
from emmet.config import METHODS, EditConfig, Method

CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2-medium": GPT2Config(n_layer=24, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_embd=1600),
    "gpt-j-6b": GPTJConfig(n_layer=28, n_embd=4096),
    "gpt-neox-20b": GPTNeoXConfig(num_hidden_layers=44, hidden_size=6144),
    "llama-2-7b": LlamaConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=11008),
    "llama-3-8b": LlamaConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=14336),
    "mistral-7b": MistralConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=14336),
    "qwen2.5-7b": Qwen2Config(num_hidden_layers=28, hidden_size=3584, intermediate_size=18944),
}

# method, model: layers, clamp, steps, weight decay, ridge, learning rate
PUBLISHED = [
    ("rome", "gpt2-medium", (8,), 3, 20, 0.5, 0, 0.5),
    ("rome", "gpt2-large", (12,), 4, 20, 0.5, 0, 0.5),
    ("rome", "gpt2-xl", (17,), 4, 20, 0.5, 0, 0.5),
    ("rome", "gpt-j-6b", (5,), 4, 20, 0.5, 0, 0.5),
    ("rome", "gpt-neox-20b", (15,), 4, 20, 0.5, 0, 0.5),
    ("rome", "llama-2-7b", (5,), 4, 25, 0.001, 0, 0.5),
    ("rome", "llama-3-8b", (5,), 4, 25, 0.001, 0, 0.5),
    ("rome", "mistral-7b", (5,), 4, 25, 0.001, 0, 0.5),
    ("rome", "qwen2.5-7b", (5,), 4, 25, 0.001, 0, 0.5),
    ("memit", "gpt2-xl", (13, 14, 15, 16, 17), 0.75, 20, 0.5, 20000, 0.5),
    ("memit", "gpt-j-6b", (3, 4, 5, 6, 7, 8), 0.75, 25, 0.5, 15000, 0.5),
    ("memit", "llama-2-7b", (4, 5, 6, 7, 8), 4, 25, 0.001, 15000, 0.5),
    ("memit", "mistral-7b", (4, 5, 6, 7, 8), 4, 25, 0.001, 15000, 0.5),
    ("memit", "qwen2.5-7b", (4, 5, 6, 7, 8), 4, 25, 0.001, 15000, 0.5),
    ("memit", "llama-3-8b", (4, 5, 6, 7, 8), 0.75, 25, 0.5, 15000, 0.1),
    ("alphaedit", "llama-3-8b", (4, 5, 6, 7, 8), 0.75, 25, 0.5, 1, 0.1),
    ("emmet", "gpt2-xl", (17,), 0.75, 20, 0.5, 0.1 * 1000, 0.5),
    ("emmet", "gpt-j-6b", (5,), 0.75, 25, 0.5, 0.1 * 1, 0.5),
    ("emmet", "llama-2-7b", (5,), 4, 25, 0.001, 0.1 * 1, 0.5),
]


@pytest.mark.parametrize(
    ("method", "model", "layers", "clamp", "steps", "weight_decay", "ridge", "learning_rate"), PUBLISHED
)
def test_published_settings(
    method: Method,
    model: str,
    layers: tuple[int, ...],
    clamp: float,
    steps: int,
    weight_decay: float,
    ridge: float,
    learning_rate: float,
) -> None:
    preset = presets.find(CONFIGS[model], method)
    assert preset is not None
    assert "arXiv" in preset.source
    assert preset == presets.Preset(
        layers=layers,
        ridge=ridge,
        learning_rate=learning_rate,
        steps=steps,
        clamp=clamp,
        weight_decay=weight_decay,
        source=preset.source,
        **({"null_space_threshold": 0.02, "null_space_alpha": 10} if method == "alphaedit" else {}),
    )
    assert EditConfig(method=method).resolve(CONFIGS[model]).layers == layers


def test_nothing_else_is_claimed_to_be_published() -> None:
    found = {(method, model) for method in METHODS for model, config in CONFIGS.items() if presets.find(config, method)}
    assert found == {(method, model) for method, model, *_ in PUBLISHED}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(),
        LlamaConfig(num_hidden_layers=30, hidden_size=576, intermediate_size=1536),
        MistralConfig(num_hidden_layers=40, hidden_size=4096),
        PretrainedConfig(),
    ],
)
def test_other_models_have_no_preset(config: PretrainedConfig) -> None:
    assert [presets.find(config, method) for method in METHODS] == [None] * len(METHODS)


def test_a_local_folder_is_recognised(tmp_path: Path) -> None:
    CONFIGS["llama-3-8b"].save_pretrained(tmp_path)
    assert presets.find(AutoConfig.from_pretrained(tmp_path), "memit") == presets.find(CONFIGS["llama-3-8b"], "memit")


def test_the_language_model_of_a_composite_model_is_recognised() -> None:
    config = LlavaConfig(text_config=CONFIGS["llama-2-7b"])
    assert presets.find(config, "emmet") == presets.find(CONFIGS["llama-2-7b"], "emmet")


@pytest.mark.parametrize(
    ("method", "layers", "ridge"),
    [("rome", (7,), 0), ("emmet", (7,), "auto"), ("memit", (3, 4, 5, 6, 7), 1000), ("alphaedit", (3, 4, 5, 6, 7), 1)],
)
def test_default_for_a_model_of_30_layers(method: str, layers: tuple[int, ...], ridge: float | str) -> None:
    default = presets.depth_relative(method, 30)
    assert (default.layers, default.ridge) == (layers, ridge)
    assert (default.learning_rate, default.steps, default.clamp, default.weight_decay) == (0.5, 25, 4, 0.001)


@given(method=st.sampled_from(METHODS), depth=st.integers(1, 200))
def test_default_layers_exist_and_are_consecutive(method: str, depth: int) -> None:
    layers = presets.depth_relative(method, depth).layers
    assert list(layers) == list(range(layers[0], layers[-1] + 1))
    assert 0 <= layers[0] <= layers[-1] < depth


def test_a_preset_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.depth_relative("emmet", 30).steps = 3  # type: ignore[misc]


def test_published_ridges_are_in_order_and_of_methods_that_have_one() -> None:
    assert presets.published_ridges() == [("emmet", 0.1), ("emmet", 100.0), ("memit", 15000.0), ("memit", 20000.0)]
