"""The same recurrence in JAX: one compiled program for the states, one for states and gradients."""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cores import allowed
from benchmarks.problem import Problem

os.environ.setdefault("JAX_PLATFORMS", "cpu")

jax: Any = import_module("jax")  # it is not among what the project needs, nor are its types
jnp: Any = import_module("jax.numpy")
backend: Any = import_module("jax.extend.backend")
_cores: list[int] = []  # on which JAX was started


def start() -> None:
    """Start JAX on the cores that there are now: it makes as many threads, which would stand in each other's way."""
    if _cores != allowed():
        backend.clear_backends()
        jax.devices()
        _cores[:] = allowed()


def states(parameters: tuple[Any, Any, Any], x: Any, h0: Any) -> Any:
    """F1 F2: every state h (T, B, H), all inputs multiplied at once."""
    U, W, b = parameters

    def step(h: Any, a: Any) -> tuple[Any, Any]:
        h = jnp.tanh(a + h @ W.T)
        return h, h

    return jax.lax.scan(step, h0, x @ U.T + b)[1]


def states_and_gradients(parameters: tuple[Any, Any, Any], x: Any, h0: Any, dh: Any) -> tuple[Any, Any]:
    """States, and the gradients of the parameters."""
    h, back = jax.vjp(lambda each: states(each, x, h0), parameters)
    return h, back(dh)[0]


class Scan:
    """An implementation, as benchmarks/implementations.py says."""

    def __init__(self, problem: Problem):
        start()
        self.x, self.h0 = jnp.asarray(problem.x.numpy()), jnp.asarray(problem.h0.numpy())
        self.parameters = tuple(jnp.asarray(each.numpy()) for each in (problem.U, problem.W, problem.b))
        self._forward, self._both = jax.jit(states), jax.jit(states_and_gradients)
        self._found: Any = None

    def forward(self) -> Any:
        """Return every state, when it is computed."""
        return jax.block_until_ready(self._forward(self.parameters, self.x, self.h0))

    def backward(self, dh: Tensor) -> Callable[[], object]:
        """Raise NotImplementedError: forward and backward pass are one program."""
        raise NotImplementedError("forward and backward pass are one program in JAX")

    def training_step(self, dh: Tensor) -> Callable[[], object]:
        """Return the program, of the states and all gradients."""
        given = jnp.asarray(dh.numpy())

        def body() -> Any:
            h, self._found = jax.block_until_ready(self._both(self.parameters, self.x, self.h0, given))
            return h

        return body

    def states(self, result: Any) -> Tensor:
        """Return h (T, B, H)."""
        return torch.from_numpy(np.array(result))

    def gradients(self) -> dict[str, Tensor]:
        """Return dU (H, D), dW (H, H), db (H,)."""
        return {
            name: torch.from_numpy(np.array(each)) for name, each in zip(("dU", "dW", "db"), self._found, strict=True)
        }
