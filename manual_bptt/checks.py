"""The questions that every public function asks of its arguments, and the wording of the answers. No mathematics."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from manual_bptt.transforms import has_values

Entry = TypeVar("Entry")

TOKEN_DTYPES = (torch.int64, torch.int32)


def choice(function: str, symbol: str, value: object, table: Mapping[str, Entry]) -> Entry:
    """Look up an option by its name; ValueError lists the names there are."""
    if isinstance(value, str) and value in table:
        return table[value]
    names = ", ".join(repr(name) for name in table)
    raise ValueError(f"{function}: expected {symbol} to be one of {names}, got {value!r}")


def tensor(function: str, symbol: str, value: object) -> None:
    """TypeError unless value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: expected {symbol} to be a torch.Tensor, got {type(value).__name__}")


def integer(function: str, symbol: str, value: object) -> None:
    """TypeError unless value is an int; True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{function}: expected {symbol} to be an int, got {type(value).__name__}")


def floating(function: str, symbol: str, value: object) -> None:
    """TypeError unless value is a real floating-point tensor."""
    tensor(function, symbol, value)
    assert isinstance(value, Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{function}: expected {symbol} of a floating dtype, got {value.dtype}")


def number(function: str, symbol: str, value: object) -> None:
    """TypeError unless value is a floating-point or complex tensor."""
    tensor(function, symbol, value)
    assert isinstance(value, Tensor)
    if not (value.is_floating_point() or value.is_complex()):
        raise TypeError(f"{function}: expected {symbol} of a floating or complex dtype, got {value.dtype}")


def shape(function: str, symbol: str, value: Tensor, letters: str, sizes: Iterable[int]) -> None:
    """ValueError unless value has the given sizes; letters are their names, as "BH" for (B, H)."""
    expected = tuple(sizes)
    if value.shape != expected:
        names = ", ".join(letters) + ("," if len(letters) == 1 else "")
        raise ValueError(f"{function}: expected {symbol} of shape ({names}) = {expected}, got {tuple(value.shape)}")


def alike(function: str, symbol: str, value: Tensor, like_symbol: str, like: Tensor) -> None:
    """TypeError for another dtype than like's, ValueError for another device."""
    if value.dtype != like.dtype:
        raise TypeError(
            f"{function}: expected {symbol} of dtype {like.dtype} like {like_symbol}, got {value.dtype}; "
            f"convert it with {symbol}.to({like.dtype})"
        )
    on_device(function, symbol, value, like_symbol, like)


def on_device(function: str, symbol: str, value: Tensor, like_symbol: str, like: Tensor) -> None:
    """ValueError for another device than like's."""
    if value.device != like.device:
        raise ValueError(
            f"{function}: expected {symbol} on device {like.device} like {like_symbol}, got {value.device}"
        )


def in_range(function: str, symbol: str, value: Tensor, limit_name: str, limit: int, also: str = "") -> None:
    """ValueError unless every entry lies in 0 .. limit.

    Looked at on the CPU only, and not under a transform: elsewhere it would make the host wait for the device, whose
    indexing kernels refuse such an index themselves.
    """
    if value.numel() == 0 or not has_values(value):
        return
    low, high = (int(bound) for bound in torch.aminmax(value))
    if low >= 0 and high <= limit:
        return
    bad = low if low < 0 else high
    place = tuple((value == bad).nonzero()[0].tolist())
    raise ValueError(
        f"{function}: expected {symbol} between 0 and {limit_name} = {limit}{also}, got {bad} at index {place}"
    )


def no_autocast(function: str, device: torch.device) -> None:
    """RuntimeError while autocast is on: the hand-written kernels run in the dtype they are given."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        raise RuntimeError(
            f"{function}: expected autocast to be off, but it is on for {device.type}; "
            f'call under torch.autocast("{device.type}", enabled=False) with tensors of one dtype'
        )
