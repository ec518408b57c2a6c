from __future__ import annotations

import pytest
import torch

from emmet.architectures import discover
from emmet.errors import ConfigError, ModelError
from emmet.suffixes import Injection
from emmet.trial import check_resumable, tried
from tiny import FAMILIES, PADDED_ATTENTION, tiny_model

VOCABULARY = 64


class ForgetfulSum(torch.nn.Module):
    """Adds to each token's state a share of those before it in the same pass: a state that no cache keeps."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + 0.1 * states.cumsum(dim=1)


class ShortRows(torch.nn.Module):
    """Takes the rows of the trial one by one or padded, but not packed."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        assert states.shape[1] <= 6
        return states


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_no_reason_to_refuse(family: str, dtype: torch.dtype) -> None:
    if (family, dtype) == ("bloom", torch.float64):
        pytest.xfail("transformers gives NaN for its padding in float64")
    arch = discover(tiny_model(family, vocab_size=VOCABULARY).to(dtype))
    for layer in range(len(arch)):
        tried(arch, Injection.find(arch, layer))


def test_a_state_that_is_not_kept_is_a_reason() -> None:
    model = tiny_model("llama", vocab_size=VOCABULARY)
    model.model.layers[2].mlp = torch.nn.Sequential(ForgetfulSum(), model.model.layers[2].mlp)
    arch = discover(model)
    with pytest.raises(ModelError, match=r"^LlamaForCausalLM cannot be run above layer 1 .* its logits are off by \d"):
        check_resumable(arch, Injection.find(arch, 1))


def test_rows_that_cannot_be_packed_stay_padded() -> None:
    model = tiny_model("llama", vocab_size=VOCABULARY)
    model.model.layers[0].mlp = torch.nn.Sequential(ShortRows(), model.model.layers[0].mlp)
    arch = discover(model)
    assert not tried(arch, Injection.find(arch, 1)).packs


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_packed_where_that_changes_nothing(family: str) -> None:
    arch = discover(tiny_model(family, vocab_size=VOCABULARY))
    assert tried(arch, Injection.find(arch, 1)).packs == (family not in PADDED_ATTENTION)


def test_inference_mode_is_named() -> None:
    arch = discover(tiny_model("llama", vocab_size=VOCABULARY))
    injection = Injection.find(arch, 1)
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"got torch.inference_mode\(\)"):
        check_resumable(arch, injection)


def test_running_out_of_memory_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = discover(tiny_model("llama", vocab_size=VOCABULARY))
    injection = Injection.find(arch, 1)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(arch.layers[3], "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        check_resumable(arch, injection)


@pytest.mark.parametrize(("family", "at_projection"), [("gemma2", True), ("llama", False)])
def test_a_zero_embedding_does_not_hide_where_values_are(family: str, at_projection: bool) -> None:
    model = tiny_model(family, vocab_size=VOCABULARY)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    assert Injection.find(discover(model), 1).at_projection == at_projection


def test_an_error_of_the_model_is_a_reason() -> None:
    model = tiny_model("llama", vocab_size=VOCABULARY)
    arch = discover(model)
    injection = Injection.find(arch, 1)
    model.model.layers[3].self_attn = None
    with pytest.raises(
        ModelError, match=r"that fails with TypeError: .*; choose a model of attention layers"
    ) as caught:
        check_resumable(arch, injection)
    assert caught.value.__cause__ is not None
