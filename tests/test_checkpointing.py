"""Fewer states kept, the same gradients: checkpoint_every of RNN.

Would catch: a carry that is lost or weighted wrongly between two pieces, a kept state of another step, sequences that
end within a piece, parameters whose gradients of some pieces are left out, states that are kept all the same, a second
derivative that takes the states for constants.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import normal, seeded
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from manual_bptt import RNN, checkpointing, chunked, kernels, randomized, record_gradients, windowed
from manual_bptt.kernels import native

T, B, D, H = 13, 4, 3, 6
LENGTHS = torch.tensor([13, 13, 9, 4])


def made(every: Any, **options: Any) -> RNN:
    torch.manual_seed(0)
    return RNN(D, H, dtype=torch.float64, checkpoint_every=every, **options)


def gradients(module: RNN, layout: str, last: bool = False) -> dict[str, Tensor]:
    """Output, h_n and every gradient."""
    directions = 1 + module.bidirectional
    x = normal(seeded(1), T, B, D).requires_grad_()
    hx = normal(seeded(2), module.num_layers * directions, B, H).requires_grad_()
    given: Any = pack_padded_sequence(x, LENGTHS) if layout == "packed" else x
    output, h_n = module(given, hx, **({"lengths": LENGTHS} if layout == "padded" else {}))
    output = output.data if layout == "packed" else output
    value = (h_n * normal(seeded(4), *h_n.shape)).sum()
    if not last:
        value = value + (output * normal(seeded(3), *output.shape)).sum()
    named = {"x": x, "hx": hx, **dict(module.named_parameters())}
    found = torch.autograd.grad(value, list(named.values()))
    return {"output": output.detach(), "h_n": h_n.detach(), **dict(zip(named, found, strict=True))}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-13 * value.norm() + 1e-15, name


@pytest.mark.parametrize("layout", ["dense", "packed", "padded"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"nonlinearity": "relu"}])
@pytest.mark.parametrize("kernel", kernels.NAMES)
def test_the_gradients_are_those_of_all_states_kept(layout: str, options: dict[str, Any], kernel: str) -> None:
    if kernel != "eager" and native.library() is None:
        pytest.skip("the kernel in C was not built")
    wanted = gradients(made(None, **options), layout)
    with kernels.use(kernel):
        for every in (1, 2, 5, 12, 13, 100, True):
            same(gradients(made(every, **options), layout), wanted)
            same(gradients(made(every, **options), layout, last=True), gradients(made(None, **options), layout, True))


@pytest.mark.parametrize("layout", ["dense", "packed", "padded"])
@pytest.mark.parametrize(
    "truncation",
    [lambda: chunked(4), lambda: windowed(3), lambda: randomized(0.6, generator=torch.Generator().manual_seed(3))],
)
def test_truncated_gradients_too(layout: str, truncation: Callable[[], Any]) -> None:
    for every in (3, 4, True):
        wanted = gradients(made(None, truncation=truncation()), layout)
        same(gradients(made(every, truncation=truncation()), layout), wanted)


def kept(every: Any, layers: int = 1) -> int:
    """How many numbers are kept until backward, but for parameters."""
    torch.manual_seed(0)
    module = RNN(D, H, layers, checkpoint_every=every)
    own = {each.data_ptr() for each in module.parameters()}
    seen: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in own:
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes() // value.element_size()
        return value

    x = torch.randn(400, B, D)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        alive = module(x)[1]  # h_n alone: the output is let go
    assert alive.requires_grad
    return sum(seen.values()) - x.numel() - B * H  # x, and the zeros that every layer begins at


def test_what_is_kept() -> None:
    all_states, T = 400 * B * H, 400
    assert kept(None) == all_states
    assert kept(T) == kept(1000) == all_states
    assert kept(True) == (T // 20 - 1) * B * H
    assert kept(50) == 7 * B * H
    assert kept(50, layers=2) == 14 * B * H + all_states  # what the second layer reads


@pytest.mark.parametrize("truncation", [None, chunked(3), windowed(2)])
def test_second_derivatives_are_those_of_all_states_kept(truncation: Any) -> None:
    found = []
    for every in (None, 4):
        module = made(every, truncation=truncation)
        x = normal(seeded(1), T, B, D).requires_grad_()
        output, _ = module(x)
        [dx] = torch.autograd.grad((output**2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((dx**2).sum(), [x, *module.parameters()]))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)


def test_gradients_can_be_recorded_and_transformed() -> None:
    x = normal(seeded(1), T, B, D)
    recorded = []
    for every in (None, 4):
        module = made(every)
        with record_gradients(module) as record:
            module(x)[0].sum().backward()
        recorded.append(record)
    assert torch.equal(recorded[0]["l0"].da, recorded[1]["l0"].da)
    values = dict(made(None).named_parameters())
    for transform in (torch.func.grad, torch.func.jacrev):
        found = [
            transform(lambda p, m=module: torch.func.functional_call(m, p, (x,))[0].sum())(values)
            for module in (made(None), made(4))
        ]
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-11, atol=1e-12)


def test_only_what_is_asked_for() -> None:
    module = made(4)
    for parameter in (module.weight_ih_l0, module.bias_hh_l0):
        parameter.requires_grad_(False)
    module(normal(seeded(1), T, B, D))[0].sum().backward()
    assert module.weight_ih_l0.grad is module.bias_hh_l0.grad is None
    wanted = made(None)
    wanted(normal(seeded(1), T, B, D))[0].sum().backward()
    for name in ("weight_hh_l0", "bias_ih_l0"):
        torch.testing.assert_close(
            module.get_parameter(name).grad, wanted.get_parameter(name).grad, rtol=1e-12, atol=1e-13
        )


def test_it_can_be_set_copied_and_shown() -> None:
    module = made(None)
    assert "checkpoint_every" not in repr(module)
    module.checkpoint_every = True
    assert "checkpoint_every" not in repr(made(False))
    assert "checkpoint_every=True" in repr(copy.deepcopy(module))
    same(gradients(module, "dense"), gradients(made(None), "dense"))
    assert list(module.state_dict()) == list(made(None).state_dict())


@pytest.mark.parametrize(
    ("every", "error", "message"),
    [
        (0, ValueError, "RNN: expected checkpoint_every of at least 1, got 0"),
        (-3, ValueError, "RNN: expected checkpoint_every of at least 1, got -3"),
        (2.5, TypeError, "RNN: expected checkpoint_every to be an int, True or None, got float"),
        ("sqrt", TypeError, "RNN: expected checkpoint_every to be an int, True or None, got str"),
    ],
)
def test_what_is_no_number_of_steps_is_refused(every: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        made(every)
    assert str(caught.value) == message
    module = made(None)
    module.checkpoint_every = every
    with pytest.raises(error, match="RNN: expected checkpoint_every"):
        module(torch.zeros(2, 1, D, dtype=torch.float64))


def test_how_many_steps_a_piece_has() -> None:
    found = [checkpointing.steps_of_a_piece(True, steps) for steps in (1, 2, 4, 5, 9, 10, 400)]
    assert found == [1, 2, 2, 3, 3, 4, 20]
    assert checkpointing.steps_of_a_piece(None, 7) == checkpointing.steps_of_a_piece(False, 7) == 7


@pytest.mark.parametrize("mistake", ["carry", "state"])
def test_a_planted_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A carry that is lost between two pieces, and pieces that begin at h0."""
    right = checkpointing.all_gradients if mistake == "carry" else checkpointing.states

    def wrong(*args: Any) -> Any:
        if mistake == "state":
            return right(args[0], torch.zeros_like(args[1]), *args[2:])
        dx, dh0, *others = right(*args)  # type: ignore[misc]
        return dx, 0 * dh0, *others

    wanted = gradients(made(4), "dense")
    monkeypatch.setattr(checkpointing, right.__name__, wrong)
    with pytest.raises(AssertionError):
        same(gradients(made(4), "dense"), wanted)


@pytest.mark.parametrize("form", ["steps", "batch first", "one sequence"])
def test_results_may_be_changed_in_place_and_are_no_views(form: str) -> None:
    x = normal(seeded(1), T, D) if form == "one sequence" else normal(seeded(1), T, B, D)
    found = []
    for every in (None, 4):
        module = made(every, batch_first=form == "batch first")
        output, h_n = module(x)
        assert not output._is_view()
        output.mul_(2.0)
        h_n.mul_(3.0) if form != "one sequence" else None  # a view there, as torch.nn.RNN's
        found.append(torch.autograd.grad((output**2).sum() + (h_n**3).sum(), list(module.parameters())))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)
