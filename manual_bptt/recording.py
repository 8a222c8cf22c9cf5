"""Look at dL/dh_t and dL/da_t of every step, layer and direction of a module, as autograd runs backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_bptt import recurrence
from manual_bptt.layouts import Layout
from manual_bptt.modules import RNN
from manual_bptt.transforms import watched


@dataclass(frozen=True, eq=False)
class StateGradients:
    """The gradients of one layer's states in one direction, each laid out as the module's output.

    Attributes:
        dh: B3, the total dL/dh_t: through the output of the layer and through all later steps.
        da: B4, dL/da_t, the gradient of the pre-activations.
    """

    dh: Any
    da: Any


class GradientRecord:
    """What `record_gradients` gives: the gradients by layer and direction, of every call of the module.

    `record["l0"]` is a StateGradients of the last call whose backward pass has run; names end as those of the
    weights do: "l0", "l0_reverse", "l1".

    Attributes:
        calls: For every call of the module, in order, the StateGradients by name; empty until its backward pass, and
            for a call without a graph or one that a checkpoint repeats.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, StateGradients]] = []

    def __getitem__(self, name: str) -> StateGradients:
        recorded = self._last()
        if not recorded:
            calls = f"none of {len(self.calls)} recorded calls has" if self.calls else "no call was recorded to have"
            raise KeyError(f"{name!r}: {calls} had a backward pass")
        if name not in recorded:
            raise KeyError(f"{name!r}: recorded are {', '.join(sorted(recorded))}")
        return recorded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._last()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._last()))

    def __len__(self) -> int:
        return len(self._last())

    def __repr__(self) -> str:
        return f"GradientRecord({', '.join(self)}; calls: {len(self.calls)})"

    def _last(self) -> dict[str, StateGradients]:
        """The last call that has had a backward pass."""
        return next((call for call in reversed(self.calls) if call), {})


class _Recorder:
    """What a module holds while it is recorded. A copy of the module is not recorded, nor is one that was pickled."""

    def __init__(self, record: GradientRecord) -> None:
        self.record = record
        reason = "record_gradients looks at the backward pass"
        self.run = torch.compiler.disable(RNN._run, reason=reason)  # type: ignore[no-untyped-call]

    def next_call(self) -> Callable[..., None]:
        """Begin a call of the module; what is returned records one layer and direction of it.

        Its arguments are the name, the layout, how steps are turned into the direction of the input, and what the
        backward pass observes.
        """
        call: dict[str, StateGradients] = {}
        self.record.calls.append(call)

        def record(
            name: str,
            layout: Layout,
            turn: Callable[[Tensor], Tensor],
            dh: Tensor,
            da: Tensor,
            h: Tensor,
            W: Tensor,
            ended: Tensor | None,
            settings: recurrence.Settings,
        ) -> None:
            if watched(dh, da, W):
                raise RuntimeError("record_gradients: expected a plain backward pass, got one under a transform")
            dh = recurrence.state_gradient(dh.detach(), da, h, W, ended, settings)
            call[name] = StateGradients(dh=layout.output(turn(dh)), da=layout.output(turn(da.detach().clone())))

        return record

    def __deepcopy__(self, _: object) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


@contextmanager
def record_gradients(module: RNN) -> Iterator[GradientRecord]:
    """Record the total gradients dL/dh_t and dL/da_t of every call of a module made in this context.

        with record_gradients(module) as record:
            output, h_n = module(x)
        loss(output).backward()
        record["l0"].dh  # (T, B, H)

    The backward pass may run inside or after the context.

    Args:
        module: A manual_bptt.RNN.

    Yields:
        GradientRecord, filled as backward passes run; detached from the graph.

    Raises:
        TypeError: module is something else.
        RuntimeError: It is being recorded already; or, in the backward pass, gradients are batched or taken by a
            transform of torch.func. torch.compile leaves the module out of its graph, and fullgraph=True refuses that.

    Memory: two tensors (T, B, H) for every call, layer and direction, as long as the record lives.
    Source: docs/derivation.md, B3 and B4.
    """
    if not isinstance(module, RNN):
        kind = type(module)
        raise TypeError(
            f"record_gradients: expected module to be a manual_bptt.RNN, got {kind.__module__}.{kind.__name__}"
        )
    if module._recorder is not None:
        raise RuntimeError("record_gradients: expected a module that is not being recorded already, got one that is")
    module._recorder = _Recorder(GradientRecord())
    try:
        yield module._recorder.record
    finally:
        del module._recorder
