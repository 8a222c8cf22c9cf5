"""What goes wrong in d2l.py: replacements of its text that plant known mistakes, pairs of them, and unknown ones.

A number M or P is that of docs/coursework.md. A step in OUTSIDE_FIRST_WRONG is "last", counted from the end if
negative, from the start if positive.
"""

from itertools import product

Edits = tuple[tuple[str, str], ...]

_DH = "dh = dH[t] + from_later"
_FROM_LATER = "from_later = dh @ W_hh.T\n"
_DW = "dW_hh += states[t].T @ dh"
_TARGET = "dscores[steps, rows, Y] -= 1"
_MEAN = "dscores /= T * N"
_LOSS = "    loss = -np.log(P[steps, rows, Y]).mean()\n"

# the network goes through the sequence's functions, so these show in both
_SEQUENCE: dict[str, Edits] = {
    "M01": ((_DH, "dh = dH[t]"),),
    "M01-zeros": ((f"        {_FROM_LATER}", ""),),
    "M02": ((_DH, "dh = dH[t] if t == T - 1 else from_later"),),
    "M05": ((_FROM_LATER, "from_later = dh @ W_hh\n"),),
    "M07": ((_DH, "dh = 2 * dH[t] + from_later"),),
    "M08": (("    for t in reversed(range(T)):\n", "    for t in range(T):\n"),),
    "M11-k2": ((_DH, f"if (t + 1) % 2 == 0:\n            from_later = np.zeros_like(from_later)\n        {_DH}"),),
    "M12-zeros": (("dH0 = from_later", "dH0 = np.zeros_like(from_later)"),),
    "M12-dh1": (("dH0 = from_later", "dH0 = dh"),),
    "M24-tanh": ((_DH, "dh = (dH[t] + from_later) * (1 - states[t + 1] ** 2)"),),
    "M30": ((_DW, "dW_hh += states[t + 1].T @ dh"),),
    "M32": ((_DW, "dW_hh += dh.T @ states[t]"),),
    "M32-dU": (('"dW_xh": dW_xh,', '"dW_xh": dW_xh.T,'),),
    "M33": ((_DW, "if t > 0:\n            dW_hh += states[t].T @ dh"),),
    "M35": (("dW_xh += X", "dW_xh = X"), ("dW_hh += states", "dW_hh = states"), ("db_h += dh", "db_h = dh")),
    "M36-mean-batch": (("db_h += dh.sum(axis=0)", "db_h += dh.mean(axis=0)"),),
    "P1": ((_DH, "dH[t] += from_later\n        dh = dH[t]"),),
    "P4": (("states[t] @ W_hh + b_h", "H0 @ W_hh + b_h"),),
}
_NETWORK: dict[str, Edits] = {
    "M31": (("sum(H[t].T @ dscores[t] for t in range(T))", "sum(cache[1][t].T @ dscores[t] for t in range(T))"),),
    "M32-dV": (("sum(H[t].T @ dscores[t] for", "sum(dscores[t].T @ H[t] for"),),
    "M40": ((f"dscores = P.copy()\n    {_TARGET}", "dscores = -P\n    dscores[steps, rows, Y] += 1"),),
    "M41": ((f"    {_TARGET}\n", ""),),
    "M43-axis": (("max(axis=-1", "max(axis=1"), ("exps.sum(axis=-1", "exps.sum(axis=1")),
    "M43-time": (("max(axis=-1", "max(axis=0"), ("exps.sum(axis=-1", "exps.sum(axis=0")),
    "M43-exp": (("P = softmax(scores)", "P = softmax(np.exp(scores))"),),
    "M44-times-T": ((_MEAN, "dscores /= N"),),
    "M44-times-N": ((_MEAN, "dscores /= T"),),
    "M44-times-NT": ((f"    {_MEAN}\n", ""),),
    "M44-inverse-T": ((_MEAN, "dscores /= T * N * T"),),
    "M45-inverse-N": (
        (
            "    return loss, {**grads,",
            '    dW_hq, db_q = dW_hq / N, db_q / N\n    grads |= {k: grads[k] / N for k in grads if k[1] in "Wb"}\n'
            "    return loss, {**grads,",
        ),
    ),
    "M46": ((_LOSS, _LOSS.replace(".mean()", ".sum()")),),
    "M46-times-T": ((_LOSS, _LOSS.replace(".mean()", ".sum() / N")),),
    "P7": (
        (_LOSS, ""),
        (f"dscores = P.copy()\n    {_TARGET}\n    {_MEAN}\n", f"dscores = P\n    {_TARGET}\n{_LOSS}    {_MEAN}\n"),
    ),
}
MISTAKES: dict[str, Edits] = _SEQUENCE | _NETWORK

PAIRS: tuple[tuple[str, str], ...] = (
    *product(("M01", "M05", "M07"), ("M30", "M32", "M33", "M36-mean-batch")),
    *product(("M30", "M33"), ("M12-zeros", "M36-mean-batch")),
    *product(("M40", "M41", "M44-times-T"), ("M01", "M05", "M30")),
    ("M43-exp", "M01"),
    ("M31", "M30"),
    ("M31", "M05"),
    ("M46", "M33"),
    ("M44-times-N", "M32"),
)

_OUTSIDE_SEQUENCE: dict[str, Edits] = {
    "carry-fades": ((_FROM_LATER, "from_later = 0.9 * dh @ W_hh.T\n"),),
    "carry-of-other-rows": ((_FROM_LATER, "from_later = dh[::-1] @ W_hh.T\n"),),
    "input-of-step-before": (("dW_xh += X[t].T", "dW_xh += X[t - 1].T"),),
    "row-left-out": (("db_h += dh.sum(axis=0)", "db_h += dh[1:].sum(axis=0)"),),
    "rounded": (('"dW_hh": dW_hh,', '"dW_hh": np.round(dW_hh, 3),'),),
    "input-gradient-piles-up": (("dX[t] = dh @ W_xh.T", "dX[t] = dh @ W_xh.T + (dX[t + 1] if t + 1 < T else 0)"),),
    "forward-kept-partly": (("states.append(X[t]", "states.append(0.5 * states[t] + X[t]"),),
}
_OUTSIDE_NETWORK: dict[str, Edits] = {
    "squared-output": (("scores = H @", "scores = H**2 @"),),
    "target-of-next-row": ((_TARGET, "dscores[steps, rows, np.roll(Y, 1, axis=1)] -= 1"),),
    "absolute": (("db_q = dscores.sum(", "db_q = np.abs(dscores).sum("),),
}
OUTSIDE: dict[str, Edits] = _OUTSIDE_SEQUENCE | _OUTSIDE_NETWORK
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "carry-fades": ("dh", -2),
    "carry-of-other-rows": ("dh", -2),
    "input-of-step-before": ("dU", None),
    "row-left-out": ("db", None),
    "rounded": ("dW", None),
    "input-gradient-piles-up": ("dx", -2),
    "forward-kept-partly": ("h", 1),
    "squared-output": ("o", 1),
    "target-of-next-row": ("do", "last"),
    "absolute": ("dc", None),
}

LEVEL: dict[str, str] = {
    **dict.fromkeys(_SEQUENCE | _OUTSIDE_SEQUENCE, "sequence+network"),
    **dict.fromkeys(_NETWORK | _OUTSIDE_NETWORK, "network"),
    "P1": "sequence",  # the network's upstream gradient is its own
}
