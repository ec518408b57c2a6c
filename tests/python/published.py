"""The published procedure for value vectors, as plainly as it can be written: the oracle of the tests.

One edit, one row a pass, the whole model, logits everywhere, torch's Adam, nothing cached (Meng et al. 2022 and 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emmet import Edit, EditConfig


@dataclass(frozen=True)
class Published:
    """v*, and the loss at each step: that of each context when it was last evaluated."""

    target: Tensor
    losses: list[float]


def token_of(tokenizer: PreTrainedTokenizerBase, text: str, character: int) -> int:
    """The index of the token that holds a character of the text, read off the fast tokenizer's encoding."""
    encoding = tokenizer(text)
    while (token := encoding.char_to_token(character)) is None:
        character -= 1
    return token


def published_values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edit: Edit,
    prefixes: Sequence[str],
    module: nn.Module,
    config: EditConfig,
    delta: Tensor | None = None,
) -> Published:
    """δ, 0 at first or as given, is added to the output of `module` at the subject's last token."""
    rows = []
    for prefix in ("", *prefixes):
        text = prefix + edit.text
        ids = torch.tensor(tokenizer(f"{text} {edit.target}").input_ids)
        start = token_of(tokenizer, f"{text} {edit.target}", len(text) + 1)
        subject = token_of(tokenizer, f"{text} {edit.target}", len(prefix) + edit.subject_span[1] - 1)
        rows.append((ids, subject, start))
    essence = f"{edit.subject} is a"
    essence_ids = torch.tensor(tokenizer(essence).input_ids)
    essence_subject = token_of(tokenizer, essence, len(edit.subject) - 1)

    states: list[Tensor] = []
    delta = (torch.zeros(model.config.hidden_size) if delta is None else delta.clone()).requires_grad_()

    def log_probabilities(ids: Tensor, subject: int, shift: Tensor) -> Tensor:
        def add(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> object:
            value = output if isinstance(output, Tensor) else output[0]
            states.append(value[0, subject].detach().clone())
            moved = value.clone()
            moved[0, subject] = moved[0, subject] + shift
            return moved if isinstance(output, Tensor) else (moved, *output[1:])

        handle = module.register_forward_hook(add)
        try:
            return model(ids[None], use_cache=False).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    losses = []
    nothing = torch.zeros_like(delta).detach()
    unedited = log_probabilities(essence_ids, essence_subject, nothing)[essence_subject].detach()
    states.clear()
    size = config.contexts_per_step or len(rows)
    latest = [math.nan] * len(rows)
    for step in range(config.steps):
        optimiser.zero_grad()
        first = step * size % (math.ceil(len(rows) / size) * size)
        nll = [
            -log_probabilities(ids, subject, delta)[start - 1 : -1].gather(1, ids[start:, None]).mean()
            for ids, subject, start in rows[first : first + size]
        ]
        latest[first : first + size] = [of_context.item() for of_context in nll]
        if step == 0:
            h = states[0]
        edited = log_probabilities(essence_ids, essence_subject, delta)[essence_subject]
        kl = (edited.exp() * (edited - unedited)).sum()
        rest = config.kl_factor * kl + config.weight_decay * delta.norm() / h.norm() ** 2
        losses.append(sum(latest) / len(latest) + rest.item())
        if losses[-1] < config.stop_loss or step == config.steps - 1:
            break
        loss = torch.stack(nll).mean() + rest
        loss.backward()
        optimiser.step()
        limit = config.clamp * h.norm()
        if delta.norm() > limit:
            with torch.no_grad():
                delta.mul_(limit / delta.norm())
    return Published((h + delta).detach(), losses)
