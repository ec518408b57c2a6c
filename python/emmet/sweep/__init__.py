"""Experiments: every combination of methods, layers, ridges and batch sizes on one model and one data set."""

from __future__ import annotations

from .plan import Plan
from .run import sweep

__all__ = ["Plan", "sweep"]
