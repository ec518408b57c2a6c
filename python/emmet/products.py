"""Matrix products of a model by oneDNN, on CPUs where that is quicker than the library that torch calls for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from ._core import linear, prefers_onednn


@contextmanager
def quick_products(model: nn.Module) -> Iterator[None]:
    """In the body, compute linear modules whose weights need no gradient by oneDNN, if this CPU prefers that."""
    modules = list(_replaceable(model)) if prefers_onednn() else []
    try:
        for module in modules:
            vars(module)["forward"] = partial(_forward, module)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _replaceable(model: nn.Module) -> Iterator[nn.Linear | Conv1D]:
    """Linear modules with ordinary float32 weights on the CPU, whose forward pass nothing has changed."""
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and "forward" not in vars(module):
            is_unchanged = type(module).forward in (nn.Linear.forward, Conv1D.forward)
            if is_unchanged and _is_ordinary(module.weight):
                yield module


def _is_ordinary(weight: Tensor) -> bool:
    is_dense = type(weight) in (nn.Parameter, Tensor) and weight.layout == torch.strided
    return is_dense and weight.device.type == "cpu" and weight.dtype == torch.float32


def _forward(module: Any, *args: Any, **named: Any) -> Any:
    trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    if named or (trained and torch.is_grad_enabled()) or torch.is_autocast_enabled("cpu"):
        return type(module).forward(module, *args, **named)
    (states,) = args
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    # By rows: of other input oneDNN gives a view, and a view that a function returns cannot be changed in place.
    rows = states.reshape(-1, states.shape[-1])
    product = _Linear.apply(rows, weight, module.bias)  # type: ignore[no-untyped-call]
    return product.view(*states.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """x Wᵀ + b for rows x [n, in], with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(gradients[0], weight.T), None, None
