"""RNN and RNNCell under everything that torch differentiates with, held against torch.nn's under the same.

Where torch.nn's own fail, the truth is a loop over samples, models or sequences, and the failure is asserted, so that
no table that claims it can go stale. Would catch a layer, direction or layout that is right under autograd alone: a
mask, an index or an option lost under vmap, forward mode or a second derivative, and samples or models that mix.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import assert_close, normal, seeded
from torch import Tensor, func, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.functional import dropout
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map

from manual_bptt import RNN, RNNCell

pytestmark = [
    # torch's own: its decompositions for forward mode are scripted when they are first asked for
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),  # torch's own, in linearize
]

T, B, D, H = 5, 3, 4, 6
FIRST, SECOND = 1e-12, 1e-11  # norm-wise, of first and of higher derivatives
STRICT = {"atol": 1e-8, "rtol": 1e-6}
LENGTHS = torch.tensor([3, 5, 2])
DEEP = {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu-2-layers-2-directions": DEEP,
    "batch-first-no-bias": {"batch_first": True, "bias": False},
}
WAYS = ("tanh", "relu-2-layers-2-directions", "batch-first-no-bias", "packed", "lengths")
BATCHING = "Batching rule not implemented|doesn't match the broadcast shape"  # what vmap says of torch.nn's


def pair(mine: Any = RNN, device: Any = "cpu", **options: Any) -> tuple[Any, Any]:
    """Make one of ours on the device and its twin of torch.nn on the CPU, where that one can do the most."""
    torch.manual_seed(0)
    theirs = {RNN: nn.RNN, RNNCell: nn.RNNCell}[mine](D, H, dtype=torch.float64, **options)
    ours = mine(D, H, dtype=torch.float64, device=device, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def at(device: Any, values: Any) -> Any:
    return tree_map(lambda value: value.to(device), values)


def same(actual: Any, truth: Any, tolerance: float = SECOND) -> None:
    """Compare leaf by leaf, wherever they live."""
    pairs = list(zip(tree_leaves(actual), tree_leaves(truth), strict=True))
    assert any(theirs.norm() > 0 for _, theirs in pairs), "nothing but zeros to compare with"
    for place, (ours, theirs) in enumerate(pairs):
        assert_close(f"result {place}", ours.detach().cpu(), theirs.detach().cpu(), tolerance)


def directions(values: Any) -> Any:
    """Random tangents or cotangents, the same on every device."""
    return tree_map(lambda value: normal(seeded(value.numel()), *value.shape).to(value.device), values)


def loss(values: Any) -> Tensor:
    """Weigh every entry of every result differently; no random numbers, of which vmap would want to know."""
    return sum(
        (value.pow(2 + place) * torch.linspace(-1, 2, value.numel(), device=value.device).view(value.shape)).sum()
        for place, value in enumerate(tree_leaves(values))
    )


def way(name: str, device: Any = "cpu") -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    """Ours and the truth as functions of parameters, input and hx, and these.

    "packed" and "lengths" run two layers in two directions; their truth is torch.nn.RNN on one sequence at a time.
    """
    mine, theirs = pair(device=device, **OPTIONS.get(name, DEEP))
    x = normal(seeded(1), T, B, D)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    places = pack_padded_sequence(torch.arange(T * B).view(T, B, 1), LENGTHS, enforce_sorted=False).data.flatten()
    where = {place: row for row, place in enumerate(places.tolist())}
    hx = normal(seeded(2), len(mine.all_weights), T if mine.batch_first else B, H)

    def ours(weights: dict[str, Tensor], x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        if name == "packed":
            output, h_n = func.functional_call(mine, weights, (at_rows(x), hx))
            return output.data, h_n
        more = {"lengths": LENGTHS.to(device)} if name == "lengths" else {}
        return func.functional_call(mine, weights, (x, hx), more)

    def at_rows(rows: Tensor) -> PackedSequence:
        indices = (packed.sorted_indices.to(device), packed.unsorted_indices.to(device))
        return PackedSequence(rows, packed.batch_sizes, *indices)

    def truth(weights: dict[str, Tensor], x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        if name in OPTIONS:
            return func.functional_call(theirs, weights, (x, hx))
        outputs, finals = {}, []
        for n, length in enumerate(LENGTHS.tolist()):
            rows = [where[t * B + n] for t in range(length)]
            steps = x[rows] if name == "packed" else x[:length, n]
            output, h_n = func.functional_call(theirs, weights, (steps, hx[:, n]))
            finals.append(h_n)
            outputs |= {(rows[t] if name == "packed" else t * B + n): output[t] for t in range(length)}
        if name == "packed":
            return torch.stack([outputs[row] for row in range(len(outputs))]), torch.stack(finals, 1)
        nothing = hx.new_zeros(2 * H)
        return torch.stack([outputs.get(p, nothing) for p in range(T * B)]).view(T, B, -1), torch.stack(finals, 1)

    return ours, truth, (parameters(theirs), packed.data if name == "packed" else x, hx)


each_way = pytest.mark.parametrize("name", WAYS)

TRANSFORMS: dict[str, Callable[[Callable[..., Any], tuple[Any, ...]], Any]] = {
    "jvp": lambda f, v: func.jvp(f, v, directions(v)),
    "vjp": lambda f, v: func.vjp(f, *v)[1](directions(f(*v))),
    "linearize": lambda f, v: func.linearize(f, *v)[1](*directions(v)),
    "grad": lambda f, v: func.grad(lambda *v: loss(f(*v)), (0, 1, 2))(*v),
    "jacrev": lambda f, v: func.jacrev(f, (0, 2))(*v),
    "jacfwd": lambda f, v: func.jacfwd(f, (0, 2))(*v),
    "hessian": lambda f, v: func.hessian(lambda *v: loss(f(*v)), (1, 2))(*v),
    "jvp-of-grad": lambda f, v: func.jvp(func.grad(lambda *v: loss(f(*v)), (0, 1, 2)), v, directions(v)),
    "grad-of-jvp": lambda f, v: func.grad(lambda *v: loss(func.jvp(f, v, directions(v))[1]), (0, 1, 2))(*v),
}


SLOW = {
    ("linearize", "relu-2-layers-2-directions"),
    ("linearize", "lengths"),
    ("linearize", "packed"),
    ("linearize", "batch-first-no-bias"),
}


@pytest.mark.parametrize(
    ("transform", "name"), [(each, name) for each in TRANSFORMS for name in WAYS if (each, name) not in SLOW]
)
def test_transform(transform, name, device):
    ours, truth, values = way(name, device)
    same(TRANSFORMS[transform](ours, at(device, values)), TRANSFORMS[transform](truth, values))


@pytest.mark.parametrize("transform", ["jvp", "linearize", "jacrev", "jacfwd"])
def test_transform_under_no_grad(transform, device):
    ours, truth, values = way("tanh", device)
    with torch.no_grad():
        actual = TRANSFORMS[transform](ours, at(device, values))
    same(actual, TRANSFORMS[transform](truth, values))


def test_linearize_at_parameters_that_require_gradients(device):
    mine, theirs = pair(device=device)
    x = normal(seeded(1), T, B, D)

    def linearized(model: nn.Module, x: Tensor) -> Any:
        return func.linearize(model, x)[1](directions(x))

    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        linearized(theirs, x)
    same(linearized(mine, x.to(device)), func.jvp(theirs, (x,), (directions(x),))[1])


def test_transforms_of_a_packed_sequence_that_torch_refuses():
    """What makes test_transform's packed rows rows of this module alone."""
    _, theirs = pair()
    packed = pack_padded_sequence(normal(seeded(1), T, B, D), LENGTHS, enforce_sorted=False)

    def states(rows: Tensor) -> Tensor:
        return theirs(PackedSequence(rows, *packed[1:]))[0].data

    for transform in ("jvp", "grad", "jacfwd", "linearize", "hessian"):
        with pytest.raises(RuntimeError):
            TRANSFORMS[transform](lambda a, x, b: states(x), (torch.ones(()), packed.data, torch.ones(())))


def checked(name: str, device: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    """Ours as a function of tensors alone, for gradcheck."""
    ours, _, (weights, *inputs) = way(name, device)
    tensors = at(device, [*inputs, *weights.values()])

    def states(x: Tensor, hx: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return ours(dict(zip(weights, rest, strict=True)), x, hx)

    return states, [value.clone().requires_grad_() for value in tensors]


@each_way
def test_gradcheck_with_forward_mode_and_batched_gradients(name, device):
    states, values = checked(name, device)
    every = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(states, values, **STRICT, **every, fast_mode=True)


@pytest.mark.parametrize("name", ["relu-2-layers-2-directions", "packed", "lengths"])
def test_gradgradcheck_with_batched_gradients_and_forward_over_reverse(name, device):
    states, values = checked(name, device)
    every = {"check_batched_grad": True, "check_fwd_over_rev": True}
    assert gradgradcheck(states, values, **STRICT, **every, fast_mode=True)


@pytest.mark.parametrize("nonlinearity", ["relu", "sigmoid", "identity"])
def test_gradcheck_of_every_entry(nonlinearity):
    torch.manual_seed(0)
    model = RNN(2, 3, nonlinearity=nonlinearity, dtype=torch.float64)
    x, hx = normal(seeded(1), 4, 2, 2).requires_grad_(), normal(seeded(2), 1, 2, 3).requires_grad_()

    def states(x: Tensor, hx: Tensor, *weights: Tensor) -> Any:
        return func.functional_call(model, dict(zip(parameters(model), weights, strict=True)), (x, hx))

    values = (x, hx, *model.parameters())
    assert gradcheck(states, values, **STRICT, check_forward_ad=True)
    assert gradgradcheck(states, values, **STRICT)


@each_way
def test_third_order_gradient(name, device):
    ours, truth, values = way(name, device)

    def third(f: Callable[..., Any], weights: dict[str, Tensor], x: Tensor, hx: Tensor) -> Any:
        x = x.clone().requires_grad_()
        weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
        (once,) = torch.autograd.grad(loss(f(weights, x, hx)), x, create_graph=True)
        (twice,) = torch.autograd.grad(once.square().sum(), x, create_graph=True)
        return torch.autograd.grad(twice.square().sum(), [x, *weights.values()])

    same(third(ours, *at(device, values)), third(truth, *values))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_gradient_penalty_in_a_training_step(options, device):
    found = []
    for model, where in zip(pair(device=device, **options), (device, "cpu"), strict=True):
        x = normal(seeded(1), T, B, D).to(where).requires_grad_()
        value = loss(model(x))
        (dx,) = torch.autograd.grad(value, x, create_graph=True)
        (value + (dx.norm(dim=-1) - 1).square().sum()).backward()
        found.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    same(*found)


@pytest.mark.parametrize("moved", ["input", "hx", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("grad_mode", [True, False], ids=["grad", "no_grad"])
def test_dual_numbers(grad_mode, moved, device):
    found = []
    for model, where in zip(pair(device=device), (device, "cpu"), strict=True):
        values = {"input": normal(seeded(1), T, B, D), "hx": normal(seeded(2), 1, B, H)}
        values |= parameters(model)
        values = at(where, values)
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
            values[moved] = forward_ad.make_dual(values[moved], directions(values[moved]))
            inputs = values.pop("input"), values.pop("hx")
            results = func.functional_call(model, values, inputs)
            found.append([forward_ad.unpack_dual(result).tangent for result in results])
    same(*found, tolerance=FIRST)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_dual_parameters_through_the_backward_pass(options, device):
    """Forward over reverse with torch.autograd alone: the tangents of the gradients."""
    found = []
    for model, where in zip(pair(device=device, **options), (device, "cpu"), strict=True):
        x = normal(seeded(1), T, B, D).to(where)
        with forward_ad.dual_level():
            tangents = directions(parameters(model))
            weights = {n: forward_ad.make_dual(value, tangents[n]) for n, value in model.named_parameters()}
            gradients = torch.autograd.grad(loss(func.functional_call(model, weights, (x,))), list(weights.values()))
            found.append([forward_ad.unpack_dual(gradient).tangent for gradient in gradients])
    same(*found)


@pytest.mark.parametrize("again", [False, True], ids=["once", "create_graph"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_batched_gradients(options, again, device):
    found = []
    for model, where in zip(pair(device=device, **options), (device, "cpu"), strict=True):
        x = normal(seeded(1), T, B, D).to(where).requires_grad_()
        leaves = [x, *model.parameters()]
        output, _ = model(x)
        upstream = normal(seeded(3), 4, *output.shape).to(where)
        gradients = torch.autograd.grad(output, leaves, upstream, is_grads_batched=True, create_graph=again)
        found.append(torch.autograd.grad(loss(gradients), leaves) if again else gradients)
    same(*found)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobian_and_hessian_of_torch_autograd_functional(strategy):
    found = []
    for model in pair(**DEEP):
        x = normal(seeded(1), T, B, D)
        jacobian = torch.autograd.functional.jacobian(model, x, vectorize=True, strategy=strategy)
        hessian = torch.autograd.functional.hessian(
            lambda x, model=model: loss(model(x)), x, vectorize=True, outer_jacobian_strategy=strategy
        )
        found.append((jacobian, hessian))
    same(*found)


@pytest.mark.parametrize("given", ["all", "some", "tied"])
def test_functional_call(given, device):
    found = []
    for model, where in zip(pair(device=device, bidirectional=True), (device, "cpu"), strict=True):
        weights = at(where, {name: 2 * value for name, value in parameters(model).items()})
        if given == "some":
            weights = {name: weights[name] for name in ("weight_hh_l0", "bias_ih_l0_reverse")}
        if given == "tied":
            model.weight_hh_l0_reverse = model.weight_hh_l0
            weights = {"weight_hh_l0": weights["weight_hh_l0"]}
        x = normal(seeded(1), T, B, D).to(where)
        call = func.grad(lambda weights, model=model, x=x: loss(func.functional_call(model, weights, (x,))))
        found.append((func.functional_call(model, weights, (x,)), call(weights)))
    same(*found)


def stacked(values: Any, copies: int = 3) -> Any:
    """Different values for every sample or model, along a new first axis."""
    return tree_map(lambda v: torch.stack([v * (0.5 + n) + n / 7 for n in range(copies)]), values)


def one_by_one(f: Callable[..., Any], axes: tuple[int | None, ...], values: tuple[Any, ...]) -> Any:
    """What vmap computes."""
    each = []
    for n in range(3):
        alone = [v if axis is None else tree_map(lambda v, n=n: v[n], v) for v, axis in zip(values, axes, strict=True)]
        each.append(f(*alone))
    return tree_map(lambda *results: torch.stack(results), *each)


MAPPED = {
    "input": (None, 0, None),
    "hx": (None, None, 0),
    "input-and-hx": (None, 0, 0),
    "parameters": (0, None, None),
    "everything": (0, 0, 0),
}


@each_way
@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("kind", ["forward", "grad", "jvp"])
def test_vmap(kind, mapped, name, device):
    ours, truth, values = way(name, device)
    axes = MAPPED[mapped]
    values = tuple(v if axis is None else stacked(v) for v, axis in zip(values, axes, strict=True))
    if kind == "grad":
        ours, truth = (func.grad(lambda *v, f=f: loss(f(*v)), (0, 1, 2)) for f in (ours, truth))
    if kind == "jvp":
        ours, truth = (lambda *v, f=f: func.jvp(f, v, tree_map(torch.sin, v)) for f in (ours, truth))
    same(func.vmap(ours, axes)(*at(device, values)), one_by_one(truth, axes, values))


@each_way
@pytest.mark.parametrize("mapped", MAPPED)
def test_backward_through_vmap_of_what_is_mapped_alone(mapped, name, device):
    """The rest needs no gradient: what is kept for backward differs from what is kept for the forward mode."""
    ours, truth, values = way(name, device)
    axes = MAPPED[mapped]
    values = tuple(v if axis is None else stacked(v) for v, axis in zip(values, axes, strict=True))
    found = []
    for call, where in ((func.vmap(ours, axes), device), (lambda *v: one_by_one(truth, axes, v), "cpu")):
        given = at(where, values)
        leaves = tree_leaves([v for v, axis in zip(given, axes, strict=True) if axis is not None])
        for leaf in leaves:
            leaf.requires_grad_()
        loss(call(*given)).backward()
        found.append([leaf.grad.clone() for leaf in leaves])
        for leaf in leaves:  # on the CPU both have the same
            leaf.requires_grad_(False).grad = None
    same(*found)


@pytest.mark.parametrize("mapped", [m for m in MAPPED if m != "everything"])
def test_vmap_fails_for_torch(mapped):
    _, truth, values = way("tanh")
    axes = MAPPED[mapped]
    values = tuple(v if axis is None else stacked(v) for v, axis in zip(values, axes, strict=True))
    with pytest.raises(RuntimeError, match=BATCHING):
        func.vmap(truth, axes)(*values)


def test_vmap_over_lengths(device):
    mine, _ = pair(device=device, **DEEP)
    x, every = normal(seeded(1), T, B, D).to(device), torch.tensor([[3, 5, 2], [0, 1, 5], [4, 4, 4]], device=device)
    actual = func.vmap(lambda lengths: mine(x, lengths=lengths))(every)
    truth = [mine(x, lengths=lengths) for lengths in every]
    same(actual, tuple(torch.stack(values) for values in zip(*truth, strict=True)))


@pytest.mark.parametrize(("axis", "out"), [(0, 0), (1, 2), (2, 1)])
def test_vmap_over_any_axis_and_the_backward_pass_through_it(axis, out, device):
    """Unbatched sequences, mapped: by the definition of a batch this is nn.RNN on the batch."""
    mine, theirs = pair(device=device, **DEEP)
    x = normal(seeded(1), T, B, D)
    leaf = x.movedim(1, axis).to(device).detach().requires_grad_()
    output = func.vmap(lambda x: mine(x)[0], axis, out)(leaf)
    loss(output.movedim(out, 1)).backward()
    truth = x.clone().requires_grad_()
    expected, _ = theirs(truth)
    loss(expected).backward()
    same(output.movedim(out, 1), expected, FIRST)
    same(leaf.grad.movedim(axis, 1), truth.grad)
    same([p.grad for p in mine.parameters()], [p.grad for p in theirs.parameters()])


def test_vmap_without_hx_in_chunks_and_nested(device):
    mine, theirs = pair(device=device)
    x = normal(seeded(1), 4, 3, T, B, D)
    truth = torch.stack([torch.stack([theirs(inner)[0] for inner in outer]) for outer in x])
    same(func.vmap(func.vmap(lambda x: mine(x)[0]), chunk_size=2)(x.to(device)), truth, FIRST)


def test_an_output_that_is_changed_in_place_inside_vmap(device):
    """As outside of vmap: the graph keeps its own states."""
    mine, theirs = pair(device=device)
    x = normal(seeded(1), 2, T, B, D)
    loss(func.vmap(lambda x: mine(x)[0].mul_(2))(x.to(device))).backward()
    loss(torch.stack([theirs(sample)[0].mul_(2) for sample in x])).backward()
    same([p.grad for p in mine.parameters()], [p.grad for p in theirs.parameters()])


@pytest.mark.parametrize("with_hx", [False, True], ids=["no-hx", "hx"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_per_sample_gradients(options, with_hx, device):
    mine, theirs = pair(device=device, **options)
    x, hx = normal(seeded(1), 4, T, D), normal(seeded(2), 4, len(mine.all_weights), H)

    def gradients(model: nn.Module, x: Tensor, hx: Tensor) -> Any:
        def value(weights: dict[str, Tensor], x: Tensor, hx: Tensor) -> Tensor:
            return loss(func.functional_call(model, weights, (x, hx) if with_hx else (x,)))

        return func.vmap(func.grad(value), (None, 0, 0))(parameters(model), x, hx)

    truth = []
    for sample, initial in zip(x, hx, strict=True):
        theirs.zero_grad()
        loss(theirs(sample, initial if with_hx else None)).backward()
        truth.append({name: parameter.grad.clone() for name, parameter in theirs.named_parameters()})
    truth = {name: torch.stack([gradient[name] for gradient in truth]) for name in truth[0]}
    actual = gradients(mine, *at(device, (x, hx)))
    same({name: actual[name] for name in truth}, truth, FIRST)
    if not with_hx:
        with pytest.raises(RuntimeError, match=BATCHING):
            gradients(theirs, x, hx)


def test_ensemble_by_stacked_parameters(device):
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(nn.RNN(D, H, dtype=torch.float64, **DEEP))
    x = normal(seeded(1), T, B, D)
    mine, _ = pair(device=device, **DEEP)

    def states(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Any:
        return func.vmap(lambda weights: func.functional_call(model, weights, (x,)))(weights)

    twins = []
    for model in models:
        twins.append(RNN(D, H, dtype=torch.float64, device=device, **DEEP))
        twins[-1].load_state_dict(model.state_dict())
    weights, _ = func.stack_module_state(twins)
    actual = states(mine, weights, x.to(device))
    truth = [model(x) for model in models]
    same(actual, tuple(torch.stack(values) for values in zip(*truth, strict=True)), FIRST)
    loss(actual).backward()
    loss(tuple(torch.stack(values) for values in zip(*truth, strict=True))).backward()
    for name, weight in weights.items():
        same(weight.grad, torch.stack([model.get_parameter(name).grad for model in models]))
    with pytest.raises(RuntimeError, match=BATCHING):
        states(models[0], func.stack_module_state(models)[0], x)


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_vmap_with_dropout(randomness):
    """The masks are those that F.dropout draws under vmap from the same seed. On the CPU: other devices draw others."""
    options = {"num_layers": 2, "dropout": 0.4}
    mine, theirs = pair(**options)
    x = normal(seeded(1), T, B, D).expand(4, T, B, D)
    torch.manual_seed(5)
    output, _ = func.vmap(mine, randomness=randomness)(x)
    torch.manual_seed(5)
    ones = torch.ones(4, T, B, H, dtype=torch.float64)
    masks = func.vmap(lambda value: dropout(value, 0.4), randomness=randomness)(ones)
    distinct = len({tuple(mask.flatten().tolist()) for mask in masks})
    assert distinct == (4 if randomness == "different" else 1)
    lower, upper = (nn.RNN(size, H, dtype=torch.float64) for size in (D, H))
    for layer, model in enumerate((lower, upper)):
        weights = {n[:-1] + "0": v for n, v in theirs.state_dict().items() if n.endswith(f"_l{layer}")}
        model.load_state_dict(weights)
    same(output, torch.stack([upper(lower(x[0])[0] * mask)[0] for mask in masks]), FIRST)
    with pytest.raises(RuntimeError, match=BATCHING):
        func.vmap(theirs, randomness=randomness)(x)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_expanded_weights(options, device):
    """torch.nn.utils' own per-sample gradients, and that they are those of every sample alone."""
    found = []
    batch_first = options.get("batch_first", False)
    for model, where in zip(pair(device=device, **options), (device, "cpu"), strict=True):
        x = normal(seeded(1), T, B, D).to(where)
        wrapped = call_for_per_sample_grads(
            model, batch_size=T if batch_first else B, loss_reduction="sum", batch_first=batch_first
        )
        output, h_n = wrapped(x)
        loss((output, h_n)).backward()
        found.append([parameter.grad_sample for parameter in model.parameters()])
    same(*found, tolerance=FIRST)
    mine, _ = pair(device=device, **options)
    loss(mine(normal(seeded(1), T, B, D).to(device))).backward()
    same([each.sum(0) for each in found[0]], [parameter.grad for parameter in mine.parameters()])


@pytest.mark.parametrize("model", [RNN(D, H, nonlinearity="sigmoid"), RNNCell(D, H), nn.RNNCell(D, H)], ids=repr)
def test_expanded_weights_are_refused_where_torch_has_no_operator(model):
    with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle function"):
        call_for_per_sample_grads(model)(torch.ones(B, D))


def cell_function(model: nn.Module) -> Callable[..., Tensor]:
    return lambda weights, x, hx: func.functional_call(model, weights, (x, hx))


CELLS = {"tanh": {}, "relu": {"nonlinearity": "relu"}, "no-bias": {"bias": False}}


@pytest.mark.parametrize("options", CELLS.values(), ids=list(CELLS))
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform_of_the_cell(transform, options, device):
    mine, theirs = pair(RNNCell, device, **options)
    values = parameters(theirs), normal(seeded(1), B, D), normal(seeded(2), B, H)
    actual = TRANSFORMS[transform](cell_function(mine), at(device, values))
    same(actual, TRANSFORMS[transform](cell_function(theirs), values))


@pytest.mark.parametrize("options", CELLS.values(), ids=list(CELLS))
@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("kind", ["forward", "grad"])
def test_vmap_of_the_cell(kind, mapped, options, device):
    """Mapped over the parameters: an ensemble; "grad" over the input: per-sample gradients."""
    mine, theirs = pair(RNNCell, device, **options)
    axes = MAPPED[mapped]
    values = parameters(theirs), normal(seeded(1), B, D), normal(seeded(2), B, H)
    values = tuple(v if axis is None else stacked(v) for v, axis in zip(values, axes, strict=True))
    ours, truth = cell_function(mine), cell_function(theirs)
    if kind == "grad":
        ours, truth = (func.grad(lambda *v, f=f: loss(f(*v)), (0, 1, 2)) for f in (ours, truth))
    same(func.vmap(ours, axes)(*at(device, values)), one_by_one(truth, axes, values))


@pytest.mark.parametrize("nonlinearity", ["relu", "sigmoid", "identity"])
def test_gradcheck_of_the_cell(nonlinearity):
    torch.manual_seed(0)
    cell = RNNCell(2, 3, nonlinearity=nonlinearity, dtype=torch.float64)
    x, hx = normal(seeded(1), 4, 2).requires_grad_(), normal(seeded(2), 4, 3).requires_grad_()

    def state(x: Tensor, hx: Tensor, *weights: Tensor) -> Tensor:
        return func.functional_call(cell, dict(zip(parameters(cell), weights, strict=True)), (x, hx))

    every = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(state, (x, hx, *cell.parameters()), **STRICT, **every)
    assert gradgradcheck(state, (x, hx, *cell.parameters()), **STRICT, check_batched_grad=True, check_fwd_over_rev=True)
