"""Makes edits and takes them back; values, keys and residuals are computed once for all runs that can share them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._core import Diagnostics, solve
from ..architectures import Architecture
from ..config import Method, ResolvedConfig
from ..editor import Editor
from ..edits import Edit
from ..errors import EmmetError, NonFiniteError
from ..evaluate.drift import TextDrift, text_drift
from ..forward import last_token_states
from ..keys import in_contexts
from ..progress import Progress
from ..statistics import Statistics
from ..suffixes import Injection
from ..weights import Backup
from .plan import Batch, Ridge, Run

LayerFigures = dict[str, Any]
"""What edits did to one layer, as JSON: "layer", "relative_change", which is ‖Δ‖/‖W‖, and figures of `Diagnostics`.

Of several solves these are the largest; "preservation_cost" is None then and for AlphaEdit, and figures that are not
finite always.
"""

_FIGURES = ("ridge", "condition", "constraint_residual", "preservation_cost")


class _Solve(NamedTuple):
    layer: int
    diagnostics: Diagnostics


@dataclass(frozen=True)
class Edited:
    """What a batch of edits made of a model, while that has them.

    `drift` compares its predictions with those of the unedited model; None if it is not wanted.
    """

    layers: Sequence[LayerFigures] = ()
    drift: Callable[[], TextDrift] | None = None


class Workbench:
    """An unedited model, and the edits to try on it.

    `statistics` has the layers of all runs, `values` is the folder that v* are kept in, and `drift_text` holds the
    sequences of token ids to measure drift on.
    """

    def __init__(
        self,
        arch: Architecture,
        tokenizer: PreTrainedTokenizerBase,
        edits: Sequence[Edit],
        statistics: Statistics,
        values: Path,
        drift_text: Sequence[Tensor] | None,
        progress: Progress,
    ) -> None:
        self._arch = arch
        self._tokenizer = tokenizer
        self._edits = edits
        self._statistics = statistics
        self._values = values
        self._drift_text = drift_text
        self._progress = progress
        self._unedited = {layer: arch.projection(layer).weight.detach().clone() for layer in statistics}
        self._prefixes: tuple[str, ...] | None = None
        # Only the latest of each is kept: the metrics and keys of all layers together might not fit into memory.
        self._shared: _SharedEdits | None = None
        self._in_turn: Editor | None = None

    def check(self, runs: Iterable[Run]) -> None:
        """Raise as `Editor` does if the settings of any run, the model and the statistics do not fit together."""
        for config in dict.fromkeys(run.shared_config if run.shares_values else run.config for run in runs):
            self._editor(config)

    @contextmanager
    def edited(self, run: Run, batch: Batch) -> Iterator[Edited]:
        """The model with the edits of a batch; on exit every weight has its former bits."""
        weights = [self._arch.projection(layer).weight for layer in run.config.layers]
        unedited = Backup(weights)
        with ExitStack() as undo:
            if run.shares_values:
                shared = self._shared_edits(run.shared_config)
                solves = undo.enter_context(shared.edited(slice(batch.first, batch.end), run.config.ridge))
            else:
                solves = self._edit_in_turn(run, batch, undo)
            layers = [self._figures(run.config.method, layer, solves) for layer in run.config.layers]
            yield Edited(layers, self._drift(unedited, weights))

    def _drift(self, unedited: Backup, weights: Sequence[nn.Parameter]) -> Callable[[], TextDrift] | None:
        text = self._drift_text
        if text is None:
            return None

        def measure() -> TextDrift:
            edited = Backup(weights)
            try:
                return text_drift(self._arch, text, unedited, edited)
            finally:
                edited.restore()

        return measure

    def _edit_in_turn(self, run: Run, batch: Batch, undo: ExitStack) -> list[_Solve]:
        """Edit so many at once as the run says, on top of those before."""
        config = self._with_prefixes(run.config)
        if self._in_turn is None or self._in_turn.config != config:
            self._in_turn = self._editor(config)
        solves = []
        for first in range(batch.first, batch.end, run.batch_size):
            handle = self._in_turn.edit(self._edits[first : first + run.batch_size])
            undo.callback(handle.undo)
            solves += [_Solve(report.layer, report.diagnostics) for report in handle.diagnostics]
        return solves

    def _shared_edits(self, config: ResolvedConfig) -> _SharedEdits:
        config = self._with_prefixes(config)
        if self._shared is None or self._shared.editor.config != config:
            try:
                self._shared = _SharedEdits(self._editor(config), self._edits)
            except NonFiniteError as error:  # of no batch alone, so that none is to be called failed
                raise EmmetError(str(error)) from error
        return self._shared

    def _with_prefixes(self, config: ResolvedConfig) -> ResolvedConfig:
        """The settings with the prefixes spelt out, so that the model writes them only once."""
        if self._prefixes is None:
            self._prefixes = self._editor(config).prefixes
        return replace(config, prefixes=self._prefixes)

    def _editor(self, config: ResolvedConfig) -> Editor:
        return Editor(
            self._arch.model,
            self._tokenizer,
            config=config,
            statistics=self._statistics,
            value_cache=self._values,
            progress=self._progress,
        )

    def _figures(self, method: Method, layer: int, solves: Sequence[_Solve]) -> LayerFigures:
        """What became of a layer by solves of it and of others."""
        before = self._unedited[layer].float()
        change = self._arch.projection(layer).weight.detach().float() - before
        found = [diagnostics for solved, diagnostics in solves if solved == layer]
        figures = {name: _finite(max(getattr(one, name) for one in found)) for name in _FIGURES}
        if len(found) > 1 or method == "alphaedit":
            figures["preservation_cost"] = None
        return {"layer": layer, "relative_change": (change.norm() / before.norm()).item(), **figures}


class _SharedEdits:
    """Edits at one set of layers, for all ridges and batch sizes.

    Keys and residuals are shared at the lowest layer; those above depend on the edit below, and are computed for each.
    """

    def __init__(self, editor: Editor, edits: Sequence[Edit]) -> None:
        self.editor = editor
        self._edits = edits
        self._site = Injection.find(editor.arch, editor.config.layers[-1]).site(editor.arch)
        bare = [in_contexts(editor.tokenizer, edit, ())[0] for edit in edits]
        self._bare_rows = [prompt.ids[: prompt.subject + 1] for prompt in bare]
        self._targets = editor.values(edits).targets.double()
        self._keys = editor.keys(edits, editor.config.layers[0])
        self._missing = self._missing_now(slice(None))

    @contextmanager
    def edited(self, batch: slice, ridge: Ridge) -> Iterator[list[_Solve]]:
        """The model with edits made as by `Editor.edit`; on exit every weight has its former bits."""
        arch, layers = self.editor.arch, self.editor.config.layers
        backup = Backup(arch.projection(layer).weight for layer in layers)
        solves = []
        try:
            for done, layer in enumerate(layers):
                keys = self._keys[batch] if done == 0 else self.editor.keys(self._edits[batch], layer)
                missing = self._missing[batch] if done == 0 else self._missing_now(batch)
                metric, residuals = self.editor.preservation(layer), missing / (len(layers) - done)
                update = solve(metric, keys.to(metric.device), residuals.to(metric.device), ridge)
                projection = arch.projection(layer)
                update.apply_(projection.weight, projection.transposed)
                solves.append(_Solve(layer, update.diagnostics))
            yield solves
        finally:
            backup.restore()

    def _missing_now(self, batch: slice) -> Tensor:
        """v* less what the model computes in its place, [n, d_model]."""
        return self._targets[batch] - last_token_states(self.editor.arch, self._bare_rows[batch], self._site)


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None
