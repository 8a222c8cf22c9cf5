"""The bias and the scatter of truncated gradients are those of gradients computed elsewhere.

Would catch: a bias against something other than the full gradient, a deviation of the wrong denominator, the readout's
parameters among those compared (they would make every error look smaller), a run that is cut off or weighted wrong
in the exact variance, draws that are trusted although they missed what counts, a network that is changed while it is
compared, or dropout that is taken for scatter.
"""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
from problems import normal, seeded
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from manual_bptt import RNN, ElmanNetwork, Truncation, chunked, full, randomized, truncation_errors, windowed
from torch_reference.truncated import truncated_states

T, B, D, H, K = 6, 3, 4, 5, 2


def drawn() -> tuple[ElmanNetwork, Tensor, Tensor]:
    torch.manual_seed(0)
    network = ElmanNetwork(D, H, K, dtype=torch.float64)
    with torch.no_grad():
        network.W.mul_(2)
    return network, normal(seeded(1), T, B, D), normal(seeded(2), T, B, K)


def by_detaching(network: ElmanNetwork, x: Tensor, weights: Tensor, **told: Any) -> Tensor:
    """dU, dW and db in one row, by autograd of the loop with detached states."""
    parameters = {name: value.detach().requires_grad_() for name, value in network.named_parameters()}
    copies = truncated_states(parameters, x, torch.zeros(B, H, dtype=x.dtype), **told)
    loss = sum((states[-1] @ network.V.detach().T * weights[s]).sum() for s, states in enumerate(copies))
    found = torch.autograd.grad(loss, [parameters[name] for name in "UWb"])
    return torch.cat([each.flatten() for each in found])


def test_bias_is_the_distance_to_the_full_gradient():
    network, x, weights = drawn()
    told = {chunked(2): {"xi": [1, 1, 0, 1, 0, 1]}, windowed(2): {"window": 2}, full(): {}}
    exact = by_detaching(network, x, weights)
    found = truncation_errors(network, x, list(told), lambda o: (o * weights).sum())
    for each, (truncation, how) in zip(found, told.items(), strict=True):
        wrong = by_detaching(network, x, weights, **how)
        assert each.truncation is truncation
        assert each.bias == pytest.approx(((wrong - exact).norm() / exact.norm()).item(), rel=1e-10, abs=1e-15)
        assert each.deviation == each.draws == 0
        assert each.error == each.bias
        assert each.is_seen
    assert found[0].bias > 0.05
    assert found[2].bias == 0


def every_draw(p: float) -> list[tuple[float, list[float]]]:
    """Every ξ_1 … ξ_T with its probability."""
    return [
        (math.prod(p if each else 1 - p for each in kept), [1.0, *(each / p for each in kept)])
        for kept in product([0, 1], repeat=T - 1)
    ]


@pytest.mark.parametrize("p", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("explodes", [False, True])
def test_the_deviation_is_that_of_all_draws(p: float, explodes: bool):
    network, x, weights = drawn()
    if explodes:
        network.nonlinearity = "identity"
        with torch.no_grad():
            network.W.mul_(4)
    exact = by_detaching(network, x, weights, nonlinearity=network.nonlinearity)
    variance = 0.0
    for share, xi in every_draw(p):
        wrong = by_detaching(network, x, weights, nonlinearity=network.nonlinearity, xi=xi)
        variance += share * (wrong - exact).square().sum().item()
    [found] = truncation_errors(network, x, [randomized(p)], lambda o: (o * weights).sum())
    assert found.deviation == pytest.approx(math.sqrt(variance) / exact.norm().item(), rel=1e-10, abs=1e-7)
    assert found.bias == found.draws == 0
    assert found.error == found.deviation


def module_gradient(module: RNN, x: Tensor, weights: Tensor, hx: Tensor, lengths: list[int]) -> Tensor:
    output = module(x, hx, lengths=lengths)[0]
    found = torch.autograd.grad((output * weights).sum(), list(module.parameters()))
    return torch.cat([each.flatten() for each in found])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_the_deviation_in_both_directions_with_lengths_and_a_first_state(bias: bool, packed: bool):
    torch.manual_seed(0)
    module = RNN(D, H, nonlinearity="sigmoid", bias=bias, bidirectional=True, dtype=torch.float64)
    x, weights, hx = normal(seeded(1), T, B, D), normal(seeded(2), T, B, 2 * H), normal(seeded(3), 2, B, H)
    lengths, p = [3, T, 4], 0.6
    exact = module_gradient(module, x, weights, hx, lengths)
    half = len(exact) // 2
    variance = 0.0
    for share, xi in every_draw(p):
        module.truncation = Truncation("given", lambda steps, xi=xi: xi[:steps])
        wrong = module_gradient(module, x, weights, hx, lengths)
        # the two directions draw apart from one another, and share no parameter
        variance += share * ((wrong - exact)[:half].square().sum() + (wrong - exact)[half:].square().sum()).item()
    module.truncation = None
    given = {"x": pack_padded_sequence(x, lengths, enforce_sorted=False)} if packed else {"x": x, "lengths": lengths}

    def loss(output: Any) -> Tensor:
        dense = pad_packed_sequence(output)[0] if packed else output
        return (dense * weights).sum()

    if packed:
        [found] = truncation_errors(module, truncations=[randomized(p)], loss=loss, hx=hx, **given)
    else:
        with pytest.warns(UserWarning, match="the loss reads the output after a sequence's end"):
            [found] = truncation_errors(module, truncations=[randomized(p)], loss=loss, hx=hx, **given)
    assert found.deviation == pytest.approx(math.sqrt(variance) / exact.norm().item(), rel=1e-10)


def test_in_a_stack_it_is_drawn():
    torch.manual_seed(0)
    module = RNN(D, H, num_layers=2, dtype=torch.float64)
    x, weights = normal(seeded(1), 3, B, D), normal(seeded(2), 3, B, H)
    p = 0.6

    def gradient() -> Tensor:
        found = torch.autograd.grad((module(x)[0] * weights).sum(), list(module.parameters()))
        return torch.cat([each.flatten() for each in found])

    exact = gradient()
    variance = 0.0
    for kept in product([0, 1], repeat=4):  # ξ_2, ξ_3 of either layer
        draws = iter([[1.0, kept[0] / p, kept[1] / p], [1.0, kept[2] / p, kept[3] / p]])
        module.truncation = Truncation("given", lambda steps, draws=draws: next(draws))
        share = math.prod(p if each else 1 - p for each in kept)
        variance += share * (gradient() - exact).square().sum().item()
    module.truncation = None
    [found] = truncation_errors(module, x, [randomized(p, seeded(3))], lambda o: (o * weights).sum(), draws=3000)
    assert found.draws == 3000
    assert found.deviation == pytest.approx(math.sqrt(variance) / exact.norm().item(), rel=0.05)
    assert found.is_seen
    assert 0 < found.bias < 0.05


def test_draws_that_miss_the_rare_ones_are_not_trusted():
    module = RNN(1, 1, num_layers=2, nonlinearity="identity", dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(1.5 if name.startswith("weight_hh") else 1.0)
    [found] = truncation_errors(
        module, torch.ones(40, 1, 1, dtype=torch.float64), [randomized(0.5, seeded(0))], lambda o: o[-1].sum(), draws=50
    )
    assert found.bias > 0.5
    assert not found.is_seen


@pytest.mark.parametrize("module", [RNN, nn.RNN])
def test_a_module_is_left_as_it_was_and_runs_without_dropout(module):
    torch.manual_seed(0)
    model = module(D, H, num_layers=2, bidirectional=True, dropout=0.5, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    x = normal(seeded(1), T, B, D)
    found = truncation_errors(model, x, [full(), chunked(1)], lengths=[6, 3, 0])
    assert found[0].bias == 0
    assert found[1].bias > 0.01
    assert type(model) is module
    assert model.training
    assert getattr(model, "truncation", None) is None
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"network": nn.LSTM(D, H)}, TypeError, "expected network to be a manual_bptt.RNN, torch.nn.RNN or ElmanNet"),
        ({"x": torch.zeros(1, B, D)}, ValueError, "expected at least 2 steps, got T = 1 in (1, 3, 4)"),
        ({"draws": 1}, ValueError, "expected draws of at least 2, got 1"),
        ({"draws": 2.0}, TypeError, "expected draws to be an int, got float"),
        ({"truncations": chunked(2)}, TypeError, "expected truncations to be a list of them, got one"),
        ({"truncations": [3]}, TypeError, "expected truncation to be None or made by full, chunked, windowed or rand"),
        ({"loss": lambda output: output}, ValueError, "expected loss to return a loss without dimensions, got (6, 3,"),
        ({"loss": lambda output: 0 * output.sum()}, ValueError, "expected a full gradient that is not zero, got 0"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    options = {"network": RNN(D, H), "x": torch.randn(T, B, D), "truncations": [chunked(2)], **change}
    with pytest.raises(error) as caught:
        truncation_errors(options.pop("network"), options.pop("x"), **options)
    assert str(caught.value).startswith(f"truncation_errors: {message}")
