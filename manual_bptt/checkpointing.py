"""The recurrence with less memory: every k-th state is kept, and the others are computed again in the backward pass.

B11; Chen and others, Training Deep Nets with Sublinear Memory Cost, 2016. The k steps after a kept state are a
recurrence of their own, which begins at that state: its dh0 (B8) is what comes down on the last step of the piece
before (B3).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_bptt.autocast import without_autocast
from manual_bptt.recurrence import Recurrence, Settings, all_gradients, states
from manual_bptt.transforms import apply

Every = int | bool | None


def check(function: str, every: Every) -> None:
    """Check checkpoint_every.

    Raises:
        TypeError: It is neither an int, nor True, False or None.
        ValueError: It is below 1.
    """
    if every is not None and not isinstance(every, (int, bool)):
        raise TypeError(f"{function}: expected checkpoint_every to be an int, True or None, got {type(every).__name__}")
    if every is not None and not isinstance(every, bool) and every < 1:
        raise ValueError(f"{function}: expected checkpoint_every of at least 1, got {every}")


def steps_of_a_piece(every: Every, T: int) -> int:
    """K for T steps; True: √T, rounded up, at which the kept states and those of a piece are about as many."""
    if every is True:
        return isqrt(T - 1) + 1
    return T if not every else min(every, T)


class Checkpointed(Function):
    """F1 F2, backward B3-B8, as `recurrence.Recurrence` without a forward mode.

    Kept until backward: x, h0, U, W, the biases, every k-th state, and `ended` where there is one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        U: Tensor,
        W: Tensor,
        b: Tensor | None,
        b2: Tensor | None,
        ended: Tensor | None,
        settings: Settings,
        k: int,
    ) -> Tensor:
        """States h (T, B, H)."""
        h = states(x, h0, U, W, b, b2, ended, settings)
        ctx.settings, ctx.k = settings, k
        rows = _rows(settings, len(x))
        kept = [h[rows[t - 1] : rows[t]] for t in range(k, len(rows) - 1, k)]
        ctx.save_for_backward(x, h0, U, W, b, b2, ended, torch.cat(kept) if kept else None)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, each computed only where somebody asked for it."""
        x, h0, U, W, b, b2, ended, kept = ctx.saved_tensors
        settings, needed = ctx.settings, ctx.needs_input_grad[:6]
        with without_autocast(dh.device):
            if torch.is_grad_enabled() or settings.window is not None or settings.observe is not None:
                # all at once: somebody differentiates again, reaches across pieces or looks at every step
                h = apply(Recurrence, x, h0, U, W, b, b2, ended, replace(settings, observe=None))
                found = all_gradients(dh, None, h, x, h0, U, W, U.shape[1], ended, settings, needed)
            else:
                found = _by_pieces(dh, x, h0, U, W, b, b2, ended, kept, settings, ctx.k, needed)
        return *found, None, None, None


def _rows(settings: Settings, T: int) -> list[int]:
    """Where the rows of every step begin in x and h, and where the last one ends: (T, B, D) has a row for each step."""
    return list(range(T + 1)) if settings.sizes is None else [0, *accumulate(settings.sizes)]


def _by_pieces(
    dh: Tensor,
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    b2: Tensor | None,
    ended: Tensor | None,
    kept: Tensor | None,
    settings: Settings,
    k: int,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """B11: one piece after the other, from the last to the first."""
    need_dx, need_dh0, *of_parameters = needed
    rows = _rows(settings, len(x))
    starts = list(range(0, len(rows) - 1, k))
    sums: list[Tensor | None] = [None] * len(of_parameters)
    pieces: list[Tensor] = []
    carry = None
    place = 0 if kept is None else len(kept)
    for start in reversed(starts):
        stop = min(start + k, len(rows) - 1)
        piece = slice(rows[start], rows[stop])
        before = h0
        if start > 0:
            assert kept is not None
            size = rows[start] - rows[start - 1]
            place -= size
            before = kept[place : place + size]
            before = before[0] if settings.sizes is None else before[: settings.sizes[start]]
        own = replace(
            settings,
            sizes=None if settings.sizes is None else settings.sizes[start:stop],
            xi=None if settings.xi is None else settings.xi[start:stop],
        )
        own_ended = None if ended is None else ended[piece]
        h = states(x[piece], before, U, W, b, b2, own_ended, own)
        own_dh = dh[piece]
        if carry is not None:
            own_dh = own_dh.clone()
            last = own_dh[-1] if settings.sizes is None else own_dh[rows[stop - 1] - rows[start] :]
            xi = 1.0 if settings.xi is None else settings.xi[stop]
            if xi != 0:
                last[: len(carry)].add_(carry, alpha=xi)  # B3
        wanted = [need_dx, need_dh0 or start > 0, *of_parameters]
        dx, carry, *found = all_gradients(own_dh, None, h, x[piece], before, U, W, U.shape[1], own_ended, own, wanted)
        sums = [new if old is None or new is None else old + new for old, new in zip(sums, found, strict=True)]
        if dx is not None:
            pieces.append(dx)
    return torch.cat(pieces[::-1]) if need_dx else None, carry if need_dh0 else None, *sums
