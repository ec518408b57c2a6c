"""The metrics of zsRE (Levy et al. 2017, arXiv 1706.04115) as MEMIT's evaluation defines them (arXiv 2210.07229).

All three are top-1 accuracies of tokens, each predicted from the prompt and the true tokens before it:

    efficacy      of the new target after the question
    paraphrase    of the new target after the rephrased question
    specificity   of the true answer to an unrelated question of Natural Questions

A record's value is the mean over its tokens, a metric the mean over records, and S the harmonic mean of the three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..edits import Record
from .intervals import percent
from .scoring import Pair, Score

METRICS = {
    "efficacy": "top-1 accuracy of the new target's tokens",
    "paraphrase": "the same after the rephrased question",
    "specificity": "top-1 accuracy of the answer's tokens for an unrelated question",
    "S": "harmonic mean of the three",
}
PARTS_OF_S = ("efficacy", "paraphrase", "specificity")


def pairs(record: Record) -> Iterator[Pair]:
    """The prompts and continuations whose scores `row` takes."""
    for of_metric in _pairs(record).values():
        yield from of_metric


def row(record: Record, scores: Mapping[Pair, Score]) -> dict[str, object]:
    """A record's value of each metric but S, in percent, None where it does not have what the metric needs."""
    return {metric: _accuracy(scores[pair] for pair in of_metric) for metric, of_metric in _pairs(record).items()}


def _pairs(record: Record) -> dict[str, list[Pair]]:
    """What each metric but S is measured on."""
    return {
        "efficacy": [(record.edit.text, record.edit.target)],
        "paraphrase": [(paraphrase, record.edit.target) for paraphrase in record.paraphrases],
        "specificity": [(neighbour.prompt, neighbour.answer) for neighbour in record.neighbours],
    }


def _accuracy(scores: Iterable[Score]) -> float | None:
    return percent(correct for score in scores for correct in score.correct)
