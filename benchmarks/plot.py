"""Draws the training-step ratios of a run; needs matplotlib, which nothing else in the benchmarks does."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.implementations import PEER
from benchmarks.results import BadInputError, Measurement
from benchmarks.sizes import Size

TASK = "training step"
# Okabe and Ito's palette: told apart with every kind of colour vision, and by the markers without any colour.
STYLES = [
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "x"),
]  # fmt: skip


def draw(measurements: list[Measurement], path: Path) -> None:
    """Write a PNG: a row per size, a panel per device and thread count, a dot per implementation.

    Raises:
        BadInputError: There is no training step of anything but nn.RNN.
    """
    shown = [m for m in measurements if m.task == TASK and m.implementation != PEER]
    if not shown:
        raise BadInputError(f"expected a {TASK} of something beside {PEER} to draw, got none")
    sizes = list(dict.fromkeys(m.size for m in shown))
    places = list(dict.fromkeys(m.place for m in shown))
    names = list(dict.fromkeys(m.implementation for m in shown))

    height = 0.15 + 0.06 * len(names)  # inches of a row
    figure = Figure(figsize=(8, 1.9 + height * len(sizes)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(places), sharex=True, sharey=True, squeeze=False)[0]
    for place, panel in zip(places, panels, strict=True):
        draw_place(panel, [m for m in shown if m.place == place], sizes, names)
        panel.set_title(place, fontsize=10)
    set_axes(panels[0], shown, sizes)
    figure.supxlabel("time of nn.RNN / own time: right of 1× is faster; bars: middle half of the rounds", fontsize=9)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        title=f"Speed of a {TASK} relative to torch.nn.RNN",
        title_fontsize=12,
        loc="outside upper center",
        ncols=4,
        frameon=False,
    )
    figure.savefig(path, format="png")


def draw_place(panel: Axes, measurements: list[Measurement], sizes: list[Size], names: list[str]) -> None:
    """Fill one panel."""
    panel.axvline(1.0, color="black", linewidth=1)
    for index, name in enumerate(names):
        colour, marker = STYLES[index % len(STYLES)]
        mine = [m for m in measurements if m.implementation == name]
        rows = [sizes.index(m.size) + (2 * index - len(names) + 1) * 0.4 / len(names) for m in mine]
        panel.hlines(rows, [m.quartiles[0] for m in mine], [m.quartiles[1] for m in mine], color=colour)
        panel.plot([m.speed for m in mine], rows, marker, color=colour, markersize=5.5, label=name)
    for row in range(0, len(sizes), 2):
        panel.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
    panel.grid(axis="x", color="0.88")
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)


def set_axes(panel: Axes, measurements: list[Measurement], sizes: list[Size]) -> None:
    """Scale and label the axes, which all panels share."""
    ratios = [ratio for m in measurements for ratio in (m.speed, *m.quartiles)]
    low, high = min(0.5, *ratios) / 1.1, max(2.0, *ratios) * 1.1
    ticks = [2.0**power for power in range(-20, 21) if low * 1.05 < 2.0**power < high / 1.05]
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    panel.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_yticks(range(-1, len(sizes)), rows_of_text(sizes), family="monospace", fontsize=9)
    panel.set_ylim(len(sizes) - 0.5, -1.4)


def rows_of_text(sizes: list[Size]) -> list[str]:
    """Return a heading and a line per size, in columns under a fixed-width font."""
    lines = [Size._fields, *(tuple(map(str, size)) for size in sizes)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
