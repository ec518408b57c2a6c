"""`emmet sweep`: try every combination of methods, batch sizes, layers and ridges."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import EditConfig
from ..edits import Record, read_records
from ..errors import ConfigError
from ..storage import parse_json
from .arguments import (
    add_model,
    add_output,
    add_statistics,
    add_values,
    command,
    layer_list,
    ridge_or_auto,
    whole_number,
)
from .inputs import load_model, read_config, read_statistics
from .terminal import Row, Stopwatch, print_rows, progress_bars

if TYPE_CHECKING:
    from ..sweep.results import Results


def add_sweep(commands: Any) -> None:
    parser = command(
        commands,
        _sweep,
        "sweep",
        "try methods, batch sizes, layers and ridges on a data set, and report the scores",
        """\
examples:
  emmet sweep gpt2 counterfact.json --out sweep/ --methods rome,emmet,memit --batch-sizes 1,16,64,256 --scored 512
  emmet sweep gpt2 counterfact.json --out sweep/ --methods emmet --ridges 0,1,100,10000 --batch-sizes 64 --layers 7
  emmet sweep gpt2 counterfact.json --out sweep/ --layers 5 6 7 5-7 --batch-sizes 64 --records 5000:5500
  emmet sweep gpt2 counterfact.json --out sweep/ --batch-sizes 64,1024 --scored 1024 --sequential --absorb 0,1

Each batch is made in the unedited model, scored on its own records and taken back. The same command goes on where it
was interrupted. DIR gets report.html, report.md, and a JSON file for each combination.""",
    )
    add_model(parser)
    parser.add_argument("data", type=Path, metavar="DATA.jsonl", help="records of ours, CounterFact or zsRE")
    parser.add_argument("--records", type=_span, default=":", metavar="A:B", help="take those from A up to B, from 0")
    parser.add_argument(
        "--methods",
        type=_list,
        default=["emmet", "memit"],
        metavar="A,B",
        help="with ridges of their own as in memit:15000",
    )
    parser.add_argument(
        "--batch-sizes", type=_whole_numbers, default=[1, 16, 64], metavar="N,N", help="edits made at once"
    )
    parser.add_argument(
        "--layers",
        type=layer_list,
        nargs="+",
        metavar="N-N",
        help='sets of decoder layers, from 0, such as "7" or "4-8,10"',
    )
    parser.add_argument(
        "--ridges",
        type=_ridges,
        metavar="μ,μ",
        help="for each method but rome that has none of its own; numbers or auto",
    )
    parser.add_argument(
        "--scored",
        type=whole_number(1),
        metavar="N",
        help="make as many batches a run as N records take, and score these (default: all whole batches)",
    )
    parser.add_argument(
        "--sequential", action="store_true", help="make batches on top of those before; score all after the last"
    )
    parser.add_argument(
        "--absorb",
        type=_numbers,
        metavar="N,N",
        help="with --sequential, weights to try of earlier edits among what later ones preserve (default: 1)",
    )
    parser.add_argument(
        "--drift", metavar="TEXT", help="text to compare predictions on, with and without edits; named as --corpus"
    )
    parser.add_argument("--drift-tokens", type=whole_number(2), metavar="N", help="of that text (default: 2000)")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="all other settings, of emmet.EditConfig")
    add_statistics(parser)
    add_values(parser)
    add_output(parser)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _whole_numbers(text: str) -> list[int]:
    return [whole_number(1)(part) for part in _list(text)]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in _list(text)]
    except ValueError as error:
        message = f"expected numbers, got {text!r}"
        raise argparse.ArgumentTypeError(message) from error


def _ridges(text: str) -> list[float | Literal["auto"]]:
    return [ridge_or_auto(part) for part in _list(text)]


def _span(text: str) -> str:
    if not re.fullmatch("[0-9]{0,9}:[0-9]{0,9}", text):
        message = f'expected records as in "5000:5500", got {text!r}'
        raise argparse.ArgumentTypeError(message)
    return text


def _sweep(options: argparse.Namespace) -> None:
    from ..corpora import open_corpus
    from ..output import check_folder, check_output
    from ..storage import cache_folder
    from ..sweep import Plan, sweep
    from ..sweep.plan import check_batch_sizes, without_repetitions

    config = EditConfig() if options.config is None else _config_without_method(options.config)
    optional = ("layers", "ridges", "scored", "absorb", "drift", "drift_tokens")
    chosen = {name: getattr(options, name) for name in optional}
    plan = Plan(
        methods=options.methods,
        batch_sizes=options.batch_sizes,
        sequential=options.sequential,
        config=config,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    records = _selected(read_records(options.data), options)
    check_batch_sizes(plan.batch_sizes, len(without_repetitions(records)))
    check_output(options.out, "sweep")
    values = options.values or cache_folder() / "values"
    check_folder(values)
    for corpus in (options.corpus if options.stats is None else None, options.drift):
        if corpus is not None:
            open_corpus(corpus).digest()  # one that cannot be read is reported before the model is loaded
    statistics = None
    if options.stats is not None:
        layer_sets = options.layers or [config.layers or ()]
        statistics = read_statistics(options.stats, {layer for layers in layer_sets for layer in layers})

    watch = Stopwatch()
    with progress_bars(options) as progress:
        model, tokenizer = load_model(options, watch, progress)
        with watch.stage("sweep"):
            results = sweep(
                model,
                tokenizer,
                records,
                plan,
                options.out,
                statistics=statistics,
                corpus=options.corpus,
                value_cache=values,
                data=f"{options.data.name} {options.records}".removesuffix(" :"),
                progress=progress,
            )
    print_rows(*_sweep_rows(results), ("time", str(watch)), ("written", str(options.out)))


def _config_without_method(path: Path) -> EditConfig:
    """The settings of a file. Raises ConfigError if a method is among them, in whose place those of --methods come."""
    config = read_config(path)
    if "method" in parse_json(path.read_text(encoding="utf-8")):
        message = f"expected settings without a method, got one in {path}; name it with --methods"
        raise ConfigError(message)
    return config


def _selected(records: Sequence[Record], options: argparse.Namespace) -> Sequence[Record]:
    """The records that --records names."""
    first, end = (int(number) if number else None for number in options.records.split(":"))
    selected = records[first:end]
    if not selected:
        message = f"there are no records {options.records} in {options.data}, which has {len(records):,}"
        raise ConfigError(message)
    return selected


def _sweep_rows(results: Results) -> Iterator[Row]:
    yield "records", f"{results.facts['scored']:,} scored, {results.facts['repetitions']:,} repetitions left out"
    for one in results.runs:
        scores = [(metric, one.scores.metrics[metric]) for metric in results.metrics] if one.scores else []
        found = ", ".join(f"{metric} {of.mean:.1f}" for metric, of in scores if of is not None)
        failed = f"{len(one.failures):,} of {len(one.outcomes):,} batches failed" if one.failures else ""
        yield one.run.name, ", ".join(filter(None, [found, failed]))
