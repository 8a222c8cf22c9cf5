"""The table of implementations that are compared, all holding the same numbers; their timing is elsewhere."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import manual_bptt
from benchmarks.cores import CAN_CHOOSE, allowed
from benchmarks.problem import Problem
from benchmarks.sizes import Size
from manual_bptt import kernels
from manual_bptt.kernels import native

#: The implementation that all others are compared with.
PEER = "nn.RNN"


Body = Callable[[], object]


class Implementation(Protocol):
    """One recurrence F1, F2 with tanh, ready to be run on its problem."""

    def forward(self) -> Any:
        """Compute every state and return them, as the implementation has them."""
        ...

    def backward(self, dh: Tensor) -> Body:
        """Prepare everything that comes before a backward pass, and return the pass.

        Raises:
            NotImplementedError: It has none of its own.
        """
        ...

    def training_step(self, dh: Tensor) -> Body:
        """Return forward and backward pass, from gradients that are cleared; it returns the states as `forward`."""
        ...

    def states(self, result: Any) -> Tensor:
        """Return what `forward` gave as h (T, B, H)."""
        ...

    def gradients(self) -> dict[str, Tensor]:
        """Return what the last backward pass left: dU (H, D), dW (H, H), db (H,)."""
        ...


class ByAutograd:
    """What all have in common whose backward pass torch starts; subclasses have forward and parameters."""

    def forward(self) -> Tensor:
        """Return every state h (T, B, H)."""
        raise NotImplementedError

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the leaves whose gradients backward fills in."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget the gradients of the last backward."""
        for parameter in self.parameters():
            parameter.grad = None

    def backward(self, dh: Tensor) -> Body:
        """Build the graph, and return the pass through it, from gradients that are cleared."""
        h = self.forward()

        def body() -> None:
            self.clear()
            torch.autograd.backward(h, dh)

        return body

    def training_step(self, dh: Tensor) -> Body:
        """Return a whole step."""

        def body() -> Tensor:
            self.clear()
            h = self.forward()
            torch.autograd.backward(h, dh)
            return h

        return body

    def states(self, result: Any) -> Tensor:
        """Return h (T, B, H): forward does."""
        assert isinstance(result, Tensor)
        return result


class Functional(ByAutograd):
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


class Module(ByAutograd):
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


class WithKernel:
    """An implementation with a kernel that is not chosen by its sizes."""

    def __init__(self, kernel: str, of: Callable[[Problem], Implementation], problem: Problem):
        self.kernel, self.of = kernel, of(problem)
        self.states, self.gradients = self.of.states, self.of.gradients

    def forward(self) -> Any:
        """As without."""
        with kernels.use(self.kernel):
            return self.of.forward()

    def backward(self, dh: Tensor) -> Body:
        """As without."""
        with kernels.use(self.kernel):
            return self._under_it(self.of.backward(dh))

    def training_step(self, dh: Tensor) -> Body:
        """As without."""
        return self._under_it(self.of.training_step(dh))

    def _under_it(self, body: Body) -> Body:
        def under() -> object:
            with kernels.use(self.kernel):
                return body()

        return under


def compiled(problem: Problem) -> Implementation:
    """Compile the plain loop, anew: every size is a program of its own."""
    torch.compiler.reset()
    return Functional(torch.compile(unrolled, fullgraph=True, dynamic=False), problem)


def scan(problem: Problem) -> Implementation:
    """Return JAX's."""
    from benchmarks.jax_scan import Scan

    return Scan(problem)


@dataclass(frozen=True)
class Entry:
    """An implementation of the table.

    Attributes:
        make: Makes it for a problem.
        absent: (size, device, threads, timed) -> why it is not run there; "" where it is.
    """

    make: Callable[[Problem], Implementation]
    absent: Callable[[Size, str, int, bool], str] = lambda size, device, threads, timed: ""


LONGEST_COMPILED = 28  # steps: beyond, compiling the loop takes minutes


def _without_c(size: Size, device: str, threads: int, timed: bool) -> str:
    return "" if device == "cpu" and native.library() is not None else "the kernel in C is for CPUs, where it was built"


def _of_cpus(size: Size, device: str, threads: int, timed: bool) -> str:
    return "" if device == "cpu" else "on other devices no other kernel is chosen"


def _without_compiler(size: Size, device: str, threads: int, timed: bool) -> str:
    if not timed:
        return "compiling takes its time: only where it is timed"
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a compiler of C++"
    return "" if size.T <= LONGEST_COMPILED else f"compiling more than {LONGEST_COMPILED} steps takes minutes"


def _without_jax(size: Size, device: str, threads: int, timed: bool) -> str:
    if find_spec("jax") is None:
        return "JAX is not installed: pip install 'manual-bptt[peers]'"
    if device != "cpu":
        return "JAX is started for CPUs"
    return "" if CAN_CHOOSE or threads == len(allowed()) else "JAX takes all cores where a process cannot choose them"


_module = partial(Module, manual_bptt.RNN)
#: One more line is one more implementation: it is checked, timed and reported like the others.
IMPLEMENTATIONS: dict[str, Entry] = {
    "manual_bptt": Entry(partial(Functional, manual_bptt.rnn)),
    "manual_bptt.RNN": Entry(_module),
    "RNN, steps in C": Entry(partial(WithKernel, "native", _module), _without_c),
    "RNN, torch operators": Entry(partial(WithKernel, "eager", _module), _of_cpus),
    "unrolled autograd": Entry(partial(Functional, unrolled)),
    "torch.compile of it": Entry(compiled, _without_compiler),
    "jax.lax.scan": Entry(scan, _without_jax),
    PEER: Entry(partial(Module, nn.RNN)),
}
