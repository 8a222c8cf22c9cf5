"""Settings written as a call, "chunked(20)" or "StepLR(step_size=5)": read without executing anything."""

import ast
from collections.abc import Sequence
from typing import Any

import torch

from manual_bptt import truncation


def parsed(text: str, names: Sequence[str], what: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Take a call of one of some functions apart, whose arguments are numbers, texts, lists and the like.

    Args:
        text: The call; a name alone is a call without arguments.
        names: What may be called.
        what: What it is, for the message.

    Returns:
        The name, the arguments and the arguments by name.

    Raises:
        ValueError: It is something else.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        name = call if isinstance(call, ast.Name) else call.func  # type: ignore[attr-defined]
        arguments = [] if name is call else [ast.literal_eval(each) for each in call.args]  # type: ignore[attr-defined]
        by_name = {} if name is call else {each.arg: ast.literal_eval(each.value) for each in call.keywords}  # type: ignore[attr-defined]
        found = name.id
    except (SyntaxError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"expected {what} as a call, such as {names[0]}(…), got {text!r}") from error
    if found not in names:
        raise ValueError(f"expected {what} to be one of {', '.join(names)}, got {found!r}")
    return found, arguments, by_name


def truncation_of(text: str | None, seed: int) -> truncation.Truncation | None:
    """A truncation by its name: "chunked(20)", "windowed(5)", "randomized(0.9)" with seeded draws, "full()"; or None.

    Raises:
        ValueError: There is no such one, or its arguments are wrong.
    """
    if text is None:
        return None
    name, arguments, by_name = parsed(text, ("chunked", "windowed", "randomized", "full"), "a truncation")
    if name == "randomized":
        by_name["generator"] = torch.Generator().manual_seed(seed)
    try:
        made: truncation.Truncation = getattr(truncation, name)(*arguments, **by_name)
    except TypeError as error:
        raise ValueError(f"expected a truncation, got {text!r}: {error}") from error
    return made


def scheduler_of(text: str | None, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
    """A learning-rate scheduler of torch.optim by its name, "StepLR(step_size=5)"; it is stepped once an epoch.

    Raises:
        ValueError: There is no such one, or its arguments are wrong.
    """
    if text is None:
        return None
    schedulers = torch.optim.lr_scheduler
    names = [
        name
        for name in dir(schedulers)
        if name.endswith("LR") or name in ("ReduceLROnPlateau", "CosineAnnealingWarmRestarts")
    ]
    name, arguments, by_name = parsed(text, names, "a scheduler")
    try:
        made: torch.optim.lr_scheduler.LRScheduler = getattr(schedulers, name)(optimizer, *arguments, **by_name)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"expected a scheduler, got {text!r}: {error}") from error
    return made


def check_scheduler(text: str | None, epochs: int) -> None:
    """ValueError unless a scheduler can be made and stepped that often."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    made = scheduler_of(text, optimizer)
    try:
        for _ in range(epochs if made is not None else 0):
            optimizer.step()
            if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
                made.step(1.0)
            elif made is not None:
                made.step()
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise ValueError(f"expected a scheduler for {epochs} epochs, got {text!r}: {error}") from error
