"""Reads a network, or sequences, from a file: parameters and arrays. Nothing in a file is executed."""

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manual_bptt.modules import RNN
from manual_bptt.network import ElmanNetwork

INSIDE = ("state_dict", "model_state_dict", "model")  # where a checkpoint keeps the parameters among other things
OF_NETWORK = ("U", "W", "V", "b", "c")
OF_MODULE = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
TO_KNOW = "only vanilla networks are looked at; an LSTM's has 4 H rows, a GRU's 3 H"


def read_network(file: Path, part: str | None, nonlinearity: str) -> tuple[RNN | ElmanNetwork, str]:
    """Build a recurrent network from the parameters in a file.

    Args:
        file: What torch.save wrote of a state_dict, or of a dict that holds one: of an RNN, an RNNCell, an
            ElmanNetwork, or a model with one of these in it.
        part: The prefix of its parameters, "encoder.rnn"; None: there is but one.
        nonlinearity: f, which parameters do not tell.

    Returns:
        The network in float64, and the prefix of its parameters.

    Raises:
        ValueError: The file holds something else, or several networks and part is None.
        OSError: It cannot be read.
    """
    state = _load(file, "parameters, such as model.state_dict()")
    if isinstance(state, Mapping):
        state = next((state[name] for name in INSIDE if isinstance(state.get(name), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        kinds = {name: _kind(value) for name, value in state.items()} if isinstance(state, Mapping) else _kind(state)
        raise ValueError(f"expected {file} to hold a state_dict, names and tensors, got {kinds}")
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        prefix, _, own = str(name).rpartition(".")
        if own in OF_MODULE:  # of an RNNCell
            own += "_l0"
        if own in OF_NETWORK or own.partition("_l")[0] in OF_MODULE:
            found.setdefault(prefix, {})[own] = _numbers(file, str(name), value).double()
    found = {prefix: own for prefix, own in found.items() if {"U", "W", "V"} <= set(own) or "weight_hh_l0" in own}
    names = ", ".join(repr(prefix) for prefix in found)
    if not found:
        held = ", ".join([*map(str, list(state)[:5]), *(["…"] if len(state) > 5 else [])]) or "nothing"
        raise ValueError(f"expected weight_hh_l0 and the like, or U, W and V, in {file}, got {held}")
    if part is not None and part not in found:
        raise ValueError(f"expected --part to be one of {names}, got {part!r}")
    if part is None and len(found) > 1:
        raise ValueError(f"expected --part, since {file} holds several recurrent networks: {names}")
    prefix = next(iter(found)) if part is None else part
    network = _made(file, found[prefix], nonlinearity)
    try:
        network.load_state_dict(found[prefix])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"expected the parameters of one network in {file}, got: {reason}") from error
    return network, prefix


def _made(file: Path, own: Mapping[str, Tensor], nonlinearity: str) -> RNN | ElmanNetwork:
    """A network of the sizes that its parameters have."""
    U, W = (own.get(names[0], own.get(names[1])) for names in (("U", "weight_ih_l0"), ("W", "weight_hh_l0")))
    if U is None or W is None or U.dim() != 2 or W.dim() != 2:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in own.items())
        raise ValueError(f"expected matrices U and W, or weight_ih_l0 and weight_hh_l0, in {file}, got {shapes}")
    if W.shape[0] != W.shape[1]:
        raise ValueError(f"expected W, or weight_hh_l0, in {file} to be square, got {tuple(W.shape)}: {TO_KNOW}")
    (H, D), bias = U.shape, "b" in own or "bias_hh_l0" in own
    if "W" in own:
        return ElmanNetwork(D, H, len(own["V"]), nonlinearity, bias, dtype=torch.float64)
    layers = sum(name.startswith("weight_hh_l") and not name.endswith("_reverse") for name in own)
    both = "weight_hh_l0_reverse" in own
    return RNN(D, H, layers, nonlinearity, bias, bidirectional=both, dtype=torch.float64)


def read_sequences(file: Path) -> tuple[Tensor, Tensor | None]:
    """Read sequences and, where the file says so, how long each is.

    Args:
        file: .npy or .pt with one array; .npz, or .pt with a dict, with x and perhaps lengths.

    Returns:
        x, in float64 or int64 as the file has it, and lengths (B,) in int64.

    Raises:
        ValueError: The file holds something else.
        OSError: It cannot be read.
    """
    if file.suffix == ".pt":
        held = _load(file, "a tensor, or x and lengths")
    elif file.suffix in (".npy", ".npz"):
        try:
            held = np.load(file, allow_pickle=False)
            held = held if isinstance(held, np.ndarray) else dict(held)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"expected {file} to be what numpy.save or savez wrote, got: {error}") from error
    else:
        raise ValueError(f"expected --input beside a MODEL to be FILE.npy, FILE.npz or FILE.pt, got {file}")
    held = held if isinstance(held, Mapping) else {"x": held}
    if "x" not in held or not set(held) <= {"x", "lengths"}:
        names = ", ".join(map(str, held)) or "nothing"
        raise ValueError(f"expected {file} to hold one array, or x and lengths, got {names}")
    x = _numbers(file, "x", held["x"])
    if "lengths" not in held:
        return x, None
    lengths = _numbers(file, "lengths", held["lengths"])
    if lengths.is_floating_point() or lengths.dim() != 1:
        raise ValueError(f"expected lengths in {file} to be whole numbers (B,), got {_described(lengths)}")
    return x, lengths


def _numbers(file: Path, name: str, value: Any) -> Tensor:
    if isinstance(value, list) and all(isinstance(each, int) for each in value):
        value = np.array(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise ValueError(f"expected {name} in {file} to be real numbers, got dtype {value.dtype}")
        return torch.from_numpy(value.astype(np.float64 if value.dtype.kind == "f" else np.int64))
    if not isinstance(value, Tensor):
        raise ValueError(f"expected {name} in {file} to be an array, got {_kind(value)}")
    if value.is_nested or value.is_meta or value.layout != torch.strided:
        raise ValueError(f"expected {name} in {file} to be a plain tensor, got a nested, sparse or meta one")
    if value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"expected {name} in {file} to be real numbers, got {_described(value)}")
    return value.double() if value.is_floating_point() else value.long()


def _described(value: Tensor) -> str:
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _load(file: Path, what: str) -> Any:
    """What torch.save wrote; nothing in the file is executed."""
    with open(file, "rb") as handle:
        try:
            return torch.load(handle, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for what is no such file
            found = re.search(r"GLOBAL (\S+)", str(error))
            got = f"an object of {found[1]}, which is not loaded" if found else "something else"
            raise ValueError(f"expected {file} to be what torch.save wrote of {what}, got {got}") from error


def _kind(value: Any) -> str:
    return type(value).__name__
