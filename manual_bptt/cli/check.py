"""`bptt check`: says what is wrong with a hand-written backward pass, for one homework or a folder of them.

Exit status: 0 right, 1 wrong, 2 not usable (the arguments, or the homework). No judgement here: torch_reference has it.
"""

import argparse
import csv
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from manual_bptt.cli.own_candidate import own_candidate
from manual_bptt.files import check_writable, write_atomically
from torch_reference import rendering
from torch_reference.checking import MEMORY, SECONDS, check
from torch_reference.conventions import CONVENTIONS, LEVELS, find_convention
from torch_reference.course_problems import WitnessesDisagreeError
from torch_reference.rendering_blocks import one_line
from torch_reference.reports import HINTS, Report

OWN = "manual_bptt"  # as TARGET: the package itself
SUFFIXES = (".py", ".ipynb")
SIZES = {"steps": "T", "batch": "N", "inputs": "D", "hidden": "H", "outputs": "K"}
STATUS = {"right": 0, "wrong": 1, "unusable": 2}
MARK = {"right": "✓", "wrong": "✗", "unusable": "!"}
MEBIBYTE = 1 << 20


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "check",
        help="say what is wrong with a hand-written backward pass",
        description="Hold a hand-written backward pass against autograd: which gradient is wrong, from which time step "
        "on, and which known mistake explains it. The homework runs in a process of its own with limits on time and "
        "memory. That guards against accidents; it is no sandbox: do not run code that you would not run yourself. "
        "Exit status: 0 right, 1 wrong, 2 not usable.",
        epilog="conventions: " + "; ".join(f"{each.name}: {each.title}" for each in CONVENTIONS.values()),
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a Python file or notebook; FILE:f or FILE:f,g to name the functions in it; a folder of submissions "
        "(files, or one folder each); or the word manual_bptt: this package's own gradients (./manual_bptt is a path)",
    )
    parser.add_argument(
        "--convention", metavar="NAME", help="how the homework writes the network (default: recognised)"
    )
    parser.add_argument("--level", choices=LEVELS, help="default: all that the homework has")
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="S", help="draws the problems (default: 0)")
    for name, letter in SIZES.items():
        parser.add_argument(
            f"--{name}", type=_whole(1), metavar=letter, help="at most 64 (default: what shows every mistake)"
        )
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="default: float64")
    parser.add_argument(
        "--hints", choices=HINTS, default="cause", help="how much to tell; each tells more (default: cause)"
    )
    parser.add_argument("--nonlinearity", choices=("tanh", "sigmoid", "relu", "identity"), help="default: convention's")
    parser.add_argument("--time", choices=("sum", "mean", "last"), help="of the loss (default: convention's)")
    parser.add_argument("--batch-loss", choices=("sum", "mean"), help="of the loss (default: convention's)")
    parser.add_argument("--parameter-gradients", choices=("sum", "mean"), help="over the batch (default: convention's)")
    parser.add_argument(
        "--clip", type=_positive, metavar="C", help="gradients are clipped at ±C (default: convention's)"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=SECONDS, help=f"for loading and for each call (default: {SECONDS:g})"
    )
    parser.add_argument(
        "--memory", type=_whole(64), default=MEMORY // MEBIBYTE, metavar="MIB", help="default: %(default)s"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write everything to FILE, whatever --hints says"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as one page")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the errors over time")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="of a folder: the table (default: NAME-checked.csv)")
    parser.add_argument("--file", metavar="NAME", help="of a folder of folders: the homework's file in each")
    parser.set_defaults(run=run)


def _whole(smallest: int) -> Any:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {smallest}, got {text!r}")
        return value

    return integer


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return its exit status.

    Raises:
        ValueError: An unknown convention, options that do not go together, sizes that cannot be had.
        OSError: A file cannot be written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are small
    try:
        return _run(options)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("check: ")) from None  # the command says so already
    finally:
        torch.set_num_threads(threads)


def _run(options: argparse.Namespace) -> int:
    if not options.target:
        raise ValueError("expected TARGET to name a file or a folder, got ''")
    folder = Path(options.target)
    if options.target != OWN and not folder.is_dir() and (options.file or options.csv):
        raise ValueError("expected --csv and --file with a folder of submissions, got " + repr(options.target))
    if options.png is not None and options.hints == "verdict":
        raise ValueError("expected --hints of where or more with --png, got verdict")
    for path in (options.json, options.html, options.png):
        if path is not None:
            check_writable(path)
    if options.target == OWN:
        names = CONVENTIONS if options.convention is None else [options.convention]
        own = {name: own_candidate(find_convention(name).changed(**_overrides(options))) for name in names}
        if options.convention is not None:
            if options.csv is not None:
                raise ValueError("expected --csv with several homeworks, got one convention")
            return _one(_checked(f"{OWN} as {options.convention}", own[options.convention], options), options)
        work: dict[str, Any] = {f"{OWN} as {name}": candidate for name, candidate in own.items()}
    elif folder.is_dir():
        if options.convention is not None:
            find_convention(options.convention).changed(**_overrides(options))  # refused once, not for every homework
        work = _submissions(folder, options.file)
    else:
        return _one(_checked(options.target, options.target, options), options)
    if options.html or options.png:
        raise ValueError("expected --html and --png with one homework, got several")
    return _many(work, options)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """What the options put in the place of a convention's settings."""
    return {
        "nonlinearity": options.nonlinearity,
        "time": options.time,
        "batch": options.batch_loss,
        "parameter_gradients": options.parameter_gradients,
        "clip": options.clip,
    }


def _checked(name: str, candidate: Any, options: argparse.Namespace) -> Report:
    """Check one; the package's own gradients have their convention in their name."""
    own = options.target == OWN
    sizes = {letter: getattr(options, name) for name, letter in SIZES.items() if getattr(options, name) is not None}
    report = check(
        candidate,
        name.removeprefix(f"{OWN} as ") if own else options.convention,
        level=options.level,
        seed=options.seed,
        sizes=sizes or None,
        dtype=options.dtype,
        hints=options.hints,
        seconds=options.seconds,
        memory=options.memory * MEBIBYTE,
        **_overrides(options),
    )
    return replace(report, candidate=name) if own else report


def _one(report: Report, options: argparse.Namespace) -> int:
    """Print one report, and write it wherever it was asked for."""
    console = Console(highlight=False, soft_wrap=True)
    print(
        rendering.text(
            report, width=max(40, min(console.width, 120)), colour=console.is_terminal and not console.no_color
        )
    )
    if options.json is not None:
        _write_json(options.json, report.to_dict())
    if options.html is not None:
        write_atomically(options.html, rendering.html_page(report).encode())
    if options.png is not None and report.verdict == "unusable":
        print("bptt check: nothing was judged, so there is no map to draw", file=sys.stderr)
    elif options.png is not None:
        drawing = io.BytesIO()
        rendering.heat_map_png(report, drawing)
        write_atomically(options.png, drawing.getvalue())
    return STATUS[report.verdict]


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode())


def _submissions(folder: Path, name: str | None) -> dict[str, Path]:
    """Find the homework files of a folder: those in it, and one in each folder in it.

    Raises:
        ValueError: There are none.
    """
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            try:
                inside = [file for file in sorted(entry.iterdir()) if file.suffix in SUFFIXES]
            except OSError:
                inside = []
            one = entry / name if name is not None else inside[0] if len(inside) == 1 else entry
            found[entry.name if one == entry else f"{entry.name}/{one.name}"] = one
        elif entry.suffix in SUFFIXES and (name is None or entry.name == name):
            found[entry.name] = entry
    if not found:
        raise ValueError(f"expected homework ({', '.join(SUFFIXES)}) in {folder}, got none")
    return found


def _many(work: dict[str, Any], options: argparse.Namespace) -> int:
    """Check one after the other: a line each as it is done, then the table as CSV. Nothing stops the rest."""
    table = options.csv
    if table is None and options.target != OWN:
        table = Path(f"{Path(options.target).resolve().name}-checked.csv")
    if table is not None:
        check_writable(table)
    rows: list[dict[str, str]] = []
    reports: dict[str, Report] = {}
    shown = {name: one_line(name) for name in work}
    width = max(map(len, shown.values()))
    for name, candidate in work.items():
        report = reports[name] = _checked_safely(name, candidate, options)
        row = rendering.summary_row(replace(report, candidate=name))
        rows.append(row)
        said = row["trouble"] if report.verdict == "unusable" else _short(row, options.hints)
        print(f"{MARK[report.verdict]} {shown[name]:<{width}}  {report.verdict:<8}  {said}".rstrip(), flush=True)
    if table is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(table, text.getvalue().encode(errors="backslashreplace"))
    if options.json is not None:
        _write_json(options.json, {name: report.to_dict() for name, report in reports.items()})
    verdicts = [report.verdict for report in reports.values()]
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in STATUS)
    print(counted if table is None else f"{counted}; table: {table}")
    return next((STATUS[verdict] for verdict in ("wrong", "unusable") if verdict in verdicts), 0)


def _short(row: dict[str, str], hints: str) -> str:
    """As much of a row as the hint level allows."""
    words = [] if hints == "verdict" else [row["first_wrong"]]
    if hints in ("cause", "values"):
        words.append(row["findings"])
    return "  ".join(word for word in words if word)


def _checked_safely(name: str, candidate: Any, options: argparse.Namespace) -> Report:
    """Check one of many: what would end the command for one homework is a row for many."""
    if isinstance(candidate, Path) and candidate.is_dir():
        trouble = f"expected one homework ({', '.join(SUFFIXES)}) in the folder, or its name by --file"
        return Report(name, options.convention or "", "", trouble=trouble)
    try:
        return _checked(name, candidate, options)
    except WitnessesDisagreeError:
        raise  # then nothing can be judged
    except Exception as error:  # whatever one homework does to the check, the others are checked
        trouble = str(error).removeprefix("check: ") or type(error).__name__
        return Report(name, options.convention or "", "", trouble=trouble)
