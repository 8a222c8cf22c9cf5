"""The backward pass in exchangeable parts, so that any of them may be done wrong: what mistakes.py plants into.

Never a truth: the truth is autograd's (course_problems.py), and a test holds that with nothing exchanged the two agree.
Arrays are canonical: time first, vectors as rows. Every part has a name (a slot) and a right way, `RIGHT`; a mistake is
another way for one or more slots. Results are kept by what they depend on, so that thousands of combinations are cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torch_reference.conventions import PARAMETERS, Convention
from torch_reference.course_problems import Problem
from torch_reference.numerical import ACTIVATIONS

Array = npt.NDArray[Any]
Slots = Mapping[str, Any]


class States(NamedTuple):
    """What a forward pass leaves: (T, N, H) each; `before` holds h_{t-1}, `read` the states that o is made of."""

    a: Array
    h: Array
    before: Array
    read: Array


class Moment(NamedTuple):
    """Everything about one step that the backward pass may read, (N, H) each."""

    g: Array
    z: Array
    a: Array
    h: Array
    before: Array


SLOPES: dict[str, Callable[[Array], Array]] = {  # from the state
    "tanh": lambda h: 1 - h**2,
    "sigmoid": lambda h: h * (1 - h),
    "relu": lambda h: (h > 0).astype(float),
    "identity": np.ones_like,
}


def run_forward(problem: Problem, step: Callable[[Problem, Array, Array], Array] | None = None) -> States:
    """Run F1 and F2; `step` makes a_t from the input's part and the state before."""
    W, bias = problem.parameters["W"], problem.bias
    f = ACTIVATIONS[problem.nonlinearity]
    a, h, before = [], [], []
    state = problem.h0
    for Ux_t in input_parts(problem):
        before.append(state)
        a_t = Ux_t + state @ W.T + bias if step is None else step(problem, Ux_t, state)
        state = f(a_t)
        a.append(a_t)
        h.append(state)
    return States(np.stack(a), np.stack(h), np.stack(before), np.stack(h))


def input_parts(problem: Problem) -> Array:
    """U x_t of every step, (T, N, H)."""
    U = problem.parameters["U"]
    result: Array = U.T[problem.x] if problem.tokens else problem.x @ U.T
    return result


def softmax(o: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """F4, over any axes."""
    exponentials = np.exp(o - o.max(axis=axis, keepdims=True))
    result: Array = exponentials / exponentials.sum(axis=axis, keepdims=True)
    return result


def cross_entropy(problem: Problem, p: Array, weights: Array) -> Array:
    """F5 with these weights (T, N)."""
    assert problem.targets is not None
    chosen = np.take_along_axis(p, problem.targets[..., None], -1)[..., 0]
    with np.errstate(all="ignore"):
        return np.asarray(-np.where(weights != 0, weights * np.log(chosen), 0.0).sum())


def one_hot(problem: Problem) -> Array:
    """The targets as rows, (T, N, K)."""
    assert problem.targets is not None
    return np.eye(problem.sizes.K)[problem.targets]


RIGHT: dict[str, Any] = {
    # forward
    "states": run_forward,
    "softmax": softmax,
    "shown p": lambda p, y, mask, weights: p,
    "loss": lambda problem, p: cross_entropy(problem, p, problem.weights),
    "loss of": "p",  # or of what is shown
    # B1, or the upstream gradient as it is given
    "error": lambda p, y: p - y,
    "weights": lambda problem: problem.weights,
    "factor": 1.0,
    # B3 and B4
    "local": lambda local: local,
    "order": lambda T: range(T - 1, -1, -1),
    "combine": lambda local, carry, starts: local + carry,
    "after slope": lambda z, carry: z,
    "slope": lambda problem, moment: moment.g * SLOPES[problem.nonlinearity](moment.h),
    "source": lambda problem, moment: moment.z,
    "matrix": lambda source, W: source @ W,
    "carried": lambda new, old: new,
    "cut": lambda t, T: False,
    "window": None,
    "initial": None,
    # B2, B5 to B8
    **{f"steps {name}": lambda T, order: slice(None) for name in ("U", "W", "V", "b", "c")},
    **{f"delta {name}": "da" for name in ("U", "W", "b", "x")},
    "states W": lambda states: states.before,
    "states V": lambda states: states.h,
    **{f"transposed {name}": False for name in ("U", "W", "V")},
    "reduce b": lambda z: z.sum((0, 1)),
    "b1": lambda db: db,
    "b2": lambda db: db,
    "dh0": "own",
    "reduce h0": lambda dh0, shared: dh0.sum(0) if shared else dh0,
    # what is done to all gradients at the end
    "after": lambda name, value, problem: value,
    "clip": lambda name, value, bound: value if bound is None else np.clip(value, -bound, bound),
}

_FORWARD = ("states", "softmax", "shown p", "loss", "loss of")
_OUTPUT = ("states", "softmax", "error", "weights", "factor")
_TIME = (
    *_OUTPUT,
    "local",
    "order",
    "combine",
    "after slope",
    "slope",
    "source",
    "matrix",
    "carried",
    "cut",
    "window",
    "initial",
)
# the slots that each quantity depends on
DEPENDS: dict[str, tuple[str, ...]] = {
    "h": ("states",),
    "hT": ("states",),
    "o": ("states",),
    "p": ("states", "softmax", "shown p"),
    "loss": _FORWARD,
    "do": _OUTPUT,
    "dh": _TIME,
    "da": _TIME,
    "dU": (*_TIME, "steps U", "delta U", "transposed U", "after", "clip"),
    "dW": (*_TIME, "steps W", "delta W", "states W", "transposed W", "after", "clip"),
    "db": (*_TIME, "steps b", "delta b", "reduce b", "b1", "after", "clip"),
    "db2": (*_TIME, "steps b", "delta b", "reduce b", "b2", "after", "clip"),
    "dV": (*_OUTPUT, "order", "steps V", "states V", "transposed V", "after", "clip"),
    "dc": (*_OUTPUT, "order", "steps c", "after", "clip"),
    "dx": (*_TIME, "delta x", "after", "clip"),
    "dh0": (*_TIME, "dh0", "reduce h0", "after", "clip"),
}
FORWARD_QUANTITIES = ("h", "hT", "o", "p", "loss")


class Workings:
    """One problem in one convention, worked out with any parts exchanged.

    Args:
        problem: The problem.
        convention: Says what is done to the gradients at the end: averaged, clipped, summed into a shared h0.
    """

    def __init__(self, problem: Problem, convention: Convention) -> None:
        self.problem = problem
        self.convention = convention
        self._kept: dict[Hashable, Any] = {}

    def quantities(self) -> tuple[str, ...]:
        """The names of all that this problem has."""
        absent = set() if "b2" in self.problem.parameters else {"db2"}
        if self.problem.level != "network":
            absent |= {"loss", "do", "dV", "dc"}
        if self.problem.tokens:
            absent.add("dx")
        return tuple(name for name in DEPENDS if name not in absent)

    def key(self, name: str, slots: Slots) -> Hashable:
        """What a quantity depends on: two sets of slots with the same key give the same numbers."""
        return name, tuple((slot, slots[slot]) for slot in DEPENDS[name] if slot in slots)

    def value(self, name: str, slots: Slots) -> Array:
        """Return a quantity as the convention has it, computed with these slots exchanged."""
        key = self.key(name, slots)
        if key not in self._kept:
            with np.errstate(all="ignore"):
                self._kept[key] = self._compute(name, {**RIGHT, **slots})
        result: Array = self._kept[key]
        return result

    def carry(self, slots: Slots) -> Array:
        """What the loop over time leaves for the step before the first, (N, H)."""
        return self._through_time({**RIGHT, **slots})[3]

    def _compute(self, name: str, slots: Slots) -> Array:
        if name in FORWARD_QUANTITIES:
            return self._forward(name, slots)
        if name in ("do", "dh", "da"):
            result: Array = self._through_time(slots)[("do", "dh", "da", "carry").index(name)]
            return result
        return self._finished(name, self._sum(name, slots), slots)

    def _finished(self, name: str, value: Array, slots: Slots) -> Array:
        """Do to a gradient what the convention does, then what the mistake does."""
        if name[1:] in PARAMETERS and self.convention.parameter_gradients == "mean":
            value = value / self.problem.sizes.N
        value = slots["after"](name, value, self.problem)
        return np.asarray(slots["clip"](name, value, self.problem.clip))

    def _kept_or(self, name: str, used: tuple[str, ...], slots: Slots, compute: Callable[[], Any]) -> Any:
        key = name, tuple(slots[slot] for slot in used)
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def states(self, slots: Slots) -> States:
        """The forward pass."""
        result: States = self._kept_or("states", ("states",), slots, lambda: slots["states"](self.problem))
        return result

    def _probabilities(self, slots: Slots) -> Array:
        V, c = self.problem.parameters["V"], self.problem.parameters["c"]
        used = ("states", "softmax")
        p: Array = self._kept_or("_p", used, slots, lambda: slots["softmax"](self.states(slots).read @ V.T + c))
        return p

    def _forward(self, name: str, slots: Slots) -> Array:
        states = self.states(slots)
        if name in ("h", "hT"):
            return states.h if name == "h" else states.h[-1]
        if name == "o":
            result: Array = states.read @ self.problem.parameters["V"].T + self.problem.parameters["c"]
            return result
        p = self._probabilities(slots)
        if self.problem.targets is None:
            return p
        mask = np.ones(p.shape[:2]) if self.problem.mask is None else self.problem.mask
        shown = slots["shown p"](p, one_hot(self.problem), mask, self.problem.weights)
        if name == "p":
            return np.asarray(shown)
        return np.asarray(slots["loss"](self.problem, p if slots["loss of"] == "p" else shown))

    def _output_error(self, slots: Slots) -> Array:
        """dL/do, or zeros (T, N, K) where the upstream gradient is given."""
        if self.problem.targets is None:
            return np.zeros((*self.problem.x.shape[:2], self.problem.sizes.K))

        def compute() -> Array:
            weights = slots["weights"](self.problem)[..., None]
            error: Array = slots["factor"] * weights * slots["error"](self._probabilities(slots), one_hot(self.problem))
            return error

        result: Array = self._kept_or("_do", _OUTPUT, slots, compute)
        return result

    def _through_time(self, slots: Slots) -> tuple[Array, Array, Array, Array]:
        """Return do, dh, da and the carry that is left at the end of the loop."""
        found: tuple[Array, Array, Array, Array] = self._kept_or("_time", _TIME, slots, lambda: self._time(slots))
        return found

    def _time(self, slots: Slots) -> tuple[Array, Array, Array, Array]:
        do = self._output_error(slots)
        upstream = self.problem.upstream
        local = do @ self.problem.parameters["V"] if upstream is None else slots["factor"] * upstream
        local = slots["local"](local)
        if slots["window"] is None:
            return (do, *self.loop(local, slots))
        return (do, *slots["window"](self, local, slots))

    def loop(self, local: Array, slots: Slots) -> tuple[Array, Array, Array]:
        """B3 and B4 step by step; return dh, da and the last carry."""
        states, W = self.states(slots), self.problem.parameters["W"]
        T = len(local)
        dh, da = np.zeros_like(local), np.zeros_like(local)
        carry = np.zeros_like(local[0]) if slots["initial"] is None else slots["initial"].array
        for count, t in enumerate(slots["order"](T)):
            dh[t] = g = slots["combine"](local[t], carry, count == 0)
            moment = Moment(g, g, states.a[t], states.h[t], states.before[t])
            da[t] = z = slots["after slope"](slots["slope"](self.problem, moment), carry)
            carry = slots["carried"](slots["matrix"](slots["source"](self.problem, moment._replace(z=z)), W), carry)
            if t > 0 and slots["cut"](t, T):
                carry = np.zeros_like(carry)
        return dh, da, carry

    def _delta(self, which: str, slots: Slots) -> Array:
        """What a sum is made of: da, or mistakenly dh, da in reverse, da counted again along every path, or nothing."""
        _, dh, da, _ = self._through_time(slots)
        if which == "nothing":
            return np.zeros_like(da)
        if which == "again":
            found: Array = self._kept_or("_again", _TIME, slots, lambda: self.loop(dh, slots)[1])
            return found
        if which == "reversed":
            turned: Array = da[::-1]
            return turned
        return da if which == "da" else dh

    def _sum(self, name: str, slots: Slots) -> Array:
        problem, parameter = self.problem, "b" if name == "db2" else name[1:]
        T, order = len(problem.x), tuple(slots["order"](len(problem.x)))
        if parameter in ("V", "c"):
            steps = slots[f"steps {parameter}"](T, order)
            delta = self._output_error(slots)[steps]
            return delta.sum((0, 1)) if parameter == "c" else self._product(delta, "V", steps, slots)
        if parameter == "h0":
            return self._initial_state(slots)
        delta = self._delta(slots[f"delta {parameter}"], slots)
        if parameter == "x":
            dx: Array = delta @ problem.parameters["U"]
            return dx
        steps = slots[f"steps {parameter}"](T, order)
        if parameter == "b":
            db = np.asarray(slots["reduce b"](delta[steps]))
            return np.asarray(slots["b2" if name == "db2" else "b1"](db))
        return self._product(delta[steps], parameter, steps, slots)

    def _product(self, delta: Array, parameter: str, steps: Any, slots: Slots) -> Array:
        """Sum of outer products over steps and batch."""
        if parameter == "U":
            x = self.problem.x
            right = np.eye(self.problem.sizes.D)[x] if self.problem.tokens else x
        else:
            right = slots[f"states {parameter}"](self.states(slots))
        right = right[steps]
        product: Array = delta.reshape(-1, delta.shape[-1]).T @ right.reshape(-1, right.shape[-1])
        return product.T if slots[f"transposed {parameter}"] else product

    def _initial_state(self, slots: Slots) -> Array:
        _, dh, da, carry = self._through_time(slots)
        W = self.problem.parameters["W"]
        ways: dict[str, Callable[[], Array]] = {
            "own": lambda: da[0] @ W,
            "carry": lambda: carry,
            "zeros": lambda: np.zeros_like(da[0]),
            "da": lambda: da[0],
            "dh": lambda: dh[0],
        }
        return np.asarray(slots["reduce h0"](ways[slots["dh0"]](), self.convention.shared_h0))
