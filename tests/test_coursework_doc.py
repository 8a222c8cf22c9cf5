"""docs/coursework.md keeps its word: its homework gets the report it shows, its examples run, its table is complete.

Would catch a finding that the page does not explain, an equation label that does not exist, and an example or a
report that a change of the code has made untrue.
"""

import contextlib
import io
import re
from pathlib import Path

import pytest

from manual_bptt.cli import main
from torch_reference.checking import catalogue
from torch_reference.conventions import CONVENTIONS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "coursework.md").read_text(encoding="utf-8")
DERIVATION = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
HOMEWORK = re.findall(r"<!-- homework -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
REPORT = re.findall(r"<!-- report -->\n```text\n(.*?)```", PAGE, flags=re.DOTALL)
EXAMPLES = re.findall(r"```python\n((?:(?!```).)*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_homework_gets_the_report_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (homework,), (report,) = HOMEWORK, REPORT
    Path("homework.py").write_text(homework, encoding="utf-8")
    assert main(["check", "homework.py"]) == 1
    assert capsys.readouterr().out == report


def test_the_homework_is_right_once_it_is_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repaired = HOMEWORK[0].replace("carry = da @ Wh\n", "carry = da @ Wh.T\n")
    assert repaired != HOMEWORK[0]
    file = tmp_path / "homework.py"
    file.write_text(repaired, encoding="utf-8")
    assert main(["check", str(file)]) == 0
    assert "right" in capsys.readouterr().out


@pytest.mark.parametrize(("source", "expected"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_print_what_the_page_says(source: str, expected: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "coursework.md", "exec"), {"__name__": "coursework"})
    assert printed.getvalue() == expected


def test_every_python_example_is_run() -> None:
    assert len(EXAMPLES) + len(HOMEWORK) == PAGE.count("```python") == 3


def test_the_table_explains_every_finding_by_equations_that_exist() -> None:
    rows = re.findall(r"^\| ([A-Z]\d+) \|.*\|([^|]*)\|$", PAGE, flags=re.MULTILINE)
    assert [id_ for id_, _ in rows] == sorted(catalogue(), key=lambda id_: ("MPS".index(id_[0]), int(id_[1:])))
    labels = {label for _, equations in rows for label in re.findall(r"[FB]\d+", equations)}
    assert labels
    assert all(f"**{label}**" in DERIVATION for label in labels)


def test_the_table_has_every_convention() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)[: len(CONVENTIONS)] == list(CONVENTIONS)


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGE, flags=re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]*)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in headings
        else:
            assert (ROOT / "docs" / target).exists(), target
