"""A convention says exactly how a course writes the network, and a homework's own way of writing it is understood.

Would catch: an axis or a name in another place than the course has it, an entry of a teacher that is taken though it
cannot mean anything, a homework recognised as that of another course, and an argument or a result that lands under the
wrong name; and every odd thing that a function can return: it may be named, but never pass and never raise.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from homework_files import as_module
from homework_files import homework as planted

from torch_reference.candidates import fitting
from torch_reference.checking import check
from torch_reference.conventions import (
    AXES,
    CONVENTIONS,
    LEVELS,
    Calls,
    Convention,
    Signature,
    find_convention,
    from_course,
    to_course,
)
from torch_reference.course_problems import Problem, Sizes, draw_problem, kind_of
from torch_reference.reports import LevelReport, Report
from torch_reference.running import InProcess

Array = npt.NDArray[Any]

HOMEWORK = Path(__file__).parent / "homework"
SIZES = {"T": 2, "N": 3, "D": 5, "H": 4, "K": 6}  # all different


def homework(name: str) -> ModuleType:
    """Load one of the homework files as a module."""
    spec = importlib.util.spec_from_file_location(f"homework_{name}", HOMEWORK / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where functions look for their globals when they are inspected
    spec.loader.exec_module(module)
    return module


def every_way() -> list[tuple[Convention, str, Calls]]:
    return [
        (convention, level, calls)
        for convention in CONVENTIONS.values()
        for level in LEVELS
        for calls in convention.ways(level)
    ]


# What every function is given: the courses' own order, names, axes. P is H of the step before, so that HP multiplies
# columns and PH rows; "[T]" is a list of whole numbers.
CELL = {
    "RNNCell": "D, H",
    "RNNCell.forward": "x ND, h_prev_t NH",
    "RNNCell.backward": "delta NH, h_t cache, h_prev_l ND, h_prev_t NH",
}
CELL_SEQUENCE = {
    "rnn_forward": "x NTD, h0 NH, W_ih HD, W_hh HP, b_ih H, b_hh H",
    "rnn_backward": "dh NTH, cache",
}
COURSERA_PARAMETERS = "parameters{Wax HD, Waa HP, Wya KH, ba H1, by K1}"
GIVEN: dict[str, dict[str, dict[str, str]]] = {
    "goodfellow": {
        "sequence": {"rnn_forward": "x TND, h0 NH, U HD, W HP, b H", "rnn_backward": "dh TNH, cache"},
        "network": {"bptt": "x TND, y TN, mask TN, h0 NH, U HD, W HP, V KH, b H, c K"},
    },
    "torch": {
        "sequence": {
            "rnn_forward": "x TND, h0 NH, weight_ih HD, weight_hh HP, bias_ih H, bias_hh H",
            "rnn_backward": "grad_output TNH, cache",
        },
        "network": {
            "rnn_loss": "x TND, y TN, h0 NH, weight_ih HD, weight_hh HP, bias_ih H, bias_hh H, weight_ho KH, bias_ho K"
        },
    },
    "cs231n": {
        "step": {
            "rnn_step_forward": "x ND, prev_h NH, Wx DH, Wh PH, b H",
            "rnn_step_backward": "dnext_h NH, cache",
        },
        "sequence": {"rnn_forward": "x NTD, h0 NH, Wx DH, Wh PH, b H", "rnn_backward": "dh NTH, cache"},
        "network": {"rnn_loss": "x NTD, y NT, mask NT, h0 NH, Wx DH, Wh PH, b H, W_vocab HK, b_vocab K"},
    },
    "coursera": {
        "step": {
            "rnn_cell_forward": f"xt DN, a_prev HN, {COURSERA_PARAMETERS}",
            "rnn_cell_backward": "da_next HN, cache",
        },
        "sequence": {"rnn_forward": f"x DNT, a0 HN, {COURSERA_PARAMETERS}", "rnn_backward": "da HNT, cache"},
    },
    "cmu": {
        "step": CELL,
        "sequence": CELL_SEQUENCE,
        "network": {"rnn_loss": "x NTD, y N, h0 NH, W_ih HD, W_hh HP, b_ih H, b_hh H, W_out KH, b_out K"},
    },
    "mytorch": {"step": CELL, "sequence": CELL_SEQUENCE},
    "karpathy": {"network": {"lossFun": "inputs [T], targets [T], hprev H1"}},
    "kth": {"network": {"compute_gradients": "X DT, Y KT, h0 H1, RNN{U HD, W HP, V KH, b H1, c K1}"}},
    "d2l": {
        "sequence": {"rnn_forward": "X TND, H0 NH, W_xh DH, W_hh PH, b_h H", "rnn_backward": "dH TNH, cache"},
        "network": {"rnn_gradients": "X TND, Y TN, H0 NH, W_xh DH, W_hh PH, b_h H, W_hq HK, b_q K"},
    },
}


LETTERS = (
    {"inputs": "x", "X": "x", "xt": "x", "h_prev_l": "x", "targets": "y", "Y": "y"}
    | dict.fromkeys(("H0", "prev_h", "a0", "a_prev", "hprev", "h_prev_t"), "h0")
    | dict.fromkeys(("dh", "dH", "grad_output", "dnext_h", "da", "da_next", "delta"), "dh")
    | dict.fromkeys(("weight_ih", "Wx", "Wax", "W_ih", "Wxh", "W_xh"), "U")
    | dict.fromkeys(("weight_hh", "Wh", "Waa", "W_hh", "Whh"), "W")
    | dict.fromkeys(("weight_ho", "W_vocab", "Wya", "W_out", "Why", "W_hq"), "V")
    | dict.fromkeys(("bias_ih", "ba", "b_ih", "bh", "b_h"), "b")
    | dict.fromkeys(("bias_hh", "b_hh"), "b2")
    | dict.fromkeys(("bias_ho", "b_vocab", "by", "b_out", "b_q"), "c")
)
GLOBALS = {"karpathy": "Wxh HD, Whh HP, Why KH, bh H1, by K1, vocab_size D, hidden_size H"}
ATTRIBUTES = "W_ih HD, W_hh HP, b_ih H, b_hh H"


class Spy:
    """Functions, and a class, of any name that note what they are given."""

    def __init__(self) -> None:
        self.given: dict[str, tuple[Any, ...]] = {}
        self.around: dict[str, Any] = {}  # globals and attributes at the time of the call

    def function(self, name: str) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            self.given.setdefault(name, arguments)
            self.around |= {
                each: globals()[each] for each in re.findall(r"\w+", GLOBALS["karpathy"]) if each in globals()
            }
            return "cache", "cache", "cache"

        return noting

    def owner(self, name: str, methods: Sequence[str]) -> type:
        def made(instance: Any, *arguments: Any) -> None:
            self.given.setdefault(name, arguments)

        def method(own: str) -> Callable[..., Any]:
            def noting(instance: Any, *arguments: Any) -> Any:
                self.given.setdefault(f"{name}.{own}", arguments)
                self.around |= vars(instance)
                return "cache"

            return noting

        return type(name, (), {"__init__": made} | {own: method(own) for own in methods})


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in GIVEN for level in GIVEN[name]])
def test_functions_are_given_what_the_course_gives(name: str, level: str) -> None:
    """Number by number, against a transposition that is not the project's own."""
    convention = CONVENTIONS[name]
    kind = kind_of(convention, level)
    N, K = 1 if convention.one_sequence else 3, 5 if convention.tokens else 6
    problem = draw_problem(kind, 0, Sizes(1 if level == "step" else 2, N, 5, 4, K))
    spy = Spy()
    functions = GIVEN[name][level]
    if "RNNCell" in functions:
        given = {"RNNCell": spy.owner("RNNCell", ("forward", "backward"))}
    else:
        given = {function: spy.function(function) for function in functions}
    check(given, convention, problem=problem)
    for function, described in functions.items():
        arguments = split(described)
        assert len(spy.given[function]) == len(arguments), function
        for got, each in zip(spy.given[function], arguments, strict=True):
            assert_given(got, each, problem)
    for each in split(ATTRIBUTES if "RNNCell" in functions else GLOBALS.get(name, "")):
        assert_given(spy.around[each.split()[0]], each, problem)


def assert_given(got: Any, described: str, problem: Problem) -> None:
    """Compare what was given with the problem's array, turned as described."""
    if "{" in described:
        members = split(described.partition("{")[2].rstrip("}"))
        assert list(got) == [member.split()[0] for member in members]
        for member in members:
            assert_given(got[member.split()[0]], member, problem)
        return
    name, axes = described.split() if " " in described else ("", described)
    sizes = problem.sizes._asdict() | {"P": problem.sizes.H, "1": 1}
    if axes == "cache":
        assert got == "cache"
    elif len(axes) == 1 and name in ("", "vocab_size", "hidden_size"):
        assert got == sizes[axes]
    elif axes == "[T]":
        assert all(type(each) is int for each in got)
        np.testing.assert_array_equal(got, part(problem, LETTERS[name])[:, 0], err_msg=name)
    else:
        assert tuple(got.shape) == tuple(sizes[axis] for axis in axes), name
        array, own = part(problem, LETTERS.get(name, name)), AXES[LETTERS.get(name, name)]
        if own == "TN" and "K" in axes:
            array, own = np.eye(problem.sizes.K)[array], "TNK"
        if own == "TN" and "T" not in axes:
            array, own = array[-1], "N"
        turned = np.einsum(f"{own}->{axes.replace('1', '')}", array)  # an axis left out has length one
        np.testing.assert_array_equal(np.asarray(got), turned.reshape(got.shape), err_msg=name)


def part(problem: Problem, letter: str) -> Array:
    arrays = {**problem.parameters, "x": problem.x, "h0": problem.h0, "dh": problem.upstream, "y": problem.targets}
    return np.asarray(
        (np.ones(problem.x.shape[:2]) if problem.mask is None else problem.mask) if letter == "mask" else arrays[letter]
    )


def test_every_level_is_described() -> None:
    assert {name: list(convention.levels) for name, convention in CONVENTIONS.items()} == {
        name: list(levels) for name, levels in GIVEN.items()
    }


def split(described: str) -> list[str]:
    """Take "a TN, p{b H, c K}" apart at the outer commas."""
    return re.findall(r"\w+\{[^}]*\}|\w[^,]*", described)


@pytest.mark.parametrize(("convention", "level", "calls"), every_way())
def test_layouts_turn_round_and_back(convention: Convention, level: str, calls: Calls) -> None:
    """Entry by entry: what a course calls [axes] is the canonical entry with the same index on every axis."""
    names = {**convention.names, **calls.names}
    for name in [*names, *(f"d{name}" for name in names)]:
        layout = convention.layout(name, calls)
        assert layout is not None
        symbol, axes = layout
        if symbol in ("loss", "dloss", "ddh"):
            continue  # one number, and what nobody asks for
        own = AXES[symbol]
        if symbol == "x" and "D" not in axes:
            own = "TN"
        if symbol == "y" and "K" in axes:
            own = "TNK"
        if symbol in ("dx", "dy") and own != "".join(sorted(axes.replace("1", ""), key=own.find)):
            continue  # tokens and targets have no gradient
        sizes = SIZES | {"P": SIZES["H"], "1": 1} | {axis: 1 for axis in "TN" if axis not in axes}
        array = np.arange(float(np.prod([sizes[axis] for axis in own]))).reshape([sizes[axis] for axis in own])
        course = to_course(array, symbol, axes)
        assert course.shape == tuple(sizes[axis] for axis in axes), name
        for index in np.ndindex(course.shape):
            at = dict(zip(axes, index, strict=True))
            assert course[index] == array[tuple(at.get(axis, 0) for axis in own)], name
        if own == AXES[symbol] and (symbol != "dh0" or "N" in axes):  # without N see the next two tests
            np.testing.assert_array_equal(from_course(course, symbol, axes, array.shape), array, err_msg=name)


def test_a_shared_initial_state_has_one_row_and_its_gradient_too() -> None:
    h0 = np.repeat(np.arange(4.0)[None], 3, 0)
    np.testing.assert_array_equal(to_course(h0, "h0", "H"), np.arange(4))
    np.testing.assert_array_equal(from_course(np.arange(4.0), "dh0", "H", (4,)), np.arange(4))


def test_the_only_sequence_may_return_the_gradient_of_its_initial_state() -> None:
    """What KTH's assignment would be with dh0."""
    call = "compute_gradients(X, Y, h0, RNN{U, W, V, b, c}) -> loss, {dU, dW, dV, db, dc, dh0}"
    convention = replace(CONVENTIONS["kth"], levels={"network": Calls(call)})
    solved = homework("kth").compute_gradients

    def with_dh0(X: Array, Y: Array, h0: Array, RNN: dict[str, Array]) -> Any:
        loss, gradients = solved(X, Y, h0, RNN)
        # db of the first step alone is its da, the difference that the first column makes
        h1 = np.tanh(RNN["U"] @ X[:, :1] + RNN["W"] @ h0 + RNN["b"])
        rest = solved(X[:, 1:], Y[:, 1:], h1, RNN)[1]
        share = gradients["b"] - rest["b"] * (X.shape[1] - 1) / X.shape[1]
        return loss, gradients | {"h0": RNN["W"].T @ share}

    report = check({"compute_gradients": with_dh0}, convention)
    assert report.verdict == "right"
    assert report.levels[0].gradients[-1].name == "dh0"


@pytest.mark.parametrize(("convention", "level", "calls"), every_way())
def test_every_call_reads_back_as_it_is_written(convention: Convention, level: str, calls: Calls) -> None:
    assert level in LEVELS
    for signature, text in zip(calls.signatures, (calls.forward, calls.gradient), strict=False):
        assert text is not None
        written = re.sub(r"\w+\{", "{", text.partition(" -> ")[0])
        assert re.sub(r"\w+\{", "{", str(signature)) == written or "{" in written
        assert signature.function == text.partition("(")[0]
        for slot in (*signature.takes, *signature.returns):
            for name in slot.members or (slot.name,):
                assert name in text
    # every gradient that is returned or read belongs to something that the course has
    returned = [
        name
        for signature in calls.signatures
        for slot in signature.returns
        for name in (*slot.members, *(() if slot.members else (slot.name,)))
    ]
    unknown = {name for name in (*returned, *calls.read, *calls.set) if convention.layout(name, calls) is None}
    assert unknown <= {"cache", "caches", "vocab_size", "hidden_size"}


def test_an_unknown_convention_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="stanford") as raised:
        find_convention("stanford")
    assert str(raised.value) == (
        "check: expected convention to be one of goodfellow, torch, cs231n, coursera, cmu, mytorch, karpathy, kth, "
        "d2l, got 'stanford'"
    )
    with pytest.raises(ValueError, match="goodfellow, torch, cs231n"):
        check(lambda x: x, "stanford")


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("goodfellow", ["goodfellow"]),
        ("torch_manual", ["torch"]),
        ("torch_function", ["torch"]),
        ("cs231n", ["cs231n"]),
        ("coursera", ["coursera"]),
        ("cmu", ["cmu"]),
        ("mytorch", ["cmu", "mytorch"]),  # the same functions, but for what is averaged
        ("karpathy", ["karpathy"]),
        ("kth", ["kth"]),
        ("d2l", ["d2l"]),
    ],
)
def test_homework_is_recognised(file: str, names: list[str]) -> None:
    with InProcess(homework(file)) as runner:
        assert [convention.name for convention in fitting(runner.signatures())] == names
    report = check(homework(file), names[-1])
    assert report.verdict == "right", report


def test_a_recognised_convention_is_named_with_those_like_it() -> None:
    """They differ in a factor N: the one that fits is taken."""
    report = check(homework("mytorch"))
    assert (report.convention, report.verdict) == ("mytorch", "right")
    assert "cmu has the same functions, and as that it is wrong: name what is meant" in report.notes
    report = check({"RNNCell": homework("cmu").RNNCell})
    assert (report.convention, report.verdict) == ("cmu", "right")
    assert "mytorch has the same functions, and as that it is wrong: name what is meant" in report.notes
    wrong = check(as_module(planted("mytorch").planted("M05")))
    assert (wrong.convention, wrong.verdict) == ("mytorch", "wrong")


# A teacher's entry: letters of no course in the table, rows, batch first, one array of results, mean over the batch.
TEACHERS = Convention(
    name="evening class",
    title="letters A, B, C; rows; mean over the batch",
    names={
        "inputs": "x NTD",
        "labels": "y NT",
        "start": "h0 NH",
        "A": "U DH",
        "B": "W PH",
        "C": "V HK",
        "s": "b H",
        "t": "c K",
        "loss": "loss ",
    },
    levels={"network": Calls("learn(inputs, labels, start, A, B, C, s, t) -> loss, {dA, dB, dC, ds, dt, dstart}")},
    batch="mean",
)


def learn(
    inputs: Array, labels: Array, start: Array, A: Array, B: Array, C: Array, s: Array, t: Array, slip: str = ""
) -> tuple[float, dict[str, Array]]:
    """The teacher's assignment solved; `slip` plants a mistake."""
    N, T, _ = inputs.shape
    states = [start]
    for step in range(T):
        states.append(np.tanh(inputs[:, step] @ A + states[-1] @ B + s))
    h = np.stack(states, 1)
    scores = np.exp(h[:, 1:] @ C + t)
    p = scores / scores.sum(-1, keepdims=True)
    rows, steps = np.indices(labels.shape)
    loss = -np.log(p[rows, steps, labels]).sum() / N
    e = p.copy()
    e[rows, steps, labels] -= 1
    e = e / (1 if slip == "M44" else N)
    found = {"dA": 0 * A, "dB": 0 * B, "dC": 0 * C, "ds": 0 * s, "dt": e.sum((0, 1))}
    back = 0 * start
    for step in reversed(range(T)):
        z = (e[:, step] @ C.T + (0 if slip == "M01" else back)) * (1 - h[:, step + 1] ** 2)
        found["dA"] = found["dA"] + inputs[:, step].T @ z
        found["dB"] = found["dB"] + h[:, step + (slip == "M30")].T @ z
        found["dC"] = found["dC"] + h[:, step + 1].T @ e[:, step]
        found["ds"] = found["ds"] + z.sum(0)
        back = z @ (B if slip == "M05" else B.T)
    return float(loss), found | {"dstart": back}


def test_a_teachers_convention_works() -> None:
    report = check(learn, TEACHERS)
    assert report.verdict == "right", report
    assert [gradient.name for gradient in report.levels[0].gradients] == ["dA", "dB", "dC", "ds", "dt", "dstart"]
    assert report.convention == "evening class"


@pytest.mark.parametrize("slip", ["M01", "M05", "M30", "M44"])
def test_a_teachers_convention_names_a_planted_mistake(slip: str) -> None:
    def planted(
        inputs: Array, labels: Array, start: Array, A: Array, B: Array, C: Array, s: Array, t: Array
    ) -> tuple[float, dict[str, Array]]:
        return learn(inputs, labels, start, A, B, C, s, t, slip)

    report = check({"learn": planted}, TEACHERS)
    assert report.verdict == "wrong"
    assert [finding.id for finding in report.levels[0].findings] == [slip]


NAMES = {"x": "x TND", "h0": "h0 NH", "A": "U HD", "B": "W HP", "s": "b H", "h": "h TNH"}
WITHOUT_X = {name: NAMES[name] for name in NAMES if name != "x"}
FORWARD = "forward(x, h0, A, B, s) -> h, cache"
GRADIENT = "backward(dh, cache) -> dx, dh0, dA, dB, ds"


def entry(
    names: Mapping[str, str] = NAMES,
    forward: str = FORWARD,
    gradient: str | None = GRADIENT,
    level: str = "sequence",
    set: tuple[str, ...] = (),
    read: tuple[str, ...] = (),
    **options: Any,
) -> Convention:
    return Convention("own", "own", names, {level: Calls(forward, gradient, set=set, read=read)}, **options)


def test_the_entry_that_the_malformed_ones_are_made_from_is_taken() -> None:
    assert entry().ways("sequence")[0].functions == ("forward", "backward")
    assert entry().ways("network") == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": {**NAMES, "A": "Q HD"}}, "expected A to be described as 'symbol axes'.*U, W, V.*got 'Q HD'"),
        ({"names": {**NAMES, "A": "U HZ"}}, "expected A to be described as.*with the axes H, D .and 1., got 'U HZ'"),
        ({"forward": "forward(x, h0, A, B, s -> h, cache"}, "expected a call such as.*got 'forward"),
        ({"forward": "forward(x, h0, A, B, s)"}, "expected a call such as.*got 'forward"),
        ({"gradient": "dh, cache -> dx, dh0, dA, dB, ds"}, "expected a call such as.*got 'dh, cache"),
        ({"level": "whole"}, "own: expected levels among step, sequence, network, got 'whole'"),
        ({"forward": "forward(x, h0, A, Z, s) -> h, cache"}, r"expected forward\(x, h0, A, Z, s\).*got 'Z'"),
        ({"forward": "forward(x, h0, p{A, Z}, s) -> h, cache"}, "layout, or what the call before it returns, got 'Z'"),
        ({"gradient": "backward(dh, memory) -> dx, dh0, dA, dB, ds"}, "what the call after it takes, got 'cache'"),
    ],
)
def test_a_malformed_entry_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Convention.*{message}"):
        entry(**options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"names": {**NAMES, "A": "U"}}, id="no axes"),
        pytest.param({"names": {**NAMES, "A": "U TN"}}, id="axes of something else"),
        pytest.param({"names": {**NAMES, "A": "U H"}}, id="an axis missing"),
        pytest.param({"names": {**NAMES, "A": "U HH"}}, id="an axis twice"),
        pytest.param(
            {"names": WITHOUT_X, "forward": "f(h0, A, B, s) -> h, cache", "gradient": "g(dh, cache) -> dA"}, id="no x"
        ),
        pytest.param({"gradient": "backward(dh, cache) -> dx, dh0, da_misspelt, dB, ds"}, id="a gradient misspelt"),
        pytest.param({"read": ("dAA",)}, id="a gradient misspelt that is read"),
        pytest.param({"set": ("AA",)}, id="a name misspelt that is set"),
        pytest.param({"time": "often"}, id="time"),
        pytest.param({"batch": "often"}, id="batch"),
        pytest.param({"nonlinearity": "gelu"}, id="nonlinearity"),
        pytest.param({"parameter_gradients": "average"}, id="parameter_gradients"),
        pytest.param({"clip": -1.0}, id="clip"),
        pytest.param({"arrays": "jax"}, id="arrays"),
    ],
)
def test_an_entry_that_cannot_mean_anything_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Convention"):
        entry(**options)


@pytest.mark.parametrize(
    "options", [{"time": "often"}, {"batch": "often"}, {"nonlinearity": "gelu"}, {"parameter_gradients": "average"}]
)
def test_a_setting_without_meaning_is_refused(options: dict[str, str]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"expected {name} to be one of"):
        CONVENTIONS["cs231n"].changed(**options)


def test_signature_parses_dicts_with_and_without_a_name() -> None:
    signature = Signature.parse("Cell.f( x ,  p{A, B} ) -> loss, {dA, dB}")
    assert signature.function == "Cell.f"
    assert [(slot.name, slot.members) for slot in signature.takes] == [("x", ()), ("p", ("A", "B"))]
    assert [(slot.name, slot.members) for slot in signature.returns] == [("loss", ()), ("", ("dA", "dB"))]


# How a homework may write its functions

CS231N = homework("cs231n")


def sequence(
    forward: Callable[..., Any] = CS231N.rnn_forward, backward: Callable[..., Any] = CS231N.rnn_backward
) -> LevelReport:
    report = check({"rnn_forward": forward, "rnn_backward": backward}, "cs231n")
    assert [level.level for level in report.levels] == ["sequence"]
    return report.levels[0]


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        pytest.param(
            lambda b, Wh, Wx, h0, x: CS231N.rnn_forward(x, h0, Wx, Wh, b),
            lambda cache, dh: CS231N.rnn_backward(dh, cache),
            id="another order",
        ),
        pytest.param(
            lambda p, q, r, s, t: CS231N.rnn_forward(p, q, r, s, t),
            lambda upstream, kept: CS231N.rnn_backward(upstream, kept),
            id="other names",
        ),
        pytest.param(
            lambda x, h0, Wx, Wh, b, scale=1.0: CS231N.rnn_forward(x, h0, Wx, Wh, b),
            lambda dh, cache, h0: CS231N.rnn_backward(dh, cache),
            id="one more",
        ),
        pytest.param(lambda *a: CS231N.rnn_forward(*a), lambda *a: CS231N.rnn_backward(*a), id="stars"),
    ],
)
def test_parameters_may_be_written_otherwise(forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    assert sequence(forward, backward).verdict == "right"


def unmasked(*arguments: Any) -> Any:
    x, y, *rest = arguments
    return CS231N.rnn_loss(x, y, np.ones(y.shape), *rest)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, h0, Wx, Wh, b, W_vocab, b_vocab: unmasked(x, y, h0, Wx, Wh, b, W_vocab, b_vocab),
        lambda a1, a2, a3, a4, a5, a6, a7, a8: unmasked(a1, a2, a3, a4, a5, a6, a7, a8),
    ],
)
def test_the_mask_may_be_left_out(function: Callable[..., Any]) -> None:
    assert check({"rnn_loss": function}, "cs231n").verdict == "right"


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda x, h0, W: (h0, None),
            "expected rnn_forward(x, h0, Wx, Wh, b) with 5 parameters, got rnn_forward(x, h0, W)",
        ),
        (lambda q: None, "expected rnn_forward(x, h0, Wx, Wh, b) with 5 parameters, got rnn_forward(q)"),
        (lambda x, h0, Wx, Wh, b, more: (h0, None), "missing 1 required positional argument: 'more'"),
    ],
)
def test_too_few_parameters_and_too_many_are_said(forward: Callable[..., Any], message: str) -> None:
    level = sequence(forward)
    assert level.verdict == "unusable"
    assert message in level.trouble


RETURNED = ("dx", "dh0", "dWx", "dWh", "db")


def returning(change: Callable[[tuple[Array, ...]], Any]) -> LevelReport:
    return sequence(backward=lambda dh, cache: change(CS231N.rnn_backward(dh, cache)))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(list, id="a list"),
        pytest.param(lambda r: dict(zip(RETURNED, r, strict=True)), id="a dict"),
        pytest.param(lambda r: {name[1:]: value for name, value in zip(RETURNED, r, strict=True)}, id="without d"),
        pytest.param(lambda r: {f"grad_{n[1:]}": value for n, value in zip(RETURNED, r, strict=True)}, id="grad_"),
        pytest.param(lambda r: dict(zip(RETURNED, r, strict=True)) | {"notes": "mine", 3: None}, id="more keys"),
        pytest.param(lambda r: tuple(value.tolist() for value in r), id="lists for arrays"),
        pytest.param(lambda r: tuple(np.asfortranarray(value) for value in r), id="another order in memory"),
        pytest.param(lambda r: tuple(value.astype(np.longdouble) for value in r), id="longdouble"),
    ],
)
def test_results_may_be_handed_over_otherwise(change: Callable[[tuple[Array, ...]], Any]) -> None:
    assert returning(change).verdict == "right"


def test_a_dict_may_be_a_tuple_and_the_loss_an_array() -> None:
    def as_tuple(*arguments: Any) -> Any:
        loss, gradients = CS231N.rnn_loss(*arguments)
        return np.array([loss]), tuple(gradients.values())

    def flat(*arguments: Any) -> Any:
        loss, gradients = CS231N.rnn_loss(*arguments)
        return loss, *gradients.values()

    assert check({"rnn_loss": as_tuple}, "cs231n").verdict == "right"
    assert check({"rnn_loss": flat}, "cs231n").verdict == "right"
    coursera = homework("coursera")
    backward = coursera.rnn_backward
    given = {
        "rnn_forward": coursera.rnn_forward,
        "rnn_backward": lambda da, caches: tuple(backward(da, caches).values()),
    }
    assert check(given, "coursera").verdict == "right"


def last(value: Any) -> Callable[[tuple[Array, ...]], Any]:
    """Exchange db."""
    return lambda r: (*r[:-1], value(r[-1]) if callable(value) else value)


def with_one(value: float) -> Callable[[Array], Array]:
    return lambda db: np.where(np.arange(len(db)) == 3, value, db)


@pytest.mark.parametrize(
    ("change", "id_", "note"),
    [
        pytest.param(lambda r: dict(zip(RETURNED[:-1], r, strict=False)), "S1", "db: missing", id="a key missing"),
        pytest.param(last(None), "S3", "db: expected an array, got None", id="None"),
        pytest.param(last("db"), "S3", "db: expected an array, got str", id="text"),
        pytest.param(
            last(lambda db: db.astype(object)), "S3", "db: expected an array, got numpy.ndarray", id="objects"
        ),
        pytest.param(last(lambda db: db > 0), "S3", "db: expected an array, got ndarray of bool", id="bools"),
        pytest.param(last(lambda db: db + 0j), "S3", "db: expected an array, got ndarray of complex128", id="complex"),
        pytest.param(last([[1, 2], [3]]), "S3", "rows have different lengths", id="rows of different lengths"),
        pytest.param(last(lambda db: {"db": db}), "S3", "db: expected an array, got dict", id="a dict inside"),
        pytest.param(last(lambda db: np.sum), "S3", "db: expected an array, got", id="a function"),
        pytest.param(last(lambda db: db[:, None]), "S2", "db: expected shape (16,), got (16, 1)", id="(H, 1) for (H,)"),
        pytest.param(last(lambda db: db[None]), "S2", "db: expected shape (16,), got (1, 16)", id="(1, H) for (H,)"),
        pytest.param(last(0.5), "S2", "db: expected shape (16,), got ()", id="one number"),
        pytest.param(last(lambda db: db[:0]), "S2", "db: expected shape (16,), got (0,)", id="empty"),
        pytest.param(lambda r: (r[0].swapaxes(0, 1), *r[1:]), "S2", "dx: expected shape (3, 5, 17)", id="time first"),
        pytest.param(last(lambda db: db * np.nan), "S4", "db", id="all NaN"),
        pytest.param(last(with_one(np.nan)), "S4", "db", id="one NaN"),
        pytest.param(last(with_one(-np.inf)), "S4", "db", id="one inf"),
    ],
)
def test_malformed_results_are_named(change: Callable[[tuple[Array, ...]], Any], id_: str, note: str) -> None:
    level = returning(change)
    assert level.verdict == "wrong"
    assert [finding.id for finding in level.findings] == [id_]
    assert note in level.findings[0].note
    wrong = [gradient for gradient in level.gradients if not gradient.ok]
    assert len(wrong) == 1
    assert wrong[0].trouble


def test_a_column_is_asked_for_where_the_course_has_one() -> None:
    coursera = homework("coursera")

    def flat(da: Array, caches: Any) -> dict[str, Array]:
        gradients: dict[str, Array] = coursera.rnn_backward(da, caches)
        return gradients | {"dba": gradients["dba"][:, 0]}

    report = check({"rnn_forward": coursera.rnn_forward, "rnn_backward": flat}, "coursera")
    assert [finding.id for finding in report.levels[0].findings] == ["S2"]
    assert "dba: expected shape (16, 1), got (16,)" in report.levels[0].findings[0].note


def test_two_results_exchanged_are_both_named() -> None:
    level = returning(lambda r: (r[0], r[1], r[3], r[2], r[4]))
    assert [gradient.name for gradient in level.gradients if not gradient.ok] == ["dWx", "dWh"]
    assert [(finding.id, finding.explains) for finding in level.findings] == [("S5", True)]
    level = returning(lambda r: (r[0], r[1], 2 * r[3], 2 * r[2], r[4]))  # nor are the numbers right
    assert [(finding.id, finding.explains) for finding in level.findings] == [("S2", False)]
    assert "dWx and dWh look exchanged" in level.findings[0].note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: None, "rnn_backward returned None: is it written yet?"),
        (lambda r: r[:-1], "expected rnn_backward to return dx, dh0, dWx, dWh, db, got 4 values"),
        (lambda r: (*r, 0), "expected rnn_backward to return dx, dh0, dWx, dWh, db, got 6 values"),
        (lambda r: (), "expected rnn_backward to return dx, dh0, dWx, dWh, db, got 0 values"),
        (lambda r: r[0], "expected rnn_backward to return dx, dh0, dWx, dWh, db, got one value"),
        (lambda r: (value for value in r), "expected rnn_backward to return dx, dh0, dWx, dWh, db, got one value"),
    ],
)
def test_results_that_cannot_be_taken_apart_are_said(change: Callable[[tuple[Array, ...]], Any], message: str) -> None:
    level = returning(change)
    assert level.verdict == "unusable"
    assert level.trouble == message


@pytest.mark.parametrize(
    ("forward", "verdict", "said"),
    [
        (
            lambda *a: CS231N.rnn_forward(*a)[0],
            "unusable",
            "expected rnn_forward to return h, cache: "
            "rnn_forward returned one numpy.ndarray; the next call needs value 2 of it",
        ),
        (lambda *a: (None, CS231N.rnn_forward(*a)[1]), "wrong", "S3"),
        (lambda *a: (CS231N.rnn_forward(*a)[0] * np.nan, CS231N.rnn_forward(*a)[1]), "wrong", "S4"),
        (lambda *a: None, "unusable", "None"),
    ],
)
def test_a_malformed_forward_pass_is_said(forward: Callable[..., Any], verdict: str, said: str) -> None:
    level = sequence(forward)
    assert level.verdict == verdict
    assert said in level.trouble or [finding.id for finding in level.findings] == [said]


def test_a_loss_that_is_missing_is_named() -> None:
    def gradients_alone(*arguments: Any) -> Any:
        return CS231N.rnn_loss(*arguments)[1]

    report: Report = check({"rnn_loss": gradients_alone}, "cs231n")
    assert report.verdict == "wrong"
    assert "loss: missing" in report.levels[0].findings[0].note


def test_float32_is_judged_as_float32() -> None:
    level = returning(lambda r: tuple(value.astype(np.float32) for value in r))
    assert level.verdict == "right"
    assert any("float32" in note for note in level.notes)


def test_an_entry_can_be_changed_without_changing_the_table() -> None:
    changed = CONVENTIONS["cs231n"].changed(time="mean", clip=None)
    assert (changed.time, CONVENTIONS["cs231n"].time) == ("mean", "sum")
    assert replace(changed, time="sum") == CONVENTIONS["cs231n"]
