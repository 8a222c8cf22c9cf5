"""Fixtures for all tests: devices, kernels, and memory that is NaN until somebody writes to it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from manual_bptt import kernels
from manual_bptt.kernels import native

torch.set_num_threads(1)  # the problems are small: threads would spend their time waiting for one another

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


# Tests of gradients that run once per kernel, without being told.
PER_KERNEL = {
    "test_autograd_loop",
    "test_gradcheck",
    "test_numerical",
    "test_properties",
    "test_reference",
    "test_rnn_grid",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of some files once per kernel."""
    if metafunc.module.__name__ in PER_KERNEL:
        metafunc.fixturenames.append("each_kernel")
        metafunc.parametrize("each_kernel", kernels.NAMES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def each_kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """A kernel, wherever it can run."""
    if request.param != "eager" and native.library() is None:
        pytest.skip(f"the kernel in C is {native.state()}")
    with kernels.use(request.param):
        yield request.param


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine that the project is tested on."""
    return torch.device(request.param)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.empty and its relatives return NaN, so that a buffer that nobody wrote to cannot pass."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_poison(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.detach().fill_(torch.nan)
            return tensor

        return allocate_poison

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (Tensor, "new_empty"),
        (Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
