"""Truncated gradients are those that autograd gives where the past is detached, and a random truncation is unbiased.

Would catch: a border, a window or a weight that is off by one step; a truncation that changes the states, or dV and dc;
one that bptt(), rnn() and the second derivatives do not share; dh0 of the wrong losses; ξ that is drawn where no graph
is kept, is not drawn anew, or has another mean than 1; a truncation that is silently left out under a transform, a
compiler, in a copy, with packed sequences or in a layer.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from problems import (
    GENERAL,
    NONLINEARITIES,
    Problem,
    assert_all_close,
    assert_close,
    away_from_kink,
    by_bptt,
    disagreements,
    leaves,
    make_problem,
    normal,
    seeded,
)
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from manual_bptt import (
    RNN,
    ElmanNetwork,
    Truncation,
    bptt,
    chunked,
    full,
    randomized,
    record_gradients,
    rnn,
    windowed,
)
from torch_reference.network import sequence_loss
from torch_reference.truncated import truncated_complex_step, truncated_states

kernels, eager, lags, recurrence = (
    import_module(f"manual_bptt.{name}") for name in ("kernels", "kernels.eager", "lags", "recurrence")
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),  # of torch.func's own
    pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated:DeprecationWarning"),
]
EXACT = 1e-12
T, B = GENERAL.T + 2, GENERAL.B
SIZES = GENERAL._replace(T=T)
XI = (1.0, 0.0, 2.0, 0.5, -1.0, 0.0, 1.5)  # of any kind


def given(xi: Sequence[float]) -> Truncation:
    """A truncation with these weights."""
    return Truncation(f"given({xi})", lambda steps: xi[:steps])


def borders(k: int, steps: int = T) -> list[float]:
    return [float(t == 0 or t % k != 0) for t in range(steps)]


# a truncation, and what the reference is told
TRUNCATIONS: dict[str, tuple[Truncation, dict[str, Any]]] = {
    **{f"chunked-{k}": (chunked(k), {"xi": borders(k)}) for k in (1, 2, 3, T - 1, T, T + 1)},
    **{f"windowed-{k}": (windowed(k), {"window": k}) for k in (1, 2, 3, T - 1, T, T + 1)},
    "given": (given(XI), {"xi": XI}),
    "full": (full(), {}),
}
each = pytest.mark.parametrize("name", TRUNCATIONS)


def drawn(nonlinearity: str = "tanh", **options: Any) -> Problem:
    if nonlinearity == "relu":
        return away_from_kink(sizes=SIZES, **options)
    return make_problem(SIZES, nonlinearity=nonlinearity, **options)


def reference(problem: Problem, told: dict[str, Any]) -> dict[str, Tensor]:
    """Solve by autograd on the loop with detached states; dh sums over the copies of a state, da over theirs."""
    named = leaves({**problem.parameters, "x": problem.x, "h0": problem.h0})
    copies = truncated_states(named, named["x"], named["h0"], problem.options["nonlinearity"], **told)
    h = torch.stack([own[-1] for own in copies])
    o = h @ named["V"].T + named.get("c", torch.zeros(()))
    loss = sequence_loss(o, problem.targets, **{k: v for k, v in problem.options.items() if k != "nonlinearity"})
    wrt = {f"d{name}": tensor for name, tensor in named.items() if tensor.requires_grad}
    states = {id(state): state for own in copies for state in own if state.requires_grad}
    found = torch.autograd.grad(loss, [*wrt.values(), *states.values()], allow_unused=True, materialize_grads=True)
    totals = dict(zip(states, found[len(wrt) :], strict=True))
    dh = []
    for t in range(len(copies)):
        ids = {id(own[t]) for own in copies if len(own) > t} & totals.keys()
        dh.append(sum((totals[each] for each in ids), torch.zeros_like(h[0])))
    return {"loss": loss, "h": h, "dh": torch.stack(dh)} | dict(zip(wrt, found, strict=False))


def by_rnn(problem: Problem, truncation: Truncation | None, create_graph: bool = False) -> dict[str, Tensor]:
    named = leaves({**problem.parameters, "x": problem.x, "h0": problem.h0})
    h = rnn(
        named["x"],
        named["h0"],
        named["U"],
        named["W"],
        named.get("b"),
        problem.options["nonlinearity"],
        truncation=truncation,
    )
    o = h @ named["V"].T + named.get("c", torch.zeros(()))
    loss = sequence_loss(o, problem.targets, **{k: v for k, v in problem.options.items() if k != "nonlinearity"})
    wrt = {f"d{name}": tensor for name, tensor in named.items() if tensor.requires_grad}
    found = torch.autograd.grad(loss, list(wrt.values()), create_graph=create_graph)
    return {"loss": loss, "h": h} | dict(zip(wrt, found, strict=True))


def result_of(problem: Problem, truncation: Truncation | None) -> dict[str, Tensor]:
    options = {**problem.options, "truncation": truncation}
    return by_bptt(Problem(problem.parameters, problem.x, problem.targets, problem.h0, options))


# against autograd with detached states


@pytest.mark.parametrize("create_graph", [False, True], ids=["backward", "create_graph"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@each
def test_rnn_gives_what_autograd_gives_with_detached_states(name, nonlinearity, create_graph):
    truncation, told = TRUNCATIONS[name]
    problem = drawn(nonlinearity)
    assert_all_close(by_rnn(problem, truncation, create_graph), reference(problem, told), EXACT)


@pytest.mark.parametrize("options", [{"time": "last"}, {"time": "mean", "batch": "mean"}, {"kind": "squared-error"}])
@each
def test_bptt_gives_what_autograd_gives_with_detached_states(name, options):
    truncation, told = TRUNCATIONS[name]
    problem = drawn(**options)
    actual, truth = result_of(problem, truncation), reference(problem, told)
    assert_all_close({key: actual[key] for key in truth}, truth, EXACT)
    slope = 1 - actual["h"].square()
    assert_close("da", actual["da"], slope * truth["dh"], EXACT)


@each
def test_tokens_and_no_bias(name):
    truncation, told = TRUNCATIONS[name]
    for options in ({"tokens": True}, {"biases": ""}):
        problem = drawn(**options)
        truth = reference(problem, told)
        assert_all_close(by_rnn(problem, truncation), truth, EXACT)
        actual = result_of(problem, truncation)
        assert_all_close({key: actual[key] for key in truth}, truth, EXACT)


@each
def test_complex_steps_with_fixed_states_give_the_same(name):
    """A witness without autograd: the past that is cut off stands as numbers."""
    truncation, told = TRUNCATIONS[name]
    problem = drawn()
    weights = normal(seeded(5), T, B, SIZES.H)
    arrays = {key: problem.parameters[key].numpy() for key in "UWb"}
    assert problem.h0 is not None
    truth = truncated_complex_step(arrays, problem.x.numpy(), problem.h0.numpy(), weights.numpy(), **told)
    named = leaves({key: problem.tensors()[key] for key in ("x", "h0", "U", "W", "b")})
    h = rnn(*named.values(), truncation=truncation)
    found = torch.autograd.grad((h * weights).sum(), list(named.values()))
    actual = {f"d{key}": value for key, value in zip(named, found, strict=True)}
    assert_all_close(actual, {key: torch.from_numpy(value) for key, value in truth.items()}, EXACT)


def test_the_states_and_the_output_layer_know_nothing_of_it():
    problem = drawn()
    plain = result_of(problem, None)
    for truncation, _ in TRUNCATIONS.values():
        actual = result_of(problem, truncation)
        for key in ("a", "h", "o", "loss", "do", "dV", "dc"):
            assert torch.equal(actual[key], plain[key]), key


@pytest.mark.parametrize("truncation", [chunked(T), chunked(T + 3), windowed(T), windowed(T + 3), full(), None])
def test_what_reaches_the_first_step_is_not_truncated(truncation):
    problem = drawn()
    assert_all_close(result_of(problem, truncation), result_of(problem, None), EXACT)


def test_a_window_of_all_but_one_step_reaches_h_0_from_all_but_the_last_loss():
    problem = drawn()
    actual, plain = result_of(problem, windowed(T - 1)), result_of(problem, None)
    assert disagreements({"dh0": actual["dh0"]}, plain, 1e-6)
    assert_close("dW", actual["dW"], plain["dW"], EXACT)  # every loss reaches h_1


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@each
def test_other_numbers(name, dtype):
    truncation, told = TRUNCATIONS[name]
    problem = drawn()
    generator = seeded(3)
    named = {key: problem.tensors()[key].to(dtype) for key in ("x", "h0", "U", "W", "b")}
    if dtype.is_complex:
        named = {key: value + 0.3j * normal(generator, *value.shape) for key, value in named.items()}
    weights = normal(generator, T, B, SIZES.H).to(dtype)
    gradients = []
    for compute in (
        lambda x, h0, U, W, b: rnn(x, h0, U, W, b, truncation=truncation),
        lambda x, h0, U, W, b: torch.stack(
            [own[-1] for own in truncated_states({"U": U, "W": W, "b": b}, x, h0, **told)]
        ),
    ):
        inputs = {key: value.clone().requires_grad_() for key, value in named.items()}
        loss = (compute(**inputs) * weights).sum().real
        found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
        gradients.append(
            dict(zip(inputs, map(torch.view_as_real if dtype.is_complex else Tensor.clone, found), strict=True))
        )
    assert_all_close(*gradients, EXACT if dtype.is_complex else 100 * torch.finfo(dtype).eps)


# layers, directions, lengths

LENGTHS = (4, T, 1, T - 1)
LAYOUTS = ("batched", "batch_first", "unbatched", "packed", "lengths")
MODULES = ("chunked-1", "chunked-2", "chunked-3", "windowed-1", "windowed-2", "windowed-3", "given", "full")


def module_and_input(truncation: Truncation | None, layout: str) -> tuple[RNN, Tensor, Tensor]:
    torch.manual_seed(0)
    module = RNN(
        4,
        5,
        num_layers=2,
        bidirectional=True,
        batch_first=layout == "batch_first",
        dtype=torch.float64,
        truncation=truncation,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    generator = seeded(1)
    return module, normal(generator, len(LENGTHS), T, 4), normal(generator, 4, len(LENGTHS), 5)


def run_module(module: RNN, layout: str, x: Tensor, hx: Tensor) -> list[Tensor]:
    """The outputs of each sequence (its length, 10)."""
    lengths = list(LENGTHS)
    if layout == "unbatched":
        return [module(row[:n], hx[:, i])[0] for i, (row, n) in enumerate(zip(x, lengths, strict=True))]
    if layout == "packed":
        pack = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(module(pack, hx)[0], batch_first=True)
    elif layout == "lengths":
        output = module(x.transpose(0, 1), hx, lengths=lengths)[0].transpose(0, 1)
    elif layout == "batch_first":
        output = module(x, hx)[0]
    else:
        output = module(x.transpose(0, 1), hx)[0].transpose(0, 1)
    if layout in ("batched", "batch_first"):
        lengths = [T] * len(lengths)
    return [row[:n] for row, n in zip(output, lengths, strict=True)]


def up_to(n: int, told: dict[str, Any]) -> dict[str, Any]:
    return {key: value[:n] if key == "xi" else value for key, value in told.items()}


def by_detaching(module: RNN, layout: str, x: Tensor, hx: Tensor, told: dict[str, Any]) -> list[Tensor]:
    """The same, sequence by sequence, every layer and direction a loop with detached states; counted from its first."""
    named = dict(module.named_parameters())
    outputs = []
    for i, row in enumerate(x):
        n = T if layout in ("batched", "batch_first") else LENGTHS[i]
        steps = row[:n].unsqueeze(1)
        for layer in range(2):
            directions = []
            for number, suffix in enumerate(("", "_reverse")):
                parameters = {
                    "U": named[f"weight_ih_l{layer}{suffix}"],
                    "W": named[f"weight_hh_l{layer}{suffix}"],
                    "b": named[f"bias_ih_l{layer}{suffix}"] + named[f"bias_hh_l{layer}{suffix}"],
                }
                turned = steps.flip(0) if number else steps
                copies = truncated_states(parameters, turned, hx[2 * layer + number, i : i + 1], **up_to(n, told))
                h = torch.stack([own[-1] for own in copies])
                directions.append(h.flip(0) if number else h)
            steps = torch.cat(directions, -1)
        outputs.append(steps.squeeze(1))
    return outputs


def module_gradients(module: RNN, outputs: Sequence[Tensor], x: Tensor, hx: Tensor) -> dict[str, Tensor]:
    generator = seeded(2)
    loss = sum((output * normal(generator, *output.shape)).sum() for output in outputs)
    wrt = {**dict(module.named_parameters()), **{key: v for key, v in (("x", x), ("hx", hx)) if v.requires_grad}}
    found = torch.autograd.grad(loss, list(wrt.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(wrt, found, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODULES)
def test_two_layers_in_both_directions(name, layout):
    truncation, told = TRUNCATIONS[name]
    module, x, hx = module_and_input(truncation, layout)
    x.requires_grad_(), hx.requires_grad_()
    actual = run_module(module, layout, x, hx)
    truth = by_detaching(module, layout, x, hx, told)
    for one, other in zip(actual, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)
    assert_all_close(module_gradients(module, actual, x, hx), module_gradients(module, truth, x, hx), EXACT)


@pytest.mark.parametrize("layout", ["batched", "packed", "lengths"])
@pytest.mark.parametrize("name", ["chunked-2", "windowed-2", "given"])
def test_recorded_gradients_are_the_truncated_ones(name, layout):
    truncation, told = TRUNCATIONS[name]
    torch.manual_seed(0)
    module = RNN(4, 5, dtype=torch.float64, truncation=truncation)
    generator = seeded(1)
    x, hx = normal(generator, len(LENGTHS), T, 4), normal(generator, 1, len(LENGTHS), 5)
    with record_gradients(module) as record:
        outputs = run_module(module, layout, x, hx)
    weights = [normal(generator, *output.shape) for output in outputs]
    sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
    recorded = record["l0"].dh
    if layout == "packed":
        recorded, _ = torch.nn.utils.rnn.pad_packed_sequence(recorded)
    named = dict(module.named_parameters())
    parameters = {
        "U": named["weight_ih_l0"],
        "W": named["weight_hh_l0"],
        "b": named["bias_ih_l0"] + named["bias_hh_l0"],
    }
    for i, weight in enumerate(weights):
        n = len(weight)
        copies = truncated_states(parameters, x[i, :n].unsqueeze(1), hx[0, i : i + 1], **up_to(n, told))
        loss = sum((own[-1][0] * row).sum() for own, row in zip(copies, weight, strict=True))
        states = {id(s): s for own in copies for s in own if s.requires_grad}
        totals = dict(zip(states, torch.autograd.grad(loss, list(states.values()), retain_graph=True), strict=True))
        for t in range(n):
            ids = {id(own[t]) for own in copies if len(own) > t} & totals.keys()
            assert_close("dh", recorded[t, i], sum(totals[each][0] for each in ids), EXACT)


# random truncation


def every_draw(p: float, steps: int) -> list[tuple[float, tuple[float, ...]]]:
    """All 2^(T-1) draws of ξ_2 … ξ_T with their probabilities; ξ_1 is 1."""
    draws = []
    for open_ in product((False, True), repeat=steps - 1):
        probability = float(np.prod([p if each else 1 - p for each in open_]))
        draws.append((probability, (1.0, *(1 / p if each else 0.0 for each in open_))))
    return draws


@pytest.mark.parametrize("way", ["rnn", "bptt"])
@pytest.mark.parametrize("p", [0.25, 0.5, 0.9, 1.0])
def test_the_mean_over_all_draws_is_the_full_gradient(way, p):
    problem = drawn()
    solve = by_rnn if way == "rnn" else result_of
    truth = solve(problem, None)
    mean = {key: torch.zeros_like(value) for key, value in truth.items()}
    total = 0.0
    for probability, xi in every_draw(p, T):
        total += probability
        for key, value in solve(problem, given(xi)).items():
            mean[key] += probability * value
    assert total == pytest.approx(1, abs=1e-14)
    assert_all_close(mean, truth, EXACT)


def test_the_mean_over_all_draws_of_two_layers_is_the_full_gradient():
    """Each layer and direction has its own ξ: all draws of all of them."""
    p, steps = 0.5, 3
    torch.manual_seed(0)
    module = RNN(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = normal(seeded(1), steps, 2, 3).requires_grad_()
    weights = normal(seeded(2), steps, 2, 8)

    def gradients(truncation: Truncation | None) -> list[Tensor]:
        module.truncation = truncation
        return list(torch.autograd.grad((module(x)[0] * weights).sum(), [*module.parameters(), x]))

    truth = gradients(None)
    mean = [torch.zeros_like(value) for value in truth]
    draws = every_draw(p, steps)
    for chosen in product(draws, repeat=4):
        each_ = iter([xi for _, xi in chosen])
        probability = float(np.prod([probability for probability, _ in chosen]))
        for total, value in zip(mean, gradients(Truncation("each", lambda T, each_=each_: next(each_))), strict=True):
            total += probability * value
    for total, value in zip(mean, truth, strict=True):
        assert_close("mean", total, value, EXACT)


def test_draws_have_mean_one_and_leave_the_first_step_alone():
    truncation = randomized(0.25, seeded(0))
    draws = torch.stack([truncation.weights(12) for _ in range(4000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0, 4.0}
    assert (draws[:, 0] == 1).all()
    assert (draws[:, 1:].mean(0) - 1).abs().max() < 4 * (3 / 4000) ** 0.5  # a standard deviation is √((1-p)/p / n)
    assert (randomized(1.0).weights(5) == 1).all()


def test_draws_are_repeated_by_the_seed_and_new_in_every_call():
    problem = drawn()
    first, second = randomized(0.5, seeded(1)), randomized(0.5, seeded(1))
    one, other, later = by_rnn(problem, first), by_rnn(problem, second), by_rnn(problem, first)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(one["dW"], later["dW"])
    torch.manual_seed(3)
    one = by_rnn(problem, randomized(0.5))
    torch.manual_seed(3)
    assert torch.equal(one["dW"], by_rnn(problem, randomized(0.5))["dW"])


def test_nothing_is_drawn_where_no_graph_is_kept():
    generator = seeded(1)
    before = generator.get_state()
    module = RNN(3, 4, truncation=randomized(0.5, generator))
    with torch.no_grad():
        module(torch.randn(5, 2, 3))
    assert torch.equal(generator.get_state(), before)
    module(torch.randn(5, 2, 3))
    assert not torch.equal(generator.get_state(), before)


def test_one_graph_has_one_draw():
    problem = drawn()
    named = leaves({key: problem.tensors()[key] for key in ("x", "h0", "U", "W", "b")})
    h = rnn(*named.values(), truncation=randomized(0.5, seeded(4)))
    first, second = (torch.autograd.grad(h.sum(), named["W"], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# second derivatives, transforms, compilers


@pytest.mark.parametrize("name", ["chunked-1", "chunked-2", "given", "full"])
def test_second_derivatives_are_those_of_the_detached_loop(name):
    truncation, told = TRUNCATIONS[name]
    problem = drawn()
    weights = normal(seeded(5), T, B, SIZES.H)
    found = []
    for compute in (
        lambda x, h0, U, W, b: rnn(x, h0, U, W, b, truncation=truncation),
        lambda x, h0, U, W, b: torch.stack(
            [own[-1] for own in truncated_states({"U": U, "W": W, "b": b}, x, h0, **told)]
        ),
    ):
        named = leaves({key: problem.tensors()[key] for key in ("x", "h0", "U", "W", "b")})
        loss = (compute(**named).square() * weights).sum()
        first = torch.autograd.grad(loss, list(named.values()), create_graph=True)
        penalty = sum(value.square().sum() for value in first)
        found.append(dict(zip(named, torch.autograd.grad(penalty, list(named.values())), strict=True)))
    assert_all_close(*found, EXACT)


@each
def test_forward_mode_goes_with_it(name):
    truncation, _ = TRUNCATIONS[name]
    problem = drawn()
    primals = tuple(problem.tensors()[key] for key in ("x", "h0", "U", "W", "b"))
    generator = seeded(7)
    moved = tuple(normal(generator, *value.shape) for value in primals)
    weights = normal(generator, T, B, SIZES.H)

    def run(*arguments: Tensor) -> Tensor:
        return rnn(*arguments, truncation=truncation)

    _, tangent = jvp(run, primals, moved)
    _, pull = vjp(run, *primals)
    backwards = sum((one * other).sum() for one, other in zip(pull(weights), moved, strict=True))
    torch.testing.assert_close((weights * tangent).sum(), backwards, rtol=1e-12, atol=1e-12)


@each
def test_per_sample_gradients(name):
    truncation, told = TRUNCATIONS[name]
    problem = drawn()
    weights = normal(seeded(5), T, B, SIZES.H)
    U, W, b = (problem.parameters[key] for key in "UWb")

    def loss(W: Tensor, x: Tensor, h0: Tensor, weights: Tensor) -> Tensor:
        return (rnn(x, h0, U, W, b, truncation=truncation) * weights).sum()

    each_ = vmap(grad(loss), in_dims=(None, 1, 0, 1))(W, problem.x, problem.h0, weights)
    leaf = W.clone().requires_grad_()
    states = truncated_states({"U": U, "W": leaf, "b": b}, problem.x, problem.h0, **told)
    h = torch.stack([own[-1] for own in states])
    for row in range(B):
        [truth] = torch.autograd.grad((h[:, row] * weights[:, row]).sum(), leaf, retain_graph=True)
        assert_close("dW", each_[row], truth, EXACT)


@pytest.mark.parametrize("randomness", ["error", "different", "same"])
def test_one_draw_serves_all_that_vmap_maps_over(randomness):
    torch.manual_seed(0)
    module = RNN(SIZES.D, SIZES.H, dtype=torch.float64)
    x = normal(seeded(1), T, B, SIZES.D)
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x.unsqueeze(1),))[0].square().sum()

    for generator in (seeded(7), None):
        torch.manual_seed(5)
        module.truncation = randomized(0.5, generator)
        each_ = vmap(grad(loss), in_dims=(None, 1), randomness=randomness)(parameters, x)
        torch.manual_seed(5)
        module.truncation = randomized(0.5, None if generator is None else seeded(7))
        module.zero_grad()
        module(x)[0].square().sum().backward()
        for name, parameter in module.named_parameters():
            assert_close(name, each_[name].sum(0), parameter.grad, EXACT)


@pytest.mark.parametrize("layout", ["batched", "packed", "lengths"])
@pytest.mark.parametrize("name", ["chunked-2", "windowed-2"])
def test_compiled(name, layout):
    truncation, _ = TRUNCATIONS[name]
    module, x, hx = module_and_input(truncation, layout)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    truth = module_gradients(module, run_module(module, layout, x, hx), x, hx)
    actual = module_gradients(module, run_module(compiled, layout, x, hx), x, hx)
    assert_all_close(actual, truth, EXACT)
    module.truncation = None
    assert disagreements(actual, module_gradients(module, run_module(module, layout, x, hx), x, hx), 1e-6)


def test_compiled_random_truncation_is_drawn_anew():
    problem = drawn()
    torch._dynamo.reset()
    run = torch.compile(
        lambda x, h0, U, W, b: rnn(x, h0, U, W, b, truncation=randomized(0.5)), fullgraph=True, backend="aot_eager"
    )
    named = leaves({key: problem.tensors()[key] for key in ("x", "h0", "U", "W", "b")})
    found = {torch.autograd.grad(run(*named.values()).sum(), named["W"])[0].sum().item() for _ in range(8)}
    assert len(found) > 3


def test_exported_with_any_length():
    network = ElmanNetwork(4, 5, 3, dtype=torch.float64, truncation=chunked(3))
    x = normal(seeded(1), 6, 2, 4)
    exported = torch.export.export(network, (x,), dynamic_shapes={"x": {0: torch.export.Dim("T", min=2)}})
    for steps in (4, 9):
        x = normal(seeded(steps), steps, 2, 4)
        program = exported.module()
        found = torch.autograd.grad(program(x)[0].square().sum(), list(program.parameters()))
        truth = torch.autograd.grad(network(x)[0].square().sum(), list(network.parameters()))
        named = [name for name, _ in network.named_parameters()]
        assert_all_close(dict(zip(named, found, strict=True)), dict(zip(named, truth, strict=True)), EXACT)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_where_torch_differentiates_by_itself_a_truncation_is_refused():
    module = RNN(3, 4, truncation=chunked(2))
    x = torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match=r"RNN: expected no truncation where torch differentiates, got chunked\(2\)"):
        torch.jit.trace(module, (x,), check_trace=False)
    with torch.no_grad():
        torch.jit.trace(module, (x,), check_trace=False)
    sigmoid = RNN(3, 4, nonlinearity="sigmoid", truncation=windowed(2))
    with pytest.raises(RuntimeError, match=r"rnn: expected no truncation where torch differentiates by itself"):
        torch.jit.trace(sigmoid, (x,), check_trace=False)


# modules


def test_a_module_can_be_truncated_at_any_time():
    module, x, hx = module_and_input(None, "batched")
    assert "truncation" not in repr(module)
    x.requires_grad_(), hx.requires_grad_()
    plain = module_gradients(module, run_module(module, "batched", x, hx), x, hx)
    module.truncation = chunked(2)
    assert repr(module).endswith("truncation=chunked(2))")
    cut = module_gradients(module, run_module(module, "batched", x, hx), x, hx)
    assert disagreements(cut, plain, 1e-6)
    module.truncation = None
    again = module_gradients(module, run_module(module, "batched", x, hx), x, hx)
    assert all(torch.equal(again[key], plain[key]) for key in plain)


@pytest.mark.parametrize("truncation", [chunked(2), windowed(2), randomized(0.5)], ids=str)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_keep_it(truncation, way):
    module = RNN(3, 4, truncation=truncation)
    if way == "deepcopy":
        copied = copy.deepcopy(module)
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert repr(copied.truncation) == repr(truncation)
    assert module.state_dict().keys() == RNN(3, 4).state_dict().keys()
    x = torch.randn(6, 2, 3)
    found = []
    for each_ in (module, copied):
        torch.manual_seed(5)
        each_(x)[0].square().sum().backward()
        found.append(each_.weight_hh_l0.grad)
    assert torch.equal(*found)


def test_a_network_can_be_truncated():
    network = ElmanNetwork(4, 5, 3, dtype=torch.float64, truncation=windowed(2))
    assert repr(network) == "ElmanNetwork(4, 5, 3, nonlinearity='tanh', truncation=windowed(2))"
    x, y = normal(seeded(1), 6, 2, 4), torch.randint(3, (6, 2), generator=seeded(2))
    loss = sequence_loss(network(x)[0], y)
    found = torch.autograd.grad(loss, list(network.parameters()))
    truth = bptt(network.state_dict(), x, y, truncation=windowed(2))
    for (name, _), value in zip(network.named_parameters(), found, strict=True):
        assert_close(name, value, getattr(truth, f"d{name}"), EXACT)


# what is refused

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: chunked(0), ValueError, "chunked: expected k of at least 1 step, got 0"),
    (lambda: chunked(-3), ValueError, "chunked: expected k of at least 1 step, got -3"),
    (lambda: chunked(2.0), TypeError, "chunked: expected k to be an int, got float"),
    (lambda: chunked(True), TypeError, "chunked: expected k to be an int, got bool"),
    (lambda: windowed(0), ValueError, "windowed: expected k of at least 1 step, got 0"),
    (lambda: windowed("2"), TypeError, "windowed: expected k to be an int, got str"),
    (lambda: randomized(0.0), ValueError, "randomized: expected p in (0, 1], got 0.0"),
    (lambda: randomized(1.5), ValueError, "randomized: expected p in (0, 1], got 1.5"),
    (lambda: randomized(-0.1), ValueError, "randomized: expected p in (0, 1], got -0.1"),
    (lambda: randomized(float("nan")), ValueError, "randomized: expected p in (0, 1], got nan"),
    (lambda: randomized("half"), TypeError, "randomized: expected p to be a number, got str"),
    (lambda: randomized(0.5, 3), TypeError, "randomized: expected generator to be a torch.Generator, got int"),
    (lambda: RNN(3, 4, truncation=5), TypeError, "RNN: expected truncation to be None or made by full, chunked"),
    (lambda: ElmanNetwork(3, 4, 2, truncation="full"), TypeError, "ElmanNetwork: expected truncation to be None or"),
    (
        lambda: rnn(*(drawn().tensors()[k] for k in ("x", "h0", "U", "W")), truncation=2),
        TypeError,
        "rnn: expected trunc",
    ),
    (lambda: result_of(drawn(), chunked), TypeError, "bptt: expected truncation to be None or made by full, chunked"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_an_attribute_that_is_no_truncation_is_refused_when_it_is_used():
    module = RNN(3, 4)
    module.truncation = 5
    with pytest.raises(TypeError, match="RNN: expected truncation to be None or made by full"):
        module(torch.randn(5, 2, 3))


# mistakes that are seen


PLANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "ξ of the step itself": (
        eager,
        "backward",
        lambda right, dh, slope, W, f, sizes, xi: right(dh, slope, W, f, sizes, xi and [xi[0], *xi[:-1]]),
    ),
    "ξ left out": (eager, "backward", lambda right, dh, slope, W, f, sizes, xi: right(dh, slope, W, f, sizes, None)),
    "window one step longer": (lags, "within", lambda right, *rest: right(*rest[:-1], rest[-1] + 1)),
    "window one step shorter": (lags, "within", lambda right, *rest: right(*rest[:-1], rest[-1] - 1)),
    "h0 of every loss": (recurrence, "entering", lambda right, da, *rest: da),
}


@pytest.mark.parametrize("mistake", PLANTS)
def test_a_planted_mistake_is_seen(mistake, monkeypatch):
    owner, name, wrong = PLANTS[mistake]
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *rest: wrong(right, *rest))
    problem = drawn()
    seen = []
    for truncation, told in TRUNCATIONS.values():
        truth = reference(problem, told)
        with kernels.use("eager"):  # plants are put into Python
            seen.append(bool(disagreements(by_rnn(problem, truncation), truth, 1e-6)))
    assert any(seen)
    assert not seen[list(TRUNCATIONS).index("full")]


def test_functional_call_uses_the_module_s_truncation():
    module = RNN(3, 4, dtype=torch.float64, truncation=chunked(2))
    x = normal(seeded(0), 6, 2, 3)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (x,))[0].square().sum()

    found = grad(loss)(dict(module.named_parameters()))
    loss(dict(module.named_parameters())).backward()
    for name, parameter in module.named_parameters():
        assert_close(name, found[name], parameter.grad, EXACT)
