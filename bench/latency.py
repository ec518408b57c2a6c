"""How long one edit takes, stage by stage: python bench/latency.py MODEL --records FILE [--sizes 1 8 64]

A warm `Editor` makes edits one at a time, then in batches, and takes each back. Each stage is timed by itself, and
`edit` as a whole. For the values, which take nearly all the time, the floating-point operations of matrix products are
counted, but for those inside of attention, and set against those that a large product does in the time they took.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import emmet
from emmet._core import linear, prefers_onednn
from emmet.edits import Edit
from emmet.keys import in_contexts
from emmet.loading import load
from measure import Figures, distinct_records, parser, report, seconds

FIRST_EDIT = 3000
STAGES = ("tokenise", "values", "keys", "solve", "apply", "undo", "edit")
PEAK_SIZE = 2048


def peak_flops(like: torch.Tensor) -> float:
    """Operations a second of a large matrix product in a weight's dtype and on its device: the best of five."""
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE).to(like)
    product = linear if prefers_onednn() else torch.mm
    return 2 * PEAK_SIZE**3 / min(seconds(lambda: product(matrix, matrix)) for _ in range(5))


def linear_flops(rows: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """Operations of x Wᵀ, from the shapes of x [..., in] and W [out, in]."""
    return 2 * math.prod(rows) * weight[0]


def once(editor: emmet.Editor, edits: Sequence[Edit]) -> dict[str, float]:
    """Seconds of each stage for one batch, and the operations that its values took ("flops")."""
    (layer,) = editor.config.layers
    projection = editor.arch.projection(layer)
    metric = editor.preservation(layer)
    keys = editor.keys(edits, layer).to(metric.device)
    residuals = torch.randn(len(edits), projection.d_out, generator=torch.Generator().manual_seed(0)).to(keys)
    update = emmet.solve(metric, keys, residuals, editor.config.ridge)
    before = projection.weight.detach().clone()
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: linear_flops})
    taken = {
        "tokenise": seconds(lambda: [in_contexts(editor.tokenizer, edit, editor.prefixes) for edit in edits]),
        "values": seconds(lambda: editor.values(edits)),
        "keys": seconds(lambda: editor.keys(edits, layer)),
        "solve": seconds(lambda: emmet.solve(metric, keys, residuals, editor.config.ridge)),
        "apply": seconds(lambda: update.apply_(projection.weight, projection.transposed)),
    }
    with torch.no_grad():
        projection.weight.copy_(before)
    handles: list[emmet.EditHandle] = []
    taken["edit"] = seconds(lambda: handles.append(editor.edit(edits)))
    taken["undo"] = seconds(lambda: handles[0].undo())
    with counter:
        editor.values(edits)
    return {**taken, "flops": counter.get_total_flops()}


class Percentiles(Figures):
    """A table has p50 and p95."""

    def __str__(self) -> str:
        p50, p95 = torch.tensor(self.values, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double())
        return f"{p50:{self.form}} / {p95:{self.form}}"


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True)
    options_of.add_argument("--stats", help="a folder of statistics; left out, they are sampled once and kept")
    options_of.add_argument("--layer", type=int, default=7)
    options_of.add_argument("--optimizer", choices=["adam", "newton"], default="adam", help="of the values")
    options_of.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 64])
    options_of.add_argument("--batches", type=int, nargs="+", default=[20, 3, 1], help="how many of each size")
    options = options_of.parse_args()

    model, tokenizer = load(options.model, device=options.device)
    config = emmet.EditConfig(layers=[options.layer], optimizer=options.optimizer)
    editor = emmet.Editor(model, tokenizer, config=config, statistics=options.stats)
    needed = max(size * batches for size, batches in zip(options.sizes, options.batches, strict=True))
    edits = [record.edit for record in distinct_records(options.records, FIRST_EDIT, needed)]
    once(editor, edits[:1])
    peak = peak_flops(editor.arch.projection(options.layer).weight.detach())
    rows = []
    for size, batches in zip(options.sizes, options.batches, strict=True):
        taken = [once(editor, edits[first : first + size]) for first in range(0, size * batches, size)]
        of_peak = [100 * one["flops"] / one["values"] / peak for one in taken]
        rows.append(
            {
                "edits": size,
                "batches": batches,
                **{f"{stage}, ms": Percentiles([1000 * one[stage] for one in taken], ".1f") for stage in STAGES},
                "values, % of the arithmetic bound": Figures(of_peak, ".0f"),
            }
        )
    title = f"p50 / p95 of a warm editor, {options.optimizer}, layer {options.layer}"
    report(f"{title}, {peak / 1e9:.0f} GFLOP/s in a large product", rows, options.json)


if __name__ == "__main__":
    main()
