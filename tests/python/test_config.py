"""EditConfig: choices are kept, what is left open is filled in for a model, and nonsense is refused."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from emmet.config import METHODS, EditConfig, Method, ResolvedConfig, parse_layers
from emmet.errors import ConfigError

SMOLLM2 = LlamaConfig(num_hidden_layers=30, hidden_size=576, intermediate_size=1536)
GPT2_XL = GPT2Config(n_layer=48, n_embd=1600)

positive = st.floats(min_value=1e-9, max_value=1e9)
not_negative = st.floats(min_value=0, max_value=1e9)
counts = st.integers(min_value=1, max_value=1000)
wholes = st.integers(min_value=0, max_value=1000)
layer_sets = st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True)


def ridges(method: Method) -> st.SearchStrategy[Any]:
    if method == "rome":
        return st.just(0.0)
    return positive if method == "memit" else not_negative | st.just("auto")


@st.composite
def configs(draw: st.DrawFn) -> EditConfig:
    method = draw(st.sampled_from(METHODS))
    return EditConfig(
        method=method,
        layers=draw(st.none() | layer_sets),
        ridge=draw(st.none() | ridges(method)),
        null_space_threshold=draw(st.none() | positive | st.just("auto")),
        null_space_alpha=draw(st.none() | positive),
        absorb=draw(not_negative),
        absorb_prompts=draw(st.booleans()),
        learning_rate=draw(st.none() | positive),
        steps=draw(st.none() | counts),
        clamp=draw(st.none() | positive),
        weight_decay=draw(st.none() | not_negative),
        kl_factor=draw(not_negative),
        stop_loss=draw(not_negative),
        prefixes=draw(st.none() | st.lists(st.text(max_size=5), max_size=3)),
        prefix_count=draw(wholes),
        prefix_length=draw(counts),
        seed=draw(wholes),
        batch_size=draw(counts),
    )


class TestValidation:
    @pytest.mark.parametrize("layers", [[6, 4, 5], (4, 5, 6), range(4, 7), range(6, 3, -1)])
    def test_layers_become_a_sorted_tuple(self, layers: Any) -> None:
        assert EditConfig(layers=layers).layers == (4, 5, 6)

    def test_is_frozen_and_hashable(self) -> None:
        config = EditConfig(layers=[7], prefixes=["The"])
        assert hash(config) == hash(EditConfig(layers=(7,), prefixes=("The",)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.steps = 3  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("settings", "fault"),
        [
            ({"method": "memmit"}, "unknown method 'memmit', did you mean 'memit'\\?: choose rome, memit, emmet"),
            ({"method": "fine-tuning"}, "unknown method 'fine-tuning': choose"),
            ({"method": None}, "unknown method None"),
            ({"layers": []}, "at least one layer"),
            ({"layers": [4, 5, 4]}, "layers must differ, got 4 more than once"),
            ({"layers": [-1]}, "layers must be .* got \\[-1\\]"),
            ({"layers": [True]}, "layers must be"),
            ({"layers": [4.0]}, "layers must be"),
            ({"layers": "4-8"}, "layers must be .* got '4-8'"),
            ({"layers": 7}, "layers must be .* got 7"),
            ({"ridge": -1}, 'the ridge of emmet must be a number of at least 0 or "auto", got -1'),
            ({"ridge": "automatic"}, "got 'automatic'"),
            ({"ridge": float("nan")}, "got nan"),
            ({"method": "rome", "ridge": 1.0}, "the ridge of rome must be 0"),
            ({"method": "memit", "ridge": 0}, "the ridge of memit must be a number above 0"),
            ({"method": "memit", "ridge": "auto"}, "the ridge of memit must be a number above 0"),
            ({"null_space_threshold": 0}, 'null_space_threshold must be a number above 0 or "auto", got 0'),
            ({"null_space_threshold": "all"}, "got 'all'"),
            ({"null_space_alpha": 0}, "null_space_alpha must be a number above 0, got 0"),
            ({"absorb": -1}, "absorb must be a number of at least 0, got -1"),
            ({"absorb_prompts": 1}, "absorb_prompts must be True or False, got 1"),
            ({"absorb": True}, "absorb must be a number of at least 0, got True"),
            ({"learning_rate": 0}, "learning_rate must be a number above 0, got 0"),
            ({"learning_rate": "0.5"}, "learning_rate must be a number above 0"),
            ({"steps": 0}, "steps must be a whole number of at least 1"),
            ({"steps": 2.5}, "steps must be a whole number"),
            ({"clamp": float("inf")}, "clamp must be a number above 0, got inf"),
            ({"weight_decay": -0.1}, "weight_decay must be a number of at least 0"),
            ({"kl_factor": None}, "kl_factor must be a number of at least 0, got None"),
            ({"stop_loss": -1}, "stop_loss must be"),
            ({"prefixes": "The"}, "prefixes must be"),
            ({"prefixes": ["The", 1]}, "prefixes must be"),
            ({"prefix_count": -1}, "prefix_count must be a whole number of at least 0"),
            ({"prefix_length": 0}, "prefix_length must be a whole number of at least 1"),
            ({"seed": True}, "seed must be a whole number"),
            ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ],
    )
    def test_nonsense_is_refused(self, settings: dict[str, Any], fault: str) -> None:
        with pytest.raises(ConfigError, match=fault) as caught:
            EditConfig(**settings)
        assert "\n" not in str(caught.value)


class TestJson:
    @given(config=configs())
    def test_round_trip(self, config: EditConfig) -> None:
        assert EditConfig.from_json(config.to_json()) == config

    def test_is_an_object_of_the_fields(self) -> None:
        written = json.loads(EditConfig(layers=range(4, 6)).to_json())
        assert set(written) == {field.name for field in dataclasses.fields(EditConfig)}
        assert written["layers"] == [4, 5]

    def test_what_is_left_out_keeps_its_default(self) -> None:
        assert EditConfig.from_json('{"method": "rome"}') == EditConfig(method="rome")

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ('{"step": 3}', "unknown setting 'step', did you mean 'steps'\\?"),
            ('{"steps": 3, "steps": 4}', "setting 'steps' is given more than once"),
            ('{"steps": 0}', "steps must be a whole number"),
            ('{"clamp": Infinity}', "clamp must be a number above 0"),
            ("{steps: 3}", "not valid JSON"),
            ("", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ("[3]", "must be a JSON object"),
        ],
    )
    def test_malformed_json_is_refused(self, text: str, fault: str) -> None:
        with pytest.raises(ConfigError, match=fault) as caught:
            EditConfig.from_json(text)
        assert "\n" not in str(caught.value)


class TestResolve:
    @given(config=configs(), depth=st.integers(12, 100))
    def test_choices_are_kept_and_the_rest_is_decided(self, config: EditConfig, depth: int) -> None:
        model_config = LlamaConfig(num_hidden_layers=depth, hidden_size=64)
        resolved = config.resolve(model_config)
        for field in dataclasses.fields(EditConfig):
            chosen = getattr(config, field.name)
            if chosen is not None:
                assert getattr(resolved, field.name) == chosen
        assert None not in dataclasses.asdict(dataclasses.replace(resolved, prefixes=())).values()
        assert resolved.resolve(model_config) == resolved

    def test_a_known_model_gets_its_preset(self) -> None:
        resolved = EditConfig(method="memit").resolve(GPT2_XL)
        assert isinstance(resolved, ResolvedConfig)
        assert (resolved.layers, resolved.ridge, resolved.clamp) == ((13, 14, 15, 16, 17), 20000, 0.75)

    def test_an_unknown_model_gets_a_default_by_depth(self) -> None:
        resolved = EditConfig(method="emmet").resolve(SMOLLM2)
        assert (resolved.layers, resolved.ridge, resolved.clamp, resolved.steps) == ((7,), "auto", 4, 25)
        assert EditConfig(method="memit").resolve(SMOLLM2).layers == (3, 4, 5, 6, 7)

    @pytest.mark.parametrize(("layer", "exists"), [(29, True), (30, False)])
    def test_layers_must_exist_in_the_model(self, layer: int, exists: bool) -> None:
        config = EditConfig(layers=[3, layer])
        if exists:
            assert config.resolve(SMOLLM2).layers == (3, layer)
        else:
            with pytest.raises(ConfigError, match="layer 30 does not exist: choose layers from 0 to 29"):
                config.resolve(SMOLLM2)

    def test_a_config_without_a_depth_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="expected a model config with num_hidden_layers"):
            EditConfig().resolve(PretrainedConfig())


class TestParseLayers:
    @given(layers=st.lists(st.integers(0, 60), min_size=1, unique=True).map(sorted), data=st.data())
    def test_numbers_and_ranges_name_their_layers(self, layers: list[int], data: st.DataObject) -> None:
        parts: list[tuple[int, int]] = []
        for layer in layers:
            if parts and parts[-1][1] == layer - 1 and data.draw(st.booleans()):
                parts[-1] = (parts[-1][0], layer)
            else:
                parts.append((layer, layer))
        written = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
        assert parse_layers(",".join(data.draw(st.permutations(written)))) == tuple(layers)

    def test_spaces_are_ignored(self) -> None:
        assert parse_layers(" 4-5, 10 ") == (4, 5, 10)

    @pytest.mark.parametrize(
        "text", ["", " ", "a", "4-", "-4", "8-4", "4,,5", "4-8-9", "4 5", "1.5", "0-99999999", "4-6,5", "3,3"]
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError):
            parse_layers(text)

    @given(text=st.text("0129-, ", max_size=8))
    def test_any_text_is_parsed_or_refused(self, text: str) -> None:
        with suppress(ConfigError):
            layers = parse_layers(text)
            assert layers == tuple(sorted(set(layers)))


def test_gradient_takes_one_step() -> None:
    assert EditConfig(optimizer="gradient", layers=[0]).resolve(SMOLLM2).steps == 1
    with pytest.raises(ConfigError, match='optimizer "gradient" takes 1 step, got steps = 5: leave steps out'):
        EditConfig(optimizer="gradient", steps=5)
