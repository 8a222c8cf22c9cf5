"""Witness 2: complex steps, central differences and the printed closed form of the linear network, in NumPy alone.

Would catch: whatever torch's autograd, or an operator of torch, might get wrong in the same way as the hand-written
backward does; this witness knows neither torch nor autograd. Complex steps are exact to rounding, so the tolerance
is that of every other float64 witness; ReLU is not analytic and gets differences, whose own error is about 1e-9.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from problems import (
    GENERAL,
    LOSSES,
    SIZES,
    TOLERANCE,
    WAYS,
    Problem,
    assert_all_close,
    away_from_kink,
    by_bptt,
    gradient_names,
    make_problem,
)
from torch import Tensor

from torch_reference import central_difference, complex_step, linear_closed_form

EXACT = TOLERANCE[torch.float64]
DIFFERENCE = 1e-8  # what a central difference can be right to, norm-wise; see torch_reference/numerical.py

each_way = pytest.mark.parametrize("way", list(WAYS))


def as_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert what a NumPy witness returns."""
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def agrees(problem: Problem, way: str, witness: Any, tolerance: float) -> None:
    """Compare the loss and every gradient with respect to an input of the network."""
    truth = as_tensors(witness(*problem.numpy(), **problem.options))
    actual = WAYS[way](problem)
    assert gradient_names(problem) <= actual.keys() & truth.keys()
    assert_all_close({name: actual[name] for name in actual.keys() & truth.keys()}, truth, tolerance)


@each_way
@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "identity"])
@pytest.mark.parametrize("sizes", ["general", "T=1", "B=1", "H=1", "T>H"])
def test_complex_step(sizes, nonlinearity, way):
    agrees(make_problem(SIZES[sizes], nonlinearity=nonlinearity), way, complex_step, EXACT)


@pytest.mark.parametrize("batch", ["sum", "mean"])
@pytest.mark.parametrize("time", ["sum", "mean", "last"])
@pytest.mark.parametrize("kind", LOSSES)
def test_complex_step_for_every_loss(kind, time, batch):
    agrees(make_problem(kind=kind, time=time, batch=batch), "bptt", complex_step, EXACT)


@each_way
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize(("biases", "with_h0"), [("bc", False), ("", True)], ids=["no-h0", "no-bias"])
def test_complex_step_without_optional_arguments(biases, with_h0, tokens, way):
    agrees(make_problem(biases=biases, with_h0=with_h0, tokens=tokens), way, complex_step, EXACT)


@each_way
@pytest.mark.parametrize("kind", ["indices", "soft", "squared-error"])
def test_central_difference_for_relu(kind, way):
    problem = away_from_kink(kind=kind, time="mean", batch="mean")
    agrees(problem, way, central_difference, DIFFERENCE)


@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
def test_central_difference_for_relu_without_optional_arguments(tokens):
    agrees(away_from_kink(tokens=tokens, biases="", with_h0=False, time="last"), "bptt", central_difference, DIFFERENCE)


@pytest.mark.parametrize("biases", ["bc", ""], ids=["b", "no-b"])
@pytest.mark.parametrize("with_h0", [True, False], ids=["h0", "no-h0"])
@pytest.mark.parametrize("sizes", [GENERAL, SIZES["odd"]], ids=["general", "odd"])
def test_closed_form_of_the_linear_network(sizes, with_h0, biases):
    """dL/dh_t = Σ_i (Wᵀ)^(T-i) Vᵀ dL/do_(T+t-i), with matrix powers where B3 has a recursion."""
    problem = make_problem(sizes, nonlinearity="identity", with_h0=with_h0, biases=biases)
    actual = by_bptt(problem)
    parameters, x, _, h0 = problem.numpy()
    truth = as_tensors(linear_closed_form(parameters, x, actual["do"].numpy(), h0))
    assert truth.keys() == {"dh", "dU", "dW", "dx", "dh0"} | ({"db"} if biases else set())
    assert_all_close({name: actual[name] for name in truth}, truth, EXACT)
    assert_all_close({"da": actual["da"]}, {"da": actual["dh"]}, EXACT)  # B4 with slope 1
