"""Every error that emmet raises, and its warnings: a base class each for all."""

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


class EmmetWarning(UserWarning):
    """Something that costs quality or time, but stops nothing."""


__all__ = [
    "ConfigError",
    "DependentKeysError",
    "EditError",
    "EmmetError",
    "EmmetWarning",
    "FormatError",
    "LostProcessError",
    "ModelError",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "ShapeError",
    "StatisticsError",
]
