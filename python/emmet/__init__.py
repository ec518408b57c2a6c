"""Edit facts in a language model by closed form: ROME, MEMIT, EMMET and AlphaEdit as one solver."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch  # before the extension, which needs torch's libraries loaded

from ._build import TORCH_VERSION


def _require_torch(built_against: str, installed: str) -> None:
    """Raise ImportError unless both versions have the same major and minor number."""
    minor = ".".join(built_against.split(".")[:2])
    if installed.split(".")[:2] != minor.split("."):
        message = (
            f"emmet was built against torch {built_against}, but torch {installed} is installed; "
            f"run `pip install 'torch=={minor}.*'`, or build emmet again for the installed torch"
        )
        raise ImportError(message)


_require_torch(TORCH_VERSION, torch.__version__)

from ._core import Covariance, Preservation, Update, emmet, memit, rome, solve, solve_each  # noqa: E402
from .errors import (  # noqa: E402
    ConfigError,
    DependentKeysError,
    EditError,
    EmmetError,
    EmmetWarning,
    FormatError,
    LostProcessError,
    ModelError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
    StatisticsError,
)

if TYPE_CHECKING:
    from .config import EditConfig
    from .delta import Delta
    from .editor import Editor
    from .edits import Edit
    from .statistics import collect_statistics
else:
    # Loaded when asked for: what they import takes seconds, and the solver alone needs none of it.
    _LAZY = {
        "Delta": "delta",
        "Edit": "edits",
        "EditConfig": "config",
        "Editor": "editor",
        "collect_statistics": "statistics",
    }

    def __getattr__(name):
        if name in _LAZY:
            return getattr(import_module(f".{_LAZY[name]}", __name__), name)
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)


__version__ = version("emmet-edit")

__all__ = [
    "ConfigError",
    "Covariance",
    "Delta",
    "DependentKeysError",
    "Edit",
    "EditConfig",
    "EditError",
    "Editor",
    "EmmetError",
    "EmmetWarning",
    "FormatError",
    "LostProcessError",
    "ModelError",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "Preservation",
    "ShapeError",
    "StatisticsError",
    "Update",
    "__version__",
    "collect_statistics",
    "emmet",
    "memit",
    "rome",
    "solve",
    "solve_each",
]
