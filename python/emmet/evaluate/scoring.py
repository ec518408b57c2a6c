"""How likely a model finds continuations of prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """A continuation under teacher forcing.

    `nll` is the mean negative log-likelihood of its tokens, in nats; `correct` says of each token whether it is the one
    that the model finds likeliest.
    """

    nll: float
    correct: tuple[bool, ...]

    @property
    def probability(self) -> float:
        """exp(-nll), the geometric mean of the tokens' probabilities."""
        return math.exp(-self.nll)


def score_continuations(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair],
    progress: Progress = silent,
    stage: str = "score",
) -> dict[Pair, Score]:
    """Score each distinct pair, batched by length; logits are computed only where they predict a continuation.

    A space is put between prompt and continuation where neither has one.

    Raises EditError, which quotes the pair, if one of its texts is blank or it does not fit the model's context, and
    NonFiniteError if the model gives NaN or infinity.
    """
    distinct = list(dict.fromkeys(pairs))
    for pair in distinct:
        _check_not_blank(pair)
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in distinct], targets=[target for _, target in distinct])
    rows = [prompt.ids[:-1] for prompt in prompts]  # the last token is predicted, not read
    for pair, row in zip(distinct, rows, strict=True):
        check_fits(arch, _quoted(pair), len(row))
    groups = _group_by_row(rows)
    scores: dict[Pair, Score] = {}
    with frozen(arch.model), torch.inference_mode():
        for batch in batches_by_length([len(rows[group[0]]) for group in groups], _BATCH_TOKENS):
            batch_groups = [groups[i] for i in batch]
            batch_scores = _score_groups(arch, [[prompts[i] for i in group] for group in batch_groups])
            batch_pairs = [distinct[i] for group in batch_groups for i in group]
            for pair, score in zip(batch_pairs, batch_scores, strict=True):
                _check_finite(pair, score)
                scores[pair] = score
            progress(stage, len(scores), len(distinct))
    return scores


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


def _group_by_row(rows: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Group the indices of rows by the row that has to be run for them: the first of the group, which all others begin.

    Attention is causal, so what follows a token changes nothing there. In sorted order a row comes right before those
    that it begins.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: rows[i], reverse=True):
        row = rows[index]
        if groups and rows[groups[-1][0]][: len(row)] == row:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _score_groups(arch: Architecture, groups: Sequence[Sequence[Prompt]]) -> list[Score]:
    """Score the targets of all prompts, in their order; of each group only the first prompt is run."""
    device = arch.model.device
    prompts = [prompt for group in groups for prompt in group]
    targets = torch.tensor([prompt.ids[i] for prompt in prompts for i in prompt.target], device=device)
    reads = [(row, i - 1) for row, group in enumerate(groups) for prompt in group for i in prompt.target]
    ids, mask = pad_rows([group[0].ids[:-1] for group in groups], device=device)
    with at_positions(arch.head, *torch.tensor(reads, device=device).T):
        logits: Tensor = arch.model(**model_inputs(arch.model, ids, mask)).logits[0]
    nll = functional.cross_entropy(logits.float(), targets, reduction="none").cpu().double()
    correct = (logits.argmax(-1) == targets).cpu()
    lengths = [len(prompt.target) for prompt in prompts]
    return [
        Score(token_nll.mean().item(), tuple(token_correct.tolist()))
        for token_nll, token_correct in zip(torch.split(nll, lengths), torch.split(correct, lengths), strict=True)
    ]
