"""`bptt verify --self-test`: plants wrong gradients and shows that every witness sees each one."""

from contextlib import nullcontext
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from manual_bptt.cli import planted
from manual_bptt.cli.agreement import comparisons, largest, truths
from manual_bptt.cli.comparison import NAMES, Cell
from manual_bptt.cli.problems import Problem


def self_test(
    problems: list[Problem],
    devices: list[torch.device],
    dtypes: list[torch.dtype],
    console: Console,
    report: dict[str, Any],
) -> bool:
    """Plant each mistake in turn; caught means: every witness finds just the gradients that it makes wrong."""
    cases = [(problem, device, truths(problem, device)) for problem in problems for device in devices]
    names = list(cases[0][2])
    console.print("one mistake planted at a time", style="bold")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("planted", "wrong", "largest\nerror", *names):
        table.add_column(column)
    report["planted"] = []
    for mistake in (None, *planted.MISTAKES):
        label = "nothing" if mistake is None else mistake.name
        if mistake is not None and problems[0].options["nonlinearity"] not in mistake.nonlinearities:
            table.add_row(label, "no mistake here")
            continue
        with nullcontext() if mistake is None else mistake.planted():
            cells = [
                (cell, (problem.title, device.type))
                for problem, device, truth_of in cases
                for cell in comparisons(problem, device, dtypes, truth_of)
            ]
        expected = frozenset() if mistake is None else mistake.wrong
        caught = {name: _found_everywhere(cells, name, expected) for name in names}
        found = {cell.gradient for cell, _ in cells if not cell.agrees}
        report["planted"].append(
            {"mistake": label, "found_wrong": [name for name in NAMES if name in found], "caught": caught}
        )
        table.add_row(
            label,
            " ".join("d" + name for name in NAMES if name in found) or "none",
            f"{largest(cell for cell, _ in cells):.0e}",
            *(_verdict(mistake is None, good) for good in caught.values()),
        )
    console.print(table)
    passed = len(report["planted"]) > 1 and all(all(entry["caught"].values()) for entry in report["planted"])
    if passed:
        console.print(f"[green]All {len(report['planted']) - 1} planted mistakes are caught by every witness.[/green]")
    else:
        console.print(
            "[red]Not everything is as it must be.[/red] A mistake can hide where the problem is too small to show it "
            "(H = 1, names of one character): try a larger --hidden or --longest."
        )
    return passed


def _verdict(nothing_planted: bool, good: bool) -> str:
    if good:
        return "[green]agrees[/green]" if nothing_planted else "[green]caught[/green]"
    return "[red]DIFFERS[/red]" if nothing_planted else "[red]MISSED[/red]"


def _found_everywhere(cells: list[tuple[Cell, Any]], witness: str, expected: frozenset[str]) -> bool:
    """Whether a witness finds just the expected gradients wrong, in each problem, device and dtype."""
    found: dict[Any, set[str]] = {}
    for cell, place in cells:
        if cell.witness == witness:
            wrong = found.setdefault((place, cell.dtype), set())
            if not cell.agrees:
                wrong.add(cell.gradient)
    return all(wrong == expected for wrong in found.values())
