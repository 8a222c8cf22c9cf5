"""A batch of what a trained model was trained on, for the commands that look at one: what it reads, and its loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from manual_bptt import datasets
from manual_bptt.cli.model_file import ModelFile

LONGEST = 400  # steps: the squares of what a linear network with the spectral radius 1.5 grows to are still finite


@dataclass(frozen=True, eq=False)
class Lesson:
    """Texts and what is asked about them.

    Attributes:
        tokens: Texts (T_i,) or (T_i, parts), longest first, or pieces (T, B) of a long one.
        targets: Their classes (B,), or the characters that follow, (T, B).
        told: What they are.
    """

    tokens: list[Tensor] | Tensor
    targets: Tensor
    told: str


def lesson(read: ModelFile, file: Path | None, steps: int, batch: int, seed: int) -> Lesson:
    """Draw texts for a model: of what it was trained on, or of a file of the same kind.

    Args:
        read: The model.
        file: Lines `label<TAB>text`, a folder, or for a model of text a text; None: what the model file names.
        steps: T of the pieces of a long text.
        batch: B.
        seed: Of which texts are drawn.

    Raises:
        ValueError: The file holds something else, has labels that the model does not know, or is needed.
        OSError: It cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    if not read.classes:
        text, source = datasets.long_text(Path(read.text) if file is None and read.text is not None else file)
        drawn = pieces(read.vocabulary.encode(text), steps, batch, generator)
        return Lesson(drawn[:-1], drawn[1:], f"{batch} of T = {steps} characters from {source}")
    if file is None and read.task not in datasets.TASKS and not Path(read.task).exists():
        raise ValueError(
            f"expected {read.task}, on which the model was trained, to be there; flow takes others by --input"
        )
    if file is None and read.task in datasets.TASKS:
        dataset = datasets.TASKS[read.task]()
    else:
        dataset = datasets.read(Path(read.task) if file is None else file)
    missing = sorted(set(dataset.classes) - set(read.classes))
    if missing:
        raise ValueError(f"expected labels that the model knows in {dataset.source}, got {', '.join(missing[:5])}")
    encoded = {place: read.vocabulary.encode(text) for place, text in enumerate(dataset.texts)}
    usable = [place for place, numbers in encoded.items() if 2 <= len(numbers) <= LONGEST]
    if not usable:
        raise ValueError(f"expected texts of 2 to {LONGEST} {read.vocabulary.kind} in {dataset.source}, got none")
    chosen = [usable[place] for place in torch.randperm(len(usable), generator=generator)[:batch].tolist()]
    chosen.sort(key=lambda place: -len(encoded[place]))
    texts = [torch.tensor(encoded[place]) for place in chosen]
    labels = torch.tensor([read.classes.index(dataset.classes[dataset.labels[place]]) for place in chosen])
    return Lesson(texts, labels, f"{len(texts)} texts from {dataset.source}")


def pieces(numbers: Sequence[int], steps: int, batch: int, generator: torch.Generator) -> Tensor:
    """Pieces of a long text from anywhere in it, each with the character that follows: (steps + 1, batch).

    Raises:
        ValueError: The text is too short.
    """
    if len(numbers) < steps + 2:
        raise ValueError(f"expected a text of more than {steps + 1} characters for T = {steps}, got {len(numbers)}")
    starts = torch.randint(len(numbers) - steps, (batch,), generator=generator).tolist()
    return torch.tensor([numbers[start : start + steps + 1] for start in starts]).t()


def as_read(read: ModelFile, drawn: Lesson) -> tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]:
    """What a model's recurrence reads, how long each text is, and the loss as a function of its output; in float64.

    Returns:
        x (T, B, D); lengths (B,), or None for pieces of one length; and the mean loss of the states (T, B, H).
    """
    model = read.model.double()
    lengths = None
    if isinstance(drawn.tokens, Tensor):
        numbers = drawn.tokens
    else:
        numbers = pad_sequence(drawn.tokens)
        lengths = torch.tensor([len(text) for text in drawn.tokens])
    with torch.no_grad():
        x = model._read(numbers)

    def loss(output: Tensor) -> Tensor:
        if lengths is None:
            return model.loss(model._output(output), drawn.targets, None) / drawn.targets.numel()
        if model.shape.loss == "every":
            return model.loss(model._output(output), drawn.targets, lengths) / len(lengths)
        H = model.shape.hidden
        last = output[lengths - 1, torch.arange(len(lengths)), :H]
        h = torch.cat((last, output[0, :, H:]), 1)  # the other direction ends at the first step
        return model.loss(model._output(h.unsqueeze(0)).squeeze(0), drawn.targets, None) / len(lengths)

    return x, lengths, loss
