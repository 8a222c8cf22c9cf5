"""How a recurrence is run, and which way is taken.

             device, dtype             what is asked for                sizes
    whole    CPU, float32 or float64   one T for all, full BPTT         T · B ≥ H / 32, or a small U and W;
                                                                        without AVX2 small work alone
    native   CPU, float32 or float64   also packed, padded, truncated   T ≥ 4 and T · B ≥ H / 32
    eager    any                       any, also where somebody looks   any

    whole    in C: the inputs, the sequential steps and all gradients in one call a pass
    native   in C: the sequential steps alone, between torch's operators
    eager    as torch operators, to be read

The first that fits is taken. The limits were measured on an AVX-512 machine, against each other.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from manual_bptt.activations import ACTIVATIONS, Activation
from manual_bptt.kernels import native
from manual_bptt.transforms import is_looked_at

NAMES = ("whole", "native", "eager")
LEAST_STEPS = 4  # T from which on native pays: for fewer, a call of an operator each costs as much
LEAST_ROWS = 32  # H over this is the number of steps of sequences from which on packing W pays
SMALL_WEIGHTS = 65_536  # numbers in U and W up to which packing costs less than the calls that are saved
MOST_WORK = 1_000_000  # multiplications of a whole recurrence without AVX2: torch's matrix product is faster than ours
LIMITS, LIMITS_WITHOUT_AVX2 = (LEAST_ROWS, SMALL_WEIGHTS, 2**62), (LEAST_ROWS, SMALL_WEIGHTS, MOST_WORK)
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
    if _wanted == "eager" or is_looked_at() or not native.takes(steps, beside, W, activation, sizes, forward=forward):
        return "eager"
    if _wanted is not None:
        return "native"
    H = steps.shape[-1]
    T = steps.shape[0] if sizes is None else len(sizes)
    return "native" if T >= LEAST_STEPS and steps.numel() // H * LEAST_ROWS >= H else "eager"


def is_whole(
    x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, b2: Tensor | None, activation: Activation
) -> bool:
    """Whether `forward_whole` computes a recurrence; arguments as there."""
    limits = None if is_looked_at() else _limits()
    return limits is not None and native.takes_all(x, h0, U, W, b, b2, activation, limits)


def forward_whole(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    b2: Tensor | None,
    activation: Activation,
    copy: Callable[[Tensor], Tensor] | None = None,
    last: bool = False,
    grad: bool = False,
) -> native.Made | None:
    """Compute a recurrence at once, where that is the way that is taken; else None. As `native.forward_all`."""
    limits = None if is_looked_at() else _limits()  # Dynamo, which looks on, does not come to what is cached there
    return None if limits is None else native.forward_all(x, h0, U, W, b, b2, activation, copy, last, grad, limits)


def backward_whole(
    dh: Tensor | None,
    dlast: Tensor | None,
    h: Tensor,
    x: Tensor | None,
    h0: Tensor | None,
    U: Tensor | None,
    W: Tensor,
    D: int,
    activation: Activation,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...] | None:
    """Compute all gradients of a recurrence at once, where that is the way; else None. As `native.backward_all`."""
    limits = None if is_looked_at() else _limits()
    return None if limits is None else native.backward_all(dh, dlast, h, x, h0, U, W, D, activation, needed, limits)


def taken(T: int, B: int, D: int, H: int, dtype: torch.dtype, device: torch.device) -> str:
    """How a recurrence with these sizes, sequences of one length, full BPTT and tanh is run, if nobody looks on."""
    x, h0, U, W, b = (
        torch.empty(shape, dtype=dtype, device=device) for shape in ((T, B, D), (B, H), (H, D), (H, H), (H,))
    )
    if is_whole(x, h0, U, W, b, None, ACTIVATIONS["tanh"]):
        return "whole"
    return chosen(x.new_empty((T, B, H)), h0, W, ACTIVATIONS["tanh"], forward=True)


def _limits() -> tuple[int, int, int] | None:
    """Where a whole recurrence in C pays, as `native.forward_all` takes it; None: nowhere."""
    if _wanted is not None:
        return native.ANY if _wanted == "whole" else None
    return LIMITS if native.instructions() > 0 else LIMITS_WITHOUT_AVX2


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
