"""README.md keeps its word: its examples print what it says, its commands are accepted, CI runs its set-up.

Would catch an example that a change of the code has made untrue.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from manual_bptt.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^(?:.*&& )?(?:\.venv/bin/)?bptt (.*)$", README, flags=re.MULTILINE)


def output_of(source: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "README.md", "exec"), {"__name__": "README"})
    return printed.getvalue()


@pytest.mark.parametrize(("source", "expected"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_print_what_the_readme_says(source: str, expected: str) -> None:
    assert output_of(source) == expected


def test_every_python_example_is_run() -> None:
    assert len(EXAMPLES) == README.count("```python") >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_succeed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("manual_bptt.cli.verify.TIMED_SECONDS", 0.0)
    short = ["--epochs", "1", "--hidden", "16"]  # as long as they are trained, commands are tested alike
    for trained in re.findall(r"(?<!output )runs/(\w+)/", command):
        task = "text" if trained == "topics" else trained
        assert main(["train", task, "--output", f"runs/{trained}", *short]) == 0
    assert main([*shlex.split(command), *(short if command.startswith("train") else [])]) == 0


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("name", ["set-up", "test"])
def test_ci_finds_the_commands_it_runs(name: str) -> None:
    assert re.search(rf"^<!-- {name} -->\n```sh\n\S.*\n```$", README, flags=re.MULTILINE)


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]*)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("http"):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_the_tests_that_hold_a_feature_are_there() -> None:
    cells = re.findall(r"`((?:test_\w+\.py)?(?:::test_\w+)?)`", README)
    file = ""
    for cell in filter(None, cells):
        named, _, function = cell.partition("::")
        file = named or file
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, cell
    assert len(cells) > 40


def test_the_equations_are_shown_as_they_stand_in_the_code() -> None:
    kernel = (ROOT / "manual_bptt" / "kernels" / "eager.py").read_text(encoding="utf-8")
    shown = re.findall(r"^\| \*\*B[34]\*\* .* \| `(.*)` \|$", README, flags=re.MULTILINE)
    assert len(shown) == 2
    assert all(line in kernel for line in shown)
