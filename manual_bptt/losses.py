"""The losses and their backward, by hand: F4 F5 | B1. Softmax with cross-entropy, and half the squared error.

Every function takes the weight w_t of each step and sequence as a tensor, which targets.py makes and functional.py
asks for; w's dtype, float32 or wider, is the one that the loss is computed in, and results come out in o's.
Shapes: o (..., K), w (...), y class indices (...) or probabilities (..., K).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def _are_indices(y: Tensor) -> bool:
    return not y.is_floating_point()


def cross_entropy(o: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """F4, F5: Σ w_t ℓ_t with ŷ_t = softmax(o_t) and ℓ_t = -Σ_k y_tk ln ŷ_tk; a step of weight 0 adds exactly 0."""
    log_y_hat = o.log_softmax(-1, w.dtype)
    picked = log_y_hat.gather(-1, y.unsqueeze(-1)) if _are_indices(y) else y * log_y_hat
    return torch.where(w != 0, -w * picked.sum(-1), 0).sum().to(o.dtype)


def cross_entropy_output_gradient(o: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """B1: do = w_t (ŷ_t s_t - y_t), where s_t = Σ_k y_tk is 1 for a class index and for probabilities."""
    y_hat = o.softmax(-1, w.dtype)  # F4
    w = w.unsqueeze(-1)
    if _are_indices(y):
        return (w * y_hat).scatter_add(-1, y.unsqueeze(-1), -w).to(o.dtype)
    return (w * (y_hat * y.sum(-1, keepdim=True) - y)).to(o.dtype)


def cross_entropy_target_gradient(o: Tensor, w: Tensor) -> Tensor:
    """Gradient for probability targets: dy = -w_t ln ŷ_t."""
    return (-w.unsqueeze(-1) * o.log_softmax(-1, w.dtype)).to(o.dtype)


def half_squared_error(o: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """F5 with ŷ_t = o_t: Σ w_t ½ Σ_k (o_tk - y_tk)²."""
    return ((w * (o.to(w.dtype) - y).square().sum(-1)).sum() / 2).to(o.dtype)


def squared_error_output_gradient(o: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """B1: do = w_t (o_t - y_t)."""
    return (w.unsqueeze(-1) * (o - y)).to(o.dtype)


class SoftmaxCrossEntropy(Function):
    """F4 F5 with the backward B1. Kept until backward: o, y and w."""

    @staticmethod
    def forward(o: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Loss L, 0-dimensional."""
        return cross_entropy(o, y, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what backward reads."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dL: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, scaled by the gradient dL that comes from above."""
        o, y, w = ctx.saved_tensors
        need_do, need_dy, _ = ctx.needs_input_grad
        return (
            cross_entropy_output_gradient(o, y, dL * w) if need_do else None,
            cross_entropy_target_gradient(o, dL * w) if need_dy else None,
            None,
        )


class SquaredError(Function):
    """F5 with the identity output, and B1. Kept until backward: o, y and w."""

    @staticmethod
    def forward(o: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Loss L, 0-dimensional."""
        return half_squared_error(o, y, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what backward reads."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dL: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, scaled by the gradient dL that comes from above."""
        o, y, w = ctx.saved_tensors
        need_do, need_dy, _ = ctx.needs_input_grad
        do = squared_error_output_gradient(o, y, dL * w)
        return (do if need_do else None, -do if need_dy else None, None)
