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


class Derived(nn.RNN):
    pass


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
    assert flow.gains.rate == pytest.approx(0.9, rel=0.01)
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
            found = flow.singular_values[t, row]
            assert (wanted[found.isnan()] < 1e-14).all()  # relu: units that pass nothing on
            torch.testing.assert_close(found.nan_to_num(0.0), wanted, rtol=1e-9, atol=1e-12)


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
    assert flow.gains.rate == pytest.approx(radius, rel=1e-6)
    torch.testing.assert_close(flow.by_lag, flow.bounds, rtol=1e-9, atol=0)  # all singular values alike: attained
    torch.testing.assert_close(flow.by_lag, flow.floors, rtol=1e-9, atol=0)
    if word == "neither":
        assert flow.gains.since is None
        told = "neither vanishing nor exploding: at lag 79 1 of what enters is left (×1 a step in the end)"
    else:
        first = math.floor(math.log(100) / abs(math.log(radius))) + 1
        assert flow.gains.since == first
        left = "less than a hundredth of what enters is left" if radius < 1 else "what enters is over a hundredfold"
        told = f"{word}: from lag {first} on {left} (×{radius:.2g} a step in the end)"
    assert flow.verdict == told
    assert word in repr(flow)


def test_a_loss_that_no_later_step_has_shows_no_lag():
    made, x = network()
    first = torch.zeros(T, B, K, dtype=torch.float64)
    first[0] = 1.0
    flow = gradient_flow(made, x, lambda o: (o * first).sum())["l0"]
    assert flow.by_lag.isnan().tolist() == [False, *[True] * (T - 1)]
    assert flow.gains.kind == "unseen"
    assert flow.verdict == "no lag can be seen: nothing comes from a later step"


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


def shares_by_autograd(model: RNN, x: Tensor, weights: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    """‖The share of the loss at step s in dL/dh_t‖, by a plain loop over layers, directions and steps."""
    W = dict(model.named_parameters())
    states: dict[str, list[Tensor]] = {}
    running = torch.arange(len(x)).unsqueeze(1) < torch.tensor(lengths)
    below = list(x)
    for layer in range(model.num_layers):
        for suffix in ("", "_reverse")[: 1 + model.bidirectional]:
            name = f"l{layer}{suffix}"
            h = x.new_zeros(x.shape[1], model.hidden_size)
            states[name] = [h] * len(x)
            for t in reversed(range(len(x))) if suffix else range(len(x)):
                a = below[t] @ W[f"weight_ih_{name}"].T + h @ W[f"weight_hh_{name}"].T
                new = torch.tanh(a + W[f"bias_ih_{name}"] + W[f"bias_hh_{name}"])
                h = torch.where(running[t].unsqueeze(1), new, h)  # the other direction starts at a sequence's end
                states[name][t] = h
        names = [f"l{layer}", f"l{layer}_reverse"][: 1 + model.bidirectional]
        below = [torch.cat([states[name][t] for name in names], 1) for t in range(len(x))]
    shares = {name: torch.zeros(len(x), len(x), dtype=x.dtype) for name in states}
    for s in range(len(x)):
        loss = (below[s] * weights[s])[running[s]].sum()
        for name, all_steps in states.items():
            found = torch.autograd.grad(loss, all_steps, retain_graph=True, allow_unused=True)
            for t, each in enumerate(found):
                if each is not None:
                    shares[name][s, t] = each[running[t]].norm()
    return shares


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (1, True), (3, False), (2, True)])
def test_the_loss_of_each_step_is_followed_through_all_layers(layers: int, both: bool, packed: bool):
    torch.manual_seed(0)
    model = RNN(D, H, num_layers=layers, bidirectional=both, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2 if name.startswith("weight") else 1)
    lengths = [T, 4, 6]
    x, weights = normal(seeded(1), T, B, D), normal(seeded(2), T, B, (1 + both) * H)
    mask = (torch.arange(T).unsqueeze(1) < torch.tensor(lengths)).unsqueeze(2)
    weights = weights * mask

    def loss(output: Any) -> Tensor:
        return ((pad_packed_sequence(output)[0] if packed else output) * weights).sum()

    given = {"x": pack_padded_sequence(x, lengths, enforce_sorted=False)} if packed else {"x": x, "lengths": lengths}
    flow = gradient_flow(model, loss=loss, **given)
    for name, expected in shares_by_autograd(model, x, weights, lengths).items():
        found = flow[name].by_loss
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    if layers == 1 and not both:
        assert flow["l0"].by_loss is flow["l0"].by_step
        torch.testing.assert_close(flow.gains.values, flow["l0"].by_lag, rtol=1e-12, atol=0)


def test_a_stack_is_judged_from_the_loss_and_not_layer_by_layer():
    """Layer 0 forgets at once, layer 1 never: a loss reaches the input of every step."""
    model = RNN(2, 2, num_layers=2, nonlinearity="identity", bias=False, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.zeros(2, 2) if name == "weight_hh_l0" else torch.eye(2))
    flow = gradient_flow(model, normal(seeded(1), 30, B, 2), lambda output: output[-1].sum())
    assert (flow["l0"].gains.kind, flow["l1"].gains.kind) == ("vanishing", "neither")
    torch.testing.assert_close(flow.gains.values, torch.ones(30, dtype=torch.float64))
    assert repr(flow).startswith(
        "from the loss to the states of l0: neither vanishing nor exploding: at distance 29 1 of"
    )
    quick = gradient_flow(model, normal(seeded(1), 30, B, 2), lambda output: output[-1].sum(), by_loss=False)
    assert quick["l0"].by_loss is None
    assert repr(quick).startswith("l0: vanishing")
    with pytest.raises(ValueError, match="expected a flow with losses followed one by one, got one without: by_loss"):
        quick.verdict  # noqa: B018


def test_a_verdict_tells_of_growth_before_the_decay():
    made, _ = network("identity")
    with torch.no_grad():
        made.W.copy_(0.5 * torch.eye(H) + 3 * torch.diag(torch.ones(H - 1), 1))
    flow = gradient_flow(made, normal(seeded(1), 80, B, D))["l0"]
    peak = int(flow.by_lag.argmax())
    assert flow.by_lag[peak] > 10
    assert flow.verdict.endswith(
        f"a step in the end, after {flow.by_lag[peak].item():.3g} times as much at lag {peak})"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_measured_in_float64_whatever_the_network_computes_in(dtype: torch.dtype):
    made, x = network("identity")
    made.W.data.copy_(orthogonal(0.5))
    made, x = made.to(dtype), normal(seeded(1), 150, B, D).to(dtype)
    flow = gradient_flow(made, x, lambda o: o[-1].float().sum())["l0"]
    for value in (flow.dh, flow.by_step, flow.by_lag, flow.singular_values, flow.lyapunov):
        assert value.dtype == torch.float64
    assert 0 < flow.by_lag[149] < 1e-40  # float32 has no such number
    assert (flow.by_lag >= flow.floors * (1 - 1e-9)).all()
    assert (flow.by_lag <= flow.bounds * (1 + 1e-9)).all()


def test_singular_values_that_rounding_hides_are_not_told():
    moduli = torch.tensor([0.95, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)
    made, _ = network("identity")
    turn = orthogonal(1.0)
    with torch.no_grad():
        made.W.copy_(turn @ torch.diag(moduli) @ turn.T)
    values = gradient_flow(made, normal(seeded(1), 41, B, D))["l0"].singular_values[:, 0]
    for t in range(41):
        exact = moduli ** (40 - t)
        hidden = exact < H * 2.3e-16 * exact[0]
        assert values[t].isnan().tolist()[0] is False
        shown = ~values[t].isnan()
        assert not (shown & (exact < 0.5 * H * 2.2e-16 * exact[0])).any()
        clear = exact > 1e-8 * exact[0]
        torch.testing.assert_close(values[t][clear], exact[clear], rtol=1e-6, atol=0)
        assert (hidden | shown).all()


def test_what_grows_beyond_all_numbers_is_told_by_name_and_step():
    made, _ = network("relu")
    with torch.no_grad():
        made.W.copy_(3 * torch.eye(H))
        made.U.abs_()
    x = torch.ones(800, B, D, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"gradient_flow: expected finite states, got others in l0, at step 64\d for"):
        gradient_flow(made, x, lambda o: o[0].sum())


def test_a_loss_on_the_padding_is_pointed_out():
    rnn, x = RNN(D, H), torch.randn(T, B, D)
    with pytest.warns(UserWarning, match="the loss reads the output after a sequence's end, where it is 0"):
        gradient_flow(rnn, x, lambda output: output[-1].sum(), lengths=[T, 3, 2])
    gradient_flow(rnn, x, lengths=[T, 3, 2])  # half the squares of 0 have no gradient


def test_without_rows_nothing_is_decomposed():
    made, x = network()
    flow = gradient_flow(made, x, rows=0)["l0"]
    assert flow.singular_values.shape == (T, 0, H)
    assert flow.lyapunov.isnan().all()
    assert "Lyapunov" not in repr(flow)
    assert "Lyapunov" in repr(gradient_flow(made, x)["l0"])


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
    weights *= (torch.arange(T) < torch.tensor(lengths).unsqueeze(1)).unsqueeze(2)

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
    with pytest.raises(ValueError, match="expected a sequence of at least 2 steps, got 1 as the longest"):
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
        ({"loss": lambda output: output.detach().sum()}, ValueError, "expected a loss that depends on the output"),
        (
            {"loss": lambda output: torch.zeros((), requires_grad=True)},
            ValueError,
            "expected a loss that depends on the",
        ),
        (
            {"loss": lambda output: output.sum() * math.nan},
            ValueError,
            "expected a finite loss and gradient, got a loss",
        ),
        ({"loss": torch.zeros(T)}, TypeError, "expected loss to be a function of the output, got Tensor"),
        ({"x": torch.full((T, B, D), math.inf)}, ValueError, "expected x to be finite, got NaN or infinite numbers"),
        (
            {"network": RNN(D, H, dtype=torch.complex64)},
            TypeError,
            "expected weight_ih_l0 to be real, got torch.complex",
        ),
        (
            {"network": Derived(D, H)},
            TypeError,
            "expected a torch.nn.RNN itself, got Derived, which is derived from it",
        ),
        (
            {"network": nn.Sequential(RNN(D, H))},
            TypeError,
            "expected network to be a manual_bptt.RNN, torch.nn.RNN or El",
        ),
        ({"rows": -1}, ValueError, "expected rows of at least 0, got -1"),
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
