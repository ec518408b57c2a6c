"""From texts to token ids, with the positions of the subject and of the target.

Positions come from the tokenizer's offset mapping over the whole text, never from parts tokenised on their own: tokens
merge across those parts, and special tokens shift them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from .errors import ModelError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised text, with the special tokens that the tokenizer puts before it and none after it.

    `subject` is the position in `ids` of the subject's last token. `target` holds the positions of the target's tokens,
    which are the last ones; it is empty if there is no target.
    """

    ids: tuple[int, ...]
    subject: int
    target: range


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    spans: Sequence[tuple[int, int]] | None = None,
    targets: Sequence[str | None] | None = None,
) -> list[Prompt]:
    """Tokenise each text, followed by its target if it has one, and find the subject and the target in it.

    `spans` are the subjects as character ranges [start, end) of the texts, the whole texts by default. A subject's last
    token is the last that overlaps it, not counting spaces at its end: be it the last byte of a character spelled in
    bytes, or punctuation merged with what follows. A space is put between text and target where neither has one. A
    token that reaches from the text into the target belongs to the target.

    Raises ModelError if the tokenizer gives no offsets (only the fast ones do), drops the subject or the target, or
    merges them into one token.
    """
    if not tokenizer.is_fast:
        message = f"expected a fast tokenizer, got {type(tokenizer).__name__}: load one that has a tokenizer.json"
        raise ModelError(message)
    if not texts:
        return []
    all_spans = spans or [(0, len(text)) for text in texts]
    all_targets = targets or [None] * len(texts)
    encoded = tokenizer(
        [_join(text, target) for text, target in zip(texts, all_targets, strict=True)],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    rows = zip(encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    return [
        _locate(text, span, target, *row)
        for text, span, target, row in zip(texts, all_spans, all_targets, rows, strict=True)
    ]


def _join(text: str, target: str | None) -> str:
    if not target:
        return text
    separator = "" if text[-1:].isspace() or target[0].isspace() else " "
    return text + separator + target


def _locate(
    text: str,
    span: tuple[int, int],
    target: str | None,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    special: Sequence[int],
) -> Prompt:
    pieces = [
        (position, start, end)
        for position, ((start, end), is_special) in enumerate(zip(offsets, special, strict=True))
        if not is_special
    ]
    length = max((position + 1 for position, _, _ in pieces), default=0)
    target_start = min((position for position, _, end in pieces if end > len(text)), default=length)
    if target and target_start == length:
        message = f"the tokenizer drops the target {target!r} after {text!r}: choose another target"
        raise ModelError(message)
    subject_text = text[slice(*span)].rstrip()
    subject_start, subject_end = span[0], span[0] + len(subject_text)
    overlapping = (position for position, start, end in pieces if start < subject_end and end > subject_start)
    subject = max(overlapping, default=length)
    if subject >= target_start:
        message = f"the subject {subject_text!r} has no token of its own in {text!r}: change it or what follows it"
        raise ModelError(message)
    return Prompt(tuple(ids[:length]), subject, range(target_start, length))


def pad_rows(
    rows: Sequence[Sequence[int]],
    side: Literal["left", "right"] = "right",
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows as one int64 tensor [rows, longest], padded with 0 on `side`, and its attention mask."""
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        input_ids[index, columns] = torch.tensor(row, dtype=torch.int64)
        attention_mask[index, columns] = 1
    return input_ids.to(device), attention_mask.to(device)
