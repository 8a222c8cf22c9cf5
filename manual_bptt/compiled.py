"""The recurrence for torch.compile and torch.export: a kernel is one opaque operator, so no graph grows with T.

Dynamo follows no Function that has a forward mode of its own, so this one has none. The mathematics is recurrence.py's.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_bptt import recurrence
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.kernels import eager
from manual_bptt.recurrence import Settings


@torch.library.custom_op("manual_bptt::forward", mutates_args=())
def forward_kernel(a: Tensor, h0: Tensor, W: Tensor, nonlinearity: str) -> Tensor:
    """Run F1 F2 on a copy of a: an operator may not return its argument."""
    return eager.forward(a.clone(), h0, W, ACTIVATIONS[nonlinearity])


@torch.library.custom_op("manual_bptt::backward", mutates_args=())
def backward_kernel(dh: Tensor, h: Tensor, W: Tensor, nonlinearity: str) -> Tensor:
    """Run B3 B4."""
    activation = ACTIVATIONS[nonlinearity]
    return eager.backward(dh, activation.slope(h), W, activation)


@forward_kernel.register_fake
def _(a: Tensor, h0: Tensor, W: Tensor, nonlinearity: str) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


@backward_kernel.register_fake
def _(dh: Tensor, h: Tensor, W: Tensor, nonlinearity: str) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


class CompiledRecurrence(Function):
    """F1 F2 with the backward B3-B8, for sequences in the layout (T, B, D). Kept until backward: as Recurrence."""

    @staticmethod
    def forward(
        x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, ended: Tensor | None, settings: Settings
    ) -> Tensor:
        """States h (T, B, H)."""
        h: Tensor = forward_kernel(recurrence.input_part(x, U, b), h0, W, settings.activation.name)
        return h if ended is None else h.masked_fill(ended, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what backward reads."""
        recurrence.keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, each computed only where somebody asked for it."""
        x, h0, U, W, ended, h = ctx.saved_tensors
        outside = dh if ended is None else dh.masked_fill(ended, 0)
        da = backward_kernel(outside, h.conj(), W.conj(), ctx.settings.activation.name)
        return recurrence.gradients(da, x, h0, U, W, h, ctx.D, None, ctx.needs_input_grad)
