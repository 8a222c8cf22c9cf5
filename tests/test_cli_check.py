"""`bptt check` as students and graders meet it: exit statuses, options, files, folders of any homework.

Would catch: a wrong homework, or a crash of the command, that a grading script takes for a right one; a homework that
ends, floods, fills or stops the command that checks it, or all those after it; a row that is lost, or that a
spreadsheet runs; output of the homework in the command's own; half a file, or a file that is left behind.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from homework_files import FOLDER, homework

from manual_bptt.cli import check as command
from manual_bptt.cli import main
from torch_reference import course_problems
from torch_reference.conventions import CONVENTIONS

ROOT = Path(__file__).resolve().parent.parent
TEXT = homework("cs231n").text
STEP = "\n".join(TEXT.split("\n\n\n")[:3]) + "\n"  # the step alone: quickly checked
WRONG = homework("cs231n").planted("M05")
NAN = TEXT.replace("    return dx, dh0, dWx, dWh, db\n", "    return dx * np.nan, dh0, dWx, dWh, db\n")
SEQUENCE = ("--level", "sequence")
COLUMNS = ["file", "verdict", "convention", "level", "first_wrong", "findings", "causes", "wrong_gradients", "trouble"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a right and a wrong homework, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "right.py").write_text(TEXT, "utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, "utf-8")
    (tmp_path / "step.py").write_text(STEP, "utf-8")
    return tmp_path


def check(*arguments: str) -> int:
    return main(["check", *arguments])


def refused(*arguments: str) -> int:
    """The status where argparse may be the one who refuses."""
    try:
        return check(*arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def in_a_process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "manual_bptt", "check", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=False,
    )


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.rglob("*"))


# One homework


@pytest.mark.parametrize(
    ("target", "status", "first"),
    [
        ("right.py", 0, "✓ right.py is right"),
        ("wrong.py", 1, "✗ wrong.py is wrong"),
        ("raises.py", 2, "! raises.py cannot be judged"),
        ("nowhere.py", 2, "! nowhere.py cannot be judged"),
        ("broken.py", 2, "! broken.py cannot be judged"),
        ("empty.py", 2, "! empty.py cannot be judged"),
        ("notes.txt", 2, "! notes.txt cannot be judged"),
    ],
)
def test_the_exit_status_and_the_first_line(
    target: str, status: int, first: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("def rnn_forward(\n", "utf-8")
    (folder / "empty.py").write_text("", "utf-8")
    (folder / "notes.txt").write_text("no Python", "utf-8")
    (folder / "raises.py").write_text(f"{TEXT}\nraise ValueError('check: expected nothing')\n", "utf-8")
    assert check(target, "--level", "step") == status
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == first
    assert shown.err == ""
    assert "\x1b" not in shown.out


def test_the_module_is_the_command(folder: Path) -> None:
    done = in_a_process("wrong.py", "--convention", "cs231n", *SEQUENCE, cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "Cause: M05" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("hints", ["verdict", "where", "cause", "values"])
def test_hints(hints: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("wrong.py", *SEQUENCE, "--hints", hints) == 1
    shown = capsys.readouterr().out
    told = ["verdict", "where", "cause", "values"].index(hints)
    assert ("first wrong at t=4 of 5" in shown) == (told >= 1)
    assert ("M05" in shown) == (told >= 2)
    assert ("yours" in shown) == (told >= 3)


class Seen(NamedTuple):
    candidate: Any
    convention: str | None
    options: dict[str, Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """What the command asks of `check`, which answers that the file is not there."""
    seen: list[Seen] = []
    real = command.check

    def watched(candidate: Any, convention: str | None = None, **options: Any) -> Any:
        seen.append(Seen(candidate, convention, options))
        return real("nowhere.py", "cs231n")

    monkeypatch.setattr(command, "check", watched)
    return seen


def test_every_option_arrives(asked: list[Seen]) -> None:
    options = (
        "--convention d2l --level network --seed 7 --steps 4 --batch 2 --inputs 9 --hidden 8 --outputs 3 "
        "--dtype float32 --hints values --nonlinearity relu --time sum --batch-loss mean --parameter-gradients sum "
        "--clip 2.5 --arrays torch --seconds 3 --memory 100"
    )
    assert check("right.py", *options.split()) == 2
    [seen] = asked
    assert (seen.candidate, seen.convention) == ("right.py", CONVENTIONS["d2l"])
    assert seen.options == {
        "level": "network",
        "seed": 7,
        "sizes": {"T": 4, "N": 2, "D": 9, "H": 8, "K": 3},
        "dtype": "float32",
        "hints": "values",
        "nonlinearity": "relu",
        "time": "sum",
        "batch": "mean",
        "parameter_gradients": "sum",
        "clip": 2.5,
        "arrays": "torch",
        "seconds": 3.0,
        "memory": 100 << 20,
    }


def test_no_option_is_no_option(asked: list[Seen]) -> None:
    check("right.py")
    [seen] = asked
    assert seen.convention is None
    assert {name for name, value in seen.options.items() if value is None} == {
        *("level", "sizes", "nonlinearity", "time", "batch", "parameter_gradients", "clip", "arrays")
    }
    assert (seen.options["seed"], seen.options["dtype"], seen.options["hints"]) == (0, "float64", "cause")
    assert (seen.options["seconds"], seen.options["memory"]) == (10.0, 4 << 30)


def test_settings_change_the_judgement(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("right.py", *SEQUENCE, "--nonlinearity", "relu") == 1
    assert check("right.py", *SEQUENCE, "--steps", "2", "--batch", "1", "--seed", "5", "--dtype", "float32") == 0
    shown = capsys.readouterr().out
    assert "M50" in shown
    assert "T=2, N=1" in shown
    assert "seed 5" in shown


def test_functions_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("right.py:rnn_forward,rnn_backward", "--convention", "cs231n") == 0
    assert "✓ sequence (rnn_forward, rnn_backward)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("right.py", "--convention", "stanford"), "expected --convention to be one of goodfellow, torch, cs231n"),
        (("right.py", "--convention", "coursera", "--level", "network"), "expected level to be one of step, sequence"),
        (("right.py:f,g",), "expected a convention for f, g; there are goodfellow"),
        (("right.py:f,g,h", "--convention", "kth"), "expected as many functions as a level of kth has, got 3"),
        (("right.py", "--outputs", "1"), "expected K of at least 2, one class has no gradient, got 1"),
        ((str(FOLDER / "kth.py"), "--batch", "2"), "expected N = 1 where there is but one sequence"),
        (("right.py", "--csv", "t.csv"), "expected --csv and --file with a folder of submissions, got 'right.py'"),
        (("right.py", "--file", "t.py"), "expected --csv and --file with a folder of submissions, got 'right.py'"),
        (("right.py", "--png", "p.png", "--hints", "verdict"), "expected --hints of where or more with --png"),
        ((".", "--png", "p.png"), "expected --png with one homework, got several"),
        (("manual_bptt", "--png", "p.png"), "expected --png with one homework, got several"),
        ((".", "--html", "right.py"), "expected right.py to be a folder for the pages, but it is a file"),
        (("manual_bptt", "--convention", "mine"), "expected --convention to be one of"),
        (("right.py", "--convention", "mine.py"), "expected mine.py to be a file with a Convention, but there is none"),
        (
            ("right.py", "--convention", "step.py"),
            "expected one Convention in step.py, or its name after a colon",
        ),
        (("right.py", "--convention", "step.py:ours"), "expected a Convention named ours in step.py, got none"),
        (("right.py", "--json", "no/where.json"), "expected no/where.json to lie in a folder that exists"),
        (("right.py", "--html", "."), "to be a file, but it is a folder"),
        (("right.py", "--png", "/dev/null"), "but it is a device"),
        ((".", "--csv", "no/where.csv"), "expected no/where.csv to lie in a folder that exists"),
        (("hollow",), "expected homework (.py, .ipynb) in hollow, got none"),
        (("hollow", "--file", "other.py"), "expected homework (.py, .ipynb) in hollow, got none"),
        (("right.py", "--level", "layer"), "argument --level: invalid choice: 'layer'"),
        (("right.py", "--hints", "all"), "argument --hints: invalid choice: 'all'"),
        (("right.py", "--dtype", "float16"), "argument --dtype: invalid choice"),
        (("right.py", "--seed", "-1"), "argument --seed: expected a whole number of at least 0, got '-1'"),
        (("right.py", "--seed", "x"), "argument --seed: expected a whole number of at least 0, got 'x'"),
        (("right.py", "--steps", "0"), "argument --steps: expected a whole number of at least 1, got '0'"),
        (("right.py", "--clip", "nan"), "argument --clip: expected a positive number, got 'nan'"),
        (("right.py", "--seconds", "0"), "argument --seconds: expected a positive number, got '0'"),
        (("right.py", "--memory", "1"), "argument --memory: expected a whole number of at least 64, got '1'"),
        ((), "the following arguments are required: TARGET"),
    ],
)
def test_arguments_that_cannot_be_used(
    arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "hollow").mkdir()
    before = names(folder)
    assert refused(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    *usage, last = shown.err.splitlines()
    assert last.startswith("bptt check: ")
    assert message.replace("no/where", f"{folder}/no/where") in last or message in last
    assert not usage or usage[0].startswith("usage: bptt check")  # argparse's own
    assert names(folder) == before


def test_help_lists_the_conventions_and_says_what_it_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("goodfellow:", "cs231n:", "karpathy:", "no sandbox", "Exit status: 0 right, 1 wrong, 2 not usable"):
        assert name in shown


def test_what_the_homework_prints_is_not_the_commands(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loud = f"import sys\nprint('LOUD')\nprint('LOUD', file=sys.stderr)\n{STEP}\nprint('LOUD')\n"
    loud += "import os\nos.write(1, b'LOUD')\nos.system('echo LOUD')\n"
    (folder / "loud.py").write_text(loud, "utf-8")
    assert check("loud.py") == 0
    shown = capfd.readouterr()
    assert "LOUD" not in shown.out + shown.err
    (folder / "stops.py").write_text(
        STEP.replace("    a = x @ Wx", "    print('LOUD')\n    1 / 0\n    a = x @ Wx"), "utf-8"
    )
    assert check("stops.py") == 2
    shown = capfd.readouterr()
    assert shown.out.count("LOUD") == 1
    assert "The last lines that it printed:" in shown.out
    assert "ZeroDivisionError: division by zero" in shown.out


def test_a_terminal_without_the_marks(folder: Path) -> None:
    done = in_a_process("wrong.py", *SEQUENCE, cwd=folder, PYTHONIOENCODING="cp1252")
    assert done.returncode == 1, done.stderr


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    assert check("wrong.py", *SEQUENCE) == 1


def test_a_truth_that_is_doubtful_is_not_a_wrong_homework(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = course_problems.complex_step
    monkeypatch.setattr(
        course_problems,
        "complex_step",
        lambda *arguments, **options: {name: 2 * value for name, value in real(*arguments, **options).items()},
    )
    course_problems.posed.cache_clear()
    assert check("step.py") == 2
    assert "nothing can be judged" in capsys.readouterr().err


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "check", interrupted)
    assert check("right.py") == 130
    assert capsys.readouterr().err == "bptt check: interrupted\n"


# Files


@pytest.mark.parametrize(("target", "status"), [("right.py", 0), ("wrong.py", 1), ("nowhere.py", 2)])
def test_reports_are_written(target: str, status: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        check(target, *SEQUENCE, "--json", "r.json", "--html", "r.html", "--png", "r.png", "--hints", "where") == status
    )
    shown = capsys.readouterr()
    content = json.loads((folder / "r.json").read_text("utf-8"))
    assert content["verdict"] == ["right", "wrong", "unusable"][status]
    page = (folder / "r.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.endswith("</html>\n")
    assert "M05" not in page
    assert [finding["id"] for finding in content["findings"]] == ["M05"] * (status == 1)  # whatever the hints
    if status == 2:
        assert shown.err == "bptt check: nothing was judged, so there is no map to draw\n"
        assert not (folder / "r.png").exists()
    else:
        assert (folder / "r.png").read_bytes().startswith(b"\x89PNG")
    assert set(names(folder)) - {"r.png"} == {"r.html", "r.json", "right.py", "step.py", "wrong.py"}


def test_a_file_is_replaced_as_a_whole_or_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    (folder / "r.json").write_text("old", "utf-8")
    before = names(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert check("step.py", "--json", "r.json") == 2
        assert check(".", "--file", "step.py", "--csv", "t.csv") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (folder / "r.json").read_text("utf-8") == "old"
    assert names(folder) == before
    assert check("step.py", "--json", "r.json") == 0
    assert json.loads((folder / "r.json").read_text("utf-8"))["verdict"] == "right"


@pytest.mark.parametrize("several", [False, True])
def test_json_of_a_homework_that_returns_nan(several: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "nan.py").write_text(NAN, "utf-8")
    arguments = (".", "--file", "nan.py") if several else ("nan.py",)
    assert check(*arguments, *SEQUENCE, "--json", "r.json") == 1
    content = json.loads((folder / "r.json").read_text("utf-8"))
    assert (content["nan.py"] if several else content)["verdict"] == "wrong"


def test_nothing_is_left_beside_the_homework(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "helper.py").write_text("import numpy as np\n\ntanh = np.tanh\n", "utf-8")
    (folder / "uses.py").write_text("from helper import tanh\n" + STEP.replace("np.tanh", "tanh"), "utf-8")
    before = names(folder)
    assert check("uses.py") == 0
    assert names(folder) == before


# Folders


def notebook(source: str) -> str:
    cell = {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


IN_STEP = STEP.replace("    a = x @ Wx", "    {}\n    a = x @ Wx")

# what a folder holds: the file, its verdict, and what is said of it
BAG: dict[str, tuple[str | bytes, str, str]] = {
    "=cmd.py": (STEP, "right", ""),
    "@at, 'quoted' \"twice\".py": (STEP, "right", ""),
    "-dash.py": (STEP, "right", ""),
    "abort.py": (IN_STEP.format("import os; os.abort()"), "unusable", "rnn_step_forward ended the whole process"),
    "alice/homework.py": (STEP.replace("da @ Wh.T", "da @ Wh"), "wrong", "M05"),
    "bytes.py": (b"name = '\xff\xfe'\n", "unusable", "bytes.py, line 1"),
    "empty.py": ("", "unusable", "expected functions that cs231n calls"),
    "exit.py": (STEP + "\nimport sys\nsys.exit(0)\n", "unusable", "exit was called (SystemExit: 0)"),
    "exit_in_step.py": (IN_STEP.format("raise SystemExit(0)"), "unusable", "exit was called"),
    "flood.py": (STEP + "\nprint('x' * 20_000_000)\n", "unusable", "printed more than 10 MB"),
    "gone.py": (b"link", "unusable", "there is no file"),
    "hog.py": (IN_STEP.format("big = [bytes(1 << 28) for _ in range(256)]"), "unusable", "MemoryError"),
    "latin.py": ("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1") + STEP.encode(), "right", ""),
    "loop.py": (IN_STEP.format("while True: pass"), "unusable", "rnn_step_forward did not finish within 1 s"),
    "nan.py": (STEP.replace("dWx, dWh, db\n", "dWx, dWh, db * np.nan\n"), "wrong", "S4"),
    "no_notebook.ipynb": ('{"cells": 3}', "unusable", "is not a notebook"),
    "notebook.ipynb": (notebook(STEP), "right", ""),
    "os_exit.py": (
        STEP + "\nimport os\nos._exit(0)\n",
        "unusable",
        "ended the whole process (it exited with status 0)",
    ),
    "raises.py": (IN_STEP.format("raise KeyError('Wx')"), "unusable", "KeyError: 'Wx'"),
    "segfault.py": (IN_STEP.format("import ctypes; ctypes.string_at(0)"), "unusable", "ended the whole process"),
    "syntax.py": ("def f(:\n", "unusable", "syntax.py, line 1"),
    "zz_last.py": (STEP, "right", ""),
    # folders without one homework
    "many/a.py": (STEP, "", ""),
    "many/b.py": (STEP, "", ""),
    "none/notes.txt": ("", "", ""),
    # no homework
    "readme.txt": ("", "", ""),
    "__pycache__/old.py": (STEP, "", ""),
    ".hidden.py": (STEP, "", ""),
}
EXPECTED = {name: (verdict, says) for name, (_, verdict, says) in BAG.items() if verdict} | dict.fromkeys(
    ("many", "none"), ("unusable", "expected one homework (.py, .ipynb) in the folder, or its name by --file")
)


class Checked(NamedTuple):
    status: int
    out: str
    err: str
    folder: Path
    rows: list[dict[str, str]]
    reports: dict[str, Any]
    left: list[str]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """The command over a folder of everything."""
    place = tmp_path_factory.mktemp("bag")
    submissions = place / "sheet4"
    for name, (content, _, _) in BAG.items():
        path = submissions / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "gone.py":
            path.symlink_to("nowhere.py")
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = names(submissions)
    arguments = ("sheet4", "--convention", "cs231n", "--seconds", "1", "--memory", "512", "--json", "all.json")
    done = in_a_process(*arguments, cwd=place)
    table = place / "sheet4-checked.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    reports = json.loads((place / "all.json").read_text("utf-8")) if (place / "all.json").exists() else {}
    left = sorted(set(names(submissions)) ^ set(before)) + sorted(set(os.listdir(place)))
    return Checked(done.returncode, done.stdout, done.stderr, submissions, rows, reports, left)


def test_a_folder_of_everything_has_a_row_for_each(bag: Checked) -> None:
    assert len(bag.rows) == len(EXPECTED)
    assert {row["file"].removeprefix("'") for row in bag.rows} == set(EXPECTED)
    assert list(bag.rows[0]) == COLUMNS
    for row in bag.rows:
        verdict, says = EXPECTED[row["file"].removeprefix("'")]
        assert row["verdict"] == verdict, row
        assert says in f"{row['findings']} {row['trouble']}", row
        assert all("\n" not in cell for cell in row.values())
        assert bool(row["trouble"]) == (verdict == "unusable")


def test_a_folder_of_everything_is_told_line_by_line(bag: Checked) -> None:
    *lines, last = bag.out.splitlines()
    assert len(lines) == len(EXPECTED)
    mark = {"right": "✓", "wrong": "✗", "unusable": "!"}
    for line, (name, (verdict, _)) in zip(lines, sorted(EXPECTED.items()), strict=True):
        assert re.match(rf"{mark[verdict]} {re.escape(name)} +{verdict}", line), line
    verdicts = [verdict for verdict, _ in EXPECTED.values()]
    counted = ", ".join(f"{verdicts.count(each)} {each}" for each in mark)
    assert last == f"{counted}; table: sheet4-checked.csv"
    assert "xxxx" not in bag.out
    assert bag.status == 1
    assert bag.err == ""


def test_a_folder_of_everything_is_written_as_json(bag: Checked) -> None:
    assert {name: report["verdict"] for name, report in bag.reports.items()} == {
        name: verdict for name, (verdict, _) in EXPECTED.items()
    }


def test_a_folder_of_everything_leaves_nothing_but_the_files_asked_for(bag: Checked) -> None:
    assert bag.left == ["all.json", "sheet4", "sheet4-checked.csv"]


def test_no_cell_of_the_table_is_a_formula(bag: Checked) -> None:
    assert not [cell for row in bag.rows for cell in row.values() if cell.startswith(tuple("=+-@"))]


def submissions(folder: Path, **files: str) -> Path:
    place = folder / "in"
    for name, text in files.items():
        path = place / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text, "utf-8")
    return place


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_by_its_name_in_each_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = submissions(folder, ann__hw=STEP, ann__other="1 / 0", bob__hw=STEP, cy__other=STEP, hw=STEP, else_=STEP)
    assert check("in", "--file", "hw.py", "--csv", "t.csv") == 2
    assert {row["file"]: row["verdict"] for row in rows(folder / "t.csv")} == {
        "ann/hw.py": "right",
        "bob/hw.py": "right",
        "cy/hw.py": "unusable",
        "hw.py": "right",
    }
    assert place.is_dir()
    assert "there is no file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"a": STEP, "b": STEP}, 0),
        ({"a": STEP, "b": STEP.replace("da @ Wh.T", "da @ Wh")}, 1),
        ({"a": STEP, "b": ""}, 2),
        ({"a": "", "b": STEP.replace("da @ Wh.T", "da @ Wh")}, 1),
    ],
)
def test_the_exit_status_of_a_folder(
    files: dict[str, str], status: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submissions(folder, **files)
    assert check("in") == status
    assert len(rows(folder / "in-checked.csv")) == 2


@pytest.mark.parametrize("hints", ["verdict", "where", "cause"])
def test_hints_of_a_folder(hints: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submissions(folder, a=STEP.replace("da @ Wh.T", "da @ Wh"))
    assert check("in", "--hints", hints) == 1
    shown = capsys.readouterr().out
    assert ("dprev_h" in shown) == (hints != "verdict")
    assert ("M05" in shown) == (hints == "cause")
    assert rows(folder / "in-checked.csv")[0]["findings"] == "M05"  # the table is the teacher's


def test_lines_come_as_homework_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a hundred of them sees where it is; and Ctrl-C is still heard."""
    submissions(folder, a=STEP, b=STEP)
    done: list[str] = []

    class Stop:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            done.append(text)
            return len(text)

        def flush(self) -> None:
            if "".join(done).count("\n") == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Stop())
    assert check("in") == 130
    assert "".join(done).startswith("✓ a.py")
    assert "b.py" not in "".join(done)


@pytest.mark.parametrize(
    "options",
    [("--level", "step"), ("--batch", "2"), ("--outputs", "1")],
    ids=["a level that one has not", "a batch that one has not", "classes that one has not"],
)
def test_what_is_wrong_with_one_homework_does_not_stop_the_rest(
    options: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submissions(folder, a_step=STEP, k=homework("karpathy").text, z_step=STEP)
    assert check("in", *options) == 2
    verdicts = {row["file"]: row["verdict"] for row in rows(folder / "in-checked.csv")}
    assert verdicts == {"a_step.py": "right", "k.py": "unusable", "z_step.py": "right"}


def test_a_failure_of_the_check_itself_does_not_stop_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., Any] = command.check

    def sometimes(candidate: Any, *arguments: Any, **options: Any) -> Any:
        if Path(candidate).name == "b.py":
            raise RecursionError("of a homework that nobody thought of")
        return real(candidate, *arguments, **options)

    submissions(folder, a=STEP, b=STEP, c=STEP)
    monkeypatch.setattr(command, "check", sometimes)
    assert check("in") == 2
    assert [row["verdict"] for row in rows(folder / "in-checked.csv")] == ["right", "unusable", "right"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"\xff.py", id="no UTF-8"),
        pytest.param(b"two\nlines.py", id="line break"),
        pytest.param(b"red\x1b[31m.py", id="escape"),
        pytest.param(b"manual_bptt as me.py", id="our own name"),
        pytest.param("größe 1.py".encode(), id="umlaut"),
    ],
)
def test_a_file_of_any_name_has_its_row(name: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = submissions(folder, a=STEP)
    (place / os.fsdecode(name)).write_text(STEP, "utf-8")
    assert check("in") == 0
    assert [row["verdict"] for row in rows(folder / "in-checked.csv")] == ["right", "right"]
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 3
    assert "\x1b" not in shown


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="whoever may read everything")
def test_what_cannot_be_read_has_its_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = submissions(folder, a=STEP, b=STEP, c__hw=STEP)
    (place / "b.py").chmod(0)
    (place / "c").chmod(0)
    try:
        assert check("in") == 2
    finally:
        (place / "c").chmod(0o700)
    assert [row["verdict"] for row in rows(folder / "in-checked.csv")] == ["right", "unusable", "unusable"]


def test_a_folder_that_cannot_be_listed_has_its_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submissions(folder, a=STEP, locked__hw=STEP)
    real = Path.iterdir

    def listed(path: Path) -> Any:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", listed)
    assert check("in") == 2
    assert [row["verdict"] for row in rows(folder / "in-checked.csv")] == ["right", "unusable"]


# The package itself


def test_our_own_gradients_are_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(folder)
    assert check("manual_bptt", "--json", "own.json", "--csv", "own.csv") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == ["✓ "] * 9
    assert last == "9 right, 0 wrong, 0 unusable; table: own.csv"
    assert len(json.loads((folder / "own.json").read_text("utf-8"))) == len(rows(folder / "own.csv")) == 9
    assert set(names(folder)) - set(before) == {"own.json", "own.csv"}


def test_our_own_gradients_in_one_convention(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert check("manual_bptt", "--convention", "kth", "--html", "own.html", "--dtype", "float32") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("✓ manual_bptt as kth is right\n")
    assert "manual_bptt as kth" in (folder / "own.html").read_text("utf-8")


def test_our_own_gradients_where_a_folder_has_our_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a checkout of this project."""
    (folder / "manual_bptt").mkdir()
    assert check("manual_bptt", "--convention", "kth") == 0
    assert check("./manual_bptt") == 2
    assert "expected homework" in capsys.readouterr().err


def test_a_table_of_our_own_gradients_in_one_convention(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("manual_bptt", "--convention", "kth", "--csv", "own.csv") == 2
    assert "expected --csv with several homeworks, got one convention" in capsys.readouterr().err
    assert not (folder / "own.csv").exists()


@pytest.mark.parametrize("level", [(), ("--level", "sequence"), ("--level", "step")])
def test_our_own_gradients_are_clipped_where_the_check_expects_it(
    level: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("manual_bptt", "--convention", "cs231n", "--clip", "0.5", *level) == 0


def test_homework_in_the_examples_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(str(FOLDER / "coursera.py"), "--convention", "coursera") == 0
    assert "✓ coursera.py is right" in capsys.readouterr().out
