"""Times what the other benchmarks leave out beside torch.nn: `python -m benchmarks.uses`, one thread, about a minute.

Packed sequences, layers and directions, relu, other dtypes, and RNNCell step by step. A number is (time of torch.nn) /
(own time), the median over rounds that alternate between the two, as in bench_rnn.py; both hold the same parameters.
Training: gradients cleared, forward, backward from the sum of the last layer's states. Forward is without a graph.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.benchmark import timer

import manual_bptt
from benchmarks.bench_rnn import calls_of, run, settings
from benchmarks.implementations import Body
from benchmarks.sizes import Size


@dataclass(frozen=True)
class Use:
    """A way to use a module.

    Attributes:
        name: What it is called in the table.
        sizes: T, B, D, H.
        arguments: Of the module, beside its sizes and dtype.
        dtype: Of parameters and input.
        packed: Whether the sequences are packed, of lengths between 1 and T, all equally likely.
        cell: Whether it is a cell, called at each step.
    """

    name: str
    sizes: tuple[Size, ...]
    arguments: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float32
    packed: bool = False
    cell: bool = False


MIDDLING = (Size(28, 64, 28, 128), Size(100, 32, 64, 128), Size(100, 64, 128, 256))
USES = (
    Use("packed, lengths 1 to T", MIDDLING, packed=True),
    Use("two layers, both directions", MIDDLING[1:2], (("num_layers", 2), ("bidirectional", True))),
    Use("relu", MIDDLING[1:2], (("nonlinearity", "relu"),)),
    Use("float64", MIDDLING, dtype=torch.float64),
    Use("bfloat16", MIDDLING, dtype=torch.bfloat16),
    Use("RNNCell, T steps", (Size(5, 1, 10, 20), Size(5, 16, 32, 64), Size(5, 64, 256, 512)), cell=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uses", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="how many of each, at least one (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"expected --rounds of at least 1, got {options.rounds}")
    print("| use | T, B, D, H | training step | forward |\n|:--|:--|--:|--:|")
    with settings(1):
        for use in USES:
            for size in use.sizes:
                trained, passed = (ratio(*pair, options.rounds) for pair in bodies(use, size))
                print(f"| {use.name} | {', '.join(map(str, size))} | {trained:.2f} | {passed:.2f} |", flush=True)
    return 0


def bodies(use: Use, size: Size) -> tuple[tuple[Body, Body], tuple[Body, Body]]:
    """Return a training step of torch.nn and the own one, and a forward pass of each."""
    T, B, D, H = size
    torch.manual_seed(0)
    theirs, own = (nn.RNNCell, manual_bptt.RNNCell) if use.cell else (nn.RNN, manual_bptt.RNN)
    modules: list[Any] = [each(D, H, dtype=use.dtype, **dict(use.arguments)) for each in (theirs, own)]
    modules[1].load_state_dict(modules[0].state_dict())
    x: Any = torch.randn(T, B, D, dtype=use.dtype)
    if use.packed:
        x = pack_padded_sequence(
            x, torch.randint(1, T + 1, (B,)).index_fill(0, torch.tensor([0]), T), enforce_sorted=False
        )
    forward = by_steps if use.cell else whole
    first, second = [(training_step(m, forward, x), torch.no_grad()(lambda m=m: forward(m, x))) for m in modules]
    return (first[0], second[0]), (first[1], second[1])


def whole(module: Any, x: Any) -> Tensor:
    """Return all states of the last layer."""
    output = module(x)[0]
    states: Tensor = output.data if isinstance(output, PackedSequence) else output
    return states


def by_steps(cell: Any, x: Tensor) -> Tensor:
    """Return the state after the last step of a cell."""
    h: Tensor = cell(x[0])
    for x_t in x[1:]:
        h = cell(x_t, h)
    return h


def training_step(module: Any, forward: Callable[[Any, Any], Tensor], x: Any) -> Body:
    """Return a training step."""

    def body() -> None:
        module.zero_grad()
        torch.autograd.backward(forward(module, x).sum())

    return body


def ratio(theirs: Body, own: Body, rounds: int) -> float:
    """Return how many times as fast one is as the other."""

    def timed(body: Body, calls: int = 1) -> float:
        start = timer()
        run([body] * calls)
        return (timer() - start) / calls

    timed(theirs), timed(own)  # these warm up
    calls, own_calls = calls_of(timed(theirs)), calls_of(timed(own))
    return median(timed(theirs, calls) / timed(own, own_calls) for _ in range(rounds))


if __name__ == "__main__":
    sys.exit(main())
