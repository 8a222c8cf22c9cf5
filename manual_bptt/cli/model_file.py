"""A model that `bptt train` wrote, for the commands that use one."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from manual_bptt import checkpoints
from manual_bptt.text_model import Shape, TextModel
from manual_bptt.vocabulary import KINDS, Vocabulary


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What is in a model file.

    Attributes:
        path: The file.
        model: The model, in evaluation mode.
        vocabulary: What its numbers mean.
        classes: Names of its classes; empty where it predicts the next character of a text.
        task: What it was trained on: "names", "sentences", "text", or a path.
        source: The same in words.
        text: The file of a long text; None: the English text that comes with Python.
        results: What it achieved.
    """

    path: Path
    model: TextModel
    vocabulary: Vocabulary
    classes: tuple[str, ...]
    task: str
    source: str
    text: str | None
    results: dict[str, Any]


def read_model(path: Path) -> ModelFile:
    """Read a model file; nothing in it is executed.

    Raises:
        ValueError: It is none, cut off, or of another version.
        OSError: It cannot be read.
    """
    content = checkpoints.load(path, checkpoints.MODEL)
    try:
        shape = Shape(**{each.name: content["shape"][each.name] for each in fields(Shape)})
        model = TextModel(shape)
        model.load_state_dict(content["parameters"])
        vocabulary = Vocabulary(content["vocabulary"]["kind"], content["vocabulary"]["entries"])
        classes = tuple(content["classes"])
        made = ModelFile(
            path,
            model.eval(),
            vocabulary,
            classes,
            content["task"],
            content["source"],
            content["text"],
            content["results"],
        )
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected {path} to be a whole model, got one that does not fit together: {reason}"
        ) from error
    texts = (*vocabulary.entries, *classes, made.task, made.source, made.text or "")
    if not all(isinstance(each, str) for each in texts) or vocabulary.kind not in KINDS:
        raise ValueError(f"expected {path} to be a whole model, got names that are no texts, or other tokens")
    if not all(value.isfinite().all() for value in model.parameters()):
        raise ValueError(f"expected {path} to be a whole model, got parameters that are no numbers")
    sizes = (shape.entries, shape.parts, shape.outputs)
    if sizes != (len(vocabulary), vocabulary.parts, len(classes) or shape.entries):
        raise ValueError(f"expected {path} to be a whole model, got a vocabulary or classes of another size")
    return made
