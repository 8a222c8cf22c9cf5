"""Everything forward and backward on the meta device, watched for tensors that are made elsewhere.

Would catch: a constant, mask or buffer that is silently made on the CPU or in the default dtype, which on a GPU is
an error or a wait and shows nowhere on the CPU; a check of values that would make the host wait for the device; a
dependence on the default device. The nearest thing to CUDA without a GPU; what is not watched is the arithmetic.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from problems import GENERAL, LOSSES, NONLINEARITIES, WAYS, Problem, assert_all_close, make_problem, truth_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manual_bptt import ElmanNetwork, bptt, readout, rnn, softmax_cross_entropy

eager = import_module("manual_bptt.kernels.eager")
targets = import_module("manual_bptt.targets")

each_way = pytest.mark.parametrize("way", list(WAYS))


class MadeOnTheCPU(TorchDispatchMode):
    """Note every operator that returns a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else [result]
        if any(isinstance(output, Tensor) and output.device.type == "cpu" for output in outputs):
            self.operators.append(str(operator))
        return result


@contextmanager
def nothing_on_the_cpu() -> Iterator[None]:
    """Fail where an operator makes a tensor on the CPU."""
    with MadeOnTheCPU() as watch:
        yield
    assert not watch.operators, f"made on the CPU by {watch.operators}"


def on_meta(problem: Problem, way: str) -> dict[str, Tensor]:
    """Solve on meta, watched; compare shapes and dtypes with the CPU."""
    expected = WAYS[way](problem)
    problem = problem.to("meta")
    with nothing_on_the_cpu():
        actual = WAYS[way](problem)
    for name, value in expected.items():
        assert actual[name].device.type == "meta", name
        assert (actual[name].shape, actual[name].dtype) == (value.shape, value.dtype), name
    return actual


@each_way
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize(("biases", "with_h0"), [("bc", True), ("", False)], ids=["everything", "no-bias-no-h0"])
def test_network_on_meta(biases, with_h0, nonlinearity, tokens, way):
    on_meta(make_problem(nonlinearity=nonlinearity, tokens=tokens, biases=biases, with_h0=with_h0), way)


@each_way
@pytest.mark.parametrize(
    ("time", "batch"), list(itertools.product(["sum", "mean", "last"], ["sum", "mean"])), ids="-".join
)
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_on_meta(kind, time, batch, way):
    on_meta(make_problem(kind=kind, time=time, batch=batch).to(torch.float32), way)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["ignored", "integer-one-hot", "soft", "squared-error"])
@each_way
def test_dtypes_on_meta(way, kind, dtype):
    problem = make_problem(kind=kind, time="mean", batch="mean").to(dtype)
    assert {value.dtype for value in on_meta(problem, way).values()} == {dtype}


def test_single_sequences_on_meta():
    problem = make_problem().to("meta")
    x, h0, y = problem.x[:, 0], problem.h0[0], problem.targets[:, 0]
    with nothing_on_the_cpu():
        result = bptt(problem.parameters, x, y, h0)
        h = rnn(x, None, problem.parameters["U"], problem.parameters["W"])
        o = readout(h[-1], problem.parameters["V"])
    assert result.dx.shape == x.shape
    assert o.shape == (GENERAL.K,)
    assert "loss = (meta)" in repr(result)


def test_module_on_meta():
    network = ElmanNetwork(4, 7, 6, device="meta")
    x = torch.empty(5, 3, 4, device="meta", requires_grad=True)
    with nothing_on_the_cpu():
        o, _ = network(x)
        softmax_cross_entropy(o, torch.empty(5, 3, dtype=torch.int64, device="meta")).backward()
    for tensor in (x, *network.parameters()):
        assert tensor.grad.device.type == "meta"
        assert tensor.grad.shape == tensor.shape


def test_second_derivatives_on_meta():
    problem = make_problem(kind="soft").to("meta")
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in problem.parameters.items()}
    U, W, V, b, c = (parameters[name] for name in ("U", "W", "V", "b", "c"))
    x = problem.x.clone().requires_grad_()
    with nothing_on_the_cpu():
        loss = softmax_cross_entropy(readout(rnn(x, problem.h0, U, W, b), V, c), problem.targets)
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        dx.square().sum().backward()
    assert W.grad.shape == W.shape


@pytest.mark.parametrize("where", ["forward", "backward", "functional_backward", "_weights"])
def test_the_watch_sees_a_tensor_made_on_the_cpu(where, monkeypatch):
    """A test of this file: one constant on the CPU, in the forward or in the backward pass."""
    owner = targets if where == "_weights" else eager
    right = getattr(owner, where)

    def planted(*args: Any) -> Any:
        torch.ones(())
        return right(*args)

    monkeypatch.setattr(owner, where, planted)
    with pytest.raises(AssertionError, match=r"made on the CPU by .*ones"):
        on_meta(make_problem(), "create_graph" if where == "functional_backward" else "functions")


@pytest.mark.parametrize("make", [lambda: torch.tensor(1.0), lambda: torch.arange(3), lambda: torch.empty(2)])
def test_the_watch_sees_every_kind_of_factory(make):
    with pytest.raises(AssertionError, match="made on the CPU"), nothing_on_the_cpu():
        make()


@each_way
def test_default_device_is_neither_used_nor_changed(way):
    """With meta as the default, whatever follows the default has no values."""
    problem = make_problem(kind="ignored", time="mean")
    truth = truth_of(problem)
    before = torch.get_default_device()
    with torch.device("meta"):
        actual = WAYS[way](problem)
        assert torch.get_default_device().type == "meta"
    assert torch.get_default_device() == before
    assert {value.device.type for value in actual.values()} == {"cpu"}
    assert_all_close(actual, truth, 1e-12)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """Make float64 the default dtype for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@each_way
@pytest.mark.parametrize("kind", ["ignored", "integer-one-hot", "soft", "squared-error"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_float32_stays_float32_under_another_default_dtype(nonlinearity, kind, way, float64_by_default):
    problem = make_problem(kind=kind, nonlinearity=nonlinearity, time="mean", batch="mean").to(torch.float32)
    assert {value.dtype for value in WAYS[way](problem).values()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float64


def test_the_module_alone_follows_the_default_dtype(float64_by_default):
    assert {parameter.dtype for parameter in ElmanNetwork(2, 3, 4).parameters()} == {torch.float64}
    assert {parameter.dtype for parameter in ElmanNetwork(2, 3, 4, dtype=torch.float32).parameters()} == {torch.float32}


@each_way
def test_float64_stays_float64_under_the_usual_default_dtype(way):
    assert {value.dtype for value in WAYS[way](make_problem(kind="soft", time="mean")).values()} == {torch.float64}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: only there can the host wait for one")
@pytest.mark.parametrize("way", ["functions", "bptt"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
def test_the_host_never_waits_for_the_device(tokens, kind, way):
    problem = make_problem(kind=kind, tokens=tokens, time="mean", batch="mean").to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        WAYS[way](problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")
