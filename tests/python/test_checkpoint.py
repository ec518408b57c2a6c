"""Edited models as folders: what is in them, and that edits are rounded to the model's dtype once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import emmet
from emmet import Edit, EditConfig, Editor
from emmet.checkpoint import save_model
from tiny import tiny_model, tiny_tokenizer
from workspace import TEXT

WEIGHT = "model.layers.1.mlp.down_proj.weight"
BATCHES = (
    [Edit("The mother tongue of {} is", "Danielle Darrieux", "English")],
    [Edit("The capital of {} is", "France", "Berlin"), Edit("{} plays the", "Toko Yasuda", "piano")],
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT)
    return path


def edited(corpus: Path, dtype: torch.dtype = torch.float32) -> tuple[Editor, torch.Tensor]:
    """An editor with two batches of edits, and the weight that they changed as it was before."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer)).to(dtype)
    before = model.get_parameter(WEIGHT).detach().clone()
    statistics = emmet.collect_statistics(model, tokenizer, corpus, layers=[1], tokens=1000)
    config = EditConfig(layers=[1], prefixes=[], steps=2)
    editor = Editor(model, tokenizer, config=config, statistics=statistics)
    for batch in BATCHES:
        editor.edit(batch)
    return editor, before


def save(editor: Editor, folder: Path, **settings: int) -> Path:
    save_model(editor.arch.model, editor.tokenizer, editor.delta(), folder, **settings)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_rounded_once(corpus: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    editor, before = edited(corpus, dtype)
    saved = load_file(save(editor, tmp_path / "model") / "model.safetensors")[WEIGHT]

    assert saved.dtype == dtype
    exact = before.double().numpy() + editor.delta().layers[1].update.dense().numpy()
    exponent = np.frexp(exact)[1] - 1
    ulp = torch.finfo(dtype).eps * np.exp2(np.maximum(exponent, np.log2(torch.finfo(dtype).smallest_normal)))
    # To the nearest, but for a float32 on the way that lies between two numbers: 2^-24 of the weight.
    error = np.abs(saved.double().numpy() - exact)
    assert (error <= ulp / 2 + 2.0**-24 * np.abs(exact)).all()
    assert not torch.equal(saved, before)


def test_large_models_are_sharded(corpus: Path, tmp_path: Path) -> None:
    editor, _ = edited(corpus)
    whole = load_file(save(editor, tmp_path / "whole") / "model.safetensors")
    largest = max(tensor.nbytes for tensor in whole.values())

    sharded = save(editor, tmp_path / "sharded", shard_size=largest)
    shards = sorted(sharded.glob("model-*.safetensors"))
    tensors = [load_file(shard) for shard in shards]
    assert len(shards) > 1
    assert max(sum(tensor.nbytes for tensor in shard.values()) for shard in tensors) <= largest
    assert sorted(name for shard in tensors for name in shard) == sorted(whole)

    loaded = AutoModelForCausalLM.from_pretrained(sharded)
    for name, value in editor.arch.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_tokenizer_comes_with_the_model(corpus: Path, tmp_path: Path) -> None:
    editor, _ = edited(corpus)
    loaded = AutoTokenizer.from_pretrained(save(editor, tmp_path / "model"))
    assert loaded(TEXT)["input_ids"] == editor.tokenizer(TEXT)["input_ids"]


def test_files_have_the_mode_of_any_other_file(corpus: Path, tmp_path: Path) -> None:
    editor, _ = edited(corpus)
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    folder = save(editor, tmp_path / "model")
    assert {path.name: path.stat().st_mode for path in folder.iterdir()} == {
        path.name: ordinary.stat().st_mode for path in folder.iterdir()
    }
