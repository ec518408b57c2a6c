"""What later edits do to earlier ones: python bench/sequence.py MODEL --records FILE [--batches 16] [--batch 64]

Batches are edited one after the other, as they come in a deployment: values are found in the model as it is by then.
Shows the first batch's scores when it has been made and after more batches, once with `absorb` = 0, as published, and
once with `absorb` = 1, which keeps earlier keys among the memories to preserve; and the scores of all edits at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import emmet
from emmet.edits import Record
from emmet.evaluate import evaluate
from emmet.loading import load
from measure import distinct_records, parser, report

ABSORB = (0.0, 1.0)
SCORES = ("ES", "PS", "NS")


def scores(editor: emmet.Editor, records: Sequence[Record]) -> str:
    found = evaluate(editor.arch, editor.tokenizer, records).metrics
    return " / ".join(f"{found[name].mean:.1f}" for name in SCORES)


def sequence(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Sequence[Record]],
    config: emmet.EditConfig,
    statistics: str | None,
) -> dict[str, str]:
    """Scores of the first batch after 1, 2, 4, … batches, and of all after the last; the model is left as it was."""
    editor = emmet.Editor(model, tokenizer, config=config, statistics=statistics)
    found, handles = {}, []
    for done, batch in enumerate(batches, start=1):
        handles.append(editor.edit([record.edit for record in batch]))
        if done & (done - 1) == 0 or done == len(batches):
            found[f"first batch, after {done}"] = scores(editor, batches[0])
    found["all, at the end"] = scores(editor, [record for batch in batches for record in batch])
    for handle in reversed(handles):
        handle.undo()
    return found


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True)
    options_of.add_argument("--stats", help="a folder of statistics; left out, they are sampled once and kept")
    options_of.add_argument("--first", type=int, default=7000)
    options_of.add_argument("--batches", type=int, default=16)
    options_of.add_argument("--batch", type=int, default=64)
    options_of.add_argument("--layer", type=int, default=7)
    options_of.add_argument("--optimizer", default="adam")
    options_of.add_argument("--contexts-per-step", type=int, default=2)
    options = options_of.parse_args()

    model, tokenizer = load(options.model)
    chosen = distinct_records(options.records, options.first, options.batches * options.batch)
    batches = [chosen[first : first + options.batch] for first in range(0, len(chosen), options.batch)]
    config = emmet.EditConfig(
        layers=[options.layer], optimizer=options.optimizer, contexts_per_step=options.contexts_per_step
    )
    columns = {
        f"absorb {absorb:g}": sequence(model, tokenizer, batches, replace(config, absorb=absorb), options.stats)
        for absorb in ABSORB
    }
    rows = [
        {"": moment, **{name: found[moment] for name, found in columns.items()}}
        for moment in next(iter(columns.values()))
    ]
    title = f"{' / '.join(SCORES)} of {len(batches)} batches of {options.batch}, layer {options.layer}"
    report(title, rows, options.json)


if __name__ == "__main__":
    main()
