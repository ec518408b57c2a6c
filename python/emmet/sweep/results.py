"""What the runs of a sweep come to: all their batches together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluate import Report, summarise
from .plan import Run
from .store import Outcome


@dataclass(frozen=True)
class RunResult:
    """The batches of one run. `scores` are of the records of all that did not fail, None if every one did."""

    run: Run
    outcomes: Sequence[Outcome]
    scores: Report | None

    @staticmethod
    def of(run: Run, kind: str, outcomes: Sequence[Outcome]) -> RunResult:
        """The result of batches of records of one kind."""
        scored = any(outcome["records"] for outcome in outcomes)
        return RunResult(run, outcomes, pooled(kind, outcomes) if scored else None)

    @property
    def failures(self) -> list[str]:
        """Why batches failed, a reason for each that did."""
        return [outcome["error"] for outcome in self.outcomes if "error" in outcome]

    def figures(self, name: str) -> list[float]:
        """A figure of `LayerFigures` for each batch that has it: the largest of its layers."""
        batches = ([layer[name] for layer in outcome["layers"]] for outcome in self.outcomes)
        return [max(figures) for figures in batches if figures and None not in figures]

    def drift(self, name: str) -> list[float]:
        """A figure of `TextDrift` for each batch that it was measured for."""
        return [outcome["drift"][name] for outcome in self.outcomes if "drift" in outcome]


@dataclass(frozen=True)
class Results:
    """A sweep: what it was made of, as JSON, and what the unedited model and each run came to."""

    facts: Mapping[str, Any]
    unedited: Report
    runs: Sequence[RunResult]

    @property
    def metrics(self) -> list[str]:
        """The metrics to show: S, and before it those that it is the mean of."""
        names = list(self.unedited.metrics)
        return names[: names.index("S") + 1]


def pooled(kind: str, outcomes: Sequence[Outcome]) -> Report:
    """The scores of the records of all batches together, of which there is one or more."""
    return summarise(kind, [record for outcome in outcomes for record in outcome["records"]])
