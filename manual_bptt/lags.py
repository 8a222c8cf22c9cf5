"""B3 split by lag, B9: what the loss of step t + j contributes to dL/dh_t, for all t at once; and windows made of it.

Layouts, letters and row vectors as in recurrence.py and kernels/eager.py. Everything is out of place: it can be
differentiated and batched.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from manual_bptt.activations import Activation
from manual_bptt.kernels.eager import join, split

Sizes = Sequence[int] | None


def by_lag(dh: Tensor, slope: Tensor, W: Tensor, activation: Activation, sizes: Sizes = None) -> Iterator[Tensor]:
    """Give, lag by lag, what comes from the outside gradient of j steps later: one product each over all steps (B9).

    Args:
        dh: (T, B, H) or (N, H), the part of dL/dh_t from outside the recurrence.
        slope: As dh, f'(a_t).
        W: (H, H).
        activation: Entry of ACTIVATIONS.
        sizes: None, or the number of sequences at each step.

    Yields:
        For j = 0, 1, …, T - 1: the share of lag j in dL/dh_t, t = 1 … T - j, (T - j, B, H); as rows, of the sequences
        that run at step t + j. They sum up to dL/dh_t (`add_steps`).
    """
    T = len(split(slope, sizes))
    share = dh
    for lag in range(T):
        yield share
        if lag + 1 < T:
            passed = activation.times(_still_running(slope, sizes, lag), share)  # B4 of this share
            share = _without_first_step(passed, sizes, lag) @ W


def within(dh: Tensor, slope: Tensor, W: Tensor, activation: Activation, sizes: Sizes, k: int) -> Tensor:
    """dL/dh_t (T, B, H) of the losses at most k steps later: the shares of the lags 0 … k."""
    shares = by_lag(dh, slope, W, activation, sizes)
    total = next(shares)
    for lag, share in enumerate(islice(shares, k), 1):
        total = add_steps(total, share, sizes, lag)
    return total


def tangent(
    linear: Tensor, h0: Tensor, slope: Tensor, W: Tensor, activation: Activation, sizes: Sizes, k: int
) -> Tensor:
    """T1 and T2 over paths of at most k steps: the tangents (T, B, H) that go with `within`.

    Args:
        linear: (T, B, H) or (N, H), the tangent of a_t but for the part that comes through h_{t-1}.
        h0: (B, H) or (B_1, H), the tangent of h_0: it is the state before the first step.
        slope: As linear, f'(a_t).
        W: (H, H).
        activation: Entry of ACTIVATIONS.
        sizes: None, or the number of sequences at each step.
        k: How many steps a path may have.
    """
    W_transposed = W.t()
    total = activation.times(slope, linear)
    moved = list(split(total, sizes))
    before = [h0, *moved]  # tangents by paths of one length, of the states 0 … T
    slopes = split(slope, sizes)
    for _ in range(min(k, len(slopes))):
        first = len(slopes) - len(before) + 1
        before = [
            activation.times(slope_t, h_t[: slope_t.shape[0]] @ W_transposed)
            for slope_t, h_t in zip(slopes[first:], before, strict=False)
        ]
        moved = [*moved[:first], *(old + new for old, new in zip(moved[first:], before, strict=True))]
    return join(moved, sizes)


def add_steps(total: Tensor, share: Tensor, sizes: Sizes, lag: int) -> Tensor:
    """Add what `by_lag` gives at a lag to the steps that it belongs to."""
    if sizes is None:
        count = share.shape[0]
        return torch.cat((total[:count] + share, total[count:]))
    shares = torch.split_with_sizes(share, list(sizes[lag:]))
    steps = [
        torch.cat((all_[: part.shape[0]] + part, all_[part.shape[0] :]))
        for all_, part in zip(split(total, sizes), shares, strict=False)
    ]
    return torch.cat((*steps, *split(total, sizes)[len(steps) :]))


def _still_running(values: Tensor, sizes: Sizes, lag: int) -> Tensor:
    """Of each step t the sequences that run at step t + lag, without the last steps."""
    if sizes is None:
        return values[: values.shape[0] - lag]
    steps = split(values, sizes)
    return torch.cat([values_t[:running] for values_t, running in zip(steps, sizes[lag:], strict=False)])


def _without_first_step(values: Tensor, sizes: Sizes, lag: int) -> Tensor:
    """Drop step 1 of what `by_lag` gives at a lag."""
    return values[1:] if sizes is None else values[sizes[lag] :]
