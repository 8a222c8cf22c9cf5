"""`bptt train`, `predict`, `sample`, and `flow` and `verify` on what was trained, as their user meets them.

Would catch: numbers that are lost or change when a training is killed, interrupted or resumed; a checkpoint that is
half written, taken although it is another's, or executed; a folder that is found to be unwritable only in the end; an
option that is taken and ignored; a model file that another command does not read; a message that does not say what
came.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manual_bptt import checkpoints, files, recurrence
from manual_bptt.cli import main, train
from manual_bptt.cli.model_file import read_model
from manual_bptt.cli.predict import _as_trained
from manual_bptt.cli.train import USUAL
from manual_bptt.processes import joined

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--epochs", "2", "--hidden", "8", "--layers", "1")


def run(*arguments: Any) -> int:
    return main(list(map(str, arguments)))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two classes, and a place to work in."""
    monkeypatch.chdir(tmp_path)
    syllables = ("ka", "to", "mi", "ra", "ne", "so")
    lines = [f"north\t{a}{b}sson" for a in syllables for b in syllables] + [
        f"south\t{a}{b}ini" for a in syllables for b in syllables
    ]
    Path("own.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_it_trains_judges_draws_and_writes(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "own.tsv", "--epochs", 12, "--hidden", 16, "--layers", 1, "--batch", 8, "--lr", 0.02) == 0
    printed = capsys.readouterr().out
    folder = Path("runs/own")
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt",
        "confusion.png",
        "history.json",
        "learning_curve.png",
        "model.pt",
    ]
    for name in ("confusion.png", "learning_curve.png"):
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert int.from_bytes(data[16:20], "big") <= 880
    assert re.search(
        r"data +\S*own.tsv\n +2 classes; \d+ texts to learn from, \d+ to judge epochs by, \d+ to test by", printed
    )
    epochs = r"^epoch +\d+/12  loss \d\.\d{4}, accuracy \d\.\d{4}; validation loss"
    assert len(re.findall(epochs, printed, re.MULTILINE)) == 12
    for who in (r"this model \(\d+ s of training\)", r"naive Bayes on n-grams \(\d+ s\)"):
        assert re.search(rf"^  {who} +1\.0000 +1\.0000$", printed, re.MULTILINE)  # endings tell these classes apart
    read = read_model(folder / "model.pt")
    assert read.classes == ("north", "south")
    assert read.results["accuracy"] == 1.0
    assert f"try it:  bptt predict {folder / 'model.pt'} TEXT…" in printed
    assert run("predict", folder / "model.pt", "rakasson", "rakaini", "--top", 1) == 0
    assert re.fullmatch(r"rakasson\tnorth \d\.\d{3}\nrakaini\tsouth \d\.\d{3}\n", capsys.readouterr().out)
    assert run("verify", folder / "model.pt", "--json", "report.json") == 0
    printed = capsys.readouterr().out
    assert "All agree." in printed
    assert "recurrence.weight_hh_l0_reverse" in printed
    assert json.loads(Path("report.json").read_text())["passed"] is True
    assert run("flow", folder / "model.pt", "--no-figures", "--batch", 5) == 0
    printed = capsys.readouterr().out
    assert "RNN(" in printed
    assert re.search(
        r"sequences  5 texts from .*own.tsv, of \d+ to \d+ steps\nloss       cross-entropy of the class", printed
    )


def test_a_model_of_text(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rhyme.txt").write_text("one two three four five once I caught a fish alive\n" * 60, encoding="utf-8")
    options = ("--text", "rhyme.txt", "--batch", 8, "--epochs", 60, "--hidden", 32, "--lr", 0.02, "--steps", 20)
    assert run("train", "text", *options) == 0
    printed = capsys.readouterr().out
    assert "characters of rhyme.txt" in printed.replace(str(own) + os.sep, "")
    assert re.search(r"validation: 0\.\d{4} nats a character, accuracy (0\.9|1\.0)", printed)
    assert not Path("runs/text/confusion.png").exists()
    assert run("sample", "runs/text/model.pt", "--start", "one two", "--length", 43, "--temperature", 0.1) == 0
    assert capsys.readouterr().out == "one two three four five once I caught a fish alive\n"
    assert run("verify", "runs/text/model.pt") == 0
    assert run("flow", "runs/text/model.pt", "--no-figures", "--steps", 20) == 0
    assert f"16 of T = 20 characters from {own / 'rhyme.txt'}" in capsys.readouterr().out
    Path("other.txt").write_text("one two three four five once I caught a fish\n" * 9, encoding="utf-8")
    options = ("--input", "other.txt", "--steps", 10, "--batch", 3, "--no-figures")
    assert run("flow", "runs/text/model.pt", *options) == 0
    assert "3 of T = 10 characters from other.txt" in capsys.readouterr().out
    assert run("predict", "runs/text/model.pt", "one") == 2
    assert (
        "expected a model with classes, got runs/text/model.pt, which writes text: bptt sample"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("task", ["names", "sentences"])
def test_the_tasks_of_the_source_documents_run(task: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", task, "--epochs", 1, "--hidden", 8, "--layers", 1) == 0
    printed = capsys.readouterr().out
    assert f"written: runs/{task}/model.pt" in printed
    assert USUAL[task]["tokens"] in printed
    assert run("verify", f"runs/{task}/model.pt") == 0
    assert run("flow", f"runs/{task}/model.pt", "--no-figures") == 0
    assert "16 texts from" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["hand", "nn.RNN"])
def test_the_engine_is_told_and_both_give_the_same(engine: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "own.tsv", *QUICK, "--engine", engine, "--dtype", "float64", "--output", engine) == 0
    printed = capsys.readouterr().out
    assert ("gradient  by hand" in printed) == (engine == "hand")
    losses = re.findall(r"validation loss (\d\.\d{4})", printed)
    run("train", "own.tsv", *QUICK, "--engine", "hand", "--dtype", "float64", "--output", "other")
    assert re.findall(r"validation loss (\d\.\d{4})", capsys.readouterr().out) == losses


def begun(folder: str, until: str, *options: str) -> subprocess.Popen[str]:
    """A training in a process of its own, that has printed something."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "manual_bptt", "train", "names", "--hidden", "24", "--layers", "1", *options]
    process = subprocess.Popen(
        [*command, "--output", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until in line:
            break
    return process


def numbers(printed: str) -> list[str]:
    """Everything that a training computes, of its epochs and its test."""
    return re.findall(r"(\d+/\d+  loss .*)  \d+\.\d s|of training\)( .*)", printed)  # type: ignore[return-value]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_is_cut_off_goes_on_to_the_same_numbers(
    number: signal.Signals, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--epochs", "6", "--truncation", "randomized(0.9)")
    process = begun("cut", "epoch 2/6", *options)
    time.sleep(0.1)  # somewhere in the third epoch
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    if number != signal.SIGKILL:
        assert re.fullmatch(
            r"bptt train: interrupted; saved at step \d+ of epoch \d. Go on with: bptt train --resume cut\n", error
        )
    assert not [path for path in Path("cut").iterdir() if path.name.startswith(".")] or number == signal.SIGKILL
    assert run("train", "--resume", "cut") == 0
    resumed = capsys.readouterr().out
    assert re.search(r"^resumed   after step \d+ of epoch [34]$", resumed, re.MULTILINE)
    assert run("train", "names", "--hidden", 24, "--layers", 1, *options, "--output", "whole") == 0
    whole = capsys.readouterr().out
    assert len(numbers(whole)) == 7
    assert numbers(resumed) == numbers(whole)[-len(numbers(resumed)) :]
    assert len(numbers(resumed)) >= 4
    one, two = (torch.load(Path(each, "model.pt"))["parameters"] for each in ("cut", "whole"))
    for name in one:
        assert torch.equal(one[name], two[name])


def test_two_processes_started_by_torchrun(own: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = [
        "-m",
        "manual_bptt",
        "train",
        "own.tsv",
        *QUICK,
        "--dropout",
        "0",
        "--device",
        "cpu",
        "--dtype",
        "float64",
    ]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed = []
    for command in ([*start, *options, "--output", "two"], [sys.executable, *options, "--output", "one"]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert ", 2 processes" in printed[0]
    assert printed[0].count("epoch 1/2") == 1  # one of them prints
    assert numbers(printed[0]) == numbers(printed[1])
    assert run("predict", "two/model.pt", "kato") == 0


def test_a_full_disk_loses_nothing(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    real = files.write_atomically

    def full(path: Path, data: bytes) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        real(path, data)

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    assert run("train", "own.tsv", *QUICK, "--epochs", 4, "--output", "full") == 2
    error = capsys.readouterr().err
    assert "No space left on device while writing to full; what was there is as it was. Go on with: bptt train" in error
    monkeypatch.undo()
    monkeypatch.chdir(own)
    assert run("train", "--resume", "full") == 0
    resumed = capsys.readouterr().out
    assert "resumed   after step 0 of epoch 2" in resumed
    run("train", "own.tsv", *QUICK, "--epochs", 4, "--output", "whole")
    assert numbers(resumed) == numbers(capsys.readouterr().out)[-4:]


def test_an_unwritable_place_shows_before_anything_is_computed(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").write_text("a file")
    monkeypatch.setattr("manual_bptt.training.Training.run", lambda *_: pytest.fail("it was computed"))
    assert run("train", "own.tsv", *QUICK, "--output", "taken") == 2
    assert "File exists" in capsys.readouterr().err
    monkeypatch.setattr(checkpoints, "write_atomically", lambda path, data: real_error())
    assert run("train", "own.tsv", *QUICK, "--output", "fresh") == 2
    assert "Read-only file system" in capsys.readouterr().err


def real_error() -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_loss_that_is_no_number_says_where_and_what_may_help(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--nonlinearity", "identity", "--lr", 1e30, "--optimizer", "SGD", "--clip", 1e30)
    assert run("train", "own.tsv", *QUICK, *options, "--output", "wild") == 1
    error = capsys.readouterr().err
    assert re.match(
        r"bptt train: the loss is \S+ and the norm of the gradient \S+ at step \d+ of epoch \d: clipping "
        r"\(--clip, now 1e\+30\) or a smaller --lr \(now 1e\+30\) may help, in a new --output; what "
        r"was learned up to epoch \d is in wild\n$",
        error,
    )
    assert Path("wild/checkpoint.pt").exists()


def build_parser() -> ArgumentParser:
    parser = ArgumentParser()
    train.add_parser(parser.add_subparsers())
    return parser


def foreign(path: Path) -> None:
    torch.save({"format": "manual-bptt checkpoint", "version": 99}, path)


class Trap:
    """What a file of pickles would execute."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:2000]),
            "got a file that is cut off, damaged or something else",
        ),
        (lambda path: path.write_bytes(b""), "got a file that is cut off, damaged or something else"),
        (lambda path: path.write_text("hello"), "got a file that is cut off, damaged or something else"),
        (lambda path: torch.save({"a": 1}, path), "got a file of something else"),
        (lambda path: torch.save([1], path), "got a file of something else"),
        (lambda path: torch.save(Trap(), path), "got a file that is cut off, damaged or something else"),
        (foreign, "to be of version 2, got version 99"),
        (
            lambda path: path.write_bytes((path.parent / "model.pt").read_bytes()),
            "to be a manual-bptt checkpoint, got a man",
        ),
        (lambda path: path.unlink(), "to hold a training, got runs/own without a checkpoint.pt"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    spoil: Callable[[Path], Any], message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    spoil(Path("runs/own/checkpoint.pt"))
    capsys.readouterr()
    assert run("train", "--resume", "runs/own") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("executed").exists()


@pytest.mark.parametrize("part", ["shape", "plan", "model", "optimizer", "scheduler", "progress", "random"])
def test_a_checkpoint_that_does_not_fit_together_is_refused(
    part: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    path = Path("runs/own/checkpoint.pt")
    content = torch.load(path)
    for value in ({}, "x"):
        torch.save({**content, "training": {**content["training"], part: value}}, path)
        capsys.readouterr()
        if part in ("shape", "plan", "random"):  # nothing is read of the first two, and at an epoch's end of the third
            assert run("train", "--resume", "runs/own") == 0
            continue
        assert run("train", "--resume", "runs/own") == 2
        assert "expected a checkpoint that fits together, got one that does not" in capsys.readouterr().err
    for broken in ({"chosen": {}}, {"chosen": 3}, {"training": 3}):
        torch.save({**content, **broken}, path)
        assert run("train", "--resume", "runs/own") == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_only_the_first_process_writes_and_prints(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with joined("cpu") as processes:
        options = build_parser().parse_args(["train", "own.tsv", *QUICK])
        assert train._train(options, replace(processes, rank=1)) == 0
    assert capsys.readouterr() == ("", "")
    assert not Path("runs").exists()


def test_a_second_ctrl_c_and_one_while_it_reports(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("manual_bptt.cli.train._report", twice)
    assert run("train", "own.tsv", *QUICK) == 130
    told = "bptt train: interrupted; saved at the end of epoch 2. Go on with: bptt train --resume runs/own\n"
    assert capsys.readouterr().err == told
    monkeypatch.undo()
    monkeypatch.chdir(own)
    assert run("train", "--resume", "runs/own") == 0
    assert "resumed   after the last epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "call", ["StepLR(step_size=0)", "OneCycleLR(max_lr=1, total_steps=1)", "CyclicLR(0.1, 0.2, step_size_up=0)"]
)
def test_a_scheduler_that_breaks_later_is_refused_at_once(
    call: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.tsv", "--epochs", 4, "--scheduler", call) == 2
    assert "expected a scheduler" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_accents_are_read_as_they_were_trained_and_names_in_lower_case(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    capsys.readouterr()
    printed = []
    for text in ("ka\u0301to", "k\u00e1to"):
        assert run("predict", "runs/own/model.pt", "--top", 2, text) == 0
        printed.append(capsys.readouterr().out.partition("\t")[2])
    assert printed[0] == printed[1]
    assert _as_trained("names", "NOVÁK") == "novák"
    assert _as_trained("sentences", "Eine Frage") == "Eine Frage"


def test_names_with_markup_are_shown_as_they_are(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.tsv").rename("a[red]b.tsv")
    assert run("train", "a[red]b.tsv", *QUICK, "--output", "x[/red]y") == 0
    printed = capsys.readouterr().out
    assert "a[red]b.tsv" in printed
    assert "x[/red]y/model.pt" in printed
    assert run("verify", "x[/red]y/model.pt") == 0


def test_data_that_has_changed_is_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    before = Path("own.tsv").read_text(encoding="utf-8")
    for after in (f"{before}south\tanother\n", before.replace("north", "nord"), before.replace("kakasson", "kakassen")):
        Path("own.tsv").write_text(after, encoding="utf-8")
        assert run("train", "--resume", "runs/own") == 2
        assert "expected the data that the training began with, got other texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a TASK, names, sentences, text or a file, or --resume FOLDER, got neither"),
        (("absent.tsv",), "expected names, sentences, text, a file or a folder, got "),
        (("own.tsv", "--vectors", "v.txt"), "--vectors needs --tokens words, got tokens characters"),
        (("own.tsv", "--text", "own.tsv"), "--text is for the task text, got it with own.tsv"),
        (("own.tsv", "--steps", 3), "--steps is for the task text, got it with own.tsv"),
        (("own.tsv", "--unknown", 0.1), "--unknown is for words, got tokens characters"),
        (
            ("text", "--directions", 2),
            "--directions 2 is for labelled texts, got it with text: what follows would be read",
        ),
        (("text", "--tokens", "words"), "--tokens words is for labelled texts, got it with text"),
        (("text", "--tokens", "subwords"), "--tokens subwords is for labelled texts, got it with text"),
        (("text", "--loss", "last"), "--loss last is for labelled texts, got it with text"),
        (("sentences", "--embedding", 0), "--embedding 0 is for characters and words, got tokens subwords"),
        (("sentences", "--vectors", "v.txt"), "--vectors needs --tokens words, got tokens subwords"),
        (("text", "--balance", 0.5), "--balance is for labelled texts, got it with text"),
        (("text", "--text", "own.tsv", "--batch", 500), "expected 10000 characters or more for 500 streams, got "),
        (
            ("own.tsv", "--truncation", "chunked(3)", "--engine", "nn.RNN"),
            "--truncation is for the engine hand, got nn.RNN",
        ),
        (
            ("own.tsv", "--truncation", "chunked(x)"),
            "expected a truncation as a call, such as chunked(…), got 'chunked(x)'",
        ),
        (("own.tsv", "--scheduler", "Nope()"), "expected a scheduler to be one of "),
        (("own.tsv", "--nonlinearity", "sigmoid", "--engine", "nn.RNN"), "sigmoid"),
        (
            ("own.tsv", "--tokens", "words", "--vectors", "absent.txt"),
            "absent.txt to be of use, got: No such file or directory",
        ),
        (("--resume", "nowhere"), "expected --resume FOLDER to hold a training, got nowhere without a checkpoint.pt"),
        (
            ("--resume", "done", "--epochs", 3),
            "expected nothing beside --resume but --device and --threads, got --epochs",
        ),
        (
            ("own.tsv", "--output", "done"),
            "expected a new folder, got done, which holds a training: --resume done, or --output",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: tuple[Any, ...], message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.tsv", *QUICK, "--output", "done") == 0
    capsys.readouterr()
    assert run("train", *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("bptt train: ")
    assert printed.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "names", "--dropout", 2), "argument --dropout: expected a number from 0 to 1, got '2'"),
        (("train", "names", "--clip", 0), "argument --clip: expected a positive number, got '0'"),
        (("train", "names", "--epochs", 0), "argument --epochs: expected a whole number of at least 1, got '0'"),
        (("train", "names", "--directions", 3), "argument --directions: expected a whole number from 1 to 2, got '3'"),
        (("sample", "x.pt", "--temperature", 0), "argument --temperature: expected a positive number, got '0'"),
    ],
)
def test_bad_values_are_refused(arguments: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_word_vectors_to_begin_with(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("v.txt").write_text("2 3\nkatosson 1 2 3\nkatoini -1 0 1\n", encoding="utf-8")
    assert run("train", "own.tsv", *QUICK, "--tokens", "words", "--vectors", "v.txt", "--output", "vectors") == 0
    printed = capsys.readouterr().out
    assert re.search(r"vectors   [12] of \d+ entries have one in .*v.txt", printed)
    assert read_model(Path("vectors/model.pt")).model.shape.embedding == 3
    capsys.readouterr()
    assert run("train", "own.tsv", "--tokens", "words", "--vectors", "v.txt", "--embedding", 4, "--output", "no") == 2
    assert "expected --embedding 3, as long as the vectors in" in capsys.readouterr().err
    seen = []
    monkeypatch.setattr(
        "manual_bptt.training.Training.run",
        lambda training, *_: seen.append(training.model.embedding.weight.clone()) or False,
    )
    run("train", "own.tsv", *QUICK, "--tokens", "words", "--vectors", "v.txt", "--output", "begun")
    rows = {tuple(row) for row in seen[0].tolist()}
    assert rows & {(1.0, 2.0, 3.0), (-1.0, 0.0, 1.0)}
    assert (0.0, 0.0, 0.0) in rows
    monkeypatch.undo()
    monkeypatch.chdir(own)
    Path("v.txt").unlink()
    assert run("train", "--resume", "vectors") == 0


def test_the_standard_input_is_predicted_line_by_line(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", iter(["kato\n", "\n", "rami\n"]))
    assert run("predict", "runs/own/model.pt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["kato", "rami"]
    assert run("predict", "runs/own/model.pt", "") == 2
    assert "expected a text, got an empty one" in capsys.readouterr().err
    assert run("sample", "runs/own/model.pt") == 2
    assert (
        "expected a model that writes text, got runs/own/model.pt, which has classes: bptt predict"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", ["predict", "verify", "sample"])
def test_a_damaged_model_is_refused(command: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    content = torch.load("runs/own/model.pt")
    for change in (
        {"classes": ["north"]},
        {"shape": {}},
        {"parameters": {}},
        {"vocabulary": {"kind": "characters", "entries": []}},
    ):
        torch.save({**content, **change}, "bad.pt")
        capsys.readouterr()
        assert run(command, "bad.pt") == 2
        error = capsys.readouterr().err
        assert "expected bad.pt to be a whole model, got" in error
        assert error.count("\n") == 1


def test_verify_sees_a_wrong_gradient_of_a_trained_model(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    assert run("verify", "runs/own/model.pt") == 0
    right = recurrence.recurrent_weight_gradient
    monkeypatch.setattr(recurrence, "recurrent_weight_gradient", lambda *arguments: 1.001 * right(*arguments))
    capsys.readouterr()
    assert run("verify", "runs/own/model.pt") == 1
    printed = capsys.readouterr().out
    assert re.search(r"weight_hh_l0 +1e-03 OFF +1e-03 OFF +1e-03 OFF", printed)
    assert "NOT all agree." in printed


def test_verify_and_flow_refuse_what_a_model_has_of_its_own(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "own.tsv", *QUICK) == 0
    capsys.readouterr()
    assert run("verify", "runs/own/model.pt", "--hidden", 3) == 2
    assert "expected nothing about names or networks beside MODEL, got --hidden" in capsys.readouterr().err
    assert run("flow", "runs/own/model.pt", "--loss", "last") == 2
    assert "expected no --loss beside a model of bptt train, which has its own, got one" in capsys.readouterr().err
    Path("own.tsv").unlink()
    assert run("flow", "runs/own/model.pt", "--no-figures") == 2
    assert "on which the model was trained, to be there; flow takes others by --input" in capsys.readouterr().err
    Path("other.tsv").write_text("east\tkato\nwest\trami\n")
    assert run("flow", "runs/own/model.pt", "--no-figures", "--input", "other.tsv") == 2
    assert "expected labels that the model knows in other.tsv, got east, west" in capsys.readouterr().err
