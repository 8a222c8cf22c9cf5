"""A baseline that every trained classifier is reported beside: naive Bayes on character n-grams, without training."""

import math
from collections import Counter
from collections.abc import Iterator

from manual_bptt.datasets import Dataset

LONGEST, ADDED = 4, 0.1  # n-grams of 1 to 4 characters; what is added to every count, so that none is 0


class NaiveBayes:
    """P(class | text) ∝ P(class) ∏ P(n-gram | class), the n-grams of a text taken for independent.

    Args:
        dataset: Texts whose n-grams are counted.
    """

    def __init__(self, dataset: Dataset) -> None:
        counts = [Counter[str]() for _ in dataset.classes]
        for text, label in zip(dataset.texts, dataset.labels, strict=True):
            counts[label].update(_grams(text))
        known = len(set().union(*counts)) + 1
        self._priors = [math.log(count / len(dataset)) for count in dataset.counts()]
        totals = [sum(each.values()) + ADDED * known for each in counts]
        self._counts, self._totals = counts, totals

    def predict(self, text: str) -> int:
        """The index of the most probable class."""
        scores = list(self._priors)
        for gram in _grams(text):
            for label, (count, total) in enumerate(zip(self._counts, self._totals, strict=True)):
                scores[label] += math.log((count[gram] + ADDED) / total)
        return max(range(len(scores)), key=scores.__getitem__)


def _grams(text: str) -> Iterator[str]:
    marked = f"^{text.lower()}$"
    for length in range(1, LONGEST + 1):
        for start in range(len(marked) - length + 1):
            yield marked[start : start + length]
