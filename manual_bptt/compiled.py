"""The recurrence for torch.compile and torch.export: one operator for all steps, so that no graph grows with T.

An exported program keeps its gradients: they belong to the operator. The mathematics is recurrence.py's.
"""

from typing import Any

import torch
from torch import Tensor

from manual_bptt import recurrence
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.recurrence import Settings


@torch.library.custom_op("manual_bptt::recurrence", mutates_args=())
def compiled_recurrence(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    ended: Tensor | None,
    nonlinearity: str,
    xi: Tensor | None,
    window: int,
) -> Tensor:
    """Run F1 F2: states h (T, B, H). Kept until backward: x, h0, U, W, ended, h and ξ (T,); a window of 0 is none."""
    settings = Settings(ACTIVATIONS[nonlinearity])
    return recurrence.states(x, h0, U, W, b, None, ended, settings).contiguous()


@torch.library.custom_op("manual_bptt::backward", mutates_args=())
def backward_kernel(
    dh: Tensor, h: Tensor, W: Tensor, ended: Tensor | None, nonlinearity: str, xi: Tensor | None, window: int
) -> Tensor:
    """Run B3 B4."""
    settings = Settings(ACTIVATIONS[nonlinearity], xi=None if xi is None else xi.tolist(), window=window or None)
    with torch.no_grad():
        return recurrence.through_time(dh, h.contiguous(), W, ended, settings)


@compiled_recurrence.register_fake
def _(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    ended: Tensor | None,
    nonlinearity: str,
    xi: Tensor | None,
    window: int,
) -> Tensor:
    return W.new_empty(x.shape[0], x.shape[1], W.shape[0])


@backward_kernel.register_fake
def _(
    dh: Tensor, h: Tensor, W: Tensor, ended: Tensor | None, nonlinearity: str, xi: Tensor | None, window: int
) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, h0, U, W, _, ended, ctx.nonlinearity, xi, ctx.window = inputs
    ctx.save_for_backward(x, h0, U, W, ended, xi, output)


def _backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
    """B3-B8, each gradient only where somebody asked for it."""
    x, h0, U, W, ended, xi, h = ctx.saved_tensors
    k = ctx.window
    da = backward_kernel(dh, h, W, ended, ctx.nonlinearity, xi, k)

    def entering() -> Tensor:
        """As recurrence.entering."""
        first = None if ended is None else ended[:k]
        made: Tensor = backward_kernel(dh[:k], h[:k], W, first, ctx.nonlinearity, None, 0) if k else da
        return made

    needed = *ctx.needs_input_grad[:5], False  # there is one bias
    found = recurrence.gradients(da, entering, x, h0, U, W, h, U.shape[1], None, ended, needed)
    return (*found[:5], None, None, None, None)


compiled_recurrence.register_autograd(_backward, setup_context=_keep)
