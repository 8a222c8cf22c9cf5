"""`bptt predict` and `bptt sample`: use a model that `bptt train` wrote.

Exit status: 0 done, 2 unusable arguments.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from manual_bptt.cli.arguments import positive, whole
from manual_bptt.cli.model_file import read_model
from manual_bptt.training import predict, sample


def add_parser(commands: Any) -> None:
    """Add both subcommands and their options."""
    parser = commands.add_parser(
        "predict",
        help="say what a trained model takes texts for",
        description="Print, for each text, the most probable classes with their probabilities, tab-separated. "
        "Exit status: 0 done, 2 unusable arguments.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model.pt of bptt train")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="default: the lines of the standard input")
    parser.add_argument("--top", type=whole(1), default=3, metavar="N", help="how many classes (default: 3)")
    parser.set_defaults(run=run_predict)
    parser = commands.add_parser(
        "sample",
        help="let a trained model write text",
        description="Draw characters one after the other from what a model of `bptt train text` expects. "
        "Exit status: 0 done, 2 unusable arguments.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model.pt of bptt train text")
    parser.add_argument("--length", type=whole(1, 1_000_000), default=300, metavar="N", help="default: 300")
    parser.add_argument("--start", default="", metavar="TEXT", help="what it reads first")
    parser.add_argument(
        "--temperature", type=positive, default=0.7, metavar="R", help="below 1: likelier characters (default: 0.7)"
    )
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="S", help="default: 0")
    parser.set_defaults(run=run_sample)


def run_predict(options: argparse.Namespace) -> int:
    """Run `bptt predict` with parsed options; return its exit status.

    Raises:
        ValueError: The file holds no classifier, or a text is empty.
        OSError: It cannot be read.
    """
    read = read_model(options.model)
    if not read.classes:
        raise ValueError(f"expected a model with classes, got {options.model}, which writes text: bptt sample")
    if not all(options.texts):
        raise ValueError("expected a text, got an empty one")
    for text in options.texts or _lines():
        probabilities = predict(read.model, read.vocabulary, _as_trained(read.task, text))
        best = probabilities.sort(descending=True, stable=True)
        told = [
            f"{read.classes[label]} {share:.3f}"
            for share, label in zip(best.values[: options.top].tolist(), best.indices.tolist(), strict=False)
        ]
        print("\t".join([" ".join(text.split()), *told]))
    return 0


def run_sample(options: argparse.Namespace) -> int:
    """Run `bptt sample` with parsed options; return its exit status.

    Raises:
        ValueError: The file holds no model of text.
        OSError: It cannot be read.
    """
    read = read_model(options.model)
    if read.classes:
        raise ValueError(f"expected a model that writes text, got {options.model}, which has classes: bptt predict")
    generator = torch.Generator().manual_seed(options.seed)
    drawn = sample(read.model, read.vocabulary, options.length, options.start, options.temperature, generator)
    print(options.start + drawn)
    return 0


def _as_trained(task: str, text: str) -> str:
    """Names were read in lower case."""
    return text.lower() if task == "names" else text


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()
