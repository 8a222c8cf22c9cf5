"""Programs written for torch.nn.RNN and torch.nn.RNNCell: the class is swapped, and nothing else.

A language model (tied weights, dropout, truncated BPTT, clipping), a classifier of packed sequences and a cell loop
give the same losses step by step and end with the same parameters; so they do when `convert` or `restore` comes in the
middle of training, with the optimizer kept. Would catch another dropout mask, another initialisation or state of the
generator, a hidden state in another order, a parameter that the optimizer no longer knows, and errors that grow from
step to step.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from problems import assert_close, seeded
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import manual_bptt
from manual_bptt import kernels
from manual_bptt.kernels import eager

Midway = dict[int, Callable[[nn.Module], nn.Module]]  # what is done to the model before a step
WORDS = 23


class Outcome(NamedTuple):
    """What a program leaves behind."""

    losses: Tensor
    parameters: dict[str, Tensor]
    model: nn.Module


class Classes(NamedTuple):
    """The two names that a program imports."""

    RNN: Any
    RNNCell: Any


TORCH, HERE = Classes(nn.RNN, nn.RNNCell), Classes(manual_bptt.RNN, manual_bptt.RNNCell)


@pytest.fixture(autouse=True)
def double_and_no_cudnn() -> Any:
    """Float64 throughout; cuDNN draws dropout from a generator of its own."""
    torch.set_default_dtype(torch.float64)
    with torch.backends.cudnn.flags(enabled=False):
        yield
    torch.set_default_dtype(torch.float32)


def language_model(classes: Classes, device: torch.device, midway: Midway, nonlinearity: str) -> Outcome:
    """Word-level: embedding and output tied, dropout around and between two layers, truncated BPTT, clipping, decay."""
    torch.manual_seed(1)
    words, width, bptt, B = WORDS, 16, 6, 4
    text = (torch.arange(B * (3 * bptt + 1)) * 5).view(B, -1).t() % words
    text = torch.where(torch.rand(text.shape, generator=seeded(2)) < 0.1, text.flip(0), text).to(device)

    class LanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.2)
            self.encoder = nn.Embedding(words, width)
            self.rnn = classes.RNN(width, width, 2, nonlinearity=nonlinearity, dropout=0.3)
            self.decoder = nn.Linear(width, words)
            self.decoder.weight = self.encoder.weight
            nn.init.uniform_(self.encoder.weight, -0.5, 0.5)

        def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
            output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
            return self.decoder(self.drop(output)), hidden

        def init_hidden(self) -> Tensor:
            return next(self.parameters()).new_zeros(2, B, width)

    model = LanguageModel().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    losses: list[Tensor] = []
    for _ in range(12):
        hidden = model.init_hidden()
        for start in range(0, text.shape[0] - 1, bptt):
            midway.get(len(losses), _nothing)(model)
            data, target = text[start : start + bptt], text[start + 1 : start + 1 + bptt]
            hidden = hidden.detach()
            optimizer.zero_grad()
            output, hidden = model(data, hidden)
            loss = functional.cross_entropy(output.view(-1, words), target.reshape(-1))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.detach())
        schedule.step()
    model.eval()
    with torch.no_grad():
        losses.append(model(text[:-1], model.init_hidden())[0].square().mean())
    return outcome(losses, model)


def packed_classifier(classes: Classes, device: torch.device, midway: Midway, nonlinearity: str) -> Outcome:
    """Sequences of any length in any order: which of three tokens came first decides the class."""
    torch.manual_seed(3)
    generator = seeded(4)
    lengths = torch.randint(2, 9, (40,), generator=generator)
    sequences = [torch.randint(1, 12, (int(n),), generator=generator) for n in lengths]
    classes_of = torch.stack([sequence[0] % 3 for sequence in sequences]).to(device)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(12, 6, padding_idx=0)
            self.rnn = classes.RNN(6, 9, nonlinearity=nonlinearity, batch_first=True, bidirectional=True)
            self.fc = nn.Linear(18, 3)

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            embedded = self.embedding(tokens)
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            _, h_n = self.rnn(packed)
            return self.fc(torch.cat((h_n[-2], h_n[-1]), dim=1))

    model = Classifier().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(30):
        midway.get(step, _nothing)(model)
        rows = range(step * 8 % 40, step * 8 % 40 + 8)
        tokens = pad_sequence([sequences[row] for row in rows], batch_first=True).to(device)
        loss = functional.cross_entropy(model(tokens, lengths[list(rows)]), classes_of[list(rows)])
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return outcome(losses, model)


def cell_loop(classes: Classes, device: torch.device, midway: Midway, nonlinearity: str) -> Outcome:
    """Sequence to sequence: read a sequence with one cell, write it backwards with another, fed the right answers."""
    torch.manual_seed(5)
    symbols, start, T, B = 7, 0, 5, 6
    source = torch.randint(1, symbols, (T, B), generator=seeded(6)).to(device)
    target = source.flip(0)

    class Seq2Seq(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(symbols, 5)
            self.encoder = classes.RNNCell(5, 11, nonlinearity=nonlinearity)
            self.decoder = classes.RNNCell(5, 11, bias=False, nonlinearity=nonlinearity)
            self.out = nn.Linear(11, symbols)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            h = None
            for tokens in source:
                h = self.encoder(self.embedding(tokens), h)
            tokens = torch.full_like(target[0], start)
            scores = []
            for answer in target:
                h = self.decoder(self.embedding(tokens), h)
                scores.append(self.out(h))
                tokens = answer
            return torch.stack(scores)

    model = Seq2Seq().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for step in range(30):
        midway.get(step, _nothing)(model)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return outcome(losses, model)


def outcome(losses: list[Tensor], model: nn.Module) -> Outcome:
    return Outcome(torch.stack(losses), {name: p.detach() for name, p in model.named_parameters()}, model)


def _nothing(model: nn.Module) -> nn.Module:
    return model


PROGRAMS = {
    f"{program.__name__}-{nonlinearity}": partial(program, nonlinearity=nonlinearity)
    for program, nonlinearity in itertools.product((language_model, packed_classifier, cell_loop), ("tanh", "relu"))
}
each_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
TRUTHS: dict[Any, Outcome] = {}


def truth_of(program: Any, device: torch.device) -> Outcome:
    """The program with torch.nn's classes, run once."""
    if (program, device) not in TRUTHS:
        TRUTHS[program, device] = program(TORCH, device, {})
    return TRUTHS[program, device]


def assert_same_training(actual: Outcome, truth: Outcome) -> None:
    """Losses at every step within 1e-10, parameters at the end within 1e-9."""
    assert truth.losses[:3].mean() > 1.25 * truth.losses[27:30].mean() > 0, "nothing has been learnt"
    difference = (actual.losses - truth.losses).abs()
    assert (difference <= 1e-10).all(), (
        f"first at step {int((~(difference <= 1e-10)).nonzero()[0])}: {difference.max()}"
    )
    assert list(actual.parameters) == list(truth.parameters)
    for name, parameter in truth.parameters.items():
        assert_close(name, actual.parameters[name], parameter, 1e-9)


def recurrent(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules() if isinstance(module, (nn.RNNBase, nn.RNNCellBase))]


@each_program
def test_a_program_gives_the_same_losses_after_the_class_is_swapped(program, device):
    swapped = program(HERE, device, {})
    assert set(recurrent(swapped.model)) <= set(HERE)
    assert_same_training(swapped, truth_of(program, device))


SWITCHES: dict[str, tuple[Classes, Midway, Classes]] = {
    "convert": (TORCH, {13: manual_bptt.convert}, HERE),
    "restore": (HERE, {13: manual_bptt.restore}, TORCH),
    "both": (TORCH, {0: manual_bptt.convert, 7: manual_bptt.restore, 19: manual_bptt.convert}, HERE),
}


@each_program
@pytest.mark.parametrize("switch", SWITCHES)
def test_training_goes_on_as_if_nothing_happened_when_the_model_is_converted_midway(program, switch, device):
    classes, midway, in_the_end = SWITCHES[switch]
    switched = program(classes, device, midway)
    assert set(recurrent(switched.model)) <= set(in_the_end)
    assert_same_training(switched, truth_of(program, device))


@pytest.mark.parametrize("slip", ["backward", "forward"])
@each_program
def test_a_small_slip_is_seen_by_every_program(program, slip, device, monkeypatch):
    right = getattr(eager, slip)
    units = 1e-6 * torch.arange(20, device=device)  # not one factor for all: Adam would not see it
    monkeypatch.setattr(eager, slip, lambda a, *rest: right(a, *rest).mul_(1 + units[: a.shape[-1]]))
    with kernels.use("eager"), pytest.raises(AssertionError, match="first at step"):
        assert_same_training(program(HERE, device, {}), truth_of(program, device))
