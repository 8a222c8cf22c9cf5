"""What a report looks like, on reports made by hand.

Would catch: a hint level that tells more than it should, a verdict that does not come first, a finding that is left out
or worded as certain when it is not, a name from a student's file that becomes markup, a terminal command or a
spreadsheet's formula, an error without a number or a run of steps that breaks the layout, and text output that needs a
package beside the standard library.
"""

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torch_reference.rendering import heat_map_png, html_fragment, html_page, summary_row, text
from torch_reference.reports import HINTS, Finding, FirstWrong, GradientReport, LevelReport, Report

ROOT = Path(__file__).resolve().parent.parent
NAN = float("nan")
EVIL = "<script>alert('x')</script>&\"\x1b[31m\x07\u202e"
MATRIX = Finding("M05", "matrix the wrong way", "The matrix stands the wrong way.", "Which way round (B3)?")
SCALE = Finding("M44", "scale", "Every gradient is off by the same factor.", "Sum or mean (F5)?", note="by N")


def right_gradient(name: str, symbol: str = "") -> GradientReport:
    return GradientReport(name, symbol or name, True, 2.1e-16, (0, 1), 0.777001, 0.777001)


def wrong_gradient(name: str, symbol: str = "", step: int | None = None) -> GradientReport:
    return GradientReport(name, symbol or name, False, 1.2e-5, (0, 3, 2), 0.183421, -0.0421337, step)


def wrong_level(T: int = 5, **changes: object) -> LevelReport:
    """A wrong network: dL/dh is wrong up to T-1, and dx and dWh with it."""
    errors = (*(0.5**t for t in range(T - 1, 0, -1)), 1e-16)
    level = LevelReport(
        "network",
        ("rnn_loss",),
        "wrong",
        gradients=(wrong_gradient("dx", "dx", T - 1), wrong_gradient("dWh", "dW"), right_gradient("db_vocab", "dc")),
        first_wrong=FirstWrong("dL/dh", T - 1, T, f"dL/do and t={T}"),
        findings=(MATRIX,),
        over_time={"dL/do": (1e-16,) * T, "dL/dh": errors},
        notes=("The loss was looked at too.",),
        blind=(("M33", "first step left out", "h0 is zero"), ("M47", "mask", "")),
        sizes={"N": 3, "T": T, "H": 16},
    )
    return replace(level, **changes)


def report(*levels: LevelReport, **changes: object) -> Report:
    made = Report("homework.py", "cs231n", "Stanford CS231n, assignment 3", levels or (wrong_level(),), seed=7)
    return replace(made, **changes)


RIGHT = LevelReport("step", ("rnn_step_forward", "rnn_step_backward"), "right", (right_gradient("dprev_h"),))
UNUSABLE = LevelReport(
    "sequence",
    ("rnn_forward",),
    "unusable",
    trouble="rnn_forward stopped in line 12:\n    h = x @ W\nValueError: shapes",
    output="\x1b[31mred\x1b[0m\n" + "".join(f"epoch {i}\n" for i in range(20)),
)


def flat(shown: str) -> str:
    """Undo the wrapping."""
    return " ".join(shown.split())


class Reader(HTMLParser):
    """Collects the tags, the attributes and the text, and sees that tags are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def as_text(of: Report, hints: str | None = None) -> str:
    return flat(text(of, hints=hints))


def as_html(of: Report, hints: str | None = None) -> str:
    return flat(Reader(html_page(of, hints=hints)).said)


BOTH = pytest.mark.parametrize("shown", [as_text, as_html])


@BOTH
@pytest.mark.parametrize(
    ("levels", "says", "mark"),
    [
        ((RIGHT,), "homework.py is right", "✓"),
        ((RIGHT, wrong_level()), "homework.py is wrong", "✗"),
        ((RIGHT, UNUSABLE), "homework.py cannot be judged", "!"),
        ((), "homework.py cannot be judged", "!"),
    ],
)
@pytest.mark.parametrize("hints", HINTS)
def test_the_verdict_comes_first_at_every_hint_level(shown, levels, says, mark, hints):
    assert f"{mark} {says}" in shown(replace(report(), levels=levels), hints)
    assert text(replace(report(), levels=levels), hints=hints).startswith(f"{mark} {says}\n")


@BOTH
def test_each_hint_level_tells_its_own_things_and_nothing_of_those_after_it(shown):
    told = {
        "verdict": ["is wrong", "cs231n", "Stanford CS231n, assignment 3", "seed 7"],
        "where": [
            "going backward, dL/dh is first wrong at t=4 of 5; dL/do and t=5 are right.",
            "dWh",
            "1.2e-05",
            "[0, 3, 2]",
            "t=4",
            "Relative error at each step",
            "M33 first step left out (h0 is zero), M47 mask.",
            "The loss was looked at too.",
        ],
        "cause": ["M05", "matrix the wrong way", "The matrix stands the wrong way.", "Which way round (B3)?"],
        "values": ["0.183421", "-0.0421337", "yours", "true"],
    }
    sequence = wrong_level(level="sequence", functions=("rnn_forward", "rnn_backward"))
    for hints in HINTS:
        whole = shown(report(RIGHT, sequence, wrong_level()), hints)
        for kind, words in told.items():
            allowed = HINTS.index(kind) <= HINTS.index(hints)
            assert [word for word in words if (word in whole) != allowed] == []
        assert "0.777" not in whole  # nothing is to be seen in the values of a right gradient


def test_the_report_says_the_hint_level_unless_it_is_given():
    assert text(report(hints="verdict")) == text(report(), hints="verdict")
    assert text(report(hints="verdict"), hints="cause") == text(report())
    assert html_fragment(report(hints="where")) == html_fragment(report(), hints="where")
    assert len(text(report(), hints="verdict").splitlines()) == 2


@pytest.mark.parametrize("render", [text, html_fragment, html_page])
def test_an_unknown_hint_level(render):
    with pytest.raises(ValueError, match="expected hints to be one of verdict, where, cause, values, got 'all'"):
        render(report(), hints="all")


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (FirstWrong("dL/do", 5, 5), "going backward, dL/do is first wrong at t=5 of 5."),
        (
            FirstWrong("dx", 3, 5, "t=5 and t=4"),
            "going backward, dx is first wrong at t=3 of 5; t=5 and t=4 are right.",
        ),
        (FirstWrong("h", 2, 5, "t=1"), ": h is first wrong at t=2 of 5; t=1 is right."),
        (FirstWrong("h", 4, 5, "t=1 to 3"), ": h is first wrong at t=4 of 5; t=1 to 3 are right."),
        (
            FirstWrong("argument dh", None, 5, "every gradient"),
            "dh is changed in place; every gradient is right.",
        ),
        (FirstWrong("p", 1, 5, "h, o"), ": p is first wrong at t=1 of 5; h, o are right."),
        (FirstWrong("loss", None, 5, "h and o"), ": the loss is the first wrong quantity; h and o are right."),
        (FirstWrong("dWh", None, 5, "h and dx are right"), ": dWh is the first wrong quantity; h and dx are right."),
        (FirstWrong("dL/da", 1, 1, "dL/dh"), ": dL/da is the first wrong quantity; dL/dh is right."),
        (
            FirstWrong("dL/dh", 4, 5, "t=5", exact=False),
            "is first wrong at t=4 of 5; t=5 is right (inferred from the gradients that were returned).",
        ),
    ],
)
def test_where_it_goes_wrong(first, says):
    assert says in as_text(report(wrong_level(first_wrong=first, findings=())))


@BOTH
def test_right(shown):
    whole = shown(report(RIGHT, replace(RIGHT, level="sequence", notes=("float32.",), blind=(("M12", "h0", ""),))))
    assert "✓ step (rnn_step_forward, rnn_step_backward) is right." in whole
    assert "✓ dprev_h 2.1e-16" in re.sub(r"(?<=h)(?=2\.1)|(?<=✓)(?=d)", " ", whole)
    assert "float32." in whole
    assert "cannot see: M12 h0." in whole
    for word in ("Cause", "Where", "furthest", "first wrong step", "each step"):
        assert word not in whole


@BOTH
def test_one_finding(shown):
    whole = shown(report(wrong_level(findings=(SCALE,))))
    assert "Cause: M44, scale. Every gradient is off by the same factor: by N." in whole
    assert "Hint: Sum or mean (F5)?" in whole
    assert "together" not in whole


@BOTH
def test_two_findings(shown):
    whole = shown(report(wrong_level(findings=(MATRIX, SCALE))))
    assert whole.index("Two mistakes together explain it.") < whole.index("M05") < whole.index("M44")


@BOTH
def test_no_finding(shown):
    nothing = "No mistake in the catalogue explains these numbers."
    assert nothing in shown(report(wrong_level(findings=(), unexplained="these numbers")))
    assert nothing not in shown(report(wrong_level(findings=(), unexplained="these numbers")), "where")
    assert nothing not in shown(report())


@BOTH
def test_what_explains_it_equally_well_is_no_finding(shown):
    whole = shown(report(wrong_level(findings=(), possible=(MATRIX, SCALE))))
    assert whole.index("These explain it equally well, and no problem tells them apart:") < whole.index("M05")
    assert "M44" in whole
    assert "No mistake in the catalogue" not in whole
    assert "equally" not in shown(report(wrong_level(findings=(), possible=(MATRIX, SCALE))), "where")


@BOTH
def test_gradients_that_are_no_numbers_need_no_explanation(shown):
    missing = GradientReport("dWh", "dW", False, trouble="missing: the dict has no key 'dWh'")
    whole = shown(report(wrong_level(gradients=(missing, right_gradient("db")), findings=(), first_wrong=None)))
    assert "dWh: missing: the dict has no key 'dWh'" in whole
    assert "No mistake in the catalogue" not in whole


@BOTH
def test_a_level_that_cannot_be_judged_says_why_and_what_was_printed(shown):
    whole = shown(report(RIGHT, UNUSABLE))
    assert "! sequence (rnn_forward) cannot be judged." in whole
    assert "rnn_forward stopped in line 12: h = x @ W ValueError: shapes" in whole
    assert "epoch 10 epoch 11" in whole
    assert "epoch 19" in whole
    assert "epoch 9 " not in whole
    verdict = shown(report(RIGHT, UNUSABLE), "verdict")
    assert "ValueError: shapes" in verdict
    assert "epoch" not in verdict
    assert "epoch" not in shown(report(wrong_level(output="epoch 3")))


def test_trouble_keeps_its_lines():
    assert "\n  rnn_forward stopped in line 12:\n      h = x @ W\n  ValueError: shapes\n" in text(report(UNUSABLE))
    assert text(report(trouble="no such file", levels=(), convention="")).endswith("\n  no such file")


WHERE = "going backward, dL/dh is first wrong at t=4 of 5; dL/do and t=5 are right."
SEQUENCE = wrong_level(level="sequence", functions=("rnn_forward", "rnn_backward"))


@BOTH
def test_a_narrower_level_is_repaired_first(shown):
    levels = RIGHT, replace(SEQUENCE, findings=()), wrong_level()  # the explained level is the main one
    whole = shown(report(*levels))
    says = (
        f"✗ sequence (rnn_forward, rnn_backward) by itself is wrong (repair it first): {WHERE} ✗ network (rnn_loss) is"
    )
    assert says in whole.replace("right.✗", "right. ✗")
    assert whole.index("step (") < whole.index("sequence (") < whole.index("network (rnn_loss) is wrong; N=3, T=5")
    assert whole.count("Hint") == 1

    step = replace(SEQUENCE, level="step", functions=("rnn_step_backward",))
    assert (
        f"step (rnn_step_backward) by itself is wrong (repair it first): {WHERE} M05, matrix the wrong way."
        in shown(report(step, SEQUENCE))
    )
    assert "(repair it first): dx, dWh. M05" in shown(report(replace(step, first_wrong=None), SEQUENCE))


@BOTH
def test_a_wider_level_is_checked_again_afterwards(shown):
    whole = shown(report(RIGHT, SEQUENCE, replace(wrong_level(), findings=(SCALE,))))
    says = f"network (rnn_loss) is wrong too (repair sequence first, then check again): {WHERE} M44, scale."
    assert says in whole
    assert whole.index("Hint: Which way") < whole.index(says)
    assert "M44" not in shown(report(RIGHT, SEQUENCE, replace(wrong_level(), findings=(SCALE,))), "where")


@BOTH
def test_a_level_that_cannot_be_judged_beside_a_wrong_one(shown):
    assert "! sequence (rnn_forward) cannot be judged: rnn_forward stopped in line 12:" in shown(
        report(UNUSABLE, wrong_level())
    )


def test_heat_map_in_text():
    errors = (None, NAN, 0.3, 0.03, 0.003, 3e-5, 1e-12, float("inf"))
    lags = ((0.0, None, None), (0.3, 0.0, None), (None, 0.03, 0.0))
    shown = text(report(wrong_level(over_time={"dL/dh": errors, "h": (0.0,)}, lags=lags)))
    assert "\n      t 1 2 3 4 5 6 7 8\n  dL/dh ? ! █ ▓ ▒ ░ · !\n  h     · ? ? ? ? ? ? ?\n" in shown
    assert "    t 1 2 3\n  t=1 ·\n  t=2 █ ·\n  t=3 ? ▓ ·\n" in shown
    assert "· right   ░ below 1e-4   ▒ below 0.01   ▓ below 0.1   █ 0.1 and more   ! not a number   ? not seen" in shown


def test_heat_map_in_html():
    few, many = (html_fragment(report(wrong_level(T))) for T in (12, 30))
    assert "5.0e-01" in Reader(few).said
    assert "5.0e-01" not in Reader(many).said  # there is room for colours alone
    assert ("title", "5.0e-01") in Reader(many).attributes


def test_float32_noise_is_no_error():
    noisy = replace(right_gradient("db"), error=3e-7)
    level = wrong_level(gradients=(wrong_gradient("dWh"), noisy), over_time={"dL/dh": (0.5, 2e-6)})
    assert "dL/dh █ ·" in text(report(level))
    assert "dL/dh █ ░" in text(report(replace(level, gradients=())))


def test_there_is_no_heat_map_where_it_tells_nothing():
    def has(level: LevelReport) -> tuple[bool, bool]:
        shown = text(report(level))
        return "error at each step" in shown, "one step alone" in shown

    assert has(wrong_level(lags=((0.0, 0.0), (0.3, 0.0)))) == (True, True)
    assert has(wrong_level(lags=((0.0, None), (None, 0.0)))) == (True, False)
    assert has(wrong_level(lags=((0.3,) * 30,) * 30)) == (True, False)
    assert has(wrong_level(over_time={"dL/da": (0.5,)}, lags=((0.5,),))) == (False, False)
    assert has(replace(RIGHT, over_time={"dx": (0.0, 0.0)}, lags=((0.0, 0.0), (0.3, 0.0)))) == (False, False)


@pytest.mark.parametrize("T", [1, 2, 5, 30, 120])
@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("hints", HINTS)
def test_lines_stay_within_the_width(T, width, hints):
    shown = text(report(wrong_level(T, findings=(MATRIX, SCALE))), hints=hints, width=width)
    words = [line for line in shown.splitlines() if not re.match(r"  [✓✗] |    gradient", line)]  # a table has no break
    assert max(map(len, words)) <= width
    assert max(map(len, shown.splitlines())) <= max(width, 85)
    assert all(line == line.rstrip() for line in shown.splitlines())
    if T > 1 and hints != "verdict":
        numbers = [line.split()[1:] for line in shown.splitlines() if re.match(r" +t [\d ]+$", line)]
        assert [number for line in numbers for number in line] == [str(t) for t in range(1, T + 1)]


def test_errors_without_a_number():
    gradients = (
        GradientReport("dx", "dx", False, NAN, (1,), NAN, 0.5, trouble="not finite"),
        GradientReport("dWh", "dW", False),
        GradientReport("db", "db", True, 0.0),
        GradientReport("dh0", "dh0", False, 1e-9, (0, 0), 1.0, 1.000000001),
    )
    shown = re.sub(" +", " ", text(report(wrong_level(gradients=gradients)), hints="values"))
    assert "✗ dx nan [1] nan 0.5\n" in shown
    assert "✗ dWh -\n" in shown
    assert "✓ db 0\n" in shown
    assert "✗ dh0 1.0e-09 [0, 0] 1 1.000000001\n" in shown
    assert "dx: not finite" in shown
    assert "nan" in html_fragment(report(wrong_level(gradients=gradients)), hints="values")


def evil_report() -> Report:
    """A report with markup and control characters in every text that may come from a student's file."""
    evil = [replace(wrong_gradient(EVIL), trouble=EVIL)]
    wrong = wrong_level(
        functions=(EVIL,), gradients=evil, notes=(EVIL,), blind=((EVIL, EVIL, EVIL),), over_time={EVIL: (0.1, 0.2)}
    )
    first = FirstWrong(EVIL, 2, 5, EVIL)
    finding = Finding(EVIL, EVIL, EVIL, EVIL, EVIL)
    wrong = replace(wrong, first_wrong=first, findings=(finding,), possible=(finding,), trouble=EVIL, sizes={EVIL: 1})
    unusable = replace(UNUSABLE, trouble=EVIL, output=EVIL, functions=(EVIL,))
    return Report(EVIL, EVIL, EVIL, (wrong, unusable, wrong), trouble=EVIL, notes=(EVIL,))


@pytest.mark.parametrize("hints", HINTS)
@pytest.mark.parametrize("only", [slice(None), slice(1, 2)], ids=["wrong", "unusable"])
def test_nothing_from_a_students_file_becomes_markup(hints, only):
    evil = replace(evil_report(), levels=evil_report().levels[only])
    for source in (html_fragment(evil, hints=hints), html_page(evil, hints=hints)):
        reader = Reader(source)
        assert reader.open == []
        assert "script" not in reader.tags
        assert "<script>alert('x')</script>" in reader.said
        assert not any("script" in (value or "") for _, value in reader.attributes)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", source)


@pytest.mark.parametrize("hints", HINTS)
@pytest.mark.parametrize("only", [slice(None), slice(1, 2)], ids=["wrong", "unusable"])
def test_nothing_from_a_students_file_commands_the_terminal(hints, only):
    evil = replace(evil_report(), levels=evil_report().levels[only])
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text(evil, hints=hints))
    assert "[31m" not in text(evil, hints=hints)


def test_escape_sequences_go_and_what_they_wrap_stays():
    output = "\x1b]0;title\x07a\x1b[1;31mb\x1b[0m\x1b(B\tc\r50 %\r\n\x9b2Jd\x1b]8;;http://x\x1b\\link\x00\ud800"
    shown = text(report(replace(UNUSABLE, output=output)))
    assert shown.endswith("\n  ab  c\n  50 %\n  dlink�")
    shown.encode()


def test_a_long_line_of_output_is_cut():
    assert "y" * 200 not in text(report(replace(UNUSABLE, output="y" * 5000)), width=300)


def test_the_page_needs_nothing_beside_itself():
    page = html_page(report(), hints="values")
    reader = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    assert {"html", "head", "meta", "title", "style", "body"} <= reader.tags
    assert not {name for name, _ in reader.attributes} & {"src", "href", "srcset", "action"}
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert "homework.py: wrong" in page


def test_the_fragment_brings_its_styles_and_leaves_the_colours_of_text_to_the_page():
    source = html_fragment(report(RIGHT, wrong_level()), hints="values")
    reader = Reader(source)
    assert reader.tags <= {"div", "p", "b", "pre", "table", "thead", "tbody", "tr", "th", "td", "span"}
    backgrounds = set(re.findall(r"background:([^;\"]+)", source))
    assert all(value == "transparent" or value.startswith("rgba(213,94,0,") for value in backgrounds)
    assert set(re.findall(r"[;\"]color:([^;\"]+)", source)) == {"#159570", "#d55e00"}


def test_colour_is_asked_for():
    assert "\x1b" not in text(report())
    coloured = text(report(RIGHT, wrong_level(), UNUSABLE), colour=True)
    assert coloured.startswith("\x1b[31m✗ homework.py is wrong\x1b[0m\n")
    assert re.sub(r"\x1b\[\d+m", "", coloured) == text(report(RIGHT, wrong_level(), UNUSABLE))


def test_summary_row():
    missing = GradientReport("dh0", "dh0", False, trouble="missing")
    level = wrong_level(findings=(MATRIX, SCALE))
    level = replace(level, gradients=(*level.gradients, missing))
    assert summary_row(report(RIGHT, level, hints="verdict")) == {
        "file": "homework.py",
        "verdict": "wrong",
        "convention": "cs231n",
        "level": "network",
        "first_wrong": "dL/dh at t=4 of 5",
        "findings": "M05 M44",
        "causes": "The matrix stands the wrong way. Every gradient is off by the same factor: by N.",
        "wrong_gradients": "dx, dWh, dh0 (missing)",
        "trouble": "",
    }


def test_summary_rows_have_the_same_columns_and_one_line_each():
    rows = [summary_row(r) for r in (report(), report(RIGHT), report(UNUSABLE), report(levels=(), trouble="a\nb"))]
    assert len({tuple(row) for row in rows}) == 1
    assert [row["verdict"] for row in rows] == ["wrong", "right", "unusable", "unusable"]
    assert rows[2]["trouble"] == "rnn_forward stopped in line 12: h = x @ W; ValueError: shapes"
    assert rows[3] | {"file": ""} == dict.fromkeys(rows[3], "") | {
        "verdict": "unusable",
        "convention": "cs231n",
        "trouble": "a; b",
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0])
    writer.writerows(rows)
    assert len(table.getvalue().splitlines()) == 4


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r\n =", "\x00=", "\x1b[0m=", "\u200b=", "＝"])
def test_no_cell_becomes_a_formula(start):
    row = summary_row(report(candidate=f"{start}HYPERLINK(A1)", levels=(), trouble=f"{start}1+1"))
    assert row["file"].startswith("'")
    assert row["trouble"].startswith("'")


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize("T", [1, 5, 30])
def test_heat_map_as_png(T, tmp_path):
    pytest.importorskip("matplotlib", reason="the heat map is drawn with matplotlib")
    level = wrong_level(T)
    level = replace(level, over_time={**level.over_time, "$\\frac": (None, NAN), "h 漢": (float("inf"), 1e-3)})
    heat_map_png(report(level, candidate="$\\frac 漢.py"), tmp_path / "map.png")
    width, height = png_size((tmp_path / "map.png").read_bytes())
    assert width == 700
    assert 200 < height < 700


def test_heat_map_of_one_step_and_into_a_file_object():
    pytest.importorskip("matplotlib", reason="the heat map is drawn with matplotlib")
    file = io.BytesIO()
    heat_map_png(report(RIGHT), file)
    assert png_size(file.getvalue())[0] == 700


def test_no_heat_map_without_errors_or_where_it_would_tell_too_much():
    with pytest.raises(ValueError, match=r"expected errors to draw, got none: homework\.py is unusable"):
        heat_map_png(report(UNUSABLE), io.BytesIO())
    with pytest.raises(ValueError, match="expected a hint level that tells where"):
        heat_map_png(report(hints="verdict"), io.BytesIO())


def test_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"expected matplotlib \(pip install matplotlib\)"):
        heat_map_png(report(), io.BytesIO())


def test_text_and_html_need_neither_rich_nor_matplotlib():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = sys.modules['rich'] = None\n"
        "from torch_reference.rendering import html_page, summary_row, text\n"
        "from torch_reference.reports import Report\n"
        "report = Report('a.py', '', '')\n"
        "print(len(text(report)) > 0, len(html_page(report)) > 0, len(summary_row(report)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["True", "True", "9"]
