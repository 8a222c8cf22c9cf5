"""The problems of `bptt trace`: drawn with few decimals, or read from a JSON file that a person can type."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_bptt.activations import ACTIVATIONS
from manual_bptt.network import LOSSES
from manual_bptt.targets import BATCH, TIME
from manual_bptt.tracing import Problem, check_sizes

CHOICES = {"nonlinearity": tuple(ACTIVATIONS), "loss": tuple(LOSSES), "time": tuple(TIME), "batch": tuple(BATCH)}
ARRAYS = ("U", "W", "V", "b", "c", "x", "h0", "targets")
NEEDED = ("U", "W", "V", "x", "targets")
TRIES = 300
LARGEST = 10_000  # of what is given: squares of its gradients stay finite, and no column grows too wide


def drawn_problem(sizes: dict[str, int], options: dict[str, Any], seed: int) -> Problem:
    """Draw a problem that can be typed into a calculator and that a mistake cannot hide in.

    Inputs and the initial state have one decimal, parameters two. |a| is about 1, h0 is not 0, W is not symmetric.

    Args:
        sizes: T, N, D, H and K.
        options: nonlinearity, loss, time and batch where they are not the usual ones.
        seed: Same seed, same numbers.

    Raises:
        ValueError: A size is out of range, or the softmax has one output and so no gradient.
    """
    check_sizes(sizes)
    if sizes["K"] == 1 and options.get("loss", "cross_entropy") == "cross_entropy":
        raise ValueError(
            "expected K = 2 or more outputs for cross_entropy, got 1: its softmax is 1 and no gradient left"
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TRIES):
        problem = _draw(sizes, options, generator)
        if _shows_mistakes(problem):
            break
    return problem


def _draw(sizes: dict[str, int], options: dict[str, Any], generator: torch.Generator) -> Problem:
    T, N, D, H, K = (sizes[name] for name in "TNDHK")

    def normal(scale: float, decimals: int, *shape: int) -> Tensor:
        value = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return _rounded(value, decimals)

    parameters = {
        "U": normal(0.9 * D**-0.5, 2, H, D),
        "W": normal(0.9 * H**-0.5, 2, H, H),
        "V": normal(0.9 * H**-0.5, 2, K, H),
        "b": normal(0.3, 2, H),
        "c": normal(0.3, 2, K),
    }
    x, h0 = normal(1.0, 1, T, N, D), normal(0.4, 1, N, H)
    h0 = _rounded(h0 + torch.where(h0 < 0, -0.1, 0.1), 1)
    if options.get("loss") == "squared_error":
        targets = normal(1.0, 1, T, N, K)
    else:
        targets = torch.randint(K, (T, N), generator=generator)
    return Problem(parameters, x, targets[-1] if options.get("time") == "last" else targets, h0, **options)


def _rounded(value: Tensor, decimals: int) -> Tensor:
    """The doubles nearest to decimal numbers: a quotient of whole numbers is one; + 0 makes -0 a 0."""
    scale = 10.0**decimals
    return torch.round(value * scale) / scale + 0.0


def _shows_mistakes(problem: Problem) -> bool:
    """Whether |a| is about 1, W differs from its transpose, and not every target is the same class."""
    U, W, b = (problem.parameters[name] for name in "UWb")
    f = ACTIVATIONS[problem.nonlinearity].apply
    h, steps = problem.h0, []
    for x_t in problem.x:
        steps.append(x_t @ U.t() + h @ W.t() + b)  # F1
        h = f(steps[-1])  # F2
    a, targets = torch.stack(steps), problem.targets
    return bool(
        0.5 <= a.abs().mean() <= 1.6
        and a.abs().max() <= 4
        and (len(W) == 1 or (W - W.t()).abs().max() >= 0.2)
        and (targets.is_floating_point() or targets.numel() == 1 or targets.min() < targets.max())
        and (problem.nonlinearity != "relu" or (a > 0).double().mean() >= 0.4)
    )


def as_json(problem: Problem) -> bytes:
    """Write a problem as `read_problem` reads it, a line for each array."""
    arrays = problem.parameters | {"x": problem.x, "h0": problem.h0, "targets": problem.targets}
    entries: dict[str, Any] = {name: arrays[name].tolist() for name in ARRAYS if name in arrays}
    entries |= problem.options
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_problem(path: Path, options: dict[str, Any]) -> Problem:
    """Read a problem; the options given take the place of the file's.

    The file holds one JSON object: U (H, D), W (H, H), V (K, H), x (T, N, D), targets as `bptt` takes them, and where
    wanted b (H,), c (K,), h0 (N, H), else zeros, and nonlinearity, loss, time, batch, ignore_index. For a single
    sequence x, h0 and targets may leave out the N.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no such object; the message names the key, what was expected and what is there.
    """
    try:
        found = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"expected {path} to hold JSON: {error}") from None
    try:
        return _problem(found, options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _problem(found: Any, options: dict[str, Any]) -> Problem:
    if not isinstance(found, dict):
        raise ValueError(f"expected one object with the keys {', '.join(NEEDED)}, got {type(found).__name__}")
    known = (*ARRAYS, *CHOICES, "ignore_index")
    for name in found:
        if name not in known:
            raise ValueError(f"expected the keys {', '.join(known)} and no other, got {name!r}")
    for name in NEEDED:
        if name not in found:
            raise ValueError(f"expected the key {name!r}, which is missing")
    chosen = _options(found, options)
    arrays = {name: _array(name, found[name]) for name in ARRAYS if name in found}
    return _of_arrays(arrays, chosen)


def _options(found: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, names in CHOICES.items():
        if name in options or name in found:
            chosen[name] = options.get(name, found.get(name))
            if chosen[name] not in names:
                raise ValueError(f"expected {name} to be one of {', '.join(map(repr, names))}, got {chosen[name]!r}")
    if "ignore_index" in found:
        value = found["ignore_index"]
        if type(value) is not int or not -(2**31) <= value < 2**31:
            raise ValueError(f"expected ignore_index to be a whole number of 32 bits, got {value!r}")
        chosen["ignore_index"] = value
    return chosen


def _array(name: str, value: Any) -> Tensor:
    """Nested lists as a tensor: float64, and int64 where all targets are whole numbers."""
    shape = _shape(name, value)
    whole = name == "targets" and all(type(number) is int for number in _flat(value))
    return torch.tensor(value, dtype=torch.int64 if whole else torch.float64).reshape(shape)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    """The shape of nested lists, all of whose parts have to be alike; ValueError says where they are not."""
    if not isinstance(value, list):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise ValueError(f"expected {name} to hold numbers from -{LARGEST} to {LARGEST}, got {_short(value)}")
        return ()
    if not value:
        raise ValueError(f"expected {name} to hold numbers, got an empty list")
    shapes = [_shape(name, part) for part in value]
    for position, shape in enumerate(shapes, 1):
        if shape != shapes[0]:
            raise ValueError(
                f"expected the parts of {name} to be alike, but part 1 has shape {shapes[0]}, part {position} {shape}"
            )
    return (len(value), *shapes[0])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 30 else text[:30] + "…"


def _flat(value: Any) -> list[Any]:
    return [number for part in value for number in _flat(part)] if isinstance(value, list) else [value]


def _of_arrays(arrays: dict[str, Tensor], options: dict[str, Any]) -> Problem:
    """Check every shape against U's, V's and x's, and give a single sequence its batch axis."""
    U, V, x = arrays["U"], arrays["V"], arrays["x"]
    _expect("U", U, {"H, D": None})
    H, D = U.shape
    _expect("V", V, {"K, H": (len(V), H) if V.ndim else None})
    K = len(V)
    T = len(x) if x.ndim else 0
    single = x.ndim == 2
    N = 1 if single or x.ndim != 3 else x.shape[1]
    _expect("x", x, {"T, D": (T, D)} if single else {"T, N, D": (T, N, D)})
    check_sizes({"T": T, "N": N, "D": D, "H": H, "K": K})
    expected = {"W": ("H, H", (H, H)), "b": ("H,", (H,)), "c": ("K,", (K,))}
    expected["h0"] = ("H,", (H,)) if single else ("N, H", (N, H))
    for name, (letters, shape) in expected.items():
        if name in arrays:
            _expect(name, arrays[name], {letters: shape})
    targets = _targets(arrays["targets"], {"T": T, "N": N, "K": K}, single, options)
    h0 = arrays["h0"].reshape(N, H) if "h0" in arrays else torch.zeros(N, H, dtype=torch.float64)
    parameters = {name: arrays[name] for name in "UWVbc" if name in arrays}
    return Problem(parameters, x.reshape(T, N, D), targets, h0, **options)


def _expect(name: str, value: Tensor, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """ValueError unless value has one of the shapes; None stands for any with as many axes as there are letters."""
    got = tuple(value.shape)
    if any(
        got == shape if shape is not None else letters.count(",") + 1 == len(got) for letters, shape in shapes.items()
    ):
        return
    wanted = " or ".join(f"({letters})" + ("" if shape is None else f" = {shape}") for letters, shape in shapes.items())
    raise ValueError(f"expected {name} of shape {wanted}, got {got}")


def _targets(targets: Tensor, sizes: dict[str, int], single: bool, options: dict[str, Any]) -> Tensor:
    """Check the targets, which have no T where only the last step has a loss, and give them their batch axis."""
    letters = ([] if options.get("time") == "last" else ["T"]) + ([] if single else ["N"])
    of_classes = tuple(sizes[letter] for letter in letters)
    of_numbers = (*of_classes, sizes["K"])
    numbers = {", ".join([*letters, "K"]) + ("," if not letters else ""): of_numbers}
    if options.get("loss", "cross_entropy") == "squared_error":
        _expect("targets", targets, numbers)
        targets = targets.double()
    else:
        classes = {", ".join(letters) + ("," if len(letters) == 1 else ""): of_classes}
        _expect("targets", targets, classes | numbers)
        if targets.ndim == len(letters):
            _check_classes(targets, sizes["K"], options.get("ignore_index", -100))
    if not single:
        return targets
    return targets.unsqueeze(0 if options.get("time") == "last" else 1)


def _check_classes(targets: Tensor, K: int, ignored: int) -> None:
    if targets.is_floating_point():
        raise ValueError("expected targets to be whole numbers where each is a class")
    for value in targets.flatten().tolist():
        if value != ignored and not 0 <= value < K:
            raise ValueError(f"expected every class in targets from 0 to K-1 = {K - 1}, or {ignored}, got {value}")
