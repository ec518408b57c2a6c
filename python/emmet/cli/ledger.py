"""`emmet ledger`: list the edits of a ledger, or take some back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .arguments import add_output, command, whole_number
from .inputs import UnchangedLedger, check_apart, check_ledger, load_model
from .terminal import Stopwatch, print_rows, progress_bars


def add_ledger(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "ledger",
        help="list the edits of a ledger, or take some back",
        description="List the edits of a ledger, which `emmet edit --ledger` keeps, or take some back.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="show all edits", description="Show all edits of a ledger.")
    listing.set_defaults(run=_list)
    _add_folder(listing)

    removal = command(
        actions,
        _remove,
        "remove",
        "take edits back, as if they had never been made",
        """\
examples:
  emmet ledger remove ledger/ 3 5 --stats stats/ --out delta/

The delta holds the edits that are left.""",
    )
    _add_folder(removal)
    removal.add_argument("ids", metavar="ID", nargs="+", type=whole_number(1), help="as `emmet ledger list` shows them")
    removal.add_argument("--model", help="what the ledger is for (default: as it says)")
    removal.add_argument(
        "--stats", type=Path, required=True, metavar="DIR", help="statistics that the edits were made with"
    )
    add_output(removal)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", type=Path, metavar="LEDGER", help="folder that `emmet edit --ledger` wrote")


def _list(options: argparse.Namespace) -> None:
    from ..ledger import Ledger

    ledger, base = Ledger.load(options.ledger)
    rows = [("model", base.name or "unknown"), ("edits", str(len(ledger.entries)))]
    for entry in ledger.entries:
        author = f", {entry.author}" if entry.author else ""
        text = f"{entry.edit.text!r} → {entry.edit.target!r} by {entry.config.method}, {entry.time}{author}"
        rows.append((str(entry.id), text))
    print_rows(*rows)


def _remove(options: argparse.Namespace) -> None:
    from ..editor import Editor
    from ..ledger import Ledger
    from ..output import check_output

    unchanged = UnchangedLedger(options.ledger)
    ledger, base = Ledger.load(options.ledger)
    ledger.first_with(options.ids)  # unknown ids are reported before the model is loaded
    options.model = options.model or base.name
    if options.model is None:
        message = f"{options.ledger} does not say what model it is for: name it with --model"
        raise ConfigError(message)
    check_output(options.out, "update")
    check_apart(options.out, options.model, options.stats)
    check_ledger(options.ledger, options.out, options.model, options.stats)
    watch = Stopwatch()
    with progress_bars(options) as progress:
        model, tokenizer = load_model(options, watch, progress)
        config = ledger.batches[-1].config
        editor = Editor(model, tokenizer, config=config, statistics=options.stats, progress=progress)
        with watch.stage("ledger"):
            editor.load(options.ledger)
        with watch.stage("remove"):
            editor.remove(options.ids)
        with watch.stage("write"), unchanged.held():
            editor.delta().save(options.out)
            editor.save(options.ledger)
    print_rows(("edits", f"{len(editor.list())} left"), ("time", str(watch)), ("written", str(options.out)))
