"""`emmet stats`: collect statistics of a model's keys."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distributed import ALONE
from .arguments import LARGEST_SEED, add_corpus, add_model, command, layer_list, whole_number
from .inputs import load_model
from .terminal import Row, Stopwatch, print_rows, progress_bars

if TYPE_CHECKING:
    from ..statistics import Statistics


def add_stats(commands: Any) -> None:
    parser = command(
        commands,
        _stats,
        "stats",
        "collect statistics of a model's keys, the memories that edits preserve",
        """\
examples:
  emmet stats gpt2 --layers 7 --out stats/                       on text that the model samples itself
  emmet stats gpt2 --layers 4-8 --out stats/ --corpus wiki.txt   on a text file
  emmet stats gpt2 --layers 7 --out stats/ --corpus hf:roneneldan/TinyStories

The same command goes on where it was interrupted. Layers of the same text that are already there are kept.""",
    )
    parser.set_defaults(world=ALONE)
    add_model(parser)
    add_corpus(parser)
    parser.add_argument("--layers", type=layer_list, required=True, help='decoder layers, from 0: "7" or "4-8,10"')
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write one file a layer to")
    parser.add_argument("--tokens", type=whole_number(1), help="tokens to read (default: 10 for each key dimension)")
    parser.add_argument(
        "--seed",
        type=whole_number(0, LARGEST_SEED),
        default=0,
        help="of the text that the model samples (default: 0)",
    )


def _stats(options: argparse.Namespace) -> None:
    from ..corpora import open_corpus
    from ..output import check_folder
    from ..statistics import collect_statistics

    check_folder(options.out)
    open_corpus(options.corpus).digest()  # a corpus that cannot be read is reported before the model is loaded
    watch = Stopwatch()
    with progress_bars(options) as progress:
        model, tokenizer = load_model(options, watch, progress)
        with watch.stage("statistics"):
            statistics = collect_statistics(
                model,
                tokenizer,
                options.corpus,
                layers=options.layers,
                tokens=options.tokens,
                seed=options.seed,
                out=options.out,
                progress=progress,
                world=options.world,
            )
    if options.world.rank == 0:
        print_rows(*statistics_rows(statistics), ("time", str(watch)), ("written", str(options.out)))


def statistics_rows(statistics: Statistics) -> Iterator[Row]:
    for layer, of_layer in statistics.items():
        corpora = " and ".join(source.corpus for source in of_layer.sources)
        yield "statistics", f"layer {layer}: {of_layer.count:,} tokens of {corpora}"
