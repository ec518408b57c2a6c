"""Value vectors: for each edit the hidden state v* = h + δ that makes the model say the new target.

δ minimises (ROME, arXiv 2202.05262, eq. 4; MEMIT, arXiv 2210.07229, eq. 16, with the terms of their published code)

    mean NLL of the target over the bare and the prefixed prompts
    + kl_factor · KL(edited ‖ unedited) at the subject's last token of "{subject} is a"
    + weight_decay · ‖δ‖ / ‖h‖²                                       subject to ‖δ‖ <= clamp · ‖h‖

by Adam, by Newton steps on margins, or by one step along the gradient (see `optimisers`). Losses and δ are those of one
edit at a time; many edits share each forward pass.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from .architectures import Architecture
from .config import ResolvedConfig
from .distributed import ALONE, World
from .edits import Edit
from .errors import EmmetWarning, NonFiniteError
from .hooks import frozen, require_gradients
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
    transform that before adding it (see `Injection`). loss [n] is that of the targets; where contexts take turns, of
    each context when it last had its own. "newton" takes the targets of the lowest that it found, and "gradient", which
    evaluates none after its step, has that before it. steps [n] is how many losses were evaluated.
    """

    targets: Tensor
    loss: Tensor
    steps: Tensor

    @staticmethod
    def joined(parts: Sequence[Values]) -> Values:
        """The values of all parts, one after the other."""
        return Values(*(torch.cat([getattr(part, name) for part in parts]) for name in ("targets", "loss", "steps")))


@dataclass(frozen=True)
class _Rows:
    """Some contexts of each edit of a batch, and its "{subject} is a", which are run together.

    All edits in a context, in the order of the batch, are a group of rows, and so are all subjects, the last group.
    """

    suffixes: Suffixes
    groups: int
    target_rows: Tensor  # [targets], of the tokens of all targets
    target_ids: Tensor

    @staticmethod
    def of(
        arch: Architecture, injection: Injection, prompts: Sequence[Sequence[Prompt]], subjects: Sequence[Prompt]
    ) -> _Rows:
        contexts = [
            [Row(prompt.ids[:-1], prompt.subject, [position - 1 for position in prompt.target]) for prompt in group]
            for group in zip(*prompts, strict=True)
        ]
        last = [Row(prompt.ids[: prompt.subject + 1], prompt.subject, [prompt.subject]) for prompt in subjects]
        in_order = enumerate(prompt for group in zip(*prompts, strict=True) for prompt in group)
        targets = [(row, prompt.ids[position]) for row, prompt in in_order for position in prompt.target]
        suffixes = Suffixes(arch, injection, [*contexts, last])
        return _Rows(suffixes, len(contexts) + 1, *torch.tensor(targets, device=arch.model.device).T)

    @property
    def edits(self) -> int:
        return len(self.suffixes.start) // self.groups

    @property
    def start(self) -> Tensor:
        """h [n, d_model] in the first context of each edit."""
        return self.suffixes.start[: self.edits].float()

    def copies(self, delta: Tensor) -> Tensor:
        """δ [n, d] once for each row, [rows, d], so that each row has a gradient of its own."""
        return delta.detach().repeat(self.groups, 1).requires_grad_()

    def __call__(self, copies: Tensor) -> tuple[Tensor, Tensor]:
        """Mean NLL of the target's tokens in each context [n, c], and log-probabilities at each subject [n, vocab]."""
        logits = self.suffixes.logits(copies).float()
        of_targets, of_subjects = torch.split(logits, [len(self.target_ids), self.edits])
        of_tokens = functional.cross_entropy(of_targets, self.target_ids, reduction="none")
        of_rows = of_tokens.new_zeros(len(copies) - self.edits)
        nll = of_rows.index_add(0, self.target_rows, of_tokens) / torch.bincount(self.target_rows)
        return nll.view(-1, self.edits).T, functional.log_softmax(of_subjects, dim=-1)

    def per_edit(self, of_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of copies [rows, d], apart: those of the contexts [n, c, d], and of the subject [n, d]."""
        of_groups = of_rows.view(self.groups, -1, of_rows.shape[-1])
        return of_groups[:-1].transpose(0, 1), of_groups[-1]

    def of_contexts(self, contexts: slice) -> _Rows:
        groups = torch.zeros(self.groups, dtype=torch.bool, device=self.target_rows.device)
        groups[contexts] = groups[-1] = True
        return self._selected(groups.repeat_interleave(self.edits), int(groups.sum()))

    def of_edits(self, edits: Tensor) -> _Rows:
        """Those of the edits that the boolean `edits` [n] selects."""
        return self._selected(edits.repeat(self.groups), self.groups)

    def _selected(self, rows: Tensor, groups: int) -> _Rows:
        targets = rows[self.target_rows]
        target_rows = (rows.cumsum(0) - 1)[self.target_rows[targets]]
        return _Rows(self.suffixes.selected(rows), groups, target_rows, self.target_ids[targets])


class _Objective:
    """The losses of a batch of edits as a function of δ [n, d_model]; the first call is to be at δ = 0.

    Each call evaluates the contexts whose turn it is; the others have the losses of when it was theirs, or NaN.
    """

    def __init__(
        self,
        arch: Architecture,
        injection: Injection,
        prompts: Sequence[Sequence[Prompt]],
        subjects: Sequence[Prompt],
        names: Sequence[str],
        config: ResolvedConfig,
    ) -> None:
        """`names` are what to call the edits in errors."""
        contexts = len(prompts[0])
        size = contexts
        some = config.contexts_per_step if config.optimizer == "adam" else None
        if some is not None and some * config.steps >= contexts:  # each has its turn
            size = some
        rows = _Rows.of(arch, injection, prompts, subjects)
        self._parts = [slice(first, min(first + size, contexts)) for first in range(0, contexts, size)]
        self._turns = [rows.of_contexts(part) for part in self._parts] if size < contexts else [rows]
        self._calls = 0
        self._names = list(names)
        self._config = config
        self.start = rows.start
        self._latest = self.start.new_full((len(prompts), contexts), torch.nan)
        self._unedited: Tensor | None = None

    def __call__(self, delta: Tensor) -> Losses:
        """Raises NonFiniteError if a loss is not finite."""
        whose = self._calls % len(self._turns)
        turn, self._calls = self._turns[whose], self._calls + 1
        copies = turn.copies(delta)
        nll, edited = turn(copies)
        if self._unedited is None:
            self._unedited = edited.detach()
        divergence = functional.kl_div(self._unedited, edited, log_target=True, reduction="none").sum(-1)
        (gradients,) = torch.autograd.grad(nll.sum() + self._config.kl_factor * divergence.sum(), copies)
        context_gradients, rest_gradient = turn.per_edit(gradients)
        decay = self._config.weight_decay / self.start.norm(dim=-1).square()
        rest = self._config.kl_factor * divergence.detach() + decay * delta.norm(dim=-1)
        rest_gradient = rest_gradient + decay.unsqueeze(1) * functional.normalize(delta, dim=-1)
        sound = nll.isfinite().all(1) & rest.isfinite()
        if not sound.all():
            names = ", ".join(repr(name) for name, fine in zip(self._names, sound.tolist(), strict=True) if not fine)
            message = f"expected finite losses, got NaN or Inf for {names}: the model overflows there; "
            message += "try another dtype, or leave these edits out"
            raise NonFiniteError(message)
        self._latest[:, self._parts[whose]] = nll.detach()
        return Losses(self._latest.clone(), context_gradients, rest, rest_gradient)

    def keep(self, edits: Tensor) -> None:
        """Drop all edits but those selected by the boolean `edits` [n], after the first call."""
        assert self._unedited is not None
        self._turns = [turn.of_edits(edits) for turn in self._turns]
        self._names = list(itertools.compress(self._names, edits.tolist()))
        self.start, self._unedited, self._latest = self.start[edits], self._unedited[edits], self._latest[edits]


def optimise_values(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    config: ResolvedConfig,
    injection: Injection,
    progress: Progress = silent,
    world: World = ALONE,
) -> Values:
    """Find v* of each edit at the injection's layer; `prompts` holds what `in_contexts` gave for each edit.

    The model's parameters, modes and gradients are as before afterwards. Progress counts steps; an edit that is done
    early has taken all of its own. The processes of `world` share the batches, which are those of a single process.
    Where a batch does not fit into the memory of a GPU, this and all that follow are halved, with an EmmetWarning.
    """
    require_gradients()
    subjects = _subject_prompts(tokenizer, edits)

    def found(batch: Sequence[int], progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        of_prompts, of_subjects = [prompts[i] for i in batch], [subjects[i] for i in batch]
        objective = _Objective(arch, injection, of_prompts, of_subjects, [edits[i].text for i in batch], config)
        return _minimise(objective, config, progress)

    targets = torch.zeros(len(edits), arch.d_model, dtype=torch.float32, device=arch.model.device)
    loss, steps = torch.zeros(len(edits), dtype=torch.float32), torch.zeros(len(edits), dtype=torch.long)
    order = by_length(prompts)
    size = config.batch_size
    progress("values", 0, len(edits) * config.steps)
    with frozen(arch.model):
        for first in world.shard(range(0, len(order), config.batch_size)):
            done, end = first, min(first + config.batch_size, len(order))
            while done < end:
                batch = order[done : min(done + size, end)]
                of_batch = within(progress, done * config.steps, len(edits) * config.steps)
                try:
                    targets[batch], loss[batch], steps[batch] = found(batch, of_batch)
                    done += len(batch)
                except torch.OutOfMemoryError:
                    if len(batch) == 1:
                        raise
                    size = len(batch) // 2
                    message = f"{len(batch)} edits do not fit into memory together: {size} are optimised at a time; "
                    warnings.warn(message + f"batch_size={size} saves the attempt", EmmetWarning, stacklevel=2)
    return Values(world.sum(targets), world.sum(loss), world.sum(steps))


def by_length(prompts: Sequence[Sequence[Prompt]]) -> list[int]:
    """The order in which edits are put into batches: those of like length share one, so that little is padding."""
    return sorted(range(len(prompts)), key=lambda i: (len(prompts[i][0].ids) - prompts[i][0].subject, i))


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
    result, loss = start.clone(), torch.empty(len(start), dtype=start.dtype)
    steps = torch.empty(len(start), dtype=torch.long)
    optimiser = _optimiser(config, start)
    active = torch.arange(len(start), device=start.device)
    delta = torch.zeros_like(start)
    all_steps = len(start) * config.steps
    for step in range(1, config.steps + 1):
        losses = objective(delta)
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
