"""Optimisers of δ, for many edits at once and each edit for itself.

`Adam` is the published one. `MarginNewton` reaches lower losses in half the steps, with shorter δ: the losses of the
contexts are those of binary decisions for the target, so that each step minimises them exactly for margins that are
linear in δ. `Gradient` takes one step of a given length. How they compare: docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Losses:
    """The terms of the loss at δ and their gradients, for n edits with c contexts (prompts) each.

    contexts [n, c] is the target's NLL in each context and context_gradients [n, e, d] its gradient in those that were
    evaluated: in all of them, or in those whose turn it was. The others have the NLL of when it was theirs, or NaN.
    rest [n] and rest_gradient [n, d] are what is added to the mean of these.
    """

    contexts: Tensor
    context_gradients: Tensor
    rest: Tensor
    rest_gradient: Tensor

    @property
    def total(self) -> Tensor:
        return self.contexts.mean(1) + self.rest

    @property
    def gradient(self) -> Tensor:
        return self.context_gradients.mean(1) + self.rest_gradient

    def keep(self, edits: Tensor) -> Losses:
        return Losses(*(getattr(self, field.name)[edits] for field in fields(self)))

    def replaced_by(self, other: Losses, where: Tensor) -> Losses:
        """These losses, and those of `other` for the edits selected by the boolean `where` [n]."""
        return Losses(*(_where(where, getattr(other, field.name), getattr(self, field.name)) for field in fields(self)))


class Optimiser(Protocol):
    """Proposes δ [n, d], and is told the losses there. `point` and `loss` are what it has found so far."""

    point: Tensor
    loss: Tensor

    def observe(self, delta: Tensor, losses: Losses) -> None: ...

    def propose(self) -> Tensor: ...

    def keep(self, edits: Tensor) -> None:
        """Drop all edits but those selected by the boolean `edits` [n], between `observe` and `propose`."""


class Adam:
    """Adam with its default moments (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1)."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = learning_rate
        self._steps = 0

    def observe(self, delta: Tensor, losses: Losses) -> None:
        if self._steps == 0:
            self._mean, self._square = torch.zeros_like(delta), torch.zeros_like(delta)
        self.point, self.loss = delta, losses.total
        self._steps += 1
        self._mean.lerp_(losses.gradient, 1 - 0.9)
        self._square.lerp_(losses.gradient.square(), 1 - 0.999)

    def propose(self) -> Tensor:
        mean = self._mean / (1 - 0.9**self._steps)
        square = self._square / (1 - 0.999**self._steps)
        return self.point - self._rate * mean / (square.sqrt() + 1e-8)

    def keep(self, edits: Tensor) -> None:
        self.point, self.loss = self.point[edits], self.loss[edits]
        self._mean, self._square = self._mean[edits], self._square[edits]


class Gradient:
    """One step of a given length against the gradient at δ = 0: the idea of UltraEdit (arXiv 2505.14679).

    `loss` is that at 0, since no other is evaluated.
    """

    def __init__(self, length: Tensor) -> None:
        """`length` [n] is ‖δ‖ of each edit."""
        self._length = length

    def observe(self, delta: Tensor, losses: Losses) -> None:
        direction = functional.normalize(losses.gradient, dim=1)
        self.point, self.loss = delta - self._length.unsqueeze(1) * direction, losses.total

    def propose(self) -> Tensor:
        return self.point

    def keep(self, edits: Tensor) -> None:
        self.point, self.loss, self._length = self.point[edits], self.loss[edits], self._length[edits]


class MarginNewton:
    """Trust-region steps on linearised margins.

    With p = exp(-NLL) the probability of the target in a context, its margin is m = log(p / (1 - p)), and the NLL is
    softplus(-m). A step s minimises the mean of softplus(-(m + ∇m·s)) + ∇rest·s within a radius that grows and shrinks
    as the prediction holds. A step that does not lower the loss is not taken. All contexts are to be evaluated.
    """

    point: Tensor
    loss: Tensor

    def __init__(self, radius: Tensor) -> None:
        """`radius` [n] bounds the first step of each edit."""
        self._radius = radius
        self._losses: Losses | None = None

    def observe(self, delta: Tensor, losses: Losses) -> None:
        if self._losses is None:
            self.point, self._losses = delta, losses
        else:
            better = losses.total < self.loss
            predicted = self.loss - self._predicted
            agreement = (self.loss - losses.total) / predicted.clamp(min=torch.finfo(predicted.dtype).tiny)
            factor = torch.where(agreement > 0.5, 1.6, torch.where(agreement < 0.25, 0.6, torch.ones_like(agreement)))
            self._radius = self._radius * torch.where(better, factor, 0.35)
            self.point = _where(better, delta, self.point)
            self._losses = self._losses.replaced_by(losses, better)
        self.loss = self._losses.total

    def propose(self) -> Tensor:
        assert self._losses is not None
        step, predicted = margin_step(self._losses, self._radius)
        self._predicted = predicted + self._losses.rest
        return self.point + step

    def keep(self, edits: Tensor) -> None:
        assert self._losses is not None
        self.point, self.loss, self._radius = self.point[edits], self.loss[edits], self._radius[edits]
        self._losses = self._losses.keep(edits)


# Weights λ of ‖s‖²/2, relative to the squared length of the margins' gradients: from steps of no length to such as
# leave nothing to gain.
_DAMPINGS = torch.logspace(3, -6, 37, dtype=torch.float64).tolist()
_NEWTON_STEPS = 3  # for each λ, from the solution for the one before
_LEAST_DOUBT = 1e-6  # 1 - p is taken to be no smaller


def margin_step(losses: Losses, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The step s [n, d] with ‖s‖ <= radius [n], and the loss that is predicted after it, without the rest at s = 0.

    s lies in the span of the gradients, s = Bᵀx with B [n, c + 1, d], so that only c + 1 unknowns an edit are solved
    for: λ x = (σ(-(m + ∇m·s)) / c, -1), by Newton's method, with λ falling until s leaves the radius.
    """
    contexts = losses.contexts.shape[1]
    doubt = (-torch.expm1(-losses.contexts.double())).clamp(min=_LEAST_DOUBT)
    margin = torch.log1p(-doubt) - doubt.log()
    slopes = -losses.context_gradients.double() / doubt.unsqueeze(-1)
    basis = torch.cat([slopes, losses.rest_gradient.double().unsqueeze(1)], dim=1)
    gram = basis @ basis.mT
    scale = gram.diagonal(dim1=1, dim2=2)[:, :contexts].mean(1).clamp(min=torch.finfo(gram.dtype).tiny)
    identity = torch.eye(contexts + 1, dtype=gram.dtype, device=gram.device)

    x = torch.zeros_like(gram[:, 0])
    found = x
    outside = torch.zeros_like(radius, dtype=torch.bool)
    for damping in _DAMPINGS:
        weight = (damping * scale).unsqueeze(1)
        for _ in range(_NEWTON_STEPS):
            reach = (gram @ x.unsqueeze(-1)).squeeze(-1)[:, :contexts]
            wrong = torch.sigmoid(-(margin + reach))
            residual = weight * x + functional.pad(-wrong / contexts, (0, 1), value=1.0)
            curvature = functional.pad(wrong * (1 - wrong) / contexts, (0, 1))
            x = x - torch.linalg.solve(curvature.unsqueeze(-1) * gram + weight.unsqueeze(-1) * identity, residual)
        length = (x * (gram @ x.unsqueeze(-1)).squeeze(-1)).sum(1).clamp(min=0).sqrt()
        outside |= ~(length <= radius)
        found = _where(outside, found, x)
        if outside.all():
            break
    step = (found.unsqueeze(1) @ basis).squeeze(1)
    reach = (basis @ step.unsqueeze(-1)).squeeze(-1)
    predicted = functional.softplus(-(margin + reach[:, :contexts])).mean(1) + reach[:, contexts]
    return step.to(losses.contexts.dtype), predicted.to(losses.contexts.dtype)


def _where(selected: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`first` for the edits selected by the boolean [n], else `second`; both [n, ...]."""
    return torch.where(selected.view(-1, *[1] * (first.dim() - 1)), first, second)
