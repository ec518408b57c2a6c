"""How many tokens of statistics are enough: python bench/tokens.py MODEL --records FILE --corpus FILE [--edits 200]

The same edits are made in one batch with a metric C from 1, 2, 3, 5, 10 and 30 tokens a dimension of the keys, and
scored. Value vectors do not depend on C and are found once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import emmet
from emmet.architectures import discover
from emmet.evaluate import evaluate
from emmet.loading import load
from measure import Figures, distinct_records, parser, report

PER_DIMENSION = (1, 2, 3, 5, 10, 30)


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True)
    options_of.add_argument("--corpus", type=Path, required=True)
    options_of.add_argument("--first", type=int, default=4000)
    options_of.add_argument("--edits", type=int, default=200)
    options_of.add_argument("--layer", type=int, default=7)
    options = options_of.parse_args()

    model, tokenizer = load(options.model, device=options.device)
    chosen = distinct_records(options.records, options.first, options.edits)
    config = emmet.EditConfig(layers=[options.layer])
    rows = []
    with tempfile.TemporaryDirectory() as values:
        for per_dimension in PER_DIMENSION:
            width = discover(model).projection(options.layer).d_in
            moments = emmet.collect_statistics(
                model, tokenizer, options.corpus, layers=[options.layer], tokens=per_dimension * width
            )
            editor = emmet.Editor(model, tokenizer, config=config, statistics=moments, value_cache=values)
            handle = editor.edit([record.edit for record in chosen])
            found = evaluate(editor.arch, tokenizer, chosen).metrics
            handle.undo()
            rows.append(
                {
                    "tokens / d": per_dimension,
                    "tokens": moments[options.layer].count,
                    **{
                        name: f"{found[name].mean:.1f} ({found[name].low:.1f}–{found[name].high:.1f})"
                        for name in ("ES", "PS", "NS", "S")
                    },
                    "ridge": Figures([handle.diagnostics[0].diagnostics.ridge], ".1e"),
                    "jitter": Figures([editor.preservation(options.layer).jitter], ".0e"),
                }
            )
    report(f"{len(chosen)} edits in one batch, layer {options.layer}", rows, options.json)


if __name__ == "__main__":
    main()
