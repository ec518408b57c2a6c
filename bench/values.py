"""How long value vectors take, against the published procedure: python bench/values.py MODEL --records FILE [--edits N]

For each batch of edits the published procedure (bench/yardstick.py, one edit at a time) and emmet's ways run in turn,
so that a machine that slows down slows all of them. Shows seconds an edit, the ratio to the published procedure (median
over batches, with its range), and the mean of the losses reached: those of the published procedure, in all contexts.
With --curve also the loss against time: the same for the first batch, with fewer steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from emmet import EditConfig
from emmet.architectures import Architecture, discover
from emmet.config import ResolvedConfig
from emmet.edits import Edit, read_edits
from emmet.keys import in_contexts
from emmet.loading import load
from emmet.prefixes import sample_prefixes
from emmet.suffixes import Injection
from emmet.tokens import Prompt, encode_prompts
from emmet.trial import tried
from emmet.values import Values, optimise_values
from measure import Figures, parser, ratios, report, seconds
from yardstick import published_loss, published_value

CURVE = (3, 6, 12, 25)
FIRST_EDIT = 3000  # Newton steps were developed on records 1000 to 1015 and 2000 to 2063


@dataclass
class Series:
    """What one way of finding values took and reached, batch by batch."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def timed(self, batch: Sequence[Edit], way: Callable[[Sequence[Edit]], Values]) -> Values:
        found: list[Values] = []
        self.seconds.append(seconds(lambda: found.append(way(batch))) / len(batch))
        (values,) = found
        self.steps += values.steps.tolist()
        return values


@dataclass(frozen=True)
class Bench:
    """The model, and all ways to find the values of a batch."""

    arch: Architecture
    tokenizer: PreTrainedTokenizerBase
    prefixes: Sequence[str]
    config: ResolvedConfig
    injection: Injection

    @property
    def layer(self) -> int:
        return self.config.layers[-1]

    def texts(self, edit: Edit) -> tuple[list[Prompt], Prompt]:
        (essence,) = encode_prompts(self.tokenizer, [f"{edit.subject} is a"], [(0, len(edit.subject))])
        return in_contexts(self.tokenizer, edit, self.prefixes), essence

    def published(self, edits: Sequence[Edit]) -> Values:
        model, layer = self.arch.model, self.arch.layers[self.layer]
        found = [published_value(model, layer, *self.texts(edit), self.config) for edit in edits]
        return Values(
            torch.stack([value.target for value in found]),
            torch.tensor([value.loss for value in found]),
            torch.tensor([value.steps for value in found]),
        )

    def emmet(self, edits: Sequence[Edit], **settings: Any) -> Values:
        prompts = [in_contexts(self.tokenizer, edit, self.prefixes) for edit in edits]
        config = replace(self.config, **settings)
        return optimise_values(self.arch, self.tokenizer, edits, prompts, config, self.injection)

    def losses(self, edits: Sequence[Edit], values: Values) -> list[float]:
        model, layer = self.arch.model, self.arch.layers[self.layer]
        return [
            published_loss(model, layer, *self.texts(edit), self.config, target)
            for edit, target in zip(edits, values.targets, strict=True)
        ]

    def loss_against_time(self, edits: Sequence[Edit]) -> list[dict[str, str]]:
        rows = []
        for name, way in self.iterative().items():
            row = {"": name}
            for steps in CURVE:
                one = Series()
                losses = self.losses(edits, one.timed(edits, partial(way, steps=steps)))
                row[f"{steps} steps"] = f"{one.seconds[0]:.2f} s: {statistics.mean(losses):.3f}"
            rows.append(row)
        return rows

    def iterative(self) -> dict[str, Callable[..., Values]]:
        return {
            "emmet, all contexts in each step": partial(self.emmet, contexts_per_step=None),
            "emmet, two in each step (default)": self.emmet,
            "emmet, one in each step": partial(self.emmet, contexts_per_step=1),
            "emmet, newton": partial(self.emmet, optimizer="newton"),
        }

    def ways(self) -> dict[str, Callable[[Sequence[Edit]], Values]]:
        return {
            "published": self.published,
            **self.iterative(),
            "emmet, gradient": partial(self.emmet, optimizer="gradient", steps=1),
        }


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True, help="a file of edits, such as CounterFact's")
    options_of.add_argument("--first", type=int, default=FIRST_EDIT)
    options_of.add_argument("--edits", type=int, default=32)
    options_of.add_argument("--batch", type=int, default=16)
    options_of.add_argument("--layer", type=int, default=7)
    options_of.add_argument("--curve", action="store_true", help="loss against time, too")
    options = options_of.parse_args()

    model, tokenizer = load(options.model, device=options.device)
    arch = discover(model)
    config = EditConfig(layers=[options.layer], batch_size=options.batch).resolve(model.config)
    prefixes = sample_prefixes(model, tokenizer, count=config.prefix_count, length=config.prefix_length, seed=0)
    injection = tried(arch, Injection.find(arch, options.layer))
    bench = Bench(arch, tokenizer, prefixes, config, injection)
    edits = read_edits(options.records)[options.first : options.first + options.edits]
    series: dict[str, Series] = {name: Series() for name in bench.ways()}
    for way in bench.ways().values():
        way(edits[:1])  # the first pass of each is slower
    for first in range(0, len(edits), options.batch):
        batch = edits[first : first + options.batch]
        for name, way in bench.ways().items():
            values = series[name].timed(batch, way)
            series[name].losses += bench.losses(batch, values)

    rows = [
        {
            "": name,
            "s an edit": Figures(one.seconds),
            "published / this": Figures(ratios(series["published"].seconds, one.seconds), ".1f"),
            "mean loss": Figures([statistics.mean(one.losses)], ".3f"),
            "mean steps": Figures([statistics.mean(one.steps)], ".1f"),
        }
        for name, one in series.items()
    ]
    report(f"{len(edits)} edits in batches of {options.batch}, layer {options.layer}", rows, options.json)
    if options.curve:
        report("Seconds an edit and mean loss", bench.loss_against_time(edits[: options.batch]), None)


if __name__ == "__main__":
    main()
