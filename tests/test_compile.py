"""torch.compile and torch.export of the recurrence, the readout and the losses.

Would catch a graph break, a graph that grows with T or is made anew for every T, a fake implementation of a kernel
with another shape or dtype, and compiled numbers that differ from those of the same code run as it is.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import NONLINEARITIES, seeded
from torch import Tensor, func
from torch.fx import GraphModule

from manual_bptt import RNN, ElmanNetwork, rnn, softmax_cross_entropy, squared_error
from manual_bptt.compiled import backward_kernel, compiled_recurrence

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # torch's own, on tracing


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(nonlinearity: str = "tanh", bias: bool = True) -> ElmanNetwork:
    torch.manual_seed(0)
    return ElmanNetwork(4, 6, 3, nonlinearity, bias, dtype=torch.float64)


def batch(T: int, B: int = 2) -> tuple[Tensor, Tensor]:
    generator = seeded(T)
    return torch.randn(T, B, 4, dtype=torch.float64, generator=generator), torch.randint(3, (T, B), generator=generator)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_a_training_step_compiles_whole(nonlinearity, bias):
    model = network(nonlinearity, bias)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        o, _ = model(x)
        return softmax_cross_entropy(o, y, time="mean") + squared_error(o, o.detach() + 1)

    x, y = batch(7)
    values, gradients = [], []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        x.grad = None
        x.requires_grad_()
        value = function(x, y)
        value.backward()
        values.append(value.detach())
        gradients.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_one_graph_for_many_lengths_and_none_that_grows():
    model, sizes = network(), []

    def backend(graph: GraphModule, _: list[Tensor]) -> GraphModule:
        sizes.append(len(graph.graph.nodes))
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for T in (5, 9, 60, 200, 17):
        x, _ = batch(T)
        torch.testing.assert_close(compiled(x)[0], model(x)[0], rtol=1e-12, atol=1e-12)
    assert len(sizes) <= 2, "the first length, then any"
    assert max(sizes) < 60


def test_inference_and_tokens_compile_whole():
    model = network()
    tokens = torch.randint(4, (7, 2), generator=seeded(1))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens)[0], model(tokens)[0], rtol=1e-12, atol=1e-12)


def test_export_with_any_length_and_batch():
    model = network()
    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    exported = torch.export.export(model, (batch(5, 3)[0],), dynamic_shapes={"x": {0: T, 1: B}})
    for steps, rows in ((11, 4), (2, 2), (40, 7)):
        x, _ = batch(steps, rows)
        torch.testing.assert_close(exported.module()(x)[0], model(x)[0], rtol=1e-12, atol=1e-12)


OPERATORS: dict[str, tuple[Any, tuple[Tensor | None, ...]]] = {
    "recurrence": (
        compiled_recurrence,
        (torch.rand(4, 2, 5), torch.rand(2, 3), torch.rand(3, 5), torch.rand(3, 3), torch.rand(3), None),
    ),
    "tokens": (
        compiled_recurrence,
        (torch.tensor([[0, 4]] * 4), torch.rand(2, 3), torch.rand(3, 5), torch.rand(3, 3), None, None),
    ),
    "lengths": (
        compiled_recurrence,
        (torch.rand(2, 2, 5), torch.rand(2, 3), torch.rand(3, 5), torch.rand(3, 3), None, torch.eye(2)[..., None] > 0),
    ),
    "backward": (backward_kernel, (torch.rand(4, 2, 3), torch.rand(4, 2, 3), torch.rand(3, 3), None)),
}


@pytest.mark.parametrize("turned", range(4), ids=lambda place: f"transposed-{place}")
@pytest.mark.parametrize("name", OPERATORS)
def test_the_operators_keep_their_word_for_any_strides(name, turned):
    """A compiler lays out memory by the fakes' word; under inductor arguments come with strides of its choice."""
    operator, values = OPERATORS[name]
    given = [value.clone() if isinstance(value, Tensor) else value for value in values]
    if turned < len(given) and given[turned] is not None:
        given[turned] = given[turned].transpose(0, -1).contiguous().transpose(0, -1)
    for value in given:
        if value is not None and value.is_floating_point() and operator is compiled_recurrence:
            value.requires_grad_()
    xi = torch.tensor([1.0, 0, 2, 0.5][: given[0].shape[0]], dtype=torch.float64)
    for truncation in ((None, 0), (xi, 0), (None, 2)):
        torch.library.opcheck(operator, (*given, "tanh", *truncation))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_second_backward_is_refused_and_not_half_computed(backend):
    x, _ = batch(5)
    W = torch.randn(6, 6, dtype=torch.float64, generator=seeded(2)).requires_grad_()
    U = torch.randn(6, 4, dtype=torch.float64, generator=seeded(3))
    compiled = torch.compile(lambda W: rnn(x, None, U, W).square().sum(), fullgraph=True, backend=backend)
    (dW,) = torch.autograd.grad(compiled(W), W, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"does not currently support double backward|no autograd formula was registered"
    ):
        torch.autograd.grad(dW.square().sum(), W)


def square_of(model: torch.nn.Module, parameters: dict[str, Tensor], *args: Tensor, **options: Tensor) -> Tensor:
    return func.functional_call(model, parameters, args, options)[0].square().sum()


TRANSFORMED: dict[str, Callable[[RNN, dict[str, Tensor], Tensor, Tensor], Any]] = {
    "grad": lambda model, p, x, n: func.grad(lambda p: square_of(model, p, x))(p),
    "vmap": lambda model, p, x, n: func.vmap(lambda x: func.functional_call(model, p, (x,))[0], 1)(x),
    "per-sample": lambda model, p, x, n: func.vmap(
        lambda x, n: func.grad(lambda p: square_of(model, p, x[:, None], lengths=n[None]))(p), (1, 0)
    )(x, n),
    "jvp": lambda model, p, x, n: func.jvp(lambda x: model(x)[0], (x,), (2 * x,))[1],
    "hessian": lambda model, p, x, n: func.hessian(lambda x: square_of(model, p, x))(x[:2, :1]),
}


@pytest.mark.parametrize("transform", TRANSFORMED)
def test_transforms_of_torch_func_inside_a_compiled_function(transform):
    """Torch differentiates a Function wrongly there, and says nothing: torch's operators run in its place."""
    model = RNN(4, 6, 2, bidirectional=True, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    x, lengths = batch(5, 3)[0], torch.tensor([5, 0, 2])
    compiled = torch.compile(TRANSFORMED[transform], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(model, parameters, x, lengths), TRANSFORMED[transform](model, parameters, x, lengths)
    )


@pytest.mark.parametrize("loss", [softmax_cross_entropy, squared_error])
def test_a_whole_network_under_torch_func_inside_a_compiled_function(loss):
    model = network()
    x, y = batch(5)
    targets = y if loss is softmax_cross_entropy else torch.nn.functional.one_hot(y, 3).double()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def gradient(p: dict[str, Tensor]) -> dict[str, Tensor]:
        return func.grad(lambda p: loss(func.functional_call(model, p, (x,))[0], targets))(p)

    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(parameters), gradient(parameters), rtol=1e-12, atol=1e-12)
