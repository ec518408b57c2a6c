"""The yardstick of bench/values.py: value vectors as research code finds them, one edit at a time.

Written from the papers' description (Meng et al. 2022 and 2023): each step runs the whole model forward and backward
over one right-padded batch of the bare prompt, the prefixed ones and "{subject} is a", and projects every position to
the vocabulary. As there, weights need no gradient, but the layers below the edit are run all the same.
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
    delta = torch.zeros(model.config.hidden_size, device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    model.eval().requires_grad_(False)
    with _Shifted(model, layer, prompts, essence, delta) as shifted:
        unedited: Tensor | None = None
        for step in range(1, config.steps + 1):
            optimiser.zero_grad()
            log_probabilities = shifted.log_probabilities()
            unedited = log_probabilities[-1, essence.subject].detach() if unedited is None else unedited
            loss = shifted.loss(log_probabilities, unedited, config)
            if loss < config.stop_loss or step == config.steps:
                break
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                limit = config.clamp * shifted.start.norm()
                if delta.norm() > limit:
                    delta.mul_(limit / delta.norm())
    return PublishedValue((shifted.start + delta).detach(), loss.item(), step)


def published_loss(
    model: nn.Module,
    layer: nn.Module,
    prompts: Sequence[Prompt],
    essence: Prompt,
    config: ResolvedConfig,
    target: Tensor,
) -> float:
    """The loss of a v* that was found in some other way."""
    delta = torch.zeros(model.config.hidden_size, device=model.device)
    with torch.no_grad(), _Shifted(model, layer, prompts, essence, delta) as shifted:
        unedited = shifted.log_probabilities()[-1, essence.subject]
        delta.add_(target - shifted.start)
        return shifted.loss(shifted.log_probabilities(), unedited, config).item()


class _Shifted:
    """The model with δ added to a layer's output at each subject's last token; `start` is h there."""

    start: Tensor

    def __init__(
        self, model: nn.Module, layer: nn.Module, prompts: Sequence[Prompt], essence: Prompt, delta: Tensor
    ) -> None:
        self._model, self._layer, self._prompts, self._essence, self._delta = model, layer, prompts, essence, delta
        ids, mask = pad_rows([*(prompt.ids[:-1] for prompt in prompts), essence.ids])
        self._ids, self._mask = ids.to(delta.device), mask.to(delta.device)
        self._subjects = torch.tensor([prompt.subject for prompt in (*prompts, essence)], device=delta.device)

    def __enter__(self) -> _Shifted:
        rows = torch.arange(len(self._subjects), device=self._subjects.device)

        def add(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            self.start = output[0, self._subjects[0]].detach().clone()
            moved = output.clone()
            moved[rows, self._subjects] = moved[rows, self._subjects] + self._delta
            return moved

        self._handle = self._layer.register_forward_hook(add)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def log_probabilities(self) -> Tensor:
        """Of each next token, [rows, length, vocab]."""
        return functional.log_softmax(self._model(input_ids=self._ids, attention_mask=self._mask).logits, dim=-1)

    def loss(self, log_probabilities: Tensor, unedited: Tensor, config: ResolvedConfig) -> Tensor:
        nll = torch.stack(
            [
                -log_probabilities[row, prompt.target.start - 1 : prompt.target.stop - 1]
                .gather(1, self._ids.new_tensor(prompt.ids[prompt.target.start :])[:, None])
                .mean()
                for row, prompt in enumerate(self._prompts)
            ]
        ).mean()
        edited = log_probabilities[-1, self._essence.subject]
        divergence = functional.kl_div(unedited[None], edited[None], log_target=True, reduction="batchmean")
        return nll + config.kl_factor * divergence + config.weight_decay * self._delta.norm() / self.start.norm() ** 2
