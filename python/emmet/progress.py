"""How long-running functions report progress without printing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as ``progress(stage, done, total)`` whenever `done` of `total` units of `stage` are complete."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...


def silent(_stage: str, _done: int, _total: int, /) -> None:
    """Report nothing."""


def within(progress: Progress, before: int, total: int) -> Progress:
    """Progress of a part, which begins `before` units into the whole, reported as progress of the whole."""
    return lambda stage, done, _total: progress(stage, before + done, total)
