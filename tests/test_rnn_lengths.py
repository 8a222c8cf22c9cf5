"""Sequences of different lengths: padded with lengths=, packed, and jagged nested tensors.

Held: what comes after a sequence's end is 0 in the output, has gradient 0 and changes nothing, whatever stands there;
h_n is the state at the end, and hx where there is no step; values and gradients are those of the packed form by
torch.nn.RNN, and every further derivative and transform is that of the sequences run one by one by torch.nn.RNN.

Would catch: padding that leaks through a 0 · inf, a reverse direction that starts in the padding, a state at the end of
the wrong sequence, a sequence without steps that moves a weight, lengths that are taken for something else, and
transforms that see one length for all.

Tests that take no device run on the CPU only.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from problems import NONLINEARITIES, TOLERANCE, assert_all_close, assert_close, leaves, normal, seeded
from torch import Tensor, func, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import manual_bptt

# torch's own: decompositions for forward mode are scripted when they are first asked for
scripted_by_torch = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
# torch's own: what it says of its nested tensors of strided layout
prototype_of_torch = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
# torch's own, on compiling; it also looks at .grad of what is no leaf
compiled_by_torch = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)

EXACT, TWICE = TOLERANCE[torch.float64], 1e-11
T, B, D, H = 6, 5, 2, 3
LENGTHS = (4, 6, 1, 4, 2)
WITH_EMPTY = (4, 0, 6, 0, 2)
BOTH = (False, True)
OF_TORCH = ("tanh", "relu")
KINDS = {"list": list, "int64": torch.tensor, "int32": partial(torch.tensor, dtype=torch.int32)}
STRICT = {"atol": 1e-8, "rtol": 1e-6}

each_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
each_direction = pytest.mark.parametrize("bidirectional", BOTH, ids=["one-way", "both-ways"])
each_layout = pytest.mark.parametrize("batch_first", BOTH, ids=["time-first", "batch-first"])


def models(
    layers: int = 2, bidirectional: bool = True, nonlinearity: str = "tanh", **options: Any
) -> tuple[manual_bptt.RNN, nn.RNNBase]:
    """Make this module and, with its weights, torch's; where torch has no such nonlinearity, this one's again."""
    torch.default_generator.manual_seed(1)
    options = {"num_layers": layers, "bidirectional": bidirectional, "dtype": torch.float64} | options
    mine = manual_bptt.RNN(D, H, nonlinearity=nonlinearity, **options)
    of_torch = nn.RNN if nonlinearity in OF_TORCH else manual_bptt.RNN
    theirs = of_torch(D, H, nonlinearity=nonlinearity, **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


def drawn(model: nn.RNNBase, steps: int = T, rows: int = B) -> dict[str, Tensor]:
    generator, directions = seeded(21), 2 if model.bidirectional else 1
    return {
        "x": normal(generator, *((rows, steps) if model.batch_first else (steps, rows)), D),
        "hx": normal(generator, model.num_layers * directions, rows, H, scale=0.7),
        "to output": normal(generator, *((rows, steps) if model.batch_first else (steps, rows)), directions * H),
        "to h_n": normal(generator, model.num_layers * directions, rows, H),
    }


def padding(lengths: Any, batch_first: bool = False) -> Tensor:
    """True after a sequence's end, to stand before the features."""
    after = torch.arange(T).unsqueeze(1) >= torch.as_tensor(lengths)
    return (after.t() if batch_first else after).unsqueeze(-1)


def one_by_one(model: Callable[..., Any], x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
    """Every sequence without its padding and without the others; time first."""
    alone = {i: model(x[:length, i], hx[:, i]) for i, length in enumerate(lengths) if length}
    width = next(iter(alone.values()))[0].shape[-1]
    outputs, states = [], []
    for i, length in enumerate(lengths):
        output, h_n = alone.get(i, (x.new_zeros(0, width), hx[:, i]))
        outputs.append(functional.pad(output, (0, 0, 0, x.shape[0] - length)))
        states.append(h_n)
    return torch.stack(outputs, 1), torch.stack(states, 1)


def packed_run(model: nn.RNNBase, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
    packed = pack_padded_sequence(x, torch.as_tensor(lengths).long(), model.batch_first, enforce_sorted=False)
    output, h_n = model(packed, hx)
    return pad_packed_sequence(output, model.batch_first, total_length=T)[0], h_n


def called_with(model: nn.RNNBase, parameters: dict[str, Tensor]) -> Callable[..., Any]:
    return lambda *args, **kwargs: func.functional_call(model, parameters, args, kwargs)


def with_lengths(model: Callable[..., Any], x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
    return model(x, hx, lengths=lengths)


Run = Callable[..., tuple[Tensor, Tensor]]


def first_order(run: Run, model: nn.RNNBase, values: dict[str, Tensor], lengths: Any) -> dict[str, Tensor]:
    """Results and every gradient."""
    inputs = leaves({name: values[name] for name in ("x", "hx")})
    output, h_n = run(model, *inputs.values(), lengths)
    of = inputs | dict(model.named_parameters())
    gradients = torch.autograd.grad((output, h_n), list(of.values()), (values["to output"], values["to h_n"]))
    return {"output": output, "h_n": h_n} | {f"d{name}": g for name, g in zip(of, gradients, strict=True)}


def second_order(run: Run, model: nn.RNNBase, values: dict[str, Tensor], lengths: Any) -> dict[str, Tensor]:
    """The gradients of the gradients, each of these with its own random upstream gradient."""
    of = leaves({name: values[name] for name in ("x", "hx", "to output", "to h_n")}) | dict(model.named_parameters())
    results = run(model, of["x"], of["hx"], lengths)
    wrt = [name for name in of if not name.startswith("to ")]
    once = torch.autograd.grad(results, [of[n] for n in wrt], (of["to output"], of["to h_n"]), create_graph=True)
    upstream = [normal(seeded(30 + place), *gradient.shape) for place, gradient in enumerate(once)]
    upstream[wrt.index("x")] = values.get("to dx", upstream[wrt.index("x")])
    twice = torch.autograd.grad(once, list(of.values()), upstream)
    return {f"dd{name}": gradient for name, gradient in zip(of, twice, strict=True)}


def forward_mode(run: Run, model: nn.RNNBase, values: dict[str, Tensor], lengths: Any) -> dict[str, Tensor]:
    """The tangents of both results, along random tangents of everything."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moved = {name: normal(seeded(40 + i), *value.shape) for i, (name, value) in enumerate(parameters.items())}
    tangents = values.get("x moved", normal(seeded(6), *values["x"].shape)), normal(seeded(7), *values["hx"].shape)

    def results(parameters: dict[str, Tensor], x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        return run(called_with(model, parameters), x, hx, lengths)

    _, (output, h_n) = func.jvp(results, (parameters, values["x"], values["hx"]), (moved, *tangents))
    return {"output moved": output, "h_n moved": h_n}


def in_torchs_layout(run: Run, model: nn.RNNBase) -> Run:
    """Let a run that wants time first take and give what the model does."""
    if not model.batch_first:
        return run

    def turned(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        output, h_n = run(model, x.transpose(0, 1), hx, lengths)
        return output.transpose(0, 1), h_n

    return turned


@each_layout
@each_direction
@pytest.mark.parametrize("layers", [1, 3])
@each_nonlinearity
def test_lengths_give_what_packing_gives_and_nothing_after_the_end(
    nonlinearity, layers, bidirectional, batch_first, device
):
    mine, theirs = (m.to(device) for m in models(layers, bidirectional, nonlinearity, batch_first=batch_first))
    values = {name: value.to(device) for name, value in drawn(mine).items()}
    with torch.backends.cudnn.flags(enabled=False):
        truth = first_order(packed_run, theirs, values, LENGTHS)
    after = padding(LENGTHS, batch_first).to(device)
    for kind, make in KINDS.items():
        lengths = make(LENGTHS)
        found = first_order(with_lengths, mine, values, lengths.to(device) if kind != "list" else lengths)
        assert_all_close(found, truth, EXACT)
        for name in ("output", "dx"):
            assert not found[name][after.expand_as(found[name])].any(), f"{name}, {kind}"


@scripted_by_torch
@pytest.mark.parametrize("lengths", [LENGTHS, WITH_EMPTY], ids=["all-run", "two-are-empty"])
@each_nonlinearity
@pytest.mark.parametrize("order", [first_order, second_order, forward_mode])
def test_every_derivative_is_that_of_the_sequences_one_by_one(order, nonlinearity, lengths):
    mine, theirs = models(nonlinearity=nonlinearity)
    values = drawn(mine)
    assert_all_close(order(with_lengths, mine, values, lengths), order(one_by_one, theirs, values, lengths), TWICE)


RUBBISH = {"nan": math.nan, "inf": math.inf, "1e300": 1e300}
FILLED = {first_order: ("x", "to output"), second_order: ("x", "to output", "to dx"), forward_mode: ("x", "x moved")}


@scripted_by_torch
@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=list(RUBBISH))
@each_layout
@each_nonlinearity
@pytest.mark.parametrize("order", FILLED)
def test_nothing_depends_on_what_stands_in_the_padding(order, nonlinearity, batch_first, rubbish):
    mine, _ = models(nonlinearity=nonlinearity, batch_first=batch_first)
    values = drawn(mine)
    values |= {name: normal(seeded(8), *values["x"].shape) for name in FILLED[order] if name not in values}
    after = padding(WITH_EMPTY, batch_first)
    clean, filled = (
        values | {name: values[name].masked_fill(after, fill) for name in FILLED[order]} for fill in (0.0, rubbish)
    )
    truth = order(with_lengths, mine, clean, WITH_EMPTY)
    for name, value in order(with_lengths, mine, filled, WITH_EMPTY).items():
        assert torch.equal(value, truth[name]), name


@scripted_by_torch
@each_direction
@each_nonlinearity
@pytest.mark.parametrize("order", [first_order, second_order, forward_mode])
def test_what_would_overflow_in_the_padding_changes_nothing(order, nonlinearity, bidirectional):
    """At every step all grows 1e30 times: states where they may, and derivatives where f is steep at 0."""
    mine, _ = models(1, bidirectional, nonlinearity)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.copy_(parameter.abs() if nonlinearity == "relu" else parameter)
        mine.weight_hh_l0.mul_(1e30)
    values, lengths = drawn(mine, 20), (2, 0, 1, 2, 2)
    values |= {name: normal(seeded(8), *values["x"].shape) for name in ("to dx", "x moved")}
    long = order(with_lengths, mine, values, lengths)
    assert mine(values["x"])[0].isfinite().all() == (nonlinearity in ("tanh", "sigmoid"))
    short = {name: value if "h" in name else value[:2] for name, value in values.items()}
    truth = order(with_lengths, mine, short, lengths)
    assert all(value.isfinite().all() for value in truth.values())
    steps = {name for name, value in long.items() if value.shape != truth[name].shape}
    assert not any(long[name][2:].any() for name in steps)
    assert_all_close({name: v[:2] if name in steps else v for name, v in long.items()}, truth, TWICE)


@each_direction
@each_nonlinearity
def test_overflow_in_the_padding_under_vmap(nonlinearity, bidirectional):
    mine, _ = models(1, bidirectional, nonlinearity)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.mul_(1e30)
    values, lengths = drawn(mine, 20), torch.tensor([2, 0, 1, 2, 2])
    parameters = {name: parameter.detach() for name, parameter in mine.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, length: Tensor) -> Tensor:
        output, h_n = called_with(mine, parameters)(x.unsqueeze(1), lengths=length.unsqueeze(0))
        return output.sum() + h_n.sum()

    gradients = func.vmap(func.grad(loss, (0, 1)), (None, 1, 0))(parameters, values["x"], lengths)
    assert all(gradient.isfinite().all() for gradient in (*gradients[0].values(), gradients[1]))


@each_layout
@each_direction
@each_nonlinearity
def test_a_sequence_without_steps_ends_where_it_starts(nonlinearity, bidirectional, batch_first, device):
    mine, _ = (m.to(device) for m in models(2, bidirectional, nonlinearity, batch_first=batch_first))
    values = {name: value.to(device) for name, value in drawn(mine).items()}
    found = first_order(with_lengths, mine, values, WITH_EMPTY)
    runs, axis = [i for i, length in enumerate(WITH_EMPTY) if length], 0 if batch_first else 1
    empty = [i for i in range(B) if i not in runs]
    assert torch.equal(found["h_n"][:, empty], values["hx"][:, empty])
    assert torch.equal(found["dhx"][:, empty], values["to h_n"][:, empty])
    for name in ("output", "dx"):
        assert not found[name].index_select(axis, torch.tensor(empty, device=device)).any()

    def chosen(name: str, value: Tensor) -> Tensor:
        along = {"x": axis, "to output": axis, "output": axis, "dx": axis}
        along |= dict.fromkeys(("hx", "to h_n", "h_n", "dhx"), 1)
        return value.index_select(along[name], torch.tensor(runs, device=device)) if name in along else value

    kept = {name: chosen(name, value) for name, value in values.items()}
    truth = first_order(with_lengths, mine, kept, [WITH_EMPTY[i] for i in runs])
    assert_all_close({name: chosen(name, value) for name, value in found.items()}, truth, EXACT)
    no_hx = mine(values["x"], lengths=WITH_EMPTY)[1]
    assert not no_hx[:, empty].any()
    assert no_hx[:, runs].any()


@each_nonlinearity
@pytest.mark.parametrize("rows", [0, B], ids=["no-sequence", "all-are-empty"])
def test_a_batch_without_any_step_moves_no_parameter(rows, nonlinearity, device):
    mine = models(nonlinearity=nonlinearity)[0].to(device)
    values = {name: value.to(device) for name, value in drawn(mine, rows=rows).items()}
    found = first_order(with_lengths, mine, values, [0] * rows)
    assert torch.equal(found.pop("h_n"), values["hx"])
    assert torch.equal(found.pop("dhx"), values["to h_n"])
    assert found["output"].shape == values["to output"].shape
    assert not any(value.any() for value in found.values())


# lengths for T = 6 and B = 5, how they are refused, and the words
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "float tensor": (torch.tensor([4.0, 6.0, 1.0, 4.0, 2.0]), TypeError, "lengths of dtype.*got torch.float32"),
    "bool tensor": (torch.tensor([True] * B), TypeError, "lengths of dtype.*got torch.bool"),
    "int16 tensor": (torch.tensor(LENGTHS, dtype=torch.int16), TypeError, "lengths of dtype.*got torch.int16"),
    "floats": ([4.5, 6.0, 1.0, 4.0, 2.0], TypeError, "lengths"),
    "whole floats": ([4.0, 6.0, 1.0, 4.0, 2.0], TypeError, "lengths"),
    "bools": ([True] * B, TypeError, "lengths"),
    "strings": (["4", "6", "1", "4", "2"], TypeError, "lengths"),
    "None among them": ([4, None, 1, 4, 2], TypeError, "lengths"),
    "one int": (4, TypeError, "lengths"),
    "one of them missing": (LENGTHS[1:], ValueError, r"lengths of shape \(B,\) = \(5,\), got \(4,\)"),
    "one too many": ((*LENGTHS, 1), ValueError, r"lengths of shape \(B,\) = \(5,\), got \(6,\)"),
    "none at all": ([], ValueError, r"lengths of shape \(B,\) = \(5,\), got \(0,\)"),
    "0-dimensional": (torch.tensor(4), ValueError, r"lengths of shape \(B,\) = \(5,\), got \(\)"),
    "column": (torch.tensor(LENGTHS).unsqueeze(1), ValueError, r"lengths of shape \(B,\) = \(5,\), got \(5, 1\)"),
    "lists of them": ([[4, 6, 1, 4, 2]], TypeError, "lengths"),
    "negative": ([4, 6, -1, 4, 2], ValueError, r"lengths between 0 and T = 6, got -1 at index \(2,\)"),
    "beyond T": ([4, 6, 1, 7, 2], ValueError, r"lengths between 0 and T = 6, got 7 at index \(3,\)"),
    "far beyond T": ([4, 6, 1, 2**40, 2], ValueError, "lengths between 0 and T = 6, got 1099511627776"),
}


@each_layout
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_lengths_are_refused(wrong, batch_first):
    lengths, error, words = WRONG[wrong]
    mine, _ = models(batch_first=batch_first)
    with pytest.raises(error, match=words) as caught:
        mine(drawn(mine)["x"], lengths=lengths)
    assert type(caught.value) is error


def jagged(*sizes: int) -> Tensor:
    values = normal(seeded(3), sum(sizes), D).split(sizes)
    return torch.nested.nested_tensor(list(values), layout=torch.jagged)


BESIDE: dict[str, Callable[[], tuple[Any, list[int]]]] = {
    "packed": lambda: (pack_sequence([normal(seeded(1), 4, D), normal(seeded(2), 3, D)]), [4, 3]),
    "unbatched": lambda: (normal(seeded(1), 4, D), [4]),
    "nested": lambda: (jagged(4, 3), [4, 3]),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_lengths_beside_what_has_its_own_are_refused(kind):
    input, lengths = BESIDE[kind]()
    with pytest.raises(TypeError, match="expected no lengths beside"):
        models()[0](input, lengths=lengths)


def named(parameters: dict[str, Tensor]) -> list[Tensor]:
    return [parameters[name] for name in sorted(parameters)]


@each_layout
@each_nonlinearity
def test_per_sample_gradients_over_samples_and_lengths(nonlinearity, batch_first):
    """By vmap, of samples of two sequences each, against every sample by itself and its sequences one by one."""
    mine, theirs = models(nonlinearity=nonlinearity, batch_first=batch_first)
    samples = [
        drawn(mine, rows=2) | {"x": normal(seeded(i), *((2, T) if batch_first else (T, 2)), D)} for i in range(4)
    ]
    lengths = torch.tensor([[4, 6], [0, 1], [6, 6], [2, 5]])
    parameters = {name: parameter.detach() for name, parameter in mine.named_parameters()}
    weights = {name: samples[0][name] for name in ("to output", "to h_n")}

    def loss(run: Run, model: Any, parameters: dict[str, Tensor], x: Tensor, hx: Tensor, lengths: Any) -> Tensor:
        output, h_n = run(called_with(model, parameters), x, hx, lengths)
        return (output * weights["to output"]).sum() + (h_n.square() * weights["to h_n"]).sum()

    x, hx = (torch.stack([sample[name] for sample in samples]) for name in ("x", "hx"))
    gradient = func.grad(partial(loss, with_lengths, mine), (0, 1, 2))
    found = func.vmap(gradient, (None, 0, 0, 0))(parameters, x, hx, lengths)
    alone = in_torchs_layout(one_by_one, mine)
    for i, sample in enumerate(samples):
        truth = func.grad(partial(loss, alone, theirs), (0, 1, 2))(parameters, x[i], hx[i], lengths[i].tolist())
        for name, value in truth[0].items():
            assert_close(name, found[0][name][i], value, TWICE)
        assert_close("dx", found[1][i], truth[1], TWICE)
        assert_close("dhx", found[2][i], truth[2], TWICE)
        assert sample["x"].shape == x[i].shape


@pytest.mark.parametrize("axes", [(0, None), (None, 0)], ids=["samples", "lengths"])
def test_vmap_over_samples_or_lengths_alone(axes):
    mine, theirs = models()
    drawn_ = drawn(mine)
    x = drawn_["x"] if axes[0] is None else torch.stack([drawn_["x"], 0.5 * drawn_["x"]])
    lengths = torch.tensor([LENGTHS, WITH_EMPTY]) if axes[1] == 0 else torch.tensor(WITH_EMPTY)

    def results(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return mine(x, drawn_["hx"], lengths=lengths)

    found = func.vmap(results, axes)(x, lengths)
    for i in range(2):
        one = one_by_one(
            theirs, x if axes[0] is None else x[i], drawn_["hx"], (lengths if axes[1] is None else lengths[i]).tolist()
        )
        for name, mine_, truth in zip(("output", "h_n"), found, one, strict=True):
            assert_close(name, mine_[i], truth, EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_fake_tensors_have_no_values_to_look_at(kind):
    with FakeTensorMode():
        mine, _ = models()
        values = {name: torch.empty_like(value) for name, value in drawn(mine).items()}
        found = first_order(with_lengths, mine, values, KINDS[kind](LENGTHS))
    assert found["output"].shape == (T, B, 2 * H)
    assert found["dhx"].shape == found["h_n"].shape == (4, B, H)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@compiled_by_torch
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", ["list", "int32"])
def test_lengths_compile_whole(kind):
    mine, theirs = models(1)
    compiled = torch.compile(mine, fullgraph=True, backend="eager")
    values = drawn(mine)
    for lengths in (LENGTHS, WITH_EMPTY):

        def run(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
            return compiled(x, hx, lengths=KINDS[kind](lengths))

        found = first_order(run, mine, values, lengths)
        assert_all_close(found, first_order(one_by_one, theirs, values, lengths), EXACT)


@scripted_by_torch
@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "identity"])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_derivatives_with_lengths(check, nonlinearity):
    mine, _ = models(1, nonlinearity=nonlinearity)
    parameters = dict(mine.named_parameters())
    values = drawn(mine, 4, 3)

    def results(x: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return called_with(mine, dict(zip(parameters, weights, strict=True)))(x, hx, lengths=[2, 0, 4])

    inputs = [*leaves({name: values[name] for name in ("x", "hx")}).values(), *parameters.values()]
    modes = {"check_forward_ad": True} if check is gradcheck else {"check_fwd_over_rev": True}
    assert check(results, inputs, **STRICT, check_batched_grad=True, fast_mode=True, **modes)


@each_layout
@each_direction
def test_dropout_between_layers_with_lengths(bidirectional, batch_first):
    """The mask is one of (T, B, H), whatever the lengths: the layers one by one, with torch's dropout between."""
    mine, _ = models(2, bidirectional, batch_first=batch_first, dropout=0.4)
    singles = []
    for layer in range(2):
        single = nn.RNN((D, H * (1 + bidirectional))[layer], H, bidirectional=bidirectional, dtype=torch.float64)
        of_layer = {n.replace(f"_l{layer}", "_l0"): p for n, p in mine.state_dict().items() if f"_l{layer}" in n}
        single.load_state_dict(of_layer)
        singles.append(single)
    both = nn.ModuleList(singles)

    def stacked(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        starts = hx.chunk(2)
        between, first = one_by_one(both[0], x, starts[0], lengths)
        output, second = one_by_one(both[1], functional.dropout(between, 0.4), starts[1], lengths)
        return output, torch.cat((first, second))

    values = drawn(mine)
    found, states = [], []
    for run, model in ((with_lengths, mine), (in_torchs_layout(stacked, mine), both)):
        torch.default_generator.manual_seed(4)
        model.batch_first = batch_first
        found.append(first_order(run, model, values, WITH_EMPTY))
        states.append(torch.get_rng_state())
    truth = {n.replace("d0.", "d"): v for n, v in found[1].items() if not n.startswith("d1.")}
    truth |= {n.replace("d1.", "d").replace("_l0", "_l1"): v for n, v in found[1].items() if n.startswith("d1.")}
    assert_all_close(found[0], truth, EXACT)
    assert torch.equal(*states)
    assert not found[0]["output"][padding(WITH_EMPTY, batch_first).expand_as(found[0]["output"])].any()
    mine.eval()
    with torch.no_grad():
        evaluated = mine(values["x"], values["hx"], lengths=WITH_EMPTY)[0]
    assert not torch.equal(evaluated, found[0]["output"])


def nested_run(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
    """Through a jagged nested tensor, and padded again with 0."""
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], device=x.device)
    values = torch.cat([x[:length, i] for i, length in enumerate(lengths)])
    input = torch.nested.nested_tensor_from_jagged(values, offsets)
    output, h_n = model(input, hx)
    assert output.layout == torch.jagged
    assert output.offsets() is input.offsets()
    parts = output.values().split(list(lengths))
    return torch.stack([functional.pad(part, (0, 0, 0, len(x) - len(part))) for part in parts], 1), h_n


@pytest.mark.parametrize("lengths", [LENGTHS, WITH_EMPTY], ids=["all-run", "two-are-empty"])
@each_direction
@pytest.mark.parametrize(("layers", "batch_first"), [(1, True), (2, False)])
@each_nonlinearity
def test_jagged_nested_tensors_are_the_sequences_one_by_one(
    nonlinearity, layers, batch_first, bidirectional, lengths, device
):
    mine, theirs = (m.to(device) for m in models(layers, bidirectional, nonlinearity))
    values = {name: value.to(device) for name, value in drawn(mine).items()}
    mine.batch_first = batch_first  # which is not asked
    with torch.backends.cudnn.flags(enabled=False):
        truth = first_order(one_by_one, theirs, values, lengths)
    assert_all_close(first_order(nested_run, mine, values, lengths), truth, EXACT)


@scripted_by_torch
def test_a_nested_output_combines_with_its_input():
    mine, _ = models(1)
    input = jagged(4, 1, 3)
    output, _ = mine(input)
    beside = torch.cat((output, input), -1)
    assert torch.equal(beside.values(), torch.cat((output.values(), input.values()), -1))
    assert torch.equal((output[..., :D] + input).values(), output.values()[:, :D] + input.values())
    assert torch.equal(mine(input, torch.zeros(2, 3, H, dtype=torch.float64))[0].values(), output.values())
    again, h_n = manual_bptt.RNN(2 * H, H, dtype=torch.float64)(output)
    assert again.offsets() is input.offsets()
    assert h_n.shape == (1, 3, H)


def test_second_derivatives_of_the_final_states_of_nested_tensors():
    """Of h_n alone: torch cannot differentiate the views of a nested tensor's values twice."""
    mine, theirs = models()
    values, found = drawn(mine), []
    for run, model in ((nested_run, mine), (one_by_one, theirs)):
        of = leaves({name: values[name] for name in ("hx", "to h_n")}) | dict(model.named_parameters())
        _, h_n = run(model, values["x"], of["hx"], WITH_EMPTY)
        wrt = {name: value for name, value in of.items() if name != "to h_n"}
        once = torch.autograd.grad(h_n, list(wrt.values()), of["to h_n"], create_graph=True)
        upstream = [normal(seeded(place), *gradient.shape) for place, gradient in enumerate(once)]
        found.append(dict(zip(of, torch.autograd.grad(once, list(of.values()), upstream), strict=True)))
    assert_all_close(*found, TWICE)


def strided(*shapes: tuple[int, ...]) -> Tensor:
    return torch.nested.nested_tensor([normal(seeded(1), *shape) for shape in shapes])


REFUSED_NESTED: dict[str, tuple[Callable[[], Tensor], type[Exception], str]] = {
    "strided": (lambda: strided((4, D), (2, D)), ValueError, "layout torch.jagged"),
    "strided of two dimensions": (lambda: strided((4,), (2,)), ValueError, "layout torch.jagged"),
    "two dimensions": (
        lambda: torch.nested.nested_tensor([torch.ones(n).double() for n in (D, 4)], layout=torch.jagged),
        ValueError,
        "nested|2 dimensions",
    ),
    "with holes": (
        lambda: torch.nested.narrow(
            normal(seeded(1), 3, 5, D), 1, torch.tensor([0, 1, 2]), torch.tensor([2, 4, 3]), layout=torch.jagged
        ),
        ValueError,
        "without holes",
    ),
    "other features": (lambda: jagged(4, 2)[..., :1], RuntimeError, r"input.size\(-1\) must be equal to input_size"),
    "other dtype": (lambda: jagged(4, 2).float(), ValueError, "does not match weight dtype"),
    "without any step": (lambda: jagged(0, 0), RuntimeError, "sequence length to be larger than 0"),
}


@prototype_of_torch
@pytest.mark.parametrize("kind", REFUSED_NESTED)
def test_other_nested_tensors_are_refused(kind):
    make, error, words = REFUSED_NESTED[kind]
    input = make()
    with pytest.raises(error, match=words) as caught:
        models()[0](input)
    assert type(caught.value) is error


def test_a_jagged_tensor_with_holes_can_be_made_contiguous():
    mine, theirs = models()
    x, starts, lengths = normal(seeded(1), 3, 5, D), [0, 1, 2], [2, 4, 3]
    holes = torch.nested.narrow(x, 1, torch.tensor(starts), torch.tensor(lengths), layout=torch.jagged)
    output, h_n = mine(holes.contiguous())
    truth = [theirs(x[i, s : s + n]) for i, (s, n) in enumerate(zip(starts, lengths, strict=True))]
    assert_close("output", output.values(), torch.cat([one for one, _ in truth]), EXACT)
    assert_close("h_n", h_n, torch.stack([one for _, one in truth], 1), EXACT)


def test_a_nested_tensor_with_hx_of_another_shape_is_refused():
    mine, _ = models()
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(4, 2, 3\), got \[4, 3, 3\]"):
        mine(jagged(4, 2), torch.zeros(4, 3, H, dtype=torch.float64))


@each_direction
@pytest.mark.parametrize("rows", [6, 10], ids=["missing", "surplus"])
@pytest.mark.parametrize("grad", BOTH, ids=["no-grad", "grad"])
def test_packed_rows_that_do_not_go_with_the_batch_sizes_are_refused(grad, rows, bidirectional):
    """torch.nn.RNN refuses missing rows with a RuntimeError too, and drops surplus ones without a word."""
    mine, _ = models(1, bidirectional)
    input = PackedSequence(normal(seeded(1), rows, D), torch.tensor([4, 3, 1]))
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=str(rows)):
        mine(input)


@compiled_by_torch
@pytest.mark.usefixtures("fresh_compiler")
def test_surplus_packed_rows_are_refused_when_compiled():
    mine, _ = models(1)
    data = normal(seeded(1), 10, D)

    def run(data: Tensor, batch_sizes: Tensor) -> Tensor:
        return mine(PackedSequence(data, batch_sizes))[1]

    with pytest.raises(RuntimeError):
        torch.compile(run, fullgraph=True, backend="eager")(data, torch.tensor([4, 3, 1]))


@pytest.mark.parametrize("enforce_sorted", BOTH)
@each_direction
@each_nonlinearity
def test_one_sequence_packed_is_that_sequence(nonlinearity, bidirectional, enforce_sorted):
    mine, _ = models(2, bidirectional, nonlinearity)
    values = drawn(mine, rows=1)

    def packed(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        output, h_n = model(pack_sequence([x[:, 0]], enforce_sorted=enforce_sorted), hx)
        assert output.batch_sizes.tolist() == [1] * T
        return output.data.unsqueeze(1), h_n

    def dense(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        return model(x, hx)

    assert_all_close(first_order(packed, mine, values, None), first_order(dense, mine, values, None), EXACT)


@scripted_by_torch
@each_direction
@each_nonlinearity
@pytest.mark.parametrize("order", [second_order, forward_mode])
def test_packed_under_create_graph_and_jvp(order, nonlinearity, bidirectional):
    mine, theirs = models(2, bidirectional, nonlinearity)
    values = drawn(mine)

    def run(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        rows = pack_sequence([torch.arange(n) * B + i for i, n in enumerate(lengths)], enforce_sorted=False)
        output, h_n = model(rows._replace(data=x.flatten(0, 1)[rows.data]), hx)
        whole = x.new_zeros(T * B, output.data.shape[1]).index_copy(0, rows.data, output.data)
        return whole.view(T, B, -1), h_n

    assert_all_close(order(run, mine, values, LENGTHS), order(one_by_one, theirs, values, LENGTHS), TWICE)


PACKED_ROWS = pack_sequence([torch.arange(n) for n in LENGTHS], enforce_sorted=False)


@each_nonlinearity
def test_packed_under_vmap_over_the_data(nonlinearity):
    mine, _ = models(nonlinearity=nonlinearity)
    generator, parameters = seeded(7), {name: p.detach() for name, p in mine.named_parameters()}
    data, hx = normal(generator, 3, sum(LENGTHS), D), normal(generator, 3, 4, B, H)
    upstream = normal(generator, sum(LENGTHS), 2 * H), normal(generator, 4, B, H)

    def loss(parameters: dict[str, Tensor], data: Tensor, hx: Tensor) -> Tensor:
        output, h_n = called_with(mine, parameters)(PACKED_ROWS._replace(data=data), hx)
        return (output.data * upstream[0]).sum() + (h_n.square() * upstream[1]).sum()

    gradient = func.grad(loss, (0, 1, 2))
    found = func.vmap(gradient, (None, 0, 0))(parameters, data, hx)
    for i in range(3):
        of = leaves(parameters | {"data": data[i], "hx": hx[i]})
        value = loss({name: of[name] for name in parameters}, of["data"], of["hx"])  # outside of all transforms
        truth = dict(zip(of, torch.autograd.grad(value, list(of.values())), strict=True))
        assert_all_close({name: found[0][name][i] for name in parameters}, truth, EXACT)
        assert_close("ddata", found[1][i], truth["data"], EXACT)
        assert_close("dhx", found[2][i], truth["hx"], EXACT)


@each_nonlinearity
def test_packed_with_batched_gradients(nonlinearity):
    mine, theirs = models(nonlinearity=nonlinearity)
    generator = seeded(7)
    data, hx = normal(generator, sum(LENGTHS), D).requires_grad_(), normal(generator, 4, B, H).requires_grad_()
    upstream = normal(generator, 3, sum(LENGTHS), 2 * H), normal(generator, 3, 4, B, H)
    found = []
    for model, batched in ((mine, True), (theirs, False)):
        output, h_n = model(PACKED_ROWS._replace(data=data), hx)
        results, of = (output.data, h_n), (data, hx, *model.parameters())
        if batched:
            found.append(torch.autograd.grad(results, of, upstream, is_grads_batched=True))
        else:
            each = [torch.autograd.grad(results, of, pair, retain_graph=True) for pair in zip(*upstream, strict=True)]
            found.append([torch.stack(gradients) for gradients in zip(*each, strict=True)])
    for name, actual, truth in zip(("data", "hx", *dict(mine.named_parameters())), *found, strict=True):
        assert_close(f"d{name}", actual, truth, EXACT)


@compiled_by_torch
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("with_hx", BOTH, ids=["no-hx", "hx"])
def test_packed_compiles_whole(with_hx):
    mine, theirs = models(1)
    values = drawn(mine)
    if not with_hx:
        values["hx"].zero_()

    @partial(torch.compile, fullgraph=True, backend="eager")
    def run(rows: Tensor, batch_sizes: Tensor, order: Tensor, back: Tensor, hx: Tensor | None) -> tuple[Tensor, ...]:
        output, h_n = mine(PackedSequence(rows, batch_sizes, order, back), hx)
        return output.data, h_n

    def packed(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        data, h_n = run(*packed, hx if with_hx else None)
        return pad_packed_sequence(packed._replace(data=data), total_length=T)[0], h_n + 0 * hx

    def alone(model: Any, x: Tensor, hx: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        output, h_n = one_by_one(model, x, hx if with_hx else 0 * hx, lengths)
        return output, h_n

    for lengths in (LENGTHS, (2, 5, 5, 3, 1)) if with_hx else (LENGTHS,):
        assert_all_close(first_order(packed, mine, values, lengths), first_order(alone, theirs, values, lengths), EXACT)


@pytest.mark.parametrize("lengths", [[4, 2], [4, 0]], ids=["last-state-infinite", "hx-infinite"])
def test_a_state_that_no_step_follows_may_be_infinite(lengths):
    mine = manual_bptt.RNN(D, H, nonlinearity="identity", dtype=torch.float64)
    x, hx = normal(seeded(1), 4, 2, D), normal(seeded(2), 1, 2, H)
    if lengths[1]:
        x[lengths[1] - 1, 1] = torch.inf
    else:
        hx[:, 1] = torch.inf
    output, _ = mine(x, hx, lengths=lengths)
    output[:, 0].square().sum().backward()
    assert mine.weight_hh_l0.grad.isfinite().all()


@pytest.mark.parametrize("sequences", [2, 5])
@pytest.mark.usefixtures("fresh_compiler")
@compiled_by_torch
def test_hx_of_another_number_of_sequences_is_refused_when_compiled(sequences):
    mine, _ = models(1, False)
    packed = torch.nn.utils.rnn.pack_sequence([normal(seeded(n), n, D) for n in (4, 3, 1)])
    compiled = torch.compile(mine, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError):
        compiled(packed, normal(seeded(9), 1, sequences, H))
