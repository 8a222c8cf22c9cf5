"""`bptt verify` as its user meets it: tables, exit statuses, JSON, messages. Would catch a command that cannot fail."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from manual_bptt import kernels, recurrence
from manual_bptt.cli import main, timing
from manual_bptt.cli.comparison import NAMES, by_hand, compare, relative_error, witnesses
from manual_bptt.cli.planted import MISTAKES
from manual_bptt.cli.problems import IGNORED, name_problems
from manual_bptt.data import COUNTRIES, surnames
from manual_bptt.files import write_atomically

SMALL = ("--batch", "4", "--hidden", "5", "--no-timing")
CPU = torch.device("cpu")


def verify(*arguments: str) -> int:
    return main(["verify", *SMALL, *arguments])


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "relu", "identity"])
def test_everything_agrees_on_real_names(nonlinearity: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert verify("--nonlinearity", nonlinearity, "--json", str(file)) == 0
    printed = capsys.readouterr().out
    assert "comparisons agree." in printed
    assert "FAIL" not in printed
    assert "nn.RNN: has no such nonlinearity" in printed or nonlinearity in ("tanh", "relu")
    report = json.loads(file.read_text())
    assert report["passed"] is True
    witness_count = 3 if nonlinearity in ("tanh", "relu") else 2
    devices = 2 if torch.cuda.is_available() else 1
    assert len(report["comparisons"]) == 2 * devices * 2 * witness_count * len(NAMES)
    assert {cell["gradient"] for cell in report["comparisons"]} == set(NAMES)
    for cell in report["comparisons"]:
        exact = cell["witness"] != "central diff."
        limit = 1e-12 if exact else 1e-6
        assert cell["limit"] == (limit if cell["dtype"] == "float64" else 100 * torch.finfo(torch.float32).eps)


def test_names_are_real_and_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    verify()
    first = capsys.readouterr().out.splitlines()[0]
    assert "Faker" in first
    assert "MIT" in first
    [problem, _] = name_problems(batch=4, hidden=5, longest=12, nonlinearity="tanh", seed=0)
    for name, country in zip(problem.names, problem.countries, strict=True):
        assert name in surnames()[country]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the line is printed where there is no CUDA device")
def test_a_missing_cuda_device_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    verify()
    assert "CUDA: torch finds no device here; nothing was compared on one." in capsys.readouterr().out


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_planted_mistake_turns_the_exit_status(mistake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with mistake.planted():
        assert verify() == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert "comparisons differ." in printed
    assert verify() == 0  # and nothing stays planted


def test_nan_is_reported_and_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(recurrence, "bias_gradient", lambda da: torch.full_like(da[0, 0], math.nan))
    file = tmp_path / "report.json"
    with kernels.use("eager"):
        assert verify("--json", str(file)) == 1
    assert "nan FAIL" in capsys.readouterr().out
    wrong = [cell for cell in json.loads(file.read_text())["comparisons"] if not cell["agrees"]]
    assert {(cell["gradient"], cell["relative_error"]) for cell in wrong} == {("b", "nan")}


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "relu", "identity"])
def test_self_test_catches_everything(nonlinearity: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert verify("--self-test", "--nonlinearity", nonlinearity, "--json", str(file)) == 0
    planted = [mistake for mistake in MISTAKES if nonlinearity in mistake.nonlinearities]
    assert len(planted) == (6 if nonlinearity in ("tanh", "sigmoid") else 5)
    assert f"All {len(planted)} planted mistakes are caught" in capsys.readouterr().out
    report = {entry["mistake"]: entry for entry in json.loads(file.read_text())["planted"]}
    assert report.pop("nothing")["found_wrong"] == []
    assert {name: set(entry["found_wrong"]) for name, entry in report.items()} == {
        mistake.name: set(mistake.wrong) for mistake in planted
    }


def test_self_test_fails_where_a_mistake_goes_unseen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("manual_bptt.cli.comparison.FLOAT64_LIMIT", 1e-2)  # blind to dW × 1.001
    assert verify("--self-test", "--dtype", "float64") == 1
    assert "MISSED" in capsys.readouterr().out


def test_self_test_fails_where_the_code_is_wrong_to_begin_with(capsys: pytest.CaptureFixture[str]) -> None:
    with MISTAKES[3].planted():
        assert verify("--self-test") == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_one_number_of_the_table_is_what_it_says() -> None:
    [problem, _] = name_problems(batch=4, hidden=5, longest=12, nonlinearity="tanh", seed=0)
    actual = by_hand(problem, torch.float64, CPU)
    truth = witnesses("tanh")["complex step"](problem, CPU)
    cell = compare(actual, truth, "complex step", torch.float64)[NAMES.index("W")]
    assert cell.relative_error == ((actual["W"] - truth["W"]).norm() / truth["W"].norm()).item()
    scaled = truth | {"W": truth["W"] * (1 + 1e-6)}
    assert compare(scaled, truth, "", torch.float64)[1].relative_error == pytest.approx(1e-6, rel=1e-6)
    assert relative_error(torch.ones(2), torch.zeros(2)) == pytest.approx(math.sqrt(2))


def test_problems_can_see_mistakes() -> None:
    for problem in name_problems(batch=8, hidden=16, longest=12, nonlinearity="tanh", seed=0):
        sizes = problem.sizes()
        assert len(set(sizes.values())) >= 4
        assert sizes["T"] >= 4
        assert problem.h0.norm() > 1
        W = problem.parameters["W"]
        assert (W - W.t()).norm() > 0.5 * W.norm()
        counts = problem.targets != IGNORED
        lengths = torch.tensor([len(name) for name in problem.names])
        one_per_name = "country" in problem.title
        assert torch.equal(counts.sum(0), torch.ones_like(lengths) if one_per_name else lengths)
        assert torch.equal(problem.x.sum((0, 2)).long(), lengths)
        assert problem.targets[counts].max() < sizes["K"]


def test_same_seed_same_problem_other_seed_another() -> None:
    def names(seed: int) -> tuple[str, ...]:
        return name_problems(batch=8, hidden=3, longest=12, nonlinearity="tanh", seed=seed)[0].names

    assert names(1) == names(1) != names(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0"), "--batch: expected a whole number from 1 to 256, got '0'"),
        (("--hidden", "two"), "--hidden: expected a whole number from 1 to 128, got 'two'"),
        (("--longest", "1"), "--longest: expected a whole number from 2 to 100, got '1'"),
        (("--threads", "0"), "--threads: expected a whole number from 1 to 256, got '0'"),
        (("--seed", "-1"), "--seed: expected a whole number from 0 to 9223372036854775807, got '-1'"),
        (("--hidden", "10000000"), "--hidden: expected a whole number from 1 to 128, got '10000000'"),
        (("--seed", str(2**64)), "--seed: expected a whole number"),
        (("--nonlinearity", "gelu"), "'gelu'"),
        (("--dtype", "float8"), "'float8'"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_unusable_arguments(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verify(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_names_too_short_to_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--longest", "2") == 2
    assert "expected names of at most 2 characters, but Croatia has none so short" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--device", "cuda") == 2
    assert "expected --device to be there, got 'cuda'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "expected {path} to be a file, but it is a folder"),
        (lambda folder: folder / "none" / "report.json", "to lie in a folder that exists"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    make: Callable[[Path], Path],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("manual_bptt.cli.verify.name_problems", None)  # would fail if it were called
    path = make(tmp_path)
    assert verify("--json", str(path)) == 2
    assert message.format(path=path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert verify("--json", str(pipe)) == 2
    assert "but it is a device, a pipe or a socket" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "report.json", tmp_path / "link.json"
    target.write_text("before")
    link.symlink_to(target)
    write_atomically(link, b"after")
    assert link.is_symlink()
    assert target.read_text() == "after"


def test_ctrl_c_and_a_closed_pipe_end_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("manual_bptt.cli.verify._report", interrupted)
    assert verify() == 130
    assert capsys.readouterr().err == "bptt verify: interrupted\n"
    command = f"{sys.executable} -m manual_bptt verify {' '.join(SMALL)} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_self_test_with_nothing_planted_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manual_bptt.cli.planted.MISTAKES", ())
    assert verify("--self-test") == 1


def test_no_partial_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"after")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.undo()
    write_atomically(file, b"after")
    assert file.read_bytes() == b"after"


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("faker", "real names need the package faker, which is not installed: pip install 'manual-bptt[data]'"),
        ("rich", "needs the package rich, which is not installed: pip install 'manual-bptt[cli]'"),
    ],
)
def test_a_missing_optional_package(package: str, message: str) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None  # an import of it is then a ModuleNotFoundError
from manual_bptt.cli import main
sys.exit(main(["verify"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_threads_are_set_for_the_run_alone(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    file = tmp_path / "report.json"
    assert verify("--threads", str(before + 1), "--json", str(file)) == 0
    assert json.loads(file.read_text())["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_timing_takes_turns_and_times_the_same_training_step() -> None:
    problem = name_problems(batch=4, hidden=5, longest=12, nonlinearity="tanh", seed=0)[0]
    calls: list[str] = []

    def counted(name: str, step: timing.Step) -> timing.Step:
        def run() -> None:
            calls.append(name)
            step()

        return run

    steps = timing.training_steps(problem, CPU, torch.float64)
    timed = timing.take_turns({name: counted(name, step) for name, step in steps.items()}, seconds=0.0)
    assert list(timed) == ["hand-written", "unrolled autograd", "nn.RNN"]
    assert calls == list(timed) * (len(calls) // 3)
    assert min(step.seconds for step in timed.values()) > 0
    assert timed["hand-written"].ratio == 1
    assert all(step.quartiles[0] <= step.ratio <= step.quartiles[1] for step in timed.values())


def test_a_ratio_is_of_neighbours_and_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = iter([90.0, 1.0] * timing.WARM_UP + [1.0, 2.0, 10.0, 20.0, 100.0, 200.0, 3.0, 6.0, 1.0, 50.0])

    def step() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(timing, "timer", lambda: now)
    timed = timing.take_turns({"hand-written": step, "nn.RNN": step}, seconds=0.0)
    assert timed["nn.RNN"] == timing.Timed(20.0, 2.0, (2.0, 2.0))


def test_timing_is_printed_with_its_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("manual_bptt.cli.verify.TIMED_SECONDS", 0.0)
    assert main(["verify", "--batch", "4", "--hidden", "5", "--dtype", "float64"]) == 0
    last = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in last] == ["hand-written", "unrolled", "nn.RNN"]
    assert all("× that time (middle half" in line for line in last[1:])


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "manual_bptt", "verify", *SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "comparisons agree." in done.stdout
    assert done.stderr == ""


def test_every_country_has_names() -> None:
    for country, names in surnames().items():
        assert len(names) >= 100, country
        assert all(name == name.lower() for name in names)
    assert len(COUNTRIES) == 8
