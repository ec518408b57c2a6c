"""`emmet export`: write a delta in the form that a serving stack loads."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .arguments import add_output, command, whole_number
from .inputs import check_apart, load_model
from .terminal import Row, Stopwatch, print_rows, progress_bars

if TYPE_CHECKING:
    from ..delta import Delta

FORMATS = ("peft", "gguf", "model")
FORMATS_HELP = "a LoRA adapter for PEFT and vLLM, or for llama.cpp; or the whole edited model with its tokenizer"


def add_export(commands: Any) -> None:
    parser = command(
        commands,
        _export,
        "export",
        "write a delta in the form that a serving stack loads",
        """\
examples:
  emmet export delta/ --format peft --out adapter/                      a LoRA adapter, for PEFT and vLLM
  emmet export delta/ --format gguf --out adapter/ --model base.gguf    a LoRA adapter, for llama.cpp
  emmet export delta/ --format model --out model/                       a whole model, for AutoModel.from_pretrained
  emmet export delta/ --format peft --out adapter/ --rank 64 --stats stats/   a smaller adapter, less exact""",
    )
    parser.add_argument("delta", type=Path, metavar="DELTA", help="folder that `emmet edit` wrote")
    add_output(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help=FORMATS_HELP)
    parser.add_argument(
        "--model",
        help="what the delta was made for, which an adapter for PEFT names as its base; for gguf its GGUF file, in any "
        "quantisation (default: as the delta says)",
    )
    parser.add_argument("--rank", type=whole_number(1), help="compress updates to this rank; needs --stats")
    parser.add_argument(
        "--stats", type=Path, metavar="DIR", help="statistics of `emmet stats`, by which --rank preserves memories"
    )


def _export(options: argparse.Namespace) -> None:
    from ..checkpoint import save_model
    from ..delta import Delta
    from ..loading import lasting_name
    from ..output import check_output

    _check_heeded(options)
    delta = Delta.load(options.delta)
    if options.format == "peft" and options.model:
        delta = replace(delta, base=lasting_name(options.model))
    options.model = options.model or delta.base
    if options.model is None and options.format != "peft":
        message = f"{options.delta} does not say what model it was made for: name it with --model"
        raise ConfigError(message)
    check_output(options.out, "update")
    check_apart(options.out, options.delta, options.model, options.stats)
    compression: list[Row] = []
    if options.rank is not None:
        delta, compression = _compressed(options, delta)
    watch = Stopwatch()
    with progress_bars(options) as progress:
        if options.format == "model":
            model, tokenizer = load_model(options, watch, progress)
            delta.apply(model)
            with watch.stage("write"):
                save_model(model, tokenizer, delta, options.out, progress)
        else:
            with watch.stage("write"):
                write_update(options, delta)
    print_rows(("edits", str(len(delta.edits))), *compression, ("time", str(watch)), ("written", str(options.out)))


def _check_heeded(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that would do nothing."""
    if options.stats is not None and options.rank is None:
        message = "--stats is for --rank: name a rank, or leave --stats out"
        raise ConfigError(message)
    if options.format != "model" and (options.device != "cpu" or options.dtype is not None):
        message = f"--device and --dtype are for --format model, as {options.format} needs no weights: leave them out"
        raise ConfigError(message)


def _compressed(options: argparse.Namespace, delta: Delta) -> tuple[Delta, list[Row]]:
    """The delta at the rank of --rank, and by how much each update differs."""
    from .._core import Preservation
    from ..statistics import Statistics

    if options.stats is None:
        message = "--rank needs --stats DIR, the statistics that the edits were made with"
        raise ConfigError(message)
    statistics = Statistics.load(options.stats, delta.layers)
    metrics = {layer: Preservation.from_second_moment(of.second_moment) for layer, of in statistics.items()}
    compressed = delta.compressed(metrics, options.rank)
    rows = []
    for layer, whole in delta.layers.items():
        update = whole.update.dense()
        cost, lost = map(metrics[layer].cost, (update, update - compressed.layers[layer].update.dense()))
        share = (lost / cost) ** 0.5 if cost else 0.0
        rows.append((f"layer {layer}", f"{whole.module}: rank {options.rank} leaves out {share:.2%} of the update"))
    return compressed, rows


def write_update(options: argparse.Namespace, delta: Delta) -> None:
    from ..export import save_gguf, save_peft

    if options.format == "peft":
        save_peft(delta, options.out)
    elif options.format == "gguf":
        save_gguf(delta, options.out, options.model)
    else:
        delta.save(options.out)
