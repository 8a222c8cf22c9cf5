"""The network with parts of its past taken as constants: truncated back-propagation as autograd would be told to do it.

Two witnesses: the plain loop with detached states, for autograd, and NumPy with the states of the run held fixed, for
complex steps. Sizes: T steps, B batch rows, D inputs, H hidden units. Vectors are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torch_reference import numerical
from torch_reference.network import ACTIVATIONS

Array = npt.NDArray[Any]


def truncated_states(
    parameters: Mapping[str, Tensor],
    x: Tensor,
    h0: Tensor,
    nonlinearity: str = "tanh",
    *,
    xi: Sequence[float] | None = None,
    window: int | None = None,
) -> list[list[Tensor]]:
    """Run the recurrence for the loss of each step by itself, with what it must not reach detached.

    Args:
        parameters: U (H, D), W (H, H) and, where used, b (H,).
        x: (T, B, D), or int64 tokens (T, B).
        h0: (B, H).
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        xi: For every step, the weight of the gradient that flows back from it: 0 detaches the state before, other
            weights scale its gradient and leave its value. None: all are 1.
        window: Each loss reaches the state of its own step and of this many steps before, h0 among them; None: all.

    Returns:
        For each step s the states h_1 … h_s that its loss reads through, the last one being h_s itself: the total
        gradient of h_t is the sum of those of all its copies.
    """
    f = ACTIVATIONS[nonlinearity]
    U, W = parameters["U"], parameters["W"]
    b = parameters.get("b", U.new_zeros(W.shape[0]))

    def step(t: int, h: Tensor) -> Tensor:
        weight = 1.0 if xi is None else xi[t]
        if weight != 1:
            h = h.detach() + weight * (h - h.detach()) if weight != 0 else h.detach()
        return f((U.T[x[t]] if x.dim() == 2 else x[t] @ U.T) + h @ W.T + b)

    if window is None:
        states: list[Tensor] = []
        for t in range(len(x)):
            states.append(step(t, states[-1] if states else h0))
        return [states[: s + 1] for s in range(len(x))]
    copies = []
    with torch.no_grad():
        fixed = [h0]
        for t in range(len(x)):
            fixed.append(step(t, fixed[-1]))
    for s in range(len(x)):
        first = max(0, s - window)  # the step that makes the earliest state that is reached
        own = [state.detach() for state in fixed[1 : first + 1]]
        h = h0 if s < window else fixed[first].detach()
        for t in range(first, s + 1):
            h = step(t, h)
            own.append(h)
        copies.append(own)
    return copies


def truncated_complex_step(
    parameters: Mapping[str, Array],
    x: Array,
    h0: Array,
    weights: Array,
    nonlinearity: str = "tanh",
    *,
    xi: Sequence[float] | None = None,
    window: int | None = None,
) -> dict[str, Array]:
    """Differentiate Σ weights · h by complex steps, the states of the unperturbed run standing for what is cut off.

    Args:
        parameters: U (H, D), W (H, H), b (H,).
        x: (T, B, D).
        h0: (B, H).
        weights: (T, B, H): the gradient of the loss with respect to each state from outside.
        nonlinearity: "tanh", "sigmoid" or "identity".
        xi: See `truncated_states`.
        window: See `truncated_states`.

    Returns:
        dU dW db dx dh0, each of the shape of what it belongs to.
    """
    f: Callable[[Array], Array] = numerical.ACTIVATIONS[nonlinearity]
    inputs = {**parameters, "x": x, "h0": h0}

    def advance(arrays: Mapping[str, Array], t: int, h: Array) -> Array:
        return f(arrays["x"][t] @ arrays["U"].T + h @ arrays["W"].T + arrays["b"])

    fixed = [h0]
    for t in range(len(x)):
        fixed.append(advance(inputs, t, fixed[-1]))

    def value(arrays: Mapping[str, Array]) -> complex:
        total = 0j
        h = arrays["h0"]
        for s in range(len(x)):
            if window is not None:
                first = max(0, s - window)
                h = arrays["h0"] if s < window else fixed[first]
                for t in range(first, s):
                    h = advance(arrays, t, h)
            before = h if xi is None else fixed[s] + xi[s] * (h - fixed[s])
            h = advance(arrays, s, before)
            total += (weights[s] * h).sum()
        return total

    epsilon = 1e-100
    gradients = {}
    for name, array in inputs.items():
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            moved = array.astype(complex)
            moved[index] += 1j * epsilon
            gradient[index] = value({**inputs, name: moved}).imag / epsilon
        gradients[f"d{name}"] = gradient
    return gradients
