"""Models load from folders and GGUF files as they were saved, and what cannot be edited is refused in one line."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, PreTrainedModel, T5Config, T5Model
from transformers.utils import logging

from emmet import loading
from emmet.errors import ModelError
from emmet.loading import load
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXT = "The mother tongue of Danielle Darrieux is"


def llama() -> PreTrainedModel:
    return tiny_model("llama", vocab_size=len(TOKENIZER))


def saved(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "model", llama())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMMET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same_weights(model: PreTrainedModel, other: PreTrainedModel) -> None:
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype
        assert torch.equal(weight, others[name]), name


def test_a_folder_gives_what_was_saved(folder: Path) -> None:
    model, tokenizer = load(folder)
    assert_same_weights(model, llama())
    assert not any(module.training for module in model.modules())
    assert tokenizer(TEXT)["input_ids"] == TOKENIZER(TEXT)["input_ids"]
    assert_same_weights(load(str(folder))[0], model)


def test_the_dtype_is_the_checkpoints_own_unless_given(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", llama().bfloat16())
    assert_same_weights(load(folder)[0], llama().bfloat16())
    assert_same_weights(load(folder, dtype=torch.float64)[0], llama().bfloat16().double())


def test_a_folder_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same_weights(load("~/model")[0], llama())


def test_loading_is_silent_and_changes_no_global_settings(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reports: list[tuple[str, int, int]] = []
    logging.set_verbosity_info()
    try:
        load(folder, progress=lambda *report: reports.append(report))
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        assert logging.set_tqdm_hook(None) is None
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")
    count = reports[-1][2]
    assert reports == [("loading", done, count) for done in range(1, count + 1)]
    assert count > 10


def refused(name_or_path: Path | str, match: str, **settings: Any) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(name_or_path, **settings)
    assert "\n" not in str(caught.value)
    assert logging.set_tqdm_hook(None) is None


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    for missing in (tmp_path / "missing", "./missing", "a/b/missing", "missing.gguf", "~/missing"):
        refused(missing, "does not exist: give a model folder, a GGUF file or a name on the hub")
    refused(tmp_path, r"is not a model folder, it has no config\.json")
    (tmp_path / "notes.txt").write_text("notes")
    refused(tmp_path / "notes.txt", r"notes\.txt is not a GGUF file")


def test_paths_that_cannot_be_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / ("m" * 300), "^cannot load .*File name too long")
    refused("~nouser/m", "^cannot load ~nouser/m: Could not determine home directory")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")

    def denied(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", denied)
    refused(tmp_path / "m.gguf", f"^cannot load {tmp_path / 'm.gguf'}: .*Permission denied")


def test_a_device_that_is_not_there(folder: Path) -> None:
    refused(folder, "cannot use the device nowhere", device="nowhere")


def test_damaged_checkpoints(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, f"^cannot load {folder}: ")
    weights.unlink()
    refused(folder, f"^cannot load {folder}: ")
    weights.write_bytes(whole)
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    refused(folder, f"^cannot load {folder}: .*unheard-of")
    (folder / "config.json").write_text("{")
    refused(folder, f"^cannot load {folder}: ")


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, r"lacks 1 weights, such as model\.layers\.1\.mlp\.down_proj\.weight")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", "^cannot load ")


def test_models_that_are_no_decoders(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": len(TOKENIZER), "num_hidden_layers": 1}
    bert = BertConfig(hidden_size=32, intermediate_size=40, num_attention_heads=2, **sizes)
    refused(saved(tmp_path / "bert", BertLMHeadModel(bert)), "encoder")
    t5 = T5Config(d_model=32, d_kv=16, d_ff=40, num_heads=2, num_layers=1, vocab_size=len(TOKENIZER))
    refused(saved(tmp_path / "t5", T5Model(t5)), "^cannot load .*T5Config")


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    refused(folder, "^cannot load ")
    assert not (folder / "ran").exists()


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: object, **_settings: object) -> None:
        message = "We couldn't connect to the hub.\nCheck your internet connection."
        raise OSError(message)

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", unreachable)
    refused("openai-community/gpt2", "^cannot load openai-community/gpt2: We couldn't connect to the hub")


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    """A Llama model as llama.cpp stores it: in float32, rotary halves interleaved, with a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    pytest.importorskip("accelerate", reason="the package accelerate is not installed")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)

    tokens = TOKENIZER.convert_ids_to_tokens(range(len(TOKENIZER)))
    merges = json.loads(TOKENIZER.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in TOKENIZER.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(TOKENIZER.bos_token_id)
    writer.add_eos_token_id(TOKENIZER.eos_token_id)

    for name, weight in gguf_tensors(model):
        writer.add_tensor(name, np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            halves = weight.view(-1, 2, model.config.head_dim // 2, weight.shape[1])
            weight = halves.transpose(1, 2).reshape(weight.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        yield name, weight


class TestGGUF:
    """A file of float32 weights, so that dequantising it has one right answer."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        write_gguf(tmp_path / "tiny.gguf", llama())
        return tmp_path / "tiny.gguf"

    def test_it_gives_a_plain_model(self, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        model, tokenizer = load(file)
        assert capfd.readouterr() == ("", "")
        assert_same_weights(model, llama())
        assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == TOKENIZER(TEXT)["input_ids"]
        model.save_pretrained(tmp_path / "again")
        assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), model)
        assert load(file, dtype=torch.bfloat16)[0].dtype == torch.bfloat16

    def test_it_is_dequantised_once_for_its_content(
        self, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reports: list[tuple[str, int, int]] = []
        load(file, progress=lambda *report: reports.append(report))
        assert [(done, total) for stage, done, total in reports if stage == "dequantising"] == [(0, 1), (1, 1)]
        assert len(list((cache / "models").iterdir())) == 1

        reports.clear()
        other = file.with_name("renamed.gguf")
        file.rename(other)
        monkeypatch.setattr(loading, "_dequantise", lambda *_: pytest.fail("dequantised again"))
        assert_same_weights(load(other, progress=lambda *report: reports.append(report))[0], llama())
        assert {report[0] for report in reports} == {"loading"}

    def test_another_content_is_another_model(self, file: Path) -> None:
        load(file)
        write_gguf(file, tiny_model("llama", vocab_size=len(TOKENIZER), seed=1))
        assert_same_weights(load(file)[0], tiny_model("llama", vocab_size=len(TOKENIZER), seed=1))

    def test_a_truncated_file_leaves_nothing_in_the_cache(self, file: Path, cache: Path) -> None:
        file.write_bytes(file.read_bytes()[:5000])
        refused(file, f"^cannot load {file}: ")
        assert list((cache / "models").iterdir()) == []

    def test_package_missing(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
        refused(file, r"needs the package gguf: pip install 'emmet-edit\[gguf\]'")
