"""Writes manual_bptt as the homework of any course: functions under the names and in the layout of a convention.

One code for every entry of the table, and for those that teachers add. Arrays are brought into canonical layout here,
by torch and apart from the oracle's own code: a slip in either shows. T steps, N batch rows, D inputs, H hidden units,
K outputs.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from manual_bptt.functional import readout, rnn, softmax_cross_entropy
from manual_bptt.network import bptt
from torch_reference.conventions import AXES, LEVELS, PARAMETERS, Calls, Convention, Signature

IGNORED = -100
SELF = "self"


def own_candidate(convention: Convention, *, functions: bool = False, clipped: str | None = None) -> dict[str, Any]:
    """Return what `check` takes for a candidate: manual_bptt behind the calls of a convention, every way of each level.

    Args:
        convention: An entry of the table; its nonlinearity, loss weights, clipping and averages are followed.
        functions: The network by `rnn`, `readout`, `softmax_cross_entropy` and torch.autograd.grad, which calls their
            hand-written backwards; otherwise by `bptt()`. The levels below it are always differentiated in this way.
        clipped: The level that clips, where the convention clips; None: the last that it has.

    Returns:
        Functions by name; a class where the convention calls methods.
    """
    made: dict[str, Any] = {}
    clipped = clipped or max(convention.levels, key=LEVELS.index)
    for level in convention.levels:
        used = convention if level == clipped else dataclasses.replace(convention, clip=None)
        for calls in convention.ways(level):
            by_name = {
                each.function: _function(_Work(used, level, calls, each, functions)) for each in calls.signatures
            }
            made |= by_name if calls.owner is None else {calls.owner: _class(calls, by_name)}
    return made


def _function(work: "_Work") -> Callable[..., Any]:
    """Make a function with the convention's parameter names, and with globals of its own for the names it sets."""
    names = [slot.name for slot in work.signature.takes]
    if work.calls.owner is not None:
        names.insert(0, SELF)
    signature = inspect.Signature([inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in names])
    own: dict[str, Any] = {}

    def call(*args: Any, **keywords: Any) -> Any:  # nothing in it is looked up in globals
        return work(own, signature.bind(*args, **keywords).arguments)

    made = FunctionType(call.__code__, own, work.signature.function.rpartition(".")[2], None, call.__closure__)
    vars(made)["__signature__"] = signature
    return made


def _class(calls: Calls, methods: Mapping[str, Callable[..., Any]]) -> type:
    """Make the class whose methods are called; its weights are set by whoever uses it."""

    def zero_grad(self: Any) -> None:
        vars(self).update(dict.fromkeys(calls.read, 0.0))

    def __init__(self: Any, input_size: int, hidden_size: int) -> None:
        zero_grad(self)

    members = {name.rpartition(".")[2]: method for name, method in methods.items()}
    return type(str(calls.owner), (), {"__init__": __init__, "zero_grad": zero_grad, **members})


@dataclasses.dataclass(frozen=True)
class _Pass:
    """The cache: what autograd can differentiate, and every result so far, by symbol in canonical layout."""

    leaves: dict[str, Tensor]
    results: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class _Work:
    """What one function of a convention does."""

    convention: Convention
    level: str
    calls: Calls
    signature: Signature
    functions: bool

    def __call__(self, own: MutableMapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        """Answer one call.

        Args:
            own: Globals of the function, where names may be set and read apart from the call; of a method it is the
                attributes.
            arguments: By the names of the signature.
        """
        settings = vars(arguments[SELF]) if SELF in arguments else own
        given: dict[str, Any] = {name: settings[name] for name in self.calls.set}
        for slot in self.signature.takes:
            given |= arguments[slot.name] if slot.members else {slot.name: arguments[slot.name]}
        kept = next((value for value in given.values() if isinstance(value, _Pass)), None)
        known: dict[str, Tensor] = {}
        for name, value in given.items():
            if (layout := self.convention.layout(name, self.calls)) is not None:
                known[layout[0]] = _canonical(value, *layout)
        done = self._pass(known) if kept is None else kept
        results = done.results
        if "dh" in known and self.level != "network":
            results = results | _differentiated(done, results["h"], known["dh"])
        return self._returned(self._asked_for(results), done, settings)

    @torch.enable_grad()
    def _pass(self, known: Mapping[str, Tensor]) -> _Pass:
        """Run manual_bptt; at the level of the network, forward and back."""
        if self.level == "network" and not self.functions:
            return _Pass({}, self._by_bptt(self._inputs(known)))
        leaves = self._inputs(known)
        if not self.calls.autograd:  # apart from what the caller may change before the gradients are asked for
            leaves = {name: value.detach().clone() for name, value in leaves.items()}
            for name in leaves.keys() - {"y"}:
                leaves[name].requires_grad_(_real(leaves[name]))
        h = rnn(leaves["x"], leaves.get("h0"), leaves["U"], leaves["W"], leaves.get("b"), self.convention.nonlinearity)
        done = _Pass(leaves, {"h": h, "hT": h[-1]})
        if "V" in leaves:
            o = readout(h, leaves["V"], leaves.get("c"))
            done.results.update(o=o, p=o.softmax(-1))
        if self.level == "network":
            loss = softmax_cross_entropy(
                done.results["o"],
                leaves["y"],
                time=self.convention.time,
                batch=self.convention.batch,
                ignore_index=IGNORED,
            )
            done.results.update(_differentiated(done, loss), loss=loss)
        return done

    def _inputs(self, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what manual_bptt takes: one bias, an h0 for each sequence, the mask in the targets."""
        inputs = {name: known[name] for name in ("x", "h0", "U", "W", "V", "b", "c", "y") if name in known}
        if "b2" in known:
            inputs["b"] = known["b"] + known["b2"]
        if "h0" in known:
            inputs["h0"] = known["h0"].expand(known["x"].shape[1], -1)
        if "mask" in known and "y" in known:
            y = known["y"].argmax(-1) if _real(known["y"]) else known["y"]
            inputs["y"] = y.masked_fill(known["mask"] == 0, IGNORED)
        if "y" in inputs and self.convention.time == "last":
            inputs["y"] = inputs["y"][-1]
        return inputs

    def _by_bptt(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        done = bptt(
            {name: inputs[name] for name in ("U", "W", "V", "b", "c") if name in inputs},
            inputs["x"],
            inputs["y"],
            inputs.get("h0"),
            nonlinearity=self.convention.nonlinearity,
            time=self.convention.time,
            batch=self.convention.batch,
            ignore_index=IGNORED,
        )
        results = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
        results |= {"hT": done.h[-1], "p": done.y_hat, "db2": done.db}
        return {name: value for name, value in results.items() if value is not None}

    def _asked_for(self, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average, sum and clip gradients as the convention does."""
        asked = dict(results)
        N = results["h"].shape[1]
        for symbol in (*PARAMETERS, "x", "h0"):
            if (gradient := asked.get(f"d{symbol}")) is None:
                continue
            if symbol in PARAMETERS and self.convention.parameter_gradients == "mean":
                gradient = gradient / N
            if symbol == "h0" and self.convention.shared_h0:
                gradient = gradient.sum(0, keepdim=True)
            clip = self.convention.clip
            asked[f"d{symbol}"] = gradient if clip is None else gradient.clamp(-clip, clip)
        return asked

    def _returned(self, results: Mapping[str, Tensor], done: _Pass, settings: MutableMapping[str, Any]) -> Any:
        """Write results as the convention returns them, and those that are read apart where they are looked for."""
        if any(self._symbol(name) in results for name in self.calls.read):
            for name in self.calls.read:
                before = 0.0 if self.calls.owner is None else settings[name]  # objects add up until zero_grad()
                settings[name] = before + self._written(name, results, done)
        parts = tuple(
            {name: self._written(name, results, done) for name in slot.members}
            if slot.members
            else self._written(slot.name, results, done)
            for slot in self.signature.returns
        )
        return parts if len(parts) > 1 else parts[0]

    def _symbol(self, name: str) -> str | None:
        layout = self.convention.layout(name, self.calls)
        return None if layout is None else layout[0]

    def _written(self, name: str, results: Mapping[str, Tensor], done: _Pass) -> Any:
        layout = self.convention.layout(name, self.calls)
        if layout is None:
            return done
        value = _in_course(results[layout[0]], *layout)
        if self.calls.autograd:
            return value
        value = value.detach().clone(memory_format=torch.contiguous_format)
        return value if self.convention.arrays == "torch" else value.numpy()


def _differentiated(done: _Pass, output: Tensor, upstream: Tensor | None = None) -> dict[str, Tensor]:
    """Let autograd call the hand-written backwards."""
    wanted = {name: leaf for name, leaf in done.leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(output, list(wanted.values()), upstream, retain_graph=True, allow_unused=True)
    gradients = {f"d{name}": gradient for name, gradient in zip(wanted, found, strict=True) if gradient is not None}
    return gradients | ({"db2": gradients["db"]} if "db" in gradients else {})


def _real(value: Tensor) -> bool:
    return value.is_floating_point()


def _canonical(value: Any, symbol: str, axes: str) -> Tensor:
    """Bring a course's array into canonical order; axes that the course lacks get length one."""
    tensor = torch.as_tensor(value)
    kept = axes.replace("1", "")
    own = AXES[symbol]
    if symbol == "x" and "D" not in axes:  # tokens
        own = own.replace("D", "")
    if symbol == "y" and "K" in axes:  # one-hot
        own += "K"
    tensor = tensor.reshape([size for size, axis in zip(tensor.shape, axes, strict=True) if axis != "1"])
    tensor = tensor.permute([kept.index(axis) for axis in own if axis in kept])
    for position, axis in enumerate(own):
        if axis not in kept:
            tensor = tensor.unsqueeze(position)
    return tensor.long() if symbol in ("x", "y") and not _real(tensor) else tensor


def _in_course(tensor: Tensor, symbol: str, axes: str) -> Tensor:
    """Bring a canonical array into a course's order; axes that the course lacks have length one."""
    own = AXES[symbol]
    kept = [axis for axis in own if axis in axes]
    tensor = tensor.reshape([size for size, axis in zip(tensor.shape, own, strict=True) if axis in axes])
    tensor = tensor.permute([kept.index(axis) for axis in axes if axis != "1"])
    for position, axis in enumerate(axes):
        if axis == "1":
            tensor = tensor.unsqueeze(position)
    return tensor
