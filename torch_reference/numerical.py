"""Gradients that know no autograd: complex steps, differences, a closed form; NumPy alone, no torch.

Forward and loss are written again here, so that this witness shares no line with the others.
Sizes: T steps, B batch rows, D inputs, H hidden units, K outputs. Vectors are rows: `U x_t` is `x_t @ U.T`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Chosen = TypeVar("Chosen")
# (loss as a function of one array, that array, directions) -> slopes
Rule = Callable[[Callable[[Array], Array], Array, Array], Array]

# A complex step is exact to rounding once its square vanishes beside 1, which 1e-30 does by far; and it is far
# above the smallest double, 1e-308, so that a gradient that vanished to 1e-250 through time still comes out.
COMPLEX_STEP = 1e-30
# Truncation (step²) and rounding (eps / step) meet at cbrt(eps).
DIFFERENCE_STEP = float(np.cbrt(np.finfo(np.float64).eps))


def complex_step(
    parameters: Mapping[str, Array],
    x: Array,
    targets: Array,
    h0: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    loss: str = "cross_entropy",
    time: str = "sum",
    batch: str = "sum",
    ignore_index: int = -100,
    chunk_size: int = 128,
) -> dict[str, Array]:
    """Differentiate the loss entry by entry: dL/dp = Im L(p + iε) / ε, in which nothing cancels.

    Args:
        parameters: U (H, D), W (H, H), V (K, H) and, where used, b (H,) and c (K,). Computed in float64.
        x: (T, B, D), or integer tokens (T, B): token d stands for the d-th unit vector.
        targets: for "cross_entropy" class indices (T, B) or probabilities (T, B, K); for "squared_error"
            (T, B, K). Without the T for time="last".
        h0: (B, H); None means zeros.
        nonlinearity: "tanh", "sigmoid" or "identity"; "relu" is not analytic.
        loss: "cross_entropy" or "squared_error".
        time: "sum", "mean" or "last".
        batch: "sum" or "mean".
        ignore_index: class index of a step that does not count.
        chunk_size: entries perturbed at once; memory and speed depend on it, the result does not.

    Returns:
        Float64 arrays: loss (); dU, dW, dV, dh0 (for h0=None at the zeros), and db, dc, dx where b, c and a
        float x were given. Exact to float64 rounding.

    Raises:
        ValueError: if a name is unknown, the shape of targets or a class index does not fit, or the
            nonlinearity is "relu".
    """
    if nonlinearity == "relu":
        raise ValueError(
            "complex_step: expected nonlinearity to be one of 'tanh', 'sigmoid', 'identity', got 'relu', "
            "which is not analytic; use central_difference"
        )
    values = _arrays(parameters, x, h0)
    loss_of = _loss_function("complex_step", values, targets, nonlinearity, loss, time, batch, ignore_index)
    return _differentiate(loss_of, values, _complex_slopes, chunk_size)


def central_difference(
    parameters: Mapping[str, Array],
    x: Array,
    targets: Array,
    h0: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    loss: str = "cross_entropy",
    time: str = "sum",
    batch: str = "sum",
    ignore_index: int = -100,
    chunk_size: int = 128,
) -> dict[str, Array]:
    """Differentiate the loss entry by entry: dL/dp ≈ (L(p + ε) − L(p − ε)) / 2ε with ε = 6e-6 · max(1, |p|).

    A difference that steps over ReLU's kink at a = 0 is no derivative: every |a| has to be well above ε.

    Args:
        parameters: as in `complex_step`.
        x: as in `complex_step`.
        targets: as in `complex_step`.
        h0: as in `complex_step`.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        loss: as in `complex_step`.
        time: as in `complex_step`.
        batch: as in `complex_step`.
        ignore_index: as in `complex_step`.
        chunk_size: as in `complex_step`.

    Returns:
        The same arrays as `complex_step`, to about 1e-8, norm-wise per gradient: rounding is 1e-16 |L| / ε on
        every entry, and the loss may be a hundred times the entries of its gradient.

    Raises:
        ValueError: if a name is unknown or the shape of targets or a class index does not fit.
    """
    values = _arrays(parameters, x, h0)
    loss_of = _loss_function("central_difference", values, targets, nonlinearity, loss, time, batch, ignore_index)
    return _differentiate(loss_of, values, _central_slopes, chunk_size)


def linear_closed_form(
    parameters: Mapping[str, Array], x: Array, do: Array, h0: Array | None = None
) -> dict[str, Array]:
    """Evaluate the published closed form of the linear network's gradients, nonlinearity "identity".

    dL/dh_t = Σ_{i=t}^{T} (Wᵀ)^{T−i} Vᵀ dL/do_{T+t−i}, with explicit matrix powers instead of a recursion over
    time; from it dU = Σ dL/dh_t x_tᵀ and dW = Σ dL/dh_t h_{t−1}ᵀ. This is the one place of this package where
    a derivative is written down: it is quoted from print to be a witness, not derived here.

    Args:
        parameters: U (H, D), W (H, H), V (K, H) and, where used, b (H,). Computed in float64.
        x: (T, B, D).
        do: dL/do (T, B, K), from any loss.
        h0: (B, H); None means zeros.

    Returns:
        Float64 arrays: dh (T, B, H), dU, dW, dx, dh0, and db where b was given.

    Source: document 003, which writes W_hx, W_hh, W_qh for U, W, V, as "Backpropagation Through Time" in
    "Dive into Deep Learning" (d2l.ai) does.
    """
    values = _arrays(parameters, x, h0)
    U, W, V, x = values["U"], values["W"], values["V"], values["x"]
    T, do = len(x), np.asarray(do, np.float64)
    h = np.stack([values["h0"], *(h_t for h_t, _ in _steps(values, _identity))])  # h_0 .. h_T
    dh = np.zeros_like(h[1:])
    for t in range(1, T + 1):
        for i in range(t, T + 1):
            dh[t - 1] += do[T + t - i - 1] @ V @ np.linalg.matrix_power(W, T - i)
    result = {
        "dh": dh,
        "dU": np.einsum("tbh,tbd->hd", dh, x),
        "dW": np.einsum("tbh,tbg->hg", dh, h[:-1]),
        "db": dh.sum((0, 1)),
        "dx": dh @ U,
        "dh0": dh[0] @ W,
    }
    if "b" not in parameters:
        del result["db"]
    return result


def _identity(a: Array) -> Array:
    return a


def _sigmoid(a: Array) -> Array:
    positive = a.real >= 0
    z = np.exp(np.where(positive, -a, a))  # the sign that cannot overflow
    result: Array = np.where(positive, 1.0, z) / (1.0 + z)
    return result


def _relu(a: Array) -> Array:
    result: Array = np.maximum(a, 0.0)
    return result


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": _relu,
    "identity": _identity,
}


def _cross_entropy(o: Array, y: Array) -> Array:
    shift = o.real.max(-1, keepdims=True)  # it cancels, and with it whatever it depends on
    log_sum = shift[..., 0] + np.log(np.exp(o - shift).sum(-1))
    result: Array = log_sum * y.sum(-1) - (y * o).sum(-1)
    return result


def _squared_error(o: Array, y: Array) -> Array:
    result: Array = ((o - y) ** 2).sum(-1) / 2  # the square, not the modulus: o may be complex
    return result


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "cross_entropy": _cross_entropy,
    "squared_error": _squared_error,
}


def _arrays(parameters: Mapping[str, Array], x: Array, h0: Array | None) -> dict[str, Array]:
    """Everything the loss depends on, as float64; tokens stay integer. Absent biases stay absent."""
    values = {name: np.asarray(parameters[name], np.float64) for name in "UWVbc" if name in parameters}
    x = np.asarray(x)
    values["x"] = x if x.ndim == 2 else np.asarray(x, np.float64)
    shape = (x.shape[1], len(values["W"]))
    values["h0"] = np.zeros(shape) if h0 is None else np.asarray(h0, np.float64)
    return values


def _steps(values: Mapping[str, Array], f: Callable[[Array], Array]) -> Iterator[tuple[Array, Array]]:
    """Yield h_t (..., B, H) and o_t (..., B, K) of every step. Any array may be complex, with leading axes."""
    U, W, V, x, h_t = (values[name] for name in ("U", "W", "V", "x", "h0"))
    b = values.get("b", np.zeros(1))[..., None, :]
    c = values.get("c", np.zeros(1))[..., None, :]
    tokens = np.issubdtype(x.dtype, np.integer)
    for t in range(x.shape[0 if tokens else -3]):
        Ux_t = np.swapaxes(U[..., x[t]], -1, -2) if tokens else _times(x[..., t, :, :], U)
        h_t = f(Ux_t + _times(h_t, W) + b)
        yield h_t, _times(h_t, V) + c


def _times(rows: Array, matrix: Array) -> Array:
    product: Array = np.matmul(rows, np.swapaxes(matrix, -1, -2))
    return product


def _loss_function(
    function: str,
    values: Mapping[str, Array],
    targets: Array,
    nonlinearity: str,
    loss: str,
    time: str,
    batch: str,
    ignore_index: int,
) -> Callable[[Mapping[str, Array]], Array]:
    """Bind all but the arrays: the result maps them, with leading axes (...), to losses of shape (...)."""
    f = _choose(function, "nonlinearity", ACTIVATIONS, nonlinearity)
    step_loss = _choose(function, "loss", LOSSES, loss)
    _choose(function, "time", dict.fromkeys(("sum", "mean", "last")), time)
    _choose(function, "batch", dict.fromkeys(("sum", "mean")), batch)
    x, K = values["x"], len(values["V"])
    y, counts = _rows(function, np.asarray(targets), (x.shape[0], x.shape[1], K), loss, time, ignore_index)
    weights = counts / np.maximum(counts.sum(0), 1.0) if time == "mean" else counts  # (T, B)
    weights = weights / x.shape[1] if batch == "mean" else weights

    def loss_of(values: Mapping[str, Array]) -> Array:
        steps = zip(_steps(values, f), y, weights, strict=True)
        total: Array = np.asarray(sum((w_t * step_loss(o_t, y_t)).sum(-1) for (_, o_t), y_t, w_t in steps))
        return total

    return loss_of


def _rows(
    function: str, targets: Array, shape: tuple[int, int, int], loss: str, time: str, ignore_index: int
) -> tuple[Array, Array]:
    """Write any kind of targets as rows (T, B, K), and say with 1 and 0 in (T, B) which steps count."""
    T, B, K = shape
    needed = (B, K) if time == "last" else shape
    indices = loss == "cross_entropy" and targets.ndim == len(needed) - 1
    expected = needed[:-1] if indices else needed
    if targets.shape != expected:
        raise ValueError(f"{function}: expected targets of shape {expected}, got {targets.shape}")

    y, counts = np.zeros(shape), np.zeros((T, B))
    entering = slice(T - 1, T) if time == "last" else slice(T)
    y[entering] = targets[..., None] == np.arange(K) if indices else targets
    counts[entering] = targets != ignore_index if indices else 1.0
    if indices and (y.any(-1) < counts).any():
        raise ValueError(f"{function}: expected targets to hold classes 0 to {K - 1} or {ignore_index}")
    return y, counts


def _complex_slopes(loss_at: Callable[[Array], Array], array: Array, directions: Array) -> Array:
    slopes: Array = loss_at(array + 1j * COMPLEX_STEP * directions).imag / COMPLEX_STEP
    return slopes


def _central_slopes(loss_at: Callable[[Array], Array], array: Array, directions: Array) -> Array:
    steps = DIFFERENCE_STEP * np.maximum(1.0, np.abs(array)) * directions
    upper, lower = array + steps, array - steps
    widths = (upper - lower).reshape(len(directions), -1).sum(-1)  # what 2ε came to after rounding
    slopes: Array = (loss_at(upper) - loss_at(lower)) / widths
    return slopes


def _differentiate(
    loss_of: Callable[[Mapping[str, Array]], Array], values: dict[str, Array], rule: Rule, chunk_size: int
) -> dict[str, Array]:
    """Perturb one array after the other, chunk_size entries at once, each in a copy of its own."""
    result = {"loss": loss_of(values)}
    for name, array in values.items():
        if np.issubdtype(array.dtype, np.integer):  # tokens
            continue

        def loss_at(copies: Array, name: str = name) -> Array:
            return loss_of({**values, name: copies})

        slopes = np.full(array.size, np.nan)
        for start in range(0, array.size, chunk_size):
            entries = np.arange(start, min(start + chunk_size, array.size))
            directions = (entries[:, None] == np.arange(array.size)).reshape(-1, *array.shape)
            slopes[entries] = rule(loss_at, array, directions)
        result["d" + name] = slopes.reshape(array.shape)
    return result


def _choose(function: str, symbol: str, table: Mapping[str, Chosen], got: str) -> Chosen:
    if got not in table:
        names = ", ".join(map(repr, table))
        raise ValueError(f"{function}: expected {symbol} to be one of {names}, got {got!r}")
    return table[got]
