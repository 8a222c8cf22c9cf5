"""Finds the convention that a command line names: an entry of the table, or one in a teacher's own Python file."""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch_reference.conventions import CONVENTIONS, Convention, find_convention


def named_convention(text: str) -> Convention:
    """Return the convention of this name, or that of a file: "FILE.py", or "FILE.py:name" where it has several.

    The file is run in this process: it is the teacher's, not a homework.

    Raises:
        ValueError: There is none of this name, the file does not run, or it has no such convention.
        OSError: The file cannot be read.
    """
    if text in CONVENTIONS:
        return find_convention(text)
    path, _, name = (text, "", "") if text.endswith(".py") else text.rpartition(":")
    if not path.endswith(".py"):
        known = ", ".join(CONVENTIONS)
        raise ValueError(f"expected --convention to be one of {known}, or a file FILE.py, got {text!r}")
    found = _conventions_of(Path(path))
    if name:
        if name not in found:
            raise ValueError(f"expected a Convention named {name} in {path}, got {_listed(found)}")
        return found[name]
    if len({id(each) for each in found.values()}) != 1:
        raise ValueError(f"expected one Convention in {path}, or its name after a colon, got {_listed(found)}")
    return next(iter(found.values()))


def _conventions_of(path: Path) -> dict[str, Convention]:
    if not path.is_file():
        raise FileNotFoundError(f"expected {path} to be a file with a Convention, but there is none")
    try:
        with _beside(path):
            names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise ValueError(f"expected {path} to define a Convention, got {type(error).__name__}: {error}") from error
    return {name: value for name, value in names.items() if isinstance(value, Convention)}


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a file import what lies beside it."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _listed(found: dict[str, Convention]) -> str:
    return ", ".join(found) or "none"
