"""Arguments that make no sense, that are empty, or that are not finite; and that no argument is ever written to.

Would catch: a wrong shape that broadcasts, a silent cast, an index out of range that reads other memory, an error
that does not say what was expected and what came, a gradient where torch has NaN (or the other way round), a batch
of no rows that fails, an input changed in place.
"""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import (
    GENERAL,
    NONLINEARITIES,
    TOLERANCE,
    WAYS,
    Problem,
    Sizes,
    by_bptt,
    leaves,
    make_problem,
    normal,
    seeded,
    truth_of,
)
from torch import Tensor, nn

import torch_reference
from manual_bptt import ElmanNetwork, bptt, kernels, readout, rnn, softmax_cross_entropy, squared_error

T, B, D, H, K = GENERAL
PROBLEM = make_problem()
TOKENS = make_problem(tokens=True).x
SCORES = normal(seeded(0), T, B, K)
CLASSES = PROBLEM.targets
SOFT = make_problem(kind="soft").targets
INDEX_OUT_OF_RANGE = CLASSES.clone().index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(K))
NEGATIVE_INDEX = CLASSES.clone().index_put((torch.tensor(4), torch.tensor(0)), torch.tensor(-1))
TOKEN_OUT_OF_RANGE = TOKENS.clone().index_put((torch.tensor(3), torch.tensor(2)), torch.tensor(D))


def call_rnn(**changes: Any) -> Tensor:
    """Call rnn() with good arguments but for the changes."""
    arguments = {"x": PROBLEM.x, "h0": PROBLEM.h0, "nonlinearity": "tanh"}
    return rnn(**{**arguments, **{name: PROBLEM.parameters[name] for name in "UWb"}, **changes})


def call_readout(**changes: Any) -> Tensor:
    """Call readout() with good arguments but for the changes."""
    arguments = {"h": normal(seeded(1), T, B, H), "V": PROBLEM.parameters["V"], "c": PROBLEM.parameters["c"]}
    return readout(**{**arguments, **changes})


def call_cross_entropy(**changes: Any) -> Tensor:
    """Call softmax_cross_entropy() with good arguments but for the changes."""
    return softmax_cross_entropy(**{"o": SCORES, "y": CLASSES, **changes})


def call_squared_error(**changes: Any) -> Tensor:
    """Call squared_error() with good arguments but for the changes."""
    return squared_error(**{"o": SCORES, "y": SOFT, **changes})


def call_bptt(**changes: Any) -> Any:
    """Call bptt() with good arguments but for the changes; U W V b c change a parameter, None drops it."""
    parameters = {**PROBLEM.parameters, **{name: changes.pop(name) for name in "UWVbc" if name in changes}}
    parameters = {name: value for name, value in parameters.items() if value is not None}
    arguments = {"parameters": parameters, "x": PROBLEM.x, "targets": CLASSES, "h0": PROBLEM.h0}
    return bptt(**{**arguments, **changes})


def zeros(*shape: int, **options: Any) -> Tensor:
    """Make float64 zeros, or as the options say."""
    return torch.zeros(shape, **{"dtype": torch.float64, **options})


# What is wrong, for rnn and bptt alike; the error; what it has to say beside the function's name.
RECURRENCE: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "x-list": ({"x": [[1.0]]}, TypeError, ("x", "torch.Tensor", "list")),
    "x-array": ({"x": PROBLEM.x.numpy()}, TypeError, ("x", "torch.Tensor", "ndarray")),
    "x-0d": ({"x": zeros()}, ValueError, ("x", "(T, B, D) or (T, D)", "D = 4", "()")),
    "x-1d": ({"x": zeros(4)}, ValueError, ("x", "(T, B, D) or (T, D)", "D = 4", "(4,)")),
    "x-4d": ({"x": zeros(5, 3, 4, 1)}, ValueError, ("x", "(T, B, D) or (T, D)", "(5, 3, 4, 1)")),
    "x-D": ({"x": zeros(5, 3, 7)}, ValueError, ("x", "D = 4", "(5, 3, 7)")),
    "x-no-steps": ({"x": zeros(0, 3, 4)}, ValueError, ("x", "at least one step", "T = 0", "(0, 3, 4)")),
    "x-float32": ({"x": zeros(5, 3, 4).float()}, TypeError, ("x", "torch.float64", "like U", "torch.float32", "x.to(")),
    "x-bool": ({"x": zeros(5, 3).bool()}, TypeError, ("x", "torch.float64", "tokens", "torch.int64", "torch.bool")),
    "x-uint8": ({"x": zeros(5, 3).to(torch.uint8)}, TypeError, ("x", "torch.int32", "torch.uint8")),
    "x-complex": ({"x": zeros(5, 3, 4).cfloat()}, TypeError, ("x", "torch.float64", "torch.complex64")),
    "x-device": ({"x": zeros(5, 3, 4, device="meta")}, ValueError, ("x", "device cpu", "like U", "meta")),
    "tokens-0d": ({"x": torch.tensor(1)}, ValueError, ("x", "(T, B) or (T,) for tokens", "()")),
    "tokens-3d": ({"x": zeros(5, 3, 4).long()}, ValueError, ("x", "(T, B) or (T,) for tokens", "(5, 3, 4)")),
    "tokens-no-steps": ({"x": zeros(0, 3).long()}, ValueError, ("x", "at least one step", "T = 0", "(0, 3)")),
    "tokens-device": ({"x": TOKENS.to("meta")}, ValueError, ("x", "device cpu", "meta")),
    "token-D": ({"x": TOKEN_OUT_OF_RANGE}, ValueError, ("tokens x", "D-1 = 3", "got 4", "(3, 2)")),
    "token-negative": ({"x": TOKENS.int() - 9}, ValueError, ("tokens x", "D-1 = 3", "got -9")),
    "h0-number": ({"h0": 0.0}, TypeError, ("h0", "torch.Tensor", "float")),
    "h0-shape": ({"h0": zeros(3, 6)}, ValueError, ("h0", "(B, H) = (3, 7)", "(3, 6)")),
    "h0-rows": ({"h0": zeros(1, 7)}, ValueError, ("h0", "(B, H) = (3, 7)", "(1, 7)")),
    "h0-layers": ({"h0": zeros(1, 3, 7)}, ValueError, ("h0", "(B, H) = (3, 7)", "(1, 3, 7)")),
    "h0-unbatched": ({"x": zeros(5, 4)}, ValueError, ("h0", "(H,) = (7,)", "(3, 7)")),
    "h0-float32": ({"h0": zeros(3, 7).float()}, TypeError, ("h0", "torch.float64", "like W", "torch.float32")),
    "h0-integer": ({"h0": zeros(3, 7).long()}, TypeError, ("h0", "floating", "torch.int64")),
    "h0-device": ({"h0": zeros(3, 7, device="meta")}, ValueError, ("h0", "device cpu", "like W", "meta")),
    "U-array": ({"U": PROBLEM.parameters["U"].numpy()}, TypeError, ("U", "torch.Tensor", "ndarray")),
    "U-1d": ({"U": zeros(7)}, ValueError, ("U", "(H, D) = (7, D)", "(7,)")),
    "U-transposed": ({"U": zeros(4, 7)}, ValueError, ("U", "(H, D) = (7, D)", "(4, 7)")),
    "U-float32": ({"U": zeros(7, 4).float()}, TypeError, ("U", "torch.float64", "like W", "torch.float32")),
    "U-device": ({"U": zeros(7, 4, device="meta")}, ValueError, ("U", "device cpu", "like W", "meta")),
    "W-integer": ({"W": zeros(7, 7).long()}, TypeError, ("W", "floating", "torch.int64")),
    "W-complex-relu": (
        {"W": zeros(7, 7).cdouble(), "nonlinearity": "relu"},
        TypeError,
        ("W", "a floating dtype", "torch.complex128"),
    ),
    "W-not-square": ({"W": zeros(7, 6)}, ValueError, ("W", "(H, H)", "(7, 6)")),
    "W-1d": ({"W": zeros(7)}, ValueError, ("W", "(H, H)", "(7,)")),
    "W-empty": ({"W": zeros(0, 0)}, ValueError, ("W", "(H, H)", "H > 0", "(0, 0)")),
    "W-and-U": ({"W": zeros(6, 6)}, ValueError, ("U", "(H, D) = (6, D)", "(7, 4)")),
    "W-float32": ({"W": zeros(7, 7).float()}, TypeError, ("U", "torch.float32", "like W", "torch.float64")),
    "b-shape": ({"b": zeros(1)}, ValueError, ("b", "(H,) = (7,)", "(1,)")),
    "b-row": ({"b": zeros(1, 7)}, ValueError, ("b", "(H,) = (7,)", "(1, 7)")),
    "b-float32": ({"b": zeros(7).float()}, TypeError, ("b", "torch.float64", "like W", "torch.float32")),
    "b-device": ({"b": zeros(7, device="meta")}, ValueError, ("b", "device cpu", "like W", "meta")),
    "nonlinearity": (
        {"nonlinearity": "gelu"},
        ValueError,
        ("nonlinearity", "'tanh', 'sigmoid', 'relu', 'identity'", "'gelu'"),
    ),
    "nonlinearity-case": ({"nonlinearity": "Tanh"}, ValueError, ("nonlinearity", "'tanh'", "'Tanh'")),
    "nonlinearity-function": ({"nonlinearity": torch.tanh}, ValueError, ("nonlinearity", "'tanh'", "built-in")),
    "nonlinearity-list": ({"nonlinearity": ["tanh"]}, ValueError, ("nonlinearity", "'tanh'", "['tanh']")),
}

READOUT: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "V-number": ({"V": 1.0}, TypeError, ("V", "torch.Tensor", "float")),
    "V-shape": ({"V": zeros(6, 5)}, ValueError, ("V", "(K, H) = (K, 7)", "(6, 5)")),
    "V-1d": ({"V": zeros(7)}, ValueError, ("V", "(K, H) = (K, 7)", "(7,)")),
    "V-empty": ({"V": zeros(0, 7)}, ValueError, ("V", "(K, H)", "K > 0", "(0, 7)")),
    "V-float32": ({"V": zeros(6, 7).float()}, TypeError, ("V", "torch.float64", "like h", "torch.float32")),
    "V-complex": ({"V": zeros(6, 7).cdouble()}, TypeError, ("V", "floating", "torch.complex128")),
    "V-device": ({"V": zeros(6, 7, device="meta")}, ValueError, ("V", "device cpu", "like h", "meta")),
    "c-shape": ({"c": zeros(7)}, ValueError, ("c", "(K,) = (6,)", "(7,)")),
    "c-one": ({"c": zeros(1)}, ValueError, ("c", "(K,) = (6,)", "(1,)")),
    "c-float32": ({"c": zeros(6).float()}, TypeError, ("c", "torch.float64", "like h", "torch.float32")),
    "c-device": ({"c": zeros(6, device="meta")}, ValueError, ("c", "device cpu", "like h", "meta")),
}

# The targets are called y by the losses and targets by bptt(): "{y}" stands for either.
LOSS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "time": ({"time": "all"}, ValueError, ("time", "'sum', 'mean', 'last'", "'all'")),
    "time-none": ({"time": None}, ValueError, ("time", "'sum', 'mean', 'last'", "None")),
    "batch": ({"batch": "last"}, ValueError, ("batch", "'sum', 'mean'", "'last'")),
    "y-list": ({"y": [[0]]}, TypeError, ("{y}", "torch.Tensor", "list")),
}
CROSS_ENTROPY: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    **LOSS,
    "y-0d": ({"y": torch.tensor(1)}, ValueError, ("{y}", "(T, B) = (5, 3)", "()")),
    "y-shape": ({"y": CLASSES.t()}, ValueError, ("{y}", "(T, B) = (5, 3)", "(3, 5)")),
    "y-K": ({"y": zeros(5, 3, 5)}, ValueError, ("{y}", "(T, B, K) = (5, 3, 6)", "(5, 3, 5)")),
    "y-broadcast": ({"y": zeros(1, 3, 6)}, ValueError, ("{y}", "(T, B, K) = (5, 3, 6)", "(1, 3, 6)")),
    "y-of-all-steps": ({"time": "last"}, ValueError, ("{y}", "without the time axis", "(5, 3)", "{y}[-1]")),
    "y-last": ({"time": "last", "y": CLASSES[0, :2]}, ValueError, ("{y}", "(B,) = (3,)", "(2,)")),
    "y-int32": ({"y": CLASSES.int()}, TypeError, ("{y}", "torch.int64", "torch.int32")),
    "y-float-indices": ({"y": CLASSES.double()}, TypeError, ("{y}", "torch.int64", "torch.float64")),
    "y-float32": ({"y": SOFT.float()}, TypeError, ("{y}", "torch.float64", "like o", "torch.float32")),
    "y-complex": ({"y": SOFT.cdouble()}, TypeError, ("{y}", "torch.float64", "torch.complex128")),
    "y-device": ({"y": CLASSES.to("meta")}, ValueError, ("{y}", "device cpu", "like o", "meta")),
    "class-K": ({"y": INDEX_OUT_OF_RANGE}, ValueError, ("{y}", "K-1 = 5", "ignore_index = -100", "got 6", "(2, 1)")),
    "class-negative": ({"y": NEGATIVE_INDEX}, ValueError, ("{y}", "K-1 = 5", "got -1", "(4, 0)")),
    "class-last": ({"y": CLASSES[0] + 99, "time": "last"}, ValueError, ("{y}", "K-1 = 5")),
    "ignored-none": ({"ignore_index": None}, TypeError, ("ignore_index", "int", "NoneType")),
    "ignored-text": ({"ignore_index": "pad"}, TypeError, ("ignore_index", "int", "str")),
    "ignored-float": ({"ignore_index": 0.5}, TypeError, ("ignore_index", "int", "float")),
    "other-ignored": ({"y": CLASSES - 100, "ignore_index": -3}, ValueError, ("{y}", "ignore_index = -3", "got -100")),
}
SQUARED_ERROR: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    **LOSS,
    "y-shape": ({"y": zeros(5, 3, 5)}, ValueError, ("{y}", "(T, B, K) = (5, 3, 6)", "(5, 3, 5)")),
    "y-broadcast": ({"y": zeros(5, 3, 1)}, ValueError, ("{y}", "(T, B, K) = (5, 3, 6)", "(5, 3, 1)")),
    "y-indices": ({"y": CLASSES}, ValueError, ("{y}", "(T, B, K) = (5, 3, 6)", "(5, 3)")),
    "y-last": ({"time": "last"}, ValueError, ("{y}", "without the time axis", "(5, 3, 6)")),
    "y-integer": ({"y": zeros(5, 3, 6).long()}, TypeError, ("{y}", "torch.float64", "like o", "torch.int64")),
    "y-float32": ({"y": SOFT.float()}, TypeError, ("{y}", "torch.float64", "like o", "torch.float32")),
    "y-device": ({"y": SOFT.to("meta")}, ValueError, ("{y}", "device cpu", "like o", "meta")),
}
SCORES_OF_A_LOSS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "o-list": ({"o": [0.5]}, TypeError, ("o", "torch.Tensor", "list")),
    "o-integer": ({"o": zeros(5, 3, 6).long()}, TypeError, ("o", "floating", "torch.int64")),
    "o-complex": ({"o": zeros(5, 3, 6).cdouble()}, TypeError, ("o", "floating", "torch.complex128")),
    "o-1d": ({"o": zeros(6)}, ValueError, ("o", "(T, B, K) or (T, K)", "(6,)")),
    "o-4d": ({"o": zeros(5, 3, 6, 1)}, ValueError, ("o", "(T, B, K) or (T, K)", "(5, 3, 6, 1)")),
    "o-no-outputs": ({"o": zeros(5, 3, 0)}, ValueError, ("o", "at least one output", "K = 0", "(5, 3, 0)")),
    "o-no-steps": ({"o": zeros(0, 3, 6)}, ValueError, ("o", "at least one step", "T = 0", "(0, 3, 6)")),
}
OF_READOUT_ALONE: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "h-none": ({"h": None}, TypeError, ("h", "torch.Tensor", "NoneType")),
    "h-0d": ({"h": zeros()}, ValueError, ("h", "(..., H)", "()")),
    "h-H": ({"h": zeros(5, 3, 6)}, ValueError, ("V", "(K, H) = (K, 6)", "(6, 7)")),
    "h-integer": ({"h": zeros(5, 3, 7).long()}, TypeError, ("h", "floating", "torch.int64")),
    "h-float32": ({"h": zeros(5, 3, 7).float()}, TypeError, ("V", "torch.float32", "like h", "torch.float64")),
}
OF_BPTT_ALONE: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "module": ({"parameters": ElmanNetwork(4, 7, 6)}, TypeError, ("parameters", "named_parameters", "ElmanNetwork")),
    "tuple": ({"parameters": (1, 2, 3)}, TypeError, ("parameters", "U, W, V, b, c", "tuple")),
    "no-V": ({"V": None}, ValueError, ("parameters", "U, W, V", "got U, W, b, c")),
    "another": ({"parameters": {**PROBLEM.parameters, "d": zeros(1)}}, ValueError, ("parameters", "U, W, V, b, c, d")),
    "number": ({"parameters": {0: zeros(1)}}, ValueError, ("parameters", "U, W, V", "got 0")),
    "nothing": ({"parameters": {}}, ValueError, ("parameters", "U, W, V", "got")),
    "W-complex": ({"W": zeros(7, 7).cdouble()}, TypeError, ("W", "a floating dtype", "torch.complex128")),
    "loss": ({"loss": "hinge"}, ValueError, ("loss", "'cross_entropy', 'squared_error'", "'hinge'")),
}
Case = tuple[Callable[..., Any], str, dict[str, Any], type[Exception], tuple[str, ...]]


def cases() -> dict[str, Case]:
    """Lay out the tables: every function with everything that can be wrong with its arguments."""
    named: dict[str, Case] = {}
    for function, name, y, tables in (
        (call_rnn, "rnn", "", [RECURRENCE]),
        (call_readout, "readout", "", [READOUT, OF_READOUT_ALONE]),
        (call_cross_entropy, "softmax_cross_entropy", "y", [CROSS_ENTROPY, SCORES_OF_A_LOSS]),
        (call_squared_error, "squared_error", "y", [SQUARED_ERROR, SCORES_OF_A_LOSS]),
        (call_bptt, "bptt", "targets", [RECURRENCE, READOUT, CROSS_ENTROPY, OF_BPTT_ALONE]),
    ):
        for table in tables:
            for wrong, (changes, error, says) in table.items():
                changes = {y if symbol == "y" else symbol: value for symbol, value in changes.items()}
                named[f"{name}-{wrong}"] = function, name, changes, error, tuple(part.format(y=y) for part in says)
    for wrong, (changes, error, says) in SQUARED_ERROR.items():
        changes = {"targets" if symbol == "y" else symbol: value for symbol, value in changes.items()}
        changes = {"loss": "squared_error", "targets": SOFT, **changes}
        says = tuple(part.format(y="targets") for part in says)
        named[f"bptt-squared-error-{wrong}"] = call_bptt, "bptt", changes, error, says
    return named


CASES = cases()


@pytest.mark.parametrize(("function", "name", "changes", "error", "says"), CASES.values(), ids=list(CASES))
def test_errors_name_function_symbol_expectation_and_what_came(function, name, changes, error, says):
    with pytest.raises(error) as raised:
        function(**changes)
    message = str(raised.value)
    assert type(raised.value) is error
    assert re.match(rf"{name}: expected (tokens |class indices )?{re.escape(says[0])}\b", message), message
    assert ", got " in message
    missing = [part for part in says if part not in message]
    assert not missing, f"{missing} not in {message!r}"


def test_the_good_arguments_are_good():
    """Else the tests above could pass for another reason."""
    for function in (call_rnn, call_readout, call_cross_entropy, call_squared_error, call_bptt):
        function()
    call_bptt(loss="squared_error", targets=SOFT)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((0, 3, 2), ValueError, "input_size to be at least 1, got 0"),
        ((4, -1, 2), ValueError, "hidden_size to be at least 1, got -1"),
        ((4, 3, 0), ValueError, "output_size to be at least 1, got 0"),
        ((4.0, 3, 2), TypeError, "input_size to be an int, got float"),
        ((4, "3", 2), TypeError, "hidden_size to be an int, got str"),
        ((4, 3, None), TypeError, "output_size to be an int, got NoneType"),
        (
            (4, 3, 2, "swish"),
            ValueError,
            "nonlinearity to be one of 'tanh', 'sigmoid', 'relu', 'identity', got 'swish'",
        ),
        ((4, 3, 2, "tanh", True, None, torch.int64), TypeError, "floating dtype, got torch.int64"),
        ((4, 3, 2, "tanh", True, None, torch.complex64), TypeError, "floating dtype, got torch.complex64"),
        ((4, 3, 2, "tanh", True, None, "float64"), TypeError, "got 'float64'"),
        ((True, 3, 2), TypeError, "input_size to be an int, got bool"),
        ((4, 3, 2, "tanh", "no"), TypeError, "bias to be a bool, got str"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_errors_of_the_constructor(arguments, error, says):
    with pytest.raises(error, match=f"^ElmanNetwork: expected .*{re.escape(says)}$"):
        ElmanNetwork(*arguments)


def test_a_module_in_another_dtype_says_how_to_convert():
    with pytest.raises(TypeError, match=re.escape("convert it with x.to(torch.float32)")):
        ElmanNetwork(D, H, K, dtype=torch.float32)(PROBLEM.x)


@pytest.mark.parametrize(
    ("function", "name"),
    [(call_rnn, "rnn"), (call_readout, "readout"), (call_bptt, "bptt")],
    ids=["rnn", "readout", "bptt"],
)
def test_autocast_is_refused_and_not_half_obeyed(function, name):
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=f"^{name}: expected autocast to be off, but it is on for cpu; call under"),
    ):
        function()
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        function()


def test_ignored_classes_may_lie_anywhere():
    for ignore_index in (-100, -1, 0, K, 255):
        y = CLASSES.masked_fill(CLASSES == 1, ignore_index)
        assert softmax_cross_entropy(SCORES, y, ignore_index=ignore_index).isfinite()


EMPTY = Sizes(T=5, B=0, D=4, H=7, K=6)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_no_rows(way, tokens, nonlinearity, device):
    problem = make_problem(EMPTY, tokens=tokens, nonlinearity=nonlinearity).to(device)
    actual = WAYS[way](problem)
    for name, symbol in (("dU", "U"), ("dW", "W"), ("dV", "V"), ("db", "b"), ("dc", "c")):
        assert torch.equal(actual[name], torch.zeros_like(problem.parameters[symbol])), name
    assert actual["h"].shape == (5, 0, 7)
    assert actual["o"].shape == actual["do"].shape == (5, 0, 6)
    assert actual["dh0"].shape == (0, 7)
    assert tokens or actual["dx"].shape == (5, 0, 4)
    assert actual["loss"] == 0


@pytest.mark.parametrize("kind", ["indices", "soft", "squared-error"])
@pytest.mark.parametrize("time", ["sum", "mean", "last"])
@pytest.mark.parametrize("batch", ["sum", "mean"])
def test_losses_of_a_batch_of_no_rows(batch, time, kind, device):
    actual = by_bptt(make_problem(EMPTY, kind=kind, time=time, batch=batch).to(device))
    assert actual["loss"] == 0
    assert actual["do"].shape == (5, 0, 6)


def test_a_batch_of_no_rows_in_nn_rnn(device):
    """It returns empty states and zero gradients; so does rnn()."""
    torchs = nn.RNN(4, 7, dtype=torch.float64, device=device)
    x = zeros(5, 0, 4, device=device)
    h_torch, _ = torchs(x)
    h_torch.sum().backward()
    parameters = {"U": torchs.weight_ih_l0, "W": torchs.weight_hh_l0, "b": torchs.bias_ih_l0}
    mine = leaves(parameters)
    h = rnn(x, None, mine["U"], mine["W"], mine["b"])
    h.sum().backward()
    assert h.shape == h_torch.shape
    for name in parameters:
        assert torch.equal(mine[name].grad, parameters[name].grad), name


def same_places(name: str, actual: Tensor, truth: Tensor) -> None:
    """NaN, inf and -inf in the same places, and the rest close."""
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(actual), kind(truth)), f"{name}: {kind.__name__} differs"
    torch.testing.assert_close(
        actual, truth, equal_nan=True, rtol=1e-10, atol=1e-12, msg=lambda message: f"{name}: {message}"
    )


def solve(states: Callable[..., Tensor], inputs: dict[str, Tensor], G: Tensor) -> dict[str, Tensor]:
    """Run forward and backward under the upstream gradient G."""
    named = leaves(inputs)
    h = states(**named)
    found = torch.autograd.grad(h, list(named.values()), G)
    return {"h": h.detach()} | {"d" + name: slope for name, slope in zip(named, found, strict=True)}


def witnesses(nonlinearity: str) -> dict[str, Callable[..., Tensor]]:
    """The plain loop, and nn.RNN where it has the nonlinearity; functions of x, h0, U, W and b."""

    def loop(x: Tensor, h0: Tensor, **parameters: Tensor) -> Tensor:
        V = h0.new_zeros(1, h0.shape[1])
        return torch.stack(torch_reference.unrolled({**parameters, "V": V}, x, h0, nonlinearity).h)

    def torchs(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor) -> Tensor:
        module = nn.RNN(U.shape[1], U.shape[0], nonlinearity=nonlinearity, dtype=x.dtype, device=x.device)
        names = {"weight_ih_l0": U, "weight_hh_l0": W, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
        h, _ = torch.func.functional_call(module, names, (x, h0[None]))
        return h

    return {"loop": loop, "nn.RNN": torchs} if nonlinearity in ("tanh", "relu") else {"loop": loop}


NOT_FINITE = {
    "x-nan": ("x", (2, 1, 3), torch.nan),
    "x-inf": ("x", (2, 1, 3), torch.inf),
    "x-minus-inf": ("x", (0, 2, 0), -torch.inf),
    "x-huge": ("x", (3, 0, 1), 1e308),
    "h0-nan": ("h0", (1, 4), torch.nan),
    "h0-inf": ("h0", (2, 0), torch.inf),
    "W-inf": ("W", (3, 5), torch.inf),
    "U-nan": ("U", (6, 2), torch.nan),
    "b-minus-inf": ("b", (4,), -torch.inf),
    "G-nan": ("G", (3, 1, 2), torch.nan),
    "G-inf": ("G", (3, 1, 2), torch.inf),
    "G-minus-inf-at-the-end": ("G", (4, 0, 6), -torch.inf),
    "G-huge": ("G", (4, 2, 0), 1e308),
}


@pytest.mark.parametrize("create_graph", [False, True], ids=["fast", "differentiable"])
@pytest.mark.parametrize("place", NOT_FINITE)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_nan_and_infinity_go_where_torch_lets_them_go(nonlinearity, place, create_graph, device):
    problem = make_problem(nonlinearity=nonlinearity).to(device)
    values = {name: problem.tensors()[name].clone() for name in ("x", "h0", "U", "W", "b")}
    values["G"] = normal(seeded(2), T, B, H).to(device)
    name, index, value = NOT_FINITE[place]
    values[name][index] = value
    G = values.pop("G")

    def mine(**named: Tensor) -> Tensor:
        return rnn(**named, nonlinearity=nonlinearity)

    # where a sum of numbers near the largest one passes it depends on their order, which is torch's in one kernel alone
    with kernels.use("eager") if place.endswith("huge") else nullcontext():
        if create_graph:
            named = leaves(values)
            h = mine(**named)
            found = torch.autograd.grad(h, list(named.values()), G, create_graph=True)
            actual = {"h": h.detach()} | {"d" + n: slope.detach() for n, slope in zip(named, found, strict=True)}
        else:
            actual = solve(mine, values, G)
    for witness in witnesses(nonlinearity).values():
        truth = solve(witness, values, G)
        for key, expected in truth.items():
            same_places(key, actual[key], expected)


@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
def test_exploding_gradients_reach_infinity_where_they_do_in_torch(nonlinearity, device):
    """Every step multiplies by about 1e90; a unit at rest stops even an infinite gradient.

    All entries of W and G are positive, so that no order of summation can turn inf - inf into something else.
    """
    problem = make_problem(nonlinearity=nonlinearity).to(device)
    values = {name: problem.tensors()[name].abs() for name in ("x", "h0", "U", "W", "b")}
    values["W"] = values["W"] * 1e90
    values["h0"] = values["h0"] * 1e-200
    values["U"] = values["U"] * 1e-200
    values["b"] = values["b"] * 1e-200
    values["x"][2] *= -1  # some units of relu rest at step 3
    values["b"][1] = -1e300  # one rests for ever
    G = normal(seeded(3), T, B, H).abs().to(device)

    def mine(**named: Tensor) -> Tensor:
        return rnn(**named, nonlinearity=nonlinearity)

    actual = solve(mine, values, G)
    assert actual["dh0"].isinf().any()
    for witness in witnesses(nonlinearity).values():
        for key, expected in solve(witness, values, G).items():
            same_places(key, actual[key], expected)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("kind", ["indices", "ignored", "soft", "squared-error"])
def test_bptt_shows_nan_and_infinity_of_the_whole_network(kind, value, nonlinearity, device):
    problem = make_problem(kind=kind, nonlinearity=nonlinearity).to(device)
    problem.x[2, 1, 0] = value
    actual, truth = by_bptt(problem), truth_of(problem)
    for name in truth:
        same_places(name, actual[name], truth[name])


@pytest.mark.parametrize("time", ["sum", "mean"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("kind", ["ignored", "one-hot", "soft", "squared-error"])
def test_losses_of_outputs_that_are_not_finite(kind, value, time, device):
    """An ignored step adds exactly 0, whatever its outputs are."""
    problem = make_problem(kind=kind, time=time)
    o = SCORES.clone()
    o[1, 0, 3] = value
    if kind == "ignored":
        assert problem.targets[1, 0] == -100
    named, exact = leaves({"o": o.to(device)}), leaves({"o": o.to(device)})
    options = {name: problem.options[name] for name in ("time", "batch")}
    y = problem.targets.to(device)
    function = squared_error if kind == "squared-error" else softmax_cross_entropy
    loss = function(named["o"], y, **options)
    truth = torch_reference.sequence_loss(exact["o"], y, loss=problem.options["loss"], **options)
    loss.backward()
    truth.backward()
    assert loss.isfinite() == (kind == "ignored")
    same_places("loss", loss, truth)
    same_places("do", named["o"].grad, exact["o"].grad)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("kind", ["ignored", "integer-one-hot", "soft", "squared-error"])
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("way", WAYS)
def test_no_argument_is_written_to(way, tokens, kind, nonlinearity, device):
    problem = make_problem(tokens=tokens, kind=kind, nonlinearity=nonlinearity).to(device)
    before = {name: (tensor.clone(), tensor._version) for name, tensor in problem.tensors().items()}
    WAYS[way](problem)
    for name, tensor in problem.tensors().items():
        values, version = before[name]
        assert torch.equal(tensor, values), name
        assert tensor._version == version, name


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
def test_no_argument_of_the_functions_is_written_to(tokens, nonlinearity, device):
    """As above, for the very tensors that are passed: the problem's own, not leaves made of them."""
    problem = make_problem(tokens=tokens, nonlinearity=nonlinearity, kind="soft").to(device)
    tensors = problem.tensors()
    wanted = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    before = {name: (tensor.detach().clone(), tensor._version) for name, tensor in tensors.items()}
    U, W, V, b, c, x, h0 = (tensors[name] for name in ("U", "W", "V", "b", "c", "x", "h0"))
    h = rnn(x, h0, U, W, b, nonlinearity)
    o = readout(h, V, c)
    softmax_cross_entropy(o, tensors["targets"]).backward(retain_graph=True)
    squared_error(o, tensors["targets"]).backward()
    assert all(tensor.grad is not None for tensor in wanted)
    for name, tensor in tensors.items():
        values, version = before[name]
        assert torch.equal(tensor.detach(), values), name
        assert tensor._version == version, name


def test_bptt_leaves_parameters_with_gradients_alone(device):
    network = ElmanNetwork(D, H, K, device=device, dtype=torch.float64)
    problem = Problem(**{**vars(PROBLEM.to(device)), "parameters": dict(network.named_parameters())})
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    by_bptt(problem)
    for name, parameter in network.named_parameters():
        assert parameter.grad is None
        assert parameter._version == 0 or torch.equal(parameter, before[name])
        assert torch.equal(parameter, before[name])


def test_one_hot_of_another_integer_dtype_is_exact(device):
    """The docstring allows any; bool and int8 hold 0 and 1 as well as int64 does."""
    y = F.one_hot(CLASSES, K).to(device)
    expected = softmax_cross_entropy(SCORES.to(device), y.double())
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool):
        assert softmax_cross_entropy(SCORES.to(device), y.to(dtype)) == expected
    assert abs(expected - softmax_cross_entropy(SCORES.to(device), CLASSES.to(device))) < TOLERANCE[torch.float64] * 50


@pytest.mark.parametrize("loss", [softmax_cross_entropy, squared_error])
def test_a_batch_that_is_read_as_time_is_refused_where_it_matters(loss):
    o = torch.zeros(4, 3)
    y = torch.zeros(4, dtype=torch.int64) if loss is softmax_cross_entropy else o
    with pytest.raises(ValueError, match=re.escape("expected o of shape (T, B, K) for batch='mean', got (4, 3)")):
        loss(o, y, batch="mean")


@pytest.mark.parametrize("y", [torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 3, 6)], ids=["indices", "soft"])
def test_targets_of_every_step_with_the_last_step_alone(y):
    with pytest.raises(ValueError, match=re.escape("without the time axis for time='last'")) as raised:
        softmax_cross_entropy(torch.zeros(5, 3, 6), y, time="last")
    assert "y[-1]" in str(raised.value)
    assert softmax_cross_entropy(torch.zeros(5, 3, 6), y[-1], time="last") >= 0


def test_targets_of_the_last_step_are_not_taken_for_those_of_all_steps_where_the_sizes_agree():
    o = torch.randn(3, 3, 3, dtype=torch.float64)
    y = torch.randn(3, 3, dtype=torch.float64)  # (B, K), which could be (T, B)
    torch.testing.assert_close(squared_error(o, y, time="last"), ((o[-1] - y) ** 2).sum() / 2)
    with pytest.raises(ValueError, match="without the time axis"):
        softmax_cross_entropy(o, torch.zeros(3, 3, dtype=torch.int64), time="last")
