"""ElmanNetwork as a module, and BPTTResult as something to look at.

Would catch: parameters that are missing, renamed, reordered or drawn from another range, a state_dict that does not
come back, settings that a copy loses, a bias that appears where none was asked for, a network that does not learn,
a result that can be changed by accident or does not say what it holds.
"""

import copy
import dataclasses
import io
import itertools
import pickle

import pytest
import torch
from problems import GENERAL, NONLINEARITIES, TOLERANCE, assert_close, by_bptt, make_problem, seeded
from torch import nn

from manual_bptt import BPTTResult, ElmanNetwork, bptt, readout, rnn, softmax_cross_entropy, squared_error

T, B, D, H, K = GENERAL
FIELDS = ["loss", "a", "h", "o", "y_hat", "do", "dh", "da", "dU", "dW", "dV", "db", "dc", "dx", "dh0"]
SHAPES = {"U": (H, D), "W": (H, H), "V": (K, H), "b": (H,), "c": (K,)}
EXACT = TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parameters_by_the_letters_of_the_equations(dtype, device):
    network = ElmanNetwork(D, H, K, device=device, dtype=dtype)
    assert {name: tuple(parameter.shape) for name, parameter in network.named_parameters()} == SHAPES
    assert [name for name, _ in network.named_parameters()] == ["U", "W", "V", "b", "c"]
    assert list(network.state_dict()) == ["U", "W", "V", "b", "c"]
    for parameter in network.parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.requires_grad
        assert (parameter.dtype, parameter.device.type) == (dtype, device.type)


def test_without_bias():
    network = ElmanNetwork(D, H, K, bias=False)
    assert [name for name, _ in network.named_parameters()] == ["U", "W", "V"]
    assert list(network.state_dict()) == ["U", "W", "V"]
    assert network.b is None
    assert network.c is None
    x = torch.randn(T, B, D, generator=seeded(0))
    o, h = network(x)
    assert torch.equal(h, rnn(x, None, network.U, network.W))
    assert torch.equal(o, readout(h, network.V))


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_forward_is_rnn_and_readout(nonlinearity, device):
    problem = make_problem(nonlinearity=nonlinearity).to(device)
    network = ElmanNetwork(D, H, K, nonlinearity, device=device, dtype=torch.float64)
    network.load_state_dict(problem.parameters)
    o, h = network(problem.x, problem.h0)
    expected = rnn(problem.x, problem.h0, network.U, network.W, network.b, nonlinearity)
    assert torch.equal(h, expected)
    assert torch.equal(o, readout(expected, network.V, network.c))
    assert (o.shape, h.shape) == ((T, B, K), (T, B, H))


def test_single_sequences_and_tokens():
    network = ElmanNetwork(D, H, K)
    tokens = torch.randint(D, (T, B), generator=seeded(1))
    o, h = network(tokens)
    o_single, h_single = network(tokens[:, 1], torch.zeros(H))
    assert (o_single.shape, h_single.shape) == ((T, K), (T, H))
    torch.testing.assert_close((o_single, h_single), (o[:, 1], h[:, 1]))


def test_parameters_are_drawn_as_nn_rnn_draws_them():
    torch.manual_seed(0)
    network = ElmanNetwork(100, 400, 50)
    bound = 400**-0.5
    for name, parameter in network.named_parameters():
        assert parameter.abs().max() <= bound, name
        assert parameter.abs().max() > 0.97 * bound, name
        assert abs(parameter.mean()) < 4 * bound / (3 * parameter.numel()) ** 0.5, name
        assert abs(parameter.std() / (bound / 3**0.5) - 1) < 0.1, name


def test_the_seed_decides_and_reset_draws_anew():
    def drawn(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [parameter.detach().clone() for parameter in ElmanNetwork(D, H, K).parameters()]

    def equal(ones: list[torch.Tensor], others: list[torch.Tensor]) -> list[bool]:
        return [torch.equal(one, other) for one, other in zip(ones, others, strict=True)]

    assert all(equal(drawn(0), drawn(0)))
    assert not any(equal(drawn(0), drawn(1)))
    torch.manual_seed(0)
    network = ElmanNetwork(D, H, K)
    network.reset_parameters()
    assert not any(equal(drawn(0), list(network.parameters())))


def test_state_dict_comes_back():
    network, other = ElmanNetwork(D, H, K), ElmanNetwork(D, H, K)
    memory = io.BytesIO()
    torch.save(network.state_dict(), memory)
    memory.seek(0)
    other.load_state_dict(torch.load(memory, weights_only=True))
    x = torch.randn(T, B, D, generator=seeded(2))
    assert torch.equal(network(x)[0], other(x)[0])
    with pytest.raises(RuntimeError, match=r'Missing key.*"b", "c"'):
        other.load_state_dict(ElmanNetwork(D, H, K, bias=False).state_dict())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.parametrize("bias", [True, False])
def test_a_copy_has_everything_and_shares_nothing(bias, again):
    network = ElmanNetwork(D, H, K, "relu", bias=bias)
    other = again(network)
    x = torch.randn(T, B, D, generator=seeded(3))
    assert repr(other) == repr(network)
    before = network(x)[0]
    assert torch.equal(other(x)[0], before)
    with torch.no_grad():
        other.W.zero_()
    assert torch.equal(network(x)[0], before)
    assert not torch.equal(other(x)[0], before)


def test_to_another_dtype():
    network = ElmanNetwork(D, H, K).double()
    o, h = network(torch.randn(T, B, D, generator=seeded(4), dtype=torch.float64))
    assert o.dtype == h.dtype == torch.float64


def test_repr_is_the_constructor():
    assert repr(ElmanNetwork(4, 7, 6)) == "ElmanNetwork(4, 7, 6, nonlinearity='tanh')"
    expected = "ElmanNetwork(4, 7, 6, nonlinearity='sigmoid', bias=False)"
    assert repr(ElmanNetwork(4, 7, 6, "sigmoid", bias=False)) == expected
    assert repr(eval(expected, {"ElmanNetwork": ElmanNetwork})) == expected


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_gradient_descent_lowers_the_loss(loss, nonlinearity, device):
    torch.manual_seed(0)
    network = ElmanNetwork(D, H, K, nonlinearity, device=device)
    problem = make_problem(kind="indices" if loss == "cross_entropy" else "squared-error").to(device)
    problem = problem.to(torch.float32)
    function = softmax_cross_entropy if loss == "cross_entropy" else squared_error
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        o, _ = network(problem.x)
        value = function(o, problem.targets, time="mean", batch="mean")
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses


def test_bptt_takes_named_parameters_and_gives_what_backward_gives(device):
    torch.manual_seed(1)
    network = ElmanNetwork(D, H, K, device=device, dtype=torch.float64)
    problem = make_problem().to(device)
    o, _ = network(problem.x, problem.h0)
    softmax_cross_entropy(o, problem.targets).backward()
    result = bptt(dict(network.named_parameters()), problem.x, problem.targets, problem.h0)
    for name, parameter in network.named_parameters():
        assert_close("d" + name, getattr(result, "d" + name), parameter.grad, EXACT)


def test_a_step_along_the_gradients_of_bptt_lowers_its_loss():
    problem = make_problem()
    result = bptt(problem.parameters, problem.x, problem.targets)
    stepped = {name: tensor - 0.01 * getattr(result, "d" + name) for name, tensor in problem.parameters.items()}
    assert bptt(stepped, problem.x, problem.targets).loss < result.loss


def test_defaults_of_bptt():
    problem = make_problem()
    named = {"nonlinearity": "tanh", "loss": "cross_entropy", "time": "sum", "batch": "sum", "ignore_index": -100}
    default = bptt(problem.parameters, problem.x, problem.targets)
    assert default.loss == bptt(problem.parameters, problem.x, problem.targets, None, **named).loss
    assert default.loss == bptt(problem.parameters, problem.x, problem.targets, torch.zeros_like(problem.h0)).loss


def test_fields_of_the_result():
    assert [field.name for field in dataclasses.fields(BPTTResult)] == FIELDS
    problem = make_problem()
    actual = by_bptt(problem)
    states, outputs = (T, B, H), (T, B, K)
    assert {name: tuple(value.shape) for name, value in actual.items()} == {
        "loss": (),
        **dict.fromkeys(("a", "h", "dh", "da"), states),
        **dict.fromkeys(("o", "y_hat", "do"), outputs),
        **{"d" + name: shape for name, shape in SHAPES.items()},
        "dx": (T, B, D),
        "dh0": (B, H),
    }


def test_what_does_not_exist_is_none():
    problem = make_problem(tokens=True, biases="")
    result = bptt(problem.parameters, problem.x, problem.targets)
    assert (result.dx, result.db, result.dc) == (None, None, None)
    assert result.dh0.shape == (B, H)
    assert "dx" not in repr(result)
    assert "db" not in repr(result)


def test_the_result_is_frozen():
    problem = make_problem()
    result = bptt(problem.parameters, problem.x, problem.targets)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.dW = result.dU
    assert result == result  # by identity: a comparison of tensors has no single truth
    assert hash(result) == hash(result)


def test_repr_of_the_result():
    problem = make_problem()
    result = bptt(problem.parameters, problem.x, problem.targets, problem.h0)
    first, header, *lines = repr(result).splitlines()
    assert first == f"BPTTResult: loss = {result.loss.item():.6g}"
    assert header.split() == ["name", "shape", "norm"]
    assert [line.split()[0] for line in lines] == FIELDS[1:]
    (dW,) = (line for line in lines if line.split()[0] == "dW")
    assert dW.split() == ["dW", "(7,", "7)", f"{result.dW.norm().item():.6g}"]
    assert str(result) == repr(result)
