"""The public functions: shape checks and documentation, then the Function that does the work. No derivatives here."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_bptt import checks, kernels
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.checkpointing import Checkpointed, Every, steps_of_a_piece
from manual_bptt.compiled import compiled_recurrence
from manual_bptt.losses import DualSoftmaxCrossEntropy, DualSquaredError, SoftmaxCrossEntropy, SquaredError
from manual_bptt.readout import DualReadout, Readout
from manual_bptt.recurrence import Form, Recurrence, RecurrenceAtOnce, Settings, are_tokens, states, states_apart
from manual_bptt.targets import weighted_targets
from manual_bptt.transforms import apply, has_autocast, is_looked_at, is_recording, is_tracing, is_transforming, watched
from manual_bptt.truncation import Truncation
from manual_bptt.truncation import check as check_truncation

FULL = {name: Settings(activation) for name, activation in ACTIVATIONS.items()}  # of full BPTT


def rnn(
    x: Tensor,
    h0: Tensor | None,
    U: Tensor,
    W: Tensor,
    b: Tensor | None = None,
    nonlinearity: str = "tanh",
    *,
    truncation: Truncation | None = None,
) -> Tensor:
    """Run an Elman recurrence over a sequence and return every state.

    h_t = f(U x_t + W h_{t-1} + b)   (F1, F2)

    Args:
        x: (T, B, D), or (T, D) for one sequence without a batch; of W's dtype and device. Or tokens (T, B) or (T,)
            of dtype int64 or int32 in 0 .. D-1: the same as one-hot vectors, which are never built.
        h0: State before the first step, (B, H), or (H,) without a batch. None: zeros.
        U: Input-to-hidden weights (H, D).
        W: Hidden-to-hidden weights (H, H). Any floating or complex dtype (relu: floating); everything else has
            the same, and its device.
        b: Bias (H,), or None.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        truncation: How far back gradients are followed: `chunked`, `windowed` or `randomized`; None: all the way. It
            changes no state.

    Returns:
        h (T, B, H), or (T, H) without a batch: the states of all steps.

    Raises:
        TypeError: An argument is no tensor or has another dtype.
        ValueError: Wrong shape, device or nonlinearity, T = 0, or a token outside 0 .. D-1 (looked at on the CPU
            only; elsewhere the device refuses it).
        RuntimeError: Autocast is on; or there is a truncation where torch differentiates its own operators (torch.func
            inside torch.compile, torch.jit.trace).

    Gradients: x (not for tokens), h0, U, W, b, by B3-B8; truncated by B3's ξ_t, or by B9.
    Double backward: yes, to any order; the second backward runs a loop of differentiable operators. Forward mode T1 T2
    and torch.func work too, and torch.compile(fullgraph=True) but for the double backward, which torch refuses there.
    Memory kept until backward: W, h, and where a gradient needs them x (dU), h0 (dW) and U (dx).
    Source: docs/derivation.md, F1 F2 and B3-B9.
    """
    activation = checks.choice("rnn", "nonlinearity", nonlinearity, ACTIVATIONS)
    is_usual = isinstance(x, Tensor) and isinstance(W, Tensor) and x.dim() == 3 and W.dim() == 2 and truncation is None
    if is_usual and not is_looked_at():
        start = W.new_zeros(x.shape[1], W.shape[0]) if h0 is None else h0
        whole: Tensor | None = run_whole(x, start, U, W, b, None, FULL[activation.name])
        if whole is not None:
            return whole
    if not activation.holomorphic:
        checks.floating("rnn", "W", W)
    x, h0, batched = recurrence_arguments("rnn", x, h0, U, W, b)
    check_truncation("rnn", truncation)
    h: Tensor = run(x, h0, U, W, b, None, Settings(activation), truncation=truncation)
    return h if batched else h.squeeze(1)


def run(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    b2: Tensor | None,
    settings: Settings,
    ended: Tensor | None = None,
    truncation: Truncation | None = None,
    checkpoint_every: Every = None,
) -> Any:
    """Run a recurrence whose arguments have been checked, with as much of autograd as is asked for.

    Return the states h (T, B, H); or what `states_apart` does, where settings ask for it and torch is not compiling.

    Args:
        x: As `rnn`, with a batch.
        h0: As `rnn`, (B, H).
        U: As `rnn`.
        W: As `rnn`.
        b: As `rnn`.
        b2: A second bias that is added to b, or None.
        settings: What else the recurrence needs to know.
        ended: (T, B, 1), True after the end of a sequence, or None.
        truncation: As `rnn`.
        checkpoint_every: As `RNN`; under transforms of torch.func and in compiled programs every state is kept.
    """
    seen = is_looked_at()
    if not (seen or checkpoint_every) and ended is None and truncation is None and settings.has_batch:
        whole = run_whole(x, h0, U, W, b, b2, settings)
        if whole is not None:
            return whole
    if seen:
        compiling = torch.compiler.is_compiling()
        if compiling and not is_transforming():
            xi, window = (None, 0) if truncation is None else (truncation.weights(x.shape[0]), truncation.window or 0)
            b = b if b is None or b2 is None else b + b2 * 1  # each bias has its gradient in memory of its own
            return compiled_recurrence(x, h0, U, W, b, ended, settings.activation.name, xi, window)
        if compiling or is_tracing():
            if truncation is not None and not truncation.is_full:
                message = f"rnn: expected no truncation where torch differentiates by itself, got {truncation}"
                raise RuntimeError(message)
            return states(x, h0, U, W, b, b2, ended, settings)
    has_graph = torch.is_grad_enabled() and (
        W.requires_grad
        or x.requires_grad
        or h0.requires_grad
        or U.requires_grad
        or (b is not None and b.requires_grad)
        or (b2 is not None and b2.requires_grad)
    )
    watching = seen and watched(*[each for each in (x, h0, U, W, b, b2) if each is not None])
    if not (has_graph or watching):  # a Function costs as much as several small steps
        if settings.apart is not None:
            return states_apart(x, h0, U, W, b, b2, settings, False)
        return states(x, h0, U, W, b, b2, ended, settings)
    settings = settings if truncation is None else truncated(settings, truncation, x)
    if checkpoint_every and not watching:
        k = steps_of_a_piece(checkpoint_every, settings.steps(x))
        if k < settings.steps(x):
            h = apply(Checkpointed, x, h0, U, W, b, b2, ended, replace(settings, apart=None), k)
            return h if settings.apart is None else _given_away(h, settings.apart, seen)
    found = apply(Recurrence, x, h0, U, W, b, b2, ended, settings)
    if settings.apart is None:
        return found
    h, given, last = found
    return h, _with_own_node(given, seen), _with_own_node(last, seen)


def run_whole(
    x: Tensor, h0: Tensor, U: Tensor, W: Tensor, b: Tensor | None, b2: Tensor | None, settings: Settings
) -> Any:
    """As `run` where nobody looks on, at once by the kernel in C; None where that is not the way that is taken.

    The kernel looks at its arguments itself: they need not have been checked, but for x, which has three axes where the
    settings are of no single step.
    """
    if has_autocast():
        return None
    form, grad = settings.apart, torch.is_grad_enabled()
    view = form.to if form is not None and grad else None
    made = kernels.forward_whole(x, h0, U, W, b, b2, settings.activation, view, form is not None, grad)
    if made is None:
        return None
    h, given, last, has_graph = made
    if not has_graph:
        return h if form is None else (h, form.to_in_place(h), last)
    if form is None:
        return _computed((h,), settings, x, h0, U, W, b, b2)
    h, given, last = _computed((h, given, last), settings, x, h0, U, W, b, b2)
    return h, _with_own_node(given, False), _with_own_node(last, False)


_computed: Any = super(Function, RecurrenceAtOnce).apply  # its own binds default arguments first, which takes long


def _given_away(h: Tensor, form: Form, seen: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `states_apart`, of states with a graph that nobody keeps: the second may be the first itself."""
    last, view = h[-1:].clone(), form.to(h)
    return h, _with_own_node(h, seen) if view is h else view.clone(), last


def _with_own_node(value: Tensor, seen: bool) -> Tensor:
    """The tensor itself, as a result of its own: a hook on it sees its own gradient, and is called if there is one.

    Hooks on one of several results of a Function are called, with None, where another of them has a gradient.
    """
    if seen and (is_transforming() or not value.requires_grad):
        return value
    is_ordinary = type(value) is Tensor and not (seen or value._is_view())
    return value.transpose_(0, 0) if is_ordinary else value.clone()  # the first costs no copy


def truncated(settings: Settings, truncation: Truncation, x: Tensor) -> Settings:
    """The settings with a truncation, drawn for the steps of x (T, B, D), of tokens or of rows."""
    xi = truncation.weights(settings.steps(x))
    return replace(settings, xi=None if xi is None else xi.tolist(), window=truncation.window)


def call(function: type[Function], compiled: type[Function], *args: Any) -> Any:
    """Call a hand-written Function in the form that whoever looks on can follow.

    Args:
        function: With a forward mode.
        compiled: The same without one, for torch.compile.
        args: What both take.
    """
    if is_recording():
        return function.forward(*args)
    if torch.compiler.is_compiling():
        return compiled.apply(*args)  # type: ignore[no-untyped-call]
    return apply(function, *args)


def recurrence_arguments(
    function: str, x: Tensor, h0: Tensor | None, U: Tensor, W: Tensor, b: Tensor | None
) -> tuple[Tensor, Tensor, bool]:
    """Check the arguments of a recurrence; return x and h0 with a batch, and whether x came with one.

    Raises:
        TypeError, ValueError: As `rnn` says, in the name of function.
    """
    checks.number(function, "W", W)
    checks.no_autocast(function, W.device)
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.shape[0] == 0:
        raise ValueError(f"{function}: expected W of shape (H, H) with H > 0, got {tuple(W.shape)}")
    H = W.shape[0]
    checks.number(function, "U", U)
    if U.ndim != 2 or U.shape[0] != H or U.shape[1] == 0:
        raise ValueError(f"{function}: expected U of shape (H, D) = ({H}, D) with D > 0, got {tuple(U.shape)}")
    checks.alike(function, "U", U, "W", W)
    if b is not None:
        checks.number(function, "b", b)
        checks.shape(function, "b", b, "H", (H,))
        checks.alike(function, "b", b, "W", W)
    batched = _check_input(function, x, U)
    if not batched:
        x = x.unsqueeze(1)
    if h0 is None:
        return x, W.new_zeros(x.shape[1], H), batched
    checks.number(function, "h0", h0)
    if batched:
        checks.shape(function, "h0", h0, "BH", (x.shape[1], H))
    else:
        checks.shape(function, "h0", h0, "H", (H,))
        h0 = h0.unsqueeze(0)
    checks.alike(function, "h0", h0, "W", W)
    return x, h0, batched


def _check_input(function: str, x: Tensor, U: Tensor) -> bool:
    """Check x against U (H, D) and tell whether it is batched."""
    checks.tensor(function, "x", x)
    D = U.shape[1]
    vectors = not are_tokens(x)
    if not vectors and x.dtype not in checks.TOKEN_DTYPES:
        raise TypeError(
            f"{function}: expected x of dtype {U.dtype} like U, or tokens of dtype torch.int64 or torch.int32, "
            f"got {x.dtype}"
        )
    steps = x.shape[:-1] if vectors else x.shape
    if len(steps) not in (1, 2) or (vectors and x.shape[-1] != D):
        names = f"(T, B, D) or (T, D) with D = {D}" if vectors else "(T, B) or (T,) for tokens"
        raise ValueError(f"{function}: expected x of shape {names}, got {tuple(x.shape)}")
    if steps[0] == 0:
        raise ValueError(f"{function}: expected x of at least one step, got T = 0 in {tuple(x.shape)}")
    if vectors:
        checks.alike(function, "x", x, "U", U)
    else:
        checks.on_device(function, "x", x, "U", U)
        checks.in_range(function, "tokens x", x, "D-1", D - 1)
    return len(steps) == 2


def readout(h: Tensor, V: Tensor, c: Tensor | None = None) -> Tensor:
    """Compute the outputs o_t = V h_t + c   (F3).

    Args:
        h: (..., H), for example the states (T, B, H) or the last ones, h[-1:], alone.
        V: (K, H), of h's dtype and device.
        c: Bias (K,), or None.

    Returns:
        o (..., K).

    Raises:
        TypeError: An argument is no tensor or has another dtype.
        ValueError: Wrong shape or device.
        RuntimeError: Autocast is on.

    Gradients: h, V, c, by B2 and the first term of B3.
    Double backward: yes, to any order.
    Memory kept until backward: h and V.
    Source: docs/derivation.md, F3 and B2.
    """
    readout_arguments("readout", h, V, c)
    batched = h if h.ndim > 1 else h.unsqueeze(0)
    o: Tensor = call(DualReadout, Readout, batched, V, c)
    return o if h.ndim > 1 else o.squeeze(0)


def readout_arguments(function: str, h: Tensor, V: Tensor, c: Tensor | None) -> None:
    """Check the arguments of a readout; raise as `readout` says, in the name of function."""
    checks.floating(function, "V", V)
    checks.no_autocast(function, V.device)
    checks.floating(function, "h", h)
    if h.ndim == 0:
        raise ValueError(f"{function}: expected h of shape (..., H), got ()")
    H = h.shape[-1]
    if V.ndim != 2 or V.shape[0] == 0 or V.shape[1] != H:
        raise ValueError(f"{function}: expected V of shape (K, H) = (K, {H}) with K > 0, got {tuple(V.shape)}")
    checks.alike(function, "V", V, "h", h)
    if c is not None:
        checks.floating(function, "c", c)
        checks.shape(function, "c", c, "K", V.shape[:1])
        checks.alike(function, "c", c, "h", h)


def softmax_cross_entropy(
    o: Tensor, y: Tensor, *, time: str = "sum", batch: str = "sum", ignore_index: int = -100
) -> Tensor:
    """Compute the cross-entropy of softmax(o_t) against the targets, summed or averaged over time and batch.

    ŷ_t = softmax(o_t)   L = -Σ_t w_t Σ_k y_tk ln ŷ_tk   (F4, F5)

    Args:
        o: Outputs (T, B, K), or (T, K) without a batch.
        y: Class indices (T, B) of dtype int64; or probabilities (T, B, K), one-hot (any integer dtype or o's) or
            soft (o's dtype; they need not sum to 1 and may require gradients). For time="last" the targets of the
            last step alone, (B,) or (B, K). Without a batch the same shapes without B.
        time: "sum": w_t = 1; "mean": 1 over the number of the sequence's steps that count; "last": only t = T.
        batch: "sum", or "mean": divided by B, whatever is ignored; refused without a batch. With nothing ignored,
            "mean" and "mean" is what torch.nn.functional.cross_entropy gives by default.
        ignore_index: A step with this class index weighs nothing. A sequence of which no step counts adds 0.

    Returns:
        L, 0-dimensional.

    Raises:
        TypeError: An argument is no tensor or has another dtype.
        ValueError: Wrong option, shape or device, T = 0, batch="mean" without a batch, or a class index outside
            0 .. K-1 (looked at on the CPU only; elsewhere the device refuses it).

    Gradients: o by B1, and y where it holds probabilities.
    Double backward: yes, to any order.
    Memory kept until backward: ln ŷ (T, B, K), y and w (T, B).
    Source: docs/derivation.md, F4 F5 and B1.
    """
    checks.integer("softmax_cross_entropy", "ignore_index", ignore_index)
    used, y, w = weighted_targets("softmax_cross_entropy", "y", o, y, time, batch, ignore_index)
    loss: Tensor
    loss, _ = call(DualSoftmaxCrossEntropy, SoftmaxCrossEntropy, used, y, w)
    return loss


def squared_error(o: Tensor, y: Tensor, *, time: str = "sum", batch: str = "sum") -> Tensor:
    """Compute half the squared error of the outputs, summed or averaged over time and batch.

    ŷ_t = o_t   L = Σ_t w_t ½ Σ_k (o_tk - y_tk)²   (F4, F5)

    Args:
        o: Outputs (T, B, K), or (T, K) without a batch.
        y: Targets of o's shape, dtype and device; for time="last" without the leading T.
        time: "sum": w_t = 1; "mean": 1/T; "last": only t = T.
        batch: "sum", or "mean": divided by B; refused without a batch.

    Returns:
        L, 0-dimensional.

    Raises:
        TypeError: An argument is no tensor or has another dtype.
        ValueError: Wrong option, shape or device, T = 0, or batch="mean" without a batch.

    Gradients: o by B1, and y.
    Double backward: yes, to any order.
    Memory kept until backward: o, y and w (T, B).
    Source: docs/derivation.md, F4 F5 and B1.
    """
    used, y, w = weighted_targets("squared_error", "y", o, y, time, batch, None)
    loss: Tensor = call(DualSquaredError, SquaredError, used, y, w)
    return loss
