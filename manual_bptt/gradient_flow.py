"""How gradients shrink and grow on their way back through time: measured on a network, beside the bounds that hold.

Works on every layer and direction of an RNN, on torch.nn.RNN, and on ElmanNetwork. The mathematics is that of
docs/derivation.md, section 8 and B9; nothing here is differentiated or trained.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from manual_bptt import checks, lags, recurrence
from manual_bptt.activations import ACTIVATIONS, Activation
from manual_bptt.conversion import convert
from manual_bptt.modules import RNN
from manual_bptt.network import ElmanNetwork

FAR = 0.01  # a share of a hundredth, or a hundredfold one, is told as vanished or exploded
FLAT = 0.1  # units whose slope is below this share of γ are told as saturated


@dataclass(frozen=True, eq=False)
class LayerFlow:
    """The flow through one layer in one direction; steps are those of the direction, its first step first.

    Attributes:
        name: "l0", "l0_reverse", "l1", …; of an ElmanNetwork "l0".
        nonlinearity: f.
        dh: ‖dL/dh_t‖ over batch and units, (T,).
        outside: ‖e_t‖, the part of it from outside the recurrence, (T,).
        by_step: Row s, column t: ‖g‖ of what the gradient that enters at step s contributes to dL/dh_t, (T, T); 0 for
            t > s.
        by_lag: For each lag j the gain ‖g_{t,j}‖ / ‖e_{t+j}‖, over all t together, (T,); NaN where nothing enters.
        bounds: (σ_max γ)^j, which no gain exceeds, (T,).
        floors: (σ_min m)^j with m the least slope of any unit at any step, below which no gain falls, (T,).
        eigenvalues: Of W, largest modulus first, (H,), complex.
        sigma_max: Largest singular value of W.
        gamma: γ, the largest slope that f has.
        singular_values: Of ∂h_T/∂h_t, for t = 1 … T and the first rows of the batch, (T, rows, H), largest first; T is
            the last step of each row, and after it they are NaN.
        lyapunov: Lyapunov exponents, (H,), largest first: what ln of a small difference of states grows by in a step.
        slopes: Mean f' at each step, (T,), over the units of all sequences that have such a step.
        saturated: Share of these units whose slope is less than a tenth of γ, (T,).
    """

    name: str
    nonlinearity: str
    dh: Tensor
    outside: Tensor
    by_step: Tensor
    by_lag: Tensor
    bounds: Tensor
    floors: Tensor
    eigenvalues: Tensor
    sigma_max: float
    gamma: float
    singular_values: Tensor
    lyapunov: Tensor
    slopes: Tensor
    saturated: Tensor

    @property
    def rate(self) -> float:
        """By what factor the gain changes a step, fitted over the lags from the first to the last that can be seen."""
        gains = self.by_lag[self.by_lag.isfinite() & (self.by_lag > 0)]
        if len(gains) < 2:
            return math.nan
        return math.exp((gains[-1].log() - gains[0].log()).item() / (len(gains) - 1))

    @property
    def kind(self) -> str:
        """What holds at the farthest lag that can be seen: "vanishing", "exploding" or "neither"."""
        gain = self.by_lag[self.farthest].item() if self.farthest > 0 else 1.0
        return "vanishing" if gain < FAR else "exploding" if gain > 1 / FAR else "neither"

    @property
    def farthest(self) -> int:
        """The farthest lag over which a loss can be followed back."""
        seen = self.by_lag.isfinite()
        return int(seen.nonzero().max()) if seen.any() else 0

    @property
    def since(self) -> int | None:
        """The lag from which on it vanishes or explodes; None where it does neither."""
        if self.kind == "neither":
            return None
        holds = self.by_lag < FAR if self.kind == "vanishing" else self.by_lag > 1 / FAR
        others = (~holds & self.by_lag.isfinite()).nonzero()
        return int(others.max()) + 1 if len(others) else 0

    @property
    def verdict(self) -> str:
        """Vanishing, exploding or neither, in a sentence, with the lag from which on it holds."""
        rate = f"×{self.rate:.2g} a step" if math.isfinite(self.rate) else "no lag can be seen"
        if self.kind == "neither":
            return f"neither vanishing nor exploding up to lag {self.farthest} ({rate})"
        how = "less than a hundredth" if self.kind == "vanishing" else "more than the hundredfold"
        return f"{self.kind}: from lag {self.since} on a loss adds {how} of what enters at its own step ({rate})"

    def __repr__(self) -> str:
        largest = self.eigenvalues.abs().max().item()
        return (
            f"{self.name}: {self.verdict}\n  max|λ| of W {largest:.3g}, σ_max {self.sigma_max:.3g}, γ {self.gamma:g}, "
            f"largest Lyapunov exponent {self.lyapunov[0].item():.3g}, saturated {self.saturated.mean().item():.0%}"
        )


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """The flow through all layers and directions.

    Attributes:
        layers: By name, the LayerFlow of each.
    """

    layers: Mapping[str, LayerFlow]

    def __getitem__(self, name: str) -> LayerFlow:
        if name not in self.layers:
            raise KeyError(f"{name!r}: there are {', '.join(self.layers)}")
        return self.layers[name]

    def __iter__(self) -> Iterator[LayerFlow]:
        return iter(self.layers.values())

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))


def gradient_flow(
    network: nn.Module,
    x: Tensor | PackedSequence,
    loss: Callable[[Any], Tensor] | None = None,
    hx: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    rows: int = 8,
) -> GradientFlow:
    """Measure how the gradients of a loss flow back through a network's states.

    dL/dh_t = Σ_j g_{t,j},  ‖g_{t,j}‖ ≤ (σ_max(W) γ)^j ‖e_{t+j}‖   (B9, section 8)

    Args:
        network: A manual_bptt.RNN, a torch.nn.RNN (a copy of it is converted), or an ElmanNetwork.
        x: Its input: (T, B, D), for an RNN also as batch_first says, or packed; for an ElmanNetwork also tokens (T, B).
        loss: Maps the network's output (its states, or o of an ElmanNetwork) to a loss without dimensions. None: half
            the sum of squares of the output.
        hx: The state before the first step, as the network takes it; None: zeros.
        lengths: How many steps each sequence has, as an RNN takes it; None: all T.
        rows: Of how many rows of the batch singular values and Lyapunov exponents are computed: decompositions of an
            H×H matrix at each step.

    Returns:
        GradientFlow. A truncation that the network has is not applied: what it would leave out is what is looked at.

    Raises:
        TypeError: The network is none of these, x no tensor, or there are lengths for an ElmanNetwork.
        ValueError: x of another rank or nested, fewer than 2 steps, a loss with dimensions, or parameters that are not
            finite.

    Memory: a graph of the forward pass, (T, T), and (T, rows, H).
    Source: docs/derivation.md, section 8 and B9.
    """
    checks.integer("gradient_flow", "rows", rows)
    if rows < 1:
        raise ValueError(f"gradient_flow: expected rows of at least 1, got {rows}")
    loss = checked("gradient_flow", network, x, loss, lengths)
    watched = copy.deepcopy(network)
    if isinstance(watched, ElmanNetwork):
        passes = _of_network(watched, x, loss, hx)
    else:
        passes = _of_module(watched, x, loss, hx, lengths)
    return GradientFlow({name: _layer(name, each, rows) for name, each in passes.items()})


def checked(
    function: str,
    network: nn.Module,
    x: Tensor | PackedSequence,
    loss: Callable[[Any], Tensor] | None,
    lengths: Tensor | Sequence[int] | None,
) -> Callable[[Any], Tensor]:
    """Raise for a network, input or parameters that cannot be looked at; return the loss, or what stands for none."""
    if not isinstance(network, (RNN, nn.RNN, ElmanNetwork)):
        kind = type(network)
        raise TypeError(
            f"{function}: expected network to be a manual_bptt.RNN, torch.nn.RNN or ElmanNetwork, "
            f"got {kind.__module__}.{kind.__name__}"
        )
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{function}: expected {name} to be finite, got NaN or infinite numbers")
    if isinstance(network, ElmanNetwork) and (lengths is not None or isinstance(x, PackedSequence)):
        raise TypeError(
            f"{function}: expected neither lengths nor a PackedSequence for an ElmanNetwork, got one of them: "
            "leave the steps after a sequence's end out of the loss"
        )
    if isinstance(x, PackedSequence):
        T, shape = x.batch_sizes.shape[0], f"batch sizes {x.batch_sizes.tolist()}"
    else:
        T, shape = _steps(function, network, x), str(tuple(x.shape))
    if T < 2:
        raise ValueError(f"{function}: expected at least 2 steps, got T = {T} in {shape}")
    return _half_squares if loss is None else loss


def _steps(function: str, network: nn.Module, x: Tensor) -> int:
    """T of an input, checked for its rank."""
    checks.tensor(function, "x", x)
    ranks = (2, 3) if isinstance(network, ElmanNetwork) and recurrence.are_tokens(x) else (3,)
    if x.is_nested:
        raise ValueError(f"{function}: expected x padded, with lengths, or packed, got a nested tensor")
    if x.dim() not in ranks:
        raise ValueError(f"{function}: expected x with a batch, (T, B, D) or (B, T, D), got {tuple(x.shape)}")
    return x.shape[1 if getattr(network, "batch_first", False) else 0]


def _half_squares(output: Any) -> Tensor:
    values: Tensor = output.data if isinstance(output, PackedSequence) else output
    return values.square().sum() / 2


def scalar(function: str, value: object) -> Tensor:
    """What a loss function returned, if it is a loss."""
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{function}: expected loss to return a loss without dimensions, got {got}")
    return value


@dataclass(frozen=True)
class _Pass:
    """What one layer and direction did.

    Attributes:
        e: The part of dL/dh_t that entered from outside, (T, B, H); 0 after a sequence's end.
        h: Its states, (T, B, H).
        running: Whether a sequence has that step, (T, B).
        W: (H, H).
        activation: f.
    """

    e: Tensor
    h: Tensor
    running: Tensor
    W: Tensor
    activation: Activation


def _of_network(network: ElmanNetwork, x: Any, loss: Callable[[Tensor], Tensor], hx: Tensor | None) -> dict[str, _Pass]:
    network.truncation = None
    with torch.enable_grad():
        o, h = network(x, hx)
        o = o.detach().requires_grad_()
        [do] = torch.autograd.grad(scalar("gradient_flow", loss(o)), [o])
    e = do @ network.V.detach()  # B3, first term
    running = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
    return {"l0": _Pass(e, h.detach(), running, network.W.detach(), ACTIVATIONS[network.nonlinearity])}


class _Watcher:
    """What a module takes for its recorder: keeps what the backward pass of each layer and direction sees."""

    run = staticmethod(RNN._run)

    def __init__(self) -> None:
        self.passes: dict[str, _Pass] = {}

    def next_call(self) -> Callable[..., None]:
        def keep(
            name: str,
            layout: object,
            turn: object,
            dh: Tensor,
            da: Tensor,
            h: Tensor,
            W: Tensor,
            ended: Tensor | None,
            settings: recurrence.Settings,
        ) -> None:
            if settings.sizes is not None:  # packed: the rows of all steps
                e, h = _padded(dh.detach(), settings.sizes), _padded(h.detach(), settings.sizes)
                sizes = torch.tensor(settings.sizes, device=h.device).unsqueeze(1)
                running = torch.arange(h.shape[1], device=h.device) < sizes
            else:
                e, h = dh.detach(), h.detach()
                running = torch.ones_like(h[..., 0], dtype=torch.bool) if ended is None else ~ended.squeeze(2)
                e = e.masked_fill(~running.unsqueeze(2), 0)
            longest = int(running.any(1).sum())
            e, h, running = e[:longest], h[:longest], running[:longest]
            self.passes[name] = _Pass(e, h, running, W.detach(), settings.activation)

        return keep


def _padded(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of packed sequences as (T, B, H), 0 after each sequence's end."""
    return nn.utils.rnn.pad_sequence(list(torch.split_with_sizes(rows, list(sizes)))).transpose(0, 1)


def _of_module(
    module: Any,
    x: Tensor | PackedSequence,
    loss: Callable[[Any], Tensor],
    hx: Tensor | None,
    lengths: Tensor | Sequence[int] | None,
) -> dict[str, _Pass]:
    module = convert(module)
    module.truncation = None
    module.eval()  # no dropout
    module._recorder = watcher = _Watcher()
    with torch.enable_grad():
        for parameter in module.parameters():
            parameter.requires_grad_()
        output, _ = module(x, hx, lengths=lengths)
        torch.autograd.grad(scalar("gradient_flow", loss(output)), list(module.parameters()), allow_unused=True)
    if not watcher.passes:
        raise ValueError("gradient_flow: expected a loss that depends on the output, got one that does not")
    T = next(iter(watcher.passes.values())).h.shape[0]
    if T < 2:
        raise ValueError(f"gradient_flow: expected a sequence of at least 2 steps, got {T} as the largest of lengths")
    return dict(sorted(watcher.passes.items()))


@torch.no_grad()
def _layer(name: str, done: _Pass, rows: int) -> LayerFlow:
    activation, W, e = done.activation, done.W, done.e
    running = done.running.unsqueeze(2)
    T = done.h.shape[0]
    slope = activation.slope(done.h).masked_fill(~running, 0)
    slopes = activation.times(slope, torch.ones_like(slope)).masked_fill(~running, 0)
    units = running.sum((1, 2)) * W.shape[0]
    outside = e.flatten(1).norm(dim=1)
    by_step = outside.new_zeros(T, T)
    by_lag = outside.new_full((T,), math.nan)
    total = torch.zeros_like(e)
    for lag, share in enumerate(lags.by_lag(e, slope, W, activation)):
        norms = share.flatten(1).norm(dim=1)
        by_step.diagonal(-lag).copy_(norms)  # row t + lag, column t
        entered = outside[lag:].norm()
        by_lag[lag] = norms.norm() / entered if entered > 0 else math.nan
        total = lags.add_steps(total, share, None, lag)
    singular = torch.linalg.svdvals(W)
    sigma_max = singular[0].item()
    least = slopes[done.running].min()
    steps_back = torch.arange(T, dtype=W.dtype, device=W.device)
    gamma = activation.steepest
    return LayerFlow(
        name=name,
        nonlinearity=activation.name,
        dh=total.flatten(1).norm(dim=1),
        outside=outside,
        by_step=by_step,
        by_lag=by_lag,
        bounds=(sigma_max * gamma) ** steps_back,
        floors=(singular[-1] * least) ** steps_back,
        eigenvalues=_by_modulus(torch.linalg.eigvals(W)),
        sigma_max=sigma_max,
        gamma=gamma,
        singular_values=_singular_values(slopes[:, :rows], W, running[:, :rows]),
        lyapunov=_lyapunov(slopes[:, :rows], W, running[:, :rows]),
        slopes=slopes.sum((1, 2)) / units,
        saturated=((slopes < FLAT * gamma) & running).sum((1, 2)).to(W.dtype) / units,
    )


def _by_modulus(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True)]


def _jacobians(slopes: Tensor, W: Tensor, running: Tensor) -> tuple[Callable[[int], Tensor], Tensor]:
    """∂h_{t+1}/∂h_t of each row, (rows, H, H), by t = 0 … T - 1; it is the identity once a row has ended. And that."""
    same = torch.eye(W.shape[0], dtype=W.dtype, device=W.device).expand(slopes.shape[1], -1, -1)
    return lambda t: torch.where(running[t].unsqueeze(2), slopes[t].unsqueeze(2) * W, same), same


def _singular_values(slopes: Tensor, W: Tensor, running: Tensor) -> Tensor:
    """Singular values of ∂h_T/∂h_t for t = 1 … T, the product of the Jacobians of the steps t + 1 … T."""
    jacobian, product = _jacobians(slopes, W, running)
    values = [torch.ones_like(product[..., 0])]
    for t in range(len(slopes) - 1, 0, -1):
        product = product @ jacobian(t)
        values.append(torch.linalg.svdvals(product))
    return torch.stack(values[::-1]).masked_fill(~running, math.nan)


def _lyapunov(slopes: Tensor, W: Tensor, running: Tensor) -> Tensor:
    """Exponents by the QR method: a frame is carried along and straightened at each step; what it grew by is kept."""
    jacobian, frame = _jacobians(slopes, W, running)
    growth = torch.zeros_like(frame[..., 0])
    for t in range(len(slopes)):
        frame, upper = torch.linalg.qr(jacobian(t) @ frame)
        growth = growth + upper.diagonal(dim1=-2, dim2=-1).abs().clamp(min=torch.finfo(upper.dtype).tiny).log()
    lengths = running.sum(0)  # (rows, 1)
    return (growth / lengths)[lengths[:, 0] > 0].sort(descending=True).values.mean(0)
