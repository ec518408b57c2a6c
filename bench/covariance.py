"""How long `Covariance.add` takes, against XᵀX by torch: python bench/covariance.py [--dims 1536 3072] [--tokens 4096]

Both run in turn on the same float32 keys. The error is against float64, over all the tokens that were added.
"""

from __future__ import annotations

import torch

import emmet
from measure import Figures, in_turn, parser, ratios, report


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--dims", type=int, nargs="+", default=[1536, 3072])
    options_of.add_argument("--tokens", type=int, default=4096, help="keys in a batch")
    options_of.add_argument("--rounds", type=int, default=15)
    options = options_of.parse_args()

    rows = []
    for dim in options.dims:
        covariance = emmet.Covariance(dim, options.device)
        exact = torch.zeros(dim, dim, dtype=torch.float64, device=options.device)
        generator = torch.Generator().manual_seed(0)
        taken: dict[str, list[float]] = {"torch": [], "emmet": []}
        for _ in range(options.rounds):
            keys = torch.randn(options.tokens, dim, generator=generator).to(options.device)
            ways = {"torch": lambda x=keys: x.T @ x, "emmet": lambda x=keys, to=covariance: to.add(x)}
            for name, seconds in in_turn(ways, rounds=1).items():
                taken[name] += seconds
            exact.addmm_(keys.double().T, keys.double())
        error = ((covariance.sum() - exact).norm() / exact.norm()).item()
        rows.append(
            {
                "d": dim,
                "XᵀX / add": Figures(ratios(taken["torch"], taken["emmet"])),
                "tokens": covariance.count(),
                "relative error": Figures([error], ".1e"),
            }
        )
    report(f"Covariance.add, {options.tokens} float32 keys a batch", rows, options.json)


if __name__ == "__main__":
    main()
