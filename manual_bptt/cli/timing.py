"""The time of a training step: by hand, by autograd on the unrolled loop, by torch.nn.RNN, taken in turns."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.benchmark import timer

import torch_reference
from manual_bptt.cli.problems import Problem
from manual_bptt.functional import readout, rnn, softmax_cross_entropy

Step = Callable[[], None]


def training_steps(problem: Problem, device: torch.device, dtype: torch.dtype) -> dict[str, Step]:
    """Make one closure per implementation: clear the gradients, forward, loss, backward."""
    weighting = {name: problem.options[name] for name in ("time", "batch", "ignore_index")}
    nonlinearity = problem.options["nonlinearity"]
    x, h0 = problem.x.to(device, dtype), problem.h0.to(device, dtype)
    targets = problem.targets.to(device)
    parameters = {
        name: value.to(device, dtype, copy=True).requires_grad_() for name, value in problem.parameters.items()
    }

    def step(outputs: Callable[[], Tensor], loss: Callable[..., Tensor], leaves: list[Tensor]) -> Step:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            loss(outputs(), targets, **weighting).backward()  # type: ignore[no-untyped-call]

        return run

    def hand() -> Tensor:
        U, W, V, b, c = (parameters[name] for name in ("U", "W", "V", "b", "c"))
        return readout(rnn(x, h0, U, W, b, nonlinearity), V, c)

    def unrolled() -> Tensor:
        return torch.stack(torch_reference.unrolled(parameters, x, h0, nonlinearity).o)

    leaves = list(parameters.values())
    steps = {
        "hand-written": step(hand, softmax_cross_entropy, leaves),
        "unrolled autograd": step(unrolled, torch_reference.sequence_loss, leaves),
    }
    if nonlinearity in ("tanh", "relu"):
        network = torch_reference.TorchNetwork.from_parameters(parameters, nonlinearity)
        steps["nn.RNN"] = step(lambda: network(x, h0)[0], torch_reference.sequence_loss, list(network.parameters()))
    return steps


def median_times(steps: dict[str, Step], seconds: float) -> dict[str, float]:
    """Run the steps in turns for about so many seconds; return the median time of each, in seconds."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(taken["hand-written"]) < 5:
        for name, step in steps.items():
            start = timer()  # waits for the device
            step()
            taken[name].append(timer() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
