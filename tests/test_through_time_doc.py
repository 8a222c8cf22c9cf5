"""docs/through_time.md keeps its word: its example prints what it says, its numbers are what the command finds.

Would catch an example or a table that a change of the code has made untrue, and a figure that is not there.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from manual_bptt import chunked, randomized, truncation_errors, windowed
from manual_bptt.cli.flow_source import drawn

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "through_time.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)
HELD = (2, 4, 8, 16, 32)


@pytest.mark.parametrize(("source", "expected"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_print_what_the_page_says(source: str, expected: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "through_time.md", "exec"), {"__name__": "through_time"})
    assert printed.getvalue() == expected


def test_every_python_example_is_run() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 1


def test_the_powers_worked_by_hand_are_right() -> None:
    rows = re.findall(
        r"^\| (\d) \| \((.*?), (.*?)\) \| .*? \| \((.*?), (.*?)\) \|$", PAGE.replace("−", "-"), re.MULTILINE
    )
    W, V, do = np.array([[0.9, 2.0], [0.0, 0.8]]), np.array([1.0, -1.0]), (1.0, 0.5, -1.0, 2.0)
    assert [int(row[0]) for row in rows] == [0, 1, 2, 3]
    for lag, *numbers in rows:
        power = np.linalg.matrix_power(W.T, int(lag)) @ V
        np.testing.assert_allclose([float(each) for each in numbers], [*power, *(power * do[int(lag)])], atol=1e-12)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the page's numbers are on the help topics of Python 3.11")
@pytest.mark.parametrize(("title", "radius"), [("as drawn", None), ("radius 1.1", 1.1), ("radius 1.5", 1.5)])
def test_the_errors_are_those_that_are_found(title: str, radius: float | None) -> None:
    source = drawn(None, 32, radius, 60, 16, "tanh", "every", 0)
    lines = PAGE.partition(f"\n| {title}")[2].splitlines()
    every = ([chunked(k) for k in HELD], [windowed(k - 1) for k in HELD], [randomized(1 - 1 / k) for k in HELD])
    for line, kinds in zip(lines, every, strict=False):
        cells = line.replace(" million", "e6").split("|")[-6:-1]
        found = [each.error for each in truncation_errors(source.network, source.x, kinds, source.loss)]
        assert [float(cell) for cell in cells] == pytest.approx(found, rel=0.03, abs=6e-4)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]*)\)", PAGE)
    assert len(targets) >= 8
    for target in targets:
        assert (DOCS / target.partition("#")[0]).exists(), target
