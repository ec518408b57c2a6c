"""The time of a solve against n and d, beside what theory says: python bench/plot.py build/bench/solve.json FILE.svg

Dashed lines count the multiplications of the formula, and pass through the largest measurement of each curve: below it,
time falls with the slope of theory until reading the factor or fixed costs take over.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Times = dict[tuple[int, int], float]


def multiplications(dim: int, edits: int) -> float:
    """Of a solve with a cached factor, a ridge and d_out = d / 4, in the form that fits so many edits."""
    out = dim / 4
    whiten, reached = edits * dim**2 / 2, edits * dim * out
    if edits > dim:
        return whiten + edits * dim**2 / 2 + dim**3 / 6 + reached + dim**2 * out + reached + out * dim**2 / 2
    system = edits**2 * dim / 2 + edits**3 / 6 + edits**2 * out
    if edits * (dim + out) >= dim * out:
        return whiten + system + reached + out * dim**2 / 2 + reached
    factors = edits**2 * dim / 2 + edits**2 * out / 2 + edits * dim**2 / 2
    return whiten + system + factors + edits**2 * dim + edits**2 * out


def draw(axes: Axes, times: Times, names: Sequence[int], of: Callable[[int, int], tuple[int, int]], label: str) -> None:
    """One curve for each name: the points `of` which are (d, n)."""
    for name in names:
        xs = sorted({x for pair in times for x in pair if of(name, x) in times})
        points = [(x, times[of(name, x)]) for x in xs]
        (line,) = axes.loglog(*zip(*points, strict=True), "o-", markersize=4, label=f"{label} = {name:,}")
        rate = points[-1][1] / multiplications(*of(name, points[-1][0]))
        axes.loglog(xs, [rate * multiplications(*of(name, x)) for x in xs], "--", linewidth=1, color=line.get_color())
    axes.set_ylabel("seconds")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")


def main() -> None:
    options_of = argparse.ArgumentParser(description=__doc__)
    options_of.add_argument("figures", type=Path, help="what bench/solve.py --json wrote")
    options_of.add_argument("svg", type=Path)
    options = options_of.parse_args()

    rows = json.loads(options.figures.read_text())["rows"]
    times = {(row["d"], row["n"]): statistics.median(row["emmet, s"]) for row in rows}
    dims, edits = sorted({d for d, _ in times}), sorted({n for _, n in times})
    matplotlib.rcParams.update({"svg.hashsalt": "emmet", "svg.fonttype": "none"})  # the same bytes each time
    figure = Figure(figsize=(9, 4), layout="constrained")
    against_n, against_d = figure.subplots(1, 2)
    draw(against_n, times, dims, lambda dim, n: (dim, n), "d")
    against_n.set_xlabel("n, edits")
    draw(against_d, times, [n for n in edits if sum((d, n) in times for d in dims) > 1], lambda n, dim: (dim, n), "n")
    against_d.set_xlabel("d, dimensions")
    figure.savefig(options.svg, metadata={"Date": None})


if __name__ == "__main__":
    main()
