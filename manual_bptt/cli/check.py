"""`bptt check`: says what is wrong with a hand-written backward pass, for one homework or a folder of them.

Exit status: 0 right, 1 wrong, 2 not usable (the arguments, or the homework). No judgement here: torch_reference has it.
"""

import argparse
import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from manual_bptt.cli.arguments import positive, whole
from manual_bptt.cli.convention_file import named_convention
from manual_bptt.cli.own_candidate import own_candidate
from manual_bptt.files import check_writable, write_atomically
from torch_reference import rendering
from torch_reference.checking import MEMORY, SECONDS, check
from torch_reference.conventions import CONVENTIONS, LEVELS, Convention
from torch_reference.rendering_blocks import one_line
from torch_reference.reports import HINTS, Report

OWN = "manual_bptt"  # as TARGET: the package itself
SUFFIXES = (".py", ".ipynb")
SIZES = {"steps": "T", "batch": "N", "inputs": "D", "hidden": "H", "outputs": "K"}
STATUS = {"right": 0, "wrong": 1, "unusable": 2}
MARK = {"right": "✓", "wrong": "✗", "unusable": "!"}
MEBIBYTE = 1 << 20


class Work(NamedTuple):
    """One homework: how it is called in what is printed, what `check` takes, and its convention if that was given."""

    name: str
    candidate: Any
    convention: Convention | None


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
        "--convention",
        metavar="NAME",
        help="how the homework writes the network: one of those below, or a Python file of your own, FILE.py or "
        "FILE.py:name, that defines a Convention (default: recognised)",
    )
    parser.add_argument("--level", choices=LEVELS, help="default: all that the homework has")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="draws the problems (default: 0)")
    for name, letter in SIZES.items():
        parser.add_argument(
            f"--{name}", type=whole(1), metavar=letter, help="at most 64 (default: what shows every mistake)"
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
        "--clip",
        type=positive,
        metavar="C",
        help="gradients are clipped at ±C, by the last of the levels looked at (default: convention's)",
    )
    parser.add_argument(
        "--arrays", choices=("numpy", "torch"), help="what the homework is given (default: convention's)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=SECONDS, help=f"for loading and for each call (default: {SECONDS:g})"
    )
    parser.add_argument(
        "--memory", type=whole(64), default=MEMORY // MEBIBYTE, metavar="MIB", help="default: %(default)s"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write everything to FILE, whatever --hints says"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write the report as one page; of a folder: a page for each homework, in the folder FILE",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the errors over time")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="of a folder: the table (default: NAME-checked.csv)")
    parser.add_argument("--file", metavar="NAME", help="of a folder of folders: the homework's file in each")
    parser.set_defaults(run=run)


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
    convention = None if options.convention is None else named_convention(options.convention)
    if convention is not None:
        convention.changed(**_overrides(options))  # refused once, not for every homework
    if options.target == OWN:
        work = [_own(each, options) for each in (CONVENTIONS.values() if convention is None else (convention,))]
        if options.csv is not None and convention is not None:
            raise ValueError("expected --csv with several homeworks, got one convention")
    elif folder.is_dir():
        work = [Work(name, path, convention) for name, path in _submissions(folder, options.file).items()]
    else:
        work = [Work(options.target, options.target, convention)]
    several = folder.is_dir() if options.target != OWN else convention is None
    if several and options.png:
        raise ValueError("expected --png with one homework, got several")
    for path in (options.json, options.png, *([] if several else [options.html])):
        if path is not None:
            check_writable(path)
    return _many(work, options) if several else _one(_checked(work[0], options), options)


def _own(convention: Convention, options: argparse.Namespace) -> Work:
    """The package itself as a homework of one convention."""
    candidate = own_candidate(convention.changed(**_overrides(options)), clipped=options.level)
    return Work(f"{OWN} as {convention.name}", candidate, convention)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """What the options put in the place of a convention's settings."""
    return {
        "nonlinearity": options.nonlinearity,
        "time": options.time,
        "batch": options.batch_loss,
        "parameter_gradients": options.parameter_gradients,
        "clip": options.clip,
        "arrays": options.arrays,
    }


def _checked(work: Work, options: argparse.Namespace) -> Report:
    """Check one; the package's own gradients have their convention in their name."""
    sizes = {letter: getattr(options, name) for name, letter in SIZES.items() if getattr(options, name) is not None}
    report = check(
        work.candidate,
        work.convention,
        level=options.level,
        seed=options.seed,
        sizes=sizes or None,
        dtype=options.dtype,
        hints=options.hints,
        seconds=options.seconds,
        memory=options.memory * MEBIBYTE,
        **_overrides(options),
    )
    return replace(report, candidate=work.name) if options.target == OWN else report


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


def _write_page(path: Path, report: Report) -> None:
    """Write one of many pages; a name that is too long for a page ends nothing."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, rendering.html_page(report).encode(errors="backslashreplace"))
    except OSError as error:
        print(f"bptt check: no page for {one_line(path.stem)}: {error.strerror}", file=sys.stderr)


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
            inside = _homework_in(entry)
            one = entry / name if name is not None else inside[0] if len(inside) == 1 else entry
            found[entry.name if one == entry else f"{entry.name}/{one.name}"] = one
        elif entry.suffix in SUFFIXES and (name is None or entry.name == name):
            found[entry.name] = entry
    if not found:
        raise ValueError(f"expected homework ({', '.join(SUFFIXES)}) in {folder}, got none")
    return found


def _homework_in(folder: Path) -> list[Path]:
    try:
        return [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES]
    except OSError:
        return []


def _many(work: list[Work], options: argparse.Namespace) -> int:
    """Check one after the other: a line and a page for each, then the table as CSV. Nothing stops the rest."""
    table = options.csv
    if table is None and options.target != OWN:
        table = Path(f"{Path(options.target).resolve().name}-checked.csv")
    if table is not None:
        check_writable(table)
    if options.html is not None:
        if options.html.exists() and not options.html.is_dir():
            raise NotADirectoryError(f"expected {options.html} to be a folder for the pages, but it is a file")
        options.html.mkdir(parents=True, exist_ok=True)
        check_writable(options.html / "page.html")
    rows: list[dict[str, str]] = []
    reports: dict[str, Report] = {}
    width = max(len(one_line(each.name)) for each in work)
    for each in work:
        report = reports[each.name] = _checked_safely(each, options)
        row = rendering.summary_row(replace(report, candidate=each.name))
        rows.append(row)
        said = row["trouble"] if report.verdict == "unusable" else _short(row, options.hints)
        name = f"{one_line(each.name):<{width}}"
        print(f"{MARK[report.verdict]} {name}  {report.verdict:<8}  {said}".rstrip(), flush=True)
        if options.html is not None:
            _write_page(options.html / f"{each.name}.html", replace(report, candidate=each.name))
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


def _checked_safely(work: Work, options: argparse.Namespace) -> Report:
    """Check one of many: what would end the command for one homework is a row for many."""
    convention = "" if work.convention is None else work.convention.name
    if isinstance(work.candidate, Path) and work.candidate.is_dir():
        inside = [one_line(each.name) for each in _homework_in(work.candidate)]
        got = ", ".join(inside) or "none"
        trouble = f"expected one homework ({', '.join(SUFFIXES)}) in the folder, or its name by --file, got {got}"
        return Report(work.name, convention, "", trouble=trouble)
    try:
        return _checked(work, options)
    except Exception as error:  # whatever one homework does to the check, the others are checked
        trouble = str(error).removeprefix("check: ") or type(error).__name__
        return Report(work.name, convention, "", trouble=trouble)
