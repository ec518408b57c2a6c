"""`emmet edit`: edit facts in a model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EditConfig, ResolvedConfig
from ..distributed import ALONE
from ..edits import Edit, check_consistent, read_edits
from .arguments import (
    LARGEST_SEED,
    add_model,
    add_output,
    add_records,
    add_settings,
    add_statistics,
    add_values,
    command,
    whole_number,
)
from .export import FORMATS, FORMATS_HELP, write_update
from .inputs import UnchangedLedger, check_apart, check_ledger, edit_config, load_model, read_statistics
from .terminal import Row, Stopwatch, print_rows, progress_bars

if TYPE_CHECKING:
    from ..architectures import Architecture
    from ..editor import EditHandle, Editor
    from ..ledger import Ledger


def add_edit(commands: Any) -> None:
    parser = command(
        commands,
        _edit,
        "edit",
        "edit facts in a model",
        """\
EDITS.jsonl holds one edit a line:
  {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target": "English"}

examples:
  emmet edit gpt2 edits.jsonl --out delta/                          statistics from sampled text, kept in the cache
  emmet edit gpt2 edits.jsonl --out delta/ --layers 7 --stats stats/
  emmet edit gpt2 edits.jsonl --out model/ --format model           a whole model, for AutoModel.from_pretrained
  emmet edit gpt2 edits.jsonl --out adapter/ --format peft          a LoRA adapter, for PEFT and vLLM
  emmet edit gpt2 edits.jsonl --out delta/ --method memit --layers 4-8 --ridge 15000
  emmet edit gpt2 more.jsonl --out delta/ --ledger ledger/ --author "A. Reviewer"   beside the edits of a ledger

Value vectors are kept as they are found: the same command goes on where it was interrupted.""",
    )
    parser.set_defaults(world=ALONE)
    add_model(parser)
    add_records(parser, "EDITS.jsonl", "edits; CounterFact and zsRE files are read as well")
    add_settings(parser)
    add_statistics(parser)
    add_values(parser)
    parser.add_argument(
        "--seed",
        type=whole_number(0, LARGEST_SEED),
        help="of the context prefixes that the model writes (default: 0)",
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="DIR",
        help="account of all edits, made if it is new: the output holds those in it as well as these",
    )
    parser.add_argument("--author", default="", metavar="TEXT", help="who makes the edits, for the ledger")
    add_output(parser)
    parser.add_argument(
        "--format",
        choices=("delta", *FORMATS),
        default="delta",
        help=f"the update alone, which `emmet export` turns into the others (default); {FORMATS_HELP}",
    )


def _edit(options: argparse.Namespace) -> None:
    from ..architectures import discover
    from ..checkpoint import save_model
    from ..corpora import open_corpus
    from ..editor import Editor
    from ..export import gguf
    from ..keys import checked_prompts
    from ..output import check_folder, check_output
    from ..storage import cache_folder

    config = edit_config(options)
    edits = read_edits(options.records)[: options.limit]
    check_consistent(edits)
    check_output(options.out, "update")
    values = options.values or cache_folder() / "values"
    check_folder(values)
    check_apart(options.out, options.model, options.records, options.config, options.corpus, options.stats, values)
    unchanged = None if options.ledger is None else UnchangedLedger(options.ledger)
    known = None if options.ledger is None else _known_ledger(options)
    if options.format == "gguf":
        gguf.Base.read(options.model)
    statistics = None
    if options.stats is None:
        open_corpus(options.corpus).digest()
    else:
        statistics = read_statistics(options.stats, config.layers or ())

    watch = Stopwatch()
    with progress_bars(options) as progress:
        model, tokenizer = load_model(options, watch, progress)
        # Before time is spent on statistics and edits.
        arch = discover(model)
        checked_prompts(arch, tokenizer, edits, config.prefixes or ())
        if options.format == "peft":
            _check_rank(arch, config, [*edits, *(entry.edit for entry in known.entries)] if known else edits)
        with watch.stage("statistics"):
            editor = Editor(
                model,
                tokenizer,
                config=config,
                statistics=statistics,
                corpus=options.corpus,
                value_cache=values,
                progress=progress,
                world=options.world,
            )
        if known:
            with watch.stage("ledger"):
                editor.load(options.ledger)
        with watch.stage("edit"):
            handle = editor.edit(edits, author=options.author)
        if options.world.rank > 0:
            return  # the first process writes and prints
        with watch.stage("write"), nullcontext() if unchanged is None else unchanged.held():
            if options.format == "model":
                save_model(model, tokenizer, editor.delta(), options.out, progress)
            else:
                write_update(options, editor.delta())
            if unchanged is not None:
                editor.save(options.ledger)
    account = () if options.ledger is None else _account_rows(options.ledger, editor, handle)
    print_rows(*_edit_rows(handle, editor.config), *account, ("time", str(watch)), ("written", str(options.out)))


def _known_ledger(options: argparse.Namespace) -> Ledger | None:
    """The ledger, None if it is new. Raises EmmetError if the folder is none, or could not be written."""
    from ..ledger import Ledger
    from ..output import MANIFEST

    read = (options.model, options.records, options.config, options.corpus, options.stats, options.values)
    check_ledger(options.ledger, options.out, *read)
    if not (options.ledger / MANIFEST).exists():
        return None
    known, _ = Ledger.load(options.ledger)
    return known


def _check_rank(arch: Architecture, config: EditConfig, edits: Sequence[Edit]) -> None:
    """Raise EmmetError if the update may come to a rank that no server takes.

    `edits` are new ones and those of the ledger, of which the new replace some.
    """
    from ..export import peft

    facts = len({(edit.prompt, edit.subject) for edit in edits})
    for layer in config.resolve(arch.model.config).layers:
        projection = arch.projection(layer)
        peft.padded_rank(min(facts, projection.d_out, projection.d_in))


def _edit_rows(handle: EditHandle, config: ResolvedConfig) -> Iterator[Row]:
    loss = handle.values.loss
    low = f"below {config.stop_loss:g} for {int((loss < config.stop_loss).sum())} of {len(loss)}"
    reached = "both before the step" if config.optimizer == "gradient" else low
    yield "edits", f"{len(loss)} by {config.method}"
    yield "loss", f"median {loss.median():.3g}, largest {loss.max():.3g}, {reached}"
    for layer, delta in handle.delta.layers.items():
        solves = [report.diagnostics for report in handle.diagnostics if report.layer == layer]
        ridge, residual, condition = (
            max(getattr(solve, name) for solve in solves) for name in ("ridge", "constraint_residual", "condition")
        )
        seconds = sum(solve.seconds_whiten + solve.seconds_system for solve in solves)
        text = f"{delta.module}: ridge {ridge:.3g}, constraint residual {residual:.1e}, condition {condition:.1e}, "
        yield f"layer {layer}", text + f"solved in {seconds:.2g} s"


def _account_rows(ledger: Path, editor: Editor, handle: EditHandle) -> Iterator[Row]:
    yield "ledger", f"{ledger}: {len(editor.list())} edits, of which {handle.entries[0].id} and above are new"
    targets = {(entry.edit.prompt, entry.edit.subject): entry.edit.target for entry in handle.entries}
    for entry in handle.replaced:
        newer = targets[entry.edit.prompt, entry.edit.subject]
        yield "replaced", f"edit {entry.id}: {entry.edit.text!r} → {entry.edit.target!r}, which is now {newer!r}"
