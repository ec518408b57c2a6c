"""The evaluation of a model on records, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..architectures import Architecture
from ..edits import Record
from ..errors import EditError
from ..progress import Progress, silent
from ..storage import write_json, write_text
from . import counterfact, generation, texts, zsre
from .intervals import Estimate, estimate
from .references import Attribute

_EVALUATORS = {
    "emmet": counterfact.evaluate_counterfact,
    "counterfact": counterfact.evaluate_counterfact,
    "zsre": zsre.evaluate_zsre,
}


@dataclass(frozen=True)
class Report:
    """What records, all of one `kind`, come to under a model.

    `metrics` are averages in percent, None for what no record has. `per_record` holds a JSON object for each record, in
    their order: its texts, and its value of each metric but S, None where it has none.
    """

    kind: str
    metrics: Mapping[str, Estimate | None]
    per_record: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, object]:
        """What metrics.json holds: each metric by its name, in percent, None where no record has what it needs.

        Besides: `kind`; `records`, their number; `records_measured`, how many of them a metric is the mean of;
        `intervals`, [low, high] of the 95 % interval of each metric; `per_record`.
        """
        return {
            **{metric: found and found.mean for metric, found in self.metrics.items()},
            "kind": self.kind,
            "records": len(self.per_record),
            "records_measured": {metric: found.records if found else 0 for metric, found in self.metrics.items()},
            "intervals": {metric: found and [found.low, found.high] for metric, found in self.metrics.items()},
            "per_record": list(self.per_record),
        }

    def to_markdown(self) -> str:
        """A table of the metrics with their intervals and meanings."""
        definitions = _definitions(self.kind)
        rows = [_markdown_row(metric, found, definitions[metric]) for metric, found in self.metrics.items()]
        return "\n".join(
            [
                f"# Evaluation: {len(self.per_record)} records ({self.kind})",
                "",
                "| metric | % | 95 % interval | records | meaning |",
                "| --- | ---: | ---: | ---: | --- |",
                *rows,
                "",
            ]
        )

    def write(self, directory: str | PathLike[str]) -> None:
        """Write metrics.json and report.md into a folder, which is made if it is missing."""
        write_json(Path(directory) / "metrics.json", self.to_json())
        write_text(Path(directory) / "report.md", self.to_markdown())


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
    parts = [
        _EVALUATORS[kind](arch, tokenizer, records, progress),
        generation.evaluate_generation(arch, tokenizer, records, progress),
    ]
    if write_texts or references is not None:
        parts.append(texts.evaluate_texts(arch, tokenizer, records, references, progress))
    rows = [{key: value for part in of_record for key, value in part.items()} for of_record in zip(*parts, strict=True)]
    return summarise(kind, rows)


def summarise(kind: str, per_record: Sequence[Mapping[str, Any]]) -> Report:
    """Average the values of single records, with intervals: those of one evaluation, or of several together.

    `per_record` is that of a Report, or of several of one kind joined, also as read from metrics.json. Raises EditError
    if it is empty.
    """
    metrics = [metric for metric in _definitions(kind) if metric == "S" or any(metric in row for row in per_record)]
    values = [{metric: record.get(metric) for metric in metrics if metric != "S"} for record in per_record]
    return Report(kind, estimate(values, metrics, _parts_of_s(kind)), per_record)


def _definitions(kind: str) -> Mapping[str, str]:
    """What each metric of a kind of records means."""
    return {**(zsre.METRICS if kind == "zsre" else counterfact.METRICS), **generation.METRICS, **texts.METRICS}


def _parts_of_s(kind: str) -> Sequence[str]:
    return zsre.PARTS_OF_S if kind == "zsre" else counterfact.PARTS_OF_S


def _markdown_row(metric: str, found: Estimate | None, meaning: str) -> str:
    measured = f"{found.mean:.1f} | {found.low:.1f} to {found.high:.1f} | {found.records}" if found else "– | – | 0"
    return f"| {metric} | {measured} | {meaning} |"
