"""Text that a model writes, drawn reproducibly from a seed and without a trace in torch's global random state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from .errors import NonFiniteError
from .forward import cache_argument
from .hooks import frozen
from .progress import Progress, silent


def sample(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    top_k: int | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Continue rows of token ids [rows, t] by sampled tokens: [rows, t + max_new_tokens].

    Each token is drawn from softmax(logits), restricted to the `top_k` likeliest if given. All rows are full: there is
    no padding, and a row goes on after an end-of-text token, with whatever the model writes next. Random numbers come
    from `generator` alone, which may be on another device than the model. Raises NonFiniteError if the model gives NaN
    or infinity.
    """
    rows = len(input_ids)
    ids = [input_ids]
    draw = partial(_draw, top_k=top_k, generator=generator)
    with frozen(model), torch.no_grad():
        for done, tokens in enumerate(islice(next_tokens(model, input_ids, draw), max_new_tokens), start=1):
            ids.append(tokens[:, None])
            progress("sampling", rows * done, rows * max_new_tokens)
    return torch.cat(ids, dim=1)


def next_tokens(model: PreTrainedModel, input_ids: Tensor, choose: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Continue rows of token ids [rows, t] without an end, by the tokens [rows] that `choose` takes each time.

    It is given their logits [rows, vocab] in float32. All rows are full: there is no padding. To be used without
    gradients and with the model in evaluation mode.
    """
    # One cache that grows: on a CPU, attention over a StaticCache takes three times as long.
    cache = {cache_argument(model): DynamicCache(config=model.config)}
    unseen = input_ids
    while True:
        logits = model(input_ids=unseen, use_cache=True, logits_to_keep=1, **cache).logits
        tokens = choose(logits[:, -1].float())
        yield tokens
        unseen = tokens[:, None]


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token [rows] by logits [rows, vocab]. Raises NonFiniteError for NaN and infinity."""
    highest, tokens = logits.max(-1)
    _check_finite(highest)
    return tokens


def _draw(logits: Tensor, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One index [rows] for each row of logits [rows, vocab], by inversion of the cumulative distribution."""
    choices = None
    if top_k is not None:
        logits, choices = logits.topk(min(top_k, logits.shape[-1]))
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    _check_finite(total)
    uniform = torch.rand(total.shape, dtype=total.dtype, generator=generator, device=generator.device).to(logits.device)
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not reach the end of the last interval
    drawn = torch.searchsorted(cumulative, torch.minimum(uniform * total, below), right=True)
    return (drawn if choices is None else choices.gather(-1, drawn)).squeeze(-1)


def _check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        message = "expected finite logits, got NaN or Inf: the weights are damaged or the dtype overflows; "
        message += "load the model anew, in float32 or bfloat16"
        raise NonFiniteError(message)
