"""What rounding the edited weight costs: python bench/rounding.py MODEL --records FILE --stats DIR [--layer 7]

The weight W is taken in each dtype, as a checkpoint of that dtype has it. emmet forms W + Δ in float64 and rounds it
once, to W'. What that misses is shown as ‖(W' − W)K − R‖ / ‖R‖, and in the mean NLL of the targets on their prompts, by
a model that is float32 but for this weight, beside that of W + Δ in float32.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import emmet
from emmet.edits import read_edits
from emmet.evaluate.scoring import score_continuations
from emmet.loading import load
from measure import Figures, parser, report

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def target_nll(editor: emmet.Editor, edits: list[emmet.Edit], weight: Tensor) -> float:
    """The mean over edits with `weight` in the place of the edited layer's."""
    (layer,) = editor.config.layers
    with torch.no_grad():
        editor.arch.projection(layer).weight.copy_(weight)
    pairs = [(edit.text, edit.target) for edit in edits]
    scores = score_continuations(editor.arch, editor.tokenizer, pairs)
    return sum(scores[pair].nll for pair in pairs) / len(pairs)


def main() -> None:
    options_of = parser(__doc__, on_gpu=False)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True)
    options_of.add_argument("--stats", type=Path, required=True)
    options_of.add_argument("--layer", type=int, default=7)
    options_of.add_argument("--edits", type=int, nargs="+", default=[1, 8])
    options = options_of.parse_args()

    edits = read_edits(options.records)[: max(options.edits)]
    config = emmet.EditConfig(layers=[options.layer], ridge=0.0)
    editor = emmet.Editor(*load(options.model, dtype=torch.float32), config=config, statistics=options.stats)
    projection, metric = editor.arch.projection(options.layer), editor.preservation(options.layer)
    original = projection.weight.detach().clone()
    keys = editor.keys(edits, options.layer)
    residuals = keys @ editor.edit(edits).delta.layers[options.layer].update.dense().T

    rows = []
    for count in options.edits:
        some, k, r = edits[:count], keys[:count], residuals[:count]
        update = emmet.solve(metric, k, r)
        for dtype in DTYPES:
            before = original.to(dtype)
            after, exact = before.clone(), before.to(torch.float32, copy=True)
            update.apply_(after, projection.transposed)
            update.apply_(exact, projection.transposed)
            change = after.double() - before.double()
            made = emmet.Update.from_dense(change.T if projection.transposed else change)
            rows.append(
                {
                    "edits": count,
                    "dtype": str(dtype).removeprefix("torch."),
                    "‖(W' − W)K − R‖ / ‖R‖": Figures([made.constraint_residual(k, r)], ".1e"),
                    "weights that change": Figures([(change != 0).double().mean().item()], ".1%"),
                    "NLL of W": Figures([target_nll(editor, some, before)], ".4f"),
                    "of W + Δ": Figures([target_nll(editor, some, exact)], ".4f"),
                    "of W'": Figures([target_nll(editor, some, after)], ".4f"),
                }
            )
    report(f"{Path(options.model).name}, layer {options.layer}", rows, options.json)


if __name__ == "__main__":
    main()
