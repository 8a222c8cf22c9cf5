"""RNN and RNNCell under torch's tools: compilers, tracers, exporters, checkpoints, modes, fake and meta tensors.

Each is held against torch.nn's module under the same tool, or without the tool where torch.nn's fails, which is
asserted, so that no table that claims it can go stale. Would catch a graph break, a graph that grows with T, a program
that is exported without its gradients, numbers that change when somebody looks on, and memory kept where no hook sees.
All on the CPU but what takes a device.
"""

import copy
import gc
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import assert_close, normal, seeded
from torch import Tensor, fx, multiprocessing, nn
from torch._dynamo.exc import Unsupported
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.export import Dim, export
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit.frontend import NotSupportedError
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from manual_bptt import RNN, RNNCell

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # torch's own, on tracing and scripting, as the next two
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:The tensor attributes self._flat_weights:UserWarning",  # on torch.nn.RNN under torch.export
)

T, B, D, H = 5, 3, 4, 6
EXACT = 1e-12
LENGTHS = torch.tensor([3, 5, 2])
DEEP = {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu-2-layers-2-directions": DEEP,
    "batch-first-no-bias": {"batch_first": True, "bias": False},
}
each_model = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
LAYOUTS = ("dense", "packed", "lengths")
Found = list[Tensor]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def pair(mine: Any = RNN, **options: Any) -> tuple[Any, Any]:
    """Make one of ours and its twin of torch.nn."""
    torch.manual_seed(0)
    theirs = {RNN: nn.RNN, RNNCell: nn.RNNCell}[mine](D, H, dtype=torch.float64, **options)
    ours = mine(D, H, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def same(actual: Any, truth: Any, tolerance: float = EXACT) -> None:
    """Compare leaf by leaf."""
    pairs = list(zip(tree_leaves(actual), tree_leaves(truth), strict=True))
    assert any(theirs.norm() > 0 for _, theirs in pairs), "nothing but zeros to compare with"
    for place, (ours, theirs) in enumerate(pairs):
        assert_close(f"result {place}", ours.detach().cpu(), theirs.detach().cpu(), tolerance)


def loss(values: Any) -> Tensor:
    """Weigh every entry of every result differently; no random numbers, which a tracer would draw anew."""
    return sum(
        (value.square() * torch.linspace(-1, 2, value.numel(), device=value.device).view(value.shape)).sum()
        for value in tree_leaves(values)
    )


def inputs(steps: int = T, rows: int = B) -> Tensor:
    return normal(seeded(steps), steps, rows, D)


def packed_input() -> PackedSequence:
    return pack_padded_sequence(inputs(), LENGTHS, enforce_sorted=False)


def trained(model: nn.Module, call: Callable[[Tensor], Any], x: Tensor) -> Found:
    """What a call returns, and the gradients of its input and of the model's parameters."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    results = tree_leaves(call(x))
    loss(results).backward()
    return [*results, x.grad, *(parameter.grad.clone() for parameter in model.parameters())]


def on_layout(model: nn.Module, layout: str) -> tuple[Callable[[Tensor], Any], Tensor]:
    """A call of the model by one tensor, and that tensor."""
    if layout == "dense":
        return model, inputs()
    if layout == "lengths":
        return lambda x: model(x, lengths=LENGTHS), inputs()
    rows, *rest = packed_input()

    def call(rows: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = model(PackedSequence(rows, *rest))
        return output.data, h_n

    return call, rows


def counting(sizes: list[int]) -> Callable[..., Any]:
    """A backend that runs graphs as they are and notes how large they were."""

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        sizes.append(len(graph.graph.nodes))
        return graph

    return backend


# torch.compile


@pytest.mark.parametrize(
    ("backend", "layout", "options"),
    [
        ("aot_eager", "dense", DEEP),
        ("aot_eager", "lengths", {}),
        ("eager", "packed", {"bidirectional": True}),
    ],
    ids=["dense", "lengths", "packed"],
)
def test_compile_whole_in_training_and_under_no_grad(backend, layout, options):
    mine, theirs = pair(**options)
    call, x = on_layout(mine, layout)
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    same(trained(mine, compiled, x), trained(mine, call, x))
    if layout == "dense":
        with torch.no_grad():
            same(compiled(x), call(x))
    if layout != "lengths":
        with pytest.raises(Unsupported):
            torch.compile(on_layout(theirs, layout)[0], fullgraph=True, backend="eager")(x)


def test_compile_gives_the_numbers_of_torch():
    mine, theirs = pair(batch_first=True, bias=False)
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    same(trained(mine, compiled, inputs()), trained(theirs, theirs, inputs()))


def test_compile_with_dropout_draws_as_torch():
    mine, theirs = pair(num_layers=2, dropout=0.4)
    compiled = torch.compile(mine, fullgraph=True, backend="eager")
    torch.manual_seed(3)
    actual = trained(mine, compiled, inputs())
    torch.manual_seed(3)
    same(actual, trained(theirs, theirs, inputs()))


@pytest.mark.parametrize("lengths", [(5, 9, 60, 200, 17, 4, 3), (2, 1, 50)], ids=["many", "short"])
def test_compile_makes_two_graphs_for_all_lengths_and_none_that_grows(lengths):
    """One for the first length and one for any; torch makes one more for T = 1 whatever a program does."""
    mine, theirs = pair()
    sizes: list[int] = []
    compiled = torch.compile(mine, fullgraph=True, backend=counting(sizes))
    for steps in (7, *lengths):
        same(trained(mine, compiled, inputs(steps)), trained(theirs, theirs, inputs(steps)))
    assert len(sizes) <= 2 + (1 in lengths)
    assert max(sizes) < 30


def test_export_holds_time_in_one_operator_where_torch_unrolls_it():
    mine, theirs = pair()
    ours = [len(export(mine, (inputs(steps),)).graph.nodes) for steps in (4, 8)]
    unrolled = [len(make_fx(theirs)(inputs(steps)).graph.nodes) for steps in (4, 8)]
    assert ours[0] == ours[1] < 30
    assert unrolled[1] > unrolled[0] + 4


def test_compile_puts_linear_rnn_linear_into_one_graph():
    mine, theirs = pair()
    before, after = nn.Linear(D, D, dtype=torch.float64), nn.Linear(H, 2, dtype=torch.float64)

    def captured(model: nn.Module) -> tuple[Tensor, int]:
        sizes: list[int] = []
        torch.compiler.reset()
        output = torch.compile(lambda x: after(model(before(x))[0]), backend=counting(sizes))(inputs())
        return output, len(sizes)

    (actual, graphs), (truth, graphs_of_torch) = captured(mine), captured(theirs)
    same(actual, truth)
    assert (graphs, graphs_of_torch) == (1, 0)


def test_compile_of_a_cell_loop():
    mine, theirs = pair(RNNCell)

    def loop(cell: nn.Module) -> Callable[[Tensor], Tensor]:
        def states(x: Tensor) -> Tensor:
            h, every = x.new_zeros(B, H), []
            for x_t in x:
                h = cell(x_t, h)
                every.append(h)
            return torch.stack(every)

        return states

    compiled = torch.compile(loop(mine), fullgraph=True, backend="aot_eager")
    same(trained(mine, compiled, inputs()), trained(theirs, loop(theirs), inputs()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_compiled_autograd():
    """The backward pass of a call that was not compiled, traced by Dynamo."""
    mine, theirs = pair()
    sizes: list[int] = []
    x = inputs()
    value = sum(result.square().sum() for result in mine(x))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend=counting(sizes))):
        value.backward()
    sum(result.square().sum() for result in theirs(x)).backward()
    assert sizes
    same([p.grad for p in mine.parameters()], [p.grad for p in theirs.parameters()])


# torch.export


@pytest.mark.parametrize(
    ("options", "strict"),
    [(DEEP, False), ({"batch_first": True, "bias": False}, False), ({}, True)],
    ids=["deep", "batch-first-no-bias", "strict"],
)
def test_export(options, strict):
    mine, theirs = pair(**options)
    exported = export(mine, (inputs(),), strict=strict)
    same(exported.module()(inputs()), theirs(inputs()))
    same(exported.run_decompositions().module()(inputs()), theirs(inputs()))


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_gradients(strict):
    mine, theirs = pair(bidirectional=True)
    model = export(mine, (inputs(),), strict=strict).module()
    model.zero_grad()
    x, y = inputs().requires_grad_(), inputs().requires_grad_()
    loss(model(x)).backward()
    loss(theirs(y)).backward()
    same(x.grad, y.grad)
    for name, parameter in theirs.named_parameters():
        same(model.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize(("options", "strict"), [(DEEP, False), ({}, True)], ids=["deep", "strict"])
def test_export_with_any_length_and_batch(options, strict):
    mine, theirs = pair(**options)
    arguments = inputs(), normal(seeded(2), len(mine.all_weights), B, H)
    free = {"input": {0: Dim("T"), 1: Dim("B")}, "hx": {1: Dim("B")}}
    file = io.BytesIO()
    torch.export.save(export(mine, arguments, dynamic_shapes=free, strict=strict), file)
    file.seek(0)
    model = torch.export.load(file).module()
    for steps, rows in ((11, 4), (2, 2), (40, 7)):
        x, hx = inputs(steps, rows), normal(seeded(3), len(mine.all_weights), rows, H)
        same(model(x, hx), theirs(x, hx))
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        export(theirs, arguments, dynamic_shapes=free, strict=False)


def test_export_with_lengths_of_any_batch():
    mine, _ = pair(**DEEP)
    free = {"input": {0: Dim("T"), 1: Dim("B")}, "lengths": {0: Dim("B")}}
    model = export(mine, (inputs(),), {"lengths": LENGTHS}, dynamic_shapes=free).module()
    x, lengths = inputs(9, 4), torch.tensor([0, 9, 4, 7])
    same(model(x, lengths=lengths), mine(x, lengths=lengths))


# torch.jit, ONNX


def saved_and_loaded(traced: torch.jit.ScriptModule) -> Any:
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


@each_model
def test_jit_trace_saved_and_loaded_runs_and_trains_on_other_sizes(options):
    mine, theirs = pair(**options)
    loaded = saved_and_loaded(torch.jit.trace(mine, (inputs(),)))
    for steps, rows in ((T, B), (9, 4), (2, 1)):
        x = inputs(steps, rows)
        same(trained(loaded, loaded, x), trained(theirs, theirs, x))


@pytest.mark.parametrize("nonlinearity", ["sigmoid", "identity"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["1", "2-layers-2-directions"])
def test_jit_trace_of_what_torch_has_not_keeps_its_length(options, nonlinearity):
    model = RNN(D, H, nonlinearity=nonlinearity, dtype=torch.float64, **options)
    loaded = saved_and_loaded(torch.jit.trace(model, (inputs(),)))
    x = inputs(T, 7)
    same(trained(loaded, loaded, x), trained(model, model, x))
    with pytest.raises(RuntimeError):
        loaded(inputs(T + 1))


@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu", "bias": False}], ids=["tanh", "relu-no-bias"])
def test_jit_trace_of_the_cell(options):
    mine, theirs = pair(RNNCell, **options)
    x, hx = inputs()[0], normal(seeded(2), B, H)
    loaded = saved_and_loaded(torch.jit.trace(mine, (x, hx)))
    x, hx = normal(seeded(3), 7, D), normal(seeded(4), 7, H)
    same(trained(loaded, lambda x: loaded(x, hx), x), trained(theirs, lambda x: theirs(x, hx), x))


@pytest.mark.parametrize("model", [RNN, RNNCell])
def test_jit_script_is_refused_with_torch_jits_own_error(model):
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model(D, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises((NotSupportedError, RuntimeError)):
        torch.jit.script(Whole())


@pytest.mark.parametrize("module", [RNN, RNNCell])
def test_onnx_export_by_torchscript_may_pass_every_default_by_position(module):
    """As that exporter does with the arguments that it is not given; needs no onnx."""
    mine, theirs = pair(module)
    x = inputs() if module is RNN else inputs()[0]
    _, *optional = inspect.signature(mine.forward).parameters.values()
    same(mine(x, *(parameter.default for parameter in optional)), theirs(x))


def test_onnx_export_by_torchscript_sees_the_operator_of_torch():
    """Without onnx installed: the graph that the exporter reads holds aten::rnn_tanh, which becomes ONNX's RNN."""
    mine, theirs = pair()
    graphs = []
    for model in (mine, theirs):
        traced = torch.jit.trace(model, (inputs(),))
        graphs.append(sorted(node.kind() for node in traced.inlined_graph.nodes() if node.kind() == "aten::rnn_tanh"))
    assert graphs == [["aten::rnn_tanh"]] * 2


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(
    "options",
    [{}, DEEP, {"batch_first": True}, {"nonlinearity": "sigmoid"}],
    ids=["tanh", "deep", "batch-first", "sigmoid"],
)
@pytest.mark.filterwarnings("ignore")  # the exporters'
def test_onnx_export_runs_in_onnxruntime(options, dynamo, tmp_path):
    pytest.importorskip("onnx", reason="not among the project's extras")
    pytest.importorskip("onnxscript", reason="not among the project's extras")
    runtime = pytest.importorskip("onnxruntime", reason="not among the project's extras")
    torch.manual_seed(0)
    model = RNN(D, H, **options).eval()
    x = inputs().float()
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=dynamo, input_names=["input"])
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    actual = [torch.from_numpy(value) for value in session.run(None, {"input": x.numpy()})]
    same(actual, model(x), 1e-5)


# torch.fx


@pytest.mark.parametrize(
    ("options", "tracing_mode"),
    [(DEEP, "real"), ({}, "symbolic")],
    ids=["deep", "symbolic"],
)
def test_make_fx_of_the_forward_and_of_the_joint_gradient(tracing_mode, options):
    mine, theirs = pair(**options)
    x = inputs()

    def both(model: nn.Module) -> Callable[..., Any]:
        def forward(x: Tensor, *weights: Tensor) -> Any:
            return functional_call(model, dict(zip(dict(model.named_parameters()), weights, strict=True)), (x,))

        def joint(x: Tensor, *weights: Tensor) -> Any:
            leaves = [x.detach().requires_grad_(), *(weight.detach().requires_grad_() for weight in weights)]
            return torch.autograd.grad(loss(forward(*leaves)), leaves)

        return forward, joint

    for ours, truth in zip(both(mine), both(theirs), strict=True):
        graph = make_fx(ours, tracing_mode=tracing_mode)(x, *mine.parameters())
        other = 2 * x
        same(graph(other, *mine.parameters()), truth(other, *theirs.parameters()), 1e-11)


@pytest.mark.parametrize("with_graph", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("cell", [False, True], ids=["RNN", "RNNCell"])
@pytest.mark.parametrize(
    "how", [{"pre_dispatch": True}, {"tracing_mode": "symbolic"}], ids=["pre-dispatch", "symbolic"]
)
def test_make_fx_of_a_forward_pass_records_what_is_computed(how, cell, with_graph):
    x = inputs()
    model = (RNNCell if cell else RNN)(x.shape[-1], 5, dtype=x.dtype)
    x = x[0] if cell else x

    def forward(x: Tensor, *weights: Tensor) -> Any:
        return functional_call(model, dict(zip(dict(model.named_parameters()), weights, strict=True)), (x,))

    with torch.set_grad_enabled(with_graph):
        graph = make_fx(forward, **how)(x, *model.parameters())
        same(graph(2 * x, *model.parameters()), model(2 * x), 1e-11)


class Tagger(nn.Module):
    """A model that holds a recurrent module and calls it in one of the usual ways."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how
        self.head = nn.Linear(H, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "packed":
            rest = packed_input()[1:]
            return self.head(self.inner(PackedSequence(x, *rest))[0].data)
        if self.how == "keywords":
            return self.head(self.inner(input=x, hx=None)[0])
        if self.how == "hx":
            output, h_n = self.inner(x[:2])
            return self.head(self.inner(x[2:], h_n)[0]) + output.sum()
        if self.how == "cell":
            return self.head(self.inner(x[1], self.inner(x[0])))
        return self.head(self.inner(x)[0])


@pytest.mark.parametrize("how", ["plain", "keywords", "hx", "packed", "cell"])
def test_fx_symbolic_trace_takes_the_module_as_a_leaf(how):
    mine, theirs = pair(RNNCell if how == "cell" else RNN)
    x = packed_input().data if how == "packed" else inputs()
    model, found = Tagger(mine, how), []
    for inner in (mine, theirs):
        model.inner = inner
        traced = fx.symbolic_trace(model)
        called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        found.append((called, trained(traced, traced, x)))
    assert found[0][0] == found[1][0]
    same(found[0][1], found[1][1])


def test_fx_symbolic_trace_of_the_module_alone_is_refused_as_torchs():
    mine, theirs = pair()
    for model in (theirs, mine):
        with pytest.raises(fx.proxy.TraceError):
            fx.symbolic_trace(model)


# checkpoints and saved tensors


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("options", [DEEP, {"num_layers": 2, "dropout": 0.4}], ids=["deep", "dropout"])
def test_checkpoint(options, use_reentrant):
    mine, theirs = pair(**options)
    found = []
    for model, call in (
        (mine, lambda x: checkpoint(mine, x, use_reentrant=use_reentrant)),
        (theirs, theirs),
    ):
        torch.manual_seed(3)
        found.append(trained(model, call, inputs()))
    same(*found)


POLICIES: dict[str, Any] = {
    "save-all": lambda ctx, op, *args, **kwargs: CheckpointPolicy.MUST_SAVE,
    "save-none": lambda ctx, op, *args, **kwargs: CheckpointPolicy.PREFER_RECOMPUTE,
    "save-products": [torch.ops.aten.addmm.default, torch.ops.aten.mm.default],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_selective_checkpoint(policy, layout):
    mine, theirs = pair(**DEEP)

    def checkpointed(call: Callable[..., Any]) -> Callable[[Tensor], Any]:
        contexts = lambda: create_selective_checkpoint_contexts(POLICIES[policy])  # noqa: E731
        return lambda x: checkpoint(call, x, use_reentrant=False, context_fn=contexts)

    call, x = on_layout(mine, layout)
    same(trained(mine, checkpointed(call), x), trained(mine, call, x))
    if layout == "dense" and policy == "save-all":
        with pytest.raises(RuntimeError, match="has been mutated"):
            trained(theirs, checkpointed(theirs), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_save_on_cpu_and_hooks_that_replace_what_is_saved(layout, device):
    mine, _ = pair(**DEEP)
    call, x = on_layout(mine, layout)
    truth = trained(mine, call, x)
    mine = mine.to(device)
    if layout == "lengths":
        call = lambda x: mine(x, lengths=LENGTHS.to(device))  # noqa: E731
    for hooks in (
        save_on_cpu(),
        saved_tensors_hooks(lambda t: t.cpu().numpy(), lambda a: torch.from_numpy(a).to(device)),
    ):
        if layout == "packed" and device.type != "cpu":
            pytest.skip("on_layout packs on the CPU")

        def inside(x: Tensor, hooks: Any = hooks) -> Any:
            with hooks:
                return call(x)

        same(trained(mine, inside, x.to(device)), truth)


@each_model
def test_nothing_large_is_kept_outside_of_saved_tensors_hooks(options):
    """Once the hooks have put it away and the output is gone, no storage as large as the states lives on.

    Both for what is kept for backward and for what the forward mode could read.
    """
    mine, _ = pair(**options)
    x = normal(seeded(1), 40, 30, D).requires_grad_()
    large = 40 * 30 * H * x.element_size()
    seen: list[StorageWeakRef] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for value in tree_leaves(result):
                if isinstance(value, Tensor) and value.untyped_storage().nbytes() >= large:
                    seen.append(StorageWeakRef(value.untyped_storage()))
            return result

    stored = 0

    def pack(value: Tensor) -> Any:
        nonlocal stored
        stored += value.numel() * value.element_size()
        return value.detach().numpy().copy()

    with Watch(), saved_tensors_hooks(pack, torch.from_numpy):
        output, h_n = mine(x)
    value = loss(h_n)
    del output, h_n
    gc.collect()
    assert len(seen) > 0
    assert sum(not reference.expired() for reference in seen) == 0
    assert stored >= large
    value.backward()


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    storages: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        results = model(x)
    del results
    return sum(storages.values())


def test_subsets_of_requires_grad_save_less():
    """In units of all states: h alone unless dU needs x; and nothing at all where nobody needs a gradient."""
    mine, theirs = pair()
    x = normal(seeded(1), 50, 40, D)
    states, weights = 50 * 40 * H * 8, (H * D + H * H + 2 * H + 40 * H) * 8
    whole = saved_bytes(mine, x.clone().requires_grad_())
    assert whole <= states + x.numel() * 8 + weights
    assert whole <= saved_bytes(theirs, x.clone().requires_grad_())
    mine.weight_ih_l0.requires_grad_(False)
    without_dU = saved_bytes(mine, x.clone().requires_grad_())
    assert states <= without_dU <= states + weights
    mine.requires_grad_(False)
    assert states <= saved_bytes(mine, x.clone().requires_grad_()) <= states + weights
    assert saved_bytes(mine, x) == 0


def test_a_gradient_that_nobody_asked_for_is_not_computed():
    """Counted in matrix products of the backward pass: B3's loop alone, then one more for every gradient."""
    flops = {}
    steps, product = T - 1, 2 * B * H * H
    for wanted in ("bias_ih_l0", "weight_hh_l0", "weight_ih_l0", "input"):
        mine, _ = pair()
        mine.requires_grad_(False)
        x = inputs().requires_grad_(wanted == "input")
        if wanted != "input":
            mine.get_parameter(wanted).requires_grad_()
        output, h_n = mine(x)
        with FlopCounterMode(display=False) as counter:
            (output.sum() + h_n.sum()).backward()
        flops[wanted] = counter.get_total_flops()
    through_time = steps * product
    assert flops == {
        "bias_ih_l0": through_time,
        "weight_hh_l0": through_time + T * product,
        "weight_ih_l0": through_time + 2 * T * B * D * H,
        "input": through_time + 2 * T * B * D * H,
    }


# modes, fake and meta tensors


@pytest.mark.parametrize("layout", ["dense", "lengths", "unbatched"])
def test_meta_device_forward_and_backward(layout):
    mine = RNN(D, H, device="meta", **DEEP)
    x = torch.empty(*((T, D) if layout == "unbatched" else (T, B, D)), device="meta", requires_grad=True)
    more = {"lengths": torch.empty(B, dtype=torch.int64, device="meta")} if layout == "lengths" else {}
    output, h_n = mine(x, **more)
    assert output.is_meta
    assert (output.shape, h_n.shape) == ((*x.shape[:-1], 2 * H), (4, *x.shape[1:-1], H))
    (output.sum() + h_n.sum()).backward()
    for value in (x, *mine.parameters()):
        assert value.grad.is_meta
        assert value.grad.shape == value.shape


@each_model
def test_fake_tensors_forward_and_backward(options):
    found = []
    for module in (RNN, nn.RNN):
        with FakeTensorMode():
            model = module(D, H, **options)
            x = torch.randn(T, B, D, requires_grad=True)
            output, h_n = model(x)
            (output.sum() + h_n.sum()).backward()
        values = [output, h_n, x.grad, *(p.grad for p in model.parameters())]
        found.append([(v.shape, v.stride(), v.dtype) for v in values])
    assert found[0] == found[1]


@pytest.mark.parametrize("module", [RNN, RNNCell])
def test_flop_counter_counts_every_product(module):
    mine, theirs = pair(module)
    x = inputs() if module is RNN else inputs()[0]
    steps = T if module is RNN else 1
    counts = []
    for model in (mine, theirs):
        with FlopCounterMode(display=False) as forward:
            results = model(x.clone().requires_grad_())
        with FlopCounterMode(display=False) as backward:
            loss(results).backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0][0] == counts[1][0] == 2 * steps * B * H * (D + H)
    # each product has two in the backward pass, but none leads through the first step to an hx that nobody asked for
    assert counts[0][1] == 2 * counts[0][0] - 2 * B * H * H == counts[1][1]


def test_a_dispatch_mode_sees_the_operators_of_both_passes():
    seen: list[str] = []

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    mine, theirs = pair()
    with Listen():
        results = mine(inputs())
    forward = len(seen)
    assert sum(name.startswith(("tanh", "addmm")) for name in seen) >= 2 * T
    with Listen():
        loss(results).backward()
    assert sum(name.startswith(("addmm", "mm")) for name in seen[forward:]) >= T - 1
    same(results, theirs(inputs()))


class Marked(Tensor):
    """A subclass by __torch_function__, as libraries make them."""


@pytest.mark.parametrize("module", [RNN, RNNCell])
def test_a_tensor_subclass_survives(module):
    mine, theirs = pair(module)
    x = inputs() if module is RNN else inputs()[0]
    found = []
    for model in (mine, theirs):
        leaf = x.as_subclass(Marked).requires_grad_()
        results = tree_leaves(model(leaf))
        assert all(type(result) is Marked for result in results)
        loss(results).backward()
        found.append([*results, leaf.grad])
    assert type(found[0][-1]) is type(found[1][-1])
    same(*([value.as_subclass(Tensor) for value in values] for values in found))


def test_twenty_thousand_steps(device):
    mine, theirs = pair()
    x = normal(seeded(1), 20000, 1, D)
    found = []
    for model, where in ((mine.to(device), device), (theirs, "cpu")):
        leaf = x.to(where).requires_grad_()
        output, h_n = model(leaf)
        (output.square().mean() + h_n.sum()).backward()
        found.append([output, leaf.grad, *(p.grad for p in model.parameters())])
    same(*found, tolerance=1e-11)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("deterministic")
def test_deterministic_mode_gives_the_same_bits_twice(layout):
    mine, _ = pair(**DEEP)
    call, x = on_layout(mine, layout)
    first, second = trained(mine, call, x), trained(mine, call, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("module", [RNN, RNNCell])
def test_anomaly_mode_names_the_line_of_the_forward_call(module):
    mine, _ = pair(module)
    x = (inputs() if module is RNN else inputs()[0]).requires_grad_()

    def the_line_to_blame() -> Any:
        return tree_leaves(mine(x))[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.autograd.detect_anomaly():
            output = the_line_to_blame()
            upstream = torch.full_like(output, torch.inf)
            upstream[..., 0] = -torch.inf
            with pytest.raises(RuntimeError, match=r"Function 'Recurrence\w*Backward' returned nan values"):
                output.backward(upstream)
    assert any("the_line_to_blame" in str(warning.message) for warning in caught)


def test_anomaly_mode_leaves_the_numbers_alone():
    mine, theirs = pair(**DEEP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            actual = trained(mine, mine, inputs())
    same(actual, trained(theirs, theirs, inputs()))


# others


def _train_one_step(model: nn.Module, x: Tensor) -> None:
    output, _ = model(x)
    (output.square().sum()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad


def test_shared_memory_and_a_spawned_process():
    """The child trains the shared parameters by one step; the parent sees it."""
    mine, theirs = pair()
    mine.share_memory()
    assert all(parameter.is_shared() for parameter in mine.parameters())
    process = multiprocessing.get_context("spawn").Process(target=_train_one_step, args=(mine, inputs()))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    _train_one_step(theirs, inputs())
    same(dict(mine.named_parameters()), dict(theirs.named_parameters()))


def test_init_on_meta_then_assigned_and_trained():
    _, theirs = pair(**DEEP)
    with torch.device("meta"):
        mine = RNN(D, H, dtype=torch.float64, **DEEP)
    mine.load_state_dict(copy.deepcopy(theirs.state_dict()), assign=True)
    for parameter in mine.parameters():
        parameter.requires_grad_()
    same(trained(mine, mine, inputs()), trained(theirs, theirs, inputs()))


@pytest.fixture
def swapped() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapped")
def test_swap_tensors_in_conversion_and_loading():
    mine, theirs = pair()
    mine(inputs())
    state = {name: 2 * value for name, value in theirs.state_dict().items()}
    mine.load_state_dict(state)
    same(mine.state_dict(), state)
    mine.float()
    assert mine(inputs().float())[0].dtype == torch.float32
    with pytest.raises(RuntimeError, match="swapping"):
        theirs.load_state_dict(state)


@pytest.mark.parametrize("module", [RNN, RNNCell])
def test_quantize_dynamic_leaves_the_module_as_it_is(module):
    """torch.nn.RNN as well; torch.nn.RNNCell alone it knows."""
    model = nn.Sequential(module(D, H))
    quantized = torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8)
    assert type(quantized[0]) is module
    same(quantized(inputs()[0].float()), model(inputs()[0].float()), 1e-6)
