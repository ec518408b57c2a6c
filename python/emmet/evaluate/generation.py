"""Whether a model writes the new target when it is left to itself: greedy decoding, without teacher forcing.

A published score compares the likelihoods of two given continuations, or asks for the likeliest token after the true
ones. Neither says what a user would read. Here the model continues the edit's prompt by its own likeliest tokens:

    generated    the text begins with the new target
    stops        it does, and the answer ends there: the text ends, or its next character is neither letter nor digit

so that "Englishman" is no answer "English" that stops, and "English." and "English and French" are. White space at the
text's beginning does not count, and any run of it counts as one space. The share of records is given in percent. The
definition is emmet's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..architectures import Architecture
from ..edits import Record
from ..forward import batches_of_one_length
from ..hooks import frozen
from ..progress import Progress, silent, within
from ..sampling import likeliest, next_tokens
from ..tokens import encode_prompts
from .scoring import Pair, Score, check_fits, shortened

METRICS = {
    "generated": "greedy decoding from the prompt begins with the new target",
    "stops": "and the answer ends there: the text ends, or no letter or digit follows",
}

# Prompts that are continued at once.
ROWS = 64

# Beyond a token for each byte of the target: white space before it, and the bytes of the character after it.
_MORE_TOKENS = 8
_SPACE = re.compile(r"\s+")
_PART_OF_A_CHARACTER = "\ufffd"  # what bytes decode to before the last one of their character has come


def evaluate_generation(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    scores: Mapping[Pair, Score],
    progress: Progress = silent,
) -> list[dict[str, object]]:
    """Each record's values of METRICS, 0 or 100, and "continuation": as much of the text as it took to find them.

    What `scores` of an edit's prompt with its target tell of greedy decoding is not decoded again: that is enough for
    most records. Raises EditError, which quotes the prompt, if it and the text do not fit the model's context, and
    NonFiniteError if the model gives NaN or infinity.
    """
    # A space before the target belongs to the target's first token, which the model is to write.
    texts = [record.edit.text.rstrip(" ") for record in records]
    rows = [prompt.ids for prompt in encode_prompts(tokenizer, texts)]
    answers = [_Answer(tokenizer, arch.model.generation_config, record.edit.target) for record in records]
    for text, row, answer in zip(texts, rows, answers, strict=True):
        check_fits(arch, f"{shortened(text)} with {answer.most_tokens} tokens after it", len(row) + answer.most_tokens)
    for answer, tokens in zip(answers, _known_tokens(tokenizer, records, rows, scores), strict=True):
        for token in tokens:
            answer.add(token)

    undecided = [(row, answer) for row, answer in zip(rows, answers, strict=True) if not answer.is_decided]
    _decode(arch, undecided, within(progress, len(records) - len(undecided), len(records)))
    return [answer.to_json() for answer in answers]


def pair(record: Record) -> Pair:
    """What is to be scored for a record's generation, with the token after it."""
    return record.edit.text, record.edit.target


def _known_tokens(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    rows: Sequence[tuple[int, ...]],
    scores: Mapping[Pair, Score],
) -> Iterator[tuple[int, ...]]:
    """The tokens that the model writes after each of the prompts `rows`, as far as its scores tell."""
    whole = encode_prompts(
        tokenizer, [record.edit.text for record in records], targets=[r.edit.target for r in records]
    )
    for record, row, prompt in zip(records, rows, whole, strict=True):
        score = scores.get(pair(record))
        # The tokens of the prompt may be others when the target follows: then the model was asked something else.
        yield score.greedy if score is not None and prompt.ids[: prompt.target.start] == row else ()


def _decode(arch: Architecture, answers: Sequence[tuple[tuple[int, ...], _Answer]], progress: Progress) -> None:
    """Let the model go on with answers to prompts, which are given as tokens, until each answer is decided."""
    rows = [(*prompt, *answer.ids) for prompt, answer in answers]
    done = 0
    with frozen(arch.model), torch.no_grad():
        for batch in batches_of_one_length([len(row) for row in rows], ROWS):
            _write(arch, [rows[i] for i in batch], [answers[i][1] for i in batch])
            done += len(batch)
            progress("generate", done, len(answers))


def _write(arch: Architecture, rows: Sequence[Sequence[int]], answers: Sequence[_Answer]) -> None:
    """Let the model go on with rows of one length until each answer is decided."""
    for tokens in next_tokens(arch.model, torch.tensor(rows, device=arch.model.device), likeliest):
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            answer.add(token)
        if all(answer.is_decided for answer in answers):
            return


class _Answer:
    """What a model writes after a prompt, until it is decided whether that is the target."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None, target: str) -> None:
        self._tokenizer = tokenizer
        self._ends = _end_tokens(tokenizer, settings)
        self._target = _one_line(target).strip()
        self.ids: list[int] = []
        self._text = ""
        self._verdict: _Verdict | None = None
        self.most_tokens = len(self._target.encode()) + _MORE_TOKENS

    @property
    def is_decided(self) -> bool:
        return self._verdict is not None or len(self.ids) == self.most_tokens

    def add(self, token: int) -> None:
        """Go on by a token, if it is not decided yet."""
        if self.is_decided:
            return
        ended = token in self._ends
        if not ended:
            self.ids.append(token)
        self._text = str(self._tokenizer.decode(self.ids, clean_up_tokenization_spaces=False))
        self._verdict = _judge(_one_line(self._text).lstrip(), self._target, ended)

    def to_json(self) -> dict[str, object]:
        verdict = self._verdict or _Verdict(generated=False, stops=False)
        return {"generated": 100.0 * verdict.generated, "stops": 100.0 * verdict.stops, "continuation": self._text}


class _Verdict(NamedTuple):
    generated: bool
    stops: bool


def _judge(text: str, target: str, ended: bool) -> _Verdict | None:
    """What a text means, of which this is all if it has `ended`, else the beginning; None if that may still change."""
    if not ended:
        text = text.rstrip(_PART_OF_A_CHARACTER)
    if text.startswith(target):
        following = text[len(target) : len(target) + 1]
        return _Verdict(generated=True, stops=not following.isalnum()) if following or ended else None
    return None if target.startswith(text) and not ended else _Verdict(generated=False, stops=False)


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", text)


def _end_tokens(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's settings, which chat models extend."""
    more = None if settings is None else settings.eos_token_id
    return {tokenizer.eos_token_id, *([more] if isinstance(more, int) else more or [])} - {None}
