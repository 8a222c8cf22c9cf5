"""Types of command-line arguments, which argparse calls on their text: numbers within bounds."""

import argparse
import math
from collections.abc import Callable


def whole(smallest: int, largest: int | None = None, reason: str = "") -> Callable[[str], int]:
    """Return a type that takes whole numbers from smallest to largest; `reason` ends what is said of others.

    Raises:
        argparse.ArgumentTypeError: When called on anything else.
    """
    bounds = f"of at least {smallest}" if largest is None else f"from {smallest} to {largest}"

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}{reason}, got {text!r}")
        return value

    return integer


def positive(text: str) -> float:
    """Take positive, finite numbers.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value
