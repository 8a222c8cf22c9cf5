"""Finds where an answer goes wrong first, also where nothing but sums was returned.

dU, dW and dV are sums of outer products over T·N rows. Where D, H and H are at least T·N, the rows of one side are
linearly independent, so that those of the other, dL/da_t or dL/do_t, can be read off the sum; dx shows them directly.
Order of judgement: h, o, p, loss; dL/do; dL/dh and dL/da from the last step backwards; sums; dx, dh0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_reference.candidates import Answer
from torch_reference.conventions import PARAMETERS, Convention
from torch_reference.course_problems import Problem
from torch_reference.diagnosis import relative_error
from torch_reference.workings import Workings

Array = npt.NDArray[Any]

FORWARD = ("h", "o", "p", "loss", "hT")
INTERMEDIATES = {"do": "dL/do", "dh": "dL/dh", "da": "dL/da"}
THROUGH_TIME = ("dU", "dW", "db", "db2", "dx", "dh0")  # what is made of dL/da
SUMS = ("dV", "dc", "dU", "dW", "db", "db2")
READ_OFF = {False: 1e-6, True: 2e-2}  # how far a row that was read off a sum may be from what it is compared with


@dataclass(frozen=True)
class Place:
    """A quantity by its symbol and a step, counted from 0; None where it has none.

    Attributes:
        symbol: "h", "dh", "dW", …
        step: The step.
        seen: Whether the quantity was returned; False: inferred.
        either: dL/dh and dL/da cannot be told apart here: one of the two it is.
        any: Nor can what is summed be told from the sum.
    """

    symbol: str
    step: int | None
    seen: bool = True
    either: bool = False
    any: bool = False


@dataclass(frozen=True)
class Seen:
    """What can be said about quantities through time.

    Attributes:
        values: By symbol, (T, N, ·), returned or read off; only those that can be trusted.
        read_off: The symbols of those that were read off sums.
    """

    values: dict[str, Array]
    read_off: frozenset[str]


def first_of_formula(workings: Workings, slots: Mapping[str, Any], answer: Answer) -> Place | None:
    """Return the first place that a known mistake spoils, as far as the homework returns it or what follows from it."""
    right: dict[str, Array] = {name: workings.value(name, {}) for name in workings.quantities()}
    wrong: dict[str, Array] = {name: workings.value(name, slots) for name in workings.quantities()}
    values = {
        name: wrong[name] for name in wrong if name in answer.values or name in answer.odd or name in INTERMEDIATES
    }
    place = first_difference(values, right, lambda symbol: 1e-9, len(workings.problem.x))
    return None if place is None else replace(place, seen=place.symbol in answer.values or place.symbol in answer.odd)


def first_difference(
    values: Mapping[str, Array], right: Mapping[str, Array], tolerance: Callable[[str], float], T: int
) -> Place | None:
    """Return the first place, in the order of judgement, where values differ from what is right."""

    def differs(symbol: str) -> bool:
        return symbol in values and _differs(values[symbol], right[symbol], tolerance(symbol))

    def wrong_steps(symbol: str) -> list[int]:
        return _wrong_steps(values[symbol], right[symbol], tolerance(symbol))

    for symbol in filter(differs, FORWARD):
        through_time = symbol in ("h", "o", "p") and values[symbol].shape == right[symbol].shape
        steps = wrong_steps(symbol) if through_time else []
        return Place(symbol, steps[0] if steps else None)
    if differs("do"):
        return Place("do", wrong_steps("do")[-1])
    for t in reversed(range(T)):
        for symbol in ("dh", "da"):
            if symbol in values and t in wrong_steps(symbol):
                return Place(symbol, t)
    for symbol in filter(differs, (*SUMS, "dx", "dh0")):
        steps = wrong_steps(symbol) if symbol == "dx" and values[symbol].shape == right[symbol].shape else []
        return Place(symbol, steps[-1] if steps else None)
    return None


def _differs(value: Array, right: Array, tolerance: float) -> bool:
    return value.shape != right.shape or not relative_error(value, right) <= tolerance


def _wrong_steps(value: Array, right: Array, tolerance: float) -> list[int]:
    """The steps at which (T, …) arrays differ, by the largest entry of all steps; of a wrong shape all."""
    if value.shape != right.shape:
        return list(range(len(right)))
    return [t for t, error in enumerate(step_errors(value, right)) if not error <= tolerance]


def step_errors(value: Array, right: Array) -> list[float]:
    """The error of each step, relative to the largest entry of all steps."""
    scale = float(np.abs(right).max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        errors = np.abs(value - right).reshape(len(right), -1).max(1) / scale
    return [float(error) if np.isfinite(error) else float("inf") for error in errors]


def see(answer: Answer, problem: Problem, truth: Mapping[str, Array], convention: Convention) -> Seen:
    """Return what the homework holds for dL/do_t and dL/da_t: returned, or read off its sums where these agree."""
    returned: tuple[str, ...] = ("h", "o", "p", "do", "dh", "da", "dx")
    values = {name: answer.values[name] for name in returned if name in answer.values}
    read_off = set()
    if problem.level == "network" and "do" not in values:
        do = _output_errors(answer, problem, truth, convention)
        if do is not None:
            values["do"] = do
            read_off.add("do")
    if "da" not in values:
        da = _state_errors(answer, problem, truth, convention)
        if da is not None:
            values["da"] = da
            read_off.add("da")
    return Seen(values, frozenset(read_off))


def _scale(convention: Convention, problem: Problem) -> float:
    return float(problem.sizes.N) if convention.parameter_gradients == "mean" else 1.0


def _unclipped(value: Array, problem: Problem) -> bool:
    return problem.clip is None or bool((np.abs(value) < problem.clip).all())


def _rows(product: Array, right: Array, tolerance: float) -> Array | None:
    """Solve product = rowsᵀ right for the rows; None where they are not determined or product is no such sum."""
    if not np.isfinite(product).all() or np.linalg.matrix_rank(right) < len(right):
        return None
    rows: Array = product @ np.linalg.pinv(right)
    if relative_error(rows @ right, product) > tolerance:
        return None
    turned: Array = rows.T
    return turned


def _from_sum(answer: Answer, symbol: str, right: Array, problem: Problem, convention: Convention) -> Array | None:
    """Read the left factors of a sum of outer products off it, (T, N, ·)."""
    value = answer.values.get(symbol)
    if value is None or not _unclipped(value, problem):
        return None
    flat = right.reshape(-1, right.shape[-1])
    rows = _rows(value * _scale(convention, problem), flat, READ_OFF[answer.single])
    return None if rows is None else rows.reshape(*problem.x.shape[:2], -1)


def state_witnesses(
    answer: Answer, problem: Problem, truth: Mapping[str, Array], convention: Convention
) -> dict[str, Array]:
    """dL/da_t as each of dU, dW and dx has it, where it can be read off."""
    found: dict[str, Array | None] = {}
    x = np.eye(problem.sizes.D)[problem.x] if problem.tokens else problem.x
    found["dU"] = _from_sum(answer, "dU", x, problem, convention)
    before = np.concatenate([problem.h0[None], truth["h"][:-1]])
    found["dW"] = _from_sum(answer, "dW", before, problem, convention)
    if "dx" in answer.values and _unclipped(answer.values["dx"], problem):
        dx = answer.values["dx"].reshape(-1, problem.sizes.D)
        rows = _rows(dx, problem.parameters["U"], READ_OFF[answer.single])
        found["dx"] = None if rows is None else rows.T.reshape(*problem.x.shape[:2], -1)
    return {name: value for name, value in found.items() if value is not None}


def _state_errors(answer: Answer, problem: Problem, truth: Mapping[str, Array], convention: Convention) -> Array | None:
    """Choose among the witnesses: one that is right, two that agree, or one that agrees with db; else there is none."""
    witnesses = state_witnesses(answer, problem, truth, convention)
    near = READ_OFF[answer.single]
    wrong_sum = "db" in answer.values and not _sum_is_right(answer, problem, truth, convention)
    if wrong_sum and "dx" in witnesses and relative_error(witnesses["dx"], truth["da"]) > near:
        total = witnesses["dx"].sum((0, 1)) / _scale(convention, problem)
        if relative_error(answer.values["db"], total) <= near:
            return witnesses["dx"]  # a sum that is right beside these two is right by chance
    for value in witnesses.values():
        if relative_error(value, truth["da"]) <= near:
            return value
    if _sum_is_right(answer, problem, truth, convention) and any(
        is_multiple(value, truth["da"], near) for value in witnesses.values()
    ):
        return truth["da"]  # what was summed into db is right: the other sums are scaled
    names = list(witnesses)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            if relative_error(witnesses[name], witnesses[other]) <= near:
                return witnesses[name]
    for symbol in ("db", "db2"):
        if symbol in answer.values and _unclipped(answer.values[symbol], problem):
            for value in witnesses.values():
                total = value.sum((0, 1)) / _scale(convention, problem)
                if relative_error(answer.values[symbol], total) <= near:
                    return value
    return None


def _sum_is_right(answer: Answer, problem: Problem, truth: Mapping[str, Array], convention: Convention) -> bool:
    """Whether db is the sum of the true dL/da."""
    db = answer.values.get("db")
    if db is None or not _unclipped(db, problem):
        return False
    return relative_error(db * _scale(convention, problem), truth["db"]) <= answer.tolerance("db")


def is_multiple(value: Array, right: Array, tolerance: float) -> bool:
    """Whether an array is a number times another one."""
    factor = float((value * right).sum() / max(float((right * right).sum()), 1e-300))
    return relative_error(value, factor * right) <= tolerance


def _output_errors(
    answer: Answer, problem: Problem, truth: Mapping[str, Array], convention: Convention
) -> Array | None:
    """dL/do_t read off dV, where dc agrees with it; the truth where something that follows from it is right."""
    near = READ_OFF[answer.single]
    scale = _scale(convention, problem)
    sums = {name: answer.values[name] * scale for name in ("dV", "dc") if name in answer.values}
    sums = {name: value for name, value in sums.items() if _unclipped(value / scale, problem)}
    right = {name: relative_error(value, truth[name]) <= answer.tolerance(name) for name, value in sums.items()}
    if right.get("dV"):
        return truth["do"]
    for value in state_witnesses(answer, problem, truth, convention).values():
        if relative_error(value, truth["da"]) <= near:
            return truth["do"]
    do = _from_sum(answer, "dV", truth["h"], problem, convention)
    if do is not None:
        size = float(np.abs(do).sum((0, 1)).max())  # where the summands cancel, rounding is small beside these
        if "dc" not in sums or float(np.abs(sums["dc"] - do.sum((0, 1))).max()) <= near * size:
            return do
    return truth["do"] if right.get("dc") else None


def first_seen(
    seen: Seen, answer: Answer, wanted: Mapping[str, Array], truth: Mapping[str, Array], T: int
) -> Place | None:
    """Return the first wrong place of an answer that no known mistake explains."""
    near = READ_OFF[answer.single]
    forward = {name: answer.values[name] for name in FORWARD if name in answer.values}
    forward |= {name: answer.odd[name] for name in FORWARD if name in answer.odd}
    if (place := first_difference(forward, wanted, answer.tolerance, T)) is not None:
        return place
    if "do" in seen.values:
        limit = near if "do" in seen.read_off else answer.tolerance("do")
        steps = _wrong_steps(seen.values["do"], truth["do"], limit)
        if steps:
            return Place("do", steps[-1], "do" not in seen.read_off)
    returned = {name: value for name, value in seen.values.items() if name in ("dh", "da")}
    place = first_difference(returned, truth, lambda name: near if name in seen.read_off else answer.tolerance(name), T)
    if place is not None:
        inferred = "da" in seen.read_off
        if place.symbol == "da" and "dh" not in returned and place.step is not None and place.step < T - 1:
            # the activation's derivative was right one step later: what arrived is at fault
            return Place("dh", place.step, False)
        unsure = inferred and place.symbol == "da" and "dh" not in returned
        return Place(place.symbol, place.step, not inferred, either=unsure)
    if "da" not in seen.values and (steps := _wrong_inputs(answer, wanted)):
        return Place("da", steps[-1], False, either=True)
    rest = {name: answer.values[name] for name in (*SUMS, "dx", "dh0") if name in answer.values}
    rest |= {name: answer.odd[name] for name in (*SUMS, "dx", "dh0") if name in answer.odd}
    place = first_difference(rest, wanted, answer.tolerance, T)
    if place is not None and place.symbol in THROUGH_TIME and "da" not in seen.values:
        return replace(place, any=place.symbol in answer.values)
    return place


def _wrong_inputs(answer: Answer, wanted: Mapping[str, Array]) -> list[int]:
    """The steps at which dx is wrong, if the parameters' gradients are wrong with it."""
    sums = [name for name in ("dU", "dW", "db") if name in answer.values]
    if "dx" not in answer.values or not sums:
        return []
    if not all(_differs(answer.values[name], wanted[name], answer.tolerance(name)) for name in sums):
        return []
    return _wrong_steps(answer.values["dx"], wanted["dx"], answer.tolerance("dx"))


def is_parameter(symbol: str) -> bool:
    """Whether a gradient belongs to a parameter."""
    return symbol[1:] in PARAMETERS
