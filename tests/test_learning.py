"""What the gradient flow says before training is what training meets: the adding problem is learned up to some length.

Would catch: a flow that calls a gradient alive which does not reach as far as the task needs, or dead one that does;
training by the truncated gradient that learns what lies beyond its reach.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from manual_bptt import RNN, Truncation, chunked, clip_gradient_norm, gradient_flow, windowed

STEPS = 900
GUESS = 1 / 6  # the variance of a sum of two uniform numbers: what guessing their mean costs


def adding(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and marks (T, B, 2), and the sum of the two marked numbers, one in each half."""
    numbers, marks = torch.rand(T, B, generator=generator), torch.zeros(T, B)
    rows = torch.arange(B)
    marks[torch.randint(0, T // 2, (B,), generator=generator), rows] = 1
    marks[torch.randint(T // 2, T, (B,), generator=generator), rows] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def trained(T: int, truncation: Truncation | None = None) -> tuple[float, float]:
    """The gain from the loss to the state at half the length before training, and the loss after it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    rnn, head = RNN(2, 32, truncation=truncation), torch.nn.Linear(32, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    flow = gradient_flow(rnn, adding(T, 64, generator)[0], lambda output: head(output[-1]).sum())["l0"]
    losses = []
    for _ in range(STEPS):
        x, y = adding(T, 64, generator)
        loss = (head(rnn(x)[0][-1])[:, 0] - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        clip_gradient_norm(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return (flow.by_step[-1, T // 2] / flow.outside[-1]).item(), sum(losses[-50:]) / 50


@pytest.mark.parametrize(("T", "learns"), [(6, True), (10, True), (50, False)])
def test_the_adding_problem_is_learned_as_far_as_the_gradient_reaches(T: int, learns: bool) -> None:
    gain, loss = trained(T)
    assert (gain > 1e-2) == learns
    assert (loss < GUESS / 4) == learns
    assert learns or loss > 0.85 * GUESS


@pytest.mark.parametrize("truncation", [chunked(2), windowed(1)], ids=str)
def test_what_lies_beyond_the_reach_of_a_truncation_is_hardly_learned(truncation: Truncation) -> None:
    full, cut = trained(10)[1], trained(10, truncation)[1]
    assert cut > 2 * full
