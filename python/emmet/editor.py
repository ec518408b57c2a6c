"""`Editor`: edits a model in place, and takes edits back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ._core import Preservation, Update, solve
from .architectures import Architecture, Projection, discover
from .config import EditConfig, ResolvedConfig
from .delta import Delta, LayerDelta, LayerReport
from .edits import Edit, check_consistent
from .errors import ConfigError, EditError, EmmetError, NonFiniteError
from .forward import last_token_states
from .keys import in_contexts, subject_keys
from .prefixes import sample_prefixes
from .progress import Progress, silent, within
from .statistics import Statistics, collect_statistics, statistics_folder
from .suffixes import Injection
from .tokens import Prompt
from .value_cache import cached_values
from .values import Values, optimise_values
from .weights import Backup


class EditHandle:
    """One call of `Editor.edit`: what it changed, and how to take it back."""

    def __init__(self, editor: Editor, delta: Delta, values: Values, backup: Backup) -> None:
        self._editor = editor
        self._backup = backup
        self.delta = delta
        self.values = values

    @property
    def diagnostics(self) -> tuple[LayerReport, ...]:
        """How each solve went, in order: one a layer, and for ROME one a layer and edit."""
        return self.delta.reports

    def undo(self) -> None:
        """Give every edited weight the very bits that it had before.

        Edits are undone in reverse order. Raises EmmetError if this one was undone already, or a later one was not.
        """
        self._editor._undo(self)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the edit as a delta folder (see `Delta.save`)."""
        self.delta.save(directory)


class Editor:
    """Holds a model, its tokenizer and the preservation metrics of the layers that it edits.

    model: a decoder-only model of `transformers`; its weights are changed in place by `edit`.
    statistics: second moments of the keys, as `collect_statistics` returns or a folder that it wrote; None collects
        them on `corpus`, once, and keeps them in the cache folder.
    corpus: as in `collect_statistics`; "self" is text that the model samples.
    value_cache: a folder to keep values in, and to take them from (see `value_cache`); None computes them each time.

    Raises ModelError, ConfigError or StatisticsError if these do not fit together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        config: EditConfig | None = None,
        statistics: Statistics | str | PathLike[str] | None = None,
        corpus: str | Path = "self",
        value_cache: str | PathLike[str] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.arch: Architecture = discover(model)
        self.tokenizer = tokenizer
        self.config: ResolvedConfig = (config or EditConfig()).resolve(model.config)
        self._value_cache = None if value_cache is None else Path(value_cache)
        self._progress = progress
        self._injection = _injection(self.arch, self.config.layers)
        self._statistics = self._checked_statistics(statistics, corpus)
        self._metrics: dict[int, Preservation] = {}
        self._prefixes: tuple[str, ...] | None = None
        self._applied: list[EditHandle] = []

    def edit(self, edits: Sequence[Edit]) -> EditHandle:
        """Make the model answer each edit's prompt with its target.

        All methods solve for all edits at once, but ROME for one after the other. On any exception, an interrupt
        included, every weight is left as it was. Raises EditError for edits that contradict each other or do not fit
        the model, DependentKeysError where an equality constraint cannot be met.
        """
        prompts = self._checked_prompts(edits)
        projections = {layer: self.arch.projection(layer) for layer in self.config.layers}
        backup = Backup(projection.weight for projection in projections.values())
        size = 1 if self.config.method == "rome" else len(edits)
        values: list[Values] = []
        solved: list[tuple[LayerReport, Update]] = []
        try:
            for batch in (range(first, first + size) for first in range(0, len(edits), size)):
                of_batch = [prompts[i] for i in batch]
                progress = within(self._progress, batch.start * self.config.steps, len(edits) * self.config.steps)
                values.append(self._values([edits[i] for i in batch], of_batch, progress))
                solved += self._solve_and_apply(batch, of_batch, values[-1].targets)
            # The weights become base + sum, rounded once: what the delta gives when it is applied elsewhere.
            backup.restore()
            delta = self._delta(edits, projections, solved)
            for layer, projection in projections.items():
                delta.layers[layer].update.apply_(projection.weight, projection.transposed)
            handle = EditHandle(self, delta, Values.joined(values), backup)
            self._applied.append(handle)
        except BaseException:
            backup.restore()
            raise
        return handle

    def keys(self, edits: Sequence[Edit], layer: int) -> Tensor:
        """The keys of edits at a layer in the model as it is now: [n, d_in] float64."""
        return subject_keys(self.arch, self._checked_prompts(edits), layer)

    def values(self, edits: Sequence[Edit]) -> Values:
        """The value vectors of edits at the last edited layer, in the model as it is now."""
        return self._values(edits, self._checked_prompts(edits), self._progress)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The context prefixes: those of the settings, else texts that the model writes, the same for each edit."""
        if self._prefixes is None:
            config = self.config
            self._prefixes = (
                tuple(config.prefixes)
                if config.prefixes is not None
                else sample_prefixes(
                    self.arch.model,
                    self.tokenizer,
                    count=config.prefix_count,
                    length=config.prefix_length,
                    seed=config.seed,
                    progress=self._progress,
                )
            )
        return self._prefixes

    def preservation(self, layer: int) -> Preservation:
        """The metric of an edited layer, on the device of its weight. Factorised at first use."""
        if layer not in self._metrics:
            device = self.arch.projection(layer).weight.device
            self._metrics[layer] = _metric(self._statistics[layer].second_moment.to(device), self.config)
        return self._metrics[layer]

    def _checked_statistics(
        self, statistics: Statistics | str | PathLike[str] | None, corpus: str | Path
    ) -> Statistics:
        layers = self.config.layers
        if statistics is None:
            model, tokenizer = self.arch.model, self.tokenizer
            folder = statistics_folder(model, tokenizer, corpus, layers=layers)
            return collect_statistics(model, tokenizer, corpus, layers=layers, out=folder, progress=self._progress)
        if not isinstance(statistics, Statistics):
            statistics = Statistics.load(statistics, layers)
        statistics.check(self.arch, *layers)
        return statistics

    def _checked_prompts(self, edits: Sequence[Edit]) -> list[list[Prompt]]:
        if not edits:
            message = "expected one edit or more, got none: give a list of emmet.Edit"
            raise EditError(message)
        check_consistent(edits)
        prompts = [in_contexts(self.tokenizer, edit, self.prefixes) for edit in edits]
        longest = self.arch.max_positions
        for edit, contexts in zip(edits, prompts, strict=True):
            tokens = max(len(prompt.ids) for prompt in contexts)
            if longest is not None and tokens > longest:
                message = f"expected at most {longest} tokens, the context of the model, got {tokens}"
                message += f" for the edit of {edit.subject[:40]!r}; shorten its prompt or the prefixes"
                raise EditError(message)
        return prompts

    def _values(self, edits: Sequence[Edit], prompts: Sequence[Sequence[Prompt]], progress: Progress) -> Values:
        arguments = (self.arch, self.tokenizer, edits, prompts, self.config, self._injection, progress)
        if self._value_cache is None:
            return optimise_values(*arguments)
        return cached_values(self._value_cache, *arguments)

    def _solve_and_apply(
        self, batch: range, prompts: Sequence[Sequence[Prompt]], targets: Tensor
    ) -> list[tuple[LayerReport, Update]]:
        """Spread a batch over the layers, lowest first (MEMIT, arXiv 2210.07229, algorithm 1)."""
        layers = self.config.layers
        bare = [contexts[0].ids[: contexts[0].subject + 1] for contexts in prompts]
        solved = []
        for done, layer in enumerate(layers):
            current = last_token_states(self.arch, bare, self._injection.site(self.arch))
            residuals = (targets.double() - current.double()) / (len(layers) - done)
            keys = subject_keys(self.arch, prompts, layer)
            update = solve(self.preservation(layer), keys, residuals, self.config.ridge)
            projection = self.arch.projection(layer)
            update.apply_(projection.weight, projection.transposed)
            solved.append((LayerReport(layer, batch, update.diagnostics), update))
        return solved

    def _delta(
        self,
        edits: Sequence[Edit],
        projections: Mapping[int, Projection],
        solved: Sequence[tuple[LayerReport, Update]],
    ) -> Delta:
        return Delta(
            edits=tuple(edits),
            config=self.config,
            prefixes=self.prefixes,
            base=self.arch.model.name_or_path or None,
            layers={
                layer: LayerDelta.of(projection, [update for report, update in solved if report.layer == layer])
                for layer, projection in projections.items()
            },
            reports=tuple(report for report, _ in solved),
        )

    def _undo(self, handle: EditHandle) -> None:
        if handle not in self._applied:
            message = "expected an edit that is applied, got one that was undone already"
            raise EmmetError(message)
        if self._applied[-1] is not handle:
            message = "expected the latest edit, got an earlier one: undo the later edits first"
            raise EmmetError(message)
        handle._backup.restore()
        self._applied.pop()


def _metric(second_moment: Tensor, config: ResolvedConfig) -> Preservation:
    """What the method preserves: memories in proportion to C, or all of them but those in its null space."""
    if config.method != "alphaedit":
        return Preservation.from_second_moment(second_moment)
    threshold = config.null_space_threshold
    if threshold == "auto":
        threshold = float(second_moment.diagonal().mean())
    return Preservation.null_space(second_moment, threshold, config.null_space_alpha)


def _injection(arch: Architecture, layers: Sequence[int]) -> Injection:
    """Where values are read, after checks that the layers can be edited as asked."""
    for layer in layers:
        projection = arch.projection(layer)
        if not bool(projection.weight.isfinite().all()):
            message = f"expected finite weights, got NaN or Inf in {projection.name}; load the model anew"
            raise NonFiniteError(message)
    injection = Injection.find(arch, layers[-1])
    if injection.at_projection and len(layers) > 1:
        message = f"expected one layer, got {len(layers)}: this model transforms what its MLPs give before it adds it"
        message += ", so that a residual cannot be spread over layers; choose one layer"
        raise ConfigError(message)
    return injection
