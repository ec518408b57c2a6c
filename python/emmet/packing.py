"""Padded batches whose linear modules compute the real tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .hooks import forward_as

# So few tokens are multiplied in the time that it takes to read the weight: leaving some of them out gains nothing.
_FEW_TOKENS = 64


def linear_modules(parts: Iterable[nn.Module]) -> list[nn.Module]:
    """All modules inside of `parts` that map each token for itself by a weight."""
    return [module for part in parts for module in part.modules() if isinstance(module, nn.Linear | Conv1D)]


@contextmanager
def without_padding(linears: Sequence[nn.Module], mask: Tensor) -> Iterator[None]:
    """Let `linears` compute only the tokens that `mask` [rows, tokens] selects, of inputs [rows, tokens, width].

    Masked tokens get some real token's output, so that what follows stays finite, and no gradient passes through them:
    nothing may attend to them or read them. Inputs of other shapes, as those of experts, are computed as they come, and
    so are those of few tokens.
    """
    real = mask.flatten().nonzero().squeeze(1)

    def packed(linear: Callable[..., Tensor], states: Tensor, *args: Any) -> Tensor:
        if states.shape[:-1] != mask.shape:
            return linear(states, *args)
        places = real.to(states.device)
        computed = linear(states.flatten(0, 1).index_select(0, places)[None], *args)[0]
        filler = computed.detach()[:1].expand(mask.numel(), -1)
        return filler.index_copy(0, places, computed).view(*mask.shape, -1)

    with ExitStack() as stack:
        if len(real) < mask.numel() and mask.numel() > _FEW_TOKENS:
            for linear in linears:
                stack.enter_context(forward_as(linear, partial(packed, linear.forward)))
        yield
