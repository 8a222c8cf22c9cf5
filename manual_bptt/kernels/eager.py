"""The sequential steps as torch operators: readable, for any device and dtype. Knows arrays, not autograd.

Vectors are rows, as recurrence.py says. `forward` and `backward` are the fast ones; the functional ones write nothing
in place.
"""

import torch
from torch import Tensor

from manual_bptt.activations import Activation


def forward(a: Tensor, h0: Tensor, W: Tensor, activation: Activation) -> Tensor:
    """Run F1 and F2 through time, in place.

    Args:
        a: (T, B, H) holding U x_t + b; overwritten with the states h_t.
        h0: (B, H).
        W: (H, H).
        activation: Entry of ACTIVATIONS.

    Returns:
        The same storage, now h (T, B, H).
    """
    W_transposed = W.t()
    h = h0
    for a_t in a.unbind(0):
        a_t.addmm_(h, W_transposed)  # F1: a_t = (U x_t + b) + W h_{t-1}
        h = activation.apply_(a_t)  # F2
    return a


def functional_forward(a: Tensor, h0: Tensor, W: Tensor, activation: Activation) -> Tensor:
    """Compute what `forward` computes and leave a as it is, so that it can be batched.

    Args and returns: as `forward`, but in new storage.
    """
    W_transposed = W.t()
    h = h0
    steps = []
    for a_t in a.unbind(0):
        h = activation.apply_(torch.addmm(a_t, h, W_transposed))  # F1 F2
        steps.append(h)
    return torch.stack(steps)


def backward(dh: Tensor, h: Tensor, W: Tensor, activation: Activation) -> Tensor:
    """Run B3 and B4 back through time.

    Args:
        dh: (T, B, H), the part of dL/dh_t that comes from outside the recurrence (Vᵀ dL/do_t in B3).
        h: (T, B, H), the states.
        W: (H, H).
        activation: Entry of ACTIVATIONS.

    Returns:
        da (T, B, H), a new tensor.
    """
    da = activation.slope(h)  # each step starts as f'(a_t) and is turned into dL/da_t in place
    steps, outside = da.unbind(0), dh.unbind(0)
    activation.times(steps[-1], outside[-1], out=steps[-1])  # B4 at t = T, where nothing comes from later
    dh_t = torch.empty_like(steps[-1])
    for t in range(len(steps) - 2, -1, -1):
        torch.addmm(outside[t], steps[t + 1], W, out=dh_t)  # B3: reverses F1's W h_{t-1}
        activation.times(steps[t], dh_t, out=steps[t])  # B4: reverses F2
    return da


def functional_backward(dh: Tensor, h: Tensor, W: Tensor, activation: Activation) -> Tensor:
    """Compute what `backward` computes with nothing written in place: it can be differentiated again and batched.

    Args and returns: as `backward`.
    """
    slope = activation.slope(h)
    da_t = activation.times(slope[-1], dh[-1])  # B4
    steps = [da_t]
    for t in range(h.shape[0] - 2, -1, -1):
        dh_t = torch.addmm(dh[t], da_t, W)  # B3
        da_t = activation.times(slope[t], dh_t)  # B4
        steps.append(da_t)
    return torch.stack(steps[::-1])


def tangent(linear: Tensor, h0: Tensor, slope: Tensor, W: Tensor, activation: Activation) -> Tensor:
    """Run T1 and T2 through time, with nothing written in place.

    Args:
        linear: (T, B, H), the tangent of a_t but for the part that comes through h_{t-1}.
        h0: (B, H), the tangent of h_0.
        slope: (T, B, H), f'(a_t).
        W: (H, H).
        activation: Entry of ACTIVATIONS.

    Returns:
        The tangents of the states, (T, B, H).
    """
    W_transposed = W.t()
    h = h0
    steps = []
    for linear_t, slope_t in zip(linear.unbind(0), slope.unbind(0), strict=True):
        h = activation.times(slope_t, torch.addmm(linear_t, h, W_transposed))  # T1 T2
        steps.append(h)
    return torch.stack(steps)
