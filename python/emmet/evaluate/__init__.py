"""Whether edits hold, generalise and leave other facts alone: metrics of a model on records, with their uncertainty."""

from __future__ import annotations

from .report import Report, evaluate, summarise

__all__ = ["Report", "evaluate", "summarise"]
