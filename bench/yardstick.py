"""The yardstick of bench/values.py: value vectors as research code finds them, one edit at a time.

Written from the papers' description (Meng et al. 2022 and 2023): each step runs the whole model forward and backward
over one right-padded batch of the bare prompt, the prefixed ones and "{subject} is a", and projects every position to
the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from emmet.config import ResolvedConfig
from emmet.tokens import Prompt, pad_rows


@dataclass(frozen=True)
class PublishedValue:
    """v*, the last loss and the number of steps of one edit."""

    target: Tensor
    loss: float
    steps: int


def published_value(
    model: nn.Module, layer: nn.Module, prompts: Sequence[Prompt], essence: Prompt, config: ResolvedConfig
) -> PublishedValue:
    """v* at the output of a decoder layer; `prompts` are the edit's with target, `essence` is "{subject} is a"."""
    ids, mask = pad_rows([*(prompt.ids[:-1] for prompt in prompts), essence.ids])
    subjects = torch.tensor([prompt.subject for prompt in (*prompts, essence)])
    rows = torch.arange(len(subjects))
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    start: list[Tensor] = []

    def add(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        if not start:
            start.append(output[0, subjects[0]].detach().clone())
        moved = output.clone()
        moved[rows, subjects] = moved[rows, subjects] + delta
        return moved

    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    unedited: Tensor | None = None
    handle = layer.register_forward_hook(add)
    try:
        for step in range(1, config.steps + 1):
            optimiser.zero_grad()
            log_probabilities = functional.log_softmax(model(input_ids=ids, attention_mask=mask).logits, dim=-1)
            nll = torch.stack(
                [
                    -log_probabilities[row, prompt.target.start - 1 : prompt.target.stop - 1]
                    .gather(1, torch.tensor(prompt.ids[prompt.target.start :])[:, None])
                    .mean()
                    for row, prompt in enumerate(prompts)
                ]
            ).mean()
            edited = log_probabilities[-1, essence.subject]
            unedited = edited.detach() if unedited is None else unedited
            divergence = functional.kl_div(unedited[None], edited[None], log_target=True, reduction="batchmean")
            decay = config.weight_decay * delta.norm() / start[0].norm() ** 2
            loss = nll + config.kl_factor * divergence + decay
            if loss < config.stop_loss or step == config.steps:
                break
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                limit = config.clamp * start[0].norm()
                if delta.norm() > limit:
                    delta.mul_(limit / delta.norm())
    finally:
        handle.remove()
    return PublishedValue((start[0] + delta).detach(), loss.item(), step)
