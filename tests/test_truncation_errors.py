"""The bias and the scatter of truncated gradients are those of gradients computed elsewhere.

Would catch: a bias against something other than the full gradient, a deviation of the wrong denominator, the readout's
parameters among those compared (they would make every error look smaller), a network that is changed while it is
compared, or dropout that is taken for scatter.
"""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from problems import normal, seeded
from torch import Tensor, nn

from manual_bptt import RNN, ElmanNetwork, chunked, full, randomized, truncation_errors, windowed
from torch_reference.truncated import truncated_states

T, B, D, H, K = 6, 3, 4, 5, 2


def drawn() -> tuple[ElmanNetwork, Tensor, Tensor]:
    torch.manual_seed(0)
    network = ElmanNetwork(D, H, K, dtype=torch.float64)
    with torch.no_grad():
        network.W.mul_(2)
    return network, normal(seeded(1), T, B, D), normal(seeded(2), T, B, K)


def by_detaching(network: ElmanNetwork, x: Tensor, weights: Tensor, **told: object) -> Tensor:
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
        assert each.cosine == pytest.approx(torch.cosine_similarity(wrong, exact, 0).item(), rel=1e-12)
        assert each.deviation == each.bias_error == 0
        assert each.error == each.bias
    assert found[0].bias > 0.05
    assert found[2].bias == 0


def test_deviation_is_that_of_all_draws():
    network, x, weights = drawn()
    p = 0.7
    exact = by_detaching(network, x, weights)
    variance = 0.0
    for kept in product([0, 1], repeat=T - 1):
        wrong = by_detaching(network, x, weights, xi=[1.0, *(each / p for each in kept)])
        share = math.prod(p if each else 1 - p for each in kept)
        variance += share * (wrong - exact).square().sum().item()
    [found] = truncation_errors(network, x, [randomized(p, seeded(3))], lambda o: (o * weights).sum(), draws=3000)
    assert found.deviation == pytest.approx(math.sqrt(variance) / exact.norm().item(), rel=0.05)
    assert found.bias_error == pytest.approx(found.deviation / math.sqrt(3000))
    assert found.bias < 3 * found.bias_error
    assert found.error == pytest.approx(found.deviation, rel=0.01)


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
        ({"truncations": [3]}, TypeError, "expected truncation to be None or made by full, chunked, windowed or rand"),
        ({"loss": lambda output: output}, ValueError, "expected loss to return a loss without dimensions, got (6, 3,"),
        ({"loss": lambda output: 0 * output.sum()}, ValueError, "expected a full gradient that is finite and not zero"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    options = {"network": RNN(D, H), "x": torch.randn(T, B, D), "truncations": [chunked(2)], **change}
    with pytest.raises(error) as caught:
        truncation_errors(options.pop("network"), options.pop("x"), **options)
    assert str(caught.value).startswith(f"truncation_errors: {message}")
