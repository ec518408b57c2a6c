"""Drift equals its definition, worked out with two whole models in float64, and leaves the model as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import emmet
import tiny
from emmet import EditConfig, Editor, ModelError, NonFiniteError, StatisticsError
from emmet.architectures import Architecture, discover
from emmet.corpora import open_corpus
from emmet.delta import Delta
from emmet.edits import Edit
from emmet.evaluate import drift
from emmet.evaluate.drift import Drift, measure_drift
from workspace import TEXT

TOKENIZER = tiny.tiny_tokenizer()
EDITS = [Edit("The mother tongue of {} is", "Danielle Darrieux", "English"), Edit("{} is in", "Paris", "Berlin")]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drift") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def base(family: str = "llama") -> PreTrainedModel:
    return tiny.tiny_model(family, vocab_size=len(TOKENIZER))


def delta_of(family: str, text: Path, **settings: Any) -> Delta:
    """Edits that go too far, so that drift is well above rounding errors."""
    config = EditConfig(layers=[1, 2], prefixes=(), steps=10, clamp=30, learning_rate=2, weight_decay=0, **settings)
    model = base(family)
    statistics = emmet.collect_statistics(model, TOKENIZER, text, layers=[1, 2], tokens=1000)
    return Editor(model, TOKENIZER, config=config, statistics=statistics).edit(EDITS).delta


def with_updates(delta: Delta, value: float) -> Delta:
    """The delta with all entries of its updates at `value`."""
    updates = {
        layer: emmet.Update.from_dense(torch.full(of_layer.update.shape, value, dtype=torch.float64))
        for layer, of_layer in delta.layers.items()
    }
    layers = {layer: replace(of_layer, update=updates[layer]) for layer, of_layer in delta.layers.items()}
    return replace(delta, layers=layers)


@pytest.fixture(scope="module")
def delta(text: Path) -> Delta:
    return delta_of("llama", text)


def plain_log_probabilities(model: PreTrainedModel, ids: torch.Tensor) -> np.ndarray:
    """Of the tokens after the first, in float64: [tokens - 1, vocab]."""
    with torch.no_grad():
        logits = model.double()(ids[None]).logits[0, :-1].numpy()
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_drift_equals_its_definition(family: str, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_LENGTH", 50)
    delta = delta_of(family, text)
    found = measure_drift(discover(base(family)), TOKENIZER, delta, text, tokens=120)

    unedited, edited = base(family), base(family)
    delta.apply(edited)
    before, after, ids = [], [], []
    for sequence in open_corpus(text).token_sequences(unedited, TOKENIZER, tokens=120, length=50):
        before.append(plain_log_probabilities(unedited, sequence))
        after.append(plain_log_probabilities(edited, sequence))
        ids.append(sequence[1:].numpy())
    p, q, tokens = np.concatenate(before), np.concatenate(after), np.concatenate(ids)
    assert found.corpus == str(text)
    assert found.text.tokens == len(tokens) == 120 - 3  # nothing predicts the first token of a sequence
    rows = np.arange(len(tokens))
    assert found.text.kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)
    assert found.text.kl > 1e-3
    assert found.text.perplexity_before == pytest.approx(np.exp(-p[rows, tokens].mean()), rel=1e-4)
    assert found.text.perplexity_after == pytest.approx(np.exp(-q[rows, tokens].mean()), rel=1e-4)
    agreement = 100 * (p.argmax(-1) == q.argmax(-1)).mean()
    assert found.text.top_1_agreement == pytest.approx(agreement)
    assert 0 < agreement < 100


def test_the_change_of_a_layer_equals_its_definition(delta: Delta, text: Path) -> None:
    model = base()
    found = measure_drift(discover(model), TOKENIZER, delta, text, tokens=20).layers
    assert list(found) == [1, 2]
    statistics = emmet.collect_statistics(base(), TOKENIZER, text, layers=[1, 2], tokens=1000)
    for layer, of_layer in found.items():
        change = delta.layers[layer].update.dense().numpy()
        weight = model.model.layers[layer].mlp.down_proj.weight.detach().double().numpy()
        assert of_layer.relative_change == pytest.approx(np.linalg.norm(change) / np.linalg.norm(weight))
        moment = statistics[layer].second_moment.numpy()
        assert of_layer.preservation_cost == pytest.approx(np.trace(change @ moment @ change.T), rel=1e-3)  # its jitter


def test_a_sum_of_updates_has_no_cost_of_its_own(text: Path) -> None:
    delta = delta_of("llama", text, method="rome")
    assert [report.layer for report in delta.reports] == [1, 2, 1, 2]
    found = measure_drift(discover(base()), TOKENIZER, delta, text, tokens=20).layers
    assert found[1].preservation_cost is None
    assert found[1].relative_change > 0


def test_the_same_weights_have_not_drifted(text: Path, delta: Delta) -> None:
    found = measure_drift(discover(base()), TOKENIZER, with_updates(delta, 0.0), text, tokens=50)
    assert (found.text.kl, found.text.top_1_agreement, found.text.perplexity_ratio) == (0, 100, 1)
    assert {of_layer.relative_change for of_layer in found.layers.values()} == {0}


def test_json_holds_all_of_it() -> None:
    text = drift.TextDrift(7, 0.5, 4.0, 6.0, 75.0)
    found = Drift("wiki.txt", text, {3: drift.LayerDrift(0.25, None), 5: drift.LayerDrift(0.5, 2.0)})
    assert found.to_json() == {
        "corpus": "wiki.txt",
        "tokens": 7,
        "kl": 0.5,
        "perplexity_before": 4.0,
        "perplexity_after": 6.0,
        "perplexity_ratio": 1.5,
        "top_1_agreement": 75.0,
        "layers": {
            "3": {"relative_change": 0.25, "preservation_cost": None},
            "5": {"relative_change": 0.5, "preservation_cost": 2.0},
        },
    }


def bits(arch: Architecture) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in arch.model.state_dict().items()}


def assert_unchanged(arch: Architecture, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in arch.model.state_dict().items())


def test_the_model_is_left_unedited(text: Path, delta: Delta) -> None:
    arch = discover(base())
    before = bits(arch)
    calls: list[tuple[str, int, int]] = []
    measure_drift(arch, TOKENIZER, delta, text, tokens=300, progress=lambda *call: calls.append(call))
    assert_unchanged(arch, before)
    assert calls == [("drift", 1, 2), ("drift", 2, 2)]


def test_the_model_is_left_unedited_by_an_interrupt(text: Path, delta: Delta) -> None:
    arch = discover(base())
    before = bits(arch)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = arch.head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_drift(arch, TOKENIZER, delta, text, tokens=50)
    handle.remove()
    assert_unchanged(arch, before)


def test_another_model_is_refused(text: Path, delta: Delta) -> None:
    other = discover(tiny.tiny_model("llama", vocab_size=len(TOKENIZER), seed=1))
    with pytest.raises(ModelError, match="the model that the delta was made for"):
        measure_drift(other, TOKENIZER, delta, text, tokens=20)


@pytest.mark.parametrize("content", ["", "a"])
def test_a_text_without_a_token_to_predict_is_refused(content: str, delta: Delta, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(content)
    with pytest.raises(StatisticsError, match="two tokens or more to measure drift on, got fewer in "):
        measure_drift(discover(base()), TOKENIZER, delta, path)


def test_predictions_that_are_not_finite_are_reported(text: Path, delta: Delta) -> None:
    arch = discover(base())
    before = bits(arch)
    with pytest.raises(NonFiniteError):
        measure_drift(arch, TOKENIZER, with_updates(delta, 1e38), text, tokens=20)
    assert_unchanged(arch, before)
