"""What `bptt verify` computes on: a batch of real names, and weights that make every mistake visible."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from manual_bptt.data import surnames

IGNORED = -100


@dataclass(frozen=True)
class Problem:
    """One network, one batch, one loss.

    Attributes:
        title: One line that says what is predicted, and when.
        names: The names, a batch row each.
        countries: The country of each.
        parameters: U (H, D), W (H, H), V (K, H), b (H,), c (K,), float32 on the CPU.
        x: One-hot characters (T, B, D); all zero past a name's end.
        h0: (B, H), not zero: a mistake in dL/dh_0 or at the first step would hide behind zeros.
        targets: Class indices (T, B); IGNORED where no loss is taken.
        options: The nonlinearity and the loss options, by the names of `bptt`.
    """

    title: str
    names: tuple[str, ...]
    countries: tuple[str, ...]
    parameters: dict[str, Tensor]
    x: Tensor
    h0: Tensor
    targets: Tensor
    options: dict[str, Any]

    def sizes(self) -> dict[str, int]:
        """T, B, D, H and K."""
        T, B, D = self.x.shape
        K, H = self.parameters["V"].shape
        return {"T": T, "B": B, "D": D, "H": H, "K": K}


def name_problems(batch: int, hidden: int, longest: int, nonlinearity: str, seed: int) -> list[Problem]:
    """Draw a batch of surnames and make two problems of it: name → country, and the next character.

    Args:
        batch: B, the number of names; the countries take turns.
        hidden: H.
        longest: Names with more characters are not drawn.
        nonlinearity: Name of the nonlinearity.
        seed: Same seed, same names and same weights.

    Raises:
        ValueError: A country has no name that short.
        MissingPackageError: Faker is not installed.
    """
    generator = torch.Generator().manual_seed(seed)
    known = surnames()
    countries = list(known)
    names, labels = _draw(known, batch, longest, generator)
    alphabet = sorted(set("".join(names)))
    steps = max(map(len, names))
    characters = torch.full((steps, batch), IGNORED)
    following = torch.full((steps, batch), IGNORED)  # the next character; one more class stands for the name's end
    country = torch.full((steps, batch), IGNORED)
    for row, name in enumerate(names):
        indices = [alphabet.index(character) for character in name]
        characters[: len(name), row] = torch.tensor(indices)
        following[: len(name), row] = torch.tensor([*indices[1:], len(alphabet)])
        country[len(name) - 1, row] = labels[row]
    x = functional.one_hot(characters.clamp(min=0), len(alphabet)).float()
    x *= (characters != IGNORED).unsqueeze(-1)
    h0 = torch.randn(batch, hidden, generator=generator) / 2
    options = {"nonlinearity": nonlinearity, "time": "sum", "batch": "mean", "ignore_index": IGNORED}

    def problem(title: str, targets: Tensor, classes: int) -> Problem:
        parameters = _parameters(len(alphabet), hidden, classes, generator)
        return Problem(title, names, tuple(countries[label] for label in labels), parameters, x, h0, targets, options)

    return [
        problem("name → country, loss at the name's last character", country, len(countries)),
        problem("next character, loss at every character", following, len(alphabet) + 1),
    ]


def _draw(
    known: dict[str, tuple[str, ...]], batch: int, longest: int, generator: torch.Generator
) -> tuple[tuple[str, ...], list[int]]:
    names: list[str] = []
    labels = [row % len(known) for row in range(batch)]
    lists = list(known.items())
    for label in labels:
        country, candidates = lists[label]
        short = [name for name in candidates if len(name) <= longest]
        if not short:
            raise ValueError(f"expected names of at most {longest} characters, but {country} has none so short")
        names.append(short[int(torch.randint(len(short), (), generator=generator))])
    return tuple(names), labels


def _parameters(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw weights that make |a_t| about 1: a smaller a_t hides a mistake in f', a larger one everything else."""

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    return {
        "U": normal(0.8, hidden, inputs),
        "W": normal(0.9 * hidden**-0.5, hidden, hidden),
        "V": normal(hidden**-0.5, outputs, hidden),
        "b": normal(0.3, hidden),
        "c": normal(0.3, outputs),
    }
