"""How long a solve takes, against the published recipe: python bench/solve.py [--dims 1536 6400] [--edits 1 16 …]

The recipe is that of EMMET's published code: inverse(C) and inverse(KᵀC⁻¹K + μI) in float64 for every batch. MEMIT's
solves with μC + KKᵀ. emmet keeps the Cholesky factor of C, as it does in use; what that costs once, and what loading it
from a file costs, is shown apart.
For one edit the yardstick is the time to read the triangle of the factor once for each of two triangular solves, at
the memory bandwidth that a sum over 1 GiB reaches just before; it leaves nothing of the factor in a cache. Edits that
are to know nothing of each other are solved one by one, and by `solve_each`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

import emmet
from measure import Figures, in_turn, parser, ratios, report, seconds

RIDGE = 1.0
LOW_RANK = 256
ALONE = 64
BEYOND_CACHES = 2**27  # numbers


def second_moment(dim: int) -> Tensor:
    """C [dim, dim] with a few strong directions above a spectrum that falls over six decades, as keys have."""
    generator = torch.Generator().manual_seed(dim)
    strong = torch.randn(LOW_RANK, dim, generator=generator, dtype=torch.float64)
    return strong.T @ strong / LOW_RANK + torch.logspace(0, -6, dim, dtype=torch.float64).diag()


def recipe(moment: Tensor, keys: Tensor, residuals: Tensor) -> Tensor:
    """Δ [d_out, d_in] as research code finds it."""
    keys, residuals = keys.double(), residuals.double()
    inverse = torch.inverse(moment)
    gram = keys @ inverse @ keys.T
    adjusted = torch.inverse(gram + RIDGE * torch.eye(len(keys)).to(gram)) @ keys @ inverse
    return residuals.T @ adjusted


def memit(moment: Tensor, keys: Tensor, residuals: Tensor) -> Tensor:
    """Δ [d_out, d_in] as MEMIT's code finds it."""
    keys, residuals = keys.double(), residuals.double()
    return residuals.T @ torch.linalg.solve(RIDGE * moment + keys.T @ keys, keys.T).T


def first_use(moment: Tensor) -> dict[str, object]:
    dim = len(moment)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "factor.safetensors"
        metric = emmet.Preservation.from_second_moment(moment)
        factorise = seconds(lambda: emmet.Preservation.from_second_moment(moment))
        save = seconds(lambda: metric.save(file))
        load = seconds(lambda: emmet.Preservation.load(file))
    return {"d": dim, "factorise, s": Figures([factorise]), "save, s": Figures([save]), "load, s": Figures([load])}


def each_alone(metric: emmet.Preservation, rounds: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(ALONE, metric.dim, generator=generator).to(metric.device)
    residuals = torch.randn(ALONE, metric.dim // 4, generator=generator).to(metric.device)
    ways = {
        "one by one": lambda: [emmet.solve(metric, *edit, RIDGE) for edit in zip(keys, residuals, strict=True)],
        "solve_each": lambda: emmet.solve_each(metric, keys, residuals, RIDGE),
    }
    taken = in_turn(ways, rounds)
    return {
        "d": metric.dim,
        "solve_each, ms an edit": Figures([1000 * time / ALONE for time in taken["solve_each"]]),
        "one by one / solve_each": Figures(ratios(taken["one by one"], taken["solve_each"]), ".1f"),
    }


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--dims", type=int, nargs="+", default=[768, 1536])
    options_of.add_argument("--edits", type=int, nargs="+", default=[1, 16, 256, 1024, 4096, 10000])
    options_of.add_argument("--rounds", type=int, default=3)
    options = options_of.parse_args()

    uses, rows, alone = [], [], []
    memory = torch.ones(BEYOND_CACHES, dtype=torch.float64, device=options.device)
    for dim in options.dims:
        moment = second_moment(dim).to(options.device)
        uses.append(first_use(moment))
        metric = emmet.Preservation.from_second_moment(moment)
        single = metric.in_float32()
        for count in options.edits:
            generator = torch.Generator().manual_seed(count)
            keys = torch.randn(count, dim, generator=generator).to(options.device)
            residuals = torch.randn(count, dim // 4, generator=generator).to(options.device)

            def solve(metric: emmet.Preservation = metric, k: Tensor = keys, r: Tensor = residuals) -> emmet.Update:
                return emmet.solve(metric, k, r, ridge=RIDGE)

            exact = solve().dense()
            error = ((solve(single).dense() - exact).norm() / exact.norm()).item()
            difference = ((recipe(moment, keys, residuals) - exact).norm() / exact.norm()).item()
            taken = in_turn(
                {
                    "recipe": lambda k=keys, r=residuals, c=moment: recipe(c, k, r),
                    "memit": lambda k=keys, r=residuals, c=moment: memit(c, k, r),
                    "memory": memory.sum,
                    "emmet": solve,
                    "float32": lambda one=single, way=solve: way(one),
                },
                options.rounds,
            )
            reading = [time * dim * (dim + 1) / BEYOND_CACHES for time in taken["memory"]]
            rows.append(
                {
                    "d": dim,
                    "n": count,
                    "emmet, s": Figures(taken["emmet"], ".4f"),
                    "recipe / emmet": Figures(ratios(taken["recipe"], taken["emmet"]), ".1f"),
                    "MEMIT's / emmet": Figures(ratios(taken["memit"], taken["emmet"]), ".1f"),
                    "emmet / reading": Figures(ratios(taken["emmet"], reading), ".1f") if count == 1 else "",
                    "emmet / float32": Figures(ratios(taken["emmet"], taken["float32"])),
                    "float32 error": Figures([error], ".0e"),
                    "recipe differs": Figures([difference], ".0e"),
                }
            )
        alone.append(each_alone(metric, options.rounds))
    report("First use of a metric", uses, None)
    report(
        f"{ALONE} edits alone, μ = {RIDGE:g}, d_out = d / 4",
        alone,
        options.json and options.json.with_stem(f"{options.json.stem}-each"),
    )
    report(f"Solve, μ = {RIDGE:g}, d_out = d / 4", rows, options.json)


if __name__ == "__main__":
    main()
