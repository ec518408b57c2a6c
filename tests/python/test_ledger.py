"""The ledger: later edits preserve earlier ones, single ones are taken back, and all of it is saved and loaded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import closed_forms
import emmet
from closed_forms import Problem
from emmet import ConfigError, Edit, Editor, EmmetError, FormatError, ModelError, StatisticsError
from emmet.architectures import discover
from emmet.delta import Delta, summed
from emmet.forward import Site, last_token_states
from emmet.keys import in_contexts
from emmet.ledger import TENSORS, Ledger
from emmet.output import MANIFEST
from emmet.values import Values
from test_editor import CONFIG, EDITS, TEXT, SomeError, assert_same_bits, bits
from tiny import tiny_model, tiny_tokenizer

MORE = [Edit("The capital of {} is", "Peru", "Oslo"), Edit("{} works as a", "Marie Curie", "cook")]
LAST = [Edit("The founder of {} is", "Nokia", "Plato"), Edit("{} was born in", "Ada Lovelace", "Rome")]
BATCHES = (EDITS, MORE, LAST)
TOKENIZER = tiny_tokenizer()

METHODS = [
    replace(CONFIG, ridge=0.0),
    replace(CONFIG, method="memit", ridge=0.5, layers=[0, 1, 2]),
    replace(CONFIG, method="rome"),
    replace(CONFIG, method="alphaedit", layers=[1, 2]),
    replace(CONFIG, ridge=0.5, absorb_prompts=True),
    replace(CONFIG, method="memit", ridge=0.5, layers=[0, 1, 2], absorb_prompts=True),
    replace(CONFIG, method="rome", absorb_prompts=True),
    replace(CONFIG, method="alphaedit", layers=[1, 2], absorb_prompts=True),
]


def unedited(dtype=torch.float32, seed=0):
    return tiny_model("llama", vocab_size=len(TOKENIZER), seed=seed).to(dtype)


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    """Of layers 0 to 2 of the model in each dtype."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return {
        dtype: emmet.collect_statistics(unedited(dtype), TOKENIZER, path, layers=[0, 1, 2], tokens=1000)
        for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.fixture
def make(statistics):
    """A new editor of the unedited model."""

    def make_editor(config=CONFIG, dtype=torch.float32):
        return Editor(unedited(dtype), TOKENIZER, config=config, statistics=statistics[dtype])

    return make_editor


@pytest.fixture
def fixed_values(monkeypatch):
    """Values that do not depend on what else is in the model, so that histories can be compared."""

    def values(_arch, _tokenizer, edits, *_):
        seeds = (int(hashlib.sha256(edit.text.encode() + edit.target.encode()).hexdigest()[:8], 16) for edit in edits)
        targets = torch.stack([torch.randn(32, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return Values(targets, torch.zeros(len(edits)), torch.ones(len(edits), dtype=torch.long))

    monkeypatch.setattr(emmet.editor, "optimise_values", values)


def assert_like(editor, other):
    """Both models and ledgers are alike, to the rounding of weights and forward passes in float32."""
    assert [entry.edit for entry in editor.list()] == [entry.edit for entry in other.list()]
    start = discover(unedited())
    for layer in editor.config.layers:
        found, expected, before = (arch.projection(layer).weight.detach() for arch in (editor.arch, other.arch, start))
        change = float((expected - before).abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * change + 1e-7)


def after(make, config, *batches):
    editor = make(config)
    for batch in batches:
        editor.edit(batch)
    return editor


class TestAbsorb:
    @pytest.mark.parametrize(
        ("ridge", "absorb", "weight"),
        [(0.5, 1.0, 2.0), (0.5, 3.0, 6.0), (0.0, 3.0, 3.0), ("auto", 3.0, 3.0), (0.5, 0, 0)],
    )
    @pytest.mark.parametrize("prompts", [False, True])
    @pytest.mark.usefixtures("fixed_values")
    def test_earlier_keys_are_added_to_the_moment(self, make, ridge, absorb, weight, prompts):
        editor = make(replace(CONFIG, ridge=ridge, absorb=absorb, absorb_prompts=prompts))
        earlier = editor.keys(EDITS, layer=1).numpy()
        if prompts:
            rows = [in_contexts(TOKENIZER, edit, ())[0] for edit in EDITS]
            beginnings = [row.ids[:end] for row in rows for end in range(2, row.target.start + 1)]
            others = last_token_states(editor.arch, beginnings, Site.keys(editor.arch, 1)).numpy()
            earlier = np.concatenate([earlier, others])
        editor.edit(EDITS)
        values = editor.values(MORE).targets.double()
        rows = [in_contexts(TOKENIZER, edit, ())[0] for edit in MORE]
        site = editor._injection.site(editor.arch)
        current = last_token_states(editor.arch, [row.ids[: row.subject + 1] for row in rows], site)
        moment = editor._statistics[1].second_moment.numpy() + weight * earlier.T @ earlier
        case = Problem(moment, editor.keys(MORE, layer=1).numpy(), (values - current.double()).numpy())
        expected = closed_forms.memit(case, ridge) if ridge == 0.5 else closed_forms.emmet(case)
        found = editor.edit(MORE).delta.layers[1].update.dense().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())

    @pytest.mark.usefixtures("fixed_values")
    def test_later_edits_disturb_earlier_ones_less(self, make):
        disturbance = {}
        for absorb in (0.0, 1.0):
            editor = make(replace(CONFIG, absorb=absorb))
            keys = editor.keys(EDITS, layer=1)
            editor.edit(EDITS)
            update = editor.edit([*MORE, *LAST]).delta.layers[1].update
            disturbance[absorb] = float((keys @ update.dense().mT).norm())
        assert disturbance[1.0] < 0.1 * disturbance[0.0]

    @pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
    @pytest.mark.usefixtures("fixed_values")
    def test_undo_takes_it_back_to_the_bit(self, make, config):
        editor = make(config)
        layer = editor.config.layers[-1]
        handles, factors = [], []
        for batch in BATCHES:
            factors.append(editor.preservation(layer).factor)
            handles.append(editor.edit(batch))
        for handle, factor in zip(reversed(handles), reversed(factors), strict=True):
            assert not torch.equal(editor.preservation(layer).factor, factor)
            handle.undo()
            assert torch.equal(editor.preservation(layer).factor, factor)

    @pytest.mark.usefixtures("fixed_values")
    def test_an_undo_to_other_bits_is_refused(self, make):
        editor = make()
        first = editor.edit(EDITS)
        second = editor.edit(MORE)
        edited = bits(editor.arch.model)
        first._after.digests[1] = "of other bits"  # as with another number of threads
        with pytest.raises(EmmetError, match="number of threads"):
            second.undo()
        assert_same_bits(editor.arch.model, edited)
        assert len(editor.list()) == len(EDITS) + len(MORE)

    def test_a_metric_of_a_layer_that_is_not_edited_is_refused(self, make):
        with pytest.raises(ConfigError, match=r"one of the layers that are edited, \(1,\), got 2"):
            make().preservation(2)


class TestRemove:
    @pytest.mark.parametrize("config", [METHODS[0], METHODS[1], METHODS[3]], ids=lambda config: config.method)
    def test_from_one_batch_equals_never_having_made_the_edits(self, make, config):
        editor = after(make, config, EDITS)
        editor.remove([2])
        assert_like(editor, after(make, config, [EDITS[0], EDITS[2]]))

    @pytest.mark.parametrize("ids", [[1], [4, 2], [1, 2, 3], [6, 7], [2, 5, 6], [4, 5, 6, 7]])
    @pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
    @pytest.mark.usefixtures("fixed_values")
    def test_from_any_batches_equals_never_having_made_the_edits(self, make, config, ids):
        editor = after(make, config, *BATCHES)
        numbered = iter(range(1, 8))
        left = [[edit for edit in batch if next(numbered) not in ids] for batch in BATCHES]
        editor.remove(ids)
        expected = after(make, config, *filter(None, left))
        assert_like(editor, expected)
        editor.edit([Edit("The river of {} is", "Cairo", "Rhine")])  # the metric has forgotten them, too
        expected.edit([Edit("The river of {} is", "Cairo", "Rhine")])
        assert_like(editor, expected)

    def test_from_the_last_batch_of_one_layer_is_one_solve_of_what_was_kept(self, make, monkeypatch):
        editor = after(make, CONFIG, MORE, EDITS)
        solve, calls = emmet.editor.solve, []
        monkeypatch.setattr(emmet.editor, "solve", lambda *given: calls.append(given) or solve(*given))
        monkeypatch.setattr(emmet.editor, "last_token_states", None)  # no forward pass
        monkeypatch.setattr(emmet.editor, "subject_keys", None)
        editor.remove([3, 5])
        assert len(calls) == 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.usefixtures("fixed_values")
    def test_of_all_edits_gives_the_bits_of_the_unedited_model(self, make, dtype):
        editor = make(dtype=dtype)
        before = bits(editor.arch.model)
        for batch in BATCHES:
            editor.edit(batch)
        editor.remove(range(2, 7))
        editor.remove([1, 7])
        assert_same_bits(editor.arch.model, before)
        assert editor.list() == ()
        assert editor.edit(EDITS).entries[0].id == 8

    @pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
    @pytest.mark.usefixtures("fixed_values")
    def test_is_undone_to_the_bit(self, make, config):
        editor = make(config)
        handle = editor.edit([*EDITS, *MORE])
        before, entries = bits(editor.arch.model), editor.list()
        removal = editor.remove([2, 4])
        with pytest.raises(EmmetError, match="undo the later edits first"):
            handle.undo()
        removal.undo()
        assert_same_bits(editor.arch.model, before)
        assert editor.list() == entries

    @pytest.mark.parametrize(
        ("ids", "message"),
        [([], "got none; it has 1, 2, 3"), ([9, 2], "got 9; it has 1, 2, 3"), ([0], "got 0"), (["2"], "got 2")],
    )
    @pytest.mark.usefixtures("fixed_values")
    def test_of_unknown_ids_is_refused(self, make, ids, message):
        editor = after(make, CONFIG, EDITS)
        before = bits(editor.arch.model)
        with pytest.raises(EmmetError, match=message):
            editor.remove(ids)
        assert_same_bits(editor.arch.model, before)
        assert len(editor.list()) == 3

    @pytest.mark.parametrize("error", [SomeError, KeyboardInterrupt])
    @pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
    @pytest.mark.usefixtures("fixed_values")
    def test_that_fails_leaves_model_and_ledger_as_they_were(self, make, monkeypatch, config, error):
        editor = after(make, config, EDITS, MORE)
        handle = editor.edit(LAST)
        before, entries = bits(editor.arch.model), editor.list()
        fail_at_second_solve(monkeypatch, error)
        with pytest.raises(error):
            editor.remove([1])
        assert_same_bits(editor.arch.model, before)
        assert editor.list() == entries
        handle.undo()
        assert len(editor.list()) == 5


def fail_at_second_solve(monkeypatch, error):
    solve, calls = emmet.editor.solve, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 2:
            raise error
        return solve(*given)

    monkeypatch.setattr(emmet.editor, "solve", failing)


class TestReplace:
    NEWER = (replace(EDITS[1], target="violin"), replace(MORE[0], target="Bern"), LAST[0])

    @pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
    @pytest.mark.usefixtures("fixed_values")
    def test_a_newer_edit_of_a_fact_takes_the_place_of_the_older(self, make, config):
        editor = after(make, config, EDITS, MORE)
        handle = editor.edit(self.NEWER)
        assert [(entry.id, entry.edit) for entry in handle.replaced] == [(2, EDITS[1]), (4, MORE[0])]
        assert [entry.id for entry in editor.list()] == [1, 3, 5, 6, 7, 8]
        assert handle.entries == editor.list()[-3:]
        assert_like(editor, after(make, config, [EDITS[0], EDITS[2]], MORE[1:], self.NEWER))

    @pytest.mark.usefixtures("fixed_values")
    def test_undo_brings_the_older_one_back(self, make):
        editor = after(make, CONFIG, EDITS, MORE)
        before, entries = bits(editor.arch.model), editor.list()
        editor.edit(self.NEWER).undo()
        assert_same_bits(editor.arch.model, before)
        assert editor.list() == entries

    @pytest.mark.usefixtures("fixed_values")
    def test_a_failure_leaves_the_older_one(self, make, monkeypatch):
        editor = after(make, CONFIG, EDITS, MORE)
        before, entries = bits(editor.arch.model), editor.list()
        fail_at_second_solve(monkeypatch, SomeError)
        with pytest.raises(SomeError):
            editor.edit(self.NEWER)
        assert_same_bits(editor.arch.model, before)
        assert editor.list() == entries

    @pytest.mark.usefixtures("fixed_values")
    def test_other_edits_replace_nothing(self, make):
        editor = after(make, CONFIG, EDITS)
        assert (
            editor.edit([replace(EDITS[0], subject="Michel Rocard"), replace(EDITS[1], prompt="{} is the")]).replaced
            == ()
        )
        assert len(editor.list()) == 5


class TestAccount:
    @pytest.mark.usefixtures("fixed_values")
    def test_says_what_was_edited_when_by_whom_and_how(self, make):
        editor = make()
        handle = editor.edit(EDITS, author="A. Reviewer")
        editor.edit(MORE)
        entries = editor.list()
        assert handle.entries == entries[:3]
        assert [entry.id for entry in entries] == [1, 2, 3, 4, 5]
        assert [entry.edit for entry in entries] == [*EDITS, *MORE]
        assert [entry.author for entry in entries] == ["A. Reviewer"] * 3 + [""] * 2
        assert {entry.config for entry in entries} == {editor.config}
        for entry in entries:
            age = datetime.now(timezone.utc) - datetime.fromisoformat(entry.time)
            assert timedelta(0) <= age < timedelta(minutes=5)

    @pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
    @pytest.mark.usefixtures("fixed_values")
    def test_the_delta_of_all_makes_them_in_the_unedited_model_bit_for_bit(self, make, config, tmp_path):
        editor = after(make, config, *BATCHES)
        editor.remove([2, 6])
        editor.delta().save(tmp_path / "delta")
        delta, other = Delta.load(tmp_path / "delta"), unedited()
        delta.apply(other)
        assert_same_bits(other, bits(editor.arch.model))
        assert delta.edits == tuple(entry.edit for entry in editor.list())
        solved = [report.edits for report in delta.reports if report.layer == editor.config.layers[0]]
        assert [i for edits in solved for i in edits] == list(range(5))

    def test_the_delta_of_none_changes_nothing(self, make, tmp_path):
        make().delta().save(tmp_path / "delta")
        other = unedited()
        Delta.load(tmp_path / "delta").apply(other)
        assert_same_bits(other, bits(unedited()))

    @pytest.mark.parametrize("change", [lambda editor: editor.edit(MORE), lambda editor: editor.remove([1])])
    @pytest.mark.usefixtures("fixed_values")
    def test_weights_that_something_else_changed_are_not_overwritten(self, make, change):
        editor = after(make, CONFIG, EDITS)
        with torch.no_grad():
            editor.arch.projection(1).weight[0, 0] += 1
        before = bits(editor.arch.model)
        with pytest.raises(EmmetError, match="something else has changed them"):
            change(editor)
        assert_same_bits(editor.arch.model, before)


class TestFile:
    @pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
    @pytest.mark.usefixtures("fixed_values")
    def test_loading_makes_the_edits_again(self, make, config, tmp_path, monkeypatch):
        editor = make(config)
        for batch in BATCHES:
            editor.edit(batch, author="A. Reviewer")
        editor.remove([7])
        editor.save(tmp_path / "ledger")

        loaded = make(config)
        before = bits(loaded.arch.model)
        with monkeypatch.context() as patch:
            patch.setattr(emmet.editor, "last_token_states", None)  # nothing is measured, nothing optimised
            patch.setattr(emmet.editor, "optimise_values", None)
            loaded.load(tmp_path / "ledger")
        assert loaded.list() == editor.list()
        assert_like(loaded, editor)
        for one in (loaded, editor):
            one.remove([2])
            assert one.edit([LAST[1]]).entries[0].id == 8
        assert_like(loaded, editor)

        again = make(config)
        again.load(tmp_path / "ledger").undo()
        assert_same_bits(again.arch.model, before)
        assert again.list() == ()

    @pytest.mark.usefixtures("fixed_values")
    def test_loading_writes_each_weight_once(self, make, tmp_path, monkeypatch):
        after(make, CONFIG, *BATCHES).save(tmp_path / "ledger")
        sums = []
        monkeypatch.setattr(emmet.editor, "summed", lambda updates: sums.append(len(updates)) or summed(updates))
        make().load(tmp_path / "ledger")
        assert sums == [len(BATCHES)]

    @pytest.mark.usefixtures("fixed_values")
    def test_later_edits_get_the_prefixes_of_those_before(self, make, tmp_path):
        config = replace(CONFIG, prefixes=None, prefix_count=2, prefix_length=5)
        editor = after(make, config, EDITS)
        editor.save(tmp_path / "ledger")
        same, other = make(config), make(replace(config, seed=1))
        for loaded in (same, other):
            loaded.load(tmp_path / "ledger")
        assert same.prefixes == editor.prefixes != other.prefixes

    def test_an_empty_one_is_kept(self, make, tmp_path):
        editor = make()
        editor.save(tmp_path / "ledger")
        before = bits(editor.arch.model)
        editor.load(tmp_path / "ledger")
        assert editor.list() == ()
        assert_same_bits(editor.arch.model, before)

    @pytest.mark.usefixtures("fixed_values")
    def test_holds_what_cpp_needs(self, make, tmp_path):
        editor = after(make, CONFIG, EDITS)
        editor.save(tmp_path / "ledger")
        tensors = load_file(tmp_path / "ledger" / TENSORS)
        update = emmet.solve(
            make().preservation(1), tensors["batch.0.layer.1.keys"], tensors["batch.0.layer.1.residuals"]
        )
        torch.testing.assert_close(update.dense(), editor.delta().layers[1].update.dense())

    @pytest.mark.usefixtures("fixed_values")
    def test_of_another_model_statistics_or_settings_is_refused(self, make, tmp_path, statistics):
        after(make, CONFIG, EDITS).save(tmp_path / "ledger")

        def refused(editor, error, message):
            before = bits(editor.arch.model)
            with pytest.raises(error, match=message):
                editor.load(tmp_path / "ledger")
            assert_same_bits(editor.arch.model, before)

        refused(after(make, CONFIG, MORE), EmmetError, "expected an editor without edits, got one with some")
        for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight", "lm_head.weight"):
            editor = make()
            with torch.no_grad():
                editor.arch.model.get_parameter(name).view(-1)[0] += 1
            refused(editor, ModelError, "expected the model that the ledger is for")
        refused(make(dtype=torch.bfloat16), ModelError, "in the same dtype")
        other = emmet.statistics.Statistics(
            replace(of_layer, second_moment=2 * of_layer.second_moment)
            for of_layer in statistics[torch.float32].values()
        )
        refused(
            Editor(unedited(), TOKENIZER, config=CONFIG, statistics=other), StatisticsError, "got others; give those"
        )
        for setting in ({"method": "memit", "ridge": 1.0}, {"ridge": 0.5}, {"absorb": 0.0}, {"absorb_prompts": True}):
            refused(make(replace(CONFIG, **setting)), ConfigError, f"got {next(iter(setting))} .* instead of ")
        refused(make(replace(CONFIG, layers=[2])), ModelError, "edit the same layers")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda manifest, _: manifest.update(format="emmet.delta.1"),
            lambda manifest, _: manifest.pop("base"),
            lambda manifest, _: manifest.update(last_id=2),
            lambda manifest, _: manifest["batches"].pop(),
            lambda manifest, _: manifest["batches"].append(manifest["batches"][0]),
            lambda manifest, _: manifest["batches"][0]["entries"].pop(),
            lambda manifest, _: manifest["batches"][0]["entries"][0].update(id=3),
            lambda manifest, _: manifest["batches"][0]["entries"][0].update(id=True),
            lambda manifest, _: manifest["batches"][0]["entries"][0]["edit"].update(prompt="no place"),
            lambda manifest, _: manifest["batches"][0]["entries"][0].update(author=None),
            lambda manifest, _: manifest["batches"][0]["config"].update(steps=0),
            lambda manifest, _: manifest["batches"][0]["config"].update(layers=[2]),
            lambda manifest, _: manifest["batches"][0].update(prefixes="text"),
            lambda _, tensors: tensors.pop("batch.0.values"),
            lambda _, tensors: tensors.update(more=torch.ones(1)),
            lambda _, tensors: tensors["batch.0.layer.1.keys"].mul_(float("nan")),
            lambda _, tensors: tensors.update({"batch.0.layer.1.residuals": torch.ones(3)}),
        ],
    )
    @pytest.mark.usefixtures("fixed_values")
    def test_that_is_damaged_is_refused(self, make, tmp_path, damage):
        after(make, CONFIG, EDITS).save(tmp_path / "ledger")
        manifest = json.loads((tmp_path / "ledger" / MANIFEST).read_text())
        tensors = load_file(tmp_path / "ledger" / TENSORS)
        damage(manifest, tensors)
        (tmp_path / "ledger" / MANIFEST).write_text(json.dumps(manifest))
        save_file(tensors, tmp_path / "ledger" / TENSORS)
        with pytest.raises(FormatError, match=re.escape(str(tmp_path / "ledger"))) as caught:
            Ledger.load(tmp_path / "ledger")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda tensors: tensors.pop("batch.0.layer.1.owners"),
            lambda tensors: [tensors.pop(f"batch.0.layer.1.{name}") for name in ("owners", "others")],
            lambda tensors: tensors.update(
                {"batch.0.layer.1.others": tensors["batch.0.layer.1.others"][:, 1:].clone()}
            ),
            lambda tensors: tensors.pop("batch.0.layer.1.others"),
            lambda tensors: tensors["batch.0.layer.1.owners"].fill_(3),
            lambda tensors: tensors["batch.0.layer.1.owners"].fill_(-1),
            lambda tensors: tensors["batch.0.layer.1.others"].fill_(torch.inf),
            lambda tensors: tensors.update({"batch.0.layer.1.owners": torch.zeros(2, dtype=torch.long)}),
            lambda tensors: tensors.update({"batch.0.layer.1.owners": tensors["batch.0.layer.1.owners"].float()}),
        ],
    )
    def test_with_damaged_keys_of_prompts_is_refused(self, make, tmp_path, damage):
        after(make, replace(CONFIG, absorb_prompts=True), EDITS).save(tmp_path / "ledger")
        Ledger.load(tmp_path / "ledger")
        tensors = load_file(tmp_path / "ledger" / TENSORS)
        damage(tensors)
        save_file(tensors, tmp_path / "ledger" / TENSORS)
        with pytest.raises(FormatError, match="is not a ledger"):
            Ledger.load(tmp_path / "ledger")

    def test_that_is_missing_or_cut_short_is_refused(self, make, tmp_path):
        with pytest.raises(FormatError, match=r"cannot read the ledger .*none: No such file"):
            Ledger.load(tmp_path / "none")
        make().save(tmp_path / "ledger")
        for name in (TENSORS, MANIFEST):
            path = tmp_path / "ledger" / name
            path.write_bytes(path.read_bytes()[:-3])
            with pytest.raises(FormatError):
                Ledger.load(tmp_path / "ledger")

    def test_is_not_written_over_other_files(self, make, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(EmmetError, match="holds other files"):
            make().save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
