"""The evaluation of a model on records, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..architectures import Architecture
from ..edits import Record
from ..errors import EditError
from ..progress import Progress, silent
from ..storage import write_json, write_text
from .counterfact import evaluate_counterfact
from .scoring import Estimate, Scores
from .zsre import evaluate_zsre

_EVALUATORS = {"emmet": evaluate_counterfact, "counterfact": evaluate_counterfact, "zsre": evaluate_zsre}


@dataclass(frozen=True)
class Report:
    """The scores of records, all of one `kind`."""

    kind: str
    scores: Scores

    def to_json(self) -> dict[str, object]:
        """What metrics.json holds: each metric by its name, in percent, None where no record has what it needs.

        Besides: `kind`; `records`, their number; `records_measured`, how many of them a metric is the mean of;
        `intervals`, [low, high] of the 95 % interval of each metric; `per_record`, see `Scores`.
        """
        estimates = self.scores.estimates
        return {
            **{metric: found and found.mean for metric, found in estimates.items()},
            "kind": self.kind,
            "records": len(self.scores.per_record),
            "records_measured": {metric: found.records if found else 0 for metric, found in estimates.items()},
            "intervals": {metric: found and [found.low, found.high] for metric, found in estimates.items()},
            "per_record": list(self.scores.per_record),
        }

    def to_markdown(self) -> str:
        """A table of the metrics with their intervals and meanings."""
        rows = [_markdown_row(metric, found, self.scores) for metric, found in self.scores.estimates.items()]
        return "\n".join(
            [
                f"# Evaluation: {len(self.scores.per_record)} records ({self.kind})",
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


def _markdown_row(metric: str, found: Estimate | None, scores: Scores) -> str:
    measured = f"{found.mean:.1f} | {found.low:.1f} to {found.high:.1f} | {found.records}" if found else "– | – | 0"
    return f"| {metric} | {measured} | {scores.definitions[metric]} |"


def evaluate(
    arch: Architecture, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], progress: Progress = silent
) -> Report:
    """Evaluate records by the definitions of their kind; see `counterfact` (our own format as well) and `zsre`.

    Raises EditError if there are no records, they are of several kinds, or a text is blank or too long for the model,
    and NonFiniteError if the model gives NaN or infinity.
    """
    kinds = sorted({record.kind for record in records})
    if len(kinds) != 1:
        found = " and ".join(kinds) or "no records"
        message = f"expected records of one kind, got {found}: evaluate one file at a time"
        raise EditError(message)
    (kind,) = kinds
    return Report(kind, _EVALUATORS[kind](arch, tokenizer, records, progress))
