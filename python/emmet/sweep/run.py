"""Runs every combination of a plan on one model and one data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import __version__
from ..architectures import Architecture, discover
from ..corpora import open_corpus
from ..edits import Record
from ..errors import EditError, EmmetError
from ..evaluate import evaluate
from ..evaluate.drift import drift_sequences
from ..fingerprint import model_fingerprint, tensor_digest, tokenizer_fingerprint
from ..keys import checked_prompts
from ..output import check_output
from ..progress import Progress, silent, within
from ..statistics import LayerStatistics, Statistics, collect_into_cache
from ..storage import cache_folder
from .plan import Batch, Plan, Run, check_batch_sizes, without_repetitions
from .report import write_report
from .results import Results, RunResult, pooled
from .store import FORMAT, Outcome, RunFile, write_manifest
from .task import RECORDS_A_WRITE, Task
from .workbench import Edited, Workbench


def sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    plan: Plan,
    out: str | PathLike[str],
    *,
    statistics: Statistics | str | PathLike[str] | None = None,
    corpus: str | Path = "self",
    value_cache: str | PathLike[str] | None = None,
    data: str = "records",
    progress: Progress = silent,
) -> Results:
    """Run every combination of a plan on disjoint batches of records, and write what came of it to the folder `out`.

    `out` gets report.html, report.md, and in runs/ a JSON file for each combination. Values are kept in `value_cache`,
    by default in the cache folder. The same call goes on where it was interrupted, and comes to the same report.
    `statistics` and `corpus` are as in `Editor`; `data` is what the report calls the records. Of records with the same
    prompt and subject only the first is used, and the report says how many others there were.

    The model is unedited afterwards. A batch that cannot be solved, or whose edits leave a model that gives NaN, is
    reported as failed. Raises ConfigError, EditError, ModelError or StatisticsError for input at fault, before a batch
    is edited, and EmmetError or FormatError if `out` holds anything but this sweep.
    """
    out = Path(out)
    kind = _kind(records)
    arch = discover(model)
    distinct = without_repetitions(records)
    runs = plan.runs(model.config)
    check_batch_sizes(plan.batch_sizes, len(distinct))
    check_output(out, "sweep")
    batches = {run: run.batches(len(distinct), plan.scored) for run in runs}
    edits = [record.edit for record in distinct[: max(of_run[-1].end for of_run in batches.values())]]
    checked_prompts(arch, tokenizer, edits, plan.config.prefixes or ())  # statistics may take minutes

    statistics = _statistics(arch, tokenizer, statistics, corpus, runs, progress)
    values = Path(value_cache or cache_folder() / "values")
    text = None if plan.drift is None else drift_sequences(arch, tokenizer, plan.drift, plan.drift_tokens)
    workbench = Workbench(arch, tokenizer, edits, statistics, values, text, progress)
    workbench.check(runs)

    made_of = _made_of(arch, tokenizer, distinct)
    tasks = [
        Task(
            RunFile(out / "runs" / "unedited.json", made_of), _pieces(batches.values(), len(distinct)), _leave_unedited
        )
    ]
    drift = None if plan.drift is None else [open_corpus(plan.drift).digest(), plan.drift_tokens]
    moments = {layer: tensor_digest(of_layer.second_moment).hex() for layer, of_layer in statistics.items()}
    for run, of_run in batches.items():
        settings = {"drift": drift} | _settings(run, moments)
        if run.sequential:
            settings["edits"] = of_run[-1].end
        file = RunFile(out / "runs" / f"{run.name}.json", made_of | settings)
        tasks.append(Task(file, of_run, partial(workbench.edited, run)))
    for task in tasks:
        task.stored()  # finds files of another sweep before time is spent

    facts = {
        "emmet": __version__,
        "model": _short(model.name_or_path or type(model).__name__),
        "dtype": str(model.dtype).removeprefix("torch."),
        "data": data,
        "records": len(records),
        "repetitions": len(records) - len(distinct),
        "edited": len(edits),
        "scored": tasks[0].records,
        "statistics": {str(layer): _described(of_layer) for layer, of_layer in statistics.items()},
        "drift": None if plan.drift is None else f"{plan.drift_tokens:,} tokens of {_short(plan.drift)}",
        "plan": asdict(plan),
    }
    write_manifest(out, facts)

    def score(first: int, end: int) -> list[dict[str, Any]]:
        report = evaluate(arch, tokenizer, distinct[first:end])
        names = ["id", *(metric for metric in report.metrics if metric != "S")]
        return [{name: record[name] for name in names} for record in report.per_record]

    total, done, outcomes = sum(task.records for task in tasks), 0, []
    for task in tasks:
        outcomes.append(task.complete(score, within(progress, done, total)))
        if len(outcomes) == 1:
            _require_scores(outcomes[0])
        done += task.records
    of_runs = [RunResult.of(run, kind, of_run) for run, of_run in zip(runs, outcomes[1:], strict=True)]
    results = Results(facts, pooled(kind, outcomes[0]), of_runs)
    write_report(results, out)
    return results


def _require_scores(unedited: Sequence[Outcome]) -> None:
    """Raise EmmetError if the unedited model could not be scored: all else is compared with it."""
    for outcome in unedited:
        if "error" in outcome:
            message = f"the unedited model cannot be scored on records {outcome['first']} to {outcome['end'] - 1}: "
            raise EmmetError(message + outcome["error"])


def _kind(records: Sequence[Record]) -> str:
    kinds = sorted({record.kind for record in records})
    if len(kinds) != 1:
        message = f"expected records of one kind, got {' and '.join(kinds) or 'none'}: try one data set at a time"
        raise EditError(message)
    return kinds[0]


def _statistics(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    statistics: Statistics | str | PathLike[str] | None,
    corpus: str | Path,
    runs: Sequence[Run],
    progress: Progress,
) -> Statistics:
    """Statistics of just the layers of all runs: given, read, or collected and kept in the cache folder."""
    layers = sorted({layer for run in runs for layer in run.config.layers})
    if statistics is None:
        return collect_into_cache(arch.model, tokenizer, corpus, layers=layers, progress=progress)
    if not isinstance(statistics, Statistics):
        return Statistics.load(statistics, layers)
    statistics.check(arch, *layers)
    return Statistics(statistics[layer] for layer in layers)


def _pieces(runs: Iterable[Sequence[Batch]], records: int) -> list[Batch]:
    """Batches for the unedited model, of all records that any run scores.

    Their ends do not depend on how many that is, so that a sweep that scores fewer leaves what the file has.
    """
    scored = max(sum(batch.scored for batch in batches) for batches in runs)
    firsts = range(0, scored, RECORDS_A_WRITE)
    return [
        Batch(first, min(first + RECORDS_A_WRITE, records), min(RECORDS_A_WRITE, scored - first)) for first in firsts
    ]


def _leave_unedited(_batch: Batch) -> AbstractContextManager[Edited]:
    return nullcontext(Edited())


def _made_of(arch: Architecture, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> dict[str, Any]:
    """What the outcomes of all runs depend on."""
    texts = json.dumps([asdict(record) for record in records], sort_keys=True)
    return {
        "format": FORMAT,
        "model": model_fingerprint(arch),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "records": hashlib.sha256(texts.encode()).hexdigest(),
    }


def _settings(run: Run, moments: Mapping[int, str]) -> dict[str, Any]:
    """What the outcomes of one run depend on besides; `moments` are digests of the second moments, by layer."""
    return {
        "settings": asdict(run.config),
        "edits_at_once": run.batch_size,
        "sequential": run.sequential,
        "statistics": {str(layer): moments[layer] for layer in run.config.layers},
    }


def _described(statistics: LayerStatistics) -> str:
    corpora = " and ".join(_short(source.corpus) for source in statistics.sources)
    return f"{statistics.count:,} tokens of {corpora}"


def _short(name: str) -> str:
    """A name without the folders that only one machine has."""
    return Path(name).name if Path(name).is_absolute() else name
