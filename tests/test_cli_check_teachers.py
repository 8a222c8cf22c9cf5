"""`bptt check` for whoever teaches: a convention in a file of their own, a page for each homework of a folder.

Would catch: a convention of one's own that the command cannot use, is taken for another, or fails without a word of
why; a page that is missing, tells more than the hints allow, or ends the check of a folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli_check import check, folder, names, rows

__all__ = ["folder"]  # the fixture

OURS = """
from torch_reference import Calls, Convention

ours = Convention(
    name="ours",
    title="Our course, sheet 4",
    names={"xs": "x NTD", "s0": "h0 NH", "s": "h NTH", "A": "U DH", "B": "W PH", "d": "b H"},
    levels={"sequence": Calls("run(xs, s0, A, B, d) -> s, kept", "gradients(ds, kept) -> {dA, dB, dd, ds0}")},
)
"""
HOMEWORK = """
import numpy as np


def run(xs, s0, A, B, d):
    states = [s0]
    for t in range(xs.shape[1]):
        states.append(np.tanh(xs[:, t] @ A + states[-1] @ B + d))
    return np.stack(states[1:], 1), (xs, states, B)


def gradients(ds, kept):
    xs, states, B = kept
    dA, dB, dd, carry = 0, 0, 0, 0
    for t in reversed(range(xs.shape[1])):
        da = (ds[:, t] + carry) * (1 - states[t + 1] ** 2)
        dA, dB, dd = dA + xs[:, t].T @ da, dB + states[t].T @ da, dd + da.sum(0)
        carry = da @ B.T
    return {"dA": dA, "dB": dB, "dd": dd, "ds0": carry}
"""
WRONG = HOMEWORK.replace("states[t].T", "states[t + 1].T")


@pytest.fixture(autouse=True)
def course(folder: Path) -> None:
    """A course's convention, two answers, and one that is no answer."""
    (folder / "course.py").write_text(OURS, "utf-8")
    (folder / "in").mkdir()
    (folder / "in" / "ann.py").write_text(HOMEWORK, "utf-8")
    (folder / "in" / "bob").mkdir()
    (folder / "in" / "bob" / "sheet4.py").write_text(WRONG, "utf-8")
    (folder / "in" / "cy.py").write_text("", "utf-8")


# A convention of one's own


@pytest.mark.parametrize("convention", ["course.py", "course.py:ours", "./course.py"])
def test_a_convention_of_ones_own(convention: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("in/ann.py", "--convention", convention) == 0
    assert "Checked as ours (Our course, sheet 4)" in capsys.readouterr().out
    assert check("in/bob/sheet4.py", "--convention", convention) == 1
    assert "M30" in capsys.readouterr().out
    assert check("in/bob/sheet4.py:run,gradients", "--convention", convention, "--nonlinearity", "tanh") == 1


def test_an_absolute_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("in/ann.py", "--convention", f"{folder}/course.py:ours") == 0


def test_a_folder_in_a_convention_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("in", "--convention", "course.py") == 1
    table = rows(folder / "in-checked.csv")
    assert [(row["file"], row["verdict"], row["convention"], row["findings"]) for row in table] == [
        ("ann.py", "right", "ours", ""),
        ("bob/sheet4.py", "wrong", "ours", "M30"),
        ("cy.py", "unusable", "ours", ""),
    ]
    calls = "run(xs, s0, A, B, d) -> s, kept and gradients(ds, kept) -> {dA, dB, dd, ds0}"
    assert f"expected functions that ours calls: {calls}" in table[2]["trouble"]


def test_the_package_itself_shows_that_a_convention_of_ones_own_can_be_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("manual_bptt", "--convention", "course.py") == 0
    assert capsys.readouterr().out.startswith("✓ manual_bptt as ours is right\n")


@pytest.mark.parametrize(
    ("source", "convention", "message"),
    [
        (OURS, "mine.py:theirs", "expected a Convention named theirs in mine.py, got ours"),
        (OURS + OURS.replace("ours =", "again ="), "mine.py", "expected one Convention in mine.py, or its name after"),
        (OURS + "same = ours\n", "mine.py:other", "expected a Convention named other in mine.py, got ours, same"),
        ("", "mine.py", "expected one Convention in mine.py, or its name after a colon, got none"),
        ("import nowhere", "mine.py", "expected mine.py to define a Convention, got ModuleNotFoundError: No module"),
        ("raise SystemExit(3)", "mine.py", "expected mine.py to define a Convention, got SystemExit: 3"),
        ("def f(:", "mine.py", "expected mine.py to define a Convention, got SyntaxError: "),
        (OURS.replace("NTD", "NTQ"), "mine.py", "expected mine.py to define a Convention, got ValueError: "),
        ("", "mine.txt", "or a file FILE.py, got 'mine.txt'"),
        ("", "other.py", "expected other.py to be a file with a Convention, but there is none"),
        ("", "mine.py:", "expected one Convention in mine.py"),
    ],
)
def test_a_convention_that_cannot_be_used(
    source: str, convention: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text(source, "utf-8")
    before = names(folder)
    assert check("in", "--convention", convention) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert names(folder) == before


def test_another_name_for_the_same_convention_is_no_second_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text(OURS + "same = ours\n", "utf-8")
    assert check("in/ann.py", "--convention", "mine.py") == 0


# A page for each homework


@pytest.mark.parametrize("hints", ["verdict", "cause"])
def test_a_page_for_each(hints: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("in", "--convention", "course.py", "--html", "new/pages", "--hints", hints) == 1
    pages = {page.relative_to(folder / "new/pages").as_posix(): page for page in (folder / "new/pages").rglob("*.html")}
    assert sorted(pages) == ["ann.py.html", "bob/sheet4.py.html", "cy.py.html"]
    texts = {name: page.read_text("utf-8") for name, page in pages.items()}
    assert all(text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n") for text in texts.values())
    assert ("M30" in texts["bob/sheet4.py.html"]) == (hints == "cause")
    assert "expected functions that ours calls" in texts["cy.py.html"]


def test_pages_are_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert check("in", "--convention", "course.py", "--html", "pages") == 1
    assert capsys.readouterr().err == ""


def test_a_page_that_cannot_be_written_stops_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 240 + ".py"  # a name of its own that is long enough, which it is not with .html and for the time being
    (folder / "in" / long).write_text(HOMEWORK, "utf-8")
    assert check("in", "--convention", "course.py", "--html", "pages") == 1
    shown = capsys.readouterr()
    assert f"bptt check: no page for {long}: File name too long" in shown.err
    assert "2 right, 1 wrong, 1 unusable" in shown.out
    assert len([entry for entry in (folder / "pages").rglob("*") if entry.is_file()]) == 3


def test_pages_of_our_own_gradients(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("manual_bptt", "--html", "pages") == 0
    assert len(names(folder / "pages")) == 9
    assert "manual_bptt as cs231n.html" in names(folder / "pages")
