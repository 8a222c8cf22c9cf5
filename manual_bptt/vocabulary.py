"""Text as numbers: characters, or words with the endings of those that are not known."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from manual_bptt.datasets import lines

UNKNOWN = 0
ENDING = 3  # letters by which an unknown word is known
KINDS = ("characters", "words")


class Vocabulary:
    """What the numbers of a model mean.

    A word that is not in it is read as its ending, "~ung", if that is; everything else unknown is 0.

    Attributes:
        kind: "characters" or "words".
        entries: The characters, or words in lower case and endings, numbered from 1 on.
    """

    def __init__(self, kind: str, entries: Sequence[str]) -> None:
        self.kind, self.entries = kind, tuple(entries)
        self._numbers = {entry: number for number, entry in enumerate(self.entries, 1)}

    @classmethod
    def of(cls, kind: str, texts: Iterable[str]) -> "Vocabulary":
        """Everything that occurs in some texts."""
        tokens = {token for text in texts for token in split(kind, text)}
        endings = {ending(token) for token in tokens} if kind == "words" else set()
        return cls(kind, sorted(tokens | endings))

    def __len__(self) -> int:
        return len(self.entries) + 1

    def encode(self, text: str) -> list[int]:
        """The numbers of a text."""
        return [self._number(token) for token in split(self.kind, text)]

    def endings(self, text: str) -> list[int]:
        """The numbers of a text as if none of its words were known."""
        return [self._numbers.get(ending(token), UNKNOWN) for token in split(self.kind, text)]

    def decode(self, numbers: Iterable[int]) -> str:
        """Characters as text; a replacement character for what is unknown."""
        return "".join("\ufffd" if number == UNKNOWN else self.entries[number - 1] for number in numbers)

    def _number(self, token: str) -> int:
        number = self._numbers.get(token)
        if number is None and self.kind == "words":
            number = self._numbers.get(ending(token))
        return UNKNOWN if number is None else number


def split(kind: str, text: str) -> list[str]:
    """A text's characters, or its words and punctuation marks in lower case; accented letters as one character each."""
    text = unicodedata.normalize("NFC", text)
    return list(text) if kind == "characters" else re.findall(r"\w+|[^\w\s]", text.lower())


def ending(word: str) -> str:
    """The entry that stands for a word which is not known."""
    return f"~{word[-ENDING:]}"


def read_vectors(file: Path, vocabulary: Vocabulary, size: int | None) -> tuple[Tensor, int]:
    """Read word vectors from a word2vec text file: a line `word number number …` each, after an optional `count size`.

    Args:
        file: UTF-8.
        vocabulary: Whose entries are looked for; words are compared in lower case.
        size: How long the vectors have to be; None: as long as the first is.

    Returns:
        (entries + 1, size), zero where there is no vector; and for how many entries there is one.

    Raises:
        ValueError: A line that is none, with its number.
        OSError: It cannot be read.
    """
    numbers = {entry: number for number, entry in enumerate(vocabulary.entries, 1)}
    vectors: dict[int, list[float]] = {}
    for count, line in enumerate(lines(file), 1):
        word, *values = line.rstrip().rsplit(" ", max(0, line.rstrip().count(" ") if size is None else size))
        if count == 1 and len(values) == 1 and word.isdigit() and values[0].isdigit():
            size = int(values[0])  # the header of word2vec: how many, how long
            continue
        try:
            vector = [float(value) for value in values]
        except ValueError:
            vector = []
        size = len(vector) if size is None else size
        if len(vector) != size or size == 0 or not all(map(math.isfinite, vector)):
            raise ValueError(f"expected a word and {size or 'its'} numbers in {file}, line {count}, got {line[:60]!r}")
        number = numbers.get(word.lower())
        if number is not None:
            vectors.setdefault(number, vector)
    if size is None:
        raise ValueError(f"expected word vectors in {file}, got an empty file")
    table = torch.zeros(len(vocabulary), size)
    for number, vector in vectors.items():
        table[number] = torch.tensor(vector)
    return table, len(vectors)
