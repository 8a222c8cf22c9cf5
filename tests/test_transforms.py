"""torch.func, forward mode and batched gradients, held against the same transform of the plain loop.

Would catch a tangent (T1-T3) with a wrong term, a batching rule that mixes samples or models, a kernel that writes in
place where somebody looks at every operator, and a second derivative that treats saved states as constants.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from problems import GENERAL, NONLINEARITIES, SMALL, assert_close, make_problem, normal, seeded
from torch import Tensor, func
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

import torch_reference
from manual_bptt import ElmanNetwork, kernels, readout, rnn, softmax_cross_entropy, squared_error
from manual_bptt.kernels import eager, native

# torch's own decompositions for forward mode are scripted when they are first asked for
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

EXACT = 1e-11  # norm-wise; the third derivative of a loss sums up more rounding than a gradient
STRICT = {"atol": 1e-8, "rtol": 1e-6}
NAMES = ("x", "h0", "U", "W", "b")


def loop(x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor, nonlinearity: str = "tanh") -> Tensor:
    """Run the plain loop: every transform of it is torch's own."""
    parameters = {"U": U, "W": W, "b": b, "V": W.new_zeros(1, W.shape[0])}
    return torch.stack(torch_reference.unrolled(parameters, x, h0, nonlinearity).h)


def arguments(nonlinearity: str = "tanh") -> tuple[Tensor, ...]:
    problem = make_problem(GENERAL, nonlinearity=nonlinearity)
    return problem.x, problem.h0, *(problem.parameters[name] for name in ("U", "W", "b"))


def directions(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(normal(seeded(10 + place), *value.shape) for place, value in enumerate(values))


def squared(states: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of all states with different weights, so that no upstream gradient is ones."""

    def loss(*values: Any) -> Tensor:
        h = states(*values)
        weights = torch.linspace(-1.0, 2.0, h.numel(), dtype=h.dtype).view(h.shape)  # vmap allows no random ones
        return (h.square() * weights).sum()

    return loss


def same(actual: Any, truth: Any, name: str = "result") -> None:
    if isinstance(truth, tuple):
        assert len(actual) == len(truth)
        for place, (mine, theirs) in enumerate(zip(actual, truth, strict=True)):
            same(mine, theirs, f"{name}[{place}]")
    else:
        assert_close(name, actual, truth, EXACT)


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor], tuple[Tensor, ...]], Any]] = {
    "jvp": lambda f, values: func.jvp(f, values, directions(values)),
    "linearize": lambda f, values: func.linearize(f, *values)[1](*directions(values)),
    "vjp": lambda f, values: func.vjp(f, *values)[1](normal(seeded(4), *f(*values).shape)),
    "grad": lambda f, values: func.grad(squared(f), (0, 1, 2, 3, 4))(*values),
    "jacrev": lambda f, values: func.jacrev(f, (0, 1, 2, 3, 4))(*values),
    "jacfwd": lambda f, values: func.jacfwd(f, (0, 1, 2, 3, 4))(*values),
    "hessian": lambda f, values: func.hessian(squared(f), (1, 3))(*values),
    "jvp-of-grad": lambda f, values: func.jvp(func.grad(squared(f), (1, 3)), values, directions(values)),
    "grad-of-jvp": lambda f, values: func.grad(lambda *v: func.jvp(squared(f), v, directions(v))[1], (0, 3))(*values),
}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # linearize's own
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_transforms_of_the_recurrence(nonlinearity, transform):
    values = arguments(nonlinearity)
    apply = TRANSFORMS[transform]
    same(apply(lambda *v: rnn(*v, nonlinearity), values), apply(lambda *v: loop(*v, nonlinearity), values))


@pytest.mark.parametrize("moved", NAMES)
def test_the_tangent_of_one_argument_at_a_time(moved):
    values = dict(zip(NAMES, arguments(), strict=True))
    direction = normal(seeded(5), *values[moved].shape)

    def along(states: Callable[..., Tensor]) -> Any:
        return func.jvp(lambda value: states(*(values | {moved: value}).values()), (values[moved],), (direction,))

    same(along(rnn), along(loop))


def test_a_third_derivative():
    x, h0, U, W, b = arguments()

    def third(states: Callable[..., Tensor]) -> Tensor:
        once = squared(lambda W: states(x, h0, U, W, b))
        twice = func.grad(lambda W: func.grad(once)(W).square().sum())
        return func.grad(lambda W: twice(W).square().sum())(W)

    same(third(rnn), third(loop))


MAPPED = [choice for choice in itertools.product([None, 0], repeat=5) if any(axis == 0 for axis in choice)]


@pytest.mark.parametrize(
    "axes", MAPPED, ids=lambda axes: "-".join(n for n, a in zip(NAMES, axes, strict=True) if a == 0)
)
def test_vmap_over_any_arguments_forward_and_gradient(axes):
    values = tuple(
        value if axis is None else torch.stack([value, 0.5 * value, normal(seeded(7), *value.shape)])
        for value, axis in zip(arguments(), axes, strict=True)
    )
    same(func.vmap(rnn, axes)(*values), func.vmap(loop, axes)(*values))
    gradient = [func.vmap(func.grad(squared(states), (0, 1, 2, 3, 4)), axes)(*values) for states in (rnn, loop)]
    same(*gradient)


def test_per_sample_gradients_of_tokens():
    _, _, U, W, b = arguments()
    tokens = torch.randint(GENERAL.D, (3, 6, 1), generator=seeded(8))

    def loss(U: Tensor, W: Tensor, x: Tensor) -> Tensor:
        return squared(lambda U, W: rnn(x, None, U, W, b))(U, W)

    batched = func.vmap(func.grad(loss, (0, 1)), (None, None, 0))(U, W, tokens)
    alone = [func.grad(loss, (0, 1))(U, W, sample) for sample in tokens]
    same(batched, tuple(torch.stack(gradients) for gradients in zip(*alone, strict=True)))


def small(*shape: int, seed: int) -> Tensor:
    return normal(seeded(seed), *shape).requires_grad_()


T, B, D, H, K = SMALL
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "rnn": (
        rnn,
        (small(T, B, D, seed=1), small(B, H, seed=2), small(H, D, seed=3), small(H, H, seed=4), small(H, seed=5)),
    ),
    "readout": (readout, (small(T, B, H, seed=1), small(K, H, seed=2), small(K, seed=3))),
    "index": (
        lambda o: softmax_cross_entropy(o, torch.arange(T * B).view(T, B) % K, time="mean"),
        (small(T, B, K, seed=1),),
    ),
    "soft": (softmax_cross_entropy, (small(T, B, K, seed=1), small(T, B, K, seed=2))),
    "squared": (lambda o, y: squared_error(o, y, batch="mean"), (small(T, B, K, seed=1), small(T, B, K, seed=2))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode_and_batched_gradients_of_every_function(name):
    function, values = FUNCTIONS[name]
    values = tuple(value.detach().clone().requires_grad_() for value in values)
    both = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, values, **STRICT, **both)
    assert gradgradcheck(function, values, **STRICT, check_batched_grad=True, check_fwd_over_rev=True)


def test_dual_numbers_go_through_the_backward_pass():
    values = arguments()
    direction = normal(seeded(6), *values[3].shape)
    with forward_ad.dual_level():
        W = forward_ad.make_dual(values[3].clone().requires_grad_(), direction)
        loss = squared(rnn)(*values[:3], W, values[4])
        tangent = forward_ad.unpack_dual(torch.autograd.grad(loss, W)[0]).tangent
    truth = func.jvp(lambda W: func.grad(squared(loop), 3)(*values[:3], W, values[4]), (values[3],), (direction,))[1]
    same(tangent, truth)


@pytest.mark.parametrize("wrong", ["no-carry", "slope-of-h"])
def test_a_wrong_tangent_is_seen(wrong, monkeypatch):
    right = eager.tangent

    def planted(linear: Tensor, h0: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any) -> Tensor:
        if wrong == "no-carry":
            return activation.times(slope, linear)
        return right(linear, h0, slope.square(), W, activation)

    monkeypatch.setattr(eager, "tangent", planted)
    values = arguments()
    with pytest.raises(AssertionError, match="relative error"):
        same(TRANSFORMS["jvp"](rnn, values), TRANSFORMS["jvp"](loop, values))
    with pytest.raises(GradcheckError):
        gradcheck(rnn, FUNCTIONS["rnn"][1], **STRICT, check_forward_ad=True)


def test_the_fast_kernels_run_where_nobody_looks_on(monkeypatch):
    calls: list[str] = []
    for name in ("forward", "backward", "functional_forward", "functional_backward"):
        right = getattr(eager, name)
        monkeypatch.setattr(eager, name, lambda *a, name=name, right=right: calls.append(name) or right(*a))
    for name in ("forward_all", "backward_all"):
        right = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, name=name, right=right: calls.append(name) or right(*a))
    values = tuple(value.requires_grad_() for value in arguments())
    with kernels.use("eager"):
        squared(rnn)(*values).backward()
    assert calls == ["forward", "backward"]
    calls.clear()
    func.vmap(func.grad(squared(rnn), 3), (0, None, None, None, None))(
        *(v.detach() for v in (values[0][None], *values[1:]))
    )
    assert calls == ["functional_forward", "functional_backward"]
    if native.library() is not None:
        calls.clear()
        squared(rnn)(*values).backward()
        assert calls == ["forward_all", "backward_all"]


@pytest.mark.parametrize("mapped", ["o", "y", "both"])
def test_losses_over_mapped_outputs_and_targets(mapped):
    o, y = normal(seeded(1), 3, T, K), torch.randint(K, (3, T), generator=seeded(2))
    y[0, 1] = -100
    axes = (None if mapped == "y" else 0, None if mapped == "o" else 0)
    values = tuple(value[0] if axis is None else value for value, axis in zip((o, y), axes, strict=True))

    def mine(o: Tensor, y: Tensor) -> Tensor:
        return softmax_cross_entropy(o, y)

    def theirs(o: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(o, y, reduction="sum")

    same(func.vmap(mine, axes)(*values), func.vmap(theirs, axes)(*values))
    same(func.vmap(func.grad(mine), axes)(*values), func.vmap(func.grad(theirs), axes)(*values))
    for place in range(3):
        alone = [value if axis is None else value[place] for value, axis in zip(values, axes, strict=True)]
        same(func.hessian(mine)(*alone), func.hessian(theirs)(*alone))


def test_per_sample_gradients_and_ensembles_of_a_module():
    models = [ElmanNetwork(D, H, K, dtype=torch.float64) for _ in range(3)]
    x, y = normal(seeded(1), 4, T, D), torch.randint(K, (4, T), generator=seeded(2))

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        o, _ = func.functional_call(models[0], parameters, (x,))
        return softmax_cross_entropy(o, y)

    stacked, _ = func.stack_module_state(models)
    per_sample = func.vmap(func.grad(loss), (None, 0, 0))
    every = func.vmap(per_sample, (0, None, None))(stacked, x, y)  # (models, samples, ...)
    for m, model in enumerate(models):
        for n in range(4):
            model.zero_grad()
            softmax_cross_entropy(model(x[n])[0], y[n]).backward()
            for name, parameter in model.named_parameters():
                same(every[name][m, n], parameter.grad, name)
