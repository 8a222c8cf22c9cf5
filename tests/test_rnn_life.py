"""What a program does with an RNN after it was made: gradients, graphs, weights that change, copies, files, hooks.

torch.nn.RNN is treated alike in every test. Would catch: a gradient that nobody asked for and that is computed all
the same, a backward pass that cannot be batched or differentiated, an output whose edit in place corrupts or forbids
backward, a weight edited before backward that nobody notices, a graph that outlives its output, a weight that was
replaced, tied, normed, pruned or loaded and that the next forward does not see, a file or a copy that misses
something, a hook that sees other tensors or fires twice.
"""

import copy
import gc
import io
import itertools
import pickle
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import GENERAL, NONLINEARITIES, assert_all_close, normal, seeded
from test_rnn_contract import CPU, EXACT, F64, hx_of, twins, x_of
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import manual_bptt
from manual_bptt import kernels, recurrence

T, B, D, H, _ = GENERAL
SECOND = 1e-11  # of a second derivative
each_kind = pytest.mark.parametrize("kind", ["RNN", "RNNCell"])


def both(*args: Any, kind: str = "RNN", **kwargs: Any) -> tuple[Any, Any]:
    """manual_bptt's module and torch.nn's in float64, of two layers and both directions where nothing else is said."""
    if kind == "RNN" and not args and not kwargs:
        args, kwargs = (D, H, 2), {"bidirectional": True}
    return twins(kind, *(args or (D, H)), **{"dtype": F64} | kwargs)


def steps_of(output: Any) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def input_of(module: nn.Module, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """A dense x and an hx that fit the module and require gradients."""
    if isinstance(module, nn.RNNCell):
        x, hx = x_of(B, module.input_size), hx_of(B, module.hidden_size)
    else:
        layers = module.num_layers * (1 + module.bidirectional)
        x, hx = x_of(T, B, module.input_size), hx_of(layers, B, module.hidden_size)
    return x.to(device).requires_grad_(), hx.to(device).requires_grad_()


def upstream(*values: Tensor) -> list[Tensor]:
    return [normal(seeded(20 + place), *value.shape).to(value.device) for place, value in enumerate(values)]


def loss_of(*values: Tensor) -> Tensor:
    """Every entry of the results with a weight of its own."""
    terms = zip(values, upstream(*values), strict=True)
    return torch.stack([(value * weight).sum() for value, weight in terms]).sum()


def results_of(module: nn.Module, *args: Tensor) -> list[Tensor]:
    output = module(*args)
    return [steps_of(output[0]), output[1]] if isinstance(output, tuple) else [output]


def everything(module: nn.Module, device: torch.device = CPU) -> dict[str, Tensor]:
    """Results and all gradients, on the CPU."""
    x, hx = input_of(module, device)
    results = results_of(module, x, hx)
    named = {"x": x, "hx": hx, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(loss_of(*results), list(named.values()))
    found = {f"result {n}": value for n, value in enumerate(results)}
    found |= {f"d{name}": gradient for name, gradient in zip(named, gradients, strict=True)}
    return {name: value.detach().cpu() for name, value in found.items()}


def same(mine: nn.Module, theirs: nn.Module, device: torch.device = CPU) -> None:
    assert_all_close(everything(mine.to(device), device), everything(theirs), EXACT)


# Which gradients are asked for

COMPUTED = {
    "input_gradient": "x",
    "initial_state_gradient": "hx",
    "input_weight_gradient": "weight_ih",
    "recurrent_weight_gradient": "weight_hh",
    "bias_gradient": "bias",
}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often each of B5-B8 has been computed, in Python."""
    calls = dict.fromkeys(COMPUTED, 0)
    for name in COMPUTED:
        right = getattr(recurrence, name)

        def counted(*args: Any, name: str = name, right: Callable[..., Any] = right) -> Any:
            calls[name] += 1
            return right(*args)

        monkeypatch.setattr(recurrence, name, counted)
    with kernels.use("eager"):
        yield calls


def expected_calls(asked: set[str], layers: int, directions: int) -> dict[str, int]:
    """Per kind, in how many layers and directions somebody needs that gradient."""
    suffixes = ["", "_reverse"][:directions]
    wanted = dict.fromkeys(COMPUTED, 0)
    below = "x" in asked  # whether the layer's input depends on something that was asked for
    for layer in range(layers):
        wanted["input_gradient"] += directions * below
        wanted["initial_state_gradient"] += directions * ("hx" in asked)
        for suffix in suffixes:
            names = {kind: f"{kind}_l{layer}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            wanted["input_weight_gradient"] += names["weight_ih"] in asked
            wanted["recurrent_weight_gradient"] += names["weight_hh"] in asked
            wanted["bias_gradient"] += bool({names["bias_ih"], names["bias_hh"]} & asked)
        below = below or "hx" in asked or any(f"_l{layer}" in name for name in asked)
    return wanted


def compare_subset(mine: Any, theirs: Any, asked: set[str], device: torch.device) -> None:
    results = []
    for module, place in ((mine, device), (theirs, CPU)):
        x, hx = input_of(module, place)
        leaves = {"x": x, "hx": hx, **dict(module.named_parameters())}
        for name, leaf in leaves.items():
            leaf.grad = None
            leaf.requires_grad_(name in asked)
        output, h_n = module(x, hx)
        assert output.requires_grad == bool(asked)
        if asked:
            loss_of(output, h_n).backward()
        results.append({name: leaf.grad for name, leaf in leaves.items()})
    assert {name for name, gradient in results[0].items() if gradient is not None} == asked
    if asked:
        assert_all_close({name: results[0][name].cpu() for name in asked}, results[1], EXACT)


def test_every_subset_of_gradients_is_given_and_no_other_is_computed(computed, device):
    mine, theirs = both(D, H)
    mine.to(device)
    leaves = ["x", "hx", *dict(mine.named_parameters())]
    for asked in itertools.chain.from_iterable(itertools.combinations(leaves, n) for n in range(len(leaves) + 1)):
        computed.update(dict.fromkeys(computed, 0))
        compare_subset(mine, theirs, set(asked), device)
        assert computed == expected_calls(set(asked), 1, 1), asked


def test_subsets_of_gradients_of_many_layers(computed, device):
    mine, theirs = both()
    mine.to(device)
    leaves = ["x", "hx", *dict(mine.named_parameters())]
    generator = seeded(0)
    subsets = [{name} for name in leaves]
    subsets += [
        {name for name in leaves if torch.rand((), generator=generator) < share} for share in (0.1, 0.2, 0.5, 0.9) * 3
    ]
    for asked in subsets:
        computed.update(dict.fromkeys(computed, 0))
        compare_subset(mine, theirs, asked, device)
        assert computed == expected_calls(asked, 2, 2), asked


def test_the_backward_pass_in_eval_mode(device):
    """Refused by cuDNN; dropout is off."""
    mine, theirs = (module.eval() for module in both(D, H, num_layers=2, dropout=0.5))
    same(mine, theirs, device)


@each_kind
def test_a_frozen_module_keeps_only_what_its_gradients_read(kind):
    """Without gradients of the weights, x and hx need not be kept: they may be changed before backward."""
    module, _ = both(kind=kind) if kind == "RNNCell" else both(D, H)
    module.requires_grad_(False)
    x, hx = (value.detach().requires_grad_() for value in input_of(module))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        loss_of(*results_of(module, x, hx))
    places = {value.untyped_storage().data_ptr() for value in kept}
    assert kept
    assert not places & {x.untyped_storage().data_ptr(), hx.untyped_storage().data_ptr()}


SHARES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "output": lambda output, h_n: loss_of(output),
    "h_n": lambda output, h_n: loss_of(h_n),
    "both": lambda output, h_n: loss_of(output, h_n),
    "one step": lambda output, h_n: loss_of(output[2]),
    "one state": lambda output, h_n: loss_of(h_n[1]),
    "expanded": lambda output, h_n: output.sum(),
    "transposed": lambda output, h_n: loss_of(output.transpose(0, 2)),
    "strided": lambda output, h_n: loss_of(output[::2, :, 1::3]),
    "twice": lambda output, h_n: loss_of(output, output.square(), h_n, h_n.exp()),
}


@pytest.mark.parametrize("share", SHARES)
def test_a_loss_of_any_share_of_the_results(share, device):
    results = []
    for module, place in zip(both(), (device, CPU), strict=True):
        x, hx = input_of(module.to(place), place)
        loss = SHARES[share](*module(x, hx))
        named = {"x": x, "hx": hx, **dict(module.named_parameters())}
        gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        results.append({name: gradient.cpu() for name, gradient in zip(named, gradients, strict=True)})
    assert_all_close(*results, EXACT)


# More than one derivative


def small_problem(nonlinearity: str, form: str) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Two layers, both directions, as a function of every leaf."""
    torch.manual_seed(1)
    module = manual_bptt.RNN(2, 3, 2, nonlinearity, bidirectional=True, dtype=F64)
    names = [name for name, _ in module.named_parameters()]
    lengths = torch.tensor([2, 4, 3])

    def function(x: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        input = pack_padded_sequence(x, lengths, enforce_sorted=False) if form == "packed" else x
        output, h_n = functional_call(module, dict(zip(names, weights, strict=True)), (input, hx))
        return steps_of(output), h_n

    values = (x_of(4, 3, 2), hx_of(4, 3, 3), *module.parameters())
    return function, tuple(value.detach().clone().requires_grad_() for value in values)


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gradcheck_and_gradgradcheck_with_batched_gradients(nonlinearity, form):
    function, values = small_problem(nonlinearity, form)
    assert gradcheck(function, values, fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(function, values, fast_mode=True, check_batched_grad=True)


@each_kind
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_gradient_penalty_is_that_of_torch(nonlinearity, kind, device):
    results = []
    for module in both(D, H, nonlinearity=nonlinearity, kind=kind):
        x, hx = input_of(module)
        penalty = torch.autograd.grad(loss_of(*results_of(module, x, hx)), [x, hx], create_graph=True)
        (loss_of(*penalty) + penalty[0].square().sum()).backward()
        named = {"x": x, "hx": hx, **dict(module.named_parameters())}
        results.append({name: leaf.grad for name, leaf in named.items()})
    absent = [{name for name, gradient in result.items() if gradient is None} for result in results]
    assert absent[0] == absent[1] == set()
    assert_all_close(*results, SECOND)


@each_kind
def test_batched_upstream_gradients_are_those_one_by_one(kind, device):
    module = both(kind=kind)[0].to(device)
    x, hx = input_of(module, device)
    results = results_of(module, x, hx)
    leaves = [x, hx, *module.parameters()]
    many = [normal(seeded(n), 3, *value.shape).to(device) for n, value in enumerate(results)]
    batched = torch.autograd.grad(results, leaves, many, is_grads_batched=True, retain_graph=True)
    for n in range(3):
        alone = torch.autograd.grad(results, leaves, [value[n] for value in many], retain_graph=True)
        pairs = {str(place): (value[n], alone[place]) for place, value in enumerate(batched)}
        assert_all_close({k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()}, EXACT)


@pytest.mark.parametrize("how", ["graph", "no_grad", "frozen"])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"batch_first": True, "bidirectional": True}])
def test_no_output_is_a_view(options, with_lengths, how):
    """One could not be detached in place, nor changed in a graph if it was made without one; torch's is none."""
    module = manual_bptt.RNN(3, 4, **options).requires_grad_(how != "frozen")
    x = normal(seeded(1), 5, 6, 3).float()
    sizes = [2] * (5 if options.get("batch_first") else 6)
    with torch.set_grad_enabled(how != "no_grad"):
        output, h_n = module(x, **({"lengths": sizes} if with_lengths else {}))
    changed = output.clone()
    assert not output._is_view()
    assert output.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()
    output.mul_(torch.full((1,), 2.0, requires_grad=True))
    assert torch.equal(output, 2 * changed)
    output.detach_()


LOSSES = {
    "output": lambda output, h_n: output.square().sum(),
    "h_n": lambda output, h_n: h_n.square().sum(),
    "both": lambda output, h_n: output.square().sum() + h_n.pow(3).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2}, {"bidirectional": True}])
def test_hooks_on_results_see_what_they_see_of_torch(options, every, loss):
    """A hook on the output or h_n is called if that has a gradient, with that alone, and what it returns flows on."""
    seen, found = [], []
    reference = nn.RNN(3, 4, dtype=torch.float64, **options)
    own = manual_bptt.RNN(3, 4, dtype=torch.float64, checkpoint_every=every, **options)
    own.load_state_dict(reference.state_dict())
    x = normal(seeded(1), 5, 6, 3)
    for module in (reference, own):
        output, h_n = module(x)
        grads = {}
        for name, value in (("output", output), ("h_n", h_n)):
            value.retain_grad()
            value.register_hook(lambda g, name=name, grads=grads: grads.update({name: g.clone()}))
            value.register_hook(lambda g: g.clamp(-0.1, 0.1))
        LOSSES[loss](output, h_n).backward()
        grads |= {f"kept {name}": value.grad for name, value in (("output", output), ("h_n", h_n))}
        seen.append({name: value for name, value in grads.items() if value is not None})
        found.append({name: value.grad for name, value in module.named_parameters()})
    assert seen[0].keys() == seen[1].keys()
    for name, value in (seen[0] | found[0]).items():
        torch.testing.assert_close((seen[1] | found[1])[name], value, rtol=1e-11, atol=1e-13)


# Results that are edited in place

EDITS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "output": lambda output, h_n: output.mul_(2.0),
    "h_n": lambda output, h_n: h_n.mul_(2.0),
    "both": lambda output, h_n: (output.relu_(), h_n.zero_()),
    "first step": lambda output, h_n: output[0].fill_(3.0),
    "one unit": lambda output, h_n: output[..., 2].exp_(),
    "one state": lambda output, h_n: h_n[0].sigmoid_(),
}
FORMS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "batch_first": {"batch_first": True},
    "both ways": {"bidirectional": True},
    "unbatched": {},
    "packed": {},
    "packed both ways": {"bidirectional": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
    "one step": {},
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("form", FORMS)
def test_results_may_be_edited_in_place_before_backward(form, edit, device):
    results = []
    for module, place in zip(both(D, H, **FORMS[form]), (device, CPU), strict=True):
        x, hx = input_of(module.to(place), place)
        if form == "one step":
            x = x[:1]
        start = hx[:, 0] if form == "unbatched" else hx
        input: Any = x[:, 0] if form == "unbatched" else x.transpose(0, 1) if form == "batch_first" else x
        if form.startswith("packed"):
            input = pack_padded_sequence(x, torch.tensor([3, 5, 4]), enforce_sorted=False)
        torch.manual_seed(3)
        output, h_n = module(input, start)
        output = steps_of(output)
        untouched = {"output": h_n, "h_n": output}.get(edit)
        before = None if untouched is None else untouched.detach().clone()
        EDITS[edit](output, h_n)
        assert untouched is None or torch.equal(untouched, before)
        named = {"x": x, "hx": hx, **dict(module.named_parameters())}
        first = torch.autograd.grad(loss_of(output, h_n), list(named.values()), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), list(module.parameters()), materialize_grads=True)
        results.append({f"{n}": value.detach().cpu() for n, value in enumerate((output, h_n, *first, *second))})
    assert_all_close(*results, SECOND)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_the_edited_state_of_a_cell_never_gives_a_wrong_gradient(nonlinearity):
    """nn.RNNCell keeps the tensor that it returns, and raises."""
    module, _ = both(D, H, nonlinearity=nonlinearity, kind="RNNCell")
    x, hx = input_of(module)
    expected = torch.autograd.grad(loss_of(module(x, hx) * 2.0), x)[0]
    try:
        actual = torch.autograd.grad(loss_of(module(x, hx).mul_(2.0)), x)[0]
    except RuntimeError as error:
        assert "inplace" in str(error)  # noqa: PT017 - it need not raise
    else:
        assert_all_close({"dx": actual}, {"dx": expected}, EXACT)


def test_the_state_of_a_cell_may_be_edited_where_no_backward_pass_follows():
    """As programs do that reset the states of games that are over, without no_grad."""
    for module in both(kind="RNNCell"):
        x, hx = input_of(module)
        h = module(x, hx)
        h[0] = 0.0
        assert module(x, h).isfinite().all()


# Arguments that are edited in place


def edited(value: Tensor) -> None:
    with torch.no_grad():
        value.mul_(1.5)


@pytest.mark.parametrize("trainable", [True, False], ids=["all", "weights-only"])
@pytest.mark.parametrize("form", ["one layer", "two layers", "both ways", "packed"])
def test_arguments_edited_between_forward_and_backward_are_noticed_where_nn_rnn_notices(form, trainable):
    """Raises where the gradients would be wrong; where it does not raise they are as if nothing had happened."""
    modules = both(D, H, **FORMS[form])
    for name in ["x", "hx", *dict(modules[0].named_parameters())]:
        outcomes = []
        for module in modules:
            found = []
            for edit in (False, True):
                copied = copy.deepcopy(module)
                x, hx = (value.requires_grad_(trainable) for value in input_of(copied))
                # sorted: the rows are x's own storage
                input = PackedSequence(x.flatten(0, 1), torch.tensor([B] * T)) if form == "packed" else x
                output, h_n = copied(input, hx)
                if edit:
                    edited({"x": x, "hx": hx, **dict(copied.named_parameters())}[name])
                try:
                    loss_of(steps_of(output), h_n).backward()
                except RuntimeError as error:
                    assert re.search("modified (by an )?inplace", str(error))  # noqa: PT017 - it need not raise
                    found.append(None)
                else:
                    found.append([parameter.grad for parameter in copied.parameters()])
            assert found[0] is not None
            assert found[1] is None or all(itertools.starmap(torch.equal, zip(*found, strict=True)))
            outcomes.append(found[1] is None)
        assert outcomes[0] == outcomes[1], f"{name}: raises here {outcomes[0]}, in torch {outcomes[1]}"


def test_an_edit_through_data_is_silent_as_in_nn_rnn():
    for module in both(D, H):
        output, _ = module(*input_of(module))
        module.weight_hh_l0.data.zero_()
        loss_of(output).backward()


# Graphs


@each_kind
def test_a_second_backward_pass_needs_retain_graph(kind):
    for module in both(kind=kind):
        leaves = [*input_of(module), *module.parameters()]
        loss = loss_of(*results_of(module, *leaves[:2]))
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        second = torch.autograd.grad(loss, leaves)
        assert all(itertools.starmap(torch.equal, zip(first, second, strict=True)))
        with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
            torch.autograd.grad(loss, leaves)


@each_kind
def test_one_module_twice_in_one_graph(kind, device):
    results = []
    for module, place in zip(both(H, H, kind=kind), (device, CPU), strict=True):
        x, hx = input_of(module.to(place), place)
        first, *state = results_of(module, x, hx)
        again = results_of(module, first, *(state or [hx]))
        loss_of(*again, first).backward()
        leaves = {"x": x, "hx": hx, **dict(module.named_parameters())}
        results.append({name: leaf.grad.cpu() for name, leaf in leaves.items()})
    assert_all_close(*results, EXACT)


def test_truncated_bptt_by_detach(device):
    results = []
    for module, place in zip(both(D, H, num_layers=2), (device, CPU), strict=True):
        module.to(place)
        x, state = normal(seeded(1), 3 * T, B, D).to(place), None
        for chunk in x.split(T):
            output, state = module(chunk, state)
            loss_of(output).backward()
            state = state.detach()
        results.append({name: p.grad.cpu() for name, p in module.named_parameters()} | {"state": state.cpu()})
    assert_all_close(*results, EXACT)


def test_two_threads_with_one_module():
    module, _ = both()
    expected = everything(module)
    found: list[dict[str, Tensor]] = []
    threads = [threading.Thread(target=lambda: found.extend(everything(module) for _ in range(5))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    for actual in found:
        assert_all_close(actual, expected, EXACT)


@each_kind
def test_anomaly_mode_names_the_line_of_the_forward_pass(kind):
    module, _ = both(1, 1, nonlinearity="relu", kind=kind)
    for parameter in module.parameters():
        parameter.data.fill_(1.0)
    x, hx = (value.abs() for value in input_of(module))  # infinite states: 0 · inf is NaN in the backward pass
    with pytest.warns(UserWarning) as log, torch.autograd.detect_anomaly():  # noqa: PT030, PT031 - it warns of much
        results = results_of(module, x, hx / 0.0)  # the line of the forward pass
        with pytest.raises(RuntimeError, match=r"Function 'Recurrence\w*Backward' returned nan values"):
            results[0].backward(torch.zeros_like(results[0]))
    traceback = [str(warning.message) for warning in log if "Traceback of forward call" in str(warning.message)]
    assert len(traceback) == 1
    assert "the line of the forward pass" in traceback[0]


@pytest.mark.parametrize("form", ["one layer", "two layers", "both ways", "packed", "cell"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_nothing_of_a_graph_needs_the_garbage_collector(backward, form):
    module, _ = both(kind="RNNCell") if form == "cell" else both(D, H, **FORMS[form])
    x, hx = (value.detach() for value in input_of(module))
    input = pack_padded_sequence(x, torch.tensor([3, 5, 4]), enforce_sorted=False) if form == "packed" else x

    watched: list[weakref.ref[Any]] = []

    class Kept:
        def __init__(self, value: Tensor) -> None:
            self.value = value.detach()
            watched.append(weakref.ref(self))

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
            output = results_of(module, input, hx)
        assert watched
        if backward:
            loss_of(*output).backward(retain_graph=True)
        watched += [weakref.ref(value) for value in (module, *module.parameters(), *output)]
        assert all(reference() is not None for reference in watched)
        del output, module
        assert [reference() for reference in watched] == [None] * len(watched)
    finally:
        gc.enable()


@each_kind
def test_gradients_accumulate_in_place_and_are_zeroed(kind, device):
    module = both(kind=kind)[0].to(device)
    x, hx = input_of(module, device)

    def backward() -> None:
        loss_of(*results_of(module, x, hx)).backward()

    backward()
    leaves = [x, hx, *module.parameters()]
    first = [leaf.grad for leaf in leaves]
    once = [gradient.clone() for gradient in first]
    backward()
    for leaf, gradient, single in zip(leaves, first, once, strict=True):
        assert leaf.grad is gradient
        assert_all_close({"grad": leaf.grad}, {"grad": 2 * single}, EXACT)
    places = [gradient.untyped_storage().data_ptr() for gradient in first]
    assert len(set(places)) == len(places)
    module.zero_grad(set_to_none=False)
    assert all(parameter.grad.count_nonzero() == 0 for parameter in module.parameters())
    backward()
    assert all(torch.equal(p.grad, s) for p, s in zip(module.parameters(), once[2:], strict=True))
    module.zero_grad()
    assert all(parameter.grad is None for parameter in module.parameters())
    assert x.grad is not None


# Weights that change

Treatment = Callable[[Any], Any]


def replaced(module: Any, name: str, how: Callable[[nn.Parameter], Any]) -> None:
    setattr(module, name, how(getattr(module, name)))


def _other(parameter: Tensor) -> Tensor:
    return normal(seeded(9), *parameter.shape, scale=0.3).to(parameter)


def _new(module: Any) -> None:
    replaced(module, "weight_hh_l0", lambda old: nn.Parameter(_other(old)))
    replaced(module, "weight_ih_l1_reverse", lambda old: nn.Parameter(_other(old)))


def _data(module: Any) -> None:
    module.weight_hh_l0.data = _other(module.weight_hh_l0)


def _set(module: Any) -> None:
    with torch.no_grad():
        module.weight_hh_l0.set_(_other(module.weight_hh_l0))


def _copied(module: Any) -> None:
    with torch.no_grad():
        module.bias_hh_l1.copy_(_other(module.bias_hh_l1))


def _deleted(module: Any) -> None:
    old = module.weight_hh_l0
    del module.weight_hh_l0
    module.weight_hh_l0 = nn.Parameter(_other(old))
    old = module.weight_ih_l0
    del module.weight_ih_l0
    module.register_parameter("weight_ih_l0", nn.Parameter(_other(old)))


def _plain(module: Any) -> None:
    """As the old weight_norm and DropConnect do: a tensor that is no parameter."""
    module.base = nn.Parameter(_other(module.weight_hh_l0))
    del module.weight_hh_l0
    module.weight_hh_l0 = module.base * 2.0


def _tied(module: Any) -> None:
    module.bias_ih_l0_reverse = module.bias_ih_l0
    module.weight_hh_l1 = module.weight_hh_l0
    module.weight_ih_l1_reverse = module.weight_ih_l1


def _vector(module: Any) -> None:
    flat = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(flat.flip(0), module.parameters())


def _assigned(module: Any) -> None:
    state = {name: _other(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def _there_and_back(module: Any) -> None:
    module.float().double()


def _old_norm(module: Any) -> None:
    nn.utils.weight_norm(module, "weight_hh_l0")
    nn.utils.weight_norm(module, "weight_ih_l1_reverse", dim=None)
    module.weight_hh_l0_g.data.mul_(1.5)


def _old_norm_removed(module: Any) -> None:
    _old_norm(module)
    nn.utils.remove_weight_norm(module, "weight_hh_l0")
    module.weight_hh_l0.data.mul_(0.9)


def _norm(module: Any) -> None:
    parametrizations.weight_norm(module, "weight_hh_l0")
    module.parametrizations.weight_hh_l0.original0.data.mul_(1.5)


def _orthogonal(module: Any) -> None:
    torch.manual_seed(0)
    parametrizations.orthogonal(module, "weight_hh_l0", use_trivialization=False)


def _spectral(module: Any) -> None:
    torch.manual_seed(0)
    # each look at the weight is a step of the power iteration, and torch looks more often: let it have converged
    parametrizations.spectral_norm(module, "weight_hh_l1", n_power_iterations=300)


def _old_spectral(module: Any) -> None:
    torch.manual_seed(0)
    nn.utils.spectral_norm(module, "weight_hh_l1")


class Symmetric(nn.Module):
    """A parametrization: the upper triangle counts twice."""

    def forward(self, value: Tensor) -> Tensor:
        return value.triu() + value.triu(1).mT


def _parametrized(module: Any) -> None:
    parametrize.register_parametrization(module, "weight_hh_l0", Symmetric())


def _unparametrized(module: Any) -> None:
    _parametrized(module)
    parametrize.remove_parametrizations(module, "weight_hh_l0")


def _pruned(module: Any) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.3)
    prune.ln_structured(module, "weight_ih_l1", amount=2, n=2, dim=0)


def _pruned_for_good(module: Any) -> None:
    _pruned(module)
    prune.remove(module, "weight_hh_l0")


TREATMENTS: dict[str, Treatment] = {
    function.__name__.lstrip("_"): function
    for function in (
        _new, _data, _set, _copied, _deleted, _plain, _tied, _vector, _assigned, _there_and_back, _old_norm,
        _old_norm_removed, _norm, _orthogonal, _spectral, _old_spectral, _parametrized, _unparametrized, _pruned,
        _pruned_for_good,
    )
}  # fmt: skip
# torch's own: its old weight_norm says that there is a new one
old_norms = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


@old_norms
@pytest.mark.parametrize("after_forward", [False, True], ids=["at-once", "after-a-step"])
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_the_next_forward_sees_a_weight_that_was_changed(treatment, after_forward, device):
    modules = both()
    before = everything(modules[0])
    for module in modules:
        if after_forward:
            everything(module)
        TREATMENTS[treatment](module)
    if treatment not in ("unparametrized", "there_and_back"):  # so that the comparison can fail
        changed = [everything(module)["result 0"] for module in modules]
        assert not any(torch.equal(result, before["result 0"]) for result in changed)
    if treatment == "plain":  # made once by an operator of the CPU; its graph serves one backward pass
        for module in modules:
            module.weight_hh_l0 = module.base * 2.0
        device = CPU
    same(*modules, device)
    if treatment in ("old_norm", "norm", "orthogonal", "spectral", "old_spectral", "parametrized", "pruned"):
        for module in modules:  # a step of the optimizer changes what the weights are made of
            scale(module)
        same(*modules, device)


@pytest.mark.parametrize("tie", [False, True], ids=["partial", "tied"])
def test_functional_call_with_some_of_the_weights(tie):
    results = []
    for module in both():
        x, hx = input_of(module)
        if tie:
            module.weight_hh_l1 = module.weight_hh_l0
        weights = {"weight_hh_l0": _other(module.weight_hh_l0).requires_grad_(), "bias_ih_l1": torch.ones(H, dtype=F64)}
        output, h_n = functional_call(module, weights, (x, hx))
        kept = {"weight_hh_l0": weights["weight_hh_l0"], "x": x, "weight_ih_l0": module.weight_ih_l0}
        gradients = torch.autograd.grad(loss_of(output, h_n), list(kept.values()))
        results.append(dict(zip(("output", "h_n", *kept), (output, h_n, *gradients), strict=True)))
        after = module(x, hx)[0]
        results[-1]["after"] = after
        assert not torch.equal(output, after)
    assert_all_close(*results, EXACT)


def test_the_lists_of_weights_that_old_programs_read():
    mine, theirs = both()
    assert mine._flat_weights_names == theirs._flat_weights_names
    assert mine._all_weights == theirs._all_weights
    assert mine.flatten_parameters() is mine._update_flat_weights() is None
    assert mine._weights_have_changed() is False
    for name, weight in zip(mine._flat_weights_names, mine._flat_weights, strict=True):
        assert weight is mine.get_parameter(name)
    for names, weights in zip(mine._all_weights, mine.all_weights, strict=True):
        assert all(weight is mine.get_parameter(name) for name, weight in zip(names, weights, strict=True))
    replaced(mine, "weight_hh_l0", lambda old: nn.Parameter(_other(old)))
    assert mine._flat_weights[1] is mine.weight_hh_l0 is mine.all_weights[0][1]
    assert mine._weights_have_changed() is False


@old_norms
def test_flat_weights_count_as_many_parameters_as_in_nn_rnn_under_weight_norm():
    counts = []
    for module in both():
        counts.append([sum(isinstance(weight, nn.Parameter) for weight in module._flat_weights)])
        nn.utils.weight_norm(module, "weight_hh_l0")
        counts[-1].append(sum(isinstance(weight, nn.Parameter) for weight in module._flat_weights))
        nn.utils.remove_weight_norm(module, "weight_hh_l0")
        counts[-1].append(sum(isinstance(weight, nn.Parameter) for weight in module._flat_weights))
    assert counts[0] == counts[1] == [16, 15, 16]


# Files and copies


@each_kind
def test_state_dicts_load_strictly_both_ways(kind):
    mine, theirs = both(kind=kind)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for source, target in ((mine, theirs), (theirs, mine)):
        scale(source)
        result = target.load_state_dict(source.state_dict())
        assert not result.missing_keys
        assert not result.unexpected_keys
        same(mine, theirs)


def _saved(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "torch.save": _saved,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "deepcopy": copy.deepcopy,
    "deepcopy twice": lambda module: copy.deepcopy(copy.deepcopy(module)),
    "copy": copy.copy,
}


@each_kind
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("how", COPIES)
def test_copies_work_and_stand_on_their_own(how, used, kind):
    module, theirs = both(kind=kind)
    module.register_forward_hook(_hook)
    module.eval()
    if used:
        loss_of(*results_of(module, *input_of(module))).backward()
    made = COPIES[how](module)
    assert type(made) is type(module)
    assert repr(made) == repr(module)
    assert made.training is False
    assert len(made._forward_hooks) == 1
    same(made, theirs)
    before = everything(module)
    scale(made)
    assert (not torch.equal(everything(module)["result 0"], before["result 0"])) == (how == "copy")
    scale(theirs)
    same(made, theirs)
    replaced(made, "weight_hh" if kind == "RNNCell" else "weight_hh_l0", lambda old: nn.Parameter(_other(old)))
    assert not torch.equal(everything(made)["result 0"], everything(theirs)["result 0"])


def _hook(module: nn.Module, args: Any, output: Any) -> None:
    """At the top of the file, so that it can be pickled."""


def scale(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(1.5)


def test_a_state_without_proj_size_loads():
    """As PyTorch 1.7 wrote it."""
    for module in both():
        state = module.__getstate__()
        del state["proj_size"]
        made = type(module).__new__(type(module))
        made.__setstate__(state)
        assert made.proj_size == 0
        assert made._flat_weights_names == module._flat_weights_names
        assert made._all_weights == module._all_weights
        same(made, module)


@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_a_parametrized_module_can_be_copied_after_a_forward(how):
    """nn.RNN cannot be: it holds the computed weights."""
    module, _ = both()
    _parametrized(module)
    everything(module)
    if how == "torch.save":
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules is only supported through"):
            _saved(module)
        return
    made = copy.deepcopy(module)
    assert_all_close(everything(made), everything(module), EXACT)
    made.parametrizations.weight_hh_l0.original.data.mul_(1.5)
    assert not torch.equal(everything(made)["result 0"], everything(module)["result 0"])
    fresh, _ = both()
    _parametrized(fresh)
    fresh.load_state_dict(made.state_dict())
    assert_all_close(everything(fresh), everything(made), EXACT)


def test_share_memory():
    module, theirs = both()
    assert module.share_memory() is module
    assert all(parameter.is_shared() for parameter in module.parameters())
    same(module, theirs)


@each_kind
def test_replicas_of_data_parallel_pass_their_gradients_on(kind):
    """As torch.nn.parallel.replicate does, whose copies are no parameters."""
    results = []
    for module in both(kind=kind):
        replica = module._replicate_for_data_parallel()
        copies = {name: parameter * 1.0 for name, parameter in module.named_parameters()}
        for name, value in copies.items():
            setattr(replica, name, value)
        loss_of(*results_of(replica, *input_of(module))).backward()
        assert not list(replica.parameters())
        assert all(isinstance(parameter, nn.Parameter) for parameter in module.parameters())
        results.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert_all_close(*results, EXACT)


class Residual(manual_bptt.RNN):
    """What users derive: more parameters, a forward that calls the one above."""

    def __init__(self, *args: Any, scale: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=F64))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = super().forward(input, hx)
        return self.scale * output, h_n


def test_a_subclass_calls_the_forward_above():
    module = Residual(D, H, 2, bidirectional=True, scale=3.0, dtype=F64)
    plain, _ = both()
    assert not module.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    actual, expected = everything(copy.deepcopy(module)), everything(plain)
    assert_all_close({"output": actual["result 0"] / 3.0}, {"output": expected["result 0"]}, EXACT)
    assert "dscale" in actual
    assert repr(module).startswith("Residual(4, 7, num_layers=2")


# load_state_dict and .to that swap tensors; modules that start on meta


@pytest.fixture
def swapped() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapped")
@pytest.mark.parametrize("assign", [False, True])
@each_kind
def test_load_state_dict_that_swaps_tensors_after_a_step(kind, assign):
    """nn.RNN fails: its weak references to the weights forbid it."""
    module, theirs = both(kind=kind)
    loss_of(*results_of(module, *input_of(module))).backward()
    parameters = list(module.parameters())
    scale(theirs)
    module.load_state_dict(theirs.state_dict(), assign=assign)
    assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
    same(module, theirs)


@pytest.mark.usefixtures("swapped")
@each_kind
def test_conversion_that_swaps_tensors_after_a_step(kind):
    for module in both(kind=kind):
        loss_of(*results_of(module, *input_of(module))).backward()
        parameters = list(module.parameters())
        module.float()
        assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
        assert {p.dtype for p in module.parameters()} == {p.grad.dtype for p in parameters} == {torch.float32}
        x, hx = input_of(module)
        assert {value.dtype for value in results_of(module, x.float(), hx.float())} == {torch.float32}


@each_kind
def test_a_module_made_on_meta_and_filled_by_assignment(kind):
    _, theirs = both(kind=kind)
    module, _ = (
        both(kind=kind, device="meta") if kind == "RNNCell" else both(D, H, 2, bidirectional=True, device="meta")
    )
    module.load_state_dict(theirs.state_dict(), assign=True)
    same(module, theirs)


def test_a_module_made_on_meta_and_drawn_later():
    module, theirs = both(D, H, device="meta")[0].to_empty(device="cpu"), both(D, H)[1]
    torch.manual_seed(0)
    module.reset_parameters()
    same(module, theirs)


# Hooks


def logged(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, PackedSequence):
        return PackedSequence(value.data.detach().clone(), *value[1:])
    return tuple(map(logged, value)) if isinstance(value, tuple) else value


def hooked(module: nn.Module, form: str) -> list[tuple[str, Any]]:
    """All that all kinds of hooks of a module and of its tensors are shown in one step."""
    log: list[tuple[str, Any]] = []

    def note(name: str, *values: Any) -> None:
        log.append((name, logged(values)))

    module.register_forward_pre_hook(lambda m, args: note("forward pre", args))
    module.register_forward_pre_hook(
        lambda m, args, kwargs: note("pre kwargs", args, *kwargs.values()), with_kwargs=True
    )
    module.register_forward_hook(lambda m, args, output: note("forward", args, output))
    module.register_forward_hook(
        lambda m, args, kwargs, output: note("kwargs", args, *kwargs.values(), output), with_kwargs=True
    )
    module.register_forward_hook(lambda m, args, output: note("always", args, output), always_call=True)
    if form != "no module backward hooks":
        module.register_full_backward_pre_hook(lambda m, grad_output: note("backward pre", grad_output))
        module.register_full_backward_hook(lambda m, grad_in, grad_out: note("backward", grad_in, grad_out))
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda grad, name=name: note(f"tensor {name}", grad))
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: note(f"accumulated {name}", p, p.grad))
    x, hx = input_of(module)
    input: Any = pack_padded_sequence(x, torch.tensor([3, 5, 4]), enforce_sorted=False) if form == "packed" else x
    x.register_hook(lambda grad: note("tensor x", grad))
    hx.register_hook(lambda grad: note("tensor hx", grad))
    output = module(input, hx=hx) if form == "keywords" else module(input, hx)
    results = [steps_of(output[0]), output[1]] if isinstance(output, tuple) else [output]
    for place, value in enumerate(results):
        value.register_hook(lambda grad, place=place: note(f"tensor result {place}", grad))
    torch.autograd.graph.register_multi_grad_hook([x, hx], lambda grads: note("multi", *grads))
    loss_of(*results).backward()
    return log


def alike(name: str, mine: Any, theirs: Any) -> None:
    assert type(mine) is type(theirs), name
    if isinstance(theirs, tuple):
        assert len(mine) == len(theirs), name
        for place, pair in enumerate(zip(mine, theirs, strict=True)):
            alike(f"{name}[{place}]", *pair)
    elif isinstance(theirs, Tensor):
        assert mine.stride() == theirs.stride(), name
        assert_all_close({name: mine}, {name: theirs}, EXACT)
    else:
        assert mine == theirs, name


@pytest.mark.parametrize("form", ["dense", "packed", "keywords", "no module backward hooks", "cell"])
def test_every_hook_is_shown_what_it_is_shown_by_torch(form):
    mine, theirs = (hooked(m, form) for m in (both(kind="RNNCell") if form == "cell" else both()))
    names = [name for name, _ in mine]
    assert sorted(names) == sorted(name for name, _ in theirs)
    assert len(set(names)) == len(names), "a hook fired twice"
    shown = dict(theirs)
    for name, value in mine:
        alike(name, value, shown[name])


def test_global_hooks_and_hooks_that_change_what_they_see():
    results = []
    for module in both(D, H):
        seen: list[str] = []
        handles = [
            nn.modules.module.register_module_forward_hook(
                lambda m, args, output, seen=seen: seen.append(type(m).__name__)
            ),
            module.register_forward_pre_hook(lambda m, args: (args[0] * 2.0, args[1])),
            module.register_forward_hook(lambda m, args, output: (output[0] * 3.0, output[1])),
            module.register_full_backward_hook(lambda m, grads, _: (grads[0] * 5.0, grads[1])),
        ]
        results.append(everything(module))
        for handle in handles:
            handle.remove()
        assert seen == ["RNN"]
        results.append(everything(module))
    assert_all_close(results[0], results[2], EXACT)
    assert_all_close(results[1], results[3], EXACT)


def test_a_tied_weight_fires_its_hook_once():
    for module in both():
        _tied(module)
        fired: list[Tensor] = []
        module.weight_hh_l0.register_post_accumulate_grad_hook(fired.append)
        loss_of(*results_of(module, *input_of(module))).backward()
        assert len(fired) == 1
        assert fired[0] is module.weight_hh_l0
