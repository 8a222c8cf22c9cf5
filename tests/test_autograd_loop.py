"""Witness 1: autograd on the plain loop, for every gradient and every intermediate, in float64 and float32.

Would catch: any wrong equation of F1-F5 and B1-B8, at any size, for any nonlinearity, loss and kind of target; a
gradient that is right only for one kind of upstream gradient; a buffer that is read before it is written; a path
(functions, the differentiable loop, ElmanNetwork, bptt()) that has drifted away from the others; wrong intermediates
of bptt(). It shares no derivative with the code under test, but it does share torch's operators and autograd.
"""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from problems import (
    GENERAL,
    LOSSES,
    NONLINEARITIES,
    SIZES,
    TOLERANCE,
    WAYS,
    Problem,
    assert_all_close,
    assert_close,
    by_bptt,
    by_functions,
    gradient_names,
    leaves,
    make_problem,
    normal,
    relative_error,
    seeded,
    truth_of,
)
from torch import Tensor

import torch_reference
from manual_bptt import bptt, kernels, readout, rnn, softmax_cross_entropy, squared_error

pytestmark = pytest.mark.usefixtures("poisoned_memory")

INTERMEDIATES = {"loss", "a", "h", "o", "y_hat", "do", "dh", "da"}

each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
each_way = pytest.mark.parametrize("way", list(WAYS))
each_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)


def agrees(problem: Problem, way: str, device: torch.device, dtype: torch.dtype) -> None:
    """Compare everything that one way of computing returns with the plain loop in float64."""
    problem = problem.to(device).to(dtype)
    actual, truth = WAYS[way](problem), truth_of(problem)
    expected = gradient_names(problem) | ({"dh0"} if way == "bptt" else set())
    assert actual.keys() >= expected | (INTERMEDIATES if way == "bptt" else {"loss", "h", "o", "do"})
    for name, value in actual.items():
        assert value.dtype == dtype, name
        assert value.device == problem.x.device, name
    assert_all_close(actual, truth, TOLERANCE[dtype])


@each_dtype
@each_way
@each_nonlinearity
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_every_gradient_at_every_size(sizes, nonlinearity, way, device, dtype):
    agrees(make_problem(sizes, nonlinearity=nonlinearity), way, device, dtype)


@each_dtype
@pytest.mark.parametrize("sizes", ["K=1", "H=1", "all-ones"])
@pytest.mark.parametrize("way", ["functions", "bptt"])
def test_squared_error_at_sizes_where_the_softmax_says_little(way, sizes, device, dtype):
    agrees(make_problem(SIZES[sizes], kind="squared-error"), way, device, dtype)


@each_dtype
@pytest.mark.parametrize("biases", ["bc", "b", "c", ""], ids=["b-and-c", "b", "c", "no-bias"])
@pytest.mark.parametrize("with_h0", [True, False], ids=["h0", "no-h0"])
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("way", ["functions", "create_graph", "bptt"])
def test_every_optional_argument(way, tokens, with_h0, biases, device, dtype):
    agrees(make_problem(tokens=tokens, with_h0=with_h0, biases=biases), way, device, dtype)


@each_dtype
@pytest.mark.parametrize("batch", ["sum", "mean"])
@pytest.mark.parametrize("time", ["sum", "mean", "last"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("way", ["functions", "bptt"])
def test_every_loss(way, kind, time, batch, device, dtype):
    agrees(make_problem(kind=kind, time=time, batch=batch), way, device, dtype)


@each_way
@pytest.mark.parametrize("time", ["sum", "mean", "last"])
def test_nothing_counts(way, time, device):
    problem = make_problem(time=time)
    problem.targets.fill_(-100)
    agrees(problem, way, device, torch.float64)
    assert all(value.count_nonzero() == 0 for name, value in WAYS[way](problem).items() if name.startswith("d"))


@each_nonlinearity
@pytest.mark.parametrize("kind", ["indices", "squared-error"])
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("time", ["mean", "last"])
@pytest.mark.parametrize("way", WAYS)
def test_without_a_batch(way, time, tokens, kind, nonlinearity, device):
    batched = make_problem(GENERAL._replace(B=1), nonlinearity=nonlinearity, kind=kind, time=time, tokens=tokens).to(
        device
    )
    single = Problem(
        batched.parameters,
        batched.x[:, 0],
        batched.targets[0] if time == "last" else batched.targets[:, 0],
        batched.h0[0],
        batched.options,
    )
    actual, truth = WAYS[way](single), truth_of(batched)
    per_step = {"a", "h", "o", "y_hat", "do", "dh", "da", "dx"}
    truth = {name: value.squeeze(1) if name in per_step else value for name, value in truth.items()}
    truth["dh0"] = truth["dh0"].squeeze(0)
    assert_all_close(actual, truth, TOLERANCE[torch.float64])


@pytest.mark.parametrize("way", ["functions", "bptt"])
@pytest.mark.parametrize("integers", [torch.int64, torch.int32], ids=["int64", "int32"])
def test_tokens_are_one_hot_vectors(integers, way, device):
    problem = make_problem(tokens=True).to(device)
    vectors = Problem(**{**vars(problem), "x": F.one_hot(problem.x, GENERAL.D).double()})
    tokens = Problem(**{**vars(problem), "x": problem.x.to(integers)})
    assert problem.x.unique().numel() < problem.x.numel(), "no token comes twice"
    actual, truth = WAYS[way](tokens), truth_of(vectors)
    assert "dx" not in actual
    assert {"dU", "dW", "db", "dh0"} <= actual.keys()
    assert_all_close(actual, truth, TOLERANCE[torch.float64])


def looped_states(named: Mapping[str, Tensor], nonlinearity: str) -> Tensor:
    """Run the plain loop and stack its states."""
    H = named["W"].shape[0]
    parameters = {"U": named["U"], "W": named["W"], "b": named["b"], "V": named["W"].new_zeros(1, H)}
    return torch.stack(torch_reference.unrolled(parameters, named["x"], named["h0"], nonlinearity).h)


@each_dtype
@each_nonlinearity
@pytest.mark.parametrize("create_graph", [False, True], ids=["fast", "differentiable"])
@pytest.mark.parametrize("through", ["all-states", "last-state", "both"])
def test_rnn_under_random_upstream_gradients(through, create_graph, nonlinearity, device, dtype):
    T, B, _, H, _ = GENERAL
    problem = make_problem(nonlinearity=nonlinearity).to(device).to(dtype)
    generator = seeded(1)
    G, g = (normal(generator, *shape).to(device, dtype) for shape in ((T, B, H), (B, H)))
    named = {name: problem.tensors()[name] for name in ("x", "h0", "U", "W", "b")}

    def solve(named: Mapping[str, Tensor], states: Tensor) -> dict[str, Tensor]:
        reached = {"all-states": ([states], [G]), "last-state": ([states[-1]], [g])}
        reached["both"] = ([states, states[-1]], [G, g])
        outputs, upstream = reached[through]
        upstream = [gradient.to(states.dtype) for gradient in upstream]
        found = torch.autograd.grad(outputs, list(named.values()), upstream, create_graph=create_graph)
        return {"h": states} | {"d" + name: value for name, value in zip(named, found, strict=True)}

    mine = leaves(named)
    actual = solve(mine, rnn(mine["x"], mine["h0"], mine["U"], mine["W"], mine["b"], nonlinearity))
    exact = leaves({name: tensor.double() for name, tensor in named.items()})
    assert_all_close(actual, solve(exact, looped_states(exact, nonlinearity)), TOLERANCE[dtype])


@each_dtype
@pytest.mark.parametrize("shape", [(7,), (3, 7), (5, 3, 7), (2, 5, 3, 7)], ids=str)
@pytest.mark.parametrize("with_c", [True, False], ids=["c", "no-c"])
def test_readout_under_random_upstream_gradients(with_c, shape, device, dtype):
    generator = seeded(2)
    named = {"h": normal(generator, *shape), "V": normal(generator, 6, 7)}
    if with_c:
        named["c"] = normal(generator, 6)
    named = {name: tensor.to(device, dtype) for name, tensor in named.items()}
    G = normal(generator, *shape[:-1], 6).to(device, dtype)
    mine, exact = leaves(named), leaves({name: tensor.double() for name, tensor in named.items()})
    o, o_exact = readout(**mine), F.linear(exact["h"], exact["V"], exact.get("c"))
    found = torch.autograd.grad(o, list(mine.values()), G)
    found_exact = torch.autograd.grad(o_exact, list(exact.values()), G.double())
    assert_close("o", o, o_exact, TOLERANCE[dtype])
    assert_all_close(
        {"d" + name: value for name, value in zip(mine, found, strict=True)},
        {"d" + name: value for name, value in zip(exact, found_exact, strict=True)},
        TOLERANCE[dtype],
    )


@each_dtype
@pytest.mark.parametrize("time", ["sum", "mean", "last"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_losses_under_a_random_upstream_gradient_and_with_respect_to_targets(loss, time, device, dtype):
    problem = make_problem(kind="unnormalised", time=time, batch="mean").to(device).to(dtype)
    o = normal(seeded(3), GENERAL.T, GENERAL.B, GENERAL.K).to(device, dtype)
    upstream = torch.tensor(-1.7, device=device, dtype=dtype)
    mine, exact = leaves({"o": o, "y": problem.targets}), leaves({"o": o.double(), "y": problem.targets.double()})
    function = softmax_cross_entropy if loss == "cross_entropy" else squared_error
    value = function(mine["o"], mine["y"], time=time, batch="mean")
    value_exact = torch_reference.sequence_loss(exact["o"], exact["y"], loss=loss, time=time, batch="mean")
    do, dy = torch.autograd.grad(value, [mine["o"], mine["y"]], upstream)
    do_exact, dy_exact = torch.autograd.grad(value_exact, [exact["o"], exact["y"]], upstream.double())
    assert_all_close(
        {"loss": value, "do": do, "dy": dy}, {"loss": value_exact, "do": do_exact, "dy": dy_exact}, TOLERANCE[dtype]
    )


@each_dtype
@pytest.mark.parametrize("kind", ["ignored", "soft", "squared-error"])
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@each_nonlinearity
def test_bptt_returns_the_numbers_of_the_functions(nonlinearity, tokens, kind, device, dtype):
    """One derivative, one place: not only close, the same bits (but dU for tokens, which CUDA adds in any order).

    In C the functions compute a recurrence whole, and bptt, which returns what is on the way, does not: only close.
    """
    problem = make_problem(nonlinearity=nonlinearity, kind=kind, tokens=tokens, time="mean").to(device).to(dtype)
    together = by_bptt(problem)
    for name, value in by_functions(problem).items():
        assert_close(name, together[name], value, TOLERANCE[dtype])
    with kernels.use("eager"):
        functions, together = by_functions(problem), by_bptt(problem)
    for name, value in functions.items():
        if name == "dU" and tokens and device.type == "cuda":
            assert_close(name, together[name], value, TOLERANCE[dtype])
        else:
            assert torch.equal(value, together[name]), f"{name}: {relative_error(together[name], value):.2e}"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@each_nonlinearity
def test_forward_without_grad_mode_returns_the_same_numbers(nonlinearity, tokens, mode, device):
    problem = make_problem(nonlinearity=nonlinearity, tokens=tokens).to(device)
    named = leaves(problem.tensors())
    arguments = [named[name] for name in ("x", "h0", "U", "W", "b")]
    h = rnn(*arguments, nonlinearity)
    with mode():
        h_alone = rnn(*arguments, nonlinearity)
        o_alone = readout(h_alone, named["V"], named["c"])
        loss_alone = softmax_cross_entropy(o_alone, named["targets"])
    assert torch.equal(h_alone, h)
    o = readout(h, named["V"], named["c"])
    assert torch.equal(o_alone, o)
    assert torch.equal(loss_alone, softmax_cross_entropy(o, named["targets"]))
    assert not any(alone.requires_grad for alone in (h_alone, o_alone, loss_alone))


def test_bptt_keeps_no_graph(device):
    problem = make_problem().to(device)
    named = leaves({**problem.parameters, "x": problem.x, "h0": problem.h0})
    parameters = {name: named[name] for name in problem.parameters}
    result = bptt(parameters, named["x"], problem.targets, named["h0"], **problem.options)
    assert not any(value.requires_grad for value in vars(result).values())
    assert all(tensor.grad is None for tensor in named.values())


def test_fields_of_bptt_share_no_memory(device):
    """Else whoever scales one in place changes another."""
    for nonlinearity in NONLINEARITIES:
        for kind in ("indices", "squared-error"):
            problem = make_problem(nonlinearity=nonlinearity, kind=kind).to(device)
            tensors = [*by_bptt(problem).values(), *problem.tensors().values()]
            assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def test_poisoned_memory_is_poisoned():
    assert torch.empty(2, 3).isnan().all()
    assert torch.empty_like(torch.zeros(3)).isnan().all()
    assert torch.zeros(3).new_empty(2).isnan().all()
    assert torch.empty(2, dtype=torch.int64).shape == (2,)
