"""`bptt train`: train a model on real text with the hand-written gradient; nothing is lost when it is interrupted.

Exit status: 0 trained, 1 the loss is no number any more, 2 unusable arguments, 130 and 143 interrupted (by Ctrl-C or
SIGTERM).
"""

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from manual_bptt import checkpoints, datasets
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.calls import check_scheduler, truncation_of
from manual_bptt.cli import UNUSABLE
from manual_bptt.cli.arguments import positive, whole
from manual_bptt.files import write_atomically
from manual_bptt.naive_bayes import NaiveBayes
from manual_bptt.processes import Processes, joined
from manual_bptt.text_model import ENGINES, LOSSES, Shape
from manual_bptt.training import (
    OPTIMIZERS,
    Epoch,
    LabelledTexts,
    Lessons,
    LongText,
    NonFiniteError,
    Plan,
    Scores,
    Training,
    fingerprint,
    judged,
)
from manual_bptt.vocabulary import KINDS, Vocabulary, read_vectors

NON_FINITE = 1
# What each task begins with where nothing else is said; FILE as names.
USUAL: dict[str, dict[str, Any]] = {
    "names": {
        "tokens": "characters", "embedding": 0, "hidden": 128, "layers": 2, "directions": 2, "nonlinearity": "tanh",
        "dropout": 0.3, "loss": "last", "epochs": 40, "batch": 64, "lr": 3e-3, "balance": 0.5, "unknown": 0.0,
    },
    "sentences": {
        "tokens": "subwords", "embedding": 64, "hidden": 64, "layers": 1, "directions": 2, "nonlinearity": "relu",
        "dropout": 0.4, "loss": "every", "epochs": 12, "batch": 64, "lr": 1e-2, "balance": 0.0, "unknown": 0.4,
    },
    "text": {
        "tokens": "characters", "embedding": 0, "hidden": 128, "layers": 1, "directions": 1, "nonlinearity": "tanh",
        "dropout": 0.0, "loss": "every", "epochs": 10, "batch": 32, "lr": 3e-3, "balance": 0.0, "unknown": 0.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is trained on, and how it is told.

    Attributes:
        name: "names", "sentences", "text", or a path.
        lessons: Training and validation.
        test: Texts that nothing is chosen by; None for a long text.
        classes: Names of the classes; empty for a long text.
        source: Where it comes from.
        text: The file of a long text, where it is not the one that comes with Python.
        training: Texts that are learned from; None for a long text.
    """

    name: str
    lessons: Lessons
    test: datasets.Dataset | None
    training: datasets.Dataset | None
    classes: tuple[str, ...]
    source: str
    text: str | None = None


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "train",
        help="train on names, sentences, a text or a file of yours, with the gradient by hand",
        description="Train a model: a name or a sentence → its language, or the next character of a text. "
        "Exit status: 0 trained, 1 the loss is no number any more, 2 unusable arguments, 130 or 143 interrupted.",
    )
    parser.add_argument(
        "task",
        nargs="?",
        metavar="TASK",
        help="names, sentences, text, or a file of lines `label<TAB>text`, or a folder of files Label.txt",
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with the training in FOLDER, as it was begun"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where everything goes (default: runs/TASK)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="of `text`: UTF-8 (default: Python's help topics)")
    parser.add_argument(
        "--engine", choices=ENGINES, help="the gradient by hand (default), or torch's, of the same model"
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: float32")
    parser.add_argument("--tokens", choices=KINDS, help="what a text is read as")
    parser.add_argument("--embedding", type=whole(0), metavar="N", help="length of dense vectors; 0: one-hot vectors")
    parser.add_argument(
        "--vectors", type=Path, metavar="FILE", help="word vectors to begin with: word2vec's text format"
    )
    parser.add_argument("--hidden", type=whole(1), metavar="H", help="units")
    parser.add_argument("--layers", type=whole(1, 16), metavar="N", help="recurrences on top of one another")
    parser.add_argument("--directions", type=whole(1, 2), metavar="N", help="1, or 2: also from the end")
    parser.add_argument("--nonlinearity", choices=tuple(ACTIVATIONS), help="default: tanh, for sentences relu")
    parser.add_argument("--dropout", type=_share, metavar="P", help="of what is read, and of the states read out")
    parser.add_argument("--loss", choices=LOSSES, help="where a text is asked for its label")
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="how often everything is seen")
    parser.add_argument("--batch", type=whole(1), metavar="B", help="texts a step, or streams of a long one")
    parser.add_argument("--steps", type=whole(1), metavar="T", help="of `text`: characters a piece (default: 64)")
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), help="default: Adam")
    parser.add_argument("--lr", type=positive, metavar="R", help="learning rate")
    parser.add_argument(
        "--scheduler", metavar="CALL", help='one of torch.optim, "StepLR(step_size=5)" (default: a cosine down to 0)'
    )
    parser.add_argument("--clip", type=_bound, metavar="θ", help="the gradient's norm at most, or none (default: 1)")
    parser.add_argument("--truncation", metavar="CALL", help='"chunked(20)", "windowed(5)", "randomized(0.9)"')
    parser.add_argument("--balance", type=_share, metavar="P", help="draw texts of a class of n n^-P times as often")
    parser.add_argument("--unknown", type=_share, metavar="P", help="read words as unknown ones with probability P")
    parser.add_argument("--seed", type=whole(0, 2**31 - 1), metavar="S", help="default: 0")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=whole(1, 256), metavar="N", help="CPU threads (default: torch's)")
    parser.set_defaults(run=run)


def _bound(text: str) -> float:
    return math.inf if text == "none" else positive(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return its exit status.

    Raises:
        ValueError, OSError: As the modules say that read and write.
    """
    before = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        with joined(options.device) as processes:
            try:
                return _train(options, processes)
            except (ValueError, OSError, RuntimeError):
                if processes.leads:
                    raise
                return UNUSABLE  # the first process says why
    finally:
        torch.set_num_threads(before)


def _train(options: argparse.Namespace, processes: Processes) -> int:
    console = Console(highlight=False, markup=False, quiet=not processes.leads)
    saved = None
    if options.resume is not None:
        _refuse_beside_resume(options)
        folder = options.resume
        if not (folder / "checkpoint.pt").exists():
            raise ValueError(f"expected --resume FOLDER to hold a training, got {folder} without a checkpoint.pt")
        saved = checkpoints.load(folder / "checkpoint.pt", checkpoints.CHECKPOINT)
        if not isinstance(saved.get("chosen"), dict) or not isinstance(saved.get("training"), dict):
            raise ValueError(f"expected {folder / 'checkpoint.pt'} to be whole, got one that lacks something")
        chosen = saved["chosen"]
        if options.threads is None and isinstance(chosen.get("threads"), int):
            torch.set_num_threads(chosen["threads"])  # sums are added up in another order by another number
    else:
        if options.task is None:
            raise ValueError("expected a TASK, names, sentences, text or a file, or --resume FOLDER, got neither")
        chosen = _chosen(options) | {"threads": torch.get_num_threads()}
        folder = options.output or Path("runs", Path(options.task).stem or "task")
        if processes.leads and (folder / "checkpoint.pt").exists():  # for the others it may be that of this training
            raise ValueError(
                f"expected a new folder, got {folder}, which holds a training: --resume {folder}, or --output"
            )
    try:
        task = _task(chosen)
        vectors = _vectors(chosen, task) if saved is None else None
        training = Training(*_shape_and_plan(chosen, task), task.lessons, processes)
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected choices that fit together in {folder}, got others: {error}") from error
    if vectors is not None and training.model.embedding is not None:
        training.model.embedding.weight.data.copy_(vectors[0])
    if saved is not None:
        training.restore(saved["training"])
    _tell(console, task, training)
    if vectors is not None:
        console.print(
            f"vectors   {vectors[1]} of {len(vectors[0])} entries have one in {chosen['vectors']}", soft_wrap=True
        )

    def save() -> None:
        if processes.leads:
            content = {"chosen": chosen, "training": training.state()}
            checkpoints.save(folder / "checkpoint.pt", checkpoints.CHECKPOINT, content)

    if processes.leads:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".checkpoint.pt.*"):  # of a process that was killed while it wrote
            left.unlink()
    save()  # before anything is computed: a full disk or an unwritable folder shows now
    with _signals() as noted:
        try:
            finished = _loop(console, training, save, noted)
            if finished and processes.leads:
                _report(console, task, training, folder)
            elif processes.count == 1 and not finished:
                save()
        except NonFiniteError as error:
            said = f"{error}, in a new --output; what was learned up to epoch {training.progress.epoch} is in {folder}"
            return _stopped(processes, said, NON_FINITE)
        except OSError as error:
            said = f"{error} while writing to {folder}; what was there is as it was"
            return _stopped(processes, f"{said}. Go on with: bptt train --resume {folder}", UNUSABLE)
        except KeyboardInterrupt:
            kept = f"the end of epoch {training.progress.epoch}"
            said = f"interrupted; saved at {kept}. Go on with: bptt train --resume {folder}"
            return _stopped(processes, said, 128 + signal.SIGINT)
    if not finished:
        where = f"step {training.progress.batch} of epoch {training.progress.epoch + 1}"
        kept = where if processes.count == 1 else f"the end of epoch {training.progress.epoch}"
        said = f"interrupted; saved at {kept}. Go on with: bptt train --resume {folder}"
        return _stopped(processes, said, 128 + (noted or [signal.SIGTERM])[0])
    return 0


def _stopped(processes: Processes, said: str, status: int) -> int:
    """Say why a training has stopped, once for all processes."""
    if processes.leads:
        print(f"bptt train: {said}", file=sys.stderr)
    return status


def _vectors(chosen: dict[str, Any], task: Task) -> tuple[torch.Tensor, int] | None:
    """The word vectors to begin with, and for how many entries there is one; their length goes into what was chosen."""
    if chosen["vectors"] is None:
        return None
    found = read_vectors(Path(chosen["vectors"]), task.lessons.vocabulary, None)
    size = found[0].shape[1]
    if chosen["embedding"] not in (None, size):
        file = chosen["vectors"]
        raise ValueError(f"expected --embedding {size}, as long as the vectors in {file}, got {chosen['embedding']}")
    chosen["embedding"] = size
    return found


def _refuse_beside_resume(options: argparse.Namespace) -> None:
    others = {
        name: value
        for name, value in vars(options).items()
        if name not in ("command", "run", "resume", "device", "threads")
    }
    given = [f"--{name}" if name != "task" else "a TASK" for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"expected nothing beside --resume but --device and --threads, got {', '.join(given)}")


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Every choice that a training depends on, as plain data."""
    usual = USUAL.get(options.task, USUAL["names"])
    chosen = {name: usual[name] if getattr(options, name) is None else getattr(options, name) for name in usual}
    others = {
        "engine": "hand", "dtype": "float32", "steps": 64, "optimizer": "Adam",
        "scheduler": None, "clip": 1.0, "truncation": None, "seed": 0,
    }  # fmt: skip
    chosen |= {
        name: value if getattr(options, name) is None else getattr(options, name) for name, value in others.items()
    }
    chosen["clip"] = None if chosen["clip"] == math.inf else chosen["clip"]
    chosen["task"] = options.task if options.task in USUAL else str(Path(options.task).resolve())
    for name in ("text", "vectors"):
        file = getattr(options, name)
        chosen[name] = None if file is None else str(file.resolve())
    long = options.task == "text"
    labelled, words = (
        f"is for labelled texts, got it with {options.task}",
        f"is for words, got tokens {chosen['tokens']}",
    )
    has_words = chosen["tokens"] != "characters"
    if not has_words and options.unknown is None:
        chosen["unknown"] = 0.0
    of_text = f"is for the task text, got it with {options.task}"
    wrong = {
        "--text": (options.text is not None and not long, of_text),
        "--steps": (options.steps is not None and not long, of_text),
        "--balance": (options.balance is not None and long, labelled),
        "--loss last": (long and chosen["loss"] == "last", labelled),
        "--unknown": (chosen["unknown"] > 0 and not has_words, words),
        f"--tokens {chosen['tokens']}": (long and has_words, labelled),
        "--embedding 0": (
            chosen["tokens"] == "subwords" and chosen["embedding"] == 0,
            "is for characters and words, got tokens subwords",
        ),
        "--directions 2": (long and chosen["directions"] == 2, f"{labelled}: what follows would be read"),
        "--vectors": (
            options.vectors is not None and chosen["tokens"] != "words",
            f"needs --tokens words, got tokens {chosen['tokens']}",
        ),
        "--truncation": (
            chosen["truncation"] is not None and chosen["engine"] != "hand",
            f"is for the engine hand, got {chosen['engine']}",
        ),
    }
    for name, (is_wrong, reason) in wrong.items():
        if is_wrong:
            raise ValueError(f"{name} {reason}")
    truncation_of(chosen["truncation"], 0)
    check_scheduler(chosen["scheduler"], chosen["epochs"])
    if chosen["vectors"] is not None and options.embedding is None:
        chosen["embedding"] = None  # as long as the vectors are
    return chosen


def _task(chosen: dict[str, Any]) -> Task:
    """Read what is trained on."""
    name = chosen["task"]
    if name == "text":
        text, source = datasets.long_text(None if chosen["text"] is None else Path(chosen["text"]))
        if len(text) < 20 * chosen["batch"]:
            least = f"{20 * chosen['batch']} characters or more for {chosen['batch']} streams"
            raise ValueError(f"expected {least}, got {len(text)} in {source}")
        vocabulary = Vocabulary.of("characters", [text[: len(text) * 9 // 10]])
        told = f"{len(text)} characters of {source}"
        return Task(name, LongText(text, vocabulary), None, None, (), told, chosen["text"])
    if name not in datasets.TASKS and not Path(name).exists():
        raise ValueError(f"expected names, sentences, text, a file or a folder, got {name!r}, which is none of them")
    dataset = datasets.TASKS[name]() if name in datasets.TASKS else datasets.read(Path(name))
    training, validation, test = datasets.split(dataset, chosen["seed"])
    vocabulary = Vocabulary.of(chosen["tokens"], training.texts)
    lessons = LabelledTexts(training, validation, vocabulary)
    lessons.fingerprint = fingerprint([lessons.fingerprint, *test.texts, *map(str, test.labels)])
    return Task(name, lessons, test, training, dataset.classes, dataset.source)


def _shape_and_plan(chosen: dict[str, Any], task: Task) -> tuple[Shape, Plan]:
    shape = Shape(
        len(task.lessons.vocabulary), task.lessons.outputs, chosen["embedding"],
        bidirectional=chosen["directions"] == 2, parts=task.lessons.vocabulary.parts,
        **{name: chosen[name] for name in ("hidden", "layers", "nonlinearity", "dropout", "loss", "engine", "dtype")},
    )  # fmt: skip
    return shape, Plan(**{each.name: chosen[each.name] for each in fields(Plan)})


def _tell(console: Console, task: Task, training: Training) -> None:
    """What is trained, on what, and how."""
    shape, plan, processes = training.model.shape, training.plan, training.processes
    if task.training is not None and task.test is not None:
        validation = len(task.lessons.validation) if isinstance(task.lessons, LabelledTexts) else 0
        sizes = (
            f"{len(task.training)} texts to learn from, {validation} to judge epochs by, {len(task.test)} to test by"
        )
        lines = [f"data      {task.source}", f"          {len(task.classes)} classes; {sizes}"]
    else:
        lines = [f"data      {task.source}; the last tenth to judge by"]
    read = f"vectors of {shape.embedding}" if shape.embedding else "one-hot vectors"
    directions = " in both directions" if shape.bidirectional else ""
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    lines += [
        f"model     {shape.entries} {task.lessons.vocabulary.kind} as {read}, {shape.layers} × {shape.hidden} "
        f"{shape.nonlinearity} units{directions}, {shape.outputs} outputs, {parameters} parameters",
        f"gradient  {'by hand' if shape.engine == 'hand' else 'of torch.nn.RNN, by autograd'}, {shape.dtype}, "
        f"{processes.device.type}, {'not clipped' if plan.clip is None else f'clipped to {plan.clip:g}'}"
        + (f", {plan.truncation}" if plan.truncation else "")
        + (f", {processes.count} processes" if processes.count > 1 else ""),
        f"training  {plan.epochs} epochs, batches of {plan.batch}, {plan.optimizer}, lr {plan.lr:g}, seed {plan.seed}",
    ]
    if training.is_done:
        lines.append("resumed   after the last epoch")
    elif training.progress.epoch or training.progress.batch:
        lines.append(f"resumed   after step {training.progress.batch} of epoch {training.progress.epoch + 1}")
    console.print("\n".join(lines), soft_wrap=True)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, and acted on between two steps; a second Ctrl-C interrupts at once."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if noted.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loop(console: Console, training: Training, save: Callable[[], None], noted: list[int]) -> bool:
    """Train; return whether it was finished, or a signal was noted."""
    epoch, told = TextColumn("epoch {task.fields[epoch]}"), TextColumn("{task.fields[told]}")
    bar = None
    if console.is_terminal:
        bar = Progress(epoch, BarColumn(30), MofNCompleteColumn(), told, console=console, transient=True)
    long = isinstance(training.lessons, LongText)
    unit = "characters" if long else "texts"
    with bar or nullcontext():
        shown = bar.add_task("", epoch=1, told="") if bar is not None else None

        def after_step(batch: int, batches: int) -> bool:
            progress = training.progress
            if bar is not None and shown is not None and progress.count:
                speed = progress.count / max(progress.seconds, 1e-9)
                loss, accuracy = progress.loss / progress.count, progress.right / progress.count
                told = f"loss {loss:.3f}  accuracy {accuracy:.3f}  {speed:.0f} {unit}/s"
                bar.update(shown, completed=batch, total=batches, epoch=progress.epoch + 1, told=told)
            return bool(noted)

        def after_epoch(epoch: Epoch) -> None:
            save()
            line = _epoch_line(len(training.progress.history), training.plan.epochs, epoch, long)
            console.print(line, soft_wrap=True)

        return training.run(after_step, after_epoch)


def _epoch_line(number: int, epochs: int, epoch: Epoch, long: bool) -> str:
    """What an epoch did."""
    scores = epoch.validation
    macro = "" if long else f", macro {scores.macro:.4f}"
    return (
        f"epoch {number:>{len(str(epochs))}}/{epochs}  loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.4f}; "
        f"validation loss {scores.loss:.4f}, accuracy {scores.accuracy:.4f}{macro}  {epoch.seconds:.1f} s"
    )


def _report(console: Console, task: Task, training: Training, folder: Path) -> None:
    """Judge by the test texts, print, draw, and write the model."""
    seconds = sum(epoch.seconds for epoch in training.progress.history)
    model, vocabulary = training.model, task.lessons.vocabulary
    results: dict[str, Any] = {"seconds": seconds}
    scores: Scores = training.progress.history[-1].validation
    if task.test is not None and task.training is not None:
        scores = judged(model, task.test, vocabulary, training.processes.device)
        started = time.perf_counter()
        bayes = NaiveBayes(task.training)
        taken = torch.zeros(len(task.classes), len(task.classes), dtype=torch.int64)
        for text, label in zip(task.test.texts, task.test.labels, strict=True):
            taken[label, bayes.predict(text)] += 1
        baseline = Scores.of(math.nan, taken)
        bayes_seconds = time.perf_counter() - started
        console.print(f"\ntest, {len(task.test)} texts                     accuracy   macro accuracy")
        console.print(f"  this model ({seconds:.0f} s of training)      {scores.accuracy:.4f}     {scores.macro:.4f}")
        console.print(
            f"  naive Bayes on n-grams ({bayes_seconds:.0f} s)      {baseline.accuracy:.4f}     {baseline.macro:.4f}"
        )
        results |= {"naive_bayes": {"accuracy": baseline.accuracy, "macro": baseline.macro}}
    else:
        told = f"{scores.loss:.4f} nats a character, accuracy {scores.accuracy:.4f}; {seconds:.0f} s of training"
        console.print(f"\nvalidation: {told}", soft_wrap=True)
    results |= {"loss": scores.loss, "accuracy": scores.accuracy, "macro": scores.macro}
    content = {
        "shape": asdict(replace(model.shape, engine="hand")),
        "parameters": {name: value.cpu() for name, value in model.state_dict().items()},
        "vocabulary": {"kind": vocabulary.kind, "entries": list(vocabulary.entries)},
        "classes": list(task.classes),
        "task": task.name,
        "text": task.text,
        "source": task.source,
        "results": results,
    }
    checkpoints.save(folder / "model.pt", checkpoints.MODEL, content)
    epochs = [{**asdict(epoch), "validation": _plain(epoch.validation)} for epoch in training.progress.history]
    history = {"losses": training.progress.losses, "epochs": epochs, "results": results}
    write_atomically(folder / "history.json", json.dumps(history, indent=1).encode())
    written = [folder / "model.pt", folder / "history.json"]
    try:
        from manual_bptt.cli import train_figures
    except ModuleNotFoundError:
        console.print("figures need the package matplotlib, which is not installed: pip install 'manual-bptt[cli]'")
    else:
        figures = {"learning_curve.png": train_figures.learning_curve(training.progress.history, task.test is None)}
        if scores.confusion is not None and task.test is not None:
            figures["confusion.png"] = train_figures.confusion(scores.confusion, task.classes)
        for name, data in figures.items():
            write_atomically(folder / name, data)
            written.append(folder / name)
    console.print(f"\nwritten: {', '.join(map(str, written))}", soft_wrap=True)
    tried = "bptt sample" if task.test is None else "bptt predict"
    rest = "" if task.test is None else " TEXT…"
    console.print(f"try it:  {tried} {folder / 'model.pt'}{rest}", soft_wrap=True)


def _plain(scores: Scores) -> dict[str, float]:
    return {"loss": scores.loss, "accuracy": scores.accuracy, "macro": scores.macro}
