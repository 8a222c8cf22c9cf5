"""The sequential steps in C (native.c), for real numbers on CPUs: the same two functions as eager.py, called by ctypes.

The library is built with the package where there is a compiler; without one `library()` is None and eager.py runs.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from manual_bptt.activations import Activation

CODES = {"tanh": 0, "sigmoid": 1, "relu": 2, "identity": 3}  # the enum of native.c
DTYPES = {torch.float32: 0, torch.float64: 1}
INSTRUCTIONS = ("what the compiler takes for granted", "AVX2", "AVX-512")  # by what manual_bptt_isa returns
SHARED = 30_000_000  # multiplications from which on starting threads pays: below a millisecond of work it does not
_int, _long, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, if it was built and can be loaded."""
    for suffix in EXTENSION_SUFFIXES:
        file = Path(__file__).with_name(f"_native{suffix}")
        if file.exists():
            try:
                found = ctypes.CDLL(str(file))
                found.manual_bptt_run.argtypes = (_int,) * 4 + (_long, _long, _int) + (_pointer,) * 5
                found.manual_bptt_apply.argtypes = (_int, _int, _int, _long, _pointer)
            except (OSError, AttributeError):
                return None
            return found
    return None


@cache
def instructions() -> int:
    """Which of INSTRUCTIONS this machine has."""
    found = library()
    return 0 if found is None else int(found.manual_bptt_isa())


def state() -> str:
    """What there is, in a few words."""
    if library() is None:
        return "not built; the installation leaves it out where there is no C compiler"
    return f"built, with {INSTRUCTIONS[instructions()]}"


def takes(
    steps: Tensor, beside: Tensor, W: Tensor, activation: Activation, sizes: Sequence[int] | None, *, forward: bool
) -> bool:
    """Whether these can be handed to C: plain, real, of one dtype, on the CPU, and of sizes that fit together.

    Whatever does not fit is left to torch's operators, which say what is wrong: C would read beyond the arrays.

    Args:
        steps: (T, B, H) or (N, H), what is overwritten.
        beside: h0 (B, H) of the forward pass; dh, as steps, of the backward pass.
        W: (H, H).
        activation: Entry of ACTIVATIONS.
        sizes: None, or the number of sequences at each step.
        forward: Which pass it is.
    """
    if activation.name not in CODES or steps.dtype not in DTYPES or library() is None or steps.numel() == 0:
        return False
    H = steps.shape[-1]
    B = steps.shape[-2] if sizes is None else sizes[0]
    fits = (
        steps.dim() == (3 if sizes is None else 2)
        and W.shape == (H, H)
        and beside.shape == ((B, H) if forward else steps.shape)
        and (sizes is None or sum(sizes) == steps.shape[0])
    )
    return fits and all(
        type(each) in (Tensor, torch.nn.Parameter)
        and each.dtype == steps.dtype
        and each.device.type == "cpu"
        and not each.is_neg()
        for each in (steps, beside, W)
    )


def forward(a: Tensor, h0: Tensor, W: Tensor, activation: Activation, sizes: Sequence[int] | None = None) -> Tensor:
    """Run F1 and F2 through time, as eager.forward; a is overwritten where it is contiguous."""
    a = a.contiguous()
    _run(0, a, h0.contiguous(), W, activation, sizes, None)
    return a


def backward(
    dh: Tensor,
    slope: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None = None,
    xi: Sequence[float] | None = None,
) -> Tensor:
    """Run B3 and B4 back through time, as eager.backward; slope is overwritten where it is contiguous."""
    slope = slope.contiguous()
    _run(1, slope, dh.contiguous(), W, activation, sizes, xi)
    return slope


def _run(
    backward: int,
    steps: Tensor,
    first: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None,
    xi: Sequence[float] | None,
) -> None:
    found = library()
    assert found is not None
    if steps.numel() == 0:
        return
    H = W.shape[0]
    if sizes is None:
        T, B = steps.shape[:2]
        starts = (_long * (T + 1))(*range(0, (T + 1) * B, B))
    else:
        T, B = len(sizes), sizes[0]
        starts = (_long * (T + 1))(0, *accumulate(sizes))
    threads = 1
    if B > 1:
        threads = torch.get_num_threads() if steps.numel() * H > SHARED else 1
    W = W.contiguous()
    weights = None if xi is None else (ctypes.c_double * T)(*xi)
    failed = found.manual_bptt_run(
        backward,
        DTYPES[steps.dtype],
        instructions(),
        threads,
        T,
        H,
        CODES[activation.name],
        ctypes.addressof(starts),
        steps.data_ptr(),
        first.data_ptr(),
        W.data_ptr(),
        None if weights is None else ctypes.addressof(weights),
    )
    if failed:
        raise MemoryError(f"recurrence: expected room for a copy of W, ({H}, {H}), got none")


def apply(activation: str, values: Tensor, instruction_set: int | None = None) -> Tensor:
    """F of numbers, as the kernel computes it, in new storage; for whoever looks at its accuracy."""
    found = library()
    assert found is not None
    result = values.contiguous().clone()
    isa = instructions() if instruction_set is None else instruction_set
    found.manual_bptt_apply(DTYPES[values.dtype], isa, CODES[activation], result.numel(), result.data_ptr())
    return result
