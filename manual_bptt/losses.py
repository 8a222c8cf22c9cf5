"""The losses and their backward, by hand: F4 F5 | B1. Softmax with cross-entropy, and half the squared error.

Every function takes the weight w_t of each step and sequence as a tensor, which targets.py makes and functional.py
asks for. What it computes with has w's dtype, float32 or wider; the Functions give results in o's.
Shapes: o (..., K), w (...), y class indices (...) or probabilities (..., K).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def _are_indices(y: Tensor) -> bool:
    return not y.is_floating_point()


def log_softmax(o: Tensor, w: Tensor) -> Tensor:
    """F4: ln ŷ_t in w's dtype, without ever taking the logarithm of a computed ŷ_t."""
    return o.log_softmax(-1, w.dtype)


def log_softmax_gradient(log_y_hat: Tensor, dlog: Tensor) -> Tensor:
    """Reverse F4: ∂ln ŷ_j/∂o_i = δ_ij - ŷ_i, so a gradient g of ln ŷ_t gives g - ŷ_t Σ_j g_j."""
    return dlog - log_y_hat.exp() * dlog.sum(-1, keepdim=True)


def cross_entropy(log_y_hat: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """F5: Σ w_t ℓ_t with ℓ_t = -Σ_k y_tk ln ŷ_tk; a step of weight 0 adds exactly 0."""
    picked = log_y_hat.gather(-1, y.unsqueeze(-1)) if _are_indices(y) else y * log_y_hat
    return torch.where(w != 0, -w * picked.sum(-1), 0).sum()


def cross_entropy_output_gradient(log_y_hat: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """B1: do = w_t (ŷ_t s_t - y_t), where s_t = Σ_k y_tk is 1 for a class index and for probabilities."""
    y_hat = log_y_hat.exp()
    w = w.unsqueeze(-1)
    if _are_indices(y):
        return (w * y_hat).scatter_add_(-1, y.unsqueeze(-1), -w)
    return w * (y_hat * y.sum(-1, keepdim=True) - y)


def cross_entropy_target_gradient(log_y_hat: Tensor, w: Tensor) -> Tensor:
    """Gradient for probability targets: dy = -w_t ln ŷ_t."""
    return -w.unsqueeze(-1) * log_y_hat


def identity(o: Tensor, w: Tensor) -> Tensor:
    """F4: ŷ_t = o_t, in w's dtype."""
    return o.to(w.dtype)


def half_squared_error(y_hat: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """F5: Σ w_t ½ Σ_k (o_tk - y_tk)²."""
    return (w * (y_hat - y).square().sum(-1)).sum() / 2


def squared_error_output_gradient(y_hat: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """B1: do = w_t (o_t - y_t)."""
    return w.unsqueeze(-1) * (y_hat - y)


def along(gradient: Tensor, moved: Tensor | None) -> Tensor:
    """How far L moves when what the gradient belongs to moves along a tangent (None: not at all)."""
    return gradient.new_zeros(()) if moved is None else (gradient * moved).sum()


class SoftmaxCrossEntropy(Function):
    """F4 F5 with the backward B1. Kept until backward: ln ŷ, y and w."""

    generate_vmap_rule = True

    @staticmethod
    def forward(o: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Loss L, 0-dimensional, and ln ŷ (..., K), which backward reads."""
        log_y_hat = log_softmax(o, w)
        return cross_entropy(log_y_hat, y, w).to(o.dtype), log_y_hat

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what backward reads; ln ŷ is an output so that backward itself can be differentiated through it."""
        o, y, w = inputs
        ctx.dtype = o.dtype
        ctx.save_for_backward(output[1], y, w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dL: Tensor | None, dlog: Tensor | None) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward; dlog comes only from a second backward."""
        log_y_hat, y, w = ctx.saved_tensors
        need_do, need_dy, _ = ctx.needs_input_grad
        do = dy = None
        if dL is not None and need_do:
            do = cross_entropy_output_gradient(log_y_hat, y, dL * w).to(ctx.dtype)
        if dL is not None and need_dy:
            dy = cross_entropy_target_gradient(log_y_hat, dL * w).to(ctx.dtype)
        if dlog is not None and need_do:
            reversed_F4 = log_softmax_gradient(log_y_hat, dlog).to(ctx.dtype)
            do = reversed_F4 if do is None else do + reversed_F4
        return do, dy, None


class DualSoftmaxCrossEntropy(SoftmaxCrossEntropy):
    """SoftmaxCrossEntropy with forward mode, which torch.compile does not follow."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what backward and the forward mode read."""
        SoftmaxCrossEntropy.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output[1], *inputs[1:])

    @staticmethod
    def jvp(ctx: Any, o_moved: Tensor | None, y_moved: Tensor | None, _: None) -> tuple[Tensor, Tensor]:
        """The tangents of L, each gradient against what moved, and of ln ŷ."""
        log_y_hat, y, w = ctx.saved_tensors
        L_moved = along(cross_entropy_target_gradient(log_y_hat, w), y_moved)
        if o_moved is None:
            return L_moved.to(ctx.dtype), torch.zeros_like(log_y_hat)
        L_moved = L_moved + along(cross_entropy_output_gradient(log_y_hat, y, w), o_moved)
        log_moved = o_moved - (log_y_hat.exp() * o_moved).sum(-1, keepdim=True)
        return L_moved.to(ctx.dtype), log_moved.to(log_y_hat.dtype)


class SquaredError(Function):
    """F5 with the identity output, and B1. Kept until backward: o, y and w."""

    generate_vmap_rule = True

    @staticmethod
    def forward(o: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Loss L, 0-dimensional."""
        return half_squared_error(identity(o, w), y, w).to(o.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what backward reads."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dL: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, scaled by the gradient dL that comes from above."""
        o, y, w = ctx.saved_tensors
        need_do, need_dy, _ = ctx.needs_input_grad
        do = squared_error_output_gradient(identity(o, w), y, dL * w).to(o.dtype)
        return (do if need_do else None, -do if need_dy else None, None)


class DualSquaredError(SquaredError):
    """SquaredError with forward mode, which torch.compile does not follow."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what backward and the forward mode read."""
        SquaredError.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, o_moved: Tensor | None, y_moved: Tensor | None, _: None) -> Tensor:
        """The tangent of L: each gradient against what moved."""
        o, y, w = ctx.saved_tensors
        do = squared_error_output_gradient(identity(o, w), y, w)
        return (along(do, o_moved) - along(do, y_moved)).to(o.dtype)
