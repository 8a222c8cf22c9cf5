"""The nonlinearities f of F2: each one's f and its slope f'. One table; nothing here knows of time or of autograd."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """One nonlinearity: f, and what B4 needs of it.

    Attributes:
        name: Its name in the table.
        apply: F2, h = f(a).
        apply_: The same in place: overwrites a with h and returns it.
        slope: f'(a), or what `times` takes for it, computed from h = f(a) alone, so that a need not be kept; in new
            storage, same shape as h, and differentiable like it.
        times: B4, (slope, dh, *, out=None) -> slope ⊙ dh.
        holomorphic: Whether f is one for complex numbers too.
        steepest: γ, the largest slope that f has.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    times: Callable[..., Tensor] = torch.mul
    holomorphic: bool = True
    steepest: float = 1.0


_threshold: Any = torch.ops.aten.threshold_backward


def _identity(a: Tensor) -> Tensor:
    return a


def _tanh_slope(h: Tensor) -> Tensor:
    return torch.addcmul(h.new_ones(()), h, h, value=-1)  # 1 - h², in one pass over h


def _sigmoid_slope(h: Tensor) -> Tensor:
    return h * (1 - h)


def _select(slope: Tensor, dh: Tensor, *, out: Tensor | None = None) -> Any:
    """Give 0 where the slope is at most 0 and dh elsewhere, a NaN too.

    No product: an inactive unit stops an infinite dh, and what stands for the slope may be h itself, [h > 0] or not.
    """
    if out is None:
        return _threshold(dh, slope, 0)
    return _threshold.grad_input(dh, slope, 0, grad_input=out)  # three times as fast as torch.where


ACTIVATIONS = {
    entry.name: entry
    for entry in (
        Activation("tanh", torch.tanh, torch.tanh_, _tanh_slope),
        Activation("sigmoid", torch.sigmoid, torch.sigmoid_, _sigmoid_slope, steepest=0.25),
        Activation("relu", torch.relu, torch.relu_, torch.clone, _select, holomorphic=False),
        Activation("identity", _identity, _identity, torch.ones_like),
    )
}
