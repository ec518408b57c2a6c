"""Forward passes: their arguments, their batches, and passes that read one layer at the last token of each row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ._core import scratch_rows
from .architectures import Architecture
from .distributed import ALONE, World
from .hooks import frozen, on_input, on_output, stop_after
from .tokens import pad_rows

# Padded tokens of one forward pass that keeps no gradient.
BATCH_TOKENS = 8192


@lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward pass has an argument of that name."""
    return argument in _parameters(type(model).forward)


def cache_argument(model: nn.Module) -> str:
    """What the model calls its cache of keys and values; transformers 5 has renamed "past_key_values" on the way."""
    return "cache" if accepts(model, "cache") else "past_key_values"


def model_inputs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, cache: Cache | None = None
) -> dict[str, Any]:
    """Arguments of a forward pass over the last columns of `attention_mask` [rows, past + tokens].

    Positions are counted over unmasked tokens, so that padding on either side changes nothing.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": cache is not None}
    if cache is not None:
        inputs[cache_argument(model)] = cache
    if accepts(model, "position_ids"):
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        inputs["position_ids"] = positions[:, positions.shape[1] - input_ids.shape[1] :]
    return inputs


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices, longest first, in batches that stay within `budget` padded tokens (one row always fits)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def batches_of_one_length(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices in batches of at most `rows` that need no padding."""
    for _, group in groupby(sorted(range(len(lengths)), key=lambda i: lengths[i]), key=lambda i: lengths[i]):
        while batch := list(islice(group, rows)):
            yield batch


@dataclass(frozen=True)
class Site:
    """Where a layer is read: `module`, whether at its input or its output, and how many numbers are there a token."""

    module: nn.Module
    at_input: bool
    width: int

    @staticmethod
    def keys(arch: Architecture, layer: int) -> Site:
        """The input of a layer's MLP output projection: its keys [.., d_in]."""
        projection = arch.projection(layer)
        return Site(projection.module, at_input=True, width=projection.d_in)


def by_row(states: Tensor, rows: int) -> Tensor:
    """States [rows, tokens, width], also of modules that see all tokens in one dimension (OPT's MLP)."""
    return states.reshape(rows, -1, states.shape[-1])


def last_token_states(arch: Architecture, rows: Sequence[Sequence[int]], site: Site, world: World = ALONE) -> Tensor:
    """What `site` sees at the last token of each row: [rows, width] float64, on the model's device.

    The pass ends there. The processes of `world` share the batches.
    """
    found = scratch_rows(len(rows), site.width, arch.model.device)

    def keep(batch: Sequence[int], states: Tensor, mask: Tensor) -> None:
        found[batch] = states[torch.arange(len(batch), device=mask.device), mask.sum(1) - 1].to(found)

    _watch(arch, rows, site, world, keep)
    return world.sum(found)


def later_token_states(
    arch: Architecture, rows: Sequence[Sequence[int]], site: Site, dtype: torch.dtype, world: World = ALONE
) -> Tensor:
    """What `site` sees at all tokens of each row but its first, one row after the other: [tokens, width].

    Otherwise as `last_token_states`.
    """
    ends = list(accumulate(len(row) - 1 for row in rows))
    found = torch.zeros(ends[-1], site.width, dtype=dtype, device=arch.model.device)

    def keep(batch: Sequence[int], states: Tensor, mask: Tensor) -> None:
        for i, of_row, used in zip(batch, states, mask.bool(), strict=True):
            found[ends[i] - len(rows[i]) + 1 : ends[i]] = of_row[used][1:].to(found)

    _watch(arch, rows, site, world, keep)
    return world.sum(found)


def _watch(
    arch: Architecture,
    rows: Sequence[Sequence[int]],
    site: Site,
    world: World,
    keep: Callable[[Sequence[int], Tensor, Tensor], None],
) -> None:
    """Call `keep` with batches of rows, what `site` sees of them [rows, tokens, width], and which tokens are theirs."""
    watch = on_input if site.at_input else on_output
    with frozen(arch.model), torch.no_grad():
        for batch in world.shard(list(batches_by_length([len(row) for row in rows], BATCH_TOKENS))):
            ids, mask = pad_rows([rows[i] for i in batch], device=arch.model.device)
            seen: list[Tensor] = []
            with watch(site.module, seen.append), stop_after(site.module):
                arch.base(**model_inputs(arch.base, ids, mask))
            states = by_row(seen[0], len(batch))
            keep(batch, states, mask.to(states.device))
