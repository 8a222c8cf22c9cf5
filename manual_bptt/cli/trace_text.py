"""A traced problem as text of at most 120 columns; vectors are rows in brackets."""

from collections.abc import Iterator

from manual_bptt.cli.trace_wording import TITLE, described, given_decimals, notes, table
from manual_bptt.tracing import Equation, Number, Trace


def as_text(trace: Trace, decimals: int, agreement: str) -> str:
    """Write everything out, the agreement as the last line."""
    return "\n".join(_lines(trace, decimals, agreement)) + "\n"


def _lines(trace: Trace, decimals: int, agreement: str) -> Iterator[str]:
    yield TITLE
    yield described(trace.problem)
    yield ""
    yield from notes(trace.problem, decimals)
    yield "Vectors are columns in the equations; here they stand as rows in brackets."
    yield from _heading("Given")
    for equation in trace.given:
        yield f"{equation.note}"
        yield from _numbers(equation, None, decimals)
    for section in trace.sections:
        yield from _heading(section.title)
        for equation in section.equations:
            note = f"   ({equation.note})" if equation.note else ""
            yield f"{equation.label}  {equation.formula}{note}"
            yield from _numbers(equation, decimals, decimals)
    yield ""
    yield agreement


def _heading(title: str) -> Iterator[str]:
    yield from ("", title, "-" * len(title))


def _numbers(equation: Equation, decimals: int | None, most: int) -> Iterator[str]:
    """The numbers of one equation, one below the other; decimals None: as many as they need."""
    several = len(equation.rows) > 1
    width = max((len(number.symbol) for group in (*equation.rows, equation.together) for number in group), default=0)
    for n, row in enumerate(equation.rows, 1):
        for position, number in enumerate(row):
            start = f"row {n}  " if several and position == 0 else " " * (7 * several)
            yield from _assigned(f"    {start}", number, width, decimals, most)
    for number in equation.together:
        yield from _assigned("    " + " " * (7 * several), number, width, decimals, most)


def _assigned(start: str, number: Number, width: int, decimals: int | None, most: int) -> Iterator[str]:
    """`symbol = value`; the rows of a matrix below one another."""
    entries = table(number.value, given_decimals(number.value, most) if decimals is None else decimals)
    start = f"{start}{number.symbol:<{width}} = "
    if number.value.ndim == 0:
        yield start + entries[0][0]
        return
    longest = max(len(entry) for row in entries for entry in row)
    for row in entries:
        yield f"{start}[{' '.join(f'{entry:>{longest}}' for entry in row)}]"
        start = " " * len(start)
