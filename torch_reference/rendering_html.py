"""Writes the blocks of a report as HTML: no script, no outside resource, every text escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape

from torch_reference.rendering_blocks import (
    GLYPHS,
    GRADES,
    MARKS,
    NUMBERS_FIT,
    Block,
    HeatMap,
    HeatMaps,
    Lines,
    Table,
    Words,
    grade,
    shown_error,
)

# Text keeps the colour of the page that it is shown in; these two are told apart from each other, and from black and
# white, with every kind of colour vision.
_MARK_COLOURS = {"right": "#159570", "wrong": "#d55e00", "unusable": "#b8860b"}
_SHADES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.0)  # in the order of GRADES; both black and white can be read on them
_CELL = "padding:.1em .7em .1em 0;text-align:left;background:transparent;border:0"
_LINE = "1px solid rgba(128,128,128,.45)"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 system-ui,sans-serif;"
    "color:#1b1b1b;background:#fdfdfb}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e2;background:#17181a}}"
)


def page(title: str, body: str) -> str:
    """Return a page of its own around a fragment; it says what equation labels in it are."""
    if re.search(r"\b[FB][1-9]\b", body):
        labels = (
            "F1 … F5 and B1 … B9 are the equations of the forward and the backward pass in manual-bptt's derivation"
        )
        body += f'\n<p style="{_left(0)};opacity:.75;font-size:.85em">{labels} (docs/derivation.md).</p>'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def fragment(blocks: Iterable[Block]) -> str:
    """Return the blocks in a `div`."""
    lines = [line for block in blocks for line in _block(block)]
    return "\n".join(['<div style="line-height:1.5">', *lines, "</div>"])


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Words):
        yield _paragraph(block)
    elif isinstance(block, Lines):
        style = f"{_left(block.depth)};white-space:pre-wrap;overflow-wrap:anywhere;background:transparent;color:inherit"
        yield f'<pre style="{style}">{escape(block.text)}</pre>'
    elif isinstance(block, Table):
        yield from _table(block)
    else:
        for heat in block.maps:
            yield from _heat_map(heat, block.floor)
        yield _legend(block)


def _left(depth: int) -> str:
    return f"margin:.35em 0 .35em {1.4 * depth:g}em"


def _paragraph(words: Words) -> str:
    style = _left(words.depth) + (";opacity:.75;font-size:.92em" if words.tone == "quiet" else "")
    label = f"<b>{escape(words.label)}:</b> " if words.label else ""
    mark = f"{_mark(words.tone)} " if words.tone in MARKS else ""
    text = f"<b>{escape(words.text)}</b>" if words.heading else escape(words.text)
    return f'<p style="{style}">{mark}{label}{text}</p>'


def _mark(verdict: str) -> str:
    return f'<b style="color:{_MARK_COLOURS[verdict]}">{MARKS[verdict]}</b>'


def _table(table: Table) -> Iterator[str]:
    marks = {mark: _mark(verdict) for verdict, mark in MARKS.items()}
    yield f'<div style="{_left(1)};overflow-x:auto"><table style="border-collapse:collapse;border:0">'
    cells = "".join(
        f'<th scope="col" style="{_CELL};border-bottom:{_LINE}">{escape(name)}</th>' for name in table.header
    )
    yield f'<thead><tr style="background:transparent">{cells}</tr></thead>\n<tbody>'
    for mark, name, *rest in table.rows:
        cells = "".join(f'<td style="{_CELL};font-variant-numeric:tabular-nums">{escape(cell)}</td>' for cell in rest)
        first = f'<td style="{_CELL}">{marks[mark]}</td><th scope="row" style="{_CELL}">{escape(name)}</th>'
        yield f'<tr style="background:transparent">{first}{cells}</tr>'
    yield "</tbody></table></div>"


def _heat_map(heat: HeatMap, floor: float) -> Iterator[str]:
    yield f'<p style="{_left(1)}">{escape(heat.title)}:</p>'
    yield f'<div style="{_left(1)};overflow-x:auto"><table style="border-collapse:collapse;border:0;font-size:.85em">'
    wide = heat.steps <= NUMBERS_FIT
    edge = f"padding:.15em {'.5em' if wide else '.3em'};background:transparent;border:0;white-space:nowrap"
    steps = "".join(
        f'<th scope="col" style="{edge};min-width:{3 if wide else 1}em;text-align:center">{t}</th>'
        for t in range(1, heat.steps + 1)
    )
    yield f'<tr style="background:transparent"><th scope="col" style="{edge};text-align:left">t</th>{steps}</tr>'
    for name, errors in heat.rows:
        cells = "".join(_heat_cell(error, floor, wide) for error in errors)
        head = f'<th scope="row" style="{edge};text-align:left">{escape(name)}</th>'
        yield f'<tr style="background:transparent">{head}{cells}</tr>'
    yield "</table></div>"


def _heat_cell(error: float | None, floor: float, wide: bool) -> str:
    """Return a cell, its number in it if it is wide, else on hovering over it."""
    place = grade(error, floor)
    number = 1 <= place <= 4
    written = (shown_error(error) if wide else "&nbsp;") if number else GLYPHS[place]
    style = f"padding:.15em {'.5em' if wide else '0'};text-align:center;border:{_LINE};background:{_shade(place)}"
    return f'<td style="{style}" title="{shown_error(error) if number else GRADES[place]}">{written}</td>'


def _shade(place: int) -> str:
    return f"rgba(213,94,0,{_SHADES[place]})"


def _legend(maps: HeatMaps) -> str:
    entries = []
    for place in maps.grades():
        style = f"display:inline-block;min-width:1.4em;text-align:center;border:{_LINE};background:{_shade(place)}"
        glyph = "&nbsp;" if 1 <= place <= 4 else GLYPHS[place]
        entries.append(f'<span style="margin-right:1em"><span style="{style}">{glyph}</span> {GRADES[place]}</span>')
    return f'<p style="{_left(1)};font-size:.85em">{"".join(entries)}</p>'
