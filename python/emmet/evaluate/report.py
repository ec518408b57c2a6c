"""The evaluation of a model on records, as JSON and as a report to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..architectures import Architecture
from ..edits import Record
from ..errors import EditError
from ..progress import Progress, silent
from ..reports import markdown, page
from ..storage import write_json, write_text
from . import counterfact, generation, texts, zsre
from .document import document
from .downstream import TaskScores
from .drift import Drift
from .intervals import Estimate, estimate
from .references import Attribute
from .scoring import Pair, Score, score_continuations


class _Kind(NamedTuple):
    """By which definitions records of a kind are scored."""

    metrics: Mapping[str, str]
    parts_of_s: Sequence[str]
    pairs: Callable[[Record], Iterable[Pair]]
    row: Callable[[Record, Mapping[Pair, Score]], dict[str, object]]


_COUNTERFACT = _Kind(counterfact.METRICS, counterfact.PARTS_OF_S, counterfact.pairs, counterfact.row)
_ZSRE = _Kind(zsre.METRICS, zsre.PARTS_OF_S, zsre.pairs, zsre.row)
_KINDS = {"emmet": _COUNTERFACT, "counterfact": _COUNTERFACT, "zsre": _ZSRE}


@dataclass(frozen=True)
class Report:
    """What records, all of one `kind`, come to under a model, and what else was measured of it.

    `metrics` are averages in percent, None for what no record has. `per_record` holds a JSON object for each record, in
    their order: its texts, and its value of each metric but S, None where it has none. `tasks_before` are those of the
    unedited model.
    """

    kind: str
    metrics: Mapping[str, Estimate | None]
    per_record: Sequence[Mapping[str, Any]]
    drift: Drift | None = None
    tasks: TaskScores | None = None
    tasks_before: TaskScores | None = None

    def to_json(self) -> dict[str, object]:
        """What metrics.json holds: each metric by its name, in percent, None where no record has what it needs.

        Besides: `kind`; `records`, their number; `records_measured`, how many of them a metric is the mean of;
        `intervals`, [low, high] of the 95 % interval of each metric; `per_record`; and `drift`, `tasks` and
        `tasks_before` as far as they were measured.
        """
        return {
            **{metric: found and found.mean for metric, found in self.metrics.items()},
            "kind": self.kind,
            "records": len(self.per_record),
            "records_measured": {metric: found.records if found else 0 for metric, found in self.metrics.items()},
            "intervals": {metric: found and [found.low, found.high] for metric, found in self.metrics.items()},
            **({} if self.drift is None else {"drift": self.drift.to_json()}),
            **({} if self.tasks is None else {"tasks": _tasks_json(self.tasks)}),
            **({} if self.tasks_before is None else {"tasks_before": _tasks_json(self.tasks_before)}),
            "per_record": list(self.per_record),
        }

    def write(self, directory: str | PathLike[str]) -> None:
        """Write metrics.json, report.md and report.html into a folder, which is made if it is missing."""
        folder, content = Path(directory), document(self, _definitions(self.kind))
        write_json(folder / "metrics.json", self.to_json())
        write_text(folder / "report.md", markdown(content))
        write_text(folder / "report.html", page(content))


def evaluate(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    progress: Progress = silent,
    *,
    write_texts: bool = False,
    references: Mapping[Attribute, Sequence[str]] | None = None,
) -> Report:
    """Evaluate records by the definitions of their kind, see `counterfact` (our own format as well) and `zsre`, and of
    `generation`; with `write_texts` or `references` also of `texts`, which takes much longer.

    Raises EditError if there are no records, they are of several kinds, lack what is asked for, or a text is blank or
    too long for the model, and NonFiniteError if the model gives NaN or infinity.
    """
    kinds = sorted({record.kind for record in records})
    if len(kinds) != 1:
        found = " and ".join(kinds) or "no records"
        message = f"expected records of one kind, got {found}: evaluate one file at a time"
        raise EditError(message)
    (kind,) = kinds
    with_texts = write_texts or references is not None
    if with_texts:
        texts.check_records(arch, tokenizer, records, references)
    scores = _score(arch, tokenizer, records, progress)
    generated = generation.evaluate_generation(arch, tokenizer, records, scores, progress)
    written: list[dict[str, object]] = [{} for _ in records]
    if with_texts:  # last, as they take longest, and what is wrong with the records has been found by now
        written = texts.evaluate_texts(arch, tokenizer, records, references, progress)
    rows = [
        {**_texts(record), **_KINDS[kind].row(record, scores), **of_generation, **of_texts}
        for record, of_generation, of_texts in zip(records, generated, written, strict=True)
    ]
    return summarise(kind, rows)


def _score(
    arch: Architecture, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], progress: Progress
) -> dict[Pair, Score]:
    pairs = [pair for record in records for pair in _KINDS[record.kind].pairs(record)]
    return score_continuations(arch, tokenizer, pairs, progress, beyond={generation.pair(record) for record in records})


def _texts(record: Record) -> dict[str, str | None]:
    edit = record.edit
    return {"id": edit.id, "prompt": edit.text, "target": edit.target, "answer_before": record.answer_before}


def summarise(kind: str, per_record: Sequence[Mapping[str, Any]]) -> Report:
    """Average the values of single records, with intervals: those of one evaluation, or of several together.

    `per_record` is that of a Report, or of several of one kind joined, also as read from metrics.json. Raises EditError
    if it is empty.
    """
    metrics = [metric for metric in _definitions(kind) if metric == "S" or any(metric in row for row in per_record)]
    values = [{metric: record.get(metric) for metric in metrics if metric != "S"} for record in per_record]
    return Report(kind, estimate(values, metrics, _KINDS[kind].parts_of_s), per_record)


def _definitions(kind: str) -> Mapping[str, str]:
    """What each metric of a kind of records means."""
    return {**_KINDS[kind].metrics, **generation.METRICS, **texts.METRICS}


def _tasks_json(tasks: TaskScores) -> dict[str, Any]:
    return {task: {metric: asdict(score) for metric, score in of_task.items()} for task, of_task in tasks.items()}
