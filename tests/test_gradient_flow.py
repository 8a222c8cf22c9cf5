"""What gradient_flow measures is what autograd gives, loss by loss and step by step, and stays within the bounds.

Would catch: a lag that is off by one, a sum that is not dL/dh_t, a Jacobian of the wrong step or transposed, a gain
that is compared with the wrong loss, a bound that a network crosses, a rate that is not the eigenvalue's in a linear
network; a verdict that the numbers do not bear out; a network that is changed, or truncated, while it is looked at.
"""

import copy
import math
from typing import Any

import pytest
import torch
from problems import NONLINEARITIES, normal, seeded
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from manual_bptt import RNN, ElmanNetwork, chunked, gradient_flow, record_gradients
from torch_reference import linear_closed_form, unrolled

T, B, D, H, K = 7, 3, 4, 5, 2


def network(nonlinearity: str = "tanh", **options: int) -> tuple[ElmanNetwork, Tensor]:
    torch.manual_seed(0)
    made = ElmanNetwork(D, H, K, nonlinearity, dtype=torch.float64)
    with torch.no_grad():
        made.W.mul_(2)
    return made, normal(seeded(1), T, B, D)


def orthogonal(radius: float, size: int = H) -> Tensor:
    """A matrix whose eigenvalues and singular values all are this large."""
    return radius * torch.linalg.qr(normal(seeded(3), size, size)).Q


def loops(made: ElmanNetwork, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    steps = unrolled(
        {name: p.detach() for name, p in made.named_parameters()}, x.requires_grad_(), None, made.nonlinearity
    )
    return steps.h, steps.o


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_every_share_is_that_of_autograd_for_the_loss_of_one_step(nonlinearity):
    made, x = network(nonlinearity)
    weights = normal(seeded(2), T, B, K)
    flow = gradient_flow(made, x, lambda o: (o * weights).sum())["l0"]
    h, o = loops(made, x.clone())
    total = torch.autograd.grad(sum((a * w).sum() for a, w in zip(o, weights, strict=True)), h, retain_graph=True)
    torch.testing.assert_close(flow.dh, torch.stack([each.norm() for each in total]), rtol=1e-12, atol=1e-12)
    for s in range(T):
        found = torch.autograd.grad((o[s] * weights[s]).sum(), h, retain_graph=True, allow_unused=True)
        for t, each in enumerate(found):
            wanted = 0.0 if each is None else each.norm().item()
            assert flow.by_step[s, t].item() == pytest.approx(wanted, rel=1e-12, abs=1e-14)
        entered = (weights[s] @ made.V.detach()).norm()
        torch.testing.assert_close(flow.outside[s], entered, rtol=1e-12, atol=0)
    for lag in range(T):
        gain = flow.by_step.diagonal(-lag).norm() / flow.outside[lag:].norm()
        torch.testing.assert_close(flow.by_lag[lag], gain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_no_gain_crosses_its_bound(nonlinearity):
    made, _ = network(nonlinearity)
    for seed in range(10):
        with torch.no_grad():
            made.W.copy_(normal(seeded(seed), H, H, scale=0.2 + 0.3 * seed))
        flow = gradient_flow(made, normal(seeded(50 + seed), 20, B, D))["l0"]
        assert (flow.by_lag <= flow.bounds * (1 + 1e-12)).all()
        assert (flow.by_lag >= flow.floors * (1 - 1e-12)).all()
        assert (flow.floors > 0).all() or nonlinearity == "relu"
        assert flow.sigma_max == pytest.approx(torch.linalg.svdvals(made.W.detach()).max().item())
        assert (flow.slopes <= flow.gamma + 1e-12).all()


def test_the_linear_network_is_its_closed_form():
    made, x = network("identity")
    do = normal(seeded(2), T, B, K)
    flow = gradient_flow(made, x, lambda o: (o * do).sum())["l0"]
    parameters = {name: parameter.detach().numpy() for name, parameter in made.named_parameters()}
    closed = torch.from_numpy(linear_closed_form(parameters, x.numpy(), do.numpy())["dh"])
    torch.testing.assert_close(flow.dh, closed.flatten(1).norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_rate_of_a_linear_network_is_its_largest_eigenvalue(seed):
    made, _ = network("identity")
    W = normal(seeded(seed), H, H)
    largest = torch.linalg.eigvals(W).abs().max().item()
    with torch.no_grad():
        made.W.copy_(W * 0.9 / largest)
    steps = 400
    last = torch.zeros(steps, B, K, dtype=torch.float64)
    last[-1] = 1.0
    flow = gradient_flow(made, normal(seeded(9), steps, B, D), lambda o: (o * last).sum())["l0"]
    gains = flow.by_step[-1].flip(0)  # by lag
    rate = (gains[300] / gains[200]) ** (1 / 100)  # complex pairs turn: over many steps
    assert rate.item() == pytest.approx(0.9, rel=0.01)
    assert flow.eigenvalues[0].abs().item() == pytest.approx(0.9)
    assert flow.rate == pytest.approx(0.9, rel=0.01)
    assert flow.verdict.startswith("vanishing: from lag ")


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_singular_values_are_those_of_the_jacobian(nonlinearity):
    made, x = network(nonlinearity)
    flow = gradient_flow(made, x, rows=2)["l0"]
    assert flow.singular_values.shape == (T, 2, H)
    parameters = {name: p.detach() for name, p in made.named_parameters()}
    with torch.no_grad():
        states = unrolled(parameters, x, None, nonlinearity).h
    for t in range(T):
        for row in range(2):

            def last(h: Tensor, t: int = t, row: int = row) -> Tensor:
                if t == T - 1:
                    return h
                return unrolled(parameters, x[t + 1 :, row : row + 1], h[None], nonlinearity).h[-1][0]

            wanted = torch.linalg.svdvals(jacobian(last, states[t][row]))
            torch.testing.assert_close(flow.singular_values[t, row], wanted, rtol=1e-9, atol=1e-12)


def test_lyapunov_exponents():
    made, _ = network("identity")
    moduli = torch.tensor([1.5, 0.9, 0.5, 0.2, 0.1], dtype=torch.float64)
    W = torch.diag(moduli) + normal(seeded(0), H, H, scale=0.05).triu(1)
    with torch.no_grad():
        made.W.copy_(W)
    x = normal(seeded(1), 60, B, D)
    flow = gradient_flow(made, x)["l0"]
    torch.testing.assert_close(flow.lyapunov, moduli.log(), rtol=0, atol=0.02)
    contracting, x = network("tanh")
    with torch.no_grad():
        contracting.W.copy_(orthogonal(0.5))
    assert gradient_flow(contracting, x)["l0"].lyapunov[0] < math.log(0.5)


@pytest.mark.parametrize(
    ("radius", "word"),
    [(0.5, "vanishing"), (0.9, "vanishing"), (1.0, "neither"), (1.1, "exploding"), (1.5, "exploding")],
)
def test_the_verdict_says_what_the_numbers_say(radius, word):
    made, _ = network("identity")
    with torch.no_grad():
        made.W.copy_(orthogonal(radius))
    flow = gradient_flow(made, normal(seeded(1), 80, B, D))["l0"]
    assert flow.verdict.startswith(word)
    assert flow.rate == pytest.approx(radius, rel=1e-6)
    torch.testing.assert_close(flow.by_lag, flow.bounds, rtol=1e-9, atol=0)  # all singular values alike: attained
    torch.testing.assert_close(flow.by_lag, flow.floors, rtol=1e-9, atol=0)
    if word == "neither":
        assert flow.verdict == "neither vanishing nor exploding up to lag 79 (×1 a step)"
    else:
        first = int(flow.verdict.split("lag ")[1].split(" ")[0])
        assert first == math.floor(math.log(100) / abs(math.log(radius))) + 1
    assert word in repr(flow)


def test_a_loss_that_no_later_step_has_shows_no_lag():
    made, x = network()
    first = torch.zeros(T, B, K, dtype=torch.float64)
    first[0] = 1.0
    flow = gradient_flow(made, x, lambda o: (o * first).sum())["l0"]
    assert flow.by_lag.isnan().tolist() == [False, *[True] * (T - 1)]
    assert flow.verdict == "neither vanishing nor exploding up to lag 0 (no lag can be seen)"


def test_saturation():
    made, x = network()
    with torch.no_grad():
        made.b.zero_()
    quiet = gradient_flow(made, 1e-3 * x)["l0"]
    loud = gradient_flow(made, 1e3 * x)["l0"]
    assert quiet.saturated.max() == 0
    assert quiet.slopes.min() > 0.8
    assert loud.saturated.min() > 0.9
    assert loud.slopes.max() < 0.1


@pytest.mark.parametrize("module", [RNN, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_and_directions_are_those_that_the_module_records(module, batch_first):
    torch.manual_seed(0)
    model = module(D, H, num_layers=2, bidirectional=True, batch_first=batch_first, dropout=0.5, dtype=torch.float64)
    x = normal(seeded(1), *((B, T) if batch_first else (T, B)), D)
    hx = normal(seeded(2), 4, B, H)
    weights = normal(seeded(3), *x.shape[:2], 2 * H)
    flow = gradient_flow(model, x, lambda output: (output * weights).sum(), hx)
    assert [each.name for each in flow] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    twin = RNN(D, H, num_layers=2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    twin.load_state_dict(model.state_dict())
    with record_gradients(twin) as record:
        output, _ = twin(x, hx)
    (output * weights).sum().backward()
    for each in flow:
        dh = record[each.name].dh
        dh = dh.transpose(0, 1) if batch_first else dh
        norms = dh.flatten(1).norm(dim=1)
        norms = norms.flip(0) if each.name.endswith("reverse") else norms
        torch.testing.assert_close(each.dh, norms, rtol=1e-12, atol=0)


def test_the_network_is_left_as_it_was():
    torch.manual_seed(0)
    model = RNN(D, H, dtype=torch.float64, truncation=chunked(2)).train()
    model.weight_hh_l0.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    x = normal(seeded(1), T, B, D)
    cut = gradient_flow(model, x)["l0"]
    assert model.training
    assert repr(model.truncation) == "chunked(2)"
    assert not model.weight_hh_l0.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.truncation = None
    assert torch.equal(cut.by_step, gradient_flow(model, x)["l0"].by_step)
    with torch.no_grad():
        assert torch.equal(cut.by_step, gradient_flow(model, x)["l0"].by_step)


def test_tokens_and_a_state_to_begin_with():
    made, _ = network()
    x = torch.randint(D, (T, B), generator=seeded(4))
    h0 = normal(seeded(5), B, H)
    one_hot = nn.functional.one_hot(x, D).double()
    torch.testing.assert_close(gradient_flow(made, x, hx=h0)["l0"].dh, gradient_flow(made, one_hot, hx=h0)["l0"].dh)


@pytest.mark.parametrize("packed", [False, True], ids=["lengths", "packed"])
def test_sequences_of_different_lengths_are_each_measured_alone(packed):
    torch.manual_seed(0)
    model = RNN(D, H, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64)
    lengths = [6, 2, 5] if packed else [4, 0, 6]
    x, weights = normal(seeded(1), 3, T, D), normal(seeded(2), 3, T, 2 * H)

    def loss(output: Any) -> Tensor:
        dense = pad_packed_sequence(output, batch_first=True)[0] if packed else output
        return (dense * weights[:, : dense.shape[1]]).sum()

    given = {"x": pack_padded_sequence(x, lengths, True, False)} if packed else {"x": x, "lengths": lengths}
    flow = gradient_flow(model, loss=loss, **given)
    order = sorted(range(3), key=lambda row: -lengths[row]) if packed else range(3)
    alone = {}
    for row in range(3):
        if lengths[row] > 0:
            end = lengths[row]
            alone[row] = gradient_flow(
                model, x[row : row + 1, :end], lambda output, row=row, end=end: (output * weights[row, :end]).sum()
            )
    for each in flow:
        assert each.dh.shape == (max(lengths),)
        squares, counted = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        slopes, saturated, exponents = counted.clone(), counted.clone(), []
        for place, row in enumerate(order):
            end = lengths[row]
            assert each.singular_values[end:, place].isnan().all()
            if row in alone:
                one = alone[row][each.name]
                squares[:end, :end] += one.by_step.square()
                counted[:end] += 1
                slopes[:end] += one.slopes
                saturated[:end] += one.saturated
                exponents.append(one.lyapunov)
                torch.testing.assert_close(each.singular_values[:end, place], one.singular_values[:, 0])
        torch.testing.assert_close(each.by_step, squares.sqrt(), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(each.slopes, slopes / counted, rtol=1e-12, atol=0)
        torch.testing.assert_close(each.saturated, saturated / counted, rtol=1e-12, atol=0)
        torch.testing.assert_close(each.lyapunov, torch.stack(exponents).mean(0))
        assert each.verdict


def test_lengths_that_leave_nothing_to_follow_are_refused():
    with pytest.raises(ValueError, match="expected a sequence of at least 2 steps, got 1 as the largest of lengths"):
        gradient_flow(RNN(D, H), torch.randn(T, 2, D), lengths=[1, 0])
    nested = torch.nested.nested_tensor([torch.randn(3, D), torch.randn(2, D)], layout=torch.jagged)
    with pytest.raises(ValueError, match="gradient_flow: expected x padded, with lengths, or packed, got a nested"):
        gradient_flow(RNN(D, H, batch_first=True), nested)
    with pytest.raises(TypeError, match="expected neither lengths nor a PackedSequence for an ElmanNetwork"):
        gradient_flow(ElmanNetwork(D, H, K), torch.randn(T, 2, D), lengths=[3, 2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"network": nn.LSTM(D, H)},
            TypeError,
            "expected network to be a manual_bptt.RNN, torch.nn.RNN or ElmanNetwork",
        ),
        ({"x": [1]}, TypeError, "expected x to be a torch.Tensor, got list"),
        ({"x": torch.zeros(T, D)}, ValueError, "expected x with a batch, (T, B, D) or (B, T, D), got (7, 4)"),
        ({"x": torch.zeros(1, B, D)}, ValueError, "expected at least 2 steps, got T = 1 in (1, 3, 4)"),
        ({"loss": torch.square}, ValueError, "expected loss to return a loss without dimensions, got (7, 3, 5)"),
        ({"loss": lambda output: 3.0}, ValueError, "expected loss to return a loss without dimensions, got float"),
        ({"rows": 0}, ValueError, "expected rows of at least 1, got 0"),
        ({"rows": 1.5}, TypeError, "expected rows to be an int, got float"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    options = {"network": RNN(D, H), "x": torch.zeros(T, B, D), **change}
    with pytest.raises(error) as caught:
        gradient_flow(options.pop("network"), options.pop("x"), **options)
    assert str(caught.value).startswith(f"gradient_flow: {message}")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_refused(bad):
    model = RNN(D, H)
    with torch.no_grad():
        model.weight_hh_l0[1, 2] = bad
    with pytest.raises(ValueError, match="gradient_flow: expected weight_hh_l0 to be finite"):
        gradient_flow(model, torch.zeros(T, B, D))


def test_an_unknown_layer_is_named_with_those_there_are():
    with pytest.raises(KeyError, match="'l1': there are l0"):
        gradient_flow(RNN(D, H), torch.randn(T, B, D))["l1"]
