"""The figures of `bptt flow` that show what was measured. Needs matplotlib."""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from manual_bptt.cli.figures import COLOURS, DASHES, FAINT, MARKERS, WIDTH, figure

if TYPE_CHECKING:
    from manual_bptt.cli.flow import Findings
    from manual_bptt.gradient_flow import LayerFlow

LOWEST = 1e-12  # gains below are not drawn


def flow(findings: "Findings") -> Figure:
    """What enters and what arrives at each step, gains beside their bounds, Jacobians, saturation."""
    layers = list(findings.flow)
    drawn = figure(6.4, "How gradients flow back through this network")
    (arriving, gains), (jacobians, slopes) = drawn.subplots(2, 2)
    for layer, colour, marker in zip(layers, cycle(COLOURS), cycle(MARKERS)):
        style: dict[str, Any] = {"color": colour, "marker": marker, "markevery": max(1, len(layer.dh) // 8), "ms": 4}
        steps = range(1, len(layer.dh) + 1)
        arriving.plot(steps, _shown(layer.dh), label=f"{layer.name}: ‖dL/dh_t‖", **style)
        arriving.plot(steps, _shown(layer.outside), color=colour, linestyle=":")
        gains.plot(_shown(layer.by_lag), label=f"{layer.name}", **style)
        gains.plot(_shown(layer.bounds), color=colour, linestyle="--", linewidth=1)
        gains.plot(_shown(layer.floors), color=colour, linestyle="--", linewidth=1)
        values = layer.singular_values[:, 0].flip(0)
        values = values[values[:, 0].isfinite()]
        jacobians.plot(_shown(values[:, 0]), **style)
        jacobians.plot(_shown(values[:, values.shape[1] // 2]), color=colour, linestyle="--", linewidth=1)
        slopes.plot(steps, layer.slopes.tolist(), **style)
        slopes.plot(steps, layer.saturated.tolist(), color=colour, linestyle="--", linewidth=1)
    _label(arriving, "step t", "norm", "Arriving at step t (dotted: entering there)")
    _label(gains, "lag: steps from the loss to the state", "gain", "Gain by lag (dashed: its two bounds)")
    _label(jacobians, "steps back from the last", "singular value", "∂h_T/∂h_t: largest (dashed: median)")
    _label(slopes, "step t", "slope, share", "Mean slope f′ (dashed: share saturated)")
    _log(arriving)
    _log(gains, LOWEST)
    _log(jacobians, LOWEST)
    slopes.set_ylim(-0.03, 1.05 * max(1.0, *(layer.gamma for layer in layers)))
    if len(layers) > 1:
        drawn.legend(
            *gains.get_legend_handles_labels(), loc="outside lower center", ncols=min(8, len(layers)), frameon=False
        )
    return drawn


def losses_and_states(findings: "Findings") -> Figure:
    """The heat map: what the loss of each step contributes to dL/dh_t of each step, over what enters at its own."""
    layers = list(findings.flow)
    columns = min(2, len(layers))
    rows = math.ceil(len(layers) / columns)
    size = (5.2, 6.4) if columns == 1 else (0.6 + 3.5 * rows, WIDTH)
    drawn = figure(size[0], "What each loss contributes to each state", size[1])
    panels = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    shares = []
    for layer in layers:
        share = layer.by_step / layer.outside.unsqueeze(1)
        shares.append(share.where(share.isfinite() & (share > 0), share.new_tensor(math.nan)))
    seen = [value for share in shares for value in share[share.isfinite()].tolist()]
    norm = LogNorm(max(min(seen, default=LOWEST), LOWEST), max(1.0, *seen, LOWEST))
    for panel, layer, share in zip(panels, layers, shares, strict=False):
        T = len(layer.dh)
        edges = [0.5 + step for step in range(T + 1)]
        panel.pcolormesh(edges, edges, share.numpy(), cmap="cividis", norm=norm, rasterized=True)
        panel.set_aspect("equal")
        if len(layers) > 1:
            panel.set_title(layer.name, fontsize=10)
    for panel in panels[len(layers) :]:
        panel.set_visible(False)
    drawn.supxlabel("state at step t", fontsize=10)
    drawn.supylabel("loss at step s", fontsize=10)
    bar = drawn.colorbar(ScalarMappable(norm, "cividis"), ax=list(panels), shrink=0.9)
    bar.set_label("‖share of loss s in dL/dh_t‖ / ‖what enters at s‖", fontsize=10)
    return drawn


def eigenvalues(findings: "Findings") -> Figure:
    """The eigenvalues of W of each layer and direction on the unit circle."""
    layers = list(findings.flow)
    drawn = figure(5.6, "Eigenvalues of W, unit circle, σ_max (dashed)", width=6.4)
    panel = drawn.subplots()
    panel.add_patch(Circle((0, 0), 1, fill=False, edgecolor="black", linewidth=1.2, label="|λ| = 1"))
    for layer, colour, marker in zip(layers, cycle(COLOURS), cycle(MARKERS)):
        values = layer.eigenvalues.tolist()
        label = f"{layer.name}: max|λ| = {abs(values[0]):.3g}, σ_max = {layer.sigma_max:.3g}"
        panel.plot(
            [value.real for value in values], [value.imag for value in values], marker, color=colour, ms=5, label=label
        )
        panel.add_patch(Circle((0, 0), layer.sigma_max, fill=False, edgecolor=colour, linestyle="--", linewidth=1))
    reach = 1.08 * max(1.0, *(layer.sigma_max for layer in layers))
    panel.set_xlim(-reach, reach)
    panel.set_ylim(-reach, reach)
    panel.set_aspect("equal")
    panel.grid(color=FAINT)
    panel.set_axisbelow(True)
    panel.set_xlabel("real part", fontsize=10)
    panel.set_ylabel("imaginary part", fontsize=10)
    drawn.legend(*panel.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=10)
    return drawn


def radii(findings: "Findings") -> Figure:
    """Gain against lag for several spectral radii of W, a panel per nonlinearity."""
    drawn = figure(4.2, "Gradient norm against lag, W scaled to spectral radius ρ")
    panels = drawn.subplots(1, len(findings.radii), sharey=True, squeeze=False)[0]
    for panel, (nonlinearity, by_radius) in zip(panels, findings.radii.items(), strict=True):
        for (radius, measured), colour, dash in zip(by_radius.items(), cycle(COLOURS), cycle(DASHES)):
            layer: LayerFlow = next(iter(measured))
            panel.plot(_shown(layer.by_lag), color=colour, linestyle=dash, linewidth=1.8, label=f"ρ = {radius:g}")
        _label(panel, "lag: steps from the loss to the state", "", f"f = {nonlinearity}")
    _log(panels, LOWEST)
    panels[0].set_ylabel("gain", fontsize=10)
    drawn.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(by_radius), frameon=False
    )
    return drawn


def truncations(findings: "Findings") -> Figure:
    """Bias, deviation and error of truncated gradients against the states that are held."""
    drawn = figure(4.2, "Truncated gradients against the full one, at equal numbers of states held")
    panels = drawn.subplots(1, 3, sharey=True)
    held = list(findings.truncations)
    for index, name in enumerate(("chunked", "windowed", "randomized")):
        mine = [findings.truncations[states][index] for states in held]
        style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "label": name}
        if name != "randomized":
            panels[0].plot(held, [each.bias for each in mine], **style)
            panels[2].plot(held, [each.error for each in mine], **style)
        else:
            panels[1].plot(held, [each.deviation for each in mine], **style)
            panels[2].plot(held, [each.deviation for each in mine], **style)
    for panel, title in zip(
        panels, ("Bias (randomized: 0)", "Deviation (others: 0)", "Error: both together"), strict=True
    ):
        _label(panel, "states held", "", title)
        if held:
            panel.set_xscale("log", base=2)
            panel.set_xticks(held, [str(states) for states in held])
    _log(panels, LOWEST)
    panels[0].set_ylabel("part of ‖full gradient‖", fontsize=10)
    drawn.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return drawn


def _shown(values: Tensor) -> list[float]:
    """For a logarithmic axis: what is not positive and finite is a gap."""
    return [value if 0 < value < math.inf else math.nan for value in values.tolist()]


def _label(panel: Axes, x: str, y: str, title: str) -> None:
    panel.set_xlabel(x, fontsize=10)
    panel.set_ylabel(y, fontsize=10)
    panel.set_title(title, fontsize=10)
    panel.grid(color=FAINT)
    panel.set_axisbelow(True)


def _log(panels: Axes | Sequence[Axes], floor: float = 0.0) -> None:
    """Scale the y axes over what is drawn, from a floor on: logarithmically where it ranges over more than tenfold."""
    panels = [panels] if isinstance(panels, Axes) else panels
    lines = [line for panel in panels for line in panel.get_lines()]
    drawn: list[float] = [y for line in lines for y in np.asarray(line.get_ydata()).tolist()]
    seen = [y for y in drawn if math.isfinite(y)]
    if not seen:
        return
    low, high = max(min(seen), floor), max(seen)
    for panel in panels:
        if high > 10 * low:
            panel.set_yscale("log")
            panel.set_ylim(low / 2, high * 2)
        else:
            panel.set_ylim(0, high * 1.1)
