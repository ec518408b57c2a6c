"""`emmet eval`: measure whether edits hold, generalise and leave other facts alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..edits import read_records
from ..errors import ConfigError
from ..progress import Progress
from .arguments import add_model, add_records, command
from .inputs import load_model
from .terminal import Row, Stopwatch, print_rows, progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..architectures import Architecture
    from ..evaluate import Report, Tasks, TaskScores


def add_eval(commands: Any) -> None:
    parser = command(
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
    add_model(parser)
    add_records(parser, "DATA.jsonl", "records of ours, CounterFact or zsRE")
    parser.add_argument("--delta", type=Path, metavar="DIR", help="edits to apply first, written by `emmet edit`")
    parser.add_argument(
        "--report",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write metrics.json, report.md and report.html to",
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
        help="tasks of lm-eval, or YAML files of tasks, which may run code beside them, to try on the model, and with "
        "--delta on the unedited one",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _eval(options: argparse.Namespace) -> None:
    from ..architectures import discover
    from ..delta import Delta
    from ..evaluate import Tasks, evaluate, measure_drift, read_references
    from ..output import check_folder

    records = read_records(options.records)[: options.limit]
    check_folder(options.report)
    delta = None if options.delta is None else Delta.load(options.delta)
    references = None if options.references is None else read_references(options.references)
    _check_drift(options)
    tasks = Tasks(options.tasks) if options.tasks else None

    watch = Stopwatch()
    with progress_bars(options) as progress:
        model, tokenizer = load_model(options, watch, progress)
        arch = discover(model)
        unedited = None if delta is None else delta.apply(model)
        with watch.stage("evaluation"):
            report = evaluate(arch, tokenizer, records, progress, write_texts=options.texts, references=references)
        report.write(options.report)  # here and below: whatever may become of the next part
        if tasks is not None:
            report = replace(report, tasks=_run_tasks(tasks, arch, tokenizer, watch, progress))
            report.write(options.report)
        if delta is not None and unedited is not None:
            unedited.restore()
            if tasks is not None:
                report = replace(report, tasks_before=_run_tasks(tasks, arch, tokenizer, watch, progress))
                report.write(options.report)
            if options.drift is not None:
                with watch.stage("drift"):
                    drift = measure_drift(arch, tokenizer, delta, options.drift, progress=progress)
                report = replace(report, drift=drift)
                report.write(options.report)
    print_rows(*_report_rows(report), ("time", str(watch)), ("written", str(options.report)))


def _check_drift(options: argparse.Namespace) -> None:
    """Raise EmmetError, before the model is loaded, if drift cannot be measured as asked."""
    from ..corpora import open_corpus

    if options.drift is not None:
        if options.delta is None:
            message = "--drift compares with the unedited model: name the edits with --delta"
            raise ConfigError(message)
        open_corpus(options.drift).digest()


def _run_tasks(
    tasks: Tasks,
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    watch: Stopwatch,
    progress: Progress,
) -> TaskScores:
    with watch.stage("tasks"):
        return tasks.score(arch.model, tokenizer, progress)


def _report_rows(report: Report) -> Iterator[Row]:
    yield "records", f"{len(report.per_record)} ({report.kind})"
    yield "scores", ", ".join(f"{name} {of.mean:.1f}" for name, of in report.metrics.items() if of is not None)
    if report.drift is not None:
        text = report.drift.text
        perplexity = f"perplexity {text.perplexity_before:.2f} → {text.perplexity_after:.2f}"
        yield "drift", f"KL {text.kl:.3g} nats, {perplexity}, top-1 agreement {text.top_1_agreement:.1f} %"
    for task, scores in (report.tasks or {}).items():
        known = {metric: score.value for metric, score in scores.items() if score.value is not None}
        yield task, ", ".join(f"{metric} {value:.4g}" for metric, value in known.items()) or "no finite score"
