"""Sampling of text from a model, reproducible from a seed and without a trace in torch's global random state."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from .errors import NonFiniteError
from .hooks import frozen
from .progress import Progress, silent


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Continue rows of token ids [rows, t] by sampled tokens: [rows, t + max_new_tokens].

    Each token is drawn from softmax(logits / temperature), restricted to the `top_k` likeliest if given. All rows are
    full: there is no padding, and a row goes on after an end-of-text token, with whatever the model writes next.
    Random numbers come from `generator` alone, which may be on another device than the model. Raises NonFiniteError if
    the model gives NaN or infinity.
    """
    rows, start = input_ids.shape
    ids = input_ids.new_empty(rows, start + max_new_tokens)
    ids[:, :start] = input_ids
    # One cache that grows: on a CPU, attention over a StaticCache takes three times as long.
    cache = {_cache_argument(model): DynamicCache(config=model.config)}
    seen = 0
    with frozen(model):
        for end in range(start, start + max_new_tokens):
            output = model(input_ids=ids[:, seen:end], use_cache=True, logits_to_keep=1, **cache)
            ids[:, end] = _draw(output.logits[:, -1].float() / temperature, top_k, generator)
            seen = end
            progress("sampling", rows * (end + 1 - start), rows * max_new_tokens)
    return ids


def _cache_argument(model: PreTrainedModel) -> str:
    """What `model` calls its cache of keys and values; transformers 5 has renamed "past_key_values" on the way."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _draw(logits: Tensor, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One index [rows] for each row of logits [rows, vocab], by inversion of the cumulative distribution."""
    choices = None
    if top_k is not None:
        logits, choices = logits.topk(min(top_k, logits.shape[-1]))
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    if not bool(total.isfinite().all()):
        message = "expected finite logits, got NaN or Inf: the weights are damaged or the dtype overflows; "
        message += "load the model anew, in float32 or bfloat16"
        raise NonFiniteError(message)
    uniform = torch.rand(total.shape, generator=generator, device=generator.device).to(logits.device)
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not reach the end of the last interval
    drawn = torch.searchsorted(cumulative, torch.minimum(uniform * total, below), right=True)
    return (drawn if choices is None else choices.gather(-1, drawn)).squeeze(-1)
