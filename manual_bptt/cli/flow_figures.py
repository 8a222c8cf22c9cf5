"""The figures of `bptt flow` that show what was measured. Needs matplotlib."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from manual_bptt.cli.figures import COLOURS, DASHES, FAINT, MARKERS, WIDTH, figure

if TYPE_CHECKING:
    from manual_bptt.cli.flow import Findings

LOWEST = 1e-12  # gains below are not drawn


def flow(findings: "Findings") -> Figure:
    """What enters and what arrives at each step, gains beside their bounds, Jacobians, saturation."""
    layers = list(findings.flow)
    rows = math.ceil(len(layers) / 6)
    drawn = figure(6.2 + 0.3 * rows, "How gradients flow back through this network")
    (arriving, gains), (jacobians, slopes) = drawn.subplots(2, 2)
    for index, layer in enumerate(layers):
        colour, marker = _style(index)
        style: dict[str, Any] = {"color": colour, "marker": marker, "markevery": max(1, len(layer.dh) // 8), "ms": 4}
        steps = range(1, len(layer.dh) + 1)
        arriving.plot(steps, _shown(layer.dh), **style)
        arriving.plot(steps, _shown(layer.outside), color=colour, linestyle=":")
        gains.plot(_shown(layer.by_lag), label=layer.name, **style)
        gains.plot(_shown(layer.bounds), color=colour, linestyle="--", linewidth=1)
        gains.plot(_shown(layer.floors), color=colour, linestyle="--", linewidth=1)
        if layer.singular_values.shape[1] > 0:
            values = layer.singular_values[:, 0].flip(0)
            values = values[values[:, 0].isfinite()]
            jacobians.plot(_shown(values[:, 0]), **style)
            jacobians.plot(_shown(values[:, values.shape[1] // 2]), color=colour, linestyle="--", linewidth=1)
        slopes.plot(steps, layer.slopes.tolist(), **style)
        slopes.plot(steps, layer.saturated.tolist(), color=colour, linestyle="--", linewidth=1)
    order = "step t of a direction" if any(layer.name.endswith("reverse") for layer in layers) else "step t"
    _label(arriving, order, "‖dL/dh_t‖", "Arriving at step t (dotted: entering there)")
    _label(gains, "lag", "gain", "What is left after a lag (dashed: bounds)")
    _label(jacobians, "steps back from the last", "singular value", "∂h_T/∂h_t: largest (dashed: median)")
    _label(slopes, order, "slope, share", "Mean slope f′ (dashed: share saturated)")
    _log(arriving)
    _log(gains, LOWEST, 1 / LOWEST)
    _log(jacobians, LOWEST)
    slopes.set_ylim(-0.03, 1.05 * max(1.0, *(layer.gamma for layer in layers)))
    if len(layers) > 1:
        drawn.legend(*gains.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return drawn


def losses_and_states(findings: "Findings") -> Figure:
    """The heat map: the share of each step's loss in dL/dh_t of each step, over its share at its own step."""
    layers = list(findings.flow)
    columns = min(len(layers), 2 if len(layers) <= 4 else 4)
    rows = math.ceil(len(layers) / columns)
    width = 6.4 if columns == 1 else WIDTH
    drawn = figure(
        1.0 + rows * (4.2 if columns == 1 else 0.86 * WIDTH / columns),
        "What each loss contributes to each state",
        width,
    )
    panels = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    shares = []
    for layer in layers:
        assert layer.by_loss is not None  # it is asked for where figures are drawn
        share = layer.by_loss / layer.by_loss.diagonal().unsqueeze(1)
        shares.append(share.where(share.isfinite() & (share > 0), share.new_tensor(math.nan)))
    seen = [value for share in shares for value in share[share.isfinite()].tolist()]
    norm = LogNorm(max(min(seen, default=LOWEST), LOWEST), max(1.0, *seen, LOWEST))
    for panel, layer, share in zip(panels, layers, shares, strict=False):
        edges = [0.5 + step for step in range(len(layer.dh) + 1)]
        panel.pcolormesh(edges, edges, share.numpy(), cmap="cividis", norm=norm, rasterized=True)
        panel.set_aspect("equal")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
        if len(layers) > 1:
            panel.set_title(layer.name, fontsize=10)
    for panel in panels[len(layers) :]:
        panel.set_visible(False)
    drawn.supxlabel("state at step t", fontsize=10)
    drawn.supylabel("loss at step s", fontsize=10)
    bar = drawn.colorbar(ScalarMappable(norm, "cividis"), ax=list(panels), shrink=0.9)
    bar.set_label("‖share of loss s in dL/dh_t‖ / ‖its share in dL/dh_s‖", fontsize=10)
    return drawn


def eigenvalues(findings: "Findings") -> Figure:
    """The eigenvalues of W of each layer and direction on the unit circle."""
    layers = list(findings.flow)
    columns = 1 if len(layers) <= 4 else 2
    height, width = 5.3 + 0.22 * math.ceil(len(layers) / columns), 6.4 if columns == 1 else WIDTH
    drawn = figure(height, "Eigenvalues of W, unit circle, σ_max (dashed)", width)
    panel = drawn.subplots()
    turn = [2 * math.pi * each / 240 for each in range(241)]
    for index, layer in enumerate(layers):
        colour, marker = _style(index)
        values = layer.eigenvalues.tolist()
        label = f"{layer.name}: max|λ| = {abs(values[0]):.3g}, σ_max = {layer.sigma_max:.3g}"
        real, imaginary = ([getattr(value, part) for value in values] for part in ("real", "imag"))
        panel.plot(real, imaginary, marker, color=colour, ms=5, label=label)
        circle = ([layer.sigma_max * f(each) for each in turn] for f in (math.cos, math.sin))
        panel.plot(*circle, color=colour, linestyle="--", linewidth=1)
    panel.plot(list(map(math.cos, turn)), list(map(math.sin, turn)), color="black", linewidth=1.2, label="|λ| = 1")
    reach = 1.08 * max(1.0, *(layer.sigma_max for layer in layers))
    panel.set_xlim(-reach, reach)
    panel.set_ylim(-reach, reach)
    panel.set_aspect("equal")
    panel.grid(color=FAINT)
    panel.set_axisbelow(True)
    panel.set_xlabel("real part", fontsize=10)
    panel.set_ylabel("imaginary part", fontsize=10)
    drawn.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=9, ncols=columns
    )
    return drawn


def radii(findings: "Findings") -> Figure | None:
    """Gain against lag for several spectral radii of W, a panel per nonlinearity."""
    if not findings.radii:
        return None
    where = " (of l0)" if len(findings.flow.layers) > 1 else ""
    drawn = figure(4.2, f"What is left of a gradient after a lag, W scaled to spectral radius ρ{where}")
    panels = drawn.subplots(1, len(findings.radii), sharey=True, squeeze=False)[0]
    for panel, (nonlinearity, by_radius) in zip(panels, findings.radii.items(), strict=True):
        for index, (radius, measured) in enumerate(by_radius.items()):
            style: dict[str, Any] = {"color": COLOURS[index], "linestyle": DASHES[index], "linewidth": 1.8}
            panel.plot(_shown(measured["l0"].by_lag), label=f"ρ = {radius:g}", **style)
        _label(panel, "lag: steps back through time", "", f"f = {nonlinearity}")
    _log(panels, LOWEST)
    panels[0].set_ylabel("gain", fontsize=10)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return drawn


def truncations(findings: "Findings") -> Figure | None:
    """Bias, deviation and error of truncated gradients against the states that are held."""
    held = list(findings.truncations)
    if len(held) < 2 or not any(each.error for compared in findings.truncations.values() for each in compared):
        return None
    drawn = figure(4.2, "Truncated gradients against the full one, at equal numbers of states held")
    panels = drawn.subplots(1, 3, sharey=True)
    for index, name in enumerate(("chunked", "windowed", "randomized")):
        mine = [findings.truncations[states][index] for states in held]
        style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "label": name}
        known = [each.bias if each.draws == 0 else 0.0 for each in mine]  # drawn ones have none: what is found is noise
        panels[0].plot(held, [bias or math.nan for bias in known], **style)
        panels[1].plot(held, [each.deviation or math.nan for each in mine], **style)
        panels[2].plot(held, [each.error or math.nan for each in mine], **style)
        missed = [(states, each.error) for states, each in zip(held, mine, strict=True) if not each.is_seen]
        for states, error in missed:
            panels[2].annotate("more", (states, error), (0, 8), textcoords="offset points", ha="center", fontsize=8)
    for panel, title in zip(panels, ("Bias", "Deviation", "Error: both together"), strict=True):
        _label(panel, "states held", "", title)
        panel.set_xlim(held[0] / 1.2, held[-1] * 1.2)  # also where nothing is drawn
        panel.set_xscale("log", base=2)
        panel.set_xticks(held, [str(states) for states in held])
    _log(panels, LOWEST)
    panels[0].set_ylabel("part of ‖full gradient‖", fontsize=10)
    drawn.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return drawn


def _style(index: int) -> tuple[str, str]:
    """A colour and a marker that no other of 25 layers has together."""
    return COLOURS[index % 5], MARKERS[(index + index // 5) % 5]


def _shown(values: Tensor) -> list[float]:
    """For a logarithmic axis: what is not positive and finite is a gap."""
    return [value if 0 < value < math.inf else math.nan for value in values.tolist()]


def _label(panel: Axes, x: str, y: str, title: str) -> None:
    panel.set_xlabel(x, fontsize=10)
    panel.set_ylabel(y, fontsize=10)
    panel.set_title(title, fontsize=10)
    panel.grid(color=FAINT)
    panel.set_axisbelow(True)


def _log(panels: Axes | Sequence[Axes], floor: float = 0.0, ceiling: float = math.inf) -> None:
    """Scale the y axes over what is drawn between a floor and a ceiling, logarithmically if it varies over tenfold."""
    panels = [panels] if isinstance(panels, Axes) else panels
    lines = [line for panel in panels for line in panel.get_lines()]
    drawn: list[float] = [y for line in lines for y in np.asarray(line.get_ydata()).tolist()]
    seen = [y for y in drawn if math.isfinite(y)]
    if not any(seen):
        return
    low, high = max(min(seen), floor), min(max(seen), ceiling)
    for panel in panels:
        if high > 10 * low:
            panel.set_yscale("log")
            panel.set_ylim(low / 2, high * 2)
        else:
            panel.set_ylim(0, high * 1.1)
