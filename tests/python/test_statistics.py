"""Statistics equal their definition in float64, and never serve another model, text or layer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import PreTrainedModel

from emmet import corpora
from emmet import statistics as statistics_module
from emmet.architectures import discover
from emmet.corpora import open_corpus
from emmet.errors import ConfigError, EmmetError, EmmetWarning, FormatError, NonFiniteError, StatisticsError
from emmet.fingerprint import layer_fingerprints
from emmet.integrity import write_with_checksum
from emmet.statistics import (
    LayerStatistics,
    Statistics,
    cached_statistics,
    collect_into_cache,
    collect_statistics,
    layer_path,
)
from tiny import FAMILIES, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LAYERS = [1, 2]


def llama(seed: int = 0) -> PreTrainedModel:
    return tiny_model("llama", vocab_size=len(TOKENIZER), seed=seed)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The mother tongue of Danielle Darrieux is French. Toko Yasuda plays the guitar. " * 30)
    return path


def collect(model: PreTrainedModel, corpus: str | Path, **settings: Any) -> Statistics:
    """With sequences of 20 tokens, three in a batch."""
    given = {"layers": LAYERS, "tokens": 330, "sequence_length": 20, "batch_tokens": 60} | settings
    return collect_statistics(model, TOKENIZER, corpus, **given)


def forward_passes(model: PreTrainedModel) -> list[int]:
    """A list that grows by the number of rows with every forward pass."""
    passes: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _module, args, _output: passes.append(len(args[0])))
    return passes


def by_definition(model: PreTrainedModel, corpus: str | Path, layer: int, tokens: int) -> NDArray[np.float64]:
    """Σ k kᵀ / n in float64, one sequence at a time through the whole model."""
    sequences = list(open_corpus(corpus).token_sequences(model, TOKENIZER, tokens=tokens, length=20))
    keys: list[torch.Tensor] = []
    module = discover(model).projection(layer).module
    handle = module.register_forward_pre_hook(lambda _module, args: keys.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        for ids in sequences:
            model(ids[None], use_cache=False)
    handle.remove()
    matrix = torch.cat(keys).double().numpy()
    assert len(matrix) == tokens
    return matrix.T @ matrix / tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_second_moments_equal_their_definition(family: str, text: Path) -> None:
    model = tiny_model(family, vocab_size=len(TOKENIZER))
    statistics = collect(model, text, layers=range(4))
    assert list(statistics) == [0, 1, 2, 3]
    for layer, found in statistics.items():
        expected = by_definition(model, text, layer, 330)
        assert found.count == 330
        assert found.second_moment.dtype == torch.float64
        # Sums of 330 float32 products, each within 2⁻²⁴ of itself; the keys differ by the order of float32 sums.
        np.testing.assert_allclose(found.second_moment, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_sampled_text_is_the_default_and_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling a later batch in the middle of the collection adds nothing of its own."""
    monkeypatch.setattr(corpora, "_SAMPLED_ROWS", 4)
    model = llama()
    statistics = collect_statistics(model, TOKENIZER, layers=[2], tokens=330, sequence_length=20)
    expected = by_definition(model, "self", 2, 330)
    assert statistics[2].count == 330
    assert (statistics[2].sources[0].corpus, statistics[2].sources[0].seed) == ("self", 0)
    np.testing.assert_allclose(statistics[2].second_moment, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_ten_tokens_for_each_input_dimension() -> None:
    assert collect_statistics(llama(), TOKENIZER, layers=[0])[0].count == 10 * 80


def test_sequences_fit_the_context(text: Path) -> None:
    source = collect(llama(), text, sequence_length=10**6, tokens=600)[1].sources[0]
    assert source.sequence_length == 256


def test_a_small_corpus_gives_fewer_tokens(text: Path) -> None:
    statistics = collect(llama(), text, tokens=10**6)
    assert statistics[1].count == len(TOKENIZER(text.read_text())["input_ids"])
    assert statistics[1].sources[0].tokens == 10**6


def test_nothing_above_the_deepest_layer_runs(text: Path) -> None:
    model = llama()
    ran: set[int] = set()
    for index, layer in enumerate(discover(model).layers):
        layer.register_forward_pre_hook(lambda _module, _args, index=index: ran.add(index))
    collect(model, text, layers=[1])
    assert ran == {0, 1}


def test_the_model_stays_as_it_is(text: Path) -> None:
    model = llama().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    statistics = collect(model, text)
    assert all(
        module.training and not module._forward_hooks and not module._forward_pre_hooks for module in model.modules()
    )
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(collect(model.eval(), text)[1].second_moment, statistics[1].second_moment)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(text: Path, dtype: torch.dtype) -> None:
    exact = collect(llama(), text)[1].second_moment
    found = collect(llama().to(dtype), text)[1]
    assert found.dtype == str(dtype)
    assert torch.linalg.norm(found.second_moment - exact) <= 0.05 * torch.linalg.norm(exact)


def test_weights_that_are_not_finite(text: Path, tmp_path: Path) -> None:
    model = llama().train()
    with torch.no_grad():
        discover(model).projection(1).weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="the keys of layer 2 are not finite"):
        collect(model, text, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(StatisticsError, match=r"empty\.txt holds no text"):
        collect(llama(), tmp_path / "empty.txt", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"layers": []}, {"layers": [4]}, {"tokens": 0}, {"sequence_length": 1}])
def test_settings_out_of_range(text: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        collect(llama(), text, **wrong)


def test_files_hold_the_statistics_and_where_they_come_from(text: Path, tmp_path: Path) -> None:
    written = collect(llama(), text, out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"layer.1.safetensors", "layer.2.safetensors"}
    loaded = Statistics.load(tmp_path / "out")
    assert list(loaded) == LAYERS
    for layer in LAYERS:
        assert torch.equal(loaded[layer].second_moment, written[layer].second_moment)
        assert replace(loaded[layer], second_moment=written[layer].second_moment) == written[layer]
    assert list(Statistics.load(tmp_path / "out", [2])) == [2]

    loaded.save(tmp_path / "copy")
    for layer in LAYERS:
        copied = LayerStatistics.load(layer_path(tmp_path / "copy", layer))
        assert torch.equal(copied.second_moment, written[layer].second_moment)
        assert copied.sources == written[layer].sources


def test_files_that_are_not_there(text: Path, tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match="has no statistics: collect them with `emmet stats"):
        Statistics.load(tmp_path / "missing")
    collect(llama(), text, out=tmp_path / "out")
    with pytest.raises(StatisticsError, match=r"no statistics of layer 3, only of 1, 2: .* --layers 3 --out"):
        Statistics.load(tmp_path / "out", [2, 3])


def damaged(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    statistics = LayerStatistics.load(path)
    metadata = {"format": "emmet statistics 1", "layer": "1", "count": "330", "dtype": "torch.float32"}
    metadata |= {"fingerprint": statistics.fingerprint, "sources": "[]"}
    tensors = load_file(path)
    change(tensors, metadata)
    write_with_checksum(path, tensors, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors.pop("second_moment"),
        lambda tensors, _: tensors.update(second_moment=torch.zeros(2, 3, dtype=torch.float64)),
        lambda tensors, _: tensors.update(second_moment=torch.zeros(2, 2)),
        lambda _, metadata: metadata.pop("format"),
        lambda _, metadata: metadata.pop("count"),
        lambda _, metadata: metadata.update(layer="one"),
        lambda _, metadata: metadata.update(sources="[{"),
        lambda _, metadata: metadata.update(sources='[{"corpus": "self"}]'),
    ],
)
def test_malformed_files(text: Path, tmp_path: Path, change: Callable[..., object]) -> None:
    collect(llama(), text, out=tmp_path)
    path = layer_path(tmp_path, 1)
    damaged(path, lambda _tensors, _metadata: None)
    LayerStatistics.load(path)
    damaged(path, change)
    with pytest.raises(FormatError, match=rf"^{path}.*remove it and (collect again|make it anew)$"):
        LayerStatistics.load(path)


def test_truncated_file(text: Path, tmp_path: Path) -> None:
    collect(llama(), text, out=tmp_path)
    path = layer_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=str(path)):
        Statistics.load(tmp_path)


def test_a_flipped_bit_is_found(text: Path, tmp_path: Path) -> None:
    collect(llama(), text, out=tmp_path)
    path = layer_path(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # of the last number's mantissa
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"^{path} is .*damaged.*; remove it and make it anew$"):
        LayerStatistics.load(path)


class TestCheck:
    """Which models and layers statistics are good for."""

    @pytest.fixture
    def statistics(self, text: Path) -> Statistics:
        return collect(llama(), text)

    def test_the_same_model(self, statistics: Statistics) -> None:
        statistics.check(discover(llama()), 1, 2)

    def test_few_tokens_are_called_so(self, text: Path) -> None:
        what = "layer [12] are of 159 tokens, few for keys of width 80: .* from 800"
        with pytest.warns(EmmetWarning, match=what):
            few = collect(llama(), text, tokens=159)
        with pytest.warns(EmmetWarning, match=what):
            few.check(discover(llama()), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            collect(llama(), text, tokens=160).check(discover(llama()), 1)

    @torch.no_grad()
    def test_a_model_edited_at_a_layer(self, statistics: Statistics) -> None:
        """Its own keys are what they were; those of the layers above are not."""
        arch = discover(llama())
        arch.projection(1).weight.add_(1)
        statistics.check(arch, 1)
        with pytest.raises(StatisticsError, match="layer 2 are of another model"):
            statistics.check(arch, 1, 2)

    def test_other_weights(self, statistics: Statistics) -> None:
        with pytest.raises(StatisticsError, match="layer 1 are of another model"):
            statistics.check(discover(llama(seed=1)), 1)

    def test_another_dtype(self, statistics: Statistics) -> None:
        with pytest.raises(StatisticsError, match=r"theirs is torch\.float32, this one torch\.bfloat16"):
            statistics.check(discover(llama().bfloat16()), 1)

    def test_another_width(self, statistics: Statistics) -> None:
        with pytest.raises(StatisticsError, match="keys of width 80, but this model's have 128"):
            statistics.check(discover(tiny_model("bloom", vocab_size=20)), 1)

    def test_a_missing_layer(self, statistics: Statistics) -> None:
        with pytest.raises(StatisticsError, match="no statistics of layer 3, only of 1, 2: collect them"):
            statistics.check(discover(llama()), 3)


def test_a_folder_that_cannot_be_written_is_found_before_the_work(text: Path, tmp_path: Path) -> None:
    model, out = llama(), tmp_path / "file" / "stats"
    out.parent.touch()
    passes = forward_passes(model)
    with pytest.raises(EmmetError, match=f"^cannot write to {out}, as .*; name another$"):
        collect(model, text, out=out)
    assert passes == []


def test_merging_is_collecting_on_both_texts(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("The capital of France is Paris. " * 50)
    model = llama()
    one, two = collect(model, text), collect(model, other, tokens=170)
    merged = one.merge(two)
    for layer in LAYERS:
        of_one, of_two = by_definition(model, text, layer, 330), by_definition(model, other, layer, 170)
        expected = (330 * of_one + 170 * of_two) / 500
        np.testing.assert_allclose(merged[layer].second_moment, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert merged[layer].count == 500
        assert [source.corpus for source in merged[layer].sources] == [str(text), str(other)]
    merged.check(discover(model), *LAYERS)


def test_what_cannot_be_merged(text: Path) -> None:
    statistics = collect(llama(), text)
    with pytest.raises(StatisticsError, match="another layer or model"):
        statistics.merge(collect(llama(seed=1), text))
    with pytest.raises(StatisticsError, match=r"layers \[1, 2\] with those of layers \[1\]"):
        statistics.merge(collect(llama(), text, layers=[1]))


class TestReuse:
    """What is in the folder is used if, and only if, it is what would be collected."""

    def test_nothing_is_computed_twice(self, text: Path, tmp_path: Path) -> None:
        model = llama()
        first = collect(model, text, out=tmp_path / "out")
        copy = tmp_path / "copy.txt"
        copy.write_bytes(text.read_bytes())
        passes = forward_passes(model)
        again = collect(model, copy, out=tmp_path / "out")
        assert passes == []
        assert all(torch.equal(again[layer].second_moment, first[layer].second_moment) for layer in LAYERS)

    def test_only_the_missing_layers_are_collected(self, text: Path, tmp_path: Path) -> None:
        model = llama()
        collect(model, text, out=tmp_path, layers=[0, 1])
        before = layer_path(tmp_path, 1).stat().st_mtime_ns
        statistics = collect(model, text, out=tmp_path, layers=[1, 3])
        assert list(statistics) == [1, 3]
        assert layer_path(tmp_path, 1).stat().st_mtime_ns == before
        assert torch.equal(statistics[3].second_moment, collect(model, text, layers=[3])[3].second_moment)

    @pytest.mark.parametrize("change", ["model", "text", "tokens", "sequence_length", "tokenizer"])
    def test_whatever_changes_is_refused(self, text: Path, tmp_path: Path, change: str) -> None:
        """Statistics may have taken hours: others do not replace them."""
        settings: dict[str, Any] = {"layers": LAYERS, "tokens": 330, "sequence_length": 20}
        collect_statistics(llama(), TOKENIZER, text, out=tmp_path, **settings)
        before = {path.name: path.read_bytes() for path in tmp_path.glob("layer.*")}
        model, tokenizer = llama(seed=int(change == "model")), tiny_tokenizer(bos=change == "tokenizer")
        if change == "text":
            text.write_text(text.read_text().replace("French", "German"))
        if change in settings:
            settings[change] += 1
        with pytest.raises(StatisticsError, match=r"layer\.1\.safetensors to be of this model.*remove it, or name"):
            collect_statistics(model, tokenizer, text, out=tmp_path, **settings)
        assert {path.name: path.read_bytes() for path in tmp_path.glob("layer.*")} == before


class Killed(Exception):  # noqa: N818
    """Stands in for a kill: raised between two batches."""


def interrupted(model: PreTrainedModel, text: Path | str, out: Path, batches: int, **settings: Any) -> None:
    """Collect in `out`, and be killed after so many batches."""
    reports = iter(range(1, batches + 1))

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage == "statistics" and next(reports, None) is None:
            raise Killed

    with pytest.raises(Killed):
        collect(model, text, out=out, checkpoint_seconds=0.0, progress=progress, **settings)


class TestResume:
    """A killed run goes on from its checkpoint. 330 tokens are seven batches: five of 60, one of 20, one of 10."""

    @pytest.mark.parametrize("corpus", ["text", "self"])
    @pytest.mark.parametrize("batches", [0, 1, 4, 6])
    def test_the_rest_is_collected(
        self, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, batches: int
    ) -> None:
        monkeypatch.setattr(corpora, "_SAMPLED_ROWS", 6)
        model = llama()
        source = text if corpus == "text" else corpus
        whole = collect(model, source)
        interrupted(model, source, tmp_path / "out", batches)
        assert not layer_path(tmp_path / "out", 1).exists()

        added: list[int] = []
        resumed = collect(
            model,
            source,
            out=tmp_path / "out",
            progress=lambda stage, done, _total: added.append(done) if stage == "statistics" else None,
        )
        assert added == [60, 120, 180, 240, 300, 320, 330][batches:]
        for layer in LAYERS:
            assert resumed[layer].count == 330
            np.testing.assert_allclose(resumed[layer].second_moment, whole[layer].second_moment, rtol=1e-12)
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"layer.1.safetensors", "layer.2.safetensors"}

    @pytest.mark.parametrize("change", ["model", "text", "layers", "tokens"])
    def test_a_checkpoint_of_something_else_is_left_alone(self, text: Path, tmp_path: Path, change: str) -> None:
        interrupted(llama(), text, tmp_path / "out", 3)
        if change == "text":
            text.write_text(text.read_text().replace("French", "German"))
        settings: dict[str, Any] = {"layers": {"layers": [2]}, "tokens": {"tokens": 300}}.get(change, {})
        model = llama(seed=int(change == "model"))
        (checkpoint,) = (tmp_path / "out").iterdir()
        before = checkpoint.read_bytes()
        found = collect(model, text, out=tmp_path / "out", checkpoint_seconds=0.0, **settings)
        assert torch.equal(found[2].second_moment, collect(model, text, **settings)[2].second_moment)
        assert checkpoint.read_bytes() == before

    def test_a_kill_between_the_files_of_two_layers(
        self, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def save_one(statistics: Statistics, folder: Path) -> None:
            statistics[1].save(folder)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Statistics, "save", save_one)
            with pytest.raises(Killed):
                collect(llama(), text, out=tmp_path, checkpoint_seconds=0.0)
        added: list[str] = []
        collect(llama(), text, out=tmp_path, progress=lambda stage, *_: added.append(stage))
        assert added == []
        assert {path.name for path in tmp_path.iterdir()} >= {"layer.1.safetensors", "layer.2.safetensors"}
        assert not list(tmp_path.glob("partial*"))

    def test_a_damaged_checkpoint(self, text: Path, tmp_path: Path) -> None:
        interrupted(llama(), text, tmp_path / "out", 3)
        (path,) = (tmp_path / "out").iterdir()
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(FormatError, match=str(path)):
            collect(llama(), text, out=tmp_path / "out")


class TestCache:
    """Statistics in the cache folder are found again, and by nothing that would give others."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("EMMET_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_statistics_are_collected_once(self, cache: Path, text: Path) -> None:
        assert cached_statistics(llama(), TOKENIZER, text, layers=LAYERS) is None
        assert not cache.exists()
        made = collect_into_cache(llama(), TOKENIZER, text, layers=LAYERS)
        stages: list[str] = []
        again = collect_into_cache(
            llama(), TOKENIZER, text, layers=LAYERS, progress=lambda stage, *_: stages.append(stage)
        )
        assert stages == []
        found = cached_statistics(llama(), TOKENIZER, str(text), layers=LAYERS)
        assert found is not None
        fresh = collect_statistics(llama(), TOKENIZER, text, layers=LAYERS)
        for statistics in (made, again, found):
            assert list(statistics) == LAYERS
            assert all(torch.equal(statistics[layer].second_moment, fresh[layer].second_moment) for layer in LAYERS)

    def test_a_cache_that_cannot_be_written_is_found_before_the_work(self, cache: Path, text: Path) -> None:
        cache.touch()
        model = llama()
        passes = forward_passes(model)
        with pytest.raises(EmmetError, match=f"^cannot write to {cache}/statistics/.*; name another with EMMET_CACHE$"):
            collect_into_cache(model, TOKENIZER, text, layers=LAYERS)
        assert passes == []

    def test_a_cache_that_cannot_be_searched_has_nothing(
        self, cache: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As is one of a name that is too long, but for root too."""
        cache.mkdir()
        monkeypatch.setenv("EMMET_CACHE", str(cache / ("c" * 300)))
        assert cached_statistics(llama(), TOKENIZER, text, layers=LAYERS) is None
        with pytest.raises(EmmetError, match=r"File name too long; name another with EMMET_CACHE$"):
            collect_into_cache(llama(), TOKENIZER, text, layers=LAYERS)

    def test_a_cache_that_has_all_need_not_be_written(
        self, cache: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collect_into_cache(llama(), TOKENIZER, text, layers=LAYERS)
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not mode & os.W_OK)
        assert list(collect_into_cache(llama(), TOKENIZER, text, layers=LAYERS)) == LAYERS
        with pytest.raises(EmmetError, match=f"^cannot write to {cache}/"):
            collect_into_cache(llama(), TOKENIZER, text, layers=[3])

    def test_others_are_not_found(self, text: Path) -> None:
        collect_into_cache(llama(), TOKENIZER, text, layers=LAYERS)
        for model, tokenizer, corpus, layers in (
            (llama(seed=1), TOKENIZER, text, LAYERS),
            (llama(), tiny_tokenizer(bos=True), text, LAYERS),
            (llama(), TOKENIZER, Path(__file__), LAYERS),
            (llama(), TOKENIZER, "self", LAYERS),
            (llama(), TOKENIZER, text, [*LAYERS, 3]),
        ):
            assert cached_statistics(model, tokenizer, corpus, layers=layers) is None

    def test_the_model_is_fingerprinted_once(self, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[object] = []
        monkeypatch.setattr(
            statistics_module, "layer_fingerprints", lambda *given: calls.append(given) or layer_fingerprints(*given)
        )
        collect_into_cache(llama(), TOKENIZER, text, layers=[0])
        assert len(calls) == 1
