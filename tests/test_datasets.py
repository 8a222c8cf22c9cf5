"""Labelled text: what is read, what is left out, and splits that no near-duplicate crosses.

Would catch: a text under two labels, a near-duplicate on both sides of a split, a class that is missing in a part, a
split that another run makes otherwise, a bad line that is taken or whose number is wrong, third-party text in the
repository.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from manual_bptt import data, datasets
from manual_bptt.datasets import Dataset, groups, read, split

SENTENCES = datasets.SENTENCE_CATALOGUES


@pytest.mark.parametrize(("make", "classes", "least"), [("names", 18, 140), ("sentences", 8, 290)])
def test_the_tasks_of_the_source_documents(make: str, classes: int, least: int) -> None:
    dataset: Dataset = getattr(datasets, make)()
    assert len(dataset.classes) == classes
    assert min(dataset.counts()) >= least
    assert len(set(dataset.texts)) == len(dataset)
    assert sum(dataset.counts()) == len(dataset)
    assert re.search(
        r"(Faker|Django) \d+\.\d+.* \((MIT|BSD) licence\); \d+ that stand under several labels", dataset.source
    )
    again: Dataset = getattr(datasets, make)()
    assert (again.texts, again.labels) == (dataset.texts, dataset.labels)


def test_names_keep_their_accents_and_stand_in_one_language() -> None:
    dataset = datasets.names()
    czech = [
        text for text, label in zip(dataset.texts, dataset.labels, strict=True) if dataset.classes[label] == "Czech"
    ]
    assert any("ř" in name for name in czech)
    assert all(name == name.lower() for name in dataset.texts)
    assert "martin" not in dataset.texts  # French and German, among others


def test_sentences_have_no_placeholder_and_no_markup() -> None:
    dataset = datasets.sentences()
    assert not any(re.search(r"[%<>{}|\n]|https?:", text) for text in dataset.texts)
    assert all(len(text.split()) >= 3 for text in dataset.texts)
    by_language = {name: [] for name in SENTENCES}
    for text, label in zip(dataset.texts, dataset.labels, strict=True):
        by_language[dataset.classes[label]].append(text)
    assert "Enter a valid email address." in by_language["English"]
    assert any("ß" in text for text in by_language["German"])


@pytest.mark.parametrize(("make", "module"), [("names", "faker.providers.person.az_AZ"), ("sentences", "django")])
def test_a_missing_package_is_named_with_the_command(make: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(data.MissingPackageError, match=r"pip install 'manual-bptt\[data\]'"):
        getattr(datasets, make)()


@pytest.mark.parametrize("make", ["names", "sentences"])
def test_splits_are_stratified_seeded_and_apart(make: str) -> None:
    dataset: Dataset = getattr(datasets, make)()
    parts = split(dataset, 0)
    assert sorted(text for part in parts for text in part.texts) == sorted(dataset.texts)
    for of_class, *in_parts in zip(dataset.counts(), *(part.counts() for part in parts), strict=True):
        for found in in_parts[1:]:
            assert abs(found - of_class / 10) <= max(3, 0.05 * of_class)
    place = {
        (text, label): index
        for index, part in enumerate(parts)
        for text, label in zip(part.texts, part.labels, strict=True)
    }
    together = groups(dataset)
    assert sum(len(group) > 1 for group in together) > 50
    for group in together:
        assert len({place[dataset.texts[each], dataset.labels[each]] for each in group}) == 1
    assert [part.texts for part in split(dataset, 0)] == [part.texts for part in parts]
    assert split(dataset, 1)[2].texts != parts[2].texts


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("novák", "nováková", True),
        ("novák", "NOVAK", True),
        ("anna", "annabella", False),
        ("lee", "leeds", False),
        ("Enter a valid URL.", "enter a valid url", True),
        ("Enter a valid IPv4 address.", "Enter a valid IPv6 address.", True),
        ("Enter a valid date.", "Enter a valid time.", True),
        ("Enter a valid date.", "Choose any other time.", False),
        ("mac an bhaird", "mac an rí", False),
        ("Enter a valid date.", "Enter a valid end date.", True),
    ],
)
def test_near_duplicates(one: str, other: str, near: bool) -> None:
    dataset = Dataset((one, other, "something else altogether here"), (0, 0, 0), ("a", "b"), "")
    assert (len(groups(dataset)) == 2) == near
    apart = Dataset((one, other), (0, 1), ("a", "b"), "")
    assert len(groups(apart)) == 2  # of two classes they are no duplicates


def test_a_file_and_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.tsv").write_bytes("\ufeffb\tzwei\r\n\na\teins\na\tdrei\tvier\nb\teins\n".encode())
    dataset = read(tmp_path / "own.tsv")
    assert dataset.classes == ("a", "b")
    assert dict(zip(dataset.texts, dataset.labels, strict=True)) == {"drei\tvier": 0, "zwei": 1}
    assert dataset.source.endswith("own.tsv; 1 that stand under several labels are left out")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "Left.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (folder / "Right.txt").write_text("thrée\n", encoding="utf-8")
    dataset = read(folder)
    assert dataset.classes == ("Left", "Right")
    assert sorted(dataset.texts) == ["one", "thrée", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected labelled text in own.tsv, got none"),
        (b"a\tone\nb two\n", "expected label<TAB>text in own.tsv, line 2, got 'b two'"),
        (b"a\tone\n\n\tthree\n", "expected label<TAB>text in own.tsv, line 3, got '\\tthree'"),
        (b"a\tone\nb\t \n", "expected label<TAB>text in own.tsv, line 2, got 'b\\t '"),
        (b"a\tone\na\ttwo\n", "expected two labels or more in own.tsv, got 'a' alone"),
        (b"a\tone\nb\tna\xefve\n", "expected own.tsv to be in UTF-8, got another byte in line 2"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(Path("own.tsv"))


def test_an_empty_folder_and_a_small_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected files Label\.txt in .*, got none"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")
    alike = [f"enter a valid {word} here" for word in ("date", "time", "name", "place", "colour", "shape")]
    texts = (*alike, "something else", "anything at all", "one", "two", "three", "four")
    large = Dataset(texts, (0,) * 8 + (1,) * 4, ("a", "b"), "here")
    for seed in range(5):
        parts = split(large, seed)
        assert [part.counts()[0] for part in parts] == [6, 1, 1]  # six near-duplicates are learned from
        assert [part.counts()[1] for part in parts] == [2, 1, 1]
    only = Dataset(
        (
            *alike,
            "enter a valid thing here",
            *(f"choose any other {w} now" for w in ("x", "yy")),
            *(f"say some more {w} please" for w in ("x", "yy")),
        ),
        (0,) * 11,
        ("a",),
        "here",
    )
    with pytest.raises(ValueError, match="expected more texts under 'a' in here that are no near-duplicates"):
        split(only, 0)
    few = Dataset(("one", "two", "three", "four", "five"), (0, 0, 0, 1, 1), ("a", "b"), "here")
    with pytest.raises(ValueError, match="expected three different texts or more under 'b' in here, got 2"):
        split(few, 0)
