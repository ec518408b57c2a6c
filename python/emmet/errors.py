"""Every error that emmet raises, one base class for all."""

from __future__ import annotations

from ._core import (
    DependentKeysError,
    EmmetError,
    FormatError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)


class EditError(EmmetError):
    """An edit, or a file of edits, is malformed or contradicts itself."""


class ConfigError(EmmetError):
    """A setting is unknown or out of range."""


class ModelError(EmmetError):
    """A model or tokenizer cannot be loaded or edited."""


class LostProcessError(EmmetError):
    """Another process of the same run has died."""


class StatisticsError(EmmetError):
    """Statistics are missing, or belong to another model, layer or width."""


__all__ = [
    "ConfigError",
    "DependentKeysError",
    "EditError",
    "EmmetError",
    "FormatError",
    "LostProcessError",
    "ModelError",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "ShapeError",
    "StatisticsError",
]
