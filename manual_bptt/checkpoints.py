"""Models and half-finished trainings in files: written whole or not at all, read without executing anything."""

import io
from pathlib import Path
from typing import Any

import torch

from manual_bptt.files import write_atomically

MODEL, CHECKPOINT = "manual-bptt model", "manual-bptt checkpoint"
VERSION = 2


def save(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write a model or a checkpoint; what was there before stays until the new one is whole.

    Args:
        path: The file.
        kind: MODEL or CHECKPOINT.
        content: Tensors, numbers, texts, lists and dicts of these.

    Raises:
        OSError: It cannot be written.
    """
    written = io.BytesIO()
    torch.save({"format": kind, "version": VERSION, **content}, written)
    write_atomically(path, written.getvalue())


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        ValueError: The file is cut off, damaged, of another program or another version, or of the other kind.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        try:
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for what is no such file
            raise ValueError(
                f"expected {path} to be a {kind}, got a file that is cut off, damaged or something else"
            ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != kind:
        got = f"a {found}" if found in (MODEL, CHECKPOINT) else "a file of something else"
        raise ValueError(f"expected {path} to be a {kind}, got {got}")
    if content.get("version") != VERSION:
        raise ValueError(f"expected {path} to be of version {VERSION}, got version {content.get('version')}")
    return content


def is_model(path: Path) -> bool:
    """Whether a file is what `save` writes of a model; False for everything else, also for what cannot be read."""
    try:
        load(path, MODEL)
    except (ValueError, OSError):
        return False
    return True
