"""Facts about a homework that no formula of the backward pass shows: what it changes, keeps, ignores, or returns amiss.

A fact is only stated where it was seen. Whether the numbers are those that it gives is said by `Finding.explains`.
T steps, N batch rows, D inputs, H hidden units, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_reference import localisation
from torch_reference.candidates import Answer, Candidate
from torch_reference.conventions import Calls, Convention, to_course
from torch_reference.course_problems import TOLERANCE, Problem
from torch_reference.diagnosis import Asked, Fit, relative_error
from torch_reference.localisation import Place
from torch_reference.reports import Finding
from torch_reference.workings import Workings

Array = npt.NDArray[Any]

# the numbers are those of docs/coursework.md
FACTS = {
    "M15": (
        "state of the call before",
        "A sequence starts with what the one before it left.",
        "Where is the state, or the gradient that travels back in time, set before the loop?",
    ),
    "P1": (
        "argument changed in place",
        "A function changes an array that it was given.",
        "Whoever calls it still needs that array: a check that uses it afterwards compares with other numbers. Make a "
        "new array, or a copy.",
    ),
    "P2": (
        "gradients not set to zero",
        "The gradients of the parameters grow from call to call: they are added to those of the call before.",
        "Where are they set to zero?",
    ),
    "P5": (
        "other results from call to call",
        "The same call gives other results the second time, or after another call in between.",
        "Which variables outlive the function, and is anything drawn at random? What the backward pass needs belongs "
        "into the cache.",
    ),
    "P6": (
        "argument without effect",
        "An argument has no effect on the result.",
        "Is it left out? Or does a global variable of the file take its place, left from an earlier run, with a "
        "similar name?",
    ),
    "P8": (
        "weights made inside the function",
        "The function uses other weights than those that it is given.",
        "Where do the weights come from, and when?",
    ),
    "S1": ("result missing", "Something that is asked for is not returned.", "Compare what you return with it."),
    "S2": ("shape", "A result does not have the shape of what it belongs to.", "Compare the shapes."),
    "S3": ("type", "A result is no array of numbers.", "What do you return?"),
    "S4": (
        "not finite",
        "There are NaN or infinite numbers in the result.",
        "Look for an overflow, a division by zero or a logarithm of zero, and at arrays that were never filled.",
    ),
    "S5": (
        "results in another order",
        "The gradients are right, but returned in another order than asked for.",
        "Compare the order in which you return them.",
    ),
}


def fact(id_: str, note: str, *, explains: bool = False, cause: str = "") -> Finding:
    """Make a finding of a fact."""
    title, usual, hint = FACTS[id_]
    return Finding(id_, title, cause or usual, hint, note, explains)


def changed_arguments(answer: Answer) -> list[str]:
    """The arguments, or entries of dicts of them, that were changed in place."""
    return [name.split("'")[1] if "'" in name else name for name, _ in answer.changed]


def changed(answer: Answer, convention: Convention, calls: Calls, *, explains: bool = False) -> Finding:
    """Say which arguments were changed in place: the state and the weights, or others."""
    kept = {convention.name_of(symbol, calls) for symbol in ("h0", "U", "W", "V", "b", "b2", "c")}
    note = f"{', '.join(f'{name} ({function})' for name, function in answer.changed)} changed in place"
    if set(changed_arguments(answer)) <= kept:
        return fact(
            "P5", note, explains=explains, cause="A function changes the state or the weights that it was given."
        )
    return fact("P1", note, explains=explains)


def malformed(
    answer: Answer, wanted: Mapping[str, Array], convention: Convention, calls: Calls, covered: set[str]
) -> list[Finding]:
    """Missing, misshapen, exchanged and infinite results, but for those that an explanation covers."""
    order = _order(answer, wanted, convention, calls)
    if order:
        return [fact("S5", f"{', '.join(order)} stand there", explains=True)]
    notes: dict[str, list[str]] = {}
    exchanged = _exchanged(answer, wanted, convention, calls)
    if exchanged:
        names = joined([answer.names[symbol] for symbol in exchanged])
        whose = "the other's" if len(exchanged) == 2 else "another's"
        notes["S2"] = [f"{names} look exchanged, each has {whose} shape"]
    for symbol, trouble in answer.troubles.items():
        if symbol in exchanged or symbol in covered:
            continue
        name = answer.names.get(symbol) or convention.name_of(symbol, calls)
        id_ = "S2" if symbol in answer.odd else "S1" if trouble.startswith("missing") else "S3"
        notes.setdefault(id_, []).append(f"{name}: {trouble}")
    infinite = [
        answer.names.get(symbol, symbol)
        for symbol, value in answer.values.items()
        if symbol not in covered and not np.isfinite(value).all()
    ]
    if infinite:
        notes["S4"] = [", ".join(infinite)]
    return [fact(id_, "; ".join(several)) for id_, several in notes.items()]


def _in_course_layout(array: Array, symbol: str, name: str, convention: Convention, calls: Calls) -> Array:
    layout = convention.layout(name, calls)
    shared = symbol == "dh0" and convention.shared_h0
    return array if layout is None or shared else to_course(array, symbol, layout[1])


def _order(answer: Answer, wanted: Mapping[str, Array], convention: Convention, calls: Calls) -> tuple[str, ...]:
    """The names of the gradients in the order in which right ones stand, if that is another one than asked for."""
    got, right = {}, {}
    for symbol, name in answer.names.items():
        if symbol not in answer.values and symbol not in answer.odd:
            return ()
        right[symbol] = _in_course_layout(wanted[symbol], symbol, name, convention, calls)
        got[symbol] = answer.odd.get(symbol)
        if symbol in answer.values:
            got[symbol] = _in_course_layout(answer.values[symbol], symbol, name, convention, calls)
    order = []
    for symbol, array in got.items():
        fitting = [
            other
            for other, value in right.items()
            if array is not None
            and array.shape == value.shape
            and relative_error(array, value) <= answer.tolerance(other)
        ]
        order.append(symbol if symbol in fitting else fitting[0] if len(fitting) == 1 else "")
    if sorted(order) != sorted(got) or order == list(got):
        return ()
    return tuple(answer.names[symbol] for symbol in order)


def _exchanged(answer: Answer, wanted: Mapping[str, Array], convention: Convention, calls: Calls) -> tuple[str, ...]:
    """Gradients each of which has the shape of exactly one other of them."""
    shapes = {
        symbol: _in_course_layout(wanted[symbol], symbol, answer.names[symbol], convention, calls).shape
        for symbol in answer.odd.keys() & answer.names.keys()
    }
    owners = {
        symbol: [other for other, shape in shapes.items() if shape == answer.odd[symbol].shape] for symbol in shapes
    }
    sure = {symbol: owner[0] for symbol, owner in owners.items() if len(owner) == 1}
    while set(sure) != set(sure.values()):  # leave out chains that do not close
        sure = {symbol: owner for symbol, owner in sure.items() if symbol in sure.values() and owner in sure}
    return tuple(symbol for symbol in answer.names if symbol in sure)


def what_is_kept(
    first: Answer, asked: Asked, slots: Mapping[str, Any], convention: Convention, calls: Calls
) -> tuple[str, str, Place | None]:
    """Name what a second answer to the same has left from the first; `slots` hold the mistakes in the first.

    Returns:
        A fact's id and note, and where it shows first; None: by the numbers. "P5" only says that they differ.
    """
    answer, fit = asked.answer, Fit(asked, convention, calls)
    parameters = [symbol for symbol in answer.names if localisation.is_parameter(symbol)]
    if not differ(_grown(first, parameters), answer):
        summed = next(symbol for symbol in localisation.SUMS if symbol in parameters)
        return "P2", "twice as large the second time", Place(summed, None)
    later = replace(asked.problem, h0=fit.workings.value("hT", slots))
    if Fit(Asked(later, answer), convention, calls).fits(slots):
        return "M15", "h_0 is the last state of the call before", None
    left = _Held(fit.workings.carry(slots))
    for dh0 in ("own", "carry"):
        later_slots = {"dh0": dh0, **slots, "initial": left}
        if fit.fits(later_slots):
            place = localisation.first_of_formula(fit.workings, later_slots, answer)
            return "M15", "what flows back into the last step is what the call before left", place
    return "P5", "the second time the same is asked", None


def differ(first: Answer, again: Answer) -> bool:
    """Whether two answers to the same question are different."""
    if first.values.keys() != again.values.keys() or first.odd.keys() != again.odd.keys():
        return True
    if any(not _same(value, again.odd[symbol], TOLERANCE[False]) for symbol, value in first.odd.items()):
        return True
    return any(
        not _same(value, again.values[symbol], again.tolerance(symbol)) for symbol, value in first.values.items()
    )


def ignored_arguments(candidate: Candidate, level: str, problem: Problem, names: Sequence[str]) -> list[Finding]:
    """Where the forward pass is wrong: does it use the weights that it is given?

    Args:
        candidate: The homework.
        level: One of its levels.
        problem: Of this level.
        names: The quantities of the forward pass that it returns.
    """
    convention = candidate.convention
    first = candidate.states(level, problem)
    forward = [name for name in names if name in first and np.isfinite(first[name]).all()]
    if not forward:
        return []

    def right(posed: Problem) -> dict[str, Array]:
        workings = Workings(posed, convention)
        return {name: workings.value(name, {}) for name in forward}

    def same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
        return all(name in other and _same(one[name], other[name], 1e-12) for name in forward)

    if not same(first, candidate.states(level, problem)):
        recurrent = {name: w if name in "Vc" else np.zeros_like(w) for name, w in problem.parameters.items()}
        weightless = replace(problem, parameters=recurrent)
        inputs = problem.x if problem.tokens else np.zeros_like(problem.x)
        nothing = replace(weightless, x=inputs, h0=np.zeros_like(problem.h0))
        others = not same(right(weightless), candidate.states(level, weightless))
        if others and same(right(nothing), candidate.states(level, nothing)):
            return [fact("P8", "inputs and states have an effect though all recurrent weights are zero")]
        return []
    ignored = []
    usual = right(problem)
    for symbol in (each for each in ("U", "W", "b", "b2", "V", "c") if each in problem.parameters):
        moved = {**problem.parameters, symbol: problem.parameters[symbol] * 0.5 + 0.1}
        other = replace(problem, parameters=moved)
        if same(usual, right(other)):
            continue  # nothing that is returned depends on it
        if symbol == "c" and "p" in first and not np.allclose(first["p"].sum(-1), 1):
            continue  # normalised over another axis, the probabilities may not show it
        if same(first, candidate.states(level, other)):
            ignored.append(symbol)
    if not ignored:
        return []
    words = joined([convention.name_of(symbol) for symbol in ignored])
    note = f"the result stays the same whatever {words} hold{'s' * (len(ignored) == 1)}"
    return [fact("P8" if {"U", "W"} <= set(ignored) else "P6", note)]


def joined(words: Sequence[str]) -> str:
    """Write a list: "h, o and p"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


class _Held:
    """An array that counts as one thing, to be a key."""

    def __init__(self, array: Array) -> None:
        self.array = array


def _grown(answer: Answer, symbols: Sequence[str]) -> Answer:
    """The answer with these gradients twice as large."""

    def grown(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {symbol: value * (2 if symbol in symbols else 1) for symbol, value in arrays.items()}

    return replace(answer, values=grown(answer.values), odd=grown(answer.odd))


def _same(one: Array, other: Array, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return np.array_equal(one, other, equal_nan=True)
    return relative_error(one, other) <= tolerance
