"""Value vectors: for each edit the hidden state v* = h + δ that makes the model say the new target.

δ minimises (ROME, arXiv 2202.05262, eq. 4; MEMIT, arXiv 2210.07229, eq. 16, with the terms of their published code)

    mean NLL of the target over the bare and the prefixed prompts
    + kl_factor · KL(edited ‖ unedited) at the subject's last token of "{subject} is a"
    + weight_decay · ‖δ‖ / ‖h‖²                                       subject to ‖δ‖ <= clamp · ‖h‖

by Adam, by Newton steps on margins, or by one step along the gradient (see `optimisers`). Losses and δ are those of one
edit at a time; many edits share each forward pass.
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
from .optimisers import Adam, Gradient, Losses, MarginNewton, Optimiser
from .progress import Progress, silent, within
from .suffixes import Injection, Row, Suffixes
from .tokens import Prompt, encode_prompts

# Relative to ‖h‖: the radius of `MarginNewton`'s first step, and the length of `Gradient`'s.
_FIRST_RADIUS = 0.1
_GRADIENT_LENGTH = 0.3


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
    """The losses of a batch of edits as a function of δ [n, d_model]."""

    def __init__(
        self,
        arch: Architecture,
        injection: Injection,
        prompts: Sequence[Sequence[Prompt]],
        subjects: Sequence[Prompt],
        config: ResolvedConfig,
    ) -> None:
        device = arch.model.device
        contexts = [prompt for group in prompts for prompt in group]
        targets = [(row, prompt.ids[position]) for row, prompt in enumerate(contexts) for position in prompt.target]
        self._config = config
        self._contexts_each = len(prompts[0])
        self._target_rows, self._target_ids = torch.tensor(targets, device=device).T
        self._contexts = Suffixes(
            arch,
            injection,
            [Row(prompt.ids[:-1], prompt.subject, [p - 1 for p in prompt.target]) for prompt in contexts],
        )
        self._subjects = Suffixes(
            arch,
            injection,
            [Row(prompt.ids[: prompt.subject + 1], prompt.subject, [prompt.subject]) for prompt in subjects],
        )
        self.start = self._contexts.start[:: self._contexts_each].float()  # h [n, d_model] of the bare prompts
        with torch.no_grad():
            self._unedited = self._subject_log_probabilities(torch.zeros_like(self.start))

    def __call__(self, delta: Tensor) -> Losses:
        of_rows = delta.repeat_interleave(self._contexts_each, dim=0).requires_grad_()  # a copy, so a gradient, a row
        nll = self._target_nll(of_rows)
        (row_gradients,) = torch.autograd.grad(nll.sum(), of_rows)
        delta = delta.detach().requires_grad_()
        rest = self._rest(delta)
        (rest_gradient,) = torch.autograd.grad(rest.sum(), delta)
        return Losses(
            nll.detach().view(len(delta), -1),
            row_gradients.view(len(delta), self._contexts_each, -1),
            rest.detach(),
            rest_gradient,
        )

    def _target_nll(self, delta: Tensor) -> Tensor:
        """Mean over the target's tokens in each row, [rows], with a δ [rows, d_model] for each."""
        nll = functional.cross_entropy(self._contexts.logits(delta).float(), self._target_ids, reduction="none")
        tokens = torch.bincount(self._target_rows, minlength=len(delta))
        return torch.zeros(len(delta), device=delta.device).index_add(0, self._target_rows, nll) / tokens

    def _rest(self, delta: Tensor) -> Tensor:
        """KL divergence and weight decay, [n]."""
        edited = self._subject_log_probabilities(delta)
        divergence = functional.kl_div(self._unedited, edited, log_target=True, reduction="none").sum(-1)
        decay = delta.norm(dim=-1) / self.start.norm(dim=-1).square()
        rest: Tensor = self._config.kl_factor * divergence + self._config.weight_decay * decay
        return rest

    def _subject_log_probabilities(self, delta: Tensor) -> Tensor:
        return functional.log_softmax(self._subjects.logits(delta).float(), dim=-1)

    def keep(self, edits: Tensor) -> None:
        """Drop all edits but those selected by the boolean `edits` [n]."""
        rows = edits.repeat_interleave(self._contexts_each)
        read = rows[self._target_rows]
        self._target_ids = self._target_ids[read]
        self._target_rows = (rows.cumsum(0) - 1)[self._target_rows[read]]
        self._contexts.keep(rows)
        self._subjects.keep(edits)
        self.start, self._unedited = self.start[edits], self._unedited[edits]


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
    optimiser = _optimiser(config, start)
    active = torch.arange(len(start), device=start.device)
    delta = torch.zeros_like(start)
    all_steps = len(start) * config.steps
    for step in range(1, config.steps + 1):
        losses = objective(delta)
        if not losses.total.isfinite().all():
            message = "expected finite losses, got NaN or Inf: the model overflows on these prompts; try another dtype"
            raise NonFiniteError(message)
        optimiser.observe(delta, losses)
        done = (optimiser.loss < config.stop_loss) | (step == config.steps)
        finished = active[done]
        result[finished] = start[finished] + optimiser.point[done]
        loss[finished.cpu()], steps[finished.cpu()] = optimiser.loss[done].cpu(), step
        active = active[~done]
        progress("values", all_steps - len(active) * (config.steps - step), all_steps)
        if len(active) == 0:
            break
        if done.any():
            objective.keep(~done)
            optimiser.keep(~done)
        delta = _clamped(optimiser.propose(), config.clamp * objective.start.norm(dim=-1))
    return result, loss, steps


def _optimiser(config: ResolvedConfig, start: Tensor) -> Optimiser:
    if config.optimizer == "adam":
        return Adam(config.learning_rate)
    if config.optimizer == "gradient":
        return Gradient(min(_GRADIENT_LENGTH, config.clamp) * start.norm(dim=-1))
    return MarginNewton(_FIRST_RADIUS * start.norm(dim=-1))


def _clamped(delta: Tensor, radius: Tensor) -> Tensor:
    """δ [n, d] scaled back to norms of at most `radius` [n]."""
    return delta.mul((radius / delta.norm(dim=-1)).clamp(max=1).unsqueeze(1))
