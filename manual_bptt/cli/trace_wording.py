"""What the three forms of a traced problem share: its title and notes, and how a number is written."""

from torch import Tensor

from manual_bptt.tracing import Problem

TITLE = "Back-propagation through time, number by number"


def described(problem: Problem) -> str:
    """Sizes and options in one line."""
    sizes = " ".join(f"{name}={size}" for name, size in problem.sizes().items())
    options = "  ".join(f"{name}: {problem.options[name]}" for name in ("nonlinearity", "loss", "time", "batch"))
    return f"{sizes}  {options}"


def notes(problem: Problem, decimals: int) -> list[str]:
    """What has to be known to read the sheet; without the sentence on how vectors are printed."""
    found = ["dX is dL/dX and has the shape of X. ⊙ multiplies entry by entry."]
    if problem.sizes()["N"] > 1:
        found.append("n is the row of the batch. The rows have their own x, h_0 and y, and share the parameters.")
    found.append(
        f"Computed with 16 digits and shown to {decimals} decimals, so that sums of them may differ in the last."
    )
    return found


def decimal(value: float, decimals: int) -> str:
    """Write a number to so many decimals, from 10000 on with an exponent, at most 14 wide; zero has no sign."""
    text = f"{value:.{min(decimals, 6)}e}" if abs(value) >= 1e4 else f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def table(value: Tensor, decimals: int) -> list[list[str]]:
    """A number, vector or matrix as written: one row for a number or a vector. Whole numbers stay as they are."""
    plain = value.reshape(-1, value.shape[-1] if value.ndim else 1).tolist()
    whole = not value.is_floating_point()
    return [[str(entry) if whole else decimal(entry, decimals) for entry in row] for row in plain]


def given_decimals(value: Tensor, decimals: int) -> int:
    """How many decimals what is given needs, at most `decimals`."""
    entries = value.double().flatten().tolist()
    return next(
        (few for few in range(decimals) if all(float(f"{entry:.{few}f}") == entry for entry in entries)), decimals
    )
