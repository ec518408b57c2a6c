"""Rows of tokens without their padding: attention sees them apart, all else in a model sees one row of real tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .forward import accepts, model_inputs

# Attention that takes any mask.
_MASKED_ATTENTION = ("sdpa", "eager")
# Settings that bound how far back a token sees, and those by which attention is more than queries, keys and a mask:
# Llama 4's counts tokens, and GPT-2's computes in float32 what is named "eager".
_WINDOWS = ("sliding_window", "attention_chunk_size")
_MORE_THAN_A_MASK = ("attn_temperature_tuning", "reorder_and_upcast_attn")


def can_pack(decoder: nn.Module) -> bool:
    """Whether rows can be packed if nothing but attention mixes tokens, and attention sees whole rows.

    `trial` finds whether the former is so.
    """
    configs = _configs(decoder)
    replaceable = all(config._attn_implementation in _MASKED_ATTENTION for config in configs)
    more = any(getattr(config, name, False) for config in configs for name in _MORE_THAN_A_MASK)
    return (
        replaceable
        and not more
        and getattr(decoder, "_supports_attention_backend", False)
        and accepts(decoder, "position_ids")
    )


def _sees_whole_rows(decoder: nn.Module, length: int) -> bool:
    windows = (getattr(config, name, None) or length for config in _configs(decoder) for name in _WINDOWS)
    return min(windows) >= length


def _configs(decoder: nn.Module) -> list[PreTrainedConfig]:
    """Those of the decoder and of its parts, which say how attention is computed."""
    found = (getattr(part, "config", None) for part in decoder.modules())
    return list({id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values())


class Layout:
    """How a decoder has rows of tokens: padded, [rows, tokens, ...], or packed, [1, real tokens, ...].

    ids [rows, tokens] are padded, and so are past keys and values, in a cache; mask [rows, past + tokens] selects the
    real tokens. Rows are packed if the decoder `packs`, no window is shorter, and they have padding.
    """

    def __init__(self, decoder: nn.Module, ids: Tensor, mask: Tensor, *, packs: bool) -> None:
        self.ids, self.mask = ids, mask
        self._decoder, self._packs = decoder, packs
        self.past = mask.shape[1] - ids.shape[1]
        real = mask[:, self.past :].flatten()
        self._real = real.nonzero().squeeze(1)
        self._order = real.cumsum(0) - 1  # of each padded place, counted over real tokens
        self._is_packed = packs and len(self._real) < ids.numel() and _sees_whole_rows(decoder, mask.shape[1])
        self._masks: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def rows(self) -> int:
        """How many rows the model has."""
        return 1 if self._is_packed else len(self.ids)

    def pack(self, states: Tensor) -> Tensor:
        """Padded states [rows, tokens, ...], as the model has them."""
        if not self._is_packed:
            return states
        return states.flatten(0, 1).index_select(0, self._real.to(states.device)).unsqueeze(0)

    def unpack(self, states: Tensor) -> Tensor:
        """What the model has, as padded states; zeros where there is no token."""
        if not self._is_packed:
            return states
        padded = states.new_zeros(self.ids.numel(), *states.shape[2:])
        padded = padded.index_copy(0, self._real.to(states.device), states[0])
        return padded.view(*self.ids.shape, *states.shape[2:])

    def unpack_heads(self, states: Tensor) -> Tensor:
        """The same of [rows, heads, tokens, width]."""
        return self.unpack(states.transpose(1, 2)).transpose(1, 2)

    def places(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Where the model has padded tokens: rows and columns."""
        if not self._is_packed:
            return rows, columns
        return torch.zeros_like(rows), self._order[rows * self.ids.shape[1] + columns]

    def inputs(self, model: nn.Module, cache: Cache | None = None) -> dict[str, Any]:
        """Arguments of a forward pass, of the model or of its decoder."""
        inputs = model_inputs(model, self.ids, self.mask, cache)
        if self._is_packed:
            inputs |= {name: self.pack(inputs[name]) for name in ("input_ids", "position_ids")}
            inputs["attention_mask"] = None
        return inputs

    def selected(self, rows: Tensor) -> Layout:
        """The layout of those rows that the boolean `rows` [rows] selects."""
        return Layout(self._decoder, self.ids[rows], self.mask[rows], packs=self._packs)

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Let attention see rows in the body. A past is to be of `PastLayer`s."""
        if not self._is_packed:
            yield
            return
        names = {id(config): config._attn_implementation for config in _configs(self._decoder)}

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _: Tensor | None, **settings: Any
        ) -> Any:
            if not self.past:
                key, value = self.unpack_heads(key), self.unpack_heads(value)
            attention = _attention_function(module, names[id(module.config)])
            output, weights = attention(
                module, self.unpack_heads(query), key, value, self._mask_like(query), **settings
            )
            return self.pack(output), weights

        name = f"emmet-{id(self)}"  # of this object alone: other threads may edit other models, of other configs
        try:
            ALL_ATTENTION_FUNCTIONS[name] = attend
            for config in _configs(self._decoder):
                config._attn_implementation_internal = name
            yield
        finally:
            for config in _configs(self._decoder):
                config._attn_implementation_internal = names[id(config)]
            del ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-untyped-call]

    def _mask_like(self, query: Tensor) -> Tensor:
        """What attention adds to scores [rows, heads, tokens, past + tokens], in the dtype and place of `query`."""
        place = (query.device, query.dtype)
        if place not in self._masks:
            tokens, seen = self.ids.shape[1], self.mask.shape[1]
            causal = torch.ones(tokens, seen, dtype=torch.bool, device=self.mask.device).tril(self.past)
            visible = (self.mask.bool()[:, None, None, :] & causal).to(query.device)
            lowest = torch.finfo(query.dtype).min
            self._masks[place] = query.new_zeros(visible.shape).masked_fill_(~visible, lowest)
        return self._masks[place]


class PastLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Padded keys and values of a past, which a forward pass extends for itself and leaves as they were."""

    def __init__(self, layout: Layout, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        """`layout` is that of what is added."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.layout, self.keys, self.values = layout, keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            return key_states, value_states
        keys, values = self.layout.unpack_heads(key_states), self.layout.unpack_heads(value_states)
        return torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)

    def get_seq_length(self) -> int:
        return self.layout.past

    def select(self, rows: Tensor, layout: Layout) -> PastLayer:
        """That of some rows, selected by a boolean [rows] or by indices, to which others are added."""
        if self.keys is None or self.values is None:
            return PastLayer(layout)
        rows = rows.to(self.keys.device)
        return PastLayer(layout, self.keys[rows], self.values[rows])

    def in_order(self, tokens: Tensor, layout: Layout) -> PastLayer:
        """That of some tokens [rows, tokens] of each row, in this order."""
        if self.keys is None or self.values is None:
            return PastLayer(layout)
        tokens = tokens[:, None, :, None].to(self.keys.device)
        return PastLayer(layout, self.keys.take_along_dim(tokens, 2), self.values.take_along_dim(tokens, 2))


class GrowingLayer(PastLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a past, and after the forward pass those of its tokens, too."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        seen = super().update(key_states, value_states)
        self.keys, self.values = seen if self.keys is not None else map(self.layout.unpack_heads, seen)
        return seen


def _attention_function(module: nn.Module, name: str) -> Any:
    """What an attention module calls otherwise; eager attention is a function beside its class."""
    if name == "eager":
        return vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return ALL_ATTENTION_FUNCTIONS[name]
