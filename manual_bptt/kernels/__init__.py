"""How the sequential steps are run: one module per way, each with a forward and a backward; and which one is taken.

    C       CPU, float32 or float64, built with the package   at least 8 rows of steps, T · B
    eager   everything else

A row of steps is one step of one sequence. Below 8 of them, packing W costs more than the product (`native.c`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manual_bptt.activations import Activation
from manual_bptt.kernels import eager, native

NAMES = ("native", "eager")
LEAST_ROWS = 8
_wanted: str | None = None  # of an open `use`


def chosen(
    steps: Tensor,
    beside: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None = None,
    *,
    forward: bool,
) -> str:
    """The kernel for a pass, "native" or "eager"; arguments as `native.takes`.

    Where somebody looks at every operator, a dispatch mode, forward mode or a compiler, there have to be operators.
    """
    if (
        _wanted == "eager"
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or not native.takes(steps, beside, W, activation, sizes, forward=forward)
    ):
        return "eager"
    return "native" if _wanted == "native" or steps.numel() >= LEAST_ROWS * steps.shape[-1] else "eager"


def forward(a: Tensor, h0: Tensor, W: Tensor, activation: Activation, sizes: Sequence[int] | None = None) -> Tensor:
    """Run F1 and F2 through time by the kernel that is chosen; a may be overwritten. As eager.forward."""
    if chosen(a, h0, W, activation, sizes, forward=True) == "native":
        return native.forward(a, h0, W, activation, sizes)
    return eager.forward(a, h0, W, activation, sizes)


def backward(
    dh: Tensor,
    slope: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None = None,
    xi: Sequence[float] | None = None,
) -> Tensor:
    """Run B3 and B4 back through time by the kernel that is chosen; slope may be overwritten. As eager.backward."""
    if chosen(slope, dh, W, activation, sizes, forward=False) == "native":
        return native.backward(dh, slope, W, activation, sizes, xi)
    return eager.backward(dh, slope, W, activation, sizes, xi)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Choose a kernel wherever it can run, for tests and benchmarks; in this process, in all threads.

    Args:
        name: "native" or "eager".

    Raises:
        ValueError: There is no such kernel, or it was not built.
    """
    global _wanted
    if name not in NAMES:
        raise ValueError(f"use: expected one of {', '.join(NAMES)}, got {name!r}")
    if name == "native" and native.library() is None:
        raise ValueError(f"use: expected a kernel that was built, got native, which is {native.state()}")
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before
