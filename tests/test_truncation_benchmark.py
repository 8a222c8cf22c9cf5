"""`python -m benchmarks.truncations` runs, and its table is what docs/through_time.md shows.

Would catch: a benchmark that has rotted, a truncation of it that trains as another, and a table on the page that was
made by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import tasks, truncations
from manual_bptt import chunked, full

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "through_time.md").read_text(encoding="utf-8")


def test_every_task_is_trained_by_every_truncation(capsys: pytest.CaptureFixture[str]) -> None:
    assert truncations.main(["--seeds", "1", "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    for row in truncations.TASKS:
        assert f"{row.title}, 2 training steps" in printed
    rows = re.findall(r"^  (\S+) +(\d+\.\d{4})  \(", printed, re.MULTILINE)
    names = list(truncations.truncations())
    assert [name for name, _ in rows] == len(truncations.TASKS) * names
    assert all(0 < float(loss) < 6 for _, loss in rows)


def test_what_is_trained_is_truncated() -> None:
    task = tasks.copying(16)
    losses = [truncations.trained(task, 32, truncation, 0, 60) for truncation in (full(), full(), chunked(1))]
    assert losses[0] == losses[1] != losses[2]


def test_the_page_shows_the_benchmark_s_tasks_and_truncations() -> None:
    for row in truncations.TASKS:
        assert row.title in PAGE
        assert str(row.steps) in PAGE
    for name in truncations.truncations():
        assert f"| {name} |" in PAGE
    assert len(re.findall(r"\| \d\.\d{3} \(\d\.\d{3}–\d\.\d{3}\)", PAGE)) == 3 * len(truncations.truncations())


@pytest.mark.parametrize("option", ["--seeds", "--steps"])
def test_bad_options_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        truncations.main([option, "0"])
    assert caught.value.code == 2
    assert f"expected {option} of at least 1, got 0" in capsys.readouterr().err
