"""Tests of the tests: wrong formulas are planted one at a time, and the witnesses must name what each one spoils.

Would catch: a comparison that cannot fail, a tolerance too wide to see a gradient that is wrong by 0.1 %, a test
problem in which a mistake happens not to show (a symmetric W, h0 = 0, a single step, a token that comes once), and a
report that names the wrong gradient. Each plant says which results it spoils: exactly these must be reported.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from problems import (
    GENERAL,
    TOLERANCE,
    Problem,
    assert_all_close,
    assert_close,
    away_from_kink,
    by_bptt,
    by_create_graph,
    by_functions,
    disagreements,
    leaves,
    make_problem,
    truth_of,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from manual_bptt import rnn
from manual_bptt.activations import ACTIVATIONS
from torch_reference import central_difference, complex_step

# modules of the package, past the functions of the same names
kernels, eager, recurrence, readout, losses, network, targets = (
    import_module(f"manual_bptt.{name}")
    for name in ("kernels", "kernels.eager", "recurrence", "readout", "losses", "network", "targets")
)
EXACT = TOLERANCE[torch.float64]

INTO = {"dU", "dW", "db", "dx", "dh0"}  # what da is turned into
EVERY_GRADIENT = INTO | {"do", "dh", "da", "dV", "dc"}
EVERYTHING = EVERY_GRADIENT | {"loss", "h", "a", "o", "y_hat"}


@pytest.fixture(autouse=True)
def readable_kernel() -> Iterator[None]:
    """Plants are put into Python: the kernel in C has its own, in test_native.py."""
    with kernels.use("eager"):
        yield


@dataclass(frozen=True)
class Plant:
    """One mistake: the functions it replaces, by what, and the results that it spoils."""

    mistake: str
    places: tuple[tuple[Any, str], ...]
    wrong: Callable[..., Any]  # called with the right function first
    spoils: set[str]
    nonlinearity: str = "tanh"
    tokens: bool = False

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the wrong function into every place."""
        for owner, name in self.places:
            if isinstance(owner, dict):
                entry = owner[self.nonlinearity]
                monkeypatch.setitem(owner, self.nonlinearity, replace(entry, **{name: self.wrong}))
            else:
                monkeypatch.setattr(owner, name, partial(self.wrong, getattr(owner, name)))

    def problem(self) -> Problem:
        """Draw a problem that can see the mistake; some of its steps are ignored and each sequence is averaged."""
        options = {"kind": "ignored", "time": "mean", "tokens": self.tokens}
        if self.nonlinearity == "relu":
            return away_from_kink(**options)
        return make_problem(nonlinearity=self.nonlinearity, **options)


def without_carry(right: Any, dh: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any) -> Tensor:
    return slope * dh


def transposed_carry(right: Any, dh: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any) -> Tensor:
    return right(dh, slope, W.t(), activation)


def carry_of_da_not_through_slope(
    right: Any, dh: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any
) -> Tensor:
    carried = dh.clone()
    for t in range(len(dh) - 2, -1, -1):
        carried[t] += carried[t + 1] @ W
    return slope * carried


def unwritten_first_step(
    right: Any, dh: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any
) -> Tensor:
    da = torch.empty_like(dh)
    da[1:] = right(dh, slope, W, activation)[1:]
    return da


def first_step_skipped(
    right: Any, dh: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any
) -> Tensor:
    da = right(dh, slope, W, activation)
    return torch.cat((torch.zeros_like(da[:1]), da[1:]))


def truncated_after_two_steps(
    right: Any, dh: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any
) -> Tensor:
    return torch.cat((right(dh[:-2], slope[:-2], W, activation), right(dh[-2:], slope[-2:], W, activation)))


def states_of_their_own_step(
    right: Any, da: Tensor, h: Tensor, h0: Tensor, sizes: Any = None, ended: Any = None
) -> Tensor:
    return da.flatten(0, 1).t() @ h.flatten(0, 1)


def without_h0(right: Any, da: Tensor, h: Tensor, h0: Tensor, sizes: Any = None, ended: Any = None) -> Tensor:
    return right(da, h, torch.zeros_like(h0))


def scaled(right: Any, *args: Any) -> Tensor:
    return 1.001 * right(*args)


def zero(right: Any, *args: Any) -> Tensor:
    return torch.zeros_like(right(*args))


def transposed_weights(right: Any, da: Tensor, W: Tensor, sizes: Any = None) -> Tensor:
    return right(da, W.t())


def shifted_dx(right: Any, da: Tensor, U: Tensor) -> Tensor:
    return right(da.roll(1, 0), U)


def shifted_input(right: Any, da: Tensor, x: Tensor, U: Tensor) -> Tensor:
    return right(da, x.roll(1, 0), U)


def token_overwritten(right: Any, da: Tensor, x: Tensor, D: int) -> Tensor:
    dU = da.new_zeros(da.shape[-1], D)
    for token, da_t in zip(x.flatten(), da.flatten(0, 1), strict=True):
        dU[:, token] = da_t
    return dU


def first_row_only(right: Any, da: Tensor) -> Tensor:
    return da[:, 0].sum(0)


def last_step_only(right: Any, do: Tensor) -> Tensor:
    return do[-1].sum(0)


def previous_states(right: Any, do: Tensor, h: Tensor) -> Tensor:
    return right(do, h.roll(1, 0))


def slope_of_a(h: Tensor) -> Tensor:
    return 1 - h.atanh().square()


def slope_of_h(h: Tensor) -> Tensor:
    return 1 - h.tanh().square()


def softmax_without_the_minus(right: Any, o: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """∂ŷ_j/∂o_i = +ŷ_j ŷ_i off the diagonal."""
    y_hat, one_hot = o.softmax(-1), torch.nn.functional.one_hot(y, o.shape[-1]).to(o.dtype)
    return w.unsqueeze(-1) * (2 * one_hot * y_hat - one_hot - y_hat)


def everything_counts(right: Any, o: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return right(o, y, torch.ones_like(w))


def mean_over_all_steps(right: Any, o: Tensor, counts: Tensor, time: str, batch: str) -> Tensor:
    return counts.to(o.dtype) / len(o)


def h0_forgotten(right: Any, a: Tensor, h0: Tensor, W: Tensor, activation: Any, sizes: Any) -> Tensor:
    return right(a, torch.zeros_like(h0), W, activation)


KERNEL = ((eager, "backward"), (eager, "functional_backward"))
THROUGH_TIME = INTO | {"da", "dh"}
IN_READOUT_AND_NETWORK = (readout, network)
SOFTMAX_GRADIENT = ((losses, "cross_entropy_output_gradient"),)
SLOPE = ((ACTIVATIONS, "slope"),)

PLANTS = [
    Plant("carry dropped", KERNEL, without_carry, THROUGH_TIME),
    Plant("W transposed in the carry", KERNEL, transposed_carry, THROUGH_TIME),
    Plant("carry that skips f'", KERNEL, carry_of_da_not_through_slope, THROUGH_TIME),
    Plant("carry dropped at a chunk border", KERNEL, truncated_after_two_steps, THROUGH_TIME),
    Plant("first step skipped", KERNEL, first_step_skipped, INTO | {"da"}),
    Plant("f' of a, not of h", SLOPE, slope_of_a, THROUGH_TIME),
    Plant("tanh' of h", SLOPE, slope_of_h, THROUGH_TIME),
    Plant("f' = h for the sigmoid", SLOPE, torch.clone, THROUGH_TIME, nonlinearity="sigmoid"),
    Plant("f' = 1 for the relu at rest", SLOPE, torch.ones_like, THROUGH_TIME, nonlinearity="relu"),
    Plant("h_t for h_(t-1) in dW", ((recurrence, "recurrent_weight_gradient"),), states_of_their_own_step, {"dW"}),
    Plant("h0 left out of dW", ((recurrence, "recurrent_weight_gradient"),), without_h0, {"dW"}),
    Plant("dW × 1.001", ((recurrence, "recurrent_weight_gradient"),), scaled, {"dW"}),
    Plant("db dropped", ((recurrence, "bias_gradient"),), zero, {"db"}),
    Plant("db of one row", ((recurrence, "bias_gradient"),), first_row_only, {"db"}),
    Plant("dh0 zero", ((recurrence, "initial_state_gradient"),), zero, {"dh0"}),
    Plant("W transposed in dh0", ((recurrence, "initial_state_gradient"),), transposed_weights, {"dh0"}),
    Plant("dx one step late", ((recurrence, "input_gradient"),), shifted_dx, {"dx"}),
    Plant("dU with the input before", ((recurrence, "input_weight_gradient"),), shifted_input, {"dU"}),
    Plant(
        "dU of the last token only", ((recurrence, "input_weight_gradient"),), token_overwritten, {"dU"}, tokens=True
    ),
    Plant(
        "dc of the last step",
        tuple((owner, "readout_bias_gradient") for owner in IN_READOUT_AND_NETWORK),
        last_step_only,
        {"dc"},
    ),
    Plant(
        "dV with the state before",
        tuple((owner, "readout_weight_gradient") for owner in IN_READOUT_AND_NETWORK),
        previous_states,
        {"dV"},
    ),
    Plant(
        "dh × 1.001 through the readout",
        tuple((owner, "readout_state_gradient") for owner in IN_READOUT_AND_NETWORK),
        scaled,
        THROUGH_TIME,
    ),
    Plant("softmax without the minus", SOFTMAX_GRADIENT, softmax_without_the_minus, EVERY_GRADIENT),
    Plant("weights of the steps left out", SOFTMAX_GRADIENT, everything_counts, EVERY_GRADIENT),
    Plant("mean over ignored steps too", ((targets, "_weights"),), mean_over_all_steps, EVERY_GRADIENT | {"loss"}),
    Plant("h0 forgotten", ((eager, "forward"),), h0_forgotten, EVERYTHING),
]


def each(plants: list[Plant]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("plant", plants, ids=lambda plant: plant.mistake.replace(" ", "-"))


each_plant = each(PLANTS)
each_plant_in_nn_rnn = each([plant for plant in PLANTS if plant.nonlinearity != "sigmoid" and not plant.tokens])


def by_bptt_with_patches(problem: Problem) -> dict[str, Tensor]:
    """Call bptt() after its table of losses has been given what was planted in losses.py."""
    entry = network.LOSSES["cross_entropy"]
    network.LOSSES["cross_entropy"] = entry._replace(output_gradient=losses.cross_entropy_output_gradient)
    try:
        return by_bptt(problem)
    finally:
        network.LOSSES["cross_entropy"] = entry


WAYS = {"functions": by_functions, "create_graph": by_create_graph, "bptt": by_bptt_with_patches}
each_way = pytest.mark.parametrize("way", list(WAYS))


def reported(actual: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> set[str]:
    """Name what the witness and the code do not agree on, among the results that both have."""
    common = actual.keys() & truth.keys()
    return set(disagreements({name: actual[name] for name in common}, truth, tolerance))


@each_way
@each_plant
def test_the_plain_loop_reports_exactly_what_is_spoiled(plant, way, monkeypatch):
    problem = plant.problem()
    truth = truth_of(problem)
    assert reported(WAYS[way](problem), truth, EXACT) == set()
    plant.apply(monkeypatch)
    actual = WAYS[way](problem)
    assert reported(actual, truth, EXACT) == plant.spoils & actual.keys()


@each_way
@each_plant
def test_the_numerical_witness_reports_exactly_what_is_spoiled(plant, way, monkeypatch):
    problem = plant.problem()
    witness, tolerance = (central_difference, 1e-8) if plant.nonlinearity == "relu" else (complex_step, EXACT)
    truth = {name: torch.as_tensor(array) for name, array in witness(*problem.numpy(), **problem.options).items()}
    assert reported(WAYS[way](problem), truth, tolerance) == set()
    plant.apply(monkeypatch)
    actual = WAYS[way](problem)
    assert reported(actual, truth, tolerance) == plant.spoils & actual.keys() & truth.keys()


@each_plant
def test_float32_is_judged_tightly_enough(plant, monkeypatch):
    problem = plant.problem().to(torch.float32)
    plant.apply(monkeypatch)
    actual = by_functions(problem)
    assert reported(actual, truth_of(problem), TOLERANCE[torch.float32]) == plant.spoils & actual.keys()


@each_plant_in_nn_rnn
def test_nn_rnn_reports_exactly_what_is_spoiled(plant, monkeypatch):
    problem = plant.problem()
    plant.apply(monkeypatch)
    actual, truth = by_functions(problem), truth_of(problem, network="nn.RNN")
    assert reported(actual, truth, EXACT) == plant.spoils & actual.keys()


@pytest.mark.parametrize("mistake", ["carry dropped", "dW × 1.001", "h0 left out of dW", "tanh' of h", "db of one row"])
def test_gradcheck_reports_it(mistake, monkeypatch):
    next(plant for plant in PLANTS if plant.mistake == mistake).apply(monkeypatch)
    problem = make_problem()
    named = leaves({name: problem.tensors()[name] for name in ("x", "h0", "U", "W", "b")})
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradcheck(rnn, tuple(named.values()), atol=1e-8, rtol=1e-6)


def test_a_wrong_functional_backward_is_seen_by_the_witnesses_though_not_by_gradgradcheck(monkeypatch):
    """Only the slope of what it returns is checked there: this is why "create_graph" is a way of its own above."""
    problem = make_problem(GENERAL._replace(T=4, B=2))
    named = leaves({name: problem.tensors()[name] for name in ("x", "h0", "U", "W", "b")})
    monkeypatch.setattr(eager, "functional_backward", partial(without_carry, None))
    assert gradcheck(rnn, tuple(named.values()), atol=1e-8, rtol=1e-6)
    assert gradgradcheck(rnn, tuple(named.values()), atol=1e-8, rtol=1e-6)
    truth = truth_of(problem)
    assert reported(by_functions(problem), truth, EXACT) == set()
    assert reported(by_create_graph(problem), truth, EXACT) == INTO


def test_poisoned_memory_shows_a_buffer_that_nobody_wrote_to(monkeypatch, poisoned_memory):
    Plant("", KERNEL, unwritten_first_step, set()).apply(monkeypatch)
    actual = by_functions(make_problem())
    assert all(actual[name].isnan().any() for name in INTO)


def test_the_message_names_the_gradient_and_prints_the_error():
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"^dW: relative error 1\.00e-03 > 1\.00e-12"):
        assert_close("dW", truth * 1.001, truth, EXACT)


@pytest.mark.parametrize("spoil", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_what_is_not_finite_does_not_pass(spoil):
    truth = torch.ones(3)
    for actual, expected in ((truth * spoil, truth), (truth, truth * spoil), (truth * spoil, truth * spoil)):
        with pytest.raises(AssertionError, match=r"db: relative error"):
            assert_close("db", actual, expected, EXACT)


def test_shapes_are_compared_and_nothing_does_not_pass():
    with pytest.raises(AssertionError, match=r"shape \(3,\), got \(1, 3\)"):
        assert_close("db", torch.ones(1, 3), torch.ones(3), EXACT)
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_all_close({}, {"db": torch.ones(3)}, EXACT)


def test_where_the_truth_is_zero_the_error_is_absolute():
    zeros = torch.zeros(3)
    assert_close("db", zeros + 1e-13, zeros, EXACT)
    with pytest.raises(AssertionError, match="db: relative error"):
        assert_close("db", zeros + 1e-11, zeros, EXACT)
