"""`bptt trace`: a small problem worked through number by number, to hold beside one's own sheet.

Exit status: 0 the sheet is written, 1 a number differs from autograd's and nothing is shown, 2 unusable arguments.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch_reference
from manual_bptt import tracing
from manual_bptt.cli.arguments import whole
from manual_bptt.cli.trace_html import as_html
from manual_bptt.cli.trace_latex import as_latex
from manual_bptt.cli.trace_problem import CHOICES, as_json, drawn_problem, read_problem
from manual_bptt.cli.trace_text import as_text
from manual_bptt.files import check_writable, write_atomically
from manual_bptt.tracing import LIMITS, Trace

FORMATS = {"text": as_text, "latex": as_latex, "html": as_html}
SIZES = {"steps": ("T", 3), "batch": ("N", 1), "inputs": ("D", 2), "hidden": ("H", 2), "outputs": ("K", 2)}
OPTIONS = {"nonlinearity": "nonlinearity", "loss": "loss", "time": "time", "batch_loss": "batch"}
READABLE = ", since a sheet has to be readable"
ALLOWED = 1e-12
NOISE = 1e-3  # an array below this part of the largest may be nothing but cancelled rounding: measured against that


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "trace",
        help="work a small problem through number by number",
        description="Print every forward and backward quantity of every step of a small problem under its equation's "
        "label, F1 to F5 and B1 to B8, held against autograd before it is shown. Exit status: 0 written, 1 a number "
        "differs from autograd's, 2 unusable arguments.",
    )
    parser.add_argument(
        "--problem",
        type=Path,
        metavar="FILE",
        help="work through the problem in FILE in place of a drawn one: JSON, as --save-problem writes it",
    )
    for name, (letter, usual) in SIZES.items():
        parser.add_argument(
            f"--{name}",
            type=whole(1, LIMITS[letter], READABLE),
            metavar=letter,
            help=f"of a drawn problem, at most {LIMITS[letter]} (default: {usual})",
        )
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), metavar="S", help="of a drawn problem (default: 0)")
    parser.add_argument("--nonlinearity", choices=CHOICES["nonlinearity"], help="default: tanh, or the file's")
    parser.add_argument("--loss", choices=CHOICES["loss"], help="default: cross_entropy, or the file's")
    parser.add_argument(
        "--time", choices=CHOICES["time"], help="how the steps' losses count (default: sum, or the file's)"
    )
    parser.add_argument(
        "--batch-loss", choices=CHOICES["batch"], help="how the rows' losses count (default: sum, or the file's)"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="default: text")
    parser.add_argument(
        "--decimals", type=whole(0, 8, READABLE), default=4, metavar="N", help="decimals shown, at most 8 (default: 4)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the sheet to FILE in place of printing it")
    parser.add_argument(
        "--save-problem", type=Path, metavar="FILE", help="also write the problem, as --problem reads it"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return its exit status.

    Raises:
        ValueError: Options that exclude each other, or a problem that cannot be worked through.
        OSError: A file cannot be read or written.
    """
    files = [file for file in (options.output, options.save_problem) if file is not None]
    for file in files:
        check_writable(file)
    for other in ("problem", "save_problem"):
        file = getattr(options, other)
        if options.output is not None and file is not None and options.output.resolve() == file.resolve():
            raise ValueError(f"expected --output and --{other.replace('_', '-')} to be two files, got {file} for both")
    problem = _problem(options)
    worked = tracing.trace(problem)
    errors = differences(worked)
    worst = max(errors, key=lambda name: (math.isnan(errors[name]), errors[name]))
    if not errors[worst] <= ALLOWED:
        print(
            f"bptt trace: {worst} differs from autograd's, relative error {errors[worst]:.1e}; nothing is shown",
            file=sys.stderr,
        )
        return 1
    agreement = f"every number agrees with autograd: worst relative error {errors[worst]:.1e}"
    sheet = FORMATS[options.format](worked, options.decimals, agreement)
    if options.save_problem is not None:
        write_atomically(options.save_problem, as_json(problem))
    if options.output is None:
        print(sheet, end="")
    else:
        write_atomically(options.output, sheet.encode())
        print(agreement)
    return 0


def _problem(options: argparse.Namespace) -> tracing.Problem:
    chosen = {
        name: getattr(options, option) for option, name in OPTIONS.items() if getattr(options, option) is not None
    }
    if options.problem is None:
        sizes = {letter: getattr(options, name) or usual for name, (letter, usual) in SIZES.items()}
        return drawn_problem(sizes, chosen, options.seed or 0)
    for name in (*SIZES, "seed"):
        if getattr(options, name) is not None:
            raise ValueError(f"expected --{name} or --problem, got both: what is in the file is not drawn")
    return read_problem(options.problem, chosen)


def differences(worked: Trace) -> dict[str, float]:
    """How far every quantity, and what its terms add up to, is from autograd's: ‖Δ‖ / ‖autograd's‖ for each array.

    An array that is less than a thousandth of the largest is measured against that thousandth: where terms cancel,
    rounding is all that is left of it.
    """
    problem = worked.problem
    truth = torch_reference.gradients(problem.parameters, problem.x, problem.targets, problem.h0, **problem.options)
    norms = {name: value.norm().item() for name, value in truth.items()}
    least = NOISE * max(norms.values())
    errors = {}
    for name, exact in truth.items():
        for place, found in (("", getattr(worked.result, name)), (" from its terms", worked.added_up.get(name))):
            if found is not None:
                errors[name + place] = (found - exact).norm().item() / (max(norms[name], least) or 1.0)
    return errors
