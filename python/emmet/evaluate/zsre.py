"""The metrics of zsRE (Levy et al. 2017, arXiv 1706.04115) as MEMIT's evaluation defines them (arXiv 2210.07229).

All three are top-1 accuracies of tokens, each predicted from the prompt and the true tokens before it:

    efficacy      of the new target after the question
    paraphrase    of the new target after the rephrased question
    specificity   of the true answer to an unrelated question of Natural Questions

A record's value is the mean over its tokens, a metric the mean over records, and S the harmonic mean of the three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from ..architectures import Architecture
from ..edits import Record
from ..progress import Progress, silent
from .intervals import percent
from .scoring import Pair, Score, score_continuations

METRICS = {
    "efficacy": "top-1 accuracy of the new target's tokens",
    "paraphrase": "the same after the rephrased question",
    "specificity": "top-1 accuracy of the answer's tokens for an unrelated question",
    "S": "harmonic mean of the three",
}
PARTS_OF_S = ("efficacy", "paraphrase", "specificity")


def evaluate_zsre(
    arch: Architecture, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], progress: Progress = silent
) -> list[dict[str, object]]:
    """Each record's texts and values of METRICS, in percent; see the module's text. Raises as `score_continuations`."""
    pairs = [_pairs(record) for record in records]
    all_pairs = [pair for of_record in pairs for of_metric in of_record.values() for pair in of_metric]
    scores = score_continuations(arch, tokenizer, all_pairs, progress)
    return [
        {
            "id": record.edit.id,
            "prompt": record.edit.text,
            "target": record.edit.target,
            **{metric: _accuracy(scores[pair] for pair in of_metric) for metric, of_metric in of_record.items()},
        }
        for record, of_record in zip(records, pairs, strict=True)
    ]


def _pairs(record: Record) -> dict[str, list[Pair]]:
    """What each metric but S is measured on."""
    return {
        "efficacy": [(record.edit.text, record.edit.target)],
        "paraphrase": [(paraphrase, record.edit.target) for paraphrase in record.paraphrases],
        "specificity": [(neighbour.prompt, neighbour.answer) for neighbour in record.neighbours],
    }


def _accuracy(scores: Iterable[Score]) -> float | None:
    return percent(correct for score in scores for correct in score.correct)
