"""All that is printed: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..errors import EmmetWarning
from ..progress import Progress, silent

Row = tuple[str, str]  # of the results: what it is about, and what there is to say

_BAR_DELAY = 2.0  # seconds: a stage that is over sooner shows no bar


@contextmanager
def progress_bars(options: argparse.Namespace) -> Iterator[Progress]:
    """A bar on standard error for each stage that takes its time, while it lasts; none with --quiet."""
    bars: dict[str, tqdm] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            delay = _BAR_DELAY if total > 1 else 0.0  # a single step gives no later chance to show the bar
            bars[stage] = tqdm(desc=stage, total=total, initial=done, delay=delay, leave=False, dynamic_ncols=True)
        bars[stage].update(done - bars[stage].n)
        if done == total:
            bars.pop(stage).close()

    try:
        yield silent if options.quiet else show
    finally:
        for bar in bars.values():
            bar.close()


@contextmanager
def warnings_as_lines(*, shown: bool) -> Iterator[None]:
    """emmet's own warnings as a line on standard error, each once, or not at all; those of others as they are."""
    told: set[str] = set()
    with warnings.catch_warnings():
        show_others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, EmmetWarning):
                show_others(message, category, *place, **more)
            elif shown and str(message) not in told:
                told.add(str(message))
                tqdm.write(f"emmet: warning: {message}", file=sys.stderr)  # above the bars

        warnings.showwarning = show
        yield


class Stopwatch:
    """How long each stage took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start


def print_rows(*rows: Row) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def print_error(*words: str) -> None:
    print("emmet:", *words, file=sys.stderr)
