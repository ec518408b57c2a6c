from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from emmet import Edit, EditConfig, EmmetWarning, NonFiniteError, values
from emmet.architectures import discover
from emmet.config import ResolvedConfig
from emmet.edits import read_edits
from emmet.keys import in_contexts
from emmet.loading import load
from emmet.suffixes import Injection
from emmet.trial import tried
from emmet.values import Values, optimise_values
from published import published_values
from tiny import FAMILIES, tiny_model, tiny_tokenizer

PREFIXES = ("The first of them. ", "Because it was there, we went on. ")
EDITS = [
    Edit("{} plays the", "Miles Davis", "piano"),  # subject at the start
    Edit("The mother tongue of {} is", "Danielle Darrieux", "old English"),  # in the middle, several target tokens
    Edit("The best of all is {}", "Lyon", "Manila"),  # at the end
    Edit("{}", "Mount Fuji", "in the Alps"),  # alone
]
LAYER = 1


def config(model: torch.nn.Module, **settings: object) -> ResolvedConfig:
    # A small learning rate: Adam's first step is ± the rate whatever the gradient, so that rounding in components
    # near 0 would be magnified without bound by a large one.
    defaults = {
        "layers": [LAYER],
        "learning_rate": 0.1,
        "contexts_per_step": None,
        "steps": 3,
        "stop_loss": 0.0,
        "clamp": 4,
        "weight_decay": 0.5,
    }
    return EditConfig(**(defaults | settings)).resolve(model.config)


def our_values(model, tokenizer, edits, prefixes, settings) -> Values:
    arch = discover(model)
    prompts = [in_contexts(tokenizer, edit, prefixes) for edit in edits]
    injection = tried(arch, Injection.find(arch, settings.layers[-1]))
    return optimise_values(arch, tokenizer, edits, prompts, settings, injection)


def oracle(model, tokenizer, edit, prefixes, settings):
    arch = discover(model)
    injection = Injection.find(arch, settings.layers[-1])
    return published_values(model, tokenizer, edit, prefixes, injection.site(arch).module, settings)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_equals_the_published_procedure(family, bos, padding_side):
    tokenizer = tiny_tokenizer(bos=bos, padding_side=padding_side)
    model = tiny_model(family, vocab_size=len(tokenizer))
    settings = config(model)
    expected = [oracle(model, tokenizer, edit, PREFIXES, settings) for edit in EDITS]
    for step in (1, 2, 3):
        ours = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, steps=step))
        torch.testing.assert_close(
            ours.loss, torch.tensor([one.losses[step - 1] for one in expected]), rtol=1e-4, atol=0
        )
        assert ours.steps.tolist() == [step] * len(EDITS)
    torch.testing.assert_close(ours.targets, torch.stack([one.target for one in expected]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("layer", [0, 3])
def test_equals_the_published_procedure_at_the_first_and_the_last_layer(family, layer):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    settings = config(model, layers=[layer])
    ours = our_values(model, tokenizer, EDITS, PREFIXES, settings)
    expected = [oracle(model, tokenizer, edit, PREFIXES, settings).losses[-1] for edit in EDITS]
    torch.testing.assert_close(ours.loss, torch.tensor(expected), rtol=1e-4, atol=0)


def test_a_small_clamp_bounds_delta():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    settings = config(model, clamp=0.05, steps=4)
    ours = our_values(model, tokenizer, EDITS, PREFIXES, settings)
    start = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, steps=1)).targets
    ratio = (ours.targets - start).norm(dim=1) / start.norm(dim=1)
    assert ratio.max() == pytest.approx(0.05, rel=1e-4)


def test_batches_and_their_order_do_not_change_the_result():
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    settings = config(model, steps=5)
    together = our_values(model, tokenizer, EDITS, PREFIXES, settings)
    alone = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, batch_size=1))
    turned = our_values(model, tokenizer, EDITS[::-1], PREFIXES, settings)
    torch.testing.assert_close(together.targets, alone.targets, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together.targets, turned.targets.flip(0), rtol=1e-3, atol=1e-4)


@pytest.fixture
def room_for(monkeypatch):
    """Makes passes over more than so many edits run out of memory."""

    def limit(edits: int) -> list[int]:
        seen: list[int] = []
        pass_of = values._Objective.__call__

        def limited(self, delta):
            seen.append(len(delta))
            if len(delta) > edits:
                raise torch.OutOfMemoryError
            return pass_of(self, delta)

        monkeypatch.setattr(values._Objective, "__call__", limited)
        return seen

    return limit


def test_batches_that_do_not_fit_into_memory_are_halved(room_for):
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    settings = config(model, steps=5, batch_size=4)
    edits = [*EDITS, *(replace(edit, target="Oslo") for edit in EDITS)]
    expected = our_values(model, tokenizer, edits, PREFIXES, settings)
    seen = room_for(1)
    with pytest.warns(EmmetWarning) as caught:
        halved = our_values(model, tokenizer, edits, PREFIXES, settings)
    assert [str(warning.message).partition(":")[0] for warning in caught] == [
        "4 edits do not fit into memory together",
        "2 edits do not fit into memory together",
    ]
    assert "batch_size=1 saves the attempt" in str(caught[-1].message)
    assert seen == [4, 2] + [1] * 5 * len(edits)
    torch.testing.assert_close(halved.targets, expected.targets, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(halved.loss, expected.loss, rtol=1e-4, atol=0)


def test_an_edit_that_does_not_fit_into_memory_is_an_error(room_for):
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    room_for(0)
    with pytest.raises(torch.OutOfMemoryError):
        our_values(model, tokenizer, EDITS[:1], PREFIXES, config(model, steps=5))


def test_converged_edits_leave_the_batch_with_the_values_they_converged_to():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    settings = config(model, steps=40, learning_rate=0.3, clamp=50, weight_decay=0.0, stop_loss=6.0)
    ours = our_values(model, tokenizer, EDITS, PREFIXES, settings)
    expected = [oracle(model, tokenizer, edit, PREFIXES, settings) for edit in EDITS]
    assert (ours.loss < 6.0).sum() == 2, "some of the edits should converge, others not"
    assert ours.steps.tolist() == [len(one.losses) for one in expected]
    torch.testing.assert_close(ours.loss, torch.tensor([one.losses[-1] for one in expected]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("contexts_per_step", [1, 2, 3])
def test_contexts_take_turns(contexts_per_step):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    settings = config(model, steps=8, contexts_per_step=contexts_per_step, stop_loss=6.5)
    ours = our_values(model, tokenizer, EDITS, PREFIXES, settings)
    expected = [oracle(model, tokenizer, edit, PREFIXES, settings) for edit in EDITS]
    assert ours.steps.tolist() == [len(one.losses) for one in expected]
    torch.testing.assert_close(ours.loss, torch.tensor([one.losses[-1] for one in expected]), rtol=1e-3, atol=0)
    torch.testing.assert_close(ours.targets, torch.stack([one.target for one in expected]), rtol=1e-2, atol=1e-2)


def test_each_context_has_its_turn():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    settings = config(model, contexts_per_step=2, stop_loss=1e6)
    assert our_values(model, tokenizer, EDITS, PREFIXES, settings).steps.tolist() == [2] * len(EDITS)
    # With fewer steps than turns, all contexts are evaluated in each.
    one = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, steps=1))
    all_in_one = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, steps=1, contexts_per_step=None))
    assert torch.equal(one.loss, all_in_one.loss)
    assert torch.equal(one.targets, all_in_one.targets)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_newton_steps_lower_the_published_loss_faster(family):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    settings = config(model, steps=6, optimizer="newton")
    newton = our_values(model, tokenizer, EDITS, PREFIXES, settings)
    adam = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, optimizer="adam"))
    assert (newton.loss < adam.loss).all()
    # The loss is that of the values that are returned, by the definition.
    for edit, target, loss in zip(EDITS, newton.targets, newton.loss, strict=True):
        start = oracle(model, tokenizer, edit, PREFIXES, replace(settings, steps=1)).target
        reached = published_values(
            model,
            tokenizer,
            edit,
            PREFIXES,
            Injection.find(discover(model), LAYER).site(discover(model)).module,
            replace(settings, steps=1),
            delta=target - start,
        )
        assert loss.item() == pytest.approx(reached.losses[0], rel=1e-3)


def test_gradient_steps_once_along_the_gradient_of_the_published_loss():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    settings = config(model, steps=None, optimizer="gradient", clamp=0.3)
    ours = our_values(model, tokenizer, EDITS, PREFIXES, settings)
    start = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, optimizer="adam", steps=1))
    assert ours.steps.tolist() == [1] * len(EDITS)
    torch.testing.assert_close(ours.loss, start.loss)
    delta = ours.targets - start.targets
    torch.testing.assert_close(delta.norm(dim=1), 0.3 * start.targets.norm(dim=1), rtol=1e-4, atol=0)
    # Adam's first step is the sign of the gradient times the rate.
    adam = our_values(model, tokenizer, EDITS, PREFIXES, replace(settings, optimizer="adam", steps=2, clamp=1e3))
    signs = (adam.targets - start.targets).sign()
    assert ((delta.sign() == signs) | (delta.abs() < 1e-3 * delta.abs().max())).all()


def test_without_prefixes_and_without_decay():
    tokenizer = tiny_tokenizer()
    model = tiny_model("phi", vocab_size=len(tokenizer))
    settings = config(model, weight_decay=0.0, kl_factor=0.0)
    ours = our_values(model, tokenizer, EDITS, (), settings)
    expected = [oracle(model, tokenizer, edit, (), settings).losses[-1] for edit in EDITS]
    torch.testing.assert_close(ours.loss, torch.tensor(expected), rtol=1e-4, atol=0)


def test_the_model_is_left_as_it_was():
    tokenizer = tiny_tokenizer()
    model = tiny_model("opt", vocab_size=len(tokenizer)).train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    our_values(model, tokenizer, EDITS, PREFIXES, config(model))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == flags
    assert all(module.training for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_loss_that_is_not_finite_is_an_error():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    arch, settings = discover(model), config(model)
    prompts = [in_contexts(tokenizer, edit, PREFIXES) for edit in EDITS]
    injection = tried(arch, Injection.find(arch, settings.layers[-1]))
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(NonFiniteError, match=f"finite losses, got NaN or Inf for .*'{EDITS[0].text}'"):
        optimise_values(arch, tokenizer, EDITS, prompts, settings, injection)


def test_equals_the_published_procedure_on_the_real_model(smollm2_folder, data_folder):
    model, tokenizer = load(smollm2_folder)
    edits = read_edits(data_folder / "counterfact" / "edit-10k.jsonl")[:3]
    settings = config(model, layers=[7], learning_rate=0.5)
    expected = [oracle(model, tokenizer, edit, PREFIXES, settings) for edit in edits]
    for step in (1, 2, 3):
        ours = our_values(model, tokenizer, edits, PREFIXES, replace(settings, steps=step))
        torch.testing.assert_close(
            ours.loss, torch.tensor([one.losses[step - 1] for one in expected]), rtol=1e-4, atol=0
        )
