"""`check` and `assert_gradients` as a teacher's script, a notebook and pytest call them.

Would catch: a kind of homework that is refused, or judged by another one's rules; an unknown name that is answered by a
traceback, or by silence; an error that is not the largest one, or stands at another place in the student's array; JSON
that no parser reads; a seed that does not repeat; a judgement that depends on what the homework does to NumPy, torch or
the random numbers; a finding that is a guess; a right report that is silent about what its problem cannot show; a hint
that tells more than was asked for; a truth that is believed though its witnesses disagree.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from homework_files import FOLDER, as_module, edited, homework

from torch_reference import CONVENTIONS, assert_gradients, check, course_problems
from torch_reference.course_problems import Problem, Sizes, draw_problem, kind_of
from torch_reference.reports import HINTS, LevelReport, Report

Array = npt.NDArray[Any]
Change = Callable[[Array], Array]

ROOT = Path(__file__).resolve().parent.parent
FILE = str(FOLDER / "cs231n.py")
STANDARD = Sizes(T=5, N=3, D=17, H=16, K=7)
RETURNED = ("dx", "dh0", "dWx", "dWh", "db")
EPS32 = float(np.finfo(np.float32).eps)


@cache
def course(name: str, *keys: str) -> ModuleType:
    """The functions of a homework file, with mistakes planted in it."""
    return as_module(homework(name).planted(*keys))


CS231N = course("cs231n")
FORWARD, BACKWARD = CS231N.rnn_forward, CS231N.rnn_backward
PAIR = (FORWARD, BACKWARD)


def main(report: Report) -> LevelReport:
    level = report.main
    assert level is not None, report.trouble
    return level


def ids(report: Report) -> list[str]:
    return [finding.id for finding in main(report).findings]


def spoilt(**changes: Change) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """CS231n's sequence, what it returns for these gradients changed."""

    def rnn_backward(dh: Array, cache: Any) -> tuple[Array, ...]:
        gradients = zip(RETURNED, BACKWARD(dh, cache), strict=True)
        return tuple(changes[name](value) if name in changes else value for name, value in gradients)

    return FORWARD, rnn_backward


def every(change: Change) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """CS231n's sequence, all its gradients changed."""
    return spoilt(**dict.fromkeys(RETURNED, change))


def random(value: Array) -> Array:
    return np.random.default_rng(value.size).standard_normal(value.shape)


def sequence(seed: int = 3, **sizes: int) -> Problem:
    kind = kind_of(CONVENTIONS["cs231n"], "sequence")
    return draw_problem(kind, seed, STANDARD._replace(**sizes))


def network(seed: int = 3, **sizes: int) -> Problem:
    kind = kind_of(CONVENTIONS["cs231n"], "network")
    return draw_problem(kind, seed, STANDARD._replace(**sizes))


def with_parameters(problem: Problem, **parameters: Array) -> Problem:
    return replace(problem, parameters={**problem.parameters, **parameters})


@pytest.fixture
def notebook(tmp_path: Path) -> str:
    """The homework as a notebook that also runs and prints things."""
    cells = [
        {"cell_type": "markdown", "source": ["# Sheet 4"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!pip install nothing\n", "print('loaded')"]},
        {"cell_type": "code", "source": Path(FILE).read_text(encoding="utf-8").splitlines(keepends=True)},
    ]
    path = tmp_path / "sheet 4.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), "utf-8")
    return str(path)


# What may be given


class Callable_:
    """A function that is an object."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Any:
        return self.function(x, h0, Wx, Wh, b)


@pytest.mark.parametrize(
    ("candidate", "convention", "levels"),
    [
        pytest.param(PAIR, "cs231n", ["sequence"], id="pair"),
        pytest.param(list(PAIR), None, ["sequence"], id="list, recognised"),
        pytest.param((BACKWARD, FORWARD), "cs231n", ["sequence"], id="pair, the other way round"),
        pytest.param((lambda *a: FORWARD(*a), lambda *a: BACKWARD(*a)), "cs231n", ["sequence"], id="two lambdas"),
        pytest.param((Callable_(FORWARD), BACKWARD), "cs231n", ["sequence"], id="an object that can be called"),
        pytest.param(CS231N.rnn_loss, "cs231n", ["network"], id="function"),
        pytest.param([CS231N.rnn_loss], "cs231n", ["network"], id="one function in a list"),
        pytest.param(lambda *a: CS231N.rnn_loss(*a), "cs231n", ["network"], id="lambda"),
        pytest.param({"rnn_forward": FORWARD, "rnn_backward": BACKWARD, "T": 5}, None, ["sequence"], id="dict"),
        pytest.param(vars(CS231N), "cs231n", ["step", "sequence", "network"], id="everything of a file"),
        pytest.param(CS231N, None, ["step", "sequence", "network"], id="module"),
        pytest.param(course("cmu").RNNCell, "cmu", ["step"], id="class"),
        pytest.param(course("mytorch").RNNCell, "mytorch", ["step"], id="class, summed"),
        pytest.param(FILE, None, ["step", "sequence", "network"], id="path"),
        pytest.param(Path(FILE), "cs231n", ["step", "sequence", "network"], id="Path"),
        pytest.param(f"{FILE}:rnn_forward, rnn_backward", "cs231n", ["sequence"], id="FILE:f, g"),
        pytest.param(f"{FILE}:rnn_loss", "cs231n", ["network"], id="FILE:f"),
        pytest.param(f"{FILE}:foo", "cs231n", None, id="FILE:f that is not there"),
    ],
)
def test_what_may_be_given(candidate: Any, convention: str | None, levels: list[str] | None) -> None:
    report = check(candidate, convention)
    if levels is None:
        assert report.verdict == "unusable"
        assert "expected functions foo in the file. Got these: rnn_backward, rnn_forward" in report.trouble
        return
    assert [level.level for level in report.levels] == levels
    assert report.verdict == "right", str(report)
    assert ids(report) == []
    assert all(gradient.ok for level in report.levels for gradient in level.gradients)


def test_functions_of_other_names_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = (
        Path(FILE).read_text(encoding="utf-8").replace("rnn_step_forward", "vor").replace("rnn_step_backward", "rueck")
    )
    file.write_text(text, "utf-8")
    report = check(f"{file}:vor,rueck", "cs231n", level="step")
    assert report.verdict == "right"
    assert main(report).functions == ("vor", "rueck")
    assert [level.level for level in check(file, "cs231n").levels] == ["sequence", "network"]


def test_a_notebook(notebook: str) -> None:
    report = check(notebook)
    assert report.verdict == "right", str(report)
    assert report.candidate == "sheet 4.ipynb"
    assert len(report.levels) == 3


def test_a_level_alone() -> None:
    report = check(CS231N, "cs231n", level="step")
    assert [level.level for level in report.levels] == ["step"]
    assert main(report).sizes["T"] == 1


@pytest.mark.parametrize(
    ("candidate", "got"),
    [
        (5, "int"),
        (None, "NoneType"),
        ([], "list"),
        ((1, 2), "tuple"),
        (b"homework.py", "bytes"),
        (np.ones(3), "ndarray"),
    ],
)
def test_what_is_no_homework(candidate: Any, got: str) -> None:
    with pytest.raises(TypeError) as raised:
        check(candidate, "cs231n")
    assert str(raised.value) == (
        "check: expected a function, a pair of functions, a dict of functions, a class or a module, got " + got
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [("nowhere.py", "there is no file"), ("nowhere.py:f,g", "there is no file"), ("", "there is no file")],
)
def test_what_is_no_file(path: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    report = check(path, "cs231n")
    assert report.verdict == "unusable"
    assert report.main is None
    assert said in report.trouble
    assert "\n" not in report.trouble
    assert said in str(report)


NAMES = "goodfellow, torch, cs231n, coursera, cmu, mytorch, karpathy, kth, d2l"


@pytest.mark.parametrize(
    ("candidate", "convention", "options", "message"),
    [
        (PAIR, "stanford", {}, f"expected convention to be one of {NAMES}, got 'stanford'"),
        (PAIR, "", {}, f"expected convention to be one of {NAMES}, got ''"),
        (PAIR, "cs231n", {"level": "sequnce"}, "expected level to be one of step, sequence, network, got 'sequnce'"),
        (
            course("coursera"),
            "coursera",
            {"level": "network"},
            "expected level to be one of step, sequence for coursera, got 'network'",
        ),
        (PAIR, "cs231n", {"dtype": "float16"}, "expected dtype to be one of float64, float32, got 'float16'"),
        (PAIR, "cs231n", {"hints": "all"}, "expected hints to be one of verdict, where, cause, values, got 'all'"),
        (PAIR, "cs231n", {"sizes": {"T": 3, "Q": 1, "B": 2}}, "expected sizes among T, N, D, H, K, got B, Q"),
        (PAIR, "cs231n", {"sizes": {"T": 0}}, "expected T to be a whole number of at least 1, got 0"),
        (PAIR, "cs231n", {"sizes": {"H": 2.5}}, "expected H to be a whole number of at least 1, got 2.5"),
        (
            course("karpathy"),
            "karpathy",
            {"sizes": {"N": 3}},
            "expected N = 1 where there is but one sequence, got 3",
        ),
        (
            course("karpathy"),
            "karpathy",
            {"sizes": {"D": 5}},
            "expected K = D where tokens are predicted from tokens, got 9 and 5",
        ),
        (CS231N, "cs231n", {"sizes": {"K": 1}}, "expected K of at least 2, one class has no gradient, got 1"),
        (
            PAIR,
            "cs231n",
            {"nonlinearity": "gelu"},
            "expected nonlinearity to be one of tanh, sigmoid, relu, identity, got 'gelu'",
        ),
        (PAIR, "cs231n", {"time": "max"}, "expected time to be one of sum, mean, last, got 'max'"),
        (PAIR, "cs231n", {"batch": "max"}, "expected batch to be one of sum, mean, got 'max'"),
        (PAIR, "cs231n", {"parameter_gradients": ""}, "expected parameter_gradients to be one of sum, mean, got ''"),
        (PAIR, "cs231n", {"clip": -1}, "expected clip to be a positive number, got -1"),
        (PAIR, "cs231n", {"clip": "5"}, "expected clip to be a positive number, got '5'"),
        (
            PAIR,
            "cs231n",
            {"problem": sequence(), "level": "network"},
            "expected a problem of level network, got one of level sequence",
        ),
        (lambda x: x, None, {}, f"expected a convention for <lambda>; there are {NAMES}"),
        (f"{FILE}:f,g", None, {}, f"expected a convention for f, g; there are {NAMES}"),
        (f"{FILE}:f,g,h", "cs231n", {}, "expected as many functions as a level of cs231n has, got 3"),
        (
            (lambda: 0,) * 3,
            "d2l",
            {},
            "expected functions for a level of d2l, got 3; it calls rnn_forward(X, H0, W_xh, W_hh",
        ),
        pytest.param(PAIR, "cs231n", {"seed": -1}, "expected seed to be"),
        pytest.param(PAIR, "cs231n", {"sizes": {"T": True}}, "expected T to be a whole"),
        pytest.param(FILE, "cs231n", {"seconds": 0.0}, "expected seconds to be"),
        pytest.param(
            FILE,
            "cs231n",
            {"seconds": float("nan")},
            "expected seconds to be",
        ),
        pytest.param(FILE, "cs231n", {"memory": 0}, "expected memory to be"),
    ],
)
def test_an_unknown_name_or_size_is_said_in_a_line(
    candidate: Any, convention: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        check(candidate, convention, **options)
    said = str(raised.value)
    owner = f"check|Convention {convention}" if set(options) & {"clip", "time", "batch"} else "check"
    owner = owner if not {"nonlinearity", "parameter_gradients"} & set(options) else f"check|Convention {convention}"
    assert re.match(rf"({owner}): {re.escape(message)}", said), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("convention", "options", "named"),
    [
        pytest.param(5, {}, "convention"),
        pytest.param("cs231n", {"seed": 1.5}, "check: expected seed"),
        pytest.param("cs231n", {"seed": "1"}, "check: expected seed"),
        pytest.param("cs231n", {"seed": None}, "check: expected seed"),
        pytest.param("cs231n", {"sizes": [5, 3]}, "check: expected sizes"),
        pytest.param("cs231n", {"problem": 5}, "check: expected problem"),
        ("cs231n", {"sise": {}}, "sise"),
    ],
)
def test_a_wrong_type_is_said_in_a_line(convention: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError, match=named):
        check(PAIR, convention, **options)


def test_a_size_may_be_a_numpy_integer() -> None:
    assert check(PAIR, "cs231n", sizes={"T": np.int64(4)}).verdict == "right"


# Numbers of a report


@pytest.mark.parametrize(
    ("convention", "name", "place"),
    [
        ("cs231n", "dx", (2, 4, 16)),  # (N, T, D)
        ("cs231n", "dh0", (1, 15)),  # (N, H)
        ("cs231n", "dWx", (16, 2)),  # (D, H)
        ("cs231n", "dWh", (3, 11)),  # (H of the step before, H)
        ("cs231n", "db", (7,)),
        ("coursera", "dx", (16, 2, 4)),  # (n_x, m, T)
        ("coursera", "da0", (15, 1)),  # (n_a, m)
        ("coursera", "dWax", (2, 16)),  # (n_a, n_x)
        ("coursera", "dWaa", (3, 11)),
        ("coursera", "dba", (7, 0)),  # (n_a, 1)
    ],
)
def test_one_wrong_entry_is_found_where_it_stands(convention: str, name: str, place: tuple[int, ...]) -> None:
    amount = 0.25 if sum(place) % 2 else -3.0
    module = course(convention)
    given: list[Array] = []

    def rnn_backward(upstream: Array, cache: Any) -> dict[str, Array]:
        found = module.rnn_backward(upstream, cache)
        found = found if isinstance(found, dict) else dict(zip(RETURNED, found, strict=True))
        given.append(found[name].copy())
        found[name][place] += amount
        return found

    report = check((module.rnn_forward, rnn_backward), convention, hints="values")
    for gradient in main(report).gradients:
        assert gradient.ok == (gradient.name != name)
        if gradient.ok:
            assert gradient.error is not None
            assert gradient.error < 1e-12
            continue
        assert gradient.worst_index == place
        assert gradient.expected == pytest.approx(given[0][place], rel=1e-12)
        assert gradient.got == pytest.approx(given[0][place] + amount, rel=1e-12)
        assert gradient.error == pytest.approx(abs(amount) / np.abs(given[0]).max(), rel=1e-9)
        step = {"cs231n": 1, "coursera": 2}[convention]
        assert gradient.first_wrong_step == (place[step] + 1 if name == "dx" else None)
    assert report.to_dict()["gradients"][name]["worst_index"] == list(place)
    assert f"[{', '.join(map(str, place))}]" in str(report)
    assert ids(report) == []


def test_the_error_is_the_largest_of_all_relative_to_the_largest_true_one() -> None:
    seen: list[Array] = []

    def many(value: Array) -> Array:
        seen.append(value.copy())
        return value + np.arange(value.size).reshape(value.shape) * 1e-4

    gradient = main(check(spoilt(dWh=many), "cs231n")).gradients[3]
    right = seen[0]
    assert gradient.name == "dWh"
    assert gradient.error == pytest.approx((right.size - 1) * 1e-4 / np.abs(right).max(), rel=1e-9)
    assert gradient.worst_index == (15, 15)


def test_gradients_are_in_the_order_of_the_convention_and_have_its_names() -> None:
    assert [gradient.name for gradient in main(check(PAIR, "cs231n")).gradients] == list(RETURNED)
    names = [gradient.name for gradient in main(check(course("kth"), "kth")).gradients]
    assert names == ["dU", "dW", "dV", "db", "dc"]
    cell = main(check(course("cmu").RNNCell, "cmu"))
    assert {gradient.name for gradient in cell.gradients} == {"dx", "dh_prev_t", "dW_ih", "dW_hh", "db_ih", "db_hh"}
    coursera = {level.level: level for level in check(course("coursera"), "coursera").levels}
    assert [each.name for each in coursera["step"].gradients] == ["dxt", "da_prev", "dWax", "dWaa", "dba"]
    assert [each.name for each in coursera["sequence"].gradients] == ["dx", "da0", "dWax", "dWaa", "dba"]


def test_the_same_seed_gives_the_same_report_and_another_one_other_numbers() -> None:
    planted = course("cs231n", "M30")
    wrong = (planted.rnn_forward, planted.rnn_backward)
    report = check(wrong, "cs231n", seed=11, hints="values")
    course_problems.posed.cache_clear()  # not because it was kept
    assert check(wrong, "cs231n", seed=11, hints="values") == report
    other = check(wrong, "cs231n", seed=12, hints="values")
    assert other.seed == 12
    assert [each.expected for each in main(other).gradients] != [each.expected for each in main(report).gradients]
    assert check(PAIR, "cs231n", seed=2**70).verdict == "right"


def test_sizes_are_those_asked_for() -> None:
    shapes: list[tuple[tuple[int, ...], ...]] = []

    def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Any:
        shapes.append((x.shape, h0.shape, Wx.shape, Wh.shape))
        return FORWARD(x, h0, Wx, Wh, b)

    report = check((rnn_forward, BACKWARD), "cs231n", sizes={"T": 2, "H": 4})
    assert set(shapes) == {((3, 2, 17), (3, 4), (17, 4), (4, 4))}
    assert main(report).sizes == {"T": 2, "N": 3, "D": 17, "H": 4, "K": 7}
    assert report.verdict == "right"
    shapes.clear()
    check((rnn_forward, BACKWARD), "cs231n")
    (_, second, third) = sorted({shape for shape, *_ in shapes}, key=lambda shape: shape[1])
    assert (second, third) == ((4, 6, 26), (2, 40, 5))  # other sizes, and a long sequence


def only_when_long(dh: Array, cache: Any) -> tuple[Array, ...]:
    found = BACKWARD(dh, cache)
    return (*found[:4], found[4] * 1.5) if dh.shape[1] > 5 else found


@cache
def wrong_when_long() -> Report:
    return check((FORWARD, only_when_long), "cs231n")


def test_what_is_wrong_on_the_second_problem_alone_is_wrong() -> None:
    report = wrong_when_long()
    assert report.verdict == "wrong"
    assert [each.name for each in main(report).gradients if not each.ok] == ["db"]


def test_sizes_are_those_of_the_problem_that_the_table_is_about() -> None:
    level = main(wrong_when_long())
    assert level.first_wrong is not None
    assert level.sizes["T"] == level.first_wrong.steps
    worst = level.gradients[4].worst_index
    assert worst is not None
    assert worst[0] < level.sizes["H"]


def window(k: int) -> Callable[..., Any]:
    """Each loss reaches k steps further back."""

    def rnn_backward(dh: Array, cache: Any) -> Any:
        sums = [np.zeros_like(each) for each in BACKWARD(dh, cache)]
        for s in range(dh.shape[1]):
            first = max(0, s - k)
            one = np.zeros_like(dh[:, first : s + 1])
            one[:, -1] = dh[:, s]
            dx, dh0, *parameters = BACKWARD(one, cache[first : s + 1])
            sums[0][:, first : s + 1] += dx
            sums[1] += dh0 * (s <= k)
            for total, part in zip(sums[2:], parameters, strict=True):
                total += part
        return tuple(sums)

    return rnn_backward


@pytest.mark.parametrize("k", [2, 3, *(pytest.param(k) for k in (6,))])
def test_a_long_window_is_named_too(k: int) -> None:
    report = check((FORWARD, window(k)), "cs231n")
    first = main(report).first_wrong
    assert first is not None
    assert (first.quantity, first.step) == ("dL/dh", first.steps - k - 1)
    assert ids(report) == ["M10"]


# JSON


def test_json_has_these_keys_and_types() -> None:
    content = check(spoilt(dWh=lambda value: value * 0), "cs231n").to_dict()
    assert content == json.loads(json.dumps(content, allow_nan=False))
    assert list(content)[:5] == ["verdict", "level", "gradients", "first_wrong", "findings"]
    assert set(content) == {
        *("verdict", "level", "gradients", "first_wrong", "findings"),
        *("unexplained", "candidate", "convention", "trouble", "notes", "seed", "levels"),
    }
    assert content["verdict"] == "wrong"
    assert content["level"] == "sequence"
    assert content["convention"] == "cs231n"
    assert content["seed"] == 0
    assert list(content["gradients"]) == list(RETURNED)
    right, wrong = content["gradients"]["dWx"], content["gradients"]["dWh"]
    assert set(right) == set(wrong) == {"ok", "error", "worst_index", "first_wrong_step", "trouble"}
    assert (right["ok"], wrong["ok"]) == (True, False)
    assert isinstance(right["error"], float)
    assert wrong["error"] == 1.0
    assert [type(each) for each in wrong["worst_index"]] == [int, int]
    assert wrong["trouble"] == ""
    assert content["first_wrong"] == {"quantity": "dWh", "step": None, "steps": 5, "seen": True}
    level = content["levels"]["sequence"]
    assert {*level} >= {"verdict", "functions", "sizes", "gradients", "first_wrong", "findings", "possible", "notes"}
    assert all(level[key] == content[key] for key in ("verdict", "gradients", "first_wrong", "findings"))


def test_json_of_a_finding_and_a_step() -> None:
    content = check(course("cs231n", "M05"), "cs231n", level="sequence").to_dict()
    [finding] = content["findings"]
    assert set(finding) == {"id", "cause", "title", "hint", "explains"}
    assert finding["id"] == "M05"
    assert finding["cause"].endswith(".")
    first = content["first_wrong"]
    assert (first["quantity"], first["step"], first["steps"]) == ("dL/dh", 4, 5)
    json.dumps(content, allow_nan=False)


def test_json_of_what_is_right_and_of_what_cannot_be_used() -> None:
    right = check(CS231N).to_dict()
    assert right["verdict"] == "right"
    assert right["first_wrong"] is None
    assert right["findings"] == []
    assert list(right["levels"]) == ["step", "sequence", "network"]
    for unusable in (check("nowhere.py"), check({"rnn_loss": lambda *a: None}, "cs231n")):
        content = unusable.to_dict()
        assert content["verdict"] == "unusable"
        assert content["trouble"]
        assert (content["gradients"], content["first_wrong"], content["findings"]) == ({}, None, [])
        json.dumps(content, allow_nan=False)


def nan_forward(*arguments: Any) -> Any:
    h, cache = FORWARD(*arguments)
    return h * np.nan, cache


@pytest.mark.parametrize(
    "homework",
    [
        pytest.param(spoilt(db=lambda value: value * np.nan), id="a sum"),
        pytest.param(spoilt(dx=lambda value: value * np.nan), id="dx"),
        pytest.param(spoilt(dx=lambda value: np.where(value == value.flat[0], np.inf, value)), id="one entry"),
        pytest.param(every(lambda value: value * np.nan), id="everything"),
        pytest.param((nan_forward, BACKWARD), id="the states"),
    ],
)
def test_json_of_numbers_that_are_none(homework: Any) -> None:
    report = check(homework, "cs231n")
    assert report.verdict == "wrong"
    assert ids(report) == ["S4"]
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert all(each["error"] is None or each["ok"] for each in json.loads(text)["gradients"].values())


# float32


def in_float32(function: Callable[..., Any], back: type = np.float32) -> Callable[..., Any]:
    """The function computing in float32 whatever it is given."""

    def down(value: Any) -> Any:
        return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    def up(value: Any) -> Any:
        return value.astype(back) if isinstance(value, np.ndarray) else value

    def computed(*arguments: Any) -> Any:
        return tuple(up(each) for each in function(*map(down, arguments)))

    return computed


@pytest.mark.parametrize("back", [np.float32, np.float64])
def test_a_homework_that_computes_in_float32_is_judged_by_it(back: type) -> None:
    report = check((in_float32(FORWARD, back), in_float32(BACKWARD, back)), "cs231n")
    assert report.verdict == "right"
    assert any("float32" in note for note in main(report).notes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_homework_is_given_the_dtype(dtype: str) -> None:
    seen: set[str] = set()

    def rnn_forward(*arguments: Array) -> Any:
        seen.update(str(each.dtype) for each in arguments)
        return FORWARD(*arguments)

    report = check((rnn_forward, BACKWARD), "cs231n", dtype=dtype)
    assert seen == {dtype}
    assert report.verdict == "right"
    assert any("float32" in note for note in main(report).notes) == (dtype == "float32")


def off_by(relative: float, dtype: type) -> Change:
    return lambda value: (value * (1 + relative)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "relative", "verdict"),
    [
        ("float64", 1e-8, "wrong"),
        ("float64", 1e-11, "right"),
        pytest.param("float32", 1e-4, "wrong"),
        ("float32", 1e-2, "wrong"),
        ("float32", 1e-7, "right"),
    ],
)
def test_how_small_an_error_is_seen(dtype: str, relative: float, verdict: str) -> None:
    homework = spoilt(dWx=off_by(relative, np.dtype(dtype).type))
    report = check(homework, "cs231n", dtype=dtype)
    assert report.verdict == verdict
    assert ids(report) == []
    assert main(report).possible == ()


@pytest.mark.parametrize(
    ("T", "key"),
    [
        (10, "M01"),
        *(pytest.param(20, key) for key in ("M01", "M10-k1")),
        *(pytest.param(30, key) for key in ("M05", "M44-times-N")),
    ],
)
def test_a_mistake_in_float32_shows_in_a_long_sequence_too(T: int, key: str) -> None:
    planted = course("cs231n", key)
    pair = (planted.rnn_forward, planted.rnn_backward)
    assert check(pair, "cs231n", dtype="float32", sizes={"T": T}).verdict == "wrong"


def test_float64_is_judged_as_float64_where_it_is_given_float32() -> None:
    def rnn_forward(*arguments: Array) -> Any:
        return FORWARD(*(each.astype(float) for each in arguments))

    def rnn_backward(dh: Array, cache: Any) -> Any:
        return tuple(value * (1 + 1e-8) for value in BACKWARD(dh.astype(float), cache))

    assert check((rnn_forward, rnn_backward), "cs231n", dtype="float32").verdict == "wrong"


def test_float32_noise_is_not_explained() -> None:
    """Noise of float32's size in float64 numbers is wrong, and no mistake of the catalogue."""

    def noise(value: Array) -> Array:
        return value * (1 + 1e-7 * random(value))

    report = check(every(noise), "cs231n")
    assert report.verdict == "wrong"
    assert ids(report) == []
    assert main(report).possible == ()


def test_a_problem_in_round_numbers_is_judged_as_float64() -> None:
    """Halves and quarters, as on a sheet: the true gradients of a linear network are such numbers too."""
    d2l = course("d2l")
    drawn = draw_problem(kind_of(CONVENTIONS["d2l"], "sequence"), 3, STANDARD)

    def rounded(value: Array) -> Array:
        return np.sign(value) * 0.5

    sheet = replace(
        drawn,
        x=rounded(drawn.x),
        h0=rounded(drawn.h0),
        upstream=None if drawn.upstream is None else rounded(drawn.upstream),
        parameters={name: rounded(value) / 4 for name, value in drawn.parameters.items()},
    )

    def rnn_backward(dH: Array, cache: Any) -> Any:
        found = dict(d2l.rnn_backward(dH, cache))
        return found | {"db_h": found["db_h"] * (1 + 1e-6)}

    assert check((d2l.rnn_forward, rnn_backward), "d2l", problem=sheet).verdict == "wrong"


# No guesses


def of_another_seed(dh: Array, cache: Any) -> Any:
    """Right gradients, for other upstream gradients."""
    return BACKWARD(np.random.default_rng(5).standard_normal(dh.shape), cache)


@pytest.mark.parametrize(
    "homework",
    [
        pytest.param(every(lambda value: value * 1.001), id="times 1.001"),
        pytest.param(every(random), id="random"),
        pytest.param(spoilt(dx=random), id="random dx"),
        pytest.param(every(np.ones_like), id="ones"),
        pytest.param(every(np.trunc), id="whole numbers"),
        pytest.param((FORWARD, of_another_seed), id="another upstream gradient"),
        pytest.param(every(lambda value: value + 1e-6), id="a constant added"),
        pytest.param(every(lambda value: np.sign(value) * 1e300), id="huge"),
    ],
)
def test_numbers_that_no_mistake_has_are_not_named(homework: Any) -> None:
    report = check(homework, "cs231n")
    assert report.verdict == "wrong"
    assert ids(report) == []
    assert main(report).possible == ()
    assert "No mistake in the catalogue explains these numbers." in " ".join(str(report).split())


def test_one_factor_on_everything_is_a_note() -> None:
    assert "every gradient is 1.001 times the true one" in main(check(every(lambda g: g * 1.001), "cs231n")).notes


@pytest.mark.parametrize("change", [random, lambda value: value * np.nan], ids=["random", "NaN"])
def test_what_was_not_seen_is_not_called_right(change: Change) -> None:
    first = main(check(every(change), "cs231n")).first_wrong
    assert first is not None
    assert "dL/d" not in first.before


@pytest.mark.parametrize(
    ("key", "problem", "titles"),
    [
        ("M44-times-T", sequence(T=2), {"local gradient counted twice", "scale"}),
        ("M30", sequence(T=1), {"state of another step in dW", "one array kept for all steps"}),
        ("M12-zeros", sequence(T=1), {"no carry", "gradient of the initial state"}),
    ],
)
def test_what_has_the_same_numbers_is_possible_and_no_finding(key: str, problem: Problem, titles: set[str]) -> None:
    report = check(course("cs231n", key), "cs231n", problem=problem)
    assert ids(report) == []
    assert {each.title for each in main(report).possible} == titles
    text = " ".join(str(report).split())
    assert "These explain it equally well, and no problem tells them apart:" in text
    assert report.to_dict()["findings"] == []
    assert len(report.to_dict()["levels"]["sequence"]["possible"]) == len(titles)


def test_numbers_near_the_largest_one_are_judged_without_a_warning() -> None:
    """np.empty holds anything."""
    assert check(spoilt(dWx=lambda value: np.sign(value) * 1.7e308), "cs231n").verdict == "wrong"


# What is kept, changed or left unused


def accumulating() -> Any:
    totals: dict[tuple[int, ...], Array] = {}

    def rnn_backward(dh: Array, cache: Any) -> Any:
        dx, dh0, *parameters = BACKWARD(dh, cache)
        for value in parameters:
            totals[value.shape] = totals.get(value.shape, 0) + value
        return dx, dh0, *(totals[value.shape].copy() for value in parameters)

    return FORWARD, rnn_backward


def continuing() -> Any:
    state: dict[tuple[int, ...], Array] = {}

    def rnn_forward(x: Array, h0: Array, *weights: Array) -> Any:
        h, cache = FORWARD(x, state.get(h0.shape, h0), *weights)
        state[h0.shape] = h[:, -1].copy()
        return h, cache

    return rnn_forward, BACKWARD


def one_cache() -> Any:
    kept: list[Any] = [None]

    def rnn_forward(*arguments: Array) -> Any:
        h, kept[0] = FORWARD(*arguments)
        return h, None

    return rnn_forward, lambda dh, cache: BACKWARD(dh, kept[0])


def counting() -> Any:
    calls: list[int] = []

    def rnn_backward(dh: Array, cache: Any) -> Any:
        calls.append(1)
        return tuple(value * (1 + 0.01 * (len(calls) - 1)) for value in BACKWARD(dh, cache))

    return FORWARD, rnn_backward


def changing_dh() -> Any:
    def rnn_backward(dh: Array, cache: Any) -> Any:
        found = BACKWARD(dh.copy(), cache)
        dh *= 2
        return found

    return FORWARD, rnn_backward


def changing_h0() -> Any:
    def rnn_forward(x: Array, h0: Array, *weights: Array) -> Any:
        found = FORWARD(x, h0.copy(), *weights)
        h0[:] = found[0][:, -1]
        return found

    return rnn_forward, BACKWARD


def ignoring_b() -> Any:
    def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Any:
        return FORWARD(x, h0, Wx, Wh, np.full_like(b, 0.3))

    return rnn_forward, BACKWARD


def own_weights(*drawn_from: int) -> Any:
    def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Any:
        numbers = np.random.default_rng(*drawn_from)
        return FORWARD(x, h0, numbers.normal(size=Wx.shape), numbers.normal(size=Wh.shape), b)

    return rnn_forward, BACKWARD


@pytest.mark.parametrize(
    ("homework", "id_", "quantity", "says"),
    [
        pytest.param(accumulating(), "P2", "dWx", "twice as large the second time", id="gradients add up"),
        pytest.param(continuing(), "M15", "h", "h_0 is the last state of the call before", id="the state is kept"),
        pytest.param(one_cache(), "P5", "dL/da", "another forward pass runs in between", id="one cache"),
        pytest.param(counting(), "P5", "dL/d", "the second time the same is asked", id="something else is kept"),
        pytest.param(changing_dh(), "P1", "argument dh (rnn_backward)", "changed in place", id="dh is changed"),
        pytest.param(changing_h0(), "P5", "argument h0 (rnn_forward)", "changed in place", id="h0 is changed"),
        pytest.param(ignoring_b(), "P6", "h", "whatever b holds", id="b is not used"),
        pytest.param(own_weights(0), "P8", "h", "whatever Wx and Wh hold", id="other weights"),
        pytest.param(own_weights(), "P8", "h", "an effect though all recurrent weights are zero", id="random weights"),
    ],
)
def test_what_happens_between_calls(homework: Any, id_: str, quantity: str, says: str) -> None:
    report = check(homework, "cs231n")
    [finding] = main(report).findings
    first = main(report).first_wrong
    assert first is not None
    assert finding.id == id_
    assert first.quantity.startswith(quantity)  # of what changes from call to call the place does too
    assert says in finding.note
    assert says in " ".join(str(report).split())


def test_a_class_may_add_up_what_it_zeroes_itself() -> None:
    """The cells of cmu and mytorch add to their gradients and have zero_grad; each problem has a new object."""
    assert check(course("mytorch").RNNCell, "mytorch").verdict == "right"
    text = edited(homework("mytorch").text, (("        self.zero_grad()\n", ""),))
    report = check(as_module(text).RNNCell, "mytorch")
    assert report.verdict == "right"  # zero_grad() is called before the pass


# What a problem cannot show


def small(problem: Problem) -> Problem:
    """Weights of 1e-3, so that every activation is as good as linear."""
    weights = {name: value * 1e-3 for name, value in problem.parameters.items()}
    return replace(problem, parameters=weights, h0=problem.h0 * 1e-3, x=problem.x / 20)


def symmetric(problem: Problem) -> Problem:
    W = problem.parameters["W"]
    return with_parameters(problem, W=(W + W.T) / 2)


def last_alone(problem: Problem) -> Problem:
    assert problem.upstream is not None
    upstream = np.zeros_like(problem.upstream)
    upstream[-1] = problem.upstream[-1]
    return replace(problem, upstream=upstream)


ONE_STEP, ONE_ROW = sequence(T=1), sequence(N=1)


@pytest.mark.parametrize(
    ("problem", "key"),
    [
        *((pytest.param(ONE_STEP, key, id=f"T=1-{key}")) for key in ("M01", "M02", "M08", "M10-k1", "M14", "M35")),
        pytest.param(ONE_STEP, "P4", id="T=1-P4"),
        pytest.param(replace(sequence(), h0=np.zeros((3, 16))), "M33", id="h0=0-M33"),
        pytest.param(symmetric(sequence()), "M05", id="symmetric-M05"),
        pytest.param(last_alone(sequence()), "M02", id="last-M02"),
        pytest.param(small(sequence()), "M21", id="small-M21"),
        pytest.param(small(sequence()), "M22", id="small-M22"),
        pytest.param(sequence(T=2), "M10-k1", id="T=2-M10"),
        pytest.param(ONE_STEP, "M44-times-T", id="T=1-M44"),
        pytest.param(ONE_STEP, "M45-over-T", id="T=1-M45"),
        pytest.param(ONE_ROW, "M36-mean-batch", id="N=1-M36"),
        pytest.param(ONE_ROW, "M44-times-N", id="N=1-M44"),
        pytest.param(ONE_ROW, "M45-over-N", id="N=1-M45"),
    ],
)
def test_what_passes_though_it_is_wrong_is_listed(problem: Problem, key: str) -> None:
    planted = course("cs231n", key)
    pair = (planted.rnn_forward, planted.rnn_backward)
    assert check(pair, "cs231n").verdict == "wrong"
    report = check(pair, "cs231n", problem=problem)
    assert report.verdict == "right", f"{key} shows on this problem"
    listed = {id_ for id_, _, _ in main(report).blind}
    assert key.partition("-")[0] in listed
    assert f"This problem cannot see: {main(report).blind[0][0]}" in " ".join(str(report).split())


def test_what_hardly_changes_anything_is_listed_with_how_little() -> None:
    blind = {id_: why for id_, _, why in main(check(PAIR, "cs231n", problem=small(sequence()))).blind}
    assert blind["M21"] == ""
    for id_ in ("M03", "M04", "M20", "M23"):
        found = re.fullmatch(r"it changes nothing by more than (\d+e-\d+)", blind[id_])
        assert found is not None, blind[id_]
        assert 1e-9 < float(found[1]) <= 1e-3


def test_a_standard_problem_shows_everything() -> None:
    for name in ("cs231n", "goodfellow"):
        assert main(check(course(name), name, level="network")).blind == ()
    assert {id_ for id_, _, _ in main(check(course("kth"), "kth")).blind} == {"M12", "M13"}  # it returns no dh0


def test_factors_that_cannot_be_told_apart_are_said() -> None:
    notes = main(check(PAIR, "cs231n", problem=sequence(T=3, N=3))).notes
    assert any("cannot tell these factors apart" in note and "N or T" in note for note in notes)
    assert not any("factors" in note for note in main(check(PAIR, "cs231n")).notes)
    wrong = check(course("cs231n", "M44-times-N"), "cs231n", problem=sequence(T=3, N=3))
    assert ids(wrong) == ["M44"]
    assert "N or T" in main(wrong).findings[0].note


def test_a_problem_is_used_as_it_is_given() -> None:
    problem = sequence(seed=8, T=3, H=5)
    seen: list[Array] = []

    def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Any:
        seen.append(x.copy())
        return FORWARD(x, h0, Wx, Wh, b)

    report = check((rnn_forward, BACKWARD), "cs231n", problem=problem)
    assert report.verdict == "right"
    assert main(report).sizes == problem.sizes._asdict()
    assert any(np.array_equal(x, problem.x.swapaxes(0, 1)) for x in seen)
    assert [level.level for level in check(CS231N, "cs231n", problem=network()).levels] == ["network"]


@pytest.mark.parametrize(
    ("convention", "problem"),
    [
        pytest.param("karpathy", network(), id="a batch where there is one sequence"),
        pytest.param(
            "cs231n",
            draw_problem(kind_of(CONVENTIONS["karpathy"], "network"), 0, Sizes(6, 1, 9, 8, 9)),
            id="tokens where there are vectors",
        ),
        pytest.param("cmu", network(), id="one bias where there are two"),
        pytest.param("cs231n", replace(sequence(), upstream=None), id="no upstream gradient"),
        pytest.param("cs231n", replace(sequence(), h0=np.ones((2, 16))), id="h0 of another batch"),
        pytest.param("cs231n", replace(sequence(), level="step"), id="many steps for one"),
        pytest.param("cs231n", replace(sequence(), level="layer"), id="another level"),
    ],
)
def test_a_problem_that_does_not_fit_is_refused(convention: str, problem: Problem) -> None:
    with pytest.raises(ValueError, match=r"^check: expected"):
        check(course(convention), convention, problem=problem)


# Hints


@cache
def hinted(hints: str) -> Report:
    return check(course("cs231n", "M30"), "cs231n", level="sequence", hints=hints, seed=4)


def shown_by(report: Report, way: str) -> str:
    if way == "text":
        return str(report)
    if way == "html":
        return report._repr_html_()
    with pytest.raises(AssertionError) as raised:
        assert_gradients(course("cs231n", "M30"), "cs231n", level="sequence", hints=report.hints, seed=4)
    return str(raised.value)


@pytest.mark.parametrize("way", ["text", "html", "exception"])
@pytest.mark.parametrize("hints", HINTS)
def test_each_hint_level_tells_this_much(hints: str, way: str) -> None:
    report = hinted(hints)
    shown = " ".join(shown_by(report, way).split())
    told = HINTS.index(hints)
    level = main(report)
    [finding] = level.findings
    [wrong] = [gradient for gradient in level.gradients if not gradient.ok]
    assert wrong.name == "dWh"
    assert wrong.expected is not None
    assert "is wrong" in shown
    assert ("dWh" in shown) == (told >= 1)
    assert ("first wrong" in shown) == (told >= 1)
    assert ("M30" in shown) == (told >= 2)
    assert (" ".join(finding.title.split()) in shown) == (told >= 2)
    assert (f"{wrong.expected:.6g}" in shown) == (told >= 3)
    assert ("true" in re.findall(r"[a-z]+", re.sub(r"<[^>]*>", " ", shown))) == (told >= 3)


@pytest.mark.parametrize("key", ["M01", "M05", "M20", "M30", "M36-mean-batch", "M44-times-N"])
def test_no_hint_is_the_formula(key: str) -> None:
    planted = course("cs231n", key)
    report = check((planted.rnn_forward, planted.rnn_backward), "cs231n", hints="values")
    words = " ".join(f"{finding.cause} {finding.hint}" for finding in main(report).findings)
    assert words
    assert not re.search(r"[=@*·]|\.T\b|np\.", words), words
    assert words.rstrip().endswith((".", "?"))


def test_the_hint_level_changes_nothing_but_what_is_told() -> None:
    assert all(hinted(hints).to_dict() == hinted("values").to_dict() for hints in HINTS)
    text = json.dumps(hinted("values").to_dict())
    expected = next(each.expected for each in main(hinted("values")).gradients if not each.ok)
    assert expected is not None
    assert str(expected)[:8] not in text


# In a grader


def test_right_gradients_raise_nothing() -> None:
    assert assert_gradients(PAIR, "cs231n") is None


@pytest.mark.parametrize("hints", HINTS)
def test_one_assertion_error_has_the_report_for_its_text(hints: str) -> None:
    planted = course("cs231n", "M05")
    wrong = (planted.rnn_forward, planted.rnn_backward)
    with pytest.raises(AssertionError) as raised:
        assert_gradients(wrong, "cs231n", seed=9, hints=hints)
    assert type(raised.value) is AssertionError
    assert raised.value.__cause__ is None
    assert str(raised.value) == str(check(wrong, "cs231n", seed=9, hints=hints))


def test_what_cannot_be_run_does_not_pass() -> None:
    with pytest.raises(AssertionError, match=r"(?s)cannot be judged\n.*there is no file"):
        assert_gradients("nowhere.py", "cs231n")
    with pytest.raises(AssertionError, match="rnn_loss: ZeroDivisionError"):
        assert_gradients(lambda *arguments: 1 / 0, "cs231n")
    with pytest.raises(ValueError, match="expected convention"):
        assert_gradients(PAIR, "stanford")
    with pytest.raises(TypeError, match="expected a function"):
        assert_gradients(3, "cs231n")


def test_pytest_shows_the_report_and_none_of_our_frames(tmp_path: Path) -> None:
    (tmp_path / "test_sheet.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import cs231n
from torch_reference import assert_gradients

def test_right():
    assert_gradients(cs231n, "cs231n", level="step")

def test_wrong():
    def rnn_backward(dh, cache):
        dx, dh0, dWx, dWh, db = cs231n.rnn_backward(dh, cache)
        return dx, dh0, dWx, dWh * 2, db
    assert_gradients((cs231n.rnn_forward, rnn_backward), "cs231n", hints="where")
""",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "E       AssertionError: ✗ rnn_forward, rnn_backward is wrong" in done.stdout
    assert "Where: dWh is the first wrong quantity" in done.stdout
    assert "✗ dWh       1.0e+00" in done.stdout
    assert "checking.py" not in done.stdout


# The truth


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_nothing_is_judged_where_the_witnesses_disagree(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = course_problems.complex_step

    def off(*arguments: Any, **options: Any) -> dict[str, Array]:
        found = dict(real(*arguments, **options))
        return found | {"dW": found["dW"] * (1 + 1e-9)}

    def rnn_forward(*arguments: Array) -> Any:
        asked.append(1)
        return FORWARD(*arguments)

    monkeypatch.setattr(course_problems, "complex_step", off)
    course_problems.posed.cache_clear()
    with pytest.raises(RuntimeError, match=r"check: autograd and complex step differ in dW by .*nothing can be judged"):
        check((rnn_forward, BACKWARD), "cs231n", problem=sequence(seed=5) if given else None)
    assert asked == []
    monkeypatch.undo()
    assert check((rnn_forward, BACKWARD), "cs231n", problem=sequence(seed=5) if given else None).verdict == "right"


@pytest.fixture
def restored() -> Iterator[None]:
    """Put back what a homework may set in the process that it shares."""
    errors, numbers, dtype = np.geterr(), np.random.get_state(), torch.get_default_dtype()
    yield
    np.seterr(**errors)
    np.random.set_state(numbers)
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.manual_seed(0)
    np.set_printoptions()


@cache
def undisturbed() -> tuple[Any, dict[str, Any]]:
    pair = spoilt(dWh=lambda value: value * 1.5)
    return pair, check(pair, "cs231n", seed=21).to_dict()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(lambda: np.seterr(all="raise"), id="np.seterr"),
        pytest.param(lambda: np.random.seed(0), id="np.random.seed"),
        pytest.param(lambda: torch.set_default_dtype(torch.float16), id="default dtype float16"),
        pytest.param(lambda: torch.set_grad_enabled(False), id="no gradients"),
        pytest.param(
            lambda: torch.set_default_device("meta"),
            id="default device",
        ),
    ],
)
def test_the_judgement_does_not_depend_on_what_the_homework_sets(
    disturb: Callable[[], Any],
) -> None:
    pair, expected = undisturbed()

    def rnn_forward(*arguments: Array) -> Any:
        disturb()
        return pair[0](*arguments)

    course_problems.posed.cache_clear()  # also what is drawn and solved after the homework ran
    disturb()
    assert check((rnn_forward, pair[1]), "cs231n", seed=21).to_dict() == expected


@pytest.mark.parametrize("mode", [torch.no_grad, pytest.param(torch.inference_mode)])
def test_the_caller_may_have_turned_gradients_off(mode: Any) -> None:
    course_problems.posed.cache_clear()
    with mode():
        assert check(PAIR, "cs231n").verdict == "right"


def test_random_numbers_of_the_process_are_left_alone() -> None:
    course_problems.posed.cache_clear()
    numpy_before, torch_before = np.random.get_state()[1], torch.get_rng_state()
    check(spoilt(db=lambda value: value * 3), "cs231n", seed=30)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_a_homework_cannot_change_the_numbers_that_the_next_one_is_given() -> None:
    """Drawn problems are kept; what a homework does to its arguments stays its own."""

    def rnn_backward(dh: Array, cache: Any) -> Any:
        found = BACKWARD(dh.copy(), cache)
        for value in (dh, *(part for step in cache for part in step)):
            value[...] = 0
        return found

    before = check(PAIR, "cs231n", seed=31)
    assert check((FORWARD, rnn_backward), "cs231n", seed=31).verdict == "wrong"
    assert check(PAIR, "cs231n", seed=31) == before


def test_relu_problems_pass_their_own_witness() -> None:
    """A central difference must not step over the kink, whatever the seed."""
    for name in ("kth", "d2l", "goodfellow"):
        kind = kind_of(CONVENTIONS[name].changed(nonlinearity="relu"), "network")
        for seed in range(12):
            standard = course_problems.standard_sizes(kind)
            for sizes in (standard, course_problems.others(kind, standard), course_problems.long(kind)):
                assert sizes is not None
                course_problems.witnessed_truth(draw_problem(kind, seed, sizes))
