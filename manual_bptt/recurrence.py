"""The recurrence and its back-propagation through time, by hand: F1 F2, B3-B8, and forward mode T1 T2. Read it first.

The equations (docs/derivation.md) are in column form; the code keeps vectors as rows, so `W h` is `h @ W.T` and
`Wᵀ δ` is `δ @ W`. `dX` is dL/dX and has X's shape. Only F1/F2's W h_{t-1} and B3/B4 are sequential: the two
loops are in kernels/eager.py, to be read next; everything else is one product over the whole sequence. Nothing is
validated here: functional.py does that.

Shapes: x (T, B, D) or tokens (T, B), h0 (B, H), U (H, D), W (H, H), b (H,), h dh da (T, B, H).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from manual_bptt.activations import Activation
from manual_bptt.kernels import eager
from manual_bptt.transforms import watched


def states(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, activation: Activation) -> Tensor:
    """F1, F2: all states h (T, B, H)."""
    kernel = eager.functional_forward if watched(x, h0, W) else eager.forward
    return kernel(input_part(x, U, b), h0, W, activation)


def input_part(x: Tensor, U: Tensor, b: Tensor | None) -> Tensor:
    """F1 without its recurrent term: U x_t + b of every step (T, B, H), in new storage."""
    if x.is_floating_point():
        return functional.linear(x, U, b)
    columns = functional.embedding(x, U.t())  # tokens: U x_t of a one-hot x_t is a column of U
    return columns if b is None else columns + b


def rows(value: Tensor) -> Tensor:
    """All steps of all sequences below one another: (T, B, N) as (T·B, N)."""
    return value.reshape(value.shape[0] * value.shape[1], value.shape[2])


def through_time(dh: Tensor, h: Tensor, W: Tensor, activation: Activation) -> Tensor:
    """B3, B4: da (T, B, H) from the part of dh that comes from outside; differentiable when grad mode is on."""
    kernel = eager.functional_backward if torch.is_grad_enabled() or watched(dh, h, W) else eager.backward
    return kernel(dh, h, W, activation)


def bias_gradient(da: Tensor) -> Tensor:
    """B5: db (H,), the sum over time and batch."""
    return da.sum((0, 1))


def recurrent_weight_gradient(da: Tensor, h: Tensor, h0: Tensor) -> Tensor:
    """B6: dW (H, H), every da_t against the state before it."""
    first = da[0].t() @ h0
    return torch.addmm(first, rows(da[1:]).t(), rows(h[:-1]))


def input_weight_gradient(da: Tensor, x: Tensor, D: int) -> Tensor:
    """B7: dU (H, D), every da_t against its input; for tokens da_t is added to the token's column."""
    if x.is_floating_point():
        return rows(da).t() @ rows(x)
    return da.new_zeros(D, da.shape[-1]).index_add(0, x.reshape(-1), rows(da)).t()


def input_gradient(da: Tensor, U: Tensor) -> Tensor:
    """B8: dx (T, B, D)."""
    return da @ U


def initial_state_gradient(da: Tensor, W: Tensor) -> Tensor:
    """B8: dh0 (B, H)."""
    return da[0] @ W


def gradients(
    da: Tensor,
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    h: Tensor,
    D: int,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """B5-B8 from da: dx, dh0, dU, dW, db, each only where needed, and None for the activation."""
    need_dx, need_dh0, need_dU, need_dW, need_db, _ = needed
    return (
        input_gradient(da, U) if need_dx else None,
        initial_state_gradient(da, W) if need_dh0 else None,
        input_weight_gradient(da, x, D) if need_dU else None,
        recurrent_weight_gradient(da, h, h0) if need_dW else None,
        bias_gradient(da) if need_db else None,
        None,
    )


def tangents(
    x: Tensor, h0: Tensor, U: Tensor, W: Tensor, h: Tensor, moved: tuple[Tensor | None, ...], activation: Activation
) -> Tensor:
    """T1, T2: how the states move when x, h0, U, W, b move along the given tangents (None: not at all)."""
    x_moved, h0_moved, U_moved, W_moved, b_moved = moved
    linear = torch.zeros_like(h)
    if x_moved is not None:
        linear = linear + input_part(x_moved, U, None)
    if U_moved is not None:
        linear = linear + input_part(x, U_moved, None)
    if W_moved is not None:
        linear = linear + torch.cat((h0.unsqueeze(0), h[:-1])) @ W_moved.t()
    if b_moved is not None:
        linear = linear + b_moved
    start = torch.zeros_like(h0) if h0_moved is None else h0_moved
    return eager.tangent(linear, start, activation.slope(h), W, activation)


class Recurrence(Function):
    """F1 F2, backward B3-B8, forward mode T1 T2.

    Kept until backward: W, h and, where asked for, x (dU), h0 (dW), U (dx).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, activation: Activation) -> Tensor:
        """States h (T, B, H)."""
        return states(x, h0, U, W, b, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what backward and the forward mode read."""
        keep(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4], output)

    @staticmethod
    def jvp(ctx: Any, *moved: Tensor | None) -> Tensor:
        """The tangent of the states (T, B, H)."""
        x, h0, U, W, h = ctx.saved_tensors
        return tangents(x, h0, U, W, h, moved[:5], ctx.activation)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, each computed only where somebody asked for it."""
        x, h0, U, W, h = ctx.saved_tensors
        da = through_time(dh, h, W, ctx.activation)
        return gradients(da, x, h0, U, W, h, ctx.D, ctx.needs_input_grad)


def keep(ctx: Any, inputs: tuple[Any, ...], h: Tensor) -> None:
    """Keep what the backward of a recurrence reads, and no more."""
    x, h0, U, W, _, ctx.activation = inputs
    ctx.D = U.shape[1]
    need_dx, _, need_dU, need_dW, _, _ = ctx.needs_input_grad
    ctx.save_for_backward(x if need_dU else None, h0 if need_dW else None, U if need_dx else None, W, h)
