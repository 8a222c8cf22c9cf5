"""Trains the same networks by full and by truncated gradients: `python -m benchmarks.truncations [--seeds N]`.

What docs/through_time.md says of training is this table. Copying (after Hochreiter and Schmidhuber 1997, as is adding)
needs a gradient over its whole length; predicting the next character of English needs little of it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from benchmarks import tasks
from manual_bptt import Truncation, chunked, full, randomized, windowed

LAST = 50  # steps over whose losses a result is the mean


class Row(NamedTuple):
    """A task, the units of the network that is trained on it, and for how many steps."""

    title: str
    make: Callable[[], tasks.Task]
    hidden: int
    steps: int


TASKS = (
    Row("copying, T = 16", lambda: tasks.copying(16), 32, 2000),
    Row("adding, T = 16", lambda: tasks.adding(16), 32, 2000),
    Row("next character, T = 64", lambda: tasks.characters(64), 64, 900),
)


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
    for row in TASKS:
        steps = options.steps or row.steps
        print(f"\n{row.title}, {steps} training steps")
        task = row.make()
        for name, make in truncations().items():
            losses = sorted(trained(task, row.hidden, make(seed), seed, steps) for seed in range(options.seeds))
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


def trained(task: tasks.Task, hidden: int, truncation: Truncation, seed: int, steps: int) -> float:
    """The mean loss of the last steps."""
    return statistics.fmean(tasks.train(task, *tasks.network(task, hidden, truncation, seed), seed, steps)[-LAST:])


if __name__ == "__main__":
    sys.exit(main())
