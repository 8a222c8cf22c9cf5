"""Measures what a training step keeps and takes: `python -m benchmarks.memory`; Linux.

Both in units of the states, T · B · H numbers. Kept: what is saved for the backward pass, without parameters, x and h0.
Peak: how much more memory the process has had, at most, after its first training step than before it, states and
gradients included; each implementation in a process of its own, in which a small problem was solved before.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import manual_bptt
from benchmarks.implementations import ByAutograd, Functional, Module, unrolled
from benchmarks.problem import Problem, make_problem
from benchmarks.sizes import Size

SIZES = (Size(1000, 16, 32, 64), Size(2000, 64, 64, 256), Size(500, 64, 256, 512))
IMPLEMENTATIONS: dict[str, Callable[[Problem], ByAutograd]] = {
    "nn.RNN": partial(Module, nn.RNN),
    "unrolled autograd": partial(Functional, unrolled),
    "RNN": partial(Module, manual_bptt.RNN),
    "RNN, checkpoint_every=True": partial(Module, partial(manual_bptt.RNN, checkpoint_every=True)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or measure one implementation at one size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--one", nargs=5, metavar=("NAME", "T", "B", "D", "H"), help="of one, two numbers")
    options = parser.parse_args(arguments)
    if options.one is not None:
        name, *size = options.one
        print(*measured(IMPLEMENTATIONS[name], Size(*map(int, size))))
        return 0
    print("| T, B, D, H | " + " | ".join(f"{name}: kept, peak" for name in IMPLEMENTATIONS) + " |")
    print("|:--|" + "--:|" * len(IMPLEMENTATIONS))
    for size in SIZES:
        cells = []
        for name in IMPLEMENTATIONS:
            command = [sys.executable, "-m", "benchmarks.memory", "--one", name, *map(str, size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            kept, peak = map(float, done.stdout.split())
            cells.append(f"{kept:.2f}, {peak:.2f}")
        print(f"| {', '.join(map(str, size))} | " + " | ".join(cells) + " |", flush=True)
    return 0


def measured(make: Callable[[Problem], ByAutograd], size: Size) -> tuple[float, float]:
    """Return what is kept and the peak, in units of the states."""
    warm = make_problem(Size(20, 2, 3, 4))
    make(warm).training_step(warm.dh)()
    problem = make_problem(size)
    of_step = make(problem)
    of_memory, states = make(problem), problem.dh.numel() * problem.dh.element_size()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most so far is what there is now
    before = resident()
    of_step.training_step(problem.dh)()
    peak = resident() - before
    return kept(of_memory) / states, peak / states


def kept(implementation: ByAutograd) -> int:
    """Return how many bytes a forward pass saves."""
    own = {each.untyped_storage().data_ptr() for each in implementation.parameters()}
    own |= {each.untyped_storage().data_ptr() for each in (getattr(implementation, name) for name in ("x", "h0"))}
    seen: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        seen[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        h = implementation.forward()
    assert h.requires_grad
    return sum(value.untyped_storage().nbytes() for place, value in seen.items() if place not in own)


def resident() -> int:
    """Return the most bytes that the process has had in memory so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("expected VmHWM in /proc/self/status, got none")


if __name__ == "__main__":
    sys.exit(main())
