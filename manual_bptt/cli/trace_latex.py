"""A traced problem as a complete LaTeX document that needs amsmath and geometry alone; pure ASCII."""

import re
from collections.abc import Iterator

from manual_bptt.cli.trace_wording import TITLE, described, given_decimals, notes, table
from manual_bptt.tracing import Equation, Number, Trace

LINE_WIDTH = 16.4  # cm that the numbers of a line may take
DIGIT, COLUMN, GAP = 0.18, 0.36, 0.5  # cm: a digit, what is between two columns, what is between two numbers
ROW = 1.7  # cm for the words "row 1" and what follows them

_SIGNS = {
    "ŷ": r"\hat{y}",
    "ᵀ": r"^{\top}",
    "Σ": r"\sum",
    "⊙": r"\odot ",
    "−": "-",
    "′": "'",
    "²": "^{2}",
    "ℓ": r"\ell",
    "½": r"\tfrac{1}{2}",
    ",  ": r",\qquad ",
}


def math(symbols: str) -> str:
    """Turn a formula of tracing.py into LaTeX's mathematics."""
    text = re.sub(r"_(?:\{([^}]*)\}|([0-9A-Za-z]+))", lambda match: f"_{{{match[1] or match[2]}}}", symbols)
    text = re.sub(r"\bd(?=[a-zA-Z])", r"\\mathrm{d}", text)  # do, dW: d alone stands upright
    text = re.sub(r"\b(tanh|exp|ln|max)\b", r"\\\1 ", text)
    for sign, command in _SIGNS.items():
        text = text.replace(sign, command)
    return re.sub(r"\\sum_\{(\w)\}", r"{\\textstyle\\sum_{\1}}\\,", text)


def as_latex(trace: Trace, decimals: int, agreement: str) -> str:
    """Write the document, the agreement as its last paragraph."""
    return "\n".join(_lines(trace, decimals, agreement)) + "\n"


def _lines(trace: Trace, decimals: int, agreement: str) -> Iterator[str]:
    yield r"\documentclass[a4paper,fleqn]{article}"
    yield r"\usepackage[margin=2cm]{geometry}"
    yield r"\usepackage{amsmath}"
    yield r"\allowdisplaybreaks"
    yield r"\setlength{\parindent}{0pt}\setlength{\mathindent}{0pt}"
    yield r"\begin{document}"
    yield rf"\section*{{{TITLE}}}"
    yield _words(described(trace.problem))
    for note in notes(trace.problem, decimals):
        yield ""
        yield _words(note)
    yield r"\subsection*{Given}"
    for equation in trace.given:
        yield ""
        yield _words(equation.note) + ":"
        yield from _aligned(equation, None, decimals)
    for section in trace.sections:
        yield rf"\subsection*{{{section.title}}}"
        for equation in section.equations:
            yield from _aligned(equation, decimals, decimals)
    yield ""
    yield _words(agreement)
    yield r"\end{document}"


def _words(text: str) -> str:
    """Running text, in which single symbols of mathematics may occur."""
    text = re.sub(r"[#%&]", r"\\\g<0>", text).replace("|", r"$|$")
    text = re.sub(r"\b\w+_\w+\b", lambda word: _index(word[0]), text)
    return text.replace("⊙", r"$\odot$")


def _index(word: str) -> str:
    """h_0 is mathematics; cross_entropy, with more letters before its line, is a name."""
    return f"${math(word)}$" if re.fullmatch(r"d?\w_\w", word) else r"\texttt{" + word.replace("_", r"\_") + "}"


def _aligned(equation: Equation, decimals: int | None, most: int) -> Iterator[str]:
    """The formula with its label, then the numbers, as many on a line as there is room for."""
    lines = []
    if equation.formula:
        note = rf" \quad\text{{({_words(equation.note)})}}" if equation.note else ""
        lines.append(rf"& {math(equation.formula)}{note} \tag{{{equation.label}}}")
    room = LINE_WIDTH - (ROW if len(equation.rows) > 1 else 0.0)
    for n, row in enumerate(equation.rows, 1):
        start = rf"\text{{row {n}:}}\quad " if len(equation.rows) > 1 else ""
        lines += [f"& {start if first else ''}{line}" for first, line in _broken(row, decimals, most, room)]
    lines += [f"& {line}" for _, line in _broken(equation.together, decimals, most, room)]
    yield r"\begin{align*}"
    yield " \\\\*\n".join(lines[:2])  # a formula and its first numbers stay on one page
    yield from (rf"\\ {line}" for line in lines[2:])
    yield r"\end{align*}"


def _broken(numbers: tuple[Number, ...], decimals: int | None, most: int, room: float) -> Iterator[tuple[bool, str]]:
    """The numbers on as many lines as they need, each with whether it is the first."""
    lines: list[list[str]] = [[]]
    left = room
    for number in numbers:
        latex, width = _assigned(number, decimals, most)
        if width > left and lines[-1]:
            lines.append([])
            left = room
        lines[-1].append(latex)
        left -= width + GAP
    for position, line in enumerate(lines):
        if line:
            yield position == 0, r" \quad ".join(line)


def _assigned(number: Number, decimals: int | None, most: int) -> tuple[str, float]:
    """`symbol = value`, vectors as columns, and about how wide it is in cm."""
    entries = table(number.value, given_decimals(number.value, most) if decimals is None else decimals)
    if number.value.ndim == 1:
        entries = [[entry] for entry in entries[0]]
    longest = max(len(entry) for row in entries for entry in row)
    width = DIGIT * (len(number.symbol) + 3) + len(entries[0]) * (DIGIT * longest + COLUMN)
    written = [[_exponent(entry) for entry in row] for row in entries]
    if number.value.ndim == 0:
        return f"{math(number.symbol)} = {written[0][0]}", width
    body = r" \\ ".join(" & ".join(row) for row in written)
    return rf"{math(number.symbol)} = \begin{{bmatrix}} {body} \end{{bmatrix}}", width


def _exponent(entry: str) -> str:
    mantissa, e, power = entry.partition("e")
    return rf"{mantissa} \cdot 10^{{{int(power)}}}" if e else entry
