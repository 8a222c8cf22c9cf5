"""Trains the same networks by full and by truncated gradients: `python -m benchmarks.truncations [--seeds N]`.

What docs/through_time.md says of training is this table. Copying (after Hochreiter and Schmidhuber 1997, as is adding)
needs a gradient over its whole length; predicting the next character of English needs little of it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from manual_bptt import (
    RNN,
    Truncation,
    chunked,
    clip_gradient_norm,
    full,
    randomized,
    softmax_cross_entropy,
    windowed,
)
from manual_bptt.data import english_text

Batch = tuple[Tensor, Tensor]
Draw = Callable[[torch.Generator], Batch]

LAST = 50  # steps over whose losses a result is the mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truncations", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: 2000, for text 900)")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"expected --{name} of at least 1, got {value}")
    print(f"mean loss of the last {LAST} training steps: median over {options.seeds} seeds (least to most)")
    for title, train, usual in TASKS:
        steps = options.steps or usual
        print(f"\n{title}, {steps} training steps")
        for name, make in truncations().items():
            losses = sorted(train(make(seed), seed, steps) for seed in range(options.seeds))
            print(f"  {name:<24}{statistics.median(losses):.4f}  ({losses[0]:.4f} to {losses[-1]:.4f})", flush=True)
    return 0


def truncations() -> dict[str, Callable[[int], Truncation]]:
    """What is compared, made for a seed: the three kinds hold equally many states, k."""
    made: dict[str, Callable[[int], Truncation]] = {"full": lambda seed: full()}
    for k in (2, 4, 8):
        made[f"chunked({k})"] = lambda seed, k=k: chunked(k)  # type: ignore[misc]
        made[f"windowed({k - 1})"] = lambda seed, k=k: windowed(k - 1)  # type: ignore[misc]
        made[f"randomized({1 - 1 / k:g})"] = lambda seed, k=k: randomized(  # type: ignore[misc]
            1 - 1 / k, torch.Generator().manual_seed(seed)
        )
    return made


def copying(truncation: Truncation, seed: int, steps: int) -> float:
    """Train on saying two of four symbols again, 14 steps after they came; guessing costs ln 4 = 1.386."""
    T, B, symbols, copied = 16, 64, 4, 2

    def draw(generator: torch.Generator) -> Batch:
        y = torch.randint(symbols, (copied, B), generator=generator)
        tokens = torch.full((T, B), symbols)
        tokens[:copied] = y
        tokens[T - copied] = symbols + 1  # the cue
        return nn.functional.one_hot(tokens, symbols + 2).float(), y

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return softmax_cross_entropy(o[-copied:], y, time="mean", batch="mean")

    torch.manual_seed(seed)
    rnn, head = RNN(symbols + 2, 32, truncation=truncation), nn.Linear(32, symbols)
    return _train(rnn, head, draw, loss, seed, steps)


def adding(truncation: Truncation, seed: int, steps: int) -> float:
    """Train on sums of the two marked ones of 16 numbers; guessing their mean costs 1/6."""
    T, B = 16, 64

    def draw(generator: torch.Generator) -> Batch:
        numbers, marks, rows = torch.rand(T, B, generator=generator), torch.zeros(T, B), torch.arange(B)
        for half in (0, T // 2):
            marks[half + torch.randint(T // 2, (B,), generator=generator), rows] = 1
        return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)

    torch.manual_seed(seed)
    rnn, head = RNN(2, 32, truncation=truncation), nn.Linear(32, 1)
    return _train(rnn, head, draw, lambda o, y: (o[-1, :, 0] - y).square().mean(), seed, steps)


def characters(truncation: Truncation, seed: int, steps: int) -> float:
    """Train on the next character of English text, in nats a character."""
    T, B = 64, 32
    text = english_text()
    alphabet = sorted(set(text))
    number = {character: index for index, character in enumerate(alphabet)}
    tokens = torch.tensor([number[character] for character in text])

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(tokens) - T, (B,), generator=generator)
        pieces = torch.stack([tokens[start : start + T + 1] for start in starts.tolist()], 1)
        return nn.functional.one_hot(pieces[:-1], len(alphabet)).float(), pieces[1:]

    torch.manual_seed(seed)
    rnn, head = RNN(len(alphabet), 64, truncation=truncation), nn.Linear(64, len(alphabet))
    return _train(rnn, head, draw, lambda o, y: softmax_cross_entropy(o, y, time="mean", batch="mean"), seed, steps)


def _train(
    rnn: RNN, head: nn.Linear, draw: Draw, loss: Callable[[Tensor, Tensor], Tensor], seed: int, steps: int
) -> float:
    """The mean loss of the last steps."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(steps):
        x, y = draw(generator)
        value = loss(head(rnn(x)[0]), y)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        clip_gradient_norm(parameters, 1.0)
        optimizer.step()
        losses.append(value.item())
    return statistics.fmean(losses[-LAST:])


TASKS = (
    ("copying, T = 16", copying, 2000),
    ("adding, T = 16", adding, 2000),
    ("next character, T = 64", characters, 900),
)

if __name__ == "__main__":
    sys.exit(main())
