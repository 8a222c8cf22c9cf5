"""Real text for the commands, read at run time from installed packages; nothing is copied into the project."""

import importlib
import platform
from importlib.metadata import version

# Country -> the locale of Faker whose surnames stand for it: Latin script, some hundred names or more each.
COUNTRIES = {
    "Croatia": "hr_HR",
    "Finland": "fi_FI",
    "France": "fr_FR",
    "Germany": "de_DE",
    "Italy": "it_IT",
    "Netherlands": "nl_NL",
    "Spain": "es_ES",
    "United Kingdom": "en_GB",
}


class MissingPackageError(ImportError):
    """An optional package is not installed; the message names it and the command that installs it."""


def surnames() -> dict[str, tuple[str, ...]]:
    """Read the surnames of every country in COUNTRIES from Faker's locale lists, in lower case, accents kept.

    Returns:
        Country -> its distinct names, sorted.

    Raises:
        MissingPackageError: Faker is not installed.
    """
    return {country: surnames_of(locale) for country, locale in COUNTRIES.items()}


def surnames_source() -> str:
    """Name where the surnames come from: package, version and licence."""
    surnames_of("fr_FR")
    return f"surnames from the locale lists of Faker {version('faker')} (MIT licence)"


def english_text() -> str:
    """Read the help topics that come with Python: some 400,000 characters of English, with examples in between.

    Raises:
        MissingPackageError: This Python comes without them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"English text needs Python's help topics, which this Python lacks: {error}"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


def english_text_source() -> str:
    """Name where the text comes from: Python's version and licence."""
    return f"the help topics of Python {platform.python_version()} (PSF licence)"


def surnames_of(locale: str) -> tuple[str, ...]:
    """The distinct surnames of one of Faker's locales, sorted, in lower case.

    Raises:
        MissingPackageError: Faker is not installed.
    """
    try:
        module = importlib.import_module(f"faker.providers.person.{locale}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "faker":
            raise
        raise MissingPackageError(
            "real names need the package faker, which is not installed: pip install 'manual-bptt[data]'"
        ) from error
    return tuple(sorted({name.lower() for name in module.Provider.last_names}))
