"""Tasks that ask for a memory of some length, drawn without end: copying, adding, the next character of a text."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manual_bptt import RNN, Truncation, clip_gradient_norm, softmax_cross_entropy
from manual_bptt.data import english_text

SYMBOLS, COPIED = 4, 2
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes:
        inputs: D.
        outputs: K.
        draw: Draws inputs (T, B, D) and targets.
        loss: Judges outputs (T, B, K).
        guess: What guessing costs.
    """

    inputs: int
    outputs: int
    draw: Callable[[torch.Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    guess: float


def adding(T: int, B: int = 64) -> Task:
    """The sum of two marked ones of T numbers, one in each half, asked for at the end."""

    def draw(generator: torch.Generator) -> Batch:
        numbers, marks, rows = torch.rand(T, B, generator=generator), torch.zeros(T, B), torch.arange(B)
        for first, beyond in ((0, T // 2), (T // 2, T)):
            marks[torch.randint(first, beyond, (B,), generator=generator), rows] = 1
        return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)

    return Task(2, 1, draw, lambda o, y: (o[-1, :, 0] - y).square().mean(), 1 / 6)  # the variance of such a sum


def copying(T: int, B: int = 64) -> Task:
    """The first two symbols, of four, said again at the last two steps, after a cue."""

    def draw(generator: torch.Generator) -> Batch:
        symbols = torch.randint(SYMBOLS, (COPIED, B), generator=generator)
        tokens = torch.full((T, B), SYMBOLS)
        tokens[:COPIED] = symbols
        tokens[T - COPIED] = SYMBOLS + 1
        return nn.functional.one_hot(tokens, SYMBOLS + 2).float(), symbols

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return softmax_cross_entropy(o[-COPIED:], y, time="mean", batch="mean")

    return Task(SYMBOLS + 2, SYMBOLS, draw, loss, torch.tensor(float(SYMBOLS)).log().item())


def characters(T: int, B: int = 32) -> Task:
    """The next character of English text, in nats."""
    text = english_text()
    alphabet = sorted(set(text))
    number = {character: index for index, character in enumerate(alphabet)}
    tokens = torch.tensor([number[character] for character in text])

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(tokens) - T, (B,), generator=generator)
        pieces = torch.stack([tokens[start : start + T + 1] for start in starts.tolist()], 1)
        return nn.functional.one_hot(pieces[:-1], len(alphabet)).float(), pieces[1:]

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return softmax_cross_entropy(o, y, time="mean", batch="mean")

    return Task(len(alphabet), len(alphabet), draw, loss, torch.tensor(float(len(alphabet))).log().item())


def network(task: Task, hidden: int, truncation: Truncation | None, seed: int) -> tuple[RNN, nn.Linear]:
    """A recurrence and its output layer, drawn with a seed."""
    torch.manual_seed(seed)
    return RNN(task.inputs, hidden, truncation=truncation), nn.Linear(hidden, task.outputs)


def train(task: Task, rnn: RNN, head: nn.Linear, seed: int, steps: int) -> list[float]:
    """Train by Adam, gradients clipped to norm 1, and return the loss of every step."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(steps):
        x, y = task.draw(generator)
        loss = task.loss(head(rnn(x)[0]), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradient_norm(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
