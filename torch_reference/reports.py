"""What a check found, as plain data; rendering.py writes it out. No judgement here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

HINTS = ("verdict", "where", "cause", "values")  # each tells what those before it tell, and more


@dataclass(frozen=True)
class GradientReport:
    """One gradient that the convention asks for.

    Attributes:
        name: What the convention calls it.
        symbol: What docs/derivation.md calls it: "dW".
        ok: Whether it is right.
        error: max |got - true| / max |true|; None where there is no number to compare.
        worst_index: Where it is furthest off, in the convention's own layout; None where there is no such place.
        got: What stands there.
        expected: What should stand there; shown at the hint level "values" alone.
        first_wrong_step: For a gradient with a time axis, the first wrong step going backward, counted from 1.
        trouble: Wrong shape, missing, no array, not finite: in words; "" if nothing.
    """

    name: str
    symbol: str
    ok: bool
    error: float | None = None
    worst_index: tuple[int, ...] | None = None
    got: float | None = None
    expected: float | None = None
    first_wrong_step: int | None = None
    trouble: str = ""


@dataclass(frozen=True)
class FirstWrong:
    """The first wrong quantity in the order of judgement.

    Attributes:
        quantity: "h", "o", "p", "loss", "dL/do", "dL/dh", "dL/da", or a gradient by the convention's name.
        step: The step, counted from 1; None where the quantity has none.
        steps: T.
        before: What is right before it, in words; "" if nothing comes before.
        exact: Whether it was seen itself; False: inferred from what was returned.
    """

    quantity: str
    step: int | None
    steps: int
    before: str = ""
    exact: bool = True


@dataclass(frozen=True)
class Finding:
    """A mistake that explains the numbers to rounding, or a fact about the homework that does not.

    Attributes:
        id: Its number in docs/coursework.md.
        title: A few words.
        cause: A sentence that says what is wrong.
        hint: Where to look.
        note: The form it takes here: "by N"; "" if there is but one.
        explains: Whether the numbers are those that this mistake gives; False: it is a fact that may explain something.
    """

    id: str
    title: str
    cause: str
    hint: str
    note: str = ""
    explains: bool = True


@dataclass(frozen=True)
class LevelReport:
    """What was found at one level.

    Attributes:
        level: "step", "sequence" or "network".
        functions: The functions that were called.
        verdict: "right", "wrong" or "unusable".
        gradients: In the order in which the convention returns them.
        first_wrong: None if nothing is wrong or nothing could be located.
        findings: The mistakes that explain it, and facts; empty if nothing is wrong, or nothing fits and was seen.
        possible: Findings that explain the numbers equally well, where no problem tells them apart.
        unexplained: What no finding explains: "these numbers", "the gradients beside it"; "" if nothing is left.
        over_time: Maps quantities to their relative error at every step; None where it cannot be seen.
        lags: Row s, column t: the error in what the upstream gradient of step s alone contributes to step t; None
            where that cannot be seen; () where it was not tried.
        notes: Anything else worth knowing: dtype, scale, what was changed in place.
        blind: Mistakes that this problem cannot see: (id, title, why or "").
        sizes: T, N, D, H, K of the problem.
        trouble: Why it is unusable.
        output: What the homework printed, shortened.
    """

    level: str
    functions: tuple[str, ...]
    verdict: str
    gradients: tuple[GradientReport, ...] = ()
    first_wrong: FirstWrong | None = None
    findings: tuple[Finding, ...] = ()
    possible: tuple[Finding, ...] = ()
    unexplained: str = ""
    over_time: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    lags: tuple[tuple[float | None, ...], ...] = ()
    notes: tuple[str, ...] = ()
    blind: tuple[tuple[str, str, str], ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    trouble: str = ""
    output: str = ""


@dataclass(frozen=True)
class Report:
    """What was found in one homework.

    Attributes:
        candidate: The file or function.
        convention: The convention's name; "" if none was recognised.
        title: The convention's title.
        levels: From "step" to "network", those that the homework has.
        trouble: Why nothing could be checked; "" if something was.
        notes: About the homework as a whole.
        seed: Which problem was drawn.
        hints: How much the report tells: one of `HINTS`.
    """

    candidate: str
    convention: str
    title: str
    levels: tuple[LevelReport, ...] = ()
    trouble: str = ""
    notes: tuple[str, ...] = ()
    seed: int = 0
    hints: str = "cause"

    @property
    def verdict(self) -> str:
        """Wrong if any level is wrong, else unusable if any is (or there is none), else right."""
        verdicts = {level.verdict for level in self.levels}
        if "wrong" in verdicts:
            return "wrong"
        return "right" if verdicts == {"right"} else "unusable"

    @property
    def main(self) -> LevelReport | None:
        """The level that says most about the verdict.

        A wrong sequence spoils the network that is built on it, and shows more than a wrong step; but the level that is
        explained by most mistakes comes first. Of right levels it is the widest.
        """
        deciding = [level for level in self.levels if level.verdict == self.verdict]
        if self.verdict == "wrong":
            order = ("sequence", "network", "step")
            deciding.sort(key=lambda level: (-_explaining(level), order.index(level.level)))
            return deciding[0]
        return deciding[-1] if deciding else None

    def __str__(self) -> str:
        """The report as text."""
        from torch_reference import rendering  # which imports this module

        return rendering.text(self)

    def _repr_html_(self) -> str:
        """The report as notebooks show it."""
        from torch_reference import rendering

        return rendering.html_fragment(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: `main`'s gradients, first_wrong and findings on top, all levels below."""
        main = self.main
        top = _level_dict(main) if main else {"gradients": {}, "first_wrong": None, "findings": []}
        return {
            "verdict": self.verdict,
            "level": main.level if main else None,
            "gradients": top["gradients"],
            "first_wrong": top["first_wrong"],
            "findings": top["findings"],
            "unexplained": main.unexplained if main else "",
            "candidate": self.candidate,
            "convention": self.convention,
            "trouble": self.trouble or (main.trouble if main else ""),
            "notes": list(self.notes),
            "seed": self.seed,
            "levels": {level.level: _level_dict(level) for level in self.levels},
        }


def _explaining(level: LevelReport) -> int:
    return sum(finding.explains for finding in level.findings)


def _level_dict(level: LevelReport) -> dict[str, Any]:
    first = level.first_wrong
    return {
        "verdict": level.verdict,
        "functions": list(level.functions),
        "sizes": level.sizes,
        "gradients": {
            gradient.name: {
                "ok": gradient.ok,
                "error": gradient.error,
                "worst_index": None if gradient.worst_index is None else list(gradient.worst_index),
                "first_wrong_step": gradient.first_wrong_step,
                "trouble": gradient.trouble,
            }
            for gradient in level.gradients
        },
        "first_wrong": None
        if first is None
        else {"quantity": first.quantity, "step": first.step, "steps": first.steps, "seen": first.exact},
        "findings": [_finding_dict(finding) for finding in level.findings],
        "possible": [_finding_dict(finding) for finding in level.possible],
        "unexplained": level.unexplained,
        "over_time": {name: [_finite(error) for error in errors] for name, errors in level.over_time.items()},
        "lags": [[_finite(error) for error in row] for row in level.lags],
        "notes": list(level.notes),
        "cannot_see": [{"id": id_, "title": title, "why": why} for id_, title, why in level.blind],
        "trouble": level.trouble,
    }


def _finite(error: float | None) -> float | None:
    """JSON has no infinity."""
    return error if error is not None and math.isfinite(error) else None


def _finding_dict(finding: Finding) -> dict[str, Any]:
    cause = f"{finding.cause[:-1]}: {finding.note}." if finding.note else finding.cause
    words = {"id": finding.id, "cause": cause, "title": finding.title, "hint": finding.hint}
    return {**words, "explains": finding.explains}
