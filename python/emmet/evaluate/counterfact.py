"""The metrics of CounterFact, on any records that tell the new target from the old answer.

They are defined by Meng et al. (2022, arXiv 2202.05262, section 3.3) and computed as in the published code of MEMIT
(Meng et al. 2023, arXiv 2210.07229). After each prompt one continuation is wanted, and another is not:

    prompts                       wanted       other          likelier   margin   top-1
    the edit's prompt             new target   old answer     ES         EM       accuracy
    its paraphrases               new target   old answer     PS         PM       paraphrase_accuracy
    prompts of its neighbours     old answer   new target     NS         NM       neighbour_accuracy

    likelier   whether the wanted continuation's mean token NLL is below the other's
    margin     p(wanted) − p(other), where p = exp(−mean token NLL)
    top-1      whether each token of the wanted continuation is the likeliest one, the ones before it given

A record's value is the mean over its prompts of a kind, a metric the mean over records, and S the harmonic mean of ES,
PS and NS. Where the other continuation is not known, only top-1 is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..edits import Record
from .intervals import percent
from .scoring import Pair, Score

METRICS = {
    "ES": "efficacy: the new target is likelier than the old answer",
    "PS": "paraphrase: the same after paraphrases of the prompt",
    "NS": "neighbourhood: the old answer stays likelier for other subjects",
    "S": "harmonic mean of ES, PS and NS",
    "EM": "efficacy magnitude: p(new target) − p(old answer)",
    "PM": "paraphrase magnitude: the same after paraphrases of the prompt",
    "NM": "neighbourhood magnitude: p(old answer) − p(new target) for other subjects",
    "accuracy": "each token of the new target is top-1",
    "paraphrase_accuracy": "the same after paraphrases of the prompt",
    "neighbour_accuracy": "each token of the old answer is top-1 for other subjects",
}
PARTS_OF_S = ("ES", "PS", "NS")


class _Contest(NamedTuple):
    """A prompt, the continuation that is wanted after it, and the one that it is up against, if that is known."""

    prompt: str
    wanted: str
    other: str | None

    def pairs(self) -> Iterator[Pair]:
        yield self.prompt, self.wanted
        if self.other is not None:
            yield self.prompt, self.other


class _Contests(NamedTuple):
    """All contests of one record."""

    prompt: list[_Contest]
    paraphrases: list[_Contest]
    neighbours: list[_Contest]

    @staticmethod
    def of(record: Record) -> _Contests:
        target, answer = record.edit.target, record.answer_before
        return _Contests(
            prompt=[_Contest(record.edit.text, target, answer)],
            paraphrases=[_Contest(paraphrase, target, answer) for paraphrase in record.paraphrases],
            neighbours=[_Contest(neighbour.prompt, neighbour.answer, target) for neighbour in record.neighbours],
        )


def pairs(record: Record) -> Iterator[Pair]:
    """The prompts and continuations whose scores `row` takes."""
    for of_kind in _Contests.of(record):
        for contest in of_kind:
            yield from contest.pairs()


def row(record: Record, scores: Mapping[Pair, Score]) -> dict[str, object]:
    """A record's value of each metric but S, in percent, None where it does not have what the metric needs.

    Besides, "nll" holds [wanted, other] for each prompt: mean token NLL in nats.
    """
    contests = _Contests.of(record)
    return {**_values(contests, scores), "nll": _nll(contests, scores)}


def _values(contests: _Contests, scores: Mapping[Pair, Score]) -> dict[str, float | None]:
    return {
        "ES": _likelier(contests.prompt, scores),
        "PS": _likelier(contests.paraphrases, scores),
        "NS": _likelier(contests.neighbours, scores),
        "EM": _margin(contests.prompt, scores),
        "PM": _margin(contests.paraphrases, scores),
        "NM": _margin(contests.neighbours, scores),
        "accuracy": _top_1(contests.prompt, scores),
        "paraphrase_accuracy": _top_1(contests.paraphrases, scores),
        "neighbour_accuracy": _top_1(contests.neighbours, scores),
    }


def _likelier(contests: Sequence[_Contest], scores: Mapping[Pair, Score]) -> float | None:
    return percent(wanted.nll < other.nll for wanted, other in _both(contests, scores))


def _margin(contests: Sequence[_Contest], scores: Mapping[Pair, Score]) -> float | None:
    return percent(wanted.probability - other.probability for wanted, other in _both(contests, scores))


def _top_1(contests: Sequence[_Contest], scores: Mapping[Pair, Score]) -> float | None:
    return percent(all(scores[contest.prompt, contest.wanted].correct) for contest in contests)


def _both(contests: Sequence[_Contest], scores: Mapping[Pair, Score]) -> Iterator[tuple[Score, Score]]:
    for prompt, wanted, other in contests:
        if other is not None:
            yield scores[prompt, wanted], scores[prompt, other]


def _nll(contests: _Contests, scores: Mapping[Pair, Score]) -> dict[str, list[list[float]]]:
    return {
        kind: [[scores[pair].nll for pair in contest.pairs()] for contest in group]
        for kind, group in contests._asdict().items()
    }
