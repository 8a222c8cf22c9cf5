"""The time of a training step: by hand, by autograd on the unrolled loop, by torch.nn.RNN, taken in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.benchmark import timer

import torch_reference
from manual_bptt.cli.problems import Problem
from manual_bptt.functional import readout, rnn, softmax_cross_entropy

Step = Callable[[], None]
WARM_UP = 3  # rounds that do not count


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


@dataclass(frozen=True)
class Timed:
    """One implementation's training step.

    Attributes:
        seconds: Median time.
        ratio: Its time over the hand-written step's, the median over rounds in which both ran one after the other.
        quartiles: Of that ratio: half of all rounds lie between them.
    """

    seconds: float
    ratio: float
    quartiles: tuple[float, float]


def take_turns(steps: dict[str, Step], seconds: float) -> dict[str, Timed]:
    """Run the steps in turns, round after round, for about so many seconds; "hand-written" is what they are held to."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end or rounds < WARM_UP + 5:
        for name, step in steps.items():
            start = timer()  # waits for the device
            step()
            taken[name].append(timer() - start)
        rounds += 1
    hand = taken["hand-written"][WARM_UP:]
    timed = {}
    for name, times in taken.items():
        ratios = [theirs / ours for theirs, ours in zip(times[WARM_UP:], hand, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        timed[name] = Timed(statistics.median(times[WARM_UP:]), middle, (low, high))
    return timed
