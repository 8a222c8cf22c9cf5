"""`check` at its limits: float32 where large terms cancel, homework that fails or changes only later, who clips.

Would catch: right float32 code called wrong on a problem that float32 cannot resolve, or a mistake there that is not
named; a tiny gradient taken for zero; a finding that is lost because a later call failed; what is kept between calls
unseen beside another mistake; levels below the last one expected to clip; functions of another course passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from test_checking import BACKWARD, CS231N, EPS32, FORWARD, PAIR, Array, course, ids, main, sequence, spoilt

from torch_reference import check, rendering
from torch_reference.course_problems import Problem


def cancelling(share: float) -> Problem:
    """Two equal sequences with nearly opposite upstream gradients: this share of every sum is left."""
    problem = sequence(N=2)
    assert problem.upstream is not None
    x, h0, upstream = problem.x.copy(), problem.h0.copy(), problem.upstream.copy()
    x[:, 1], h0[1], upstream[:, 1] = x[:, 0], h0[0], (share - 1) * upstream[:, 0]
    return replace(problem, x=x, h0=h0, upstream=upstream)


@pytest.mark.parametrize("share", [1e-2, 1e-3, 1e-4])
def test_where_large_terms_cancel_float32_is_judged_by_what_it_can_do(share: float) -> None:
    problem = cancelling(share)
    right = main(check(PAIR, "cs231n", dtype="float32", problem=problem))
    assert right.verdict == "right"
    assert max(gradient.error or 0.0 for gradient in right.gradients) > (100 * EPS32 if share < 1e-2 else 0)
    assert any("vague" in note for note in right.notes) == (share < 1e-2)
    for key, place in (("M12-zeros", "dh0"), ("M12-da1", "dh0"), ("M17", "dx")):
        wrong = check(course("cs231n", key), "cs231n", dtype="float32", problem=problem)
        assert ids(wrong) == [key[:3]]
        first = main(wrong).first_wrong
        assert first is not None
        assert first.quantity == place


def test_a_small_gradient_is_not_called_zero() -> None:
    """Beside what is right, not beside one: all gradients are tiny here, and db is off by a tenth."""
    problem = sequence()
    assert problem.upstream is not None
    tiny = replace(problem, upstream=1e-12 * problem.upstream)
    assert check(PAIR, "cs231n", problem=tiny).verdict == "right"
    wrong = check(spoilt(db=lambda value: 0.9 * value), "cs231n", problem=tiny)
    assert wrong.verdict == "wrong"
    assert ids(wrong) == []
    assert ids(check(spoilt(db=np.zeros_like), "cs231n", problem=tiny)) == ["M38"]


# What happens only sometimes


def failing_when(wrong: bool, condition: Callable[[int, int], bool]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """CS231n's sequence, dWh transposed if asked for, that raises by the number of its call and of its steps."""
    calls = count(1)

    def rnn_backward(dh: Array, cache: Any) -> tuple[Array, ...]:
        if condition(next(calls), dh.shape[1]):
            raise RuntimeError("not this time")
        dx, dh0, dWx, dWh, db = BACKWARD(dh, cache)
        return dx, dh0, dWx, dWh.T if wrong else dWh, db

    return FORWARD, rnn_backward


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (lambda call, steps: steps > 5, "it could not be run on a second problem, with T=6, N=4, D=26, H=25, K=9"),
        (lambda call, steps: call == 2, "it could not be run a second time"),
    ],
)
def test_a_later_failure_does_not_hide_a_finding(condition: Callable[[int, int], bool], said: str) -> None:
    report = check(failing_when(True, condition), "cs231n")
    assert report.verdict == "wrong"
    assert ids(report) == ["M32"]
    [note] = [note for note in main(report).notes if note.startswith(said)]
    assert "rnn_backward: RuntimeError: not this time" in note
    assert "; test_checking_limits.py, line" in rendering.text(report, width=1000)
    assert check(failing_when(False, condition), "cs231n").verdict == "unusable"


@pytest.mark.parametrize(("key", "named"), [("P2", {"P2"}), ("M15", {"M15"}), ("M15-h0", {"M15"}), ("P1", {"P1"})])
def test_what_is_kept_between_calls_is_named_beside_another_mistake(key: str, named: set[str]) -> None:
    assert set(ids(check(course("cs231n", "M05", key), "cs231n", level="sequence"))) == {"M05"} | named


def test_another_answer_the_second_time_is_said_where_nothing_explains_the_first() -> None:
    calls = count(1)
    noisy = spoilt(dWx=lambda value: value * (1 + 0.1 * next(calls)) ** 2 + 1)
    report = check(noisy, "cs231n")
    assert ids(report) == ["P5"]
    assert main(report).first_wrong is not None


# Clipping


def clipping(bound: float, name: str) -> dict[str, Any]:
    """CS231n's functions, the one named clipping the gradients that it returns."""

    def clipped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            if isinstance(result[-1], dict):
                return result[0], {name: np.clip(value, -bound, bound) for name, value in result[1].items()}
            return tuple(np.clip(value, -bound, bound) for value in result)

        return call

    return {**vars(CS231N), name: clipped(getattr(CS231N, name))}


def test_the_last_level_clips_and_not_what_it_calls() -> None:
    functions = clipping(0.5, "rnn_loss")
    report = check(functions, "cs231n", clip=0.5)
    assert report.verdict == "right"
    assert [level.level for level in report.levels] == ["step", "sequence", "network"]
    assert ids(check(functions, "cs231n")) == ["M48"]
    assert ids(check(CS231N, "cs231n", clip=0.5)) == ["M48"]
    sequence_alone = clipping(0.5, "rnn_backward")
    assert check(sequence_alone, "cs231n", level="sequence", clip=0.5).verdict == "right"
    assert ids(check(sequence_alone, "cs231n", clip=0.5, level="step")) == ["M48"]  # asked for, and not done


# Functions that are not looked at


def test_functions_of_another_course_beside_those_that_are_checked_are_mentioned() -> None:
    functions = {**vars(course("cs231n")), "lossFun": course("karpathy").lossFun}
    [note] = [note for note in check(functions).notes if "not looked at" in note]
    assert note == "not looked at: lossFun (karpathy): name the convention if that is meant"
    assert not any("not looked at" in note for note in check(CS231N).notes)
    assert not any("not looked at" in note for note in check(functions, "cs231n").notes)
