"""What the benchmarks share: timing ways in turn, ratios with their spread, tables, and JSON beside them."""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch

from emmet.edits import Record, read_records

_STATUS = Path("/proc/self/status")


def seconds(way: Callable[[], object]) -> float:
    """The wall time of one call, and of what it queues on a GPU."""
    _wait_for_gpu()
    start = time.perf_counter()
    way()
    _wait_for_gpu()
    return time.perf_counter() - start


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round: a machine that slows down slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    return taken


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as long `slow` took, round by round."""
    return [theirs / ours for theirs, ours in zip(slow, fast, strict=True)]


@dataclass(frozen=True)
class Figures:
    """What was measured, round by round: a table has the median and the range, JSON has all."""

    values: Sequence[float]
    form: str = ".2f"

    def __str__(self) -> str:
        median = f"{statistics.median(self.values):{self.form}}"
        lowest, highest = min(self.values), max(self.values)
        return median if len(self.values) == 1 else f"{median} ({lowest:{self.form}}–{highest:{self.form}})"


def peak_bytes(way: Callable[[], object]) -> int:
    """By how much the resident memory of the process rises during one call, as seen every millisecond (Linux)."""
    before = peak = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_bytes())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        way()
    finally:
        done.set()
        watching.join()
    return peak - before


def resident_bytes() -> int:
    """The resident memory of the process (Linux), without that of files: the system can write it out and take it."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024


def distinct_records(file: Path, first: int, count: int) -> list[Record]:
    """`count` records from the index `first` on, of which each has another prompt or subject."""
    found = {(record.edit.prompt, record.edit.subject): record for record in reversed(read_records(file)[first:])}
    return list(found.values())[::-1][:count]


def parser(description: str | None, *, on_gpu: bool = True) -> argparse.ArgumentParser:
    """With the options that all benchmarks have, or all that a GPU can run."""
    made = argparse.ArgumentParser(description=description)
    if on_gpu:
        made.add_argument("--device", type=torch.device, default="cpu", help="where to compute, such as cuda")
    made.add_argument("--json", type=Path, help="write the figures to this file too")
    return made


def report(title: str, rows: Sequence[Mapping[str, object]], json_file: Path | None) -> None:
    """Print a Markdown table of rows with the same keys, and write it as JSON where that is asked for."""
    columns = list(rows[0])
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else ""
    print(f"{title}, {torch.get_num_threads()} threads{gpu}\n")
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in columns) + " |")
    print()
    if json_file:
        document = {"title": title, "rows": rows}
        json_file.write_text(json.dumps(document, indent=2, ensure_ascii=False, default=attrgetter("values")))
