"""What the gradient flow says before training is what training meets: tasks are learned up to some length.

Within the reach that the verdict tells, a task is learned in the given number of steps; three times as far it is not.
In between either may happen: gradients that are small are not nothing, and reading what an untrained network happens to
keep goes some way.

Would catch: a flow that calls a gradient alive which does not reach as far as the task needs, or dead one that does;
training by the truncated gradient that learns what lies beyond its reach.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import tasks
from manual_bptt import Truncation, chunked, gradient_flow, windowed

STEPS = 900
NEEDED: dict[str, Callable[[int], int]] = {  # the farthest that a loss has to be followed back to what it is about
    "adding": lambda T: T - 1,
    "copying": lambda T: T - tasks.COPIED,
}


def reach(task: tasks.Task, T: int) -> int:
    """The lag from which on an untrained network's gradient has vanished, or T where it has not."""
    rnn, head = tasks.network(task, 32, None, 0)
    x, y = task.draw(torch.Generator().manual_seed(1))
    gains = gradient_flow(rnn, x, lambda output: task.loss(head(output), y)).gains
    assert gains.kind in ("vanishing", "neither")
    return T if gains.since is None else gains.since


def trained(task: tasks.Task, truncation: Truncation | None = None) -> float:
    """The loss after training, as a part of what guessing costs."""
    losses = tasks.train(task, *tasks.network(task, 32, truncation, 0), 1, STEPS)
    return sum(losses[-50:]) / 50 / task.guess


@pytest.mark.parametrize(
    ("name", "T", "learns"),
    [
        ("adding", 6, True),
        ("adding", 8, True),
        ("adding", 50, False),
        ("copying", 6, True),
        ("copying", 8, True),
        ("copying", 40, False),
    ],
)
def test_a_task_is_learned_as_far_as_the_gradient_reaches(name: str, T: int, learns: bool) -> None:
    task = getattr(tasks, name)(T)
    needed, since = NEEDED[name](T), reach(task, T)
    assert needed < since if learns else needed > 3 * since
    loss = trained(task)
    assert loss < 1 / 4 if learns else loss > 0.85


@pytest.mark.parametrize(
    ("name", "truncation"), [("adding", chunked(2)), ("adding", windowed(1)), ("copying", windowed(4))], ids=str
)
def test_what_lies_beyond_the_reach_of_a_truncation_is_hardly_learned(name: str, truncation: Truncation) -> None:
    task = getattr(tasks, name)(10)
    assert trained(task, truncation) > 2 * trained(task)
