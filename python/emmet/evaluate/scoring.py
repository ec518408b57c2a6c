"""How likely a model finds continuations of prompts, and what metrics of records come to on average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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

Pair = tuple[str, str]  # a prompt and its continuation

# Padded tokens of one forward pass: few, as the logits that it keeps have the width of the vocabulary.
_BATCH_TOKENS = 2048

_BOOTSTRAP_DRAWS = 1000
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True, slots=True)
class Score:
    """A continuation under teacher forcing.

    `nll` is the mean negative log-likelihood of its tokens, in nats; `correct` says of each token whether the model
    finds no other one likelier.
    """

    nll: float
    correct: tuple[bool, ...]

    @property
    def probability(self) -> float:
        """exp(-nll): the geometric mean of the tokens' probabilities."""
        return math.exp(-self.nll)


def score_continuations(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair],
    progress: Progress = silent,
    stage: str = "score",
) -> dict[Pair, Score]:
    """Score each distinct (prompt, continuation), batched by length; logits are computed at continuations only.

    A space is put between the two where neither has one. The model's mode is as before afterwards.

    Raises EditError, which quotes the pair, if a continuation has no token, nothing to be predicted from, or does not
    fit the context; NonFiniteError if the model's logits are NaN or infinite.
    """
    distinct = list(dict.fromkeys(pairs))
    prompts = encode_prompts(
        tokenizer, [prompt for prompt, _ in distinct], targets=[continuation for _, continuation in distinct]
    )
    for pair, prompt in zip(distinct, prompts, strict=True):
        _check_readable(pair, prompt, arch.max_positions)
    rows = _shared_rows([prompt.ids[:-1] for prompt in prompts])
    scores: dict[Pair, Score] = {}
    with frozen(arch.model), torch.inference_mode():
        for batch in batches_by_length([len(prompts[row[0]].ids) - 1 for row in rows], _BATCH_TOKENS):
            readers = [[prompts[i] for i in rows[row]] for row in batch]
            read = [distinct[i] for row in batch for i in rows[row]]
            scores.update(zip(read, _score_rows(arch, readers), strict=True))
            progress(stage, len(scores), len(distinct))
    _check_finite(scores)
    return scores


def _check_readable(pair: Pair, prompt: Prompt, max_positions: int | None) -> None:
    text, continuation = (repr(part if len(part) <= 60 else f"{part[:57]}...") for part in pair)
    context = len(prompt.ids) - 1  # the last token is predicted, not read
    if not prompt.target:
        fault = "has no token: give a text that is not empty"
    elif prompt.target.start == 0:
        fault = "has no token before it to be predicted from: give a longer prompt"
    elif max_positions is not None and context > max_positions:
        fault = f"needs a context of {context} tokens, but this model has {max_positions}: shorten or remove the record"
    else:
        return
    message = f"the continuation {continuation} of the prompt {text} {fault}"
    raise EditError(message)


def _check_finite(scores: Mapping[Pair, Score]) -> None:
    for (prompt, continuation), score in scores.items():
        if not math.isfinite(score.nll):
            message = f"the model gives {continuation!r} after {prompt!r} a log-likelihood of {-score.nll}: its weights "
            message += "hold NaN or infinity, or its dtype overflows; load it in float32 or bfloat16, or undo the edit"
            raise NonFiniteError(message)


def _shared_rows(rows: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Group indices of rows: the first of each group is run, and the others, which it begins with, are read in it.

    Attention is causal: what follows a token changes nothing there. In sorted order, a row stands before those that
    begin with it, and nothing else stands between.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: rows[i], reverse=True):
        row = rows[index]
        if groups and rows[groups[-1][0]][: len(row)] == row:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _score_rows(arch: Architecture, readers: Sequence[Sequence[Prompt]]) -> list[Score]:
    """Run one row for each group of prompts, the first prompt's, and score all prompts' targets."""
    device = arch.model.device
    ids, mask = pad_rows([group[0].ids[:-1] for group in readers], device=device)
    reads = [(row, i - 1) for row, group in enumerate(readers) for prompt in group for i in prompt.target]
    prompts = [prompt for group in readers for prompt in group]
    targets = torch.tensor([prompt.ids[i] for prompt in prompts for i in prompt.target], device=device)
    with at_positions(arch.head, *torch.tensor(reads, device=device).T):
        logits: Tensor = arch.model(**model_inputs(arch.model, ids, mask)).logits[0]
    nll = functional.cross_entropy(logits.float(), targets, reduction="none")
    lengths = [len(prompt.target) for prompt in prompts]
    return [
        Score(nll.mean().item(), tuple(correct.tolist()))
        for nll, correct in zip(
            nll.double().cpu().split(lengths), (logits.argmax(-1) == targets).cpu().split(lengths), strict=True
        )
    ]
