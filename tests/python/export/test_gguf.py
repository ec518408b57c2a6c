"""The adapter of llama.cpp, read back by the gguf package and held against the rules by which llama.cpp loads it."""

from __future__ import annotations

import importlib.util
import json

import gguf
import numpy as np
import pytest
from random_delta import delta_of, random_delta, random_update

from emmet import ModelError
from emmet.delta import LayerDelta
from emmet.export import save_gguf
from emmet.output import MANIFEST
from tiny import D_MLP, D_MODEL, tiny_model


def write_base(path, layers=4, d_in=D_MLP, d_out=D_MODEL, architecture="llama"):
    """What a converter writes of the weights that emmet edits, quantised where the width allows."""
    writer = gguf.GGUFWriter(path, architecture)
    kind = gguf.GGMLQuantizationType.Q8_0 if d_in % 32 == 0 else gguf.GGMLQuantizationType.F16
    for layer in range(layers):
        data = gguf.quants.quantize(np.ones((d_out, d_in), np.float32), kind)
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("family", "architecture"), [("llama", "llama"), ("gpt2", "gpt2"), ("gpt_neox", "gptneox")])
def test_the_adapter_holds_the_updates(tmp_path, family, architecture):
    delta = random_delta(tiny_model(family, vocab_size=100), {1: 3, 3: 5})
    save_gguf(delta, tmp_path / "out", write_base(tmp_path / "base.gguf", architecture=architecture))

    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 5.0,
    }
    assert reader.fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 4
    for layer, of_layer in delta.layers.items():
        a, b = (tensors[f"blk.{layer}.ffn_down.weight.lora_{side}"] for side in "ab")
        assert (a.shape.tolist(), b.shape.tolist()) == ([D_MLP, 5], [5, D_MODEL])  # in llama.cpp's order
        assert a.tensor_type == b.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_allclose(b.data @ a.data, of_layer.update.dense(), atol=1e-6)


def test_the_base_may_be_quantised(tmp_path):
    delta = delta_of({0: LayerDelta("layer", False, "", random_update(32, 64, rank=2))})
    save_gguf(delta, tmp_path / "out", write_base(tmp_path / "base.gguf", layers=1, d_in=64))
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["format"] == "emmet.gguf.1"


@pytest.mark.parametrize("other", [{"layers": 2}, {"d_in": 64}, {"d_out": 16}])
def test_a_base_that_does_not_fit_is_refused_and_nothing_written(tmp_path, other):
    delta = random_delta(tiny_model("llama", vocab_size=100), {1: 1, 2: 1})
    base = write_base(tmp_path / "base.gguf", **other)
    with pytest.raises(ModelError, match=r"a tensor blk\.[12]\.ffn_down\.weight of shape \(80, 32\) in .*, got "):
        save_gguf(delta, tmp_path / "out", base)
    assert list(tmp_path.iterdir()) == [base]


def test_what_is_not_the_gguf_file_of_a_model_is_refused(tmp_path):
    delta = random_delta(tiny_model("llama", vocab_size=100), {1: 1})
    whole = write_base(tmp_path / "base.gguf").read_bytes()
    for name, content in {"other": b"{}", "empty": b"", "truncated": whole[:300], "cut": whole[:-300]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name} is not the GGUF file of a model: "):
            save_gguf(delta, tmp_path / "out", tmp_path / name)
    with pytest.raises(ModelError, match="missing is not the GGUF file of a model: "):
        save_gguf(delta, tmp_path / "out", tmp_path / "missing")


def test_the_optional_package_is_named_when_it_is_missing(tmp_path, monkeypatch):
    delta = random_delta(tiny_model("llama", vocab_size=100), {1: 1})
    base = write_base(tmp_path / "base.gguf")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(ModelError, match=r"pip install 'emmet-edit\[gguf\]'"):
        save_gguf(delta, tmp_path / "out", base)
