"""How much memory an edit's solve takes: python bench/memory.py [--dim 14336] [--edits 10000] [--outputs 4096]

The stages are those of the editor, on a layer of random weights: statistics read from their file, their factorisation,
the solve for keys and residuals in float64, and the update of the weight in float32. Peaks are of resident memory that
belongs to no file, beside what was there before the first stage, the weight. Keys, residuals and the keys in the metric
lie in files, when they are large (`emmet::scratch_rows`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import emmet
from emmet._core import scratch_rows
from emmet.statistics import LayerStatistics
from measure import Figures, parser, peak_bytes, report, resident_bytes

RIDGES = (0.0, 1.0)


def write_statistics(folder: Path, dim: int) -> Path:
    """Statistics of `dim` keys of a diagonal C, in a file of the usual size."""
    moment = torch.linspace(1, 2, dim, dtype=torch.float64).diag()
    LayerStatistics(0, moment, dim, "none", "torch.float32", ()).save(folder)
    return folder / "layer.0.safetensors"


def main() -> None:
    options_of = parser(__doc__, on_gpu=False)
    options_of.add_argument("--dim", type=int, default=14336)
    options_of.add_argument("--edits", type=int, default=10000)
    options_of.add_argument("--outputs", type=int, default=4096)
    options = options_of.parse_args()
    n, dim, outputs = options.edits, options.dim, options.outputs

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = write_statistics(Path(folder), dim)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(outputs, dim, generator=generator)
        keys, residuals = scratch_rows(n, dim), scratch_rows(n, outputs)
        for row in range(n):
            keys[row].normal_(generator=generator)
            residuals[row].normal_(generator=generator)
        emmet.solve(emmet.Preservation.from_second_moment(torch.eye(4)), torch.ones(4), torch.ones(4))
        start = resident_bytes()
        for ridge in RIDGES:
            made: dict[str, object] = {}

            def factorise(made: dict[str, object] = made) -> None:
                made["metric"] = emmet.Preservation.from_second_moment(LayerStatistics.load(file).second_moment)

            def solve(made: dict[str, object] = made, ridge: float = ridge) -> None:
                made["update"] = emmet.solve(made["metric"], keys, residuals, ridge)

            def apply(made: dict[str, object] = made) -> None:
                made["update"].apply_(weight)

            for stage in (factorise, solve, apply):
                before = resident_bytes() - start
                peak = before + peak_bytes(stage)
                rows.append(
                    {
                        "μ": ridge,
                        "stage": stage.__name__,
                        "peak, GB": Figures([peak / 1e9]),
                        "in d² doubles": Figures([peak / 8 / dim**2]),
                        "left, GB": Figures([(resident_bytes() - start) / 1e9]),
                    }
                )
    title = f"Memory of {n:,} edits, d_in = {dim:,}, d_out = {outputs:,}, beside its weight"
    report(title, rows, options.json)


if __name__ == "__main__":
    main()
