"""Options and arguments that several commands take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ..config import parse_layers
from ..errors import ConfigError

LARGEST_SEED = 2**32 - 1

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def command(
    commands: Any, run: Callable[[argparse.Namespace], None], name: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    """A parser with what all commands share."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, or auto for all GPUs")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: the checkpoint's, float32 for GGUF)")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name on the Hugging Face hub, folder, or GGUF file")


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, new, empty or emmet's")


def add_records(parser: argparse.ArgumentParser, metavar: str, content: str) -> None:
    parser.add_argument("records", type=Path, metavar=metavar, help=content)
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="take only the first N records")


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", help="emmet (default), memit, rome or alphaedit")
    parser.add_argument(
        "--layers", type=layer_list, help='decoder layers, from 0: "7" or "4-8,10" (default: published, or by depth)'
    )
    parser.add_argument(
        "--ridge",
        type=ridge_or_auto,
        help="μ of the solver: 0 makes edits exact, more preserves more, auto is the least that is numerically safe",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.json",
        help="any of the settings of emmet.EditConfig, which the options here override",
    )


def add_statistics(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--stats", type=Path, metavar="DIR", help="statistics of `emmet stats`")
    add_corpus(source)


def add_corpus(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--corpus",
        default="self",
        metavar="TEXT",
        help="what to collect statistics on: a text file, hf:NAME, or self: what the model samples (default: self)",
    )


def add_values(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--values",
        type=Path,
        metavar="DIR",
        help="folder to keep value vectors in, and to take them from (default: in the cache)",
    )


def layer_list(text: str) -> tuple[int, ...]:
    try:
        return parse_layers(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def ridge_or_auto(text: str) -> float | Literal["auto"]:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError as error:
        message = f'expected a number or "auto", got {text!r}'
        raise argparse.ArgumentTypeError(message) from error


def whole_number(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `most`."""
    expected = f"of at least {least}" if most == sys.maxsize else f"from {least} to {most}"

    def parse(text: str) -> int:
        # int() alone would also take "1_0", and would refuse thousands of digits in its own words
        if not (text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
            message = f"expected a whole number {expected}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse
