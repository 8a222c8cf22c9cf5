"""The catalogue computes the wrong formulas that it describes, tells them apart, and gives no solution away.

Would catch: workings that are not the network, a mistake that changes nothing anywhere, one that touches other
gradients than it should or starts at another step, two mistakes with the same numbers on a problem that ought to tell
them apart, a mistake that claims to be seen where it cannot be, a formula in a hint, and an equation that is not there.
Some wrong formulas are computed again number by number, with no array in sight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from torch_reference.conventions import CONVENTIONS, Convention
from torch_reference.course_problems import Problem, Sizes, asked_for, draw_problem, kind_of, standard_sizes, truth
from torch_reference.diagnosis import relative_error
from torch_reference.facts import FACTS
from torch_reference.judging import catalogue
from torch_reference.mistakes import MISTAKES, Plant, factors, pairs, planted, plants
from torch_reference.workings import ACTIVATIONS, DEPENDS, RIGHT, Workings

Array = npt.NDArray[Any]

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROUNDING = 1e-12
SAME = 1e-9  # nearer than this, two mistakes cannot be told apart
SHARED_H0 = replace(CONVENTIONS["goodfellow"], name="shared", names={**CONVENTIONS["goodfellow"].names, "h0": "h0 H"})
GOODFELLOW = CONVENTIONS["goodfellow"]


def drawn(convention: Convention, level: str, seed: int = 0, sizes: Sizes | None = None, **changes: Any) -> Problem:
    """A problem of the convention; None: the standard sizes."""
    kind = kind_of(convention, level)
    problem = draw_problem(kind, seed, sizes or standard_sizes(kind))
    return replace(problem, **changes) if changes else problem


@lru_cache(maxsize=32)
def standard(name: str, level: str) -> tuple[Problem, Workings]:
    convention = CONVENTIONS[name]
    problem = drawn(convention, level)
    return problem, Workings(problem, convention)


def levels() -> list[tuple[str, str]]:
    return [(name, level) for name, convention in CONVENTIONS.items() for level in convention.levels]


def forms(problem: Problem, id_: str, note: str | None = None) -> list[Plant]:
    """The forms of one mistake, or those with this note."""
    return [each for each in plants(problem, 0.0) if each.mistake.id == id_ and note in (None, each.variant.note)]


def changed(workings: Workings, plant: Plant) -> set[str]:
    """The quantities that a mistake changes."""
    return {name for name in workings.quantities() if differs(workings, name, plant)}


def differs(workings: Workings, name: str, plant: Plant) -> bool:
    return not alike(workings.value(name, plant.variant.slots), workings.value(name, {}))


def alike(one: Array, other: Array, tolerance: float = SAME) -> bool:
    return one.shape == other.shape and relative_error(one, other) <= tolerance


# The workings


@pytest.mark.parametrize(("name", "level"), levels())
def test_workings_are_the_truth(name: str, level: str) -> None:
    for seed in range(3):
        agree(CONVENTIONS[name], drawn(CONVENTIONS[name], level, seed))


@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
@pytest.mark.parametrize(("name", "level"), levels())
def test_workings_are_the_truth_of_every_nonlinearity(name: str, level: str, nonlinearity: str) -> None:
    convention = CONVENTIONS[name].changed(nonlinearity=nonlinearity)
    N, K = 1 if convention.one_sequence else 3, 6 if convention.tokens else 4
    agree(convention, drawn(convention, level, 1, Sizes(1 if level == "step" else 4, N, 6, 5, K)))


@pytest.mark.parametrize(
    "options",
    [
        {"time": "mean", "batch": "mean"},
        {"time": "last", "parameter_gradients": "mean"},
        {"time": "sum", "batch": "mean", "clip": 0.1},
    ],
)
@pytest.mark.parametrize("convention", [GOODFELLOW, CONVENTIONS["torch"], SHARED_H0], ids=lambda each: each.name)
def test_workings_are_the_truth_of_every_loss(convention: Convention, options: dict[str, Any]) -> None:
    convention = convention.changed(**options)
    agree(convention, drawn(convention, "network", 2, Sizes(4, 3, 6, 5, 7)))


def agree(convention: Convention, problem: Problem) -> None:
    workings = Workings(problem, convention)
    wanted = asked_for(truth(problem), problem, convention)
    assert set(workings.quantities()) == set(wanted) - {"a"}
    for quantity in workings.quantities():
        got = workings.value(quantity, {})
        assert got.shape == wanted[quantity].shape, quantity
        assert relative_error(got, wanted[quantity]) <= ROUNDING, quantity


def test_every_slot_that_a_mistake_exchanges_is_known_and_counted() -> None:
    """A result is kept by the slots it depends on: a slot that DEPENDS forgets would give a stale number."""
    for name, level in levels():
        problem, _ = standard(name, level)
        for plant in plants(problem, 0.0):
            assert set(plant.variant.slots) <= set(RIGHT), plant.key
    assert {slot for used in DEPENDS.values() for slot in used} == set(RIGHT)


@pytest.mark.parametrize("level", ["sequence", "network"])
def test_what_is_kept_is_what_is_computed_afresh(level: str) -> None:
    problem, kept = standard("torch", level)
    listed = plants(problem, 0.0)
    for plant in listed:  # fill what is kept, one mistake after the other
        for quantity in kept.quantities():
            kept.value(quantity, plant.variant.slots)
    for plant in listed[::7]:
        fresh = Workings(problem, CONVENTIONS["torch"])
        for quantity in reversed(fresh.quantities()):
            got, again = kept.value(quantity, plant.variant.slots), fresh.value(quantity, plant.variant.slots)
            np.testing.assert_array_equal(got, again, err_msg=f"{plant.key} {quantity}")


# What each mistake touches

EVERYWHERE = "dU dW dV db dc dx dh0"
RECURRENCE = "dU dW db dx dh0"
# The first form of each that has this note: the gradients it spoils, and the first wrong quantity going backward, at
# T = 5; with the loss at every step, W not symmetric, N = 3. Everything else stays as it is.
TOUCHES = {
    ("M01", ""): (RECURRENCE, "dh", 4),
    ("M02", ""): (RECURRENCE, "dh", 4),
    ("M03", ""): (RECURRENCE, "dh", 4),
    ("M04", ""): (RECURRENCE, "dh", 4),
    ("M05", ""): (RECURRENCE, "dh", 4),
    ("M07", ""): (RECURRENCE, "dh", 5),
    ("M08", ""): (RECURRENCE, "dh", 5),
    ("M10", "each loss reaches back 1 step beyond its own"): (RECURRENCE, "dh", 3),
    ("M10", "each loss reaches back 2 steps beyond its own"): (RECURRENCE, "dh", 2),
    ("M10", "each loss reaches back 3 steps beyond its own"): (RECURRENCE, "dh", 1),
    ("M11", "nothing crosses a border every 2 steps"): (RECURRENCE, "dh", 4),
    ("M11", "nothing crosses a border every 3 steps"): (RECURRENCE, "dh", 3),
    ("M11", "nothing crosses a border every 4 steps"): (RECURRENCE, "dh", 4),
    ("M12", "it is zero"): ("dh0", "dh0", 0),
    ("M12", "it is dL/da_1"): ("dh0", "dh0", 0),
    ("M12", "it is dL/dh_1"): ("dh0", "dh0", 0),
    ("M13", "summed over the batch, though every sequence has its own"): ("dh0", "dh0", 0),
    ("M14", ""): ("dU dW db", "dU", 0),
    ("M20", ""): (RECURRENCE, "da", 5),
    ("M21", ""): (RECURRENCE, "da", 5),
    ("M22", ""): (RECURRENCE, "da", 5),
    ("M23", ""): (RECURRENCE, "da", 5),
    ("M24", "that of sigmoid"): (RECURRENCE, "da", 5),
    ("M26", ""): (RECURRENCE, "da", 5),
    ("M30", ""): ("dW", "dW", 0),
    ("M31", ""): ("dV", "dV", 0),
    ("M32", ""): ("dW", "dW", 0),
    ("M33", ""): ("dW", "dW", 0),
    ("M35", ""): ("dU dW db", "dU", 0),
    ("M36", "not summed over the batch"): ("db", "db", 0),
    ("M36", "averaged over the batch"): ("db", "db", 0),
    ("M36", "averaged over the hidden units"): ("db", "db", 0),
    ("M40", ""): (EVERYWHERE, "do", 5),
    ("M41", ""): (EVERYWHERE, "do", 5),
    ("M43", "normalised over the batch"): (EVERYWHERE, "do", 5),
    ("M43", "the exponential is taken twice"): (EVERYWHERE, "do", 5),
    ("M44", "by N, the loss is right"): (EVERYWHERE, "do", 5),
    ("M44", "by N, and the loss with it"): (EVERYWHERE, "do", 5),
    ("M45", "by 1/N"): ("dU dW dV db dc", "dU", 0),
    ("M46", "the loss is off by 1/T"): ("", "", 0),
    ("M47", "masked steps are counted in the gradient"): (EVERYWHERE, "do", 5),
    ("M48", "at ±5, the parameters alone"): ("dU", "dU", 0),
}
FORWARD = {"M43", "M46"}  # of those above; and where "the loss with it" is said


@pytest.mark.parametrize(("id_", "note"), TOUCHES)
def test_a_mistake_spoils_what_it_should_and_nothing_else(id_: str, note: str) -> None:
    problem, workings = standard("goodfellow", "network")
    touched, quantity, step = TOUCHES[id_, note]
    plant = forms(problem, id_, note)[0]
    wrong = changed(workings, plant)
    assert " ".join(name for name in EVERYWHERE.split() if name in wrong) == touched
    forward = wrong & {"h", "hT", "o", "p", "loss"}
    assert forward <= {"p", "loss"}
    assert bool(forward) == (id_ in FORWARD or "the loss with it" in note)
    assert first_wrong(workings, plant) == (quantity, step)


def first_wrong(workings: Workings, plant: Plant) -> tuple[str, int]:
    """Going backward, and step counted from 1; 0 for what has none."""
    right = {name: workings.value(name, {}) for name in workings.quantities()}
    wrong = {name: workings.value(name, plant.variant.slots) for name in workings.quantities()}
    for names in (("do",), ("dh", "da")):
        for t in reversed(range(len(right["do"]))):
            for name in names:
                if np.abs(wrong[name][t] - right[name][t]).max() > SAME:
                    return name, t + 1
    return next(((name, 0) for name in EVERYWHERE.split() if name in changed(workings, plant)), ("", 0))


def test_dx_of_the_steps_before_the_first_wrong_one_is_right() -> None:
    problem, workings = standard("goodfellow", "network")
    for id_, last_wrong in (("M01", 4), ("M03", 4), ("M05", 4), ("M07", 5), ("M20", 5)):
        difference = np.abs(workings.value("dx", forms(problem, id_)[0].variant.slots) - workings.value("dx", {}))
        assert [t + 1 for t in range(5) if difference[t].max() > SAME] == list(range(1, last_wrong + 1)), id_


def test_a_missed_mask_spoils_the_masked_steps_alone() -> None:
    problem, workings = standard("goodfellow", "network")
    assert problem.mask is not None
    plant = forms(problem, "M47", "masked steps are counted in the gradient")[0]
    difference = np.abs(workings.value("do", plant.variant.slots) - workings.value("do", {})).max(-1)
    np.testing.assert_array_equal(difference > SAME, problem.mask == 0)


def test_the_second_bias_is_touched_alone() -> None:
    problem, workings = standard("torch", "network")
    assert changed(workings, forms(problem, "M39", "the second is halved")[0]) == {"db2"}
    assert changed(workings, forms(problem, "M39", "the first stays zero")[0]) == {"db"}


# Dead and alive


def test_every_form_of_every_mistake_changes_something_somewhere() -> None:
    known, alive = set(), set()
    for convention, level in every_kind():
        kind = kind_of(convention, level)
        problem = draw_problem(kind, 0, standard_sizes(kind), large=kind.tokens)  # large: so that clipping shows
        workings = Workings(problem, convention)
        for plant in plants(problem, 0.0):
            known.add(plant.key)
            if plant.key not in alive and changed(workings, plant):
                alive.add(plant.key)
    assert known - alive == set()
    assert {key[0] for key in alive} == set(MISTAKES)


def every_kind() -> Iterator[tuple[Convention, str]]:
    for name, level in levels():
        yield CONVENTIONS[name], level
    yield SHARED_H0, "sequence"
    yield GOODFELLOW.changed(clip=0.5), "network"


BLIND_AT_ONE_STEP = ("M01", "M02", "M06", "M08", "M10", "M11", "M14", "M35")


@pytest.mark.parametrize("level", ["sequence", "network"])
@pytest.mark.parametrize("id_", BLIND_AT_ONE_STEP)
def test_one_step_hides_what_happens_between_steps(id_: str, level: str) -> None:
    problem = drawn(GOODFELLOW, level, 0, Sizes(1, 3, 17, 16, 7))
    workings = Workings(problem, GOODFELLOW)
    for plant in forms(problem, id_):
        seen = changed(workings, plant)
        # a dh0 that stays zero is another mistake's, M12, and shows
        assert seen == ({"dh0"} if plant.variant.slots.get("dh0") == "zeros" else set()), plant.key


def test_one_row_hides_what_happens_to_the_batch() -> None:
    """But for an axis of length one too many or too few."""
    problem = drawn(GOODFELLOW, "network", 0, Sizes(5, 1, 17, 16, 7))
    workings = Workings(problem, GOODFELLOW)
    for id_, notes in (("M13", None), ("M36", ("not summed over the batch", "averaged over the batch"))):
        for plant in forms(problem, id_):
            if notes is None or plant.variant.note in notes:
                for name in workings.quantities():
                    got, right = workings.value(name, plant.variant.slots), workings.value(name, {})
                    assert alike(got.squeeze(), right.squeeze()), (plant.key, name)
    assert not [name for name in factors(problem) if "N" in name]


@pytest.mark.parametrize(
    ("id_", "change"),
    [
        ("M05", lambda problem: with_parameter(problem, "W", problem.parameters["W"] + problem.parameters["W"].T)),
        ("M33", lambda problem: replace(problem, h0=np.zeros_like(problem.h0))),
        ("M02", lambda problem: replace(problem, time="last", mask=None)),
        ("M03", lambda problem: replace(problem, nonlinearity="identity")),
        ("M04", lambda problem: replace(problem, nonlinearity="identity")),
        ("M20", lambda problem: replace(problem, nonlinearity="identity")),
        ("M47", lambda problem: replace(problem, mask=np.ones_like(problem.mask))),
    ],
)
def test_what_a_problem_cannot_see_changes_nothing(id_: str, change: Callable[[Problem], Problem]) -> None:
    before, seeing = standard("goodfellow", "network")
    problem = change(before)
    first = next(plant for plant in forms(before, id_) if changed(seeing, plant))
    blind = [plant for plant in forms(problem, id_) if plant.key == first.key]
    workings = Workings(problem, GOODFELLOW)
    assert [changed(workings, plant) - {"loss"} for plant in blind] == [set()]


def with_parameter(problem: Problem, name: str, value: Array) -> Problem:
    return replace(problem, parameters={**problem.parameters, name: value})


def test_zero_h0_hides_the_first_step_of_the_recurrent_weights_exactly() -> None:
    before, _ = standard("goodfellow", "network")
    problem = replace(before, h0=np.zeros_like(before.h0))
    workings = Workings(problem, GOODFELLOW)
    plant = next(each for each in forms(problem, "M33") if set(each.variant.slots) == {"steps W"})
    np.testing.assert_array_equal(workings.value("dW", plant.variant.slots), workings.value("dW", {}))


# Told apart


@pytest.mark.parametrize("level", ["sequence", "network"])
def test_mistakes_are_told_apart_by_what_a_homework_returns(level: str) -> None:
    """On the standard problem no two of them have the same numbers, but for nothing at all, which has two causes."""
    problem, workings = standard("goodfellow", level)
    returned = ["h"] if level == "sequence" else ["loss", "dV", "dc"]
    returned += ["dU", "dW", "db", "dx", "dh0"]
    different = groups(workings, plants(problem, 0.0), returned)
    assert [ids for ids in different if len(ids) > 1] == ([{"M19", "M38"}] if level == "sequence" else [])


def groups(workings: Workings, listed: list[Plant], returned: list[str]) -> list[set[str]]:
    """The ids of mistakes that have the same numbers; those that change nothing of this are left out."""
    found: list[tuple[list[Array], set[str]]] = []
    right = [workings.value(name, {}) for name in returned]
    for plant in listed:
        values = [workings.value(name, plant.variant.slots) for name in returned]
        if all(map(alike, values, right)):
            continue
        for others, ids in found:
            if all(map(alike, values, others)):
                ids.add(plant.mistake.id)
                break
        else:
            found.append((values, {plant.mistake.id}))
    return [ids for _, ids in found]


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [
        # with one step there is no telling whether the derivative or the gradient that flows in has a factor
        ("cs231n", "step", [{"M27", "M40"}, {"M07", "M27"}]),
        ("torch", "network", []),
        # nothing but parameters is returned: a factor on all of them is a factor on everything
        ("kth", "network", [{"M44", "M45"}, {"M19", "M38"}]),
        # the loss sees the last state alone. T = 5: the only cut that it meets is all there is to see, which a longer
        # problem tells apart
        ("cmu", "network", [{"M01", "M11"}, {"M10", "M11"}]),
    ],
)
def test_mistakes_that_a_convention_cannot_tell_apart_are_these(
    name: str, level: str, expected: list[set[str]]
) -> None:
    problem, workings = standard(name, level)
    calls = CONVENTIONS[name].ways(level)[0]
    written = " ".join(signature for signature in (calls.forward, calls.gradient or "", *calls.read))
    names = re.findall(r"\w+", written)
    returned = [
        symbol
        for symbol in workings.quantities()
        if (symbol == "loss" or symbol.startswith("d")) and CONVENTIONS[name].name_of(symbol, calls) in names
    ]
    if level == "step":
        returned = ["h", "dx", "dh0", "dU", "dW", "db"]
    same = [ids for ids in groups(workings, plants(problem, 0.0), returned) if len(ids) > 1]
    assert set(map(frozenset, same)) == set(map(frozenset, expected))


def test_keys_are_the_same_on_every_problem_and_name_one_form() -> None:
    first, second = drawn(GOODFELLOW, "network", 0), drawn(GOODFELLOW, "network", 1)
    keys = [plant.key for plant in plants(first, 0.0)]
    assert len(keys) == len(set(keys))
    assert keys == [plant.key for plant in plants(second, 0.0)]


def test_pairs_exchange_different_parts_of_different_mistakes() -> None:
    problem, _ = standard("goodfellow", "network")
    listed = plants(problem, 0.0)
    for first, second in list(pairs(listed))[::97]:
        assert first.mistake.id != second.mistake.id
        assert planted((first, second)) == {**first.variant.slots, **second.variant.slots}
        assert len(planted((first, second))) == len(first.variant.slots) + len(second.variant.slots)


@pytest.mark.parametrize("level", ["sequence", "network"])
def test_no_two_mistakes_together_make_numbers_that_are_none(level: str) -> None:
    """NaN in the catalogue would explain NaN in a homework, which has reasons of its own."""
    problem, workings = standard("goodfellow", level)
    listed = plants(problem, 0.0)
    own = ("db", "dh0")
    for combination in [*((plant,) for plant in listed), *pairs(listed)]:
        for name in own:
            assert np.isfinite(workings.value(name, planted(combination))).all(), [each.key for each in combination]


# Words


def test_ids_are_unique_and_documented() -> None:
    assert not set(MISTAKES) & set(FACTS)
    assert all(id_ == mistake.id for id_, mistake in MISTAKES.items())
    titles = list(catalogue().values())
    assert len(titles) == len(set(titles))
    documented = re.findall(r"^\| ([MPSF]\d+) ", (DOCS / "coursework.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(catalogue())


def texts() -> list[tuple[str, str]]:
    said = [(id_, text) for id_, mistake in MISTAKES.items() for text in (mistake.title, mistake.cause, mistake.hint)]
    return said + [(id_, text) for id_, words in FACTS.items() for text in words]


def test_no_text_gives_the_solution_away() -> None:
    formula = re.compile(r"1 ?- ?[ha]|@|\.T\b|\b[UWVzgeh]'|=|\*|\^|²|\bnp\.|\bsum\(|tanh'")
    assert [(id_, text) for id_, text in texts() if formula.search(text)] == []


def test_every_equation_that_a_hint_names_exists() -> None:
    derivation = (DOCS / "derivation.md").read_text(encoding="utf-8")
    defined = set(re.findall(r"^\*\*([FBT]\d+)\*\*", derivation, flags=re.MULTILINE))
    for id_, text in texts():
        assert set(re.findall(r"\b[FBT]\d+\b", text)) <= defined, id_
        for number in re.findall(r"section (\d+)", text):
            assert re.search(rf"^## {number}\. ", derivation, flags=re.MULTILINE), id_


def test_texts_are_sentences() -> None:
    for id_, mistake in MISTAKES.items():
        assert mistake.cause.endswith("."), id_
        assert mistake.hint.endswith(("?", ".")), id_
        assert mistake.title == mistake.title.strip(" ."), id_


# Factors


def test_factors_have_one_name_each_on_a_standard_problem() -> None:
    problem, _ = standard("goodfellow", "network")  # T = 5, N = 3, K = 7
    found = factors(problem)
    assert not [name for name in found if " or " in name]
    assert found["N"] == 3
    assert found["1/N"] == 1 / 3
    assert found["N·T"] == 15
    assert found["N/T"] == 3 / 5
    assert found["2/K"] == 2 / 7
    assert 1 not in found.values()


def test_factors_that_coincide_share_their_names() -> None:
    found = factors(drawn(GOODFELLOW, "network", 0, Sizes(3, 3, 9, 8, 4)))
    assert {name: value for name, value in found.items() if value > 2} == {"N or T": 3, "N² or N·T": 9, "K": 4}
    assert found["2 or K/2"] == 2
    assert found["1/2 or 2/K"] == 1 / 2
    assert found["1/N or 1/T"] == 1 / 3


def test_values_of_factors_are_all_different() -> None:
    """Also to rounding: 1/N² of T = N = 7 is the same number as 1/(N·T)."""
    problem = drawn(GOODFELLOW, "sequence", 0, Sizes(1, 1, 3, 2, 2))
    for T, N, K in ((7, 7, 49), (4, 2, 8), (10, 5, 2), (9, 3, 27), (6, 6, 12), (1, 8, 16), (8, 1, 3), (1, 1, 2)):
        sized = replace(
            problem,
            level="network",
            x=np.zeros((T, N, 3)),
            parameters={**problem.parameters, "V": np.zeros((K, 2)), "c": np.zeros(K)},
        )
        values = sorted(factors(sized).values())
        assert all(later - one > 1e-12 * one for one, later in pairwise(values)), (T, N, K)


@pytest.mark.parametrize("sizes", [Sizes(3, 3, 9, 8, 4), Sizes(5, 3, 9, 8, 2)])
def test_one_is_no_factor(sizes: Sizes) -> None:
    assert 1 not in factors(drawn(GOODFELLOW, "network", 0, sizes)).values()


# The wrong formulas once more, number by number

TINY = Sizes(5, 2, 2, 3, 2)
T, N, D, H, K = TINY
Numbers = dict[tuple[int, ...], float]
STEPS = range(1, T + 1)


@lru_cache(maxsize=1)
def tiny() -> Problem:
    return replace(drawn(GOODFELLOW, "network", 3, TINY), mask=None)


class ByHand:
    """A tiny network in single numbers, with one wrong line at a time; indices as in the equations, steps from 1."""

    def __init__(self, probabilities: Callable[[Numbers], Numbers] | None = None) -> None:
        problem = tiny()
        assert problem.targets is not None
        self.U, self.W, self.V = (problem.parameters[name].tolist() for name in "UWV")
        b, c = (problem.parameters[name].tolist() for name in "bc")
        self.x = {(t, n, d): float(problem.x[t - 1, n, d]) for t in STEPS for n in range(N) for d in range(D)}
        self.h: Numbers = {(0, n, i): float(problem.h0[n, i]) for n in range(N) for i in range(H)}
        o: Numbers = {}
        for t in STEPS:
            for n in range(N):
                for i in range(H):
                    a = b[i]
                    for d in range(D):
                        a += self.U[i][d] * self.x[t, n, d]
                    for j in range(H):
                        a += self.W[i][j] * self.h[t - 1, n, j]
                    self.h[t, n, i] = math.tanh(a)
                for k in range(K):
                    o[t, n, k] = c[k] + sum(self.V[k][i] * self.h[t, n, i] for i in range(H))
        p = (probabilities or of_the_classes)(o)
        self.e = {
            (t, n, k): p[t, n, k] - (1.0 if problem.targets[t - 1, n] == k else 0.0)
            for t in STEPS
            for n in range(N)
            for k in range(K)
        }

    def local(self, t: int, n: int, i: int) -> float:
        """What h_t receives from its own output."""
        return sum(self.e[t, n, k] * self.V[k][i] for k in range(K))

    def slope(self, t: int, n: int, i: int) -> float:
        return 1 - self.h[t, n, i] * self.h[t, n, i]

    def back(self, z: dict[int, float], j: int) -> float:
        """What one row of z hands to unit j of the step before."""
        return sum(z[i] * self.W[i][j] for i in range(H))

    def loop(
        self,
        slope: Callable[[int, int, int], float] | None = None,
        source: Callable[[int, int, int, float], float] | None = None,
        border: Callable[[int], bool] = lambda t: False,
    ) -> tuple[Numbers, Numbers, Numbers]:
        """Return g, z and what arrives at h_0: `source` makes what is carried out of g, nothing crosses a border."""
        g, z, carry = {}, {}, {}
        for n in range(N):
            carried = dict.fromkeys(range(H), 0.0)
            for t in reversed(STEPS):
                if border(t):
                    carried = dict.fromkeys(range(H), 0.0)
                handed = {}
                for i in range(H):
                    g[t, n, i] = self.local(t, n, i) + carried[i]
                    z[t, n, i] = g[t, n, i] * (slope or self.slope)(t, n, i)
                    handed[i] = z[t, n, i] if source is None else source(t, n, i, g[t, n, i])
                carried = {j: self.back(handed, j) for j in range(H)}
            carry |= {(n, j): carried[j] for j in range(H)}
        return g, z, carry

    def sums(self, z: Numbers, carry: Numbers | None = None) -> dict[str, Array]:
        """Every gradient out of z (and e): nothing but sums of products."""
        found = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for t in STEPS:
            for n in range(N):
                for i in range(H):
                    found["db"][i] += z[t, n, i]
                    for d in range(D):
                        found["dU"][i, d] += z[t, n, i] * self.x[t, n, d]
                        found["dx"][t - 1, n, d] += z[t, n, i] * self.U[i][d]
                    for j in range(H):
                        found["dW"][i, j] += z[t, n, i] * self.h[t - 1, n, j]
                for k in range(K):
                    found["dc"][k] += self.e[t, n, k]
                    for i in range(H):
                        found["dV"][k, i] += self.e[t, n, k] * self.h[t, n, i]
        for n in range(N):
            for j in range(H):
                found["dh0"][n, j] = (
                    carry[n, j] if carry is not None else self.back({i: z[1, n, i] for i in range(H)}, j)
                )
        return found


SHAPES = {"dU": (H, D), "dW": (H, H), "dV": (K, H), "db": (H,), "dc": (K,), "dx": (T, N, D), "dh0": (N, H)}


def of_the_classes(o: Numbers) -> Numbers:
    return {(t, n, k): math.exp(o[t, n, k]) / sum(math.exp(o[t, n, m]) for m in range(K)) for t, n, k in o}


def of_the_batch(o: Numbers) -> Numbers:
    return {(t, n, k): math.exp(o[t, n, k]) / sum(math.exp(o[t, m, k]) for m in range(N)) for t, n, k in o}


def of_the_steps(o: Numbers) -> Numbers:
    return {(t, n, k): math.exp(o[t, n, k]) / sum(math.exp(o[s, n, k]) for s in STEPS) for t, n, k in o}


def twice_exponential(o: Numbers) -> Numbers:
    return of_the_classes({index: math.exp(value) for index, value in o.items()})


def right_by_hand() -> dict[str, Array]:
    network = ByHand()
    return network.sums(network.loop()[1])


def m03_by_hand(follows: bool) -> dict[str, Array]:
    network = ByHand()
    _, z, carry = network.loop(source=lambda t, n, i, g: g)
    return network.sums(z, carry if follows else None)


def m04_by_hand(follows: bool) -> dict[str, Array]:
    network = ByHand()
    _, z, carry = network.loop(source=lambda t, n, i, g: g * (1 - network.h[t - 1, n, i] ** 2))
    return network.sums(z, carry if follows else None)


def m10_by_hand(follows: bool) -> dict[str, Array]:
    """K = 1: the loss of step s is followed to its own z and to that of step s - 1."""
    network = ByHand()
    z = dict.fromkeys(((t, n, i) for t in STEPS for n in range(N) for i in range(H)), 0.0)
    to_h0 = dict.fromkeys(((n, j) for n in range(N) for j in range(H)), 0.0)
    for n in range(N):
        for s in STEPS:
            own = {i: network.local(s, n, i) * network.slope(s, n, i) for i in range(H)}
            for i in range(H):
                z[s, n, i] += own[i]
            if s > 1:
                before = {j: network.back(own, j) * network.slope(s - 1, n, j) for j in range(H)}
                for j in range(H):
                    z[s - 1, n, j] += before[j]
            else:  # the one loss whose window holds h_0
                for j in range(H):
                    to_h0[n, j] += network.back(own, j)
    return network.sums(z, to_h0 if follows else None)


def m11_by_hand(follows: bool) -> dict[str, Array]:
    """K = 2: the states h_2 and h_4 receive nothing from the next step."""
    network = ByHand()
    _, z, carry = network.loop(border=lambda t: t in (2, 4))
    return network.sums(z, dict.fromkeys(carry, 0.0) if follows else None)


def m14_by_hand(follows: bool) -> dict[str, Array]:
    """The sum of g_t times the total derivative of h_t with respect to each weight, which recurs through the steps."""
    network = ByHand()
    g, z, _ = network.loop()
    found = network.sums(z)
    weights = [("dW", p, q) for p in range(H) for q in range(H)] + [("dU", p, q) for p in range(H) for q in range(D)]
    for name, p, q in weights + [("db", p, -1) for p in range(H)]:
        total = 0.0
        for n in range(N):
            derivative = dict.fromkeys(range(H), 0.0)  # of h_0
            for t in STEPS:
                multiplied = {"dW": network.h.get((t - 1, n, q)), "dU": network.x.get((t, n, q)), "db": 1.0}[name]
                assert multiplied is not None
                derivative = {
                    i: network.slope(t, n, i)
                    * ((multiplied if i == p else 0.0) + sum(network.W[i][j] * derivative[j] for j in range(H)))
                    for i in range(H)
                }
                total += sum(g[t, n, i] * derivative[i] for i in range(H))
        found[name][(p, q) if name != "db" else (p,)] = total
    return found


def m22_by_hand(follows: bool) -> dict[str, Array]:
    network = ByHand()
    return network.sums(network.loop(slope=lambda t, n, i: 1 - math.tanh(network.h[t, n, i]) ** 2)[1])


def m43_by_hand(probabilities: Callable[[Numbers], Numbers]) -> Callable[[bool], dict[str, Array]]:
    def computed(follows: bool) -> dict[str, Array]:
        network = ByHand(probabilities)
        return network.sums(network.loop()[1])

    return computed


BY_HAND: dict[tuple[str, str], Callable[[bool], dict[str, Array]]] = {
    ("M03", ""): m03_by_hand,
    ("M04", ""): m04_by_hand,
    ("M10", "each loss reaches back 1 step beyond its own"): m10_by_hand,
    ("M11", "nothing crosses a border every 2 steps"): m11_by_hand,
    ("M14", ""): m14_by_hand,
    ("M22", ""): m22_by_hand,
    ("M43", "normalised over the batch"): m43_by_hand(of_the_batch),
    ("M43", "normalised over time"): m43_by_hand(of_the_steps),
    ("M43", "the exponential is taken twice"): m43_by_hand(twice_exponential),
}


def test_the_right_formulas_by_hand_are_the_truth() -> None:
    wanted = truth(tiny())
    for name, value in right_by_hand().items():
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(("id_", "note"), BY_HAND)
def test_a_wrong_formula_by_hand_is_that_of_the_catalogue(id_: str, note: str) -> None:
    """dL/dh0 may come out of the same wrong line ("carry", "zeros") or be made of dL/da_1: both forms are there."""
    workings = Workings(tiny(), GOODFELLOW)
    listed = forms(tiny(), id_, note)
    first_alone = listed if id_ in ("M03", "M04", "M10", "M11") else listed[:1]
    assert len({plant.variant.slots.get("dh0", "own") for plant in first_alone}) == len(first_alone)
    for plant in first_alone:
        by_hand = BY_HAND[id_, note]("dh0" in plant.variant.slots)
        for name, value in by_hand.items():
            got = workings.value(name, plant.variant.slots)
            np.testing.assert_allclose(got, value, rtol=0, atol=1e-12, err_msg=f"{plant.key} {name}")
        right = right_by_hand()
        assert any(not alike(by_hand[name], right[name], 1e-6) for name in right)


def test_wrong_formulas_by_hand_are_all_different() -> None:
    computed = {key: formula(True)["dW"] for key, formula in BY_HAND.items()}
    for (one, first), (other, second) in combinations(computed.items(), 2):
        assert not alike(first, second, 1e-3), (one, other)
