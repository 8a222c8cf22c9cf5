"""RNN and RNNCell against torch.nn.RNN and torch.nn.RNNCell, over the whole grid of their options.

Held: output, its batch sizes and orders, h_n, and the gradient of everything, from random upstream gradients on both
results, on the output alone and on h_n alone. The truth for the nonlinearities that torch does not have is a plain loop
that knows no packing: it runs every sequence by itself.

Would catch: a direction that is not turned back, a layer or direction that starts from another one's state, rows of a
packed batch that follow the wrong sequence, h_n of another step or in another order, a bias that counts twice, another
dropout mask from the same seed. That it would is shown at the end, one planted mistake at a time.

Tests that take no device run on the CPU only.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
from problems import NONLINEARITIES, TOLERANCE, assert_all_close, disagreements, leaves, normal, seeded
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import manual_bptt

# one layer has no dropout after it: torch says so in both classes
pytestmark = pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")

kernels, eager, layouts, modules, recurrence = (
    import_module(f"manual_bptt.{name}") for name in ("kernels", "kernels.eager", "layouts", "modules", "recurrence")
)
EXACT = TOLERANCE[torch.float64]
T, B, D, H = 4, 3, 2, 5
# one step at which a sequence goes on alone, one at which none ends; an order that is not its own inverse
LENGTHS = {"packed-sorted": (4, 3, 1), "packed-unsorted": (1, 4, 3)}
FORMS = ("batched", "unbatched", *LENGTHS)
BOTH = (False, True)
OF_TORCH = ("tanh", "relu")
F = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda a: a}
Solution = dict[str, Tensor]


class Case(NamedTuple):
    """One point of the grid; the defaults are one at which mistakes show."""

    nonlinearity: str = "tanh"
    layers: int = 2
    bidirectional: bool = True
    bias: bool = True
    batch_first: bool = False
    form: str = "packed-unsorted"
    with_hx: bool = True
    training: bool = False

    @property
    def places(self) -> int:
        return self.layers * (2 if self.bidirectional else 1)

    def drawn(self) -> Solution:
        """Input, hx and upstream gradients, in float64."""
        generator, directions = seeded(11), self.places // self.layers
        batch = () if self.form == "unbatched" else (B,)
        values = {"input": normal(generator, T, *batch, D), "hx": normal(generator, self.places, *batch, H, scale=0.7)}
        if self.batch_first and batch:
            values["input"] = values["input"].transpose(0, 1).contiguous()
        rows = (sum(LENGTHS[self.form]),) if self.form in LENGTHS else values["input"].shape[:-1]
        values["to output"] = normal(generator, *rows, directions * H)
        values["to h_n"] = normal(generator, *values["hx"].shape)
        return values

    def formed(self, input: Tensor) -> Any:
        if self.form not in LENGTHS:
            return input
        sequences = input if self.batch_first else input.transpose(0, 1)
        return self.packed([x[:length] for x, length in zip(sequences, LENGTHS[self.form], strict=True)])

    def packed(self, sequences: Sequence[Tensor]) -> PackedSequence:
        return pack_sequence(sequences, enforce_sorted=self.form == "packed-sorted")


@cache
def pair(nonlinearity: str, layers: int, bidirectional: bool, bias: bool, dtype: torch.dtype) -> list[nn.RNNBase]:
    """Make torch's module, where torch has the nonlinearity, and last this one with its weights."""
    torch.default_generator.manual_seed(3)
    kinds = [nn.RNN] if nonlinearity in OF_TORCH else []
    models = [
        kind(D, H, layers, nonlinearity, bias, dropout=0.5, bidirectional=bidirectional, dtype=dtype)
        for kind in (*kinds, manual_bptt.RNN)
    ]
    models[-1].load_state_dict(models[0].state_dict())
    return models


def models_of(case: Case, dtype: torch.dtype = torch.float64) -> list[nn.RNNBase]:
    """The modules of a case; the same ones each time, as making them takes longer than running them."""
    models = pair(case.nonlinearity, case.layers, case.bidirectional, case.bias, dtype)
    for model in models:
        model.batch_first = case.batch_first
        model.train(case.training)
    return models


def solve(
    model: Callable[..., Any],
    case: Case,
    values: Solution,
    parameters: Iterable[tuple[str, Tensor]],
    apart: bool = True,
) -> Solution:
    """Everything there is to compare; apart: also the gradients of each of the two results alone."""
    inputs = leaves({name: values[name] for name in ("input", "hx") if name == "input" or case.with_hx})
    torch.default_generator.manual_seed(5)
    output, h_n = model(case.formed(inputs["input"]), inputs.get("hx"))
    found = {"random": torch.get_rng_state(), "h_n": h_n}
    if isinstance(output, PackedSequence):
        found |= {name: getattr(output, name) for name in ("batch_sizes", "sorted_indices", "unsorted_indices")}
        found = {name: value for name, value in found.items() if value is not None}
        output = output.data
    found["output"] = output
    of = {**inputs, **dict(parameters)}
    pairs = {"output": (output, values["to output"]), "h_n": (h_n, values["to h_n"])}
    asked = {"": tuple(pairs.values())} | ({f" of {name}": (pair,) for name, pair in pairs.items()} if apart else {})
    for suffix, chosen in asked.items():
        results, upstream = zip(*chosen, strict=True)
        gradients = torch.autograd.grad(results, list(of.values()), upstream, retain_graph=True)
        found |= {f"d{name}{suffix}": gradient for name, gradient in zip(of, gradients, strict=True)}
    return found


def same(mine: Solution, theirs: Solution, tolerance: float = EXACT, case: Any = "") -> None:
    assert mine.keys() == theirs.keys()
    floating = {name for name, value in theirs.items() if value.is_floating_point()}
    for name in theirs.keys() - floating:
        assert torch.equal(mine[name], theirs[name]), f"{name} {case}"
    named = ({f"{name} {case}": values[name] for name in floating} for values in (mine, theirs))
    assert_all_close(*named, tolerance)


def both_solved(case: Case) -> tuple[Solution, Solution]:
    theirs, mine = models_of(case)
    values = case.drawn()
    apart = not case.batch_first and not case.training  # which have nothing to do with it
    return tuple(solve(model, case, values, model.named_parameters(), apart) for model in (mine, theirs))


def plain_rnn(case: Case, weights: dict[str, Tensor], input: Any, hx: Tensor | None) -> tuple[Any, Tensor]:
    """The module as a loop over layers, directions, sequences and steps, for every nonlinearity."""
    f, packed = F[case.nonlinearity], isinstance(input, PackedSequence)
    if packed:
        padded, lengths = pad_packed_sequence(input)
        blocks = [padded[:n, i : i + 1] for i, n in enumerate(lengths)]  # each (length, 1, D)
    elif case.form == "unbatched":
        blocks = [input.unsqueeze(1)]
    else:
        blocks = [input.transpose(0, 1) if case.batch_first else input]

    def joined(blocks: Sequence[Tensor]) -> Any:
        return case.packed([block.squeeze(1) for block in blocks]) if packed else blocks[0]

    width = sum(block.shape[1] for block in blocks)
    start = torch.zeros(case.places, width, H, dtype=torch.float64) if hx is None else hx.view(case.places, width, H)
    ends = []
    for layer in range(case.layers):
        outputs: list[list[Tensor]] = [[] for _ in blocks]
        for suffix in ("", "_reverse")[: 1 + case.bidirectional]:
            U, W = (weights[f"weight_{kind}_l{layer}{suffix}"] for kind in ("ih", "hh"))
            biases = [weights[f"bias_{kind}_l{layer}{suffix}"] for kind in ("ih", "hh") if case.bias]
            row, last = 0, []
            for block, output in zip(blocks, outputs, strict=True):
                h, states = start[len(ends), row : row + block.shape[1]], []
                for x_t in reversed(block.unbind(0)) if suffix else block.unbind(0):
                    h = f(x_t @ U.t() + h @ W.t() + sum(biases))
                    states.append(h)
                output.append(torch.stack(states[::-1] if suffix else states))
                row += block.shape[1]
                last.append(h)
            ends.append(torch.cat(last))
        blocks = [torch.cat(output, -1) for output in outputs]
        if case.training and layer + 1 < case.layers:
            whole = joined(blocks)
            if packed:
                padded, _ = pad_packed_sequence(whole._replace(data=functional.dropout(whole.data)))
                blocks = [padded[: block.shape[0], i : i + 1] for i, block in enumerate(blocks)]
            else:
                blocks = [functional.dropout(whole)]
    output, h_n = joined(blocks), torch.stack(ends)
    if case.form == "unbatched":
        return output.squeeze(1), h_n.squeeze(1)
    return output.transpose(0, 1) if case.batch_first and not packed else output, h_n


def each(**options: Iterable[Any]) -> list[Any]:
    """Every combination, to be taken as keywords of Case."""
    combinations = (dict(zip(options, values, strict=True)) for values in itertools.product(*options.values()))
    return [pytest.param(c, id="-".join(f"{k}={v}" for k, v in c.items())) for c in combinations]


DEPTHS = each(layers=(1, 2, 3), bidirectional=BOTH, bias=BOTH)


def cases(nonlinearity: str, depth: dict[str, Any], form: str) -> Iterable[Case]:
    """The rest of the grid, not as parameters: pytest would take longer than the modules."""
    for batch_first, with_hx, training in itertools.product(BOTH, repeat=3):
        options = {"batch_first": batch_first, "with_hx": with_hx, "training": training}
        yield Case(nonlinearity, **depth, form=form, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("nonlinearity", OF_TORCH)
def test_everything_is_that_of_nn_rnn(nonlinearity, depth, form):
    """On the CPU only: cuDNN draws other dropout masks."""
    for case in cases(nonlinearity, depth, form):
        same(*both_solved(case), case=case)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("nonlinearity", [name for name in NONLINEARITIES if name not in OF_TORCH])
def test_everything_is_that_of_a_plain_loop(nonlinearity, depth, form):
    """On the CPU only, as above."""
    for case in cases(nonlinearity, depth, form):
        (model,) = models_of(case)
        values, weights = case.drawn(), dict(model.named_parameters())
        loop = partial(plain_rnn, case, weights)
        truth = solve(loop, case, values, weights.items(), apart=False)
        same(solve(model, case, values, weights.items(), apart=False), truth, case=case)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nonlinearity", OF_TORCH)
def test_the_plain_loop_is_nn_rnn_where_both_can_be_had(nonlinearity, form):
    case = Case(nonlinearity, form=form, training=True)
    theirs, _ = models_of(case)
    values, weights = case.drawn(), dict(theirs.named_parameters())
    same(
        solve(partial(plain_rnn, case, weights), case, values, weights.items()),
        solve(theirs, case, values, weights.items()),
    )


def moved(values: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return {name: value.to(device, dtype) for name, value in values.items()}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", each(layers=(1, 3), bidirectional=BOTH))
@pytest.mark.parametrize("nonlinearity", OF_TORCH)
def test_each_precision_on_each_device_against_float64(nonlinearity, depth, form, dtype, device):
    case = Case(nonlinearity, form=form, **depth)
    theirs, mine = (deepcopy(model) for model in models_of(case, dtype))
    exact, values = theirs.double(), moved(case.drawn(), device, dtype)
    mine.to(device)
    found = solve(mine, case, values, mine.named_parameters())
    truth = solve(exact, case, moved(values, torch.device("cpu"), torch.float64), exact.named_parameters())
    assert {value.dtype for value in found.values() if value.is_floating_point()} == {dtype}
    same({name: value.cpu() for name, value in found.items()}, truth, TOLERANCE[dtype])


def seen_through(model: nn.Module) -> nn.Module:
    """Make the last layer hand on what it gets: its output is 0 exactly where dropout put a 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_l1" not in name:
                continue
            parameter.zero_()
            if "weight_ih" in name:
                parameter[:, H if "reverse" in name else 0 :].fill_diagonal_(1)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", each(bidirectional=BOTH, batch_first=BOTH))
def test_the_same_seed_gives_the_same_dropout_mask_and_generator_as_nn_rnn(depth, form, dropout):
    case = Case(form=form, training=True, **depth)
    outputs, states = [], []
    for model in deepcopy(models_of(case)):
        model.dropout = dropout
        torch.default_generator.manual_seed(9)
        output, _ = seen_through(model)(case.formed(case.drawn()["input"]))
        outputs.append((output.data if isinstance(output, PackedSequence) else output).detach())
        states.append(torch.get_rng_state())
    zeros = [output == 0 for output in outputs]
    assert torch.equal(*zeros)
    assert torch.equal(*states)
    assert zeros[0].any() == (dropout > 0)
    assert zeros[0].all() == (dropout == 1)


def plain_cell(cell: nn.RNNCellBase, x: Tensor, h: Tensor | None) -> Tensor:
    h = x.new_zeros(*x.shape[:-1], H) if h is None else h
    bias = cell.bias_ih + cell.bias_hh if cell.bias else 0
    return F[cell.nonlinearity](x @ cell.weight_ih.t() + h @ cell.weight_hh.t() + bias)


@pytest.mark.parametrize("bias", BOTH, ids=["no-bias", "bias"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
def test_a_loop_over_cells(dtype, nonlinearity, bias, device):
    """Against a loop over torch.nn.RNNCell; with and without hx and a batch, and a single step too."""
    mine = manual_bptt.RNNCell(D, H, bias, nonlinearity, dtype=dtype, device=device)
    theirs = nn.RNNCell(D, H, bias, nonlinearity, dtype=torch.float64, device=device)
    theirs.load_state_dict(mine.state_dict())
    exact = theirs if nonlinearity in OF_TORCH else partial(plain_cell, theirs)
    for steps, batch, with_hx in itertools.product((1, T), ((), (B,)), BOTH):
        generator, found = seeded(2), []
        drawn = [normal(generator, steps, *batch, size) for size in (D, H)] + [normal(generator, *batch, H)]
        x, upstream, hx = (value.to(device, dtype) for value in drawn)
        for cell, step in ((mine, mine), (theirs, exact)):
            inputs = {"input": x} | ({"hx": hx} if with_hx else {})
            inputs = leaves(moved(inputs, device, cell.weight_ih.dtype))
            h, states = inputs.get("hx"), []
            for x_t in inputs["input"]:
                h = step(x_t, h)
                states.append(h)
            of, output = inputs | dict(cell.named_parameters()), torch.stack(states)
            gradients = torch.autograd.grad(output, list(of.values()), upstream.to(output.dtype))
            found.append({"output": output} | {f"d{name}": g for name, g in zip(of, gradients, strict=True)})
        assert {value.dtype for value in found[0].values()} == {dtype}
        same(*found, TOLERANCE[dtype], (steps, batch, with_hx))


def plant(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrong: Callable[..., Any]) -> None:
    """Put wrong in the place of a function; it is called with the right one first."""
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: wrong(right, *args))


def carried(last: bool, right: Any, a: Tensor, h0: Tensor, W: Tensor, activation: Any, sizes: Any) -> Tensor:
    """The kernel once more, where those that go on are the first ones: the mistake is to take the last ones."""
    h = h0
    for a_t in eager.split(a, sizes):
        n = a_t.shape[0]
        h = activation.apply_(a_t.addmm_(h[h.shape[0] - n :] if last else h[:n], W.t()))
    return a


def carried_back(
    last: bool, right: Any, dh: Tensor, slope: Tensor, W: Tensor, activation: Any, sizes: Any, xi: Any
) -> Tensor:
    """The same back through time."""
    da, later = [], slope.new_zeros(0, H)
    for dh_t, slope_t in zip(eager.split(dh, sizes)[::-1], eager.split(slope, sizes)[::-1], strict=True):
        n, dh_t = later.shape[0], dh_t.clone()
        dh_t[dh_t.shape[0] - n :] += (later @ W) if last else 0
        dh_t[:n] += 0 if last else (later @ W)
        da.append(later := activation.times(slope_t, dh_t))
    return torch.cat(da[::-1])


def first(dlast: Tensor | None, h: Tensor) -> Tensor:
    """Dlast, at the first step in place of the last one."""
    zeros = torch.zeros_like(h)
    return zeros if dlast is None else torch.cat((dlast, zeros[1:]))


# where, the mistake, a case that must show it, and what must be named; a mistake in a gradient spoils no result
PLANTS: dict[str, tuple[tuple[Any, str], Callable[..., Any], Case, str]] = {
    "reverse direction not reversed back": (
        (layouts.Dense, "reverse"),
        lambda right, layout, steps: right(layout, steps) if steps.shape[-1] == D else steps,
        Case(form="batched", layers=1),
        "output",
    ),
    "reverse direction of packed rows not reversed back": (
        (layouts.Packed, "reverse"),
        lambda right, layout, steps: right(layout, steps) if steps.shape[-1] == D else steps,
        Case(layers=1),
        "output",
    ),
    "packed rows reversed over the longest sequence": (
        (layouts.Packed, "reverse"),
        lambda right, layout, steps: steps.flip(0),
        Case(layers=1),
        "h_n",
    ),
    "the states of other sequences carried on": (
        (eager, "forward"),
        partial(carried, True),
        Case(bidirectional=False),
        "output",
    ),
    "the gradients of other sequences carried back": (
        (eager, "backward"),
        partial(carried_back, True),
        Case(bidirectional=False),
        "dweight_hh_l0",
    ),
    "h_n of the last steps": (
        (layouts.Packed, "last"),
        lambda right, layout, h, h0: h[None, -layout.B :],
        Case(bidirectional=False),
        "h_n",
    ),
    "h_n of the first step": ((layouts.Dense, "last"), lambda right, layout, h, h0: h[:1], Case(form="batched"), "h_n"),
    "h_n of the first step, beside a copy of the states": (
        (recurrence, "states_apart"),
        lambda right, *args: (*(found := right(*args))[:2], found[0][:1].clone()),
        Case(form="batched", bidirectional=False),
        "h_n",
    ),
    "what comes down on h_n lost": (
        (recurrence, "from_outside"),
        lambda right, dh, dlast, h: right(dh, None, h),
        Case(form="batched", bidirectional=False),
        "dweight_hh_l1",
    ),
    "what comes down on h_n added to the first step": (
        (recurrence, "from_outside"),
        lambda right, dh, dlast, h: right(dh, None, h) + first(dlast, h),
        Case(form="batched", bidirectional=False),
        "dweight_hh_l1",
    ),
    "states before of other rows": (
        (recurrence, "states_before"),
        lambda right, h, h0, sizes: torch.cat((h0, h[: len(h) - len(h0)])),
        Case(bidirectional=False),
        "dweight_hh_l1",
    ),
    "hx order not permuted": ((layouts.Packed, "hidden"), lambda right, layout, hx: hx, Case(), "output"),
    "h_n order not permuted": ((layouts.Packed, "final"), lambda right, layout, hidden: hidden, Case(), "h_n"),
    "hx permuted back to front": (
        (layouts.Packed, "hidden"),
        lambda right, layout, hx: hx.index_select(1, layout.unsorted_indices),
        Case(),
        "output",
    ),
    "bias counted twice": (
        (modules, "run"),
        lambda right, x, h0, U, W, b, *rest: right(x, h0, U, W, 2 * b, *rest),
        Case(form="batched"),
        "output",
    ),
    "gradient of the bias counted twice": (
        (recurrence, "bias_gradient"),
        lambda right, da: 2 * right(da),
        Case(form="unbatched"),
        "dbias_hh_l0",
    ),
    "hx of the layers swapped": (
        (modules.RNN, "_layers"),
        lambda right, model, layout, initial, weights: right(model, layout, initial.flip(0), weights),
        Case(form="batched", bidirectional=False),
        "output",
    ),
    "hx of the directions swapped": (
        (modules.RNN, "_layers"),
        lambda right, model, layout, initial, weights: right(model, layout, initial[[1, 0, 3, 2]], weights),
        Case(form="batched"),
        "h_n",
    ),
    "dh0 of packed rows from the last ones": (
        (recurrence, "initial_state_gradient"),
        lambda right, da, W, sizes: da[-B:] @ W,
        Case(bidirectional=False, layers=1),
        "dhx",
    ),
    "dh0 not through the weights": (
        (recurrence, "initial_state_gradient"),
        lambda right, da, W, sizes: eager.split(da, sizes)[0],
        Case(form="batched"),
        "dhx",
    ),
    "dh0 only of the sequences that reach the end": (
        (recurrence, "initial_state_gradient"),
        lambda right, da, W, sizes: right(da, W, sizes) * (torch.arange(B) < sizes[-1]).unsqueeze(1),
        Case(bidirectional=False, layers=1),
        "dhx",
    ),
}


@pytest.mark.parametrize("mistake", PLANTS)
def test_a_planted_mistake_is_seen(mistake, monkeypatch):
    place, wrong, case, spoiled = PLANTS[mistake]
    plant(monkeypatch, *place, wrong)
    with kernels.use("eager"):  # plants are put into Python
        mine, theirs = both_solved(case)
    named = disagreements(
        {name: value for name, value in mine.items() if value.is_floating_point()}, theirs, 1e9 * EXACT
    )
    assert spoiled in named
    assert not (spoiled.startswith("d") and named.keys() & {"output", "h_n"})


@pytest.mark.parametrize(("name", "kernel"), [("forward", carried), ("backward", carried_back)])
def test_the_planted_kernels_are_right_but_for_their_mistake(name, kernel, monkeypatch):
    plant(monkeypatch, eager, name, partial(kernel, False))
    with kernels.use("eager"):
        same(*both_solved(Case(bidirectional=False)))


def test_a_kernel_that_does_not_know_which_sequences_end_cannot_run(monkeypatch):
    monkeypatch.setattr(eager, "still_running", lambda sizes, steps: [None] * steps)
    with kernels.use("eager"), pytest.raises(RuntimeError, match="size"):
        both_solved(Case())


def test_another_mask_from_the_same_seed_is_seen(monkeypatch):
    right = functional.dropout
    monkeypatch.setattr(functional, "dropout", lambda steps, p: right(steps.flip(0), p).flip(0))
    with pytest.raises(AssertionError, match="relative error"):
        same(*both_solved(Case(form="batched", training=True)))


def test_a_mask_per_direction_is_seen(monkeypatch):
    right = functional.dropout
    monkeypatch.setattr(
        functional, "dropout", lambda steps, p: torch.cat([right(s, p) for s in steps.chunk(2, -1)], -1)
    )
    with pytest.raises(AssertionError, match="relative error"):
        same(*both_solved(Case(form="batched", training=True)))
