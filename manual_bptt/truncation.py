"""How far back in time a gradient is followed: everywhere, within chunks, within a window, or to random steps.

The truncations as values, for `rnn`, `bptt`, `ElmanNetwork` and `RNN`. What the recurrence makes of them is in
recurrence.py (ξ_t of B3) and lags.py (windows); training in pieces is in segments.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from manual_bptt import checks, transforms


@dataclass(frozen=True, repr=False)
class Truncation:
    """How far back a gradient is followed. Made by `full`, `chunked`, `windowed` or `randomized`.

    Attributes:
        name: As it was made: "chunked(20)".
        draw: Maps T to ξ_1 … ξ_T, numbers or a tensor (T,), anew for each call; what flows back from step t to the one
            before is multiplied by ξ_t, and ξ_1 is 1. None: all are 1.
        window: How many steps each gradient from outside is followed back; None: to the first step.
        p: Of a random truncation, the probability that ξ_t is not 0.
        generator: Of a random truncation, what it draws by; None: torch's default one.
    """

    name: str
    draw: Callable[[int], Sequence[float] | Tensor] | None = None
    window: int | None = None
    p: float | None = None
    generator: torch.Generator | None = None

    @property
    def is_full(self) -> bool:
        """Whether nothing is truncated."""
        return self.draw is None and self.window is None

    def weights(self, T: int) -> Tensor | None:
        """Draw ξ_1 … ξ_T, (T,) float64 on the CPU; None where all are 1."""
        return None if self.draw is None else torch.as_tensor(self.draw(T), dtype=torch.float64, device="cpu")

    def __repr__(self) -> str:
        return self.name


def full() -> Truncation:
    """Follow every gradient back to the first step: no truncation, as None."""
    return Truncation("full()")


def chunked(k: int) -> Truncation:
    """Let nothing flow back across a border every k steps, as detaching the state there does.

    ξ_{t+1} = 0 for t = k, 2k, …   (B3)

    The gradient of h_0 is that of the first chunk. With k ≥ T nothing is truncated.

    Args:
        k: Steps of a chunk, at least 1.

    Raises:
        TypeError: k is no int.
        ValueError: k is below 1.
    """
    _check_steps("chunked", k)
    return Truncation(f"chunked({k})", partial(_chunks, k))


def windowed(k: int) -> Truncation:
    """Follow the gradient of each step's output back over k more steps: truncated BPTT with a sliding window.

    The loss at step s reaches h_s, h_{s-1}, …, h_{s-k} and nothing before; h_0 counts as a state (B9, Williams and Peng
    1990). It costs k products over the whole sequence. In a stack of layers each layer has a window of its own. With
    k ≥ T nothing is truncated.

    Args:
        k: How many steps back, at least 1.

    Raises:
        TypeError: k is no int.
        ValueError: k is below 1.
    """
    _check_steps("windowed", k)
    return Truncation(f"windowed({k})", window=k)


def randomized(p: float, generator: torch.Generator | None = None) -> Truncation:
    """Let the gradient flow back from step t with probability p, and then by 1/p: right on average.

    ξ_t is 1/p or 0, so that E[ξ_t] = 1   (B3; Tallec and Ollivier 2017)

    Drawn anew in every forward pass that keeps a graph, for all sequences of the batch alike, and in a stack for each
    layer and direction.

    Args:
        p: The probability, in (0, 1].
        generator: Of random numbers, on the CPU; None: torch's default one.

    Raises:
        TypeError: p is no number, or generator no torch.Generator.
        ValueError: p is outside (0, 1], or the generator is not on the CPU.
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"randomized: expected p to be a number, got {type(p).__name__}")
    if not 0 < p <= 1:
        raise ValueError(f"randomized: expected p in (0, 1], got {p}")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"randomized: expected generator to be a torch.Generator, got {type(generator).__name__}")
        if generator.device.type != "cpu":
            raise ValueError(f"randomized: expected generator on the CPU, got one on {generator.device}")
    return Truncation(
        f"randomized({p:g})", partial(_random_weights, float(p), generator), p=float(p), generator=generator
    )


def check(function: str, truncation: object) -> None:
    """TypeError unless this is a truncation, or None for none."""
    if truncation is not None and not isinstance(truncation, Truncation):
        raise TypeError(
            f"{function}: expected truncation to be None or made by full, chunked, windowed or randomized, "
            f"got {truncation!r}"
        )


def _check_steps(function: str, k: object) -> None:
    checks.integer(function, "k", k)
    if k < 1:  # type: ignore[operator]
        raise ValueError(f"{function}: expected k of at least 1 step, got {k}")


def _chunks(k: int, T: int) -> Sequence[float] | Tensor:
    if torch.compiler.is_compiling():  # T may be a symbol there
        steps = torch.arange(T)
        return (steps % k != 0) | (steps == 0)
    return [0.0 if t > 0 and t % k == 0 else 1.0 for t in range(T)]


def _random_weights(p: float, generator: torch.Generator | None, T: int) -> Tensor:
    with transforms.outside():  # one draw for everything that is mapped over
        drawn = torch.rand(T, generator=generator, dtype=torch.float64)
    weights = (drawn < p).to(torch.float64) / p
    weights[:1] = 1
    return weights
