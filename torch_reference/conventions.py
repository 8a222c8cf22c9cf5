"""How courses write the same network: names, layouts, calls and loss; one table, in which a teacher adds a line.

Nothing here computes anything but the order of axes. Sizes: T steps, N batch rows, D inputs, H hidden units (P where
they are those of the step before), K outputs; "1" is an axis of length one that a course keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEVELS = ("step", "sequence", "network")
# canonical axes: time first, vectors are rows, matrices as in the equations (output first)
AXES = {
    "x": "TND",
    "y": "TN",
    "mask": "TN",
    "h0": "NH",
    "U": "HD",
    "W": "HP",
    "V": "KH",
    "b": "H",
    "b2": "H",
    "c": "K",
    "h": "TNH",
    "hT": "NH",
    "o": "TNK",
    "p": "TNK",
    "loss": "",
}
AXES |= {"d" + symbol: axes for symbol, axes in AXES.items()} | {"da": "TNH"}
PARAMETERS = ("U", "W", "V", "b", "b2", "c")
SIZES = {"vocab_size": "D", "hidden_size": "H"}  # names of sizes that some code reads from its globals


@dataclass(frozen=True)
class Slot:
    """One argument or one returned value: an array, or a dict of arrays when it has members."""

    name: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """A function's name, what it takes and what it returns, in this order."""

    function: str
    takes: tuple[Slot, ...]
    returns: tuple[Slot, ...]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read "rnn_forward(x, a0, parameters{Wax, ba}) -> a, cache"; "{dx, da0}" is a dict without a name.

        Raises:
            ValueError: The text does not read so.
        """
        match = re.fullmatch(r"\s*([\w.]+)\s*\((.*)\)\s*->\s*(.*?)\s*", text, re.DOTALL)
        if match is None:
            raise ValueError(f"Convention: expected a call such as 'f(x, Wx) -> h, cache', got {text!r}")
        return cls(match[1], _slots(match[2]), _slots(match[3]))

    def __str__(self) -> str:
        """Write the call as a course would."""
        return f"{self.function}({_shown(self.takes)})"

    @property
    def results(self) -> str:
        """What it returns, as a course would write it."""
        return _shown(self.returns)


def _slots(text: str) -> tuple[Slot, ...]:
    found = re.findall(r"(\w*)\s*\{([^}]*)\}|(\w+)", text)
    return tuple(
        Slot(single) if single else Slot(name, tuple(member.strip() for member in members.split(",")))
        for name, members, single in found
    )


def _shown(slots: tuple[Slot, ...]) -> str:
    return ", ".join(slot.name or "{" + ", ".join(slot.members) + "}" for slot in slots)


@dataclass(frozen=True)
class Calls:
    """How one level is called: forward and then the gradients, or both in one call.

    Attributes:
        forward: The call that returns states or the loss, and whatever the second call needs.
        gradient: The call that returns the gradients; None where `forward` returns them too, or where autograd does.
        names: Names whose layout differs from the convention's at this level.
        owner: Class whose methods the two calls are; it is built with (D, H). None: plain functions.
        set: Names that are set before the calls: attributes of the object, or globals of the file.
        read: Names that are read after the calls.
        autograd: The function builds a graph, and torch's autograd gives the gradients of what it takes.
        extra: Symbols that a dict of results may hold beside what is asked for, to be looked at too: "h o p do dh da".
    """

    forward: str
    gradient: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None
    set: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    autograd: bool = False
    extra: str = ""

    @cached_property
    def signatures(self) -> tuple[Signature, ...]:
        """The calls, in their order."""
        return tuple(Signature.parse(text) for text in (self.forward, self.gradient) if text is not None)

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions called."""
        return tuple(signature.function for signature in self.signatures)


@dataclass(frozen=True)
class Convention:
    """How one course writes the network: one entry of `CONVENTIONS`.

    Attributes:
        name: What the command line calls it.
        title: The course.
        names: Maps the course's name of an array to "symbol axes": `"Wx": "U DH"` says that Wx is our U, stored (D, H).
            Symbols: x y mask h0 U W V b b2 (the second bias) c h hT (the last state) o p (softmax) loss. The gradient
            of "Wx" is "dWx", and "dh", "da", "do" are known without being named. Without the N in x the course has one
            sequence; without the D, x are tokens; h0 without the N is shared by the batch.
        levels: The calls of "step", "sequence" and "network"; several ways of calling a level as a tuple.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        time: How the loss weighs steps: "sum", "mean" or "last".
        batch: How it weighs sequences: "sum" or "mean".
        parameter_gradients: "sum" over the batch, or "mean": those of the parameters alone are divided by N.
        clip: Every gradient is clipped to [-clip, clip], by the last level that a homework has and not by those that
            it calls; None: not clipped.
        arrays: "numpy" or "torch".
    """

    name: str
    title: str
    names: Mapping[str, str]
    levels: Mapping[str, Calls | tuple[Calls, ...]]
    nonlinearity: str = "tanh"
    time: str = "sum"
    batch: str = "sum"
    parameter_gradients: str = "sum"
    clip: float | None = None
    arrays: str = "numpy"

    def __post_init__(self) -> None:
        """Refuse an entry that could not be used, naming what is wrong with it.

        Raises:
            ValueError: An unknown level, symbol or axis, a call that cannot be read, a name without a layout.
        """
        for setting, choices in _SETTINGS.items():
            if (value := getattr(self, setting)) not in choices:
                raise ValueError(f"{self._who}: expected {setting} to be one of {', '.join(choices)}, got {value!r}")
        number = isinstance(self.clip, (int, float)) and not isinstance(self.clip, bool)
        if self.clip is not None and not (number and 0 < self.clip < float("inf")):
            raise ValueError(f"{self._who}: expected clip to be a positive number, got {self.clip!r}")
        if (
            "network" in self.levels
            and self.time != "last"
            and self.has("y")
            and "T" not in self.names[self.name_of("y")]
        ):
            raise ValueError(f"{self._who}: expected time to be last, since the targets have no time axis")
        if not self.has("x"):
            raise ValueError(f"{self._who}: expected a name for x among {', '.join(self.names)}")
        if not isinstance(self.levels, Mapping) or not self.levels:
            raise ValueError(f"{self._who}: expected levels to map at least one of {', '.join(LEVELS)} to Calls")
        for level in self.levels:
            if level not in LEVELS:
                raise ValueError(f"{self._who}: expected levels among {', '.join(LEVELS)}, got {level!r}")
            for calls in self.ways(level):
                if not isinstance(calls, Calls):
                    raise ValueError(
                        f"{self._who}: expected {level} to be Calls, or a tuple of Calls, got {type(calls).__name__}"
                    )
                self._check_names({**self.names, **calls.names})
                for signature in calls.signatures:
                    self._check_signature(signature, calls)
                for name in (*calls.set, *calls.read):
                    if self.layout(name, calls) is None and name not in SIZES:
                        raise ValueError(f"{self._who}: expected {name!r} to have a layout")
                self._check_level(level, calls)

    @property
    def _who(self) -> str:
        return f"Convention {self.name}"

    def _check_names(self, names: Mapping[str, str]) -> None:
        for name, text in names.items():
            symbol, axes = _symbol_and_axes(text)
            if symbol not in AXES or sorted(set(axes) - {"1"}) not in _possible_axes(symbol):
                known = f"with the axes {', '.join(AXES[symbol])}" if AXES.get(symbol) else "with axes T N D H P K"
                raise ValueError(
                    f"{self._who}: expected {name} to be described as 'symbol axes', a symbol among "
                    f"{', '.join(AXES)} {known} (and 1), got {text!r}"
                )

    def _check_signature(self, signature: Signature, calls: Calls) -> None:
        taken = {slot.name for later in calls.signatures for slot in later.takes}
        for slot in signature.returns:
            for name in slot.members or (slot.name,):
                if self.layout(name, calls) is None and name not in taken:
                    raise ValueError(
                        f"{self._who}: expected {signature} to return names with a layout, or what the "
                        f"call after it takes, got {name!r}"
                    )
        for slot in signature.takes:
            for name in slot.members or (slot.name,):
                made = {found.name for earlier in calls.signatures for found in earlier.returns}
                if self.layout(name, calls) is None and name not in made:
                    raise ValueError(
                        f"{self._who}: expected {signature} to take names with a layout, or what the "
                        f"call before it returns, got {name!r}"
                    )

    def _check_level(self, level: str, calls: Calls) -> None:
        """Refuse calls by which nothing could be judged."""

        def laid_out(names: Iterable[str]) -> list[tuple[str, str]]:
            return [layout for name in names if (layout := self.layout(name, calls)) is not None]

        def members(slots: Iterable[Slot]) -> list[str]:
            return [name for slot in slots for name in slot.members or (slot.name,)]

        if calls.autograd and (self.arrays != "torch" or level == "network"):
            raise ValueError(f"{self._who}: expected autograd with arrays='torch' and not at the level network")
        for signature in calls.signatures:
            symbols = [symbol for symbol, _ in laid_out(members(signature.takes))]
            if twice := [symbol for symbol in dict.fromkeys(symbols) if symbols.count(symbol) > 1]:
                raise ValueError(f"{self._who}: expected {signature} to take {', '.join(twice)} once")
        taken = laid_out([*(name for each in calls.signatures for name in members(each.takes)), *calls.set])
        returned = laid_out([*(name for each in calls.signatures for name in members(each.returns)), *calls.read])
        given = {symbol for symbol, _ in taken}
        calls_text = " and ".join(map(str, calls.signatures))
        differentiated = {symbol[1:] for symbol, _ in returned if symbol.startswith("d")} & {*PARAMETERS, "x", "h0"}
        if not (differentiated or calls.autograd):
            raise ValueError(f"{self._who}: expected {calls_text} to return a gradient at the level {level}")
        if strange := sorted(differentiated - given):
            raise ValueError(
                f"{self._who}: expected {calls_text} to take what gradients are returned of, got none of "
                + ", ".join(self.name_of(symbol, calls) for symbol in strange)
            )
        wanted = "y" if level == "network" else "dh"
        if wanted not in given and not calls.autograd:
            what = "the targets" if wanted == "y" else "the upstream gradient"
            raise ValueError(f"{self._who}: expected {calls_text} to take {what}, {self.name_of(wanted, calls)}")
        if level == "step" and any("T" in axes for _, axes in taken + returned):
            raise ValueError(f"{self._who}: expected no axis T in the arrays of one step, {calls_text}")
        batched = {"N" in axes for symbol, axes in taken + returned if symbol in ("x", "h", "dh", "dx", "y", "o", "p")}
        if len(batched) > 1:
            raise ValueError(f"{self._who}: expected an axis N in all of x, h and y, or in none, in {calls_text}")

    def ways(self, level: str) -> tuple[Calls, ...]:
        """The ways in which a level may be called; () where the convention has no such level."""
        calls = self.levels.get(level, ())
        return calls if isinstance(calls, tuple) else (calls,)

    def layout(self, name: str, calls: Calls) -> tuple[str, str] | None:
        """Return symbol and axes of a name, or of a gradient by the name of what it belongs to; None if unknown."""
        names = {**self.names, **calls.names}
        if name in names:
            return _symbol_and_axes(names[name])
        for prefix in ("d", "grad_"):
            if name.startswith(prefix) and name.removeprefix(prefix) in names:
                symbol, axes = _symbol_and_axes(names[name.removeprefix(prefix)])
                return "d" + symbol, axes
        if name == "da" and (states := self._name_of("h", names)) is not None:
            return "da", _symbol_and_axes(names[states])[1]
        if name in ("dh", "do") and (own := self._name_of(name[1:], names)) is not None:
            return name, _symbol_and_axes(names[own])[1]
        return None

    @staticmethod
    def _name_of(symbol: str, names: Mapping[str, str]) -> str | None:
        return next((name for name, text in names.items() if _symbol_and_axes(text)[0] == symbol), None)

    def name_of(self, symbol: str, calls: Calls | None = None) -> str:
        """Return what the course calls a symbol; a gradient's name starts with d. The symbol itself if unknown."""
        names = {**(calls.names if calls else {}), **self.names}
        if (own := self._name_of(symbol, names)) is not None:
            return own
        if symbol.startswith("d") and (own := self._name_of(symbol[1:], names)) is not None:
            return "d" + own
        return symbol

    def has(self, symbol: str) -> bool:
        """Whether the course has this symbol at all."""
        return self._name_of(symbol, self.names) is not None

    @property
    def one_sequence(self) -> bool:
        """Whether there is no batch."""
        return "N" not in _symbol_and_axes(self.names[self.name_of("x")])[1]

    @property
    def tokens(self) -> bool:
        """Whether x holds class indices."""
        return "D" not in _symbol_and_axes(self.names[self.name_of("x")])[1]

    @property
    def shared_h0(self) -> bool:
        """Whether all sequences start from one h0, whose gradient is then summed over the batch."""
        return not self.one_sequence and "N" not in _symbol_and_axes(self.names.get(self.name_of("h0"), "h0 NH"))[1]

    def changed(self, **options: Any) -> Convention:
        """Return the convention with other settings; those that are None stay as they are.

        Raises:
            ValueError: A setting has no such value.
        """
        return replace(self, **{name: value for name, value in options.items() if value is not None})


def _possible_axes(symbol: str) -> list[list[str]]:
    """The axes that a symbol has, sorted, and those that it has where there is one sequence, one step, or tokens."""
    own = set(AXES[symbol])
    optional = own & {"N", "T"} | ({"D"} if symbol == "x" else set())
    full = [own, own | {"K"}] if symbol == "y" else [own]
    subsets = [set(left) for count in range(len(optional) + 1) for left in combinations(sorted(optional), count)]
    return [sorted(axes - left) for axes in full for left in subsets]


def _symbol_and_axes(text: str) -> tuple[str, str]:
    symbol, _, axes = text.partition(" ")
    return symbol, axes


def to_course(array: Array, symbol: str, axes: str) -> Array:
    """Bring a canonical array into a course's order of axes.

    Args:
        array: With the axes `AXES[symbol]`; y may have a last axis K more, for one-hot rows.
        symbol: Its symbol.
        axes: The course's axes. A canonical axis that is missing there must have length one; of an h0 without N, the
            rows are taken to be equal.
    """
    own = AXES[symbol] + ("K" if symbol == "y" and array.ndim == 3 else "")
    own = own[: array.ndim] if symbol == "x" else own  # tokens have no D
    for position in reversed(range(len(own))):
        if own[position] not in axes:
            array = array.take(0, axis=position)
    left = [axis for axis in own if axis in axes]
    order = [left.index(axis) for axis in axes if axis != "1"]
    array = array.transpose(order)
    for position, axis in enumerate(axes):
        if axis == "1":
            array = np.expand_dims(array, position)
    result: Array = array.copy()
    return result


def from_course(array: Array, symbol: str, axes: str, shape: tuple[int, ...]) -> Array:
    """Bring a course's array of the right shape into canonical order; axes that the course lacks get length one.

    Args:
        array: With the axes `axes`.
        symbol: Its symbol.
        axes: The course's axes.
        shape: The canonical shape.
    """
    kept = [axis for axis in axes if axis != "1"]
    array = array.reshape([size for size, axis in zip(array.shape, axes, strict=True) if axis != "1"])
    own = [axis for axis in AXES[symbol] if axis in kept]
    array = array.transpose([kept.index(axis) for axis in own])
    return array.reshape(shape)


_SETTINGS = {
    "nonlinearity": ("tanh", "sigmoid", "relu", "identity"),
    "time": ("sum", "mean", "last"),
    "batch": ("sum", "mean"),
    "parameter_gradients": ("sum", "mean"),
    "arrays": ("numpy", "torch"),
}

_CS231N_NAMES = {
    "x": "x NTD",
    "y": "y NT",
    "mask": "mask NT",
    "h0": "h0 NH",
    "h": "h NTH",
    "Wx": "U DH",
    "Wh": "W PH",
    "b": "b H",
    "W_vocab": "V HK",
    "b_vocab": "c K",
    "loss": "loss ",
}
_TORCH_CELL_NAMES = {
    "x": "x NTD",
    "y": "y N",
    "h0": "h0 NH",
    "h": "h NTH",
    "W_ih": "U HD",
    "W_hh": "W HP",
    "b_ih": "b H",
    "b_hh": "b2 H",
    "W_out": "V KH",
    "b_out": "c K",
    "loss": "loss ",
}
_TORCH_CELL = Calls(
    "RNNCell.forward(x, h_prev_t) -> h_t",
    "RNNCell.backward(delta, h_t, h_prev_l, h_prev_t) -> dx, dh_prev_t",
    names={"x": "x ND", "h_prev_l": "x ND", "h_prev_t": "h0 NH", "h_t": "h NH", "delta": "dh NH"},
    owner="RNNCell",
    set=("W_ih", "W_hh", "b_ih", "b_hh"),
    read=("dW_ih", "dW_hh", "db_ih", "db_hh"),
)
_TORCH_CELL_SEQUENCE = Calls(
    "rnn_forward(x, h0, W_ih, W_hh, b_ih, b_hh) -> h, cache",
    "rnn_backward(dh, cache) -> dx, dh0, dW_ih, dW_hh, db_ih, db_hh",
)

_TABLE = (
    Convention(
        name="goodfellow",
        title="the letters of Goodfellow, Bengio, Courville, Deep Learning, chapter 10; time first, rows",
        names={
            "x": "x TND",
            "y": "y TN",
            "mask": "mask TN",
            "h0": "h0 NH",
            "h": "h TNH",
            "o": "o TNK",
            "p": "p TNK",
            "U": "U HD",
            "W": "W HP",
            "V": "V KH",
            "b": "b H",
            "c": "c K",
            "loss": "loss ",
        },
        levels={
            "sequence": Calls(
                "rnn_forward(x, h0, U, W, b) -> h, cache", "rnn_backward(dh, cache) -> {dx, dh0, dU, dW, db}"
            ),
            "network": Calls(
                "bptt(x, y, mask, h0, U, W, V, b, c) -> loss, {dU, dW, dV, db, dc, dx, dh0}", extra="h o p do dh da"
            ),
        },
    ),
    Convention(
        name="torch",
        title="torch.nn.RNN's parameters, torch tensors, time first, mean loss",
        names={
            "x": "x TND",
            "y": "y TN",
            "h0": "h0 NH",
            "output": "h TNH",
            "weight_ih": "U HD",
            "weight_hh": "W HP",
            "bias_ih": "b H",
            "bias_hh": "b2 H",
            "weight_ho": "V KH",
            "bias_ho": "c K",
            "loss": "loss ",
        },
        levels={
            "sequence": (
                Calls(
                    "rnn_forward(x, h0, weight_ih, weight_hh, bias_ih, bias_hh) -> output, cache",
                    "rnn_backward(grad_output, cache) -> dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh",
                ),
                Calls("rnn(x, h0, weight_ih, weight_hh, bias_ih, bias_hh) -> output", autograd=True),
            ),
            "network": Calls(
                "rnn_loss(x, y, h0, weight_ih, weight_hh, bias_ih, bias_hh, weight_ho, bias_ho) -> loss, "
                "{dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dweight_ho, dbias_ho}"
            ),
        },
        time="mean",
        batch="mean",
        arrays="torch",
    ),
    Convention(
        name="cs231n",
        title="Stanford CS231n, assignment 3, 2016 to 2024",
        names=_CS231N_NAMES,
        levels={
            "step": Calls(
                "rnn_step_forward(x, prev_h, Wx, Wh, b) -> next_h, cache",
                "rnn_step_backward(dnext_h, cache) -> dx, dprev_h, dWx, dWh, db",
                names={"x": "x ND", "prev_h": "h0 NH", "next_h": "h NH"},
            ),
            "sequence": Calls(
                "rnn_forward(x, h0, Wx, Wh, b) -> h, cache", "rnn_backward(dh, cache) -> dx, dh0, dWx, dWh, db"
            ),
            "network": Calls(
                "rnn_loss(x, y, mask, h0, Wx, Wh, b, W_vocab, b_vocab) -> loss, "
                "{dx, dh0, dWx, dWh, db, dW_vocab, db_vocab}"
            ),
        },
        batch="mean",
    ),
    Convention(
        name="coursera",
        title="Coursera, Deep Learning Specialization, course 5, week 1: RNN step by step",
        names={
            "x": "x DNT",
            "a0": "h0 HN",
            "a": "h HNT",
            "y_pred": "p KNT",
            "Wax": "U HD",
            "Waa": "W HP",
            "Wya": "V KH",
            "ba": "b H1",
            "by": "c K1",
        },
        levels={
            "step": Calls(
                "rnn_cell_forward(xt, a_prev, parameters{Wax, Waa, Wya, ba, by}) -> a_next, yt_pred, cache",
                "rnn_cell_backward(da_next, cache) -> {dxt, da_prev, dWax, dWaa, dba}",
                names={"xt": "x DN", "a_prev": "h0 HN", "a_next": "h HN", "yt_pred": "p KN"},
            ),
            "sequence": Calls(
                "rnn_forward(x, a0, parameters{Wax, Waa, Wya, ba, by}) -> a, y_pred, caches",
                "rnn_backward(da, caches) -> {dx, da0, dWax, dWaa, dba}",
            ),
        },
    ),
    Convention(
        name="cmu",
        title="CMU 11-785, homework 3: two biases, parameters averaged over the batch, loss of the last step",
        names=_TORCH_CELL_NAMES,
        levels={
            "step": _TORCH_CELL,
            "sequence": _TORCH_CELL_SEQUENCE,
            "network": Calls(
                "rnn_loss(x, y, h0, W_ih, W_hh, b_ih, b_hh, W_out, b_out) -> loss, "
                "{dx, dh0, dW_ih, dW_hh, db_ih, db_hh, dW_out, db_out}"
            ),
        },
        time="last",
        parameter_gradients="mean",
    ),
    Convention(
        name="mytorch",
        title="mytorch, assignment 3: as cmu, but summed over the batch",
        names=_TORCH_CELL_NAMES,
        levels={"step": _TORCH_CELL, "sequence": _TORCH_CELL_SEQUENCE},
    ),
    Convention(
        name="karpathy",
        title="Karpathy, min-char-rnn: one sequence of characters, gradients clipped at 5",
        names={
            "inputs": "x T",
            "targets": "y T",
            "hprev": "h0 H1",
            "h_last": "hT H1",
            "Wxh": "U HD",
            "Whh": "W HP",
            "Why": "V KH",
            "bh": "b H1",
            "by": "c K1",
            "loss": "loss ",
        },
        levels={
            "network": Calls(
                "lossFun(inputs, targets, hprev) -> loss, dWxh, dWhh, dWhy, dbh, dby, h_last",
                set=("Wxh", "Whh", "Why", "bh", "by", "vocab_size", "hidden_size"),
            )
        },
        clip=5.0,
    ),
    Convention(
        name="kth",
        title="KTH DD2424, assignment 4: one sequence in columns, mean over time",
        names={
            "X": "x DT",
            "Y": "y KT",
            "h0": "h0 H1",
            "U": "U HD",
            "W": "W HP",
            "V": "V KH",
            "b": "b H1",
            "c": "c K1",
            "loss": "loss ",
        },
        levels={"network": Calls("compute_gradients(X, Y, h0, RNN{U, W, V, b, c}) -> loss, {dU, dW, dV, db, dc}")},
        time="mean",
    ),
    Convention(
        name="d2l",
        title="Dive into Deep Learning: time first, no nonlinearity, mean loss",
        names={
            "X": "x TND",
            "Y": "y TN",
            "H0": "h0 NH",
            "H": "h TNH",
            "W_xh": "U DH",
            "W_hh": "W PH",
            "b_h": "b H",
            "W_hq": "V HK",
            "b_q": "c K",
            "loss": "loss ",
        },
        levels={
            "sequence": Calls(
                "rnn_forward(X, H0, W_xh, W_hh, b_h) -> H, cache",
                "rnn_backward(dH, cache) -> {dX, dH0, dW_xh, dW_hh, db_h}",
            ),
            "network": Calls(
                "rnn_gradients(X, Y, H0, W_xh, W_hh, b_h, W_hq, b_q) -> loss, "
                "{dX, dH0, dW_xh, dW_hh, db_h, dW_hq, db_q}"
            ),
        },
        nonlinearity="identity",
        time="mean",
        batch="mean",
    ),
)
CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in _TABLE}


def find_convention(name: str) -> Convention:
    """Return the entry of the table.

    Raises:
        ValueError: There is none of this name; the message lists those there are.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"check: expected convention to be one of {', '.join(CONVENTIONS)}, got {name!r}")
    return CONVENTIONS[name]
