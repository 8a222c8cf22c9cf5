"""Runs homework functions on given arrays and hands back what they return; as a script, in a process of its own.

`running` imports the dataclasses and `execute` from here. Run by its path, this file loads one homework and answers
requests; it then needs the standard library and NumPy only, so that a homework without torch starts at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import linecache
import math
import os
import re
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Signatures = dict[str, tuple[str, ...] | None]

LARGEST_ANSWER = 256 << 20  # bytes that a program may return
MOST_VALUES = 200_000  # numbers, arrays and containers that it may return
DEEPEST = 30  # containers in one another
LONGEST_TEXT = 600  # characters of an exception's text
MOST_NAMES = 20  # functions listed in a message
ARRAY_KINDS = "biufcSU"  # numbers and text: what is all bytes
PROTOCOL_BROKEN = 70  # exit status of a child that cannot answer any more

_ABSENT = object()


@dataclass(frozen=True)
class Result:
    """Stands for what an earlier call of the same program returned, or for a part of it: the very same object.

    Attributes:
        call: index of that call in the program.
        item: position in the returned tuple or list, or key of the returned dict; None means the whole.
    """

    call: int
    item: int | str | None = None


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        function: name of a function, or "Class.method" for a method of the program's instance.
        arguments: arrays, numbers, text, bools, None, `Result`s, and tuples, lists and dicts of these.
        keywords: the same, by name.
    """

    function: str
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Calls made one after the other. Every array is handed over as a fresh copy, in C order.

    Attributes:
        calls: what is called.
        owner: class of which an instance is built first, such as "RNNCell".
        construct: what the class is called with.
        set: attributes set before the calls: on the instance; without an owner they are globals of the homework,
            which get their old values back after the program.
        read: attributes read after the calls, from the same place.
        before: methods without arguments, or functions where there is no owner, called after `set` and before
            `calls`, those that exist.
        arrays: "numpy" or "torch": what arrays are handed over as.
        differentiate: for "torch", pairs (index of a call, upstream gradient): autograd differentiates the output of
            that call. Where it returned several, the upstream gradient is a tuple, None for those left out; a
            single one belongs to the first.
    """

    calls: tuple[Call, ...]
    owner: str | None = None
    construct: tuple[Any, ...] = ()
    set: Mapping[str, Any] = field(default_factory=dict)
    read: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    arrays: str = "numpy"
    differentiate: tuple[tuple[int, Any], ...] = ()


@dataclass(frozen=True)
class Opaque:
    """Stands for a value that is neither number nor text nor a container of these: the name of its type."""

    type: str


@dataclass(frozen=True)
class Outcome:
    """What came of a program, as NumPy arrays and scalars, numbers, text, None, tuples, lists, dicts and `Opaque`s.

    Attributes:
        results: what each call returned, as it was right after the call.
        read: the attributes asked for; those that do not exist are left out.
        changed: (index of the call, name) of every argument that the homework changed in place; a part of a
            container is named as in "parameters['Wax']" or "inputs[2]". Later calls may have changed it, through
            something kept. An attribute that was set and is now another stands with the last call.
        gradients: for each pair of `differentiate`, by position or keyword, the gradient of every floating-point
            array among the arguments; None for one that the output does not depend on.
    """

    results: tuple[Any, ...]
    read: dict[str, Any]
    changed: tuple[tuple[int, str], ...]
    gradients: tuple[dict[int | str, Any], ...] = ()


class Failure(Exception):
    """A homework that could not be run to its end.

    Attributes:
        kind: "unreadable" (no such file, not a notebook), "syntax", "missing" (no such function), "error" (an
            exception), "return" (another kind of value than a later call needs), "none" (None instead of it),
            "graph" (an output that autograd cannot differentiate), "exit", "timeout", "memory", "crash", "flood"
            (printed or returned too much) or "protocol" (the line to the child process was broken).
        message: what happened and where, for the student.
        function: the function that was being called; None while the file was being loaded.
        output: what a child process printed up to then, its start and its end.
    """

    def __init__(self, kind: str, message: str, function: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.function = function
        self.output = ""


class Scope:
    """The names of a homework, and which source lines are its own."""

    def __init__(
        self, names: Mapping[str, Any], label: str, folder: str | None = None, module: ModuleType | None = None
    ) -> None:
        self.names = names
        self.label = label
        self.folder = folder
        self.module = module
        self.relieve: Callable[[], object] = lambda: None  # makes room for telling what went wrong

    def find(self, name: str) -> Any:
        """Look up a function, class or "Class.method"; a `Failure` lists those there are."""
        first, *rest = name.split(".")
        found, holder = self.names.get(first, _ABSENT), self.label
        for part in rest:
            if found is not _ABSENT:
                found, holder = getattr(found, part, _ABSENT), first
        if found is _ABSENT or not callable(found):
            raise self.missing(name, holder, [known for known in self.signatures() if "." not in known])
        return found

    def missing(self, name: str, holder: str, known: list[str]) -> Failure:
        """Make the failure for a name that is not there."""
        listed = ", ".join(sorted(known)[:MOST_NAMES]) + (", ..." if len(known) > MOST_NAMES else "")
        return Failure("missing", f"there is no function {name} in {holder}; it has: {listed or 'none'}", name)

    def signatures(self) -> Signatures:
        """Return the parameter names of the public functions, classes and methods; None where they are unknown."""
        found: Signatures = {}
        for name, value in list(self.names.items()):
            if isinstance(name, str) and not name.startswith("_") and callable(value) and self._listed(value):
                found[name] = _parameters(value)
                if isinstance(value, type):
                    found.update(self._methods(name, value))
        return found

    def _methods(self, name: str, owner: type) -> Signatures:
        found: Signatures = {}
        for base in reversed(owner.__mro__):
            if base is not object and self._listed(base):
                for method, value in vars(base).items():
                    function = getattr(value, "__func__", value)
                    if not method.startswith("_") and inspect.isroutine(function):
                        parameters = _parameters(function)
                        if parameters and not isinstance(value, staticmethod):
                            parameters = parameters[1:]  # self, or cls
                        found[f"{name}.{method}"] = parameters
        return found

    def _listed(self, value: Any) -> bool:
        """Whether a callable belongs to the homework: made in it or in a file beside it, not imported by it."""
        if self.module is None:
            return True
        if isinstance(value, functools.partial):
            return True
        made_in = getattr(value, "__module__", None)
        bound_to = getattr(value, "__self__", None)
        if isinstance(bound_to, type):  # such as Recurrence.apply
            made_in = bound_to.__module__
        if made_in == self.module.__name__:
            return True
        with contextlib.suppress(ValueError):  # wrapped in a circle
            value = inspect.unwrap(value)
        code = getattr(value, "__code__", None)
        path = code.co_filename if code else getattr(sys.modules.get(str(made_in)), "__file__", None)
        return isinstance(path, str) and self.folder is not None and _inside(path, self.folder)

    def failure(self, error: BaseException, name: str | None) -> Failure:
        """Say an exception to the student: its text, and the last line of the homework that it went through."""
        if isinstance(error, Failure):
            return error
        self.relieve()
        what = name or f"loading {self.label}"
        if isinstance(error, SyntaxError) and name is None:
            line = (error.text or "").rstrip()
            place = label_of(error.filename, self.folder) if error.filename else self.label
            place += f", line {error.lineno}" if error.lineno else ""
            return Failure("syntax", printable(f"{place}: {_text(error.msg)}" + (f"\n{line}" if line else "")))
        said = _text(error)
        text = f"{_type_name(error)}: {said}" if said else _type_name(error)
        kind = "error"
        if isinstance(error, SystemExit):
            kind, text = "exit", f"exit was called ({text}); a homework has to return instead"
        elif isinstance(error, MemoryError) or "can't allocate memory" in said or "not enough memory" in said:
            kind = "memory"
        place = self._place(error.__traceback__)
        return Failure(kind, printable(f"{what}: {text}" + (f"\n{place}" if place else "")), name)

    def _place(self, trace: TracebackType | None) -> str:
        place = ""
        while trace is not None:
            filename = trace.tb_frame.f_code.co_filename
            if belongs(filename, self.folder):
                place = line_of(filename, trace.tb_lineno, self.folder)
            trace = trace.tb_next
        return place


def printable(text: str) -> str:
    """Return text that every terminal can print: control characters and halves of characters are spelled out."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(error: object) -> str:
    try:
        text = "".join(str(error))
    except BaseException:  # of a homework's own __str__
        return "(its text cannot be shown)"
    lines = [line for line in text[:LONGEST_TEXT].splitlines() if line.strip()][:8]
    return "\n".join(lines) + ("..." if len(text) > LONGEST_TEXT else "")


def _type_name(value: object) -> str:
    """Name a value's type, with its module unless that is of Python itself."""
    kind = type(value)
    try:
        module, name = str(kind.__module__), str(kind.__qualname__)
    except BaseException:  # of a homework's own metaclass
        return "object"
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


@functools.cache
def _packages() -> tuple[str, ...]:
    """Return the folders whose files are nobody's homework: Python, installed packages, and this package."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(os.path.realpath(path) for path in [*installed, os.path.dirname(os.path.abspath(__file__))] if path)


def _inside(path: str, folder: str) -> bool:
    """Whether a file lies in a folder, and not among packages installed in it."""
    path = os.path.realpath(path)
    apart = {"site-packages", "dist-packages"}.intersection(path.replace("\\", "/").split("/"))
    return path.startswith(os.path.join(os.path.realpath(folder), "")) and not apart


def belongs(filename: str, folder: str | None) -> bool:
    """Whether a source file, as tracebacks name it, is a homework's."""
    if filename.startswith("<"):
        return filename.startswith(("<string", "<stdin", "<ipython"))
    if folder is not None and _inside(filename, folder):
        return True
    return not any(_inside(filename, package) for package in _packages()) and "-packages" not in filename


def label_of(filename: str, folder: str | None) -> str:
    """Name a source file as its author knows it."""
    if filename.startswith("<ipython") or "ipykernel_" in filename:
        return "the notebook"
    if folder is not None and _inside(filename, folder):
        return os.path.relpath(os.path.realpath(filename), os.path.realpath(folder))
    return os.path.basename(filename)


def line_of(filename: str, number: int, folder: str | None) -> str:
    """Name a line of source and quote it."""
    linecache.checkcache(filename)
    source = linecache.getline(filename, number).strip()
    return f"{label_of(filename, folder)}, line {number}" + (f": {source}" if source else "")


def _parameters(function: Any) -> tuple[str, ...] | None:
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    try:
        parameters = inspect.signature(function).parameters.values()
    except Exception:  # a builtin, or annotations that cannot be evaluated
        code = getattr(function, "__code__", None)
        return None if code is None else tuple(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return tuple(stars.get(parameter.kind, "") + parameter.name for parameter in parameters)


class _Copier:
    """Turns what a homework returned into plain values: arrays copied, tensors as arrays, the rest by its type."""

    def __init__(self) -> None:
        self.function = ""
        self.bytes = 0
        self.values = 0

    def returned(self, function: str, value: Any) -> Any:
        """Copy what a function returned; all that one copier copies together is limited."""
        self.function = function
        return self(value)

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self._spend(0)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.kind not in ARRAY_KINDS:
                return Opaque(f"numpy.ndarray of dtype {printable(str(value.dtype)[:40])}")
            self._spend(value.nbytes)
            copy: Array = np.array(value, order="C", copy=True, subok=False)
            return copy if isinstance(value, np.ndarray) else copy[()]
        if is_tensor(value):
            self._spend(value.numel() * value.element_size())
            return array_of(value)
        if isinstance(value, int):
            self._spend(value.bit_length())
            return int(value) if value.bit_length() < 2000 else Opaque("int of more than 600 digits")
        if isinstance(value, float):
            return float(value)
        if isinstance(value, complex):
            return complex(value)
        if isinstance(value, str):
            self._spend(6 * len(value))  # as JSON spells it at worst
            return "".join(value).encode("utf-8", "backslashreplace").decode()
        if isinstance(value, tuple | list | dict) and depth == DEEPEST:
            return Opaque(f"{_type_name(value)}, deeper than {DEEPEST} containers")
        if isinstance(value, dict):
            return {self._key(key): self(entry, depth + 1) for key, entry in list(dict.items(value))}
        if isinstance(value, tuple):
            return tuple(self(entry, depth + 1) for entry in tuple.__iter__(value))
        if isinstance(value, list):
            return [self(entry, depth + 1) for entry in list.__iter__(value)]
        return Opaque(_type_name(value))

    def _key(self, key: Any) -> Any:
        plain = self(key, DEEPEST - 1)
        return Opaque(_type_name(key)) if isinstance(plain, np.ndarray) else plain

    def _spend(self, size: int) -> None:
        self.bytes += size
        self.values += 1
        if self.bytes > LARGEST_ANSWER or self.values > MOST_VALUES:
            limit = f"{LARGEST_ANSWER >> 20} MB or {MOST_VALUES} values, all calls together"
            raise Failure("flood", f"{self.function} returned more than {limit}", self.function)


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor; torch is not imported for it."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return isinstance(tensor, type) and isinstance(value, tensor)


def array_of(tensor: Any) -> Any:
    """Copy a torch tensor into an array: detached, on the CPU, and float32 where NumPy lacks its dtype."""
    try:
        tensor = tensor.detach().cpu()
        tensor = tensor.to_dense() if str(tensor.layout) != "torch.strided" else tensor
        tensor = tensor.resolve_conj().resolve_neg()
        try:
            return np.array(tensor.numpy(), order="C", copy=True)
        except TypeError:  # bfloat16 and smaller
            return np.array(tensor.float().numpy(), order="C", copy=True)
    except Exception:  # one without values, such as on the device "meta"
        return Opaque("torch.Tensor")


def check(program: Program) -> None:
    """Raise ValueError for a program that no homework could run."""
    if program.arrays not in ("numpy", "torch"):
        raise ValueError(f"arrays: expected 'numpy' or 'torch', got {program.arrays!r}")
    if program.differentiate and program.arrays != "torch":
        raise ValueError("differentiate: expected arrays='torch'")
    for call, _ in program.differentiate:
        if not 0 <= call < len(program.calls):
            raise ValueError(f"differentiate: there is no call {call} among {len(program.calls)}")
    for index, made in enumerate(program.calls):
        for reference in _references([*made.arguments, *made.keywords.values()]):
            if not 0 <= reference.call < index:
                raise ValueError(f"call {index}: expected a Result of an earlier call, got call {reference.call}")


def _references(value: Any) -> Iterator[Result]:
    if isinstance(value, Result):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _references(entry)


def execute(
    program: Program, scope: Scope, at: Callable[[str], None] = lambda name: None, interrupts: bool = True
) -> Outcome:
    """Run a program.

    Args:
        program: what to call.
        scope: where to find it.
        at: told the name of every function before it is called.
        interrupts: whether a KeyboardInterrupt is the user's; otherwise it is an exception of the homework.

    Returns:
        What the calls returned, read, changed in place, and the gradients asked for.

    Raises:
        Failure: if the homework cannot be run to its end.
    """
    return _Execution(program, scope, at, interrupts).run()


class _Execution:
    """One run of a program."""

    def __init__(self, program: Program, scope: Scope, at: Callable[[str], None], interrupts: bool) -> None:
        self.program = program
        self.scope = scope
        self.at = at
        self.interrupts = interrupts
        self.copier = _Copier()
        self.instance: Any = None
        self.returned: list[Any] = []
        self.results: list[Any] = []
        self.changed: list[tuple[int, str]] = []
        self.watched: list[tuple[int, str, Any, Any]] = []  # (call, label, what was handed over, as it has to look)
        self.set: dict[str, tuple[Any, Any]] = {}
        self.gradients: list[dict[int | str, Any]] = [{} for _ in program.differentiate]

    def run(self) -> Outcome:
        program = self.program
        functions = [
            None if self._of_owner(call.function) else self.scope.find(call.function) for call in program.calls
        ]
        if program.owner is not None:
            owner = self.scope.find(program.owner)
            construct = [self.hand(argument)[0] for argument in program.construct]
            self.instance = self.guard(program.owner, owner, *construct)
            with self.settings([]):
                return self.calls(functions)
        with self.settings(self._namespaces(functions)):
            return self.calls(functions)

    def _of_owner(self, name: str) -> bool:
        return self.program.owner is not None and name.startswith(self.program.owner + ".")

    def _namespaces(self, functions: list[Any]) -> list[dict[str, Any]]:
        """Return the globals that the functions see: of each one's own file, then of the homework."""
        spaces: list[dict[str, Any]] = []
        found = [_globals_of(function) for function in functions]
        found.append(None if self.scope.module is None else vars(self.scope.module))
        for space in found:
            if space is not None and not any(space is known for known in spaces):
                spaces.append(space)
        return spaces

    @contextlib.contextmanager
    def settings(self, namespaces: list[dict[str, Any]]) -> Iterator[None]:
        self.namespaces = namespaces
        self.set = {name: self.hand(value) for name, value in self.program.set.items()}
        values = {name: pair[0] for name, pair in self.set.items()}
        if self.instance is not None:
            for name, value in values.items():
                self.guard(f"{self.program.owner}.{name}", setattr, self.instance, name, value)
            yield
            return
        old = [(space, name, space.get(name, _ABSENT)) for space in namespaces for name in self.program.set]
        try:
            for space in namespaces:
                space.update(values)
            yield
        finally:
            for space, name, value in old:
                if value is _ABSENT:
                    space.pop(name, None)
                else:
                    space[name] = value

    def calls(self, functions: list[Any]) -> Outcome:
        program = self.program
        for name in program.before:
            full = name if program.owner is None else f"{program.owner}.{name}"
            place = self.scope.names.get(name) if program.owner is None else getattr(self.instance, name, None)
            if callable(place):
                self.guard(full, place)
        for index, call in enumerate(program.calls):
            self.call(index, call, functions[index])
        self.look_at_settings()
        read: dict[str, Any] = {}
        for name in program.read:
            value = self.guard(f"reading {name}", self.attribute, name)
            if value is not _ABSENT:
                read[name] = self.guard(f"reading {name}", self.copier.returned, name, value)
        return Outcome(tuple(self.results), read, tuple(self.changed), tuple(self.gradients))

    def attribute(self, name: str) -> Any:
        if self.instance is not None:
            return getattr(self.instance, name, _ABSENT)
        return next((space[name] for space in self.namespaces if name in space), _ABSENT)

    def call(self, index: int, call: Call, function: Any) -> None:
        name = call.function
        if function is None:
            method = name.split(".", 1)[1]
            function = getattr(self.instance, method, None)
            if not callable(function):
                owner = str(self.program.owner)
                known = [key.split(".", 1)[1] for key in self.scope.signatures() if key.startswith(owner + ".")]
                raise self.scope.missing(method, owner, known)
        handed = [self.hand(argument) for argument in call.arguments]
        named = {key: self.hand(argument) for key, argument in call.keywords.items()}
        leaves: dict[int | str, Any] = {}
        upstreams = [(pair, upstream) for pair, (at, upstream) in enumerate(self.program.differentiate) if at == index]
        if upstreams:
            given: list[tuple[int | str, Any]] = [*enumerate(call.arguments), *call.keywords.items()]
            copies = [value for value, _ in [*handed, *named.values()]]
            leaves = {key: copy for (key, value), copy in zip(given, copies, strict=True) if _float(value)}
            for leaf in leaves.values():
                leaf.requires_grad_()
        keywords = {key: value for key, (value, _) in named.items()}
        with _graph() if upstreams else contextlib.nullcontext():
            returned = self.guard(name, function, *(value for value, _ in handed), **keywords)
        labels = _labels(function, len(handed))
        self.watched += [
            (index, label, value, before)
            for label, (value, before) in [*zip(labels, handed, strict=True), *named.items()]
        ]
        self.look_for_changes()  # also at what earlier calls were given: a cache may hold it
        self.returned.append(returned)
        self.results.append(self.guard(name, self.copier.returned, name, returned))
        for pair, upstream in upstreams:
            gradients = self.guard(name, _differentiated, name, returned, upstream, leaves)
            self.gradients[pair] = self.guard(name, self.copier.returned, name, gradients)

    def look_for_changes(self) -> None:
        """Note every argument that no longer looks as it did."""
        for index, label, value, before in self.watched:
            for path in _changes(label, before, value):
                if (index, path) not in self.changed:
                    self.changed.append((index, path))

    def look_at_settings(self) -> None:
        """Note every attribute set for the program that was changed or replaced."""
        last = len(self.program.calls) - 1
        for name, (value, before) in self.set.items():
            now = self.attribute(name)
            if now is not value or any(True for _ in _changes(name, before, value)):
                self.changed.append((last, name))

    def hand(self, value: Any) -> tuple[Any, Any]:
        """Return a fresh copy to hand over, and what it has to look like afterwards (_ABSENT: no matter what)."""
        if isinstance(value, Result):
            value = self.part(value)
            if isinstance(value, np.ndarray) or is_tensor(value):
                return value, _Copier()(value)
            return value, _ABSENT
        if isinstance(value, np.ndarray):
            copy: Any = np.array(value, order="C", copy=True)
            if self.program.arrays == "torch":
                import torch

                copy = torch.from_numpy(copy)
            return copy, value
        if isinstance(value, Mapping):
            entries = {key: self.hand(entry) for key, entry in value.items()}
            return {key: pair[0] for key, pair in entries.items()}, {key: pair[1] for key, pair in entries.items()}
        if isinstance(value, list | tuple):
            kind = list if isinstance(value, list) else tuple
            pairs = [self.hand(entry) for entry in value]
            return kind(pair[0] for pair in pairs), kind(pair[1] for pair in pairs)
        return value, value

    def part(self, reference: Result) -> Any:
        whole, name = self.returned[reference.call], self.program.calls[reference.call].function
        if reference.item is None:
            return whole
        part = f"key {reference.item!r}" if isinstance(reference.item, str) else f"value {reference.item + 1}"
        wanted = f"the next call needs {part} of it"
        if whole is None:
            raise Failure("none", f"{name} returned None (is there a return statement?); {wanted}", name)
        if not isinstance(whole, dict if isinstance(reference.item, str) else dict | tuple | list):
            raise Failure("return", f"{name} returned {_described(whole)}; {wanted}", name)
        try:
            return whole[reference.item]
        except LookupError:
            raise Failure("return", f"{name} returned {_described(whole)}; {wanted}", name) from None

    def guard(self, name: str, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Call code of the homework; whatever it raises comes out as a `Failure`."""
        self.at(name)
        try:
            return function(*args, **keywords)
        except BaseException as error:
            if isinstance(error, Failure) or (self.interrupts and isinstance(error, KeyboardInterrupt)):
                raise
            raise self.scope.failure(error, name) from error


def _globals_of(function: Any) -> dict[str, Any] | None:
    while isinstance(function, functools.partial):
        function = function.func
    with contextlib.suppress(ValueError):  # wrapped in a circle
        function = inspect.unwrap(function)
    if not hasattr(function, "__globals__"):
        function = getattr(function, "__func__", None) or vars(type(function)).get("__call__")
    space = getattr(function, "__globals__", None)
    return space if isinstance(space, dict) else None


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return (
            f"a dict with the keys {', '.join(printable(_text(key)) for key in list(value)[:MOST_NAMES]) or '(none)'}"
        )
    return f"one {_type_name(value)}"


def _labels(function: Any, count: int) -> list[str]:
    """Name positional arguments as the function's own parameters are named."""
    names = list(_parameters(function) or ())
    labels: list[str] = []
    for index in range(count):
        star = next((name for name in names[: index + 1] if name.startswith("*")), None)
        if star is not None:
            labels.append(f"{star.lstrip('*')}[{index - names.index(star)}]")
        else:
            labels.append(names[index] if index < len(names) else f"argument {index + 1}")
    return labels


def _float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _changes(label: str, before: Any, now: Any) -> Iterator[str]:
    """Name the parts of an argument that are no longer as they were handed over; NaN equals NaN."""
    if before is _ABSENT:
        return
    if isinstance(before, np.ndarray):
        now = array_of(now) if is_tensor(now) else now
        same = isinstance(now, np.ndarray) and now.shape == before.shape and now.dtype == before.dtype
        if not (same and np.array_equal(before, now, equal_nan=before.dtype.kind in "fc")):
            yield label
    elif isinstance(before, dict):
        if not isinstance(now, dict):
            yield label
            return
        for key in [*before, *(key for key in now if key not in before)]:
            if key in before and key in now:
                yield from _changes(f"{label}[{key!r}]", before[key], now[key])
            else:
                yield f"{label}[{printable(_text(repr(key)))}]"
    elif isinstance(before, list | tuple):
        if not isinstance(now, type(before)) or len(now) != len(before):
            yield label
            return
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(f"{label}[{index}]", old, new)
    elif before is not now:
        same = type(before) is type(now) and (before == now or (before != before and now != now))
        if not same:
            yield label


def _graph() -> contextlib.AbstractContextManager[object]:
    """Let autograd take notes, even if the caller told it not to."""
    import torch

    return torch.enable_grad()


def _differentiated(name: str, returned: Any, upstream: Any, leaves: dict[int | str, Any]) -> dict[int | str, Any]:
    """Let autograd differentiate what a call returned with respect to its arguments."""
    import torch

    outputs = returned if isinstance(returned, tuple | list) else (returned,)
    upstreams = upstream if isinstance(upstream, tuple | list) else (upstream,)
    if len(outputs) < len(upstreams):
        raise Failure("return", f"{name} returned {_described(returned)}; {len(upstreams)} outputs are needed", name)
    used: list[Any] = []
    given: list[Any] = []
    for output, gradient in zip(outputs, upstreams, strict=False):
        if gradient is None:
            continue
        if output is None:
            raise Failure("none", f"{name} returned None (is there a return statement?)", name)
        if not is_tensor(output):
            raise Failure("return", f"{name} returned {_described(output)}; a tensor is needed", name)
        if not output.requires_grad:
            raise Failure(
                "graph",
                f"{name} returned a tensor that autograd cannot differentiate "
                "(was it detached, or converted to numpy, or computed without gradients?)",
                name,
            )
        if tuple(output.shape) != np.shape(gradient):
            expected, got = np.shape(gradient), tuple(output.shape)
            raise Failure("return", f"{name}: expected an output of shape {expected}, got {got}", name)
        used.append(output)
        given.append(torch.as_tensor(np.array(gradient), dtype=output.dtype))
    if not leaves:
        return {}
    gradients = torch.autograd.grad(used, list(leaves.values()), given, allow_unused=True, retain_graph=True)
    return dict(zip(leaves, gradients, strict=True))


class Encoder:
    """Turns plain values into what JSON can hold; the bytes of arrays gather in `data`."""

    def __init__(self) -> None:
        self.data = bytearray()

    def __call__(self, value: Any) -> Any:
        """Encode one value."""
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.kind not in ARRAY_KINDS:
                raise ValueError(f"expected arrays of numbers or text, got dtype {value.dtype}")
            tag = "array" if isinstance(value, np.ndarray) else "scalar"
            start = len(self.data)
            self.data += value.tobytes()
            return {tag: [value.dtype.str, list(value.shape), start, len(self.data)]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, Opaque):
            return {"opaque": value.type}
        if isinstance(value, Result):
            return {"result": [value.call, value.item]}
        if isinstance(value, Mapping):
            return {"dict": [[self(key), self(entry)] for key, entry in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [self(entry) for entry in value]}
        if isinstance(value, list):
            return [self(entry) for entry in value]
        raise ValueError(f"expected arrays, numbers, text, None or containers of these, got {type(value).__name__}")


def decode(value: Any, data: memoryview) -> Any:
    """Turn back what an `Encoder` made; whatever else it is given ends in one of Python's own exceptions."""
    if isinstance(value, list):
        return [decode(entry, data) for entry in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag in ("array", "scalar"):
        name, shape, start, end = content
        if not re.fullmatch(rf"[<>|=][{ARRAY_KINDS}]\d+", name) or not 0 <= start <= end <= len(data):
            raise ValueError("not an array of numbers or text")
        dtype = np.dtype(name)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != end - start:
            raise ValueError("an array of another size")
        array: Array = np.ndarray(tuple(shape), dtype, bytes(data[start:end])).copy()
        return array if tag == "array" else array[()]
    if tag == "complex":
        return complex(*content)
    if tag == "opaque":
        return Opaque(str(content))
    if tag == "result":
        return Result(*content)
    if tag == "dict":
        return {decode(key, data): decode(entry, data) for key, entry in content}
    if tag == "tuple":
        return tuple(decode(entry, data) for entry in content)
    raise ValueError("not a value")


_FRAME = struct.Struct(">16sQQ")


class GarbledError(Exception):
    """Bytes on the line that are no message."""


def write_message(write: Callable[[memoryview], int | None], token: bytes, header: Any, data: bytes = b"") -> None:
    """Write a message, however little of it the line takes at a time."""
    text = json.dumps(header).encode()
    rest = memoryview(_FRAME.pack(token, len(text), len(data)) + text + data)
    while rest:
        rest = rest[write(rest) or 0 :]


def read_message(read: Callable[[int], bytes | None], token: bytes, most: int) -> tuple[Any, memoryview] | None:
    """Read a message of at most `most` bytes; None at the end of the line.

    Raises:
        GarbledError: if what comes is no message, or is too long.
    """
    start = _read_all(read, _FRAME.size)
    if not start:
        return None
    if len(start) < _FRAME.size:
        raise GarbledError
    sent, text_size, data_size = _FRAME.unpack(start)
    if sent != token or text_size + data_size > most:
        raise GarbledError
    text, data = _read_all(read, text_size), _read_all(read, data_size)
    if len(text) + len(data) < text_size + data_size:
        return None
    try:
        return json.loads(text), memoryview(data)
    except (ValueError, RecursionError):
        raise GarbledError from None


def _read_all(read: Callable[[int], bytes | None], size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = read(min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def sources(path: str) -> Iterator[tuple[str, str | bytes]]:
    """Yield (name, source) of a file, or of every code cell of a notebook; their lines can then be quoted.

    Raises:
        Failure: if the file cannot be read, or is called a notebook and is none.
    """
    label = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            content = file.read()
        if not path.endswith(".ipynb"):
            yield path, content
            return
        cells = [cell for cell in json.loads(content.decode("utf-8-sig"))["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(cell["source"]) for cell in cells]
    except OSError as error:
        raise Failure("unreadable", printable(f"{label} cannot be read: {_text(error.strerror)}")) from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Failure("unreadable", printable(f"{label} is not a notebook: no list of cells was found")) from None
    for number, text in enumerate(texts, 1):
        name = f"{path}, code cell {number}"
        source = _without_magics(text)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        yield name, source


def _without_magics(source: str) -> str:
    """Take the lines meant for the notebook and not for Python out of a cell; every other line keeps its number."""
    start = re.match(r"\s*%%(\w+).*", source)
    if start is not None:
        if start[1] not in ("time", "timeit", "capture", "prun"):
            return ""  # a cell of another language
        source = source[: start.start(1) - 2] + source[start.end() :]
    try:
        compile(source, "cell", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        # only now: in Python too a line may start with %, inside a bracket or a text
        return re.sub(r"(?m)^([ \t]*)(?:[%!].*|[\w.]+\?+[ \t]*)$", r"\1pass", source)
    return source


def load(path: str, relieve: Callable[[], object]) -> Scope:
    """Run a homework file as a module of its own, its folder first on the path of imports.

    Args:
        path: the file.
        relieve: makes room for telling what went wrong, where memory has run out.

    Returns:
        Its names.

    Raises:
        Failure: if it cannot be read or run.
    """
    folder, label = os.path.split(path)
    stem = os.path.splitext(label)[0]
    if not stem.isidentifier() or stem in sys.modules or stem in {*sys.stdlib_module_names, "torch"}:
        stem = "homework_" + re.sub(r"\W", "_", stem)
    module = ModuleType(stem)
    module.__file__ = path
    sys.modules[stem] = module
    sys.path.insert(0, folder)
    scope = Scope(vars(module), label, folder, module)
    scope.relieve = relieve
    for name, source in sources(path):
        try:
            code = compile(source, name, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise scope.failure(error, None) from None
        except (ValueError, MemoryError, RecursionError, OverflowError) as error:  # null bytes, endless nesting
            raise Failure("syntax", printable(f"{label_of(name, folder)}: {_text(error)}")) from None
        try:
            exec(code, vars(module))
        except BaseException as error:
            raise scope.failure(error, None) from error
    return scope


class _Limits:
    """What the process may use; a limit that this system has not, or refuses, is noted."""

    def __init__(self, memory: int, file_size: int) -> None:
        self.memory = memory
        self.refused = [name for name, held in (("files", self._set("FSIZE", file_size)),) if not held]
        self._set("CORE", 0)
        self._base, self._ceiling = _memory_used(), self._get("AS")
        if not self.hold_memory():
            self.refused.append("memory")
        if not self.hold_time(3600):
            self.refused.append("processor time")

    def hold_memory(self) -> bool:
        """Limit memory to what Python and its libraries use, and the homework's share."""
        return self._set("AS", min(self._base + self.memory, self._ceiling))

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Count what is used in this context as a library's."""
        before = _memory_used()
        self.free_memory()
        try:
            yield
        finally:
            self._base += _memory_used() - before
            self.hold_memory()

    def free_memory(self) -> None:
        """Lift the limit on memory."""
        self._set("AS", self._ceiling)

    def hold_time(self, seconds: float) -> bool:
        """End the process once it has computed for this much longer, even if nobody waits for it any more."""
        return self._set("CPU", math.ceil(sum(os.times()[:2]) + seconds))

    def _get(self, name: str) -> float:
        try:
            import resource

            soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
            return next((float(limit) for limit in (soft, hard) if limit != resource.RLIM_INFINITY), math.inf)
        except (ImportError, AttributeError, OSError, ValueError):
            return math.inf

    def _set(self, name: str, amount: float) -> bool:
        try:
            import resource

            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            soft = resource.RLIM_INFINITY if amount == math.inf else int(amount)
            if hard != resource.RLIM_INFINITY:
                soft = hard if amount == math.inf else min(soft, hard)
            resource.setrlimit(kind, (soft, hard))
        except (ImportError, AttributeError, OSError, ValueError):
            return False
        return True


def _memory_used() -> int:
    """Return the bytes of address space in use, 0 where that is unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


class _RoomForTorch(importlib.abc.MetaPathFinder):
    """Lets torch map its libraries, gigabytes of them with CUDA, without counting them as the homework's memory."""

    def __init__(self, limits: _Limits) -> None:
        self.limits = limits

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find torch as everybody else would, and lift the limit while it is loaded."""
        if name != "torch" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_with_room(module: ModuleType) -> None:
                with self.limits.room():
                    run(module)

            spec.loader.exec_module = run_with_room  # type: ignore[method-assign]
        return spec


class _Server:
    """The child's side: answers one request after the other, over copies of its standard input and output."""

    def __init__(self, faults: int, token: bytes) -> None:
        self.token = token
        self.process = os.getpid()
        self.requests, self.answers = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)  # whatever the homework prints goes where errors go
        self.scope: Scope | None = None
        self.limits: _Limits | None = None
        if faults >= 0:
            import faulthandler
            import signal

            faulthandler.enable(faults, all_threads=False)
            faulthandler.register(signal.SIGUSR1, faults, all_threads=False)

    def serve(self) -> None:
        self.answer({"ready": True})
        while True:
            message = read_message(functools.partial(os.read, self.requests), self.token, 1 << 40)
            if message is None:
                os._exit(0)
            request, data = message
            encoder = Encoder()
            if self.limits is not None:
                self.limits.hold_time(2 * request["seconds"] + 10)
            try:
                content = self.fulfil(request, data, encoder)
            except BaseException as error:
                failure = (self.scope or Scope({}, "the homework")).failure(error, None)
                content, encoder = {"failure": [failure.kind, failure.message, failure.function]}, Encoder()
                del failure  # and all that its traceback holds
            for name in ("stdout", "stderr"):
                with contextlib.suppress(BaseException):  # the homework may have put anything there
                    getattr(sys, name).flush()
            self.answer(content, bytes(encoder.data))
            if self.limits is not None:
                self.limits.hold_memory()

    def fulfil(self, request: Any, data: memoryview, encoder: Encoder) -> Any:
        if request["do"] == "load":
            self.limits = _Limits(request["memory"], request["file_size"])
            sys.meta_path.insert(0, _RoomForTorch(self.limits))
            sys.argv = [request["path"]]
            self.scope = load(request["path"], self.limits.free_memory)
            signatures = {name: None if names is None else [*names] for name, names in self.scope.signatures().items()}
            return {"signatures": signatures, "refused": self.limits.refused}
        if request["do"] == "torch":
            import torch

            torch.set_num_threads(1)
            return {}
        if self.scope is None:
            raise Failure("missing", "no homework was loaded")
        program = program_from(request["program"], data)
        outcome = execute(program, self.scope, lambda name: self.answer({"at": name}), interrupts=False)
        return {"outcome": [encoder(getattr(outcome, part)) for part in ("results", "read", "changed", "gradients")]}

    def answer(self, header: Any, data: bytes = b"") -> None:
        if os.getpid() != self.process:  # the homework forked, and this is the copy
            os._exit(0)
        try:
            write_message(functools.partial(os.write, self.answers), self.token, header, data)
        except OSError:
            os._exit(PROTOCOL_BROKEN)


PARTS = ("owner", "construct", "set", "read", "before", "arrays", "differentiate")


def program_to(program: Program, encoder: Encoder) -> Any:
    """Encode a program."""
    calls = [[call.function, encoder(call.arguments), encoder(call.keywords)] for call in program.calls]
    return {"calls": calls} | {part: encoder(getattr(program, part)) for part in PARTS}


def program_from(header: Any, data: memoryview) -> Program:
    """Decode a program."""
    calls = [Call(name, decode(given, data), decode(named, data)) for name, given, named in header["calls"]]
    return Program(tuple(calls), **{part: decode(header[part], data) for part in PARTS})


def main() -> None:
    """Serve, until the line ends: `child.py <file for crashes, or -1> <token>`."""
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != here]  # its modules are no homework's
    _Server(int(sys.argv[1]), bytes.fromhex(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
