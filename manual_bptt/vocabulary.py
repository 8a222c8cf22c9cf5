"""Text as numbers: characters, words with the endings of those that are not known, or words and their pieces."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_bptt.datasets import lines

UNKNOWN = 0
ENDING = 3  # letters by which an unknown word is known
PIECES = (3, 4)  # characters of what a word is cut into, with a sign for its beginning and its end
PARTS = 40  # numbers of a word at most: itself and its pieces, all of them in a word of 20 letters
KINDS = ("characters", "words", "subwords")


class Vocabulary:
    """What the numbers of a model mean.

    Words: one that is not known is read as its ending, "~ung", if that is. Subwords: every word is several numbers, its
    own and those of all its pieces of 3 and 4 characters, "~<ze", "~zeit", "~ung>" (Bojanowski and others, Enriching
    Word Vectors with Subword Information, 2017). Everything unknown is 0.

    Attributes:
        kind: "characters", "words" or "subwords".
        entries: The characters, or words in lower case and endings or pieces, numbered from 1 on.
        parts: How many numbers a token is, 0 beyond the last: 1, or PARTS for subwords.
    """

    def __init__(self, kind: str, entries: Sequence[str]) -> None:
        self.kind, self.entries = kind, tuple(entries)
        self.parts = PARTS if kind == "subwords" else 1
        self._numbers = {entry: number for number, entry in enumerate(self.entries, 1)}

    @classmethod
    def of(cls, kind: str, texts: Iterable[str]) -> "Vocabulary":
        """Everything that occurs in some texts."""
        tokens = {token for text in texts for token in split(kind, text)}
        if kind == "words":
            tokens |= {ending(token) for token in tokens}
        elif kind == "subwords":
            tokens |= {piece for token in tokens for piece in pieces(token)}
        return cls(kind, sorted(tokens))

    def __len__(self) -> int:
        return len(self.entries) + 1

    def encode(self, text: str) -> list[Any]:
        """The numbers of a text: one for a token, or a list of `parts` of them."""
        return [self._number(token, self._numbers.get(token, UNKNOWN)) for token in split(self.kind, text)]

    def unknown(self, text: str) -> list[Any]:
        """The numbers of a text as if none of its words were known."""
        return [self._number(token, UNKNOWN) for token in split(self.kind, text)]

    def decode(self, numbers: Iterable[int]) -> str:
        """Characters as text; a replacement character for what is unknown."""
        return "".join("\ufffd" if number == UNKNOWN else self.entries[number - 1] for number in numbers)

    def _number(self, token: str, number: int) -> int | list[int]:
        """What a token is read as that has a number of its own, or UNKNOWN."""
        if self.kind == "subwords":
            found = [number, *(self._numbers.get(piece, UNKNOWN) for piece in pieces(token))]
            return (found + [UNKNOWN] * PARTS)[:PARTS]
        if self.kind == "words" and number == UNKNOWN:
            return self._numbers.get(ending(token), UNKNOWN)
        return number


def split(kind: str, text: str) -> list[str]:
    """A text's characters, or its words and punctuation marks in lower case; accented letters as one character each."""
    text = unicodedata.normalize("NFC", text)
    return list(text) if kind == "characters" else re.findall(r"\w+|[^\w\s]", text.lower())


def ending(word: str) -> str:
    """The entry that stands for a word which is not known."""
    return f"~{word[-ENDING:]}"


def pieces(word: str) -> list[str]:
    """The entries for the pieces of a word."""
    marked = f"<{word}>"
    return [f"~{marked[start : start + n]}" for n in PIECES for start in range(len(marked) - n + 1)]


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
