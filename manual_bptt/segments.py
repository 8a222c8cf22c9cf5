"""TBPTT(k1, k2): training in pieces, every k1 steps a loss that is followed back over the last k2 steps. A loop.

Where a sequence is too long to be held at once, or the parameters are to be updated while it runs.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from manual_bptt import checks
from manual_bptt.network import ElmanNetwork


class Segment(NamedTuple):
    """One piece of a sequence.

    Attributes:
        output: The module's output of the steps start … stop - 1, laid out as the module does; its graph reaches back
            over the k2 steps before stop.
        start: Its first step, counted from 0.
        stop: One past its last step.
        hx: The module's state after the last step, detached: where the next sequence carries on.
    """

    output: Tensor
    start: int
    stop: int
    hx: Any


def tbptt(
    module: Callable[..., Any], x: Tensor, hx: Any = None, *, k1: int, k2: int, batch_first: bool | None = None
) -> Iterator[Segment]:
    """Run a recurrent module over a long sequence, k1 steps at a time, each piece followed back over k2 steps.

        for segment in tbptt(rnn, x, k1=20, k2=60):
            loss = criterion(head(segment.output), targets[segment.start : segment.stop])
            optimizer.zero_grad(); loss.backward(); optimizer.step()

    The steps before a piece that it is followed back over are run again, from the state that was there, with the
    parameters of now (Williams and Peng 1990: BPTT(k2; k1)). k1 = k2 is the usual training in chunks with the state
    detached in between; k1 = 1 follows each loss back over k2 steps. Nothing is run before it is asked for.

    Args:
        module: Called as module(x, hx), it returns its output and its state after the last step: `RNN`, torch.nn.RNN,
            LSTM or GRU, or a function that does so.
        x: (T, B, D), or (B, T, D) where module.batch_first is true; (T, D) without a batch.
        hx: The state before the first step, as the module takes it; None: the module's own.
        k1: Steps of a piece, at least 1. The last one may be shorter.
        k2: How many steps before its end a piece is followed back over, at least k1.
        batch_first: Whether time is the second axis of x and of the output; None: as module.batch_first says, for x of
            three axes.

    Yields:
        Segment, one after the other, over all T steps.

    Raises:
        TypeError: x is no tensor, or k1 or k2 no int.
        ValueError: k1 below 1, k2 below k1, x of another rank or without a step, or a bidirectional module, whose other
            direction would begin anew in each piece.

    Memory: the graph of k2 steps, as long as the segment is held.
    """
    checks.tensor("tbptt", "x", x)
    checks.integer("tbptt", "k1", k1)
    checks.integer("tbptt", "k2", k2)
    if k1 < 1:
        raise ValueError(f"tbptt: expected k1 of at least 1 step, got {k1}")
    if k2 < k1:
        raise ValueError(f"tbptt: expected k2 of at least k1 = {k1} steps, got {k2}")
    if x.dim() not in (1, 2, 3):
        raise ValueError(f"tbptt: expected x of shape (T, B, D), (B, T, D), (T, D) or tokens, got {tuple(x.shape)}")
    if getattr(module, "bidirectional", False):
        raise ValueError("tbptt: expected a module of one direction, got a bidirectional one")
    if batch_first is None:
        batch_first = x.dim() == 3 and bool(getattr(module, "batch_first", False))
    time = 1 if batch_first and x.dim() > 1 else 0
    if x.shape[time] == 0:
        raise ValueError(f"tbptt: expected x of at least one step, got T = 0 in {tuple(x.shape)}")
    run = module
    if isinstance(module, ElmanNetwork):

        def run(x: Tensor, hx: Any) -> tuple[Tensor, Tensor]:
            o, h = module(x, hx)
            return o, h[-1]

    return _segments(run, x, hx, k1, k2, time)


def _segments(module: Callable[..., Any], x: Tensor, hx: Any, k1: int, k2: int, time: int) -> Iterator[Segment]:
    T = x.shape[time]
    first, entering = 0, hx  # where the graph of the next piece begins, and the state there
    for start in range(0, T, k1):
        stop = min(start + k1, T)
        later = max(0, min(stop + k1, T) - k2)  # where the graph of the piece after it begins
        outputs = []
        state = entering
        for begin, end in ((first, later), (later, stop)):
            if begin < end:
                output, state = module(x.narrow(time, begin, end - begin), state)
                outputs.append(output)
            if end == later and begin < end:
                entering = tree_map_only(Tensor, Tensor.detach, state)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, time)
        first = later
        steps = output.narrow(time, output.shape[time] - (stop - start), stop - start)
        segment = Segment(steps, start, stop, tree_map_only(Tensor, Tensor.detach, state))
        del outputs, output, steps, state  # the graph is the caller's alone
        yield segment
        del segment
