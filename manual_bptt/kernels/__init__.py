"""How a recurrence is run, and which way is taken.

    whole    in C: the inputs, the sequential steps and all gradients in one call a pass
             CPU, float32 or float64; T and B the same for all sequences, full BPTT; with AVX2 or AVX-512 any size that
             is no single step of a large W, elsewhere small ones
    native   in C: the sequential steps alone, between torch's operators
             CPU, float32 or float64; packed sequences, padding, truncation, recorded gradients; 4 steps or more
    eager    as torch operators (eager.py), to be read
             everything else: other dtypes, other devices, no compiler, somebody who looks at every operator

The limits were measured on an AVX-512 machine, against each other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manual_bptt.activations import Activation
from manual_bptt.kernels import native

NAMES = ("whole", "native", "eager")
LEAST_STEPS = 4  # T from which on native pays: for fewer, a call of an operator each costs as much
LEAST_ROWS = 32  # H over this is the number of steps of sequences from which on packing W pays
SMALL_WEIGHTS = 65_536  # numbers in U and W up to which packing costs less than the calls that are saved
MOST_WORK = 1_000_000  # multiplications of a whole recurrence without AVX2: torch's matrix product is faster than ours
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
    """How the sequential steps of a pass are run, "native" or "eager"; arguments as `native.takes`."""
    if _wanted == "eager" or _is_looked_at() or not native.takes(steps, beside, W, activation, sizes, forward=forward):
        return "eager"
    if _wanted is not None:
        return "native"
    H = steps.shape[-1]
    T = steps.shape[0] if sizes is None else len(sizes)
    return "native" if T >= LEAST_STEPS and steps.numel() // H * LEAST_ROWS >= H else "eager"


def is_whole(
    x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, b2: Tensor | None, activation: Activation
) -> bool:
    """Whether a recurrence is computed at once; arguments as `native.takes_all`."""
    if _is_looked_at() or not native.takes_all(x, h0, U, W, b, b2, activation):
        return False
    H, D = U.shape
    return _pays(x.numel() // D, H, D)


def is_whole_back(
    dh: Tensor,
    h: Tensor,
    x: Tensor | None,
    h0: Tensor | None,
    U: Tensor | None,
    W: Tensor,
    D: int,
    activation: Activation,
) -> bool:
    """Whether all gradients of a recurrence are computed at once; arguments as `native.backward_all`."""
    H = h.shape[-1]
    pays = not _is_looked_at() and h.numel() > 0 and _pays(h.numel() // H, H, D)
    return pays and activation.name in native.CODES and native.plain(dh, h, x, h0, U, W)


def _pays(rows: int, H: int, D: int) -> bool:
    """Whether a whole recurrence in C pays; rows is T · B."""
    if _wanted is not None:
        return _wanted == "whole"
    weights = H * (H + D)
    packing_pays = rows * LEAST_ROWS >= H or weights <= SMALL_WEIGHTS
    return packing_pays and (native.instructions() > 0 or rows * weights <= MOST_WORK)


def _is_looked_at() -> bool:
    """Whether somebody looks at every operator, a dispatch mode, forward mode or a compiler: there have to be some."""
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0 or torch.compiler.is_compiling()


@contextmanager
def use(name: str) -> Iterator[None]:
    """Choose a kernel wherever it can run, for tests and benchmarks; in this process, in all threads.

    Args:
        name: "whole", "native" or "eager". Where "whole" cannot run, "native" does, and where that cannot, "eager".

    Raises:
        ValueError: There is no such kernel, or it was not built.
    """
    global _wanted
    if name not in NAMES:
        raise ValueError(f"use: expected one of {', '.join(NAMES)}, got {name!r}")
    if name != "eager" and native.library() is None:
        raise ValueError(f"use: expected a kernel that was built, got {name}, which is {native.state()}")
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before
