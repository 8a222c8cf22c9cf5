"""The gradients of one problem by hand and by every witness, and how far they are apart. Prints nothing."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import torch_reference
from manual_bptt.cli.problems import Problem
from manual_bptt.functional import readout, rnn, softmax_cross_entropy

Gradients = dict[str, Tensor]  # by name: U W V b c x h0; float64 on the CPU once compared

NAMES = ("U", "W", "V", "b", "c", "x", "h0")
FLOAT64_LIMIT = 1e-12
# A difference quotient loses 1e-16 · |L| / 6e-6 on every entry; the other witnesses are exact to rounding.
CENTRAL_DIFFERENCE_LIMIT = 1e-6


@dataclass(frozen=True)
class Cell:
    """One gradient against one witness; relative_error is ‖by hand − witness‖ / ‖witness‖."""

    gradient: str
    witness: str
    dtype: str
    relative_error: float
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.relative_error <= self.limit


def by_hand(problem: Problem, dtype: torch.dtype, device: torch.device) -> Gradients:
    """Run the hand-written Functions forward and backward."""
    leaves = {
        name: value.to(device, dtype, copy=True).requires_grad_()
        for name, value in (problem.parameters | {"x": problem.x, "h0": problem.h0}).items()
    }
    U, W, V, b, c, x, h0 = (leaves[name] for name in NAMES)
    weighting = {name: problem.options[name] for name in ("time", "batch", "ignore_index")}
    o = readout(rnn(x, h0, U, W, b, problem.options["nonlinearity"]), V, c)
    loss = softmax_cross_entropy(o, problem.targets.to(device), **weighting)
    return dict(zip(NAMES, torch.autograd.grad(loss, [leaves[name] for name in NAMES]), strict=True))


def _autograd(network: str) -> Callable[[Problem, torch.device], Gradients]:
    def witness(problem: Problem, device: torch.device) -> Gradients:
        parameters = {name: value.to(device, torch.float64) for name, value in problem.parameters.items()}
        x, h0 = problem.x.to(device, torch.float64), problem.h0.to(device, torch.float64)
        found = torch_reference.gradients(
            parameters, x, problem.targets.to(device), h0, network=network, **problem.options
        )
        return {name: found["d" + name] for name in NAMES}

    return witness


def _numerical(method: Callable[..., dict[str, Any]]) -> Callable[[Problem, torch.device], Gradients]:
    def witness(problem: Problem, device: torch.device) -> Gradients:
        parameters = {name: value.double().numpy() for name, value in problem.parameters.items()}
        found = method(
            parameters,
            problem.x.double().numpy(),
            problem.targets.numpy(),
            problem.h0.double().numpy(),
            **problem.options,
        )
        return {name: torch.from_numpy(found["d" + name]) for name in NAMES}

    return witness


def witnesses(nonlinearity: str) -> dict[str, Callable[[Problem, torch.device], Gradients]]:
    """Name the independent ways to the same gradients that there are for a nonlinearity; all work in float64."""
    found = {"unrolled": _autograd("unrolled")}
    if nonlinearity in ("tanh", "relu"):  # torch.nn.RNN has no other
        found = {"nn.RNN": _autograd("nn.RNN")} | found
    if nonlinearity == "relu":  # has no complex derivative
        return found | {"central diff.": _numerical(torch_reference.central_difference)}
    return found | {"complex step": _numerical(torch_reference.complex_step)}


def compare(actual: Gradients, truth: Gradients, witness: str, dtype: torch.dtype) -> list[Cell]:
    """Measure every gradient, norm-wise, against one witness's float64 truth."""
    limit = FLOAT64_LIMIT if dtype == torch.float64 else 100 * torch.finfo(dtype).eps
    if witness == "central diff.":
        limit = max(limit, CENTRAL_DIFFERENCE_LIMIT)
    return [
        Cell(name, witness, str(dtype).removeprefix("torch."), relative_error(actual[name], truth[name]), limit)
        for name in NAMES
    ]


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """‖actual − truth‖ / ‖truth‖ in float64 on the CPU; the absolute error where the truth is zero."""
    exact = truth.detach().to("cpu", torch.float64)
    error = (actual.detach().to("cpu", torch.float64) - exact).norm().item()
    size = exact.norm().item()
    return math.nan if not math.isfinite(size) else error / size if size > 0 else error
