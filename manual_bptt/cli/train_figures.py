"""The figures of `bptt train`: the learning curve, and what is taken for what. Needs matplotlib."""

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator
from torch import Tensor

from manual_bptt.cli.figures import COLOURS, FAINT, MARKERS, figure, png
from manual_bptt.training import Epoch


def learning_curve(history: Sequence[Epoch], long: bool) -> bytes:
    """Loss and accuracy by epoch, on what was learned from and on what was judged by."""
    drawn = figure(3.4, "Learning curve")
    loss, accuracy = drawn.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    validation = [epoch.validation for epoch in history]
    curves = [
        (loss, "training", [epoch.loss for epoch in history]),
        (loss, "validation", [scores.loss for scores in validation]),
        (accuracy, "training", [epoch.accuracy for epoch in history]),
        (accuracy, "validation", [scores.accuracy for scores in validation]),
    ]
    if not long:
        curves.append((accuracy, "validation, mean over classes", [scores.macro for scores in validation]))
    names = ("training", "validation", "validation, mean over classes")
    for panel, name, values in curves:
        place = names.index(name)
        panel.plot(epochs, values, color=COLOURS[place], marker=MARKERS[place], ms=3.5, label=name)
    loss.set_ylabel("cross-entropy, nats", fontsize=10)
    loss.set_ylim(bottom=0)
    accuracy.set_ylabel("accuracy", fontsize=10)
    accuracy.set_ylim(0, 1.02)
    for panel in (loss, accuracy):
        panel.set_xlabel("epoch", fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(color=FAINT)
        panel.set_axisbelow(True)
    drawn.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return png(drawn)


def confusion(counts: Tensor, classes: Sequence[str]) -> bytes:
    """The confusion matrix: of each class the share that was taken for each, rows adding up to 1."""
    K = len(classes)
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in classes]
    side = min(8.4, 3.2 + 0.32 * K)
    drawn = figure(side, "What is taken for what (share of each row)", width=side + 0.4)
    panel = drawn.subplots()
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    mesh = panel.pcolormesh(share.numpy(), cmap="Blues", vmin=0, vmax=1, edgecolors="0.85", linewidth=0.5)
    places = [place + 0.5 for place in range(K)]
    size = 10 if K <= 12 else 8 if K <= 20 else 6
    panel.set_xticks(places, names, rotation=90, fontsize=size, parse_math=False)
    panel.set_yticks(places, names, fontsize=size, parse_math=False)
    panel.invert_yaxis()
    panel.tick_params(length=0)
    panel.set_xlabel("taken for", fontsize=10)
    panel.set_ylabel("class", fontsize=10)
    if K <= 20:
        for row, column in (share >= 0.05).nonzero().tolist():
            value = share[row, column].item()
            colour = "white" if value > 0.55 else "black"
            panel.text(
                column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5, color=colour
            )
    drawn.colorbar(mesh, ax=panel, shrink=0.7)
    return png(drawn)
