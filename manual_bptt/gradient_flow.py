"""How gradients shrink and grow on their way back through time: measured on a network, beside the bounds that hold.

Works on every layer and direction of an RNN, on torch.nn.RNN, and on ElmanNetwork. The mathematics is that of
docs/derivation.md, section 8 and B9; nothing here is differentiated or trained.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from manual_bptt import checks, lags
from manual_bptt.observed import Input, Lengths, Loss, Observed, Pass

FAR = 0.01  # a share of a hundredth, or a hundredfold one, is told as vanished or exploded
FLAT = 0.1  # units whose slope is below this share of γ are told as saturated


@dataclass(frozen=True, eq=False)
class Gains:
    """How much is left of a gradient by distance in time, and what that is called.

    Attributes:
        values: By distance, (T,); NaN where it cannot be seen.
    """

    values: Tensor

    @property
    def farthest(self) -> int:
        """The farthest distance that can be seen; 0 where none can."""
        seen = self.values.isfinite()
        return int(seen.nonzero().max()) if seen.any() else 0

    @property
    def kind(self) -> str:
        """What holds at the farthest distance: "vanishing", "exploding", "neither"; "unseen" where none can be seen."""
        if self.farthest == 0:
            return "unseen"
        gain = self.values[self.farthest].item()
        return "vanishing" if gain < FAR else "exploding" if gain > 1 / FAR else "neither"

    @property
    def since(self) -> int | None:
        """The distance from which on it vanishes or explodes; None where it does neither."""
        if self.kind not in ("vanishing", "exploding"):
            return None
        holds = self.values < FAR if self.kind == "vanishing" else self.values > 1 / FAR
        return int((~holds & self.values.isfinite()).nonzero().max()) + 1  # at distance 0 it is 1

    @property
    def rate(self) -> float:
        """By what factor it changes a step, on average over the farther half of what can be seen."""
        seen = (self.values.isfinite() & (self.values > 0)).nonzero().flatten()
        if len(seen) < 2:
            return math.nan
        first, last = int(seen[(len(seen) - 1) // 2]), int(seen[-1])
        return math.exp((self.values[last].log() - self.values[first].log()).item() / (last - first))

    def told(self, what: str, distance: str) -> str:
        """The verdict on `what`, which is left by `distance`, in a sentence."""
        if self.kind == "unseen":
            return f"no {distance} can be seen: nothing comes from a later step"
        peak = int(self.values.nan_to_num(0.0).argmax())
        grown = f", after {self.values[peak].item():.3g} times as much at {distance} {peak}" if peak else ""
        rate = f"×{self.rate:.2g} a step in the end" if math.isfinite(self.rate) else "nothing in the end"
        if self.kind == "neither":
            left = self.values[self.farthest].item()
            return (
                f"neither vanishing nor exploding: at {distance} {self.farthest} {left:.2g} of {what} is left ({rate})"
            )
        how = (
            f"less than a hundredth of {what} is left" if self.kind == "vanishing" else f"{what} is over a hundredfold"
        )
        return f"{self.kind}: from {distance} {self.since} on {how} ({rate}{grown if self.kind == 'vanishing' else ''})"


@dataclass(frozen=True, eq=False)
class LayerFlow:
    """The flow through one layer in one direction; in float64. Steps are those of the direction, its first one first.

    Attributes:
        name: "l0", "l0_reverse", "l1", …; of an ElmanNetwork "l0".
        nonlinearity: f.
        dh: ‖dL/dh_t‖ over batch and units, (T,).
        outside: ‖e_t‖, the part of it that enters from outside the recurrence: from the loss at t, and where there is a
            layer above, from all that comes down from there, (T,).
        by_step: Row s, column t: ‖g‖ of what enters at step s, when it has come to h_t along this layer's recurrence,
            (T, T); 0 for t > s.
        by_loss: Row s, column t: ‖the share of the loss at step s in dL/dh_t‖, through all layers and directions, (T,
            T), both s and t in the order of the input; as by_step where there is one layer in one direction. None
            where it was not asked for.
        by_lag: For each lag j the gain ‖g_{t,j}‖ / ‖e_{t+j}‖ along this layer's recurrence, over all t together, (T,);
            NaN where nothing enters.
        bounds: (σ_max γ)^j, which no gain exceeds, (T,).
        floors: (σ_min m)^j with m the least slope of any unit at any step, below which no gain falls, (T,).
        eigenvalues: Of W, largest modulus first, (H,), complex.
        sigma_max: Largest singular value of W.
        gamma: γ, the largest slope that f has.
        singular_values: Of ∂h_T/∂h_t, for t = 1 … T and the first rows of the batch, (T, rows, H), largest first; T is
            the last step of each row. NaN after it, and where a value is so far below the largest (H · 2e-16) that
            rounding hides it.
        lyapunov: Lyapunov exponents, (H,), largest first: ln of what a small difference of states grows by in a step,
            on average over all steps and these rows.
        slopes: Mean f' at each step, (T,), over the units of all sequences that have such a step.
        saturated: Share of these units whose slope is less than a tenth of γ, (T,).
    """

    name: str
    nonlinearity: str
    dh: Tensor
    outside: Tensor
    by_step: Tensor
    by_loss: Tensor | None
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
    def gains(self) -> Gains:
        """by_lag, with what it is called: kind, since, rate."""
        return Gains(self.by_lag)

    @property
    def verdict(self) -> str:
        """Vanishing, exploding or neither along this layer's recurrence, in a sentence."""
        return self.gains.told("what enters", "lag")

    def __repr__(self) -> str:
        largest = self.eigenvalues.abs().max().item()
        exponent = "" if self.lyapunov.isnan().all() else f"largest Lyapunov exponent {self.lyapunov[0].item():.2g}, "
        return (
            f"{self.name}: {self.verdict}\n  max|λ| of W {largest:.3g}, σ_max {self.sigma_max:.3g}, γ {self.gamma:g}, "
            f"{exponent}units with a slope below γ/10: {self.saturated.mean().item():.0%}"
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

    @property
    def gains(self) -> Gains:
        """How much of a loss arrives at the first layer's states, by distance: over what arrives at its own step."""
        shares = [layer.by_loss for layer in self if layer.name.startswith("l0") and layer.by_loss is not None]
        if not shares:
            raise ValueError("gains: expected a flow with losses followed one by one, got one without: by_loss=True")
        squares = torch.stack(shares).square().sum(0)
        T = len(squares)
        own = squares.diagonal()
        values = squares.new_full((T,), math.nan)
        for distance in range(T):
            later, earlier = squares.diagonal(-distance), squares.diagonal(distance)
            arrived, left = later.sum(), own[distance:].sum()
            if distance > 0 and earlier.any():  # a state that also sees what comes after it
                arrived, left = arrived + earlier.sum(), left + own[: T - distance].sum()
            if left > 0:
                values[distance] = (arrived / left).sqrt()
        return Gains(values)

    @property
    def verdict(self) -> str:
        """Vanishing, exploding or neither from the loss through all layers to the first one's states, in a sentence."""
        return self.gains.told("a loss", "distance")

    def __repr__(self) -> str:
        layers = list(map(repr, self))
        if len(layers) > 1 and next(iter(self)).by_loss is not None:
            layers.insert(0, f"from the loss to the states of l0: {self.verdict}")
        return "\n".join(layers)


def gradient_flow(
    network: nn.Module,
    x: Input,
    loss: Loss | None = None,
    hx: Tensor | None = None,
    *,
    lengths: Lengths = None,
    rows: int = 8,
    by_loss: bool = True,
) -> GradientFlow:
    """Measure how the gradients of a loss flow back through a network's states.

    dL/dh_t = Σ_j g_{t,j},  (σ_min(W) m)^j ‖e_{t+j}‖ ≤ ‖g_{t,j}‖ ≤ (σ_max(W) γ)^j ‖e_{t+j}‖   (B9, section 8)

    Args:
        network: A manual_bptt.RNN, a torch.nn.RNN (a copy of it is converted), or an ElmanNetwork, of a real dtype.
        x: Its input: (T, B, D), for an RNN also as batch_first says, or packed; for an ElmanNetwork also tokens (T, B).
        loss: Maps the network's output (its states, not the pair that it returns; o of an ElmanNetwork) to a loss
            without dimensions. None: half the sum of squares of the output.
        hx: The state before the first step, as the network takes it; None: zeros.
        lengths: How many steps each sequence has, as an RNN takes it; None: all T.
        rows: Of how many rows of the batch singular values and Lyapunov exponents are computed: decompositions of an
            H×H matrix at each step. 0: of none, and the exponents are NaN.
        by_loss: Whether to follow the loss of each step by itself. Where there are several layers or directions that
            takes T backward passes.

    Returns:
        GradientFlow. The network is run in its own dtype and without dropout, and measured in float64. A truncation
        that it has is not applied: what it would leave out is what is looked at.

    Raises:
        TypeError: The network is none of these, x no tensor, loss no function, or there are lengths for an
            ElmanNetwork.
        ValueError: x of another rank or nested, fewer than 2 steps, a loss with dimensions or that does not depend on
            the output; input, parameters, loss, states or gradients that are not finite.

    Warns:
        UserWarning: The loss reads the output after a sequence's end.

    Memory: a graph of the forward pass, (T, T), and (T, rows, H).
    Source: docs/derivation.md, section 8 and B9.
    """
    checks.integer("gradient_flow", "rows", rows)
    if rows < 0:
        raise ValueError(f"gradient_flow: expected rows of at least 0, got {rows}")
    observed = Observed("gradient_flow", network, x, loss, hx, lengths)
    shares: dict[str, Tensor] = {}
    if by_loss and len(observed.layers) > 1:
        each = list(observed.by_loss())
        shares = {name: torch.stack([found[name] for found in each]) for name in observed.layers}
    layers = {}
    for name, seen in observed.passes.items():
        layer = _layer(name, seen, rows)
        layers[name] = replace(layer, by_loss=shares.get(name, layer.by_step) if by_loss else None)
    return GradientFlow(layers)


@torch.no_grad()
def _layer(name: str, done: Pass, rows: int) -> LayerFlow:
    activation, W, e = done.activation, done.W, done.e
    running = done.running.unsqueeze(2)
    T = done.h.shape[0]
    slope = activation.slope(done.h).masked_fill(~running, 0)
    slopes = activation.times(slope, torch.ones_like(slope)).masked_fill(~running, 0)
    units = running.sum((1, 2)) * W.shape[0]
    outside = e.flatten(1).norm(dim=1)
    by_step = outside.new_zeros(T, T)
    by_lag = outside.new_full((T,), math.nan)
    for lag, share in enumerate(lags.by_lag(e, slope, W, activation)):
        norms = share.flatten(1).norm(dim=1)
        by_step.diagonal(-lag).copy_(norms)  # row t + lag, column t
        entered = outside[lag:].norm()
        by_lag[lag] = norms.norm() / entered if entered > 0 else math.nan
    singular = torch.linalg.svdvals(W)
    sigma_max = singular[0].item()
    least = slopes[done.running].min()
    steps_back = torch.arange(T, dtype=W.dtype, device=W.device)
    gamma = activation.steepest
    return LayerFlow(
        name=name,
        nonlinearity=activation.name,
        dh=done.total.flatten(1).norm(dim=1),
        outside=outside,
        by_step=by_step,
        by_loss=None,
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
    """The Jacobian ∂h_{t+1}/∂h_t of each row, (rows, H, H), by t = 0 … T - 1, I once a row has ended; and I itself."""
    same = torch.eye(W.shape[0], dtype=W.dtype, device=W.device).expand(slopes.shape[1], -1, -1)
    return lambda t: torch.where(running[t].unsqueeze(2), slopes[t].unsqueeze(2) * W, same), same


def _singular_values(slopes: Tensor, W: Tensor, running: Tensor) -> Tensor:
    """Singular values of ∂h_T/∂h_t for t = 1 … T, the product of the Jacobians of the steps t + 1 … T."""
    jacobian, product = _jacobians(slopes, W, running)
    scale = torch.zeros_like(product[:, :1, :1])  # ln of what the product was divided by, so that it stays finite
    values = [torch.ones_like(product[..., 0])]
    hidden = W.shape[0] * torch.finfo(W.dtype).eps
    for t in range(len(slopes) - 1, 0, -1):
        product = product @ jacobian(t)
        size = product.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
        product, scale = product / size, scale + size.log()
        found = torch.linalg.svdvals(product)
        found = found.masked_fill(found < hidden * found[:, :1], math.nan)
        values.append(found * scale[..., 0].exp())
    return torch.stack(values[::-1]).masked_fill(~running, math.nan)


def _lyapunov(slopes: Tensor, W: Tensor, running: Tensor) -> Tensor:
    """Exponents by the QR method: a frame is carried along and straightened at each step; what it grew by is kept."""
    jacobian, frame = _jacobians(slopes, W, running)
    growth = torch.zeros_like(frame[..., 0])
    for t in range(len(slopes)):
        frame, upper = torch.linalg.qr(jacobian(t) @ frame)
        growth = growth + upper.diagonal(dim1=-2, dim2=-1).abs().log()
    lengths = running.sum(0)  # (rows, 1)
    return (growth / lengths)[lengths[:, 0] > 0].sort(descending=True).values.mean(0)
