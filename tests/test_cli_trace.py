"""`bptt trace` as its user meets it: the sheet is worked through again from the numbers printed on it.

Would catch: a term, a product or a sum on the sheet that does not belong to its equation or its step, an equation left
out, a sheet shown although a number differs from autograd's, a problem file misread or refused without naming the key,
and LaTeX or HTML that is not whole.
"""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_reference
from manual_bptt import tracing
from manual_bptt.cli import main
from manual_bptt.cli.planted import MISTAKES
from manual_bptt.cli.trace import FORMATS
from manual_bptt.cli.trace_problem import _shows_mistakes, drawn_problem, read_problem
from manual_bptt.cli.trace_wording import decimal

Array = Any
DIGITS = 8
CLOSE = {"rtol": 0, "atol": 1e-6}  # a few printed numbers, each off by at most 5e-9, times others of size 1 to 100
AGREES = re.compile(r"every number agrees with autograd: worst relative error \d\.\de-\d+")

NONLINEARITIES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda a: np.exp(-a) / (1 + np.exp(-a)) ** 2),
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype(float)),
    "identity": (lambda a: a, np.ones_like),
}
LARGE = {"steps": 4, "batch": 2, "inputs": 3, "hidden": 5, "outputs": 3}
VARIANTS = {
    "usual": {},
    "batch": LARGE,
    "single-step": {"steps": 1},
    "widest": {"steps": 2, "batch": 4, "inputs": 6, "hidden": 6, "outputs": 6},
    "longest": {"steps": 8, "nonlinearity": "sigmoid"},
    "relu": {**LARGE, "nonlinearity": "relu", "time": "mean", "batch-loss": "mean"},
    "identity": {**LARGE, "nonlinearity": "identity", "loss": "squared_error", "time": "mean"},
    "last": {**LARGE, "time": "last", "nonlinearity": "sigmoid"},
    "last-squared": {**LARGE, "time": "last", "loss": "squared_error", "batch-loss": "mean"},
}


def arguments(options: dict[str, Any]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def trace(*parts: Any) -> int:
    return main(["trace", *map(str, parts)])


Numbers = dict[tuple[str, str, int, str], Array]  # by section, label, row (0: all rows) and symbol


def parsed(text: str) -> Numbers:
    """Read the text sheet: every `symbol = value` with the heading, the label and the row that it stands under."""
    lines = text.splitlines()
    found: Numbers = {}
    section, label, row, symbol = "", "", 0, ""
    several = " N=1 " not in lines[1]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following and set(following) == {"-"}:
            section, label = line, ""
        elif match := re.match(r"([FB]\d)  ", line):
            label = match[1]
        elif match := re.match(r" {4}(?:row (\d)  )?( *)(\S.*?) += (\[.*\]|\S+)$", line):
            # where rows are told apart, what belongs to all of them has Σ_n before it, or stands without a row
            row = int(match[1]) if match[1] else row
            symbol = match[3]
            together = symbol.startswith("Σ_n") or symbol in ("L", *"UWVbc", "dV", "dc", "db", "dW", "dU")
            together = together and not (label and symbol in "bc")
            row = 0 if together else (row if several else 1)
            value = np.array([float(part) for part in match[4].strip("[]").split()])
            key = (section, label, row, symbol)
            assert key not in found
            found[key] = value if match[4].startswith("[") else value[0]
        elif match := re.match(r" +\[(.*)\]$", line):
            key = (section, label, row, symbol)
            found[key] = np.vstack([found[key], [float(part) for part in match[1].split()]])
    return found


def options_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)[:=] ?(\w+)", text.splitlines()[1]))


def matrix(value: Array) -> Array:
    return value.reshape(1, -1) if value.ndim == 1 else value


class Sheet:
    """The numbers of one printed sheet, and the equations worked through again from nothing else."""

    def __init__(self, text: str) -> None:
        self.numbers = parsed(text)
        self.options = options_of(text)
        self.T, self.N = int(self.options["T"]), int(self.options["N"])
        self.U, self.W, self.V = (matrix(self.numbers["Given", "", 0, name]) for name in "UWV")
        self.read: set[tuple[str, str, int, str]] = {("Given", "", 0, name) for name in "UWV"}

    def __call__(self, section: str, label: str, row: int, symbol: str) -> Array:
        self.read.add((section, label, row, symbol))
        return self.numbers[section, label, row, symbol]

    def given(self, symbol: str, row: int = 0) -> Array:
        return self("Given", "", row, symbol)

    def same(self, place: tuple[str, str, int, str], expected: Array) -> None:
        np.testing.assert_allclose(self(*place), expected, err_msg=str(place), **CLOSE)

    def state(self, t: int, n: int) -> Array:
        return self.given("h_0", n) if t == 0 else self(f"Forward, step {t}", "F2", n, f"h_{t}")

    def forward(self, t: int, n: int) -> float:
        """Check F1 to F5 of a step and row; return what they add to the loss."""
        place = f"Forward, step {t}"
        self.same((place, "F1", n, f"U x_{t}"), self.U @ self.given(f"x_{t}", n))
        self.same((place, "F1", n, f"W h_{t - 1}"), self.W @ self.state(t - 1, n))
        self.same((place, "F1", n, "b"), self.given("b"))
        terms = [self(place, "F1", n, symbol) for symbol in (f"U x_{t}", f"W h_{t - 1}", "b")]
        self.same((place, "F1", n, f"a_{t}"), sum(terms))
        f, _ = NONLINEARITIES[self.options["nonlinearity"]]
        self.same((place, "F2", n, f"h_{t}"), f(self(place, "F1", n, f"a_{t}")))
        self.same((place, "F3", n, f"V h_{t}"), self.V @ self.state(t, n))
        self.same((place, "F3", n, "c"), self.given("c"))
        self.same((place, "F3", n, f"o_{t}"), self(place, "F3", n, f"V h_{t}") + self(place, "F3", n, "c"))
        o = self(place, "F3", n, f"o_{t}")
        y_hat = o
        if self.options["loss"] == "cross_entropy":
            self.same((place, "F4", n, f"exp(o_{t})"), np.exp(o))
            self.same((place, "F4", n, f"Σ_k exp(o_{t}k)"), self(place, "F4", n, f"exp(o_{t})").sum())
            y_hat = self(place, "F4", n, f"exp(o_{t})") / self(place, "F4", n, f"Σ_k exp(o_{t}k)")
        self.same((place, "F4", n, f"ŷ_{t}"), y_hat)
        if self.options["time"] == "last" and t < self.T:
            return 0.0
        return self.step_loss(place, t, n, y_hat)

    def step_loss(self, place: str, t: int, n: int, y_hat: Array) -> float:
        target, y = self.given(f"y_{t}", n), self(place, "F5", n, f"y_{t}")
        if self.options["loss"] == "cross_entropy":
            self.same((place, "F5", n, f"y_{t}"), np.eye(len(y_hat))[int(target)])
            self.same((place, "F5", n, f"ln ŷ_{t}"), np.log(y_hat))
            loss = -(y * self(place, "F5", n, f"ln ŷ_{t}")).sum()
        else:
            self.same((place, "F5", n, f"y_{t}"), target)
            self.same((place, "F5", n, f"ŷ_{t}"), y_hat)
            loss = ((y_hat - y) ** 2).sum() / 2
        self.same((place, "F5", n, f"ℓ_{t}"), loss)
        w = (1 / self.T if self.options["time"] == "mean" else 1) / (self.N if self.options["batch"] == "mean" else 1)
        self.same((place, "F5", n, f"w_{t}"), w)
        self.same((place, "F5", n, f"w_{t} ℓ_{t}"), w * loss)
        return float(self(place, "F5", n, f"w_{t} ℓ_{t}"))

    def backward(self, t: int, n: int) -> None:
        """Check B1, B3, B4 and B8 of a step and row."""
        place, forward = f"Backward, step {t}", f"Forward, step {t}"
        if self.options["time"] == "last" and t < self.T:
            self.same((place, "B1", n, f"do_{t}"), np.zeros(len(self.V)))
        else:
            self.same((place, "B1", n, f"ŷ_{t}"), self(forward, "F4", n, f"ŷ_{t}"))
            self.same((place, "B1", n, f"y_{t}"), self(forward, "F5", n, f"y_{t}"))
            self.same((place, "B1", n, f"w_{t}"), self(forward, "F5", n, f"w_{t}"))
            difference = f"ŷ_{t} − y_{t}"
            self.same((place, "B1", n, difference), self(place, "B1", n, f"ŷ_{t}") - self(place, "B1", n, f"y_{t}"))
            do = self(place, "B1", n, f"w_{t}") * self(place, "B1", n, difference)
            self.same((place, "B1", n, f"do_{t}"), do)
        self.same((place, "B3", n, f"Vᵀ do_{t}"), self.V.T @ self(place, "B1", n, f"do_{t}"))
        later = 0 * self.W[0] if t == self.T else self(f"Backward, step {t + 1}", "B4", n, f"da_{t + 1}")
        self.same((place, "B3", n, f"Wᵀ da_{t + 1}"), self.W.T @ later)
        terms = [self(place, "B3", n, symbol) for symbol in (f"Vᵀ do_{t}", f"Wᵀ da_{t + 1}")]
        self.same((place, "B3", n, f"dh_{t}"), sum(terms))
        _, slope = NONLINEARITIES[self.options["nonlinearity"]]
        self.same((place, "B4", n, f"f′(a_{t})"), slope(self(forward, "F1", n, f"a_{t}")))
        self.same((place, "B4", n, f"dh_{t}"), self(place, "B3", n, f"dh_{t}"))
        product = self(place, "B4", n, f"f′(a_{t})") * self(place, "B4", n, f"dh_{t}")
        self.same((place, "B4", n, f"da_{t}"), product)
        self.same((place, "B8", n, f"dx_{t}"), self.U.T @ self(place, "B4", n, f"da_{t}"))

    def parts(self, t: int) -> dict[str, Array]:
        """Check what a step adds to the parameters' gradients; return it, summed over the rows."""
        place = f"Backward, step {t}"
        sums: dict[str, Array] = {}
        for label, name, symbol in (
            ("B2", "dV", f"do_{t} h_{t}ᵀ"),
            ("B2", "dc", f"do_{t}"),
            ("B5", "db", f"da_{t}"),
            ("B6", "dW", f"da_{t} h_{t - 1}ᵀ"),
            ("B7", "dU", f"da_{t} x_{t}ᵀ"),
        ):
            shown = []
            for n in range(1, self.N + 1):
                do, da = self(place, "B1", n, f"do_{t}"), self(place, "B4", n, f"da_{t}")
                rows = {
                    "dV": lambda do=do, n=n: np.outer(do, self.state(t, n)),
                    "dc": lambda do=do: do,
                    "db": lambda da=da: da,
                    "dW": lambda da=da, n=n: np.outer(da, self.state(t - 1, n)),
                    "dU": lambda da=da, n=n: np.outer(da, self.given(f"x_{t}", n)),
                }
                self.same((place, label, n, symbol), rows[name]())
                shown.append(self(place, label, n, symbol))
            sums[name] = sum(shown)
            if self.N > 1:
                self.same((place, label, 0, f"Σ_n {symbol}"), sums[name])
        return sums

    def check(self) -> None:
        """Work everything through; nothing on the sheet may be left over."""
        rows, steps = range(1, self.N + 1), range(1, self.T + 1)
        self.same(("Loss", "F5", 0, "L"), sum(self.forward(t, n) for t in steps for n in rows))
        for t in steps:
            for n in rows:
                self.backward(t, n)
        end = "Sums over the steps, and the initial state"
        parts = [self.parts(t) for t in steps]
        for label, name in (("B2", "dV"), ("B2", "dc"), ("B5", "db"), ("B6", "dW"), ("B7", "dU")):
            self.same((end, label, 0, name), sum(part[name] for part in parts))
        for n in rows:
            da_1 = self("Backward, step 1", "B4", n, "da_1")
            self.same((end, "B8", n, "dh_0"), self.W.T @ da_1)
        assert set(self.numbers) == self.read


def sheet(capsys: pytest.CaptureFixture[str], *parts: Any) -> str:
    assert trace(*parts) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_the_sheet_follows_from_its_own_numbers(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = sheet(capsys, *arguments(options), "--decimals", DIGITS)
    Sheet(text).check()
    assert max(map(len, text.splitlines())) <= 120
    assert AGREES.fullmatch(text.splitlines()[-1])


def test_a_wrong_number_on_the_sheet_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """The test above is no rubber stamp: change one digit anywhere and it fails."""
    text = sheet(capsys, "--decimals", DIGITS)
    start = text.index("Forward, step 1")
    digits = [match.start() for match in re.finditer(r"\d(?=\d{4}[\] \n])", text) if match.start() > start]
    assert len(digits) > 150
    for place in digits[::7]:
        wrong = text[:place] + str((int(text[place]) + 5) % 10) + text[place + 1 :]
        with pytest.raises(AssertionError):
            Sheet(wrong).check()


def test_the_printed_numbers_are_autograds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Read back from the sheet and from the problem file, without tracing.py in between."""
    file = tmp_path / "problem.json"
    numbers = parsed(sheet(capsys, *arguments(LARGE), "--decimals", DIGITS, "--save-problem", file))
    found = json.loads(file.read_text())
    tensors = {name: torch.tensor(found[name], dtype=torch.float64) for name in ("U", "W", "V", "b", "c", "x", "h0")}
    truth = torch_reference.gradients(
        {name: tensors[name] for name in "UWVbc"}, tensors["x"], torch.tensor(found["targets"]), tensors["h0"]
    )
    for n in (1, 2):
        for t in (1, 2, 3, 4):
            for label, name, section in (("F1", "a", "Forward"), ("F4", "y_hat", "Forward"), ("B3", "dh", "Backward")):
                symbol = {"y_hat": "ŷ"}.get(name, name)
                shown = numbers[f"{section}, step {t}", label, n, f"{symbol}_{t}"]
                np.testing.assert_allclose(shown, truth[name][t - 1, n - 1].numpy(), rtol=0, atol=1e-8)


def test_every_equation_stands_at_every_step_where_it_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    text = sheet(capsys, "--steps", 3)
    sections: dict[str, list[str]] = {}
    for line, following in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if set(following) == {"-"}:
            sections[line] = []
        elif match := re.match(r"([FB]\d)  ", line):
            sections[list(sections)[-1]].append(match[1])
    forward, backward = [f"F{i}" for i in range(1, 6)], [f"B{i}" for i in range(1, 9)]
    assert sections == {
        "Given": [],
        **{f"Forward, step {t}": forward for t in (1, 2, 3)},
        "Loss": ["F5"],
        **{f"Backward, step {t}": backward for t in (3, 2, 1)},
        "Sums over the steps, and the initial state": ["B2", "B5", "B6", "B7", "B8"],
    }
    assert list(sections)[5:8] == [f"Backward, step {t}" for t in (3, 2, 1)]
    expected = Counter(3 * (forward + backward) + ["F5", "B2", "B5", "B6", "B7", "B8"])
    assert Counter(re.findall(r"\\tag\{(..)\}", sheet(capsys, "--format", "latex"))) == expected
    assert Counter(re.findall(r'class="label">(..)<', sheet(capsys, "--format", "html"))) == expected


@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_latex_is_whole(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = sheet(capsys, *arguments(options), "--format", "latex")
    assert text.isascii()
    assert set(re.findall(r"\\usepackage(?:\[.*?\])?\{(.*?)\}", text)) == {"geometry", "amsmath"}
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(.*?)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    for line in text.splitlines():
        assert line.count("$") % 2 == 0
        if "&" not in line:  # an index outside of mathematics stops LaTeX
            assert "_" not in re.sub(r"\$.*?\$|\\_", "", line)
    assert "\\\\\n\\end" not in text  # an empty last line
    assert AGREES.search(text.splitlines()[-2])


class Page(HTMLParser):
    """Sees to it that every element is closed in its turn, and keeps what might reach outside of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.outside: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.opened.append(tag)
        if tag in ("link", "script", "img", "iframe"):
            self.outside.append(tag)
        self.outside += [name for name, _ in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_html_is_whole_and_needs_nothing_else(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = sheet(capsys, *arguments(options), "--format", "html")
    page = Page()
    page.feed(text)
    page.close()
    assert page.opened == []
    assert page.outside == []
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert AGREES.search(page.text.strip().splitlines()[-1])


def test_the_three_forms_show_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    def counted(form: str) -> Counter[str]:
        text = sheet(capsys, *arguments(LARGE), "--format", form)
        return Counter(re.findall(r"-?\d+\.\d{4}(?!\d)", text))

    assert counted("text") == counted("latex") == counted("html")


def test_output_goes_to_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for form in FORMATS:
        printed = sheet(capsys, "--format", form)
        file = tmp_path / f"sheet.{form}"
        assert AGREES.fullmatch(sheet(capsys, "--format", form, "--output", file).strip())
        assert file.read_text("utf-8") == printed


def test_a_seed_draws_the_same_problem_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert sheet(capsys, "--seed", 3) == sheet(capsys, "--seed", 3)
    assert sheet(capsys, "--seed", 3) != sheet(capsys, "--seed", 4)


@pytest.mark.parametrize("nonlinearity", list(NONLINEARITIES))
@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_problem_shows_mistakes_and_can_be_typed(nonlinearity: str, seed: int) -> None:
    sizes = {"T": 3, "N": 2, "D": 2, "H": 3, "K": 2}
    problem = drawn_problem(sizes, {"nonlinearity": nonlinearity}, seed)
    assert problem.sizes() == sizes
    assert _shows_mistakes(problem)
    assert problem.h0.abs().min() >= 0.1
    a = torch_reference.gradients(problem.parameters, problem.x, problem.targets, problem.h0, **problem.options)["a"]
    assert 0.5 <= a.abs().mean() <= 1.6
    W = problem.parameters["W"]
    assert (W - W.T).abs().max() >= 0.2
    for name, value in (problem.parameters | {"x": problem.x, "h0": problem.h0}).items():
        most = 1 if name in ("x", "h0") else 2
        for entry in value.flatten().tolist():
            assert entry == round(entry, most)


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_a_saved_problem_gives_the_same_sheet(
    form: str, options: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, again = tmp_path / "problem.json", tmp_path / "again.json"
    drawn = sheet(capsys, *arguments(options), "--format", form, "--save-problem", file)
    assert sheet(capsys, "--problem", file, "--format", form, "--save-problem", again) == drawn
    assert file.read_bytes() == again.read_bytes()


SMALL: dict[str, Any] = {
    "U": [[0.5, -1.2], [0.3, 0.8]],
    "W": [[0.2, -0.7], [0.9, 0.1]],
    "V": [[1.0, -0.5], [0.25, 0.5], [-1, 2]],
    "b": [0.1, -0.2],
    "c": [0, 0.1, 0.2],
    "x": [[1.0, 0.5], [-0.5, 2]],
    "h0": [0.3, -0.4],
    "targets": [2, 0],
}


def saved(folder: Path, problem: Any) -> Path:
    file = folder / "typed.json"
    file.write_text(problem if isinstance(problem, str) else json.dumps(problem))
    return file


def test_a_single_sequence_needs_no_batch_axis(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    batched = {
        **SMALL,
        "x": [[row] for row in SMALL["x"]],
        "h0": [SMALL["h0"]],
        "targets": [[target] for target in SMALL["targets"]],
    }
    text = sheet(capsys, "--problem", saved(tmp_path, SMALL), "--decimals", DIGITS)
    assert sheet(capsys, "--problem", saved(tmp_path, batched), "--decimals", DIGITS) == text
    Sheet(text).check()
    for targets in (1, [1]):
        last = {**(SMALL if targets == 1 else batched), "time": "last", "targets": targets}
        Sheet(sheet(capsys, "--problem", saved(tmp_path, last), "--decimals", DIGITS)).check()


def test_options_given_take_the_place_of_the_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = saved(tmp_path, {**SMALL, "nonlinearity": "relu", "time": "mean"})
    assert "nonlinearity: relu  loss: cross_entropy  time: mean" in sheet(capsys, "--problem", file)
    text = sheet(capsys, "--problem", file, "--nonlinearity", "sigmoid", "--decimals", DIGITS)
    assert "nonlinearity: sigmoid  loss: cross_entropy  time: mean" in text
    Sheet(text).check()


def test_without_biases_there_is_no_line_for_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = saved(tmp_path, {name: value for name, value in SMALL.items() if name not in "bc" and name != "h0"})
    text = sheet(capsys, "--problem", file)
    assert "F1  a_1 = U x_1 + W h_0\n" in text
    assert "h_0 = [0 0]" in text
    assert "B5" not in text
    assert "dc" not in text


def test_soft_targets_show_what_they_add_up_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    targets = [[0.5, 0.25, 0.25], [1, 0.5, 0]]
    text = sheet(capsys, "--problem", saved(tmp_path, {**SMALL, "targets": targets}), "--decimals", DIGITS)
    numbers = parsed(text)
    assert ("Backward, step 1", "B1", 1, "s_1") not in numbers
    assert "do_1 = w_1 (ŷ_1 − y_1)\n" in text
    y_hat, y, s, difference, do = (
        numbers["Backward, step 2", "B1", 1, symbol] for symbol in ("ŷ_2", "y_2", "s_2", "s_2 ŷ_2 − y_2", "do_2")
    )
    assert s == 1.5
    np.testing.assert_allclose(difference, s * y_hat - y, **CLOSE)
    np.testing.assert_allclose(do, difference, **CLOSE)
    one_hot = {**SMALL, "targets": [[0, 0, 1], [1, 0, 0]]}
    shown = parsed(sheet(capsys, "--problem", saved(tmp_path, one_hot), "--decimals", DIGITS))
    classes = parsed(sheet(capsys, "--problem", saved(tmp_path, SMALL), "--decimals", DIGITS))
    for place, value in classes.items():
        if place[0] != "Given":
            np.testing.assert_array_equal(shown[place], value)


def test_a_step_that_does_not_count_has_no_weight(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for ignored in (-100, 0):
        problem = {**SMALL, "targets": [2, ignored], "ignore_index": ignored, "time": "mean"}
        text = sheet(capsys, "--problem", saved(tmp_path, problem))
        assert f"{ignored}: does not count" in text
        numbers = parsed(text)
        assert numbers["Forward, step 1", "F5", 1, "w_1"] == 1
        assert numbers["Forward, step 2", "F5", 1, "w_2 ℓ_2"] == 0
        assert not numbers["Backward, step 2", "B1", 1, "do_2"].any()


def test_terms_that_cancel_are_no_difference(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With equal rows in V nothing but rounding reaches the states: no false alarm."""
    problem = {**SMALL, "V": [[0.7, -0.3]] * 3}
    assert AGREES.fullmatch(sheet(capsys, "--problem", saved(tmp_path, problem)).splitlines()[-1])


WRONG: dict[str, tuple[Any, str]] = {
    "no-json": ("{'U': 1}", "to hold JSON"),
    "no-object": ([1, 2], "expected one object with the keys U, W, V, x, targets, got list"),
    "missing": ({name: SMALL[name] for name in "UVbc"}, "expected the key 'W', which is missing"),
    "unknown": ({**SMALL, "Wx": [[1]]}, "and no other, got 'Wx'"),
    "text": ({**SMALL, "b": [0.1, "0.2"]}, 'expected b to hold numbers from -10000 to 10000, got "0.2"'),
    "bool": ({**SMALL, "b": [True, 0.2]}, "expected b to hold numbers from -10000 to 10000, got true"),
    "nan": ({**SMALL, "b": [float("nan"), 0.2]}, "expected b to hold numbers from -10000 to 10000, got NaN"),
    "huge": ({**SMALL, "targets": [2, 10**30]}, "expected targets to hold numbers from"),
    "ragged": ({**SMALL, "W": [[1, 2], [3]]}, "the parts of W to be alike, but part 1 has shape (2,), part 2 (1,)"),
    "empty": ({**SMALL, "x": []}, "expected x to hold numbers, got an empty list"),
    "scalar": ({**SMALL, "V": 3}, "expected V of shape (K, H), got ()"),
    "U": ({**SMALL, "U": [1, 2]}, "expected U of shape (H, D), got (2,)"),
    "W": ({**SMALL, "W": [[1, 2]]}, "expected W of shape (H, H) = (2, 2), got (1, 2)"),
    "V": ({**SMALL, "V": [[1, 2, 3]]}, "expected V of shape (K, H) = (1, 2), got (1, 3)"),
    "b": ({**SMALL, "b": [1, 2, 3]}, "expected b of shape (H,) = (2,), got (3,)"),
    "c": ({**SMALL, "c": [1]}, "expected c of shape (K,) = (3,), got (1,)"),
    "x": ({**SMALL, "x": [[1], [2]]}, "expected x of shape (T, D) = (2, 2), got (2, 1)"),
    "x-batch": ({**SMALL, "x": [[[1]], [[2]]]}, "expected x of shape (T, N, D) = (2, 1, 2), got (2, 1, 1)"),
    "h0": ({**SMALL, "h0": [[1, 2]]}, "expected h0 of shape (H,) = (2,), got (1, 2)"),
    "targets": ({**SMALL, "targets": [1]}, "expected targets of shape (T,) = (2,) or (T, K) = (2, 3), got (1,)"),
    "targets-last": ({**SMALL, "time": "last"}, "expected targets of shape () = () or (K,) = (3,), got (2,)"),
    "targets-squared": ({**SMALL, "loss": "squared_error"}, "expected targets of shape (T, K) = (2, 3), got (2,)"),
    "class": ({**SMALL, "targets": [2, 3]}, "expected every class in targets from 0 to K-1 = 2, or -100, got 3"),
    "half-class": ({**SMALL, "targets": [2, 0.5]}, "expected targets to be whole numbers where each is a class"),
    "option": ({**SMALL, "time": "total"}, "expected time to be one of 'sum', 'mean', 'last', got 'total'"),
    "option-list": ({**SMALL, "loss": ["squared_error"]}, "expected loss to be one of"),
    "ignore": ({**SMALL, "ignore_index": 1.5}, "expected ignore_index to be a whole number of 32 bits, got 1.5"),
    "long": ({**SMALL, "x": [[1, 2]] * 9}, "expected T from 1 to 8, since a sheet has to be readable, got 9"),
    "overflow": ({**SMALL, "c": [0, 0, 1000]}, "numbers that stay finite, but Forward, step 1: F4 exp(o_1) does not"),
}


@pytest.mark.parametrize(("problem", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_file_is_refused(
    problem: Any, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert trace("--problem", saved(tmp_path, problem)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("bptt trace: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("--steps", 9), "expected a whole number from 1 to 8, since a sheet has to be readable, got '9'"),
        (("--batch", 5), "from 1 to 4, since a sheet has to be readable, got '5'"),
        (("--hidden", 0), "from 1 to 6, since a sheet has to be readable, got '0'"),
        (("--outputs", "two"), "got 'two'"),
        (("--decimals", -1), "from 0 to 8"),
        (("--seed", -1), "expected a whole number from 0"),
        (("--format", "pdf"), "invalid choice: 'pdf'"),
        (("--nonlinearity", "gelu"), "invalid choice: 'gelu'"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_wrong_arguments_are_refused(parts: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        trace(*parts)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_done_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = saved(tmp_path, SMALL)
    for parts, message in (
        (("--outputs", 1), "expected K = 2 or more outputs for cross_entropy, got 1"),
        (("--problem", file, "--steps", 2), "expected --steps or --problem, got both"),
        (("--problem", file, "--seed", 0), "expected --seed or --problem, got both"),
        (("--problem", tmp_path / "none.json"), "No such file"),
        (("--output", tmp_path), "to be a file, but it is a folder"),
        (("--save-problem", tmp_path / "none" / "file"), "to lie in a folder that exists"),
        (("--output", file, "--save-problem", file), "expected --output and --save-problem to be two files"),
        (("--output", file, "--problem", file), "expected --output and --problem to be two files"),
    ):
        assert trace(*parts) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
    assert read_problem(file, {}).sizes() == {"T": 2, "N": 1, "D": 2, "H": 2, "K": 3}
    assert sheet(capsys, "--outputs", 1, "--loss", "squared_error")
    assert sheet(capsys, "--steps", 2, "--batch", 2, "--time", "last", "--loss", "squared_error")  # T = N = K


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_planted_mistake_is_not_shown(mistake: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "sheet.txt"
    with mistake.planted():
        assert trace("--output", file) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "differs from autograd's" in captured.err
    assert not file.exists()


def test_a_wrong_term_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The terms are made in tracing.py, beside bptt(): they are held against autograd too."""
    monkeypatch.setattr(tracing, "_outer", lambda left, right: left.unsqueeze(-1) * right.flip(-1).unsqueeze(-2))
    assert trace() == 1
    assert re.search("d[VWU] from its terms differs from autograd's", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (-0.00004, 4, "0.0000"),
        (0.0, 2, "0.00"),
        (-1.25, 1, "-1.2"),
        (2.5e6, 2, "2.50e+06"),
        (-0.5, 0, "0"),
        (-1e100, 8, "-1.000000e+100"),
    ],
)
def test_numbers_as_written(value: float, decimals: int, text: str) -> None:
    assert decimal(value, decimals) == text


def test_large_numbers_fit_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = {"T": 8, "N": 4, "D": 6, "H": 6, "K": 6}
    problem = drawn_problem(sizes, {"nonlinearity": "identity", "loss": "squared_error"}, 0)
    large = {name: (value * 30).tolist() for name, value in problem.parameters.items()}
    large |= {"x": problem.x.tolist(), "targets": problem.targets.tolist(), "h0": problem.h0.tolist()}
    file = saved(tmp_path, {**large, "nonlinearity": "identity", "loss": "squared_error"})
    text = sheet(capsys, "--problem", file, "--decimals", DIGITS)
    assert max(map(len, text.splitlines())) <= 120
    assert "e+1" in text
    assert r"\cdot 10^{" in sheet(capsys, "--problem", file, "--format", "latex")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_pdflatex_takes_it(tmp_path: Path) -> None:
    options = {**LARGE, "batch": 3, "time": "mean"}
    assert trace(*arguments(options), "--format", "latex", "--output", tmp_path / "sheet.tex") == 0
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "sheet.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert run.returncode == 0, run.stdout[-1000:]
    assert "Overfull" not in run.stdout
