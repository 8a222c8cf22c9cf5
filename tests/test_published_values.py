"""The numbers that courses print come out of the oracle's truth and of right homework files, to the last printed digit.

Would catch: a convention whose layout, order of arguments, scale or names are not those of the course, a truth that is
true for another network, and homework examples that are right by this project's own reckoning alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from published_values import (
    CS231N_BACKWARD,
    CS231N_ERRORS,
    CS231N_STEP,
    DECIMALS,
    FULL,
    MYTORCH_CELL,
    RECORDS,
    Printed,
    Record,
)

from torch_reference.candidates import Candidate, find_candidate
from torch_reference.checking import check
from torch_reference.conventions import AXES, CONVENTIONS, Calls, from_course, to_course
from torch_reference.course_problems import Problem, asked_for, truth
from torch_reference.running import Call, Child, Program
from torch_reference.workings import States, Workings

Array = npt.NDArray[Any]

HOMEWORK = Path(__file__).parent / "homework"
# 1 - h² of a saturated state is wrong by an eps or two, which the weights then multiply; it matters where the printed
# number is that small itself
ROUNDED_AWAY = 1e-14


@pytest.fixture(scope="module")
def children() -> Iterator[dict[str, Child]]:
    """The right homework files of the conventions, each in its own process."""
    opened = {name: Child(HOMEWORK / f"{name}.py") for name in ("cs231n", "coursera", "cmu", "mytorch")}
    yield opened
    for each in opened.values():
        each.close()


def calls_of(record: Record) -> Calls:
    return CONVENTIONS[record.convention].ways(record.level)[0]


def laid_out(record: Record, name: str) -> tuple[str, str]:
    """Symbol and axes of a name."""
    layout = CONVENTIONS[record.convention].layout(name, calls_of(record))
    assert layout is not None, name
    return layout


def problem_of(record: Record) -> Problem:
    """Bring what is given into canonical layout; what the course does not have at this level is zero."""
    given = {laid_out(record, name): array for name, array in record.arrays.items()}
    sizes = {"K": 1} | {
        axis: size for (_, axes), array in given.items() for axis, size in zip(axes, array.shape, strict=True)
    }
    sizes |= {"T": sizes.get("T", 1), "P": sizes["H"]}

    def shape(symbol: str) -> tuple[int, ...]:
        return tuple(sizes[axis] for axis in AXES[symbol])

    canonical = {symbol: from_course(array, symbol, axes, shape(symbol)) for (symbol, axes), array in given.items()}
    return Problem(
        record.level,
        {name: canonical[name] for name in ("U", "W", "b", "b2") if name in canonical}
        | {name: canonical.get(name, np.zeros(shape(name))) for name in ("V", "c")},
        canonical["x"],
        canonical["h0"],
        upstream=canonical.get("dh", np.zeros(shape("dh"))),
    )


def values_of(problem: Problem) -> dict[str, Array]:
    """What the canonical arrays of a problem are, by symbol."""
    return {**problem.parameters, "x": problem.x, "h0": problem.h0, "dh": problem.upstream}


def check_printed(record: Record, printed: Printed, values: dict[str, Array], who: str, slack: float = 0.0) -> None:
    """Compare canonical values with what is printed, in the course's layout."""
    symbol, axes = laid_out(record, printed.name)
    got = to_course(values[symbol], symbol, axes)[printed.at]
    wanted = np.asarray(printed.value)
    assert got.shape == wanted.shape
    error = np.abs(got - wanted) - slack
    assert (error <= half_a_unit(printed)).all(), f"{who}: {printed.name}: {got} is not {wanted}"


def half_a_unit(printed: Printed) -> Array:
    """Half a unit of the last digit that counts, for every number."""
    wanted = np.abs(np.asarray(printed.value))
    if printed.digits == DECIMALS:
        return np.full(wanted.shape, 0.5e-8)
    leading = np.floor(np.log10(np.where(wanted > 0, wanted, 1)))
    after = 13 if printed.digits == FULL else 8
    half: Array = 0.5 * 10.0 ** (leading - after)
    return half


def slack_of(printed: Printed) -> float:
    return 0.0 if printed.digits in (DECIMALS, FULL) else ROUNDED_AWAY


@pytest.mark.parametrize("name", [*RECORDS, "cs231n, backward"])
def test_inputs_arrive_as_the_course_has_them(name: str) -> None:
    """From the course's layout into the canonical one and back: not a digit or an axis changes."""
    record = RECORDS.get(name, CS231N_BACKWARD)
    values = values_of(problem_of(record))
    for given, array in record.arrays.items():
        symbol, axes = laid_out(record, given)
        np.testing.assert_array_equal(to_course(values[symbol], symbol, axes), array, err_msg=given)


@pytest.mark.parametrize("name", RECORDS)
def test_homework_prints_what_the_course_prints(name: str, children: dict[str, Child]) -> None:
    record = RECORDS[name]
    problem = problem_of(record)
    candidate = candidate_for(record, children)
    forward_alone = not any(laid_out(record, printed.name)[0].startswith("d") for printed in record.printed)
    answer = candidate.states(record.level, problem) if forward_alone else candidate.ask(record.level, problem).values
    for printed in record.printed:
        check_printed(record, printed, values_of(problem) | answer, "homework", slack_of(printed))


def candidate_for(record: Record, children: dict[str, Child]) -> Candidate:
    return find_candidate(children[record.convention], CONVENTIONS[record.convention], record.level)


@pytest.mark.parametrize("name", RECORDS)
def test_truth_prints_what_the_course_prints(name: str) -> None:
    record = RECORDS[name]
    problem = problem_of(record)
    wanted = asked_for(truth(problem), problem, CONVENTIONS[record.convention])
    for printed in record.printed:
        check_printed(record, printed, values_of(problem) | wanted, "truth", slack_of(printed))


@pytest.mark.parametrize("name", [name for name in RECORDS if "backward" in name] + ["cs231n, backward"])
def test_check_finds_nothing_on_the_courses_own_problem(name: str) -> None:
    record = RECORDS.get(name, CS231N_BACKWARD)
    path = HOMEWORK / f"{record.convention}.py"
    report = check(path, record.convention, problem=problem_of(record))
    assert report.verdict == "right", report
    assert [level.level for level in report.levels] == [record.level]


def test_cs231n_differences_are_as_far_off_as_the_notebook_prints(children: dict[str, Child]) -> None:
    """The notebook prints no gradient but its distance from central differences; which is that of the differences."""
    record = CS231N_BACKWARD
    problem = problem_of(record)
    answer = candidate_for(record, children).ask(record.level, problem).values
    true = truth(problem)
    for name, printed in CS231N_ERRORS.items():
        symbol, axes = laid_out(record, name)
        np.testing.assert_allclose(answer[symbol], true[symbol], rtol=0, atol=1e-13, err_msg=name)
        numeric = central_differences(record.arrays, name.removeprefix("d"))
        analytic = to_course(true[symbol], symbol, axes)
        error = np.max(np.abs(analytic - numeric) / np.maximum(1e-8, np.abs(analytic) + np.abs(numeric)))
        assert printed / 2 < error < printed * 2, f"{name}: {error:.3e}, printed {printed:.3e}"


def central_differences(arrays: dict[str, Array], name: str) -> Array:
    """Differences of the sum of h times its upstream gradient, one entry after the other, in the course's layout."""

    def objective(shifted: Array) -> float:
        given = {**arrays, name: shifted}
        state, total = given["h0"], 0.0
        for t in range(given["x"].shape[1]):
            state = np.tanh(given["x"][:, t] @ given["Wx"] + state @ given["Wh"] + given["b"])
            total += float(np.sum(state * given["dh"][:, t]))
        return total

    result = np.zeros_like(arrays[name])
    for index in np.ndindex(result.shape):
        shift = np.zeros_like(result)
        shift[index] = CS231N_STEP
        result[index] = (objective(arrays[name] + shift) - objective(arrays[name] - shift)) / (2 * CS231N_STEP)
    return result


@pytest.mark.parametrize(("convention", "divisor"), [("mytorch", 1), ("cmu", 2)])
def test_cell_prints_what_the_course_prints(convention: str, divisor: int, children: dict[str, Child]) -> None:
    """The cell's own backward is called with the printed h_t; cmu's differs from it by the batch of 2 alone."""
    arrays = MYTORCH_CELL.arrays
    calls = calls_of(MYTORCH_CELL)
    outcome = children[convention].run(
        Program(
            calls=(Call("RNNCell.backward", tuple(arrays[n] for n in ("delta", "h_t", "h_prev_l", "h_prev_t"))),),
            owner="RNNCell",
            construct=(3, 4),
            set={name: arrays[name] for name in calls.set},
            read=calls.read,
            before=("zero_grad",),
        )
    )
    got = dict(zip(("dx", "dh_prev_t"), outcome.results[0], strict=True))
    got |= {name: value * divisor for name, value in outcome.read.items()}
    for printed in MYTORCH_CELL.printed:
        error = np.abs(got[printed.name] - printed.value)
        assert (error <= half_a_unit(printed)).all(), printed.name


def test_workings_print_what_the_course_prints_for_a_cell() -> None:
    """No truth has these states; the formulas that mistakes are planted into take any."""
    problem = problem_of(MYTORCH_CELL)
    h = MYTORCH_CELL.arrays["h_t"][None]

    def given(problem: Problem) -> States:
        return States(np.full_like(h, np.nan), h, problem.h0[None], h)

    workings = Workings(problem, CONVENTIONS["mytorch"])
    values = {name: workings.value(name, {"states": given}) for name in ("dx", "dh0", "dU", "dW", "db", "db2")}
    for printed in MYTORCH_CELL.printed:
        check_printed(MYTORCH_CELL, printed, values, "workings")
