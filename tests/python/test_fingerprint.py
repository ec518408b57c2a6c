"""A fingerprint changes with everything that a layer's keys depend on, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, ByT5Tokenizer

from emmet.architectures import Architecture, discover
from emmet.errors import ConfigError
from emmet.fingerprint import (
    layer_fingerprints,
    model_fingerprint,
    tensor_digest,
    tokenizer_fingerprint,
)
from tiny import FAMILIES, tiny_model, tiny_tokenizer

LAYERS = range(4)


def layer_fingerprint(arch: Architecture, layer: int) -> str:
    return layer_fingerprints(arch, [layer])[layer]


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@given(st.integers(0, 34), st.integers(0, 31))
def test_digest_changes_with_every_bit(element: int, bit: int) -> None:
    tensor = random_tensor(5, 7)
    changed = tensor.clone()
    changed.view(torch.int32).view(-1)[element] ^= -(2**31) if bit == 31 else 2**bit
    assert tensor_digest(changed) != tensor_digest(tensor)


@given(st.integers(0, 34), st.integers(0, 34))
def test_digest_changes_when_two_values_are_swapped(one: int, other: int) -> None:
    tensor = random_tensor(5, 7)
    order = list(range(35))
    order[one], order[other] = order[other], order[one]
    swapped = tensor.view(-1)[order].view(5, 7)
    assert (tensor_digest(swapped) == tensor_digest(tensor)) == (one == other)


def test_digest_covers_shape_and_dtype() -> None:
    tensor = random_tensor(4, 6)
    assert tensor_digest(tensor.view(6, 4)) != tensor_digest(tensor)
    assert tensor_digest(tensor.view(torch.int32)) != tensor_digest(tensor)


def test_digest_does_not_depend_on_memory_layout() -> None:
    tensor = random_tensor(4, 6)
    assert tensor_digest(tensor.T.contiguous().T) == tensor_digest(tensor)
    assert tensor_digest(torch.cat([tensor, tensor])[4:]) == tensor_digest(tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_digest_of_every_dtype(dtype: torch.dtype) -> None:
    tensor = random_tensor(50, dtype=dtype)
    changed = tensor.clone()
    changed[49] = tensor[49] == 0
    assert tensor_digest(changed) != tensor_digest(tensor)
    assert tensor_digest(tensor[:0]) != tensor_digest(tensor[:1])
    assert tensor_digest(tensor[0]) != tensor_digest(tensor[:1])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_fingerprint_follows_what_the_keys_depend_on(family: str) -> None:
    """Every parameter in turn: does it lie outside the layers, below, or beside the projection of the layer?"""
    arch = discover(tiny_model(family, vocab_size=20))
    before = layer_fingerprints(arch, LAYERS)
    for name, parameter in arch.model.named_parameters():
        saved = parameter.clone()
        parameter.view(-1)[-1] += 1
        after = layer_fingerprints(arch, LAYERS)
        parameter.copy_(saved)

        inside = name.startswith(f"{arch.layers_name}.")
        layer = int(name.removeprefix(f"{arch.layers_name}.").split(".")[0]) if inside else -1
        in_projection = inside and name.startswith(arch.projection(layer).name + ".")
        expected = {above for above in LAYERS if above > layer or (above == layer and not in_projection)}
        assert {above for above in LAYERS if after[above] != before[above]} == expected, name
    assert layer_fingerprints(arch, LAYERS) == before


def test_layer_fingerprint_does_not_depend_on_the_layers_asked_for() -> None:
    arch = discover(tiny_model("gpt2", vocab_size=20))
    every = layer_fingerprints(arch, LAYERS)
    assert len(set(every.values())) == len(LAYERS)
    assert every == {layer: layer_fingerprint(arch, layer) for layer in LAYERS}
    assert layer_fingerprints(arch, [3, 1]) == {layer: every[layer] for layer in (1, 3)}


def test_layer_fingerprint_depends_on_the_dtype() -> None:
    model = tiny_model("llama", vocab_size=20)
    before = layer_fingerprint(discover(model), 0)
    assert layer_fingerprint(discover(model.double()), 0) != before


def test_layer_fingerprint_depends_on_the_config() -> None:
    model = tiny_model("llama", vocab_size=20)
    before = layer_fingerprint(discover(model), 0)
    model.config.rms_norm_eps *= 2
    assert layer_fingerprint(discover(model), 0) != before


@pytest.mark.parametrize(
    ("name", "value"), [("pad_token_id", 5), ("use_cache", False), ("dtype", "bfloat16"), ("id2label", {0: "no"})]
)
def test_fingerprints_do_not_depend_on_idle_settings(name: str, value: object) -> None:
    arch = discover(tiny_model("llama", vocab_size=20))
    before = layer_fingerprint(arch, 0), model_fingerprint(arch)
    assert getattr(arch.model.config, name) != value
    setattr(arch.model.config, name, value)
    assert (layer_fingerprint(arch, 0), model_fingerprint(arch)) == before


def test_layer_out_of_range() -> None:
    with pytest.raises(ConfigError, match="layer 4 is out of range"):
        layer_fingerprint(discover(tiny_model("llama", vocab_size=20)), 4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_model_fingerprint_follows_every_weight(family: str) -> None:
    arch = discover(tiny_model(family, vocab_size=20))
    before = model_fingerprint(arch)
    for name, parameter in arch.model.named_parameters():
        saved = parameter.clone()
        parameter.view(-1)[-1] += 1
        assert model_fingerprint(arch) != before, name
        parameter.copy_(saved)
    assert model_fingerprint(arch) == before


def test_model_fingerprint_follows_the_config_but_not_where_the_model_lies(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=20)
    before = model_fingerprint(discover(model))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model_fingerprint(discover(loaded)) == before
    loaded.config.rms_norm_eps *= 2
    assert model_fingerprint(discover(loaded)) != before


def test_tokenizer_fingerprint_is_of_how_text_becomes_ids() -> None:
    plain = tokenizer_fingerprint(tiny_tokenizer())
    assert tokenizer_fingerprint(tiny_tokenizer()) == plain
    assert tokenizer_fingerprint(tiny_tokenizer(bos=True)) != plain
    assert tokenizer_fingerprint(tiny_tokenizer(kind="metaspace")) != plain
    extended = tiny_tokenizer()
    extended.add_tokens(["Darrieux"])
    assert tokenizer_fingerprint(extended) != plain


def test_tokenizer_fingerprint_outlives_a_padded_call() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before


def test_tokenizer_without_a_backend() -> None:
    plain = tokenizer_fingerprint(ByT5Tokenizer())
    assert tokenizer_fingerprint(ByT5Tokenizer()) == plain
    assert tokenizer_fingerprint(ByT5Tokenizer(extra_ids=7)) != plain
