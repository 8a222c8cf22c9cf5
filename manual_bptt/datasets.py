"""Labelled text for training: names, sentences, files of the user's; and splits that no near-duplicate crosses.

What is read from installed packages is read when it is asked for; nothing of it is copied into the project.
"""

import gettext
import importlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from manual_bptt.data import MissingPackageError, english_text, english_text_source, surnames_of

# Language -> the locale of Faker whose surnames stand for it: Latin script, 150 names or more.
NAME_LOCALES = {
    "Azerbaijani": "az_AZ",
    "Croatian": "hr_HR",
    "Czech": "cs_CZ",
    "Dutch": "nl_NL",
    "English": "en_GB",
    "Estonian": "et_EE",
    "Finnish": "fi_FI",
    "French": "fr_FR",
    "German": "de_DE",
    "Indonesian": "id_ID",
    "Irish": "ga_IE",
    "Italian": "it_IT",
    "Slovak": "sk_SK",
    "Slovene": "sl_SI",
    "Spanish": "es_ES",
    "Swedish": "sv_SE",
    "Uzbek": "uz_UZ",
    "Zulu": "zu_ZA",
}
# Language -> its catalogue in Django; English are the messages that the others translate.
SENTENCE_CATALOGUES = {
    "Dutch": "nl",
    "English": "",
    "French": "fr",
    "German": "de",
    "Italian": "it",
    "Portuguese": "pt",
    "Spanish": "es",
    "Swedish": "sv",
}
PLACEHOLDER = re.compile(r"%(\(\w+\))?[a-z]|\{\w*\}")
NO_SENTENCE = re.compile(r"[%{}<>|\\]|https?:|&\w+;")  # what is left of placeholders, markup, addresses
LEAST_WORDS = 3


@dataclass(frozen=True)
class Dataset:
    """Texts with a label each.

    Attributes:
        texts: Distinct texts.
        labels: Of each text the index of its class.
        classes: Their names, in the order of the alphabet.
        source: Where it comes from: package, version and licence, or the file; and what was left out.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.texts)

    def counts(self) -> list[int]:
        """How many texts each class has."""
        counted = Counter(self.labels)
        return [counted[index] for index in range(len(self.classes))]

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """The texts at some places, with the same classes."""
        chosen = list(indices)
        texts, labels = tuple(self.texts[each] for each in chosen), tuple(self.labels[each] for each in chosen)
        return Dataset(texts, labels, self.classes, self.source)


def names() -> Dataset:
    """Surnames of 18 languages from Faker's locale lists, in lower case, accents kept.

    A name that stands in the lists of several languages is left out of all of them: it has no one right answer.

    Raises:
        MissingPackageError: Faker is not installed.
    """
    lists = {language: surnames_of(locale) for language, locale in NAME_LOCALES.items()}
    return _dataset(lists, f"surnames from the locale lists of Faker {version('faker')} (MIT licence)")


def sentences() -> Dataset:
    """Sentences in eight languages from the translation catalogues that Django brings with it.

    Placeholders are cut out of the messages, and lines are joined. Left out are messages with markup or addresses, and
    those of which fewer than three words are left.

    Raises:
        MissingPackageError: Django is not installed.
    """
    try:
        root = Path(importlib.import_module("django").__file__ or "").parent
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "sentences need the package django, which is not installed: pip install 'manual-bptt[data]'"
        ) from error
    lists: dict[str, list[str]] = {language: [] for language in SENTENCE_CATALOGUES}
    for language, folder in SENTENCE_CATALOGUES.items():
        for file in sorted(root.rglob(f"locale/{folder or 'de'}/LC_MESSAGES/django.mo")):
            with open(file, "rb") as handle:
                catalogue = gettext.GNUTranslations(handle)._catalog  # type: ignore[attr-defined]
            for message, translation in catalogue.items():
                text = translation if folder else message
                message, text = (each[0] if isinstance(each, tuple) else each for each in (message, text))
                text = PLACEHOLDER.sub(" ", text.rpartition("\x04")[2])
                lists[language].append(" ".join(text.split()))
    kept = {
        language: {text for text in found if not NO_SENTENCE.search(text) and len(text.split()) >= LEAST_WORDS}
        for language, found in lists.items()
    }
    return _dataset(kept, f"messages from the translation catalogues of Django {version('django')} (BSD licence)")


def read(path: Path) -> Dataset:
    """Read labelled text of the user's: a file of lines `label<TAB>text`, or a folder of files `Label.txt`.

    UTF-8; empty lines count as nothing, and a text that stands under several labels is left out of all of them.

    Raises:
        ValueError: A line without a tab, or with nothing before or after it (with its number); a byte that is no UTF-8
            (with its line); no text at all; fewer than two labels.
        OSError: It cannot be read.
    """
    lists: dict[str, list[str]] = defaultdict(list)
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise ValueError(f"expected files Label.txt in {path}, got none")
        for file in files:
            lists[file.stem] += [line.strip() for line in lines(file) if line.strip()]
    else:
        for number, line in enumerate(lines(path), 1):
            if not line.strip():
                continue
            label, tab, text = line.partition("\t")
            if not tab or not label.strip() or not text.strip():
                raise ValueError(f"expected label<TAB>text in {path}, line {number}, got {line[:60]!r}")
            lists[label.strip()].append(text.strip())
    return _dataset(lists, str(path))


TASKS: dict[str, Callable[[], Dataset]] = {"names": names, "sentences": sentences}


def long_text(file: Path | None) -> tuple[str, str]:
    """Read a text, UTF-8, or the English one that comes with Python; and name where it comes from.

    Raises:
        ValueError: A byte is no UTF-8; with its line.
        OSError: The file cannot be read.
        MissingPackageError: This Python comes without a text.
    """
    if file is None:
        return english_text(), english_text_source()
    return "\n".join(lines(file)), str(file)


def lines(file: Path) -> Iterator[str]:
    """The lines of a text in UTF-8.

    Raises:
        ValueError: A byte is no UTF-8; with its line.
    """
    data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(data.splitlines(), 1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"expected {file} to be in UTF-8, got another byte in line {number}") from error


def _dataset(lists: Mapping[str, Iterable[str]], source: str) -> Dataset:
    """Distinct texts with one label each, in a fixed order."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for label, texts in lists.items():
        for text in texts:
            labels_of[unicodedata.normalize("NFC", text)].add(label)
    several = sum(len(labels) > 1 for labels in labels_of.values())
    pairs = sorted((*labels, text) for text, labels in labels_of.items() if len(labels) == 1)
    classes = tuple(sorted({label for label, _ in pairs}))
    if not pairs:
        raise ValueError(f"expected labelled text in {source}, got none")
    if len(classes) < 2:
        raise ValueError(f"expected two labels or more in {source}, got {classes[0]!r} alone")
    if several:
        source += f"; {several} that stand under several labels are left out"
    index = {label: place for place, label in enumerate(classes)}
    return Dataset(tuple(text for _, text in pairs), tuple(index[label] for label, _ in pairs), classes, source)


def split(dataset: Dataset, seed: int, part: float = 0.1) -> tuple[Dataset, Dataset, Dataset]:
    """Split into training, validation and test texts, each class in about the same proportions.

    Near-duplicates stay together, see `groups`: a group that is larger than what a part still lacks is learned from.

    Args:
        dataset: What is split.
        seed: Same seed, same split.
        part: Share of validation, and of test.

    Raises:
        ValueError: A class has not three groups, or none that are small enough for validation and test.
    """
    members: dict[int, list[list[int]]] = defaultdict(list)
    for group in groups(dataset):
        members[dataset.labels[group[0]]].append(group)
    generator = torch.Generator().manual_seed(seed)
    chosen: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label, of_class in sorted(members.items()):
        if len(of_class) < 3:
            name = dataset.classes[label]
            raise ValueError(
                f"expected three different texts or more under {name!r} in {dataset.source}, got {len(of_class)}"
            )
        lacking = max(1, round(part * sum(map(len, of_class))))
        order = [of_class[place] for place in torch.randperm(len(of_class), generator=generator).tolist()]
        largest = max(range(len(order)), key=lambda place: len(order[place]))
        order.insert(0, order.pop(largest))  # which is learned from
        for texts in chosen[1:]:
            left = lacking
            for place in reversed(range(1, len(order))):
                if len(order[place]) <= left:
                    left -= len(order[place])
                    texts += order.pop(place)
                if left == 0:
                    break
            if left == lacking:
                name = dataset.classes[label]
                raise ValueError(f"expected more texts under {name!r} in {dataset.source} that are no near-duplicates")
        chosen[0].extend(index for group in order for index in group)
    training, validation, test = (dataset.subset(sorted(indices)) for indices in chosen)
    return training, validation, test


def groups(dataset: Dataset) -> list[list[int]]:
    """Group near-duplicates within a class, and return the places of each group.

    Near-duplicates are texts that are the same but for case, accents, digits and punctuation; words of four letters or
    more of which one is the other with up to three letters added, as names of men and women are; and texts of four
    words or more of which one has another word, or one word more.
    """
    parent = list(range(len(dataset)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[tuple[object, ...], int] = {}
    words = {place: _words(text) for place, text in enumerate(dataset.texts)}
    for place, of_text in words.items():
        for signature in _signatures(of_text):
            other = first.setdefault((dataset.labels[place], *signature), place)
            parent[root(place)] = root(other)
    for place, of_text in words.items():
        if len(of_text) == 1:
            for shorter in range(max(4, len(of_text[0]) - 3), len(of_text[0])):
                found = first.get((dataset.labels[place], "same", (of_text[0][:shorter],)))
                if found is not None:
                    parent[root(place)] = root(found)
    members: dict[int, list[int]] = defaultdict(list)
    for place in range(len(dataset)):
        members[root(place)].append(place)
    return list(members.values())


def _words(text: str) -> tuple[str, ...]:
    """The words of a text without case, accents, digits and punctuation."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    return tuple(re.findall(r"[^\W\d_]+", plain.casefold())) or (text,)


def _signatures(words: Sequence[str]) -> Iterator[tuple[object, ...]]:
    """What near-duplicates have in common."""
    yield "same", tuple(words)
    if len(words) >= 4:
        for gone in range(len(words)):
            yield "same", (*words[:gone], *words[gone + 1 :])
