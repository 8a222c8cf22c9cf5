"""The sequential steps as torch operators: readable, for any device and dtype. Knows arrays, not autograd.

Vectors are rows, as recurrence.py says. `forward` and `backward` are the fast ones; the functional ones write nothing
in place. Every one takes all steps of all sequences in one of two layouts:

- (T, B, H), with sizes None: B sequences of T steps;
- (N, H), with sizes (B_1, ..., B_T): the rows of step 1, then those of step 2, and so on, of sequences of different
  lengths, longest first, so that those that still run at step t are the first B_t. N is the sum of the sizes.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from manual_bptt.activations import Activation


def forward(a: Tensor, h0: Tensor, W: Tensor, activation: Activation, sizes: Sequence[int] | None = None) -> Tensor:
    """Run F1 and F2 through time, in place.

    Args:
        a: (T, B, H) or (N, H) holding U x_t + b; overwritten with the states h_t.
        h0: (B, H), or (B_1, H).
        W: (H, H).
        activation: Entry of ACTIVATIONS.
        sizes: None for (T, B, H), else how many sequences run at each step.

    Returns:
        The same storage, now h.
    """
    W_transposed = W.t()
    h = h0
    for a_t in split(a, sizes):
        a_t.addmm_(h if sizes is None else h[: a_t.shape[0]], W_transposed)  # F1: a_t = (U x_t + b) + W h_{t-1}
        h = activation.apply_(a_t)  # F2
    return a


def functional_forward(
    a: Tensor, h0: Tensor, W: Tensor, activation: Activation, sizes: Sequence[int] | None = None
) -> Tensor:
    """Compute what `forward` computes and leave a as it is, so that it can be batched.

    Args and returns: as `forward`, but in new storage.
    """
    W_transposed = W.t()
    h = h0
    steps = []
    for a_t, running in zip(split(a, sizes), still_running(sizes, a.shape[0]), strict=True):
        h = activation.apply(torch.addmm(a_t, h if running is None else h[:running], W_transposed))  # F1 F2
        steps.append(h)
    return join(steps, sizes)


def backward(
    dh: Tensor,
    slope: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None = None,
    xi: Sequence[float] | None = None,
) -> Tensor:
    """Run B3 and B4 back through time, in place.

    Args:
        dh: (T, B, H) or (N, H), the part of dL/dh_t that comes from outside the recurrence (Vᵀ dL/do_t in B3).
        slope: As dh, f'(a_t); each step is turned into dL/da_t.
        W: (H, H).
        activation: Entry of ACTIVATIONS.
        sizes: As `forward`.
        xi: ξ_1 … ξ_T of B3; None: all are 1.

    Returns:
        The storage of slope, now da.
    """
    steps, outside = split(slope, sizes), split(dh, sizes)
    running = still_running(sizes, len(steps))
    activation.times(steps[-1], outside[-1], out=steps[-1])  # B4 at t = T, where nothing comes from later
    dh_t = torch.empty_like(steps[-1])
    for t in range(len(steps) - 2, -1, -1):
        on = running[t + 1]
        if on is not None:
            dh_t = outside[t].clone()  # B3 of a sequence that ends at t
            dh_t[:on].addmm_(steps[t + 1], W, alpha=1.0 if xi is None else xi[t + 1])  # B3 of one that goes on
        elif xi is None:
            torch.addmm(outside[t], steps[t + 1], W, out=dh_t)  # B3 with ξ = 1, which costs less without being said
        elif xi[t + 1] != 0:
            torch.addmm(outside[t], steps[t + 1], W, alpha=xi[t + 1], out=dh_t)  # B3: reverses F1's W h_{t-1}
        else:
            activation.times(steps[t], outside[t], out=steps[t])  # B4 where nothing is let through
            continue
        activation.times(steps[t], dh_t, out=steps[t])  # B4: reverses F2
    return slope


def functional_backward(
    dh: Tensor,
    slope: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None = None,
    xi: Sequence[float] | None = None,
) -> Tensor:
    """Compute what `backward` computes with nothing written in place: it can be differentiated again and batched.

    Args and returns: as `backward`, but in new storage.
    """
    slopes, outside = split(slope, sizes), split(dh, sizes)
    running = still_running(sizes, len(slopes))
    xi = [1.0] * len(slopes) if xi is None else xi
    da_t = activation.times(slopes[-1], outside[-1])  # B4
    steps = [da_t]
    for t in range(len(slopes) - 2, -1, -1):
        on = running[t + 1]
        if on is None:
            dh_t = torch.addmm(outside[t], da_t, W, alpha=xi[t + 1]) if xi[t + 1] != 0 else outside[t]  # B3
        else:
            dh_t = torch.cat((torch.addmm(outside[t][:on], da_t, W, alpha=xi[t + 1]), outside[t][on:]))
        da_t = activation.times(slopes[t], dh_t)  # B4
        steps.append(da_t)
    return join(steps[::-1], sizes)


def tangent(
    linear: Tensor,
    h0: Tensor,
    slope: Tensor,
    W: Tensor,
    activation: Activation,
    sizes: Sequence[int] | None = None,
    xi: Sequence[float] | None = None,
) -> Tensor:
    """Run T1 and T2 through time, with nothing written in place.

    Args:
        linear: (T, B, H) or (N, H), the tangent of a_t but for the part that comes through h_{t-1}.
        h0: (B, H) or (B_1, H), the tangent of h_0.
        slope: As linear, f'(a_t).
        W: (H, H).
        activation: Entry of ACTIVATIONS.
        sizes: As `forward`.
        xi: As `backward`: the tangents that go with its truncated gradients.

    Returns:
        The tangents of the states, shaped as linear.
    """
    W_transposed = W.t()
    h = h0
    steps = []
    linears, slopes = split(linear, sizes), split(slope, sizes)
    counts = still_running(sizes, len(slopes))
    xi = [1.0] * len(slopes) if xi is None else xi
    for linear_t, slope_t, running, xi_t in zip(linears, slopes, counts, xi, strict=True):
        before = h if running is None else h[:running]
        h = activation.times(slope_t, torch.addmm(linear_t, before, W_transposed, alpha=xi_t))  # T1 T2
        steps.append(h)
    return join(steps, sizes)


def split(values: Tensor, sizes: Sequence[int] | None) -> Sequence[Tensor]:
    """Views of the single steps, in their order."""
    return values.unbind(0) if sizes is None else torch.split_with_sizes(values, list(sizes))


def join(steps: Sequence[Tensor], sizes: Sequence[int] | None) -> Tensor:
    """All steps in one new tensor: undoes `split`."""
    return torch.stack(tuple(steps)) if sizes is None else torch.cat(tuple(steps))


def still_running(sizes: Sequence[int] | None, T: int) -> Sequence[int | None]:
    """How many of the sequences of the step before run at each step; None where all of them do."""
    if sizes is None:
        return [None] * T
    return [None, *(None if n == before else n for before, n in pairwise(sizes))]
