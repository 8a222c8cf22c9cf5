"""The recurrence in C (native.c), for real numbers on CPUs: the same functions as eager.py, called by ctypes.

`forward` and `backward` are the sequential steps alone; `forward_all` and `backward_all` a whole recurrence with its
gradients, in one call each. The library is built with the package where there is a compiler; without one `library()` is
None and eager.py runs.
"""

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_bptt.activations import Activation
from manual_bptt.transforms import are_numbers_in_memory

CODES = {"tanh": 0, "sigmoid": 1, "relu": 2, "identity": 3}  # the enum of native.c
INSTRUCTIONS = ("what the compiler takes for granted", "AVX2", "AVX-512")  # by what manual_bptt_isa returns
VERSION = 3  # as manual_bptt_version
DTYPES = (torch.float32, torch.float64)
SHARED = 1_000_000  # multiplications from which on several threads pay
_FORWARD, _BACKWARD = struct.Struct("3qP5q9P").pack, struct.Struct("3qP5q13P").pack  # the structs of native.c
_int, _long, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, if it was built, can be loaded and is of this version."""
    for file in _files():
        if file.exists():
            try:
                found = ctypes.CDLL(str(file))
                if found.manual_bptt_version() != VERSION:
                    return None
                found.manual_bptt_run.argtypes = (_int,) * 4 + (_pointer,) + (_long,) * 3 + (_int,) + (_pointer,) * 6
                found.manual_bptt_forward_all.argtypes = (ctypes.c_char_p,)
                found.manual_bptt_backward_all.argtypes = (ctypes.c_char_p,)
                found.manual_bptt_apply.argtypes = (_int, _int, _int, _long, _pointer)
            except (OSError, AttributeError):
                return None
            return found
    return None


def _files() -> list[Path]:
    return [Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES]


@cache
def instructions() -> int:
    """Which of INSTRUCTIONS this machine has."""
    found = library()
    return 0 if found is None else int(found.manual_bptt_isa())


def team() -> int | None:
    """GOMP_parallel, by which torch starts its own threads: those that wait for work do not then stand in the way.

    None, for one thread, where torch brings another runtime than one with GNU's OpenMP interface, and in a process that
    was forked: the runtime's threads stay behind in the other one.
    """
    return None if _is_forked else _team()


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


_is_forked = False
if hasattr(os, "register_at_fork"):  # not on Windows, where there is no fork
    os.register_at_fork(after_in_child=_note_fork)


@cache
def _team() -> int | None:
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, _pointer).value
    except (OSError, AttributeError, TypeError):
        return None


def state() -> str:
    """What there is, in a few words."""
    if library() is None:
        if any(file.exists() for file in _files()):
            return "built, but of another version or machine: install the package again"
        return "not built; the installation leaves it out where there is no C compiler"
    return f"built, with {INSTRUCTIONS[instructions()]}{'' if team() else ', one thread'}"


def plain(values: tuple[Tensor | None, ...]) -> bool:
    """Whether tensors can be handed to C: real, of one dtype, numbers in memory and nothing else. None is nothing.

    The first one is a tensor.
    """
    dtype = values[0].dtype  # type: ignore[union-attr]
    return dtype in DTYPES and library() is not None and are_numbers_in_memory(dtype, values)


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
    x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, b2: Tensor | None, activation: Activation
) -> bool:
    """Whether a whole recurrence can be handed to C: as `takes`.

    Args:
        x: (T, B, D), or (B, D) for one step.
        h0: (B, H).
        U: (H, D).
        W: (H, H).
        b: (H,) or None.
        b2: As b.
        activation: Entry of ACTIVATIONS.
    """
    if activation.name not in CODES or x.dim() not in (2, 3) or U.dim() != 2:
        return False
    H, D = U.shape
    B, features = x.shape[-2:]
    return (
        features == D
        and W.shape == (H, H)
        and h0.shape == (B, H)
        and (b is None or b.shape == (H,))
        and (b2 is None or b2.shape == (H,))
        and plain((x, h0, U, W, b, b2))
    )


def takes_all_back(
    dh: Tensor | None,
    dlast: Tensor | None,
    h: Tensor,
    x: Tensor | None,
    h0: Tensor | None,
    U: Tensor | None,
    W: Tensor,
    D: int,
    activation: Activation,
) -> bool:
    """Whether the gradients of a whole recurrence can be handed to C: as `takes`; arguments as `backward_all`.

    What was kept may have been replaced by somebody's hooks.
    """
    if activation.name not in CODES or h.dim() not in (2, 3):
        return False
    shape = h.shape
    B, H = shape[-2:]
    return (
        W.shape == (H, H)
        and (dh is None or dh.shape == shape)
        and (dlast is None or dlast.shape == (1, B, H))
        and (x is None or x.shape == (*shape[:-1], D))
        and (h0 is None or h0.shape == (B, H))
        and (U is None or U.shape == (H, D))
        and plain((h, dh, dlast, x, h0, U, W))
    )


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
    found: Any = library()
    if h.numel() == 0:
        return
    H = W.shape[0]
    starts = None
    if sizes is None:
        T, B = h.shape[:2]
    else:
        T, B = len(sizes), sizes[0]
        starts = (_long * (T + 1))(0, *accumulate(sizes))
    threads = _threads(h.numel() * H)
    weights = None if xi is None else (ctypes.c_double * T)(*xi)
    W = W.contiguous()
    failed = found.manual_bptt_run(
        backward,
        h.dtype == torch.float64,
        instructions(),
        threads,
        team(),
        T,
        B,
        H,
        CODES[activation.name],
        None if starts is None else ctypes.addressof(starts),
        h.data_ptr(),
        first.data_ptr(),
        None if da is None else da.data_ptr(),
        W.data_ptr(),
        None if weights is None else ctypes.addressof(weights),
    )
    if failed:
        raise MemoryError(f"recurrence: expected room for a copy of W, ({H}, {H}), got none")


def _threads(multiplications: int) -> int:
    """How many threads share some work."""
    return min(torch.get_num_threads(), 64) if multiplications >= SHARED and team() else 1


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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run F1 and F2 of a whole recurrence, with the sum of two biases; arguments as `takes_all`.

    Return h (T, B, H) and, where asked for, a copy of it and one of the last states, (1, B, H). copy gives the
    view of h that the copy looks like.
    """
    found: Any = library()
    *steps, B, D = x.shape
    T = steps[0] if steps else 1
    H = W.shape[0]
    x, h0, U, W = x.contiguous(), h0.contiguous(), U.contiguous(), W.contiguous()
    b, b2 = b if b is None else b.contiguous(), b2 if b2 is None else b2.contiguous()
    h = x.new_empty(*steps, B, H)
    copied = None if copy is None else torch.empty_like(copy(h))
    ending = x.new_empty(1, B, H) if last else None
    failed = found.manual_bptt_forward_all(
        _FORWARD(
            x.dtype is torch.float64,
            instructions(),
            _threads(T * B * H * (H + D)),
            team() or 0,
            T,
            B,
            D,
            H,
            CODES[activation.name],
            x.data_ptr(),
            h0.data_ptr(),
            U.data_ptr(),
            W.data_ptr(),
            0 if b is None else b.data_ptr(),
            0 if b2 is None else b2.data_ptr(),
            h.data_ptr(),
            0 if copied is None else copied.data_ptr(),
            0 if ending is None else ending.data_ptr(),
        )
    )
    if failed:
        raise MemoryError(f"recurrence: expected room for copies of U, ({H}, {D}), and W, ({H}, {H}), got none")
    return h, copied, ending


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
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Run B3-B8 of a whole recurrence. Return dx, dh0, dU, dW, db and db once more, each where it is needed.

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
    """
    found: Any = library()
    *steps, B, H = h.shape
    T = steps[0] if steps else 1
    need_dx, need_dh0, need_dU, need_dW, need_db, need_db2 = needed
    given = [each if each is None else each.contiguous() for each in (dh, dlast, h, x, h0, U, W)]
    made = (
        h.new_empty(*steps, B, D) if need_dx else None,
        h.new_empty(B, H) if need_dh0 else None,
        h.new_empty(H, D) if need_dU else None,
        h.new_empty(H, H) if need_dW else None,
        h.new_empty(H) if need_db else None,
        h.new_empty(H) if need_db2 else None,
    )
    failed = found.manual_bptt_backward_all(
        _BACKWARD(
            h.dtype is torch.float64,
            instructions(),
            _threads(T * B * H * (H + D)),
            team() or 0,
            T,
            B,
            D,
            H,
            CODES[activation.name],
            *[0 if each is None else each.data_ptr() for each in given],
            *[0 if each is None else each.data_ptr() for each in made],
        )
    )
    if failed:
        raise MemoryError(f"recurrence: expected room for copies of ({', '.join(map(str, h.shape))}), got none")
    return made


def apply(activation: str, values: Tensor, instruction_set: int | None = None) -> Tensor:
    """F of numbers, as the kernel computes it, in new storage; for whoever looks at its accuracy."""
    found: Any = library()
    result = values.contiguous().clone()
    isa = instructions() if instruction_set is None else instruction_set
    found.manual_bptt_apply(values.dtype == torch.float64, isa, CODES[activation], result.numel(), result.data_ptr())
    return result
