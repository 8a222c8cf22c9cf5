"""The equation labels in the code, the derivation and its table of slips stay in step.

Would catch: a comment that quotes an equation which docs/derivation.md does not define (a stale or mistyped
label), a label defined twice or dropped there, and a slip whose test was renamed or removed, or has no row.
Only comments and string literals count as quoting: `B1` as a variable name is nobody's equation.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DERIVATION = ROOT / "docs" / "derivation.md"
PACKAGE = ROOT / "manual_bptt"
SLIPS = ROOT / "tests" / "test_source_slips.py"

LABELS = {f"F{i}" for i in range(1, 6)} | {f"B{i}" for i in range(1, 12)} | {f"T{i}" for i in range(1, 4)}
SLIPS_HEADING = "## Slips in the source documents"


def defined_labels(markdown: str) -> Counter[str]:
    """How often each label is defined: a definition is the bold label at the start of a line."""
    return Counter(re.findall(r"^\*\*([FBT]\d+)\*\*", markdown, flags=re.MULTILINE))


def quoted_labels(source: str) -> set[str]:
    """The labels in the comments and string literals (docstrings among them) of Python source."""
    quoted: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            quoted.update(re.findall(r"\b[FBT]\d+\b", token.string))
    return quoted


def undefined_labels(source: str, markdown: str) -> set[str]:
    """The labels that the source quotes and the Markdown does not define."""
    return quoted_labels(source) - set(defined_labels(markdown))


def slip_tests(markdown: str) -> list[str]:
    """The test names in backticks in the section on slips."""
    _, found, rest = markdown.partition(f"\n{SLIPS_HEADING}\n")
    assert found, f"no heading {SLIPS_HEADING!r}"
    section = rest.partition("\n## ")[0]
    return re.findall(r"`(test_\w+)`", section)


def names_of_tests(source: str) -> Iterator[str]:
    """The names of the module-level test functions."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


@pytest.fixture(scope="module")
def derivation() -> str:
    return DERIVATION.read_text(encoding="utf-8")


def test_every_label_is_defined_exactly_once(derivation: str):
    assert defined_labels(derivation) == Counter(LABELS)


def test_every_label_quoted_in_the_code_is_defined(derivation: str):
    sources = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    undefined = {str(path): undefined_labels(source, derivation) for path, source in sources.items()}
    assert {path: labels for path, labels in undefined.items() if labels} == {}
    # The search is not empty-handed: every equation is quoted somewhere.
    assert set().union(*map(quoted_labels, sources.values())) == LABELS


def test_a_made_up_label_is_flagged(derivation: str):
    assert undefined_labels("x = 1  # B12: no such equation\n", derivation) == {"B12"}
    assert undefined_labels('def f():\n    """Reverses F1 by B12."""\n', derivation) == {"B12"}
    assert undefined_labels("x = 1  # B3–B8 reverse F1 F2\n", derivation) == set()
    assert undefined_labels("B12 = 1  # a name, not a label\n", derivation) == set()


def test_a_label_defined_twice_or_not_at_line_start_is_seen():
    text = "**F1** here\n\n**F1** and again\n\nsee **F2** above\n"
    assert defined_labels(text) == Counter({"F1": 2})


def test_every_slip_has_its_test_and_every_test_its_slip(derivation: str):
    named = slip_tests(derivation)
    existing = list(names_of_tests(SLIPS.read_text(encoding="utf-8")))
    assert sorted(named) == sorted(existing)


def test_a_missing_slip_test_is_seen():
    text = f"\n{SLIPS_HEADING}\n\n| S1 | `test_one` |\n| S2 | `test_two` in `tests/test_x.py` |\n\n## Next `test_x`\n"
    assert slip_tests(text) == ["test_one", "test_two"]
    assert list(names_of_tests("def test_one():\n    pass\n\n\ndef other():\n    pass\n")) == ["test_one"]
