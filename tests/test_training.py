"""The training loop: the same numbers by either gradient, after an interruption, and in two processes.

Would catch: a hand-written gradient that trains another model than autograd's, a batch that is left out or drawn
otherwise after a resumption, a state that a checkpoint forgets, gradients of processes that are averaged wrongly where
their shares differ, a step that is made on a gradient which is no number.
"""

from __future__ import annotations

import copy
import io
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from manual_bptt import training as loop
from manual_bptt.calls import scheduler_of, truncation_of
from manual_bptt.datasets import Dataset, names, split
from manual_bptt.naive_bayes import NaiveBayes
from manual_bptt.processes import Processes
from manual_bptt.text_model import Shape, TextModel
from manual_bptt.training import LabelledTexts, LongText, NonFiniteError, Plan, Training, judged, predict, sample
from manual_bptt.vocabulary import UNKNOWN, Vocabulary, read_vectors

ALONE = Processes(0, 1, torch.device("cpu"))
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 12


def few() -> Dataset:
    """Some names of three languages."""
    dataset = names()
    chosen = [
        place for place, label in enumerate(dataset.labels) if dataset.classes[label] in ("Czech", "Slovene", "Uzbek")
    ]
    return dataset.subset(chosen[::3])


def words() -> Dataset:
    texts = [
        f"{a} {b} {c}" for a in ("red", "blue", "grün") for b in ("house", "tree") for c in ("runs", "sleeps", "läuft")
    ]
    return Dataset(tuple(texts), tuple(int("grün" in text) for text in texts), ("other", "green"), "made here")


def labelled(dataset: Dataset, kind: str = "characters") -> LabelledTexts:
    """Every fifth text to judge by, the others to learn from."""
    training = dataset.subset(place for place in range(len(dataset)) if place % 5)
    return LabelledTexts(training, dataset.subset(range(0, len(dataset), 5)), Vocabulary.of(kind, training.texts))


def made(what: str, plan: Plan | None = None, **shape: Any) -> Training:
    lessons: Any
    if what == "text":
        lessons = LongText(TEXT, Vocabulary.of("characters", [TEXT]))
    else:
        lessons = labelled(few()) if what == "names" else labelled(words(), what)
        shape = {"bidirectional": True, "dropout": 0.2, "parts": lessons.vocabulary.parts, **shape}
    has_words = what not in ("names", "text")
    plan = plan and replace(plan, batch=3 if has_words else plan.batch)
    usual = Plan(epochs=2, batch=3 if has_words else 16, steps=10, lr=1e-2, unknown=0.3 if has_words else 0.0)
    return Training(Shape(len(lessons.vocabulary), lessons.outputs, hidden=12, **shape), plan or usual, lessons, ALONE)


KINDS = [
    ("names", {}),
    ("names", {"layers": 2, "nonlinearity": "relu"}),
    ("names", {"loss": "every"}),
    ("words", {"embedding": 6}),
    ("words", {"embedding": 6, "loss": "every", "bidirectional": False}),
    ("subwords", {"embedding": 6, "loss": "every", "nonlinearity": "relu"}),
    ("text", {}),
    ("text", {"layers": 2}),
]


@pytest.mark.parametrize(("what", "shape"), KINDS)
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_either_gradient_trains_the_same_model(what: str, shape: dict[str, Any], optimizer: str) -> None:
    plan = Plan(epochs=3, batch=16, steps=10, lr=1e-2, optimizer=optimizer, balance=0.5 if what == "names" else 0.0)
    curves = []
    for engine in ("hand", "nn.RNN"):
        training = made(what, plan, engine=engine, dtype="float64", **shape)
        assert training.run()
        curves.append((training.progress.losses, training.progress.history[-1].validation.loss))
    assert len(curves[0][0]) > 5
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-10)
    assert curves[0][1] == pytest.approx(curves[1][1], rel=1e-10)
    assert curves[0][0][-1] != curves[0][0][0]


@pytest.mark.parametrize(
    ("what", "shape"), [("names", {}), ("words", {}), ("subwords", {"embedding": 6, "loss": "every"}), ("text", {})]
)
def test_it_learns(what: str, shape: dict[str, Any]) -> None:
    plan = Plan(epochs=30, batch=16, steps=10, lr=1e-2)
    training = made(what, plan, dropout=0.0, **shape)
    training.run()
    history = training.progress.history
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].accuracy > 0.8
    assert history[0].lr == 1e-2
    assert history[-1].lr < 1e-3  # the cosine


@pytest.mark.parametrize("what", ["names", "words", "text"])
@pytest.mark.parametrize("truncation", [None, "chunked(4)", "randomized(0.8)"])
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 7])
def test_it_goes_on_to_the_same_numbers(what: str, truncation: str | None, stop: int) -> None:
    plan = Plan(epochs=3, batch=16, steps=10, lr=1e-2, truncation=truncation, scheduler="ReduceLROnPlateau(patience=0)")
    whole = made(what, plan)
    assert whole.run()
    begun = made(what, plan)
    if stop:
        steps = iter(range(1, 10**6))
        assert not begun.run(after_step=lambda batch, batches: next(steps) >= stop)
    kept = io.BytesIO()
    torch.save(begun.state(), kept)
    kept.seek(0)
    torch.manual_seed(999)
    other = made(what, plan)
    other.restore(torch.load(kept, weights_only=True))
    assert other.run()
    assert other.progress.losses == whole.progress.losses
    for one, two in zip(other.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert [epoch.validation.loss for epoch in other.progress.history] == [
        epoch.validation.loss for epoch in whole.progress.history
    ]


@pytest.mark.parametrize(("what", "shape"), KINDS)
def test_the_gradients_agree_all_along_a_training(what: str, shape: dict[str, Any]) -> None:
    """Rounding is amplified by training itself, so each step is compared on the same parameters: those by hand."""
    training = made(what, Plan(epochs=4, batch=16, steps=10, lr=5e-2), dtype="float64", **shape)
    twin = TextModel(replace(training.model.shape, engine="nn.RNN"))
    compared = 0
    plan, lessons = training.plan, training.lessons
    batches: Any = lessons.batches(plan, torch.Generator().manual_seed(0))

    def compare(batch: int, of: int) -> bool:
        nonlocal compared
        twin.load_state_dict(training.model.state_dict())
        found = []
        for model in (training.model, twin):
            torch.manual_seed(batch)  # the same dropout
            model.train()
            loss = lessons.step(model, batches[(batch - 1) % len(batches)], plan, ALONE, None)[0]
            found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
        for one, two in zip(*found, strict=True):
            assert (one - two).norm() <= 1e-11 * two.norm() + 1e-14
        compared += 1
        return False

    training.run(after_step=compare)
    assert compared >= 12


def test_clipping_bounds_what_a_step_does() -> None:
    moved = []
    for clip in (None, 1e-3):
        training = made("names", Plan(epochs=1, batch=16, optimizer="SGD", lr=1.0, clip=clip), dropout=0.0)
        before = copy.deepcopy(list(training.model.parameters()))
        training.run(after_step=lambda batch, batches: True)
        squares = [(one - two).square().sum() for one, two in zip(training.model.parameters(), before, strict=True)]
        moved.append(torch.stack(squares).sum().sqrt().item())
    assert moved[1] == pytest.approx(1e-3, rel=1e-4)
    assert moved[0] > 0.01


def test_dropout_is_on_what_is_read_and_on_the_last_state(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    right = torch.nn.functional.dropout
    monkeypatch.setattr(
        torch.nn.functional, "dropout", lambda x, p, on: seen.append((tuple(x.shape), p, on)) or right(x, p, on)
    )
    model = TextModel(Shape(5, 3, 4, 6, bidirectional=True, dropout=0.3))
    model([torch.tensor([1, 2, 3]), torch.tensor([2])])
    assert seen == [((4, 4), 0.3, True), ((2, 12), 0.3, True)]
    model.eval()
    model([torch.tensor([1, 2, 3])])
    assert seen[2:] == [((3, 4), 0.3, False), ((1, 12), 0.3, False)]


def test_every_step_is_asked_and_the_answers_are_averaged() -> None:
    """By hand: the loss of a text is the mean over its own steps, and what comes after its end counts nowhere."""
    torch.manual_seed(0)
    for engine in ("hand", "nn.RNN"):
        model = TextModel(Shape(9, 3, 4, 5, loss="every", dtype="float64", engine=engine)).eval()
        texts = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8]), torch.tensor([2])]
        labels = torch.tensor([0, 2, 1])
        o, _ = model(texts)
        lengths = model.lengths(texts)
        assert lengths is not None
        assert lengths.tolist() == [3, 5, 1]
        expected, answers = torch.zeros(()), []
        for text, label in zip(texts, labels, strict=True):
            alone, _ = model([text])
            logs = alone[:, 0].log_softmax(1)
            expected = expected - logs[:, label].mean()
            answers.append(logs.mean(0))
        assert model.loss(o, labels, lengths).item() == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(model.answers(o, lengths), torch.stack(answers), rtol=1e-12, atol=1e-14)
        o = o.detach().requires_grad_()
        [do] = torch.autograd.grad(model.loss(o, labels, lengths), o)
        ended = torch.arange(5).unsqueeze(1) >= lengths
        assert not do[ended].any()
        assert (do[~ended] != 0).all()


def test_a_token_of_several_parts_is_read_as_the_mean_of_their_vectors() -> None:
    model = TextModel(Shape(6, 2, 4, 3, parts=3, dtype="float64")).eval()
    assert model.embedding is not None
    v = model.embedding.weight
    read = model._read(torch.tensor([[[1, 2, 0], [5, 0, 0]], [[0, 0, 0], [3, 3, 4]]]))
    expected = torch.stack([(v[1] + v[2]) / 2, v[5], 0 * v[0], (2 * v[3] + v[4]) / 3])
    torch.testing.assert_close(read.flatten(0, 1), expected, rtol=1e-14, atol=0)


def test_a_long_text_is_judged_in_pieces_as_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    training = made("text", dtype="float64")
    whole = training.lessons.judge(training.model, ALONE.device)
    monkeypatch.setattr(loop, "JUDGED", 7)
    pieces = training.lessons.judge(training.model, ALONE.device)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-12)
    assert pieces.accuracy == whole.accuracy


def test_an_epoch_sees_every_text_once_and_texts_of_a_length_together() -> None:
    lessons = labelled(few())
    batches = lessons.batches(Plan(batch=16), torch.Generator().manual_seed(0))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lessons._texts)))
    spread = [
        max(map(len, texts)) - min(map(len, texts)) for texts in ([lessons._texts[p] for p in b] for b in batches)
    ]
    assert sum(spread) / len(spread) < 3
    again = lessons.batches(Plan(batch=16), torch.Generator().manual_seed(1))
    assert again != batches


def test_balance_draws_small_classes_more_often() -> None:
    training = Dataset(
        tuple(f"{'a' * n}" for n in range(1, 101)), tuple(int(n > 90) for n in range(1, 101)), ("a", "b"), ""
    )
    lessons = LabelledTexts(training, training, Vocabulary.of("characters", training.texts))
    shares = []
    for balance in (0.0, 0.5, 1.0):
        batches = lessons.batches(Plan(batch=10, balance=balance), torch.Generator().manual_seed(0))
        drawn = lessons._labels[[place for batch in batches for place in batch]]
        shares.append(drawn.double().mean().item())
    assert shares[0] == 0.1
    assert shares[1] == pytest.approx(0.25, abs=0.12)
    assert shares[2] == pytest.approx(0.5, abs=0.12)


def test_the_pieces_of_a_long_text_are_the_text() -> None:
    training = made("text")
    lessons = training.lessons
    assert isinstance(lessons, LongText)
    plan = training.plan
    pieces = lessons.batches(plan, torch.Generator())
    assert pieces[0][0] == 0
    assert all(one[1] == two[0] for one, two in pairwise(pieces))
    seen = []

    class Spy(TextModel):
        def forward(self, tokens: Any, hx: Any = None) -> Any:
            seen.append((tokens, hx))
            return super().forward(tokens, hx)

    spy = Spy(training.model.shape)
    carried = None
    for piece in pieces[:3]:
        _, _, count, carried = lessons.step(spy, piece, plan, ALONE, carried)
        assert count == (piece[1] - piece[0]) * plan.batch
        assert carried is not None
        assert not carried.requires_grad
    first_stream = torch.cat([tokens[:, 0] for tokens, _ in seen])
    assert lessons.vocabulary.decode(first_stream.tolist()) == TEXT[: len(first_stream)]
    assert seen[0][1] is None
    assert seen[1][1] is not None


def test_a_loss_that_is_no_number_stops_before_the_step() -> None:
    training = made("names", Plan(epochs=2, batch=16, lr=1e-2, clip=None), nonlinearity="identity")
    with torch.no_grad():
        training.model.head.weight[0, 0] = math.inf
    before = copy.deepcopy(training.model.state_dict())
    with pytest.raises(NonFiniteError) as caught:
        training.run()
    told = r"the loss is (nan|inf) and the norm of the gradient nan at step 1 of epoch 1: clipping \(--clip, now none\)"
    assert re.match(told, str(caught.value))
    for name, value in training.model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_data_that_has_changed_is_refused() -> None:
    state = made("names").state()
    lessons = labelled(words(), "words")
    other = Training(Shape(len(lessons.vocabulary), lessons.outputs, 4, 12), Plan(), lessons, ALONE)
    with pytest.raises(ValueError, match="expected the data that the training began with, got other texts"):
        other.restore(state)


def test_truncation_needs_the_gradient_by_hand() -> None:
    with pytest.raises(ValueError, match=r"expected no truncation with engine 'nn.RNN', got chunked\(4\)"):
        made("names", Plan(truncation="chunked(4)"), engine="nn.RNN")


SCRIPT = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
from test_training import Plan, Shape, Training, few, labelled, LongText, TEXT, Vocabulary
from manual_bptt.processes import joined

with joined("cpu") as processes:
    for what in ("names", "text"):
        lessons = labelled(few()) if what == "names" else LongText(TEXT, Vocabulary.of("characters", [TEXT]))
        shape = Shape(len(lessons.vocabulary), lessons.outputs, hidden=12, dtype="float64")
        training = Training(shape, Plan(epochs=2, batch={batch}, steps=10, lr=1e-2), lessons, processes)
        training.run()
        if processes.leads:
            torch.save([training.progress.losses, training.model.state_dict(), training.progress.history[-1].accuracy],
                       {folder!r} + "/" + what + ".pt")
"""


@pytest.mark.parametrize("batch", [16, 7])
def test_two_processes_take_the_steps_of_one(batch: int, tmp_path: Path) -> None:
    """A batch of an odd number has a share of different sizes for each; the last batch of an epoch may have none."""
    root = Path(__file__).resolve().parent.parent
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(root / "tests"), root=str(root), batch=batch, folder=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for what in ("names", "text"):
        lessons: Any = labelled(few()) if what == "names" else LongText(TEXT, Vocabulary.of("characters", [TEXT]))
        shape = Shape(len(lessons.vocabulary), lessons.outputs, hidden=12, dtype="float64")
        training = Training(shape, Plan(epochs=2, batch=batch, steps=10, lr=1e-2), lessons, ALONE)
        training.run()
        losses, parameters, accuracy = torch.load(tmp_path / f"{what}.pt")
        assert losses == pytest.approx(training.progress.losses, rel=1e-10)
        for name, value in training.model.state_dict().items():
            torch.testing.assert_close(parameters[name], value, rtol=1e-8, atol=1e-10)
        assert accuracy == training.progress.history[-1].accuracy


def test_scores() -> None:
    dataset = Dataset(("aa", "ab", "ba", "bb", "bc"), (0, 0, 1, 1, 1), ("a", "b"), "")
    vocabulary = Vocabulary.of("characters", dataset.texts)
    model = TextModel(Shape(len(vocabulary), 2, hidden=3, dtype="float64"))
    scores = judged(model, dataset, vocabulary, torch.device("cpu"), batch=2)
    probabilities = torch.stack([predict(model, vocabulary, text) for text in dataset.texts])
    labels = torch.tensor(dataset.labels)
    assert scores.loss == pytest.approx(-probabilities[torch.arange(5), labels].log().mean().item())
    right = probabilities.argmax(1) == labels
    assert scores.accuracy == pytest.approx(right.double().mean().item())
    assert scores.macro == pytest.approx((right[:2].double().mean().item() + right[2:].double().mean().item()) / 2)
    assert scores.confusion is not None
    assert scores.confusion.sum(1).tolist() == [2, 3]
    assert scores.confusion.diagonal().sum() == right.sum()
    with pytest.raises(ValueError, match="expected a text, got an empty one"):
        predict(model, vocabulary, "")


def test_a_model_of_text_writes_what_it_has_learned() -> None:
    training = made("text", Plan(epochs=40, batch=8, steps=20, lr=1e-2), dropout=0.0)
    training.run()
    vocabulary = training.lessons.vocabulary
    drawn = [
        sample(training.model, vocabulary, 60, "the qu", 0.1, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 60
    assert drawn[0].startswith("ick")
    assert "\ufffd" not in drawn[2]


def test_naive_bayes_by_hand() -> None:
    bayes = NaiveBayes(Dataset(("aa", "ab", "bb"), (0, 0, 1), ("a", "b"), ""))
    assert [bayes.predict(text) for text in ("aa", "bb", "b")] == [0, 1, 1]
    training, _, test = split(few(), 0) if len(few().classes) == 3 else split(names(), 0)
    bayes = NaiveBayes(training)
    right = [bayes.predict(text) == label for text, label in zip(test.texts, test.labels, strict=True)]
    assert sum(right) / len(right) > 0.7


def test_unknown_words_are_read_by_their_endings() -> None:
    vocabulary = Vocabulary.of("words", ["Die Rechnung ist da!", "Eine Zeitung."])
    assert len(vocabulary) == len(vocabulary.entries) + 1
    [known], [unknown] = vocabulary.encode("rechnung"), vocabulary.encode("Hoffnung")
    assert vocabulary.entries[known - 1] == "rechnung"
    assert vocabulary.entries[unknown - 1] == "~ung"
    assert vocabulary.unknown("rechnung") == [unknown]
    assert vocabulary.encode("xyz") == [UNKNOWN]
    letters = Vocabulary.of("characters", ["abc"])
    assert letters.encode("cabx") == [3, 1, 2, UNKNOWN]
    assert letters.decode([3, 1, UNKNOWN]) == "ca\ufffd"


def test_subwords_are_a_word_and_its_pieces() -> None:
    vocabulary = Vocabulary.of("subwords", ["Die Zeit", "a"])
    [numbers] = vocabulary.encode("zeit")
    assert len(numbers) == vocabulary.parts
    found = [vocabulary.entries[number - 1] for number in numbers if number]
    assert found == ["zeit", "~<ze", "~zei", "~eit", "~it>", "~<zei", "~zeit", "~eit>"]
    assert vocabulary.unknown("zeit") == [[UNKNOWN, *numbers[1:]]]
    [other] = vocabulary.encode("Zeitung")
    assert [vocabulary.entries[number - 1] for number in other if number] == ["~<ze", "~zei", "~eit", "~<zei", "~zeit"]
    [short] = vocabulary.encode("a")
    assert [vocabulary.entries[number - 1] for number in short if number] == ["a", "~<a>"]
    [long] = vocabulary.encode("zeit" * 30)
    assert len(long) == vocabulary.parts
    assert vocabulary.encode("xyz") == [[UNKNOWN] * vocabulary.parts]


@pytest.mark.parametrize("header", ["", "3 2\n"])
def test_word_vectors(header: str, tmp_path: Path) -> None:
    file = tmp_path / "vectors.txt"
    file.write_text(f"{header}Die 0.5 -1\nist 2 3e-1\nfehlt 1 1\n", encoding="utf-8")
    vocabulary = Vocabulary.of("words", ["Die Rechnung ist da"])
    table, known = read_vectors(file, vocabulary, None if header else 2)
    assert known == 2
    assert table.shape == (len(vocabulary), 2)
    [die], [ist], [da] = map(vocabulary.encode, ("die", "ist", "da"))
    assert table[die].tolist() == [0.5, -1]
    assert table[ist].tolist() == pytest.approx([2, 0.3])
    assert table[da].tolist() == [0, 0]
    for content, line in (("die 1 2\nist 1\n", 2), ("die 1 x\n", 1), ("die 1 nan\n", 1)):
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"expected a word and .* numbers in .*vectors.txt, line {line}, got"):
            read_vectors(file, vocabulary, 2)
    file.write_text("")
    with pytest.raises(ValueError, match=r"expected word vectors in .*vectors.txt, got an empty file"):
        read_vectors(file, vocabulary, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("StepLR", "expected a scheduler, got 'StepLR': "),
        ("StepLR(step=5)", "expected a scheduler, got 'StepLR(step=5)': "),
        ("Nothing(3)", "expected a scheduler to be one of "),
        ("StepLR(step_size=__import__('os'))", "expected a scheduler as a call, such as "),
        ("StepLR(", "expected a scheduler as a call, such as "),
        ("a.b(3)", "expected a scheduler as a call, such as "),
        ("3", "expected a scheduler as a call, such as "),
    ],
)
def test_settings_that_are_no_calls_are_refused(text: str, message: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with pytest.raises(ValueError, match="expected a scheduler") as caught:
        scheduler_of(text, optimizer)
    assert str(caught.value).startswith(message)


def test_settings_as_calls() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    assert isinstance(scheduler_of("StepLR(step_size=5, gamma=0.5)", optimizer), torch.optim.lr_scheduler.StepLR)
    assert scheduler_of(None, optimizer) is None
    assert str(truncation_of("chunked(20)", 0)) == "chunked(20)"
    assert str(truncation_of("windowed(k=5)", 0)) == "windowed(5)"
    draws = [truncation_of("randomized(0.5)", seed).weights(50) for seed in (1, 1, 2)]  # type: ignore[union-attr]
    assert torch.equal(draws[0], draws[1])  # type: ignore[arg-type]
    assert not torch.equal(draws[0], draws[2])  # type: ignore[arg-type]
    for bad in ("chunked(0)", "chunked()", "randomized(2)", "windowed(2, 3)"):
        with pytest.raises(ValueError, match="expected"):
            truncation_of(bad, 0)


def test_the_loop_has_no_gradient_of_its_own() -> None:
    """What is trained by hand is trained by the package's Functions: no autograd of the recurrence is left."""
    training = made("names")
    seen = set()
    loss, *_ = training.lessons.step(training.model, [0, 1, 2], training.plan, ALONE, None)
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [each for each, _ in node.next_functions]
    kinds = {type(node).__name__ for node in seen}
    assert {"RecurrenceBackward", "DualReadoutBackward", "DualSoftmaxCrossEntropyBackward"} <= kinds
    assert not kinds & {"TanhBackward0", "AddmmBackward0", "LogSoftmaxBackward0", "MmBackward0", "RnnTanhBackward0"}
    assert loop.model_of(training.model) is training.model
