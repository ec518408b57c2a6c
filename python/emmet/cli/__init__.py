"""The command line: `main`, and a file for each command, which adds its parser and runs it.

transformers takes seconds to import, so each command imports what needs it when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..errors import ConfigError, EmmetError
from .edit import add_edit
from .eval import add_eval
from .export import add_export
from .info import add_info
from .ledger import add_ledger
from .stats import add_stats
from .sweep import add_sweep
from .terminal import print_error

_OK, _BAD_INPUT, _INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `emmet` with `arguments` (those of the process by default) and return its exit code.

    0: done. 2: the input is at fault, or the disk is full; one line on standard error says how. 130: interrupted by
    Ctrl-C. Unless it is 0, nothing is written but the cache and the checkpoint of `emmet stats`. Other errors, which
    are emmet's own, propagate.
    """
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
    except EmmetError as error:
        print_error("error:", *str(error).splitlines())
        return _BAD_INPUT
    except KeyboardInterrupt:
        print_error("interrupted")
        return _INTERRUPTED
    return _OK


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are reported like all others."""

    def error(self, message: str) -> NoReturn:
        message += f"; see `{self.prog} --help`"
        raise ConfigError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="emmet",
        description="Edit facts in a language model by closed form: ROME, MEMIT, EMMET and AlphaEdit.",
        epilog="`emmet COMMAND --help` has the options of a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"emmet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_stats(commands)
    add_edit(commands)
    add_ledger(commands)
    add_export(commands)
    add_eval(commands)
    add_sweep(commands)
    add_info(commands)
    return parser
