"""The mistakes that people make in back-propagation through time, as data: an id, words, and the wrong way to compute.

A mistake exchanges parts of `workings.py`. What it says never contains the right formula: `cause` names what is wrong,
`hint` asks where to look, with the equation of docs/derivation.md. The numbers are those of docs/coursework.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_reference.conventions import CONVENTIONS, PARAMETERS
from torch_reference.course_problems import Problem
from torch_reference.numerical import ACTIVATIONS
from torch_reference.workings import (
    SLOPES,
    Moment,
    States,
    Workings,
    cross_entropy,
    run_forward,
    softmax,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Variant:
    """One form of a mistake: the slots it exchanges, and what sets it apart from the other forms, in a few words."""

    slots: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Mistake:
    """A known mistake.

    Attributes:
        id: Its number.
        title: A few words.
        cause: One sentence: what is wrong. It does not say what would be right.
        hint: Where to look, with the equation's label.
        variants: Maps a problem, and the largest entry of the gradients handed in, to the forms it takes there.
        levels: Where it can be made.
    """

    id: str
    title: str
    cause: str
    hint: str
    variants: Callable[[Problem, float], Iterable[Variant]]
    levels: tuple[str, ...] = ("step", "sequence", "network")


def _fixed(*variants: Variant) -> Callable[[Problem, float], Iterable[Variant]]:
    return lambda problem, largest: variants


_FOLLOWED = {"dh0": "carry"}  # dL/dh_0 comes out of the same line as what flows from step to step


def _with_and_without_h0(slots: Mapping[str, Any], note: str = "") -> tuple[Variant, Variant]:
    return Variant({**slots, **_FOLLOWED}, note), Variant(slots, note)


# Recurrence


def _local_alone(local: Array, carry: Array, starts: bool) -> Array:
    return local


def _plus_carry(z: Array, carry: Array) -> Array:
    return z + carry


def _carry_alone(local: Array, carry: Array, starts: bool) -> Array:
    return local if starts else carry


def _state_gradient(problem: Problem, moment: Moment) -> Array:
    return moment.g


def _slope_of_state_before(problem: Problem, moment: Moment) -> Array:
    return moment.g * SLOPES[problem.nonlinearity](moment.before)


def _untransposed(source: Array, W: Array) -> Array:
    result: Array = source @ W.T
    return result


def _local_twice(local: Array, carry: Array, starts: bool) -> Array:
    return 2 * local + carry


def _weighted_product(weight: float, source: Array, W: Array) -> Array:
    result: Array = weight * (source @ W)
    return result


def _factors_on_carry() -> Iterator[Variant]:
    for weight, words in ((2.0, "it counts twice"), (0.5, "it counts half"), (-1.0, "it is subtracted")):
        yield from _with_and_without_h0({"combine": partial(_weighted_carry, weight)}, words)
        yield Variant({"matrix": partial(_weighted_product, weight), **_FOLLOWED}, words)


def _without_W(source: Array, W: Array) -> Array:
    return source


def _slope_twice(problem: Problem, moment: Moment) -> Array:
    result: Array = moment.z * SLOPES[problem.nonlinearity](moment.h)
    return result


def _on_top(new: Array, old: Array) -> Array:
    return new + old


def _weighted_carry(weight: float, local: Array, carry: Array, starts: bool) -> Array:
    return local + weight * carry


def _forwards(T: int) -> range:
    return range(T)


def _last_loss_alone(problem: Problem) -> bool:
    return problem.level == "network" and problem.time == "last"


def _forward_loops(problem: Problem, largest: float) -> Iterator[Variant]:
    yield Variant({"order": _forwards, **_FOLLOWED})
    if not _last_loss_alone(problem):  # else that would be M01
        yield Variant({"order": _forwards})


def _window(k: int, workings: Workings, local: Array, slots: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """Follow every loss back over its own step and k more; return the sums of dh, da and the last carries."""
    dh, da, left = np.zeros_like(local), np.zeros_like(local), np.zeros_like(local[0])
    for s in range(len(local)):
        alone = np.zeros_like(local)
        alone[s] = local[s]
        border = s - k

        def cut(t: int, T: int, border: int = border) -> bool:
            return t <= border

        one_dh, one_da, carry = workings.loop(alone, {**slots, "cut": cut})
        dh, da = dh + one_dh, da + one_da
        left = left + (carry if s < k else 0)
    return dh, da, left


def _windows(problem: Problem, largest: float) -> Iterator[Variant]:
    for k in range(1, problem.sizes.T - 1):  # k = 0 is M01
        window = partial(_window, k)
        reach = f"each loss reaches back {k} step{'s' * (k != 1)} beyond its own"
        yield Variant({"window": window}, reach)
        yield Variant({"window": window, **_FOLLOWED}, reach)


def _chunks(problem: Problem, largest: float) -> Iterator[Variant]:
    for k in range(2, problem.sizes.T):  # k = 1 is M01

        def cut(t: int, T: int, k: int = k) -> bool:
            return t % k == 0

        yield Variant({"cut": cut}, f"nothing crosses a border every {k} step{'s' * (k > 1)}")
        yield Variant({"cut": cut, "dh0": "zeros"}, f"nothing crosses a border every {k} step{'s' * (k > 1)}")


def _of_step_before(wraps: bool, local: Array) -> Array:
    result: Array = np.roll(local, 1, 0)
    result[0] *= wraps  # at the first step index -1 is that of the last
    return result


def _of_step_after(local: Array) -> Array:
    result: Array = np.roll(local, -1, 0)
    result[-1] = 0
    return result


def _reversed(local: Array) -> Array:
    return local[::-1]


_DISPLACED = (
    Variant({"local": partial(_of_step_before, True)}, "that of the step before"),
    Variant({"local": partial(_of_step_before, False)}, "that of the step before"),
    Variant({"local": _of_step_after}, "that of the step after"),
    Variant({"local": _reversed}, "the order is reversed"),
)


def _weighted_local(weight: float, local: Array) -> Array:
    return weight * local


def _local_factors(problem: Problem, largest: float) -> Iterator[Variant]:
    yield Variant({"local": partial(_weighted_local, 0.0)}, "it is missing")
    if problem.level == "network":  # of a sequence that is the sign, or the scale, of everything
        yield Variant({"local": partial(_weighted_local, -1.0)}, "it is subtracted")
        yield Variant({"local": partial(_weighted_local, 0.5)}, "it counts half")


def _displaced(problem: Problem, largest: float) -> Iterable[Variant]:
    return () if _last_loss_alone(problem) or problem.sizes.T == 1 else _DISPLACED


_REVERSED = {"UWx": "in the sums and dx", "UW": "in the sums", "U": "in dU", "W": "in dW"}


def _reversed_dx(name: str, value: Array, problem: Problem) -> Array:
    return value[::-1] if name == "dx" else value


def _initial_sums(problem: Problem, largest: float) -> Iterator[Variant]:
    def kept(dh0: Array, shared: bool) -> Array:
        return dh0

    def summed(dh0: Array, shared: bool) -> Array:
        result: Array = dh0.sum(0)
        return result

    def summed_rows(dh0: Array, shared: bool) -> Array:
        return np.broadcast_to(dh0.sum(0), dh0.shape)

    yield Variant({"reduce h0": kept}, "not summed, though all sequences share it")
    yield Variant({"reduce h0": summed}, "summed over the batch, though every sequence has its own")
    yield Variant({"reduce h0": summed_rows}, "summed over the batch, though every sequence has its own")


# The activation's derivative


def _no_slope(problem: Problem, moment: Moment) -> Array:
    return moment.g


def _slope_of_preactivation(problem: Problem, moment: Moment) -> Array:
    return moment.g * SLOPES[problem.nonlinearity](moment.a)


def _slope_of_activated_state(problem: Problem, moment: Moment) -> Array:
    return moment.g * SLOPES[problem.nonlinearity](ACTIVATIONS[problem.nonlinearity](moment.h))


def _no_square(problem: Problem, moment: Moment) -> Array:
    result: Array = moment.g * (1 - moment.h)
    return result


def _slope_alone(problem: Problem, moment: Moment) -> Array:
    return SLOPES[problem.nonlinearity](moment.h)


def _other_slope(name: str, problem: Problem, moment: Moment) -> Array:
    return moment.g * SLOPES[name](moment.h)


_OTHER_SLOPES = {name: partial(_other_slope, name) for name in SLOPES}


def _other_slopes(problem: Problem, largest: float) -> Iterator[Variant]:
    for name, slope in _OTHER_SLOPES.items():
        if name not in (problem.nonlinearity, "identity"):  # without a derivative it would be M20
            yield Variant({"slope": slope}, f"that of {name}")


def _squared_without_one(problem: Problem, moment: Moment) -> Array:
    result: Array = moment.g * moment.h**2
    return result


def _negative_slope(problem: Problem, moment: Moment) -> Array:
    return -moment.g * SLOPES[problem.nonlinearity](moment.h)


def _weighted_slope(weight: float, problem: Problem, moment: Moment) -> Array:
    return weight * moment.g * SLOPES[problem.nonlinearity](moment.h)


def _parentheses_forgotten(problem: Problem, moment: Moment) -> Array:
    result: Array = moment.g - moment.h**2
    return result


def _root_of_slope(problem: Problem, moment: Moment) -> Array:
    return moment.g * np.sqrt(np.abs(SLOPES[problem.nonlinearity](moment.h)))


def _slope_before(problem: Problem, moment: Moment) -> Array:
    return moment.g * SLOPES[problem.nonlinearity](moment.before)


def _plus_square(problem: Problem, moment: Moment) -> Array:
    result: Array = moment.g * (1 + moment.h**2)
    return result


# Sums


def _states_after(states: States) -> Array:
    return states.h


LAST_FOR_FIRST = "that of the last at the first step"


def _last_before_first(states: States) -> Array:
    """At the first step index -1 is that of the last."""
    return np.concatenate([states.h[-1:], states.before[1:]])


def _states_before(states: States) -> Array:
    return states.before


def _last_processed(T: int, order: tuple[int, ...]) -> list[int]:
    return [order[-1]]


def _without_first(T: int, order: tuple[int, ...]) -> slice:
    return slice(1, None)


def _without_last(T: int, order: tuple[int, ...]) -> slice:
    return slice(None, -1)


def _steps(names: str, way: Any) -> dict[str, Any]:
    return {f"steps {name}": way for name in names}


_SETS = ("UWb", "U", "W", "b", "UW", "Ub", "Wb", "UWbVc", "V", "c", "Vc", "UWV")


def _told_apart(problem: Problem, sets: Iterable[str]) -> list[str]:
    """Drop the sets with V or c where but one step has a loss: then nothing but its share is in their gradients."""
    return [names for names in sets if not _last_loss_alone(problem) or not {"V", "c"} & set(names)]


def _overwritten(problem: Problem, largest: float) -> Iterator[Variant]:
    yield from (Variant(_steps(names, _last_processed)) for names in _told_apart(problem, _SETS))


def _skipping_first(problem: Problem, largest: float) -> Iterator[Variant]:
    yield from (Variant(_steps(names, _without_first)) for names in ("W", "UWb", "UW", "UWbVc", "U", "b", "V"))
    if problem.sizes.T > 1:
        yield Variant({**_steps("UWbVc", _without_first), "order": _to_second, **_FOLLOWED}, "in every sum")
        yield Variant({"order": _to_second, **_FOLLOWED}, "the loop over time does not reach it")
    for k in range(1 + _last_loss_alone(problem), problem.sizes.T - 1):  # one step with its loss alone would be M08
        last = partial(_last_steps, k)
        yield Variant({"order": last, **_FOLLOWED}, f"the loop over time covers the last {k} step{'s' * (k > 1)} alone")


def _to_second(T: int) -> range:
    return range(T - 1, 0, -1)


def _last_steps(k: int, T: int) -> range:
    return range(T - 1, T - 1 - k, -1)


def _skipping_last(problem: Problem, largest: float) -> Iterator[Variant]:
    if problem.sizes.T > 1:
        if not _last_loss_alone(problem):  # else nothing would be left
            yield Variant({"local": _zero_last, **_steps("UWbVc", _without_last)}, "in every sum")
            yield Variant({"local": _zero_last})
        sets = _told_apart(problem, ("W", "UWb", "UW", "V", "Vc"))
        yield from (Variant(_steps(names, _without_last)) for names in sets)


def _zero_last(local: Array) -> Array:
    result: Array = local.copy()
    result[-1] = 0
    return result


def _no_step(T: int, order: tuple[int, ...]) -> list[int]:
    return []


def _never_filled(problem: Problem, largest: float) -> Iterator[Variant]:
    yield from (Variant(_steps(names, _no_step)) for names in _SETS)
    yield Variant({"delta x": "nothing"})
    yield Variant({**_steps("UWbVc", _no_step), "delta x": "nothing", "dh0": "zeros"}, "all of them are")


def _unsummed(z: Array) -> Array:
    result: Array = z.sum(0)
    return result


def _mean_over_batch(z: Array) -> Array:
    result: Array = z.mean(1).sum(0)
    return result


def _mean_over_hidden(z: Array) -> Array:
    return np.asarray(z.mean(-1).sum())


def _mean_of_all(z: Array) -> Array:
    return np.asarray(z.mean((1, 2)).sum())


def _mean_of_summed(z: Array) -> Array:
    result: Array = z.mean(-1).sum(0)
    return result


def _mean_over_time(z: Array) -> Array:
    result: Array = z.sum((0, 1)) / max(1, len(z))
    return result


def _zero(db: Array) -> Array:
    return np.zeros_like(db)


def _half(db: Array) -> Array:
    return db / 2


def _double(db: Array) -> Array:
    return 2 * db


def _negative(db: Array) -> Array:
    return -db


def _second_biases(problem: Problem, largest: float) -> Iterator[Variant]:
    if "b2" in problem.parameters:
        for words, way in {
            "stays zero": _zero,
            "is halved": _half,
            "is doubled": _double,
            "is negative": _negative,
        }.items():
            yield Variant({"b1": way}, f"the first {words}")
            yield Variant({"b2": way}, f"the second {words}")
        yield Variant({"b1": _half, "b2": _half}, "each gets one half")


# Output, loss and scale


def _target_minus(p: Array, y: Array) -> Array:
    return y - p


def _opposite(local: Array) -> Array:
    return -local


def _signs(problem: Problem, largest: float) -> Iterator[Variant]:
    yield Variant({"error": _target_minus} if problem.level == "network" else {"local": _opposite})
    yield Variant({"after": partial(_scaled_parameters, -1.0)}, "in the parameters alone")


def _no_target(p: Array, y: Array) -> Array:
    return p


def _plus_target(p: Array, y: Array) -> Array:
    return p + y


def _target_alone(p: Array, y: Array) -> Array:
    return -y


def _softmax_of_exponentials(o: Array) -> Array:
    return softmax(np.exp(o))


def _softmax_of_shifted_exponentials(o: Array) -> Array:
    return softmax(np.exp(o - o.max(-1, keepdims=True)))


def _exponentials(o: Array) -> Array:
    return np.exp(o)


_AXES: dict[str, int | tuple[int, ...]] = {
    "over the batch": 1,
    "over time": 0,
    "over time and classes": (0, 2),
    "over the batch and classes": (1, 2),
}
_SOFTMAXES = {note: partial(softmax, axis=axis) for note, axis in _AXES.items()} | {
    "over everything at once": partial(softmax, axis=(0, 1, 2))
}


def _softmaxes(problem: Problem, largest: float) -> Iterator[Variant]:
    T, N = problem.sizes.T, problem.sizes.N
    for note, normalised in _SOFTMAXES.items():
        if not ("batch" in note and N == 1) and not ("time" in note and T == 1):
            yield Variant({"softmax": normalised}, f"normalised {note}")
    yield Variant({"softmax": _softmax_of_exponentials}, "the exponential is taken twice")
    yield Variant({"softmax": _softmax_of_shifted_exponentials}, "the exponential is taken twice")
    yield Variant({"softmax": _exponentials}, "not normalised")
    yield Variant({"softmax": np.ones_like}, "normalised over an axis of length one")


def factors(problem: Problem) -> dict[str, float]:
    """The common factors by which a gradient is off, by name; where sizes coincide, the names are joined."""
    T, N, _, _, K = problem.sizes
    named: dict[str, float] = {}
    if N > 1:
        named |= {"N": N, "1/N": 1 / N, "N²": N**2, "1/N²": N**-2}
    if T > 1:
        named |= {"T": T, "1/T": 1 / T}
    if N > 1 and T > 1:
        named |= {"N·T": N * T, "1/(N·T)": 1 / (N * T), "N/T": N / T, "T/N": T / N}
    if problem.level == "network":
        named |= {"2": 2, "1/2": 1 / 2, "K": K, "1/K": 1 / K, "2/K": 2 / K, "K/2": K / 2}
    joined: dict[float, list[str]] = {}
    for name, value in named.items():
        joined.setdefault(value, []).append(name)
    return {" or ".join(names): value for value, names in joined.items() if value != 1}


def _scaled_loss(factor: float) -> Callable[[Problem, Array], Array]:
    return lambda problem, p: np.asarray(factor * cross_entropy(problem, p, problem.weights))


def _scales(problem: Problem, largest: float) -> Iterator[Variant]:
    for name, factor in factors(problem).items():
        yield Variant({"factor": factor}, f"by {name}" + ", the loss is right" * (problem.level == "network"))
        if problem.level == "network":
            yield Variant({"factor": factor, "loss": _scaled_loss(factor)}, f"by {name}, and the loss with it")
    if problem.mask is not None:
        yield Variant({"weights": _per_valid}, "divided by the number of steps that are not masked")
        yield Variant(
            {"weights": _per_valid, "loss": _per_valid_loss},
            "divided by the number of steps that are not masked, and the loss with it",
        )


def _per_valid(problem: Problem) -> Array:
    assert problem.mask is not None
    result: Array = problem.mask / problem.mask.sum()
    return result


def _per_valid_loss(problem: Problem, p: Array) -> Array:
    return cross_entropy(problem, p, _per_valid(problem))


def _scaled_parameters(factor: float, name: str, value: Array, problem: Problem) -> Array:
    return value * factor if name[1:] in PARAMETERS else value


def _scaled_gradient(which: str, factor: float, name: str, value: Array, problem: Problem) -> Array:
    return value * factor if name == which else value


def _partial_scales(problem: Problem, largest: float) -> Iterator[Variant]:
    for name, factor in factors(problem).items():
        yield Variant({"after": partial(_scaled_parameters, factor)}, f"by {name}")
    if _last_loss_alone(problem) or problem.sizes.T == 1:
        return
    for name, factor in factors(problem).items():
        if set(name.split(" or ")) & {"N", "1/N", "T", "1/T"}:
            for gradient in ("dU", "dW", "dV", "db", "dc")[: 5 if factor > 1 else 3]:  # a bias averaged is M36
                yield Variant({"after": partial(_scaled_gradient, gradient, factor)}, f"by {name}, one of them alone")


def _scaled_losses(problem: Problem, largest: float) -> Iterator[Variant]:
    for name, factor in {**factors(problem), "1/ln 2: it is in bits": 1 / np.log(2)}.items():
        yield Variant({"loss": _scaled_loss(factor)}, f"the loss is off by {name}")
    yield Variant({"loss": _no_loss}, "the loss is zero")


def _no_loss(problem: Problem, p: Array) -> Array:
    return np.zeros(())


def _unmasked_loss(problem: Problem, p: Array) -> Array:
    return cross_entropy(problem, p, _unmasked(problem))


def _unmasked(problem: Problem) -> Array:
    T, N = problem.x.shape[:2]
    scale = (1 / T if problem.time == "mean" else 1.0) * (1 / N if problem.batch == "mean" else 1.0)
    weights = np.full((T, N), scale)
    if problem.time == "last":
        weights[:-1] = 0
    return weights


def _masks(problem: Problem, largest: float) -> Iterator[Variant]:
    if problem.mask is not None:
        yield Variant({"weights": _unmasked}, "masked steps are counted in the gradient")
        yield Variant({"weights": _unmasked, "loss": _unmasked_loss}, "masked steps are counted, in the loss too")
        yield Variant({"loss": _unmasked_loss}, "masked steps are counted in the loss")


def _unclipped(name: str, value: Array, bound: float | None) -> Array:
    return value


def _clipped(own: float, name: str, value: Array, bound: float | None) -> Array:
    return np.clip(value, -own, own)


def _clipped_parameters(own: float, name: str, value: Array, bound: float | None) -> Array:
    return np.clip(value, -own, own) if name[1:] in PARAMETERS else value


def _clips(problem: Problem, largest: float) -> Iterator[Variant]:
    if problem.clip is not None:
        yield Variant({"clip": _unclipped}, f"not clipped, though the convention clips at ±{problem.clip:g}")
    for bound in dict.fromkeys((1.0, 5.0, 10.0, largest)):
        if np.isfinite(bound) and bound > 0 and bound != problem.clip:
            yield Variant({"clip": partial(_clipped, bound)}, f"at ±{bound:g}")
            yield Variant({"clip": partial(_clipped_parameters, bound)}, f"at ±{bound:g}, the parameters alone")


# Forward


def _never_advanced(backward_too: bool, problem: Problem) -> States:
    states = run_forward(problem, _from_first_state)
    before = [problem.h0] * len(states.h) if backward_too else [problem.h0, *states.h[:-1]]
    return states._replace(before=np.stack(before))


def _from_first_state(problem: Problem, Ux_t: Array, state: Array) -> Array:
    result: Array = Ux_t + problem.h0 @ problem.parameters["W"].T + problem.bias
    return result


def _one_array(keeps_output: bool, keeps_h0: bool, problem: Problem) -> States:
    states = run_forward(problem)
    same = np.broadcast_to(states.h[-1], states.h.shape)
    before = np.concatenate([problem.h0[None], same[1:]]) if keeps_h0 else same
    return States(states.a, same, before, states.read if keeps_output else same)


_ONE_ARRAY = tuple(
    Variant({"states": partial(_one_array, output, h0)}) for output in (True, False) for h0 in (True, False)
)


def _without_bias(problem: Problem, Ux_t: Array, state: Array) -> Array:
    result: Array = Ux_t + state @ problem.parameters["W"].T
    return result


def _with_bias_twice(problem: Problem, Ux_t: Array, state: Array) -> Array:
    result: Array = Ux_t + state @ problem.parameters["W"].T + 2 * problem.bias
    return result


def _without_input(problem: Problem, Ux_t: Array, state: Array) -> Array:
    result: Array = state @ problem.parameters["W"].T + problem.bias
    return result


def _without_state(problem: Problem, Ux_t: Array, state: Array) -> Array:
    return Ux_t + problem.bias


def _with_first_bias(problem: Problem, Ux_t: Array, state: Array) -> Array:
    result: Array = Ux_t + state @ problem.parameters["W"].T + problem.parameters["b"]
    return result


def _with_W_turned(problem: Problem, Ux_t: Array, state: Array) -> Array:
    result: Array = Ux_t + state @ problem.parameters["W"] + problem.bias
    return result


def _from_zero(problem: Problem) -> States:
    return run_forward(replace(problem, h0=np.zeros_like(problem.h0)))


def _activated_by(name: str, problem: Problem) -> States:
    return run_forward(replace(problem, nonlinearity=name))


_TURNED = "the recurrent weights are transposed"
_FORWARD_STEPS = {
    "the bias is left out": partial(run_forward, step=_without_bias),
    "the bias is added twice": partial(run_forward, step=_with_bias_twice),
    "the input is left out": partial(run_forward, step=_without_input),
    "the state before is left out": partial(run_forward, step=_without_state),
    _TURNED: partial(run_forward, step=_with_W_turned),
    "h0 is taken to be zero": _from_zero,
}
_SECOND_BIAS_LEFT_OUT = Variant({"states": partial(run_forward, step=_with_first_bias)}, "the second bias is left out")
_ACTIVATED = {name: partial(_activated_by, name) for name in ACTIVATIONS}


def _forward_formulas(problem: Problem, largest: float) -> Iterator[Variant]:
    yield from (Variant({"states": states}, note) for note, states in _FORWARD_STEPS.items())
    if "b2" in problem.parameters:
        yield _SECOND_BIAS_LEFT_OUT
    turned = {"states": _FORWARD_STEPS[_TURNED], "matrix": _untransposed, "transposed W": True}
    yield from _with_and_without_h0(turned, f"{_TURNED}, and in the backward pass with it")
    for name, states in _ACTIVATED.items():
        if name != problem.nonlinearity:
            note = f"{name} where {problem.nonlinearity} is asked for"
            yield Variant({"states": states}, note)
            yield Variant({"states": states, "slope": _OTHER_SLOPES[name]}, f"{note}, its derivative with it")


def _changed_in_place(p: Array, y: Array, mask: Array, weights: Array) -> Array:
    return p - y


def _changed_and_masked(p: Array, y: Array, mask: Array, weights: Array) -> Array:
    return (p - y) * mask[..., None]


def _changed_and_weighted(p: Array, y: Array, mask: Array, weights: Array) -> Array:
    return (p - y) * weights[..., None]


def _loss_above(floor: float, problem: Problem, p: Array) -> Array:
    return cross_entropy(problem, np.maximum(p, floor), problem.weights)


def _loss_of_more(little: float, problem: Problem, p: Array) -> Array:
    return cross_entropy(problem, p + little, problem.weights)


_GUARDS = [
    *(times * 10.0**-digits for digits in range(5, 17) for times in (1, 2, 5)),
    *(float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64)),
]
_LOSSES_ABOVE = [partial(_loss_above, guard) for guard in _GUARDS]  # guarded against the logarithm of 0


def is_guarded(problem: Problem, loss: Array, tolerance: float) -> bool:
    """Whether a loss is the right one but for a guard against the logarithm of zero: ln(p + ε), or ln max(p, ε)."""
    p = Workings(problem, CONVENTIONS["goodfellow"]).value("p", {})
    known = [guarded(problem, p) for guarded in (*_LOSSES_ABOVE, *(partial(_loss_of_more, guard) for guard in _GUARDS))]
    return any(abs(float(loss) - float(value)) <= tolerance * abs(float(value)) for value in known)


def _changed_probabilities(problem: Problem, largest: float) -> Iterator[Variant]:
    for way in (_changed_in_place, _changed_and_masked, _changed_and_weighted):
        yield Variant({"shown p": way})
        yield Variant({"shown p": way, "loss of": "shown"})
        yield from (Variant({"shown p": way, "loss of": "shown", "loss": loss}) for loss in _LOSSES_ABOVE)


_THROUGH = ("sequence", "network")
_OUTPUT = ("network",)

_TABLE = (
    Mistake(
        "M01",
        "no carry",
        "What flows back from the next time step is missing: every step sees its own loss alone.",
        "h_t acts on the loss in two ways, through its own output and through the next state. Look for the sum of both "
        "in the loop over time (B3), and at the variable that should travel from one turn of the loop to the next.",
        _fixed(
            Variant({"combine": _local_alone}),
            Variant({"combine": _local_alone, "dh0": "zeros"}, "dL/dh0 stays zero"),
        ),
        _THROUGH,
    ),
    Mistake(
        "M02",
        "the carry replaces the local gradient",
        "Before the last step, what flows back from the next step replaces the step's own gradient, though both count.",
        "Is there an assignment in the loop over time where an addition is needed (B3)?",
        _fixed(*_with_and_without_h0({"combine": _carry_alone})),
        _THROUGH,
    ),
    Mistake(
        "M03",
        "carry without the activation's derivative",
        "What is handed to the step before is made from dL/dh_t, so it does not pass through the activation.",
        "The path from h_t back to h_{t-1} goes through a_t (F1, F2). Which gradient is multiplied by the recurrent "
        "weights, that of h_t or that of a_t (B3)?",
        _fixed(*_with_and_without_h0({"source": _state_gradient})),
    ),
    Mistake(
        "M04",
        "derivative taken at the wrong step in the carry",
        "In what flows back to the step before, the activation's derivative is taken at the state of that step.",
        "Which state did the activation produce on the path from h_{t-1} to h_t (F2)? Check the index (B4).",
        _fixed(*_with_and_without_h0({"source": _slope_of_state_before})),
    ),
    Mistake(
        "M05",
        "recurrent weights not transposed",
        "What flows back in time is multiplied by the recurrent weights the way they are used forward.",
        "A product that is passed backwards needs the matrix the other way round than forwards (B3, B8). With a square "
        "matrix no shape error tells.",
        _fixed(*_with_and_without_h0({"matrix": _untransposed})),
    ),
    Mistake(
        "M06",
        "carry added after the activation's derivative",
        "What flows back from the next step is added to dL/da_t, so it does not pass through the step's activation.",
        "It arrives at h_t, not at a_t. Where do the two parts meet, before the activation or after it (B3, B4)?",
        _fixed(*_with_and_without_h0({"combine": _local_alone, "after slope": _plus_carry})),
        _THROUGH,
    ),
    Mistake(
        "M07",
        "local gradient counted twice",
        "A step's own gradient enters dL/dh_t twice.",
        "Is it added in the loop over time and again in the function for one step (B3)?",
        _fixed(*_with_and_without_h0({"combine": _local_twice})),
    ),
    Mistake(
        "M08",
        "loop runs forwards",
        "The loop over time runs from the first step to the last.",
        "dL/dh_t needs what comes from step t+1. Which step has to be done first (B3)?",
        _forward_loops,
        _THROUGH,
    ),
    Mistake(
        "M09",
        "carry with a factor",
        "What flows back from the next step enters with a factor.",
        "Is it added twice, or halved (B3)?",
        _fixed(*_factors_on_carry()),
        _THROUGH,
    ),
    Mistake(
        "M10",
        "truncated by a window",
        "Each loss is followed back over a few steps only (truncated back-propagation with a sliding window).",
        "Is truncation asked for? If not, how far back does the inner loop go?",
        _windows,
        _THROUGH,
    ),
    Mistake(
        "M11",
        "truncated in chunks",
        "Nothing flows back across the borders of chunks (truncated back-propagation).",
        "Is truncation asked for? If not, look for a place where the gradient that travels back in time, or the state, "
        "is reset or detached.",
        _chunks,
        _THROUGH,
    ),
    Mistake(
        "M12",
        "gradient of the initial state",
        "The gradient of the initial state is not what the first step hands back.",
        "h_0 has no output of its own, but a_1 depends on it through the recurrent weights (B8).",
        _fixed(
            Variant({"dh0": "zeros"}, "it is zero"),
            Variant({"dh0": "da"}, "it is dL/da_1"),
            Variant({"dh0": "dh"}, "it is dL/dh_1"),
        ),
    ),
    Mistake(
        "M13",
        "batch in the gradient of the initial state",
        "The gradient of the initial state is summed over the batch where it should not be, or the other way round.",
        "Does every sequence have an initial state of its own? A gradient has the shape of what it belongs to (B8).",
        _initial_sums,
    ),
    Mistake(
        "M14",
        "total and immediate derivative mixed",
        "The weights' gradient counts the paths through earlier states a second time.",
        "dL/da_t already holds everything that comes from later steps; what a_t itself depends on enters with the "
        "earlier states held fixed (section 6 of the derivation, B6).",
        _fixed(
            Variant({"delta W": "again", "delta U": "again", "delta b": "again"}),
            Variant({"delta W": "again", "delta U": "again"}),
            Variant({"delta W": "again"}),
        ),
        _THROUGH,
    ),
    Mistake(
        "M16",
        "upstream gradient of another step",
        "A step takes the gradient of another step's output for its own.",
        "What belongs to h_t (B3)? Check the index, and the direction in which lists are built and read.",
        _displaced,
        _THROUGH,
    ),
    Mistake(
        "M17",
        "steps in reverse order",
        "The gradients of the steps are right, but put together in reverse order.",
        "A loop that runs backwards in time appends the last step first. Which step stands first in the list?",
        _fixed(
            Variant({"after": _reversed_dx}, "in dx"),
            *(Variant({f"delta {name}": "reversed" for name in names}, words) for names, words in _REVERSED.items()),
        ),
        _THROUGH,
    ),
    Mistake(
        "M18",
        "what is handed back is put together wrongly",
        "What is handed to the step before is not made as it should be.",
        "Write down what h_{t-1} does to a_t, factor by factor, and compare (B3). Is anything left over from before?",
        _fixed(
            *_with_and_without_h0({"matrix": _without_W}, "the recurrent weights are not in it"),
            *_with_and_without_h0({"source": _slope_twice}, "the activation's derivative is in it twice"),
            *_with_and_without_h0({"carried": _on_top}, "it is added to what was handed back before"),
        ),
        _THROUGH,
    ),
    Mistake(
        "M19",
        "local gradient with a factor, or missing",
        "A step's own gradient enters dL/dh_t with a factor, or not at all.",
        "What comes from the output of the step itself (B3)?",
        _local_factors,
        _THROUGH,
    ),
    Mistake(
        "M20",
        "no derivative of the activation",
        "dL/da_t is taken to be dL/dh_t: the activation is not differentiated.",
        "What lies between a_t and h_t (F2), and what does the chain rule make of it (B4)?",
        _fixed(Variant({"slope": _no_slope})),
    ),
    Mistake(
        "M21",
        "derivative at the pre-activation",
        "The formula for the activation's derivative is applied to a_t, though it is written for the state h_t.",
        "The derivative can be written with a_t or with h_t, and the two formulas differ. Which one is yours (B4)?",
        _fixed(Variant({"slope": _slope_of_preactivation})),
    ),
    Mistake(
        "M22",
        "activation applied twice",
        "The derivative is taken at f(h_t): the activation is applied to a state that already went through it.",
        "Does your function for the derivative expect a_t or h_t, and which one did you keep (B4)?",
        _fixed(Variant({"slope": _slope_of_activated_state})),
    ),
    Mistake(
        "M23",
        "square missing",
        "In the activation's derivative the state is not squared.",
        "Write down the derivative of your activation in terms of its output and compare (B4).",
        _fixed(Variant({"slope": _no_square})),
    ),
    Mistake(
        "M24",
        "derivative of another activation",
        "The derivative belongs to another activation.",
        "Which activation does the forward pass use (F2, B4)?",
        _other_slopes,
    ),
    Mistake(
        "M25",
        "derivative at the state before",
        "The activation's derivative is taken at the state of the step before.",
        "Which state did the activation make of a_t (F2, B4)? Check the index.",
        _fixed(Variant({"slope": _slope_before})),
    ),
    Mistake(
        "M26",
        "derivative without what flows in",
        "dL/da_t is the activation's derivative alone; the gradient that arrives at h_t is not in it.",
        "The chain rule is a product (B4). Where is its other factor?",
        _fixed(Variant({"slope": _slope_alone})),
    ),
    Mistake(
        "M27",
        "sign or one in the derivative",
        "The two terms of the activation's derivative are not put together rightly.",
        "Write down the derivative of your activation in terms of its output and compare sign by sign (B4).",
        _fixed(
            Variant({"slope": _plus_square}),
            Variant({"slope": _squared_without_one}),
            Variant({"slope": _negative_slope}, "it has the opposite sign"),
            Variant({"slope": partial(_weighted_slope, 2.0)}, "it counts twice"),
            Variant({"slope": partial(_weighted_slope, 0.5)}, "it counts half"),
            Variant({"slope": _parentheses_forgotten}, "the gradient multiplies the first term alone"),
            Variant({"slope": _root_of_slope}, "its square root is taken"),
        ),
    ),
    Mistake(
        "M30",
        "state of another step in dW",
        "The recurrent weights' gradient pairs dL/da_t with another state than that of the step before.",
        "Which state do the recurrent weights multiply in the forward pass (F1, B6)? Check the index.",
        _fixed(Variant({"states W": _states_after}), Variant({"states W": _last_before_first}, LAST_FOR_FIRST)),
    ),
    Mistake(
        "M31",
        "state of the step before in dV",
        "The output weights' gradient pairs dL/do_t with the state of the step before.",
        "Which state do the output weights multiply in the forward pass (F3, B2)? Check the index.",
        _fixed(Variant({"states V": _states_before})),
        _OUTPUT,
    ),
    Mistake(
        "M32",
        "transposed",
        "The gradient of a weight matrix is transposed.",
        "A gradient has the shape of what it belongs to; which index of it belongs to the output (B2, B6, B7)?",
        _fixed(
            *(
                Variant({f"transposed {name}": True for name in names})
                for names in ("W", "U", "V", "UW", "UWV", "UV", "WV")
            )
        ),
    ),
    Mistake(
        "M33",
        "first step left out",
        "The first time step is missing, or more of the first ones.",
        "The state before the first step is h_0, and it counts. Where does your loop end (B6)?",
        _skipping_first,
        _THROUGH,
    ),
    Mistake(
        "M34",
        "last step left out",
        "The last time step is missing.",
        "Where does your loop start? Count the steps.",
        _skipping_last,
        _THROUGH,
    ),
    Mistake(
        "M35",
        "overwritten instead of added up",
        "A gradient holds the share of the last processed step alone.",
        "A parameter is used at every step. Is there an assignment in the loop where an addition is needed (B5 to B7)?",
        _overwritten,
        _THROUGH,
    ),
    Mistake(
        "M36",
        "bias gradient not summed rightly",
        "The bias gradient is not summed over the batch (or is averaged, or runs over the wrong axis).",
        "All rows of the batch share the bias (B5). Over which axes do you sum, and which one is left?",
        _fixed(
            Variant({"reduce b": _unsummed}, "not summed over the batch"),
            Variant({"reduce b": _mean_over_batch}, "averaged over the batch"),
            Variant({"reduce b": _mean_over_hidden}, "averaged over the hidden units"),
            Variant({"reduce b": _mean_of_summed}, "averaged over the hidden units, not summed over the batch"),
            Variant({"reduce b": _mean_of_all}, "averaged over batch and hidden units"),
            Variant({"reduce b": _mean_over_time}, "averaged over time"),
        ),
    ),
    Mistake(
        "M37",
        "sum made with the state's gradient",
        "A sum is made with dL/dh_t where the gradient before the activation belongs.",
        "Which gradient goes with what enters a_t (B5 to B8): that of h_t or that of a_t?",
        _fixed(
            *(
                Variant({f"delta {name}": "dh" for name in names})
                for names in ("U", "W", "b", "x", "UW", "UWb", "Wb", "Ub", "UWbx", "UWx")
            )
        ),
    ),
    Mistake(
        "M38",
        "never filled",
        "A gradient is zero: nothing is ever added to it, or it is set to zero again.",
        "Where is this array assigned, and which array do you return (B2, B5 to B8)?",
        _never_filled,
    ),
    Mistake(
        "M39",
        "the two biases differ",
        "The gradients of the two recurrent biases are not the same.",
        "How do the two biases enter a_t? Does one of them do anything that the other does not (B5)?",
        _second_biases,
    ),
    Mistake(
        "M40",
        "sign",
        "Every gradient has the opposite sign.",
        "Does the gradient of the loss subtract in the right order (B1)? Does an update step's minus sign slip in?",
        _signs,
    ),
    Mistake(
        "M41",
        "target",
        "The target does not enter dL/do_t as it should.",
        "What does the gradient of softmax and cross-entropy look like where the target is 1 (B1)?",
        _fixed(
            Variant({"error": _no_target}),
            Variant({"error": _target_alone}, "it holds the target alone"),
            Variant({"error": _plus_target}, "it is added"),
        ),
        _OUTPUT,
    ),
    Mistake(
        "M43",
        "softmax",
        "The softmax is not that of the classes of one step.",
        "Over which axis do the probabilities have to sum to one? How often is the exponential taken (F4)?",
        _softmaxes,
        _THROUGH,
    ),
    Mistake(
        "M44",
        "scale",
        "Every gradient is off by the same factor.",
        "Is the loss a sum or a mean over time and batch, and is it divided once (F5)?",
        _scales,
    ),
    Mistake(
        "M45",
        "scale of the parameters alone",
        "The gradients of the parameters are off by a factor, the others are right.",
        "Is the division by the batch size done in the loss, and done again (or not at all) in the layer?",
        _partial_scales,
    ),
    Mistake(
        "M46",
        "loss and gradient of different objectives",
        "The gradients are right, but the loss returned is not the one that they belong to.",
        "Compare how the loss and its gradient are divided (F5, B1).",
        _scaled_losses,
        _OUTPUT,
    ),
    Mistake(
        "M47",
        "mask",
        "The mask is not applied as it should be.",
        "A masked step adds nothing to the loss and nothing to its gradient (F5, B1).",
        _masks,
        _OUTPUT,
    ),
    Mistake(
        "M48",
        "clipping",
        "The gradients are clipped where they should not be, or not as the convention asks.",
        "Clipping is no part of the gradient. Does the assignment ask for it, and with which bound?",
        _clips,
    ),
    Mistake(
        "M50",
        "forward formula",
        "The states are not those of the network.",
        "Compare your line for the state with F1 and F2 term by term.",
        _forward_formulas,
    ),
    Mistake(
        "P3",
        "one array kept for all steps",
        "The states of all steps are the last one: one array is stored many times.",
        "Appending an array does not copy it. Does your loop change the array in place?",
        _fixed(*_ONE_ARRAY),
        _THROUGH,
    ),
    Mistake(
        "P4",
        "state never advanced",
        "Every step starts from h_0: the new state does not become the next step's old one.",
        "What is the previous state at the second step (F1)?",
        _fixed(*(Variant({"states": partial(_never_advanced, backward_too)}) for backward_too in (True, False))),
        _THROUGH,
    ),
    Mistake(
        "P7",
        "probabilities changed in place",
        "The gradient is made inside the array that holds the probabilities, which are used again afterwards.",
        "A new name for an array is no copy of it. What do the probabilities hold after the gradient is made?",
        _changed_probabilities,
        _OUTPUT,
    ),
)
MISTAKES: dict[str, Mistake] = {mistake.id: mistake for mistake in _TABLE}


@dataclass(frozen=True)
class Plant:
    """One form of one mistake, ready to be computed; its key is the same on every problem."""

    mistake: Mistake
    variant: Variant
    key: tuple[Any, ...]


def plants(problem: Problem, largest: float) -> list[Plant]:
    """List every form that every mistake of the problem's level takes on it."""
    found = []
    seen: Counter[tuple[Any, ...]] = Counter()
    for mistake in MISTAKES.values():
        if problem.level in mistake.levels:
            for variant in mistake.variants(problem, largest):
                form = (mistake.id, variant.note, tuple(variant.slots))
                found.append(Plant(mistake, variant, (*form, seen[form])))
                seen[form] += 1
    return found


def pairs(singles: Iterable[Plant]) -> Iterator[tuple[Plant, Plant]]:
    """Every two plants of different mistakes that exchange different parts."""
    for first, second in combinations(singles, 2):
        if first.mistake is not second.mistake and not first.variant.slots.keys() & second.variant.slots.keys():
            yield first, second


def planted(plants: Iterable[Plant]) -> dict[str, Any]:
    """The slots that these exchange together."""
    return dict(chain.from_iterable(plant.variant.slots.items() for plant in plants))
