"""TBPTT(k1, k2) gives every step once, with the gradient of the last k2 steps before its piece's end and no more.

Would catch: a step given twice or not at all; outputs that are not those of the whole sequence; a graph that reaches
back too far or not far enough; a state carried on from the wrong step; what is not run lazily, or holds earlier graphs.
"""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manual_bptt import RNN, ElmanNetwork, tbptt, windowed

T, B, D, H = 11, 2, 3, 4
PIECES = [(1, 1), (1, 3), (2, 2), (2, 3), (3, 5), (3, 6), (4, 11), (5, 20), (11, 11), (20, 20)]


def setting(module: Callable[..., Any] = RNN, **options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return module(D, H, dtype=torch.float64, **options), torch.randn(T, B, D, dtype=torch.float64)


@pytest.mark.parametrize(("k1", "k2"), PIECES)
@pytest.mark.parametrize("module", [RNN, nn.RNN, nn.LSTM, nn.GRU])
def test_the_pieces_make_up_the_whole(module, k1, k2):
    model, x = setting(module, num_layers=2, bidirectional=False)
    whole, last = model(x)
    segments = list(tbptt(model, x, k1=k1, k2=k2))
    assert [(s.start, s.stop) for s in segments] == [(t, min(t + k1, T)) for t in range(0, T, k1)]
    torch.testing.assert_close(torch.cat([s.output for s in segments]), whole, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(*(x if isinstance(x, tuple) else (x,) for x in (segments[-1].hx, last)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert not found.requires_grad


@pytest.mark.parametrize(("k1", "k2"), PIECES)
def test_each_piece_is_followed_back_over_k2_steps(k1, k2):
    model, x = setting()
    for segment in tbptt(model, x, k1=k1, k2=k2):
        weights = torch.randn_like(segment.output)
        found = torch.autograd.grad((segment.output * weights).sum(), list(model.parameters()))
        begin = max(0, segment.stop - k2)
        with torch.no_grad():
            before = model(x[:begin])[1] if begin else None
        output, _ = model(x[begin : segment.stop], before)
        truth = torch.autograd.grad((output[segment.start - begin :] * weights).sum(), list(model.parameters()))
        for one, other in zip(found, truth, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_of_inputs_end_where_the_graph_does():
    model, x = setting()
    x.requires_grad_()
    reached = []
    for segment in tbptt(model, x, k1=2, k2=5):
        [dx] = torch.autograd.grad(segment.output.sum(), x)
        reached.append(dx.abs().sum((1, 2)).nonzero().flatten().tolist())
    assert reached == [list(range(max(0, stop - 5), stop)) for stop in (2, 4, 6, 8, 10, 11)]


def test_parameters_may_change_in_between():
    model, x = setting()
    head = nn.Linear(H, 1, dtype=torch.float64)
    y = x.cumsum(0)[..., :1].tanh()
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        total = 0.0
        for segment in tbptt(model, x, k1=3, k2=6):
            loss = (head(segment.output) - y[segment.start : segment.stop]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.2 * losses[0]


def test_layouts():
    model, x = setting(batch_first=True)
    turned = x.transpose(0, 1)
    whole = model(turned)[0]
    outputs = [s.output for s in tbptt(model, turned, k1=4, k2=6)]
    assert [output.shape for output in outputs] == [(B, 4, H), (B, 4, H), (B, 3, H)]
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-12, atol=1e-12)
    outputs = [s.output for s in tbptt(model, x[:, 0], k1=4, k2=6)]  # one sequence
    torch.testing.assert_close(torch.cat(outputs), model(x[:, 0])[0], rtol=1e-12, atol=1e-12)


def test_one_step_at_a_time_is_a_window():
    model, x = setting()
    weights = torch.randn(T, B, H, dtype=torch.float64)
    for segment in tbptt(model, x, k1=1, k2=5):
        (segment.output * weights[segment.start : segment.stop]).sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.truncation = windowed(4)
    (model(x)[0] * weights).sum().backward()
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [False, True])
def test_an_elman_network_carries_its_last_state_on(tokens):
    torch.manual_seed(0)
    network = ElmanNetwork(D, H, 2, dtype=torch.float64)
    x = torch.randint(D, (T, B)) if tokens else torch.randn(T, B, D, dtype=torch.float64)
    pieces = list(tbptt(network, x, k1=4, k2=6))
    o, h = network(x)
    torch.testing.assert_close(torch.cat([piece.output for piece in pieces]), o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pieces[-1].hx, h[-1], rtol=1e-12, atol=1e-12)


def test_two_directions_are_refused():
    with pytest.raises(ValueError, match="tbptt: expected a module of one direction, got a bidirectional one"):
        tbptt(RNN(D, H, bidirectional=True), torch.zeros(T, B, D), k1=2, k2=2)


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_embedding_is_trained_as_part_of_the_function(batch_first):
    torch.manual_seed(0)
    embedding, rnn = nn.Embedding(7, D), RNN(D, H, batch_first=batch_first)
    tokens = torch.randint(7, (B, T) if batch_first else (T, B))
    seen = []
    for piece in tbptt(lambda x, hx: rnn(embedding(x), hx), tokens, k1=4, k2=6, batch_first=batch_first):
        piece.output.sum().backward()
        seen.append(piece.output.shape[1 if batch_first else 0])
    assert seen == [4, 4, 3]
    assert (embedding.weight.grad[tokens.unique()] != 0).all()


def test_a_piece_is_held_by_nobody_else():
    model, x = setting()
    held: list[weakref.ref[Any]] = []
    alive = []

    def run(x: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        alive.append(sum(reference() is not None for reference in held))
        output, state = model(x, hx)
        held.append(weakref.ref(output))
        return output, state

    for piece in tbptt(run, x[:9], k1=3, k2=3):
        piece.output.sum().backward()
        del piece
    assert alive == [0, 0, 0]


def test_a_state_to_begin_with():
    model, x = setting()
    hx = torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    first, *others = tbptt(model, x, hx, k1=4, k2=4)
    assert torch.autograd.grad(first.output.sum(), hx)[0].abs().sum() > 0
    assert all(torch.autograd.grad(s.output.sum(), hx, allow_unused=True)[0] is None for s in others)


def test_nothing_is_run_before_it_is_asked_for():
    model, x = setting()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    segments = tbptt(model, x, k1=2, k2=2)
    assert calls == []
    next(segments)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k1": 0}, ValueError, "tbptt: expected k1 of at least 1 step, got 0"),
        ({"k2": 2}, ValueError, "tbptt: expected k2 of at least k1 = 3 steps, got 2"),
        ({"k1": 1.5}, TypeError, "tbptt: expected k1 to be an int, got float"),
        ({"k2": True}, TypeError, "tbptt: expected k2 to be an int, got bool"),
        ({"x": [1.0]}, TypeError, "tbptt: expected x to be a torch.Tensor, got list"),
        (
            {"x": torch.zeros(3, 1, 1, 1)},
            ValueError,
            "tbptt: expected x of shape (T, B, D), (B, T, D), (T, D) or tokens, got (3, 1, 1, 1)",
        ),
        ({"x": torch.zeros(0, 2, 3)}, ValueError, "tbptt: expected x of at least one step, got T = 0 in (0, 2, 3)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(change, error, message):
    model, x = setting()
    options: dict[str, Any] = {"x": x, "k1": 3, "k2": 6, **change}
    with pytest.raises(error) as caught:
        tbptt(model, options.pop("x"), **options)
    assert str(caught.value) == message
