"""The judgement of one level of one homework: is it right, where is it wrong first, and what explains it?

What is asked, in this order: a problem, the same once more, the same with another forward pass in between, a second
problem of other sizes, and where all that is right a long one, and of a class a second step. T steps, N batch rows, D
inputs, H hidden units, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_reference import facts, localisation
from torch_reference.candidates import Answer, Candidate
from torch_reference.child import Failure
from torch_reference.conventions import to_course
from torch_reference.course_problems import (
    TOLERANCE,
    VAGUE,
    Problem,
    Sizes,
    allowances,
    asked_for,
    check_problem,
    kind_of,
    long,
    others,
    posed,
    standard_sizes,
    truth,
    witnessed_truth,
)
from torch_reference.diagnosis import (
    Asked,
    Diagnosis,
    Fit,
    common_factor,
    diagnose,
    invisible,
    relative_error,
)
from torch_reference.localisation import Place
from torch_reference.mistakes import LAST_FOR_FIRST, MISTAKES, Plant, factors, is_guarded, planted
from torch_reference.reports import Finding, FirstWrong, GradientReport, LevelReport
from torch_reference.workings import Workings

Array = npt.NDArray[Any]

FORWARD = ("h", "o", "p", "loss")


@dataclass(frozen=True)
class Settings:
    """What a check was asked to do; see `check`."""

    level: str | None
    seed: int
    sizes: Mapping[str, int] | None
    problem: Problem | None
    dtype: str
    hints: str


def judge(candidate: Candidate, level: str, settings: Settings) -> LevelReport:
    """Judge one level; a homework that cannot be run is "unusable".

    Args:
        candidate: The homework.
        level: One of its levels.
        settings: What the check was asked to do.

    Raises:
        ValueError, RuntimeError: As `posed`.
    """
    functions = candidate.ways[level].functions
    try:
        with np.errstate(all="ignore"):  # what a homework returns may overflow in whatever is done with it
            return _Level(candidate, level, settings).report()
    except Failure as failure:
        return LevelReport(
            level, functions, "unusable", trouble=failure.message, output=getattr(candidate.runner, "output", "")
        )


def _completed(sizes: Mapping[str, int] | None, standard: Sizes) -> Sizes:
    """Put the sizes that were asked for in the place of the standard ones; one step stays one step."""
    given = dict(sizes or {})
    if standard.T == 1:
        given.pop("T", None)
    return standard._replace(**given)


class _Level:
    """The check of one level."""

    def __init__(self, candidate: Candidate, level: str, settings: Settings) -> None:
        self.candidate = candidate
        self.convention = candidate.convention
        self.level = level
        self.calls = candidate.ways[level]
        self.dtype: npt.DTypeLike = np.dtype(settings.dtype)
        kind = kind_of(self.convention, level, candidate.takes_mask(level))
        self.standard, _ = posed(kind, settings.seed, standard_sizes(kind), False, settings.dtype)
        if settings.problem is not None:
            check_problem(settings.problem, self.convention)
            problem = settings.problem.rounded(settings.dtype)
            posing = [(problem, witnessed_truth(problem))]
        else:
            first = _completed(settings.sizes, standard_sizes(kind))
            second = others(kind, standard_sizes(kind)) if settings.sizes is None else first
            posing = [
                posed(kind, settings.seed, first, False, settings.dtype),
                posed(kind, settings.seed + 1, second, kind.tokens, settings.dtype),
            ]
        self.problems = [problem for problem, _ in posing]
        self.truths = [truth for _, truth in posing]
        self.wanted = [
            asked_for(right, problem, self.convention)
            for right, problem in zip(self.truths, self.problems, strict=True)
        ]
        self.usual = settings.problem is None and settings.sizes is None
        self.kind, self.settings = kind, settings
        self._allowances: dict[int, dict[bool, dict[str, float]]] = {}
        self.notes: list[str] = []
        self._varies = False  # whether the same question had two answers
        self._single = False  # whether anything came out of float32 so far

    def report(self) -> LevelReport:
        """Ask, judge, and where something is wrong, locate and explain it."""
        answers = [self._ask(0)]
        wrong = self._is_wrong(answers[0], 0)
        again = self._asked_once_more() if wrong else None  # before another problem leaves traces
        self._varies = again is not None and facts.differ(answers[0], again)
        if not wrong:
            if (kept := self._asked_again(answers[0])) is not None:
                return kept
            if answers[0].changed:
                return self._changed_arguments(answers[0])
        try:
            answers += [self._ask(index) for index in range(1, len(self.problems))]
        except Failure as failure:
            if not wrong:
                raise self._later_failure(failure, 1) from None
            self.notes.append(f"it could not be run on a second problem, with {self._sizes(1)}: {failure.message}")
        if answers[0].single:
            self.notes.append("computed in float32, and judged by what float32 can do; the truth is float64")
            self.notes += self._cancelling(answers[0])
        asked = [Asked(self.problems[index], answer) for index, answer in enumerate(answers)]
        for index, answer in enumerate(answers):
            if self._is_wrong(answer, index):
                order = [index, *(other for other in range(len(asked)) if other != index)]
                return self._wrong([asked[each] for each in order], index, again)
        if (lasting := self._asked_for_long()) is not None:
            return lasting
        if (overwritten := self._asked_to_add_up(answers[0])) is not None:
            return overwritten
        for index, answer in enumerate(answers):
            if undecided := self._undecided(answer, index):
                precision = "float32" if answer.single else "float64"
                raise Failure(
                    "vague",
                    f"on this problem {precision} cannot judge {facts.joined(undecided)}: large terms cancel, and the "
                    "plain loop itself is off by about as much; take another seed, other sizes or another problem",
                )
        if self._guarded(answers[0]):
            self.notes.append("the logarithm of the loss is guarded against zero by a small number")
        return LevelReport(
            self.level,
            self.calls.functions,
            "right",
            self._gradients(answers[0], 0),
            notes=(*self.notes, *self._ambiguous()),
            blind=self._blind(asked[0]),
            sizes=self._shown_sizes(),
        )

    def _asked_to_add_up(self, first: Answer) -> LevelReport | None:
        """A class holds the gradients of its weights: those of the next step are added to them, or it is wrong."""
        if self.level != "step" or self.calls.owner is None or not self.calls.read:
            return None
        answer, wanted = self.candidate.twice(self.level, self.problems[0], self.dtype), self.wanted[0]

        def is_times(count: int, symbol: str) -> bool:
            error = relative_error(answer.values.get(symbol, np.array(np.nan)), count * wanted[symbol])
            return error <= first.tolerance(symbol)

        wrong = [each for each in first.names if not is_times(1 + localisation.is_parameter(each), each)]
        if not wrong:
            return None
        overwritten = all(localisation.is_parameter(each) and is_times(1, each) for each in wrong)
        gone = "right after one step; after a second one " + (
            "the first one's share is gone" if overwritten else "wrong"
        )
        mistake = MISTAKES["M35"]
        return LevelReport(
            self.level,
            self.calls.functions,
            "wrong",
            tuple(
                replace(each, ok=False, trouble=gone) if each.symbol in wrong else each
                for each in self._gradients(first, 0)
            ),
            self._first_wrong(Place(wrong[0], None), first, 0),
            (Finding(mistake.id, mistake.title, mistake.cause, mistake.hint),) if overwritten else (),
            unexplained="" if overwritten else "what a second step adds",
            notes=tuple(self.notes),
            sizes=self._shown_sizes(),
        )

    def _asked_for_long(self) -> LevelReport | None:
        """Ask for a long sequence, where truncation after many steps shows; None if that is right."""
        sizes = long(self.kind)
        if not self.usual or sizes is None:
            return None
        problem, right = posed(self.kind, self.settings.seed + 2, sizes, self.kind.tokens, self.settings.dtype)
        self.problems.append(problem)
        self.truths.append(right)
        self.wanted.append(asked_for(right, problem, self.convention))
        index = len(self.problems) - 1
        try:
            answer = self._ask(index)
        except Failure as failure:
            raise self._later_failure(failure, index) from None
        return self._wrong([Asked(problem, answer)], index, None) if self._is_wrong(answer, index) else None

    def _guarded(self, answer: Answer) -> bool:
        """Whether the loss is right but for a guard against the logarithm of zero."""
        if "loss" not in answer.values:
            return False
        return relative_error(answer.values["loss"], self.wanted[0]["loss"]) > answer.tolerance("loss")

    def _ask(self, index: int, between: Problem | None = None) -> Answer:
        if index not in self._allowances:
            self._allowances[index] = allowances(self.problems[index], self.wanted[index], self.convention)
        return self._answer(self.problems[index], self.truths[index], self._allowances[index], between)

    def _ask_about(self, problem: Problem, right: Mapping[str, Array]) -> Answer:
        allowed = allowances(problem, asked_for(right, problem, self.convention), self.convention)
        return self._answer(problem, right, allowed, None)

    def _answer(
        self,
        problem: Problem,
        right: Mapping[str, Array],
        allowed: Mapping[bool, Mapping[str, float]],
        between: Problem | None,
    ) -> Answer:
        answer = self.candidate.ask(self.level, problem, self.dtype, between)
        plain = bool((right["h"] == right["h"].astype(np.float32)).all())  # numbers that float32 can hold anyway
        self._single = self._single or answer.single or (answer.rounded and not plain)
        return replace(answer, single=self._single, allowed=allowed[self._single])

    def _cancelling(self, answer: Answer) -> list[str]:
        """Say which gradients float32 can hardly judge."""
        vague = [f"{name} to {answer.tolerance(symbol):.0e}" for symbol, name in answer.names.items()]
        vague = [each for each, symbol in zip(vague, answer.names, strict=True) if answer.tolerance(symbol) > VAGUE]
        return [f"large terms cancel here, float32 leaves some gradients vague: {', '.join(vague)}"] if vague else []

    def _undecided(self, answer: Answer, index: int) -> list[str]:
        """The results that rounding alone may have made what they are, and that may as well be wrong."""
        wanted = self.wanted[index]
        symbols = [
            symbol
            for symbol, value in answer.values.items()
            if symbol in wanted
            and symbol != "loss"
            and relative_error(value, wanted[symbol]) > answer.tolerance(symbol)
        ]
        names = [answer.names.get(symbol) or self.convention.name_of(symbol, self.calls) for symbol in symbols]
        return [f"{name} (to {answer.allowed[symbol]:.0e})" for name, symbol in zip(names, symbols, strict=True)]

    def _shown_sizes(self, index: int = 0) -> dict[str, int]:
        return dict(self.problems[index].sizes._asdict())

    def _sizes(self, index: int) -> str:
        return ", ".join(f"{name}={size}" for name, size in self._shown_sizes(index).items())

    def _later_failure(self, failure: Failure, index: int) -> Failure:
        """The failure of a problem after the first, with its sizes."""
        message = f"{failure.message}\nThe first calls went well; this was one with other sizes: {self._sizes(index)}"
        return Failure(failure.kind, message, failure.function)

    def _symbol_is_right(self, symbol: str, answer: Answer, index: int) -> bool:
        if symbol in answer.troubles or symbol not in answer.values:
            return False
        wanted = self.wanted[index][symbol]
        error = relative_error(answer.values[symbol], wanted)
        near = answer.allowed.get(symbol, answer.tolerance(symbol))
        return error <= near or (symbol == "loss" and is_guarded(self.problems[index], answer.values[symbol], near))

    def _is_wrong(self, answer: Answer, index: int) -> bool:
        looked_at = [*answer.names, *answer.troubles, *answer.values]
        return not all(
            self._symbol_is_right(symbol, answer, index) for symbol in looked_at if symbol in self.wanted[index]
        )

    def _gradients(self, answer: Answer, index: int) -> tuple[GradientReport, ...]:
        return tuple(self._gradient(symbol, name, answer, index) for symbol, name in answer.names.items())

    def _gradient(self, symbol: str, name: str, answer: Answer, index: int) -> GradientReport:
        wanted = self.wanted[index][symbol]
        ok = self._symbol_is_right(symbol, answer, index)
        if symbol not in answer.values:
            return GradientReport(name, symbol, ok, trouble=answer.troubles[symbol])
        got = answer.values[symbol]
        error = relative_error(got, wanted)
        layout = self.convention.layout(name, self.calls)
        assert layout is not None
        own_got, own_wanted = (
            value if symbol == "dh0" and self.convention.shared_h0 else to_course(value, symbol, layout[1])
            for value in (got, wanted)
        )
        difference = np.abs(own_got - own_wanted)
        difference[~np.isfinite(own_got)] = np.inf
        worst = tuple(int(each) for each in np.unravel_index(int(difference.argmax()), difference.shape))
        step = None
        if symbol == "dx" and not ok:
            limit = answer.tolerance(symbol)
            wrong = [t for t, each in enumerate(localisation.step_errors(got, wanted)) if not each <= limit]
            step = wrong[-1] + 1 if wrong else None
        return GradientReport(
            name,
            symbol,
            ok,
            error if np.isfinite(error) else None,
            worst,
            float(own_got[worst]),
            float(own_wanted[worst]),
            step,
            "" if np.isfinite(got).all() else f"not finite: {int((~np.isfinite(got)).sum())} of {got.size} numbers",
        )

    def _wrong(self, asked: Sequence[Asked], index: int, again: Answer | None) -> LevelReport:
        """Explain a wrong answer, the first of `asked`, to problem `index`; `again` is the next one to the same."""
        answer, problem = asked[0].answer, asked[0].problem
        diagnosis = diagnose(asked, self.convention, self.calls)
        possible = [
            replace(_finding(plants[0]), title=" and ".join(plant.mistake.title for plant in plants))
            for plants in (diagnosis.explanations if len(diagnosis.explanations) > 1 else ())
        ]
        findings = [_finding(plant) for plant in diagnosis.found]
        findings += self._facts(asked[0], index, diagnosis, again)
        if self.convention.name_of("h0", self.calls) in facts.changed_arguments(answer):
            others = [each for each in findings if each.note != LAST_FOR_FIRST]
            if len(others) < len(findings):  # the last state was written over h_0: that is no second mistake
                findings = [replace(each, explains=each.explains or each.id == "P5") for each in others]
        seen = localisation.see(answer, problem, self.truths[index], self.convention)
        place = self._place(asked[0], seen, index, diagnosis)
        if place is None and answer.troubles:
            place = Place(next(iter(answer.troubles)), None)
        return LevelReport(
            self.level,
            self.calls.functions,
            "wrong",
            self._gradients(answer, index),
            self._first_wrong(place, answer, index, bool(diagnosis.found) or "da" in seen.values),
            tuple(findings),
            tuple(possible),
            self._unexplained(answer, diagnosis, findings, index),
            self._over_time(seen, answer, index),
            self._lags(index),
            (*self.notes, *self._factor(answer, index, diagnosis), *self._ambiguous(index)),
            () if self.usual else self._blind(asked[0]),
            self._shown_sizes(index),
        )

    def _facts(self, asked: Asked, index: int, diagnosis: Diagnosis, again: Answer | None) -> list[Finding]:
        """What was seen beside the numbers."""
        answer = asked.answer
        slots = planted(diagnosis.found)
        found = []
        forward = [name for name in ("h", "hT", "loss", "p", "o") if name in answer.values]
        if not diagnosis.explanations and not all(self._symbol_is_right(name, answer, index) for name in forward):
            found += facts.ignored_arguments(self.candidate, self.level, asked.problem, forward)
        covered = _explained(Fit(asked, self.convention, self.calls), slots) if diagnosis.found else set()
        found += facts.malformed(answer, self.wanted[index], self.convention, self.calls, covered)
        if answer.changed:
            found.append(facts.changed(answer, self.convention, self.calls))
        if again is not None and facts.differ(answer, again) and not any(each.id == "P8" for each in found):
            kept = Asked(asked.problem, again)
            id_, note, _ = facts.what_is_kept(answer, kept, slots, self.convention, self.calls)
            found.append(facts.fact(id_, note, explains=id_ != "P5" and bool(diagnosis.found)))
        return found

    def _unexplained(self, answer: Answer, diagnosis: Diagnosis, findings: Sequence[Finding], index: int) -> str:
        """What no finding explains."""
        if diagnosis.forward_alone and diagnosis.explanations:
            return "the gradients beside it"
        explained = diagnosis.explanations or any(each.explains or each.id in ("P6", "P8") for each in findings)
        wrong = [symbol for symbol in answer.names if not self._symbol_is_right(symbol, answer, index)]
        shapeless = bool(wrong) and all(symbol in answer.troubles for symbol in wrong)  # no numbers to explain
        infinite = bool(wrong) and all(not np.isfinite(answer.values.get(symbol, np.nan)).all() for symbol in wrong)
        return "" if explained or shapeless or infinite else "these numbers"

    def _place(self, asked: Asked, seen: localisation.Seen, index: int, diagnosis: Diagnosis) -> Place | None:
        right, wanted = self.truths[index], self.wanted[index]
        by_numbers = localisation.first_seen(seen, asked.answer, wanted, right, len(asked.problem.x))
        if not diagnosis.explanations or diagnosis.forward_alone:
            return self._what_arrived(by_numbers, asked, index)
        workings = Workings(asked.problem, self.convention)
        places = {
            localisation.first_of_formula(workings, planted(each), asked.answer) for each in diagnosis.explanations
        }
        return (places.pop() if len(places) == 1 else None) or by_numbers

    def _what_arrived(self, place: Place | None, asked: Asked, index: int) -> Place | None:
        """Where dL/da is the first that is wrong: is it what arrived, dL/dh, or what the activation made of it?

        An upstream gradient at this step alone is given, then another one. What is left of dL/da without the true
        derivative should be that upstream gradient. It is, where what comes from other steps is at fault. Where it is a
        multiple, or does not depend on the upstream gradient at all, it may be either.
        """
        problem = asked.problem
        if place is None or place.seen or place.step is None or not (place.either or place.symbol == "dh"):
            return place
        if problem.upstream is None or self._varies:
            return replace(place, either=True)
        step, unsure = place.step, replace(place, either=True)
        alone = np.zeros_like(problem.upstream)
        alone[step] = problem.upstream[step]
        usual = replace(problem, upstream=alone)
        arrived = []
        for each in (usual, replace(usual, upstream=alone[:, :, ::-1].copy())):
            right = truth(each)
            seen = localisation.see(self._ask_about(each, right), each, right, self.convention)
            if "da" not in seen.values or each.upstream is None:
                return unsure
            arrived.append(seen.values["da"][step] * each.upstream[step] / right["da"][step])
        near = min(100 * localisation.READ_OFF[asked.answer.single], 0.3)  # small derivatives enlarge what was read off
        given, turned = alone[step], alone[step, :, ::-1]
        if relative_error(arrived[0], given) <= near or float(np.abs(arrived[0]).max()) <= near:
            return Place("dh", step, False)
        if localisation.is_multiple(arrived[0], given, near) or relative_error(arrived[1], arrived[0]) <= near:
            return unsure
        # a wrong derivative is a factor of each unit's own, whatever arrives there
        return Place("da" if relative_error(arrived[0] * turned, arrived[1] * given) <= near else "dh", step, False)

    def _first_wrong(
        self, place: Place | None, answer: Answer, index: int, through_time: bool = True
    ) -> FirstWrong | None:
        """Put a place into words; `through_time` says whether dL/dh and dL/da are known."""
        T = len(self.problems[index].x)
        if place is None:
            return None
        symbol, step = place.symbol, None if place.step is None else place.step + 1
        names = answer.names | {name: name for name in FORWARD} | localisation.INTERMEDIATES
        quantity = names.get(symbol) or self.convention.name_of(symbol, self.calls)
        if place.either:
            quantity = "dL/dh or dL/da"
        if place.any:
            quantity = f"dL/dh, dL/da or {quantity}"
        return FirstWrong(
            quantity, step, T, self._before(symbol, step, T, answer, through_time and not place.either), place.seen
        )

    def _before(self, symbol: str, step: int | None, T: int, answer: Answer, through_time: bool) -> str:
        """Say what comes before a quantity in the order of judgement, and is right."""
        forward = [name for name in FORWARD if name in answer.values]
        if symbol in FORWARD:
            earlier = forward[: forward.index(symbol)] if symbol in forward else []
            until = [] if step in (None, 1) else [f"t=1 to {step - 1}" if step and step > 2 else "t=1"]
            return facts.joined([*earlier, *until])
        upstream = ["dL/do"] if self.level == "network" else []
        if symbol == "do":
            return facts.joined([*forward, *([] if step in (None, T) else [_later(step, T)])])
        if symbol in ("dh", "da"):
            own = ["dL/dh"] if symbol == "da" and step == T and through_time else []
            return facts.joined([*(upstream or forward), *own, *([] if step in (None, T) else [_later(step, T)])])
        return facts.joined([*upstream, "dL/dh", "dL/da"]) if through_time else ""

    def _over_time(self, seen: localisation.Seen, answer: Answer, index: int) -> dict[str, tuple[float | None, ...]]:
        rows: dict[str, tuple[float | None, ...]] = {}
        rights = {**self.truths[index], "dx": self.wanted[index].get("dx")}
        for symbol in ("h", "o", "p", "do", "dh", "da", "dx"):
            right = rights.get(symbol)
            if symbol in seen.values and right is not None and seen.values[symbol].shape == right.shape:
                errors = localisation.step_errors(seen.values[symbol], right)
                read_off = symbol in seen.read_off
                limit = localisation.READ_OFF[answer.single] if read_off else answer.tolerance(symbol)
                name = localisation.INTERMEDIATES.get(symbol) or self.convention.name_of(symbol, self.calls)
                rows[name] = tuple(0.0 if error <= limit else error for error in errors)
        return rows

    def _lags(self, index: int) -> tuple[tuple[float | None, ...], ...]:
        """Give the upstream gradient of one step at a time; see how far back what comes of it is right."""
        problem = self.problems[index]
        if self.level != "sequence" or problem.upstream is None:
            return ()
        rows: list[tuple[float | None, ...]] = []
        T = len(problem.x)
        for s in range(T):
            upstream = np.zeros_like(problem.upstream)
            upstream[s] = problem.upstream[s]
            alone = replace(problem, upstream=upstream)
            right = truth(alone)
            answer = self._ask_about(alone, right)
            seen = localisation.see(answer, alone, right, self.convention)
            name = "da" if "da" in seen.values else "dx"  # dx_t has what comes of the loss at step t, too
            if name not in seen.values or seen.values[name].shape != right[name].shape:
                rows.append((None,) * T)
                continue
            limit = localisation.READ_OFF[answer.single]
            errors = localisation.step_errors(seen.values[name], right[name])
            rows.append(tuple(None if t > s else 0.0 if e <= limit else e for t, e in enumerate(errors)))
        return tuple(rows)

    def _factor(self, answer: Answer, index: int, diagnosis: Diagnosis) -> list[str]:
        factor = None if diagnosis.found else common_factor(answer, self.wanted[index])
        if factor is not None and abs(factor - 1) <= answer.tolerance():
            return []
        return [] if factor is None else [f"every gradient is {factor:.6g} times the true one"]

    def _ambiguous(self, index: int = 0) -> list[str]:
        names = [name for name in factors(self.problems[index]) if " or " in name]
        return [f"this problem cannot tell these factors apart: {', '.join(names)}"] if names else []

    def _blind(self, asked: Asked) -> tuple[tuple[str, str, str], ...]:
        rows = []
        for mistake, hidden in invisible(asked, self.standard, self.convention).items():
            if mistake.id == "M43" and "p" not in asked.answer.values and self.level != "network":
                continue  # no softmax is asked for
            why = f"it changes nothing by more than {hidden.change:.0e}" if hidden.change > TOLERANCE[False] else ""
            if hidden.visible and not why:
                why = "; ".join(dict.fromkeys(filter(None, hidden.notes))) or "in one of its forms"
            rows.append((mistake.id, mistake.title, why))
        return tuple(rows)

    def _changed_arguments(self, answer: Answer) -> LevelReport:
        T = len(self.problems[0].x)
        return LevelReport(
            self.level,
            self.calls.functions,
            "wrong",
            self._gradients(answer, 0),
            FirstWrong("argument {} ({})".format(*answer.changed[0]), None, T, "every gradient"),
            (facts.changed(answer, self.convention, self.calls, explains=True),),
            notes=tuple(self.notes),
            sizes=self._shown_sizes(),
        )

    def _asked_once_more(self) -> Answer | None:
        try:
            return self._ask(0)
        except Failure as failure:
            self.notes.append(f"it could not be run a second time: {failure.message}")
            return None

    def _asked_again(self, answer: Answer) -> LevelReport | None:
        """Ask the same once more, then with another forward pass in between; None if nothing changes."""
        first = self.problems[0]
        other = _with_other_states(first)
        ways = ((None, "the second time the same is asked"), (other, "when another forward pass runs in between"))
        for between, when in ways:
            again = self._ask(0, between)
            if not self._is_wrong(again, 0):
                continue
            self.notes.append(f"right the first time, wrong {when}: the table shows the second answer")
            asked = Asked(self.problems[0], again)
            id_, note, place = "P5", when, None
            if between is None:
                id_, note, place = facts.what_is_kept(answer, asked, {}, self.convention, self.calls)
            if place is None:  # by the numbers; asking once more would not give this answer again
                seen = localisation.see(again, first, self.truths[0], self.convention)
                place = localisation.first_seen(seen, again, self.wanted[0], self.truths[0], len(first.x))
                if place is not None and between is not None:  # what arrived is what was given; the states are others
                    place = replace(place, either=False)
            return LevelReport(
                self.level,
                self.calls.functions,
                "wrong",
                self._gradients(again, 0),
                self._first_wrong(place, again, 0),
                (facts.fact(id_, note, explains=True),),
                notes=tuple(self.notes),
                sizes=self._shown_sizes(),
            )
        return None


def _with_other_states(problem: Problem) -> Problem:
    """The same weights and upstream gradient on other inputs."""
    return replace(problem, x=problem.x[:, ::-1] if problem.tokens else -problem.x, h0=-problem.h0)


def _explained(fit: Fit, slots: Mapping[str, Any]) -> set[str]:
    """The results that an explanation covers."""
    return {symbol for symbol in fit.symbols if fit.agrees(symbol, slots)}


def _later(step: int | None, T: int) -> str:
    assert step is not None
    return f"t={T}" if step == T - 1 else f"t={T} to {step + 1}"


def _finding(plant: Plant) -> Finding:
    mistake = plant.mistake
    return Finding(mistake.id, mistake.title, mistake.cause, mistake.hint, plant.variant.note)


def catalogue() -> dict[str, str]:
    """Map every finding's number to its title."""
    known = {id_: mistake.title for id_, mistake in MISTAKES.items()}
    return known | {id_: words[0] for id_, words in facts.FACTS.items()}
