"""Loads the homework files of tests/homework, as they are or with mistakes planted in their text."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

Edits = tuple[tuple[str, str], ...]

FOLDER = Path(__file__).parent / "homework"
CONVENTIONS = ("goodfellow", "torch", "cs231n", "coursera", "cmu", "mytorch", "karpathy", "kth", "d2l")
FILES = {"torch": "torch_manual"}  # all others are called as their convention is
AUTOGRAD_FUNCTION = "torch_function"  # the other way to hand in a sequence in torch's convention


@dataclass(frozen=True)
class Homework:
    """A right homework file and what can be planted in it.

    Attributes:
        text: The file.
        mistakes: Known mistakes by key, the mistake's number and perhaps a variant: "M11-k2".
        levels: The level at which each of these, and of those outside, is made; "step+sequence" if at both.
        pairs: Keys of known mistakes to plant together.
        outside: Mistakes that no catalogue lists, by name.
        outside_first_wrong: The canonical symbol of the first quantity that each of these spoils, and its step: counted
            from the first step if positive, from behind if negative (-2 is T - 1), "last"; None if it has none.
    """

    text: str
    mistakes: dict[str, Edits]
    levels: dict[str, str]
    pairs: tuple[tuple[str, str], ...]
    outside: dict[str, Edits]
    outside_first_wrong: dict[str, tuple[str, int | str | None]]

    def planted(self, *keys: str) -> str:
        """The text with these mistakes in it."""
        return edited(self.text, *(self.mistakes[key] for key in keys))


@cache
def homework(convention: str) -> Homework:
    """Load a convention's homework file and what belongs to it."""
    stem = FILES.get(convention, convention)
    specification = importlib.util.spec_from_file_location(f"{stem}_mistakes", FOLDER / f"{stem}_mistakes.py")
    assert specification is not None
    assert specification.loader is not None
    planting = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(planting)
    return Homework(
        (FOLDER / f"{stem}.py").read_text(encoding="utf-8"),
        planting.MISTAKES,
        planting.LEVEL,
        planting.PAIRS,
        planting.OUTSIDE,
        planting.OUTSIDE_FIRST_WRONG,
    )


def edited(text: str, *edits: Edits) -> str:
    """Replace passages, each of which has to stand there exactly once."""
    for old, new in (replacement for each in edits for replacement in each):
        assert text.count(old) == 1, f"{text.count(old)} times in the file: {old!r}"
        text = text.replace(old, new)
    return text


def as_module(text: str) -> ModuleType:
    """Run a homework's text as a module of its own."""
    module = ModuleType("homework")
    exec(compile(text, "homework.py", "exec"), module.__dict__)
    return module
