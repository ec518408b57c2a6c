"""The command line. The only module that prints: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tqdm import tqdm

from . import __version__
from .config import EditConfig, ResolvedConfig, parse_layers
from .edits import Edit, Record, check_consistent, read_edits, read_records
from .errors import ConfigError, EmmetError
from .progress import Progress, silent

if TYPE_CHECKING:  # transformers takes seconds to import, so each command does it when it runs
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .architectures import Architecture
    from .delta import Delta
    from .editor import EditHandle, Editor
    from .evaluate import Report, Tasks, TaskScores
    from .statistics import Statistics
    from .sweep.results import Results

Row = tuple[str, str]  # of the results: what it is about, and what there is to say

_EXPORTS = ("peft", "gguf", "model")
_EXPORTS_HELP = "a LoRA adapter for PEFT and vLLM, or for llama.cpp; or the whole edited model with its tokenizer"
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_LARGEST_SEED = 2**32 - 1

_BAR_DELAY = 2.0  # seconds: a stage that is over sooner shows no bar

_OK, _BAD_INPUT, _INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `emmet` with `arguments` (those of the process by default) and return its exit code.

    0: done. 2: the input is at fault; one line on standard error says how. 130: interrupted by Ctrl-C. Unless it is 0,
    nothing is written but the cache and the checkpoint of `emmet stats`. Errors that are not the input's propagate.
    """
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
    except EmmetError as error:
        print("emmet: error:", *str(error).splitlines(), file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print("emmet: interrupted", file=sys.stderr)
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
    _add_stats(commands)
    _add_edit(commands)
    _add_ledger(commands)
    _add_export(commands)
    _add_eval(commands)
    _add_sweep(commands)
    _add_info(commands)
    return parser


def _add_stats(commands: Any) -> None:
    parser = _command(
        commands,
        _stats,
        "stats",
        "collect statistics of a model's keys, the memories that edits preserve",
        """\
examples:
  emmet stats gpt2 --layers 7 --out stats/                       on text that the model samples itself
  emmet stats gpt2 --layers 4-8 --out stats/ --corpus wiki.txt   on a text file
  emmet stats gpt2 --layers 7 --out stats/ --corpus hf:roneneldan/TinyStories

The same command goes on where it was interrupted. Layers that are already there are kept.""",
    )
    _add_model(parser)
    _add_corpus(parser)
    parser.add_argument("--layers", type=_layers, required=True, help='decoder layers, from 0: "7" or "4-8,10"')
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write one file a layer to")
    parser.add_argument("--tokens", type=_whole_number(1), help="tokens to read (default: 10 for each key dimension)")
    parser.add_argument(
        "--seed",
        type=_whole_number(0, _LARGEST_SEED),
        default=0,
        help="of the text that the model samples (default: 0)",
    )


def _add_edit(commands: Any) -> None:
    parser = _command(
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
    _add_model(parser)
    _add_records(parser, "EDITS.jsonl", "edits; CounterFact and zsRE files are read as well")
    _add_settings(parser)
    _add_statistics(parser)
    _add_values(parser)
    parser.add_argument(
        "--seed",
        type=_whole_number(0, _LARGEST_SEED),
        help="of the context prefixes that the model writes (default: 0)",
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="DIR",
        help="account of all edits, made if it is new: the output holds those in it as well as these",
    )
    parser.add_argument("--author", default="", metavar="TEXT", help="who makes the edits, for the ledger")
    _add_output(parser)
    parser.add_argument(
        "--format",
        choices=("delta", *_EXPORTS),
        default="delta",
        help=f"the update alone, which `emmet export` turns into the others (default); {_EXPORTS_HELP}",
    )


def _add_ledger(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "ledger",
        help="list the edits of a ledger, or take some back",
        description="List the edits of a ledger, which `emmet edit --ledger` keeps, or take some back.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="show all edits", description="Show all edits of a ledger.")
    listing.set_defaults(run=_ledger_list)
    _add_ledger_folder(listing)

    removal = _command(
        actions,
        _ledger_remove,
        "remove",
        "take edits back, as if they had never been made",
        """\
examples:
  emmet ledger remove ledger/ 3 5 --stats stats/ --out delta/

The delta holds the edits that are left.""",
    )
    _add_ledger_folder(removal)
    removal.add_argument(
        "ids", metavar="ID", nargs="+", type=_whole_number(1), help="as `emmet ledger list` shows them"
    )
    removal.add_argument("--model", help="what the ledger is for (default: as it says)")
    removal.add_argument(
        "--stats", type=Path, required=True, metavar="DIR", help="statistics that the edits were made with"
    )
    _add_output(removal)


def _add_ledger_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", type=Path, metavar="LEDGER", help="folder that `emmet edit --ledger` wrote")


def _add_export(commands: Any) -> None:
    parser = _command(
        commands,
        _export,
        "export",
        "write a delta in the form that a serving stack loads",
        """\
examples:
  emmet export delta/ --format peft --out adapter/                      a LoRA adapter, for PEFT and vLLM
  emmet export delta/ --format gguf --out adapter/ --model base.gguf    a LoRA adapter, for llama.cpp
  emmet export delta/ --format model --out model/                       a whole model, for AutoModel.from_pretrained
  emmet export delta/ --format peft --out adapter/ --rank 64 --stats stats/   a smaller adapter, less exact""",
    )
    parser.add_argument("delta", type=Path, metavar="DELTA", help="folder that `emmet edit` wrote")
    _add_output(parser)
    parser.add_argument("--format", choices=_EXPORTS, required=True, help=_EXPORTS_HELP)
    parser.add_argument(
        "--model",
        help="what the delta was made for; for gguf its GGUF file, in any quantisation (default: as the delta says)",
    )
    parser.add_argument("--rank", type=_whole_number(1), help="compress updates to this rank; needs --stats")
    parser.add_argument(
        "--stats", type=Path, metavar="DIR", help="statistics of `emmet stats`, by which --rank preserves memories"
    )


def _add_eval(commands: Any) -> None:
    parser = _command(
        commands,
        _eval,
        "eval",
        "measure whether edits hold, generalise and leave other facts alone",
        """\
examples:
  emmet eval gpt2 counterfact.json --report before/                  the unedited model
  emmet eval gpt2 counterfact.json --report after/ --delta delta/    with a delta of `emmet edit`
  emmet eval model/ counterfact.json --report after/                 a model of `emmet edit --format model`
  emmet eval gpt2 counterfact.json --report after/ --delta delta/ --drift wiki.txt --tasks lambada_openai,piqa""",
    )
    _add_model(parser)
    _add_records(parser, "DATA.jsonl", "records of ours, CounterFact or zsRE")
    parser.add_argument("--delta", type=Path, metavar="DIR", help="edits to apply first, written by `emmet edit`")
    parser.add_argument(
        "--report", type=Path, required=True, metavar="DIR", help="folder to write metrics.json and report.md to"
    )
    parser.add_argument(
        "--texts",
        action="store_true",
        help="also measure texts that the model writes from generation prompts; slow",
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="attribute_snippets.json of ROME's release: also compare the texts with those of other subjects",
    )
    parser.add_argument(
        "--drift",
        metavar="TEXT",
        help="a text file or hf:NAME on which to compare the model of --delta with the unedited one",
    )
    parser.add_argument(
        "--tasks",
        type=_names,
        default=(),
        metavar="A,B",
        help="tasks of lm-eval, or YAML files of tasks, to run on the model, and with --delta on the unedited one",
    )


def _add_sweep(commands: Any) -> None:
    parser = _command(
        commands,
        _sweep,
        "sweep",
        "try methods, batch sizes, layers and ridges on a data set, and report the scores",
        """\
examples:
  emmet sweep gpt2 counterfact.json --out sweep/ --methods rome,emmet,memit --batch-sizes 1,16,64,256 --scored 512
  emmet sweep gpt2 counterfact.json --out sweep/ --methods emmet --ridges 0,1,100,10000 --batch-sizes 64 --layers 7
  emmet sweep gpt2 counterfact.json --out sweep/ --layers 5 6 7 5-7 --batch-sizes 64 --records 5000:5500
  emmet sweep gpt2 counterfact.json --out sweep/ --batch-sizes 64,1024 --scored 1024 --sequential --absorb 0,1

Each batch is made in the unedited model, scored on its own records and taken back. The same command goes on where it
was interrupted. DIR gets report.html, report.md, and a JSON file for each combination.""",
    )
    _add_model(parser)
    parser.add_argument("data", type=Path, metavar="DATA.jsonl", help="records of ours, CounterFact or zsRE")
    parser.add_argument("--records", type=_span, default=":", metavar="A:B", help="take those from A up to B, from 0")
    parser.add_argument(
        "--methods",
        type=_list,
        default=["emmet", "memit"],
        metavar="A,B",
        help="with ridges of their own as in memit:15000",
    )
    parser.add_argument(
        "--batch-sizes", type=_whole_numbers, default=[1, 16, 64], metavar="N,N", help="edits made at once"
    )
    parser.add_argument(
        "--layers",
        type=_layers,
        nargs="+",
        metavar="N-N",
        help='sets of decoder layers, from 0, such as "7" or "4-8,10"',
    )
    parser.add_argument(
        "--ridges",
        type=_ridges,
        metavar="μ,μ",
        help="for each method but rome that has none of its own; numbers or auto",
    )
    parser.add_argument(
        "--scored",
        type=_whole_number(1),
        metavar="N",
        help="make as many batches a run as N records take, and score these (default: all whole batches)",
    )
    parser.add_argument(
        "--sequential", action="store_true", help="make batches on top of those before; score all after the last"
    )
    parser.add_argument(
        "--absorb",
        type=_numbers,
        metavar="N,N",
        help="with --sequential, weights to try of earlier edits among what later ones preserve (default: 1)",
    )
    parser.add_argument(
        "--drift", metavar="TEXT", help="text to compare predictions on, with and without edits; named as --corpus"
    )
    parser.add_argument("--drift-tokens", type=_whole_number(2), metavar="N", help="of that text (default: 2000)")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="all other settings, of emmet.EditConfig")
    _add_statistics(parser)
    _add_values(parser)
    _add_output(parser)


def _add_info(commands: Any) -> None:
    parser = _command(
        commands,
        _info,
        "info",
        "show what `emmet edit` would edit in a model, and with which settings",
        """\
examples:
  emmet info gpt2
  emmet info gpt2 --method memit --stats stats/""",
    )
    _add_model(parser)
    _add_settings(parser)
    _add_statistics(parser)


def _command(
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
    parser.add_argument("--device", default="cpu", help='where to compute, such as "cuda" (default: cpu)')
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: the checkpoint's, float32 for GGUF)")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name on the Hugging Face hub, folder, or GGUF file")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, new, empty or emmet's")


def _add_records(parser: argparse.ArgumentParser, metavar: str, content: str) -> None:
    parser.add_argument("records", type=Path, metavar=metavar, help=content)
    parser.add_argument("--limit", type=_whole_number(1), metavar="N", help="take only the first N records")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", help="emmet (default), memit, rome or alphaedit")
    parser.add_argument(
        "--layers", type=_layers, help='decoder layers, from 0: "7" or "4-8,10" (default: published, or by depth)'
    )
    parser.add_argument(
        "--ridge",
        type=_ridge,
        help="μ of the solver: 0 makes edits exact, more preserves more, auto is the least that is numerically safe",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.json",
        help="any of the settings of emmet.EditConfig, which the options here override",
    )


def _add_statistics(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--stats", type=Path, metavar="DIR", help="statistics of `emmet stats`")
    _add_corpus(source)


def _add_corpus(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--corpus",
        default="self",
        metavar="TEXT",
        help="what to collect statistics on: a text file, hf:NAME, or self: what the model samples (default: self)",
    )


def _add_values(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--values",
        type=Path,
        metavar="DIR",
        help="folder to keep value vectors in, and to take them from (default: in the cache)",
    )


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _whole_numbers(text: str) -> list[int]:
    return [_whole_number(1)(part) for part in _list(text)]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in _list(text)]
    except ValueError as error:
        message = f"expected numbers, got {text!r}"
        raise argparse.ArgumentTypeError(message) from error


def _ridges(text: str) -> list[float | Literal["auto"]]:
    return [_ridge(part) for part in _list(text)]


def _span(text: str) -> str:
    if not re.fullmatch("[0-9]{0,9}:[0-9]{0,9}", text):
        message = f'expected records as in "5000:5500", got {text!r}'
        raise argparse.ArgumentTypeError(message)
    return text


def _layers(text: str) -> tuple[int, ...]:
    try:
        return parse_layers(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _ridge(text: str) -> float | Literal["auto"]:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError as error:
        message = f'expected a number or "auto", got {text!r}'
        raise argparse.ArgumentTypeError(message) from error


def _whole_number(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `most`."""
    expected = f"of at least {least}" if most == sys.maxsize else f"from {least} to {most}"

    def parse(text: str) -> int:
        # int() alone would also take "1_0", and would refuse thousands of digits in its own words
        if not (text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
            message = f"expected a whole number {expected}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def _stats(options: argparse.Namespace) -> None:
    from .corpora import open_corpus
    from .output import check_folder
    from .statistics import collect_statistics

    check_folder(options.out)
    open_corpus(options.corpus).digest()  # a corpus that cannot be read is reported before the model is loaded
    watch = _Stopwatch()
    with _progress(options) as progress:
        model, tokenizer = _load(options, watch, progress)
        with watch.stage("statistics"):
            statistics = collect_statistics(
                model,
                tokenizer,
                options.corpus,
                layers=options.layers,
                tokens=options.tokens,
                seed=options.seed,
                out=options.out,
                progress=progress,
            )
    _print_rows(*_statistics_rows(statistics), ("time", str(watch)), ("written", str(options.out)))


def _edit(options: argparse.Namespace) -> None:
    from .checkpoint import save_model
    from .corpora import open_corpus
    from .editor import Editor
    from .output import check_folder, check_output
    from .statistics import Statistics
    from .storage import cache_folder

    config = _edit_config(options)
    edits = read_edits(options.records)[: options.limit]
    check_consistent(edits)
    check_output(options.out)
    values = options.values or cache_folder() / "values"
    check_folder(values)
    _check_apart(options.out, options.model, options.records, options.stats, values)
    known = options.ledger is not None and _check_ledger(options)
    _check_exportable(options, edits)
    if options.stats is None:
        open_corpus(options.corpus).digest()
    else:
        Statistics.load(options.stats, config.layers or ())  # once for the check, before the model is loaded

    watch = _Stopwatch()
    with _progress(options) as progress:
        model, tokenizer = _load(options, watch, progress)
        with watch.stage("statistics"):
            editor = Editor(
                model,
                tokenizer,
                config=config,
                statistics=options.stats,
                corpus=options.corpus,
                value_cache=values,
                progress=progress,
            )
        if known:
            with watch.stage("ledger"):
                editor.load(options.ledger)
        with watch.stage("edit"):
            handle = editor.edit(edits, author=options.author)
        with watch.stage("write"):
            if options.format == "model":
                save_model(model, tokenizer, editor.delta(), options.out, progress)
            else:
                _write_update(options, editor.delta())
            if options.ledger is not None:
                editor.save(options.ledger)
    account = () if options.ledger is None else _account_rows(options.ledger, editor, handle)
    _print_rows(*_edit_rows(handle, editor.config), *account, ("time", str(watch)), ("written", str(options.out)))


def _check_ledger(options: argparse.Namespace) -> bool:
    """Whether the ledger exists. Raises EmmetError if it is none, or could not be written."""
    from .ledger import Ledger
    from .output import MANIFEST, check_output

    out, ledger = options.out.resolve(), options.ledger.resolve()
    if out.is_relative_to(ledger) or ledger.is_relative_to(out):
        message = (
            f"the ledger {options.ledger} and the output {options.out} would replace one another: name folders apart"
        )
        raise ConfigError(message)
    check_output(ledger)
    _check_apart(ledger, options.model, options.records, options.stats)
    if not (ledger / MANIFEST).exists():
        return False
    Ledger.load(options.ledger)  # once for the check, before the model is loaded
    return True


def _check_exportable(options: argparse.Namespace, edits: Sequence[Edit]) -> None:
    """Raise EmmetError, before time is spent on edits, if they cannot be written in the format that is asked for."""
    from .export import gguf, peft

    if options.format == "peft":
        peft.padded_rank(len(edits))
    elif options.format == "gguf":
        gguf.Base.read(options.model)


def _write_update(options: argparse.Namespace, delta: Delta) -> None:
    from .export import save_gguf, save_peft

    if options.format == "peft":
        save_peft(delta, options.out)
    elif options.format == "gguf":
        save_gguf(delta, options.out, options.model)
    else:
        delta.save(options.out)


def _edit_rows(handle: EditHandle, config: ResolvedConfig) -> Iterator[Row]:
    loss = handle.values.loss
    low = f"below {config.stop_loss:g} for {int((loss < config.stop_loss).sum())} of {len(loss)}"
    yield "edits", f"{len(loss)} by {config.method}"
    yield "loss", f"median {loss.median():.3g}, largest {loss.max():.3g}, {low}"
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


def _ledger_list(options: argparse.Namespace) -> None:
    from .ledger import Ledger

    ledger, base = Ledger.load(options.ledger)
    rows = [("model", base.name or "unknown"), ("edits", str(len(ledger.entries)))]
    for entry in ledger.entries:
        author = f", {entry.author}" if entry.author else ""
        text = f"{entry.edit.text!r} → {entry.edit.target!r} by {entry.config.method}, {entry.time}{author}"
        rows.append((str(entry.id), text))
    _print_rows(*rows)


def _ledger_remove(options: argparse.Namespace) -> None:
    from .editor import Editor
    from .ledger import Ledger
    from .output import check_output

    ledger, base = Ledger.load(options.ledger)
    ledger.first_with(options.ids)  # unknown ids are reported before the model is loaded
    options.model = options.model or base.name
    if options.model is None:
        message = f"{options.ledger} does not say what model it is for: name it with --model"
        raise ConfigError(message)
    check_output(options.out)
    _check_apart(options.out, options.model, options.stats, options.ledger)
    watch = _Stopwatch()
    with _progress(options) as progress:
        model, tokenizer = _load(options, watch, progress)
        config = ledger.batches[-1].config
        editor = Editor(model, tokenizer, config=config, statistics=options.stats, progress=progress)
        with watch.stage("ledger"):
            editor.load(options.ledger)
        with watch.stage("remove"):
            editor.remove(options.ids)
        with watch.stage("write"):
            editor.delta().save(options.out)
            editor.save(options.ledger)
    _print_rows(("edits", f"{len(editor.list())} left"), ("time", str(watch)), ("written", str(options.out)))


def _export(options: argparse.Namespace) -> None:
    from .checkpoint import save_model
    from .delta import Delta
    from .output import check_output

    delta = Delta.load(options.delta)
    options.model = options.model or delta.base
    if options.model is None and options.format != "peft":
        message = f"{options.delta} does not say what model it was made for: name it with --model"
        raise ConfigError(message)
    check_output(options.out)
    _check_apart(options.out, options.delta, options.model, options.stats)
    compression: list[Row] = []
    if options.rank is not None:
        delta, compression = _compressed(options, delta)
    watch = _Stopwatch()
    with _progress(options) as progress:
        if options.format == "model":
            model, tokenizer = _load(options, watch, progress)
            delta.apply(model)
            with watch.stage("write"):
                save_model(model, tokenizer, delta, options.out, progress)
        else:
            with watch.stage("write"):
                _write_update(options, delta)
    _print_rows(("edits", str(len(delta.edits))), *compression, ("time", str(watch)), ("written", str(options.out)))


def _compressed(options: argparse.Namespace, delta: Delta) -> tuple[Delta, list[Row]]:
    """The delta at the rank of --rank, and by how much each update differs."""
    from ._core import Preservation
    from .statistics import Statistics

    if options.stats is None:
        message = "--rank needs --stats DIR, the statistics that the edits were made with"
        raise ConfigError(message)
    statistics = Statistics.load(options.stats, delta.layers)
    metrics = {layer: Preservation.from_second_moment(of.second_moment) for layer, of in statistics.items()}
    compressed = delta.compressed(metrics, options.rank)
    rows = []
    for layer, whole in delta.layers.items():
        update = whole.update.dense()
        cost, lost = map(metrics[layer].cost, (update, update - compressed.layers[layer].update.dense()))
        share = (lost / cost) ** 0.5 if cost else 0.0
        rows.append((f"layer {layer}", f"{whole.module}: rank {options.rank} leaves out {share:.2%} of the update"))
    return compressed, rows


def _eval(options: argparse.Namespace) -> None:
    from .architectures import discover
    from .delta import Delta
    from .evaluate import Tasks, evaluate, measure_drift, read_references
    from .output import check_folder

    records = read_records(options.records)[: options.limit]
    check_folder(options.report)
    delta = None if options.delta is None else Delta.load(options.delta)
    references = None if options.references is None else read_references(options.references)
    _check_drift(options)
    tasks = Tasks(options.tasks) if options.tasks else None

    watch = _Stopwatch()
    with _progress(options) as progress:
        model, tokenizer = _load(options, watch, progress)
        arch = discover(model)
        drift, tasks_before = None, None
        if delta is not None:
            if options.drift is not None:
                with watch.stage("drift"):
                    drift = measure_drift(arch, tokenizer, delta, options.drift, progress=progress)
            tasks_before = _run_tasks(tasks, arch, tokenizer, watch, progress)
            delta.apply(model)
        with watch.stage("evaluation"):
            report = evaluate(arch, tokenizer, records, progress, write_texts=options.texts, references=references)
        tasks_after = _run_tasks(tasks, arch, tokenizer, watch, progress)
    report = replace(report, drift=drift, tasks=tasks_after, tasks_before=tasks_before)
    report.write(options.report)
    _print_rows(*_report_rows(report), ("time", str(watch)), ("written", str(options.report)))


def _check_drift(options: argparse.Namespace) -> None:
    """Raise EmmetError, before the model is loaded, if drift cannot be measured as asked."""
    from .corpora import open_corpus

    if options.drift is not None:
        if options.delta is None:
            message = "--drift compares with the unedited model: name the edits with --delta"
            raise ConfigError(message)
        open_corpus(options.drift).digest()


def _run_tasks(
    tasks: Tasks | None,
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    watch: _Stopwatch,
    progress: Progress,
) -> TaskScores | None:
    if tasks is None:
        return None
    with watch.stage("tasks"):
        return tasks.score(arch.model, tokenizer, progress)


def _report_rows(report: Report) -> Iterator[Row]:
    yield "records", f"{len(report.per_record)} ({report.kind})"
    yield "percent", ", ".join(f"{name} {of.mean:.1f}" for name, of in report.metrics.items() if of is not None)
    if report.drift is not None:
        text = report.drift.text
        perplexity = f"perplexity {text.perplexity_before:.2f} → {text.perplexity_after:.2f}"
        yield "drift", f"KL {text.kl:.3g} nats, {perplexity}, top-1 agreement {text.top_1_agreement:.1f} %"
    for task, scores in (report.tasks or {}).items():
        yield task, ", ".join(f"{metric} {score.value:.4g}" for metric, score in scores.items())


def _sweep(options: argparse.Namespace) -> None:
    from .corpora import open_corpus
    from .output import check_folder
    from .statistics import Statistics
    from .storage import cache_folder
    from .sweep import Plan, sweep
    from .sweep.plan import check_batch_sizes, without_repetitions
    from .sweep.store import check_sweep_folder

    config = EditConfig() if options.config is None else _read_config(options.config)
    optional = ("layers", "ridges", "scored", "absorb", "drift", "drift_tokens")
    chosen = {name: getattr(options, name) for name in optional}
    plan = Plan(
        methods=options.methods,
        batch_sizes=options.batch_sizes,
        sequential=options.sequential,
        config=config,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    records = _selected(read_records(options.data), options)
    check_batch_sizes(plan.batch_sizes, len(without_repetitions(records)))
    check_sweep_folder(options.out)
    values = options.values or cache_folder() / "values"
    check_folder(values)
    for corpus in (options.corpus if options.stats is None else None, options.drift):
        if corpus is not None:
            open_corpus(corpus).digest()  # one that cannot be read is reported before the model is loaded
    if options.stats is not None:
        Statistics.load(options.stats, {layer for layers in options.layers or () for layer in layers})

    watch = _Stopwatch()
    with _progress(options) as progress:
        model, tokenizer = _load(options, watch, progress)
        with watch.stage("sweep"):
            results = sweep(
                model,
                tokenizer,
                records,
                plan,
                options.out,
                statistics=options.stats,
                corpus=options.corpus,
                value_cache=values,
                data=f"{options.data.name} {options.records}".removesuffix(" :"),
                progress=progress,
            )
    _print_rows(*_sweep_rows(results), ("time", str(watch)), ("written", str(options.out)))


def _selected(records: Sequence[Record], options: argparse.Namespace) -> Sequence[Record]:
    """The records that --records names."""
    first, end = (int(number) if number else None for number in options.records.split(":"))
    selected = records[first:end]
    if not selected:
        message = f"there are no records {options.records} in {options.data}, which has {len(records):,}"
        raise ConfigError(message)
    return selected


def _sweep_rows(results: Results) -> Iterator[Row]:
    yield "records", f"{results.facts['scored']:,} scored, {results.facts['repetitions']:,} repetitions left out"
    for one in results.runs:
        scores = [(metric, one.scores.metrics[metric]) for metric in results.metrics] if one.scores else []
        found = ", ".join(f"{metric} {of.mean:.1f}" for metric, of in scores if of is not None)
        failed = f"{len(one.failures):,} of {len(one.outcomes):,} batches failed" if one.failures else ""
        yield one.run.name, ", ".join(filter(None, [found, failed]))


def _info(options: argparse.Namespace) -> None:
    from . import presets
    from .architectures import discover

    config = _edit_config(options)
    with _progress(options) as progress:
        model, tokenizer = _load(options, _Stopwatch(), progress)
    arch, settings = discover(model), config.resolve(model.config)
    preset = presets.find(model.config, settings.method)
    statistics = _found_statistics(options, arch, tokenizer, settings.layers)
    _print_rows(
        *_model_rows(arch, options.model),
        ("method", _described(settings)),
        ("defaults", preset.source if preset else "by depth: nothing was published for this method and model"),
        *_layer_rows(arch, settings.layers),
        *(_statistics_rows(statistics) if statistics else [("statistics", "none yet: `emmet edit` collects them")]),
    )


def _model_rows(arch: Architecture, name: str) -> Iterator[Row]:
    dtype = str(arch.model.dtype).removeprefix("torch.")
    context = "any context" if arch.max_positions is None else f"a context of {arch.max_positions} tokens"
    yield "model", f"{name}: {type(arch.model).__name__} in {dtype}"
    yield "size", f"{len(arch)} layers of width {arch.d_model}, {context}"


def _described(settings: ResolvedConfig) -> str:
    of_method = ("null_space_threshold", "null_space_alpha") if settings.method == "alphaedit" else ()
    names = ("ridge", *of_method, "optimizer", "learning_rate", "steps", "clamp", "weight_decay")
    return ", ".join([settings.method, *(f"{name} {getattr(settings, name)}" for name in names)])


def _layer_rows(arch: Architecture, layers: Sequence[int]) -> Iterator[Row]:
    for layer in layers:
        projection = arch.projection(layer)
        shape = " × ".join(map(str, projection.weight.shape))
        stored = "input × output" if projection.transposed else "output × input"
        yield f"layer {layer}", f"{projection.name}: {type(projection.module).__name__}, {shape} ({stored})"


def _found_statistics(
    options: argparse.Namespace, arch: Architecture, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int]
) -> Statistics | None:
    """What `emmet edit` would find with the same options, in --stats or in the cache."""
    from .statistics import Statistics, layer_path, statistics_folder

    if options.stats is not None:
        statistics = Statistics.load(options.stats, layers)
        statistics.check(arch, *layers)
        return statistics
    folder = statistics_folder(arch.model, tokenizer, options.corpus, layers=layers)
    whole = all(layer_path(folder, layer).exists() for layer in layers)
    return Statistics.load(folder, layers) if whole else None


def _statistics_rows(statistics: Statistics) -> Iterator[Row]:
    for layer, of_layer in statistics.items():
        corpora = " and ".join(source.corpus for source in of_layer.sources)
        yield "statistics", f"layer {layer}: {of_layer.count:,} tokens of {corpora}"


def _edit_config(options: argparse.Namespace) -> EditConfig:
    """The settings of --config, where it is given, with those that have an option of their own."""
    config = EditConfig() if options.config is None else _read_config(options.config)
    chosen = {name: getattr(options, name, None) for name in ("method", "layers", "ridge", "seed")}
    return replace(config, **{name: value for name, value in chosen.items() if value is not None})


def _read_config(path: Path) -> EditConfig:
    try:
        return EditConfig.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}; expected a JSON file of settings"
    except ValueError as error:  # not UTF-8, or a ConfigError
        message = f"{path}: {error}"
    raise ConfigError(message)


def _check_apart(out: Path, *inputs: str | Path | None) -> None:
    """Raise ConfigError if the folder `out`, which is to be replaced, holds an input."""
    for given in inputs:
        on_hub = isinstance(given, str) and not Path(given).exists()
        if given is not None and not on_hub and Path(given).resolve().is_relative_to(out.resolve()):
            message = f"the output would replace {given}, which is read: name another folder than {out}"
            raise ConfigError(message)


def _load(
    options: argparse.Namespace, watch: _Stopwatch, progress: Progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch

    from .loading import load

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    with watch.stage("load"):
        return load(options.model, dtype=dtype, device=options.device, progress=progress)


@contextmanager
def _progress(options: argparse.Namespace) -> Iterator[Progress]:
    """A bar on standard error for each stage that takes its time, while it lasts; none with --quiet."""
    bars: dict[str, tqdm] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            delay = _BAR_DELAY if total > 1 else 0.0  # a single step gives no later chance to show the bar
            bars[stage] = tqdm(desc=stage, total=total, initial=done, delay=delay, leave=False, dynamic_ncols=True)
        bars[stage].update(done - bars[stage].n)
        if done == total:
            bars.pop(stage).close()

    try:
        yield silent if options.quiet else show
    finally:
        for bar in bars.values():
            bar.close()


class _Stopwatch:
    """How long each stage took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start


def _print_rows(*rows: Row) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
