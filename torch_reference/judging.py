"""The judgement of one level of one homework: is it right, where is it wrong first, and what explains it?

What is asked, in this order: a problem, the same once more, the same with another forward pass in between, and a
second, longer problem. T steps, N batch rows, D inputs, H hidden units, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_reference import localisation
from torch_reference.candidates import Answer, Candidate
from torch_reference.child import Failure
from torch_reference.conventions import to_course
from torch_reference.course_problems import (
    LENIENT,
    TOLERANCE,
    Problem,
    Sizes,
    allowed_in_float32,
    asked_for,
    check_problem,
    kind_of,
    longer,
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
from torch_reference.mistakes import MISTAKES, Plant, factors, planted
from torch_reference.reports import Finding, FirstWrong, GradientReport, LevelReport
from torch_reference.workings import Workings

Array = npt.NDArray[Any]

FORWARD = ("h", "o", "p", "loss")

# what goes wrong between calls, or with what is returned; the numbers are those of docs/coursework.md
PROTOCOL = {
    "M15": (
        "state of the call before",
        "A sequence starts with what the one before it left.",
        "Where is the state, or the gradient that travels back in time, set before the loop?",
    ),
    "P1": (
        "argument changed in place",
        "A function changes an array that it was given.",
        "Whoever calls it still needs that array: a check that uses it afterwards compares with other numbers. Make a "
        "new array, or a copy.",
    ),
    "P2": (
        "gradients not set to zero",
        "The gradients of the parameters grow from call to call: they are added to those of the call before.",
        "Where are they set to zero?",
    ),
    "P5": (
        "something kept between calls",
        "The same call gives other results the second time, or after another call in between.",
        "Which variables outlive the function? What the backward pass needs belongs into the cache.",
    ),
    "P6": (
        "argument not used",
        "The function does not use an argument but something else in its place.",
        "Compare the names in the function with those of its parameters: is there a global variable of the file, left "
        "from an earlier run, with a similar name?",
    ),
    "P8": (
        "weights made inside the function",
        "The function does not use the weights that it is given but others.",
        "Where do the weights come from, and when?",
    ),
    "S1": ("result missing", "A gradient is not returned.", "Compare what you return with what is asked for."),
    "S2": ("shape", "A gradient does not have the shape of what it belongs to.", "Compare the shapes."),
    "S3": ("type", "A gradient is no array of numbers.", "What do you return?"),
    "S4": (
        "not finite",
        "There are NaN or infinite numbers in the result.",
        "Look for an overflow, a division by zero or a logarithm of zero, and at arrays that were never filled.",
    ),
}


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
            second = longer(kind, standard_sizes(kind)) if settings.sizes is None else first
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
        self.notes: list[str] = []
        self._single = False  # whether anything came out of float32 so far

    def report(self) -> LevelReport:
        """Ask, judge, and where something is wrong, locate and explain it."""
        answers = [self._ask(0)]
        wrong = self._is_wrong(answers[0], 0)
        again = self._asked_once_more() if wrong else None  # before another problem leaves traces
        if not wrong:
            if (kept := self._asked_again(answers[0])) is not None:
                return kept
            if answers[0].changed:
                return self._changed_arguments(answers[0])
        try:
            answers += [self._ask(index) for index in range(1, len(self.problems))]
        except Failure as failure:
            sizes = ", ".join(f"{name}={size}" for name, size in self._shown_sizes(1).items())
            if not wrong:
                message = f"{failure.message}\nThe first calls went well; this was one with other sizes: {sizes}"
                raise Failure(failure.kind, message, failure.function) from None
            self.notes.append(f"it could not be run on a second problem, with {sizes}: {failure.message}")
        if answers[0].single:
            self.notes.append("computed in float32 (or less), and judged by what float32 can do; the truth is float64")
            self.notes += self._cancelling(answers[0])
        asked = [Asked(self.problems[index], answer) for index, answer in enumerate(answers)]
        for index, answer in enumerate(answers):
            if self._is_wrong(answer, index):
                order = [index, *(other for other in range(len(asked)) if other != index)]
                return self._wrong([asked[each] for each in order], index, again)
        return LevelReport(
            self.level,
            self.calls.functions,
            "right",
            self._gradients(answers[0], 0),
            notes=(*self.notes, *self._ambiguous()),
            blind=self._blind(asked[0]),
            sizes=self._shown_sizes(),
        )

    def _ask(self, index: int, between: Problem | None = None) -> Answer:
        return self._ask_about(self.problems[index], self.truths[index], between)

    def _ask_about(self, problem: Problem, right: Mapping[str, Array], between: Problem | None = None) -> Answer:
        answer = self.candidate.ask(self.level, problem, self.dtype, between)
        plain = bool((right["h"] == right["h"].astype(np.float32)).all())  # numbers that float32 can hold anyway
        self._single = self._single or answer.single or (answer.rounded and not plain)
        return replace(answer, single=self._single, allowed=allowed_in_float32(problem, right) if self._single else {})

    def _cancelling(self, answer: Answer) -> list[str]:
        """Say which gradients float32 can hardly judge."""
        known = [(name, answer.tolerance(symbol)) for symbol, name in answer.names.items()]
        vague = [f"{name} to {allowed:.0e}" for name, allowed in known if allowed > LENIENT]
        return [f"large terms cancel here, float32 leaves some gradients vague: {', '.join(vague)}"] if vague else []

    def _shown_sizes(self, index: int = 0) -> dict[str, int]:
        return dict(self.problems[index].sizes._asdict())

    def _symbol_is_right(self, symbol: str, answer: Answer, index: int) -> bool:
        if symbol in answer.troubles or symbol not in answer.values:
            return False
        wanted = self.wanted[index][symbol]
        return relative_error(answer.values[symbol], wanted) <= answer.tolerance(symbol)

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
        findings = [_finding(plant) for plant in diagnosis.found]
        if not diagnosis.explanations:
            findings += self._ignored_arguments(answer, index)
        possible = [
            replace(_finding(plants[0]), title=" and ".join(plant.mistake.title for plant in plants))
            for plants in (diagnosis.explanations if len(diagnosis.explanations) > 1 else ())
        ]
        findings += self._malformed(answer, asked, diagnosis)
        if answer.changed:
            findings.append(self._changed(answer))
        if again is not None and _differ(answer, again) and not any(finding.id == "P8" for finding in findings):
            id_, note, _ = self._what_is_kept(answer, Asked(problem, again), planted(diagnosis.found))
            findings.append(_protocol(id_, note))
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
            self._over_time(seen, answer, index),
            self._lags(index),
            (*self.notes, *self._factor(answer, index, diagnosis), *self._ambiguous(index)),
            () if self.usual else self._blind(asked[0]),
            self._shown_sizes(index),
        )

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
        """Where dL/da of the last step is wrong: is it what arrived, dL/dh, or what the activation made of it?

        The same upstream gradient is given with other states, then another one with the same. What is left of dL/da
        without the true derivative changes with the states only if that derivative is wrong, and does not change with
        the upstream gradient if this is not in it. Where it is a multiple of what should arrive, it may be either.
        """
        problem, T = asked.problem, len(asked.problem.x)
        if place is None or not place.either or place.step != T - 1 or problem.upstream is None:
            return place
        other = _with_other_states(problem)
        turned = replace(problem, upstream=problem.upstream[:, :, ::-1].copy())
        arrived = []
        for each, right in ((problem, self.truths[index]), (other, truth(other)), (turned, truth(turned))):
            answer = self._ask_about(each, right)
            seen = localisation.see(answer, each, right, self.convention)
            if "da" not in seen.values or each.upstream is None:
                return place
            slope = right["da"][-1] / each.upstream[-1]
            arrived.append(seen.values["da"][-1] / slope)
        near = localisation.READ_OFF[asked.answer.single] * 100
        if relative_error(arrived[1], arrived[0]) > near or relative_error(arrived[2], arrived[0]) <= near:
            return Place("da", T - 1, False)
        if localisation.is_multiple(arrived[0], problem.upstream[-1], near):
            return place
        return Place("dh", T - 1, False)

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
            return _joined([*earlier, *until])
        upstream = ["dL/do"] if self.level == "network" else []
        if symbol == "do":
            return _joined([*forward, *([] if step in (None, T) else [_later(step, T)])])
        if symbol in ("dh", "da"):
            own = ["dL/dh"] if symbol == "da" and step == T and through_time else []
            return _joined([*(upstream or forward), *own, *([] if step in (None, T) else [_later(step, T)])])
        return _joined([*upstream, "dL/dh", "dL/da"]) if through_time else ""

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

    def _malformed(self, answer: Answer, asked: Sequence[Asked], diagnosis: Diagnosis) -> list[Finding]:
        """Missing, misshapen and infinite results that no explanation covers."""
        found = []
        exchanged = self._exchanged(answer)
        if exchanged:
            names = _joined([answer.names[symbol] for symbol in exchanged])
            found.append(_protocol("S2", f"{names} look exchanged, each has the other's shape"))
        explained = Fit(asked[0], self.convention, self.calls)
        slots = planted(diagnosis.found)
        for symbol, trouble in answer.troubles.items():
            name = answer.names.get(symbol) or self.convention.name_of(symbol, self.calls)
            if symbol in exchanged:
                continue
            if symbol in answer.odd:
                if not (diagnosis.found and symbol in _explained(explained, slots)):
                    found.append(_protocol("S2", f"{name}: {trouble}"))
            else:
                found.append(_protocol("S1" if trouble.startswith("missing") else "S3", f"{name}: {trouble}"))
        if not diagnosis.found:
            infinite = [
                answer.names.get(symbol, symbol)
                for symbol, value in answer.values.items()
                if not np.isfinite(value).all()
            ]
            if infinite:
                found.append(_protocol("S4", ", ".join(infinite)))
        return found

    def _exchanged(self, answer: Answer) -> tuple[str, ...]:
        """Two gradients, each of which has the other's shape."""
        shapes = {}
        for symbol in answer.odd.keys() & answer.names.keys():
            layout = self.convention.layout(answer.names[symbol], self.calls)
            if layout is not None:
                shapes[symbol] = to_course(self.wanted[0][symbol], *layout).shape
        for one, other in combinations(sorted(shapes), 2):
            if answer.odd[one].shape == shapes[other] and answer.odd[other].shape == shapes[one]:
                return one, other
        return ()

    def _changed(self, answer: Answer) -> Finding:
        """Say which arguments were changed: the state and the weights, or what is handed back in time."""
        kept = {self.convention.name_of(symbol, self.calls) for symbol in ("h0", "U", "W", "V", "b", "b2", "c")}
        names = [text.split(" ")[0].split("'")[1] if "'" in text else text.split(" ")[0] for text in answer.changed]
        return _protocol("P5" if set(names) <= kept else "P1", f"{', '.join(answer.changed)} changed in place")

    def _changed_arguments(self, answer: Answer) -> LevelReport:
        T = len(self.problems[0].x)
        return LevelReport(
            self.level,
            self.calls.functions,
            "wrong",
            self._gradients(answer, 0),
            FirstWrong(f"argument {answer.changed[0]}", None, T, "every gradient"),
            (self._changed(answer),),
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
            id_, note, place = ("P5", when, None) if between is not None else self._what_is_kept(answer, asked, {})
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
                (_protocol(id_, note),),
                notes=tuple(self.notes),
                sizes=self._shown_sizes(),
            )
        return None

    def _what_is_kept(self, first: Answer, asked: Asked, slots: Mapping[str, Any]) -> tuple[str, str, Place | None]:
        """Name what the second answer has left from the first; `slots` hold the mistakes that explain the first."""
        answer, fit = asked.answer, Fit(asked, self.convention, self.calls)
        parameters = [symbol for symbol in answer.names if localisation.is_parameter(symbol)]
        if not _differ(_grown(first, parameters), answer):
            summed = next(symbol for symbol in localisation.SUMS if symbol in parameters)
            return "P2", "twice as large the second time", Place(summed, None)
        later = replace(asked.problem, h0=fit.workings.value("hT", slots))
        if Fit(Asked(later, answer), self.convention, self.calls).fits(slots):
            return "M15", "h_0 is the last state of the call before", None
        left = _Held(fit.workings.carry(slots))
        for dh0 in ("own", "carry"):
            later_slots = {"dh0": dh0, **slots, "initial": left}
            if fit.fits(later_slots):
                place = localisation.first_of_formula(fit.workings, later_slots, answer)
                return "M15", "what flows back into the last step is what the call before left", place
        return "P5", "the second time the same is asked", None

    def _ignored_arguments(self, answer: Answer, index: int) -> list[Finding]:
        """Where the forward pass is wrong: does it use what it is given?"""
        forward = [name for name in ("h", "hT", "loss", "p", "o") if name in answer.values]
        if all(self._symbol_is_right(name, answer, index) for name in forward):
            return []
        problem = self.problems[index]
        first = self.candidate.states(self.level, problem)
        forward = [name for name in forward if name in first and np.isfinite(first[name]).all()]
        if not forward:
            return []
        if any(not _equal(first[name], again) for name, again in self.candidate.states(self.level, problem).items()):
            return [_protocol("P8", "the same call gives other states")]
        ignored = []
        usual = Workings(problem, self.convention)
        for symbol in ("U", "W", "b", "b2", "V", "c"):
            if symbol not in problem.parameters:
                continue
            shifted = {**problem.parameters, symbol: problem.parameters[symbol] * 0.5 + 0.1}
            changed = replace(problem, parameters=shifted)
            other = Workings(changed, self.convention)
            if all(_equal(usual.value(name, {}), other.value(name, {})) for name in forward):
                continue  # nothing that is returned depends on it
            if symbol == "c" and "p" in first and not np.allclose(first["p"].sum(-1), 1):
                continue  # normalised over another axis, the probabilities may not show it
            found = self.candidate.states(self.level, changed)
            if all(_equal(first[name], found[name]) for name in forward):
                ignored.append(self.convention.name_of(symbol))
        if not ignored:
            return []
        note = f"the result stays the same whatever {_joined(ignored)} hold{'s' * (len(ignored) == 1)}"
        return [_protocol("P8" if len(ignored) > 1 else "P6", note)]


def _with_other_states(problem: Problem) -> Problem:
    """The same weights and upstream gradient on other inputs."""
    return replace(problem, x=problem.x[:, ::-1] if problem.tokens else -problem.x, h0=-problem.h0)


class _Held:
    """An array that counts as one thing, to be a key."""

    def __init__(self, array: Array) -> None:
        self.array = array


def _differ(first: Answer, again: Answer) -> bool:
    """Whether two answers to the same question are different."""
    if first.values.keys() != again.values.keys() or first.odd.keys() != again.odd.keys():
        return True
    if any(not _same_numbers(value, again.odd[symbol]) for symbol, value in first.odd.items()):
        return True
    return any(
        not _same_numbers(value, again.values[symbol], again.tolerance(symbol))
        for symbol, value in first.values.items()
    )


def _grown(answer: Answer, symbols: Sequence[str]) -> Answer:
    """The answer with these gradients twice as large."""

    def grown(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {symbol: value * (2 if symbol in symbols else 1) for symbol, value in arrays.items()}

    return replace(answer, values=grown(answer.values), odd=grown(answer.odd))


def _same_numbers(one: Array, other: Array, tolerance: float = TOLERANCE[False]) -> bool:
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return np.array_equal(one, other, equal_nan=True)
    return one.shape == other.shape and relative_error(one, other) <= tolerance


def _explained(fit: Fit, slots: Mapping[str, Any]) -> set[str]:
    """The misshapen results that an explanation covers."""
    return {symbol for symbol in fit.answer.odd if symbol in fit.symbols and fit.agrees(symbol, slots)}


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-12, atol=0, equal_nan=True))


def _later(step: int | None, T: int) -> str:
    assert step is not None
    return f"t={T}" if step == T - 1 else f"t={T} to {step + 1}"


def _joined(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _finding(plant: Plant) -> Finding:
    mistake = plant.mistake
    return Finding(mistake.id, mistake.title, mistake.cause, mistake.hint, plant.variant.note)


def _protocol(id_: str, note: str) -> Finding:
    title, cause, hint = PROTOCOL[id_]
    return Finding(id_, title, cause, hint, note)


def catalogue() -> dict[str, str]:
    """Map every finding's number to its title."""
    known = {id_: mistake.title for id_, mistake in MISTAKES.items()}
    return known | {id_: words[0] for id_, words in PROTOCOL.items()}
