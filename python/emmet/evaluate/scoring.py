"""How likely a model finds continuations of prompts."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from ..architectures import Architecture
from ..errors import EditError, NonFiniteError
from ..forward import batches_by_length, model_inputs
from ..hooks import at_positions, frozen
from ..progress import Progress, silent
from ..tokens import Prompt, encode_prompts, pad_rows

Pair = tuple[str, str]
"""A prompt and its continuation."""

# Padded tokens of one forward pass: few, because its logits have the width of the vocabulary.
_BATCH_TOKENS = 512

_UNKNOWN = -100  # stands for a token that is not known, only what the model puts there


@dataclass(frozen=True, slots=True)
class Score:
    """A continuation under teacher forcing.

    `nll` is the mean negative log-likelihood of its tokens, in nats; `correct` says of each token whether it is the one
    that the model finds likeliest. `greedy` are the tokens that greedy decoding begins with, as far as this shows them:
    those of the continuation that it agrees with, and the one after these.
    """

    nll: float
    correct: tuple[bool, ...]
    greedy: tuple[int, ...] = ()

    @property
    def probability(self) -> float:
        """exp(-nll), the geometric mean of the tokens' probabilities."""
        return math.exp(-self.nll)


def score_continuations(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair],
    progress: Progress = silent,
    *,
    beyond: Container[Pair] = (),
) -> dict[Pair, Score]:
    """Score each distinct pair, batched by length; logits are computed only where they predict a continuation.

    A space is put between prompt and continuation where neither has one. Of pairs `beyond`, `greedy` has a token even
    after the continuation, if the model agrees with all of it.

    Raises EditError, which quotes the pair, if one of its texts is blank or it does not fit the model's context, and
    NonFiniteError if the model gives NaN or infinity.
    """
    distinct = list(dict.fromkeys(pairs))
    for pair in distinct:
        _check_not_blank(pair)
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in distinct], targets=[target for _, target in distinct])
    rows = [_Row.of(prompt, beyond=pair in beyond) for pair, prompt in zip(distinct, prompts, strict=True)]
    for pair, row in zip(distinct, rows, strict=True):
        check_fits(arch, _quoted(pair), len(row.ids))
    groups = _group_by_beginning(rows)
    scores: dict[Pair, Score] = {}
    with frozen(arch.model), torch.inference_mode():
        for batch in batches_by_length([len(rows[group[0]].ids) for group in groups], _BATCH_TOKENS):
            batch_groups = [groups[i] for i in batch]
            batch_scores = _score_groups(arch, [[rows[i] for i in group] for group in batch_groups])
            batch_pairs = [distinct[i] for group in batch_groups for i in group]
            for pair, score in zip(batch_pairs, batch_scores, strict=True):
                _check_finite(pair, score)
                scores[pair] = score
            progress("score", len(scores), len(distinct))
    return scores


class _Row(NamedTuple):
    """What is run for a pair: `ids`; `reads` are the positions whose logits are needed, which predict `continuation`.

    There is one more of them where the token after the continuation is asked for.
    """

    ids: tuple[int, ...]
    continuation: tuple[int, ...]
    reads: range

    @staticmethod
    def of(prompt: Prompt, *, beyond: bool) -> _Row:
        end = len(prompt.ids) if beyond else len(prompt.ids) - 1  # else the last token is predicted, not read
        start = prompt.target.start
        return _Row(prompt.ids[:end], prompt.ids[start:], range(start - 1, end))


def _check_not_blank(pair: Pair) -> None:
    if not all(text.strip() for text in pair):
        message = f"expected a prompt and a continuation that are not blank, got {_quoted(pair)}: fill in the record"
        raise EditError(message)


def _check_finite(pair: Pair, score: Score) -> None:
    if not math.isfinite(score.nll):
        message = f"the model's log-likelihood of {_quoted(pair)} is {-score.nll}: its weights hold NaN or infinity, "
        message += "or its dtype overflows; load it in float32 or bfloat16, or undo its last edit"
        raise NonFiniteError(message)


def _quoted(pair: Pair) -> str:
    prompt, continuation = map(shortened, pair)
    return f"{prompt} with {continuation}"


def check_fits(arch: Architecture, content: str, length: int) -> None:
    """Raise EditError if `content`, which is of `length` tokens, exceeds the model's context."""
    if arch.max_positions is not None and length > arch.max_positions:
        message = f"{content} needs a context of {length} tokens, but this model has {arch.max_positions}: "
        message += "shorten the record or leave it out"
        raise EditError(message)


def shortened(text: str) -> str:
    """The text, or the beginning of it, in quotes."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _group_by_beginning(rows: Sequence[_Row]) -> list[list[int]]:
    """Group the indices of rows by the row that has to be run for them: the first of the group, which all others begin.

    Attention is causal, so what follows a token changes nothing there. In sorted order a row comes right before those
    that it begins.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: rows[i].ids, reverse=True):
        ids = rows[index].ids
        if groups and rows[groups[-1][0]].ids[: len(ids)] == ids:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _score_groups(arch: Architecture, groups: Sequence[Sequence[_Row]]) -> list[Score]:
    """Score all rows, in their order; of each group only the first is run."""
    device = arch.model.device
    rows = [row for group in groups for row in group]
    reads = [(index, position) for index, group in enumerate(groups) for row in group for position in row.reads]
    ids, mask = pad_rows([group[0].ids for group in groups], device=device)
    with at_positions(arch.head, *torch.tensor(reads, device=device).T):
        logits: Tensor = arch.model(**model_inputs(arch.model, ids, mask)).logits[0]
    expected = [token for row in rows for token in (*row.continuation, _UNKNOWN)[: len(row.reads)]]
    nll = functional.cross_entropy(
        logits.float(), torch.tensor(expected, device=device), ignore_index=_UNKNOWN, reduction="none"
    )
    lengths = [len(row.reads) for row in rows]
    nlls = torch.split(nll.cpu().double(), lengths)
    likeliest = torch.split(logits.argmax(-1).cpu(), lengths)
    return [_score(row, *found) for row, *found in zip(rows, nlls, likeliest, strict=True)]


def _score(row: _Row, nll: Tensor, likeliest: Tensor) -> Score:
    """The score of a row, by the NLL and the likeliest token at each of its reads."""
    count = len(row.continuation)
    tokens = likeliest.tolist()
    correct = tuple(token == expected for token, expected in zip(tokens, row.continuation, strict=False))
    agreed = correct.index(False) if False in correct else count
    return Score(nll[:count].mean().item(), correct, tuple(tokens[: agreed + 1]))
