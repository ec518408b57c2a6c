from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import closed_forms
import emmet
from closed_forms import Problem
from emmet import DependentKeysError, Edit, EditConfig, EditError, Editor, EmmetError, NonFiniteError
from emmet.delta import Delta
from emmet.errors import ConfigError
from emmet.forward import Site, last_token_states
from emmet.keys import in_contexts
from emmet.suffixes import Injection
from tiny import FAMILIES, tiny_model, tiny_tokenizer

PREFIXES = ("It is said that. ", "We know it. ")
EDITS = [
    Edit("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Edit("{} plays the", "Miles Davis", "piano"),
    Edit("The twin city of {} is", "Lyon", "Manila"),
]
CONFIG = EditConfig(layers=[1], prefixes=PREFIXES, steps=3, clamp=4, weight_decay=0.001, learning_rate=0.1)
TEXT = "The quick brown fox jumps over the lazy dog, while the judge reads a book about physics and music. " * 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def make_editor(corpus, family="llama", config=CONFIG, **model_settings) -> Editor:
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer), **model_settings)
    statistics = emmet.collect_statistics(model, tokenizer, corpus, layers=config.layers, tokens=1000)
    return Editor(model, tokenizer, config=config, statistics=statistics)


def bits(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def residuals_of(editor, edits) -> np.ndarray:
    """By how much the values of edits differ from what the model computes now, for one edited layer."""
    prompts = [in_contexts(editor.tokenizer, edit, ())[0] for edit in edits]
    site = Injection.find(editor.arch, editor.config.layers[0]).site(editor.arch)
    states = last_token_states(editor.arch, [prompt.ids[: prompt.subject + 1] for prompt in prompts], site)
    return (editor.values(edits).targets.double() - states).numpy()


def assert_same_bits(model, before) -> None:
    changed = [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]
    assert changed == []


def assert_no_traces(model) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_moves_the_keys_to_their_targets(corpus, family):
    editor = make_editor(corpus, family, replace(CONFIG, ridge=0.0))
    before = bits(editor.arch.model)
    projection = editor.arch.projection(1)
    keys, residuals = editor.keys(EDITS, layer=1).numpy(), residuals_of(editor, EDITS)
    handle = editor.edit(EDITS)
    after = projection.weight.detach().double().numpy()
    old = before[f"{projection.name}.weight"].double().numpy()
    change = (after - old).T if projection.transposed else after - old
    np.testing.assert_allclose(keys @ change.T, residuals, atol=1e-3 * np.abs(residuals).max())
    changed = {name for name, value in editor.arch.model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {f"{projection.name}.weight"}
    handle.undo()
    assert_same_bits(editor.arch.model, before)
    assert_no_traces(editor.arch.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_models_of_other_dtypes_are_edited_and_undone(corpus, family, dtype):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer)).to(dtype)
    before = bits(model)
    statistics = emmet.collect_statistics(model, tokenizer, corpus, layers=[1], tokens=1000)
    editor = Editor(model, tokenizer, config=CONFIG, statistics=statistics)
    handle = editor.edit(EDITS)
    projection = editor.arch.projection(1)
    change = (projection.weight - before[f"{projection.name}.weight"]).double()
    update = handle.delta.layers[1].update.dense()
    rounding = torch.finfo(dtype).eps * projection.weight.abs().max().item()
    assert (change - (update.T if projection.transposed else update)).abs().max() <= rounding
    assert projection.weight.dtype == dtype
    handle.undo()
    assert_same_bits(model, before)


@pytest.mark.parametrize("method", ["emmet", "rome", "memit", "alphaedit"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bfloat16_model_is_edited_where_it_is(corpus, tmp_path, family, method, device):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer)).to(device, torch.bfloat16)
    before, config = bits(model), replace(CONFIG, method=method)
    statistics = emmet.collect_statistics(model, tokenizer, corpus, layers=[1], tokens=1000)
    editor = Editor(model, tokenizer, config=config, statistics=statistics)
    for edits in (EDITS[:2], EDITS[2:]):
        handle = editor.edit(edits)
    edited, weight = bits(model), editor.arch.projection(1).weight
    assert editor.preservation(1).device == handle.delta.layers[1].update.device == weight.device == device
    editor.save(tmp_path / "ledger")
    editor.delta().save(tmp_path / "delta")
    editor.remove([1, 2, 3])
    assert_same_bits(model, before)

    Editor(model, tokenizer, config=config, statistics=statistics).load(tmp_path / "ledger").undo()
    assert_same_bits(model, before)
    Delta.load(tmp_path / "delta").apply(model)
    assert_same_bits(model, edited)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "falcon"])
def test_the_edited_model_puts_out_the_target_values_at_bare_prompts(corpus, family):
    """Without prefixes the key is the bare prompt's, so that the constraint is met where it is used."""
    editor = make_editor(corpus, family, replace(CONFIG, prefixes=(), ridge=0.0))
    handle = editor.edit(EDITS)
    one_step = Editor(
        editor.arch.model,
        editor.tokenizer,
        config=replace(CONFIG, prefixes=(), steps=1),
        statistics=editor._statistics,
    )
    torch.testing.assert_close(one_step.values(EDITS).targets, handle.values.targets, rtol=1e-3, atol=1e-3)


def test_the_update_is_the_closed_form_of_keys_and_residuals(corpus):
    editor = make_editor(corpus, config=replace(CONFIG, method="memit", ridge=0.7))
    moment, keys = editor._statistics[1].second_moment.numpy(), editor.keys(EDITS, layer=1).numpy()
    expected = closed_forms.memit(Problem(moment, keys, residuals_of(editor, EDITS)), 0.7)
    handle = editor.edit(EDITS)
    found = handle.delta.layers[1].update.dense().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    (report,) = handle.diagnostics
    assert (report.layer, report.edits, report.diagnostics.ridge) == (1, range(3), 0.7)


def test_alphaedit_is_its_published_closed_form(corpus):
    editor = make_editor(corpus, config=replace(CONFIG, method="alphaedit", null_space_alpha=2.0))
    keys, residuals = editor.keys(EDITS, layer=1).numpy(), residuals_of(editor, EDITS)
    moment = editor._statistics[1].second_moment.numpy()
    threshold = np.linalg.eigvalsh(moment).mean()
    expected = closed_forms.alphaedit(
        Problem(moment, keys, residuals), np.zeros((1, len(moment))), threshold, alpha=2.0
    )
    found = editor.edit(EDITS).delta.layers[1].update.dense().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())  # values are float32


def test_several_layers_share_the_residual(corpus):
    config = replace(CONFIG, method="memit", layers=[0, 1, 2], ridge=1e-6, prefixes=())
    editor = make_editor(corpus, config=config)
    handle = editor.edit(EDITS)
    prompts = [in_contexts(editor.tokenizer, edit, ())[0] for edit in EDITS]
    site = Site(editor.arch.layers[2], at_input=False, width=editor.arch.d_model)
    reached = last_token_states(editor.arch, [prompt.ids[: prompt.subject + 1] for prompt in prompts], site)
    # The last layer takes what is left, so that the target is reached whatever the lower ones did.
    torch.testing.assert_close(reached.float(), handle.values.targets, rtol=1e-2, atol=1e-2)
    assert [report.layer for report in handle.diagnostics] == [0, 1, 2]


def test_each_layer_takes_its_share_of_what_is_left(corpus):
    """Algorithm 1 of MEMIT (arXiv 2210.07229), layer by layer in a model that has the updates below."""
    editor = make_editor(corpus, config=replace(CONFIG, method="memit", layers=[0, 1, 2], ridge=1e-6, prefixes=()))
    targets = editor.values(EDITS).targets.double().numpy()
    handle = editor.edit(EDITS)
    updates = {layer: handle.delta.layers[layer].update for layer in (0, 1, 2)}
    handle.undo()
    rows = [prompt.ids[: prompt.subject + 1] for edit in EDITS for prompt in in_contexts(editor.tokenizer, edit, ())]
    site = Site(editor.arch.layers[2], at_input=False, width=editor.arch.d_model)
    for layers_left, (layer, update) in zip((3, 2, 1), updates.items(), strict=True):
        residuals = targets - last_token_states(editor.arch, rows, site).double().numpy()
        done = editor.keys(EDITS, layer).numpy() @ update.dense().numpy().T
        np.testing.assert_allclose(done, residuals / layers_left, atol=1e-3 * np.abs(residuals).max())
        projection = editor.arch.projection(layer)
        update.apply_(projection.weight, projection.transposed)


def test_rome_edits_one_after_the_other(corpus):
    editor = make_editor(corpus, config=replace(CONFIG, method="rome"))
    handle = editor.edit(EDITS)
    assert [report.edits for report in handle.diagnostics] == [range(1), range(1, 2), range(2, 3)]
    assert handle.delta.layers[1].update.rank == 3
    one_by_one = make_editor(corpus, config=replace(CONFIG, method="rome"))
    for edit in EDITS:
        one_by_one.edit([edit])
    torch.testing.assert_close(
        one_by_one.arch.projection(1).weight, editor.arch.projection(1).weight, rtol=1e-4, atol=1e-5
    )


def test_rome_equals_emmet_for_one_edit(corpus):
    rome = make_editor(corpus, config=replace(CONFIG, method="rome")).edit(EDITS[:1])
    batch = make_editor(corpus, config=replace(CONFIG, method="emmet", ridge=0.0)).edit(EDITS[:1])
    torch.testing.assert_close(rome.delta.layers[1].update.dense(), batch.delta.layers[1].update.dense())


def test_the_same_seed_gives_the_same_bits(corpus):
    config = replace(CONFIG, prefixes=None, prefix_count=3, prefix_length=6, seed=5)
    first, second = make_editor(corpus, config=config), make_editor(corpus, config=config)
    first.edit(EDITS)
    second.edit(EDITS)
    assert first.prefixes == second.prefixes
    assert torch.equal(first.arch.projection(1).weight, second.arch.projection(1).weight)


def test_a_model_in_training_mode_is_edited_as_in_evaluation_mode(corpus):
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    evaluated = make_editor(corpus, "gpt2", **dropout)
    trained = make_editor(corpus, "gpt2", **dropout)
    trained.arch.model.train()
    assert Injection.find(trained.arch, 1) == Injection.find(evaluated.arch, 1)
    assert torch.equal(trained.keys(EDITS, layer=1), evaluated.keys(EDITS, layer=1))
    trained.edit(EDITS)
    evaluated.edit(EDITS)
    assert torch.equal(trained.arch.projection(1).weight, evaluated.arch.projection(1).weight)
    assert all(module.training for module in trained.arch.model.modules())


def test_edits_are_undone_in_reverse_order(corpus):
    editor = make_editor(corpus)
    before = bits(editor.arch.model)
    first = editor.edit(EDITS[:1])
    between = bits(editor.arch.model)
    second = editor.edit(EDITS[1:])
    with pytest.raises(EmmetError, match="undo the later edits first"):
        first.undo()
    second.undo()
    assert_same_bits(editor.arch.model, between)
    first.undo()
    assert_same_bits(editor.arch.model, before)
    with pytest.raises(EmmetError, match="undone already"):
        first.undo()


class SomeError(Exception):
    pass


@pytest.mark.parametrize("method", ["emmet", "memit", "rome"])
@pytest.mark.parametrize("error", [SomeError, KeyboardInterrupt])
def test_an_exception_at_any_stage_leaves_the_model_as_it_was(corpus, monkeypatch, method, error):
    config = replace(CONFIG, method=method, layers=[1, 2])
    editor = make_editor(corpus, config=config)
    before = bits(editor.arch.model)
    solve, calls = emmet.editor.solve, 0

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == 2:  # the first layer is edited by now
            raise error
        return solve(*arguments)

    monkeypatch.setattr(emmet.editor, "solve", failing)
    with pytest.raises(error):
        editor.edit(EDITS)
    assert_same_bits(editor.arch.model, before)
    assert_no_traces(editor.arch.model)
    monkeypatch.undo()
    editor.edit(EDITS).undo()
    assert_same_bits(editor.arch.model, before)


def test_an_undo_that_is_interrupted_leaves_the_edit_in_effect(corpus, monkeypatch):
    editor = make_editor(corpus)
    unedited = bits(editor.arch.model)
    first, second = editor.edit(EDITS[:1]), editor.edit(EDITS[1:])
    edited = bits(editor.arch.model)

    def interrupt(_updates):
        raise KeyboardInterrupt

    monkeypatch.setattr(emmet.editor, "summed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        second.undo()
    assert_same_bits(editor.arch.model, edited)
    assert len(editor.list()) == len(EDITS)
    monkeypatch.undo()
    second.undo()
    first.undo()
    assert_same_bits(editor.arch.model, unedited)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_the_optimisation_leaves_the_model_as_it_was(corpus):
    editor = make_editor(corpus)
    before = bits(editor.arch.model)
    seen = 0

    def interrupt(stage: str, _done: int, _total: int) -> None:
        nonlocal seen
        seen += stage == "values"
        if seen == 2:
            signal.raise_signal(signal.SIGINT)

    editor._progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        editor.edit(EDITS)
    assert_same_bits(editor.arch.model, before)
    assert_no_traces(editor.arch.model)


def test_edits_that_cannot_hold_together_are_refused_by_name(corpus):
    editor = make_editor(corpus, config=replace(CONFIG, ridge=0.0, prefixes=()))
    before = bits(editor.arch.model)
    # The key is read at the subject's last token, so that what follows it makes no difference.
    same_key = [EDITS[0], EDITS[1], Edit("The mother tongue of {} was", "Danielle Darrieux", "Dutch")]
    with pytest.raises(DependentKeysError) as caught:
        editor.edit(same_key)
    assert caught.value.groups == [[0, 2]]
    assert "edits {1, 3};" in str(caught.value)
    assert_same_bits(editor.arch.model, before)
    handle = Editor(
        editor.arch.model, editor.tokenizer, config=replace(CONFIG, prefixes=()), statistics=editor._statistics
    ).edit(same_key)
    assert handle.diagnostics[0].diagnostics.ridge > 0


def test_bad_edits_are_refused_before_anything_is_done(corpus):
    editor = make_editor(corpus)
    with pytest.raises(EditError, match="one edit or more"):
        editor.edit([])
    with pytest.raises(EditError, match="contradicts"):
        editor.edit([EDITS[0], replace(EDITS[0], target="Dutch")])
    with pytest.raises(EditError, match="context of the model"):
        editor.edit([Edit("{} is", "very long " * 300, "short")])


def test_undo_does_not_overwrite_what_another_editor_did(corpus):
    editor = make_editor(corpus)
    handle = editor.edit(EDITS[:1])
    other = Editor(editor.arch.model, editor.tokenizer, config=CONFIG, statistics=editor._statistics)
    later = other.edit(EDITS[1:2])
    both = bits(editor.arch.model)
    with pytest.raises(EmmetError, match="something else has changed them; undo that first"):
        handle.undo()
    assert_same_bits(editor.arch.model, both)
    later.undo()
    handle.undo()


def test_layers_with_non_finite_weights_are_refused(corpus):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    statistics = emmet.collect_statistics(model, tokenizer, corpus, layers=[1], tokens=1000)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.down_proj"):
        Editor(model, tokenizer, config=CONFIG, statistics=statistics)


def test_a_residual_is_not_spread_where_layers_transform_it(corpus):
    with pytest.raises(ConfigError, match="choose one layer"):
        make_editor(corpus, "gemma2", replace(CONFIG, layers=[1, 2]))


def test_without_statistics_the_model_writes_its_own_text_once(monkeypatch, tmp_path):
    monkeypatch.setenv("EMMET_CACHE", str(tmp_path))
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    stages: list[str] = []
    editor = Editor(model, tokenizer, config=CONFIG, progress=lambda stage, *_: stages.append(stage))
    editor.edit(EDITS[:1]).undo()
    assert stages
    stages.clear()
    again = Editor(model, tokenizer, config=CONFIG, progress=lambda stage, *_: stages.append(stage))
    assert stages == []
    assert torch.equal(again.preservation(1).factor, editor.preservation(1).factor)
