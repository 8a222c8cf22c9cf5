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

FLOAT64, FLOAT32, DIFFERENCES = 1e-12, 100 * torch.finfo(torch.float32).eps, 1e-6
STEPS = 40  # of the pieces of a long text
DIFFERENCE = 1e-4  # how far the parameters are moved along a gradient


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
    console.print(f"{path}: {drawn.told}", soft_wrap=True, markup=False)
    console.print(f"Each target is the {what} after the right one: what has been learned has next to no gradient.")
    of_torch = read.model.shape.nonlinearity in OF_TORCH
    twin = _made(read, "nn.RNN" if of_torch else "hand", torch.float64)
    hand = {name: _gradients(_made(read, "hand", getattr(torch, name)), drawn) for name in ("float64", "float32")}
    truth = _gradients(twin, drawn) if of_torch else None
    single = _gradients(_made(read, "nn.RNN", torch.float32), drawn) if of_torch else None
    rows: list[dict[str, Any]] = []
    for name, exact in hand["float64"].items():
        found: dict[str, tuple[float, float]] = {}  # the error, and what is allowed
        if truth is not None and single is not None:
            found["nn.RNN"] = relative_error(exact, truth[name]), FLOAT64
            allowed = max(FLOAT32, 2 * relative_error(single[name], truth[name]))
            found["nn.RNN, float32"] = relative_error(hand["float32"][name], truth[name]), allowed
        found["differences"] = _difference(twin, drawn, name, exact), DIFFERENCES
        rows.append({"parameter": name, "errors": {each: {"error": e, "allowed": a} for each, (e, a) in found.items()}})
    width = max(len(row["parameter"]) for row in rows)
    witnesses = list(rows[0]["errors"])
    console.print("relative error of each gradient against its witness")
    console.print(f"  {'':{width}}  " + "".join(f"{witness:>18}" for witness in witnesses), soft_wrap=True)
    passed = True
    for row in rows:
        cells = []
        for each in row["errors"].values():
            fits = each["error"] <= each["allowed"]
            passed &= fits
            cells.append(f"{each['error']:>14.0e} {'ok ' if fits else 'OFF'}")
        console.print(f"  {row['parameter']:{width}}  " + "".join(cells).rstrip(), soft_wrap=True)
    console.print(
        f"allowed: {FLOAT64:.0e} in float64, {FLOAT32:.1e} or twice torch.nn.RNN's own error in float32,",
        soft_wrap=True,
    )
    console.print(f"{DIFFERENCES:.0e} for differences. " + ("All agree." if passed else "NOT all agree."))
    return {"model": str(path), "told": drawn.told, "gradients": rows, "passed": passed}


def _made(read: ModelFile, engine: str, dtype: torch.dtype) -> TextModel:
    """The same model with another engine and dtype."""
    name = str(dtype).removeprefix("torch.")
    model = TextModel(replace(read.model.shape, engine=engine, dtype=name))
    model.load_state_dict(read.model.state_dict())
    return model.eval()


def _loss(model: TextModel, drawn: Lesson) -> Tensor:
    return model.loss(model(drawn.tokens)[0], drawn.targets, model.lengths(drawn.tokens))


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

    def slope(step: float) -> float:
        losses = []
        for sign in (1, -1):
            parameter.copy_(before + sign * step * gradient / norm)
            losses.append(_loss(model, drawn).item())
        return (losses[0] - losses[1]) / (2 * step)

    found = (4 * slope(DIFFERENCE / 2) - slope(DIFFERENCE)) / 3  # Richardson: without the error of the third derivative
    parameter.copy_(before)
    return float(abs(found - norm) / norm)
