from __future__ import annotations

import pytest
import torch

from emmet.architectures import discover
from emmet.errors import ModelError
from emmet.suffixes import Injection
from emmet.trial import check_resumable
from tiny import FAMILIES, tiny_model

VOCABULARY = 64


class ForgetfulSum(torch.nn.Module):
    """Adds to each token's state a share of those before it in the same pass: a state that no cache keeps."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + 0.1 * states.cumsum(dim=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_no_reason_to_refuse(family: str, dtype: torch.dtype) -> None:
    arch = discover(tiny_model(family, vocab_size=VOCABULARY).to(dtype))
    for layer in range(len(arch)):
        check_resumable(arch, Injection.find(arch, layer))


def test_a_state_that_is_not_kept_is_a_reason() -> None:
    model = tiny_model("llama", vocab_size=VOCABULARY)
    model.model.layers[2].mlp = torch.nn.Sequential(ForgetfulSum(), model.model.layers[2].mlp)
    arch = discover(model)
    with pytest.raises(ModelError, match=r"^LlamaForCausalLM cannot be run above layer 1 .* its logits are off by \d"):
        check_resumable(arch, Injection.find(arch, 1))
    check_resumable(arch, Injection.find(arch, 3))  # above what forgets, all is as in other models


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
