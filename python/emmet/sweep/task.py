"""One run of a sweep: its batches are edited, scored and taken back, and what came of them is written down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DependentKeysError, NonFiniteError, NotPositiveDefiniteError
from ..progress import Progress
from ..storage import first_line
from .plan import Batch
from .store import Outcome, RunFile
from .workbench import Edited

# Outcomes are written when there are new ones of this many records: what a kill loses at most, beyond one batch.
RECORDS_A_WRITE = 64

# Of so many batches of each run the drift is measured, as it takes two passes over a text.
DRIFT_BATCHES = 4

# What a batch may fail by though the input is sound: keys that depend on each other, or edits that destroy the model.
_FAILURES = (DependentKeysError, NonFiniteError, NotPositiveDefiniteError)

Scorer = Callable[[int, int], list[dict[str, Any]]]
"""Scores the records from the first up to the second index in the model as it is."""


@dataclass(frozen=True)
class Task:
    """The batches of one run, where their outcomes go, and what makes the edits of a batch for as long as it lasts."""

    file: RunFile
    batches: Sequence[Batch]
    edited: Callable[[Batch], AbstractContextManager[Edited]]

    @property
    def records(self) -> int:
        """How many records are scored."""
        return sum(batch.scored for batch in self.batches)

    def stored(self) -> list[Outcome]:
        """The outcomes that the file has, without a gap from the first batch on. Raises as `RunFile.read`."""
        pairs = zip(self.file.read(), self.batches, strict=False)
        found = itertools.takewhile(lambda pair: _is_of(*pair), pairs)
        return [outcome | {"records": outcome["records"][: batch.scored]} for outcome, batch in found]

    def complete(self, score: Scorer, progress: Progress) -> list[Outcome]:
        """The outcomes of all batches, of which those are computed that the file lacks.

        Progress counts records.
        """
        outcomes = self.stored()
        done = written = sum(batch.scored for batch in self.batches[: len(outcomes)])
        for batch in self.batches[len(outcomes) :]:
            progress("sweep", done, self.records)
            outcomes.append(self._outcome(batch, score, with_drift=len(outcomes) < DRIFT_BATCHES))
            done += batch.scored
            if done - written >= RECORDS_A_WRITE or done == self.records:
                self.file.write(outcomes)
                written = done
        progress("sweep", done, self.records)
        return outcomes

    def _outcome(self, batch: Batch, score: Scorer, *, with_drift: bool) -> Outcome:
        outcome: Outcome = {"first": batch.first, "end": batch.end, "layers": [], "records": []}
        try:
            with self.edited(batch) as edited:
                found: Outcome = {"layers": edited.layers, "records": score(batch.first, batch.first + batch.scored)}
                if with_drift and edited.drift is not None:
                    found["drift"] = asdict(edited.drift())
            return outcome | found
        except _FAILURES as error:
            return outcome | {"error": first_line(error)}


def _is_of(outcome: Outcome, batch: Batch) -> bool:
    same_edits = (outcome["first"], outcome["end"]) == (batch.first, batch.end)
    return same_edits and ("error" in outcome or len(outcome["records"]) >= batch.scored)
