"""Witness 3: torch.nn.RNN, torch.nn.Linear and F.cross_entropy, as everybody else would write the network.

Would catch: a network that is consistent in itself and with its derivatives but is not the one that torch calls an
RNN (another order of the gates, another bias, another loss), and a precision below torch's own, half precision
included: there the rule is at most twice nn.RNN's own error against the float64 truth.
"""

import pytest
import torch
import torch.nn.functional as F
from problems import (
    SIZES,
    TOLERANCE,
    WAYS,
    Problem,
    Sizes,
    assert_all_close,
    assert_close,
    by_bptt,
    gradient_names,
    make_problem,
    normal,
    relative_error,
    seeded,
    truth_of,
)
from torch import nn

import torch_reference
from manual_bptt import rnn, softmax_cross_entropy, squared_error

each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
each_nonlinearity = pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])


@each_dtype
@each_nonlinearity
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("way", ["functions", "network", "bptt"])
def test_every_gradient(way, sizes, nonlinearity, device, dtype):
    problem = make_problem(sizes, nonlinearity=nonlinearity).to(device).to(dtype)
    actual, truth = WAYS[way](problem), truth_of(problem, network="nn.RNN")
    assert gradient_names(problem) <= actual.keys() & truth.keys()
    assert_all_close({name: value for name, value in actual.items() if name in truth}, truth, TOLERANCE[dtype])


@each_nonlinearity
@pytest.mark.parametrize("time", ["sum", "mean", "last"])
@pytest.mark.parametrize(("biases", "with_h0"), [("bc", False), ("b", True), ("", True)], ids=["no-h0", "no-c", "none"])
def test_without_optional_arguments(biases, with_h0, time, nonlinearity, device):
    problem = make_problem(nonlinearity=nonlinearity, time=time, batch="mean", biases=biases, with_h0=with_h0)
    problem = problem.to(device)
    actual, truth = by_bptt(problem), truth_of(problem, network="nn.RNN")
    assert_all_close({name: actual[name] for name in actual.keys() & truth.keys()}, truth, TOLERANCE[torch.float64])


@each_nonlinearity
def test_the_module_with_its_two_biases_and_nothing_between(nonlinearity, device):
    """Written out here, with both biases of nn.RNN: b is their sum, and db the gradient of each."""
    T, B, D, H, K = SIZES["odd"]
    recurrent = nn.RNN(D, H, nonlinearity=nonlinearity, dtype=torch.float64, device=device)
    linear = nn.Linear(H, K, dtype=torch.float64, device=device)
    generator = seeded(4)
    with torch.no_grad():
        for parameter in [*recurrent.parameters(), *linear.parameters()]:
            parameter.copy_(normal(generator, *parameter.shape, scale=0.5))
    x, h0 = normal(generator, T, B, D).to(device), normal(generator, B, H).to(device)
    y = torch.randint(K, (T, B), generator=generator).to(device)

    leaves = [x.clone().requires_grad_(), h0.clone().requires_grad_()]
    h, h_T = recurrent(leaves[0], leaves[1][None])
    loss = F.cross_entropy(linear(h).flatten(0, 1), y.flatten(), reduction="sum")
    loss.backward()

    U, W, b_ih, b_hh = recurrent.parameters()
    V, c = linear.parameters()
    parameters = {"U": U, "W": W, "b": b_ih + b_hh, "V": V, "c": c}
    actual = by_bptt(Problem(parameters, x, y, h0, {"nonlinearity": nonlinearity}))
    truth = {"loss": loss, "h": h, "dU": U.grad, "dW": W.grad, "dV": V.grad, "dc": c.grad}
    truth |= {"dx": leaves[0].grad, "dh0": leaves[1].grad, "db": b_ih.grad}
    assert_all_close({name: actual[name] for name in truth}, truth, TOLERANCE[torch.float64])
    assert_close("db", actual["db"], b_hh.grad, TOLERANCE[torch.float64])
    assert_close("h_T", actual["h"][-1], h_T[0], TOLERANCE[torch.float64])


def half_precision_problem(nonlinearity: str, T: int, B: int, time: str) -> Problem:
    """Draw a problem with dozens of entries in everything, so that no error is the accident of one rounding.

    One input drives every unit far up or down at every step: else the signs of a few pre-activations near ReLU's
    kink would depend on the rounding, in nn.RNN as here, and who is unlucky there is right nowhere else either.
    """
    sizes = Sizes(T=T, B=B, D=12, H=32, K=48)
    problem = make_problem(sizes, nonlinearity=nonlinearity, time=time, batch="mean", seed=5)
    if nonlinearity == "relu":
        problem.x[..., 0] = problem.x[..., 0].sign()
        problem.parameters["U"][:, 0] = 10 * problem.parameters["U"][:, 0].sign()
        problem.parameters["W"].mul_(0.2)
        states = torch_reference.unrolled(problem.parameters, problem.x, problem.h0, nonlinearity)
        assert torch.stack(states.a).abs().min() > 0.1
    return problem


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@each_nonlinearity
@pytest.mark.parametrize(("T", "B", "time"), [(20, 16, "sum"), (60, 9, "mean"), (13, 17, "last")])
@pytest.mark.parametrize("way", ["functions", "create_graph", "bptt"])
def test_half_precision_is_at_most_twice_as_wrong_as_nn_rnn(way, T, B, time, nonlinearity, dtype, device):
    problem = half_precision_problem(nonlinearity, T, B, time).to(device).to(dtype)
    truth = truth_of(problem)
    theirs = torch_reference.gradients(
        problem.parameters, problem.x, problem.targets, problem.h0, network="nn.RNN", **problem.options
    )
    mine = WAYS[way](problem)
    assert all(value.dtype == dtype for value in mine.values())
    compared = gradient_names(problem) | {"h", "o", "do"}  # not the loss: the error of one number is an accident
    errors = {
        name: (relative_error(mine[name], truth[name]), relative_error(theirs[name], truth[name])) for name in compared
    }
    wrong = {name: pair for name, pair in errors.items() if not pair[0] <= 2 * pair[1]}
    assert not wrong, ", ".join(f"{name}: {error:.1e} > 2 × {torchs:.1e}" for name, (error, torchs) in wrong.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_mean_over_more_steps_than_half_precision_can_count(dtype, device):
    """1/T is a number of either precision, T = 70000 is none of float16 (its largest is 65504)."""
    o = normal(seeded(6), 70000, 1, 3).to(device, dtype).requires_grad_()
    y = torch.randint(3, (70000, 1), generator=seeded(7)).to(device)
    loss = softmax_cross_entropy(o, y, time="mean")
    truth = F.cross_entropy(o.double().flatten(0, 1), y.flatten())
    assert_close("loss", loss, truth, 4 * torch.finfo(dtype).eps)


def test_rnn_runs_in_half_precision_throughout(device):
    """A silent detour over float32 would cost the memory that half precision saves."""
    problem = make_problem().to(device).to(torch.bfloat16)
    U, W, b = (problem.parameters[name] for name in "UWb")
    assert rnn(problem.x, problem.h0, U, W, b).dtype == torch.bfloat16


def test_a_squared_error_whose_square_float16_cannot_hold(device):
    o = torch.zeros(4, 2, 3, dtype=torch.float16, device=device)
    o[1, 0, 2] = 300.0  # its square is above float16's largest, 65504; its mean over time and batch is not
    loss = squared_error(o, torch.zeros_like(o), time="mean", batch="mean")
    assert loss.dtype == torch.float16
    assert loss.item() == torch.tensor(300.0**2 / 2 / (4 * 2)).half().item()
