"""`bptt verify` proper: every gradient beside every witness, as a table for each problem and device."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from manual_bptt.cli.comparison import NAMES, Cell, Gradients, by_hand, compare, witnesses
from manual_bptt.cli.problems import Problem


def truths(problem: Problem, device: torch.device) -> dict[str, Gradients]:
    """Ask every witness for the gradients of a problem."""
    return {name: witness(problem, device) for name, witness in witnesses(problem.options["nonlinearity"]).items()}


def comparisons(
    problem: Problem, device: torch.device, dtypes: list[torch.dtype], truth_of: dict[str, Gradients]
) -> list[Cell]:
    """Differentiate a problem by hand in every dtype and compare with every witness."""
    cells: list[Cell] = []
    for dtype in dtypes:
        actual = by_hand(problem, dtype, device)
        for witness, truth in truth_of.items():
            cells += compare(actual, truth, witness, dtype)
    return cells


def agreement(
    problems: list[Problem],
    devices: list[torch.device],
    dtypes: list[torch.dtype],
    console: Console,
    report: dict[str, Any],
) -> bool:
    """Compare every gradient with every witness; print a table for each problem and device."""
    report["comparisons"] = []
    every: list[Cell] = []
    for problem in problems:
        for device in devices:
            truth_of = truths(problem, device)
            cells = comparisons(problem, device, dtypes, truth_of)
            sizes = " ".join(f"{name}={size}" for name, size in problem.sizes().items())
            console.print(f"{problem.title}   {sizes}   {device.type}", style="bold")
            console.print(_table(cells))
            report["comparisons"] += [
                {"problem": problem.title, "device": device.type, **_plain(cell)} for cell in cells
            ]
            every += cells
    for dtype in dict.fromkeys(cell.dtype for cell in every):
        of_dtype = [cell for cell in every if cell.dtype == dtype]
        limits = [f"{limit:.2g} ({', '.join(names)})" for limit, names in _by_limit(of_dtype).items()]
        allowed = ", ".join(limits) if len(limits) > 1 else f"{of_dtype[0].limit:.2g}"
        console.print(f"{dtype}: largest relative error {largest(of_dtype):.1e}; allowed: {allowed}")
    missing = {"nn.RNN"} - {cell.witness for cell in every}
    if missing:
        console.print("nn.RNN: has no such nonlinearity; it is no witness here.")
    wrong = [cell for cell in every if not cell.agrees]
    if wrong:
        console.print(f"[red]{len(wrong)} of {len(every)} comparisons differ.[/red]")
        if {cell.witness for cell in wrong} == {"central diff."}:
            console.print("Only the differences: one may have stepped over relu's kink; another --seed tells.")
        if any(min(problem.sizes()[letter] for letter in "BH") < 4 for problem in problems):
            console.print("In so small a problem a gradient can be nearly zero, and rounding alone above the limit.")
    else:
        console.print(f"[green]All {len(every)} comparisons agree.[/green]")
    return not wrong


def _by_limit(cells: list[Cell]) -> dict[float, list[str]]:
    """Map each limit to the witnesses that it holds for."""
    found: dict[float, list[str]] = {}
    for limit, witness in dict.fromkeys((cell.limit, cell.witness) for cell in cells):
        found.setdefault(limit, []).append(witness)
    return found


def largest(cells: Iterable[Cell]) -> float:
    """Find the largest relative error; NaN where there is one."""
    errors = [cell.relative_error for cell in cells]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _plain(cell: Cell) -> dict[str, Any]:
    plain = asdict(cell) | {"agrees": cell.agrees}
    if not math.isfinite(cell.relative_error):
        plain["relative_error"] = str(cell.relative_error)  # JSON has no NaN
    return plain


def _table(cells: list[Cell]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for dtype, witness in dict.fromkeys((cell.dtype, cell.witness) for cell in cells):
        table.add_column(f"{dtype}\n{witness}", justify="right")
    for name in NAMES:
        row = [cell for cell in cells if cell.gradient == name]
        table.add_row(f"d{name}", *map(_judged, row))
    return table


def _judged(cell: Cell) -> str:
    verdict = "[green]ok[/green]" if cell.agrees else "[red]FAIL[/red]"
    return f"{cell.relative_error:.0e} {verdict}"
