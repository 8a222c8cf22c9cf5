"""convert and restore: every torch.nn.RNN and RNNCell of a model changes its class, and nothing else changes.

Would catch a module or parameter that was made anew, a hook, flag, device, dtype or parametrization that got lost, a
class that should have been left alone, a model that was changed half before an error, a stale list of weights after
either way, and a converted model that cannot be copied, saved, compiled or trained.
"""

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import assert_all_close, assert_close, normal, relative_error, seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_sequence

import manual_bptt
from manual_bptt import RNN, RNNCell, convert, kernels, restore
from manual_bptt.kernels import eager

T, B, D, H = 5, 3, 4, 6
EXACT = 1e-12
BOTH = pytest.mark.parametrize("first", [convert, restore], ids=["convert", "restore"])
CLASSES = {convert: (nn.RNN, nn.RNNCell), restore: (RNN, RNNCell)}  # what it looks for


class OfTorch(nn.RNN):
    """A class of somebody else's."""


class OfTorchCell(nn.RNNCell):
    """A cell of somebody else's."""


class Derived(RNN):
    """Derived from the hand-written one."""


class DerivedCell(RNNCell):
    """Derived from the hand-written one."""


def inverse(first: Callable[..., Any]) -> Callable[..., Any]:
    return restore if first is convert else convert


class Nested(nn.Module):
    """Every kind of recurrent module at every kind of place, one of them twice."""

    def __init__(self, rnn: Any, cell: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = rnn(D, H, 2, nonlinearity="relu", bidirectional=True, dropout=0.3, **options)
        self.blocks = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2 * H, D, **options), rnn(D, H, **options))})
        self.cells = nn.ModuleList([cell(H, H, **options), cell(H, H, bias=False, nonlinearity="relu", **options)])
        self.shared = rnn(H, H, bias=False, batch_first=True, **options)
        self.again = nn.ModuleList([self.shared])
        self.lstm, self.gru = nn.LSTM(H, H, **options), nn.GRU(H, H, **options)
        self.lstm_cell, self.gru_cell = nn.LSTMCell(H, H, **options), nn.GRUCell(H, H, **options)
        self.none = None

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x)
        h, _ = self.blocks["a"](h)
        h = torch.stack([self.cells[1](self.cells[0](step)) for step in h])
        h, _ = self.shared(h)
        h, _ = self.again[0](h)
        h, _ = self.lstm(h)
        return self.gru(h)[0]


def nested(first: Callable[..., Any] = convert, **options: Any) -> Nested:
    torch.manual_seed(0)
    return Nested(*CLASSES[first], **{"dtype": torch.float64, **options})


def batch(device: Any = "cpu") -> Tensor:
    return normal(seeded(1), T, B, D).to(device)


def recurrent(model: nn.Module) -> dict[str, type[nn.Module]]:
    """The class of every module that is a vanilla RNN, by path."""
    return {
        name: type(module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.RNN, nn.RNNCell, RNN)) and isinstance(module, (nn.RNNBase, nn.RNNCell))
    }


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    output = output[0] if isinstance(output, tuple) else output
    return (output * normal(seeded(9), *output.shape).to(output)).sum()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Loss and all gradients of a call with the generator at a fixed place."""
    model.zero_grad()
    torch.manual_seed(5)
    loss = loss_of(model, x)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def what_is_held(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that has to outlive its conversion."""
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)],
        "parameters": [(name, id(p), p.data_ptr(), p._version) for name, p in model.named_parameters()],
        "flags": [(p.requires_grad, p.dtype, p.device, p.is_leaf) for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "state": [(name, value.data_ptr()) for name, value in model.state_dict().items()],
        "repr": repr(model),
        "metadata": model.state_dict()._metadata,
        "generator": torch.get_rng_state().tolist(),
    }


@BOTH
def test_only_the_class_changes_in_a_nested_model(first, device):
    model = nested(first, device=device)
    model.blocks.eval()
    model.rnn.weight_hh_l1_reverse.requires_grad_(False)
    model.cells[0].requires_grad_(False)
    before, grads = what_is_held(model), [p.grad for p in model.parameters()]
    here = {"rnn", "blocks.a.1", "shared"}, {"cells.0", "cells.1"}
    for way in (first, inverse(first), first):
        (rnn_then, cell_then), (rnn_now, cell_now) = CLASSES[way], CLASSES[inverse(way)]
        assert recurrent(model) == dict.fromkeys(here[0], rnn_then) | dict.fromkeys(here[1], cell_then)
        assert way(model) is model
        assert recurrent(model) == dict.fromkeys(here[0], rnn_now) | dict.fromkeys(here[1], cell_now)
        assert what_is_held(model) == before
        assert [p.grad for p in model.parameters()] == grads
        assert [type(m) for m in (model.lstm, model.gru, model.lstm_cell, model.gru_cell)] == [
            nn.LSTM,
            nn.GRU,
            nn.LSTMCell,
            nn.GRUCell,
        ]
        assert model.again[0] is model.shared


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_the_same_before_and_after(first, training, device):
    model = nested(first, device=device).train(training)
    x = batch(device)
    with torch.backends.cudnn.flags(enabled=False):  # its dropout is drawn from a generator of its own
        before = gradients(model, x)
        first(model)
        assert_all_close(gradients(model, x), before, EXACT)
        inverse(first)(model)
        after = gradients(model, x)
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_converted_model_runs_the_hand_written_passes_and_a_restored_one_does_not(monkeypatch):
    calls: list[str] = []
    for name in ("forward", "backward"):
        right = getattr(eager, name)
        monkeypatch.setattr(eager, name, lambda *a, name=name, right=right: calls.append(name) or right(*a))
    with kernels.use("eager"):
        model = nested()
        gradients(model, batch())
        assert calls == []
        gradients(convert(model), batch())
        each = 4 + 1 + 2 * T + 2  # two layers of two directions, one module, two cells, one module twice
        assert calls == ["forward"] * each + ["backward"] * each
        calls.clear()
        gradients(restore(model), batch())
        assert calls == []


@BOTH
@pytest.mark.parametrize("place", [0, 1], ids=["RNN", "RNNCell"])
def test_the_model_may_be_the_module_itself(first, place):
    module = CLASSES[first][place](D, H, dtype=torch.float64)
    x = batch() if place == 0 else batch()[0]
    before = gradients(module, x)
    assert first(module) is module
    assert type(module) is CLASSES[inverse(first)][place]
    assert_all_close(gradients(module, x), before, EXACT)


def test_isinstance_of_nn_rnn_after_either():
    module = nn.RNN(D, H)
    assert not isinstance(convert(module), nn.RNN)
    assert isinstance(module, nn.RNNBase)
    assert isinstance(module, manual_bptt.RNN)
    assert isinstance(restore(module), nn.RNN)
    assert not isinstance(module, manual_bptt.RNN)


@BOTH
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    ],
    ids=["SGD", "Adam", "LBFGS"],
)
def test_an_optimizer_that_was_made_before_goes_on(first, optimizer):
    ends = []
    for switch in (False, True):
        model = nested(first).eval()
        trained = optimizer(list(model.parameters()))
        references = [id(p) for group in trained.param_groups for p in group["params"]]

        def closure(model: nn.Module = model, trained: Any = trained) -> Tensor:
            trained.zero_grad()
            loss = loss_of(model, batch())
            loss.backward()
            return loss

        for step in range(4):
            if switch and step == 2:
                first(model)
            trained.step(closure)
        assert references == [id(p) for p in model.parameters()]
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    assert relative_error(ends[0]["shared.weight_hh_l0"], nested(first).shared.weight_hh_l0.detach()) > 1e-3
    assert_all_close(ends[1], ends[0], 1e-9)


def hook_everything(module: nn.Module, log: list[Any]) -> None:
    """Every kind of hook there is; some change what they see."""

    def note(kind: str) -> Callable[..., None]:
        return lambda *values: log.append((kind, [list(v.shape) for v in values[1:] if isinstance(v, Tensor)]))

    def scaled(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        log.append(("pre with kwargs", sorted(kwargs)))
        return (1.5 * args[0], *args[1:]), kwargs

    def output_scaled(module: nn.Module, args: Any, output: Any) -> Any:
        log.append(("forward", [list(value.shape) for value in output]))
        return tuple(2 * value for value in output)

    def gradient_scaled(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        log.append(("full backward", [list(g.shape) for g in (*grad_input, *grad_output) if g is not None]))
        return tuple(None if g is None else 3 * g for g in grad_input)

    module.register_forward_pre_hook(note("pre"))
    module.register_forward_pre_hook(scaled, with_kwargs=True, prepend=True)
    module.register_forward_hook(output_scaled)
    module.register_forward_hook(lambda *_: log.append(("always", [])), always_call=True)
    module.register_forward_hook(lambda m, a, k, o: log.append(("with kwargs", sorted(k))), with_kwargs=True)
    module.register_full_backward_pre_hook(lambda m, g: log.append(("backward pre", len(g))))
    module.register_full_backward_hook(gradient_scaled)
    module.register_state_dict_pre_hook(lambda *_: log.append(("state_dict pre", [])))
    module.register_state_dict_post_hook(lambda *_: log.append(("state_dict", [])))
    module.register_load_state_dict_pre_hook(lambda *_: log.append(("load pre", [])))
    module.register_load_state_dict_post_hook(lambda *_: log.append(("load post", [])))
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda grad, name=name: log.append(("tensor", name)))
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: log.append(("accumulated", name)))


@BOTH
@pytest.mark.parametrize("place", [0, 1], ids=["RNN", "RNNCell"])
def test_hooks_of_all_kinds_fire_as_before(first, place):
    module = CLASSES[first][place](D, H, dtype=torch.float64)
    log: list[Any] = []
    if place == 0:
        hook_everything(module, log)
    else:
        module.register_forward_hook(lambda m, a, o: log.append("forward") or 2 * o)
        module.register_full_backward_hook(lambda m, i, o: log.append("backward"))
        module.weight_hh.register_hook(lambda grad: log.append("tensor"))

    def once() -> dict[str, Tensor]:
        log.clear()
        x = (batch() if place == 0 else batch()[0]).requires_grad_()
        found = gradients(module, x)
        module.load_state_dict(module.state_dict())
        return {**found, "x": x.grad}

    truth, events = once(), []
    events.append(sorted(map(repr, log)))
    assert len(set(events[0])) >= (2 * len(list(module.parameters())) + 11 if place == 0 else 3)
    for way in (first, inverse(first)):
        way(module)
        assert_all_close(once(), truth, EXACT)
        assert sorted(map(repr, log)) == events[0]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64], ids=str)
def test_dtypes_stay(first, dtype):
    torch.manual_seed(0)
    module = CLASSES[first][0](D, H, dtype=dtype)
    x = (0.3 * batch()).to(dtype)  # complex tanh has poles
    then = module(x)[0].detach()
    now = first(module)(x)[0].detach()
    assert {p.dtype for p in module.parameters()} == {now.dtype} == {dtype}
    then, now = (torch.view_as_real(value) if value.is_complex() else value for value in (then, now))
    assert_close("output", now, then, 4 * torch.finfo(dtype).eps)


@BOTH
def test_on_the_meta_device_and_from_there(first):
    model = nested(first, device="meta")
    first(model)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model(batch("meta")).shape == (T, B, H)
    model.load_state_dict(nested(first).state_dict(), assign=True)
    model.eval()
    assert_close("output", model(batch()), nested(first).eval()(batch()), EXACT)
    inverse(first)(model)
    assert_close("output", model(batch()), nested(first).eval()(batch()), EXACT)
    model = first(nested(first, device="meta")).to_empty(device="cpu")
    inverse(first)(model).load_state_dict(nested(first).state_dict())
    assert_close("output", model.eval()(batch()), nested(first).eval()(batch()), EXACT)


@BOTH
def test_moving_and_casting_after_a_conversion(first):
    model = nested(first).eval()
    truth = model(batch())
    for way in (first, inverse(first)):
        way(model)
        assert_close("float32", model.float()(batch().float()), truth, 1e-5)
        model.double().load_state_dict(nested(first).state_dict())
        assert_close("float64", model(batch()), truth, EXACT)
        assert all(isinstance(w, nn.Parameter) for w in model.rnn._flat_weights)


@BOTH
def test_the_list_of_weights_is_right_after_both(first):
    module = CLASSES[first][0](D, H, 2, bidirectional=True, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]
    for way in (first, inverse(first), first):
        way(module)
        assert module._flat_weights_names == names
        assert [id(w) for w in module._flat_weights] == [id(p) for p in module.parameters()]
        assert [id(w) for group in module.all_weights for w in group] == [id(p) for p in module.parameters()]
        assert not module._weights_have_changed()
        assert module.flatten_parameters() is None
        assert module.__dict__.keys() == CLASSES[inverse(way)][0](D, H).__dict__.keys()


REPLACED: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "assigned": lambda module, w: setattr(module, "weight_hh_l0", nn.Parameter(w)),
    "data": lambda module, w: setattr(module.weight_hh_l0, "data", w),
    "deleted": lambda module, w: (delattr(module, "weight_hh_l0"), setattr(module, "weight_hh_l0", nn.Parameter(w))),
    "register": lambda module, w: module.register_parameter("weight_hh_l0", nn.Parameter(w)),
}


@BOTH
@pytest.mark.parametrize(("when", "how"), list(itertools.product(["before", "after"], REPLACED)))
def test_a_replaced_weight_is_seen_by_the_next_call(first, when, how):
    module = CLASSES[first][0](D, H, dtype=torch.float64)
    new = normal(seeded(3), H, H, scale=0.3)
    if when == "before":
        REPLACED[how](module, new)
    first(module)
    if when == "after":
        REPLACED[how](module, new)
    truth = nn.RNN(D, H, dtype=torch.float64)
    truth.load_state_dict(module.state_dict())
    assert torch.equal(truth.weight_hh_l0, new)
    assert_close("output", module(batch())[0], truth(batch())[0], EXACT)


def test_weights_tied_across_modules_stay_tied():
    model = nn.ModuleList([nn.RNN(H, H), nn.RNN(H, H), nn.RNNCell(H, H)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    model[2].weight_hh = model[0].weight_hh_l0
    for way in (convert, restore):
        way(model)
        assert model[0].weight_hh_l0 is model[1].weight_hh_l0 is model[2].weight_hh
        assert model[1]._flat_weights[1] is model[0]._flat_weights[1]


def _orthogonal(module: nn.Module, name: str) -> None:
    parametrizations.orthogonal(module, name)


def _twice(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, Doubled())
    parametrize.register_parametrization(module, name, Doubled())
    parametrize.register_parametrization(module, name.replace("weight", "bias"), Doubled())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


PARAMETRIZED: dict[str, Callable[[nn.Module, str], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": _orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
    "two-and-another": _twice,
}


@BOTH
@pytest.mark.parametrize("place", [0, 1], ids=["RNN", "RNNCell"])
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_parametrized_modules(kind, place, first):
    torch.manual_seed(0)
    module = CLASSES[first][place](D, H, dtype=torch.float64)
    name = "weight_hh_l0" if place == 0 else "weight_hh"
    PARAMETRIZED[kind](module, name)
    model, x = nn.Sequential(module).eval(), batch() if place == 0 else batch()[0]
    before, names = gradients(model, x), [n for n, _ in model.named_parameters()]
    another = CLASSES[first][place](D, H)
    PARAMETRIZED[kind](another, name)
    for way in (first, inverse(first)):
        assert way(model)[0] is module
        target = CLASSES[inverse(way)][place]
        assert isinstance(module, target)
        assert isinstance(module, nn.RNN) == (target is nn.RNN)
        assert parametrize.is_parametrized(module, name)
        assert parametrize.type_before_parametrizations(module) is target
        assert [n for n, _ in model.named_parameters()] == names
        assert_all_close(gradients(model, x), before, EXACT)
        if target in CLASSES[restore]:  # torch's own keeps the computed weight, which cannot be copied
            twin = copy.deepcopy(model)
            assert_all_close(gradients(twin, x), before, EXACT)
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            pickle.dumps(module)
    first(model)
    module.train()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.eval()
    trained = gradients(model, x)["loss"]
    assert not torch.equal(trained, before["loss"])
    for tensor in list(module.parametrizations):
        parametrize.remove_parametrizations(module, tensor)
    assert type(module) is CLASSES[inverse(first)][place]
    assert_close("loss", gradients(model, x)["loss"], trained, EXACT)
    assert type(another).__bases__ == (CLASSES[first][place],)


@BOTH
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")  # torch's own
def test_the_old_weight_norm(first):
    module = CLASSES[first][0](D, H, 2, dtype=torch.float64)
    nn.utils.weight_norm(module, "weight_hh_l0")
    nn.utils.weight_norm(module, "weight_ih_l1")
    before = gradients(module, batch())
    for way in (first, inverse(first), first):
        way(module)
        assert_all_close(gradients(module, batch()), before, EXACT)
        assert "weight_hh_l0_g" in before
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)
    changed = gradients(module, batch())["loss"]
    assert not torch.equal(changed, before["loss"])
    nn.utils.remove_weight_norm(module, "weight_hh_l0")
    nn.utils.remove_weight_norm(module, "weight_ih_l1")
    assert_close("loss", gradients(module, batch())["loss"], changed, EXACT)
    assert sorted(n for n, _ in module.named_parameters()) == sorted(module._flat_weights_names)


@BOTH
def test_pruned_modules(first):
    module = CLASSES[first][0](D, H, dtype=torch.float64)
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    prune.random_structured(module, "weight_ih_l0", amount=1, dim=0)
    before = gradients(module, batch())
    for way in (first, inverse(first), first):
        way(module)
        assert_all_close(gradients(module, batch()), before, EXACT)
        assert (module.weight_hh_l0 == 0).sum() == H * H // 2
    prune.remove(module, "weight_hh_l0")
    assert_close("loss", gradients(module, batch())["loss"], before["loss"], EXACT)
    assert (module._flat_weights[1] == 0).sum() == H * H // 2


@pytest.mark.parametrize("theirs", [OfTorch, OfTorchCell])
@pytest.mark.parametrize("parametrized", [False, True])
def test_convert_leaves_a_class_derived_from_torchs_alone_and_warns_once(theirs, parametrized):
    left = theirs(D, H)
    if parametrized:
        parametrizations.weight_norm(left, "weight_hh" if theirs is OfTorchCell else "weight_hh_l0")
    model = nn.ModuleDict({"mine": nn.RNN(D, H), "deep": nn.Sequential(nn.ReLU(), left)})
    cls = type(left)
    with pytest.warns(UserWarning, match="deep.1") as caught:
        convert(model)
    assert [str(w.message) for w in caught] == [
        f"convert: deep.1 ({theirs.__name__}) is a class of its own and left as it is"
    ]
    assert caught[0].filename == __file__
    assert (type(model["mine"]), type(left)) == (RNN, cls)
    with pytest.warns(UserWarning, match=rf"^convert: {theirs.__name__} is a class of its own and left as it is$"):
        convert(left)


@pytest.mark.parametrize("ours", [Derived, DerivedCell])
def test_restore_leaves_a_class_derived_from_ours_alone_and_warns_once(ours):
    model = nn.ModuleDict({"mine": RNN(D, H), "deep": nn.Sequential(nn.ReLU(), ours(D, H))})
    with pytest.warns(UserWarning, match="deep.1") as caught:
        restore(model)
    assert [str(w.message) for w in caught] == [
        f"restore: deep.1 ({ours.__name__}) is a class of its own and left as it is"
    ]
    assert caught[0].filename == __file__
    assert (type(model["mine"]), type(model["deep"][1])) == (nn.RNN, ours)


@pytest.mark.parametrize(
    ("way", "cls"), [(convert, Derived), (convert, DerivedCell), (restore, OfTorch), (restore, OfTorchCell)]
)
def test_what_is_already_on_the_right_side_is_left_alone_without_a_word(way, cls):
    model = nn.Sequential(cls(D, H))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert way(model) is model
    assert type(model[0]) is cls


def test_nothing_changes_where_the_warning_is_an_error():
    model = nn.ModuleList([nn.RNN(D, H), OfTorch(D, H)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"1 \(OfTorch\) is a class of its own"):
            convert(model)
    assert [type(module) for module in model] == [nn.RNN, OfTorch]


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "sigmoid": (restore, lambda: RNN(D, H, nonlinearity="sigmoid"), "sigmoid"),
    "identity": (restore, lambda: RNN(D, H, nonlinearity="identity"), "identity"),
    "sigmoid-cell": (restore, lambda: RNNCell(D, H, nonlinearity="sigmoid"), "sigmoid"),
    "proj_size": (convert, lambda: nn.RNN(D, H, 1, "tanh", True, False, 0.0, False, 2), "2"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_refusal_names_the_module_and_changes_nothing(case, place):
    way, make, got = REFUSED[case]
    rnn, cell = CLASSES[way]
    members = [nn.Sequential(rnn(D, H)), cell(D, H), rnn(D, H, nonlinearity="relu")]
    members[place] = nn.Sequential(make()) if place == 0 else make()
    model = nn.ModuleList(members)
    before, classes = what_is_held(model), recurrent(model)
    path = "0.0" if place == 0 else str(place)
    with pytest.raises(ValueError, match=rf"^{way.__name__}: expected .*\b{path}, got '?{got}'?$"):
        way(model)
    assert recurrent(model) == classes
    assert what_is_held(model) == before
    module = make()
    with pytest.raises(ValueError, match=rf"the model, got '?{got}'?$"):
        way(module)


def test_a_parametrized_sigmoid_is_refused_too():
    module = parametrizations.weight_norm(RNN(D, H, nonlinearity="sigmoid"), "weight_hh_l0")
    cls = type(module)
    with pytest.raises(ValueError, match="restore: expected 'tanh' or 'relu' as nonlinearity of the model"):
        restore(module)
    assert type(module) is cls


@BOTH
@pytest.mark.parametrize(
    "wrong", [None, nn.RNN, RNN, [nn.RNN(D, H)], {}, "rnn", torch.zeros(2)], ids=lambda w: str(w)[:9]
)
def test_what_is_no_module(first, wrong):
    message = rf"^{first.__name__}: expected model to be a torch\.nn\.Module, got {type(wrong).__name__}$"
    with pytest.raises(TypeError, match=message):
        first(wrong)


@BOTH
def test_twice_is_once_and_nothing_is_nothing(first):
    model = nested(first)
    first(model)
    held, classes = what_is_held(model), recurrent(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first(model)
        assert (what_is_held(model), recurrent(model)) == (held, classes)
        for empty in (nn.Linear(2, 3), nn.Sequential(), nn.LSTM(D, H), CLASSES[inverse(first)][0](D, H)):
            cls = type(empty)
            assert first(empty) is empty
            assert type(empty) is cls


def test_a_mixed_model_changes_only_what_is_on_the_other_side():
    model = nn.ModuleList([nn.RNN(D, H), RNN(D, H, nonlinearity="sigmoid"), nn.RNNCell(D, H), RNNCell(D, H)])
    convert(model)
    assert [type(module) for module in model] == [RNN, RNN, RNNCell, RNNCell]
    assert model[1].nonlinearity == "sigmoid"
    assert model[1].mode == "RNN_SIGMOID"


@BOTH
def test_a_state_dict_goes_both_ways(first):
    model, converted = nested(first).eval(), first(nested(first).eval())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert list(converted.state_dict()) == list(before)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    converted.load_state_dict(model.state_dict(), strict=True)
    assert_close("output", converted(batch()), model(batch()), EXACT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(converted.state_dict(), strict=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _by_torch_save(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "torch.save": _by_torch_save,
}


@BOTH
@pytest.mark.parametrize("way", COPIES)
def test_copies_after_a_conversion(first, way):
    model = nested(first).eval()
    truth = gradients(model, batch())
    model.zero_grad()
    for conversion in (first, inverse(first)):
        conversion(model)
        twin = COPIES[way](model)
        assert recurrent(twin) == recurrent(model)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        assert [id(w) for w in twin.rnn._flat_weights] == [id(p) for p in twin.rnn.parameters()]
        assert_all_close(gradients(twin, batch()), truth, EXACT)
        inverse(conversion)(twin)
        assert_all_close(gradients(twin, batch()), truth, EXACT)


def test_a_shallow_copy_is_converted_on_its_own():
    module = nn.RNN(D, H, dtype=torch.float64)
    twin = copy.copy(module)
    convert(twin)
    assert (type(module), type(twin)) == (nn.RNN, RNN)
    assert_close("output", twin(batch())[0], module(batch())[0], EXACT)
    convert(module)
    restore(twin)
    assert_close("output", twin(batch())[0], module(batch())[0], EXACT)


@pytest.fixture
def swapped_parameters() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapped_parameters")
def test_swapped_parameters_after_a_conversion():
    """nn.RNN keeps weak references to its weights and refuses; none of them may stay after convert."""
    module, other = nn.RNN(D, H), nn.RNN(D, H)
    with pytest.raises(RuntimeError, match="weakref"):
        nn.RNN(D, H).load_state_dict(other.state_dict())
    convert(module).load_state_dict(other.state_dict())
    assert_close("output", module.double()(batch())[0], other.double()(batch())[0], EXACT)
    restore(module)
    assert not module._weights_have_changed()
    assert_close("output", module(batch())[0], other(batch())[0], EXACT)


@BOTH
def test_packed_sequences_through_a_converted_module(first):
    module = CLASSES[first][0](D, H, 2, bidirectional=True, dtype=torch.float64)
    packed = pack_sequence([normal(seeded(n), n, D) for n in (2, 5, 3)], enforce_sorted=False)
    before = module(packed)
    after = first(module)(packed)
    assert_close("output", after[0].data, before[0].data, EXACT)
    assert_close("h_n", after[1], before[1], EXACT)


@BOTH
def test_a_mode_that_was_changed_by_hand_is_kept(first):
    module = CLASSES[first][0](D, H, dtype=torch.float64)
    module.mode, module.dropout = "RNN_RELU", 0.25
    before = module(batch())[0]
    assert_close("output", first(module)(batch())[0], before, EXACT)
    assert (module.mode, module.dropout) == ("RNN_RELU", 0.25)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, on tracing


@compiles
@pytest.mark.usefixtures("fresh_compiler")
def test_a_converted_model_compiles_whole():  # CPU: the backend runs the graph as it is
    model = convert(nn.Sequential(nn.Linear(D, D), nn.RNN(D, H, 2, bidirectional=True)).double())
    truth = gradients(model, batch())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_all_close(gradients_of_compiled(model, compiled), truth, EXACT)


def gradients_of_compiled(model: nn.Module, compiled: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss = loss_of(compiled, batch())
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@compiles
@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_compiled_before_sees_its_conversion():
    model = nn.Sequential(nn.RNN(D, H, 2)).double()
    compiled = torch.compile(model, backend="eager")
    truth = gradients_of_compiled(model, compiled)
    for way in (convert, restore, convert):
        way(compiled)
        assert type(model[0]) is CLASSES[inverse(way)][0]
        assert_all_close(gradients_of_compiled(model, compiled), truth, EXACT)
