"""Value vectors: for each edit the hidden state v* = h + δ that makes the model say the new target.

δ minimises (ROME, arXiv 2202.05262, eq. 4; MEMIT, arXiv 2210.07229, eq. 16, with the terms of their published code)

    mean NLL of the target over the bare and the prefixed prompts
    + kl_factor · KL(edited ‖ unedited) at the subject's last token of "{subject} is a"
    + weight_decay · ‖δ‖ / ‖h‖²                                       subject to ‖δ‖ <= clamp · ‖h‖

by Adam. Losses and δ are those of one edit at a time; many edits share each forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from .architectures import Architecture
from .config import ResolvedConfig
from .edits import Edit
from .errors import NonFiniteError
from .hooks import frozen
from .progress import Progress, silent, within
from .suffixes import Injection, Row, Suffixes
from .tokens import Prompt, encode_prompts


@dataclass(frozen=True)
class Values:
    """Result of the optimisation, one row an edit.

    targets [n, d_model] is v* at the last edited layer: its output, or the output of its MLP projection in models that
    transform that before adding it (see `Injection`). loss [n] is the last loss that was evaluated, and steps [n] how
    many were.
    """

    targets: Tensor
    loss: Tensor
    steps: Tensor

    @staticmethod
    def joined(parts: Sequence[Values]) -> Values:
        """The values of all parts, one after the other."""
        return Values(*(torch.cat([getattr(part, name) for part in parts]) for name in ("targets", "loss", "steps")))


class _Objective:
    """The losses [n] of a batch of edits as a function of δ [n, d_model]."""

    def __init__(
        self,
        arch: Architecture,
        injection: Injection,
        prompts: Sequence[Sequence[Prompt]],
        subjects: Sequence[Prompt],
        config: ResolvedConfig,
    ) -> None:
        device = arch.model.device
        contexts = [(edit, prompt) for edit, group in enumerate(prompts) for prompt in group]
        targets = [(edit, prompt, position) for edit, prompt in contexts for position in prompt.target]
        self._config = config
        self._target_ids = torch.tensor([prompt.ids[position] for _, prompt, position in targets], device=device)
        self._target_owner = torch.tensor([edit for edit, _, _ in targets], device=device)
        self._target_weight = torch.tensor(
            [1 / (len(prompt.target) * len(prompts[edit])) for edit, prompt, _ in targets], device=device
        )
        self._contexts = Suffixes(
            arch,
            injection,
            [Row(prompt.ids[:-1], prompt.subject, [p - 1 for p in prompt.target]) for _, prompt in contexts],
            torch.tensor([edit for edit, _ in contexts], device=device),
        )
        self._subjects = Suffixes(
            arch,
            injection,
            [Row(prompt.ids[: prompt.subject + 1], prompt.subject, [prompt.subject]) for prompt in subjects],
            torch.arange(len(subjects), device=device),
        )
        bare_rows = torch.tensor([len(group) for group in prompts], device=device).cumsum(0) - len(prompts[0])
        self.start = self._contexts.start[bare_rows].float()  # h [n, d_model] of the bare prompts
        with torch.no_grad():
            self._unedited = self._subject_log_probabilities(torch.zeros_like(self.start))

    def _subject_log_probabilities(self, delta: Tensor) -> Tensor:
        return functional.log_softmax(self._subjects.logits(delta).float(), dim=-1)

    def __call__(self, delta: Tensor) -> Tensor:
        nll = functional.cross_entropy(self._contexts.logits(delta).float(), self._target_ids, reduction="none")
        loss = torch.zeros(len(delta), device=delta.device).index_add(0, self._target_owner, self._target_weight * nll)
        edited = self._subject_log_probabilities(delta)
        divergence = functional.kl_div(self._unedited, edited, log_target=True, reduction="none").sum(-1)
        decay = delta.norm(dim=-1) / self.start.norm(dim=-1).square()
        loss += self._config.kl_factor * divergence + self._config.weight_decay * decay
        return loss

    def keep(self, edits: Tensor) -> None:
        """Drop all edits but those selected by the boolean `edits` [n]."""
        read = edits[self._target_owner]
        self._target_ids, self._target_weight = self._target_ids[read], self._target_weight[read]
        self._target_owner = (edits.cumsum(0) - 1)[self._target_owner[read]]
        self._contexts.keep(edits)
        self._subjects.keep(edits)
        self.start, self._unedited = self.start[edits], self._unedited[edits]


class _Adam:
    """Adam (Kingma and Ba 2015, with its default moments) on rows that may be dropped one by one."""

    def __init__(self, like: Tensor, learning_rate: float) -> None:
        self._rate = learning_rate
        self._mean = torch.zeros_like(like)
        self._square = torch.zeros_like(like)
        self._steps = 0

    def step(self, gradient: Tensor) -> Tensor:
        """What to add to the rows."""
        self._steps += 1
        self._mean.lerp_(gradient, 1 - 0.9)
        self._square.lerp_(gradient.square(), 1 - 0.999)
        mean = self._mean / (1 - 0.9**self._steps)
        square = self._square / (1 - 0.999**self._steps)
        return -self._rate * mean / (square.sqrt() + 1e-8)

    def keep(self, rows: Tensor) -> None:
        self._mean, self._square = self._mean[rows], self._square[rows]


def optimise_values(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    config: ResolvedConfig,
    injection: Injection,
    progress: Progress = silent,
) -> Values:
    """Find v* of each edit at the injection's layer; `prompts` holds what `in_contexts` gave for each edit.

    The model's parameters, modes and gradients are as before afterwards. Progress counts steps; an edit that is done
    early has taken all of its own.
    """
    subjects = _subject_prompts(tokenizer, edits)
    targets = torch.empty(len(edits), arch.d_model, device=arch.model.device)
    loss, steps = torch.empty(len(edits)), torch.empty(len(edits), dtype=torch.long)
    # Edits of like length share a batch, so that little of it is padding.
    order = sorted(range(len(edits)), key=lambda i: (len(prompts[i][0].ids) - prompts[i][0].subject, i))
    progress("values", 0, len(edits) * config.steps)
    with frozen(arch.model):
        for first in range(0, len(order), config.batch_size):
            batch = order[first : first + config.batch_size]
            objective = _Objective(arch, injection, [prompts[i] for i in batch], [subjects[i] for i in batch], config)
            of_batch = within(progress, first * config.steps, len(edits) * config.steps)
            targets[batch], loss[batch], steps[batch] = _minimise(objective, config, of_batch)
    return Values(targets, loss, steps)


def _subject_prompts(tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit]) -> list[Prompt]:
    """ "{subject} is a" of each edit, where the KL divergence is measured."""
    return encode_prompts(
        tokenizer,
        [f"{edit.subject} is a" for edit in edits],
        [(0, len(edit.subject)) for edit in edits],
        [None] * len(edits),
    )


def _minimise(objective: _Objective, config: ResolvedConfig, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
    """(v*, loss, steps) of one batch. An edit leaves it when its loss is low enough."""
    start = objective.start
    result, loss = start.clone(), torch.empty(len(start))
    steps = torch.empty(len(start), dtype=torch.long)
    delta = torch.zeros_like(start)
    adam = _Adam(delta, config.learning_rate)
    active = torch.arange(len(start), device=start.device)
    all_steps = len(start) * config.steps
    for step in range(1, config.steps + 1):
        delta.requires_grad_()
        losses = objective(delta)
        if not losses.isfinite().all():
            message = "expected finite losses, got NaN or Inf: the model overflows on these prompts; try another dtype"
            raise NonFiniteError(message)
        done = (losses < config.stop_loss) | (step == config.steps)
        if done.any():
            finished = active[done]
            result[finished] = start[finished] + delta.detach()[done]
            loss[finished.cpu()], steps[finished.cpu()] = losses.detach()[done].cpu(), step
            if done.all():
                break
        (gradient,) = torch.autograd.grad(losses.sum(), delta)
        delta = delta.detach() + adam.step(gradient)
        delta = _clamped(delta, config.clamp * objective.start.norm(dim=-1))
        if done.any():
            left = ~done
            objective.keep(left)
            adam.keep(left)
            active, delta = active[left], delta[left]
        progress("values", all_steps - len(active) * (config.steps - step), all_steps)
    progress("values", all_steps, all_steps)
    return result, loss, steps


def _clamped(delta: Tensor, radius: Tensor) -> Tensor:
    """δ [n, d] scaled back to norms of at most `radius` [n]."""
    return delta.mul((radius / delta.norm(dim=-1)).clamp(max=1).unsqueeze(1))
