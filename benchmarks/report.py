"""Writes report.md and report.png from the JSON of a run: `python -m benchmarks.report RESULTS.json`."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gate import LIMIT
from benchmarks.implementations import PEER
from benchmarks.results import BadInputError, Measurement, Results, read
from benchmarks.sizes import Size

HAND_WRITTEN = "manual_bptt.RNN"
ABSENT = "–"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 where the input is no use."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.json", help="from pytest --benchmark-json")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: where RESULTS.json is")
    options = parser.parse_args(arguments)
    try:
        results = read(options.results)
        written = write(results, options.output or options.results.parent)
    except BadInputError as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    print(markdown(results))
    for path in written:
        print(path)
    return 0


def write(results: Results, folder: Path) -> list[Path]:
    """Write both files into a folder, each whole or not at all, and return their paths.

    Raises:
        BadInputError: matplotlib is missing, there is nothing to draw, or the folder cannot be written to.
    """
    try:
        from benchmarks.plot import draw
    except ImportError as error:
        raise BadInputError(f"expected matplotlib (pip install matplotlib), got: {error}") from error
    names = ["report.png", "report.md"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".report-") as temporary:
            draw(results.measurements, Path(temporary, "report.png"))
            Path(temporary, "report.md").write_text(markdown(results), encoding="utf-8")
            for name in names:
                os.replace(Path(temporary, name), folder / name)
    except OSError as error:
        raise BadInputError(f"{folder}: expected a folder to write to, got: {error.strerror}") from error
    return [folder / name for name in names]


def markdown(results: Results) -> str:
    """Return the whole report."""
    everything = results.measurements
    names = [name for name in unique(everything, lambda m: m.implementation) if name != PEER]
    parts = [
        "# Speed relative to torch.nn.RNN",
        "\n".join(f"- {name}: {value}" for name, value in results.facts.items()),
        f"A ratio is (time of {PEER}) / (own time), the median over rounds that alternate between the two: above 1 "
        f"is faster than {PEER}. {control(everything)}",
        f"Before any time was taken every result was within {LIMIT:.1e} of a float64 truth, norm-wise; the worst "
        f"was {max(m.error for m in everything):.1e}.",
        "![Ratio of a training step at every size](report.png)",
    ]
    for name in names:
        mine = [m for m in everything if m.implementation == name]
        parts += [f"## {name}: ratio to {PEER}", ratio_table(mine)]
    steps = [m for m in everything if (m.implementation, m.task) == (HAND_WRITTEN, "training step")]
    if steps:
        parts += [
            f"## {HAND_WRITTEN}: milliseconds per training step",
            time_table(steps),
            f"## {HAND_WRITTEN}: multiplications per second of a training step, over those of torch's matrix product",
            "The product is of two matrices of 1024 × 1024 in float32, timed in the same run with as many threads.",
            share_table(steps),
        ]
    return "\n\n".join(parts) + "\n"


def control(measurements: list[Measurement]) -> str:
    """Return the sentence about nn.RNN measured against itself."""
    ratios = [m.speed for m in measurements if m.implementation == PEER]
    if not ratios:
        return f"{PEER} was not measured against itself in this run."
    return f"{PEER} measured against itself in the same way: {min(ratios):.2f} to {max(ratios):.2f}."


def ratio_table(measurements: list[Measurement]) -> str:
    """Return a row per size and a column per task, device and thread count."""
    columns = [
        (task, place)
        for task in unique(measurements, lambda m: m.task)
        for place in unique(measurements, lambda m: m.place)
    ]
    found = {(m.size, m.task, m.place): f"{m.speed:.2f}" for m in measurements}
    header = [f"{task}, {place}" for task, place in columns]
    return table(header, {m.size: [found.get((m.size, *column), ABSENT) for column in columns] for m in measurements})


def time_table(measurements: list[Measurement]) -> str:
    """Return a row per size with the least time, the median and the spread for each place."""
    places = unique(measurements, lambda m: m.place)
    found = {(m.size, m.place): [milliseconds(t) for t in (m.min, m.median, m.iqr)] for m in measurements}
    header = [f"{what}, {place}" for place in places for what in ("min", "median", "IQR")]
    rows = {
        m.size: [cell for place in places for cell in found.get((m.size, place), [ABSENT] * 3)] for m in measurements
    }
    return table(header, rows)


def share_table(measurements: list[Measurement]) -> str:
    """Return a row per size with the share of the rate of matrix products for each place."""
    places = unique(measurements, lambda m: m.place)
    found = {(m.size, m.place): f"{m.share:.0%}" for m in measurements}
    return table(places, {m.size: [found.get((m.size, place), ABSENT) for place in places] for m in measurements})


def table(header: list[str], rows: dict[Size, list[str]]) -> str:
    """Return a Markdown table of sizes and right-aligned cells."""
    lines = ["| " + " | ".join(["T, B, D, H", *header]) + " |", "|:--|" + "--:|" * len(header)]
    for size, cells in rows.items():
        lines.append("| " + " | ".join([", ".join(map(str, size)), *cells]) + " |")
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds to three significant digits, never in powers of ten."""
    value = 1e3 * seconds
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(decimals, 0), 6)}f}"


def unique(measurements: list[Measurement], key: Callable[[Measurement], str]) -> list[str]:
    """Return the different values in the order in which they were measured."""
    return list(dict.fromkeys(map(key, measurements)))


if __name__ == "__main__":
    sys.exit(main())
