"""Whether edits hold, generalise and leave other facts alone: metrics of a model on records, with their uncertainty."""

from __future__ import annotations

from .downstream import Tasks, TaskScores
from .drift import measure_drift
from .references import read_references
from .report import Report, evaluate, summarise

__all__ = ["Report", "TaskScores", "Tasks", "evaluate", "measure_drift", "read_references", "summarise"]
