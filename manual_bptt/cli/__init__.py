"""The command `bptt`: finds the subcommand and reports what cannot be done. Each subcommand has a module of its own."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from manual_bptt.data import MissingPackageError

UNUSABLE = 2  # exit status for arguments, or an installation, that nothing can be done with
INTERRUPTED = 130  # as shells report Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `bptt` and return its exit status.

    Args:
        arguments: Without the program's name; None: those of the process.
    """
    try:
        from manual_bptt.cli import check, flow, predict, trace, train, verify
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        print("bptt: needs the package rich, which is not installed: pip install 'manual-bptt[cli]'", file=sys.stderr)
        return UNUSABLE
    parser = argparse.ArgumentParser(
        prog="bptt", description="Back-propagation through time by hand, held against independent witnesses."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('manual-bptt')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    verify.add_parser(commands)
    check.add_parser(commands)
    trace.add_parser(commands)
    flow.add_parser(commands)
    train.add_parser(commands)
    predict.add_parser(commands)
    options, rest = parser.parse_known_args(arguments)
    if rest and hasattr(options, "texts") and not any(each.startswith("-") for each in rest):
        options.texts += rest  # MODEL --top 1 TEXT: argparse takes texts next to MODEL alone
    elif rest:
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an old terminal may have no ✓
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNUSABLE
    except KeyboardInterrupt:
        print(f"bptt {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (MissingPackageError, ValueError, OSError, RuntimeError) as error:
        print(f"bptt {options.command}: {_said(error).removeprefix(f'{options.command}: ')}", file=sys.stderr)
        return UNUSABLE
    return status


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"expected {error.filename} to be of use, got: {error.strerror}"
    return str(error)
