"""The recurrence and its back-propagation through time, by hand: F1 F2, B3-B8, and forward mode T1 T2. Read it first.

The equations (docs/derivation.md) are in column form; the code keeps vectors as rows, so `W h` is `h @ W.T` and
`Wᵀ δ` is `δ @ W`. `dX` is dL/dX and has X's shape. Only F1/F2's W h_{t-1} and B3/B4 are sequential: the two
loops are in kernels/eager.py, to be read next; everything else is one product over the whole sequence. Nothing is
validated here: functional.py and modules.py do that.

Shapes: x (T, B, D) or tokens (T, B), h0 (B, H), U (H, D), W (H, H), b (H,), h dh da (T, B, H). Sequences of different
lengths come padded, with `ended` (T, B, 1) True after the end of each, or as rows, (N, D) and (N, H), with the number
of sequences at each step (kernels/eager.py says how they lie). `conj` is for complex numbers; it leaves real ones
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from manual_bptt import kernels, lags
from manual_bptt.activations import Activation
from manual_bptt.autocast import without_autocast
from manual_bptt.kernels import eager, native
from manual_bptt.transforms import has_forward_mode, is_mapped, watched


@dataclass(frozen=True, eq=False)
class Form:
    """How states (T, B, H) are laid out for somebody: as a view, the states themselves, and the way back, as a view."""

    to: Callable[[Tensor], Tensor]
    to_in_place: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What a recurrence needs to know beside its tensors.

    Attributes:
        activation: f of F2.
        sizes: Sequences at each step where x are the rows of sequences of different lengths; None for (T, B, D).
        observe: Called in the backward pass with what `state_gradient` takes.
        xi: ξ_1 … ξ_T of B3; None: all are 1.
        window: How many steps each gradient from outside is followed back; None: all there are.
        apart: How states are laid out that are given away, to be written into, apart from those kept; None: none are.
    """

    activation: Activation
    sizes: Sequence[int] | None = None
    observe: Callable[..., None] | None = None
    xi: Sequence[float] | None = None
    window: int | None = None
    apart: Form | None = None

    @property
    def has_batch(self) -> bool:
        """Whether as many sequences run at every step: (T, B, D), or rows (B, D) of one step."""
        return self.sizes is None or len(self.sizes) == 1

    def steps(self, x: Tensor) -> int:
        """T of an input, (T, B, D) or rows."""
        return x.shape[0] if self.sizes is None else len(self.sizes)

    @property
    def is_plain(self) -> bool:
        """Whether the backward pass is full BPTT of such a batch."""
        return self.has_batch and self.xi is None and self.window is None


def states(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    b2: Tensor | None,
    ended: Tensor | None,
    settings: Settings,
) -> Tensor:
    """F1, F2: all states h (T, B, H), 0 after a sequence's end; in place unless somebody watches."""
    f, sizes = settings.activation, settings.sizes
    whole = kernels.forward_whole(x, h0, U, W, b, b2, f) if settings.has_batch and ended is None else None
    if whole is not None:
        return whole[0]
    a = input_part(x, U, b if b is None or b2 is None else b + b2)
    if watched(a, h0, W):
        h = eager.functional_forward(a, h0, W, f, sizes)
    elif kernels.chosen(a, h0, W, f, sizes, forward=True) == "native":
        h = native.forward(a, h0, W, f, sizes)
    else:
        h = eager.forward(a, h0, W, f, sizes)
    return h if ended is None else h.masked_fill(ended, 0)


def states_apart(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor | None,
    b2: Tensor | None,
    settings: Settings,
    kept: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `states`, of one length: h, what is given away of it, and a copy of the last states, (1, B, H).

    The second is a copy if h is kept, else h itself; no view.
    """
    f, form = settings.activation, settings.apart
    assert form is not None
    whole = kernels.forward_whole(x, h0, U, W, b, b2, f, copy=form.to if kept else None, last=True)
    if whole is not None:
        h, copy, last, _ = whole
    else:
        h = states(x, h0, U, W, b, b2, None, settings)
        copy, last = form.to(h).clone() if kept else None, h[-1:].clone()
        h = h if kept else h.detach()  # torch's linear may have made a view; there is no graph
    assert last is not None
    return h, form.to_in_place(h) if copy is None else copy, last


def input_part(x: Tensor, U: Tensor, b: Tensor | None) -> Tensor:
    """F1 without its recurrent term: U x_t + b of every step (T, B, H), in new storage."""
    if not are_tokens(x):
        return functional.linear(x, U, b)
    columns = functional.embedding(x, U.t())  # tokens: U x_t of a one-hot x_t is a column of U
    return columns if b is None else columns + b


def are_tokens(x: Tensor) -> bool:
    """Whether x stands for one-hot vectors."""
    return not (x.is_floating_point() or x.is_complex())


def rows(value: Tensor) -> Tensor:
    """All steps of all sequences below one another: (T, B, N) as (T·B, N)."""
    return value.reshape(-1, value.shape[-1])


def states_before(h: Tensor, h0: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """h_{t-1} of every step, shaped as h."""
    if sizes is None:
        return torch.cat((h0.unsqueeze(0), h[:-1]))
    steps = eager.split(h, sizes)[:-1]
    return torch.cat((h0, *(h_t[:running] for h_t, running in zip(steps, sizes[1:], strict=True)))) if steps else h0


def through_time(dh: Tensor, h: Tensor, W: Tensor, ended: Tensor | None, settings: Settings) -> Tensor:
    """B3, B4: da (T, B, H) from the part of dh that comes from outside; differentiable when grad mode is on."""
    f, sizes = settings.activation, settings.sizes
    in_place = not (torch.is_grad_enabled() or watched(dh, h, W))
    dh = dh if ended is None else dh.masked_fill(ended, 0)
    if in_place and settings.window is None and kernels.chosen(h, dh, W, f, sizes, forward=False) == "native":
        return native.backward(dh, h, W, f, sizes, settings.xi)
    slope = f.slope(h.conj())
    slope = slope if ended is None else slope.masked_fill(ended, 0)
    if settings.window is not None:
        return f.times(slope, lags.within(dh, slope, W.conj(), f, sizes, settings.window))  # B3 by B9, B4
    kernel = eager.backward if in_place else eager.functional_backward
    return kernel(dh, slope, W.conj(), f, sizes, settings.xi)


@torch.no_grad()
def state_gradient(dh: Tensor, da: Tensor, h: Tensor, W: Tensor, ended: Tensor | None, settings: Settings) -> Tensor:
    """B3: the total dh (T, B, H) from its part from outside and what comes back through the next step; detached."""
    if ended is not None:
        dh = dh.masked_fill(ended, 0)
    if settings.window is not None:
        slope = settings.activation.slope(h.conj())
        slope = slope if ended is None else slope.masked_fill(ended, 0)
        return lags.within(dh, slope, W.conj(), settings.activation, settings.sizes, settings.window)
    total = dh.clone()
    later = da @ W.conj()
    if settings.sizes is None and settings.xi is None:
        total[:-1] += later[1:]
        return total
    steps = eager.split(later, settings.sizes)[1:]
    weights = [1.0] * len(steps) if settings.xi is None else settings.xi[1:]
    for dh_t, from_next, xi in zip(eager.split(total, settings.sizes), steps, weights, strict=False):
        if xi != 0:
            dh_t[: from_next.shape[0]].add_(from_next, alpha=xi)
    return total


def entering(da: Tensor, dh: Tensor, h: Tensor, W: Tensor, ended: Tensor | None, settings: Settings) -> Tensor:
    """Da of the losses that reach h_0, for B8: all of them, or those of the first steps where there is a window.

    h_0 lies s steps before step s, so the losses of the steps 1 … k reach it, and all the way.
    """
    if settings.window is None:
        return da
    k = min(settings.window, len(eager.split(h, settings.sizes)))
    sizes = None if settings.sizes is None else settings.sizes[:k]
    steps = k if sizes is None else sum(sizes)
    first = None if ended is None else ended[:steps]
    return through_time(dh[:steps], h[:steps], W, first, Settings(settings.activation, sizes))


def let_through(h: Tensor, settings: Settings) -> Tensor:
    """H (T, B, H) as step t + 1 reads it: the same values, their gradients multiplied by ξ_{t+1}."""
    if settings.xi is None:
        return h
    xi = torch.tensor([*settings.xi[1:], 1.0], dtype=h.real.dtype, device=h.device)  # nothing reads h_T
    if settings.sizes is not None:
        xi = xi.repeat_interleave(torch.tensor(settings.sizes, device=h.device))
    kept = h.detach()
    return kept + xi.view(-1, *[1] * (h.ndim - 1)) * (h - kept)


def bias_gradient(da: Tensor) -> Tensor:
    """B5: db (H,), the sum over time and batch."""
    return rows(da).sum(0)


def recurrent_weight_gradient(
    da: Tensor, h: Tensor, h0: Tensor, sizes: Sequence[int] | None = None, ended: Tensor | None = None
) -> Tensor:
    """B6: dW (H, H), every da_t against the state before it."""
    if sizes is not None:
        return da.t() @ states_before(h, h0, sizes).conj()
    if ended is not None:  # where no step follows the state before is nobody's: it may be infinite
        return rows(da).t() @ rows(states_before(h, h0).masked_fill(ended, 0)).conj()
    first = da[0].t() @ h0.conj()  # apart, so that the states need not be copied
    if h.shape[0] == 1:
        return first
    return torch.addmm(first, rows(da[1:]).t(), rows(h[:-1]).conj())


def input_weight_gradient(da: Tensor, x: Tensor, D: int) -> Tensor:
    """B7: dU (H, D), every da_t against its input; for tokens da_t is added to the token's column."""
    if not are_tokens(x):
        return rows(da).t() @ rows(x).conj()
    return da.new_zeros(D, da.shape[-1]).index_add(0, x.reshape(-1), rows(da)).t()


def input_gradient(da: Tensor, U: Tensor) -> Tensor:
    """B8: dx (T, B, D)."""
    return da @ U.conj()


def initial_state_gradient(da: Tensor, W: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """B8: dh0 (B, H)."""
    return (da[0] if sizes is None else da[: sizes[0]]) @ W.conj()


def gradients(
    da: Tensor,
    entering: Callable[[], Tensor],
    x: Any,
    h0: Any,
    U: Any,
    W: Tensor,
    h: Tensor,
    D: int,
    sizes: Sequence[int] | None,
    ended: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """B5-B8 from da: dx, dh0, dU, dW, db of two biases, each only where needed.

    `entering` makes the da that dh0 is made of. x, h0 and U may be None where they are not read. Both biases have the
    same gradient, but not in the same memory: somebody may clip it in place.
    """
    need_dx, need_dh0, need_dU, need_dW, need_db, need_db2 = needed
    db = bias_gradient(da) if need_db or need_db2 else None
    return (
        input_gradient(da, U) if need_dx else None,
        initial_state_gradient(entering(), W, sizes) if need_dh0 else None,
        input_weight_gradient(da, x, D) if need_dU else None,
        recurrent_weight_gradient(da, h, h0, sizes, ended) if need_dW else None,
        db if need_db else None,
        db.clone() if db is not None and need_db2 else None,
    )


def tangents(
    x: Tensor,
    h0: Tensor,
    U: Tensor,
    W: Tensor,
    ended: Tensor | None,
    h: Tensor,
    moved: Sequence[Tensor | None],
    settings: Settings,
) -> Tensor:
    """T1, T2: how the states move when x, h0, U, W and biases move along the given tangents (None: not at all)."""
    x_moved, h0_moved, U_moved, W_moved, *b_moved = moved
    linear = torch.zeros_like(h)
    if x_moved is not None:
        linear = linear + input_part(x_moved, U, None)
    if U_moved is not None:
        linear = linear + input_part(x, U_moved, None)
    if W_moved is not None:
        linear = linear + states_before(h, h0, settings.sizes) @ W_moved.t()
    for each in b_moved:
        linear = linear if each is None else linear + each
    start = torch.zeros_like(h0) if h0_moved is None else h0_moved
    slope = settings.activation.slope(h)
    if ended is not None:
        linear, slope = linear.masked_fill(ended, 0), slope.masked_fill(ended, 0)
    if settings.window is not None:
        return lags.tangent(linear, start, slope, W, settings.activation, settings.sizes, settings.window)
    return eager.tangent(linear, start, slope, W, settings.activation, settings.sizes, settings.xi)


def all_gradients(
    dh: Tensor | None,
    dlast: Tensor | None,
    h: Tensor,
    x: Tensor | None,
    h0: Tensor | None,
    U: Tensor | None,
    W: Tensor,
    D: int,
    ended: Tensor | None,
    settings: Settings,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """B3-B8: dx, dh0, dU, dW, db of two biases, each only where needed.

    dh (T, B, H) comes from outside, and dlast (1, B, H) beside it at the last step; either may be None for nothing. So
    may be what is not read: x, if dU is not needed, h0, if dW is not, and U, if dx is not.
    """
    f = settings.activation
    is_plain = not torch.is_grad_enabled() and ended is None and settings.is_plain
    whole = kernels.backward_whole(dh, dlast, h, x, h0, U, W, D, f, tuple(needed)) if is_plain else None
    if whole is not None:
        if settings.observe is not None:
            with without_autocast(h.device):
                total = from_outside(dh, dlast, h)
                settings.observe(total, through_time(total, h, W, ended, settings), h, W, ended, settings)
        return whole
    with without_autocast(h.device):
        dh = from_outside(dh, dlast, h)
        da = through_time(dh, h, W, ended, settings)
        if settings.observe is not None:
            settings.observe(dh, da, h, W, ended, settings)
        first = partial(entering, da, dh, h, W, ended, settings)
        before = let_through(h, settings) if torch.is_grad_enabled() else h
        return gradients(da, first, x, h0, U, W, before, D, settings.sizes, ended, needed)


def from_outside(dh: Tensor | None, dlast: Tensor | None, h: Tensor) -> Tensor:
    """The part of dh (T, B, H) that comes from outside, dlast (1, B, H) at the last step included."""
    if dlast is None:
        return torch.zeros_like(h) if dh is None else dh
    if dh is None:
        return functional.pad(dlast, (0, 0, 0, 0, h.shape[0] - 1, 0))
    return torch.cat((dh[:-1], dh[-1:] + dlast))


def of_inputs(ctx: Any, given: Sequence[Tensor | None], needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of x, h0, U, W and two biases, from those of what a Function of this file returned."""
    form = ctx.settings.apart
    dh, copied, dlast = (*given, None, None) if form is None else given
    if form is not None and copied is not None:
        copied = form.back(copied)
        dh = copied if dh is None else dh + copied  # those that are kept have one in a second derivative alone
    if dh is None and dlast is None:
        return (None,) * 6
    x, h0, U, W, ended, h = ctx.saved_tensors
    return all_gradients(dh, dlast, h, x, h0, U, W, ctx.D, ended, ctx.settings, needed)


class Recurrence(Function):
    """F1 F2, backward B3-B8, forward mode T1 T2.

    Kept until backward: W, h and, where asked for, x (dU), h0 (dW), U (dx); `ended` where there is one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        U: Tensor,
        W: Tensor,
        b: Tensor | None,
        b2: Tensor | None,
        ended: Tensor | None,
        settings: Settings,
    ) -> Tensor | tuple[Tensor, ...]:
        """States h (T, B, H); or, apart, h to be kept, a copy to be given away, and one of the last, (1, B, H)."""
        if settings.apart is not None:
            return states_apart(x, h0, U, W, b, b2, settings, True)
        return states(x, h0, U, W, b, b2, ended, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what backward and the forward mode read."""
        x, h0, U, W, _, _, ended, ctx.settings = inputs
        h = output if ctx.settings.apart is None else output[0]
        need_dx, _, need_dU, need_dW = ctx.needs_input_grad[:4]
        if is_mapped(ctx):
            ctx.save_for_backward(x, h0, U, W, ended, h)
        else:
            ctx.save_for_backward(x if need_dU else None, h0 if need_dW else None, U if need_dx else None, W, ended, h)
            ctx.set_materialize_grads(False)
        if has_forward_mode():
            ctx.save_for_forward(x, h0, U, W, ended, h)
        ctx.D = U.shape[1]

    @staticmethod
    def jvp(ctx: Any, *moved: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        """The tangents of what forward returns."""
        x, h0, U, W, ended, h = ctx.saved_tensors
        tangent = tangents(x, h0, U, W, ended, h, moved[:6], ctx.settings)
        form = ctx.settings.apart
        return tangent if form is None else (tangent, form.to(tangent).clone(), tangent[-1:].clone())

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, each computed only where somebody asked for it."""
        return *of_inputs(ctx, given, ctx.needs_input_grad[:6]), None, None


class RecurrenceAtOnce(Function):
    """`Recurrence` of states that a kernel has computed already, where nobody looks on; what is kept is as there."""

    @staticmethod
    def forward(ctx: Any, made: Any, settings: Settings, *inputs: Any) -> Any:
        """What `Recurrence` returns, of its first six inputs; made is all of it, hidden from torch in a tuple."""
        x, h0, U, W, _, _ = inputs
        _, _, need_dx, _, need_dU, need_dW, _, _ = ctx.needs_input_grad
        ctx.settings = settings
        ctx.D = U.shape[1]
        kept = x if need_dU else None, h0 if need_dW else None, U if need_dx else None, W, None, made[0]
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return made[0] if settings.apart is None else made

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        """One gradient per input of forward, each computed only where somebody asked for it."""
        return None, None, *of_inputs(ctx, given, ctx.needs_input_grad[2:])
