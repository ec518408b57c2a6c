from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from emmet.optimisers import Adam, Gradient, Losses, MarginNewton, margin_step

CONTEXTS, WIDTH = 4, 12


class Logistic:
    """Edits whose NLLs are exactly softplus(-(m + a·δ)), with a linear rest b·δ + decay ‖δ‖²."""

    def __init__(self, edits: int, seed: int, decay: float = 0.01) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.margin = torch.randn(edits, CONTEXTS, generator=generator) - 4
        self.slope = torch.randn(edits, CONTEXTS, WIDTH, generator=generator)
        self.decay = decay

    def __call__(self, delta: torch.Tensor) -> Losses:
        margin = self.margin + (self.slope @ delta.unsqueeze(-1)).squeeze(-1)
        return Losses(
            functional.softplus(-margin),
            -torch.sigmoid(-margin).unsqueeze(-1) * self.slope,
            self.decay * delta.square().sum(1),
            2 * self.decay * delta,
        )


def minimise(optimiser, problem, edits: int, steps: int) -> torch.Tensor:
    delta = torch.zeros(edits, WIDTH, dtype=torch.float32)
    for _ in range(steps):
        optimiser.observe(delta, problem(delta))
        delta = optimiser.propose()
    return optimiser.loss


def test_adam_is_torchs():
    problem = Logistic(3, seed=0)
    ours = minimise(Adam(0.1), problem, 3, 20)
    delta = torch.zeros(3, WIDTH, requires_grad=True)
    theirs = torch.optim.Adam([delta], lr=0.1)
    for step in range(20):
        losses = problem(delta.detach())
        delta.grad = losses.gradient
        if step < 19:
            theirs.step()
    torch.testing.assert_close(ours, losses.total, rtol=1e-5, atol=0)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(1e-3, 1e2))
def test_a_step_is_the_best_within_its_radius(seed, radius):
    problem = Logistic(3, seed, decay=0.0)
    losses = problem(torch.zeros(3, WIDTH))
    step, predicted = margin_step(losses, torch.full((3,), radius))
    assert (step.norm(dim=1) <= radius * (1 + 1e-5)).all()
    reached = problem(step).total
    torch.testing.assert_close(predicted, reached, rtol=1e-3, atol=1e-5)  # margins are linear here
    assert (reached <= losses.total).all()
    generator = torch.Generator().manual_seed(seed)
    length = step.norm(dim=1, keepdim=True)
    for _ in range(50):
        other = torch.randn(3, WIDTH, generator=generator)
        assert (problem(other / other.norm(dim=1, keepdim=True) * length).total >= reached * 0.999).all()


def test_gradient_is_one_step_of_the_given_length_downhill():
    problem = Logistic(3, seed=4)
    start, length = torch.zeros(3, WIDTH), torch.tensor([0.1, 0.5, 2.0])
    optimiser = Gradient(length)
    losses = problem(start)
    optimiser.observe(start, losses)
    torch.testing.assert_close(optimiser.point.norm(dim=1), length)
    torch.testing.assert_close(functional.cosine_similarity(optimiser.point, -losses.gradient), torch.ones(3))
    assert torch.equal(optimiser.loss, losses.total)
    assert torch.equal(optimiser.propose(), optimiser.point)


def test_newton_reaches_in_a_few_steps_what_takes_adam_many():
    problem = Logistic(8, seed=1)
    few = minimise(MarginNewton(torch.full((8,), 1.0)), problem, 8, 12)
    many = minimise(Adam(0.05), problem, 8, 500)
    torch.testing.assert_close(few, many, rtol=0.02, atol=1e-3)


def test_newton_keeps_its_best_point_and_shrinks_its_radius_when_the_loss_rises():
    problem = Logistic(2, seed=2)
    optimiser = MarginNewton(torch.tensor([1.0, 1.0]))
    start = torch.zeros(2, WIDTH)
    optimiser.observe(start, problem(start))
    before = optimiser.loss
    trial = optimiser.propose()
    worse = problem(trial)
    worse.contexts[0] += 100
    optimiser.observe(trial, worse)
    assert torch.equal(optimiser.point[0], start[0])
    assert torch.equal(optimiser.point[1], trial[1])
    assert optimiser.loss[0] == before[0]
    assert optimiser.loss[1] < before[1]
    assert (optimiser.propose() - optimiser.point).norm(dim=1)[0] <= 0.35 * (1 + 1e-5)


@pytest.mark.parametrize("make", [lambda: Adam(0.1), lambda: MarginNewton(torch.ones(4))])
def test_edits_that_leave_do_not_change_the_others(make):
    problem = Logistic(4, seed=3)
    whole = minimise(make(), problem, 4, 9)
    optimiser, delta = make(), torch.zeros(4, WIDTH)
    for step in range(9):
        optimiser.observe(delta, problem(delta))
        if step == 4:
            kept = torch.tensor([True, False, True, True])
            optimiser.keep(kept)
            problem.margin, problem.slope = problem.margin[kept], problem.slope[kept]
        delta = optimiser.propose()
    torch.testing.assert_close(optimiser.loss, whole[[0, 2, 3]])


def test_nothing_to_gain():
    losses = Losses(torch.zeros(1, 2), torch.zeros(1, 2, WIDTH), torch.zeros(1), torch.zeros(1, WIDTH))
    step, predicted = margin_step(losses, torch.ones(1))
    assert step.abs().max() == 0
    assert predicted.item() == pytest.approx(0, abs=1e-5)
