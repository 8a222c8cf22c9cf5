"""The table of implementations that are compared, all holding the same numbers; their timing is elsewhere."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import manual_bptt
from benchmarks.problem import Problem

#: The implementation that all others are compared with.
PEER = "nn.RNN"


class Implementation(Protocol):
    """One recurrence F1, F2 with tanh, ready to be run on its problem."""

    def forward(self) -> Tensor:
        """Return every state h (T, B, H)."""
        ...

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the leaves whose gradients backward fills in."""
        ...

    def gradients(self) -> dict[str, Tensor]:
        """Return what backward left: dU (H, D), dW (H, H), db (H,)."""
        ...


class Functional:
    """A function of (x, h0, U, W, b), with U, W and b as leaves."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor], problem: Problem):
        self.function = function
        self.x, self.h0 = problem.x, problem.h0
        self.U, self.W, self.b = (nn.Parameter(p.clone()) for p in (problem.U, problem.W, problem.b))

    def forward(self) -> Tensor:
        """Return every state h (T, B, H)."""
        return self.function(self.x, self.h0, self.U, self.W, self.b)

    def parameters(self) -> tuple[Tensor, ...]:
        """Return U, W and b."""
        return self.U, self.W, self.b

    def gradients(self) -> dict[str, Tensor]:
        """Return dU (H, D), dW (H, H), db (H,)."""
        return {"dU": gradient(self.U), "dW": gradient(self.W), "db": gradient(self.b)}


class Module:
    """torch.nn.RNN or a drop-in: one layer, tanh; its second bias is zero and gets its gradient like the first."""

    def __init__(self, module: Callable[..., nn.Module], problem: Problem):
        self.x, self.h0 = problem.x, problem.h0.unsqueeze(0)
        hidden_size, input_size = problem.U.shape
        self.rnn: Any = module(input_size, hidden_size, device=problem.x.device, dtype=problem.x.dtype)
        numbers = {"weight_ih_l0": problem.U, "weight_hh_l0": problem.W, "bias_ih_l0": problem.b}
        self.rnn.load_state_dict({**numbers, "bias_hh_l0": torch.zeros_like(problem.b)})

    def forward(self) -> Tensor:
        """Return every state h (T, B, H)."""
        h: Tensor = self.rnn(self.x, self.h0)[0]
        return h

    def parameters(self) -> tuple[Tensor, ...]:
        """Return its four parameters."""
        return tuple(self.rnn.parameters())

    def gradients(self) -> dict[str, Tensor]:
        """Return dU (H, D), dW (H, H), db (H,) under this project's names."""
        names = {"dU": "weight_ih_l0", "dW": "weight_hh_l0", "db": "bias_ih_l0"}
        return {name: gradient(self.rnn.get_parameter(theirs)) for name, theirs in names.items()}


def unrolled(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return h (T, B, H) by the plain loop, F1 and F2 as they are printed; autograd does the rest."""
    h = h0
    states = []
    for x_t in x:
        h = torch.tanh(x_t @ U.T + h @ W.T + b)
        states.append(h)
    return torch.stack(states)


def gradient(parameter: Tensor) -> Tensor:
    """Return the gradient that backward left in a leaf."""
    if parameter.grad is None:
        raise RuntimeError(f"gradient: expected .grad of shape {tuple(parameter.shape)}, got None")
    return parameter.grad


#: One more line is one more implementation: it is checked, timed and reported like the others.
IMPLEMENTATIONS: dict[str, Callable[[Problem], Implementation]] = {
    "manual_bptt": partial(Functional, manual_bptt.rnn),
    "manual_bptt.RNN": partial(Module, manual_bptt.RNN),
    "unrolled autograd": partial(Functional, unrolled),
    PEER: partial(Module, nn.RNN),
}
