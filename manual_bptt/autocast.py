"""Mixed precision: the dtype that autocast asks for. The hand-written functions are cast by their callers."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from manual_bptt.transforms import has_autocast


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on this device; None where it is off."""
    if not has_autocast():
        return None
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def cast_dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What autocast to a dtype makes of a tensor's: it casts real numbers only, and no float64."""
    return dtype if value.is_floating_point() and value.dtype != torch.float64 else value.dtype


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does."""
    return value.to(cast_dtype(value, dtype))


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Let every operator run in the dtype that it is given."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)
