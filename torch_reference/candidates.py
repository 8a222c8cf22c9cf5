"""Asks a homework: finds its functions, calls them as its convention says, and brings the answers into one layout.

Nothing is judged here. T steps, N batch rows, D inputs, H hidden units, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_reference.child import Call, Failure, Outcome, Program, Result
from torch_reference.conventions import (
    AXES,
    CONVENTIONS,
    LEVELS,
    PARAMETERS,
    SIZES,
    Calls,
    Convention,
    Signature,
    Slot,
    from_course,
    to_course,
)
from torch_reference.course_problems import LENIENT, TOLERANCE, Problem
from torch_reference.running import Runner

Array = npt.NDArray[Any]
Signatures = Mapping[str, "tuple[str, ...] | None"]

FILLED = ("x", "mask", "h0", *PARAMETERS)  # what every function may ask for beside what it is handed


@dataclass(frozen=True)
class Answer:
    """What a homework returned for one problem.

    Attributes:
        values: By symbol, what has the right shape, canonical layout, float64.
        odd: By symbol, numbers of another shape, as they came.
        troubles: By symbol, why there is no value: in words.
        names: By symbol, what the convention calls each gradient that this level has to return.
        changed: Arguments that were changed in place, each with the function that did it.
        single: Whether it computed in float32, or less, by the dtype of what it returned.
        rounded: Whether its numbers are such that float32 holds them.
        allowed: By symbol, how far off each may be at most, relative to its largest entry.
    """

    values: dict[str, Array]
    odd: dict[str, Array]
    troubles: dict[str, str]
    names: dict[str, str]
    changed: tuple[tuple[str, str], ...]
    single: bool
    rounded: bool
    allowed: Mapping[str, float] = field(default_factory=dict)

    def tolerance(self, symbol: str | None = None) -> float:
        """How far off a quantity may be to be compared with others, relative to its largest entry."""
        return min(self.allowed.get(symbol or "", TOLERANCE[self.single]), LENIENT)


@dataclass(frozen=True)
class Candidate:
    """A homework, ready to be asked.

    Attributes:
        runner: Runs its functions.
        convention: How it writes the network.
        ways: For every level that it has, how that is called.
    """

    runner: Runner
    convention: Convention
    ways: Mapping[str, Calls]

    def takes_mask(self, level: str) -> bool:
        """Whether the functions of this level take a mask."""
        calls = self.ways[level]
        mask = self.convention.name_of("mask")
        return any(
            mask in bound
            for signature in calls.signatures
            for bound in [_binding(signature, self.runner.signatures(), self.convention, calls)]
        )

    def ask(
        self, level: str, problem: Problem, dtype: npt.DTypeLike = np.float64, between: Problem | None = None
    ) -> Answer:
        """Have the homework solve a problem.

        Args:
            level: One of its levels.
            problem: Of this level.
            dtype: float64 or float32: what it is given.
            between: Another problem, whose forward pass is run between the two calls, where these are two functions:
                what they need should be in the cache and nowhere else.

        Raises:
            Failure: It could not be run, or returned something that cannot be taken apart.
        """
        calls = self.ways[level]
        program = _program(self, calls, problem, dtype)
        needs = {symbol for slot in calls.signatures[-1].takes for symbol in _symbols(slot, self.convention, calls)}
        own_cache = calls.owner is not None and not needs & {"x", "h", "h0"}  # then it has to remember the last call
        if between is None or calls.gradient is None or own_cache:
            return _answer(self.convention, calls, problem, program, self._run(calls, program))
        other = _program(self, calls, between, dtype).calls[0]
        outcome = self._run(calls, replace(program, calls=(program.calls[0], other, program.calls[1])))
        outcome = replace(
            outcome,
            results=(outcome.results[0], outcome.results[2]),
            changed=tuple((max(0, index - 1), name) for index, name in outcome.changed if index != 1),
        )
        return _answer(self.convention, calls, problem, program, outcome)

    def twice(self, level: str, problem: Problem, dtype: npt.DTypeLike) -> Answer:
        """Have the same step of a class differentiated twice, its gradients set to zero before the first time only."""
        calls = self.ways[level]
        program = _program(self, calls, problem, dtype)
        again = replace(program, calls=(*program.calls, program.calls[-1]))
        outcome = self._run(calls, again)
        results = (*outcome.results[: len(program.calls) - 1], outcome.results[-1])
        outcome = replace(outcome, results=results, changed=())
        return _answer(self.convention, calls, problem, program, outcome)

    def states(self, level: str, problem: Problem) -> dict[str, Array]:
        """Run the first call alone; return what it says about the forward pass, as `Answer.values` does.

        Raises:
            Failure: As `ask`.
        """
        calls = self.ways[level]
        alone = replace(calls, gradient=None, autograd=False, read=())
        program = _program(self, alone, problem, np.float64)
        values = _answer(self.convention, alone, problem, program, self._run(alone, program)).values
        return {symbol: value for symbol, value in values.items() if not symbol.startswith("d")}

    def _run(self, calls: Calls, program: Program) -> Outcome:
        """Run a program; where a call returned what the next one cannot use, say what was expected of it."""
        try:
            return self.runner.run(program)
        except Failure as failure:
            expected = next((each for each in calls.signatures if each.function == failure.function), None)
            if failure.kind in ("none", "return") and expected is not None:
                failure.message = f"expected {expected.function} to return {expected.results}: {failure.message}"
            raise


def namespace_of(candidate: Any, convention: Convention | None, level: str | None) -> dict[str, Any] | ModuleType:
    """Turn what was given for a candidate into names and functions.

    Args:
        candidate: A module, a dict of functions, a class, a function, or a sequence of two: forward and gradient.
        convention: Whose names functions without a known name get.
        level: The level that these belong to; None: the one that has as many calls.

    Raises:
        TypeError: It is none of these.
        ValueError: A function's name says nothing, and neither convention nor level was given.
    """
    if isinstance(candidate, ModuleType):
        return candidate
    if isinstance(candidate, Mapping):
        return dict(candidate)
    if isinstance(candidate, type):
        return {candidate.__name__: candidate}
    functions = list(candidate) if isinstance(candidate, (tuple, list)) else [candidate]
    if not functions or not all(callable(function) for function in functions):
        raise TypeError(
            "check: expected a function, a pair of functions, a dict of functions, a class or a module, "
            f"got {type(candidate).__name__}"
        )
    named = {getattr(function, "__name__", ""): function for function in functions}
    if set(named) <= _known_functions(convention):
        return named
    return dict(zip(_names_for(functions, convention, level), functions, strict=True))


def _known_functions(convention: Convention | None) -> set[str]:
    conventions = CONVENTIONS.values() if convention is None else (convention,)
    return {
        function
        for each in conventions
        for level in each.levels
        for calls in each.ways(level)
        for function in calls.functions
    }


def _names_for(functions: Sequence[Callable[..., Any]], convention: Convention | None, level: str | None) -> list[str]:
    """Give functions of any name the names that the convention's level has for them."""
    if convention is None:
        names = ", ".join(getattr(function, "__name__", repr(function)) for function in functions)
        raise ValueError(f"check: expected a convention for {names}; there are {', '.join(CONVENTIONS)}")
    for each in LEVELS[::-1] if level is None else (level,):
        for calls in convention.ways(each):
            if len(calls.functions) == len(functions) and calls.owner is None:
                return list(calls.functions)
    raise ValueError(
        f"check: expected functions for a level of {convention.name}, got {len(functions)}; it calls "
        + "; ".join(str(sign) for each in convention.levels for way in convention.ways(each) for sign in way.signatures)
    )


def find_candidate(runner: Runner, convention: Convention | None, level: str | None = None) -> Candidate:
    """Find the functions of a homework, and its convention if that is not given.

    Args:
        runner: Knows the homework's functions.
        convention: None: the one whose calls fit best; see `fitting`.
        level: None: every level that is there.

    Raises:
        ValueError: There is no such level.
        Failure: The homework has no functions that could be checked.
    """
    signatures = runner.signatures()
    if convention is None:
        found = fitting(signatures)
        if not found:
            raise Failure("missing", _nothing_found(signatures, [*CONVENTIONS.values()]))
        convention = found[0]
    if level is not None and level not in convention.levels:
        raise ValueError(
            f"check: expected level to be one of {', '.join(convention.levels)} for {convention.name}, got {level!r}"
        )
    ways = {}
    for each in convention.levels if level is None else (level,):
        for calls in convention.ways(each):
            if all(function in signatures for function in calls.functions):
                ways[each] = calls
                break
    if not ways:
        raise Failure("missing", _nothing_found(signatures, [convention]))
    return Candidate(runner, convention, {each: ways[each] for each in LEVELS if each in ways})


def fitting(signatures: Signatures) -> list[Convention]:
    """List the conventions whose calls a homework has, those that fit best; more than one where they fit alike."""
    scores = {convention.name: _score(convention, signatures) for convention in CONVENTIONS.values()}
    best = max(scores.values())
    return [CONVENTIONS[name] for name, score in scores.items() if score == best > 0]


def incomplete(candidate: Candidate) -> list[str]:
    """Say which levels are not looked at for want of a function, and which other functions may have been meant."""
    there = candidate.runner.signatures()
    convention = candidate.convention
    known = {name for level in convention.levels for calls in convention.ways(level) for name in calls.functions}
    notes = []
    for level in convention.levels:
        for calls in convention.ways(level) if level not in candidate.ways else ():
            missing = [name for name in calls.functions if name not in there]
            alike = [get_close_matches(name, set(there) - known, 1, 0.8) for name in missing]
            found = [each[0] for each in alike if each]
            partly = 0 < len(missing) < len(calls.functions) and not any(
                set(calls.functions) & set(other.functions) for other in candidate.ways.values()
            )
            others = found or sorted(name for name in set(there) - known if "." not in name)[:5]
            if others or partly:
                instead = f"; it has {', '.join(others)}" if others else ""
                notes.append(f"{level} is not looked at: expected {', '.join(missing)}{instead}")
    return notes


def beside(candidate: Candidate) -> list[str]:
    """List calls of other conventions that a homework has and that are not looked at: "lossFun (karpathy)"."""
    signatures = candidate.runner.signatures()
    own = candidate.convention
    looked_at = {name for level in own.levels for calls in own.ways(level) for name in calls.functions}
    found = []
    for convention in CONVENTIONS.values():
        functions = [
            function
            for level in convention.levels
            for calls in convention.ways(level)
            if signatures.keys() >= {*calls.functions} and not looked_at & {*calls.functions}
            for function in calls.functions
        ]
        if functions and convention.name != candidate.convention.name:
            found.append(f"{', '.join(dict.fromkeys(functions))} ({convention.name})")
    return found


def _score(convention: Convention, signatures: Signatures) -> int:
    """Count the names that function and convention share."""
    score = 0
    for level in convention.levels:
        for calls in convention.ways(level):
            if not all(function in signatures for function in calls.functions):
                continue
            for signature in calls.signatures:
                try:
                    _binding(signature, signatures, convention, calls)
                except Failure:
                    continue
                own = set(signatures[signature.function] or ())
                score += 1 + 10 * len(own & {slot.name for slot in signature.takes})
    return score


def _nothing_found(signatures: Signatures, conventions: Sequence[Convention]) -> str:
    there = ", ".join(sorted(signatures)[:20]) or "none"
    if len(conventions) == 1:
        ways = [calls for level in conventions[0].levels for calls in conventions[0].ways(level)]
        calls = "; or ".join(
            " and ".join(f"{signature} -> {signature.results}" for signature in way.signatures) for way in ways
        )
        return f"expected functions that {conventions[0].name} calls: {calls}. Got these: {there}"
    return (
        f"expected functions that a convention calls, such as rnn_forward and rnn_backward, got these: {there}. "
        f"Conventions: {', '.join(convention.name for convention in conventions)}. Name one (--convention NAME, or "
        "convention=...) and its calls are listed"
    )


def _binding(signature: Signature, signatures: Signatures, convention: Convention, calls: Calls) -> tuple[str, ...]:
    """Return the convention's names for the function's parameters, in their order.

    A function whose parameters all have names of the convention may have them in any order and leave some out;
    otherwise the order is the convention's.
    """
    own = signatures.get(signature.function)
    takes = tuple(slot.name for slot in signature.takes)
    if own is None or any(name.startswith("*") for name in own):
        return takes
    before = calls.signatures[: calls.signatures.index(signature)] if signature in calls.signatures else ()
    made = {slot.name for earlier in before for slot in earlier.returns if slot.name}
    asked = {*takes, *made}
    if set(takes) <= set(own):  # what the problem cannot fill has a default, or Python will say that it is missing
        filled = (name for name in own if name in asked or (convention.layout(name, calls) or ("",))[0] in FILLED)
        return tuple(filled)
    known = {name for name in own if name in asked or convention.layout(name, calls) is not None}
    if known == set(own):
        return own
    without_mask = tuple(name for name in takes if name != convention.name_of("mask"))
    for names in (takes, without_mask):
        if len(own) == len(names):
            _check_order(signature, own, names)
            return names
    if len(own) > len(takes):  # the others have defaults, or Python will say that they are missing
        _check_order(signature, own[: len(takes)], takes)
        return takes
    raise Failure(
        "signature",
        f"expected {signature} with {len(takes)} parameters, got {signature.function}({', '.join(own)})",
        signature.function,
    )


def _check_order(signature: Signature, own: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Refuse parameters of which some have the convention's names, but not in its order: who is who?

    Raises:
        Failure: There are such.
    """
    moved = [name for name, wanted in zip(own, names, strict=True) if name in names and name != wanted]
    if moved:
        raise Failure(
            "signature",
            f"expected {signature} in this order, or with all of these names, got "
            f"{signature.function}({', '.join(own)})",
            signature.function,
        )


def _program(candidate: Candidate, calls: Calls, problem: Problem, dtype: npt.DTypeLike) -> Program:
    convention = candidate.convention
    made: list[Call] = []
    returned: dict[str, Result] = {}
    for index, signature in enumerate(calls.signatures):
        slots = {slot.name: slot for slot in signature.takes}
        names = _binding(signature, candidate.runner.signatures(), convention, calls)
        arguments = tuple(
            returned[name]
            if name in returned
            else _argument(slots.get(name, Slot(name)), convention, calls, problem, dtype)
            for name in names
        )
        own = candidate.runner.signatures().get(signature.function)
        by_name = own is not None and set(names) <= set(own) and not names == own[: len(names)] == tuple(slots)
        made.append(
            Call(signature.function, keywords=dict(zip(names, arguments, strict=True)))
            if by_name
            else Call(signature.function, arguments)
        )
        single = len(signature.returns) == 1
        returned |= {
            slot.name: Result(index, None if single else position)
            for position, slot in enumerate(signature.returns)
            if slot.name
        }
    upstream: tuple[tuple[int, Any], ...] = ()
    if calls.autograd:
        symbol, axes = convention.layout(calls.signatures[0].returns[0].name, calls) or ("h", "TNH")
        assert problem.upstream is not None
        upstream = ((0, to_course(problem.upstream, symbol, axes).astype(dtype)),)
    return Program(
        calls=tuple(made),
        owner=calls.owner,
        construct=() if calls.owner is None else (problem.sizes.D, problem.sizes.H),
        set={name: _argument(Slot(name), convention, calls, problem, dtype) for name in calls.set},
        read=calls.read,
        before=("zero_grad",) if calls.owner else (),
        arrays=convention.arrays,
        differentiate=upstream,
    )


def _argument(slot: Slot, convention: Convention, calls: Calls, problem: Problem, dtype: npt.DTypeLike) -> Any:
    """Write a part of the problem as the convention has it."""
    if slot.members:
        return {name: _argument(Slot(name), convention, calls, problem, dtype) for name in slot.members}
    if slot.name in SIZES:
        return getattr(problem.sizes, SIZES[slot.name])
    layout = convention.layout(slot.name, calls)
    if layout is None:
        function = calls.functions[0]
        raise Failure("signature", f"expected {function} to be called first, but it takes {slot.name}", function)
    symbol, axes = layout
    array = _part(problem, symbol, axes)
    if symbol == "y" and "T" not in axes:
        array = array[-1:]  # the last step's alone
    array = to_course(array, symbol, axes)
    if symbol in ("x", "y") and convention.one_sequence and array.dtype.kind == "i":
        return array.tolist()
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _part(problem: Problem, symbol: str, axes: str) -> Array:
    if symbol in problem.parameters:
        return problem.parameters[symbol]
    if symbol == "y" and "K" in axes:
        assert problem.targets is not None
        return np.eye(problem.sizes.K)[problem.targets]
    if symbol == "mask":
        return np.ones(problem.x.shape[:2], bool) if problem.mask is None else problem.mask > 0
    array = {"x": problem.x, "h0": problem.h0, "y": problem.targets, "dh": problem.upstream}.get(symbol)
    if array is None:
        raise Failure("signature", f"expected parameters that the problem can fill in, got one for {symbol}")
    return array


def _answer(convention: Convention, calls: Calls, problem: Problem, program: Program, outcome: Outcome) -> Answer:
    """Take apart what was returned."""
    found: dict[str, Any] = {}
    wanted: list[str] = []
    for signature, value in zip(calls.signatures, outcome.results, strict=True):
        found |= _unpacked(signature, value, convention, calls)
        wanted += [name for slot in signature.returns for name in slot.members or (slot.name,)]
    wanted += calls.read
    found |= outcome.read
    if calls.autograd:
        takes = _binding(calls.signatures[0], {}, convention, calls)
        gradients = {key if isinstance(key, str) else takes[key]: value for key, value in outcome.gradients[0].items()}
        wanted += [f"d{name}" for name in takes]
        found |= {f"d{name}": value for name, value in gradients.items()}

    unknown = [key for value in outcome.results for key in _keys(value) if convention.layout(str(key), calls) is None]
    values: dict[str, Array] = {}
    odd: dict[str, Array] = {}
    troubles: dict[str, str] = {}
    names: dict[str, str] = {}
    single = rounded = False
    for name in dict.fromkeys([*wanted, *found]):
        layout = convention.layout(name, calls)
        if layout is None:
            continue  # a cache
        symbol, axes = layout
        if name in wanted and symbol.startswith("d"):
            names[symbol] = name
        if name not in found and _is_optional(name, wanted, convention, calls):
            del names[symbol]
            continue
        if name not in found:
            others = [key for key in unknown if key not in found]
            got = f", got {', '.join(map(str, others[:10]))}" if others else ""
            troubles[symbol] = f"missing: expected a result named {name}{got}"
            continue
        array, trouble = _as_array(found[name])
        if array is None:
            troubles[symbol] = f"expected an array, got {trouble}"
            continue
        single = single or (array.dtype.kind == "f" and array.dtype.itemsize < 8)
        rounded = rounded or _is_rounded(array)
        shape = _canonical_shape("db" if symbol == "dh0" and convention.shared_h0 else symbol, problem)
        expected = _course_shape(symbol, axes, problem)
        array = array.astype(np.float64)
        if symbol == "loss" and array.size == 1:
            values[symbol] = array.reshape(())
        elif array.shape == expected:
            values[symbol] = from_course(array, symbol, axes, shape)
        else:
            odd[symbol] = array
            troubles[symbol] = f"expected shape {expected}, got {array.shape}"
    changed = tuple((name, program.calls[index].function) for index, name in outcome.changed)
    return Answer(values, odd, troubles, names, changed, single, rounded)


def _symbols(slot: Slot, convention: Convention, calls: Calls) -> list[str]:
    layouts = [convention.layout(name, calls) for name in slot.members or (slot.name,)]
    return [layout[0] for layout in layouts if layout is not None]


def _keys(value: Any) -> list[Any]:
    """The keys of a dict that was returned, alone or in a tuple."""
    if isinstance(value, Mapping):
        return list(value)
    return [key for part in value for key in _keys(part)] if isinstance(value, tuple) else []


def _unpacked(signature: Signature, value: Any, convention: Convention, calls: Calls) -> dict[str, Any]:
    """Give the parts of what a function returned their names."""
    slots = signature.returns
    members = tuple(name for slot in slots for name in slot.members or (slot.name,))
    if value is None:
        raise Failure("none", f"{signature.function} returned None: is it written yet?", signature.function)
    if isinstance(value, Mapping):
        return _by_name(value, members, convention, calls)
    if not isinstance(value, (tuple, list)):
        if len(members) == 1:
            return {members[0]: value}
        raise Failure("return", _wrong_number(signature, members, "one value"), signature.function)
    if len(slots) == 1 and not slots[0].members and len(value) != 1:
        return {members[0]: value[0]} if isinstance(value, tuple) and value else {members[0]: value}
    if len(value) == len(slots):
        found: dict[str, Any] = {}
        for slot, part in zip(slots, value, strict=True):
            if not slot.members:
                found[slot.name] = part
            elif isinstance(part, Mapping):
                found |= _by_name(part, slot.members, convention, calls)
            elif isinstance(part, (tuple, list)) and len(part) == len(slot.members):
                found |= dict(zip(slot.members, part, strict=True))
            else:
                raise Failure("return", _wrong_number(signature, slot.members, _described(part)), signature.function)
        return found
    for asked in (members, tuple(name for name in members if not _is_optional(name, members, convention, calls))):
        if len(value) == len(asked):
            return dict(zip(asked, value, strict=True))
    raise Failure("return", _wrong_number(signature, members, f"{len(value)} values"), signature.function)


def _is_optional(name: str, members: Sequence[str], convention: Convention, calls: Calls) -> bool:
    """Whether a homework may leave a result out: beside a loss the gradients of x and of the initial state."""
    symbols = {(convention.layout(each, calls) or ("",))[0] for each in members}
    return "loss" in symbols and (convention.layout(name, calls) or ("",))[0] in ("dx", "dh0")


def _wrong_number(signature: Signature, members: tuple[str, ...], got: str) -> str:
    return f"expected {signature.function} to return {', '.join(members)}, got {got}"


def _described(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else type(value).__name__


def _by_name(
    given: Mapping[Any, Any], members: tuple[str, ...], convention: Convention, calls: Calls
) -> dict[str, Any]:
    """Look the members up under their own names, or a gradient under the name of what it belongs to."""
    found = {}
    for name in members:
        for key in (name, name.removeprefix("d"), f"grad_{name.removeprefix('d')}"):
            if key in given:
                found[name] = given[key]
                break
    for key, value in given.items():
        layout = convention.layout(key, calls) if isinstance(key, str) else None
        if layout is not None and layout[0] in calls.extra.split() and key not in found:
            found[key] = value
    return found


def _as_array(value: Any) -> tuple[Array | None, str]:
    if value is None:
        return None, "None"
    try:
        array = np.asarray(value)
    except ValueError:
        return None, "a list whose rows have different lengths"
    if array.dtype.kind not in "fiu":
        return None, getattr(value, "type", None) or f"{type(value).__name__} of {array.dtype}"
    return array, ""


def _is_rounded(array: Array) -> bool:
    """Whether float32 holds all of these numbers, though some are no whole numbers."""
    if array.dtype.kind != "f":
        return False
    finite = array[np.isfinite(array)]
    fractional = finite[finite != np.round(finite)]
    with np.errstate(over="ignore"):
        return fractional.size >= 4 and bool((fractional == fractional.astype(np.float32)).all())


def _canonical_shape(symbol: str, problem: Problem) -> tuple[int, ...]:
    axes = AXES[symbol]
    sizes = problem.sizes._asdict() | {"P": problem.sizes.H}
    return tuple(sizes[axis] for axis in axes)


def _course_shape(symbol: str, axes: str, problem: Problem) -> tuple[int, ...]:
    sizes = problem.sizes._asdict() | {"P": problem.sizes.H, "1": 1}
    return tuple(sizes[axis] for axis in axes)
