"""Reads the JSON of a benchmark run and refuses what is none; how results are shown belongs in report and plot."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sizes import TASKS, Size, multiplications

EXPECTED = "the file that `pytest benchmarks --benchmark-json=FILE` writes"


class BadInputError(Exception):
    """What was given cannot be reported; the message is one line: what was expected and what came."""


@dataclass(frozen=True)
class Measurement:
    """One benchmark; every ratio is (time of nn.RNN) / (own time), taken in alternating rounds."""

    size: Size
    implementation: str
    task: str
    place: str  # "1 thread", "2 threads", "CUDA"
    speed: float  # the median ratio
    quartiles: tuple[float, float]  # of the ratios
    min: float  # seconds, as are the next two
    median: float
    iqr: float
    error: float  # the worst norm-wise error against float64
    share: float  # multiplications a second, over those of torch's matrix product


@dataclass(frozen=True)
class Results:
    """A whole run: what it ran on, by name, and its measurements in the order in which they were taken."""

    facts: dict[str, str]
    measurements: list[Measurement]


def read(path: Path) -> Results:
    """Read the JSON file of a run.

    Raises:
        BadInputError: There is no such file, it is not JSON, or not the JSON of these benchmarks.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"{path}: expected {EXPECTED}, got: {error.strerror}") from error
    except ValueError as error:
        raise BadInputError(f"{path}: expected {EXPECTED}, got something that is not JSON: {error}") from error
    try:
        return parse(document)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from error


def parse(document: object) -> Results:
    """Turn the parsed JSON into results, leaving out benchmarks that are not of this project."""
    benchmarks = find(document, "benchmarks")
    if not isinstance(benchmarks, list):
        raise BadInputError(f"expected a list under benchmarks, got {json.dumps(benchmarks):.40}")
    ours = [b for b in benchmarks if known(b, "extra_info", "speed_vs_nn_rnn") is not None]
    if not ours:
        raise BadInputError(
            f"expected {EXPECTED}, got {len(benchmarks)} benchmarks, none with speed_vs_nn_rnn in extra_info"
        )
    return Results(facts(document, ours), [measurement(b) for b in ours])


def facts(document: object, benchmarks: list[dict[str, object]]) -> dict[str, str]:
    """Return what the run was made on; what differs between benchmarks is listed."""

    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(str(find(b, "extra_info", key)) for b in benchmarks))

    def machine(*keys: str) -> str:
        return str(known(document, "machine_info", *keys) or "unknown")

    return {
        "Machine": f"{machine('system')}, {machine('machine')}",
        "CPU": f"{machine('cpu', 'brand_raw')}, {machine('cpu', 'count')} logical cores",
        "Devices": each("device_name"),
        "Threads": each("threads"),
        "Date": str(find(document, "datetime"))[:16].replace("T", " ") + " UTC",
        "Python": machine("python_version"),
        "torch": each("torch"),
        "dtype": each("dtype"),
        "Kernel": f"{each('kernel')}; the one in C is {each('kernel_in_c')}",
    }


def measurement(benchmark: dict[str, object]) -> Measurement:
    """Turn one entry of the JSON into a measurement."""
    threads = find(benchmark, "extra_info", "threads")
    device = str(find(benchmark, "extra_info", "device"))
    size = Size(*(int(positive(benchmark, "extra_info", letter)) for letter in Size._fields))
    task = str(find(benchmark, "extra_info", "task"))
    if task not in TASKS:
        raise BadInputError(f"expected one of {', '.join(TASKS)} under extra_info.task, got {task!r:.40}")
    calls = positive(benchmark, "extra_info", "calls")  # in a round, which is what stats are of
    seconds = positive(benchmark, "stats", "median") / calls
    return Measurement(
        size=size,
        implementation=str(find(benchmark, "extra_info", "implementation")),
        task=task,
        place=f"{threads} thread{'s' * (threads != 1)}" if device == "cpu" else device.upper(),
        speed=positive(benchmark, "extra_info", "speed_vs_nn_rnn"),
        quartiles=(
            positive(benchmark, "extra_info", "speed_vs_nn_rnn_quartiles", 0),
            positive(benchmark, "extra_info", "speed_vs_nn_rnn_quartiles", 1),
        ),
        min=positive(benchmark, "stats", "min") / calls,
        median=seconds,
        iqr=number(benchmark, "stats", "iqr") / calls,
        error=number(benchmark, "extra_info", "worst_error_vs_float64"),
        share=multiplications(size, task) / seconds / positive(benchmark, "extra_info", "product_rate"),
    )


def find(document: object, *keys: str | int) -> object:
    """Follow keys into parsed JSON."""
    found = document
    for key in keys:
        try:
            found = found[key]  # type: ignore[index]  # what does not fit is caught
        except (TypeError, KeyError, IndexError) as error:
            raise BadInputError(f"expected {EXPECTED}, got JSON without {dotted(keys)}") from error
    return found


def known(document: object, *keys: str | int) -> object:
    """Follow keys into parsed JSON, to None where there is nothing."""
    try:
        return find(document, *keys)
    except BadInputError:
        return None


def number(document: object, *keys: str | int) -> float:
    """Follow keys to a finite number that is not negative."""
    found = find(document, *keys)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < math.inf:
        raise BadInputError(f"expected a number >= 0 under {dotted(keys)}, got {json.dumps(found):.40}")
    return float(found)


def positive(document: object, *keys: str | int) -> float:
    """Follow keys to a finite number above zero."""
    found = number(document, *keys)
    if found == 0:
        raise BadInputError(f"expected a number > 0 under {dotted(keys)}, got 0")
    return found


def dotted(keys: tuple[str | int, ...]) -> str:
    """Return a place in the JSON as it is named in messages."""
    return ".".join(map(str, keys))
