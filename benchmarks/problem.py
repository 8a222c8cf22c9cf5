"""The random numbers that every implementation is given at one size; what is done with them is elsewhere."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.sizes import Size


@dataclass(frozen=True)
class Problem:
    """The inputs of one recurrence and the gradient that comes down on its states.

    Attributes:
        x: (T, B, D); does not require a gradient, as in a first layer.
        h0: (B, H); does not require a gradient.
        U: (H, D).
        W: (H, H).
        b: (H,).
        dh: (T, B, H), the upstream gradient on every state.
    """

    x: Tensor
    h0: Tensor
    U: Tensor
    W: Tensor
    b: Tensor
    dh: Tensor

    def to(self, target: torch.device | torch.dtype | str) -> "Problem":
        """Return the same numbers on another device or in another dtype."""
        return Problem(**{name: tensor.to(target) for name, tensor in vars(self).items()})


def make_problem(size: Size) -> Problem:
    """Draw the problem of one size: float32, CPU, the same numbers at every call.

    U and W are scaled so that |a| ~ 1 at every size: tanh is then neither linear nor saturated, and a mistake
    in its derivative shows.
    """
    T, B, D, H = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    return Problem(
        x=normal(T, B, D),
        h0=normal(B, H, scale=0.5),
        U=normal(H, D, scale=D**-0.5),
        W=normal(H, H, scale=H**-0.5),
        b=normal(H, scale=0.1),
        dh=normal(T, B, H),
    )
