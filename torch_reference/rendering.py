"""Writes a report out: as text, as HTML, as a heat map, as a row of a table.

Text needs nothing beside the standard library; the heat map needs matplotlib, which is imported when one is drawn.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Iterator
from typing import IO, Any

from torch_reference.rendering_blocks import (
    GLYPHS,
    GRADES,
    MARKS,
    NUMBERS_FIT,
    Block,
    HeatMap,
    Lines,
    Table,
    Words,
    blocks,
    cause_of,
    floor_of,
    grade,
    hint_level,
    message_line,
    one_line,
    over_time,
    shortened,
)
from torch_reference.rendering_html import fragment, page
from torch_reference.reports import Report

_ANSI = {"right": "32", "wrong": "31", "unusable": "33", "quiet": "2", "label": "1"}
# From light to dark, so that they are told apart with every kind of colour vision and in grey; in the order of GRADES.
_COLOURS = ("#eef2f4", "#fdd0a2", "#fd8d3c", "#c94a0a", "#6b2104", "#1a1a1a", "#ffffff")
_DARK = (3, 4, 5)


def text(report: Report, *, hints: str | None = None, width: int = 100, colour: bool = False) -> str:
    """Return the report for a terminal.

    Args:
        report: What was found.
        hints: How much to tell, one of `reports.HINTS`; None: as the report says.
        width: The longest line; a table of gradients may be wider.
        colour: Whether to colour it by ANSI escape sequences.

    Raises:
        ValueError: There is no such hint level.
    """
    lines: list[str] = []
    before: Block | None = None
    for block in blocks(report, hint_level(report, hints)):
        if before is not None and _apart(before, block):
            lines.append("")
        lines += _text_lines(block, width, colour)
        before = block
    return "\n".join(lines)


def html_fragment(report: Report, *, hints: str | None = None) -> str:
    """Return the report as HTML for a notebook: styles inline, no script, for light and dark themes.

    Raises:
        ValueError: There is no such hint level.
    """
    return fragment(blocks(report, hint_level(report, hints)))


def html_page(report: Report, *, hints: str | None = None) -> str:
    """Return the report as an HTML page that needs nothing beside itself.

    Raises:
        ValueError: There is no such hint level.
    """
    return page(f"{one_line(report.candidate)}: {report.verdict}", html_fragment(report, hints=hints))


def summary_row(report: Report) -> dict[str, str]:
    """Return the report as a row for a spreadsheet of many; no cell is taken for a formula.

    It is for the teacher: it tells causes at every hint level.
    """
    main = report.main
    first = main.first_wrong if main else None
    findings = main.findings if main else ()
    step = "" if first is None or first.step is None else f" at t={first.step} of {first.steps}"
    wrong = [g for g in main.gradients if not g.ok] if main else []
    row = {
        "file": report.candidate,
        "verdict": report.verdict,
        "convention": report.convention,
        "level": main.level if main else "",
        "first_wrong": f"{first.quantity}{step}" if first else "",
        "findings": " ".join(finding.id for finding in findings),
        "causes": " ".join(map(cause_of, findings)),
        "wrong_gradients": ", ".join(f"{g.name} ({g.trouble})" if g.trouble else g.name for g in wrong),
        "trouble": message_line(report.trouble or (main.trouble if main else "")),
    }
    return {name: _harmless(one_line(cell)) for name, cell in row.items()}


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(tuple("=+-@＝＋－＠")) else cell


def heat_map_png(report: Report, file: str | os.PathLike[str] | IO[bytes]) -> None:
    """Draw the errors over time, a row per quantity and a column per step, as a PNG 700 pixels wide.

    Where there is no time, as at the level of one step, there is one column with the error of each gradient.

    Raises:
        ValueError: There is no error to draw, or the report's hint level is "verdict", which tells no place.
        ImportError: matplotlib is missing.
    """
    level = report.main
    if hint_level(report, None) == "verdict":
        raise ValueError('expected a hint level that tells where, got "verdict": it has no heat map')
    if level is None or not (level.over_time or level.gradients):
        raise ValueError(f"expected errors to draw, got none: {one_line(report.candidate)} is {report.verdict}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"expected matplotlib (pip install matplotlib) for a heat map, got: {error}") from error

    timed = bool(level.over_time)
    rows = over_time(level) or tuple((one_line(g.name), (g.error,)) for g in level.gradients)
    figure = Figure(figsize=(7, 1.9 + 0.38 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure, rows, floor_of(level), timed)
    # A name may hold a dollar sign, which is no formula here, and characters that the font does not have.
    title = f"{shortened(one_line(report.candidate), 50)}: relative error"
    figure.suptitle(f"{title} at each step" if timed else title, fontsize=12, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png", metadata={"Software": None})


def _draw(figure: Any, rows: tuple[tuple[str, tuple[float | None, ...]], ...], floor: float, timed: bool) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    graded = [[grade(error, floor) for error in errors] for _, errors in rows]
    steps = len(graded[0])
    panel = figure.subplots()
    panel.pcolormesh(
        range(steps + 1),
        range(len(rows) + 1),
        graded,
        cmap=ListedColormap(_COLOURS),
        vmin=-0.5,
        vmax=len(_COLOURS) - 0.5,
        edgecolors="0.6",
        linewidth=0.6,
    )
    panel.invert_yaxis()
    panel.set_yticks([i + 0.5 for i in range(len(rows))], [name for name, _ in rows], fontsize=11, parse_math=False)
    every = 1 if steps <= 20 else 5
    shown = [t for t in range(1, steps + 1) if t == 1 or t % every == 0] if timed else []
    panel.set_xticks([t - 0.5 for t in shown], [str(t) for t in shown], fontsize=11)
    panel.set_xlabel("time step t (the backward pass goes from right to left)" if timed else "all entries", fontsize=11)
    panel.tick_params(length=0)
    for i, (_, errors) in enumerate(rows):
        for j, error in enumerate(errors):
            place = graded[i][j]
            number = 1 <= place <= 4 and steps <= NUMBERS_FIT
            written = f"{error:.1g}" if number else GLYPHS[place]
            if number or place > 4:
                colour = "white" if place in _DARK else "black"
                panel.text(j + 0.5, i + 0.5, written, ha="center", va="center", color=colour, fontsize=10)
    used = sorted({place for row in graded for place in row})
    figure.legend(
        handles=[Patch(facecolor=_COLOURS[place], edgecolor="0.6", label=_meaning(place)) for place in used],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
    )


def _meaning(place: int) -> str:
    return f"{GLYPHS[place]} {GRADES[place]}" if place > 4 else GRADES[place]


def _apart(before: Block, block: Block) -> bool:
    """Whether an empty line stands between two blocks."""
    if isinstance(before, Words) and isinstance(block, Words):
        return block.depth == 0 and before.depth == 1
    return not (isinstance(block, Lines) or (isinstance(before, Table) and isinstance(block, Words) and block.label))


def _text_lines(block: Block, width: int, colour: bool) -> Iterator[str]:
    if isinstance(block, Words):
        yield from _paragraph(block, width, colour)
    elif isinstance(block, Lines):
        indent = "  " * block.depth
        for line in block.text.splitlines():
            wrapped = textwrap.wrap(line, max(20, width - len(indent)), drop_whitespace=False) or [""]
            yield from (f"{indent}{part}".rstrip() for part in wrapped)
    elif isinstance(block, Table):
        yield from _table(block, colour)
    else:
        for heat in block.maps:
            yield from _map(heat, block.floor, width)
        meanings = [f"{GLYPHS[place]} {GRADES[place]}" for place in block.grades()]
        yield from _painted(textwrap.wrap("   ".join(meanings), width - 2), "quiet", colour, "  ")


def _paragraph(words: Words, width: int, colour: bool) -> Iterator[str]:
    mark = f"{MARKS[words.tone]} " if words.tone in MARKS else ""
    label = f"{words.label + ':':<6} " if words.label else ""
    indent = "  " * words.depth
    hanging = len(mark) + len(label)
    lines = textwrap.wrap(
        mark + label + words.text,
        max(20, width - len(indent)),
        subsequent_indent=" " * hanging,
        break_on_hyphens=False,
    )
    if label and colour:
        lines[0] = f"\x1b[{_ANSI['label']}m{words.label}:\x1b[0m{lines[0][len(words.label) + 1 :]}"
    yield from _painted(lines, words.tone, colour, indent)


def _painted(lines: list[str], tone: str, colour: bool, indent: str = "") -> Iterator[str]:
    for line in lines:
        yield f"{indent}\x1b[{_ANSI[tone]}m{line}\x1b[0m" if colour and tone else f"{indent}{line}"


def _table(table: Table, colour: bool) -> Iterator[str]:
    tones = {mark: verdict for verdict, mark in MARKS.items()}
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    for row in (table.header, *table.rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        mark = "".join(_painted(cells[:1], tones.get(row[0], ""), colour))
        yield f"  {mark} {'  '.join(cells[1:])}".rstrip()


def _map(heat: HeatMap, floor: float, width: int) -> Iterator[str]:
    yield from textwrap.wrap(f"{heat.title}:", width, initial_indent="  ", subsequent_indent="  ")
    label, cell = max(len(name) for name, _ in heat.rows), len(str(heat.steps)) + 1
    together = max(1, (width - 2 - label) // cell)
    for start in range(0, heat.steps, together):
        end = min(start + together, heat.steps)
        yield f"  {'t':>{label}}{''.join(f'{t:>{cell}}' for t in range(start + 1, end + 1))}"
        for name, errors in heat.rows:
            cells = "".join(f"{GLYPHS[grade(error, floor)]:>{cell}}" for error in errors[start:end])
            yield f"  {name:<{label}}{cells}".rstrip()
