"""What the targets of a loss mean: their checks, and the weight w_t of every step and sequence in F5."""

import torch
from torch import Tensor

from manual_bptt import checks

TIME = {name: name for name in ("sum", "mean", "last")}
BATCH = {name: name for name in ("sum", "mean")}


def weighted_targets(
    function: str, symbol: str, o: Tensor, y: Tensor, time: str, batch: str, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check o and y and work out what enters the loss with which weight.

    Args:
        function: The caller's name, for error messages.
        symbol: What the caller calls y, for error messages.
        o: (T, B, K) or (T, K).
        y: Class indices (T, B), or probabilities of o's shape; without the leading T for time="last".
        time: "sum", "mean" or "last".
        batch: "sum" or "mean".
        ignore_index: The class index of a step that does not count; None where y must be a float of o's shape.

    Returns:
        The steps of o that enter the loss, their targets (indices in range, or floats of o's dtype) and w.

    Raises:
        TypeError: y is no tensor, or of a dtype that fits no kind of target.
        ValueError: Wrong option, shape, device, a class index outside 0 .. K-1, or batch="mean" without a batch.
    """
    checks.choice(function, "time", time, TIME)
    checks.choice(function, "batch", batch, BATCH)
    checks.floating(function, "o", o)
    checks.tensor(function, symbol, y)
    if o.ndim not in (2, 3):
        raise ValueError(f"{function}: expected o of shape (T, B, K) or (T, K), got {tuple(o.shape)}")
    if o.shape[0] == 0:
        raise ValueError(f"{function}: expected o of at least one step, got T = 0 in {tuple(o.shape)}")
    if o.shape[-1] == 0:
        raise ValueError(f"{function}: expected o of at least one output, got K = 0 in {tuple(o.shape)}")
    checks.on_device(function, symbol, y, "o", o)
    if o.ndim == 2 and batch == "mean":
        raise ValueError(
            f"{function}: expected o of shape (T, B, K) for batch='mean', got {tuple(o.shape)}, which is read as "
            "(T, K); one step of a batch is o.unsqueeze(0)"
        )
    letters, sizes = ("TBK" if o.ndim == 3 else "TK"), o.shape
    if time == "last":
        letters, sizes = letters[1:], sizes[1:]
        fits = y.is_floating_point() and y.shape == sizes  # T = B = K: (B, K) is (T, B) too
        if o.shape[0] > 1 and y.shape in (o.shape, o.shape[:-1]) and not fits:
            raise ValueError(
                f"{function}: expected {symbol} without the time axis for time='last', got {tuple(y.shape)}; "
                f"give the last step's targets alone, {symbol}[-1]"
            )
    if ignore_index is None or y.ndim == len(letters):
        checks.shape(function, symbol, y, letters, sizes)
        y, counts = _probabilities(function, symbol, y, o, ignore_index), None
    else:
        checks.shape(function, symbol, y, letters[:-1], sizes[:-1])
        if y.dtype != torch.int64:
            raise TypeError(f"{function}: expected class indices {symbol} of dtype torch.int64, got {y.dtype}")
        counts = y != ignore_index
        y = y.masked_fill(~counts, 0)
        checks.in_range(function, symbol, y, "K-1", o.shape[-1] - 1, f" (or ignore_index = {ignore_index})")
    if time == "last":
        o, y, counts = o[-1:], y.unsqueeze(0), None if counts is None else counts.unsqueeze(0)
    return o, y, _weights(o, counts, time, batch)


def _probabilities(function: str, symbol: str, y: Tensor, o: Tensor, ignore_index: int | None) -> Tensor:
    if ignore_index is not None and not y.is_floating_point() and not y.is_complex():
        return y.to(o.dtype)  # one-hot, or counts: small integers are exact in every floating dtype
    checks.alike(function, symbol, y, "o", o)
    return y


def _weights(o: Tensor, counts: Tensor | None, time: str, batch: str) -> Tensor:
    """w: 1 or 0 (ignored); time="mean" divides by the sequence's steps that count, batch="mean" by B.

    In float32 at least: half precision can neither count to T nor divide by it well enough.
    """
    dtype = torch.promote_types(o.dtype, torch.float32)
    w = torch.ones_like(o[..., 0], dtype=dtype) if counts is None else counts.to(dtype)
    if time == "mean":
        w = w / w.sum(0).clamp(min=1)
    if batch == "mean":
        w = w / o.shape[1]
    return w
