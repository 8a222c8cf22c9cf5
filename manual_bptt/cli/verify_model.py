"""`bptt verify MODEL`: the hand-written gradient of a trained model beside autograd's and beside differences."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from manual_bptt.cli.comparison import relative_error
from manual_bptt.cli.lesson import Lesson, lesson
from manual_bptt.cli.model_file import ModelFile, read_model
from manual_bptt.modules import OF_TORCH
from manual_bptt.text_model import TextModel

LIMITS = {"float64": 1e-12, "float32": 100 * torch.finfo(torch.float32).eps, "differences": 1e-6}
STEPS = 40  # of the pieces of a long text
DIFFERENCE = 1e-5  # of a step along the gradient, over its norm


def verify_model(path: Path, batch: int, seed: int, console: Console) -> dict[str, Any]:
    """Compare the gradient of every parameter of a model file, on texts of what it was trained on.

    A model that has learned has next to no gradient; so every text is asked to be taken for the class after its own. By
    hand in float64 and float32; witnesses are torch.nn.RNN with torch's own loss, by autograd in float64, and the
    difference of the loss, of the same twin, along each gradient: it is the gradient's norm.

    Returns:
        Everything as plain data; "passed" among it.

    Raises:
        ValueError, OSError: As `read_model` and `lesson`.
    """
    read = read_model(path)
    drawn = lesson(read, None, STEPS, batch, seed)
    drawn = replace(drawn, targets=(drawn.targets + 1) % read.model.shape.outputs)
    what = "class" if read.classes else "character"
    console.print(f"{path}: {drawn.told}", soft_wrap=True)
    console.print(f"Each target is the {what} after the right one: what has been learned has next to no gradient.")
    of_torch = read.model.shape.nonlinearity in OF_TORCH
    twin = _made(read, "nn.RNN" if of_torch else "hand", torch.float64)
    hand = {name: _gradients(_made(read, "hand", getattr(torch, name)), drawn) for name in ("float64", "float32")}
    truth = _gradients(twin, drawn) if of_torch else None
    rows: list[dict[str, Any]] = []
    for name, exact in hand["float64"].items():
        row: dict[str, Any] = {"parameter": name}
        if truth is not None:
            row["float64"] = relative_error(exact, truth[name])
            row["float32"] = relative_error(hand["float32"][name], truth[name])
        row["differences"] = _difference(twin, drawn, name, exact)
        rows.append(row)
    columns = [column for column in LIMITS if column in rows[0]]
    heads = {"float64": "nn.RNN", "float32": "nn.RNN, float32", "differences": "differences"}
    width = max(len(row["parameter"]) for row in rows)
    console.print("relative error of each gradient against its witness")
    console.print(f"  {'':{width}}  " + "".join(f"{heads[column]:>18}" for column in columns), soft_wrap=True)
    passed = True
    for row in rows:
        cells = []
        for column in columns:
            fits = row[column] <= LIMITS[column]
            passed &= fits
            cells.append(f"{row[column]:>14.0e} {'ok ' if fits else 'OFF'}")
        console.print(f"  {row['parameter']:{width}}  " + "".join(cells), soft_wrap=True)
    allowed = ", ".join(f"{heads[column]} {LIMITS[column]:.1e}" for column in columns)
    console.print(f"allowed: {allowed}. " + ("All agree." if passed else "NOT all agree."), soft_wrap=True)
    return {"model": str(path), "told": drawn.told, "limits": LIMITS, "gradients": rows, "passed": passed}


def _made(read: ModelFile, engine: str, dtype: torch.dtype) -> TextModel:
    """The same model with another engine and dtype."""
    name = str(dtype).removeprefix("torch.")
    model = TextModel(replace(read.model.shape, engine=engine, dtype=name))
    model.load_state_dict(read.model.state_dict())
    return model.eval()


def _loss(model: TextModel, drawn: Lesson) -> Tensor:
    return model.loss(model(drawn.tokens)[0], drawn.targets)


def _gradients(model: TextModel, drawn: Lesson) -> dict[str, Tensor]:
    names = dict(model.named_parameters())
    found = torch.autograd.grad(_loss(model, drawn), list(names.values()))
    return dict(zip(names, found, strict=True))


@torch.no_grad()
def _difference(model: TextModel, drawn: Lesson, name: str, gradient: Tensor) -> float:
    """How far the slope of the loss along a gradient is from the gradient's norm, over that norm."""
    norm = gradient.norm().item()
    if norm == 0:
        return 0.0
    parameter = dict(model.named_parameters())[name]
    before = parameter.clone()
    losses = []
    for sign in (1, -1):
        parameter.copy_(before + sign * DIFFERENCE * gradient / norm)
        losses.append(_loss(model, drawn).item())
    parameter.copy_(before)
    return float(abs((losses[0] - losses[1]) / (2 * DIFFERENCE) - norm) / norm)
