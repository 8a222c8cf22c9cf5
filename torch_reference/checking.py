"""The oracle for coursework: says whether a hand-written backward pass is right, and if not, what, where and why.

`check` gives a report, `assert_gradients` an AssertionError whose text is the hint. The truth is autograd in float64
on the plain loop, held against complex steps (relu: central differences) on every problem. A homework file runs in a
child process with limits on time and memory, which is no sandbox.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from torch_reference import rendering
from torch_reference.candidates import Candidate, beside, find_candidate, fitting, incomplete, namespace_of
from torch_reference.child import Failure
from torch_reference.conventions import CONVENTIONS, LEVELS, Calls, Convention, find_convention
from torch_reference.course_problems import Problem, Sizes
from torch_reference.judging import Settings, catalogue, judge
from torch_reference.mistakes import MISTAKES
from torch_reference.reports import HINTS, LevelReport, Report
from torch_reference.running import Child, InProcess, Runner

__all__ = ["MEMORY", "SECONDS", "assert_gradients", "catalogue", "check"]

SECONDS = 10.0
MEMORY = 4 << 30  # bytes
DTYPES = ("float64", "float32")


def check(
    candidate: Any,
    convention: str | Convention | None = None,
    *,
    level: str | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    problem: Problem | None = None,
    dtype: str = "float64",
    hints: str = "cause",
    nonlinearity: str | None = None,
    time: str | None = None,
    batch: str | None = None,
    parameter_gradients: str | None = None,
    clip: float | None = None,
    arrays: str | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
) -> Report:
    """Check a hand-written backward pass.

    Args:
        candidate: The path of a Python file or notebook, which runs in a child process, or "FILE:f" or "FILE:f,g" to
            name the functions in it; or Python objects, which run in this process: a function, a pair (forward,
            gradient), a dict of functions, a class or a module.
        convention: How it writes the network: a name out of `CONVENTIONS` or an entry of your own; None: recognised
            by the names of the functions and their parameters.
        level: "step", "sequence" or "network"; None: all that the homework has.
        seed: Draws the problems: the same seed, the same numbers.
        sizes: Some of T, N, D, H, K, each at most 64; None: sizes at which every mistake shows.
        problem: Check on this problem alone, of the level given.
        dtype: What the homework is given: "float64" or "float32". What comes out in float32 is judged by 100·eps
            and everything else by 1e-9, each gradient relative to its largest entry; where large terms cancel, by 30
            times what the plain loop is off by.
        hints: What the report tells: "verdict", "where", "cause" or "values"; each tells what the one before tells.
        nonlinearity: Instead of the convention's: "tanh", "sigmoid", "relu", "identity".
        time: Instead of the convention's: "sum", "mean", "last".
        batch: Instead of the convention's: "sum", "mean".
        parameter_gradients: Instead of the convention's: "sum", "mean".
        clip: Instead of the convention's; the last of the levels looked at clips, not those that it calls.
        arrays: Instead of the convention's: what it is given, "numpy" or "torch".
        seconds: How long loading a file may take, and each call.
        memory: Bytes that a file may use.

    Returns:
        The report. A homework that cannot be run gives a report too, with the verdict "unusable".

    Raises:
        TypeError: The candidate is none of the above.
        ValueError: An unknown name, or a size that cannot be had.
        RuntimeError: The witnesses of the truth disagree.
    """
    known = find_convention(convention) if isinstance(convention, str) else convention
    _check_types(known, seed, sizes, problem)
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("hints", hints, HINTS)
    if level is not None:
        _check_choice("level", level, LEVELS)
    if problem is not None:
        _check_choice("the problem's level", problem.level, LEVELS)
        if level is not None and problem.level != level:
            raise ValueError(f"check: expected a problem of level {level}, got one of level {problem.level}")
    for name, value in (("seconds", seconds), ("memory", memory)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"check: expected {name} to be a positive number, got {value!r}")
    options = {
        "nonlinearity": nonlinearity,
        "time": time,
        "batch": batch,
        "parameter_gradients": parameter_gradients,
        "clip": clip,
        "arrays": arrays,
    }
    if known is not None:
        known = known.changed(**options)  # refuses before anything runs
    settings = Settings(problem.level if problem is not None else level, int(seed), sizes, problem, dtype, hints)
    if isinstance(candidate, (str, os.PathLike)):
        return _check_file(str(candidate), known, settings, options, seconds, memory)
    with InProcess(namespace_of(candidate, known, settings.level)) as runner:
        return _check_runner(_name_of(candidate), runner, known, settings, options)


def assert_gradients(candidate: Any, convention: str | Convention | None = None, **options: Any) -> None:
    """Raise one AssertionError whose text is the report's, unless everything is right.

    Args:
        candidate: As in `check`.
        convention: As in `check`.
        options: As in `check`; `hints` says how much the text tells.

    Raises:
        AssertionError: Something is wrong, or the candidate could not be run.
        TypeError, ValueError, RuntimeError: As `check`.
    """
    __tracebackhide__ = True
    report = check(candidate, convention, **options)
    if report.verdict != "right":
        raise AssertionError(rendering.text(report))


def _check_types(convention: Any, seed: Any, sizes: Any, problem: Any) -> None:
    """Refuse what is of another kind than expected.

    Raises:
        TypeError: Something is.
        ValueError: A negative seed, or a size of another name.
    """
    kinds: tuple[tuple[str, Any, tuple[type, ...], str], ...] = (
        ("convention", convention, (Convention, NoneType), "a name or a Convention"),
        ("seed", seed, (int, np.integer), "a whole number"),
        ("sizes", sizes, (Mapping, NoneType), "a dict"),
        ("problem", problem, (Problem, NoneType), "a Problem"),
    )
    for name, value, kind, words in kinds:
        if not isinstance(value, kind) or isinstance(value, bool):
            pair = ": give two functions as a pair, (forward, backward)" if callable(value) else ""
            raise TypeError(f"check: expected {name} to be {words}, got {value!r}{pair}")
    if seed < 0:
        raise ValueError(f"check: expected seed to be at least 0, got {seed}")
    unknown = set(sizes or {}) - set(Sizes._fields)
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"check: expected sizes among {', '.join(Sizes._fields)}, got {names}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"check: expected {name} to be one of {', '.join(choices)}, got {value!r}")


def _name_of(candidate: Any) -> str:
    if isinstance(candidate, (tuple, list)):
        return ", ".join(map(_name_of, candidate))
    if isinstance(candidate, Mapping):
        return ", ".join(map(str, candidate))
    return getattr(candidate, "__name__", type(candidate).__name__)


def _check_file(
    text: str,
    convention: Convention | None,
    settings: Settings,
    options: Mapping[str, Any],
    seconds: float,
    memory: int,
) -> Report:
    path, functions = _split(text)
    try:
        with Child(path, seconds=seconds, memory=memory) as runner:
            if functions:
                convention = _with_functions(convention, functions, settings.level, runner)
            report = _check_runner(path.name, runner, convention, settings, options)
            limits = getattr(runner, "unlimited", ())
            notes = (*report.notes, f"not limited on this system: {', '.join(limits)}") if limits else report.notes
            return replace(report, notes=notes)
    except Failure as failure:
        named = "" if convention is None else convention.name
        title = "" if convention is None else convention.title
        return Report(path.name, named, title, trouble=failure.message, seed=settings.seed, hints=settings.hints)


def _split(text: str) -> tuple[Path, tuple[str, ...]]:
    """Take "homework.py:f,g" apart; a path that exists is a path."""
    if not os.path.exists(text) and ":" in text:
        path, _, names = text.rpartition(":")
        if all(name.strip().isidentifier() for name in names.split(",")):
            return Path(path), tuple(name.strip() for name in names.split(","))
    return Path(text), ()


def _with_functions(
    convention: Convention | None, functions: tuple[str, ...], level: str | None, runner: Runner
) -> Convention:
    """Return the convention with a level that calls functions of these names."""
    if convention is None:
        raise ValueError(f"check: expected a convention for {', '.join(functions)}; there are {', '.join(CONVENTIONS)}")
    for each in LEVELS[::-1] if level is None else (level,):
        for calls in convention.ways(each):
            if len(calls.functions) == len(functions):
                there = runner.signatures()
                if missing := [name for name in functions if name not in there]:
                    known = ", ".join(sorted(there)[:20]) or "none"
                    raise Failure("missing", f"expected functions {', '.join(missing)} in the file. Got these: {known}")
                return replace(convention, levels={each: _renamed(calls, functions)})
    raise ValueError(f"check: expected as many functions as a level of {convention.name} has, got {len(functions)}")


def _renamed(calls: Calls, functions: tuple[str, ...]) -> Calls:
    texts = [calls.forward] if calls.gradient is None else [calls.forward, calls.gradient]
    new = [
        text.replace(f"{old}(", f"{name}(", 1)
        for text, old, name in zip(texts, calls.functions, functions, strict=True)
    ]
    return replace(calls, forward=new[0], gradient=new[1] if len(new) == 2 else None)


def _check_runner(
    name: str, runner: Runner, convention: Convention | None, settings: Settings, options: Mapping[str, Any]
) -> Report:
    try:
        candidate = find_candidate(runner, convention, settings.level)
    except Failure as failure:
        named = "" if convention is None else convention.name
        title = "" if convention is None else convention.title
        return Report(name, named, title, trouble=failure.message, seed=settings.seed, hints=settings.hints)
    if convention is not None:
        return _judged(name, candidate, settings, options)
    known = [each for each in fitting(runner.signatures()) if settings.level is None or settings.level in each.levels]
    fitting_ones = [find_candidate(runner, each, settings.level) for each in known] or [candidate]
    reports = [_judged(name, each, settings, options) for each in fitting_ones]
    best = min(reports, key=_doubt)
    notes = [f"convention recognised by its functions: {best.convention}"]
    for report in reports:
        if report is not best:
            notes.append(
                f"{report.convention} has the same functions, and as that it is {report.verdict}: name what is meant"
            )
    if others := beside(fitting_ones[reports.index(best)]):
        notes.append(f"not looked at: {'; '.join(others)}: name the convention if that is meant")
    return replace(best, notes=(*notes, *best.notes))


def _judged(name: str, candidate: Candidate, settings: Settings, options: Mapping[str, Any]) -> Report:
    """Judge all levels of a homework; the last of them is the one that clips."""
    used = candidate.convention.changed(**options)
    inner = replace(candidate, convention=replace(used, clip=None))  # what the last level calls does not clip
    last = replace(candidate, convention=used)
    *called, outermost = candidate.ways
    levels = (*(judge(inner, level, settings) for level in called), judge(last, outermost, settings))
    notes = tuple(incomplete(candidate)) if settings.level is None else ()
    return Report(name, used.name, used.title, _seen_elsewhere(levels), "", notes, settings.seed, settings.hints)


def _doubt(report: Report) -> tuple[int, int]:
    """Order reports of the same homework by conventions that have the same functions: the one meant comes first."""
    main = report.main
    findings = 0 if main is None else len(main.findings) + 10 * bool(main.unexplained)
    return ("right", "wrong", "unusable").index(report.verdict), findings


def _seen_elsewhere(levels: tuple[LevelReport, ...]) -> tuple[LevelReport, ...]:
    """Leave out of what a level cannot see what another one sees."""
    seen = {
        id_
        for level in levels
        if level.verdict == "right"
        for id_, mistake in MISTAKES.items()
        if level.level in mistake.levels and id_ not in {hidden for hidden, _, _ in level.blind}
    }
    return tuple(replace(level, blind=tuple(each for each in level.blind if each[0] not in seen)) for level in levels)
