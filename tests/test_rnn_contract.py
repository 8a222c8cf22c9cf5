"""RNN and RNNCell keep torch.nn's contract from the constructor to the shapes, strides and errors of forward.

torch.nn.RNN and torch.nn.RNNCell stand beside them in every test and get the same arguments. Would catch: another
order of arguments or of their checks, an error of another type or with another text, a parameter that is missing,
renamed or drawn in another order, an output of another shape, stride, dtype or device, memory shared between output,
h_n and the arguments, an argument that is written to, hx read in the order of its storage, a batch of no rows that
fails, a NaN that is swallowed or that leaks into another sequence.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import GENERAL, TOLERANCE, assert_all_close, assert_close, normal, seeded
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import manual_bptt

T, B, D, H, _ = GENERAL
F64 = torch.float64
EXACT = TOLERANCE[F64]
KINDS = ("RNN", "RNNCell")
CPU = torch.device("cpu")
OF_TORCH = ("tanh", "relu")


def twins(kind: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """manual_bptt's module and torch.nn's, made from the same seed."""
    made = []
    for package in (manual_bptt, nn):
        torch.manual_seed(0)
        made.append(getattr(package, kind)(*args, **kwargs))
    return made[0], made[1]


def x_of(*shape: int) -> Tensor:
    return normal(seeded(1), *shape)


def hx_of(*shape: int) -> Tensor:
    return normal(seeded(2), *shape, scale=0.7)


def packed(lengths: list[int], enforce_sorted: bool = False) -> PackedSequence:
    x = x_of(max(lengths), len(lengths), D)
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)


def error_of(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the comparison is what the tests are for
        call()
    return caught.value


def same_error(mine: Callable[[], Any], theirs: Callable[[], Any], text: bool = True) -> None:
    """Both raise; the type is the same, and the text too where it is meant to be."""
    expected = error_of(theirs)
    actual = error_of(mine)
    assert type(actual) is type(expected), (actual, expected)
    if text:
        assert str(actual) == str(expected)


# The constructor of RNN

ATTRIBUTES = (*nn.RNN.__constants__, "nonlinearity", "training")
OPTIONS = {
    "defaults": (4, 6),
    "layers": (4, 6, 3),
    "relu": (4, 6, 1, "relu"),
    "no bias": (4, 6, 2, "tanh", False),
    "batch_first": (4, 6, 1, "tanh", True, True),
    "dropout": (4, 6, 2, "tanh", True, False, 0.25),
    "int dropout": (4, 6, 2, "tanh", True, False, 1),
    "bidirectional": (4, 6, 2, "tanh", True, False, 0.0, True),
    "everything": (4, 6, 3, "relu", False, True, 0.25, True),
    "input_size and num_layers = True": (True, 6, True),
    "bidirectional = 1": (4, 6, 1, "tanh", True, False, 0.0, 1),
    "bidirectional = 'x'": (4, 6, 1, "tanh", True, False, 0.0, "x"),
    "bidirectional = 0": (4, 6, 1, "tanh", True, False, 0.0, 0),
}
NAMES = ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional")
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def same_module(mine: nn.Module, theirs: nn.Module) -> None:
    """Bitwise the same parameters in the same order; the same buffers, repr and constants."""
    actual, expected = dict(mine.named_parameters()), dict(theirs.named_parameters())
    assert list(actual) == list(expected)
    for name, parameter in actual.items():
        assert type(parameter) is nn.Parameter
        assert parameter.requires_grad
        assert (parameter.dtype, parameter.device) == (expected[name].dtype, expected[name].device)
        assert torch.equal(parameter, expected[name])
    assert list(mine.buffers()) == []
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert repr(mine) == repr(theirs)
    assert mine.extra_repr() == theirs.extra_repr()
    assert mine.__constants__ == theirs.__constants__


@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "keywords"])
@each_options
def test_constructor_arguments_attributes_parameters_and_repr_are_those_of_nn_rnn(options, by_name):
    mine, theirs = twins("RNN", **dict(zip(NAMES, options, strict=False))) if by_name else twins("RNN", *options)
    for name in ATTRIBUTES:
        actual, expected = getattr(mine, name), getattr(theirs, name)
        assert actual == expected
        assert type(actual) is type(expected), name
    same_module(mine, theirs)
    assert not isinstance(mine, nn.RNN)
    assert isinstance(mine, nn.RNNBase)


@each_options
def test_one_seed_draws_the_same_numbers_and_leaves_the_same_generator_state(options):
    states = []
    for package in (manual_bptt, nn):
        torch.manual_seed(7)
        module = package.RNN(*options)
        made = torch.get_rng_state()
        module.reset_parameters()
        states.append((made, torch.get_rng_state(), torch.cat([p.flatten() for p in module.parameters()])))
    assert all(itertools.starmap(torch.equal, zip(*states, strict=True)))


def test_device_and_dtype_follow_as_positional_arguments_too(device):
    module = manual_bptt.RNN(4, 6, 1, "tanh", True, False, 0.0, False, device, F64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {(device.type, F64)}
    cell = manual_bptt.RNNCell(4, 6, True, "tanh", device, F64)
    assert {(p.device.type, p.dtype) for p in cell.parameters()} == {(device.type, F64)}


@pytest.mark.parametrize("nonlinearity", ["sigmoid", "identity"])
def test_a_nonlinearity_that_nn_rnn_does_not_know_is_shown_and_draws_the_same_numbers(nonlinearity):
    _, theirs = twins("RNN", 4, 6, 2, bidirectional=True)
    torch.manual_seed(0)
    mine = manual_bptt.RNN(4, 6, 2, nonlinearity, bidirectional=True)
    assert all(itertools.starmap(torch.equal, zip(mine.parameters(), theirs.parameters(), strict=True)))
    assert mine.extra_repr() == theirs.extra_repr() + f", nonlinearity={nonlinearity}"
    cell, torchs = twins("RNNCell", 4, 6, nonlinearity=nonlinearity)
    assert repr(cell) == repr(torchs)


# In the order in which torch.nn.RNN looks at them: the first that is wrong is complained of.
BAD: list[dict[str, Any]] = [
    {"proj_size": 0},
    {"nonlinearity": "x"},
    {"dropout": 1.5},
    {"bias": 1},
    {"batch_first": 0},
    {"input_size": 4.0},
    {"hidden_size": 0},
    {"num_layers": 0},
]
MORE_BAD: list[dict[str, Any]] = [
    {"proj_size": 2},
    {"nonlinearity": None},
    {"nonlinearity": ["tanh"]},
    {"nonlinearity": "TANH"},
    {"dropout": -0.1},
    {"dropout": True},
    {"dropout": "0.5"},
    {"dropout": "half"},
    {"dropout": None},
    {"dropout": float("nan")},
    {"dropout": torch.tensor(0.5)},
    {"bias": None},
    {"bias": "True"},
    {"batch_first": None},
    {"input_size": 0},
    {"input_size": -3},
    {"input_size": "4"},
    {"input_size": None},
    {"input_size": np.int64(4)},
    {"hidden_size": 6.0},
    {"hidden_size": -1},
    {"hidden_size": np.int32(4)},
    {"num_layers": -1},
    {"num_layers": 2.0},
    {"num_layers": "2"},
    {"num_layers": None},
]


def _named(bad: dict[str, Any]) -> str:
    return "-".join(f"{name}={value!r}" for name, value in bad.items())


@pytest.mark.parametrize("bad", [*BAD, *MORE_BAD], ids=_named)
def test_constructor_refuses_what_nn_rnn_refuses(bad):
    arguments = {"input_size": 4, "hidden_size": 6, "num_layers": 2} | bad
    text = "nonlinearity" not in bad  # there the text names four
    same_error(lambda: manual_bptt.RNN(**arguments), lambda: nn.RNN(**arguments), text)
    if not text:
        expected = f"Unknown nonlinearity '{bad['nonlinearity']}'. Select from 'tanh', 'sigmoid', 'relu' or 'identity'."
        assert str(error_of(lambda: manual_bptt.RNN(**arguments))) == expected


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(BAD, 2)], ids=_named)
def test_constructor_complains_first_of_what_nn_rnn_complains_of_first(first, second):
    arguments = {"input_size": 4, "hidden_size": 6} | first | second
    mine = error_of(lambda: manual_bptt.RNN(**arguments))
    theirs = error_of(lambda: nn.RNN(**arguments))
    assert type(mine) is type(theirs)
    assert str(mine).split(".")[0] == str(theirs).split(".")[0]  # up to the list of the nonlinearities


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((4,), {}),
        ((4, 6), {"hidden": 6}),
        ((4, 6, 1, "relu"), {"nonlinearity": "tanh"}),
        ((4, 6), {"input_size": 4}),
        ((4, 6, 1, "tanh", True, False, 0.0, False, None, None, None, None), {}),
    ],
    ids=["none", "no hidden_size", "unknown", "nonlinearity twice", "input_size twice", "too many"],
)
def test_a_wrong_number_of_constructor_arguments_is_a_type_error(args, kwargs):
    same_error(lambda: manual_bptt.RNN(*args, **kwargs), lambda: nn.RNN(*args, **kwargs), text=False)


def test_dropout_without_a_layer_to_apply_it_to_warns_as_nn_rnn_does():
    caught = []
    for package in (manual_bptt, nn):
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            assert package.RNN(4, 6, dropout=0.5).dropout == 0.5
        caught.append([(warning.category, str(warning.message)) for warning in log])
    assert caught[0] == caught[1]
    assert len(caught[0]) == 1


REAL = (torch.float16, torch.bfloat16, torch.float32, F64)
COMPLEX = (torch.complex64, torch.complex128)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX], ids=str)
def test_every_dtype_of_nn_rnn_from_the_parameters_to_the_gradients(dtype, kind, device):
    mine, theirs = twins(kind, D, H, dtype=dtype)
    same_module(mine, theirs)
    mine = mine.to(device)
    x = (0.3 * x_of(T, B, D)).to(dtype)
    results = []
    for module, place in ((mine, device), (theirs, CPU)):
        steps = x if kind == "RNN" else x[0]
        output = module(steps.to(place))
        output = output if isinstance(output, tuple) else (output,)
        upstream = [normal(seeded(3), *value.shape).to(place, dtype) for value in output]
        gradients = torch.autograd.grad(output, list(module.parameters()), upstream)
        assert {value.dtype for value in (*output, *gradients)} == {dtype}
        results.append([value.detach().cpu() for value in (*output, *gradients)])
    for actual, expected in zip(*results, strict=True):
        if dtype in COMPLEX:
            actual, expected = torch.view_as_real(actual), torch.view_as_real(expected)
        assert_close("result", actual, expected, 100 * torch.finfo(dtype).eps)  # their precision is held elsewhere


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_relu_of_complex_numbers_is_refused_as_torch_refuses_it(kind, dtype):
    mine, theirs = twins(kind, D, H, nonlinearity="relu", dtype=dtype)
    x = x_of(B, D).to(dtype)
    same_error(lambda: mine(x), lambda: theirs(x), text=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, "float32"], ids=str)
def test_a_dtype_that_no_parameter_can_have(dtype, kind):
    same_error(
        lambda: getattr(manual_bptt, kind)(4, 6, dtype=dtype), lambda: getattr(nn, kind)(4, 6, dtype=dtype), text=True
    )


@pytest.mark.parametrize("context", [False, True], ids=["argument", "context"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_device_gives_shapes_forward_and_backward(kind, context):
    if context:
        with torch.device("meta"):
            mine, theirs = twins(kind, D, H)
    else:
        mine, theirs = twins(kind, D, H, device="meta")
    results = []
    for module in (mine, theirs):
        assert all(parameter.is_meta for parameter in module.parameters())
        x = torch.empty(*(T, B, D)[-3 if kind == "RNN" else -2 :], device="meta", requires_grad=True)
        output = module(x)
        first = output[0] if isinstance(output, tuple) else output
        first.sum().backward()
        values = [*output] if isinstance(output, tuple) else [output]
        gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
        results.append([(v.shape, v.stride(), v.dtype, v.device) for v in (*values, *gradients)])
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_dtype_is_respected(kind):
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        mine, theirs = twins(kind, D, H)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in mine.parameters()} == {F64}
    same_module(mine, theirs)


def test_an_attribute_that_is_changed_later_counts_as_in_nn_rnn(device):
    """dropout, training and mode are read at every call; nonlinearity, as in torch, is not."""
    mine, theirs = (module.double() for module in twins("RNN", D, H, 2))
    for module in (mine, theirs):
        module.mode = "RNN_RELU"
        module.dropout = 1.0
        module.nonlinearity = "tanh"
    x = x_of(T, B, D)
    training = theirs(x)[0]
    assert_close("training", mine.to(device)(x.to(device))[0].cpu(), training, EXACT)
    mine.eval(), theirs.eval()
    assert_close("eval", mine(x.to(device))[0].cpu(), theirs(x)[0], EXACT)
    assert not torch.equal(training, theirs(x)[0])


# Shapes, strides, memory


def run(module: nn.Module, device: torch.device, input: Any, hx: Tensor | None) -> dict[str, Tensor]:
    """Outputs and all gradients of leaves, which start without a gradient."""
    module = module.to(device)
    leaves = {}
    if isinstance(input, PackedSequence):
        leaves["x"] = input.data.to(device).requires_grad_()
        indices = (input.sorted_indices, input.unsorted_indices)
        input = PackedSequence(leaves["x"], input.batch_sizes, *(i if i is None else i.to(device) for i in indices))
    else:
        leaves["x"] = input = input.to(device, copy=True).requires_grad_()
    if hx is not None:
        leaves["hx"] = hx = hx.to(device).requires_grad_()
    output, h_n = module(input, hx)
    steps = output.data if isinstance(output, PackedSequence) else output
    weights = [normal(seeded(5 + place), *value.shape).to(device) for place, value in enumerate((steps, h_n))]
    sum((value * weight).sum() for value, weight in zip((steps, h_n), weights, strict=True)).backward()
    leaves |= dict(module.named_parameters())
    return {"output": steps, "h_n": h_n, **{f"d{name}": leaf.grad for name, leaf in leaves.items()}}


SHAPES = {"general": (T, B), "T=1": (1, B), "B=1": (T, 1), "T=B=1": (1, 1), "unbatched": (T,), "one step": (1,)}


@pytest.mark.parametrize("with_hx", [False, True], ids=["no-hx", "hx"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_strides_and_values_are_those_of_nn_rnn(shape, layers, bidirectional, batch_first, with_hx, device):
    mine, theirs = (
        m.double() for m in twins("RNN", D, H, layers, batch_first=batch_first, bidirectional=bidirectional)
    )
    sizes = SHAPES[shape]
    x = x_of(*(sizes[::-1] if batch_first else sizes), D)
    hx = hx_of(layers * (1 + bidirectional), *sizes[1:], H) if with_hx else None
    actual, expected = run(mine, device, x, hx), run(theirs, CPU, x, hx)
    for name, value in actual.items():
        assert value.shape == expected[name].shape, name
        if name != "output" or 1 not in sizes:  # a stride along one step means nothing
            assert value.stride() == expected[name].stride(), name
        assert value.is_contiguous() == expected[name].is_contiguous(), name
        assert value.is_contiguous() or (name == "output" and batch_first), name
    assert_all_close({name: value.cpu() for name, value in actual.items()}, expected, EXACT)


@pytest.mark.parametrize("enforce_sorted", [False, True], ids=["unsorted", "sorted"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("with_hx", [False, True], ids=["no-hx", "hx"])
def test_packed_sequences_come_back_as_they_came_with_h_n_in_the_order_of_the_user(
    with_hx, bidirectional, enforce_sorted, device
):
    # batch_first says nothing about packed sequences
    mine, theirs = (m.double() for m in twins("RNN", D, H, 2, bidirectional=bidirectional, batch_first=True))
    input = packed([5, 3, 3, 1] if enforce_sorted else [1, 3, 5, 3], enforce_sorted)
    assert enforce_sorted or not torch.equal(input.sorted_indices, input.unsorted_indices)  # they can be confused
    hx = hx_of(2 * (1 + bidirectional), 4, H) if with_hx else None
    actual, expected = run(mine, device, input, hx), run(theirs, CPU, input, hx)
    for name, value in actual.items():
        assert (value.shape, value.stride()) == (expected[name].shape, expected[name].stride()), name
    assert_all_close({name: value.cpu() for name, value in actual.items()}, expected, EXACT)
    output = mine.to(device)(input.to(device))[0]
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, input.batch_sizes)
    assert output.batch_sizes.device == CPU
    for name in ("sorted_indices", "unsorted_indices"):
        index, wanted = getattr(output, name), getattr(input, name)
        assert index is wanted is None or torch.equal(index.cpu(), wanted)


def test_input_and_hx_may_be_keywords(device):
    module = manual_bptt.RNN(D, H, dtype=F64, device=device)
    x, hx = x_of(T, B, D).to(device), hx_of(1, B, H).to(device)
    assert torch.equal(module(hx=hx, input=x)[0], module(x, hx)[0])
    cell = manual_bptt.RNNCell(D, H, dtype=F64, device=device)
    assert torch.equal(cell(hx=hx[0], input=x[0]), cell(x[0], hx[0]))


AWKWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda value: value.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other": lambda value: value.repeat_interleave(2, -1)[..., ::2],
    "batch last": lambda value: value.movedim(-2, -1).contiguous().movedim(-1, -2),
    "offset": lambda value: torch.cat((value[:1], value))[1:],
    "expanded": lambda value: value[..., :1, :].expand(value.shape),
}


@pytest.mark.parametrize("layout", AWKWARD)
@pytest.mark.parametrize("where", ["x", "hx", "weights"])
@pytest.mark.parametrize("unsorted", [False, True], ids=["dense", "packed"])
def test_any_strides_of_the_arguments(unsorted, where, layout, device):
    mine, theirs = (m.double() for m in twins("RNN", D, H, 2, bidirectional=True))
    x, hx = x_of(T, B, D), hx_of(4, B, H)
    awkward = AWKWARD[layout]
    if where == "x":
        x = awkward(x)
    elif where == "hx":
        hx = awkward(hx)
    else:
        for module in (mine, theirs):
            for name, weight in list(module.named_parameters()):
                if weight.dim() == 2:
                    setattr(module, name, nn.Parameter(awkward(weight.detach())))
    results = []
    for module, place in ((mine.to(device), device), (theirs, CPU)):
        at, start = x.to(place).requires_grad_(x.is_leaf), hx.to(place).requires_grad_(hx.is_leaf)
        input = pack_padded_sequence(at, torch.tensor([3, 5, 4]), enforce_sorted=False) if unsorted else at
        output, h_n = module(input, start)
        values = {"output": output.data if unsorted else output, "h_n": h_n}
        upstream = [normal(seeded(5), *v.shape).to(place) for v in values.values()]
        named = {"x": at, "hx": start, **dict(module.named_parameters())}
        gradients = torch.autograd.grad(list(values.values()), list(named.values()), upstream)
        results.append({k: v.cpu() for k, v in (values | dict(zip(named, gradients, strict=True))).items()})
    assert_all_close(*results, EXACT)


MODULES = {
    "one layer": {},
    "identity": {"nonlinearity": "identity"},
    "two layers": {"num_layers": 2},
    "batch_first": {"batch_first": True},
    "both ways": {"bidirectional": True},
}


def storages(values: list[Tensor]) -> list[int]:
    return [value.untyped_storage().data_ptr() for value in values]


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("form", ["dense", "one step", "unbatched", "sorted", "unsorted", "cell"])
@pytest.mark.parametrize("options", MODULES.values(), ids=list(MODULES))
def test_results_share_no_memory_and_arguments_are_never_written_to(options, form, grad, device):
    torch.manual_seed(0)
    if form == "cell":
        module: Any = manual_bptt.RNNCell(D, H, nonlinearity=options.get("nonlinearity", "tanh"))
    else:
        module = manual_bptt.RNN(D, H, **options)
    module.to(device, F64)
    layers = getattr(module, "num_layers", 1) * (1 + getattr(module, "bidirectional", False))
    x, hx = x_of(*((1, B) if form == "one step" else (T, B)), D), hx_of(layers, B, H)
    if options.get("batch_first"):
        x = x.transpose(0, 1).contiguous()
    if form == "unbatched":
        x, hx = x[:, 0].contiguous(), hx[:, 0].contiguous()
    elif form == "cell":
        x, hx = x[:, 0].contiguous()[:B], hx[0, : min(len(x), B)].contiguous()
    x, hx = x.to(device).requires_grad_(grad), hx.to(device).requires_grad_(grad)
    input: Any = x
    if form in ("sorted", "unsorted"):
        input = packed([5, 3, 2] if form == "sorted" else [3, 5, 2], form == "sorted").to(device)
        input.data.requires_grad_(grad)
    inputs = [value for value in input if value is not None] if isinstance(input, PackedSequence) else [x]
    arguments = [*inputs, hx, *module.parameters()]
    before = [(value.detach().clone(), value._version) for value in arguments]
    with torch.set_grad_enabled(grad):
        result = module(input, hx)
    results = [result] if form == "cell" else [*result]
    results = [value.data if isinstance(value, PackedSequence) else value for value in results]
    assert len({*storages(results), *storages(arguments)}) == len(results) + len(arguments)
    if grad:
        upstream = [normal(seeded(5), *value.shape).to(device) for value in results]
        kept = [value.clone() for value in upstream]
        wanted = [value for value in arguments if value.requires_grad]
        gradients = torch.autograd.grad(results, wanted, upstream)
        assert all(itertools.starmap(torch.equal, zip(upstream, kept, strict=True)))
        assert all(value._version == 0 for value in upstream)
        assert set(storages([*gradients])).isdisjoint(storages([*results, *arguments, *upstream]))
    assert [value._version for value in arguments] == [version for _, version in before]
    assert all(torch.equal(value, old) for value, (old, _) in zip(arguments, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_shares_memory_with_another(kind, device):
    """Gradients from autograd.grad may be scaled in place, each once."""
    for module in twins(kind, D, H, device=device):
        output = module(x_of(T, D).float().to(device))
        output = output[0] if kind == "RNN" else output
        gradients = torch.autograd.grad(output, list(module.parameters()), torch.randn_like(output))
        places = dict(zip([name for name, _ in module.named_parameters()], storages([*gradients]), strict=True))
        assert len(set(places.values())) == len(places), f"{type(module)}: {places}"


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("with_hx", [False, True], ids=["no-hx", "hx"])
def test_a_batch_of_no_sequences_runs_forward_and_backward(with_hx, bidirectional, batch_first, device):
    mine, theirs = (m.double() for m in twins("RNN", D, H, 2, bidirectional=bidirectional, batch_first=batch_first))
    x = x_of(*((0, T) if batch_first else (T, 0)), D)
    hx = hx_of(2 * (1 + bidirectional), 0, H) if with_hx else None
    actual, expected = run(mine, device, x, hx), run(theirs, CPU, x, hx)
    assert {name: value.shape for name, value in actual.items()} == {n: v.shape for n, v in expected.items()}
    assert all(torch.equal(value.cpu(), torch.zeros_like(expected[name])) for name, value in actual.items())


def test_a_cell_with_a_batch_of_no_rows(device):
    cell = manual_bptt.RNNCell(D, H, device=device)
    h = cell(torch.zeros(0, D, device=device), torch.zeros(0, H, device=device))
    h.sum().backward()
    assert h.shape == (0, H)
    assert all(parameter.grad.count_nonzero() == 0 for parameter in cell.parameters())


# NaN, infinity and the kink


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["x", "hx", "weight_ih_l0", "weight_hh_l1", "bias_hh_l0_reverse", "upstream"])
@pytest.mark.parametrize("nonlinearity", OF_TORCH)
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_nan_and_infinity_go_where_they_go_in_nn_rnn(form, nonlinearity, where, value, device):
    mine, theirs = (m.double() for m in twins("RNN", D, H, 2, nonlinearity, bidirectional=True))
    x, hx, upstream = x_of(T, B, D), hx_of(4, B, H), normal(seeded(3), T, B, 2 * H)
    if where in ("x", "hx", "upstream"):
        {"x": x, "hx": hx, "upstream": upstream}[where][1, 1] = value
    results = []
    for module, place in ((mine.to(device), device), (theirs, CPU)):
        if where not in ("x", "hx", "upstream"):
            module.get_parameter(where).data.view(-1)[2] = value
        at, start = x.to(place, copy=True).requires_grad_(), hx.to(place, copy=True).requires_grad_()
        input = pack_padded_sequence(at, torch.tensor([3, 5, 4]), enforce_sorted=False) if form == "packed" else at
        output, h_n = module(input, start)
        steps, weights = output, upstream.to(place)
        if form == "packed":
            steps, weights = output.data, weights.flatten(0, 1)[: len(output.data)]
        gradients = torch.autograd.grad(steps, [at, start, *module.parameters()], weights, materialize_grads=True)
        results.append([value.detach().cpu() for value in (steps, h_n, *gradients)])
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isposinf(), expected.isposinf())
        assert torch.equal(actual.isneginf(), expected.isneginf())
        finite = expected.isfinite()
        assert_close("finite", actual[finite], expected[finite], EXACT)
    assert where.startswith("bias") or not all(value.isfinite().all() for value in results[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_slope_of_relu_at_0_is_0(kind, device):
    module = getattr(manual_bptt, kind)(D, H, nonlinearity="relu", device=device, dtype=F64)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    x = x_of(T, B, D).to(device).requires_grad_()
    output = module(x)[0] if kind == "RNN" else module(x[0])
    output.backward(normal(seeded(3), *output.shape).to(device))
    assert all(p.grad.count_nonzero() == 0 for p in (x, *module.parameters()))


# The errors of forward


def errors() -> dict[str, tuple[Callable[[Any], Any], bool]]:
    """What is done to a module that must raise, and whether the text is torch's too."""
    x, hx, one = x_of(T, B, D).float(), hx_of(2, B, H).float(), x_of(T, D).float()
    row, start = packed([5, 3, 2], True), packed([3, 5, 2])
    sequences = PackedSequence(row.data.float(), row.batch_sizes)
    unsorted = PackedSequence(start.data.float(), *start[1:])
    return {
        "input 0-D": (lambda m: m(torch.zeros(())), True),
        "input 1-D": (lambda m: m(torch.zeros(D)), True),
        "input 4-D": (lambda m: m(torch.zeros(1, T, B, D)), True),
        "input float64": (lambda m: m(x.double()), True),
        "input float16": (lambda m: m(x.half()), True),
        "input int64": (lambda m: m(torch.zeros(T, B, D, dtype=torch.int64)), True),
        "input complex": (lambda m: m(x.to(torch.complex64)), True),
        "input float64, unbatched": (lambda m: m(one.double()), True),
        "packed float64": (lambda m: m(PackedSequence(row.data, row.batch_sizes)), True),
        "input size": (lambda m: m(torch.zeros(T, B, D + 3)), True),
        "input size, unbatched": (lambda m: m(torch.zeros(T, D + 3)), True),
        "input size, packed": (lambda m: m(PackedSequence(torch.zeros(10, D + 3), row.batch_sizes)), True),
        "input size and dtype": (lambda m: m(torch.zeros(T, B, D + 3, dtype=F64)), True),
        "hx 2-D": (lambda m: m(x, hx[:, 0]), True),
        "hx 1-D": (lambda m: m(x, hx[0, 0]), True),
        "hx 4-D": (lambda m: m(x, hx[None]), True),
        "hx 3-D, unbatched": (lambda m: m(one, hx), True),
        "hx 1-D, unbatched": (lambda m: m(one, hx[0, 0]), True),
        "hx rank and input dtype": (lambda m: m(x.double(), hx[0]), True),
        "hx layers": (lambda m: m(x, hx[:1]), True),
        "hx batch": (lambda m: m(x, hx[:, :2]), True),
        "hx size": (lambda m: m(x, hx[..., :-1]), True),
        "hx batch first": (lambda m: m(x, hx.transpose(0, 1)), True),
        "hx layers, unbatched": (lambda m: m(one, hx[:1, 0]), True),
        "hx size, unbatched": (lambda m: m(one, hx[:, 0, :-1]), True),
        "hx layers, packed": (lambda m: m(sequences, hx[:1]), True),
        "hx 2-D, packed": (lambda m: m(sequences, hx[:, 0]), True),
        "hx batch, packed": (lambda m: m(sequences, hx[:, :2]), True),
        "hx batch too small, unsorted": (lambda m: m(unsorted, hx[:, :2]), True),
        "hx size, unsorted": (lambda m: m(unsorted, hx[..., :-1]), True),
        "hx 1-D, unsorted": (lambda m: m(unsorted, hx[0, 0]), True),
        "hx float64": (lambda m: m(x, hx.double()), False),  # torch's speaks of mat1 and mat2
        "hx float64, unbatched": (lambda m: m(one, hx[:, 0].double()), False),
        "hx float64, packed": (lambda m: m(sequences, hx.double()), False),
        "hx complex": (lambda m: m(x, hx.to(torch.complex64)), False),
        "packed 1-D": (lambda m: m(PackedSequence(torch.zeros(10), row.batch_sizes)), True),
        "packed 3-D": (lambda m: m(PackedSequence(torch.zeros(10, 1, D), row.batch_sizes)), True),
        "T = 0": (lambda m: m(x[:0]), True),
        "T = 0, hx": (lambda m: m(x[:0], hx), True),
        "T = 0, unbatched": (lambda m: m(one[:0]), True),
        "T = 0 and B = 0": (lambda m: m(x[:0, :0]), True),
        "input on meta": (lambda m: m(x.to("meta")), True),
        "input on meta, unbatched": (lambda m: m(one.to("meta")), True),
        "hx on meta": (lambda m: m(x, hx.to("meta")), True),
        "input and hx on meta": (lambda m: m(x.to("meta"), hx.to("meta")), True),
        "module on meta": (lambda m: m.to("meta")(x), True),
        "module and input on meta": (lambda m: m.to("meta")(x.to("meta"), hx), True),
        "input list": (lambda m: m([x]), True),
        "input tuple": (lambda m: m((x, hx)), True),
        "input None": (lambda m: m(None), True),
        "input ndarray": (lambda m: m(x.numpy()), True),
        "hx tuple": (lambda m: m(x, (hx, hx)), True),
        "hx ndarray": (lambda m: m(x, hx.numpy()), True),
        "hx float": (lambda m: m(x, 0.0), True),
        "hx tuple, unbatched": (lambda m: m(one, (hx, hx)), True),
        "hx tuple, packed": (lambda m: m(sequences, (hx, hx)), True),
        "hx tuple, unsorted": (lambda m: m(unsorted, (hx, hx)), True),
        "hx packed": (lambda m: m(x, sequences), True),
        "no input": (lambda m: m(), True),
        "hidden=": (lambda m: m(x, hidden=hx), True),
        "a tensor for a weight": (lambda m: setattr(m, "weight_hh_l0", torch.zeros(H, H)), True),
        "a weight of another shape": (lambda m: setattr(m, "weight_hh_l0", nn.Parameter(x)) or m(x), False),
        "a weight of another size": (
            lambda m: setattr(m, "weight_hh_l1", nn.Parameter(torch.zeros(H + 1, H + 1))) or m(x),
            False,
        ),
    }


ERRORS = errors()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ERRORS)
def test_forward_refuses_what_nn_rnn_refuses_with_its_words(case):
    """On the CPU: torch's words for it are the CPU's."""
    call, text = ERRORS[case]
    mine, theirs = twins("RNN", D, H, 2)
    same_error(lambda: call(mine), lambda: call(theirs), text)


@pytest.mark.parametrize("case", ["T = 0", "input size", "hx batch", "hx layers", "hx size", "input 4-D", "hx 2-D"])
def test_errors_of_batch_first_speak_of_the_same_sizes(case):
    call, text = ERRORS[case]
    mine, theirs = twins("RNN", D, H, 2, batch_first=True)
    swapped = (lambda m: m(torch.zeros(B, 0, D))) if case == "T = 0" else call
    same_error(lambda: swapped(mine), lambda: swapped(theirs), text)


def test_a_weight_that_is_gone_is_missed():
    """nn.RNN goes on with the one that was deleted."""
    module = manual_bptt.RNN(D, H, 2)
    del module.weight_hh_l1
    with pytest.raises(AttributeError):
        module(torch.zeros(T, B, D))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rows", [9, 11])
def test_packed_rows_that_do_not_fit_the_batch_sizes_are_refused(rows, bidirectional):
    """nn.RNN drops what is too much and says nothing."""
    module = manual_bptt.RNN(D, H, bidirectional=bidirectional)
    with pytest.raises(RuntimeError):
        module(PackedSequence(torch.zeros(rows, D), torch.tensor([4, 3, 3])))


# RNNCell

CELLS = {
    "defaults": (4, 6),
    "no bias": (4, 6, False),
    "relu": (4, 6, True, "relu"),
    "all": (4, 6, False, "relu"),
    "unknown": (4, 6, True, "x"),
    "bias = 1": (4, 6, 1),
    "bias = 0": (4, 6, 0),
    "bools": (True, True),
}


@pytest.mark.parametrize("options", CELLS.values(), ids=list(CELLS))
def test_cell_constructor_attributes_parameters_and_repr_are_those_of_nn_rnn_cell(options):
    mine, theirs = twins("RNNCell", *options)
    same_module(mine, theirs)
    for name in (*nn.RNNCell.__constants__, "training", "bias_ih", "bias_hh"):
        actual, expected = getattr(mine, name), getattr(theirs, name)
        assert type(actual) is type(expected)
        if not isinstance(expected, Tensor):
            assert actual == expected
    assert isinstance(mine, nn.RNNCell)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((4,), {}), ((4, 6), {"hidden": 6}), ((4.0, 6), {}), ((4, -1), {}), (("4", 6), {}), ((4, None), {})],
    ids=str,
)
def test_cell_constructor_refuses_what_nn_rnn_cell_refuses(args, kwargs):
    same_error(lambda: manual_bptt.RNNCell(*args, **kwargs), lambda: nn.RNNCell(*args, **kwargs))


@pytest.mark.parametrize("with_hx", [False, True], ids=["no-hx", "hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("nonlinearity", OF_TORCH)
@pytest.mark.parametrize("batch", [(B,), (1,), ()], ids=["batch", "batch of one", "unbatched"])
def test_cell_shapes_strides_and_values_are_those_of_nn_rnn_cell(batch, nonlinearity, bias, with_hx, device):
    mine, theirs = (m.double() for m in twins("RNNCell", D, H, bias, nonlinearity))
    results = []
    for module, place in ((mine.to(device), device), (theirs, CPU)):
        x = x_of(*batch, D).to(place).requires_grad_()
        hx = hx_of(*batch, H).to(place).requires_grad_() if with_hx else None
        h = module(x) if hx is None else module(x, hx)
        (h * normal(seeded(3), *h.shape).to(place)).sum().backward()
        leaves = {"x": x, "hx": hx, **dict(module.named_parameters())}
        results.append({"h": h} | {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf is not None})
    for name, value in results[0].items():
        assert (value.shape, value.stride()) == (results[1][name].shape, results[1][name].stride()), name
    assert_all_close({name: value.cpu() for name, value in results[0].items()}, results[1], EXACT)


def a_weight_that_shadows_its_parameter(cell: nn.Module) -> None:
    cell.__dict__["weight_hh"] = normal(seeded(8), H, H)


def no_bias(name: str) -> Callable[[nn.Module], None]:
    return lambda cell: setattr(cell, name, None)


@pytest.mark.parametrize(
    "edit", [a_weight_that_shadows_its_parameter, no_bias("bias_ih"), no_bias("bias_hh")], ids=["shadow", "ih", "hh"]
)
def test_a_cell_that_somebody_has_edited_computes_what_nn_rnn_cell_does(edit):
    results = []
    for cell in (m.double() for m in twins("RNNCell", D, H, True, "tanh")):
        edit(cell)
        cell.zero_grad()
        h = cell(x_of(B, D), hx_of(B, H))
        h.sum().backward()
        results.append({"h": h} | {name: p.grad for name, p in cell.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    assert_all_close(*results, EXACT)


def cell_errors() -> dict[str, tuple[Callable[[Any], Any], bool]]:
    x, hx = x_of(B, D).float(), hx_of(B, H).float()

    def renamed(nonlinearity: Any, *args: Any) -> Callable[[Any], Any]:
        return lambda m: setattr(m, "nonlinearity", nonlinearity) or m(*args)

    return {
        "input 0-D": (lambda m: m(torch.zeros(())), True),
        "input 3-D": (lambda m: m(x[None]), True),
        "hx 0-D": (lambda m: m(x, torch.zeros(())), True),
        "hx 3-D": (lambda m: m(x, hx[None]), True),
        "hx 3-D, unbatched": (lambda m: m(x[0], hx[None]), True),
        "input size": (lambda m: m(torch.zeros(B, D + 3)), True),
        "input size, unbatched": (lambda m: m(torch.zeros(D + 3)), True),
        "input size and hx size": (lambda m: m(torch.zeros(B, D + 3), hx[:, 1:]), True),
        "hx batch": (lambda m: m(x, hx[:2]), True),
        "hx batch of one": (lambda m: m(x, hx[:1]), True),
        "hx size": (lambda m: m(x, hx[:, 1:]), True),
        "hx size, unbatched": (lambda m: m(x[0], hx[0, 1:]), True),
        "hx 1-D of another size": (lambda m: m(x, hx[0]), True),
        "hx 1-D, as long as the batch": (lambda m: m(x, hx[:, 0]), False),
        "hx 2-D, unbatched": (lambda m: m(x[0], hx[:1]), True),
        "hx 2-D, unbatched, of more rows": (lambda m: m(x[0], hx), True),
        "input float64": (lambda m: m(x.double()), False),
        "input int64": (lambda m: m(x.long()), False),
        "hx float64": (lambda m: m(x, hx.double()), False),
        "hx complex": (lambda m: m(x, hx.to(torch.complex64)), False),
        "input on meta": (lambda m: m(x.to("meta")), False),
        "hx on meta": (lambda m: m(x, hx.to("meta")), False),
        "unknown nonlinearity": (renamed("x", x), True),
        "unknown nonlinearity and input size": (renamed("x", torch.zeros(B, D + 3)), True),
        "unknown nonlinearity and 3-D input": (renamed("x", x[None]), True),
        "nonlinearity None": (renamed(None, x), True),
        "nonlinearity list": (renamed(["tanh"], x), True),
        "input list": (lambda m: m([x]), True),
        "input None": (lambda m: m(None), True),
        "input ndarray": (lambda m: m(x.numpy()), True),
        "hx tuple": (lambda m: m(x, (hx,)), True),
        "hx ndarray": (lambda m: m(x, hx.numpy()), True),
        "input packed": (lambda m: m(packed([3, 2])), True),
        "no input": (lambda m: m(), True),
        "hidden=": (lambda m: m(x, hidden=hx), True),
        "three arguments": (lambda m: m(x, hx, None), True),
        "a tensor for a weight": (lambda m: setattr(m, "weight_hh", torch.zeros(H, H)), True),
        "a weight of another size": (
            lambda m: setattr(m, "weight_hh", nn.Parameter(torch.zeros(H + 1, H + 1))) or m(x),
            False,
        ),
    }


CELL_ERRORS = cell_errors()


@pytest.mark.parametrize("case", CELL_ERRORS)
def test_cell_refuses_what_nn_rnn_cell_refuses_with_its_words(case):
    """On the CPU: torch's words for it are the CPU's."""
    call, text = CELL_ERRORS[case]
    mine, theirs = twins("RNNCell", D, H)
    same_error(lambda: call(mine), lambda: call(theirs), text)
