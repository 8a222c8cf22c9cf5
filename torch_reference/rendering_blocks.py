"""What a report tells at each hint level, as blocks of cleaned text; rendering.py and rendering_html.py write them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch_reference.reports import HINTS, Finding, FirstWrong, GradientReport, LevelReport, Report

MARKS = {"right": "✓", "wrong": "✗", "unusable": "!"}
GRADES = ("right", "below 1e-4", "below 0.01", "below 0.1", "0.1 and more", "not a number", "not seen")
GLYPHS = "·░▒▓█!?"  # one for each grade
NUMBERS_FIT = 12  # a heat map of more steps has no room for numbers
_BOUNDS = (1e-4, 1e-2, 1e-1)
_RIGHT, _NOT_A_NUMBER, _NOT_SEEN = 0, 5, 6
_MOST_LAGS = 16  # a matrix with more rows is longer than all the rest of the report
_LINES, _LINE = 10, 200  # of what the homework printed
_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles and links
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours and cursor moves
    r"|\x1b[ -/]*[0-~]?"
)


@dataclass(frozen=True)
class Words:
    """A paragraph.

    Attributes:
        text: Its text, in one line.
        tone: "right", "wrong" or "unusable" for what carries that mark; "quiet" for what may be skipped; or "".
        label: Stands before the text: "Hint".
        depth: 0 for the homework as a whole and for each level, 1 for what stands under them.
        heading: Whether it is the heading of what follows.
    """

    text: str
    tone: str = ""
    label: str = ""
    depth: int = 0
    heading: bool = False


@dataclass(frozen=True)
class Lines:
    """Lines that stay as they are: an error's text, or what the homework printed."""

    text: str
    depth: int = 0


@dataclass(frozen=True)
class Table:
    """A table of gradients; every row begins with a mark."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class HeatMap:
    """Errors with a row per quantity and a column per step, counted from 1; after a row's end nothing is shown."""

    title: str
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]

    @property
    def steps(self) -> int:
        """The number of columns."""
        return max(len(errors) for _, errors in self.rows)


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps that share a legend; an error up to `floor` counts as right."""

    maps: tuple[HeatMap, ...]
    floor: float

    def grades(self) -> list[int]:
        """List the grades that occur, in the order of `GRADES`."""
        return sorted({grade(error, self.floor) for heat in self.maps for _, errors in heat.rows for error in errors})


Block = Words | Lines | Table | HeatMaps


def hint_level(report: Report, hints: str | None) -> str:
    """Return the hint level to use: the one asked for, else the report's own.

    Raises:
        ValueError: There is no such hint level.
    """
    level = report.hints if hints is None else hints
    if level not in HINTS:
        raise ValueError(f"expected hints to be one of {', '.join(HINTS)}, got {level!r}")
    return level


def clean(text: str) -> str:
    """Return the text without escape sequences, control characters and characters that turn the line's direction."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    return "".join(
        "�" if unicodedata.category(c) == "Cs" else c
        for c in text
        if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf")
    )


def one_line(text: str) -> str:
    """Return the cleaned text with every stretch of white space as one blank."""
    return " ".join(clean(text).split())


def message_line(text: str) -> str:
    """Return a message of several lines as one, its lines apart from one another."""
    lines = filter(None, map(one_line, clean(text).splitlines()))
    return "; ".join(lines).replace(":; ", ": ")


def shown_error(error: float | None) -> str:
    """Return a relative error as it is printed: "1.2e-05"; "-" where there is none."""
    if error is None:
        return "-"
    return "0" if error == 0 else f"{error:.1e}"


def grade(error: float | None, floor: float) -> int:
    """Return the place in `GRADES` of an error."""
    if error is None:
        return _NOT_SEEN
    if not math.isfinite(error):
        return _NOT_A_NUMBER
    return _RIGHT if error <= floor else 1 + sum(error >= bound for bound in _BOUNDS)


def floor_of(level: LevelReport) -> float:
    """Return the error up to which a step counts as right: the report says it of whole gradients only."""
    return max([1e-9, *(10 * g.error for g in level.gradients if g.ok and g.error is not None)])


def over_time(level: LevelReport) -> tuple[tuple[str, tuple[float | None, ...]], ...]:
    """Return the errors over time by quantity, all as long as the longest."""
    steps = max(map(len, level.over_time.values()), default=0)
    return tuple(
        (one_line(name), (*errors, *[None] * (steps - len(errors)))) for name, errors in level.over_time.items()
    )


def blocks(report: Report, hints: str) -> Iterator[Block]:
    """List what is told at a hint level, the verdict first."""
    verdict, main = report.verdict, report.main
    says = {"right": "is right", "wrong": "is wrong", "unusable": "cannot be judged"}[verdict]
    yield Words(f"{one_line(report.candidate)} {says}", verdict, heading=True)
    if report.convention:
        title = f" ({one_line(report.title)})" if report.title else ""
        yield Words(f"Checked as {one_line(report.convention)}{title}, seed {report.seed}.", "quiet", depth=1)
    if report.trouble:
        yield Lines(clean(report.trouble), 1)
    if hints == "verdict":
        if verdict == "unusable" and main is not None and main.trouble:
            yield Lines(clean(main.trouble), 1)
        return
    for note in report.notes:
        yield Words(message_line(note), label="Note", depth=1)
    causes, passed = HINTS.index(hints) >= HINTS.index("cause"), False
    for level in report.levels:
        if level is main:
            yield from _in_full(level, HINTS.index(hints))
            passed = True
        else:
            yield _in_short(level, causes, one_line(main.level) if main and passed else "")


def first_wrong_sentence(level: LevelReport) -> str:
    """Return where the level first goes wrong, as a sentence; "" if that is not known."""
    first = level.first_wrong
    if first is None:
        return ""
    quantity = one_line(first.quantity)
    if quantity.startswith("argument "):
        start = f"{quantity} is changed in place"
    elif first.step is None or first.steps == 1:
        start = f"{'the loss' if quantity == 'loss' else quantity} is the first wrong quantity"
    else:
        gradient = quantity.startswith("dL/") or any(g.name == first.quantity for g in level.gradients)
        start = f"{'going backward, ' * gradient}{quantity} is first wrong at t={first.step} of {first.steps}"
    explained = any(finding.explains for finding in level.findings) and not level.unexplained
    inferred = not first.exact and not explained  # what explains every number explains the place
    return f"{start}{_right_before(first)}{' (inferred from the gradients that were returned)' * inferred}."


def _right_before(first: FirstWrong) -> str:
    before = one_line(first.before)
    if not before or before.endswith(" right"):
        return f"; {before}" * bool(before)
    many = any(word in before for word in (" and ", ",", " to "))
    return f"; {before} {'are' if many else 'is'} right"


def cause_of(finding: Finding) -> str:
    """Return what is wrong, with the form that it takes here."""
    cause, note = one_line(finding.cause), one_line(finding.note)
    return f"{cause.removesuffix('.')}: {note}." if note else cause


def _heading(level: LevelReport) -> str:
    return f"{one_line(level.level)} ({one_line(', '.join(level.functions))})" if level.functions else level.level


def _in_short(level: LevelReport, causes: bool, narrower: str) -> Words:
    """Tell in a line of a level that is not the main one; `narrower` names the main one where that is narrower."""
    if level.verdict == "right":
        return Words(f"{_heading(level)} is right.", "right")
    if level.verdict == "unusable":
        trouble = next(iter(clean(level.trouble).splitlines()), "")
        return Words(f"{_heading(level)} cannot be judged{': ' if trouble else '.'}{one_line(trouble)}", "unusable")
    wrong = ", ".join(one_line(g.name) for g in level.gradients if not g.ok)
    parts = [first_wrong_sentence(level) or (f"{wrong}." if wrong else "")]
    if causes:
        parts += [f"{one_line(finding.id)}, {one_line(finding.title)}." for finding in level.findings]
    says = (
        f"is wrong too (repair {narrower} first, then check again)"
        if narrower
        else "by itself is wrong (repair it first)"
    )
    told = " ".join(part for part in parts if part)
    return Words(f"{_heading(level)} {says}{f': {told}' if told else '.'}", "wrong")


def _in_full(level: LevelReport, hints: int) -> Iterator[Block]:
    says = {"right": "is right", "wrong": "is wrong", "unusable": "cannot be judged"}[level.verdict]
    sizes = ", ".join(f"{one_line(name)}={size}" for name, size in level.sizes.items())
    yield Words(f"{_heading(level)} {says}{f'; {sizes}' if sizes else ''}.", level.verdict, heading=True)
    if level.trouble:
        yield Lines(clean(level.trouble), 1)
    if level.verdict == "wrong":
        if sentence := first_wrong_sentence(level):
            yield Words(sentence, label="Where", depth=1)
        if hints >= HINTS.index("cause"):
            yield from _causes(level)
    if level.gradients:
        yield _table(level.gradients, values=hints >= HINTS.index("values"))
    for gradient in level.gradients:
        if gradient.trouble:
            yield Words(one_line(gradient.trouble), label=one_line(gradient.name), depth=1)
    if level.verdict == "wrong":
        maps = tuple(_maps(level))
        if maps:
            yield HeatMaps(maps, floor_of(level))
    for note in level.notes:
        yield Words(message_line(note), label="Note", depth=1)
    if level.blind:
        unseen = ", ".join(_blind(*mistake) for mistake in level.blind)
        yield Words(f"This problem cannot see: {unseen}.", "quiet", depth=1)
    printed = clean(level.output).strip("\n").splitlines() if level.verdict == "unusable" else []
    if printed:
        yield Words("The last lines that it printed:", "quiet", depth=1)
        yield Lines("\n".join(shortened(line, _LINE) for line in printed[-_LINES:]), 1)


def _causes(level: LevelReport) -> Iterator[Words]:
    causes = [finding for finding in level.findings if finding.explains]
    facts = [finding for finding in level.findings if not finding.explains]
    if len(causes) > 1:
        number = {2: "Two", 3: "Three"}.get(len(causes), str(len(causes)))
        yield Words(f"{number} mistakes together explain it.", depth=1)
    yield from _each(causes, "Cause")
    if level.possible:
        yield Words("These explain it equally well, and no problem tells them apart:", depth=1)
        yield from _each(level.possible, "Cause")
    if level.unexplained:
        unexplained = f"No mistake in the catalogue explains {one_line(level.unexplained)}."
        yield Words(unexplained, label="" if causes else "Cause", depth=1)
    yield from _each(facts, "Found")


def _each(findings: Sequence[Finding], label: str) -> Iterator[Words]:
    for finding in findings:
        title = f"{one_line(finding.id)}, {one_line(finding.title)}."
        yield Words(f"{title} {cause_of(finding)}", label=label, depth=1)
        yield Words(one_line(finding.hint), label="Hint", depth=1)


def _blind(id_: str, title: str, why: str) -> str:
    return f"{one_line(id_)} {one_line(title)}{f' ({one_line(why)})' if why else ''}"


def _table(gradients: Sequence[GradientReport], values: bool) -> Table:
    """Make the table; a column that would be empty is left out."""
    header = ("", "gradient", "relative error", "furthest off at", "yours", "true", "first wrong step")
    rows = [(*_row(gradient, values),) for gradient in gradients]
    kept = [i for i in range(len(header)) if i < 3 or any(row[i] for row in rows)]
    return Table(tuple(header[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))


def _row(gradient: GradientReport, values: bool) -> Iterator[str]:
    yield MARKS["right" if gradient.ok else "wrong"]
    yield shortened(one_line(gradient.name), 24)
    yield shown_error(gradient.error)
    if gradient.ok:
        yield from ("", "", "", "")
        return
    index = gradient.worst_index
    yield "" if index is None else f"[{', '.join(map(str, index))}]"
    yield from _values(gradient.got, gradient.expected) if values else ("", "")
    yield "" if gradient.first_wrong_step is None else f"t={gradient.first_wrong_step}"


def _values(*values: float | None) -> list[str]:
    """Write the values with as many digits as it takes to tell them apart."""
    digits = next((n for n in (6, 9, 12) if len({f"{v:.{n}g}" for v in values if v is not None}) > 1), 17)
    digits = digits if None not in values else 6
    return ["" if value is None else f"{value:.{digits}g}" for value in values]


def _maps(level: LevelReport) -> Iterator[HeatMap]:
    rows, floor = over_time(level), floor_of(level)
    if rows and len(rows[0][1]) > 1:
        yield HeatMap("Relative error at each step", rows)
    lags = tuple((f"t={s}", tuple(errors[:s])) for s, errors in enumerate(level.lags, 1))  # it goes back in time only
    seen = {grade(error, floor) for _, errors in lags for error in errors} - {_RIGHT, _NOT_SEEN}
    if seen and 1 < len(lags) <= _MOST_LAGS:
        yield HeatMap("Upstream gradient at one step alone (row): the error that it leaves at each step (column)", lags)


def shortened(text: str, length: int) -> str:
    """Return the text, its end replaced by "…" if it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
