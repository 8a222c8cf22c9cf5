"""The figures of `bptt flow` that explain: the nonlinearities with their slopes, and the ways to truncate."""

import math
from typing import TYPE_CHECKING

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from manual_bptt.activations import ACTIVATIONS
from manual_bptt.cli.figures import COLOURS, FAINT, figure

if TYPE_CHECKING:
    from manual_bptt.cli.flow import Findings

SHADES = LinearSegmentedColormap.from_list("weights", ["white", COLOURS[0], "#002A45"])
STEPS = 9
DRAWN = (1, 1.5, 1.5, 0, 1.5, 1.5, 1.5, 0, 1.5)  # ξ_1 … ξ_9 of a random truncation with p = 2/3


def nonlinearities(findings: "Findings") -> Figure:
    """Every f and its slope f', which each step back multiplies the gradient with."""
    drawn = figure(2.9, "The nonlinearities f and their slopes f′")
    panels = drawn.subplots(1, len(ACTIVATIONS), sharex=True)
    a = torch.linspace(-4, 4, 801, dtype=torch.float64)
    for panel, (name, activation) in zip(panels, ACTIVATIONS.items(), strict=True):
        h = activation.apply(a)
        slope = activation.times(activation.slope(h), torch.ones_like(h))
        panel.plot(a.tolist(), h.tolist(), color=COLOURS[0], linewidth=1.8, label="f(a)")
        panel.plot(a.tolist(), slope.tolist(), color=COLOURS[1], linestyle="--", linewidth=1.8, label="f′(a)")
        panel.set_title(f"{name}, max f′ = {activation.steepest:g}", fontsize=10)
        panel.set_ylim(-1.6, 1.6)
        panel.set_xticks(range(-4, 5, 2))
        panel.set_xlabel("a", fontsize=10)
        panel.grid(color=FAINT)
        panel.set_axisbelow(True)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return drawn


def strategies(findings: "Findings") -> Figure:
    """Which losses reach which states: all before them, those within borders, within a window, up to random steps."""
    drawn = figure(3.2, "Which losses reach which states: pale once, dark more than once")
    within = torch.ones(STEPS, STEPS).tril()
    t, s = torch.arange(STEPS).unsqueeze(0), torch.arange(STEPS).unsqueeze(1)
    weights = within.clone()  # ∏ ξ_i, i = t + 1 … s
    for loss in range(STEPS):
        for state in range(loss):
            weights[loss, state] = math.prod(DRAWN[state + 1 : loss + 1])
    reached = {
        "full()": within,
        "chunked(3)": within * (t // 3 == s // 3),
        "windowed(2)": within * (s - t <= 2),
        "one draw of\nrandomized(2/3)": weights,
    }
    panels = drawn.subplots(1, len(reached), sharey=True)
    edges = [0.5 + step for step in range(STEPS + 1)]
    for panel, (name, weight) in zip(panels, reached.items(), strict=True):
        panel.pcolormesh(edges, edges, weight.numpy(), cmap=SHADES, vmin=0, vmax=4, edgecolors="0.75", linewidth=0.5)
        for loss, state in weight.gt(1).nonzero().tolist():
            text = f"{weight[loss, state].item():.2g}"
            panel.text(state + 1, loss + 1, text, ha="center", va="center", fontsize=8, color="white")
        panel.set_title(name, fontsize=10)
        panel.set_aspect("equal")
        panel.set_xticks(range(1, STEPS + 1, 2))
        panel.set_yticks(range(1, STEPS + 1, 2))
        panel.set_xlabel("state at step t", fontsize=10)
    panels[0].set_ylabel("loss at step s", fontsize=10)
    return drawn
