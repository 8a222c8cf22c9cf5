"""Clipping: gradients that are too large made smaller, all by one factor or each entry by itself."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, get_total_norm

Parameters = Tensor | Iterable[Tensor]


def clip_gradient_norm(parameters: Parameters, max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients by one factor, in place, so that their norm is at most max_norm.

    g ← min(1, θ/‖g‖) g

    exactly as document 003 writes it. torch.nn.utils.clip_grad_norm_ divides by ‖g‖ + 10⁻⁶ instead: it also shrinks a
    gradient of norm θ, by the factor θ/(θ + 10⁻⁶), and one of norm 10⁻⁶ by a half where θ = 10⁻⁶.

    Args:
        parameters: Whose .grad is scaled; those without one are left out. Of any floating or complex dtypes, on any
            devices.
        max_norm: θ, positive; infinity leaves everything as it is.
        error_if_nonfinite: Whether to raise when the norm is infinite or NaN. Otherwise the gradients are scaled by it
            all the same, as torch does: what comes out is 0 or NaN.

    Returns:
        ‖g‖ before clipping, over all gradients together, 0-dimensional.

    Raises:
        TypeError: A parameter is no tensor, or max_norm no number.
        ValueError: max_norm is not positive.
        RuntimeError: The norm is not finite and error_if_nonfinite is set. No gradient has been changed then.
    """
    _check_bound("clip_gradient_norm", "max_norm", max_norm)
    gradients = [
        parameter.grad for parameter in _listed("clip_gradient_norm", parameters) if parameter.grad is not None
    ]
    norm = get_total_norm(gradients)
    if error_if_nonfinite and not bool(norm.isfinite()):
        raise RuntimeError(
            f"clip_gradient_norm: expected gradients of a finite norm, got {norm.item()}; "
            "error_if_nonfinite=False scales them all the same"
        )
    if max_norm == math.inf:
        return norm
    factor = (max_norm / norm).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    return norm


def clip_gradient_value(parameters: Parameters, bound: float) -> None:
    """Clip every entry of every gradient to [-bound, bound], in place, as min-char-rnn does with 5.

    Other than a common factor this turns the direction of the gradient. It is torch.nn.utils.clip_grad_value_.

    Args:
        parameters: Whose .grad is clipped; those without one are left out.
        bound: Positive.

    Raises:
        TypeError: A parameter is no tensor, or bound no number.
        ValueError: bound is not positive.
    """
    _check_bound("clip_gradient_value", "bound", bound)
    clip_grad_value_(_listed("clip_gradient_value", parameters), bound)


def _check_bound(function: str, symbol: str, bound: object) -> None:
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise TypeError(f"{function}: expected {symbol} to be a number, got {type(bound).__name__}")
    if math.isnan(bound) or bound <= 0:
        raise ValueError(f"{function}: expected {symbol} to be positive, got {bound}")


def _listed(function: str, parameters: Parameters) -> list[Tensor]:
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for parameter in listed:
        if not isinstance(parameter, torch.Tensor):
            raise TypeError(f"{function}: expected parameters to be tensors, got {type(parameter).__name__}")
    return listed
