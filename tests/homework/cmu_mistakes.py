"""What goes wrong in cmu.py: replacements of its text that plant known mistakes, pairs of them, and unknown ones.

A number M or P is that of docs/coursework.md. A step in OUTSIDE_FIRST_WRONG is "last", counted from the end if
negative, from the start if positive.
"""

from itertools import product

Edits = tuple[tuple[str, str], ...]

_IMPORT = "import numpy as np\n"
_KEPT = (_IMPORT, _IMPORT + "\nkept = {}\n")  # a module global
_DH = "dh_t = dh[:, t] + carry"
_DA = "da_t = dh_t * (1 - hiddens[t + 1] ** 2)"
_CARRY = "carry = da_t @ W_hh\n"
_RETURN = "dW_ih / N, dW_hh / N, db_ih / N, db_hh / N"
_LOOP = "    for t in reversed(range(T)):\n        dh_t"
_BODY = """    for t in reversed(range(T)):
        dh_t = dh[:, t] + carry
        da_t = dh_t * (1 - hiddens[t + 1] ** 2)
        dW_ih += da_t.T @ x[:, t]
        dW_hh += da_t.T @ hiddens[t]  # hiddens[t] is the state before this step
        db_ih += da_t.sum(axis=0)
        db_hh += da_t.sum(axis=0)
        dx[:, t] = da_t @ W_ih
        carry = da_t @ W_hh

    dh0 = carry
"""
_CELL_DA = "da = delta * (1 - h_t**2)"
_TARGET = "do[np.arange(N), y] -= 1"
_LOSS = "    loss = -np.log(p[np.arange(N), y]).sum()\n"
_CELL_CALL = "dx[:, t], dh = cell.backward(dh, hs[t + 1], x[:, t], hs[t])"


def _window(k: int) -> Edits:
    windows = f"""    dh0 = np.zeros_like(hiddens[0])
    for s in reversed(range(T)):
        da_t = dh[:, s] * (1 - hiddens[s + 1] ** 2)
        for t in reversed(range(max(0, s - {k}), s + 1)):
            dW_ih += da_t.T @ x[:, t]
            dW_hh += da_t.T @ hiddens[t]
            db_ih += da_t.sum(axis=0)
            db_hh += da_t.sum(axis=0)
            dx[:, t] += da_t @ W_ih
            carry = da_t @ W_hh
            if t == 0:
                dh0 += carry
            da_t = carry * (1 - hiddens[t] ** 2)

"""
    return ((_BODY, windows),)


def _chunks(k: int) -> tuple[str, str]:
    reset = f"if (t + 1) % {k} == 0:\n            carry = np.zeros_like(carry)\n        "
    return _DH, reset + _DH


_STEP: dict[str, Edits] = {
    "M03-network": (("dh_prev_t = da @ self.W_hh", "dh_prev_t = delta @ self.W_hh"),),
    "M04-network": (("dh_prev_t = da @ self.W_hh", "dh_prev_t = (delta * (1 - h_prev_t**2)) @ self.W_hh"),),
    "M05-network": (("dh_prev_t = da @ self.W_hh", "dh_prev_t = da @ self.W_hh.T"),),
    "M20-network": ((_CELL_DA, "da = delta"),),
    "M22-network": ((_CELL_DA, "da = delta * (1 - np.tanh(h_t) ** 2)"),),
    "M23": ((_CELL_DA, "da = delta * (1 - h_t)"),),
    "M24": ((_CELL_DA, "da = delta * h_t * (1 - h_t)"),),
    "M26-network": ((_CELL_DA, "da = 1 - h_t**2"),),
    "M32-network": (("self.dW_hh += da.T @ h_prev_t /", "self.dW_hh += h_prev_t.T @ da /"),),
    "M36-mean-batch-network": (
        ("self.db_ih += da.sum(axis=0) /", "self.db_ih += da.mean(axis=0) /"),
        ("self.db_hh += da.sum(axis=0) /", "self.db_hh += da.mean(axis=0) /"),
    ),
    "M39-halved": (("self.db_hh += da.sum(axis=0) /", "self.db_hh += 0.5 * da.sum(axis=0) /"),),
    "M45-times-N-network": (
        ("@ h_prev_l / batch_size", "@ h_prev_l"),
        ("@ h_prev_t / batch_size", "@ h_prev_t"),
        ("self.db_ih += da.sum(axis=0) / batch_size", "self.db_ih += da.sum(axis=0)"),
        ("self.db_hh += da.sum(axis=0) / batch_size", "self.db_hh += da.sum(axis=0)"),
        ("do.T @ hs[T] / N", "do.T @ hs[T]"),
        ("do.sum(axis=0) / N", "do.sum(axis=0)"),
    ),
}
_SEQUENCE: dict[str, Edits] = {
    "M01": ((_DH, "dh_t = dh[:, t]"),),
    "M01-zeros": ((f"        {_CARRY}", ""),),
    "M02": ((_DH, "dh_t = dh[:, t] if t == T - 1 else carry"),),
    "M03": ((_CARRY, "carry = dh_t @ W_hh\n"),),
    "M04": ((_CARRY, "carry = (dh_t * (1 - hiddens[t] ** 2)) @ W_hh\n"),),
    "M05": ((_CARRY, "carry = da_t @ W_hh.T\n"),),
    "M07": ((_DH, "dh_t = 2 * dh[:, t] + carry"),),
    "M08": ((_LOOP, _LOOP.replace("reversed(range(T))", "range(T)")),),
    "M10-k1": _window(1),
    "M10-k2": _window(2),
    "M11-k2": (_chunks(2),),
    "M11-k2-h0": (_chunks(2), ("dh0 = carry", "dh0 = np.zeros_like(carry)")),
    "M11-k3": (_chunks(3),),
    "M12-zeros": (("dh0 = carry", "dh0 = np.zeros_like(carry)"),),
    "M12-da1": (("dh0 = carry", "dh0 = da_t"),),
    "M12-dh1": (("dh0 = carry", "dh0 = dh_t"),),
    "M13": (("dh0 = carry", "dh0 = carry.sum(axis=0)"),),
    "M13-rows": (("dh0 = carry", "dh0 = np.zeros_like(carry)\n    dh0 += carry.sum(axis=0)"),),
    "M14": (
        ("carry = np.zeros_like(hiddens[0])", "carry = again = np.zeros_like(hiddens[0])"),
        (
            "dW_ih += da_t.T @ x[:, t]\n        dW_hh += da_t.T @ hiddens[t]",
            "recursive = (dh_t + again) * (1 - hiddens[t + 1] ** 2)\n        again = recursive @ W_hh\n"
            "        dW_ih += recursive.T @ x[:, t]\n        dW_hh += recursive.T @ hiddens[t]",
        ),
    ),
    "M15-carry": (
        _KEPT,
        ("carry = np.zeros_like(hiddens[0])", 'carry = kept.get("carry", np.zeros_like(hiddens[0]))'),
        ("dh0 = carry", 'dh0 = kept["carry"] = carry'),
    ),
    "M15-h0": (
        _KEPT,
        ("hiddens = [h0]\n    h_t = h0", 'h_t = kept.get("h", h0)\n    hiddens = [h_t]'),
        ("return np.stack(hiddens[1:]", 'kept["h"] = h_t\n    return np.stack(hiddens[1:]'),
    ),
    "M20": ((_DA, "da_t = dh_t"),),
    "M21": (
        ("hiddens = [h0]", "hiddens, sums = [h0], []"),
        ("hiddens.append(h_t)", "hiddens.append(h_t)\n        sums.append(a_t)"),
        ("(x, hiddens, W_ih, W_hh, b_ih, b_hh)\n", "(x, hiddens, sums, W_ih, W_hh, b_ih, b_hh)\n"),
        ("x, hiddens, W_ih, W_hh, b_ih, b_hh = cache", "x, hiddens, sums, W_ih, W_hh, b_ih, b_hh = cache"),
        (_DA, "da_t = dh_t * (1 - sums[t] ** 2)"),
    ),
    "M22": ((_DA, "da_t = dh_t * (1 - np.tanh(hiddens[t + 1]) ** 2)"),),
    "M26": ((_DA, "da_t = 1 - hiddens[t + 1] ** 2"),),
    "M30": (("dW_hh += da_t.T @ hiddens[t]", "dW_hh += da_t.T @ hiddens[t + 1]"),),
    "M32": (("dW_hh += da_t.T @ hiddens[t]", "dW_hh += hiddens[t].T @ da_t"),),
    "M32-dU": ((_RETURN, _RETURN.replace("dW_ih /", "dW_ih.T /")),),
    "M33": (("dW_hh += da_t.T @ hiddens[t]", "if t > 0:\n            dW_hh += da_t.T @ hiddens[t]"),),
    "M35": (
        ("dW_ih += da_t", "dW_ih = da_t"),
        ("dW_hh += da_t", "dW_hh = da_t"),
        ("db_ih += da_t", "db_ih = da_t"),
        ("db_hh += da_t", "db_hh = da_t"),
    ),
    "M36-unsummed": (
        ("    db_ih = np.zeros_like(b_ih)\n", "    db_ih = np.zeros_like(hiddens[0])\n"),
        ("    db_hh = np.zeros_like(b_hh)\n", "    db_hh = np.zeros_like(hiddens[0])\n"),
        ("db_ih += da_t.sum(axis=0)", "db_ih += da_t"),
        ("db_hh += da_t.sum(axis=0)", "db_hh += da_t"),
    ),
    "M36-mean-batch": (
        ("db_ih += da_t.sum(axis=0)", "db_ih += da_t.mean(axis=0)"),
        ("db_hh += da_t.sum(axis=0)", "db_hh += da_t.mean(axis=0)"),
    ),
    "M36-mean-hidden": (
        ("db_ih += da_t.sum(axis=0)", "db_ih += da_t.sum(axis=0).mean()"),
        ("db_hh += da_t.sum(axis=0)", "db_hh += da_t.sum(axis=0).mean()"),
    ),
    "M39-zero": (("        db_hh += da_t.sum(axis=0)\n", ""),),
    "M39-both-halved": (
        ("db_ih += da_t.sum(axis=0)", "db_ih += da_t.sum(axis=0) / 2"),
        ("db_hh += da_t.sum(axis=0)", "db_hh += da_t.sum(axis=0) / 2"),
    ),
    "M44-inverse-N-sequence": (
        ("    dx = np.zeros_like(x)\n    dW_ih", "    dh = dh / N\n    dx = np.zeros_like(x)\n    dW_ih"),
    ),
    "M44-inverse-T-sequence": (
        ("    dx = np.zeros_like(x)\n    dW_ih", "    dh = dh / T\n    dx = np.zeros_like(x)\n    dW_ih"),
    ),
    "M45-times-N": ((_RETURN, "dW_ih, dW_hh, db_ih, db_hh"),),
    "M45-inverse-N": ((_RETURN, _RETURN.replace("/ N", "/ N**2")),),
    "M45-inverse-T": ((_RETURN, _RETURN.replace("/ N", "/ (N * T)")),),
    "M48-parameters": (
        (
            "return dx, dh0, " + _RETURN,
            f"grads = [np.clip(d, -1, 1) for d in ({_RETURN})]\n    return dx, dh0, *grads",
        ),
    ),
    "M48-all": (
        (
            "return dx, dh0, " + _RETURN,
            f"return tuple(np.clip(d, -1, 1) for d in (dx, dh0, {_RETURN}))",
        ),
    ),
    "P1": ((_DH, "dh[:, t] += carry\n        dh_t = dh[:, t]"),),
    "P2": (
        _KEPT,
        ("    dW_ih = np.zeros_like(W_ih)\n", '    dW_ih = kept.setdefault("W_ih", np.zeros_like(W_ih))\n'),
        ("    dW_hh = np.zeros_like(W_hh)\n", '    dW_hh = kept.setdefault("W_hh", np.zeros_like(W_hh))\n'),
        ("    db_ih = np.zeros_like(b_ih)\n", '    db_ih = kept.setdefault("b_ih", np.zeros_like(b_ih))\n'),
        ("    db_hh = np.zeros_like(b_hh)\n", '    db_hh = kept.setdefault("b_hh", np.zeros_like(b_hh))\n'),
    ),
    "P3": (("    h_t = h0\n", "    h_t = h0.copy()\n"), ("h_t = np.tanh(a_t)", "np.tanh(a_t, out=h_t)")),
    "P4": (("+ h_t @ W_hh.T", "+ h0 @ W_hh.T"),),
    "P5": (("dh0 = carry", "dh0 = carry\n    W_hh -= 0.01 * dW_hh"),),
    "P5-overwritten": (
        _KEPT,
        ("return np.stack(hiddens[1:]", 'kept["hiddens"] = hiddens\n    return np.stack(hiddens[1:]'),
        ("W_hh, b_ih, b_hh = cache", 'W_hh, b_ih, b_hh = cache\n    hiddens = kept["hiddens"]'),
    ),
    "P6": ((_IMPORT, _IMPORT + "\nbias = 0.1 * np.ones(1)\n"), ("@ W_hh.T + b_hh", "@ W_hh.T + bias")),
}
_NETWORK: dict[str, Edits] = {
    "M01-network": ((_CELL_CALL, _CELL_CALL.replace("dh =", "_ =") + "\n        dh = np.zeros_like(dh)"),),
    "M12-zeros-network": (('"dh0": dh,', '"dh0": np.zeros_like(h0),'),),
    "M30-network": ((_CELL_CALL, _CELL_CALL.replace("hs[t])", "hs[t + 1])")),),
    "M31": (("do.T @ hs[T] / N", "do.T @ hs[T - 1] / N"),),
    "M32-dV": (("do.T @ hs[T] / N", "hs[T].T @ do / N"),),
    "M35-network": (
        ("self.dW_ih += da", "self.dW_ih = da"),
        ("self.dW_hh += da", "self.dW_hh = da"),
        ("self.db_ih += da", "self.db_ih = da"),
        ("self.db_hh += da", "self.db_hh = da"),
    ),
    "M40": ((f"do = p.copy()\n    {_TARGET}", "do = -p\n    do[np.arange(N), y] += 1"),),
    "M41": ((f"    {_TARGET}\n", ""),),
    "M43-axis": (("o.max(axis=1", "o.max(axis=0"), ("exps.sum(axis=1", "exps.sum(axis=0")),
    "M43-exp": (("p = softmax(o)", "p = softmax(np.exp(o))"),),
    "M44-times-N": ((_TARGET, _TARGET + "\n    do *= N"),),
    "M44-inverse-N": ((_TARGET, _TARGET + "\n    do /= N"),),
    "M44-times-T": ((_TARGET, _TARGET + "\n    do *= T"),),
    "M44-inverse-T": ((_TARGET, _TARGET + "\n    do /= T"),),
    "M46": ((_LOSS, _LOSS.replace(".sum()", ".mean()")),),
    "P4-network": (("hs.append(cell.forward(x[:, t], hs[t]))", "hs.append(cell.forward(x[:, t], h0))"),),
    "P7": ((_LOSS, ""), (f"do = p.copy()\n    {_TARGET}\n", f"do = p\n    {_TARGET}\n{_LOSS}")),
    "P8": (("cell.W_ih, cell.W_hh, cell.b_ih, cell.b_hh = W_ih, W_hh,", "cell.W_ih, cell.b_ih, cell.b_hh = W_ih,"),),
}
MISTAKES: dict[str, Edits] = _STEP | _SEQUENCE | _NETWORK

PAIRS: tuple[tuple[str, str], ...] = (
    *product(("M01", "M03", "M05", "M07"), ("M30", "M32", "M33", "M36-mean-batch", "M39-zero")),
    *product(("M20", "M22"), ("M01", "M05", "M30", "M35")),
    *product(("M26",), ("M01-zeros", "M05", "M30", "M35")),
    ("M26-network", "M01-network"),
    ("M30", "M36-mean-hidden"),
    ("M30", "M12-zeros"),
    ("M32-dU", "M33"),
    ("M33", "M39-both-halved"),
    ("M05", "M45-times-N"),
    ("M22", "M44-inverse-N-sequence"),
    ("M21", "M07"),
    ("M02", "M35"),
    ("M11-k2", "M30"),
    ("M40", "M20-network"),
    ("M41", "M05-network"),
    ("M41", "M30-network"),
    ("M43-exp", "M24"),
    ("M44-inverse-N", "M23"),
    ("M44-times-T", "M35-network"),
    ("M31", "M22-network"),
    ("M31", "M01-network"),
    ("M46", "M39-halved"),
    ("M40", "M32-network"),
)

_OUTSIDE_SEQUENCE: dict[str, Edits] = {
    "carry-fades": ((_CARRY, "carry = 0.9 * da_t @ W_hh\n"),),
    "carry-of-other-rows": ((_CARRY, "carry = da_t[::-1] @ W_hh\n"),),
    "times-state": ((_DA, "da_t = dh_t * hiddens[t + 1]"),),
    "cubed": ((_DA, "da_t = dh_t * (1 - hiddens[t + 1] ** 3)"),),
    "absolute": ((_DH, "dh_t = np.abs(dh[:, t] + carry)"),),
    "input-of-step-before": (("dW_ih += da_t.T @ x[:, t]", "dW_ih += da_t.T @ x[:, t - 1]"),),
    "states-of-other-rows": (("dW_hh += da_t.T @ hiddens[t]", "dW_hh += da_t.T @ hiddens[t][::-1]"),),
    "row-left-out": (
        ("db_ih += da_t.sum(axis=0)", "db_ih += da_t[1:].sum(axis=0)"),
        ("db_hh += da_t.sum(axis=0)", "db_hh += da_t[1:].sum(axis=0)"),
    ),
    "rounded": ((_RETURN, _RETURN.replace("dW_hh / N", "np.round(dW_hh / N, 3)")),),
    "input-gradient-piles-up": (
        ("dx[:, t] = da_t @ W_ih", "dx[:, t] = da_t @ W_ih + (dx[:, t + 1] if t + 1 < T else 0)"),
    ),
    "input-gradient-overwritten": (("dx[:, t] = da_t @ W_ih", "dx[:] = (da_t @ W_ih)[:, None]"),),
    "state-kept-partly": (("h_t = np.tanh(a_t)", "h_t = 0.5 * h_t + 0.5 * np.tanh(a_t)"),),
}
_OUTSIDE_NETWORK: dict[str, Edits] = {
    "squared-output": (("o = hs[T] @ W_out.T", "o = hs[T] ** 2 @ W_out.T"),),
    "log2": ((_LOSS, _LOSS.replace("np.log", "np.log2")),),
    "probability-times-error": ((_TARGET, _TARGET + "\n    do *= p"),),
    "output-weights-of-other-rows": (("do.T @ hs[T] / N", "do.T @ hs[T][::-1] / N"),),
}
OUTSIDE: dict[str, Edits] = _OUTSIDE_SEQUENCE | _OUTSIDE_NETWORK
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "carry-fades": ("dh", -2),
    "carry-of-other-rows": ("dh", -2),
    "times-state": ("da", "last"),
    "cubed": ("da", "last"),
    "absolute": ("dh", "last"),
    "input-of-step-before": ("dU", None),
    "states-of-other-rows": ("dW", None),
    "row-left-out": ("db", None),
    "rounded": ("dW", None),
    "input-gradient-piles-up": ("dx", -2),
    "input-gradient-overwritten": ("dx", "last"),
    "state-kept-partly": ("h", 1),
    "squared-output": ("o", "last"),
    "log2": ("loss", None),
    "probability-times-error": ("do", "last"),
    "output-weights-of-other-rows": ("dV", None),
}

LEVEL: dict[str, str] = {
    **dict.fromkeys(_STEP, "step+network"),
    **dict.fromkeys(_SEQUENCE | _OUTSIDE_SEQUENCE, "sequence"),
    **dict.fromkeys(_NETWORK | _OUTSIDE_NETWORK, "network"),
}
