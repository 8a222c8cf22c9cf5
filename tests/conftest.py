"""Fixtures for all tests: the devices there are, and memory that is NaN until somebody writes to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)  # the problems are small: threads would spend their time waiting for one another

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


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
