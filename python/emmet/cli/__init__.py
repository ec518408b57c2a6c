"""The command line: `main`, and a file for each command, which adds its parser and runs it.

transformers takes seconds to import, so each command imports what needs it when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..distributed import ALONE, World, joined
from ..errors import ConfigError, EmmetError, LostProcessError
from ..heap import bound_kernel_cache
from .edit import add_edit
from .eval import add_eval
from .export import add_export
from .info import add_info
from .ledger import add_ledger
from .stats import add_stats
from .sweep import add_sweep
from .terminal import print_error, warnings_as_lines

_OK, _BAD_INPUT, _LOST_PROCESS, _INTERRUPTED = 0, 2, 75, 130  # 75 is EX_TEMPFAIL: try again


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `emmet` with `arguments` (those of the process by default) and return its exit code.

    0: done. 2: the input is at fault, or the disk is full; one line on standard error says how. 75: another process of
    the run died. 130: interrupted by Ctrl-C. Whatever was written before an exit other than 0 is whole, and the same
    command goes on from there (docs/reliability.md). Other errors, which are emmet's own, propagate: Python exits with
    1. Of several processes, which torchrun starts, only the first prints.
    """
    bound_kernel_cache()
    world = ALONE
    try:
        with joined() as world:
            options = _parser().parse_args(arguments)
            _share(options, world)
            with warnings_as_lines(shown=world.rank == 0):
                options.run(options)
    except EmmetError as error:
        if world.rank == 0:
            print_error("error:", *str(error).splitlines())
        return _LOST_PROCESS if isinstance(error, LostProcessError) else _BAD_INPUT
    except KeyboardInterrupt:
        if world.rank == 0:
            print_error("interrupted")
        return _INTERRUPTED
    return _OK


def _share(options: argparse.Namespace, world: World) -> None:
    """Let a command know of the processes of the run. Raises ConfigError if it is only for one."""
    if world.size > 1 and not hasattr(options, "world"):
        message = f"expected one process, got {world.size}: of emmet's commands, torchrun can run stats and edit"
        raise ConfigError(message)
    options.world = world
    if world.rank > 0:
        options.quiet = True


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
