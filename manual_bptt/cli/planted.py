"""Mistakes that `bptt verify --self-test` plants into the backward pass, to show that each one is seen.

Every entry replaces one function of the hand-written code while its context is open, in which the readable kernel runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from manual_bptt import kernels, recurrence
from manual_bptt.activations import ACTIVATIONS, Activation
from manual_bptt.kernels import eager
from manual_bptt.recurrence import Settings

_backward = eager.backward
_through_time = recurrence.through_time
_dW = recurrence.recurrent_weight_gradient
_INVERSE = {"tanh": torch.atanh, "sigmoid": torch.logit}  # a from h, where f' at a differs from f' at h


@dataclass(frozen=True)
class Mistake:
    """A wrong formula and the place where it is planted.

    Attributes:
        name: What is wrong, in a few words.
        wrong: The gradients that must come out wrong, and no others.
        module: Where the function lives that is replaced.
        function: Its name.
        replacement: The wrong function.
        nonlinearities: Where it is a mistake at all.
    """

    name: str
    wrong: frozenset[str]
    module: Any
    function: str
    replacement: Callable[..., Tensor]
    nonlinearities: tuple[str, ...] = tuple(ACTIVATIONS)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Replace the right function by the wrong one for as long as the context is open."""
        with kernels.use("eager"), mock.patch.object(self.module, self.function, self.replacement):
            yield


def _carry_dropped(dh: Tensor, slope: Tensor, W: Tensor, activation: Activation, sizes: Any, xi: Any) -> Tensor:
    return activation.times(slope, dh)


def _W_transposed(dh: Tensor, slope: Tensor, W: Tensor, activation: Activation, sizes: Any, xi: Any) -> Tensor:
    return _backward(dh, slope, W.t(), activation, sizes, xi)


def _slope_of_a(dh: Tensor, h: Tensor, W: Tensor, ended: Tensor | None, settings: Settings) -> Tensor:
    right = settings.activation
    wrong = replace(right, slope=lambda states: right.slope(_INVERSE[right.name](states)))
    return _through_time(dh, h, W, ended, replace(settings, activation=wrong))


def _state_after(da: Tensor, h: Tensor, h0: Tensor, sizes: Any = None, ended: Any = None) -> Tensor:
    return da.flatten(0, 1).t() @ h.flatten(0, 1)


def _scaled(da: Tensor, h: Tensor, h0: Tensor, sizes: Any = None, ended: Any = None) -> Tensor:
    return 1.001 * _dW(da, h, h0, sizes, ended)


def _no_bias_gradient(da: Tensor) -> Tensor:
    return torch.zeros_like(da[0, 0])


_THROUGH_TIME = frozenset({"U", "W", "b", "x", "h0"})

MISTAKES = (
    Mistake("carry dropped (B3)", _THROUGH_TIME, eager, "backward", _carry_dropped),
    Mistake("W transposed (B3)", _THROUGH_TIME, eager, "backward", _W_transposed),
    Mistake("h_t for h_{t-1} (B6)", frozenset({"W"}), recurrence, "recurrent_weight_gradient", _state_after),
    Mistake("db dropped (B5)", frozenset({"b"}), recurrence, "bias_gradient", _no_bias_gradient),
    Mistake("dW × 1.001 (B6)", frozenset({"W"}), recurrence, "recurrent_weight_gradient", _scaled),
    Mistake("1 - a² for 1 - h² (B4)", _THROUGH_TIME, recurrence, "through_time", _slope_of_a, ("tanh", "sigmoid")),
)
