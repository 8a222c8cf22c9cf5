"""`bptt verify`: the hand-written gradients beside every witness, on real names, and the time they take.

Exit status: 0 everything agrees, 1 something differs, 2 unusable arguments. No mathematics here.
"""

import argparse
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from manual_bptt import kernels
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.cli import timing
from manual_bptt.cli.agreement import agreement
from manual_bptt.cli.arguments import whole
from manual_bptt.cli.problems import Problem, name_problems
from manual_bptt.cli.self_test import self_test
from manual_bptt.cli.verify_model import verify_model
from manual_bptt.data import surnames_source
from manual_bptt.files import check_writable, write_atomically
from manual_bptt.kernels import native

DTYPES = {"float64": torch.float64, "float32": torch.float32}
OF_NAMES = {"self_test": False, "device": "all", "dtype": "all", "nonlinearity": "tanh", "hidden": 16, "longest": 12}
TIMED_BATCH, TIMED_HIDDEN, TIMED_SECONDS = 64, 128, 2.0


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "verify",
        help="compare the hand-written gradients with independent witnesses on real names",
        description="Compute dU dW dV db dc dx dh0 by hand on a batch of real surnames and compare each with "
        "torch.nn.RNN, autograd on the unrolled loop, and complex-step derivatives. "
        "Exit status: 0 all agree, 1 something differs, 2 unusable arguments.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="model.pt of bptt train: compare the gradients of that model",
    )
    parser.add_argument(
        "--self-test", action="store_true", help="plant wrong gradients, one at a time, and show that each is caught"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all", help="default: all there are")
    parser.add_argument("--dtype", choices=(*DTYPES, "all"), default="all", help="default: all")
    parser.add_argument("--nonlinearity", choices=tuple(ACTIVATIONS), default="tanh", help="default: tanh")
    parser.add_argument("--batch", type=whole(1, 256), default=8, metavar="B", help="number of names (default: 8)")
    parser.add_argument(
        "--hidden", type=whole(1, 128), default=16, metavar="H", help="hidden units (default: 16; 128 take minutes)"
    )
    parser.add_argument(
        "--longest",
        type=whole(2, 100),
        default=12,
        metavar="N",
        help="use names of at most N characters (default: 12)",
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="for the names and the weights (default: 0)"
    )
    parser.add_argument("--threads", type=whole(1, 256), metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--no-timing", action="store_true", help="leave out the training-step times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return its exit status.

    Raises:
        ValueError: A device that is not there, or no names as short as asked for.
        OSError: FILE cannot be written.
        MissingPackageError: Faker is not installed.
    """
    devices = _devices(options.device)
    if options.json is not None:
        check_writable(options.json)
    threads_before = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(highlight=False)
    try:
        if options.model is None:
            report = _report(options, devices, console)
        else:
            _refuse_beside_model(options)
            report = verify_model(options.model, options.batch, options.seed, console)
    finally:
        torch.set_num_threads(threads_before)
    if options.json is not None:
        write_atomically(options.json, json.dumps(report, indent=2, allow_nan=False).encode())
    return 0 if report["passed"] else 1


def _refuse_beside_model(options: argparse.Namespace) -> None:
    given = [name for name, usual in OF_NAMES.items() if getattr(options, name) != usual]
    if given:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"expected nothing about names or networks beside MODEL, got {told}")


def _devices(asked: str) -> list[torch.device]:
    names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if asked == "all":
        return [torch.device(name) for name in names]
    if asked not in names:
        raise ValueError(f"expected --device to be there, got {asked!r}, but torch finds no CUDA device")
    return [torch.device(asked)]


def _report(options: argparse.Namespace, devices: list[torch.device], console: Console) -> dict[str, Any]:
    """Do everything that was asked for, print it, and return it as plain data."""
    problems = name_problems(options.batch, options.hidden, options.longest, options.nonlinearity, options.seed)
    dtypes = [DTYPES[name] for name in DTYPES if options.dtype in (name, "all")]
    console.print(f"{surnames_source()}: {_shown(problems[0])}")
    console.print("relative error ‖by hand − witness‖ / ‖witness‖ of each gradient; every witness computes in float64")
    report: dict[str, Any] = {
        "versions": {"manual_bptt": version("manual-bptt"), "torch": torch.__version__, "numpy": version("numpy")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "kernel": native.state(),
        "nonlinearity": options.nonlinearity,
        "seed": options.seed,
        "problems": [{"title": problem.title, "names": problem.names, **problem.sizes()} for problem in problems],
    }
    examine = self_test if options.self_test else agreement
    report["passed"] = examine(problems, devices, dtypes, console, report)
    report["kernels"] = {device.type: _kernel(problems[0], device) for device in devices}
    taken = ", ".join(f"{name} on {device}" for device, name in report["kernels"].items())
    console.print(f"kernel in C for CPUs: {native.state()}; taken at these sizes: {taken}")
    if not torch.cuda.is_available():
        console.print("CUDA: torch finds no device here; nothing was compared on one.")
    if not options.no_timing and not options.self_test:
        timed = name_problems(TIMED_BATCH, TIMED_HIDDEN, options.longest, options.nonlinearity, options.seed)[0]
        report["training_step"] = [_time(timed, device, console) for device in devices]
    return report


def _kernel(problem: Problem, device: torch.device) -> str:
    """Which kernel a recurrence of a problem's sizes takes."""
    T, B, D, H = (problem.sizes()[letter] for letter in "TBDH")
    return kernels.taken(T, B, D, H, torch.float32, device)


def _shown(problem: Problem, most: int = 8) -> str:
    pairs = [f"{name} → {country}" for name, country in zip(problem.names, problem.countries, strict=True)]
    return ", ".join([*pairs[:most], *(["…"] if len(pairs) > most else [])])


def _time(problem: Problem, device: torch.device, console: Console) -> dict[str, Any]:
    """Time one training step of each implementation, in turns; print the times and their ratios."""
    timed = timing.take_turns(timing.training_steps(problem, device, torch.float32), TIMED_SECONDS)
    sizes = " ".join(f"{name}={size}" for name, size in problem.sizes().items())
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else torch.cuda.get_device_name(device)
    console.print(f"training step of the whole network, {device.type}, {where}, float32, {sizes}, taken in turns:")
    for name, step in timed.items():
        low, high = step.quartiles
        ratio = "" if name == "hand-written" else f"{step.ratio:7.2f} × that time (middle half {low:.2f} to {high:.2f})"
        console.print(f"  {name:<18} {step.seconds * 1e3:8.3f} ms {ratio}".rstrip())
    return {
        "device": device.type,
        **problem.sizes(),
        "dtype": "float32",
        "implementations": {name: asdict(step) for name, step in timed.items()},
    }
