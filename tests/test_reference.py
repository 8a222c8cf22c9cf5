"""The witnesses against each other, before anything is held against them.

Would catch a slip in any one of: the plain loop, the mapping onto torch.nn.RNN, the loss weights, the NumPy forward,
the difference rules, the indices of the closed form; and a comparison too blunt to see such a slip.
The hand-written network takes no part.
"""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_reference
from torch_reference import (
    TorchNetwork,
    central_difference,
    complex_step,
    gradients,
    linear_closed_form,
    sequence_loss,
    unrolled,
)

EXACT = 1e-12  # float64, norm-wise per gradient
DIFFERENCES = 1e-8  # what central_difference documents

SIZES = {"T": 5, "B": 3, "D": 4, "H": 6, "K": 7}
KINDS = ("index", "ignored", "one-hot", "soft", "real")  # of targets; "real" is for squared_error
TIMES = ("sum", "mean", "last")
BATCHES = ("sum", "mean")
OPTIONS = list(itertools.product(KINDS, TIMES, BATCHES))


def make_problem(kind="index", time="sum", *, T=5, B=3, D=4, H=6, K=7, seed=0, biases="bc", tokens=False):
    """One problem with |a| ~ 1 as (the positional arguments, the loss options) of gradients()."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parameters = {"U": normal(H, D) / D**0.5, "W": normal(H, H) / H**0.5, "V": normal(K, H)}
    parameters |= {name: normal(size) / 2 for name, size in (("b", H), ("c", K)) if name in biases}
    x = torch.randint(D, (T, B), generator=generator) if tokens else normal(T, B, D)
    indices = torch.randint(K, (T, B), generator=generator)
    if kind == "ignored":
        indices[0, 0] = -100
        indices[:-1, 1:2] = -100  # one step counts
        indices[:, -1] = -100  # a sequence without one step that counts
    targets = {
        "index": indices,
        "ignored": indices,
        "one-hot": F.one_hot(indices.clamp(min=0), K),
        "soft": normal(T, B, K).softmax(-1),
        "real": normal(T, B, K),
    }[kind]
    targets = targets[-1] if time == "last" else targets
    loss = "squared_error" if kind == "real" else "cross_entropy"
    return (parameters, x, targets, normal(B, H)), {"loss": loss, "time": time}


def to_numpy(value):
    """The same arguments for the NumPy witnesses."""
    return {k: v.numpy() for k, v in value.items()} if isinstance(value, dict) else value.numpy()


def numerically(rule, arguments, **options):
    return {k: torch.from_numpy(np.asarray(v)) for k, v in rule(*map(to_numpy, arguments), **options).items()}


def wrong(found, expected, tolerance):
    """Name whatever is missing, of another shape, or further than tolerance · ‖expected‖ away, with its error."""
    errors = {}
    for name in expected:
        if name not in found or found[name].shape != expected[name].shape:
            errors[name] = float("inf")
            continue
        scale = expected[name].norm().item() or 1.0
        error = (found[name] - expected[name]).norm().item() / scale
        if not error <= tolerance:  # NaN is wrong
            errors[name] = error
    return errors


# The loop and torch.nn.RNN


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(("kind", "time", "batch"), OPTIONS)
def test_loop_is_nn_rnn(nonlinearity, kind, time, batch):
    arguments, options = make_problem(kind, time)
    options |= {"nonlinearity": nonlinearity, "batch": batch}
    expected = gradients(*arguments, **options, network="nn.RNN")
    assert expected.keys() == {"loss", "h", "o", "y_hat", "do", "dU", "dW", "dV", "db", "dc", "dx", "dh0"}
    assert not wrong(gradients(*arguments, **options), expected, EXACT)


@pytest.mark.parametrize("biases", ["", "b", "c", "bc"])
def test_missing_biases(biases):
    arguments, options = make_problem("soft", biases=biases)
    loop = gradients(*arguments, **options)
    assert {"db", "dc"} & loop.keys() == {"d" + name for name in biases}
    assert not wrong(loop, gradients(*arguments, **options, network="nn.RNN"), EXACT)
    stepped = numerically(complex_step, arguments, **options)
    assert {"db", "dc"} & stepped.keys() == {"d" + name for name in biases}
    assert not wrong(loop, stepped, EXACT)


def test_no_h0_means_zeros():
    (parameters, x, targets, h0), options = make_problem()
    arguments, explicit = (parameters, x, targets), (parameters, x, targets, torch.zeros_like(h0))
    for network in ("unrolled", "nn.RNN"):
        expected = gradients(*explicit, **options, network=network)
        assert not wrong(gradients(*arguments, **options, network=network), expected, 0.0)
        assert not wrong(
            numerically(complex_step, arguments, **options), numerically(complex_step, explicit, **options), 0.0
        )
    expected = {name: gradients(*explicit)[name] for name in "oh"}
    steps = unrolled(parameters, x)
    assert not wrong({"o": torch.stack(steps.o), "h": torch.stack(steps.h)}, expected, 0.0)
    o, h = TorchNetwork.from_parameters(parameters)(x)
    assert not wrong({"o": o, "h": h}, expected, EXACT)


def test_torch_network_maps_the_parameters():
    (parameters, _, _, _), _ = make_problem()
    state = torch.get_rng_state()
    network = TorchNetwork.from_parameters(parameters, "relu")
    assert torch.equal(torch.get_rng_state(), state), "it drew random numbers"
    named = {
        "U": network.rnn.weight_ih_l0,
        "W": network.rnn.weight_hh_l0,
        "V": network.linear.weight,
        "b": network.rnn.bias_ih_l0,
        "c": network.linear.bias,
    }
    assert not wrong(named, parameters, 0.0)
    assert not wrong(network.named_by_equation(), parameters, 0.0)
    assert not network.rnn.bias_hh_l0.any()
    assert network.rnn.nonlinearity == "relu"
    assert all(p.requires_grad and p.dtype == torch.float64 for p in network.parameters())


# The loop and complex steps


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "identity"])
@pytest.mark.parametrize(("kind", "time", "batch"), OPTIONS)
def test_loop_is_complex_step(nonlinearity, kind, time, batch):
    arguments, options = make_problem(kind, time)
    options |= {"nonlinearity": nonlinearity, "batch": batch}
    expected = numerically(complex_step, arguments, **options)
    assert expected.keys() == {"loss", "dU", "dW", "dV", "db", "dc", "dx", "dh0"}
    assert not wrong(gradients(*arguments, **options), expected, EXACT)


@pytest.mark.parametrize("one", [*SIZES, "TBDHK"])
@pytest.mark.parametrize("kind", ["ignored", "soft", "real"])
def test_sizes_of_one(one, kind):
    arguments, options = make_problem(kind, **SIZES | dict.fromkeys(one, 1))
    found = gradients(*arguments, **options)
    assert not wrong(found, gradients(*arguments, **options, network="nn.RNN"), EXACT)
    assert not wrong(found, numerically(complex_step, arguments, **options), EXACT)


@pytest.mark.parametrize("kind", ["ignored", "real"])
def test_tokens_are_one_hot_input(kind):
    (parameters, x, targets, h0), options = make_problem(kind, tokens=True)
    one_hot = F.one_hot(x, SIZES["D"]).double()
    found = gradients(parameters, x, targets, h0, **options)
    assert "dx" not in found
    assert not wrong(gradients(parameters, one_hot, targets, h0, **options), found, EXACT)
    stepped = numerically(complex_step, (parameters, x, targets, h0), **options)
    assert "dx" not in stepped
    assert not wrong(found, stepped, EXACT)


@pytest.mark.parametrize("ignore_index", [-1, 2])
def test_ignore_index_may_be_a_class(ignore_index):
    arguments, options = make_problem("ignored", "mean")
    arguments[2][arguments[2] == -100] = ignore_index
    options["ignore_index"] = ignore_index
    found = gradients(*arguments, **options)
    assert not found["dx"][:, -1].any(), "a sequence without one step that counts has a gradient"
    assert found["dx"][:, :-1].all()
    assert not wrong(found, numerically(complex_step, arguments, **options), EXACT)


def test_everything_ignored():
    (parameters, x, targets, h0), options = make_problem(time="mean")
    arguments = (parameters, x, torch.full_like(targets, -100), h0)
    for found in (gradients(*arguments, **options), numerically(complex_step, arguments, **options)):
        assert not any(found[name].any() for name in ("loss", "dU", "dW", "dV", "db", "dc", "dx", "dh0"))


def test_intermediates_are_total_derivatives():
    # Each is tied to a gradient that the complex step confirms: da to dx, dh0, db and dU, do to dV and dc, y_hat
    # and, at the last step, dh to do. For the identity dh is da.
    arguments, options = make_problem("soft", **SIZES | {"D": 9})
    for nonlinearity in ("tanh", "identity"):
        found = gradients(*arguments, **options, nonlinearity=nonlinearity)
        stepped = numerically(complex_step, arguments, **options, nonlinearity=nonlinearity)
        U, W, V = (arguments[0][name] for name in "UWV")
        da, do, h = found["da"], found["do"], found["h"]
        tied = {"dx": da @ U, "dh0": da[0] @ W, "db": da.sum((0, 1))}
        tied |= {"dU": torch.einsum("tbh,tbd->hd", da, arguments[1])}
        tied |= {"dV": torch.einsum("tbk,tbh->kh", do, h), "dc": do.sum((0, 1))}
        assert not wrong(tied, {name: stepped[name] for name in tied}, EXACT)
        assert not wrong({"dh": found["dh"][-1]}, {"dh": do[-1] @ V}, EXACT)
        assert not wrong({"y_hat": found["y_hat"]}, {"y_hat": do + arguments[2]}, EXACT)
        if nonlinearity == "identity":
            assert not wrong({"dh": found["dh"]}, {"dh": da}, 0.0)


def test_steps_before_the_last_have_no_output_gradient():
    arguments, options = make_problem(time="last")
    found = gradients(*arguments, **options)
    assert not found["do"][:-1].any()
    assert found["do"][-1].all()
    assert found["dh"].all()


def test_forward_by_hand():
    # One unit, one input, one output, two steps: a_1 = 2·0.5 + 3·0.1 − 0.5 = 0.8, a_2 = 2·(−0.25) + 3·0.8 − 0.5
    parameters = {"U": 2.0, "W": 3.0, "V": 0.5}
    parameters = {name: torch.tensor([[value]]) for name, value in parameters.items()}
    parameters |= {"b": torch.tensor([-0.5]), "c": torch.tensor([1.0])}
    steps = unrolled(parameters, torch.tensor([[[0.5]], [[-0.25]]]), torch.tensor([[0.1]]), "identity")
    torch.testing.assert_close(torch.stack(steps.a).flatten(), torch.tensor([0.8, 1.4]))
    torch.testing.assert_close(torch.stack(steps.o).flatten(), torch.tensor([1.4, 1.7]))


# Complex steps and differences themselves


@pytest.mark.parametrize("rule", [complex_step, central_difference])
def test_chunks_do_not_matter(rule):
    arguments, options = make_problem("ignored", "mean")
    expected = numerically(rule, arguments, **options, chunk_size=1)
    for chunk_size in (7, 128, 10_000):
        # central differences cancel: a last bit of the loss is 1e-10 of them
        found = numerically(rule, arguments, **options, chunk_size=chunk_size)
        assert not wrong(found, expected, 1e-15 if rule is complex_step else DIFFERENCES)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh", "sigmoid", "identity"])
@pytest.mark.parametrize(("kind", "time", "batch"), [("ignored", "mean", "sum"), ("real", "sum", "mean")])
def test_loop_is_central_difference(nonlinearity, kind, time, batch):
    arguments, options = make_problem(kind, time, seed=1)
    options |= {"nonlinearity": nonlinearity, "batch": batch}
    found = gradients(*arguments, **options)
    if nonlinearity == "relu":
        assert found["a"].abs().min() > 1e-3, "too near to the kink: choose another seed"
        assert (found["a"] < 0).any(), "no unit is off"
    assert not wrong(found, numerically(central_difference, arguments, **options), DIFFERENCES)


def test_central_difference_scales_its_step():
    # Of a loss ~ 1e12 a step of 6e-6 would leave five digits of dx.
    (parameters, x, targets, h0), options = make_problem("real", T=1)
    arguments, options = (parameters, 1e6 * x, targets, h0), {**options, "nonlinearity": "identity"}
    expected = {"dx": gradients(*arguments, **options)["dx"]}
    assert not wrong(numerically(central_difference, arguments, **options), expected, DIFFERENCES)


def test_complex_step_has_no_relu():
    arguments, options = make_problem()
    with pytest.raises(ValueError, match=r"nonlinearity.*'relu'.*use central_difference"):
        numerically(complex_step, arguments, **options, nonlinearity="relu")


def test_complex_step_sees_a_gradient_that_vanished():
    # 40 factors W = 1e-6 leave 1e-240 of it
    (parameters, x, targets, h0), options = make_problem("real", "last", T=40, B=1, D=1, H=1, K=1)
    arguments = ({**parameters, "W": torch.full((1, 1), 1e-6, dtype=torch.float64)}, x, targets, h0)
    options["nonlinearity"] = "identity"
    expected = gradients(*arguments, **options)["dh0"].item()
    found = numerically(complex_step, arguments, **options)["dh0"].item()
    assert 1e-245 < abs(expected) < 1e-235
    assert found / expected == pytest.approx(1.0, abs=EXACT)


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "identity"])
def test_nothing_overflows(nonlinearity):
    # |a| ~ |o| ~ 1e3: exp() of either would be infinite. Through a unit this saturated autograd itself is rounding
    # alone, so only what does not pass one is compared.
    (parameters, x, targets, h0), options = make_problem("soft")
    arguments = ({**parameters, "U": 1e3 * parameters["U"], "V": 1e3 * parameters["V"]}, x, targets, h0)
    expected = gradients(*arguments, **options, nonlinearity=nonlinearity)
    found = numerically(complex_step, arguments, **options, nonlinearity=nonlinearity)
    assert all(value.isfinite().all() for value in found.values())
    names = ("loss", "dV", "dc") if nonlinearity != "identity" else found
    assert not wrong(expected, {name: found[name] for name in names}, EXACT)


def test_numerical_knows_no_autograd():
    source = Path(torch_reference.__file__).with_name("numerical.py").read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "typing", "numpy", "numpy.typing"}


# The linear closed form


@pytest.mark.parametrize("kind", ["ignored", "soft", "real"])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("sizes", [SIZES, SIZES | {"T": 1}, SIZES | {"B": 1, "H": 1}, SIZES | {"T": 9, "H": 2}])
def test_closed_form_is_autograd(kind, time, sizes):
    (parameters, x, targets, h0), options = make_problem(kind, time, **sizes)
    expected = gradients(parameters, x, targets, h0, **options, nonlinearity="identity")
    found = numerically(linear_closed_form, (parameters, x, expected["do"], h0))
    assert found.keys() == {"dh", "dU", "dW", "db", "dx", "dh0"}
    assert not wrong(found, {name: expected[name] for name in found}, EXACT)


def test_closed_form_without_b_and_h0():
    (parameters, x, targets, _), options = make_problem(biases="")
    expected = gradients(parameters, x, targets, **options, nonlinearity="identity")
    found = numerically(linear_closed_form, (parameters, x, expected["do"]))
    assert found.keys() == {"dh", "dU", "dW", "dx", "dh0"}
    assert not wrong(found, {name: expected[name] for name in found}, EXACT)


# The loss


def test_loss_is_torchs_mean_where_every_step_counts():
    for kind in ("index", "soft"):
        arguments, _ = make_problem(kind)
        o, targets = gradients(*arguments)["o"], arguments[2]
        expected = {"loss": F.cross_entropy(o.flatten(0, 1), targets.flatten(0, 1))}
        found = sequence_loss(o, targets, time="mean", batch="mean")
        assert not wrong({"loss": found}, expected, EXACT)


@pytest.mark.parametrize("kind", ["index", "one-hot", "soft", "real"])
@pytest.mark.parametrize("batch", BATCHES)
def test_last_step(kind, batch):
    arguments, options = make_problem(kind, "last")
    o, targets = gradients(*arguments, **options)["o"], arguments[2]
    if kind == "real":
        expected = F.mse_loss(o[-1], targets, reduction="sum") / 2
    else:
        targets_of_torch = targets.double() if kind == "one-hot" else targets
        expected = F.cross_entropy(o[-1], targets_of_torch, reduction="sum")
    expected = expected / SIZES["B"] if batch == "mean" else expected
    found = sequence_loss(o, targets, **options, batch=batch)
    assert not wrong({"loss": found}, {"loss": expected}, EXACT)


def test_mean_over_time_is_per_sequence():
    arguments, _ = make_problem("ignored")
    o, targets = gradients(*arguments)["o"], arguments[2]
    means = [F.cross_entropy(o[:, i], targets[:, i]) for i in range(SIZES["B"] - 1)]  # the last has no step
    for batch, divisor in (("sum", 1), ("mean", SIZES["B"])):
        found = sequence_loss(o, targets, time="mean", batch=batch)
        assert not wrong({"loss": found}, {"loss": sum(means) / divisor}, EXACT)


def test_hard_targets_are_indices():
    (parameters, x, indices, h0), options = make_problem("index")
    (_, _, one_hot, _), _ = make_problem("one-hot")
    expected = gradients(parameters, x, indices, h0, **options)
    for targets in (one_hot, one_hot.double()):
        assert not wrong(gradients(parameters, x, targets, h0, **options), expected, EXACT)


# Manners


@pytest.mark.parametrize("network", ["unrolled", "nn.RNN"])
def test_callers_tensors_are_left_alone(network):
    (parameters, x, targets, h0), options = make_problem("soft")
    leaves = [tensor.requires_grad_() for tensor in (*parameters.values(), x, targets, h0)]
    for leaf in leaves:
        leaf.grad = torch.full_like(leaf, 7.0)
    doubled = {name: 2 * value for name, value in parameters.items()}  # in the middle of a graph
    before = [(tensor.detach().clone(), tensor._version) for tensor in (*leaves, *doubled.values())]
    state = torch.get_rng_state()
    with torch.no_grad():
        found = gradients(doubled, x, targets, h0, **options, network=network)
    assert torch.equal(torch.get_rng_state(), state)
    for tensor, (value, version) in zip((*leaves, *doubled.values()), before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor._version == version
        assert tensor.requires_grad
    assert all((leaf.grad == 7.0).all() for leaf in leaves)
    assert not any(value.requires_grad for value in found.values())
    with torch.no_grad():
        for value in found.values():
            value.zero_()
    assert all(torch.equal(t, value) for t, (value, _) in zip((*leaves, *doubled.values()), before, strict=True))


def test_dtype_is_the_parameters():
    (parameters, x, targets, h0), options = make_problem("soft")
    single = ({name: value.float() for name, value in parameters.items()}, x.float(), targets.float(), h0.float())
    for network in ("unrolled", "nn.RNN"):
        found = gradients(*single, **options, network=network)
        assert {value.dtype for value in found.values()} == {torch.float32}
    assert {value.dtype for value in numerically(complex_step, single, **options).values()} == {torch.float64}


@pytest.mark.parametrize("symbol", ["nonlinearity", "loss", "time", "batch"])
def test_unknown_names(symbol):
    arguments, options = make_problem()
    options |= {symbol: "median"}
    for witness in (gradients, complex_step, central_difference):
        call = witness if witness is gradients else lambda *a, w=witness, **o: numerically(w, a, **o)
        with pytest.raises(ValueError, match=rf"expected {symbol} to be one of .*, got 'median'"):
            call(*arguments, **options)


def test_what_nn_rnn_does_not_have():
    arguments, options = make_problem(tokens=True)
    with pytest.raises(ValueError, match=r"expected x of floating point, got torch.int64; .*use unrolled"):
        gradients(*arguments, **options, network="nn.RNN")
    with pytest.raises(ValueError, match=r"nonlinearity to be one of 'tanh', 'relu', got 'sigmoid'"):
        gradients(*arguments, **options, nonlinearity="sigmoid", network="nn.RNN")
    with pytest.raises(ValueError, match=r"network to be one of 'unrolled', 'nn.RNN', got 'GRU'"):
        gradients(*arguments, **options, network="GRU")


@pytest.mark.parametrize(("kind", "time"), [("real", "sum"), ("index", "last"), ("soft", "mean")])
def test_targets_of_another_shape(kind, time):
    (parameters, x, targets, h0), options = make_problem(kind, time)
    arguments = (parameters, x, targets[..., :1], h0)  # would broadcast
    with pytest.raises(ValueError, match=r"sequence_loss: expected targets of shape \(.*\), got"):
        gradients(*arguments, **options)
    with pytest.raises(ValueError, match=r"complex_step: expected targets of shape \(.*\), got"):
        numerically(complex_step, arguments, **options)


@pytest.mark.parametrize("index", [-1, SIZES["K"]])
def test_no_such_class(index):
    arguments, options = make_problem()
    arguments[2][1, 1] = index
    with pytest.raises(IndexError):
        gradients(*arguments, **options)
    with pytest.raises(ValueError, match="classes 0 to 6 or -100"):
        numerically(complex_step, arguments, **options)


# Planted: what the comparison has to see


def test_planted_scale_is_seen():
    arguments, options = make_problem("soft")
    expected = numerically(complex_step, arguments, **options)
    for name in expected:
        assert wrong({**expected, name: 1.001 * expected[name]}, expected, DIFFERENCES).keys() == {name}


def test_planted_nan_gap_and_shape_are_seen():
    arguments, options = make_problem("soft")
    expected = gradients(*arguments, **options)
    poisoned = {**expected, "dU": torch.full_like(expected["dU"], torch.nan), "dW": expected["dW"][None]}
    del poisoned["db"]
    assert wrong(poisoned, expected, EXACT).keys() == {"dU", "dW", "db"}


def test_planted_drop_of_the_carry_is_seen():
    (parameters, x, targets, h0), options = make_problem("soft")
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    leaves |= {"x": x.clone().requires_grad_(), "h0": h0.clone().requires_grad_()}
    h, outputs = leaves["h0"], []
    for x_t in leaves["x"]:
        steps = unrolled(leaves, x_t[None], h)
        h = steps.h[0].detach()  # the mistake
        outputs += steps.o
    loss = sequence_loss(torch.stack(outputs), targets, **options)
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    found = {"loss": loss} | {"d" + name: slope for name, slope in zip(leaves, slopes, strict=True)}
    expected = numerically(complex_step, (parameters, x, targets, h0), **options)
    assert wrong(found, expected, DIFFERENCES).keys() == {"dU", "dW", "db", "dx", "dh0"}


def test_planted_transpose_in_the_closed_form_is_seen():
    (parameters, x, targets, h0), options = make_problem("soft")
    expected = gradients(parameters, x, targets, h0, **options, nonlinearity="identity")
    transposed = {**parameters, "W": parameters["W"].T.contiguous()}
    found = numerically(linear_closed_form, (transposed, x, expected["do"], h0))
    assert wrong(found, {name: expected[name] for name in found}, 1e-2).keys() == found.keys()
