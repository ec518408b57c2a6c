"""What later edits do to earlier ones: python bench/sequence.py MODEL --records FILE [--batches 16] [--batch 64]

Batches are solved one after the other, each for what the model by then lacks of its values, which are found once, in
the unedited model. Shows the first batch's scores when it has been made and after more batches, once without and with
earlier keys among the memories to preserve (`EditConfig.absorb` of 0, as published, and 1), and the scores of all edits
at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import emmet
from emmet.edits import Record
from emmet.evaluate import evaluate
from emmet.forward import last_token_states
from emmet.keys import in_contexts
from emmet.loading import load
from emmet.suffixes import Injection
from emmet.weights import Backup
from measure import distinct_records, parser, report

SCORES = ("ES", "PS", "NS")


def scores(editor: emmet.Editor, records: Sequence[Record]) -> str:
    found = evaluate(editor.arch, editor.tokenizer, records).metrics
    return " / ".join(f"{found[name].mean:.1f}" for name in SCORES)


def sequence(
    editor: emmet.Editor, records: Sequence[Record], targets: Tensor, size: int, absorb: float
) -> dict[str, str]:
    """Scores of the first batch after 1, 2, 4, … batches, and of all after the last; the model is left as it was."""
    (layer,) = editor.config.layers
    edits = [record.edit for record in records]
    bare = [in_contexts(editor.tokenizer, edit, ())[0] for edit in edits]
    rows = [prompt.ids[: prompt.subject + 1] for prompt in bare]
    site = Injection.find(editor.arch, layer).site(editor.arch)
    keys = editor.keys(edits, layer)
    metric = editor.preservation(layer)
    projection = editor.arch.projection(layer)
    unedited = Backup([projection.weight])
    found = {}
    for done, first in enumerate(range(0, len(edits), size), start=1):
        batch = slice(first, first + size)
        missing = targets[batch] - last_token_states(editor.arch, rows[batch], site)
        update = emmet.solve(metric, keys[batch], missing, editor.config.ridge)
        update.apply_(projection.weight, projection.transposed)
        metric = metric.absorb(keys[batch], absorb / (editor.config.ridge or 1.0))
        if done & (done - 1) == 0:
            found[f"first batch, after {done}"] = scores(editor, records[:size])
    found["all, at the end"] = scores(editor, records)
    unedited.restore()
    return found


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True)
    options_of.add_argument("--stats", help="a folder of statistics; left out, they are sampled once and kept")
    options_of.add_argument("--values", help="a folder to keep values in, so that a run that is killed goes on")
    options_of.add_argument("--first", type=int, default=7000)
    options_of.add_argument("--batches", type=int, default=16)
    options_of.add_argument("--batch", type=int, default=64)
    options_of.add_argument("--layer", type=int, default=7)
    options_of.add_argument("--ridge", type=float, default=0.0)
    options_of.add_argument("--contexts-per-step", type=int, default=2)
    options = options_of.parse_args()

    model, tokenizer = load(options.model)
    config = emmet.EditConfig(
        layers=[options.layer], ridge=options.ridge, contexts_per_step=options.contexts_per_step, batch_size=64
    )
    editor = emmet.Editor(model, tokenizer, config=config, statistics=options.stats, value_cache=options.values)
    records = distinct_records(options.records, options.first, options.batches * options.batch)
    targets = editor.values([record.edit for record in records]).targets
    columns = {f"absorb {absorb}": sequence(editor, records, targets, options.batch, absorb) for absorb in (0, 1)}
    rows = [{"": moment, **{name: found[moment] for name, found in columns.items()}} for moment in columns["absorb 0"]]
    of = f"{options.batches} × {options.batch} edits, layer {options.layer}, ridge {options.ridge:g}"
    report(f"{' / '.join(SCORES)} of {of}", rows, options.json)


if __name__ == "__main__":
    main()
