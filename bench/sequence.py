"""What later edits do to earlier ones: python bench/sequence.py MODEL --records FILE [--layers 3-7] [--ridge 1000]

Batches are solved one after the other, each for what the model by then lacks of its values, which are found once, in
the unedited model. Shows the first batch's scores when it has been made and after more batches: without earlier edits
among the memories to preserve (`EditConfig.absorb` of 0, as published), with their keys (1), and with all keys of their
prompts (`EditConfig.absorb_prompts`); and the scores of all edits at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import emmet
from emmet.config import parse_layers
from emmet.edits import Record
from emmet.evaluate import evaluate
from emmet.forward import last_token_states
from emmet.keys import in_contexts, prompt_keys, subject_keys
from emmet.loading import load
from emmet.suffixes import Injection
from emmet.weights import Backup
from measure import distinct_records, parser, report

SCORES = ("ES", "PS", "NS")
COLUMNS = {"absorb 0": (0.0, False), "absorb 1": (1.0, False), "absorb 1, prompts": (1.0, True)}


def scores(editor: emmet.Editor, records: Sequence[Record]) -> str:
    found = evaluate(editor.arch, editor.tokenizer, records).metrics
    return " / ".join(f"{found[name].mean:.1f}" for name in SCORES)


def sequence(
    editor: emmet.Editor, records: Sequence[Record], targets: Tensor, size: int, absorb: float, of_prompts: bool
) -> dict[str, str]:
    """Scores of the first batch after 1, 2, 4, … batches, and of all after the last; the model is left as it was."""
    arch, layers, ridge = editor.arch, editor.config.layers, editor.config.ridge
    texts = [in_contexts(editor.tokenizer, record.edit, editor.prefixes) for record in records]
    rows = [contexts[0].ids[: contexts[0].subject + 1] for contexts in texts]
    site = Injection.find(arch, layers[-1]).site(arch)
    metrics = {layer: editor.preservation(layer) for layer in layers}
    unedited = Backup([arch.projection(layer).weight for layer in layers])
    found = {}
    for done, first in enumerate(range(0, len(records), size), start=1):
        batch = slice(first, first + size)
        for place, layer in enumerate(layers):
            projection = arch.projection(layer)
            missing = (targets[batch] - last_token_states(arch, rows[batch], site)) / (len(layers) - place)
            keys = subject_keys(arch, texts[batch], layer)
            memories = torch.cat([keys, prompt_keys(arch, texts[batch], layer)[0]]) if of_prompts else keys
            update = emmet.solve(metrics[layer], keys, missing, ridge)
            update.apply_(projection.weight, projection.transposed)
            metrics[layer] = metrics[layer].absorb(memories, absorb / (ridge or 1.0))
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
    options_of.add_argument("--layers", type=parse_layers, default=(7,))
    options_of.add_argument("--ridge", type=float, default=0.0)
    options_of.add_argument("--contexts-per-step", type=int, default=2)
    options = options_of.parse_args()

    model, tokenizer = load(options.model, device=options.device)
    config = emmet.EditConfig(
        layers=options.layers, ridge=options.ridge, contexts_per_step=options.contexts_per_step, batch_size=64
    )
    editor = emmet.Editor(model, tokenizer, config=config, statistics=options.stats, value_cache=options.values)
    records = distinct_records(options.records, options.first, options.batches * options.batch)
    targets = editor.values([record.edit for record in records]).targets
    columns = {name: sequence(editor, records, targets, options.batch, *settings) for name, settings in COLUMNS.items()}
    rows = [{"": moment, **{name: found[moment] for name, found in columns.items()}} for moment in columns["absorb 0"]]
    of = f"{options.batches} × {options.batch} edits, layers {options.layers}, ridge {options.ridge:g}"
    report(f"{' / '.join(SCORES)} of {of}", rows, options.json)


if __name__ == "__main__":
    main()
