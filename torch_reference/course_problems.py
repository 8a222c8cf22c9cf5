"""The small problems on which a homework is judged, and their true gradients: autograd, held against complex steps.

A problem has one of three levels: "step" and "sequence" give the upstream gradient dL/dh_t of every step, "network"
has targets and a loss. Arrays are float64, time first, vectors as rows: T steps, N batch rows, D inputs, H hidden
units, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torch_reference.conventions import LEVELS, PARAMETERS, Convention
from torch_reference.network import sequence_loss, unrolled
from torch_reference.numerical import central_difference, complex_step

Array = npt.NDArray[Any]

IGNORED = -100
LARGE = 20.0  # entries of dU reach this, so that clipping shows
LARGEST_SIZE = 64
LONG = 40  # steps
LARGEST_INPUT = 1e3  # but no x goes beyond this
LARGEST_INPUT_AT_KINK = 30.0  # nor beyond this for relu, where a central difference must not step over the kink
STEADY = 9  # the states of relu and identity may grow without bound: not in more steps than this
KINK = 1e-3  # relu: how near a pre-activation may come to it
# how far two witnesses may be apart, norm-wise
ROUNDING = 1e-13  # where there is next to no gradient
AGREEMENT = {"complex step": 1e-11, "central difference": 1e-5}
DIFFERENCE_NOISE = 1e-8  # of a central difference, relative to the largest of all gradients
# how far a homework's numbers may be off, relative to the largest entry, by whether float32 was computed with
TOLERANCE = {False: 1e-9, True: 100 * float(np.finfo(np.float32).eps)}
VAGUE = 1e-3  # where numbers may be off by more, it is said
LENIENT = 0.03  # where they may be off by more, they cannot be judged


class WitnessesDisagreeError(RuntimeError):
    """The independent ways to the truth differ: nothing can be judged."""


class Sizes(NamedTuple):
    """Steps, batch rows, inputs, hidden units, outputs."""

    T: int
    N: int
    D: int
    H: int
    K: int


# All five differ, no two of the usual scale factors coincide, and D and H are at least T·N: then the summands
# of dU, dW and dV can be told apart, and with them dL/da_t and dL/do_t of somebody who returns the sums alone.
STANDARD = Sizes(T=5, N=3, D=17, H=16, K=7)
ONE_SEQUENCE = Sizes(T=6, N=1, D=9, H=8, K=7)


@dataclass(frozen=True)
class Problem:
    """Numbers to compute with, and what the loss is.

    Attributes:
        level: "step", "sequence" or "network".
        parameters: U (H, D), W (H, H), b (H,); b2 (H,) where there is a second bias; V (K, H) and c (K,), which the
            levels "step" and "sequence" do not differentiate.
        x: (T, N, D), or tokens (T, N).
        h0: (N, H).
        upstream: dL/dh_t through everything but the next state, (T, N, H); None for "network".
        targets: Class indices (T, N); None for the other levels.
        mask: (T, N), 1 where the loss counts; None: it counts everywhere.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        time: "sum", "mean" or "last".
        batch: "sum" or "mean".
        clip: What gradients are clipped to, if they are.
    """

    level: str
    parameters: Mapping[str, Array]
    x: Array
    h0: Array
    upstream: Array | None = None
    targets: Array | None = None
    mask: Array | None = None
    nonlinearity: str = "tanh"
    time: str = "sum"
    batch: str = "sum"
    clip: float | None = None

    @property
    def sizes(self) -> Sizes:
        """The sizes of the arrays."""
        T, N = self.x.shape[:2]
        U = self.parameters["U"]
        return Sizes(T, N, U.shape[1], U.shape[0], self.parameters["V"].shape[0])

    @property
    def tokens(self) -> bool:
        """Whether x holds class indices."""
        return self.x.ndim == 2

    @property
    def bias(self) -> Array:
        """The sum of the recurrent biases, (H,)."""
        b: Array = self.parameters["b"]
        return b + self.parameters["b2"] if "b2" in self.parameters else b

    @property
    def weights(self) -> Array:
        """The weight of every step's loss, (T, N)."""
        T, N = self.x.shape[:2]
        counts = np.ones((T, N)) if self.mask is None else self.mask.astype(float)
        if self.time == "last":
            counts[:-1] = 0
        if self.time == "mean":
            counts = counts / np.maximum(counts.sum(0), 1)
        result: Array = counts / N if self.batch == "mean" else counts
        return result

    def rounded(self, dtype: npt.DTypeLike) -> Problem:
        """Return the problem with numbers that this dtype can hold, still as float64."""

        def held(array: Array) -> Array:
            return array.astype(dtype).astype(np.float64) if array.dtype.kind == "f" else array

        parameters = {name: held(array) for name, array in self.parameters.items()}
        upstream = None if self.upstream is None else held(self.upstream)
        return replace(self, parameters=parameters, x=held(self.x), h0=held(self.h0), upstream=upstream)


class Kind(NamedTuple):
    """What a problem takes from a convention, and its level: problems of the same kind are the same."""

    level: str
    one_sequence: bool
    tokens: bool
    second_bias: bool
    shared_h0: bool
    masked: bool
    nonlinearity: str
    time: str
    batch: str
    clip: float | None
    absent: tuple[str, ...]


def standard_sizes(kind: Kind) -> Sizes:
    """Return sizes at which every mistake that the level has shows, as far as the convention allows."""
    sizes = ONE_SEQUENCE if kind.one_sequence else STANDARD
    if kind.tokens:
        sizes = sizes._replace(K=sizes.D)
    return sizes._replace(T=1) if kind.level == "step" else sizes


def others(kind: Kind, sizes: Sizes) -> Sizes:
    """Return other sizes, each of them larger: what two mistakes share at one size they do not share at another."""
    T, N, D, H, K = sizes
    if kind.one_sequence:
        return Sizes(T + 3, N, D + 3, H + 3, D + 3 if kind.tokens else K + 3)
    if kind.level == "step":
        return Sizes(T, N + 1, D, H, D if kind.tokens else K + 2)
    more = (T + 1) * (N + 1) - T * N
    return Sizes(T + 1, N + 1, D + more, H + more, D + more if kind.tokens else K + 2)


def long(kind: Kind) -> Sizes | None:
    """Return sizes at which truncation after tens of steps shows, and nothing can be read off sums; None for a step."""
    if kind.level == "step":
        return None
    return Sizes(LONG, 1 if kind.one_sequence else 2, 5, 6, 5 if kind.tokens else 3)


def kind_of(convention: Convention, level: str, mask: bool = True) -> Kind:
    """Return the kind of problem that a convention has at a level.

    Args:
        convention: The convention.
        level: "step", "sequence" or "network".
        mask: Whether steps of the loss are masked, where the convention knows masks.

    Raises:
        ValueError: There is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"check: expected level to be one of {', '.join(LEVELS)}, got {level!r}")
    return Kind(
        level,
        convention.one_sequence,
        convention.tokens,
        convention.has("b2"),
        convention.shared_h0,
        mask and convention.has("mask"),
        convention.nonlinearity,
        convention.time,
        convention.batch,
        convention.clip,
        tuple(symbol for symbol in ("h0", "b", "c") if not convention.has(symbol)),
    )


def draw_problem(kind: Kind, seed: int, sizes: Sizes, large: bool = False) -> Problem:
    """Draw a problem that can see mistakes: |a| about 1, h0 not zero, W not symmetric, random upstream gradients.

    Args:
        kind: What kind of problem.
        seed: The same seed gives the same numbers.
        sizes: See `standard_sizes`.
        large: Gradients beyond 5 also where x are tokens.

    Raises:
        ValueError: Sizes below 1, or sizes that the convention does not allow.
    """
    _check_sizes(kind, sizes)
    for attempt in range(1000):
        problem = _draw(kind, np.random.default_rng([seed, attempt]), sizes, large)
        if kind.nonlinearity != "relu" or _clear_of_kink(problem):
            return problem
    raise ValueError("check: found no problem of these sizes whose pre-activations stay away from relu's kink")


@lru_cache(maxsize=256)
def posed(kind: Kind, seed: int, sizes: Sizes, large: bool, dtype: str) -> tuple[Problem, dict[str, Array]]:
    """Draw a problem, in numbers that dtype can hold, and solve it; kept for the next homework.

    Raises:
        ValueError, RuntimeError: As `draw_problem` and `witnessed_truth`.
    """
    problem = draw_problem(kind, seed, sizes, large).rounded(dtype)
    found = witnessed_truth(problem)
    arrays = [*problem.parameters.values(), problem.x, problem.h0, problem.upstream, problem.targets, problem.mask]
    for array in [*arrays, *found.values()]:
        if array is not None:
            array.flags.writeable = False
    return problem, found


def check_problem(problem: Problem, convention: Convention) -> None:
    """Refuse a problem that the convention cannot write down, or whose arrays do not go together.

    Raises:
        ValueError: It is such a one.
    """
    kind = kind_of(convention, problem.level)
    if problem.x.ndim != (2 if kind.tokens else 3):
        raise ValueError(
            f"check: expected x of {'tokens (T, N)' if kind.tokens else '(T, N, D)'}, got {problem.x.shape}"
        )
    T, N, D, H, K = sizes = problem.sizes
    _check_sizes(kind, sizes)
    shapes = {"U": (H, D), "W": (H, H), "V": (K, H), "b": (H,), "c": (K,)} | ({"b2": (H,)} if kind.second_bias else {})
    if set(shapes) != set(problem.parameters):
        raise ValueError(f"check: expected parameters {', '.join(shapes)}, got {', '.join(problem.parameters)}")
    arrays: dict[str, Array | None] = {**problem.parameters, "h0": problem.h0}
    shapes["h0"] = (N, H)
    if problem.level == "network":
        shapes["targets"], arrays["targets"] = (T, N), problem.targets
    else:
        shapes["upstream"], arrays["upstream"] = (T, N, H), problem.upstream
    for name, shape in shapes.items():
        array = arrays[name]
        if array is None or array.shape != shape:
            raise ValueError(f"check: expected {name} of shape {shape}, got {None if array is None else array.shape}")


def _check_sizes(kind: Kind, sizes: Sizes) -> None:
    for name, size in sizes._asdict().items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"check: expected {name} to be a whole number of at least 1, got {size!r}")
        if size > LARGEST_SIZE:
            raise ValueError(f"check: expected {name} of at most {LARGEST_SIZE}, or it takes minutes, got {size}")
    if kind.level == "step" and sizes.T != 1:
        raise ValueError(f"check: expected T = 1 at the level of one step, got {sizes.T}")
    if kind.one_sequence and sizes.N != 1:
        raise ValueError(f"check: expected N = 1 where there is but one sequence, got {sizes.N}")
    if kind.tokens and sizes.K != sizes.D:
        raise ValueError(f"check: expected K = D where tokens are predicted from tokens, got {sizes.K} and {sizes.D}")
    if kind.level == "network" and sizes.K < 2:
        raise ValueError(f"check: expected K of at least 2, one class has no gradient, got {sizes.K}")


def _draw(kind: Kind, numbers: np.random.Generator, sizes: Sizes, large: bool) -> Problem:
    T, N, D, H, K = sizes
    normal = numbers.standard_normal
    parameters = {
        "U": normal((H, D)) * (0.7 if kind.tokens else 0.7 * D**-0.5),
        "W": normal((H, H)) * H**-0.5,
        "V": normal((K, H)) * (6 if large else 1.5) * H**-0.5,
        "b": normal(H) * 0.4,
        "c": normal(K) * 0.5,
    }
    if kind.second_bias:
        parameters["b2"] = normal(H) * 0.4
    if kind.nonlinearity == "relu" and T > STEADY:
        parameters["W"] *= 0.9 / float(np.linalg.norm(parameters["W"], 2))
    if kind.nonlinearity == "identity" and T > STEADY:
        parameters["W"] *= 0.9 / float(np.abs(np.linalg.eigvals(parameters["W"])).max())
    for symbol in kind.absent:
        if symbol in parameters:
            parameters[symbol] = np.zeros_like(parameters[symbol])
    x = normal((T, N, D))
    if kind.tokens:  # all different while there are enough of them
        x = np.stack([numbers.permutation(max(D, T))[:T] % D for _ in range(N)], 1)
    h0 = np.tanh(normal((N, H)))
    if "h0" in kind.absent:
        h0 = np.zeros_like(h0)
    if kind.shared_h0:
        h0 = np.repeat(h0[:1], N, 0)
    problem = Problem(
        kind.level,
        parameters,
        x,
        h0,
        nonlinearity=kind.nonlinearity,
        time=kind.time,
        batch=kind.batch,
        clip=kind.clip,
    )
    if kind.level == "network":
        mask = _mask(numbers, T, N) if kind.masked and T > 1 else None
        targets = numbers.integers(K, size=(T, N))
        if large and kind.clip is not None:  # one class more often than others, so that dc grows beyond the bound
            targets[numbers.random((T, N)) < 0.7] = 0
        problem = replace(problem, targets=targets, mask=mask)
    else:
        problem = replace(problem, upstream=normal((T, N, H)))
    return problem if kind.tokens else _with_large_gradients(problem)


def _mask(numbers: np.random.Generator, T: int, N: int) -> Array:
    """Mask some steps of every sequence, the last one in the second sequence alone: its loss starts the recursion."""
    mask = np.ones((T, N))
    for n in range(N):
        mask[numbers.permutation(T - 1)[: 1 + n % max(1, T - 2)], n] = 0
    if N > 1 and T > 2:
        mask[-1, 1] = 0
        mask[0, 1] = 1  # some step counts
    return mask


def _with_large_gradients(problem: Problem) -> Problem:
    """Scale x up and U down: every a_t stays as it is, and dU grows until clipping would show."""
    largest = float(np.abs(truth(problem)["dU"]).max())
    if largest == 0 or problem.level == "step":
        return problem
    limit = LARGEST_INPUT_AT_KINK if problem.nonlinearity == "relu" else LARGEST_INPUT
    factor = max(1.0, min(LARGE / largest, limit / float(np.abs(problem.x).max())))
    return replace(
        problem, x=problem.x * factor, parameters={**problem.parameters, "U": problem.parameters["U"] / factor}
    )


def _clear_of_kink(problem: Problem) -> bool:
    return bool(np.abs(truth(problem)["a"]).min() > KINK)


def truth(problem: Problem, dtype: torch.dtype = torch.float64) -> dict[str, Array]:
    """Differentiate by autograd on the plain loop.

    Args:
        problem: The problem.
        dtype: What to compute in; the truth is that of float64.

    Returns:
        a h hT dh da, dU dW db (db2) dx dh0, and for "network" o p loss do dV dc; canonical layout.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        leaves = {name: _leaf(array, dtype) for name, array in problem.parameters.items() if name != "b2"}
        leaves["b"] = _leaf(problem.bias, dtype)
        x = torch.tensor(problem.x) if problem.tokens else _leaf(problem.x, dtype)
        h0 = _leaf(problem.h0, dtype)
        steps = unrolled(leaves, x, h0, problem.nonlinearity)
        h, o = torch.stack(steps.h), torch.stack(steps.o)
        loss = _loss(problem, h, o)
        wrt: dict[str, list[Tensor]] = {"dh": steps.h, "da": steps.a, "dh0": [h0]}
        wrt |= {"d" + name: [leaf] for name, leaf in leaves.items()} | {"do": steps.o}
        if not problem.tokens:
            wrt["dx"] = [x]
        flat = [tensor for tensors in wrt.values() for tensor in tensors]
        found = iter(torch.autograd.grad(loss, flat, materialize_grads=True))
    result = {
        name: torch.stack([next(found) for _ in tensors]) if name in ("dh", "da", "do") else next(found)
        for name, tensors in wrt.items()
    }
    result |= {"a": torch.stack(steps.a), "h": h, "hT": h[-1], "o": o, "p": o.softmax(-1), "loss": loss}
    if "b2" in problem.parameters:
        result["db2"] = result["db"]
    if problem.level != "network":
        for name in ("dV", "dc", "do", "loss"):
            del result[name]
    return {name: tensor.detach().numpy().copy() for name, tensor in result.items()}


def _leaf(array: Array, dtype: torch.dtype) -> Tensor:
    return torch.tensor(array, dtype=dtype, requires_grad=True)


def allowances(problem: Problem, exact: Mapping[str, Array], convention: Convention) -> dict[bool, dict[str, float]]:
    """Return how far off right numbers may be, by whether float32 was computed with.

    That is `TOLERANCE`, or 30 times the rounding of the plain loop where that is more because large terms cancel: seen
    in float32, and as much smaller in float64 as its precision is.

    Args:
        problem: The problem.
        exact: What the convention asks for, as `asked_for` gives it.
        convention: The convention.

    Returns:
        By symbol, relative to the largest entry of each.
    """
    allowed: dict[bool, dict[str, float]] = {False: {}, True: {}}
    rounded = asked_for(truth(problem, torch.float32), problem, convention)
    finer = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
    for name, value in exact.items():
        error = float(np.abs(rounded[name] - value).max() / max(float(np.abs(value).max()), 1e-300))
        allowed[True][name] = max(TOLERANCE[True], 30 * error)
        allowed[False][name] = max(TOLERANCE[False], 30 * error * finer)
    return allowed


def _loss(problem: Problem, h: Tensor, o: Tensor) -> Tensor:
    if problem.upstream is not None:
        return (h * torch.tensor(problem.upstream, dtype=h.dtype)).sum()
    y = torch.tensor(_targets(problem))
    y = y[-1] if problem.time == "last" else y
    return sequence_loss(o, y, time=problem.time, batch=problem.batch, ignore_index=IGNORED)


def _targets(problem: Problem) -> Array:
    """Class indices (T, N) with IGNORED where the loss does not count."""
    assert problem.targets is not None
    if problem.mask is None:
        return problem.targets
    result: Array = np.where(problem.mask > 0, problem.targets, IGNORED)
    return result


def asked_for(truth: Mapping[str, Array], problem: Problem, convention: Convention) -> dict[str, Array]:
    """Return what a convention wants of the true quantities: averaged, summed into a shared h0, clipped."""
    asked = dict(truth)
    for name in ("dU", "dW", "dV", "db", "db2", "dc", "dx", "dh0"):
        if name not in asked:
            continue
        if name[1:] in PARAMETERS and convention.parameter_gradients == "mean":
            asked[name] = asked[name] / problem.sizes.N
        if name == "dh0" and convention.shared_h0:
            asked[name] = asked[name].sum(0)
        if problem.clip is not None:
            asked[name] = np.clip(asked[name], -problem.clip, problem.clip)
    return asked


def witnessed_truth(problem: Problem) -> dict[str, Array]:
    """Return the truth after holding it against complex steps (relu: central differences), which know no autograd.

    Raises:
        WitnessesDisagreeError: The two disagree; then nothing can be judged on this machine.
    """
    found = truth(problem)
    parameters = {**problem.parameters, "b": problem.bias}
    parameters.pop("b2", None)
    options: dict[str, Any] = {"nonlinearity": problem.nonlinearity}
    unit = 1.0
    if problem.upstream is None:
        targets = _targets(problem)
        targets = targets[-1] if problem.time == "last" else targets
        options |= {"time": problem.time, "batch": problem.batch, "ignore_index": IGNORED}
    else:  # ½‖h − (h − G)‖² has the gradient G; G is brought to about 1 first, or rounding would hide it
        unit = float(np.abs(problem.upstream).max()) or 1.0
        parameters["V"] = np.eye(len(problem.parameters["W"]))
        del parameters["c"]
        targets = found["h"] - problem.upstream / unit
        options["loss"] = "squared_error"
    name = "central difference" if problem.nonlinearity == "relu" else "complex step"
    witness = central_difference if problem.nonlinearity == "relu" else complex_step
    second = witness(parameters, problem.x, targets, problem.h0, **options)
    noise = 0.0
    if name == "central difference":
        noise = DIFFERENCE_NOISE * max(
            float(np.abs(second[each]).max()) for each in second.keys() & found.keys() - {"loss"}
        )
    for gradient in second.keys() & found.keys() - {"loss"}:
        scale = np.linalg.norm(second[gradient])
        error = np.linalg.norm(found[gradient] / unit - second[gradient])
        if not error <= AGREEMENT[name] * scale + (ROUNDING + noise) * second[gradient].size ** 0.5:
            raise WitnessesDisagreeError(
                f"check: autograd and {name} differ in {gradient} by {error:.1e} of {scale:.1e}; nothing can be "
                "judged on this problem: take another seed or other sizes"
            )
    return found
