"""The whole network: ElmanNetwork as a module, and bptt(), which shows everything that one backward pass computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from manual_bptt import checks, losses, recurrence
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.functional import readout, readout_arguments, recurrence_arguments, rnn, truncated
from manual_bptt.readout import (
    outputs,
    readout_bias_gradient,
    readout_state_gradient,
    readout_weight_gradient,
)
from manual_bptt.targets import weighted_targets
from manual_bptt.truncation import Truncation
from manual_bptt.truncation import check as check_truncation


class _Loss(NamedTuple):
    output: Callable[[Tensor, Tensor], Tensor]  # F4: ln ŷ, or ŷ itself, in the dtype of w
    value: Callable[[Tensor, Tensor, Tensor], Tensor]  # F5
    output_gradient: Callable[[Tensor, Tensor, Tensor], Tensor]  # B1
    predict: Callable[[Tensor], Tensor]  # ŷ, for whoever looks


def _softmax(o: Tensor) -> Tensor:
    return o.softmax(-1)


LOSSES = {
    "cross_entropy": _Loss(losses.log_softmax, losses.cross_entropy, losses.cross_entropy_output_gradient, _softmax),
    "squared_error": _Loss(
        losses.identity, losses.half_squared_error, losses.squared_error_output_gradient, torch.clone
    ),
}


class ElmanNetwork(nn.Module):
    """An Elman network with parameters named U, W, V, b and c, as in the equations.

    h_t = f(U x_t + W h_{t-1} + b)   o_t = V h_t + c   (F1-F3)

    Args:
        input_size: D.
        hidden_size: H.
        output_size: K.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        bias: Whether there are b and c; they are None otherwise.
        truncation: How far back gradients are followed; see `rnn`. An attribute that may be changed at any time.
        device: Where the parameters are made.
        dtype: Their real floating dtype; torch's default where None.

    Attributes:
        U: (H, D), W: (H, H), V: (K, H), b: (H,), c: (K,). All are drawn from U(-1/√H, 1/√H), as torch.nn.RNN and
            torch.nn.Linear draw theirs.

    Raises:
        TypeError: A size is no int, bias no bool, or dtype no real floating one.
        ValueError: A size below 1, or an unknown nonlinearity.
    """

    b: nn.Parameter | None
    c: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        nonlinearity: str = "tanh",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        truncation: Truncation | None = None,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for symbol, size in sizes.items():
            checks.integer("ElmanNetwork", symbol, size)
            if size < 1:
                raise ValueError(f"ElmanNetwork: expected {symbol} to be at least 1, got {size}")
        checks.choice("ElmanNetwork", "nonlinearity", nonlinearity, ACTIVATIONS)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"ElmanNetwork: expected dtype to be a floating dtype, got {dtype!r}")
        if not isinstance(bias, bool):
            raise TypeError(f"ElmanNetwork: expected bias to be a bool, got {type(bias).__name__}")
        check_truncation("ElmanNetwork", truncation)
        super().__init__()
        self.truncation = truncation
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.nonlinearity = nonlinearity

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.U = parameter(hidden_size, input_size)
        self.W = parameter(hidden_size, hidden_size)
        self.V = parameter(output_size, hidden_size)
        self.register_parameter("b", parameter(hidden_size) if bias else None)
        self.register_parameter("c", parameter(output_size) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the network over a sequence.

        Args:
            x: (T, B, D), (T, D), or tokens (T, B) or (T,); see `rnn`.
            h0: (B, H), or (H,) without a batch; None: zeros.

        Returns:
            o (T, B, K) and h (T, B, H), without B where x has no batch. h[-1] is the state to carry on from.

        Raises:
            TypeError, ValueError, RuntimeError: As `rnn`.

        Gradients, double backward and memory kept until backward: those of `rnn` and `readout`.
        """
        h = rnn(x, h0, self.U, self.W, self.b, self.nonlinearity, truncation=self.truncation)
        return readout(h, self.V, self.c), h

    def extra_repr(self) -> str:
        """Sizes and settings, in the order of the constructor."""
        bias = "" if self.b is not None else ", bias=False"
        truncation = "" if self.truncation is None else f", truncation={self.truncation}"
        sizes = f"{self.input_size}, {self.hidden_size}, {self.output_size}"
        return f"{sizes}, nonlinearity={self.nonlinearity!r}{bias}{truncation}"


@dataclass(frozen=True, repr=False, eq=False)
class BPTTResult:
    """Everything one forward and backward pass computes. `dX` is dL/dX and has X's shape.

    Attributes:
        loss: L (F5), 0-dimensional.
        a: Pre-activations (F1), (T, B, H).
        h: States (F2), (T, B, H).
        o: Outputs (F3), (T, B, K).
        y_hat: Predictions ŷ (F4), (T, B, K).
        do: B1, (T, B, K).
        dh: B3, the total dL/dh_t, through o_t and through h_{t+1}, (T, B, H).
        da: B4, (T, B, H).
        dU: B7, (H, D).
        dW: B6, (H, H).
        dV: B2, (K, H).
        db: B5, (H,); None where there is no b.
        dc: B2, (K,); None where there is no c.
        dx: B8, (T, B, D); None where x are tokens.
        dh0: B8, (B, H).
    """

    loss: Tensor
    a: Tensor
    h: Tensor
    o: Tensor
    y_hat: Tensor
    do: Tensor
    dh: Tensor
    da: Tensor
    dU: Tensor
    dW: Tensor
    dV: Tensor
    db: Tensor | None
    dc: Tensor | None
    dx: Tensor | None
    dh0: Tensor

    def __repr__(self) -> str:
        """Loss, then name, shape and norm of everything else, a line each."""
        lines = [f"BPTTResult: loss = {_number(self.loss)}", "  name   shape            norm"]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value is not None:
                lines.append(f"  {field.name:<6} {tuple(value.shape)!s:<16} {_number(value.norm())}")
        return "\n".join(lines)


def _number(value: Tensor) -> str:
    return "(meta)" if value.is_meta else f"{value.item():.6g}"


@torch.no_grad()
def bptt(
    parameters: Mapping[str, Tensor],
    x: Tensor,
    targets: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    loss: str = "cross_entropy",
    time: str = "sum",
    batch: str = "sum",
    ignore_index: int = -100,
    truncation: Truncation | None = None,
) -> BPTTResult:
    """Run one forward and one backward pass of the whole network, without autograd, and return everything in it.

    F1-F5 forward, B1-B8 backward, by the same functions and kernels that the Functions use.

    Args:
        parameters: Maps "U" (H, D), "W" (H, H), "V" (K, H) and, where there are any, "b" (H,) and "c" (K,) to
            tensors; `dict(network.named_parameters())` of an ElmanNetwork is one. They are only read.
        x: (T, B, D), (T, D), or tokens (T, B) or (T,); see `rnn`.
        targets: See y of `softmax_cross_entropy` and `squared_error`.
        h0: (B, H), or (H,) without a batch; None: zeros.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        loss: "cross_entropy" (of the softmax) or "squared_error" (half of it).
        time: "sum", "mean" or "last"; see `softmax_cross_entropy`.
        batch: "sum" or "mean".
        ignore_index: Class index of a step that does not count; not used by "squared_error".
        truncation: How far back gradients are followed; see `rnn`. dh, da and all that is made of them is truncated.

    Returns:
        BPTTResult. Without a batch its fields have no B either.

    Raises:
        TypeError, ValueError: As `rnn`, `readout` and the losses; and for parameters that lack U, W or V or hold
            any other name. RuntimeError: Autocast is on.

    Memory kept: what BPTTResult holds; no graph.
    Source: docs/derivation.md.
    """
    activation = checks.choice("bptt", "nonlinearity", nonlinearity, ACTIVATIONS)
    chosen = checks.choice("bptt", "loss", loss, LOSSES)
    checks.integer("bptt", "ignore_index", ignore_index)
    check_truncation("bptt", truncation)
    U, W, V, b, c = _unpack(parameters)
    checks.floating("bptt", "W", W)
    x, h0, batched = recurrence_arguments("bptt", x, h0, U, W, b)
    checks.tensor("bptt", "targets", targets)

    settings = recurrence.Settings(activation)
    if truncation is not None:
        settings = truncated(settings, truncation, x)
    h = recurrence.states(x, h0, U, W, b, None, None, settings)  # F1 F2
    # F1 once more: the kernel keeps the states alone
    a = recurrence.input_part(x, U, b) + recurrence.states_before(h, h0) @ W.t()
    readout_arguments("bptt", h, V, c)
    o = outputs(h, V, c)  # F3
    ignored = None if loss == "squared_error" else ignore_index
    judged, y, w = weighted_targets("bptt", "targets", o if batched else o.squeeze(1), targets, time, batch, ignored)
    output = chosen.output(judged, w)  # F4
    value = chosen.value(output, y, w).to(o.dtype)  # F5

    do = torch.zeros_like(o)
    entering = do[-judged.shape[0] :]
    entering.copy_(chosen.output_gradient(output, y, w).view_as(entering))  # B1
    outside = readout_state_gradient(do, V)  # B3, first term
    da = recurrence.through_time(outside, h, W, None, settings)  # B3 B4
    dh = recurrence.state_gradient(outside, da, h, W, None, settings)  # B3, both terms

    def steps(value: Tensor) -> Tensor:
        return value if batched else value.squeeze(1)

    entering = recurrence.entering(da, outside, h, W, None, settings)
    dh0 = recurrence.initial_state_gradient(entering, W)  # B8
    return BPTTResult(
        loss=value,
        a=steps(a),
        h=steps(h),
        o=steps(o),
        y_hat=steps(chosen.predict(o)),
        do=steps(do),
        dh=steps(dh),
        da=steps(da),
        dU=recurrence.input_weight_gradient(da, x, U.shape[1]),  # B7
        dW=recurrence.recurrent_weight_gradient(da, h, h0),  # B6
        dV=readout_weight_gradient(do, h),  # B2
        db=None if b is None else recurrence.bias_gradient(da),  # B5
        dc=None if c is None else readout_bias_gradient(do),  # B2
        dx=steps(recurrence.input_gradient(da, U)) if not recurrence.are_tokens(x) else None,  # B8
        dh0=dh0 if batched else dh0.squeeze(0),
    )


def _unpack(parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    if not isinstance(parameters, Mapping):
        raise TypeError(
            "bptt: expected parameters to map the names U, W, V, b, c to tensors "
            f"(as dict(network.named_parameters()) does), got {type(parameters).__name__}"
        )
    names = set(parameters)
    if not {"U", "W", "V"} <= names <= {"U", "W", "V", "b", "c"}:
        raise ValueError(
            f"bptt: expected parameters named U, W, V and, where used, b, c, got {', '.join(map(str, parameters))}"
        )
    return parameters["U"], parameters["W"], parameters["V"], parameters.get("b"), parameters.get("c")
