"""What a truncation does to the gradient: how far truncated gradients are from the full one, by bias and by scatter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manual_bptt import checks
from manual_bptt.observed import Input, Lengths, Loss, Observed, Pass
from manual_bptt.truncation import Truncation
from manual_bptt.truncation import check as check_truncation


@dataclass(frozen=True)
class TruncatedGradient:
    """A truncated gradient beside the full one g; norms are over all parameters of the recurrence together.

    Attributes:
        truncation: What was truncated, and how.
        bias: ‖mean of the truncated gradient − g‖ / ‖g‖. Of a random truncation it is 0; where it was drawn, what was
            found.
        deviation: √(mean of ‖truncated − its mean‖²) / ‖g‖; 0 where nothing is random.
        draws: Over how many draws both were found; 0 where they are exact.
    """

    truncation: Truncation
    bias: float
    deviation: float
    draws: int = 0

    @property
    def error(self) -> float:
        """√(bias² + deviation²): how far one truncated gradient is from g, root mean square, over ‖g‖."""
        return math.hypot(self.bias, self.deviation)

    @property
    def is_seen(self) -> bool:
        """Whether the error can be trusted: no, where draws show a bias that cannot be, since rare ones were missed."""
        return self.draws == 0 or self.bias < 3 * self.deviation / math.sqrt(self.draws)


def truncation_errors(
    network: nn.Module,
    x: Input,
    truncations: Sequence[Truncation],
    loss: Loss | None = None,
    hx: Tensor | None = None,
    *,
    lengths: Lengths = None,
    draws: int = 200,
) -> list[TruncatedGradient]:
    """Compare truncated gradients of a network's recurrence with the full one, on one batch.

    Args:
        network: As `gradient_flow` takes it.
        x: As `gradient_flow` takes it.
        truncations: What is compared, each for all layers and directions.
        loss: As `gradient_flow` takes it.
        hx: The state before the first step; None: zeros.
        lengths: How many steps each sequence has, as an RNN takes it; None: all.
        draws: Of how many gradients mean and deviation are taken where a truncation is random and there are several
            layers, at least 2. With one layer the deviation is computed exactly (B10).

    Returns:
        One TruncatedGradient for each truncation, in their order. The gradients are those of all parameters of an RNN,
        of an ElmanNetwork those of U, W and b: no truncation touches V and c.

    Raises:
        TypeError, ValueError: As `gradient_flow`; fewer than 2 draws; a full gradient that is zero.

    Source: docs/derivation.md, section 13.
    """
    checks.integer("truncation_errors", "draws", draws)
    if draws < 2:
        raise ValueError(f"truncation_errors: expected draws of at least 2, got {draws}")
    if isinstance(truncations, Truncation):
        raise TypeError("truncation_errors: expected truncations to be a list of them, got one")
    for each in truncations:
        check_truncation("truncation_errors", each)
    observed = Observed("truncation_errors", network, x, loss, hx, lengths)
    full = observed.gradient(None)
    norm = full.norm().item()
    if norm == 0:
        raise ValueError("truncation_errors: expected a full gradient that is not zero, got 0")
    one_layer = all(seen.x is not None for seen in observed.passes.values())

    def compared(truncation: Truncation) -> TruncatedGradient:
        if truncation.p is None:
            bias = (observed.gradient(truncation) - full).norm().item() / norm
            return TruncatedGradient(truncation, bias, 0.0)
        if one_layer:
            variance = sum(_variance(seen, observed.biases, truncation.p) for seen in observed.passes.values())
            return TruncatedGradient(truncation, 0.0, math.sqrt(max(0.0, variance)) / norm)
        mean, squares = torch.zeros_like(full), 0.0  # Welford's recurrences: no gradient is kept
        for index in range(1, draws + 1):
            found = observed.gradient(truncation)
            off = found - mean
            mean += off / index
            squares += (off @ (found - mean)).item()
        bias, deviation = (mean - full).norm().item() / norm, math.sqrt(squares / (draws - 1)) / norm
        return TruncatedGradient(truncation, bias, deviation, draws)

    return [compared(each) for each in truncations]


@torch.no_grad()
def _variance(seen: Pass, biases: int, p: float) -> float:
    """E‖dU, dW, db − their mean‖² over the draws of a random truncation (B10), exactly, for all b of a run at once."""
    assert seen.x is not None
    T = len(seen.h)
    before = torch.cat((seen.h0.unsqueeze(0), seen.h[:-1]))
    read = torch.cat((seen.x, before, seen.h.new_full((*seen.h.shape[:2], 1), math.sqrt(biases))), 2)  # what da_t meets
    read = read.masked_fill(~seen.running.unsqueeze(2), 0)
    slope = seen.activation.slope(seen.h).masked_fill(~seen.running.unsqueeze(2), 0)

    def gradients(da: Tensor, steps: slice) -> Tensor:
        """B5-B7 of each step, (steps, H · (D + H + 1))."""
        return (da.transpose(1, 2) @ read[steps]).flatten(1)

    da = seen.activation.times(slope, seen.total)
    from_here = gradients(da, slice(0, T)).flip(0).cumsum(0).flip(0)  # F_a, a = 1 … T
    after = torch.cat((from_here[1:], torch.zeros_like(from_here[:1])))  # F_{b+1}, b = 1 … T
    run = torch.zeros_like(after)  # A(a, b) for b = 1 … T, a = b - length
    values = after.new_zeros(T, T)  # ‖A(a, b)‖² + 2⟨A(a, b), F_{b+1}⟩, row a, column b
    da = seen.activation.times(slope, seen.e)  # of the run's last step
    for length in range(T):
        run = run[-(T - length) :] + gradients(da, slice(0, T - length))  # b = length + 1 … T
        values.diagonal(length).copy_((run * (run + 2 * after[length:])).sum(1))
        if length + 1 < T:
            arriving = seen.e[: T - length - 1] + (da[1:] @ seen.W) / p  # B3 with ξ = 1/p
            da = seen.activation.times(slope[: T - length - 1], arriving)
    moments = after.new_zeros(T + 1)  # E‖G_a‖², a = 1 … T + 1
    for a in reversed(range(T)):
        chances = p ** torch.arange(T - a, dtype=values.dtype, device=values.device)
        chances[:-1] *= 1 - p
        moments[a] = chances @ (values[a, a:] + moments[a + 1 :])
    return (moments[0] - from_here[0] @ from_here[0]).item()
