"""The Functions as citizens of autograd: gradcheck, gradgradcheck, who asked for what, strides, memory kept.

Would catch: a first or second derivative that is wrong at 1e-6 (gradcheck's default tolerances accept a dW that is
0.1 % wrong, these do not), a backward that cannot be differentiated again, a gradient computed for nobody, one that
lands on the wrong argument, inputs or upstream gradients in an unusual memory layout read wrongly, and anything kept
for backward that a reader of the docstrings would not expect.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from problems import (
    GENERAL,
    NONLINEARITIES,
    SMALL,
    TOLERANCE,
    Problem,
    assert_all_close,
    assert_close,
    away_from_kink,
    by_functions,
    leaves,
    loss_of,
    make_problem,
    normal,
    seeded,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torch_reference
from manual_bptt import kernels, readout, rnn, softmax_cross_entropy, squared_error

STRICT = {"atol": 1e-8, "rtol": 1e-6}
EXACT = TOLERANCE[torch.float64]
# modules of the package, past the functions of the same names
recurrence_module, readout_module, losses_module = (
    import_module(f"manual_bptt.{name}") for name in ("recurrence", "readout", "losses")
)


def checks_twice(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Check first and second derivatives, with contiguous and other upstream gradients."""
    rounding = 1e-12 if inputs[0].is_cuda else 0.0  # CUDA adds the columns of dU for tokens in any order
    assert gradcheck(function, inputs, nondet_tol=rounding, **STRICT)
    assert gradgradcheck(function, inputs, gen_non_contig_grad_outputs=True, nondet_tol=rounding, **STRICT)


def small_problem(nonlinearity: str, **options: Any) -> Problem:
    """Draw a problem for numerical Jacobians."""
    if nonlinearity == "relu":
        return away_from_kink(sizes=SMALL, **options)
    return make_problem(SMALL, nonlinearity=nonlinearity, **options)


@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_rnn(nonlinearity, tokens, device):
    problem = small_problem(nonlinearity, tokens=tokens).to(device)
    named = leaves({"x": problem.x, "h0": problem.h0, **problem.parameters})
    wanted = [named[name] for name in ("x", "h0", "U", "W", "b") if named[name].requires_grad]

    def states(*wanted: Tensor) -> Tensor:
        x = () if len(wanted) == 5 else (named["x"],)
        return rnn(*x, *wanted, nonlinearity)

    checks_twice(states, tuple(wanted))


def test_rnn_without_a_bias_and_without_a_batch(device):
    named = leaves({name: tensor.to(device) for name, tensor in small_problem("tanh").tensors().items()})
    x, h0 = (named[name].detach()[..., 0, :].clone().requires_grad_() for name in ("x", "h0"))
    checks_twice(rnn, (x, h0, named["U"], named["W"]))


@pytest.mark.parametrize("with_c", [True, False], ids=["c", "no-c"])
def test_readout(with_c, device):
    T, B, _, H, K = SMALL
    generator = seeded(0)
    shapes = [(T, B, H), (K, H), (K,)][: 3 if with_c else 2]
    checks_twice(readout, tuple(normal(generator, *shape).to(device).requires_grad_() for shape in shapes))


@pytest.mark.parametrize("time", ["sum", "mean", "last"])
@pytest.mark.parametrize("kind", ["indices", "ignored", "integer-one-hot", "soft", "unnormalised", "squared-error"])
def test_losses(kind, time, device):
    T, B, _, _, K = SMALL
    problem = make_problem(SMALL, kind=kind, time=time, batch="mean").to(device)
    named = leaves({"o": normal(seeded(1), T, B, K).to(device), "y": problem.targets})
    if named["y"].requires_grad:
        checks_twice(lambda o, y: loss_of(problem, o, y), (named["o"], named["y"]))
    else:
        checks_twice(lambda o: loss_of(problem, o, problem.targets), (named["o"],))


def test_the_whole_network(device):
    problem = small_problem("tanh", time="mean").to(device)
    named = leaves(problem.tensors())

    def loss(U: Tensor, W: Tensor, V: Tensor, b: Tensor, c: Tensor, x: Tensor, h0: Tensor) -> Tensor:
        return softmax_cross_entropy(readout(rnn(x, h0, U, W, b), V, c), problem.targets, time="mean")

    checks_twice(loss, tuple(named[name] for name in ("U", "W", "V", "b", "c", "x", "h0")))


def penalised(problem: Problem, states: Callable[..., Tensor], orders: int) -> dict[str, Tensor]:
    """Differentiate |dL/dx|² for orders=2; for orders=3 |d|dL/dx|²/dx|² once more."""
    named = leaves({**problem.parameters, "x": problem.x, "h0": problem.h0})
    h = states(named["x"], named["h0"], named["U"], named["W"], named["b"], problem.options["nonlinearity"])
    value = (h.square() * normal(seeded(2), *h.shape).to(h)).sum()
    for _ in range(orders - 1):
        (slope,) = torch.autograd.grad(value, named["x"], create_graph=True)
        value = slope.square().sum()
    names = ("U", "W", "b", "x", "h0")
    found = torch.autograd.grad(value, [named[name] for name in names], materialize_grads=True)
    return {"value": value.detach()} | {"d" + name: grad for name, grad in zip(names, found, strict=True)}


def loop(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor, nonlinearity: str) -> Tensor:
    """Run the plain loop; its derivatives are autograd's, to any order."""
    parameters = {"U": U, "W": W, "b": b, "V": W.new_zeros(1, W.shape[0])}
    return torch.stack(torch_reference.unrolled(parameters, x, h0, nonlinearity).h)


@pytest.mark.parametrize("orders", [2, 3])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gradient_penalty(nonlinearity, orders, device):
    problem = make_problem(nonlinearity=nonlinearity).to(device)
    assert_all_close(penalised(problem, rnn, orders), penalised(problem, loop, orders), EXACT)


def test_gradient_penalty_of_the_loss_reaches_every_parameter(device):
    problem = make_problem(kind="soft", time="mean").to(device)

    def penalty(hand_written: bool) -> dict[str, Tensor]:
        named = leaves(problem.tensors())
        U, W, V, b, c, x, h0, y = (named[name] for name in ("U", "W", "V", "b", "c", "x", "h0", "targets"))
        if hand_written:
            value = softmax_cross_entropy(readout(rnn(x, h0, U, W, b), V, c), y, time="mean")
        else:
            o = torch.stack(torch_reference.unrolled(named, x, h0).o)
            value = torch_reference.sequence_loss(o, y, time="mean")
        first = torch.autograd.grad(value, [x, h0, y], create_graph=True)
        value = value + sum(slope.square().sum() for slope in first)
        found = torch.autograd.grad(value, list(named.values()))
        return {"d" + name: slope for name, slope in zip(named, found, strict=True)}

    assert_all_close(penalty(True), penalty(False), EXACT)


def test_the_functional_backward_is_taken_only_for_create_graph(monkeypatch, device):
    calls: Counter[str] = Counter()
    for name in ("backward", "functional_backward"):
        count(monkeypatch, import_module("manual_bptt.kernels.eager"), name, calls)
    problem = make_problem().to(device)
    with kernels.use("eager"):
        by_functions(problem)
        assert calls == {"backward": 1}
        by_functions(problem, create_graph=True)
        assert calls == {"backward": 1, "functional_backward": 1}


def count(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: Counter[str]) -> None:
    """Count the calls of a function of the package."""
    original = getattr(owner, name)

    def counting(*args: Any) -> Any:
        calls[name] += 1
        return original(*args)

    monkeypatch.setattr(owner, name, counting)


def subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield every subset but the empty one."""
    return itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(1, len(names) + 1))


COMPUTED_BY = {
    "x": (recurrence_module, "input_gradient"),
    "h0": (recurrence_module, "initial_state_gradient"),
    "U": (recurrence_module, "input_weight_gradient"),
    "W": (recurrence_module, "recurrent_weight_gradient"),
    "b": (recurrence_module, "bias_gradient"),
    "h": (readout_module, "readout_state_gradient"),
    "V": (readout_module, "readout_weight_gradient"),
    "c": (readout_module, "readout_bias_gradient"),
    "o": (losses_module, "cross_entropy_output_gradient"),
    "y": (losses_module, "cross_entropy_target_gradient"),
}
FUNCTIONS = {"rnn": rnn, "readout": readout, "softmax_cross_entropy": softmax_cross_entropy}


@pytest.mark.parametrize(
    ("function", "names"),
    [("rnn", ("x", "h0", "U", "W", "b")), ("readout", ("h", "V", "c")), ("softmax_cross_entropy", ("o", "y"))],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_only_what_somebody_asked_for_is_computed(function, names, monkeypatch, device):
    problem = make_problem(kind="soft").to(device)
    T, B, _, H, K = GENERAL
    generator = seeded(3)
    values = {
        **problem.tensors(),
        "h": normal(generator, T, B, H).to(device),
        "o": normal(generator, T, B, K).to(device),
        "y": problem.targets,
    }

    def solve(asked: tuple[str, ...]) -> dict[str, Tensor | None]:
        named = {name: values[name].clone().requires_grad_(name in asked) for name in names}
        output = FUNCTIONS[function](*named.values())
        output.backward(normal(seeded(4), *output.shape).to(device))
        return {name: tensor.grad for name, tensor in named.items()}

    everything = solve(names)
    calls: Counter[str] = Counter()
    for name in names:
        count(monkeypatch, *COMPUTED_BY[name], calls)
    for asked in subsets(names):
        calls.clear()
        with kernels.use("eager"):  # in C there is nothing to count: test_native.py
            found = solve(asked)
        assert calls == {COMPUTED_BY[name][1]: 1 for name in asked}, asked
        for name in names:
            if name in asked:
                assert_close("d" + name, found[name], everything[name], EXACT)
            else:
                assert found[name] is None, f"d{name} for {asked}"


@pytest.mark.parametrize("asked", [("o",), ("y",), ("o", "y")], ids="-".join)
def test_squared_error_gives_what_was_asked_for(asked, device):
    generator = seeded(5)
    named = {name: normal(generator, 5, 3, 4).to(device).requires_grad_(name in asked) for name in "oy"}
    squared_error(named["o"], named["y"]).backward()
    difference = (named["o"] - named["y"]).detach()
    for name, sign in (("o", 1), ("y", -1)):
        if name in asked:
            assert_close("d" + name, named[name].grad, sign * difference, EXACT)
        else:
            assert named[name].grad is None


def test_nobody_asks_for_anything(device):
    problem = make_problem().to(device)
    h = rnn(problem.x, problem.h0, *(problem.parameters[name] for name in "UWb"))
    assert not h.requires_grad
    assert not softmax_cross_entropy(readout(h, problem.parameters["V"]), problem.targets).requires_grad


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1),
    "every-second": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda tensor: torch.cat((tensor[-1:], tensor))[1:],
}


@pytest.mark.parametrize("create_graph", [False, True], ids=["fast", "differentiable"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
def test_memory_layout_of_the_inputs_does_not_matter(tokens, layout, create_graph, device):
    problem = make_problem(tokens=tokens).to(device)
    lay_out = LAYOUTS[layout]

    def solve(lay_out: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        named = leaves(problem.tensors())
        x, h0, U, W, V, b, c = (lay_out(named[name]) for name in ("x", "h0", "U", "W", "V", "b", "c"))
        loss = softmax_cross_entropy(readout(rnn(x, h0, U, W, b), V, c), lay_out(named["targets"]))
        wanted = [name for name in named if named[name].requires_grad]
        found = torch.autograd.grad(loss, [named[name] for name in wanted], create_graph=create_graph)
        return {"loss": loss} | {"d" + name: slope for name, slope in zip(wanted, found, strict=True)}

    assert not lay_out(problem.parameters["W"]).is_contiguous() or layout == "offset"
    assert_all_close(solve(lay_out), solve(torch.clone), EXACT)


def test_expanded_inputs(device):
    """One h0 for all rows, one b for all units, one x for all steps: stride 0 everywhere."""
    T, B, D, H, _ = GENERAL
    problem = make_problem().to(device)
    U, W = (problem.parameters[name] for name in "UW")
    generator = seeded(6)
    narrow = {name: normal(generator, n).to(device) for name, n in (("x", D), ("h0", H), ("b", 1))}

    def solve(states: Callable[..., Tensor], copy: bool) -> dict[str, Tensor]:
        named = leaves(narrow)
        wide = [named["x"].expand(T, B, D), named["h0"].expand(B, H), named["b"].expand(H)]
        x, h0, b = (tensor.contiguous() if copy else tensor for tensor in wide)
        h = states(x, h0, U, W, b, "tanh")
        found = torch.autograd.grad(h, list(named.values()), normal(seeded(7), T, B, H).to(device))
        return {"h": h} | dict(zip(named, found, strict=True))

    assert_all_close(solve(rnn, False), solve(loop, True), EXACT)


UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "one-number": lambda G: G[0, 0, 0].expand_as(G),
    "one-step": lambda G: G[:1].expand_as(G),
    "one-row": lambda G: G[:, :1].expand_as(G),
    "transposed": lambda G: G.transpose(0, 2).contiguous().transpose(0, 2),
    "every-second": lambda G: G.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("create_graph", [False, True], ids=["fast", "differentiable"])
@pytest.mark.parametrize("layout", UPSTREAM)
@pytest.mark.parametrize("function", ["rnn", "readout"])
def test_memory_layout_of_the_upstream_gradient_does_not_matter(function, layout, create_graph, device):
    problem = make_problem().to(device)
    U, W, V, b, c, x, h0 = (problem.tensors()[name] for name in ("U", "W", "V", "b", "c", "x", "h0"))

    def solve(upstream: Tensor) -> dict[str, Tensor]:
        inputs = (
            leaves({"x": x, "h0": h0, "U": U, "W": W, "b": b})
            if function == "rnn"
            else leaves({"h": rnn(x, h0, U, W, b), "V": V, "c": c})
        )
        output = FUNCTIONS[function](*inputs.values())
        before = upstream.clone()
        found = torch.autograd.grad(output, list(inputs.values()), upstream, create_graph=create_graph)
        assert torch.equal(upstream, before), "the upstream gradient was written to"
        return {"d" + name: slope for name, slope in zip(inputs, found, strict=True)}

    G = UPSTREAM[layout](normal(seeded(8), GENERAL.T, GENERAL.B, GENERAL.H if function == "rnn" else GENERAL.K))
    G = G.to(device)
    assert not G.is_contiguous()
    assert_all_close(solve(G), solve(G.contiguous()), EXACT)


def test_backward_twice_and_accumulated(device):
    problem = make_problem().to(device)
    named = leaves({name: problem.tensors()[name] for name in ("x", "h0", "U", "W", "b")})
    h = rnn(*named.values())
    G = normal(seeded(9), *h.shape).to(device)
    h.backward(G, retain_graph=True)
    first = {name: tensor.grad.clone() for name, tensor in named.items()}
    h.backward(G)
    assert_all_close({name: tensor.grad for name, tensor in named.items()}, {n: 2 * g for n, g in first.items()}, EXACT)
    with pytest.raises(RuntimeError, match="second time"):
        h.backward(G)


@pytest.mark.parametrize("changed", ["x", "h0", "U", "W", "h"])
def test_writing_to_what_backward_reads_is_noticed(changed, device):
    problem = make_problem().to(device)
    named = leaves({name: problem.tensors()[name] for name in ("x", "h0", "U", "W", "b")})
    named["h"] = rnn(*named.values())
    loss = named["h"].square().sum() if changed != "h" else named["h"].sum()
    with torch.no_grad():
        named[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@contextmanager
def kept_for_backward(kept: list[Tensor]) -> Iterator[None]:
    """Note every tensor that is saved for a backward."""

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Map the address of every piece of memory behind the tensors to its bytes."""
    behind = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in behind}


@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_rnn_keeps_x_h0_u_w_and_the_states_alone(nonlinearity, tokens, device):
    problem = make_problem(tokens=tokens, nonlinearity=nonlinearity).to(device)
    named = leaves({name: problem.tensors()[name] for name in ("x", "h0", "U", "W", "b")})
    kept: list[Tensor] = []
    with kept_for_backward(kept):
        h = rnn(*named.values(), nonlinearity)
    T, B, D, H, _ = GENERAL
    wanted = [named["x"], named["h0"], named["W"], h]  # U is for dx alone, and tokens have none
    assert storages(kept) == storages(wanted if tokens else [*wanted, named["U"]])
    numbers = (T * B if tokens else T * B * D + H * D) + B * H + H * H + T * B * H
    assert sum(storages(kept).values()) == 8 * numbers


def test_the_network_keeps_nothing_else_but_v_and_what_the_loss_needs(device):
    problem = make_problem().to(device)
    named = leaves(problem.tensors())
    kept: list[Tensor] = []
    with kept_for_backward(kept):
        h = rnn(*(named[name] for name in ("x", "h0", "U", "W", "b")))
        o = readout(h, named["V"], named["c"])
        loss = softmax_cross_entropy(o, named["targets"])
    T, B, _, _, K = GENERAL
    named_by_somebody = storages([h, *(named[name] for name in ("x", "h0", "U", "W", "V"))])
    others = {place: size for place, size in storages(kept).items() if place not in named_by_somebody}
    assert len(storages(kept)) == len(named_by_somebody) + len(others)
    # w, the indices without those to be ignored, and ln ŷ in the place of o
    assert sorted(others.values()) == [8 * T * B, 8 * T * B, 8 * T * B * K]
    assert loss.requires_grad
