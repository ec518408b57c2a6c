"""``python -m emmet``: the command line, and ``--cmake-prefix`` for C++ projects that use the core."""

from __future__ import annotations

import sys
from pathlib import Path


def cmake_prefix() -> Path:
    """Return what goes into ``CMAKE_PREFIX_PATH`` for ``find_package(emmet CONFIG)``."""
    from . import _core

    return Path(_core.__file__).parent


def main() -> int:
    if sys.argv[1:] == ["--cmake-prefix"]:
        sys.stdout.write(f"{cmake_prefix()}\n")
        return 0

    from .cli import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
