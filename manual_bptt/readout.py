"""The readout o_t = V h_t + c and its backward, by hand: F3 | B2 and the Vᵀ dL/do_t of B3. Validates nothing."""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def outputs(h: Tensor, V: Tensor, c: Tensor | None) -> Tensor:
    """F3: o (..., K) from h (..., H), V (K, H), c (K,)."""
    return functional.linear(h, V, c)


def readout_weight_gradient(do: Tensor, h: Tensor) -> Tensor:
    """B2: dV (K, H)."""
    return do.reshape(-1, do.shape[-1]).t() @ h.reshape(-1, h.shape[-1])


def readout_bias_gradient(do: Tensor) -> Tensor:
    """B2: dc (K,)."""
    return do.reshape(-1, do.shape[-1]).sum(0)


def readout_state_gradient(do: Tensor, V: Tensor) -> Tensor:
    """B3's first term, Vᵀ dL/do_t: dh (..., H), as far as it comes through the readout."""
    return do @ V


class Readout(Function):
    """F3 with the backward B2. Kept until backward: h and V."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, V: Tensor, c: Tensor | None) -> Tensor:
        """Outputs o (..., K)."""
        return outputs(h, V, c)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what backward reads."""
        h, V, _ = inputs
        ctx.save_for_backward(h, V)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, each computed only where somebody asked for it."""
        h, V = ctx.saved_tensors
        need_dh, need_dV, need_dc = ctx.needs_input_grad
        return (
            readout_state_gradient(do, V) if need_dh else None,
            readout_weight_gradient(do, h) if need_dV else None,
            readout_bias_gradient(do) if need_dc else None,
        )


class DualReadout(Readout):
    """Readout with the forward mode T3, which torch.compile does not follow."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what backward and the forward mode read."""
        Readout.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1])

    @staticmethod
    def jvp(ctx: Any, h_moved: Tensor | None, V_moved: Tensor | None, c_moved: Tensor | None) -> Tensor:
        """T3: the tangent of o (..., K) when h, V, c move along the given tangents (None: not at all)."""
        h, V = ctx.saved_tensors
        moved: Tensor = h.new_zeros(*h.shape[:-1], V.shape[0])
        if h_moved is not None:
            moved = moved + outputs(h_moved, V, None)
        if V_moved is not None:
            moved = moved + outputs(h, V_moved, None)
        return moved if c_moved is None else moved + c_moved
