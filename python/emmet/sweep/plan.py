"""What a sweep runs: every combination of methods, layers, ridges and batch sizes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transformers import PretrainedConfig

from ..config import EditConfig, Method, ResolvedConfig
from ..edits import Record
from ..errors import ConfigError

Ridge = float | Literal["auto"]

# These solve in the metric of C, and differ in the ridge alone.
ONE_METRIC = ("rome", "memit", "emmet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The combinations to run, each with every other. Raises ConfigError.

    methods: names, each with a ridge of its own if one follows it: "emmet", "memit:15000".
    batch_sizes: how many edits are made at once.
    layers: sets of layers; None takes those that `config` has or the model's preset.
    ridges: μ of `emmet.solve` for each method without one of its own, but for ROME, whose is 0; None takes that of
        `config` or the preset.
    scored: each run makes as many batches as hold that many records, and scores these; None takes all whole batches.
        So all batch sizes that divide it are judged by the same records.
    drift: a text, named as the corpus of `collect_statistics`, on `drift_tokens` tokens of which the predictions with
        and without edits are compared, for a few batches of each run.
    sequential: the batches of a run are made one after the other on top of those before, and all scored after the last.
        Otherwise each is made in the unedited model, scored, and taken back.
    absorb: for sequential batches, the weights to try of earlier edits among the memories that later ones preserve;
        None takes that of `config`. Without `sequential` it is 0, as published, also within a batch of ROME.
    config: all other settings.
    """

    methods: Sequence[str] = ("emmet", "memit")
    batch_sizes: Sequence[int] = (1, 16, 64)
    layers: Sequence[Sequence[int]] | None = None
    ridges: Sequence[Ridge] | None = None
    scored: int | None = None
    drift: str | None = None
    drift_tokens: int = 2000
    sequential: bool = False
    absorb: Sequence[float] | None = None
    config: EditConfig = field(default_factory=EditConfig)

    def __post_init__(self) -> None:
        for name in ("methods", "batch_sizes", "layers", "ridges", "absorb"):
            _check_distinct(name, getattr(self, name))
        for size in self.batch_sizes:
            _check_count("a batch size", size)
        _check_count("drift_tokens", self.drift_tokens)
        if self.scored is not None:
            _check_count("scored", self.scored)
        if self.absorb is not None and not self.sequential:
            message = f"absorb is for sequential batches, got {self.absorb!r} without: others know no earlier edits"
            raise ConfigError(message)
        self._configs()  # each of which checks itself

    def runs(self, model_config: PretrainedConfig) -> list[Run]:
        """All runs on one model: by layers, method and ridge as they are given, then by batch size.

        Raises ConfigError if the model lacks a layer, or two runs are the same.
        """
        configs = [config.resolve(model_config) for config in self._configs()]
        sizes = sorted(self.batch_sizes)
        runs = [Run(config, size, self.sequential) for config, size in itertools.product(configs, sizes)]
        _check_distinct("combinations", [run.name for run in runs])
        return runs

    def _configs(self) -> list[EditConfig]:
        layer_sets = [self.config.layers] if self.layers is None else self.layers
        return [
            replace(self.config, method=method, layers=layers, ridge=ridge, absorb=absorb)
            for layers in layer_sets
            for method, ridge in self._methods()
            for absorb in self.absorb or [self.config.absorb if self.sequential else 0.0]
        ]

    def _methods(self) -> Iterator[tuple[Any, Ridge | None]]:
        for text in self.methods:
            method, colon, ridge = text.partition(":")
            if colon:
                yield method, _parsed_ridge(ridge, text)
            elif method == "rome":
                yield method, 0.0
            elif self.ridges is None:
                yield method, self.config.ridge
            else:
                yield from ((method, ridge) for ridge in self.ridges)


@dataclass(frozen=True, slots=True)
class Run:
    """One combination: how edits are made, and how many at once."""

    config: ResolvedConfig
    batch_size: int
    sequential: bool

    @property
    def name(self) -> str:
        """Which run it is, as a file name."""
        config = self.config
        name = f"{config.method}-layers-{layers_text(config.layers)}-ridge-{ridge_text(config.ridge)}"
        name += f"-batch-{self.batch_size}"
        return f"{name}-sequential-absorb-{ridge_text(config.absorb)}" if self.sequential else name

    @property
    def shares_values(self) -> bool:
        """Whether each batch is edited at once in the unedited model, so that other runs have the same values."""
        return not self.sequential and (self.config.method != "rome" or self.batch_size == 1)

    @property
    def shared_config(self) -> ResolvedConfig:
        """The settings without those that values, keys and metrics do not depend on: runs that share these have one."""
        method: Method = "emmet" if self.config.method in ONE_METRIC else self.config.method
        return replace(self.config, method=method, ridge=0.0, absorb=0.0)

    def batches(self, records: int, scored: int | None) -> list[Batch]:
        """What to make of so many records: as many whole batches as are needed to score `scored`, or as there are.

        A sequence of edits counts as one batch, as it is scored once.
        """
        whole = records // self.batch_size * self.batch_size
        wanted = whole if scored is None else min(scored, whole)
        if self.sequential:
            return [Batch(0, math.ceil(wanted / self.batch_size) * self.batch_size, wanted)]
        firsts = range(0, wanted, self.batch_size)
        return [Batch(first, first + self.batch_size, min(self.batch_size, wanted - first)) for first in firsts]


@dataclass(frozen=True, slots=True)
class Batch:
    """The records from `first` up to `end`, of which the first `scored` are scored."""

    first: int
    end: int
    scored: int


def layers_text(layers: Sequence[int]) -> str:
    """Layers as `parse_layers` reads them, in the shortest form: "4-8,10"."""
    parts = []
    for _, group in itertools.groupby(enumerate(layers), key=lambda item: item[1] - item[0]):
        run = [layer for _, layer in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def ridge_text(ridge: Ridge) -> str:
    """A ridge as it is typed: short, and exact."""
    if isinstance(ridge, str):
        return ridge
    short = f"{ridge:g}"
    return short if float(short) == ridge else repr(ridge)


def without_repetitions(records: Sequence[Record]) -> list[Record]:
    """Of the records with the same prompt and subject the first: two in one batch would contradict each other."""
    distinct: dict[tuple[str, str], Record] = {}
    for record in records:
        distinct.setdefault((record.edit.prompt, record.edit.subject), record)
    return list(distinct.values())


def check_batch_sizes(batch_sizes: Sequence[int], records: int) -> None:
    """Raise ConfigError if there are too few records for a batch."""
    largest = max(batch_sizes)
    if largest > records:
        message = f"a batch of {largest:,} needs as many records of different prompts or subjects, got {records:,}: "
        message += "choose smaller batches or more records"
        raise ConfigError(message)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        message = f"{name} must be a whole number of at least 1, got {value!r}"
        raise ConfigError(message)


def _check_distinct(name: str, values: Sequence[Any] | None) -> None:
    if values is None:
        return
    if isinstance(values, str) or not values:
        message = f"{name} must be a sequence of at least one, got {values!r}"
        raise ConfigError(message)
    value, count = Counter(map(_hashable, values)).most_common(1)[0]
    if count > 1:
        message = f"{name} must differ, got {value} more than once: keep one"
        raise ConfigError(message)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _parsed_ridge(text: str, method: str) -> Ridge:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError as error:
        message = f'expected a method as in "memit" or "memit:15000", got {method!r}'
        raise ConfigError(message) from error
