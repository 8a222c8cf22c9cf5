"""The oracle finds, places and names what is planted in homework files, and lets the right ones pass.

Would catch: a mistake of the catalogue that passes, gets another name, two names or none, or is placed at the wrong
quantity or step, in any convention; two mistakes at once that are not told apart; a name for a mistake that the
catalogue does not have; a finding in a right homework, in float32, at unusual sizes or with another seed; a file in a
child process that is judged differently from the same functions in this process; a check that takes too long.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import statistics
import time
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from homework_files import AUTOGRAD_FUNCTION, CONVENTIONS, FOLDER, as_module, edited, homework

from torch_reference import check
from torch_reference.conventions import find_convention
from torch_reference.course_problems import draw_problem, kind_of, standard_sizes
from torch_reference.reports import LevelReport, Report

# a homework may divide by zero and overflow: that is judged, not warned of
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# The default run leaves out most pairs, half of what no catalogue lists, and most sizes and seeds. It looks at one
# level alone where all pairs of known mistakes are tried, which takes its time.
EVERYTHING = os.environ.get("MANUAL_BPTT_ALL_PAIRS") == "1"
PAIRS = 8  # of each convention, unless everything is asked for
FEW = 8  # mistakes of each convention in float32
ONE_SEQUENCE = ("karpathy", "kth")

Place = tuple[str, int | None]  # a canonical quantity and a step: from the first if positive, from behind if negative

# What a convention calls its gradients; the numbers in docs/coursework.md are made with these names too.
NAMES = {
    "goodfellow": "dV dc dU dW db - dx dh0",
    "torch": "dweight_ho dbias_ho dweight_ih dweight_hh dbias_ih dbias_hh dx dh0",
    "cs231n": "dW_vocab db_vocab dWx dWh db - dx dh0",
    "coursera": "- - dWax dWaa dba - dx da0",
    "cmu": "dW_out db_out dW_ih dW_hh db_ih db_hh dx dh0",
    "mytorch": "- - dW_ih dW_hh db_ih db_hh dx dh0",
    "karpathy": "dWhy dby dWxh dWhh dbh - - -",
    "kth": "dV dc dU dW db - - -",
    "d2l": "dW_hq db_q dW_xh dW_hh db_h - dX dH0",
}
GRADIENTS = ("dV", "dc", "dU", "dW", "db", "db2", "dx", "dh0")  # in the order of judgement
FORWARD = ("h", "o", "p", "loss")
# which of these each level returns; where a network returns the loss alone, whatever was wrong before shows there first
RETURNED = {("goodfellow", "network"): FORWARD, ("coursera", "step"): ("h", "p"), ("coursera", "sequence"): ("h", "p")}
RETURNED_ELSEWHERE = {"step": ("h",), "sequence": ("h",), "network": ("loss",)}

# The first quantity that a mistake spoils, in the order forward (h, o, p, loss), dL/do, then dL/dh and dL/da from the
# last step back, sums, dx, dh0. It follows from the wrong formula: a fault in B3's second term leaves step T alone, one
# in its first term or in the order of the loop does not, one in B4 spoils dL/da_T at once, one in a sum that sum alone.
EXPECTED: dict[str, Place] = {
    "M01": ("dh", -2),
    "M02": ("dh", -2),
    "M03": ("dh", -2),
    "M04": ("dh", -2),
    "M05": ("dh", -2),
    "M07": ("dh", -1),
    "M08": ("dh", -1),  # what step T - 1 hands on reaches step T
    # the window of k: dL/dh_t lacks the loss of step T from t = T - k - 1 on
    "M10-k0": ("dh", -2),
    "M10-k1": ("dh", -3),
    "M10-k2": ("dh", -4),
    # chunks of k: the last border is k * floor((T - 1) / k), the same for T = 5 and T = 6
    "M11-k2": ("dh", 4),
    "M11-k3": ("dh", 3),
    "M12": ("dh0", None),
    "M13": ("dh0", None),
    "M14": ("dU", None),
    "M15": ("dh", -1),  # something flows into the last step
    "M15-h0": ("h", 1),
    "M09": ("dh", -2),
    "M18": ("dh", -2),
    "M18-piles-up": ("dh", -3),  # to what step T hands back, nothing was added yet
    "M17-sums": ("dU", None),
    "M45-dWh": ("dW", None),
    "M16": ("dh", -1),
    "M17": ("dx", -1),
    "M20": ("da", -1),
    "M21": ("da", -1),
    "M22": ("da", -1),
    "M23": ("da", -1),
    "M24": ("da", -1),
    "M26": ("da", -1),
    "M30": ("dW", None),
    "M31": ("dV", None),
    "M32": ("dW", None),
    "M32-dU": ("dU", None),
    "M32-dV": ("dV", None),
    "M33": ("dW", None),
    "M34-dV": ("dV", None),
    "M35": ("dU", None),
    "M35-dW": ("dW", None),
    "M36": ("db", None),
    "M37-dx": ("dx", -1),
    "M39-zero": ("db2", None),
    "M39-zero-network": ("db", None),
    "M39-halved": ("db", None),
    "M39-both-halved": ("db", None),
    "M40": ("do", -1),
    "M41": ("do", -1),
    "M43": ("p", 1),
    "M44": ("do", -1),  # of a sequence: dh, see `expected`
    "M45": ("dV", None),  # of a sequence: dU
    "M46": ("loss", None),
    "M47-loss": ("loss", None),
    "M50": ("h", 1),
    "M48": ("dU", None),  # dU is large on purpose; dV need not reach the bound
    "P2": ("dV", None),  # of a sequence: dU
    "P3": ("h", 1),
    "P4": ("h", 2),
    "P6": ("h", 1),
    "P6-by": ("o", 1),
    "P6-c": ("o", 1),
    "P7": ("p", 1),
    "P8": ("h", 1),
    # the states of another sequence: what flows in is right, and B4 is the first to read a state
    "P5-cache": ("da", -1),
    "P5-overwritten": ("da", -1),
}
EXPECTED_IN: dict[tuple[str, str], Place] = {
    # the loss is scaled with its gradient, and comes first
    **{
        ("goodfellow", f"M44-{which}-network"): ("loss", None)
        for which in ("times-N", "over-N", "times-T", "over-T", "over-NT")
    },
    ("goodfellow", "M44-over-valid"): ("loss", None),
    ("cs231n", "M44-over-T-loss"): ("loss", None),
    ("cs231n", "M44-valid"): ("loss", None),
    ("karpathy", "M44-times-T"): ("loss", None),
    ("karpathy", "M44-over-T"): ("loss", None),
    ("kth", "M44-times-T"): ("loss", None),
    ("cmu", "M39-halved"): ("db2", None),  # here it is the second one
    # entries of dV lie beyond 1 here
    ("goodfellow", "M48-c1"): ("dV", None),
    ("karpathy", "M48-c1"): ("dV", None),
    ("kth", "M46"): ("do", -1),  # see ALIASES
    # the loss is made while the one array still holds the right state, and dL/da_{T-1} is the first to read a wrong one
    ("karpathy", "P3"): ("da", -2),
    # h0 is changed, but it is also the state before step 1 in the cache, so that dW is spoilt
    ("cs231n", "P5"): ("dW", None),
    ("coursera", "P5"): ("dW", None),
}
# arguments that are changed while all gradients are right
CHANGED = {
    ("goodfellow", "P1"): "dh",
    ("goodfellow", "P5"): "h0",
    ("goodfellow", "P5-weights"): "W",
    ("torch", "P1"): "grad_output",
    ("torch", "P5"): "weight_hh",
    ("cs231n", "P1"): "dh",
    ("cs231n", "P1-step"): "dnext_h",
    ("coursera", "P1"): "da",
    ("coursera", "P1-step"): "da_next",
    ("cmu", "P1"): "dh",
    ("cmu", "P5"): "W_hh",
    ("mytorch", "P1"): "dh",
    ("karpathy", "P5"): "hprev",
    ("karpathy", "P5-weights"): "Whh",
    ("kth", "P1"): "Y",
    ("kth", "P5"): "h0",
    ("kth", "P5-weights"): "RNN['W']",
    ("d2l", "P1"): "dH",
}
# the same numbers by another name
ALIASES = {
    ("kth", "M46"): "M44",  # the gradient is that of the sum, the loss the mean that is asked for: off by T, loss right
    ("torch", "M10-k0"): "M01",  # a window that reaches no step further back
}
CATALOGUE = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 26, 30, 31, 32, 33, 35, 36, 39),
    *(40, 41, 43, 44, 45, 46, 47, 48, 50),
)
PROTOCOL = range(1, 9)


def number(convention: str, key: str) -> str:
    """The number that a planted mistake goes by."""
    return ALIASES.get((convention, key), key.split("-")[0])


def numbers(convention: str, *keys: str) -> set[str]:
    found = {number(convention, key) for key in keys}
    # without a carry dL/dh0 stays zero where nothing else sets it: that is part of M01
    return found - {"M12"} if {"M01", "M12-zeros"} == set(keys) else found


def level_of(convention: str, *keys: str) -> str:
    """The level that a report tells of: the network is built on the sequence, the sequence shows more than a step."""
    levels = set.intersection(*(set(homework(convention).levels[key].split("+")) for key in keys))
    # where one is made in the network and the other in what it calls, the network has both
    return next((level for level in ("sequence", "network", "step") if level in levels), "network")


def expected(convention: str, key: str, level: str) -> Place:
    """Look a mistake up, by its whole key or as much of it as is needed."""
    parts = [part for part in key.split("-") if part != "sequence"]
    if (convention, key) in EXPECTED_IN:
        return EXPECTED_IN[convention, key]
    if key == "M47":
        return "do", last_masked_step(convention)
    symbol, step = next(
        EXPECTED["-".join(parts[:count])] for count in range(len(parts), 0, -1) if "-".join(parts[:count]) in EXPECTED
    )
    if level == "sequence" and symbol == "do":
        symbol = "dh"
    if level == "sequence" and symbol == "dV":
        symbol = "dU"
    if symbol in FORWARD:
        return shown(convention, level, symbol, step)
    return symbol, step


def shown(convention: str, level: str, symbol: str, step: int | None) -> Place:
    """The first quantity of the forward pass that is returned and depends on this one."""
    returned = RETURNED.get((convention, level), RETURNED_ELSEWHERE[level])
    first = next(name for name in FORWARD[FORWARD.index(symbol) :] if name in returned)
    return first, None if first == "loss" else step


def last_masked_step(convention: str) -> int:
    kind = kind_of(find_convention(convention), "network")
    mask = draw_problem(kind, 0, standard_sizes(kind)).mask
    assert mask is not None
    return max(t + 1 for t in range(len(mask)) if not mask[t].all())


def told(convention: str, place: Place, T: int) -> tuple[str, int | None]:
    """A place as the report tells it."""
    symbol, step = place
    if step is not None and step < 0:
        step += T + 1
    if symbol in GRADIENTS:
        return NAMES[convention].split()[GRADIENTS.index(symbol)], step
    return f"dL/{symbol}" if symbol in ("do", "dh", "da") else symbol, step


def rank(place: Place, T: int) -> tuple[int, int]:
    """Where a place comes in the order of judgement."""
    symbol, step = place
    step = 0 if step is None else step + T + 1 if step < 0 else step
    if symbol in FORWARD:
        return FORWARD.index(symbol), step
    if symbol == "do":
        return 10, -step
    if symbol in ("dh", "da"):
        return 11, -2 * step + (symbol == "da")
    return 12 + GRADIENTS.index(symbol), -step


def main_of(report: Report) -> LevelReport:
    assert report.main is not None, report.trouble
    assert not report.main.trouble
    return report.main


def place_of(level: LevelReport) -> tuple[str, int | None]:
    assert level.first_wrong is not None
    return level.first_wrong.quantity, level.first_wrong.step


def ids_of(level: LevelReport) -> list[str]:
    return [finding.id for finding in level.findings]


SINGLES = [(convention, key) for convention in CONVENTIONS for key in homework(convention).mistakes]


@cache
def single(convention: str, key: str) -> Report:
    return check(as_module(homework(convention).planted(key)), convention)


@pytest.mark.parametrize(("convention", "key"), SINGLES)
def test_a_planted_mistake_is_found_and_named(convention: str, key: str) -> None:
    report = single(convention, key)
    assert report.verdict == "wrong"
    level = main_of(report)
    assert level.level == level_of(convention, key)
    assert ids_of(level) == [number(convention, key)]
    assert not level.possible


@pytest.mark.parametrize(("convention", "key"), SINGLES)
def test_a_planted_mistake_is_placed(convention: str, key: str) -> None:
    level = main_of(single(convention, key))
    assert level.first_wrong is not None
    if (convention, key) in CHANGED:
        assert level.first_wrong.quantity.startswith(f"argument {CHANGED[convention, key]} (")
        assert all(gradient.ok for gradient in level.gradients)
    else:
        T = level.sizes["T"]
        assert place_of(level) == told(convention, expected(convention, key, level.level), T)
        steps = {"step": 1, "sequence": 5, "network": 6 if convention in ONE_SEQUENCE else 5}
        # small gradients need no clipping: that it is missing shows on the second problem alone
        assert steps[level.level] + 3 * ((convention, key) == ("karpathy", "M48-none")) == T


def test_the_whole_catalogue_is_planted_at_least_twice() -> None:
    # M39 needs two biases (cmu, mytorch, torch), M47 a mask (cs231n, goodfellow), M13 and M36's mean over the batch a
    # batch, M21 to M26 an activation
    for id_ in (*(f"M{each:02}" for each in CATALOGUE), *(f"P{each}" for each in PROTOCOL)):
        planted_in = {convention for convention, key in SINGLES if key.split("-")[0] == id_}
        assert len(planted_in) >= 2, id_
        named_in = {convention for convention, key in SINGLES if number(convention, key) == id_}
        assert len(named_in) >= 2, id_


@pytest.mark.parametrize(
    ("convention", "key"),
    [
        (convention, key)
        for convention in CONVENTIONS
        for key in list(homework(convention).mistakes)[
            :: 1 if EVERYTHING else len(homework(convention).mistakes) // FEW
        ]
    ],
)
def test_a_planted_mistake_is_named_in_float32(convention: str, key: str) -> None:
    report = check(as_module(homework(convention).planted(key)), convention, dtype="float32")
    assert report.verdict == "wrong"
    level = main_of(report)
    assert level.level == level_of(convention, key)
    # the exponential of an exponential overflows sooner in float32: then that is all there is to say
    assert ids_of(level) == (["S4"] if (convention, key) == ("d2l", "M43-exp") else [number(convention, key)])
    assert not level.possible


# With M26 dL/da_t holds nothing of what flows in, so a missing carry shows in dL/dh0 alone, which stays zero: no
# problem tells M01, M11 and M12 apart then. That M26 is there is certain; the step's function alone shows it.
UNTOLD = {
    ("torch", "M26", "M01-zeros"),
    ("cmu", "M26", "M01-zeros"),
    ("cmu", "M26-network", "M01-network"),
    ("mytorch", "M26", "M01-zeros"),
}


def sample(convention: str) -> list[tuple[str, str]]:
    """All pairs, or some whose names no other pair of mistakes can claim."""
    pairs = homework(convention).pairs
    if EVERYTHING:
        return list(pairs)
    told_apart = [pair for pair in pairs if (convention, *pair) not in UNTOLD]
    return told_apart[:: len(told_apart) // PAIRS]


PAIRED = [(convention, *pair) for convention in CONVENTIONS for pair in sample(convention)]


@cache
def paired(convention: str, first: str, second: str) -> LevelReport:
    level = None if EVERYTHING else level_of(convention, first, second)
    report = check(as_module(homework(convention).planted(first, second)), convention, level=level)
    assert report.verdict == "wrong"
    return main_of(report)


@pytest.mark.parametrize(("convention", "first", "second"), PAIRED)
def test_two_planted_mistakes_are_found_and_nothing_else_is_named(convention: str, first: str, second: str) -> None:
    level = paired(convention, first, second)
    assert set(ids_of(level)) <= numbers(convention, first, second)
    if (convention, first, second) in UNTOLD:
        assert set(ids_of(level)) <= {"M26"}
        assert {finding.id for finding in level.possible} <= {"M01", "M11", "M12"}
    else:
        assert set(ids_of(level)) == numbers(convention, first, second)


@pytest.mark.parametrize(("convention", "first", "second"), PAIRED)
def test_two_planted_mistakes_are_placed_at_the_first(convention: str, first: str, second: str) -> None:
    level = paired(convention, first, second)
    T = level.sizes["T"]
    places = [expected(convention, key, level.level) for key in (first, second)]
    assert place_of(level) == told(convention, min(places, key=lambda place: rank(place, T)), T)


def test_nine_pairs_in_ten_are_named() -> None:
    named = [set(ids_of(paired(*each))) == numbers(each[0], *each[1:]) for each in PAIRED]
    assert sum(named) >= 0.9 * len(named)


DRAWS = 40 if EVERYTHING else 5  # of each convention
# what is kept from another call, and what a wrong forward pass hides, shows only when the rest is right
LAST = ("P5", "P6", "P8")


def drawn(convention: str) -> Iterator[tuple[str, str]]:
    """Pairs at random, of different mistakes that one level shows and that can be planted together."""
    known = homework(convention)
    pairs = list(combinations((key for key in known.mistakes if not key.startswith(LAST)), 2))
    random.Random(convention).shuffle(pairs)
    left = DRAWS
    for first, second in pairs:
        together = set(known.levels[first].split("+")) & set(known.levels[second].split("+"))
        if left and together and number(convention, first) != number(convention, second):
            with contextlib.suppress(AssertionError, SyntaxError):  # they change the same lines
                compile(known.planted(first, second), "homework.py", "exec")
                left -= 1
                yield first, second


DRAWN = [(convention, *pair) for convention in CONVENTIONS for pair in drawn(convention)]


@pytest.mark.parametrize(("convention", "first", "second"), DRAWN)
def test_no_pair_at_random_gets_another_name(convention: str, first: str, second: str) -> None:
    level = paired(convention, first, second)
    # facts, where nothing that is more than a fact explains them: a wrong shape, another answer the second time
    facts = {"S2"} | ({"P5"} if {"M15", "P2"} & numbers(convention, first, second) else set())
    assert set(ids_of(level)) - facts <= numbers(convention, first, second)


def test_nine_pairs_in_ten_at_random_are_named() -> None:
    named = [set(ids_of(paired(*each))) == numbers(each[0], *each[1:]) for each in DRAWN]
    assert sum(named) >= 0.9 * len(named)


# Places that cannot be seen from what is returned, and where the fault shows instead.
SHOWN_LATER: dict[tuple[str, str], Place] = {
    # the network returns neither h nor o
    ("cmu", "squared-output"): ("loss", None),
    ("torch", "squared-output"): ("loss", None),
    ("d2l", "squared-output"): ("loss", None),
    ("karpathy", "input-of-step-before"): ("loss", None),
    ("kth", "input-twice"): ("loss", None),
    # the network returns no dL/dh_T, and nobody but the network itself gives it an upstream gradient
    ("karpathy", "sizes-of-Why"): ("da", -1),
    ("kth", "sizes-of-V"): ("da", -1),
}
# Mistakes beyond the courses' list that the catalogue has: these are named, and rightly.
LISTED = {
    ("torch", "loss-of-step-before"): "M16",
    ("torch", "carry-piles-up"): "M18",
    ("cs231n", "only half of the way through the output"): "M19",
    ("kth", "carry-piles-up"): "M18",
    ("goodfellow", "bias-twice"): "M50",
    ("goodfellow", "loss-in-bits"): "M46",
    ("cmu", "log2"): "M46",
    ("karpathy", "log-of-two"): "M46",
    ("kth", "loss-in-bits"): "M46",
    ("kth", "slope-of-h-before"): "M25",
    ("mytorch", "slope-of-state-before"): "M25",
    ("cs231n", "slope of the state before"): "M25",
    ("coursera", "slope of the state before"): "M25",
}
OUTSIDE = [
    (convention, name)
    for convention in CONVENTIONS
    for name in list(homework(convention).outside)[:: 1 if EVERYTHING else 2]
]


@pytest.mark.parametrize(("convention", "name"), OUTSIDE)
def test_a_mistake_that_no_catalogue_lists_is_placed_and_gets_no_name(convention: str, name: str) -> None:
    known = homework(convention)
    level_alone = None if EVERYTHING else level_of(convention, name)
    report = check(as_module(edited(known.text, known.outside[name])), convention, level=level_alone)
    assert report.verdict == "wrong"
    named = {finding.id for level in report.levels for finding in (*level.findings, *level.possible)}
    assert named == ({LISTED[convention, name]} if (convention, name) in LISTED else set())
    level = main_of(report)
    symbol, step = known.outside_first_wrong[name]
    place = SHOWN_LATER.get((convention, name), (symbol, -1 if step == "last" else step))
    wanted = told(convention, place, level.sizes["T"])
    if place[0] in ("da", "dh") and level.level == "network":
        # where dL/dh_T is not returned, and no upstream gradient can be given, nobody can tell it from dL/da_T
        assert place_of(level) in (wanted, ("dL/dh or dL/da", wanted[1]))
    else:
        assert place_of(level) == wanted


DTYPES = ("float64", "float32")
SIZES: tuple[dict[str, int], ...] = ({}, {"T": 1}, {"N": 1}, {"N": 4, "T": 4}, {"H": 40}, {"T": 30})


def seeds(file: str, place: int, dtype: str) -> list[int]:
    """Two seeds at the usual sizes, one at others; of the large ones, which take long, one for each file."""
    single = dtype == "float32"
    if place == 0:
        return [3, 4] if single else [0, 1]
    if "H" in SIZES[place] or SIZES[place].get("T") == 30:
        turn = (*CONVENTIONS, AUTOGRAD_FUNCTION).index(file)
        return [2] if ("H" in SIZES[place], single) == (turn % 2 == 0, turn % 4 >= 2) else []
    return [(place + single) % 5]


RIGHT = [
    (file, dtype, seed, sizes)
    for file in (*CONVENTIONS, AUTOGRAD_FUNCTION)
    for dtype in DTYPES
    for place, sizes in enumerate(SIZES)
    for seed in (range(5) if EVERYTHING else seeds(file, place, dtype))
    if not (file in ONE_SEQUENCE and "N" in sizes)
]


@pytest.mark.parametrize(("file", "dtype", "seed", "sizes"), RIGHT)
def test_a_right_homework_is_right(file: str, dtype: str, seed: int, sizes: dict[str, int]) -> None:
    if file == AUTOGRAD_FUNCTION:
        text, convention = (FOLDER / f"{file}.py").read_text(encoding="utf-8"), "torch"
    else:
        text, convention = homework(file).text, file
    report = check(as_module(text), convention, dtype=dtype, seed=seed, sizes=sizes or None)
    assert report.verdict == "right"
    for level in report.levels:
        assert level.verdict == "right"
        assert level.first_wrong is None
        assert not level.findings
        assert not level.possible
        assert all(gradient.ok for gradient in level.gradients)
        assert level.sizes.items() >= ({**sizes, "T": 1} if level.level == "step" else sizes).items()
    assert [level.level for level in report.levels] == (
        ["sequence"] if file == AUTOGRAD_FUNCTION else list(find_convention(convention).levels)
    )


def without_file(report: Report, name: str) -> str:
    """Everything that a report says but for the file's name and its line numbers."""
    return re.sub(rf"{re.escape(name)}|homework", "", str(report.to_dict()))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_file_is_judged_as_its_functions_are(convention: str, tmp_path: Path) -> None:
    key = "M05-network" if convention == "cmu" else "M05"
    path = tmp_path / "homework.py"
    path.write_text(homework(convention).planted(key), encoding="utf-8")
    by_file, by_functions = check(path, convention), single(convention, key)
    assert by_file.verdict == "wrong"
    assert ids_of(main_of(by_file)) == ["M05"]
    assert without_file(by_file, path.name) == without_file(by_functions, "homework")


def test_a_check_takes_two_seconds_at_most() -> None:
    def seconds(*keys: str) -> float:
        module = as_module(homework("goodfellow").planted(*keys))
        times = []
        for _ in range(3):
            started = time.process_time()  # whatever else the machine does
            check(module, "goodfellow")
            times.append(time.process_time() - started)
        return statistics.median(times)

    assert seconds() < 2
    assert seconds("M05", "M22") < 2
    assert seconds("M04", "M14") < 2  # which no pair explains
