"""How long value vectors take, against the published procedure: python bench/values.py MODEL [--edits N] [--layer L]

For each batch of edits the published procedure (bench/yardstick.py, one edit at a time), emmet with Adam and emmet with
Newton steps run in turn, so that a machine that slows down slows all three. Prints seconds an edit, the ratio to the
published procedure (median over batches, with its range), and the losses reached. Writes JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from emmet import EditConfig
from emmet.architectures import Architecture, discover
from emmet.config import ResolvedConfig
from emmet.edits import Edit, read_edits
from emmet.keys import in_contexts
from emmet.loading import load
from emmet.prefixes import sample_prefixes
from emmet.suffixes import Injection
from emmet.tokens import encode_prompts
from emmet.values import optimise_values
from yardstick import published_value

FIRST_EDIT = 3000  # the Newton steps were developed on records 1000 to 1015


@dataclass
class Series:
    """What one way of finding values took and reached, batch by batch."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


Way = Callable[[Sequence[Edit]], tuple[list[float], list[int]]]


def ways(arch: Architecture, tokenizer: object, prefixes: Sequence[str], config: ResolvedConfig) -> dict[str, Way]:
    layer = config.layers[-1]

    def published(edits: Sequence[Edit]) -> tuple[list[float], list[int]]:
        found = []
        for edit in edits:
            prompts = in_contexts(tokenizer, edit, prefixes)
            (essence,) = encode_prompts(tokenizer, [f"{edit.subject} is a"], [(0, len(edit.subject))])
            found.append(published_value(arch.model, arch.layers[layer], prompts, essence, config))
        return [value.loss for value in found], [value.steps for value in found]

    def ours(optimizer: str) -> Way:
        settings = replace(config, optimizer=optimizer)

        def run(edits: Sequence[Edit]) -> tuple[list[float], list[int]]:
            prompts = [in_contexts(tokenizer, edit, prefixes) for edit in edits]
            values = optimise_values(arch, tokenizer, edits, prompts, settings, Injection.find(arch, layer))
            return values.loss.tolist(), values.steps.tolist()

        return run

    return {"published": published, "emmet, adam": ours("adam"), "emmet, newton": ours("newton")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--records", type=Path, required=True, help="a file of edits, such as CounterFact's")
    parser.add_argument("--edits", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model, tokenizer = load(options.model)
    arch = discover(model)
    config = EditConfig(layers=[options.layer], batch_size=options.batch).resolve(model.config)
    prefixes = sample_prefixes(model, tokenizer, count=config.prefix_count, length=config.prefix_length, seed=0)
    edits = read_edits(options.records)[FIRST_EDIT : FIRST_EDIT + options.edits]
    series = {name: Series() for name in ("published", "emmet, adam", "emmet, newton")}
    for first in range(0, len(edits), options.batch):
        batch = edits[first : first + options.batch]
        for name, run in ways(arch, tokenizer, prefixes, config).items():
            start = time.perf_counter()
            losses, steps = run(batch)
            series[name].seconds.append((time.perf_counter() - start) / len(batch))
            series[name].losses += losses
            series[name].steps += steps

    print(f"{len(edits)} edits in batches of {options.batch}, layer {options.layer}, {torch.get_num_threads()} threads")
    print("| | s an edit | published / this | mean loss | mean steps |\n| --- | --- | --- | --- | --- |")
    for name, one in series.items():
        ratios = [theirs / ours for theirs, ours in zip(series["published"].seconds, one.seconds, strict=True)]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
        means = f"{statistics.mean(one.losses):.3f} | {statistics.mean(one.steps):.1f}"
        print(f"| {name} | {statistics.median(one.seconds):.2f} | {spread} | {means} |")
    if options.json:
        options.json.write_text(json.dumps({name: vars(one) for name, one in series.items()}, indent=2))


if __name__ == "__main__":
    main()
