"""The recurrence and its back-propagation through time, by hand: F1 F2 forward, B3-B8 backward. Read this file first.

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


def states(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, activation: Activation) -> Tensor:
    """F1, F2: all states h (T, B, H)."""
    return eager.forward(input_part(x, U, b), h0, W, activation)


def input_part(x: Tensor, U: Tensor, b: Tensor | None) -> Tensor:
    """F1 without its recurrent term: U x_t + b of every step (T, B, H), in new storage."""
    if x.is_floating_point():
        return functional.linear(x, U, b)
    columns = functional.embedding(x, U.t())  # tokens: U x_t of a one-hot x_t is a column of U
    return columns if b is None else columns.add_(b)


def through_time(dh: Tensor, h: Tensor, W: Tensor, activation: Activation) -> Tensor:
    """B3, B4: da (T, B, H) from the part of dh that comes from outside; differentiable when grad mode is on."""
    kernel = eager.differentiable_backward if torch.is_grad_enabled() else eager.backward
    return kernel(dh, h, W, activation)


def bias_gradient(da: Tensor) -> Tensor:
    """B5: db (H,), the sum over time and batch."""
    return da.sum((0, 1))


def recurrent_weight_gradient(da: Tensor, h: Tensor, h0: Tensor) -> Tensor:
    """B6: dW (H, H), every da_t against the state before it."""
    first = da[0].t() @ h0
    return torch.addmm(first, da[1:].flatten(0, 1).t(), h[:-1].flatten(0, 1))


def input_weight_gradient(da: Tensor, x: Tensor, D: int) -> Tensor:
    """B7: dU (H, D), every da_t against its input; for tokens da_t is added to the token's column."""
    rows = da.flatten(0, 1)
    if x.is_floating_point():
        return rows.t() @ x.flatten(0, 1)
    return da.new_zeros(D, da.shape[-1]).index_add(0, x.flatten(), rows).t()


def input_gradient(da: Tensor, U: Tensor) -> Tensor:
    """B8: dx (T, B, D)."""
    return da @ U


def initial_state_gradient(da: Tensor, W: Tensor) -> Tensor:
    """B8: dh0 (B, H)."""
    return da[0] @ W


class Recurrence(Function):
    """F1 F2 with the backward B3-B8. Kept until backward: W, h and, where asked for, x (dU), h0 (dW), U (dx)."""

    @staticmethod
    def forward(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, activation: Activation) -> Tensor:
        """States h (T, B, H)."""
        return states(x, h0, U, W, b, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what backward reads."""
        x, h0, U, W, _, ctx.activation = inputs
        ctx.D = U.shape[1]
        need_dx, _, need_dU, need_dW, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_dU else None, h0 if need_dW else None, U if need_dx else None, W, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, each computed only where somebody asked for it."""
        x, h0, U, W, h = ctx.saved_tensors
        need_dx, need_dh0, need_dU, need_dW, need_db, _ = ctx.needs_input_grad
        da = through_time(dh, h, W, ctx.activation)
        return (
            input_gradient(da, U) if need_dx else None,
            initial_state_gradient(da, W) if need_dh0 else None,
            input_weight_gradient(da, x, ctx.D) if need_dU else None,
            recurrent_weight_gradient(da, h, h0) if need_dW else None,
            bias_gradient(da) if need_db else None,
            None,
        )
