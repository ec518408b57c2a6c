"""The second moment C = E[k kᵀ] of each layer's keys over ordinary text: the memories that an edit is to preserve.

One pass over the text serves all layers and ends at the deepest. A run that was killed goes on from its checkpoint.
Every file says what it was computed from, and is used for nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import __version__
from ._core import Covariance
from .architectures import Architecture, discover, require_weights
from .corpora import Corpus, open_corpus
from .distributed import ALONE, World
from .errors import ConfigError, EmmetWarning, FormatError, NonFiniteError, StatisticsError
from .fingerprint import layer_fingerprints, tokenizer_fingerprint
from .hooks import frozen, on_input, stop_after
from .integrity import read_with_checksum, write_with_checksum
from .output import check_folder
from .progress import Progress, silent
from .storage import cache_folder, first_line, parse_json

# The "format" in the metadata of the files.
_FORMAT = "emmet statistics 1"
_CHECKPOINT_FORMAT = "emmet statistics checkpoint 1"

# Gupta et al. 2025, arXiv 2506.04226: so many tokens for each input dimension give the whole score.
_TOKENS_PER_DIMENSION = 10
# One costs ten points of S, two cost one (docs/performance.md).
_TOO_FEW_PER_DIMENSION = 2

_SEQUENCE_LENGTH = 512
_BATCH_TOKENS = 4096
_CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Source:
    """The text that statistics were collected on; together with the model it determines them.

    `tokens` are what was asked for: a small corpus gives fewer.
    """

    corpus: str = field(compare=False)  # the name it was given by; what counts is the hash
    corpus_hash: str
    tokenizer: str
    tokens: int
    sequence_length: int
    seed: int | None


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """The second moment [d_in, d_in] (float64, on the CPU) of one layer's keys over `count` tokens.

    `fingerprint` and `dtype` are the model's.
    """

    layer: int
    second_moment: Tensor
    count: int
    fingerprint: str
    dtype: str
    sources: tuple[Source, ...]

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """The statistics over the texts of both. Raises StatisticsError if layer or model differ."""
        if (self.layer, self.fingerprint) != (other.layer, other.fingerprint):
            message = f"cannot merge statistics of layer {self.layer} with those of another layer or model"
            raise StatisticsError(message)
        count = self.count + other.count
        total = self.count * self.second_moment + other.count * other.second_moment
        return replace(self, second_moment=total / count, count=count, sources=self.sources + other.sources)

    def save(self, folder: Path) -> None:
        """Write the layer's file in `folder`."""
        metadata = {
            "format": _FORMAT,
            "emmet_version": __version__,
            "layer": str(self.layer),
            "count": str(self.count),
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "sources": json.dumps([asdict(source) for source in self.sources]),
        }
        write_with_checksum(layer_path(folder, self.layer), {"second_moment": self.second_moment}, metadata)

    @staticmethod
    def load(path: Path) -> LayerStatistics:
        """Read a file that `save` wrote. Raises FormatError for any other, and where a bit of it has changed."""
        tensors, metadata = read_with_checksum(path, _FORMAT)
        with _well_formed(path):
            return LayerStatistics(
                layer=int(metadata["layer"]),
                second_moment=_square(tensors["second_moment"]),
                count=int(metadata["count"]),
                fingerprint=metadata["fingerprint"],
                dtype=metadata["dtype"],
                sources=tuple(Source(**source) for source in parse_json(metadata["sources"])),
            )


class Statistics(Mapping[int, LayerStatistics]):
    """The statistics of several layers of one model, by layer."""

    def __init__(self, layers: Iterable[LayerStatistics]) -> None:
        self._layers = {statistics.layer: statistics for statistics in layers}

    def __getitem__(self, layer: int) -> LayerStatistics:
        return self._layers[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._layers))

    def __len__(self) -> int:
        return len(self._layers)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write one file a layer."""
        for statistics in self.values():
            statistics.save(Path(folder))

    @staticmethod
    def load(folder: str | os.PathLike[str], layers: Iterable[int] | None = None) -> Statistics:
        """Read the files of `layers`, or of all layers that `folder` has.

        Raises StatisticsError if one is missing or the folder cannot be read, FormatError if one is malformed.
        """
        found = _layers_in(Path(folder))
        wanted = sorted(found if layers is None else set(layers))
        if not found:
            message = f"{folder} has no statistics: collect them with `emmet stats MODEL --layers N --out {folder}`"
            raise StatisticsError(message)
        for layer in wanted:
            _require(layer, found, f"--out {folder}")
        return Statistics(LayerStatistics.load(layer_path(Path(folder), layer)) for layer in wanted)

    def merge(self, other: Statistics) -> Statistics:
        """The statistics over the texts of both, weighted by their tokens. Layers and model must be the same."""
        if list(self) != list(other):
            message = f"cannot merge statistics of layers {list(self)} with those of layers {list(other)}"
            raise StatisticsError(message)
        return Statistics(self[layer].merge(other[layer]) for layer in self)

    def check(self, arch: Architecture, *layers: int) -> None:
        """Raise StatisticsError unless there are statistics of each of `layers` that belong to this very model.

        Warns of those from so few tokens that edits made with them disturb much.
        """
        for layer in layers:
            _require(layer, self, "--out DIR")
            _check_width(self[layer], arch.projection(layer).d_in)
        for layer, fingerprint in layer_fingerprints(arch, layers).items():
            _check_model(self[layer], fingerprint, str(arch.projection(layer).weight.dtype))
        _warn_of_few_tokens(self[layer] for layer in layers)


def _require(layer: int, found: Iterable[int], out: str) -> None:
    if layer not in found:
        have = ", ".join(map(str, sorted(found)))
        message = (
            f"there are no statistics of layer {layer}, only of {have or 'none'}: "
            f"collect them with `emmet stats MODEL --layers {layer} {out}`"
        )
        raise StatisticsError(message)


def _check_width(statistics: LayerStatistics, d_in: int) -> None:
    width = len(statistics.second_moment)
    if width != d_in:
        message = (
            f"the statistics of layer {statistics.layer} are for keys of width {width}, but this model's have {d_in}: "
            f"they are of another model, collect them for this one with `emmet stats`"
        )
        raise StatisticsError(message)


def _warn_of_few_tokens(statistics: Iterable[LayerStatistics]) -> None:
    for one in statistics:
        width = len(one.second_moment)
        if one.count < _TOO_FEW_PER_DIMENSION * width:
            warnings.warn(
                f"the statistics of layer {one.layer} are of {one.count:,} tokens, few for keys of width {width:,}: "
                f"edits disturb more than they must, collect them from {_TOKENS_PER_DIMENSION * width:,} or more",
                EmmetWarning,
                stacklevel=4,
            )


def _check_model(statistics: LayerStatistics, fingerprint: str, dtype: str) -> None:
    if statistics.fingerprint != fingerprint:
        message = (
            f"the statistics of layer {statistics.layer} are of another model (theirs is {statistics.dtype}, "
            f"this one {dtype}), or of this one with other weights below: collect them for it with `emmet stats`"
        )
        raise StatisticsError(message)


def layer_path(folder: Path, layer: int) -> Path:
    """The file of one layer's statistics in a folder of statistics."""
    return folder / f"layer.{layer}.safetensors"


def _layers_in(folder: Path) -> list[int]:
    try:
        numbers = [path.name.split(".")[1] for path in folder.iterdir() if path.match("layer.*.safetensors")]
    except FileNotFoundError:
        return []
    except OSError as error:
        message = f"cannot read {folder}: {error.strerror}; expected a folder of statistics"
        raise StatisticsError(message) from error
    return sorted(int(number) for number in numbers if number.isdecimal())


def collect_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: str | Path = "self",
    *,
    layers: Iterable[int],
    tokens: int | None = None,
    sequence_length: int = _SEQUENCE_LENGTH,
    batch_tokens: int = _BATCH_TOKENS,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    progress: Progress = silent,
    world: World = ALONE,
) -> Statistics:
    """Collect C = E[k kᵀ] for the keys of `layers` (Meng et al. 2022, arXiv 2202.05262, section 3.1).

    `corpus` is "self" (text that the model samples), "hf:NAME[:CONFIG]" or the path of a text file, of which `tokens`
    are read (10 · d_in if None) in sequences of `sequence_length`, at most as long as the model's context. Batches
    hold `batch_tokens`. `seed` is for sampled text.

    With `out`, each layer is written to a file there. Files that are there already and come from the same model and
    text are used, others are refused; an interrupted run goes on from a checkpoint, made every `checkpoint_seconds`.

    The processes of `world` read a share of the text each, and all return the sum. The first writes the files; each has
    a checkpoint of its own, for the same number of processes.

    Raises ConfigError for layers or numbers out of range, ModelError for a model that cannot be edited, StatisticsError
    for a corpus that cannot be read or is empty and for an `out` with other statistics of these layers, EmmetError for
    an `out` that cannot be written, and NonFiniteError if the model gives NaN or infinity. Warns if the text has too
    few tokens for what is to be learnt.
    """
    plan = _plan(model, tokenizer, corpus, layers, tokens, sequence_length, seed)
    return _collected(plan, None if out is None else Path(out), batch_tokens, checkpoint_seconds, progress, world)


def collect_into_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: str | Path = "self",
    *,
    layers: Iterable[int],
    progress: Progress = silent,
    world: World = ALONE,
) -> Statistics:
    """What `collect_statistics` gives for these arguments, kept in the cache folder, so that it is collected once."""
    plan = _plan(model, tokenizer, corpus, layers)
    return _collected(plan, plan.place_in_cache(), progress=progress, world=world)


def cached_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: str | Path = "self", *, layers: Iterable[int]
) -> Statistics | None:
    """What `collect_into_cache` has collected for these arguments; None if it has not, or not all."""
    plan = _plan(model, tokenizer, corpus, layers)
    finished = _finished(plan, plan.place_in_cache(), ALONE)
    return Statistics(finished.values()) if finished.keys() == plan.fingerprints.keys() else None


@dataclass(frozen=True)
class _Plan:
    """What is to be collected: on which text, for which layers (with the fingerprint of each)."""

    arch: Architecture
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    source: Source
    fingerprints: dict[int, str]

    def without(self, layers: Iterable[int]) -> _Plan:
        left = {layer: mark for layer, mark in self.fingerprints.items() if layer not in set(layers)}
        return replace(self, fingerprints=left)

    def key(self) -> str:
        """A hash of all that determines the result."""
        source = asdict(self.source)
        del source["corpus"]
        text = json.dumps([source, sorted(self.fingerprints.items())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def place_in_cache(self) -> Path:
        """Where the cache keeps the result."""
        return cache_folder() / "statistics" / self.key()


def _plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: str | Path,
    layers: Iterable[int],
    tokens: int | None = None,
    sequence_length: int = _SEQUENCE_LENGTH,
    seed: int = 0,
) -> _Plan:
    arch = discover(model)
    require_weights(model)
    wanted = sorted(set(layers))
    widths = [arch.projection(layer).d_in for layer in wanted]
    if tokens is None:
        tokens = _TOKENS_PER_DIMENSION * max(widths, default=1)
    if not wanted or tokens < 1 or sequence_length < 2:
        message = (
            f"expected a layer or more, a token or more and sequences of 2 or more, "
            f"got layers {wanted}, tokens {tokens}, sequence_length {sequence_length}"
        )
        raise ConfigError(message)
    text = open_corpus(corpus, seed)
    source = Source(
        corpus=str(text),
        corpus_hash=text.digest(),
        tokenizer=tokenizer_fingerprint(tokenizer),
        tokens=tokens,
        sequence_length=min(sequence_length, arch.max_positions or sequence_length),
        seed=text.seed,
    )
    return _Plan(arch, tokenizer, text, source, layer_fingerprints(arch, wanted))


def _collected(
    plan: _Plan,
    folder: Path | None,
    batch_tokens: int = _BATCH_TOKENS,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    progress: Progress = silent,
    world: World = ALONE,
) -> Statistics:
    """The statistics of a plan, of which only those are collected that `folder` lacks."""
    finished = {} if folder is None else _finished(plan, folder, world)
    if finished.keys() != plan.fingerprints.keys():
        if folder is not None:
            check_folder(folder)
        checkpoint = None if folder is None else folder / _checkpoint_name(plan, world)
        run = _Run.resumed(plan.without(finished), world, checkpoint)
        finished |= _collect(run, checkpoint, batch_tokens, checkpoint_seconds, progress)
    _warn_of_few_tokens(finished.values())
    return Statistics(finished.values())


def _finished(plan: _Plan, folder: Path, world: World) -> dict[int, LayerStatistics]:
    """The layers of the plan that `folder` already has for every process.

    Raises StatisticsError if it has others of these layers: they may have taken hours.
    """
    finished = {}
    for layer, fingerprint in plan.fingerprints.items():
        path = layer_path(folder, layer)
        if os.access(path, os.F_OK):  # unlike Path.exists, False in a folder that may not be searched
            statistics = LayerStatistics.load(path)
            if statistics.fingerprint != fingerprint or statistics.sources != (plan.source,):
                message = f"expected {path} to be of this model, {plan.source.tokens:,} tokens and this text, got "
                message += f"{statistics.count:,} tokens of another: remove it, or name another folder"
                raise StatisticsError(message)
            finished[layer] = statistics
    counts = world.sum(torch.tensor([layer in finished for layer in plan.fingerprints], dtype=torch.long))
    known = {layer for layer, count in zip(plan.fingerprints, counts.tolist(), strict=True) if count == world.size}
    return {layer: statistics for layer, statistics in finished.items() if layer in known}


def _collect(
    run: _Run, checkpoint: Path | None, batch_tokens: int, checkpoint_seconds: float, progress: Progress
) -> dict[int, LayerStatistics]:
    """Bring a run to its end, and put its statistics beside its checkpoint."""
    written = time.monotonic()
    for batch in _batches(run.sequences(progress), batch_tokens):
        run.add(batch)
        progress("statistics", *run.progress())
        if checkpoint is not None and time.monotonic() - written >= checkpoint_seconds:
            run.save(checkpoint)
            written = time.monotonic()
    run.join()
    statistics = run.statistics()
    if checkpoint is not None:
        if run.world.rank == 0:
            Statistics(statistics.values()).save(checkpoint.parent)
        run.world.meet()  # no checkpoint goes before the files are there
        checkpoint.unlink(missing_ok=True)
    return statistics


def _checkpoint_name(plan: _Plan, world: World) -> str:
    """Named after the text and all layers asked for, so that collections of several leave each other's alone."""
    rank = "" if world.size == 1 else f".{world.rank}-of-{world.size}"
    return f"partial.{plan.key()}{rank}.safetensors"


def _batches(sequences: Iterator[Tensor], batch_tokens: int) -> Iterator[Tensor]:
    """Stacks [rows, length] of consecutive sequences of one length, so that nothing is padded."""
    for length, group in itertools.groupby(sequences, key=len):
        while rows := list(itertools.islice(group, max(1, batch_tokens // length))):
            yield torch.stack(rows)


class _Run:
    """The running sums of one collection, over this process's share of the text."""

    def __init__(self, plan: _Plan, world: World) -> None:
        self._plan = plan
        self.world = world
        self._done = 0  # sequences of the share
        self._moments: dict[int, Covariance] = {}
        for layer in plan.fingerprints:
            projection = plan.arch.projection(layer)
            self._moments[layer] = Covariance(projection.d_in, projection.weight.device)

    def sequences(self, progress: Progress) -> Iterator[Tensor]:
        """The sequences that are still to be added."""
        plan = self._plan
        return plan.corpus.token_sequences(
            plan.arch.model,
            plan.tokenizer,
            tokens=plan.source.tokens,
            length=plan.source.sequence_length,
            wanted=self._is_left,
            progress=progress,
        )

    def _is_left(self, index: int) -> bool:
        """Whether the corpus's sequence of this index is in the share, and still to be added."""
        block, place = divmod(index, self._plan.corpus.block)
        turn, rank = divmod(block, self.world.size)
        return rank == self.world.rank and turn * self._plan.corpus.block + place >= self._done

    def add(self, batch: Tensor) -> None:
        """Add the keys of sequences [rows, length]."""
        arch = self._plan.arch
        deepest = arch.projection(max(self._moments)).module
        with frozen(arch.model), torch.inference_mode(), ExitStack() as watching:
            for layer, moment in self._moments.items():
                watching.enter_context(on_input(arch.projection(layer).module, _adder(layer, moment)))
            with stop_after(deepest):
                arch.base(input_ids=batch.to(arch.model.device), use_cache=False)
        self._done += len(batch)

    def join(self) -> None:
        """Add up the sums of all processes."""
        if self.world.size > 1:
            for layer, moment in self._moments.items():
                count = self.world.sum(torch.tensor(moment.count()))
                self._moments[layer] = Covariance.from_sum(self.world.sum(moment.sum()), int(count))

    def progress(self) -> tuple[int, int]:
        """Tokens added, and to be added, by all processes if they are equally fast."""
        tokens = self._plan.source.tokens
        return min(self.count() * self.world.size, tokens), tokens

    def count(self) -> int:
        """Tokens added."""
        return next(iter(self._moments.values())).count()

    def statistics(self) -> dict[int, LayerStatistics]:
        """The result. Raises StatisticsError if there was no text."""
        plan = self._plan
        if self.count() == 0:
            message = f"{plan.corpus} holds no text: give a file of some thousand words or more, hf:NAME or self"
            raise StatisticsError(message)
        return {
            layer: LayerStatistics(
                layer=layer,
                second_moment=moment.second_moment().cpu(),
                count=moment.count(),
                fingerprint=plan.fingerprints[layer],
                dtype=str(plan.arch.projection(layer).weight.dtype),
                sources=(plan.source,),
            )
            for layer, moment in self._moments.items()
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        tensors = {str(layer): moment.sum() for layer, moment in self._moments.items()}
        metadata = {
            "format": _CHECKPOINT_FORMAT,
            "sequences": str(self._done),
            "count": str(self.count()),
        }
        write_with_checksum(path, tensors, metadata)

    @staticmethod
    def resumed(plan: _Plan, world: World, checkpoint: Path | None) -> _Run:
        """The run that goes on from a checkpoint of these layers or more; one at the start if there is none."""
        run = _Run(plan, world)
        if checkpoint is None or not checkpoint.exists():
            return run
        found = _read_checkpoint(checkpoint, {layer: moment.device for layer, moment in run._moments.items()})
        if found is not None:
            run._done, run._moments = found
        return run


def _read_checkpoint(path: Path, devices: Mapping[int, torch.device]) -> tuple[int, dict[int, Covariance]] | None:
    """How many sequences a checkpoint has, and the moments of these layers; None if it lacks one."""
    tensors, metadata = read_with_checksum(path, _CHECKPOINT_FORMAT)
    if any(str(layer) not in tensors for layer in devices):
        return None
    with _well_formed(path):
        done, count = int(metadata["sequences"]), int(metadata["count"])
        sums = {layer: _square(tensors[str(layer)]).to(device) for layer, device in devices.items()}
        return done, {layer: Covariance.from_sum(sums[layer], count) for layer in devices}


def _adder(layer: int, moment: Covariance) -> Callable[[Tensor], None]:
    def add(keys: Tensor) -> None:
        try:
            moment.add(keys)
        except NonFiniteError as error:
            message = f"the keys of layer {layer} are not finite: {error}; the weights or the dtype must be at fault"
            raise NonFiniteError(message) from error

    return add


@contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path} lacks or garbles {first_line(error)}: remove it and collect again"
        raise FormatError(message) from error


def _square(tensor: Tensor) -> Tensor:
    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1] or tensor.dtype != torch.float64:
        message = f"a square matrix in float64 (it is {tensor.dtype} {list(tensor.shape)})"
        raise ValueError(message)
    return tensor
