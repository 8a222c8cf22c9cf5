"""A small, plain training loop: batches, a gradient by hand, a step; nothing is lost when it is interrupted.

What is trained on are `Lessons`: texts with a label, or one long text whose next character is asked for. `Training` is
the state that a checkpoint holds, and the loop. Printing and drawing are the command's business (cli/train.py).
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from manual_bptt.calls import scheduler_of, truncation_of
from manual_bptt.clipping import clip_gradient_norm
from manual_bptt.datasets import Dataset
from manual_bptt.modules import RNN
from manual_bptt.processes import Processes
from manual_bptt.text_model import Shape, TextModel
from manual_bptt.vocabulary import UNKNOWN, Vocabulary

OPTIMIZERS = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD}
JUDGED = 2000  # characters that are read at once to judge by
BUCKET = 16  # batches whose texts are sorted by length before they are cut


class NonFiniteError(RuntimeError):
    """A loss or a gradient that is no number any more; the message says where, and what may help."""


@dataclass(frozen=True)
class Plan:
    """How a model is trained; plain numbers and names.

    Attributes:
        epochs: How often all texts are seen.
        batch: B, texts in a step of the optimizer, over all processes.
        optimizer: "Adam" or "SGD".
        lr: Its learning rate.
        scheduler: A scheduler of torch.optim as a call, or None: the cosine from lr to 0 over all epochs.
        clip: θ of clip_gradient_norm, or None.
        truncation: A truncation as a call, or None; with engine "hand" only.
        balance: Texts of a class of n are drawn n^-balance times as often as in the list; 0: each once an epoch.
        unknown: Probability that a word is read as if it were not known, in training.
        steps: T, of the pieces that a long text is read in.
        seed: Of everything that is drawn.
    """

    epochs: int = 20
    batch: int = 64
    optimizer: str = "Adam"
    lr: float = 3e-3
    scheduler: str | None = None
    clip: float | None = 1.0
    truncation: str | None = None
    balance: float = 0.0
    unknown: float = 0.0
    steps: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Scores:
    """What a model achieves on some texts.

    Attributes:
        loss: Mean cross-entropy, in nats.
        accuracy: Share that is right.
        macro: Mean over the classes of the share that is right; for a long text the accuracy.
        confusion: (classes, classes): how many of the class of the row were taken for that of the column; None for a
            long text.
    """

    loss: float
    accuracy: float
    macro: float
    confusion: Tensor | None = None

    @classmethod
    def of(cls, loss: float, confusion: Tensor) -> "Scores":
        """Accuracy and its mean over the classes, from who was taken for whom."""
        of_class = confusion.sum(1)
        recall = confusion.diagonal()[of_class > 0] / of_class[of_class > 0]
        accuracy = confusion.diagonal().sum().item() / confusion.sum().item()
        return cls(loss, accuracy, recall.double().mean().item(), confusion)


@dataclass(frozen=True)
class Epoch:
    """What one epoch did: the mean training loss and accuracy, the learning rate, the scores after it, its seconds."""

    loss: float
    accuracy: float
    lr: float
    validation: Scores
    seconds: float


class LabelledTexts:
    """Texts with a label each, as lessons: a batch is a list of texts, and the loss is taken once for each.

    Args:
        training: Texts that are learned from.
        validation: Texts that are judged after every epoch.
        vocabulary: What their numbers mean.
    """

    def __init__(self, training: Dataset, validation: Dataset, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.validation = vocabulary, validation
        self.outputs = len(training.classes)
        self._texts = [torch.tensor(vocabulary.encode(text)) for text in training.texts]
        self._unknown = [torch.tensor(vocabulary.unknown(text)) for text in training.texts]
        self._labels = torch.tensor(training.labels)
        self._counts = torch.tensor(training.counts())[self._labels]
        labels = [str(label) for part in (training, validation) for label in part.labels]
        self.fingerprint = fingerprint([*training.classes, *training.texts, *validation.texts, *labels])

    def batches(self, plan: Plan, generator: torch.Generator) -> list[list[int]]:
        """Which texts are in which batch of an epoch: texts of about one length together, batches in any order."""
        count = len(self._texts)
        if plan.balance:
            weights = self._counts.double() ** -plan.balance
            order = torch.multinomial(weights, count, replacement=True, generator=generator)
        else:
            order = torch.randperm(count, generator=generator)
        lengths = torch.tensor([len(text) for text in self._texts])
        made: list[list[int]] = []
        for bucket in torch.split(order, plan.batch * BUCKET):
            bucket = bucket[lengths[bucket].argsort(stable=True)]
            made += [batch.tolist() for batch in torch.split(bucket, plan.batch)]
        return [made[place] for place in torch.randperm(len(made), generator=generator).tolist()]

    def step(
        self, model: Any, batch: Sequence[int], plan: Plan, processes: Processes, carried: Tensor | None
    ) -> tuple[Tensor, int, int, None]:
        """The summed loss of this process's texts of a batch, how many are right, how many there are."""
        own = list(batch[processes.rank :: processes.count])
        lesson = own or list(batch[:1])  # each process has to take part
        texts = [self._text(place, plan.unknown).to(processes.device) for place in lesson]
        labels = self._labels[lesson].to(processes.device)
        o, _ = model(texts)
        of = model_of(model)
        lengths = of.lengths(texts)
        right = int((of.answers(o, lengths).argmax(1) == labels).sum()) if own else 0
        loss = of.loss(o, labels, lengths)
        return (loss if own else 0 * loss), right, len(own), None

    def size(self, batch: Sequence[int], plan: Plan) -> int:
        """Over how many losses the mean of a batch is taken."""
        return len(batch)

    def judge(self, model: TextModel, device: torch.device) -> Scores:
        """The scores on the validation texts."""
        return judged(model, self.validation, self.vocabulary, device)

    def _text(self, place: int, unknown: float) -> Tensor:
        text = self._texts[place]
        if unknown == 0:
            return text
        drawn = torch.rand(len(text)).view(-1, *[1] * (text.dim() - 1)) < unknown
        return torch.where(drawn, self._unknown[place], text)


class LongText:
    """One long text, as lessons: it is cut into B streams that are read side by side, T characters at a time.

    The state is carried from piece to piece, and the gradient is not.

    Args:
        text: What is learned from; the last tenth is judged by.
        vocabulary: Its characters.
    """

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.outputs = len(vocabulary)
        numbers = torch.tensor(vocabulary.encode(text))
        border = len(numbers) * 9 // 10
        self._training, self._validation = numbers[:border], numbers[border:]
        self.fingerprint = fingerprint([text])

    def batches(self, plan: Plan, generator: torch.Generator) -> list[list[int]]:
        """Where each piece begins and ends in every stream."""
        length = len(self._training) // plan.batch
        if length < 2:
            raise ValueError(
                f"expected a text of more than {plan.batch} streams of 2 characters, got {len(self._training)} in all"
            )
        return [[start, min(start + plan.steps, length - 1)] for start in range(0, length - 1, plan.steps)]

    def step(
        self, model: Any, batch: Sequence[int], plan: Plan, processes: Processes, carried: Tensor | None
    ) -> tuple[Tensor, int, int, Tensor]:
        """The summed loss of this process's streams, how many characters are right, how many there are, the state."""
        start, stop = batch
        length = len(self._training) // plan.batch
        streams = self._training[: length * plan.batch].view(plan.batch, length)[processes.rank :: processes.count]
        piece = streams[:, start : stop + 1].t().to(processes.device)
        o, state = model(piece[:-1], None if start == 0 else carried)
        targets = piece[1:]
        right = int((o.argmax(2) == targets).sum())
        return model_of(model).loss(o, targets, None), right, targets.numel(), state.detach()

    def size(self, batch: Sequence[int], plan: Plan) -> int:
        """Over how many losses the mean of a batch is taken."""
        return (batch[1] - batch[0]) * plan.batch

    @torch.no_grad()
    def judge(self, model: TextModel, device: torch.device) -> Scores:
        """The scores on the last tenth of the text, read from its first character to its last."""
        model.eval()
        numbers = self._validation.unsqueeze(1).to(device)
        state, loss, right = None, 0.0, 0
        for start in range(0, len(numbers) - 1, JUDGED):
            piece = numbers[start : start + JUDGED + 1]
            o, state = model(piece[:-1], state)
            loss += model.loss(o, piece[1:], None).item()
            right += int((o.argmax(2) == piece[1:]).sum())
        count = max(1, len(numbers) - 1)
        return Scores(loss / count, right / count, right / count)


Lessons = LabelledTexts | LongText


def model_of(model: Any) -> TextModel:
    """The model itself, without what distributes it."""
    return model.module if isinstance(model, DistributedDataParallel) else model  # type: ignore[no-any-return]


@torch.no_grad()
def judged(model: TextModel, texts: Dataset, vocabulary: Vocabulary, device: torch.device, batch: int = 256) -> Scores:
    """The scores of a classifier on some texts."""
    model.eval()
    classes = len(texts.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    total = 0.0
    for start in range(0, len(texts), batch):
        lesson = [torch.tensor(vocabulary.encode(text)).to(device) for text in texts.texts[start : start + batch]]
        labels = torch.tensor(texts.labels[start : start + batch])
        o, _ = model(lesson)
        lengths = model.lengths(lesson)
        total += model.loss(o, labels.to(device), lengths).item()
        found = model.answers(o, lengths).argmax(1).cpu()
        confusion.index_put_((labels, found), torch.ones_like(labels), accumulate=True)
    return Scores.of(total / len(texts), confusion)


@dataclass
class Progress:
    """How far a training is: what has been counted in the epoch that is going on, and what came of those before."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    right: int = 0
    count: int = 0
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of every step


class Training:
    """A model on its way, with all that a checkpoint holds.

    Args:
        shape: What the model is made of.
        plan: How it is trained.
        lessons: What it is trained on.
        processes: Who trains.

    Attributes:
        model: The TextModel.
        progress: How far it is.
    """

    def __init__(self, shape: Shape, plan: Plan, lessons: Lessons, processes: Processes) -> None:
        self.plan, self.lessons, self.processes = plan, lessons, processes
        if isinstance(lessons, LongText) and plan.batch < processes.count:
            raise ValueError(f"expected a batch of at least {processes.count} streams, one a process, got {plan.batch}")
        torch.manual_seed(plan.seed)
        self.model = TextModel(shape).to(processes.device)
        if plan.truncation is not None:
            if not isinstance(self.model.recurrence, RNN):
                raise ValueError(f"expected no truncation with engine {shape.engine!r}, got {plan.truncation}")
            self.model.recurrence.truncation = truncation_of(plan.truncation, plan.seed)
        self.optimizer = OPTIMIZERS[plan.optimizer](self.model.parameters(), lr=plan.lr)
        cosine = f"CosineAnnealingLR(T_max={max(1, plan.epochs)})"
        self.scheduler = scheduler_of(plan.scheduler or cosine, self.optimizer)
        self.progress = Progress()
        self._carried: Tensor | None = None
        self._resumed: Tensor | None = None  # the state of the random numbers in the middle of an epoch

    @property
    def is_done(self) -> bool:
        """Whether all epochs are through."""
        return self.progress.epoch >= self.plan.epochs

    def run(
        self,
        after_step: Callable[[int, int], bool] = lambda batch, batches: False,
        after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> bool:
        """Train until all epochs are through, or somebody asks to stop.

        Args:
            after_step: Told how many of how many batches of the epoch are done; True: stop here.
            after_epoch: Told what the epoch did.

        Returns:
            Whether all epochs are through. If not, `state` is that after the last step.

        Raises:
            NonFiniteError: A loss or a gradient is no number any more. The parameters are those before the step.
        """
        model: Any = self.model
        if self.processes.count > 1:
            model = DistributedDataParallel(self.model)
        while not self.is_done:
            if not self._epoch(model, after_step):
                return False
            after_epoch(self.progress.history[-1])
        return True

    def _epoch(self, model: Any, after_step: Callable[[int, int], bool]) -> bool:
        progress, plan = self.progress, self.plan
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + progress.epoch)
        batches = self.lessons.batches(plan, generator)
        if self._resumed is not None:
            torch.set_rng_state(self._resumed)
            self._resumed = None
        elif progress.batch == 0:
            torch.manual_seed((plan.seed * 1_000_003 + progress.epoch) * 1009 + self.processes.rank)
            if isinstance(self.model.recurrence, RNN):  # its draws begin anew, as the others do
                self.model.recurrence.truncation = truncation_of(plan.truncation, plan.seed + progress.epoch)
        model.train()
        for place in range(progress.batch, len(batches)):
            started = time.perf_counter()
            self._step(model, batches[place])
            progress.seconds += time.perf_counter() - started
            progress.batch = place + 1
            if self.processes.added(float(after_step(place + 1, len(batches))))[0] and place + 1 < len(batches):
                return False
        self._close()
        return True

    def _step(self, model: Any, batch: Sequence[int]) -> None:
        """One step of the optimizer, on the mean loss over the batches of all processes."""
        progress, plan, count = self.progress, self.plan, self.processes.count
        summed, right, own, self._carried = self.lessons.step(model, batch, plan, self.processes, self._carried)
        size = self.lessons.size(batch, plan)
        loss = summed * (count / size)  # the processes' gradients are averaged
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradient_norm(self.model.parameters(), math.inf if plan.clip is None else plan.clip).item()
        total, all_right, everyone = self.processes.added(summed.item(), right, own)
        if not (math.isfinite(total) and math.isfinite(norm)):
            bound = "none" if plan.clip is None else f"{plan.clip:g}"
            raise NonFiniteError(
                f"the loss is {total / size:g} and the norm of the gradient {norm:g} at step {progress.batch + 1} "
                f"of epoch {progress.epoch + 1}: clipping (--clip, now {bound}) or a smaller --lr (now {plan.lr:g}) "
                "may help"
            )
        self.optimizer.step()
        progress.loss += total
        progress.right += int(all_right)
        progress.count += int(everyone)
        progress.losses.append(total / size)

    def _close(self) -> None:
        """End an epoch: judge, let the scheduler know, begin the next one."""
        progress = self.progress
        lr = self.optimizer.param_groups[0]["lr"]
        scores = self.lessons.judge(self.model, self.processes.device) if self.processes.leads else Scores(0, 0, 0)
        loss = self.processes.from_first(scores.loss)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()
        epoch = Epoch(progress.loss / progress.count, progress.right / progress.count, lr, scores, progress.seconds)
        self.progress = replace(
            Progress(progress.epoch + 1), history=[*progress.history, epoch], losses=progress.losses
        )
        self._carried = None

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as tensors, numbers, texts, lists and dicts."""
        truncation = getattr(self.model.recurrence, "truncation", None)
        generator = None if truncation is None else truncation.generator
        progress = asdict(self.progress)
        return {
            "shape": asdict(self.model.shape),
            "plan": asdict(self.plan),
            "fingerprint": self.lessons.fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else _plain(self.scheduler.state_dict()),
            "progress": progress,
            "random": torch.get_rng_state(),
            "truncation_random": None if generator is None else generator.get_state(),
            "carried": self._carried,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: It was taken on other data, or in the middle of an epoch and there are several processes; or it
                does not fit together.
        """
        try:
            self._restore(state)
        except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"expected a checkpoint that fits together, got one that does not: {reason}") from error

    def _restore(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.lessons.fingerprint:
            raise ValueError("expected the data that the training began with, got other texts")
        if not isinstance(state["progress"], dict):
            raise TypeError("no progress in it")
        if self.scheduler is not None and set(state["scheduler"]) != set(_plain(self.scheduler.state_dict())):
            raise TypeError("the state of another scheduler in it")
        progress = dict(state["progress"])
        if progress["batch"] > 0 and self.processes.count > 1:
            raise ValueError("expected one process to go on in the middle of an epoch, got several")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        epochs = [Epoch(**{**each, "validation": Scores(**each["validation"])}) for each in progress.pop("history")]
        self.progress = Progress(**progress, history=epochs)
        truncation = getattr(self.model.recurrence, "truncation", None)
        if self.progress.batch > 0:
            self._resumed = state["random"]
            if state["truncation_random"] is not None and truncation is not None:
                truncation.generator.set_state(state["truncation_random"])
        self._carried = None if state["carried"] is None else state["carried"].to(self.processes.device)


def fingerprint(texts: Sequence[str]) -> str:
    """A number that other texts do not have."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without functions, which no file can hold."""
    return {name: value for name, value in state.items() if not callable(value)}


def predict(model: TextModel, vocabulary: Vocabulary, text: str) -> Tensor:
    """The probabilities of the classes of a text, (K,).

    Raises:
        ValueError: The text is empty.
    """
    numbers = vocabulary.encode(text)
    if not numbers:
        raise ValueError("expected a text, got an empty one")
    model.eval()
    with torch.no_grad():
        texts = [torch.tensor(numbers)]
        o, _ = model(texts)
    probabilities: Tensor = model.answers(o, model.lengths(texts))[0].double().softmax(0)
    return probabilities


@torch.no_grad()
def sample(
    model: TextModel, vocabulary: Vocabulary, length: int, start: str, temperature: float, generator: torch.Generator
) -> str:
    """Characters drawn one after the other, each from what the model expects after those before.

    Args:
        model: Trained on a long text.
        vocabulary: Its characters.
        length: How many are drawn.
        start: What the model reads first; empty: a line break, if it knows one.
        temperature: Below 1 likely characters are drawn more often, above 1 less.
        generator: Of the draws.
    """
    model.eval()
    numbers = vocabulary.encode(start) or vocabulary.encode("\n")
    drawn: list[int] = []
    state = None
    read = torch.tensor(numbers).unsqueeze(1)
    for _ in range(length):
        o, state = model(read, state)
        scores = o[-1, 0].double()
        scores = (scores - scores.max()) / temperature
        scores[UNKNOWN] = -math.inf
        number = int(torch.multinomial(scores.softmax(0), 1, generator=generator))
        drawn.append(number)
        read = torch.tensor([[number]])
    return vocabulary.decode(drawn)
