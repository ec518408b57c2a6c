"""Matrix products of a model by oneDNN, on CPUs where that is quicker than the library that torch calls for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ._core import linear, prefers_onednn


@contextmanager
def quick_products(model: nn.Module) -> Iterator[None]:
    """In the body, compute linear modules by oneDNN if this CPU prefers it. Weights get no gradients."""
    modules = list(_replaceable(model)) if prefers_onednn() else []
    try:
        for module in modules:
            vars(module)["forward"] = partial(_forward, module)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _replaceable(model: nn.Module) -> Iterator[nn.Linear | Conv1D]:
    """Linear modules, and not of derived kinds, in float32 on the CPU, whose forward pass nothing else has replaced."""
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and "forward" not in vars(module):
            is_plain = type(module).forward in (nn.Linear.forward, Conv1D.forward)
            if is_plain and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
                yield module


def _forward(module: nn.Linear | Conv1D, states: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        return type(module).forward(module, states)  # type: ignore[arg-type]
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    product: Tensor = _Linear.apply(states, weight, module.bias)  # type: ignore[no-untyped-call]
    return product


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(gradients[0], weight.T), None, None
