"""How long value vectors take, against the published procedure: python bench/values.py MODEL [--edits N] [--layer L]

For each batch of edits the published procedure (bench/yardstick.py, one edit at a time), emmet with Adam and emmet with
Newton steps run in turn, so that a machine that slows down slows all three. Shows seconds an edit, the ratio to the
published procedure (median over batches, with its range), and the losses reached.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from measure import parser, ratios, report, seconds, spread
from yardstick import published_value

FIRST_EDIT = 3000  # Newton steps were developed on records 1000 to 1015 and 2000 to 2063


Way = Callable[[Sequence[Edit]], tuple[list[float], list[int]]]


@dataclass
class Series:
    """What one way of finding values took and reached, batch by batch."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(self, batch: Sequence[Edit], way: Way) -> None:
        found: list[tuple[list[float], list[int]]] = []
        self.seconds.append(seconds(lambda: found.append(way(batch))) / len(batch))
        ((losses, steps),) = found
        self.losses += losses
        self.steps += steps


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
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True, help="a file of edits, such as CounterFact's")
    options_of.add_argument("--first", type=int, default=FIRST_EDIT)
    options_of.add_argument("--edits", type=int, default=24)
    options_of.add_argument("--batch", type=int, default=8)
    options_of.add_argument("--layer", type=int, default=7)
    options = options_of.parse_args()

    model, tokenizer = load(options.model)
    arch = discover(model)
    config = EditConfig(layers=[options.layer], batch_size=options.batch).resolve(model.config)
    prefixes = sample_prefixes(model, tokenizer, count=config.prefix_count, length=config.prefix_length, seed=0)
    edits = read_edits(options.records)[options.first : options.first + options.edits]
    series: dict[str, Series] = {}
    for first in range(0, len(edits), options.batch):
        batch = edits[first : first + options.batch]
        for name, run in ways(arch, tokenizer, prefixes, config).items():
            series.setdefault(name, Series()).add(batch, run)

    rows = [
        {
            "": name,
            "s an edit": f"{statistics.median(one.seconds):.2f}",
            "published / this": spread(ratios(series["published"].seconds, one.seconds), 1),
            "mean loss": f"{statistics.mean(one.losses):.3f}",
            "mean steps": f"{statistics.mean(one.steps):.1f}",
        }
        for name, one in series.items()
    ]
    report(f"{len(edits)} edits in batches of {options.batch}, layer {options.layer}", rows, options.json)


if __name__ == "__main__":
    main()
