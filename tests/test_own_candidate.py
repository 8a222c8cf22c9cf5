"""manual_bptt as a homework in every convention: found right, and with a planted mistake found wrong, by its name.

Would catch: a hand-written derivative, loss weight or mask that is not what a course asks for, a convention whose
layout or scale the oracle reads in another way than its table says, a finding on correct code (in float32, with one
step or one sequence), and an oracle that lets a wrong backward pass of manual_bptt through or misnames it.
"""

import inspect

import numpy as np
import pytest

from manual_bptt.cli import own_candidate as module
from manual_bptt.cli.own_candidate import own_candidate
from manual_bptt.cli.planted import MISTAKES
from torch_reference.checking import check
from torch_reference.conventions import CONVENTIONS, Calls, Convention

SMALL = {"T": 4, "N": 3, "D": 7, "H": 6, "K": 4}
SIZES = {
    "standard": None,
    "small": SMALL,
    "T=1": SMALL | {"T": 1},
    "N=1": SMALL | {"N": 1},
    "T=N=1": SMALL | {"T": 1, "N": 1},
}
FOUND = {
    "carry dropped (B3)": "M01",
    "W transposed (B3)": "M05",
    "h_t for h_{t-1} (B6)": "M30",
    "1 - a² for 1 - h² (B4)": "M21",
}
AT_ONE_STEP = {"M30", "M21"}  # the others need a step after this one
NAMED = [mistake for mistake in MISTAKES if mistake.name in FOUND]
NAMELESS = [mistake for mistake in MISTAKES if mistake.name not in FOUND]
NETWORKS = [name for name, convention in CONVENTIONS.items() if "network" in convention.levels]

every_convention = pytest.mark.parametrize("name", CONVENTIONS)


def allowed(convention, sizes):
    """The sizes, as far as the convention has them: one sequence, or as many outputs as there are tokens."""
    if sizes is None:
        return None
    sizes = dict(sizes, N=1) if convention.one_sequence else sizes
    return dict(sizes, K=sizes["D"]) if convention.tokens else sizes


def assert_right(report, convention):
    assert [(level.level, level.verdict, level.trouble) for level in report.levels] == [
        (level, "right", "") for level in ("step", "sequence", "network") if level in convention.levels
    ]
    assert report.verdict == "right"
    assert not any(level.findings or level.possible for level in report.levels)


def wrong_symbols(level):
    """The gradients that are wrong, and those that there are; the second bias goes with the first."""
    wrong = {gradient.symbol for gradient in level.gradients if not gradient.ok}
    there = {gradient.symbol for gradient in level.gradients}
    if "db2" in there:
        assert ("db2" in wrong) == ("db" in wrong)
    return wrong - {"db2"}, there - {"db2"}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@every_convention
def test_nothing_is_found(name, dtype, sizes, seed):
    convention = CONVENTIONS[name]
    report = check(own_candidate(convention), name, seed=seed, dtype=dtype, sizes=allowed(convention, sizes))
    assert_right(report, convention)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid", "identity"])
@every_convention
def test_nothing_is_found_with_another_nonlinearity(name, nonlinearity, dtype):
    convention = CONVENTIONS[name].changed(nonlinearity=nonlinearity)
    sizes = allowed(convention, SMALL)
    report = check(own_candidate(convention), name, dtype=dtype, sizes=sizes, nonlinearity=nonlinearity)
    assert_right(report, convention)


@pytest.mark.parametrize("options", [{"time": "sum", "batch": "mean"}, {"time": "mean", "clip": 0.1}, {"time": "last"}])
@pytest.mark.parametrize("name", [name for name in NETWORKS if CONVENTIONS[name].time != "last"])  # it has y_T alone
def test_nothing_is_found_with_another_loss(name, options):
    convention = CONVENTIONS[name].changed(parameter_gradients="mean", **options)
    report = check(own_candidate(convention), convention, sizes=allowed(convention, SMALL), level="network")
    assert report.verdict == "right"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_found_in_the_functions_of_the_network(name, dtype):
    convention = CONVENTIONS[name]
    assert_right(check(own_candidate(convention, functions=True), name, dtype=dtype), convention)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_is_found_where_the_checker_itself_calls_autograd(dtype):
    functions = {"rnn": own_candidate(CONVENTIONS["torch"])["rnn"]}
    report = check(functions, "torch", dtype=dtype)
    assert [(level.level, level.functions, level.verdict) for level in report.levels] == [
        ("sequence", ("rnn",), "right")
    ]


@pytest.mark.parametrize("functions", [False, True], ids=["bptt", "functions"])
@pytest.mark.parametrize("mistake", NAMED, ids=lambda mistake: mistake.name)
@every_convention
def test_a_planted_mistake_is_named(name, mistake, functions):
    convention = CONVENTIONS[name]
    if convention.nonlinearity not in mistake.nonlinearities:
        pytest.skip("no mistake there")
    candidate = own_candidate(convention, functions=functions)
    with mistake.planted():
        report = check(candidate, name)
    assert report.verdict == "wrong"
    for level in report.levels:
        if level.level == "step" and FOUND[mistake.name] not in AT_ONE_STEP:
            assert level.verdict == "right"
            continue
        assert [finding.id for finding in level.findings] == [FOUND[mistake.name]]
        wrong, there = wrong_symbols(level)
        assert wrong == {f"d{symbol}" for symbol in mistake.wrong} & there
    assert check(candidate, name).verdict == "right"  # the same functions without the mistake


def test_a_planted_mistake_is_named_where_the_checker_itself_calls_autograd():
    functions = {"rnn": own_candidate(CONVENTIONS["torch"])["rnn"]}
    for mistake in NAMED:
        with mistake.planted():
            report = check(functions, "torch")
        assert [finding.id for finding in report.levels[0].findings] == [FOUND[mistake.name]]


@pytest.mark.parametrize("functions", [False, True], ids=["bptt", "functions"])
@pytest.mark.parametrize("mistake", NAMELESS, ids=lambda mistake: mistake.name)
@pytest.mark.parametrize("name", ["karpathy", "kth"])
def test_a_planted_mistake_outside_the_catalogue_is_seen(name, mistake, functions):
    with mistake.planted():
        report = check(own_candidate(CONVENTIONS[name], functions=functions), name)
    assert report.verdict == "wrong"
    wrong, _ = wrong_symbols(report.levels[0])
    assert wrong == {f"d{symbol}" for symbol in mistake.wrong}


TEACHERS = Convention(
    name="teachers",
    title="one h0 for all, one-hot targets with a mask, two calls for the network, a class with gradients to read",
    names={
        "x": "x DTN",
        "y": "y NKT",
        "mask": "mask NT",
        "s": "h0 H1",
        "h": "h HTN",
        "A": "U DH",
        "R": "W HP",
        "O": "V HK",
        "bias": "b 1H",
        "out": "c 1K",
        "loss": "loss ",
    },
    levels={
        "sequence": Calls(
            "Layer.run(x, s) -> h",
            "Layer.back(x, s, dh) -> dx, ds",
            owner="Layer",
            set=("A", "R", "bias"),
            read=("dA", "dR", "dbias"),
        ),
        "network": Calls(
            "evaluate(x, y, mask, s, p{A, R, O, bias, out}) -> loss, memory",
            "differentiate(memory) -> {dA, dR, dO, dbias, dout}, ds, dx",
        ),
    },
    nonlinearity="sigmoid",
    time="mean",
    batch="mean",
    parameter_gradients="mean",
    clip=0.05,
)


@pytest.mark.parametrize("functions", [False, True], ids=["bptt", "functions"])
def test_a_convention_of_a_teacher_needs_no_code_of_its_own(functions):
    assert_right(check(own_candidate(TEACHERS, functions=functions), TEACHERS), TEACHERS)


def test_functions_have_the_names_and_parameters_of_the_convention():
    made = own_candidate(CONVENTIONS["coursera"])
    assert list(made) == ["rnn_cell_forward", "rnn_cell_backward", "rnn_forward", "rnn_backward"]
    assert all(function.__name__ == name for name, function in made.items())
    assert list(inspect.signature(made["rnn_forward"]).parameters) == ["x", "a0", "parameters"]


def test_names_set_from_outside_go_to_the_function_alone():
    before = dict(vars(module))
    made = own_candidate(CONVENTIONS["karpathy"])
    assert check(made, "karpathy").verdict == "right"
    assert dict(vars(module)) == before
    assert "Wxh" not in made["lossFun"].__globals__


def test_what_the_caller_overwrites_between_the_calls_does_not_matter():
    made = own_candidate(CONVENTIONS["cs231n"])
    numbers = np.random.default_rng(0)
    shapes = {"x": (3, 4, 2), "h0": (3, 5), "Wx": (2, 5), "Wh": (5, 5), "b": (5,)}
    arguments = {name: numbers.standard_normal(shape) for name, shape in shapes.items()}
    h, cache = made["rnn_forward"](**arguments)
    right = made["rnn_backward"](np.ones_like(h), cache)
    for array in (h, *arguments.values()):
        array += 1
    again = made["rnn_backward"](np.ones_like(h), cache)
    assert all(np.array_equal(first, second) for first, second in zip(right, again, strict=True))
