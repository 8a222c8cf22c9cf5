"""The network and its loss as torch would write them, forward only; a derivative is autograd's affair.

Sizes: T steps, B batch rows, D inputs, H hidden units, K outputs. Vectors are rows: `U x_t` is `x_t @ U.T`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda a: a,
}

TORCH_NAMES = {
    "U": "rnn.weight_ih_l0",
    "W": "rnn.weight_hh_l0",
    "V": "linear.weight",
    "b": "rnn.bias_ih_l0",
    "c": "linear.bias",
}


class Unrolled(NamedTuple):
    """What the plain loop computed, one tensor per step: a and h of shape (B, H), o of shape (B, K)."""

    a: list[Tensor]
    h: list[Tensor]
    o: list[Tensor]


def unrolled(
    parameters: Mapping[str, Tensor], x: Tensor, h0: Tensor | None = None, nonlinearity: str = "tanh"
) -> Unrolled:
    """Run the network as a plain loop over time.

    Args:
        parameters: U (H, D), W (H, H), V (K, H) and, where used, b (H,) and c (K,).
        x: (T, B, D) of the parameters' dtype, or int64 tokens (T, B): token d is the d-th unit vector.
        h0: (B, H); None means zeros.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".

    Returns:
        The lists a, h and o of T tensors each.

    Raises:
        ValueError: if the nonlinearity is unknown.
    """
    _check_choice("unrolled", "nonlinearity", ACTIVATIONS, nonlinearity)
    f = ACTIVATIONS[nonlinearity]
    U, W, V = parameters["U"], parameters["W"], parameters["V"]
    b = parameters.get("b", U.new_zeros(W.shape[0]))
    c = parameters.get("c", U.new_zeros(V.shape[0]))
    h_t = U.new_zeros(x.shape[1], W.shape[0]) if h0 is None else h0

    steps = Unrolled([], [], [])
    for x_t in x:
        Ux_t = U.T[x_t] if x.dim() == 2 else x_t @ U.T  # a token picks a column of U
        a_t = Ux_t + h_t @ W.T + b
        h_t = f(a_t)
        o_t = h_t @ V.T + c
        steps.a.append(a_t)
        steps.h.append(h_t)
        steps.o.append(o_t)
    return steps


class TorchNetwork(nn.Module):
    """`torch.nn.RNN` followed by `torch.nn.Linear`: the same network by torch's own implementation.

    U is `rnn.weight_ih_l0`, W is `rnn.weight_hh_l0`, V is `linear.weight`, c is `linear.bias`. torch has two
    recurrent biases where the equations have one: b is `rnn.bias_ih_l0`, and `rnn.bias_hh_l0` is zero.

    Args:
        rnn: one layer, one direction, time-major, D inputs and H hidden units.
        linear: from H to K.
    """

    def __init__(self, rnn: nn.RNN, linear: nn.Linear) -> None:
        super().__init__()
        self.rnn = rnn
        self.linear = linear

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Tensor], nonlinearity: str = "tanh") -> TorchNetwork:
        """Build the modules and copy the parameters into them.

        Args:
            parameters: U (H, D), W (H, H), V (K, H) and, where used, b (H,) and c (K,). They are copied, with
                their dtype and device. No random number is drawn.
            nonlinearity: "tanh" or "relu", the two that `torch.nn.RNN` has.

        Returns:
            The network, with parameters that require gradients.

        Raises:
            ValueError: if `torch.nn.RNN` has no such nonlinearity.
        """
        _check_choice("TorchNetwork", "nonlinearity", ("tanh", "relu"), nonlinearity)
        U, V = parameters["U"], parameters["V"]
        (H, D), K = U.shape, V.shape[0]
        # on "meta" nothing is initialised, so nothing is drawn
        rnn = nn.RNN(D, H, nonlinearity=nonlinearity, bias="b" in parameters, device="meta", dtype=U.dtype)
        linear = nn.Linear(H, K, bias="c" in parameters, device="meta", dtype=U.dtype)
        network = cls(rnn, linear).to_empty(device=U.device)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()  # bias_hh_l0 stays so
            for name, parameter in network.named_by_equation().items():
                parameter.copy_(parameters[name])
        return network

    def named_by_equation(self) -> dict[str, nn.Parameter]:
        """Return the parameters under the letters of the equations: U, W, V and, where used, b and c."""
        named = dict(self.named_parameters())
        return {letter: named[name] for letter, name in TORCH_NAMES.items() if name in named}

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the network.

        Args:
            x: (T, B, D), floating point: `torch.nn.RNN` knows no tokens.
            h0: (B, H); None means zeros.

        Returns:
            o (T, B, K) and h (T, B, H).

        Raises:
            ValueError: if x holds tokens.
        """
        if not x.is_floating_point():
            raise ValueError(
                f"TorchNetwork: expected x of floating point, got {x.dtype}; torch.nn.RNN takes no tokens, "
                "use unrolled()"
            )
        h, _ = self.rnn(x, None if h0 is None else h0[None])
        return self.linear(h), h


def sequence_loss(
    o: Tensor,
    targets: Tensor,
    *,
    loss: str = "cross_entropy",
    time: str = "sum",
    batch: str = "sum",
    ignore_index: int = -100,
) -> Tensor:
    """Sum the losses of all steps and sequences, with the weights that `time` and `batch` ask for.

    Args:
        o: (T, B, K).
        targets: for "cross_entropy" class indices (T, B), int64, or probabilities (T, B, K), which may be
            integer where they are one-hot; for "squared_error" (T, B, K). Without the T for time="last".
        loss: "cross_entropy" (softmax included) or "squared_error", ½ Σ_k (o_k − y_k)².
        time: "sum"; "mean", each sequence's sum divided by the number of its steps that count (none: it adds
            0); or "last", o_T alone.
        batch: "sum" or "mean", which divides by B.
        ignore_index: class index of a step that does not count.

    Returns:
        The loss, a scalar of o's dtype.

    Raises:
        ValueError: if a name is unknown or the shape of targets does not go with o.
    """
    _check_choice("sequence_loss", "loss", ("cross_entropy", "squared_error"), loss)
    _check_choice("sequence_loss", "time", ("sum", "mean", "last"), time)
    _check_choice("sequence_loss", "batch", ("sum", "mean"), batch)
    shape = o.shape[1:] if time == "last" else o.shape
    indices = loss == "cross_entropy" and targets.dim() == len(shape) - 1
    expected = shape[:-1] if indices else shape
    if targets.shape != expected:  # mse_loss would broadcast
        raise ValueError(f"sequence_loss: expected targets of shape {tuple(expected)}, got {tuple(targets.shape)}")
    if time == "last":
        o, targets = o[-1:], targets[None]

    counts = targets != ignore_index if indices else torch.ones_like(o[..., 0], dtype=torch.bool)  # (T, B)
    if loss == "squared_error":
        losses = F.mse_loss(o, targets, reduction="none").sum(-1) / 2  # (T, B)
    elif indices:
        losses = F.cross_entropy(o.transpose(1, 2), targets, reduction="none", ignore_index=ignore_index)
    else:
        probabilities = targets if targets.is_floating_point() else targets.to(o.dtype)
        losses = F.cross_entropy(o.transpose(1, 2), probabilities.transpose(1, 2), reduction="none")

    per_sequence = losses.sum(0)
    if time == "mean":
        per_sequence = per_sequence / counts.sum(0).clamp(min=1)
    return per_sequence.mean() if batch == "mean" else per_sequence.sum()


def _check_choice(function: str, symbol: str, expected: Iterable[str], got: str) -> None:
    if got not in expected:
        names = ", ".join(map(repr, expected))
        raise ValueError(f"{function}: expected {symbol} to be one of {names}, got {got!r}")
