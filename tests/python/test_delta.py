from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import emmet
from emmet import Editor, FormatError, ModelError, Preservation
from emmet.architectures import discover
from emmet.delta import Delta
from emmet.output import MANIFEST
from test_editor import CONFIG, EDITS, TEXT
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A GPT-2 (whose weights are transposed), its handle, and the delta's folder."""
    folder = tmp_path_factory.mktemp("delta")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    statistics = emmet.collect_statistics(model, tokenizer, folder / "text.txt", layers=[1], tokens=1000)
    handle = Editor(model, tokenizer, config=CONFIG, statistics=statistics).edit(EDITS)
    handle.save(folder / "delta")
    return model, handle, folder / "delta"


def base(seed: int = 0):
    return tiny_model("gpt2", vocab_size=len(tiny_tokenizer()), seed=seed)


def test_a_loaded_delta_gives_the_edited_weights_bit_for_bit_and_takes_them_back(edited):
    model, _, folder = edited
    other = base()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    backup = Delta.load(folder).apply(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    backup.restore()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in before.items())


def test_a_delta_tells_how_it_was_made(edited):
    _, handle, folder = edited
    loaded = Delta.load(folder)
    assert loaded.edits == tuple(EDITS)
    assert loaded.prefixes == CONFIG.prefixes
    assert loaded.config.layers == (1,)
    assert [report.layer for report in loaded.reports] == [1]
    assert loaded.reports[0].diagnostics.to_dict() == handle.diagnostics[0].diagnostics.to_dict()


def test_a_compressed_delta_is_smaller_and_still_one_of_its_model(edited):
    model, handle, folder = edited
    moment = torch.eye(handle.delta.layers[1].update.shape[1])
    compressed = Delta.load(folder).compressed({1: Preservation.from_second_moment(moment)}, rank=1)
    assert compressed.layers[1].update.rank == 1 < handle.delta.layers[1].update.rank
    left, values, right = np.linalg.svd(handle.delta.layers[1].update.dense().numpy())
    np.testing.assert_allclose(compressed.layers[1].update.dense(), values[0] * left[:, :1] @ right[:1], atol=1e-12)
    other = base()
    compressed.apply(other)
    difference = (discover(model).projection(1).weight - discover(other).projection(1).weight).detach().norm()
    assert float(difference) == pytest.approx(np.linalg.norm(values[1:]), rel=1e-3)


def test_a_delta_of_other_weights_is_refused_and_changes_nothing(edited):
    _, _, folder = edited
    other = base(seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ModelError, match="the model that the delta was made for"):
        Delta.load(folder).apply(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda manifest: manifest.update(format="emmet.delta.99"),
        lambda manifest: manifest.pop("edits"),
        lambda manifest: manifest.update(layers=[1]),
        lambda manifest: manifest["layers"].update({"../../x": {}}),
    ],
)
def test_a_damaged_manifest_is_refused(edited, tmp_path, damage):
    _, _, folder = edited
    manifest = json.loads((folder / MANIFEST).read_text())
    damage(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FormatError):
        Delta.load(tmp_path)
