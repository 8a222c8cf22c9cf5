"""The recurrence in C (native.c), for real numbers on CPUs: the same functions as eager.py, called through binding.c.

`forward` and `backward` are the sequential steps alone; `forward_all` and `backward_all` a whole recurrence with its
gradients, in one call each. The library is built with the package where there is a compiler; without one `library()` is
None and eager.py runs.
"""

from array import array
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_bptt.activations import Activation

CODES = {"tanh": 0, "sigmoid": 1, "relu": 2, "identity": 3}  # the enum of native.c
INSTRUCTIONS = ("what the compiler takes for granted", "AVX2", "AVX-512")  # by what manual_bptt_isa returns
VERSION = 4  # as binding.c's
SHARED = 1_000_000  # multiplications from which on several threads pay
Made = tuple[Tensor, Tensor | None, Tensor | None, bool]  # what `forward_all` returns
ANY = (2**20, 2**62, 2**62)  # limits that let every size through


@cache
def library() -> Any:
    """The compiled module, if it was built, can be loaded and is of this version; else None."""
    try:
        found = import_module("manual_bptt.kernels._native")
    except ImportError:
        return None
    return found if found.VERSION == VERSION else None


def _files() -> list[Path]:
    return [Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES]


@cache
def instructions() -> int:
    """Which of INSTRUCTIONS this machine has."""
    found = library()
    return 0 if found is None else int(found.isa())


def has_team() -> bool:
    """Whether there are several threads to share work: where torch brings a runtime with GNU's OpenMP interface.

    They are torch's own, so that those that wait for work do not stand in the way. None are left in a process that was
    forked: they stay behind in the other one.
    """
    found = library()
    return found is not None and bool(found.has_team())


def state() -> str:
    """What there is, in a few words."""
    if library() is None:
        if any(file.exists() for file in _files()):
            return "built, but of another version or machine: install the package again"
        return "not built; the installation leaves it out where there is no C compiler with Python's headers"
    return f"built, with {INSTRUCTIONS[instructions()]}{'' if has_team() else ', one thread'}"


def plain(values: tuple[Tensor | None, ...]) -> bool:
    """Whether tensors can be handed to C: float32 or float64, of one dtype, numbers in memory and nothing else.

    No subclass, not sparse, not negated lazily, of no transform, and at least one number each. None is nothing. The
    first one is a tensor.
    """
    found = library()
    return found is not None and bool(found.plain(values))


def takes(
    steps: Tensor, beside: Tensor, W: Tensor, activation: Activation, sizes: Sequence[int] | None, *, forward: bool
) -> bool:
    """Whether the sequential steps can be handed to C: plain, and of sizes that fit together.

    Whatever does not fit is left to torch's operators, which say what is wrong: C would read beyond the arrays.

    Args:
        steps: (T, B, H) or (N, H): a of the forward pass, h of the backward pass.
        beside: h0 (B, H) of the forward pass; dh, as steps, of the backward pass.
        W: (H, H).
        activation: Entry of ACTIVATIONS.
        sizes: None, or the number of sequences at each step.
        forward: Which pass it is.
    """
    if activation.name not in CODES or steps.numel() == 0:
        return False
    H = steps.shape[-1]
    B = steps.shape[-2] if sizes is None else sizes[0]
    return (
        steps.dim() == (3 if sizes is None else 2)
        and W.shape == (H, H)
        and beside.shape == ((B, H) if forward else steps.shape)
        and (sizes is None or (sum(sizes) == steps.shape[0] and _is_falling(sizes)))
        and plain((steps, beside, W))
    )


def _is_falling(sizes: Sequence[int]) -> bool:
    """Whether at every step some of the sequences of the step before run, as packed ones do."""
    return sizes[-1] > 0 and all(later <= earlier for earlier, later in pairwise(sizes))


def takes_all(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    b2: Tensor | None,
    activation: Activation,
    limits: tuple[int, int, int] = ANY,
) -> bool:
    """Whether `forward_all` would run; arguments as there."""
    found, f = library(), CODES.get(activation.name)
    if found is None or f is None:
        return False
    return bool(found.fits(x, h0, U, W, b, b2, f, instructions(), (*limits, SHARED)))


def forward(a: Tensor, h0: Tensor, W: Tensor, activation: Activation, sizes: Sequence[int] | None = None) -> Tensor:
    """Run F1 and F2 through time, as eager.forward; a is overwritten where it is contiguous."""
    a = a.contiguous()
    _run(0, a, h0.contiguous(), None, W, activation, sizes, None)
    return a


def backward(
    dh: Tensor,
    h: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None = None,
    xi: Sequence[float] | None = None,
) -> Tensor:
    """Run B3 and B4 back through time, as eager.backward."""
    da = torch.empty_like(h, memory_format=torch.contiguous_format)
    _run(1, h.contiguous(), dh.contiguous(), da, W, activation, sizes, xi)
    return da


def _run(
    backward: int,
    h: Tensor,
    first: Tensor,
    da: Tensor | None,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None,
    xi: Sequence[float] | None,
) -> None:
    if h.numel() == 0:
        return
    W = W.contiguous()
    T, B = h.shape[:2] if sizes is None else (len(sizes), sizes[0])
    library().run(
        backward,
        h.dtype == torch.float64,
        instructions(),
        SHARED,
        T,
        B,
        W.shape[0],
        CODES[activation.name],
        None if sizes is None else array("q", (0, *accumulate(sizes))).tobytes(),
        h.data_ptr(),
        first.data_ptr(),
        0 if da is None else da.data_ptr(),
        W.data_ptr(),
        None if xi is None else array("d", xi).tobytes(),
    )


def forward_all(
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
    limits: tuple[int, int, int] = ANY,
) -> Made | None:
    """Run F1 and F2 of a whole recurrence, with the sum of two biases.

    Whatever is not `plain`, does not fit together or is beyond the limits is left to torch's operators.

    Args:
        x: (T, B, D), or (B, D) for one step.
        h0: (B, H).
        U: (H, D).
        W: (H, H).
        b: (H,) or None.
        b2: As b.
        activation: Entry of ACTIVATIONS.
        copy: Gives the view of h that a copy of it looks like; None: no copy.
        last: Whether there is a copy of the last states too.
        grad: Whether the first copy is made only where one of the tensors asks for a gradient.
        limits: r, s and m: T · B ≥ H / r, or at most s numbers in U and W; and at most m multiplications.

    Returns:
        h, (T, B, H) or (B, H); the copy, or None; the last states, (1, B, H), or None; whether grad is on and one
        asks for a gradient. Or None: it cannot be handed to C.
    """
    found, f = library(), CODES.get(activation.name)
    if found is None or f is None:
        return None
    made: Made | None = found.forward(x, h0, U, W, b, b2, f, instructions(), (*limits, SHARED), copy, last, grad)
    return made


def backward_all(
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
    limits: tuple[int, int, int] = ANY,
) -> tuple[Tensor | None, ...] | None:
    """Run B3-B8 of a whole recurrence. What was kept may have been replaced by somebody's hooks: as `forward_all`.

    Args:
        dh: As h; None: nothing.
        dlast: Of the last states, beside dh, (1, B, H); None: nothing.
        h: (T, B, H), or (B, H) for one step.
        x: As h, with D numbers in place of H; None where dU is not needed.
        h0: (B, H); None where dW is not needed.
        U: (H, D); None where dx is not needed.
        W: (H, H).
        D: Numbers of an input.
        activation: Entry of ACTIVATIONS.
        needed: Which of the six are.
        limits: As `forward_all`.

    Returns:
        dx, dh0, dU, dW, db and db once more, each where it is needed. Or None: it cannot be handed to C.
    """
    found, f = library(), CODES.get(activation.name)
    if found is None or f is None:
        return None
    made: tuple[Tensor | None, ...] | None
    made = found.backward(dh, dlast, h, x, h0, U, W, D, f, instructions(), (*limits, SHARED), needed)
    return made


def apply(activation: str, values: Tensor, instruction_set: int | None = None) -> Tensor:
    """F of numbers, as the kernel computes it, in new storage; for whoever looks at its accuracy."""
    result = values.contiguous().clone()
    isa = instructions() if instruction_set is None else instruction_set
    library().apply(values.dtype == torch.float64, isa, CODES[activation], result.numel(), result.data_ptr())
    return result
