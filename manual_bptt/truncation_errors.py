"""What a truncation costs and what it does to the gradient: bias, scatter, states held, products with W."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from manual_bptt import checks
from manual_bptt.conversion import convert
from manual_bptt.gradient_flow import checked, scalar
from manual_bptt.network import ElmanNetwork
from manual_bptt.truncation import Truncation
from manual_bptt.truncation import check as check_truncation


@dataclass(frozen=True)
class TruncatedGradient:
    """A truncated gradient beside the full one g; norms are over all parameters of the recurrence together.

    Attributes:
        truncation: What was truncated, and how.
        bias: ‖mean of the truncated gradient − g‖ / ‖g‖. Where there are draws it scatters by `bias_error` itself.
        bias_error: deviation / √draws: a bias of this size is what the mean of that many draws shows of none.
        deviation: √(mean of ‖truncated − its mean‖²) / ‖g‖; 0 where nothing is drawn.
        cosine: Of the angle between the mean truncated gradient and g.
    """

    truncation: Truncation
    bias: float
    bias_error: float
    deviation: float
    cosine: float

    @property
    def error(self) -> float:
        """√(bias² + deviation²): how far one truncated gradient is from g, root mean square, over ‖g‖."""
        return math.hypot(self.bias, self.deviation)


def truncation_errors(
    network: nn.Module,
    x: Tensor | PackedSequence,
    truncations: Sequence[Truncation],
    loss: Callable[[Any], Tensor] | None = None,
    hx: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    draws: int = 200,
) -> list[TruncatedGradient]:
    """Compare truncated gradients of a network's recurrence with the full one, on one batch.

    Args:
        network: As `gradient_flow` takes it; a copy is made, and it runs without dropout.
        x: As `gradient_flow` takes it.
        truncations: What is compared, each for all layers and directions.
        loss: Maps the network's output to a loss without dimensions. None: half the sum of squares of the output.
        hx: The state before the first step; None: zeros.
        lengths: How many steps each sequence has, as an RNN takes it; None: all.
        draws: Of how many gradients mean and deviation are taken where a truncation is random, at least 2.

    Returns:
        One TruncatedGradient for each truncation, in their order. The gradients are those of all parameters of an RNN,
        of an ElmanNetwork those of U, W and b: no truncation touches V and c.

    Raises:
        TypeError, ValueError: As `gradient_flow`; fewer than 2 draws; a full gradient that is zero or not finite.

    Source: docs/through_time.md.
    """
    checks.integer("truncation_errors", "draws", draws)
    if draws < 2:
        raise ValueError(f"truncation_errors: expected draws of at least 2, got {draws}")
    for each in truncations:
        check_truncation("truncation_errors", each)
    loss = checked("truncation_errors", network, x, loss, lengths)
    watched: Any = copy.deepcopy(network)
    if isinstance(watched, ElmanNetwork):
        parameters = [value for value in (watched.U, watched.W, watched.b) if value is not None]
        extra = {}
    else:
        watched = convert(watched).eval()
        parameters, extra = list(watched.parameters()), {"lengths": lengths}
    for parameter in watched.parameters():
        parameter.requires_grad_()

    def gradient(truncation: Truncation | None) -> Tensor:
        watched.truncation = truncation
        with torch.enable_grad():
            value = scalar("truncation_errors", loss(watched(x, hx, **extra)[0]))
            found = torch.autograd.grad(value, parameters)
        return torch.cat([each.flatten() for each in found])

    full = gradient(None)
    norm = full.norm().item()
    if not 0 < norm < math.inf:
        raise ValueError(f"truncation_errors: expected a full gradient that is finite and not zero, got norm {norm}")

    def compared(truncation: Truncation) -> TruncatedGradient:
        count = draws if truncation.is_random else 1
        mean, squares = torch.zeros_like(full), 0.0  # Welford's recurrences: no gradient is kept
        for index in range(1, count + 1):
            found = gradient(truncation)
            off = found - mean
            mean += off / index
            squares += (off @ (found - mean)).item()
        deviation = math.sqrt(squares / (count - 1)) / norm if count > 1 else 0.0
        cosine = torch.nn.functional.cosine_similarity(mean, full, dim=0).item()
        bias = (mean - full).norm().item() / norm
        return TruncatedGradient(truncation, bias, deviation / math.sqrt(count), deviation, cosine)

    return [compared(each) for each in truncations]
