"""How long `Covariance.add` takes, against XᵀX by torch: python bench/covariance.py [--dims 1536 3072] [--tokens 4096]

Both run in turn on the same float32 keys. Prints the median ratio of the times with its range, and the error against
float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import emmet

ROUNDS = 15


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[1536, 3072])
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()

    print(f"{options.tokens} tokens, float32, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    print("| d | XᵀX / add | relative error |\n| --- | --- | --- |")
    for dim in options.dims:
        keys = torch.randn(options.tokens, dim, generator=torch.Generator().manual_seed(0))
        covariance = emmet.Covariance(dim)
        covariance.add(keys)
        exact = keys.double().T @ keys.double()
        error = ((covariance.sum() - exact).norm() / exact.norm()).item()
        ratios = []
        for _ in range(ROUNDS):
            plain = seconds(lambda keys=keys: keys.T @ keys)
            ratios.append(plain / seconds(lambda keys=keys, to=covariance: to.add(keys)))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"| {dim} | {spread} | {error:.1e} |")


if __name__ == "__main__":
    main()
