"""What the gradient flow says before training is what training meets: tasks are learned up to some length.

Would catch: a flow that calls a gradient alive which does not reach as far as the task needs, or dead one that does;
training by the truncated gradient that learns what lies beyond its reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from manual_bptt import (
    RNN,
    Truncation,
    chunked,
    clip_gradient_norm,
    gradient_flow,
    softmax_cross_entropy,
    windowed,
)

Batch = tuple[Tensor, Tensor]
ROWS, STEPS = 64, 900
SYMBOLS, COPIED = 4, 2


def adding(T: int, generator: torch.Generator) -> Batch:
    """Numbers and marks (T, B, 2), and the sum of the two marked numbers, one in each half."""
    numbers, marks = torch.rand(T, ROWS, generator=generator), torch.zeros(T, ROWS)
    rows = torch.arange(ROWS)
    marks[torch.randint(0, T // 2, (ROWS,), generator=generator), rows] = 1
    marks[torch.randint(T // 2, T, (ROWS,), generator=generator), rows] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def adding_loss(o: Tensor, y: Tensor) -> Tensor:
    return (o[-1, :, 0] - y).square().mean()


def copying(T: int, generator: torch.Generator) -> Batch:
    """Two symbols, then blanks, then a cue after which the two are to be said again (T, B, D), and the symbols."""
    symbols = torch.randint(SYMBOLS, (COPIED, ROWS), generator=generator)
    tokens = torch.full((T, ROWS), SYMBOLS)
    tokens[:COPIED] = symbols
    tokens[T - COPIED] = SYMBOLS + 1
    return one_hot(tokens, SYMBOLS + 2).float(), symbols


def copying_loss(o: Tensor, y: Tensor) -> Tensor:
    return softmax_cross_entropy(o[-COPIED:], y, time="mean", batch="mean")


# Draws a batch, judges outputs, inputs, outputs, what guessing costs, the state that the loss at the end has to reach
TASKS: dict[str, tuple[Callable[..., Batch], Callable[..., Tensor], int, int, float, Callable[[int], int]]] = {
    "adding": (adding, adding_loss, 2, 1, 1 / 6, lambda T: T // 2),  # the variance of the sum of two uniform numbers
    "copying": (copying, copying_loss, SYMBOLS + 2, SYMBOLS, math.log(SYMBOLS), lambda T: 0),
}


def trained(task: str, T: int, truncation: Truncation | None = None) -> tuple[float, float]:
    """The gain from the last losses to the state that they need, before training; the loss after it over guessing."""
    draw, judge, inputs, outputs, guess, needed = TASKS[task]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    rnn, head = RNN(inputs, 32, truncation=truncation), torch.nn.Linear(32, outputs)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    x, y = draw(T, generator)
    flow = gradient_flow(rnn, x, lambda output: judge(head(output), y))["l0"]
    losses = []
    for _ in range(STEPS):
        x, y = draw(T, generator)
        loss = judge(head(rnn(x)[0]), y)
        optimizer.zero_grad()
        loss.backward()
        clip_gradient_norm(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    gain = flow.by_step[:, needed(T)].norm() / flow.outside.norm()
    return gain.item(), sum(losses[-50:]) / 50 / guess


@pytest.mark.parametrize(
    ("task", "T", "learns"),
    [
        ("adding", 6, True),
        ("adding", 10, True),
        ("adding", 50, False),
        ("copying", 6, True),
        ("copying", 8, True),
        ("copying", 40, False),
    ],
)
def test_a_task_is_learned_as_far_as_the_gradient_reaches(task: str, T: int, learns: bool) -> None:
    gain, loss = trained(task, T)
    assert (gain > 1e-2) == learns  # what the verdict calls alive
    assert (loss < 1 / 4) == learns
    assert learns or loss > 0.85


@pytest.mark.parametrize(
    ("task", "truncation"), [("adding", chunked(2)), ("adding", windowed(1)), ("copying", windowed(4))], ids=str
)
def test_what_lies_beyond_the_reach_of_a_truncation_is_hardly_learned(task: str, truncation: Truncation) -> None:
    full, cut = trained(task, 10)[1], trained(task, 10, truncation)[1]
    assert cut > 2 * full
