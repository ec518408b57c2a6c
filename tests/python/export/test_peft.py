"""The PEFT adapter, judged by PEFT itself: the base model with it is the edited model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from random_delta import delta_of, random_delta, random_update
from safetensors.torch import load_file

from emmet import EmmetError
from emmet.delta import LayerDelta
from emmet.export import save_peft
from emmet.export.peft import padded_rank
from emmet.output import MANIFEST
from tiny import FAMILIES, tiny_model

VOCABULARY = 100
TOKENS = torch.arange(5, 65).reshape(3, 20)


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_gives_the_logits_of_the_edited_model(tmp_path, recwarn, family):
    model = tiny_model(family, vocab_size=VOCABULARY)
    delta = random_delta(model, {1: 3, 2: 20, 3: 1})
    before = logits(model)
    save_peft(delta, tmp_path / "adapter")
    adapted = logits(PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval())
    delta.apply(model)
    edited = logits(model)

    scale = edited.abs().max()
    assert (adapted - edited).abs().max() < 1e-4 * scale
    assert (before - edited).abs().max() > 1e-2 * scale
    assert [str(warning.message) for warning in recwarn if "peft" in warning.filename] == []


def test_servers_find_one_accepted_rank_and_a_scale_of_one(tmp_path):
    delta = replace(random_delta(tiny_model("llama", vocab_size=VOCABULARY), {1: 3, 2: 9}), base="org/model")
    save_peft(delta, tmp_path / "adapter")

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16
    assert config["target_modules"] == ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    assert config["base_model_name_or_path"] == "org/model"
    shapes = {
        name: tuple(value.shape)
        for name, value in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()
    }
    assert shapes == {
        f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_{side}.weight": shape
        for layer in (1, 2)
        for side, shape in (("A", (16, 80)), ("B", (32, 16)))
    }


def test_the_folder_says_what_was_edited_and_is_replaced_as_a_whole(tmp_path):
    model = tiny_model("llama", vocab_size=VOCABULARY)
    (tmp_path / "adapter").mkdir()
    for layer in (1, 2):
        save_peft(random_delta(model, {layer: 1}), tmp_path / "adapter")
    manifest = json.loads((tmp_path / "adapter" / MANIFEST).read_text())
    assert (manifest["format"], list(manifest["layers"])) == ("emmet.peft.1", ["2"])
    assert list(tmp_path.iterdir()) == [tmp_path / "adapter"]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", MANIFEST)
    }


@pytest.mark.parametrize(("rank", "accepted"), [(0, 1), (1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_ranks_are_those_of_servers(rank, accepted):
    assert padded_rank(rank) == accepted


def test_a_rank_that_no_server_accepts_is_refused_and_nothing_written(tmp_path):
    delta = delta_of({0: LayerDelta("layer", False, "", random_update(520, 520, rank=513))})
    with pytest.raises(
        EmmetError,
        match=r"expected an update of rank 512 or less, .* got 513; compress it, with `emmet export DELTA --rank 512",
    ):
        save_peft(delta, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []
