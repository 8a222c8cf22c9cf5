"""What `bptt flow` looks at: a network, drawn or from a file, and sequences, of text, drawn or from a file."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_bptt.cli.lesson import LONGEST, as_read, lesson, pieces
from manual_bptt.cli.model_file import read_model
from manual_bptt.cli.saved import read_network, read_sequences
from manual_bptt.datasets import long_text
from manual_bptt.functional import softmax_cross_entropy
from manual_bptt.modules import RNN
from manual_bptt.network import ElmanNetwork

EVERY = "every"


@dataclass(frozen=True, eq=False)
class Source:
    """A network and what is asked of it; everything in float64.

    Attributes:
        network: What is looked at.
        x: Its input, time first.
        loss: Maps its output to a loss.
        told: What network, sequences and loss are, a line each.
        lengths: How long each sequence is, longest first; None: all T.
    """

    network: RNN | ElmanNetwork
    x: Tensor
    loss: Callable[[Tensor], Tensor]
    told: tuple[str, ...]
    lengths: Tensor | None = None


def drawn(
    text: Path | None, hidden: int, radius: float | None, steps: int, batch: int, nonlinearity: str, at: str, seed: int
) -> Source:
    """Draw a network and read pieces of a text, whose next character it is to predict.

    Args:
        text: A file of text, UTF-8; None: the English text that comes with Python.
        hidden: H.
        radius: The spectral radius that W is scaled to; None: as it is drawn.
        steps: T.
        batch: B, pieces from all over the text.
        nonlinearity: f.
        at: Whether there is a loss at "every" step or the "last".
        seed: Of the weights and of where the pieces are.

    Raises:
        ValueError: The text is too short or no text.
    """
    if text is not None and text.suffix != ".txt":
        raise ValueError(f"expected a text, FILE.txt, as --input without a MODEL, got {text}")
    characters, source = long_text(text)
    alphabet = sorted(set(characters))
    number = {character: index for index, character in enumerate(alphabet)}
    generator = torch.Generator().manual_seed(seed)
    tokens = pieces([number[each] for each in characters], steps, batch, generator)  # (T + 1, B)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ElmanNetwork(len(alphabet), hidden, len(alphabet), nonlinearity, dtype=torch.float64)
    where = f"drawn with seed {seed}"
    if radius is not None:
        network = scaled(network, radius)
        where += f", W scaled to the spectral radius {radius:g}"

    def loss(o: Tensor) -> Tensor:
        time = "mean" if at == EVERY else "last"
        y = tokens[1:] if at == EVERY else tokens[-1]
        return softmax_cross_entropy(o, y, time=time, batch="mean")

    told = (
        f"network    {network}, {where}",
        f"sequences  {batch} of T = {steps} characters from {source}",
        f"loss       cross-entropy of the next character, {_at(at)}",
    )
    return Source(network, tokens[:-1], loss, told)


def saved(
    model: Path,
    part: str | None,
    file: Path | None,
    batch_first: bool,
    steps: int,
    batch: int,
    nonlinearity: str,
    at: str,
    seed: int,
) -> Source:
    """Read a network from a file of parameters, and its input from another, or draw it.

    Args:
        model: What torch.save wrote of a state_dict, also of a model that holds an RNN somewhere.
        part: The prefix of its parameters in there, "encoder.rnn"; None: there is one recurrent network alone.
        file: The input; None: standard normal numbers.
        batch_first: Whether the input in the file is (B, T, D).
        steps: T of input that is drawn.
        batch: B of input that is drawn.
        nonlinearity: f, which a state_dict does not tell.
        at: Whether there is a loss at "every" step or the "last".
        seed: Of input that is drawn.

    Raises:
        ValueError, OSError: A file that cannot be read or holds something else.
    """
    network, name = read_network(model, part, nonlinearity)
    lengths = None
    if file is None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(steps, batch, network.input_size, dtype=torch.float64, generator=generator)
        sequences = f"{batch} of T = {steps} standard normal numbers, drawn with seed {seed}"
    else:
        x, lengths = _sequences(file, batch_first, network)
        sequences = f"{x.shape[1]} of T = {x.shape[0]} from {file}"
        if lengths is not None:
            sequences += f", lengths {int(lengths.min())} to {int(lengths.max())}"

    def loss(output: Tensor) -> Tensor:
        if at != EVERY:
            T, B = output.shape[:2]
            ends = torch.full((B,), T) if lengths is None else lengths
            output = output[(ends - 1).clamp(min=0), torch.arange(B)]
        return output.square().sum() / 2

    told = (
        f"network    {network}, f = {nonlinearity}, from {model}{f' ({name})' if name else ''}",
        f"sequences  {sequences}",
        f"loss       half the sum of squares of the output, {_at(at)}",
    )
    return Source(network, x, loss, told, lengths)


def _sequences(file: Path, batch_first: bool, network: RNN | ElmanNetwork) -> tuple[Tensor, Tensor | None]:
    """Sequences (T, B, D) in float64, or tokens (T, B), and their lengths, longest first."""
    x, lengths = read_sequences(file)
    tokens = isinstance(network, ElmanNetwork) and x.dim() == 2 and not x.is_floating_point()
    if not tokens:
        order = "(B, T, D)" if batch_first else "(T, B, D)"
        if x.dim() != 3 or x.shape[2] != network.input_size:
            hint = ": tokens have to be embedded, as the network gets them" if not x.is_floating_point() else ""
            raise ValueError(f"expected {order} with D = {network.input_size} in {file}, got {tuple(x.shape)}{hint}")
        x = x.double()
        if not x.isfinite().all():
            raise ValueError(f"expected finite numbers in {file}, got NaN or infinite ones")
    x = x.transpose(0, 1) if batch_first else x
    T, B = x.shape[:2]
    if not 2 <= T <= LONGEST or B == 0:
        raise ValueError(f"expected 2 to {LONGEST} steps of one sequence or more in {file}, got T = {T}, B = {B}")
    if lengths is None:
        return x, None
    if isinstance(network, ElmanNetwork):
        raise ValueError(f"expected no lengths in {file} beside an ElmanNetwork, got some")
    if lengths.shape != (B,) or not ((lengths >= 0) & (lengths <= T)).all():
        found = f"shape {tuple(lengths.shape)}, from {lengths.min()} to {lengths.max()}" if lengths.numel() else "none"
        hint = "" if batch_first else "; is x (B, T, D)? then --batch-first"
        raise ValueError(f"expected lengths of shape ({B},), from 0 to T = {T}, in {file}, got {found}{hint}")
    lengths, order_of_rows = lengths.sort(descending=True)
    return x[:, order_of_rows], lengths


def trained(model: Path, file: Path | None, steps: int, batch: int, seed: int) -> Source:
    """Take the recurrence of a model that `bptt train` wrote, its own loss, and texts of what it was trained on.

    Args:
        model: The model file.
        file: Texts of the same kind; None: what the model was trained on.
        steps: T of the pieces of a long text.
        batch: B.
        seed: Of which texts are drawn.

    Raises:
        ValueError, OSError: As `read_model` and `lesson`.
    """
    read = read_model(model)
    drawn_texts = lesson(read, file, steps, batch, seed)
    x, lengths, loss = as_read(read, drawn_texts)
    network = read.model.recurrence
    assert isinstance(network, RNN)
    of = "every next character" if lengths is None else "the class, after the last step"
    told = (
        f"network    {network}, f = {network.nonlinearity}, trained, from {model}",
        f"sequences  {drawn_texts.told}"
        + ("" if lengths is None else f", of {lengths.min()} to {lengths.max()} steps"),
        f"loss       cross-entropy of {of}",
    )
    return Source(network, x, loss, told, lengths)


def scaled(network: Any, radius: float, nonlinearity: str | None = None) -> Any:
    """A copy of a network whose W, of every layer and direction, have a spectral radius, and if told so another f.

    Raises:
        ValueError: A W has the spectral radius 0.
    """
    changed = copy.deepcopy(network)
    if nonlinearity is not None:
        changed.nonlinearity = nonlinearity
        if isinstance(changed, RNN):
            changed.mode = f"RNN_{nonlinearity.upper()}"
    for name, W in changed.named_parameters():
        if name == "W" or name.startswith("weight_hh"):
            own = torch.linalg.eigvals(W.detach()).abs().max().item()
            if own == 0:
                raise ValueError(f"expected {name} to have a spectral radius to scale, got 0")
            W.data.mul_(radius / own)
    return changed


def _at(at: str) -> str:
    return "at every step" if at == EVERY else "at the last step of each sequence"
