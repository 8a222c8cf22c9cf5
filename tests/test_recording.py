"""record_gradients, held against autograd of every state and pre-activation of a loop over single sequences.

Would catch a dh that is only the direct part, a direction or layer under the wrong name, steps of the reverse direction
in its own order of time, packed rows or unsorted sequences mixed up, gradients past a sequence's end, a record that
changes with .grad, that follows the graph or that stays on the module, and a recording that changes any gradient.
"""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from problems import NONLINEARITIES, assert_close, normal, seeded
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.checkpoint import checkpoint

from manual_bptt import RNN, convert, record_gradients, recurrence, restore

T, B, D, H = 5, 3, 4, 6
EXACT = 1e-12
LENGTHS = {
    "dense": [T] * B,
    "batch_first": [T] * B,
    "unbatched": [T],
    "packed": [5, 3, 2],
    "packed-unsorted": [2, 5, 3],
    "lengths": [3, 5, 0],
    "lengths-batch_first": [3, 5, 0],
    "nested": [2, 5, 3],
}
_f: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda a: a,
}


def make(nonlinearity: str = "tanh", layers: int = 2, bidirectional: bool = True, **options: Any) -> RNN:
    options = {"dtype": torch.float64, **options}
    module = RNN(D, H, layers, nonlinearity, bidirectional=bidirectional, **options)
    generator = seeded(1)
    with torch.no_grad():
        for parameter in module.parameters():
            numbers = torch.randn(parameter.shape, generator=generator, dtype=options["dtype"])
            parameter.copy_(numbers * (0.25 if parameter.is_complex() else 0.5))  # tanh has poles off the real line
    return module


class Given(NamedTuple):
    """One batch: the sequences one by one, the same as the module takes them, and what the loss weighs them by."""

    sequences: list[Tensor]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    hx: Tensor  # (layers * directions, B, H)
    weights: list[Tensor]
    weights_of_h_n: Tensor


def given(module: RNN, layout: str, seed: int = 2) -> Given:
    """A batch in a layout; weights of the loss are random, so that no upstream gradient is ones."""
    weight = module.weight_hh_l0
    directions = 2 if module.bidirectional else 1
    generator = seeded(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=weight.dtype).to(weight.device)

    lengths = LENGTHS[layout]
    sequences = [draw(n, D) for n in lengths]
    hx = draw(module.num_layers * directions, len(lengths), H)
    weights = [draw(n, directions * H) for n in lengths]
    padded = pad_sequence(sequences, padding_value=9.0)
    options: dict[str, Any] = {}
    if layout == "unbatched":
        arguments: tuple[Any, ...] = (sequences[0], hx[:, 0])
    elif layout.startswith("packed"):
        arguments = (pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=layout == "packed"), hx)
    elif layout == "nested":
        arguments = (torch.nested.nested_tensor(sequences, layout=torch.jagged), hx)
    else:
        arguments = (padded.transpose(0, 1) if module.batch_first else padded, hx)
        options = {"lengths": lengths} if layout.startswith("lengths") else {}
    return Given(sequences, arguments, options, hx, weights, draw(*hx.shape))


def by_sequence(value: Any, layout: str) -> list[Tensor]:
    """What is laid out as an output, sequence by sequence; nothing may stand past an end."""
    lengths = LENGTHS[layout]
    if layout == "unbatched":
        return [value]
    if isinstance(value, PackedSequence):
        value, found = pad_packed_sequence(value)
        assert found.tolist() == lengths
    elif layout == "nested":
        return list(value.unbind())
    elif "batch_first" in layout:
        value = value.transpose(0, 1)
    assert value.shape[:2] == (T, len(lengths))
    assert all((value[n:, b] == 0).all() for b, n in enumerate(lengths))
    return [value[:n, b] for b, n in enumerate(lengths)]


def loss_of(output: Any, h_n: Tensor, batch: Given, layout: str) -> Tensor:
    terms = [(o * w).sum() for o, w in zip(by_sequence(output, layout), batch.weights, strict=True)]
    total = torch.stack(terms).sum() + (h_n * batch.weights_of_h_n.view(h_n.shape)).sum()
    if layout.startswith("lengths"):  # what stands past an end is 0, whatever gradient comes to it
        steps = output.transpose(0, 1) if "batch_first" in layout else output
        total = total + torch.stack([steps[n:, b].sum() for b, n in enumerate(LENGTHS[layout])]).sum() * 7
    return total.real if total.is_complex() else total


class Loop:
    """The plain loop, one sequence and one step after the other, with every state and pre-activation kept by name."""

    def __init__(self, module: RNN, batch: Given, masks: list[list[Tensor]] | None = None) -> None:
        self.h: dict[str, list[list[Tensor]]] = {}
        self.a: dict[str, list[list[Tensor]]] = {}
        directions = ("", "_reverse") if module.bidirectional else ("",)
        steps = [list(sequence.unbind(0)) for sequence in batch.sequences]
        finals = []
        for layer in range(module.num_layers):
            for place, suffix in enumerate(directions):
                name = f"l{layer}{suffix}"
                starts = batch.hx[layer * len(directions) + place]
                runs = [self._run(module, name, one, h, suffix) for one, h in zip(steps, starts, strict=True)]
                self.h[name], self.a[name], last = map(list, zip(*runs, strict=True))
                finals.append(torch.stack(last))
            steps = [
                [torch.cat([self.h[f"l{layer}{suffix}"][b][t] for suffix in directions]) for t in range(len(one))]
                for b, one in enumerate(steps)
            ]
            if masks is not None and layer + 1 < module.num_layers:
                steps = [[h * m for h, m in zip(*pair, strict=True)] for pair in zip(steps, masks[layer], strict=True)]
        outputs = [torch.stack(one) if one else w for one, w in zip(steps, batch.weights, strict=True)]
        terms = [(o * w).sum() for o, w in zip(outputs, batch.weights, strict=True) if len(o)]
        loss = torch.stack(terms).sum() + (torch.stack(finals) * batch.weights_of_h_n).sum()
        self.loss = loss.real if loss.is_complex() else loss

    @staticmethod
    def _run(module: RNN, name: str, steps: list[Tensor], h: Tensor, suffix: str) -> tuple[list[Tensor], ...]:
        U, W = getattr(module, f"weight_ih_{name}"), getattr(module, f"weight_hh_{name}")
        b = getattr(module, f"bias_ih_{name}") + getattr(module, f"bias_hh_{name}") if module.bias else 0
        states, pre = [], []
        for x in reversed(steps) if suffix else steps:
            pre.append(U @ x + W @ h + b)
            h = _f[module.nonlinearity](pre[-1])
            states.append(h)
        return (states[::-1], pre[::-1], h) if suffix else (states, pre, h)

    def gradients(self, loss: Tensor | None = None) -> dict[str, list[Tensor]]:
        """By autograd, the gradient of every h_t and a_t: (n, H) for every name and sequence."""
        loss = self.loss if loss is None else loss
        found = {}
        for kind, kept in (("dh", self.h), ("da", self.a)):
            for name, batch in kept.items():
                flat = [state for one in batch for state in one]
                values = iter(torch.autograd.grad(loss, flat, retain_graph=True))
                found[f"{name}.{kind}"] = [torch.stack([next(values) for _ in one]) for one in batch if one]
        return found


def assert_recorded(recorded: Any, truth: dict[str, list[Tensor]], layout: str, tolerance: float = EXACT) -> None:
    assert {name.split(".")[0] for name in truth} == set(recorded)
    for name, sequences in truth.items():
        layer, kind = name.split(".")
        actual = [one for one in by_sequence(getattr(recorded[layer], kind), layout) if len(one)]
        for b, pair in enumerate(zip(actual, sequences, strict=True)):
            value, true = (torch.view_as_real(one) if one.is_complex() else one for one in pair)
            assert_close(f"{name} of sequence {b}", value, true, tolerance)


def run_recorded(module: RNN, layout: str = "dense", seed: int = 2) -> Any:
    batch = given(module, layout, seed)
    with record_gradients(module) as record:
        loss_of(*module(*batch.arguments, **batch.options), batch, layout).backward()
    return record


STACKS = {"1-layer": (1, False), "3-layers": (3, False), "1-layer-both": (1, True), "2-layers-both": (2, True)}


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("layout", LENGTHS)
def test_recorded_gradients_equal_autograd_of_every_state(layout, stack, nonlinearity, device):
    module = make(nonlinearity, *STACKS[stack], batch_first="batch_first" in layout, device=device)
    record = run_recorded(module, layout)
    assert len(record.calls) == 1
    assert_recorded(record.calls[0], Loop(module, given(module, layout)).gradients(), layout)


def test_without_biases_and_in_complex_numbers(device):
    for options in ({"bias": False}, {"dtype": torch.complex128}, {"dtype": torch.complex128, "bias": False}):
        module = make(device=device, **options)
        for layout in ("dense", "packed-unsorted", "lengths"):
            record = run_recorded(module, layout)
            assert_recorded(record.calls[0], Loop(module, given(module, layout)).gradients(), layout)


@pytest.mark.parametrize("layout", ["dense", "batch_first", "unbatched", "packed-unsorted", "lengths"])
def test_recorded_gradients_with_the_same_dropout_masks(layout):  # CPU: the masks are drawn beside the module
    module = make(layers=3, dropout=0.4, batch_first="batch_first" in layout)
    batch = given(module, layout)
    torch.manual_seed(7)
    if layout.startswith("packed"):
        rows = batch.arguments[0]
        drawn = [rows._replace(data=_mask(rows.data.shape[0])) for _ in range(2)]
        masks = [by_sequence(PackedSequence(*mask), layout) for mask in drawn]
    else:
        drawn_steps = [_mask(T, len(batch.sequences)) for _ in range(2)]
        masks = [[mask[:n, b] for b, n in enumerate(LENGTHS[layout])] for mask in drawn_steps]
    torch.manual_seed(7)
    record = run_recorded(module, layout)
    assert_recorded(record.calls[0], Loop(module, batch, masks).gradients(), layout)


def _mask(*shape: int) -> Tensor:
    return functional.dropout(torch.ones(*shape, 2 * H, dtype=torch.float64), 0.4)


def test_dh_is_the_total_gradient_and_not_its_direct_part(device):
    module, direct = make(layers=1, bidirectional=False, device=device), normal(seeded(3), T, B, H).to(device)
    with record_gradients(module) as record:
        output, _ = module(normal(seeded(4), T, B, D).to(device))
        output.retain_grad()
        output.backward(direct)
    dh = record["l0"].dh
    assert_close("last step", dh[-1], output.grad[-1], EXACT)
    for t in range(T - 1):
        assert (dh[t] - output.grad[t]).norm() > 0.1 * dh[t].norm()


def test_only_h_n_and_only_some_layers_in_the_loss(device):
    module = make(device=device)
    batch = given(module, "dense")
    zero = batch._replace(weights=[torch.zeros_like(w) for w in batch.weights])
    with record_gradients(module) as record:
        (module(*batch.arguments)[1] * batch.weights_of_h_n).sum().backward()
    assert_recorded(record.calls[0], Loop(module, zero).gradients(), "dense")
    with record_gradients(module) as record:
        output, _ = module(*batch.arguments)
        torch.autograd.grad(output.square().sum(), module.weight_hh_l1)
    assert sorted(record.calls[0]) == ["l1"]
    with pytest.raises(KeyError, match=r"'l0_reverse': recorded are .*l1"):
        record["l0_reverse"]


def test_backward_after_the_context(device):
    module = make(device=device)
    batch = given(module, "packed-unsorted")
    with record_gradients(module) as record:
        loss = loss_of(*module(*batch.arguments), batch, "packed-unsorted")
    assert record.calls == [{}]
    loss.backward()
    assert_recorded(record.calls[0], Loop(module, batch).gradients(), "packed-unsorted")
    module(*batch.arguments)
    assert len(record.calls) == 1


def test_every_call_is_recorded_on_its_own(device):
    module = make(device=device)
    layouts = ["dense", "packed", "lengths"]
    batches = [given(module, layout, seed=10 + place) for place, layout in enumerate(layouts)]
    with record_gradients(module) as record:
        results = [module(*batch.arguments, **batch.options) for batch in batches]
        with torch.no_grad():
            module(*batches[0].arguments)
        losses = [loss_of(*result, *rest) for result, *rest in zip(results, batches, layouts, strict=True)]
        losses[1].backward()
        assert [bool(call) for call in record.calls] == [False, True, False, False]
        assert record["l0"] is record.calls[1]["l0"]
        (losses[0] + losses[2]).backward()
    for call, batch, layout in zip(record.calls, batches, layouts, strict=False):
        assert_recorded(call, Loop(module, batch).gradients(), layout)
    assert record.calls[3] == {}
    assert record["l1_reverse"] is record.calls[2]["l1_reverse"]


def test_a_call_on_the_output_of_another(device):
    """The total gradient of the first call has to come through the second."""
    module = make(layers=1, device=device)
    linear = nn.Linear(2 * H, D, device=device, dtype=torch.float64)
    x, w = normal(seeded(4), T, B, D).to(device), normal(seeded(5), T, B, 2 * H).to(device)
    with record_gradients(module) as record:
        first, _ = module(x)
        first.retain_grad()
        (module(linear(first))[0] * w).sum().backward()
    batch = given(module, "dense")
    weights = list(first.grad.unbind(1))
    batch = batch._replace(sequences=list(x.unbind(1)), hx=torch.zeros_like(batch.hx), weights=weights)
    batch = batch._replace(weights_of_h_n=torch.zeros_like(batch.hx))
    assert_recorded(record.calls[0], Loop(module, batch).gradients(), "dense")


def test_a_second_backward_pass_replaces_what_the_first_recorded(device):
    module = make(device=device)
    batch = given(module, "dense")
    with record_gradients(module) as record:
        loss = loss_of(*module(*batch.arguments), batch, "dense")
        loss.backward(retain_graph=True)
        first = {name: (one.dh, one.da, one.dh.clone(), one.da.clone()) for name, one in record.calls[0].items()}
        (-2 * loss).backward()
    assert len(record.calls) == 1
    for name, (dh, da, dh_then, da_then) in first.items():
        assert torch.equal(dh, dh_then)
        assert torch.equal(da, da_then)
        assert_close("dh", record[name].dh, -2 * dh, EXACT)
        assert_close("da", record[name].da, -2 * da, EXACT)


@pytest.mark.parametrize("layout", ["dense", "packed-unsorted", "lengths", "nested"])
def test_create_graph_records_detached_values_of_both_passes(layout, device):
    """The second pass comes through the states once more: what is recorded then is the gradient of the penalty."""
    module = make(device=device)
    batch = given(module, layout)
    parameters = list(module.parameters())

    def penalty(loss: Tensor) -> Tensor:
        return sum(g.square().sum() for g in torch.autograd.grad(loss, parameters, create_graph=True))

    loop = Loop(module, batch)
    plain = torch.autograd.grad(penalty(loss_of(*module(*batch.arguments, **batch.options), batch, layout)), parameters)
    with record_gradients(module) as record:
        again = penalty(loss_of(*module(*batch.arguments, **batch.options), batch, layout))
        first = dict(record.calls[0])
        recorded = torch.autograd.grad(again, parameters)
    assert all(torch.equal(a, b) for a, b in zip(recorded, plain, strict=True))
    assert_recorded(first, loop.gradients(), layout)
    assert_recorded(record.calls[0], loop.gradients(penalty(loop.loss)), layout, 1e-11)
    with record_gradients(module) as record:
        again = penalty(loss_of(*module(*batch.arguments, **batch.options), batch, layout))
    for one in record.calls[0].values():
        for value in (one.dh, one.da):
            (value.data if isinstance(value, PackedSequence) else value).detach().mul_(2)  # not the graph's own
    edited = torch.autograd.grad(again, parameters)
    assert all(torch.equal(a, b) for a, b in zip(edited, plain, strict=True))
    for one in [*first.values(), *record.calls[0].values()]:
        assert not any((v.data if isinstance(v, PackedSequence) else v).requires_grad for v in (one.dh, one.da))


@pytest.mark.parametrize("layout", LENGTHS)
def test_gradients_are_the_same_bit_by_bit_with_and_without_recording(layout, device):
    module = make(device=device, batch_first="batch_first" in layout, dropout=0.3)
    gradients = []
    for recording in (False, True):
        torch.manual_seed(3)
        module.zero_grad()
        batch = given(module, layout)
        hx = batch.arguments[1].clone().requires_grad_()
        arguments = (batch.arguments[0], hx)
        if recording:
            with record_gradients(module):
                loss_of(*module(*arguments, **batch.options), batch, layout).backward()
        else:
            loss_of(*module(*arguments, **batch.options), batch, layout).backward()
        gradients.append([hx.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("layout", LENGTHS)
def test_records_share_no_memory_with_gradients_or_with_one_another(layout, device):
    module = make(layers=1, device=device, batch_first="batch_first" in layout)
    batch = given(module, layout)
    x, hx = batch.arguments
    data = x.data if isinstance(x, PackedSequence) else x
    data.requires_grad_()
    hx = hx.requires_grad_()
    with record_gradients(module) as record:
        output, h_n = module(x, hx, **batch.options)
        kept = output.data if isinstance(output, PackedSequence) else output
        upstream = torch.randn_like(kept.detach())
        kept.backward(upstream, retain_graph=True)
    others = [upstream, kept, h_n, data, hx, data.grad, hx.grad, *(p.grad for p in module.parameters())]
    values = [value for one in record.calls[0].values() for value in (one.dh, one.da)]
    tensors = [value.data if isinstance(value, PackedSequence) else value for value in values]
    storages = [t.values().untyped_storage() if t.is_nested else t.untyped_storage() for t in [*tensors, *others]]
    addresses = [storage.data_ptr() for storage in storages]
    assert len(set(addresses[: len(tensors)])) == len(tensors)
    assert not set(addresses[: len(tensors)]) & set(addresses[len(tensors) :])
    before = [t.clone() for t in tensors]
    with torch.no_grad():
        for tensor in others:
            (tensor.values() if tensor.is_nested else tensor).zero_()
    for now, then in zip(tensors, before, strict=True):
        assert torch.equal(*(t.values() if t.is_nested else t for t in (now, then)))


def test_names_that_are_not_recorded():
    module = make(layers=1, bidirectional=False)
    with record_gradients(module) as record:
        with pytest.raises(KeyError, match="had a backward pass"):
            record["l0"]
        output, _ = module(torch.randn(T, B, D, dtype=torch.float64))
        with pytest.raises(KeyError, match="'l0': none of 1 recorded calls has had a backward pass"):
            record["l0"]
        output.sum().backward()
        for name in ("l1", "l0_reverse", "weight_hh_l0", ""):
            with pytest.raises(KeyError, match=f"'{name}': recorded are l0"):
                record[name]
    with record_gradients(module) as record, torch.no_grad():
        module(torch.randn(T, B, D, dtype=torch.float64))
    with pytest.raises(KeyError, match="had a backward pass"):
        record["l0"]


@pytest.mark.parametrize("wrong", [nn.RNN(D, H), nn.RNNCell(D, H), nn.Sequential(RNN(D, H)), RNN, None, "l0"], ids=str)
def test_what_is_no_module_of_ours_is_refused(wrong):
    with (
        pytest.raises(TypeError, match=r"record_gradients: expected module to be a manual_bptt\.RNN, got [\w.]+$"),
        record_gradients(wrong),
    ):
        raise AssertionError("the context was entered")


def test_a_module_is_recorded_once_at_a_time():
    module, other = make(), make()
    with record_gradients(module) as record:
        with pytest.raises(RuntimeError, match="not being recorded already"), record_gradients(module):
            raise AssertionError("the context was entered")
        with record_gradients(other) as others:
            module(torch.randn(T, B, D, dtype=torch.float64))
        module(torch.randn(T, B, D, dtype=torch.float64))
    assert (len(record.calls), len(others.calls)) == (2, 0)
    with record_gradients(module) as again:
        module(torch.randn(T, B, D, dtype=torch.float64))
    assert (len(record.calls), len(again.calls)) == (2, 1)


def test_an_exception_closes_the_context():
    module = make()
    with pytest.raises(ZeroDivisionError), record_gradients(module):
        raise ZeroDivisionError
    assert_nothing_stays(module)
    with pytest.raises(RuntimeError, match="must be equal to input_size"), record_gradients(module) as record:
        module(torch.randn(T, B, D + 1, dtype=torch.float64))
    assert record.calls == []
    assert_nothing_stays(module)


def assert_nothing_stays(module: nn.Module) -> None:
    assert module.__dict__.keys() == make().__dict__.keys()
    with record_gradients(module):
        pass


def _by_torch_save(module: RNN) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[RNN], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _by_torch_save,
}


@pytest.mark.parametrize("backward_first", [False, True], ids=["before-backward", "after-backward"])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_made_inside_the_context_is_not_recorded(way, backward_first):
    module = make()
    batch = given(module, "packed-unsorted")
    with record_gradients(module) as record:
        loss = loss_of(*module(*batch.arguments), batch, "packed-unsorted")
        if backward_first:
            loss.backward()
        twin = COPIES[way](module)
        twin(*batch.arguments)
        assert len(record.calls) == 1
        module(*batch.arguments)
        assert len(record.calls) == 2
    assert_nothing_stays(twin)
    assert_nothing_stays(module)


def test_a_parametrized_module_is_recorded_and_its_copy_is_not():
    module = parametrizations.weight_norm(make(), "weight_hh_l0")
    with record_gradients(module) as record:
        twin = copy.deepcopy(module)
        module(normal(seeded(4), T, B, D))[0].square().sum().backward()
        twin(normal(seeded(4), T, B, D))
    assert [sorted(call) for call in record.calls] == [["l0", "l0_reverse", "l1", "l1_reverse"]]
    with record_gradients(twin) as record:
        twin(normal(seeded(4), T, B, D))
    assert len(record.calls) == 1


@pytest.mark.parametrize("way", COPIES)
def test_a_module_can_be_copied_after_the_context(way):
    module = make()
    run_recorded(module)
    twin = COPIES[way](module)
    assert_nothing_stays(twin)
    batch = given(module, "dense")
    assert torch.equal(twin(*batch.arguments)[0], module(*batch.arguments)[0])


def test_state_dict_and_parameters_are_those_of_the_module_alone():
    module = make()
    before = list(module.state_dict()), [name for name, _ in module.named_parameters()], repr(module)
    with record_gradients(module):
        assert before == (list(module.state_dict()), [name for name, _ in module.named_parameters()], repr(module))


def test_recording_a_converted_module_that_is_restored_meanwhile():
    module = convert(nn.Sequential(nn.RNN(D, H, 2, bidirectional=True, dtype=torch.float64)))
    with record_gradients(module[0]) as record:
        module(normal(seeded(4), T, B, D))[0].square().sum().backward()
        assert sorted(record.calls[0]) == ["l0", "l0_reverse", "l1", "l1_reverse"]
        restore(module)
        module(normal(seeded(4), T, B, D))[0].square().sum().backward()
        assert len(record.calls) == 1
    assert module[0].__dict__.keys() == nn.RNN(D, H).__dict__.keys()


def test_a_record_lives_on_and_the_graph_does_not(device):
    module = make(device=device)
    record = run_recorded(module)
    truth = record["l0"].dh.clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    del module
    assert torch.equal(record["l0"].dh, truth)
    assert record["l0"].dh.grad_fn is None
    twin = pickle.loads(pickle.dumps(record))
    assert torch.equal(twin["l0"].dh, truth)


def test_a_training_loop_may_step_before_the_record_is_read(device):
    module = make(device=device)
    batch = given(module, "dense")
    truth = Loop(module, batch).gradients()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    with record_gradients(module) as record:
        loss_of(*module(*batch.arguments), batch, "dense").backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert_recorded(record.calls[0], truth, "dense")


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recording_a_checkpointed_call(use_reentrant):
    module = make(layers=1)
    batch = given(module, "dense")
    x = batch.arguments[0].requires_grad_()
    with record_gradients(module) as record:
        output, h_n = checkpoint(module, x, batch.hx, use_reentrant=use_reentrant)
        loss_of(output, h_n, batch, "dense").backward()
    assert_recorded({name: record[name] for name in ("l0", "l0_reverse")}, Loop(module, batch).gradients(), "dense")


def test_autocast_records_in_its_dtype(device):
    module = make(layers=1, device=device, dtype=torch.float32)
    batch = given(module, "dense")
    with record_gradients(module) as record, torch.autocast(device.type, torch.bfloat16):
        output, h_n = module(*batch.arguments)
        loss_of(output.float(), h_n.float(), batch, "dense").backward()
    truth = Loop(module, batch).gradients()
    for name in ("l0", "l0_reverse"):
        assert record[name].dh.dtype == record[name].da.dtype == torch.bfloat16
        for kind in ("dh", "da"):
            for b, value in enumerate(by_sequence(getattr(record[name], kind), "dense")):
                assert_close(f"{name}.{kind}", value, truth[f"{name}.{kind}"][b], 3e-2)


# The transforms below either record what autograd of the loop says, as plain tensors, or refuse with a RuntimeError
# that names record_gradients. To record nothing, or a tensor that has escaped from a transform, is neither.


def _params(module: RNN) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _loss(module: RNN, batch: Given) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda parameters: loss_of(*func.functional_call(module, parameters, batch.arguments), batch, "dense")


def _vmap_grad(module: RNN, batch: Given) -> Any:
    def one(parameters: dict[str, Tensor], x: Tensor, hx: Tensor) -> Tensor:
        return func.functional_call(module, parameters, (x, hx))[0].square().sum()

    return func.vmap(func.grad(one), (None, 1, 1))(_params(module), *batch.arguments)


def _batched_gradients(module: RNN, batch: Given) -> Any:
    output, _ = module(*batch.arguments)
    upstream = torch.stack([torch.randn_like(output), torch.randn_like(output)])
    return torch.autograd.grad(output, list(module.parameters()), upstream, is_grads_batched=True)


def _dual(module: RNN, batch: Given) -> Any:
    with forward_ad.dual_level():
        W = forward_ad.make_dual(module.weight_hh_l0.detach().requires_grad_(), torch.randn(H, H).double())
        loss = _loss(module, batch)(_params(module) | {"weight_hh_l0": W})
        return forward_ad.unpack_dual(torch.autograd.grad(loss, W)[0])


TRANSFORMS: dict[str, Callable[[RNN, Given], Any]] = {
    "grad": lambda module, batch: func.grad(_loss(module, batch))(_params(module)),
    "vjp": lambda module, batch: func.vjp(_loss(module, batch), _params(module))[1](torch.tensor(1.0).double()),
    "jacrev": lambda module, batch: func.jacrev(_loss(module, batch))(_params(module)),
    "grad-of-grad": lambda module, batch: func.grad(
        lambda W: func.grad(lambda W: _loss(module, batch)({"weight_hh_l0": W}))(W).square().sum()
    )(module.weight_hh_l0.detach()),
    "jvp-of-grad": lambda module, batch: func.jvp(
        func.grad(lambda W: _loss(module, batch)({"weight_hh_l0": W})),
        (module.weight_hh_l0.detach(),),
        (torch.ones(H, H).double(),),
    )[1],
    "vmap-of-grad": _vmap_grad,
    "batched-gradients": _batched_gradients,
    "dual-numbers": _dual,
}


# torch's own decompositions for forward mode are scripted when they are first asked for
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_while_recording_records_rightly_or_is_refused(transform):
    module = make(layers=1)
    batch = given(module, "dense")
    truth = Loop(module, batch).gradients()
    torch.manual_seed(0)
    without = TRANSFORMS[transform](module, batch)
    torch.manual_seed(0)
    with record_gradients(module) as record:
        try:
            result = TRANSFORMS[transform](module, batch)
        except RuntimeError as refused:
            if "record_gradients" not in str(refused):
                raise
            return
    torch.testing.assert_close(result, without, rtol=0, atol=0)
    assert record.calls[-1], "nothing was recorded"
    for one in record.calls[-1].values():
        for value in (one.dh, one.da):
            assert not torch._C._functorch.is_functorch_wrapped_tensor(value), "the tensor has escaped"
            assert not value.requires_grad
            assert value.numpy().shape == value.shape
    if transform in ("vjp", "grad", "jacrev", "dual-numbers"):
        names = [name for name in truth if name.split(".")[0] in record.calls[-1]]
        assert_recorded(record.calls[-1], {name: truth[name] for name in names}, "dense")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, on tracing
@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_module_compiled_whole_says_that_it_cannot_be_recorded(compiled_before):
    module = make(layers=1)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    batch = given(module, "dense")
    if compiled_before:
        compiled(*batch.arguments)
    with (
        record_gradients(module),
        pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported), match="record_gradients"),
    ):
        compiled(*batch.arguments)
    compiled(*batch.arguments)[0].sum().backward()
    assert "_recorder" not in vars(module)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, on tracing
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the same
@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_compiled_module_whose_graph_may_break_records_rightly_or_is_refused(compiled_before):
    module = make(layers=1)
    compiled = torch.compile(module, backend="eager")
    batch = given(module, "dense")
    if compiled_before:
        compiled(*batch.arguments)
    with record_gradients(module) as record:
        try:
            loss_of(*compiled(*batch.arguments), batch, "dense").backward()
        except RuntimeError as refused:
            if "record_gradients" not in str(refused):
                raise
            return
    assert_recorded(record.calls[-1], Loop(module, batch).gradients(), "dense")


@pytest.mark.parametrize("wrong", ["direct", "unturned", "later"])
def test_a_wrong_record_is_seen(wrong, monkeypatch):
    right = recurrence.state_gradient

    def planted(dh: Tensor, da: Tensor, *others: Any) -> Tensor:
        if wrong == "direct":
            return dh.clone()
        return right(dh, da, *others).flip(0) if wrong == "unturned" else right(dh, 1.001 * da, *others)

    monkeypatch.setattr(recurrence, "state_gradient", planted)
    module = make()
    for layout in ("dense", "packed-unsorted", "lengths"):
        record = run_recorded(module, layout)
        with pytest.raises(AssertionError):
            assert_recorded(record.calls[0], Loop(module, given(module, layout)).gradients(), layout)


def test_a_record_can_be_looked_at():
    record = run_recorded(make())
    assert list(record) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert len(record) == 4
    assert "l1" in record
    assert "l2" not in record
    assert repr(record) == "GradientRecord(l0, l0_reverse, l1, l1_reverse; calls: 1)"
