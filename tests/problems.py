"""Problems that can see a mistake, the ways to solve them, and the comparison that names the gradient. No test here.

A problem can see mistakes when T ≥ 4, B ≥ 2, no two sizes are equal, h0 is not zero, W is not symmetric, |a| is
about 1, several steps enter the loss and no upstream gradient is all ones. The truth is always float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import torch_reference
from manual_bptt import ElmanNetwork, bptt, readout, rnn, softmax_cross_entropy, squared_error
from manual_bptt.activations import ACTIVATIONS

NONLINEARITIES = tuple(ACTIVATIONS)
# The policy: norm-wise, per gradient. float32 is judged against the float64 truth on the same numbers.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 100 * torch.finfo(torch.float32).eps}


class Sizes(NamedTuple):
    """Steps, batch rows, inputs, hidden units, outputs."""

    T: int
    B: int
    D: int
    H: int
    K: int


GENERAL = Sizes(T=5, B=3, D=4, H=7, K=6)
SMALL = Sizes(T=4, B=2, D=3, H=5, K=6)  # for numerical Jacobians
SIZES = {
    "general": GENERAL,
    "T=1": GENERAL._replace(T=1),
    "B=1": GENERAL._replace(B=1),
    "D=1": GENERAL._replace(D=1),
    "H=1": GENERAL._replace(H=1),
    "K=1": GENERAL._replace(K=1),
    "all-ones": Sizes(1, 1, 1, 1, 1),
    "T>H": Sizes(T=23, B=2, D=3, H=5, K=4),
    "odd": Sizes(T=7, B=5, D=9, H=17, K=3),
}

# loss and kind of targets; what else is passed on
LOSSES = {
    "indices": {"loss": "cross_entropy"},
    "ignored": {"loss": "cross_entropy"},
    "ignored-class-0": {"loss": "cross_entropy", "ignore_index": 0},
    "one-hot": {"loss": "cross_entropy"},
    "integer-one-hot": {"loss": "cross_entropy"},
    "soft": {"loss": "cross_entropy"},
    "unnormalised": {"loss": "cross_entropy"},
    "squared-error": {"loss": "squared_error"},
}


@dataclass(frozen=True)
class Problem:
    """A network, its input and its loss; options are the keyword arguments that bptt() and gradients() share."""

    parameters: dict[str, Tensor]
    x: Tensor
    targets: Tensor
    h0: Tensor | None
    options: dict[str, Any]

    def to(self, target: torch.device | torch.dtype | str) -> Problem:
        """Return the same numbers elsewhere; a dtype leaves tokens, indices and integer one-hots alone."""

        def moved(tensor: Tensor) -> Tensor:
            keep = isinstance(target, torch.dtype) and not tensor.is_floating_point()
            return tensor if keep else tensor.to(target)

        return replace(
            self,
            parameters={name: moved(tensor) for name, tensor in self.parameters.items()},
            x=moved(self.x),
            targets=moved(self.targets),
            h0=None if self.h0 is None else moved(self.h0),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        named = {**self.parameters, "x": self.x, "targets": self.targets}
        return named if self.h0 is None else {**named, "h0": self.h0}

    def numpy(self) -> tuple[Any, ...]:
        """Parameters, x, targets and h0 as NumPy arrays."""
        parameters = {name: tensor.numpy() for name, tensor in self.parameters.items()}
        return parameters, self.x.numpy(), self.targets.numpy(), None if self.h0 is None else self.h0.numpy()


def seeded(seed: int) -> torch.Generator:
    """Return a generator on the CPU: the same numbers for every device and dtype."""
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Draw float64 normal numbers."""
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def make_problem(
    sizes: Sizes = GENERAL,
    *,
    nonlinearity: str = "tanh",
    kind: str = "indices",
    time: str = "sum",
    batch: str = "sum",
    with_h0: bool = True,
    biases: str = "bc",
    tokens: bool = False,
    seed: int = 0,
) -> Problem:
    """Draw a problem in float64 on the CPU; kind is a key of LOSSES."""
    T, B, D, H, K = sizes
    generator = seeded(seed)
    parameters = {
        "U": normal(generator, H, D, scale=D**-0.5),
        "W": normal(generator, H, H, scale=H**-0.5),
        "V": normal(generator, K, H, scale=H**-0.5),
        "b": normal(generator, H, scale=0.5),
        "c": normal(generator, K, scale=0.5),
    }
    x = normal(generator, T, B, D)
    if tokens:
        x = torch.randint(D, (T, B), generator=generator)
    h0 = normal(generator, B, H, scale=0.7)
    targets = make_targets(kind, sizes, generator)
    return Problem(
        parameters={name: tensor for name, tensor in parameters.items() if name in "UWV" + biases},
        x=x,
        targets=targets[-1] if time == "last" else targets,
        h0=h0 if with_h0 else None,
        options={"nonlinearity": nonlinearity, "time": time, "batch": batch, **LOSSES[kind]},
    )


def make_targets(kind: str, sizes: Sizes, generator: torch.Generator) -> Tensor:
    """Draw targets for all steps."""
    T, B, _, _, K = sizes
    classes = torch.randint(K, (T, B), generator=generator)
    if kind == "ignored":  # another number of steps in every sequence, none in the last one
        ignored = torch.arange(T)[:, None] % (torch.arange(B) + 2) == 1
        ignored[:, -1] = True
        return classes.masked_fill(ignored, -100)
    if kind == "one-hot":
        return functional.one_hot(classes, K).double()
    if kind == "integer-one-hot":
        return functional.one_hot(classes, K)
    if kind == "soft":
        return normal(generator, T, B, K).softmax(-1)
    if kind in ("unnormalised", "squared-error"):
        return normal(generator, T, B, K)
    return classes


def away_from_kink(margin: float = 1e-3, **options: Any) -> Problem:
    """Draw a ReLU problem of which no pre-activation comes near the kink, where there is no derivative."""
    for seed in range(100):
        problem = make_problem(nonlinearity="relu", seed=seed, **options)
        a = torch.stack(torch_reference.unrolled(problem.parameters, problem.x, problem.h0, "relu").a)
        if a.abs().min() > margin:
            return problem
    raise AssertionError("no seed keeps every pre-activation away from 0")


def leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the floating tensors into leaves that require gradients; hand the others on."""
    return {
        name: tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def loss_of(problem: Problem, o: Tensor, targets: Tensor) -> Tensor:
    """Apply the public loss that the problem asks for."""
    options = {"time": problem.options["time"], "batch": problem.options["batch"]}
    if problem.options["loss"] == "squared_error":
        return squared_error(o, targets, **options)
    return softmax_cross_entropy(o, targets, ignore_index=problem.options.get("ignore_index", -100), **options)


def _differentiated(named: Mapping[str, Tensor], h: Tensor, o: Tensor, loss: Tensor, again: bool) -> dict[str, Tensor]:
    wrt = {"do": o} | {"d" + name: tensor for name, tensor in named.items() if tensor.requires_grad}
    found = torch.autograd.grad(loss, list(wrt.values()), create_graph=again)
    return {"loss": loss, "h": h, "o": o} | dict(zip(wrt, found, strict=True))


def by_functions(problem: Problem, *, create_graph: bool = False) -> dict[str, Tensor]:
    """Solve by rnn(), readout() and a loss, and autograd through their Functions."""
    named = leaves({**problem.parameters, "x": problem.x} | ({} if problem.h0 is None else {"h0": problem.h0}))
    U, W, V, b, c, x, h0 = (named.get(name) for name in ("U", "W", "V", "b", "c", "x", "h0"))
    h = rnn(x, h0, U, W, b, problem.options["nonlinearity"])
    o = readout(h, V, c)
    return _differentiated(named, h, o, loss_of(problem, o, problem.targets), create_graph)


def by_create_graph(problem: Problem) -> dict[str, Tensor]:
    """Solve as by_functions, with the loop that can be differentiated again."""
    return by_functions(problem, create_graph=True)


def by_network(problem: Problem) -> dict[str, Tensor]:
    """Solve by an ElmanNetwork that was given the parameters."""
    U, V = problem.parameters["U"], problem.parameters["V"]
    network = ElmanNetwork(
        U.shape[1],
        U.shape[0],
        V.shape[0],
        problem.options["nonlinearity"],
        bias="b" in problem.parameters,
        device=U.device,
        dtype=U.dtype,
    )
    network.load_state_dict(problem.parameters)
    inputs = leaves({"x": problem.x} | ({} if problem.h0 is None else {"h0": problem.h0}))
    o, h = network(inputs["x"], inputs.get("h0"))
    loss = loss_of(problem, o, problem.targets)
    return _differentiated({**dict(network.named_parameters()), **inputs}, h, o, loss, False)


def by_bptt(problem: Problem) -> dict[str, Tensor]:
    """Solve by bptt(); a field that is None is left out."""
    result = bptt(problem.parameters, problem.x, problem.targets, problem.h0, **problem.options)
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: value for name, value in values.items() if value is not None}


WAYS: dict[str, Callable[[Problem], dict[str, Tensor]]] = {
    "functions": by_functions,
    "create_graph": by_create_graph,
    "network": by_network,
    "bptt": by_bptt,
}


def truth_of(problem: Problem, network: str = "unrolled") -> dict[str, Tensor]:
    """Solve by autograd in float64, on the numbers of the problem."""
    exact = problem.to(torch.float64)
    return torch_reference.gradients(
        exact.parameters, exact.x, exact.targets, exact.h0, network=network, **problem.options
    )


def gradient_names(problem: Problem) -> set[str]:
    """Name the gradients with respect to what goes into the network."""
    names = {"d" + name for name, tensor in problem.tensors().items() if tensor.is_floating_point()}
    return names - {"dtargets"}


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """‖actual − truth‖ / ‖truth‖, or ‖actual − truth‖ where the truth is zero."""
    if actual.shape != truth.shape:
        raise AssertionError(f"expected shape {tuple(truth.shape)}, got {tuple(actual.shape)}")
    difference, scale = (actual.double() - truth.double()).norm().item(), truth.double().norm().item()
    return difference / scale if scale > 0 else difference


def disagreements(actual: Mapping[str, Tensor], truth: Mapping[str, Tensor], tolerance: float) -> dict[str, float]:
    """Map what is further from the truth than the tolerance, NaN included, to its relative error."""
    errors = {name: relative_error(value, truth[name]) for name, value in actual.items()}
    return {name: error for name, error in errors.items() if not error <= tolerance}


def assert_all_close(actual: Mapping[str, Tensor], truth: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare everything in actual with its namesake and name whatever differs."""
    assert actual, "nothing to compare"
    wrong = disagreements(actual, truth, tolerance)
    assert not wrong, ", ".join(f"{name}: relative error {e:.2e} > {tolerance:.2e}" for name, e in wrong.items())


def assert_close(name: str, actual: Tensor, truth: Tensor, tolerance: float) -> None:
    """Compare one tensor, as assert_all_close does."""
    assert_all_close({name: actual}, {name: truth}, tolerance)
