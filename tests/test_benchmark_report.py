"""The benchmarks' report, gate and ratio.

Would catch: a wrong number, a partial file or a vague error out of the report; a gate that lets a gradient pass that
is 0.1 % wrong; a ratio to nn.RNN that is not taken round by round; a second core where one thread is measured.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import manual_bptt
from benchmarks import bench_rnn, gate, report, uses
from benchmarks.cores import CAN_CHOOSE, allowed, on_cores
from benchmarks.implementations import IMPLEMENTATIONS, PEER, Entry, Functional, unrolled
from benchmarks.problem import Problem, make_problem
from benchmarks.results import BadInputError, parse
from benchmarks.sizes import SIZES, Size

PNG = b"\x89PNG\r\n\x1a\n"


def test_sizes_are_the_thirteen() -> None:
    assert [tuple(size) for size in SIZES] == [
        (10, 1, 10, 20),
        (20, 1, 57, 128),
        (25, 1, 65, 100),
        (28, 64, 28, 128),
        (100, 1, 32, 32),
        (100, 32, 64, 128),
        (500, 64, 6, 256),
        (1000, 1, 64, 128),
        (1000, 16, 32, 64),
        (100, 256, 64, 64),
        (50, 32, 128, 512),
        (100, 64, 128, 256),
        (100, 64, 256, 1024),
    ]
    assert all(SIZES.values())


# The gate


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(Size(T=7, B=3, D=4, H=5))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gate_lets_every_implementation_pass(name: str, problem: Problem) -> None:
    entry = IMPLEMENTATIONS[name]
    absent = entry.absent(Size(7, 3, 4, 5), "cpu", 1, name != "torch.compile of it")
    if absent:
        pytest.skip(absent)
    implementation = entry.make(problem)
    errors = gate.check(name, implementation, problem.dh, gate.truth(problem))
    assert errors.keys() == {"h", "h without graph", "dU", "dW", "db"}


@pytest.mark.parametrize("factor", [1.001, 0.999, float("nan")])
@pytest.mark.parametrize("letter", ["U", "W", "b"])
def test_gate_refuses_a_planted_bug(letter: str, factor: float, problem: Problem) -> None:
    implementation = Functional(unrolled, problem)
    getattr(implementation, letter).register_hook(lambda gradient: gradient * factor)
    with pytest.raises(AssertionError, match=rf"^planted: .* at most 1\.2e-05, got d{letter} [^,]*: nothing"):
        gate.check("planted", implementation, problem.dh, gate.truth(problem))


@pytest.mark.parametrize(("with_graph", "name"), [(True, "h"), (False, "h without graph")])
def test_gate_refuses_a_wrong_state(with_graph: bool, name: str, problem: Problem) -> None:
    def planted(*inputs: torch.Tensor) -> torch.Tensor:
        h = unrolled(*inputs)
        return h + 0.001 * h.detach() * (torch.is_grad_enabled() == with_graph)

    implementation = Functional(planted, problem)
    with pytest.raises(AssertionError, match=rf"got {name} [^ ]*: nothing"):
        gate.check("planted", implementation, problem.dh, gate.truth(problem))


def test_nothing_is_timed_behind_a_closed_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        IMPLEMENTATIONS, "planted", Entry(lambda p: Functional(lambda *inputs: unrolled(*inputs) * 1.001, p))
    )
    size = Size(T=7, B=3, D=4, H=5)
    with pytest.raises(AssertionError, match="nothing was timed"):
        bench_rnn.test_rnn(FakeBenchmark(), size, "cpu", 1, "forward", "planted")


# The alternating rounds


class FakeBenchmark:
    """pytest-benchmark's pedantic mode on a clock that the bodies move."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.enabled = True
        self.group: str | None = None
        self.extra_info: dict[str, object] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))
        self.clock = clock

    def pedantic(self, target: Callable[..., object], *, setup: Callable[[], Any], rounds: int) -> object:
        for _ in range(rounds):
            arguments, _ = setup()
            start = self.clock()
            target(*arguments)
            self.stats.stats.data.append(self.clock() - start)
        return None


def test_ratio_is_the_median_over_neighbouring_rounds(monkeypatch: pytest.MonkeyPatch, problem: Problem) -> None:
    now = 0.0
    order: list[str] = []
    # One pair to compile, one to warm up, then seven; the machine is slow in some of them.
    seconds = {
        PEER: iter([99.0, 1.0, 3.0, 6.0, 12.0, 24.0, 3.0, 6.0, 12.0]),
        "own": iter([99.0, 1.0, 2.0, 4.0, 8.0, 16.0, 6.0, 12.0, 24.0]),
    }

    def function(name: str, *inputs: torch.Tensor) -> torch.Tensor:
        nonlocal now
        order.append(name)
        now += next(seconds[name])
        return unrolled(*inputs)

    monkeypatch.setattr(bench_rnn, "timer", lambda: now)
    for name in seconds:
        monkeypatch.setitem(IMPLEMENTATIONS, name, Entry(partial(Functional, partial(function, name))))
    benchmark = FakeBenchmark(lambda: now)
    bench_rnn.time_beside_peer(benchmark, bench_rnn.forward, "own", problem)
    assert order == [PEER, "own"] * 9
    assert benchmark.extra_info == {
        "speed_vs_nn_rnn": 1.5,  # of the two medians it would be 0.75
        "speed_vs_nn_rnn_quartiles": [0.5, 1.5],
        "nn_rnn_median_seconds": 6.0,
        "calls": 1,
    }


def test_settings_are_put_back_after_a_failure() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with bench_rnn.settings(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before


@pytest.mark.skipif(len(allowed()) < 2 or not CAN_CHOOSE, reason="needs two cores, and a system that lets one choose")
def test_every_thread_has_as_many_cores_as_threads_compute() -> None:
    everywhere, waiting = os.sched_getaffinity(0), threading.Event()
    others = [threading.Thread(target=waiting.wait) for _ in range(2)]
    for other in others:
        other.start()
    threads = [0, *(other.native_id or 0 for other in others)]
    os.sched_setaffinity(threads[2], {max(everywhere)})  # has one of its own, which it gets back
    before = [os.sched_getaffinity(thread) for thread in threads]

    def fail() -> None:
        with bench_rnn.settings(1):
            assert [os.sched_getaffinity(thread) for thread in threads] == [{min(everywhere)}] * 3
            assert allowed() == [min(everywhere)]
            raise KeyError

    try:
        with pytest.raises(KeyError):
            fail()
        assert [os.sched_getaffinity(thread) for thread in threads] == before
    finally:
        waiting.set()
        for other in others:
            other.join()


def test_where_cores_may_not_be_chosen_all_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: int, cores: list[int]) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    before = allowed()
    with on_cores(1):
        assert allowed() == before


def test_every_other_use_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert uses.main(["--rounds", "1"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"| {use.name}" for use in uses.USES for _ in use.sizes]
    assert all(float(cell.rstrip(" |")) > 0 for row in rows for cell in row[2:])


@pytest.mark.parametrize("use", uses.USES, ids=lambda use: use.name)
def test_both_sides_of_another_use_compute_the_same(use: uses.Use, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        uses, "training_step", lambda module, forward, x: seen.append(module) or (lambda: forward(module, x))
    )
    steps, passes = uses.bodies(use, Size(3, 2, 4, 5))
    rtol = 4 * torch.finfo(use.dtype).eps ** 0.5 if use.dtype == torch.bfloat16 else None
    for theirs, own in (steps, passes):
        torch.testing.assert_close(own(), theirs(), rtol=rtol, atol=rtol)
    assert [type(each) for each in seen] in ([torch.nn.RNN, manual_bptt.RNN], [torch.nn.RNNCell, manual_bptt.RNNCell])


# The report


def entry(size: Size, implementation: str, task: str, threads: int, speed: float) -> dict[str, Any]:
    return {
        "name": "test_rnn",
        "extra_info": {
            **size._asdict(),
            "implementation": implementation,
            "task": task,
            "threads": threads,
            "device": "cpu",
            "device_name": "CPU",
            "torch": "2.13.0",
            "dtype": "float32",
            "speed_vs_nn_rnn": speed,
            "speed_vs_nn_rnn_quartiles": [0.9 * speed, 1.1 * speed],
            "worst_error_vs_float64": 4.2e-7,
            "product_rate": 2e6,
            "calls": 2,
            "kernel": "whole" if size.H < 1024 else "eager",
            "kernel_in_c": "built, with AVX2",
        },
        "stats": {"min": 0.00246912, "median": 0.0469134, "iqr": 0.000691356},  # of two calls
    }


@pytest.fixture
def run() -> dict[str, Any]:
    """A run at two sizes, of which the second was measured with one thread and without a forward pass."""
    small, large = Size(10, 1, 10, 20), Size(100, 64, 256, 1024)
    return {
        "machine_info": {
            "node": "secret-host",
            "system": "Linux",
            "machine": "x86_64",
            "python_version": "3.12.1",
            "cpu": {"brand_raw": "Some CPU", "count": 2},
        },
        "datetime": "2026-01-02T03:04:05.678901+00:00",
        "benchmarks": [
            entry(small, "manual_bptt.RNN", "forward", 1, 1.234),
            entry(small, "manual_bptt.RNN", "forward", 2, 2.345),
            entry(small, "manual_bptt.RNN", "training step", 1, 3.456),
            entry(small, "manual_bptt.RNN", "training step", 2, 0.567),
            entry(small, "unrolled autograd", "training step", 1, 0.255),
            entry(small, PEER, "forward", 1, 0.971),
            entry(small, PEER, "forward", 2, 1.028),
            entry(large, "manual_bptt.RNN", "training step", 1, 12.3),
            {"name": "somebody else's", "extra_info": {}, "stats": {}},
        ],
    }


@pytest.fixture
def results(tmp_path: Path, run: dict[str, Any]) -> Path:
    pytest.importorskip("matplotlib", reason="the report draws with matplotlib")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(run))
    return path


def test_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(results)]) == 0
    text = (results.parent / "report.md").read_text(encoding="utf-8")
    for line in [
        "- Machine: Linux, x86_64",
        "- CPU: Some CPU, 2 logical cores",
        "- Threads: 1, 2",
        "- Date: 2026-01-02 03:04 UTC",
        "- Python: 3.12.1",
        "- torch: 2.13.0",
        "- Kernel: whole, eager; the one in C is built, with AVX2",
        "| T, B, D, H | forward, 1 thread | forward, 2 threads | training step, 1 thread | training step, 2 threads |",
        "| 10, 1, 10, 20 | 1.23 | 2.35 | 3.46 | 0.57 |",
        "| 100, 64, 256, 1024 | – | – | 12.30 | – |",
        "| T, B, D, H | training step, 1 thread |",
        "| 10, 1, 10, 20 | 0.26 |",
        "| 10, 1, 10, 20 | 1.23 | 23.5 | 0.346 | 1.23 | 23.5 | 0.346 |",
        "| 100, 64, 256, 1024 | 1.23 | 23.5 | 0.346 | – | – | – |",
        "| T, B, D, H | 1 thread | 2 threads |",
        "| 10, 1, 10, 20 | 34% | 34% |",  # 10·20·(10 + 20) + 10·20·(10 + 40) = 16 000 in 23.5 ms, of 2 million a second
    ]:
        assert line in text.splitlines()
    assert "nn.RNN measured against itself in the same way: 0.97 to 1.03." in text
    assert "the worst was 4.2e-07" in text
    assert "secret-host" not in text
    assert (results.parent / "report.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert printed.startswith(text)
    assert printed.splitlines()[-2:] == [str(results.parent / name) for name in ("report.png", "report.md")]
    assert names_in(results.parent) == {"results.json", "report.md", "report.png"}


def test_report_into_another_folder(results: Path, tmp_path: Path) -> None:
    assert report.main([str(results), "--output", str(tmp_path / "new" / "folder")]) == 0
    assert names_in(tmp_path / "new" / "folder") == {"report.md", "report.png"}
    assert names_in(tmp_path) == {"results.json", "new"}


def test_milliseconds() -> None:
    times = [0.0, 1.234e-8, 1.234e-4, 0.9996e-3, 1.236e-3, 0.01236, 0.1236, 1.236]
    assert [report.milliseconds(t) for t in times] == [
        "0", "0.000012", "0.123", "1.000", "1.24", "12.4", "124", "1236",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "got: No such file or directory"),
        ("", "got something that is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[1, 2", "got something that is not JSON"),
        ("[]", "got JSON without benchmarks"),
        ("3", "got JSON without benchmarks"),
        ('{"benchmarks": 5}', "expected a list under benchmarks, got 5"),
        (
            '{"benchmarks": [{"extra_info": {}}, {"extra_info": 3}, 4]}',
            "got 3 benchmarks, none with speed_vs_nn_rnn in extra_info",
        ),
        (
            '{"datetime": "x", "benchmarks": [{"extra_info": {"speed_vs_nn_rnn": 1.0}}]}',
            "got JSON without extra_info.device_name",
        ),
    ],
)
def test_bad_file(content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert_refused([str(path)], f"benchmarks.report: {path}: expected ", message, capsys)
    assert names_in(tmp_path) <= {"results.json"}


def test_file_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert_refused([str(path)], f"benchmarks.report: {path}: ", "not JSON", capsys)


def test_folder_for_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused([str(tmp_path)], f"benchmarks.report: {tmp_path}: ", "got: Is a directory", capsys)


def test_file_for_a_folder(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(results), "--output", str(results)]
    assert_refused(arguments, f"benchmarks.report: {results}: expected a folder", "got: File exists", capsys)


def test_no_matplotlib(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert_refused([str(results)], "benchmarks.report: expected matplotlib", "matplotlib.axes", capsys)
    assert names_in(results.parent) == {"results.json"}


def test_nothing_to_draw(results: Path, run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run["benchmarks"] = run["benchmarks"][:2]
    results.write_text(json.dumps(run))
    assert_refused([str(results)], "benchmarks.report: expected a training step", "got none", capsys)
    assert names_in(results.parent) == {"results.json"}


def test_a_failure_leaves_the_old_files(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (results.parent / "report.md").write_text("old")

    def full_disk(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    assert_refused([str(results)], f"benchmarks.report: {results.parent}: ", "No space left", capsys)
    assert names_in(results.parent) == {"results.json", "report.md"}
    assert (results.parent / "report.md").read_text() == "old"


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("extra_info", "T", "ten", 'expected a number >= 0 under extra_info.T, got "ten"'),
        ("extra_info", "speed_vs_nn_rnn", 0, "expected a number > 0 under extra_info.speed_vs_nn_rnn, got 0"),
        ("extra_info", "speed_vs_nn_rnn_quartiles", [1.0], "without extra_info.speed_vs_nn_rnn_quartiles.1"),
        ("extra_info", "worst_error_vs_float64", float("nan"), "worst_error_vs_float64, got NaN"),
        ("extra_info", "product_rate", 0, "expected a number > 0 under extra_info.product_rate, got 0"),
        ("extra_info", "task", "lunch", "expected one of forward, backward, training step under extra_info.task, got "),
        ("stats", "min", True, "expected a number >= 0 under stats.min, got true"),
        ("stats", "median", -1.0, "expected a number >= 0 under stats.median, got -1.0"),
        ("stats", "iqr", None, "expected a number >= 0 under stats.iqr, got null"),
    ],
)
def test_bad_number(run: dict[str, Any], section: str, key: str, value: object, message: str) -> None:
    run["benchmarks"][0][section][key] = value
    with pytest.raises(BadInputError) as caught:
        parse(run)
    assert message in str(caught.value)


def test_unknown_machine(run: dict[str, Any]) -> None:
    del run["machine_info"]
    facts = parse(run).facts
    assert facts["CPU"] == "unknown, unknown logical cores"
    assert facts["torch"] == "2.13.0"


def assert_refused(arguments: list[str], start: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(start)
    assert message in printed.err
    assert printed.err.count("\n") == 1


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
