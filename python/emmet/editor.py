"""`Editor`: edits a model in place, and takes edits back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ._core import Preservation, solve
from .architectures import Architecture, discover, require_weights
from .config import OF_THE_PREFIXES, OF_THE_SOLVE, EditConfig, ResolvedConfig
from .delta import Delta, LayerDelta, LayerReport, summed
from .distributed import ALONE, World
from .edits import Edit, require_encodable
from .errors import ConfigError, EmmetError, ModelError, NonFiniteError, StatisticsError
from .fingerprint import Identity, rest_fingerprint, tensor_digest
from .forward import last_token_states
from .heap import trim_heap
from .keys import checked_prompts, in_contexts, prompt_keys, subject_keys
from .ledger import Base, Batch, Entry, Given, Ledger
from .memories import Memories
from .prefixes import sample_prefixes
from .progress import Progress, silent, within
from .statistics import Statistics, collect_into_cache
from .suffixes import Injection
from .tokens import Prompt
from .trial import tried
from .value_cache import cached_values
from .values import Values, optimise_values
from .weights import Backup

Prompts: TypeAlias = Sequence[Sequence[Prompt]]  # for each edit, what `in_contexts` gave


@dataclass(frozen=True, eq=False)
class _State:
    """What a change leaves: the edits in effect, and digests of the edited weights, by layer."""

    ledger: Ledger
    digests: Mapping[int, str]


class Change:
    """A change of an editor's model, and how to take it back."""

    def __init__(self, editor: Editor, after: _State) -> None:
        self._editor = editor
        self._after = after

    def undo(self) -> None:
        """Give every edited weight the very bits that it had before, and the editor's ledger its former entries.

        Changes are undone in reverse order; `Editor.remove` takes back edits in any. Raises EmmetError if this one was
        undone already, a later one was not, or something else has changed the weights meanwhile.
        """
        self._editor._undo(self)


class EditHandle(Change):
    """One call of `Editor.edit`.

    delta: what the edits add to the model as it was before; where they replace older edits, as it was without these.
    values: the value vectors that were found.
    entries: the edits in the editor's ledger.
    replaced: the older edits whose prompt and subject one of these has, too. They are no longer in effect.
    """

    def __init__(
        self,
        editor: Editor,
        after: _State,
        *,
        delta: Delta,
        values: Values,
        entries: tuple[Entry, ...],
        replaced: tuple[Entry, ...],
    ) -> None:
        super().__init__(editor, after)
        self.delta = delta
        self.values = values
        self.entries = entries
        self.replaced = replaced

    @property
    def diagnostics(self) -> tuple[LayerReport, ...]:
        """How each solve went, in order: one a layer, and for ROME one a layer and edit."""
        return self.delta.reports

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the edit as a delta folder (see `Delta.save`)."""
        self.delta.save(directory)


class Editor:
    """Holds a model, its tokenizer and the preservation metrics of the layers that it edits.

    model: a decoder-only model of `transformers`; its weights are changed in place by `edit`.
    tokenizer: the model's own.
    config: the settings of the edits; None takes the defaults of `EditConfig`.
    statistics: second moments of the keys, as `collect_statistics` returns or a folder that it wrote; None collects
        them on `corpus`, once, and keeps them in the cache folder.
    corpus: as in `collect_statistics`; "self" is text that the model samples.
    value_cache: a folder to keep values in, and to take them from (see `value_cache`); None computes them each time.
    progress: called as the work goes on (see `Progress`); by default nothing is.
    world: the processes that share the search for values and keys (see `distributed`). Each has the model, and makes
        the same calls: all come to the same edits.

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
        world: World = ALONE,
    ) -> None:
        self.arch: Architecture = discover(model)
        require_weights(model)
        self.tokenizer = tokenizer
        self.config: ResolvedConfig = (config or EditConfig()).resolve(model.config)
        self._value_cache = None if value_cache is None else Path(value_cache)
        self._progress = progress
        self._world = world
        self._injection = _injection(self.arch, self.config.layers)
        self._statistics = self._checked_statistics(statistics, corpus)
        self._memories = Memories(self.arch, self._statistics, self.config)
        self._prefixes: tuple[str, ...] | None = None
        self._base: Backup | None = None
        self._changes: list[Change] = []
        self._unedited = _State(Ledger(), {})

    def edit(self, edits: Sequence[Edit], *, author: str = "") -> EditHandle:
        """Make the model answer each edit's prompt with its target.

        All methods solve for all edits at once, but ROME for one after the other. Edits that are in effect already
        become memories to preserve (see `EditConfig.absorb`), but for those with the prompt and subject of a new edit,
        which it replaces. `author` is kept in the ledger.

        On any exception, an interrupt included, weights and ledger are left as they were. Raises EditError for edits
        that contradict each other or do not fit the model, DependentKeysError where an equality constraint cannot be
        met.
        """
        prompts = self._prompts(edits)
        require_encodable("author", author)
        size = 1 if self.config.method == "rome" else len(edits)
        values: list[Values] = []
        identity = self._identity()
        with self._changing() as ledger:
            replaced = ledger.replaced_by(edits)
            if replaced:
                ledger = self._without(ledger, {entry.id for entry in replaced})
            before, digests = ledger.batches, self._digests()
            entries = ledger.next_entries(edits, time=_now(), author=author, config=self.config)
            for rows in (slice(first, first + size) for first in range(0, len(edits), size)):
                progress = within(self._progress, rows.start * self.config.steps, len(edits) * self.config.steps)
                values.append(self._values(edits[rows], prompts[rows], progress, identity))
                batch = Batch(entries[rows], self.prefixes, values[-1].targets)
                ledger = self._solved(ledger, batch, self._measuring(batch, prompts[rows]))
                self._write(ledger.batches)
            handle = EditHandle(
                self,
                _State(ledger, self._digests()),
                delta=self._delta(ledger.batches[len(before) :], digests),
                values=Values.joined(values),
                entries=entries,
                replaced=replaced,
            )
            self._changes.append(handle)
        return handle

    def remove(self, ids: Collection[int]) -> Change:
        """Take back single edits, by their ids in the ledger, as if they had never been made.

        The batch that holds the first of them is solved again without them. Where one layer is edited, it is given the
        keys and residuals that were kept, so that this takes the time of one solve. The batches after it, and all of
        them where edits are spread over several layers, depend on what was removed: their keys and residuals are read
        anew, by a forward pass. Values are kept, not found again. So the weights become what the other edits alone
        give, to rounding, but for values of later batches, which were found beside what is removed; and they get back
        the bits of the unedited model when nothing is left.

        On any exception weights and ledger are left as they were. Raises EmmetError for ids that are not in the ledger.
        """
        with self._changing() as ledger:
            change = Change(self, _State(self._without(ledger, set(ids)), self._digests()))
            self._changes.append(change)
        return change

    def list(self) -> tuple[Entry, ...]:
        """The edits that are in effect, in the order in which they were made."""
        return self._state.ledger.entries

    def delta(self) -> Delta:
        """All edits that are in effect, as one delta of the unedited model."""
        state = self._state
        digests = self._unedited.digests if self._changes else self._digests()
        return self._delta(state.ledger.batches, digests)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the ledger as a folder, from which `load` brings its edits back into the unedited model."""
        self._state.ledger.save(directory, self._described_base())

    def load(self, directory: str | PathLike[str]) -> Change:
        """Make all edits of a ledger that `save` wrote, without finding their values again.

        The solves are given what they were given then. Later edits get the ledger's prefixes, if the settings ask for
        the same. Raises FormatError for a folder that is no ledger, EmmetError if
        this editor has edits already, and ModelError, StatisticsError or ConfigError if the ledger is for another
        model, other statistics or settings that solve otherwise; nothing is changed then.
        """
        kept, base = Ledger.load(directory)
        if self._changes:
            message = "expected an editor without edits, got one with some: undo them, or make a new Editor"
            raise EmmetError(message)
        self._check_base(base)
        for batch in kept.batches:
            _check_solves_alike(batch.config, self.config)
        with self._changing() as ledger:
            for batch in kept.batches:
                ledger = self._solved(ledger, batch, batch.given.__getitem__)
            self._write(ledger.batches)
            ledger = replace(ledger, last_id=kept.last_id)
            change = Change(self, _State(ledger, self._digests()))
            self._changes.append(change)
        if kept.batches and _ask_for_same_prefixes(kept.batches[-1].config, self.config):
            self._prefixes = kept.batches[-1].prefixes
        return change

    def keys(self, edits: Sequence[Edit], layer: int) -> Tensor:
        """The keys of edits at a layer in the model as it is now: [n, d_in] float64."""
        return subject_keys(self.arch, self._prompts(edits), layer, self._world)

    def values(self, edits: Sequence[Edit]) -> Values:
        """The value vectors of edits at the last edited layer, in the model as it is now.

        Their targets [n, d_model] and loss [n] are float32, and steps [n] int64. Raises EditError or ModelError for
        edits that contradict each other or do not fit the model, NonFiniteError where a loss is not finite, and
        EmmetError if the folder of the value cache cannot be written to.
        """
        return self._values(edits, self._prompts(edits), self._progress, self._identity())

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The context prefixes: those of the settings, else texts that the model writes, the same for each edit."""
        if self._prefixes is None:
            config = self.config
            self._prefixes = self._world.agreed(
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
        """The metric of an edited layer, on the device of its weight, with the edits in effect among its memories.

        Factorised at first use. Raises ConfigError for a layer that is not edited.
        """
        if layer not in self.config.layers:
            message = f"expected one of the layers that are edited, {self.config.layers}, got {layer!r}"
            raise ConfigError(message)
        return self._memories.after(layer, self._state.ledger.batches)

    @property
    def _state(self) -> _State:
        return self._changes[-1]._after if self._changes else self._unedited

    @contextmanager
    def _changing(self) -> Iterator[Ledger]:
        """Yield the ledger as it is; weights get their bits back if the body raises."""
        backup, count = Backup(self._weights()), len(self._changes)
        if not self._changes:
            self._unedited, self._base = _State(Ledger(), self._digests()), backup
        else:
            self._check_untouched()
        try:
            yield self._state.ledger
        except BaseException:
            del self._changes[count:]
            backup.restore()
            raise

    def _check_untouched(self) -> None:
        """Raise EmmetError if anything but this editor has changed the edited weights."""
        if self._digests() != self._state.digests:
            message = "expected the weights that the latest edit left, got others: something else has changed them; "
            message += "undo that first, or make a new Editor for the model as it is now"
            raise EmmetError(message)

    def _undo(self, change: Change) -> None:
        if change not in self._changes:
            message = "expected an edit that is applied, got one that was undone already"
            raise EmmetError(message)
        if self._changes[-1] is not change:
            message = "expected the latest edit, got an earlier one: undo the later edits first"
            raise EmmetError(message)
        self._check_untouched()
        before = self._changes[-2]._after if len(self._changes) > 1 else self._unedited
        edited, changes = Backup(self._weights()), self._changes.copy()
        try:
            self._write(before.ledger.batches)
            if before.ledger.batches and self._digests() != before.digests:
                message = "expected the bits that the weights had, got others: sums differ with the number of threads; "
                message += "set it to what it was, or take edits back with Editor.remove"
                raise EmmetError(message)
            self._changes.pop()
        except BaseException:
            self._changes[:] = changes
            edited.restore()
            raise

    def _checked_statistics(
        self, statistics: Statistics | str | PathLike[str] | None, corpus: str | Path
    ) -> Statistics:
        layers = self.config.layers
        if statistics is None:
            return collect_into_cache(
                self.arch.model, self.tokenizer, corpus, layers=layers, progress=self._progress, world=self._world
            )
        if not isinstance(statistics, Statistics):
            statistics = Statistics.load(statistics, layers)
        statistics.check(self.arch, *layers)
        return statistics

    def _prompts(self, edits: Sequence[Edit]) -> Prompts:
        return checked_prompts(self.arch, self.tokenizer, edits, self.prefixes)

    def _identity(self) -> Identity | None:
        """What tells cached values apart, for as long as only the edited weights change."""
        return None if self._value_cache is None else Identity(self.arch, self.tokenizer, self.config.layers)

    def _values(self, edits: Sequence[Edit], prompts: Prompts, progress: Progress, identity: Identity | None) -> Values:
        arguments = (self.arch, self.tokenizer, edits, prompts, self.config, self._injection, progress, self._world)
        if self._value_cache is None:
            return optimise_values(*arguments)
        return cached_values(self._value_cache, *arguments, identity=identity)

    def _measuring(self, batch: Batch, prompts: Prompts) -> Callable[[int], Given]:
        """For a layer, the keys of a batch and its share of the residuals, in the model as it is when asked."""
        bare = [contexts[0].ids[: contexts[0].subject + 1] for contexts in prompts]
        layers = self.config.layers

        def measure(layer: int) -> Given:
            missing = last_token_states(self.arch, bare, self._injection.site(self.arch), self._world)
            missing.neg_().add_(batch.values.to(missing.device)).div_(len(layers) - layers.index(layer))
            given = Given.without_others(subject_keys(self.arch, prompts, layer, self._world), missing)
            if self.config.absorb_prompts and self.config.absorb > 0:
                others, owners = prompt_keys(self.arch, prompts, layer, self._world)
                given = given._replace(others=others, owners=owners)
            return given

        return measure

    def _solved(self, ledger: Ledger, batch: Batch, give: Callable[[int], Given]) -> Ledger:
        """The ledger with a batch that is solved with what `give` gives for a layer; weights are for `_write`.

        It is spread over the layers, lowest first (MEMIT, arXiv 2210.07229, algorithm 1): what is given for one may be
        measured in a model that has the updates below.
        """
        given, updates = {}, {}
        for layer in self.config.layers:
            metric = self._memories.after(layer, ledger.batches)
            given[layer] = give(layer).to(metric.device)
            trim_heap()  # of value search and forward passes
            updates[layer] = solve(metric, given[layer].keys, given[layer].residuals, self.config.ridge)
            if layer != self.config.layers[-1]:
                projection = self.arch.projection(layer)
                updates[layer].apply_(projection.weight, projection.transposed)
        return ledger.with_batch(replace(batch, given=given, updates=updates))

    def _without(self, ledger: Ledger, ids: Set[int]) -> Ledger:
        """Take edits out of the ledger and the weights (see `remove`)."""
        first = ledger.first_with(ids)
        left = replace(ledger, batches=ledger.batches[:first])
        self._write(left.batches)
        for index, before in enumerate(ledger.batches[first:], start=first):
            batch = before.without(ids)
            if not batch.entries:
                continue
            give = batch.given.__getitem__
            if index > first or len(self.config.layers) > 1:
                prompts = [in_contexts(self.tokenizer, entry.edit, batch.prefixes) for entry in batch.entries]
                give = self._measuring(batch, prompts)
            left = self._solved(left, batch, give)
            self._write(left.batches)
        return left

    def _write(self, batches: Sequence[Batch]) -> None:
        """Give each edited weight what it has without edits, plus the sum of these batches' updates, rounded once.

        So it is what `delta` gives when it is applied elsewhere.
        """
        assert self._base is not None
        self._base.restore()
        if batches:
            for layer in self.config.layers:
                projection = self.arch.projection(layer)
                total = summed([batch.updates[layer] for batch in batches])
                total.apply_(projection.weight, projection.transposed)

    def _delta(self, batches: Sequence[Batch], digests: Mapping[int, str]) -> Delta:
        """What batches add to weights of these digests."""
        layers, reports, done = {}, [], 0
        for batch in batches:
            edits = range(done, done := done + len(batch.entries))
            reports += [LayerReport(layer, edits, update.diagnostics) for layer, update in batch.updates.items()]
        for layer in self.config.layers if batches else ():
            projection = self.arch.projection(layer)
            total = summed([batch.updates[layer] for batch in batches])
            layers[layer] = LayerDelta(projection.name, projection.transposed, digests[layer], total)
        return Delta(
            edits=tuple(entry.edit for batch in batches for entry in batch.entries),
            config=self.config,
            prefixes=batches[-1].prefixes if batches else (),
            base=self.arch.model.name_or_path or None,
            layers=layers,
            reports=tuple(reports),
        )

    def _weights(self) -> Iterator[nn.Parameter]:
        return (self.arch.projection(layer).weight for layer in self.config.layers)

    def _digests(self) -> dict[int, str]:
        return {
            layer: tensor_digest(weight).hex()
            for layer, weight in zip(self.config.layers, self._weights(), strict=True)
        }

    def _described_base(self) -> Base:
        return Base(
            name=self.arch.model.name_or_path or None,
            weights=self._unedited.digests if self._changes else self._digests(),
            rest=rest_fingerprint(self.arch, self.config.layers),
            moments={layer: tensor_digest(self._statistics[layer].second_moment).hex() for layer in self.config.layers},
        )

    def _check_base(self, expected: Base) -> None:
        """Raise ModelError or StatisticsError unless the unedited model and the statistics are those of a ledger."""
        found = self._described_base()
        if (found.weights, found.rest) != (expected.weights, expected.rest):
            message = f"expected the model that the ledger is for ({expected.name}), got another, or one with edits; "
            message += "load that model, without edits and in the same dtype, and edit the same layers"
            raise ModelError(message)
        if found.moments != expected.moments:
            message = "expected the statistics that the edits of the ledger were made with, got others; give those"
            raise StatisticsError(message)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _check_solves_alike(found: ResolvedConfig, expected: ResolvedConfig) -> None:
    """Raise ConfigError if settings differ that decide what a solve gives for the same keys and residuals."""
    for name in OF_THE_SOLVE:
        ours, theirs = getattr(expected, name), getattr(found, name)
        if ours != theirs:
            message = f"expected the settings of the ledger, got {name} {ours!r} instead of {theirs!r}; "
            message += "make the Editor with those"
            raise ConfigError(message)


def _ask_for_same_prefixes(one: ResolvedConfig, other: ResolvedConfig) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in OF_THE_PREFIXES)


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
    return tried(arch, injection)
