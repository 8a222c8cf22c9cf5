"""What goes wrong in mytorch.py: replacements of its text that plant known mistakes, pairs of them, and unknown ones.

A number M or P is that of docs/coursework.md. A step in OUTSIDE_FIRST_WRONG is "last", counted from the end if
negative, from the start if positive.
"""

from itertools import product

Edits = tuple[tuple[str, str], ...]

_IMPORT = "import numpy as np\n"
_DA = "da = delta * (1 - h_t**2)"
_RETURN = "return da @ self.W_ih, da @ self.W_hh"
_DELTA = "delta = dh[:, t] + carry"
_CALL = "dx[:, t], carry = cell.backward(delta, hiddens[t + 1], x[:, t], hiddens[t])"
_SETS = "cell.W_ih, cell.W_hh, cell.b_ih, cell.b_hh = W_ih, W_hh, b_ih, b_hh"

# a sequence goes through the cell's methods, so these show in both
_STEP: dict[str, Edits] = {
    "M03": ((_RETURN, "return da @ self.W_ih, delta @ self.W_hh"),),
    "M04": ((_RETURN, "return da @ self.W_ih, (delta * (1 - h_prev_t**2)) @ self.W_hh"),),
    "M05": ((_RETURN, "return da @ self.W_ih, da @ self.W_hh.T"),),
    "M20": ((_DA, "da = delta"),),
    "M22": ((_DA, "da = delta * (1 - np.tanh(h_t) ** 2)"),),
    "M23": ((_DA, "da = delta * (1 - h_t)"),),
    "M24": ((_DA, "da = delta * h_t * (1 - h_t)"),),
    "M26": ((_DA, "da = 1 - h_t**2"),),
    "M30": (("self.dW_hh += da.T @ h_prev_t", "self.dW_hh += da.T @ h_t"),),
    "M32": (("self.dW_hh += da.T @ h_prev_t", "self.dW_hh += h_prev_t.T @ da"),),
    "M36-unsummed": (
        ("self.db_ih += da.sum(axis=0)", "self.db_ih = self.db_ih + da"),
        ("self.db_hh += da.sum(axis=0)", "self.db_hh = self.db_hh + da"),
    ),
    "M36-mean-batch": (
        ("self.db_ih += da.sum(axis=0)", "self.db_ih += da.mean(axis=0)"),
        ("self.db_hh += da.sum(axis=0)", "self.db_hh += da.mean(axis=0)"),
    ),
    "M36-mean-hidden": (
        ("self.db_ih += da.sum(axis=0)", "self.db_ih += da.sum(axis=0).mean()"),
        ("self.db_hh += da.sum(axis=0)", "self.db_hh += da.sum(axis=0).mean()"),
    ),
    "M39-zero": (("        self.db_hh += da.sum(axis=0)  # as db_ih: both biases enter the same sum\n", ""),),
    "M39-halved": (("self.db_ih += da.sum(axis=0)", "self.db_ih += da.sum(axis=0) / 2"),),
    "M45-inverse-N": (
        ("da.T @ h_prev_l", "da.T @ h_prev_l / len(da)"),
        ("da.T @ h_prev_t", "da.T @ h_prev_t / len(da)"),
        ("self.db_ih += da.sum(axis=0)", "self.db_ih += da.sum(axis=0) / len(da)"),
        ("self.db_hh += da.sum(axis=0)", "self.db_hh += da.sum(axis=0) / len(da)"),
    ),
}
_SEQUENCE: dict[str, Edits] = {
    "M01": ((_DELTA, "delta = dh[:, t]"),),
    "M01-zeros": ((_CALL, _CALL.replace("carry =", "_ =")),),
    "M02": ((_DELTA, "delta = dh[:, t] if t == x.shape[1] - 1 else carry"),),
    "M07": ((_DELTA, "delta = dh[:, t] + carry + dh[:, t]"),),
    "M08": (("    for t in reversed(range(x.shape[1])):\n", "    for t in range(x.shape[1]):\n"),),
    "M11-k2": ((_DELTA, f"if (t + 1) % 2 == 0:\n            carry = np.zeros_like(carry)\n        {_DELTA}"),),
    "M12-zeros": (("dh0 = carry", "dh0 = np.zeros_like(carry)"),),
    "M12-dh1": (("dh0 = carry", "dh0 = delta"),),
    "M13": (("dh0 = carry", "dh0 = carry.sum(axis=0)"),),
    "M30-sequence": ((_CALL, _CALL.replace("hiddens[t])", "hiddens[t + 1])")),),
    "M35": (
        ("self.dW_ih += da", "self.dW_ih = da"),
        ("self.dW_hh += da", "self.dW_hh = da"),
        ("self.db_ih += da", "self.db_ih = da"),
        ("self.db_hh += da", "self.db_hh = da"),
    ),
    "M44-inverse-N": ((_DELTA, "delta = dh[:, t] / len(x) + carry"),),
    "P1": ((_DELTA, "delta = dh[:, t]\n        delta += carry"),),
    "P2": (
        (_IMPORT, _IMPORT + "\nkept = {}\n"),
        ("cell = RNNCell(x.shape[2], h0.shape[1])", 'cell = kept.setdefault("cell", RNNCell(x.shape[2], h0.shape[1]))'),
        ("    cell.zero_grad()\n", ""),
    ),
    "P4": (("cell.forward(x[:, t], hiddens[t])", "cell.forward(x[:, t], h0)"),),
    "P8": ((_SETS, "cell.W_hh, cell.b_ih, cell.b_hh = W_hh, b_ih, b_hh"),),
}
MISTAKES: dict[str, Edits] = _STEP | _SEQUENCE

PAIRS: tuple[tuple[str, str], ...] = (
    *product(("M01", "M03", "M05", "M07"), ("M30", "M32", "M36-mean-batch", "M39-zero")),
    *product(("M20", "M22"), ("M01", "M05", "M30")),
    *product(("M26",), ("M01-zeros", "M05", "M30")),
    ("M20", "M35"),
    ("M26", "M35"),
    ("M05", "M45-inverse-N"),
    ("M24", "M44-inverse-N"),
    ("M30", "M36-mean-hidden"),
    ("M32", "M39-halved"),
    ("M30", "M12-zeros"),
    ("M11-k2", "M32"),
)

_OUTSIDE_STEP: dict[str, Edits] = {
    "times-state": ((_DA, "da = delta * h_t"),),
    "slope-of-state-before": ((_DA, "da = delta * (1 - h_prev_t**2)"),),
    "states-of-other-rows": (("self.dW_hh += da.T @ h_prev_t", "self.dW_hh += da.T @ h_prev_t[::-1]"),),
    "input-rounded": ((_RETURN, "return np.round(da @ self.W_ih, 3), da @ self.W_hh"),),
    "absolute": (("self.dW_ih += da.T @ h_prev_l", "self.dW_ih += np.abs(da.T @ h_prev_l)"),),
}
_OUTSIDE_SEQUENCE: dict[str, Edits] = {
    "carry-fades": ((_DELTA, "delta = dh[:, t] + 0.9 * carry"),),
    "carry-of-first-row": ((_DELTA, "delta = dh[:, t] + carry[0]"),),
    "input-of-step-before": ((_CALL, _CALL.replace("x[:, t], hiddens", "x[:, t - 1], hiddens")),),
    "forward-reads-input-before": (("cell.forward(x[:, t],", "cell.forward(x[:, t - 1],"),),
}
OUTSIDE: dict[str, Edits] = _OUTSIDE_STEP | _OUTSIDE_SEQUENCE
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "times-state": ("da", "last"),
    "slope-of-state-before": ("da", "last"),
    "states-of-other-rows": ("dW", None),
    "input-rounded": ("dx", "last"),
    "absolute": ("dU", None),
    "carry-fades": ("dh", -2),
    "carry-of-first-row": ("dh", -2),
    "input-of-step-before": ("dU", None),
    "forward-reads-input-before": ("h", 1),
}

LEVEL: dict[str, str] = {
    **dict.fromkeys(_STEP | _OUTSIDE_STEP, "step+sequence"),
    **dict.fromkeys(_SEQUENCE | _OUTSIDE_SEQUENCE, "sequence"),
}
