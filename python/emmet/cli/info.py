"""`emmet info`: show what `emmet edit` would edit in a model, and with which settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..config import ResolvedConfig
from .arguments import add_model, add_settings, add_statistics, command
from .inputs import edit_config, load_model
from .stats import statistics_rows
from .terminal import Row, Stopwatch, print_rows, progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..architectures import Architecture
    from ..statistics import Statistics


def add_info(commands: Any) -> None:
    parser = command(
        commands,
        _info,
        "info",
        "show what `emmet edit` would edit in a model, and with which settings",
        """\
examples:
  emmet info gpt2
  emmet info gpt2 --method memit --stats stats/""",
    )
    add_model(parser)
    add_settings(parser)
    add_statistics(parser)


def _info(options: argparse.Namespace) -> None:
    from .. import presets
    from ..architectures import discover

    config = edit_config(options)
    with progress_bars(options) as progress:
        model, tokenizer = load_model(options, Stopwatch(), progress)
    arch, settings = discover(model), config.resolve(model.config)
    preset = presets.find(model.config, settings.method)
    statistics = _found_statistics(options, arch, tokenizer, settings.layers)
    print_rows(
        *_model_rows(arch, options.model),
        ("method", _described(settings)),
        ("defaults", preset.source if preset else "by depth: nothing was published for this method and model"),
        *_layer_rows(arch, settings.layers),
        *(statistics_rows(statistics) if statistics else [("statistics", "none yet: `emmet edit` collects them")]),
    )


def _model_rows(arch: Architecture, name: str) -> Iterator[Row]:
    dtype = str(arch.model.dtype).removeprefix("torch.")
    context = "any context" if arch.max_positions is None else f"a context of {arch.max_positions} tokens"
    yield "model", f"{name}: {type(arch.model).__name__} in {dtype}"
    yield "size", f"{len(arch)} layers of width {arch.d_model}, {context}"


def _described(settings: ResolvedConfig) -> str:
    of_method = ("null_space_threshold", "null_space_alpha") if settings.method == "alphaedit" else ()
    names = ("ridge", *of_method, "optimizer", "learning_rate", "steps", "clamp", "weight_decay")
    return ", ".join([settings.method, *(f"{name} {getattr(settings, name)}" for name in names)])


def _layer_rows(arch: Architecture, layers: Sequence[int]) -> Iterator[Row]:
    for layer in layers:
        projection = arch.projection(layer)
        shape = " × ".join(map(str, projection.weight.shape))
        stored = "input × output" if projection.transposed else "output × input"
        yield f"layer {layer}", f"{projection.name}: {type(projection.module).__name__}, {shape} ({stored})"


def _found_statistics(
    options: argparse.Namespace, arch: Architecture, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int]
) -> Statistics | None:
    """What `emmet edit` would find with the same options, in --stats or in the cache."""
    from ..statistics import Statistics, cached_statistics

    if options.stats is not None:
        statistics = Statistics.load(options.stats, layers)
        statistics.check(arch, *layers)
        return statistics
    return cached_statistics(arch.model, tokenizer, options.corpus, layers=layers)
