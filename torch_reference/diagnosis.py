"""Finds the mistakes that explain a wrong answer: those whose numbers it has, to rounding.

Everything the homework returned has to fit, on every problem it was asked. T steps, N batch rows, D inputs, H hidden
units, K outputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_reference.candidates import Answer
from torch_reference.conventions import PARAMETERS, Calls, Convention, to_course
from torch_reference.course_problems import Problem
from torch_reference.mistakes import Mistake, Plant, pairs, planted, plants
from torch_reference.workings import FORWARD_QUANTITIES, Workings

Array = npt.NDArray[Any]

# what the second says is a longer way of saying the first, where the two have the same numbers: nothing but parameters
# is returned; every sum and the carry are made with dL/dh
SAME_NUMBERS = (
    ({"M44"}, {"M45"}),
    ({"M20"}, {"M37"}),
    ({"M01", "M20"}, {"M06", "M37"}),
    ({"M04", "M20"}, {"M25", "M37"}),
)
LONGEST = 12  # with more steps, truncation is not tried together with other mistakes: it has too many forms
HARDLY = 1e-3  # a mistake that changes no gradient by more is all but invisible


def relative_error(got: Array, wanted: Array) -> float:
    """Return max |got - wanted| / max |wanted|, or max |got| where all wanted is zero; inf for what is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    difference = float(np.abs(got - wanted).max(initial=0.0))
    scale = float(np.abs(wanted).max(initial=0.0))
    return difference / scale if scale > 0 else difference


def _same(got: Array, wanted: Array, tolerance: float, size: float) -> bool:
    """Whether two arrays agree; `size` is the largest entry of what would be right, beside which zero is zero."""
    if not np.isfinite(wanted).all():
        if wanted.ndim > 0 and not np.isfinite(wanted).any():
            return False  # nothing but NaN has many causes
        return bool(np.array_equal(np.isfinite(got), np.isfinite(wanted)) and np.allclose(got, wanted, equal_nan=True))
    return relative_error(got, wanted) <= (tolerance if wanted.any() else tolerance * size)


def _same_shaped(got: Array, wanted: Array, tolerance: float, size: float) -> bool:
    return got.shape == wanted.shape and _same(got, wanted, tolerance, size)


@dataclass(frozen=True)
class Asked:
    """A problem and what the homework answered."""

    problem: Problem
    answer: Answer


class Fit:
    """Compares one answer with the numbers of any mistake.

    Args:
        asked: Problem and answer.
        convention: The homework's.
        calls: How its level is called.
        ignored: Symbols that are not looked at.
    """

    def __init__(self, asked: Asked, convention: Convention, calls: Calls, ignored: Iterable[str] = ()) -> None:
        self.convention = convention
        self.calls = calls
        self.workings = Workings(asked.problem, convention)
        self.answer = asked.answer
        self._kept: dict[Hashable, bool] = {}
        self.symbols = [
            symbol
            for symbol in _ORDER
            if symbol in self.workings.quantities()
            and (symbol in self.answer.values or symbol in self.answer.odd)
            and symbol not in ignored
        ]

    def fits(self, slots: Mapping[str, Any]) -> bool:
        """Whether everything that was returned has the numbers that come out with these slots exchanged."""
        return all(self.agrees(symbol, slots) for symbol in self.symbols)

    def agrees(self, symbol: str, slots: Mapping[str, Any]) -> bool:
        """Whether one quantity has those numbers."""
        key = self.workings.key(symbol, slots)
        if key not in self._kept:
            self._kept[key] = self._compare(symbol, self.workings.value(symbol, slots))
        return self._kept[key]

    def _compare(self, symbol: str, wanted: Array) -> bool:
        right = self.workings.value(symbol, {})
        near = self.answer.tolerance(symbol), float(np.abs(right).max(initial=0.0))
        if symbol in self.answer.values:
            got = self.answer.values[symbol]
            if wanted.ndim == 0 and got.ndim > 0:
                wanted = np.broadcast_to(wanted, got.shape)
            return _same_shaped(got, wanted, *near)
        got = self.answer.odd[symbol].squeeze()
        if wanted.shape == right.shape:  # then but axes of length one are amiss
            name = self.answer.names.get(symbol) or self.convention.name_of(symbol, self.calls)
            layout = self.convention.layout(name, self.calls)
            turned = wanted if layout is None else to_course(wanted, *layout)
            return _same_shaped(got, turned.squeeze(), *near)
        wanted = wanted.squeeze()
        return any(_same_shaped(got, wanted.transpose(order), *near) for order in permutations(range(wanted.ndim)))


# cheap ones, and those that depend on little, first
_ORDER = ("p", "loss", "h", "hT", "o", "do", "dV", "dc", "da", "dh", "db", "db2", "dx", "dh0", "dU", "dW")


@dataclass(frozen=True)
class Diagnosis:
    """What fits.

    Attributes:
        explanations: Each a set of plants that together explain everything; several where no problem separates them.
        forward_alone: The explanation covers the forward pass alone.
    """

    explanations: tuple[tuple[Plant, ...], ...] = ()
    forward_alone: bool = False

    @property
    def found(self) -> tuple[Plant, ...]:
        """The one explanation, or nothing."""
        return self.explanations[0] if len(self.explanations) == 1 else ()


def diagnose(asked: Sequence[Asked], convention: Convention, calls: Calls) -> Diagnosis:
    """Look for one mistake that explains all answers, then for two, then for one in the forward pass alone.

    Args:
        asked: Problems of the same level with their answers; the first is the one that is wrong.
        convention: The homework's.
        calls: How its level is called.
    """
    first = asked[0]
    largest = _largest(first.answer)
    lists = [plants(each.problem, largest) for each in asked]
    fits = [Fit(each, convention, calls) for each in asked]
    if fits[0].fits({}):  # the numbers are right: something is missing, or has a wrong shape
        return Diagnosis()
    if found := _explanations(((plant,) for plant in lists[0]), lists, fits):
        return Diagnosis(found)
    short = first.problem.sizes.T <= LONGEST
    together = [plant for plant in lists[0] if short or not {"window", "cut"} & plant.variant.slots.keys()]
    if found := _explanations(pairs(together), lists, fits):
        return Diagnosis(found)
    gradients = [symbol for symbol in _ORDER if symbol not in FORWARD_QUANTITIES]
    forward = [Fit(each, convention, calls, gradients) for each in asked]
    if forward[0].symbols and not forward[0].fits({}):
        found = _explanations(((plant,) for plant in lists[0]), lists, forward)
        return Diagnosis(found, forward_alone=True)
    return Diagnosis()


def _largest(answer: Answer) -> float:
    values = [value for symbol, value in answer.values.items() if symbol[1:] in PARAMETERS and symbol.startswith("d")]
    return max((float(np.abs(value).max()) for value in values), default=0.0)


def _explanations(
    combinations: Iterable[tuple[Plant, ...]], lists: Sequence[Sequence[Plant]], fits: Sequence[Fit]
) -> tuple[tuple[Plant, ...], ...]:
    """Keep the combinations that fit every answer; of several forms of the same mistakes the first."""
    found: dict[tuple[str, ...], tuple[Plant, ...]] = {}
    elsewhere = [{plant.key: plant for plant in listed} for listed in lists[1:]]
    for combination in combinations:
        if fits[0].fits(planted(combination)) and all(
            _fits_too(combination, known, fit) for known, fit in zip(elsewhere, fits[1:], strict=True)
        ):
            found.setdefault(tuple(plant.mistake.id for plant in combination), combination)
    for said, again in SAME_NUMBERS:
        names = {frozenset(ids) for ids in found}
        found = {ids: each for ids, each in found.items() if not again <= {*ids} or {*ids} - again | said not in names}
    return tuple(found.values())


def _fits_too(combination: tuple[Plant, ...], known: Mapping[tuple[Any, ...], Plant], fit: Fit) -> bool:
    """Whether the same mistakes fit another answer; a form that does not exist at its length changes nothing there."""
    return fit.fits(planted(known[plant.key] for plant in combination if plant.key in known))


def common_factor(answer: Answer, wanted: Mapping[str, Array]) -> float | None:
    """Return r where every gradient is r times what it should be, to rounding; None if there is no such r."""
    ratios, loosest = [], max(map(answer.tolerance, answer.names), default=answer.tolerance())
    for symbol in answer.names:
        if symbol not in answer.values or not np.abs(wanted[symbol]).max(initial=0.0) > 0:
            return None
        got, true = answer.values[symbol], wanted[symbol]
        if not np.isfinite(got).all():
            return None
        ratio = float((got * true).sum() / (true * true).sum())
        if relative_error(got, ratio * true) > answer.tolerance(symbol):
            return None
        ratios.append(ratio)
    if not ratios or max(ratios) - min(ratios) > loosest * max(map(abs, ratios)):
        return None
    return float(np.mean(ratios))


@dataclass
class Hidden:
    """What a problem does not show of a mistake.

    Attributes:
        notes: The forms that show on the standard problem and not here.
        change: The largest relative change that one of them makes.
        visible: Whether some form shows.
    """

    notes: list[str] = field(default_factory=list)
    change: float = 0.0
    visible: bool = False


def invisible(asked: Asked, standard: Problem, convention: Convention) -> dict[Mistake, Hidden]:
    """List the mistakes that change nothing that is returned, or hardly anything: less than a thousandth.

    Args:
        asked: The problem looked at, and its answer, which says what is returned.
        standard: The standard problem.
        convention: The homework's.

    Returns:
        Those of which a form that shows on the standard problem does not show here, or that never show.
    """
    workings, usual = Workings(asked.problem, convention), Workings(standard, convention)
    symbols = [symbol for symbol in asked.answer.names if symbol in workings.quantities()]
    symbols += [symbol for symbol in FORWARD_QUANTITIES if symbol in asked.answer.values]
    exact: dict[tuple[Any, ...], float] = {}
    named: dict[tuple[str, str], float] = {}  # "by N or T" here is "by N" and "by T" there
    for plant in plants(asked.problem, 0.0):
        exact[plant.key] = _change(workings, symbols, plant)
        for note in plant.variant.note.replace("by ", "").split(" or "):
            form = plant.mistake.id, note
            named[form] = max(named.get(form, 0.0), exact[plant.key])
    hidden: dict[Mistake, Hidden] = {}
    for plant in plants(standard, 0.0):
        known = hidden.setdefault(plant.mistake, Hidden())
        if _change(usual, symbols, plant) > HARDLY:
            note = plant.variant.note.replace("by ", "")
            joined = named.get((plant.mistake.id, note), 0.0) if note else 0.0
            change = exact.get(plant.key, joined)
            if change < HARDLY:
                known.notes.append(plant.variant.note)
                known.change = max(known.change, change)
            else:
                known.visible = True
    return {mistake: each for mistake, each in hidden.items() if each.notes or not each.visible}


def _change(workings: Workings, symbols: Iterable[str], plant: Plant) -> float:
    """The largest relative change that a mistake makes to any of these."""
    largest = 0.0
    for symbol in symbols:
        right, wrong = workings.value(symbol, {}), workings.value(symbol, plant.variant.slots)
        largest = max(largest, relative_error(wrong, right) if right.shape == wrong.shape else float("inf"))
    return largest
