"""A traced problem as one self-contained HTML page, for light and dark screens and for paper."""

import re
from collections.abc import Iterator
from html import escape

from manual_bptt.cli.trace_wording import TITLE, described, given_decimals, notes, table
from manual_bptt.tracing import Equation, Number, Trace

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fdfdfb; --soft: #5c5c5c; --line: #d5d5d0;
  --label: #1d5c8c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e2; --paper: #17181a; --soft: #a3a3a0; --line: #3a3c40; --label: #82b9e6; }
}
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
p { margin: .3rem 0; } .soft { color: var(--soft); }
section > div { margin: .9rem 0; break-inside: avoid; }
.label { display: inline-block; min-width: 2.2rem; font-weight: 600; color: var(--label); }
.math { font-family: "STIX Two Text", Cambria, Georgia, serif; font-style: italic; white-space: nowrap; }
.math sub, .math sup { font-size: .7em; line-height: 0; }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1.4rem; margin: .3rem 0 .3rem 2.2rem; }
.number { display: flex; align-items: center; gap: .4rem; overflow-x: auto; }
table { border-collapse: collapse; border: solid var(--ink); border-width: 0 1px; border-radius: 4px; }
td { padding: 0 .45rem; } td, .plain { text-align: right; font-variant-numeric: tabular-nums; }
"""


def math(symbols: str) -> str:
    """Turn a formula of tracing.py into HTML."""
    text = re.sub(
        r"_(?:\{([^}]*)\}|([0-9A-Za-z]+))", lambda match: f"<sub>{match[1] or match[2]}</sub>", escape(symbols)
    )
    text = text.replace("ᵀ", "<sup>⊤</sup>").replace(",  ", ", &emsp;")
    return f'<span class="math">{text}</span>'


def as_html(trace: Trace, decimals: int, agreement: str) -> str:
    """Write the page, the agreement as its last line of text."""
    return "\n".join(_lines(trace, decimals, agreement)) + "\n"


def _lines(trace: Trace, decimals: int, agreement: str) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield f"<h1>{TITLE}</h1>\n<p>{escape(described(trace.problem))}</p>"
    for note in notes(trace.problem, decimals):
        yield f'<p class="soft">{_words(note)}</p>'
    yield "<section>\n<h2>Given</h2>"
    for equation in trace.given:
        yield from _equation(equation, None, decimals)
    yield "</section>"
    for section in trace.sections:
        yield f"<section>\n<h2>{section.title}</h2>"
        for equation in section.equations:
            yield from _equation(equation, decimals, decimals)
        yield "</section>"
    yield f"<p>{escape(agreement)}</p>\n</body>\n</html>"


def _words(text: str) -> str:
    return re.sub(r"\b(\w)_(\w)\b", r"\1<sub>\2</sub>", escape(text))


def _equation(equation: Equation, decimals: int | None, most: int) -> Iterator[str]:
    label = f'<span class="label">{equation.label}</span>' if equation.label else ""
    formula = math(equation.formula) if equation.formula else ""
    words = f"({equation.note})" if formula and equation.note else equation.note
    note = f' <span class="soft">{_words(words)}</span>' if words else ""
    yield f"<div>\n<p>{label}{formula}{note}</p>"
    for n, row in enumerate(equation.rows, 1):
        start = f'<span class="soft">row {n}</span>' if len(equation.rows) > 1 else ""
        yield f'<div class="row">{start}{_numbers(row, decimals, most)}</div>'
    if equation.together:
        yield f'<div class="row">{_numbers(equation.together, decimals, most)}</div>'
    yield "</div>"


def _numbers(numbers: tuple[Number, ...], decimals: int | None, most: int) -> str:
    return "".join(_assigned(number, decimals, most) for number in numbers)


def _assigned(number: Number, decimals: int | None, most: int) -> str:
    """`symbol = value`, vectors as columns."""
    entries = table(number.value, given_decimals(number.value, most) if decimals is None else decimals)
    if number.value.ndim == 1:
        entries = [[entry] for entry in entries[0]]
    if number.value.ndim == 0:
        value = f'<span class="plain">{entries[0][0]}</span>'
    else:
        body = "".join(f"<tr>{''.join(f'<td>{entry}</td>' for entry in row)}</tr>" for row in entries)
        value = f"<table>{body}</table>"
    return f'<div class="number">{math(number.symbol)} = {value}</div>'
