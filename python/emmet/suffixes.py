"""Rows of a batch of edits, each cut at its subject's last token: what precedes it is run once, what follows often.

An edit adds δ to one layer at the subject's last token. Below that layer, and before that token, nothing depends on δ:
the hidden states and the attention's keys and values there are computed once and kept. What many rows begin with, a
context that is put before the prompts, is run once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from .architectures import Architecture
from .forward import Site, by_row, model_inputs
from .hooks import at_positions, frozen, hidden_states, on_output, raw_outputs, start_above, stop_after
from .packing import GrowingLayer, Layout, PastLayer
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
    shares: bool = False

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

    A row is a beginning that its group shares, a prefix, and a suffix that starts with the subject's last token. There
    is no padding between tokens, as sliding windows would count it. `start` [rows, d_model] is what δ is added to, on
    the model's device, where δ and the logits are, too; each layer's states are on the layer's own.
    """

    def __init__(self, arch: Architecture, injection: Injection, groups: Sequence[Sequence[Row]]) -> None:
        """`groups` hold all rows in order; those of a group begin alike, if with no token."""
        device = arch.model.device
        rows = [row for group in groups for row in group]
        beginnings = [_beginning(group) if injection.shares else () for group in groups]
        group_of_row = [i for i, group in enumerate(groups) for _ in group]
        rests = [row.ids[len(beginnings[i]) :] for row, i in zip(rows, group_of_row, strict=True)]
        prefixes = [row.ids[len(beginnings[i]) : row.subject] for row, i in zip(rows, group_of_row, strict=True)]
        suffixes = [row.ids[row.subject :] for row in rows]
        reads = [(i, read - row.subject) for i, row in enumerate(rows) for read in row.reads]
        self._arch = arch
        self._injection = injection
        self._read_rows, self._read_columns = torch.tensor(reads, device=device).T

        def after(past: Tensor, ids_of_rows: Sequence[Sequence[int]]) -> Layout:
            ids, mask = pad_rows(ids_of_rows, device=device)
            return Layout(arch.base, ids, torch.cat([past, mask], dim=1), packs=injection.packs)

        with torch.no_grad():
            beginning = Layout(arch.base, *pad_rows(beginnings, side="left", device=device), packs=injection.packs)
            past = self._extended([PastLayer(beginning)] * len(arch), beginning)
            which = torch.tensor(group_of_row, device=device)
            past = [layer.select(which, beginning) for layer in past]
            below, at_site = self._run_below(past, after(beginning.mask[which], rests))
            prefix = after(beginning.mask[which], prefixes)
            with self._start_above(prefix.pack(below[:, : prefix.ids.shape[1]])):
                past = self._extended(past, prefix)

            order = _real_last(prefix.mask)
            self._layout = after(prefix.mask.gather(1, order), suffixes)
            self._cache = [PastLayer(self._layout) for _ in range(injection.skipped)]
            self._cache += [layer.in_order(order, self._layout) for layer in past[injection.skipped :]]
            starts = torch.tensor([len(ids) for ids in prefixes], device=device)
            self._below = self._layout.pack(_from(below, starts, self._layout.ids.shape[1]))
            self.start = _from(at_site, starts, 1).squeeze(1).to(device)

    def _extended(self, past: Sequence[PastLayer], layout: Layout) -> Sequence[PastLayer]:
        """What all layers that are run see of a past and the tokens of `layout` after it."""
        if layout.ids.shape[1] == 0:
            return past
        layers = [GrowingLayer(layout, layer.keys, layer.values) for layer in past]
        with layout.attention():
            self._arch.base(**layout.inputs(self._arch.base, Cache(layers=list(layers))))
        return layers

    def _run_below(self, past: Sequence[PastLayer], layout: Layout) -> tuple[Tensor, Tensor]:
        """What the first layer that depends on δ takes in, for the tokens after a past, and what δ is added to; padded.

        Where no layer is below that, the former does not count.
        """
        arch, injection = self._arch, self._injection
        site = injection.site(arch).module
        below = arch.layers[injection.skipped - 1] if injection.skipped else site
        cache = Cache(layers=[PastLayer(layout, layer.keys, layer.values) for layer in past]) if layout.past else None
        with ExitStack() as stack:
            found = [stack.enter_context(raw_outputs(module)) for module in (below, site)]
            stack.enter_context(stop_after(arch.layers[injection.layer]))
            stack.enter_context(layout.attention())
            arch.base(**layout.inputs(arch.base, cache))
        taken_in, start = (layout.unpack(by_row(hidden_states(states), layout.rows)) for (states,) in found)
        return taken_in, start

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

    def selected(self, rows: Tensor) -> Suffixes:
        """Those of the rows that the boolean `rows` [rows] selects."""
        some = copy(self)
        read = rows[self._read_rows]
        some._read_rows = (rows.cumsum(0) - 1)[self._read_rows[read]]
        some._read_columns = self._read_columns[read]
        some.start = self.start[rows]
        some._layout = self._layout.selected(rows)
        below = self._layout.unpack(self._below)
        some._below = some._layout.pack(below[rows.to(below.device)])
        some._cache = [layer.select(rows, some._layout) for layer in self._cache]
        return some


def _real_last(mask: Tensor) -> Tensor:
    """The columns of each row of a mask, padding first, from where the longest row's real tokens begin."""
    longest = int(mask.sum(1).max())
    return mask.argsort(dim=1, stable=True)[:, mask.shape[1] - longest :]


def _from(states: Tensor, starts: Tensor, count: int) -> Tensor:
    """`count` tokens of padded states [rows, tokens, width], of each row from its own start on."""
    starts = starts.to(states.device).unsqueeze(1)
    columns = (starts + torch.arange(count, device=states.device)).clamp(max=states.shape[1] - 1)
    return states.take_along_dim(columns.unsqueeze(2), dim=1)


def _beginning(rows: Sequence[Row]) -> Sequence[int]:
    """The ids that all of several rows begin with, before their subjects end."""
    if len(rows) == 1:
        return ()
    shortest, *others = sorted((row.ids[: row.subject] for row in rows), key=len)
    differing = (i for i, token in enumerate(shortest) if any(other[i] != token for other in others))
    return shortest[: next(differing, len(shortest))]
