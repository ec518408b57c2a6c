"""Rows of a batch of edits, each cut at its subject's last token: what precedes it is run once, what follows often.

An edit adds δ to one layer at the subject's last token. Below that layer, and before that token, nothing depends on δ:
the hidden states and the attention's keys and values there are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from .architectures import Architecture
from .forward import Site, by_row, model_inputs
from .hooks import at_positions, frozen, hidden_states, on_output, raw_outputs, start_above, stop_after
from .packing import Layout, PastLayer
from .tokens import pad_rows

_PROBED = 6  # tokens


@dataclass(frozen=True)
class Row:
    """One row: its token ids, where the subject's last token is, and the positions whose next-token logits are read."""

    ids: Sequence[int]
    subject: int
    reads: Sequence[int]


@dataclass(frozen=True)
class Injection:
    """Where δ is added: to the output of `layer`, or (`at_projection`) of its MLP output projection.

    The two are the same in most models. Where a layer normalises or scales what its MLP gives (Gemma 2 and 3, Granite),
    only the projection's own output is a value that a weight can produce. `as_tuple` is the form of a layer's output,
    and `packs` says whether rows can be packed, as `trial` finds.
    """

    layer: int
    at_projection: bool
    as_tuple: bool
    packs: bool = False

    @staticmethod
    def find(arch: Architecture, layer: int) -> Injection:
        """Try whether a shift of the projection's output shifts the layer's output by as much."""
        projection = arch.projection(layer)
        tokens = torch.arange(_PROBED, device=arch.model.device).unsqueeze(0)  # the embedding of one may be zero
        inputs = model_inputs(arch.base, tokens, torch.ones_like(tokens))
        with frozen(arch.model), torch.no_grad(), raw_outputs(arch.layers[layer]) as outputs:
            with stop_after(arch.layers[layer]):
                arch.base(**inputs)
            size = hidden_states(outputs[0]).float().square().mean().sqrt()  # as large as states: dtypes round by them
            shift = (size * torch.linspace(-1, 1, arch.d_model, device=size.device)).to(projection.weight)
            with on_output(projection.module, lambda value: value + shift), stop_after(arch.layers[layer]):
                arch.base(**inputs)
        change = hidden_states(outputs[1]) - hidden_states(outputs[0])
        difference = change - shift.to(change.device)
        at_projection = float(difference.norm()) > 0.05 * float(shift.norm())  # half precision rounds by up to 1 %
        return Injection(layer, at_projection, as_tuple=not isinstance(outputs[0], Tensor))

    @property
    def skipped(self) -> int:
        """How many of the first layers do not depend on δ."""
        return self.layer if self.at_projection else self.layer + 1

    def site(self, arch: Architecture) -> Site:
        """The output that δ is added to."""
        module = arch.projection(self.layer).module if self.at_projection else arch.layers[self.layer]
        return Site(module, at_input=False, width=arch.d_model)


class Suffixes:
    """Next-token logits of rows as a function of δ; see the module's text.

    Padding is on the left of the prefixes and on the right of the suffixes, so that the subject's last token is the
    first of every suffix. `start` [rows, d_model] is what δ is added to. It is on the model's device, where δ and the
    logits are, too; each layer's states are on the layer's own.
    """

    def __init__(self, arch: Architecture, injection: Injection, rows: Sequence[Row]) -> None:
        device = arch.model.device
        prefix_ids, prefix_mask = pad_rows([row.ids[: row.subject] for row in rows], side="left", device=device)
        suffix_ids, suffix_mask = pad_rows([row.ids[row.subject :] for row in rows], device=device)
        reads = [(i, read - row.subject) for i, row in enumerate(rows) for read in row.reads]
        self._arch = arch
        self._injection = injection
        self._read_rows, self._read_columns = torch.tensor(reads, device=device).T
        mask = torch.cat([prefix_mask, suffix_mask], dim=1)
        layout = partial(Layout, arch.base, packs=injection.packs)
        self._layout = layout(suffix_ids, mask)
        with torch.no_grad():
            self._run_once(layout(torch.cat([prefix_ids, suffix_ids], dim=1), mask), layout(prefix_ids, prefix_mask))

    def _run_once(self, whole: Layout, prefix: Layout) -> None:
        """Run what does not depend on δ: all rows up to the injection, and the prefixes above it."""
        arch, injection, length = self._arch, self._injection, prefix.ids.shape[1]
        with ExitStack() as stack:
            injected = stack.enter_context(raw_outputs(injection.site(arch).module))
            below = stack.enter_context(raw_outputs(arch.layers[max(injection.skipped - 1, 0)]))
            stack.enter_context(stop_after(arch.layers[injection.layer]))
            stack.enter_context(whole.attention())
            arch.base(**whole.inputs(arch.base))
        states = whole.unpack(hidden_states(below[0]))
        self._below = self._layout.pack(states[:, length:].clone())
        start = whole.unpack(by_row(hidden_states(injected[0]), whole.rows))
        self.start = start[:, length].clone().to(whole.ids.device)
        self._cache = [PastLayer(self._layout) for _ in range(len(arch))]
        if length:
            cache = DynamicCache()
            with self._start_above(prefix.pack(states[:, :length])), prefix.attention():
                arch.base(**prefix.inputs(arch.base, cache))
            for i, layer in enumerate(cache.layers):
                if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                    keys, values = prefix.unpack_heads(layer.keys), prefix.unpack_heads(layer.values)
                    self._cache[i] = PastLayer(self._layout, keys, values)

    def _start_above(self, hidden: Tensor) -> AbstractContextManager[None]:
        return start_above(
            list(self._arch.layers)[: self._injection.skipped], hidden, as_tuple=self._injection.as_tuple
        )

    def logits(self, delta: Tensor) -> Tensor:
        """Logits [reads, vocab] after δ [rows, d_model] is added, in the order of the rows and their reads."""
        model, layout = self._arch.model, self._layout
        first = torch.arange(len(delta), device=delta.device)
        subjects = layout.places(first, torch.zeros_like(first))

        def shifted(states: Tensor) -> Tensor:
            places = tuple(place.to(states.device) for place in subjects)
            return by_row(states, layout.rows).index_put(places, delta.to(states), accumulate=True).view_as(states)

        with ExitStack() as stack:
            stack.enter_context(layout.attention())
            if self._injection.at_projection:
                stack.enter_context(on_output(self._injection.site(self._arch).module, shifted))
                stack.enter_context(self._start_above(self._below))
            else:
                stack.enter_context(self._start_above(shifted(self._below)))
            reads = layout.places(self._read_rows, self._read_columns)
            stack.enter_context(at_positions(self._arch.head, *reads))
            output = model(**layout.inputs(model, Cache(layers=list(self._cache))))
        logits: Tensor = output.logits[0]
        return logits

    def keep(self, kept: Tensor) -> None:
        """Drop all rows but those selected by the boolean `kept` [rows]."""
        read = kept[self._read_rows]
        self._read_rows = (kept.cumsum(0) - 1)[self._read_rows[read]]
        self._read_columns = self._read_columns[read]
        below, self.start = self._layout.unpack(self._below), self.start[kept]
        self._layout = self._layout.selected(kept)
        self._below = self._layout.pack(below[kept.to(below.device)])
        self._cache = [layer.select(kept, self._layout) for layer in self._cache]
