"""Mistakes to plant in the homework file cs231n.py, as replacements in its source text.

The keys are the numbers of the catalogue of mistakes, with a suffix where there are variants. The network functions
call the sequence functions, and these the step functions, so a mistake at one level shows at the later ones too.
"""

from itertools import product

Edits = tuple[tuple[str, str], ...]

IMPORT = "import numpy as np\n"
LOOP = "    for t in reversed(range(T)):\n"
UPSTREAM = "dnext_h = dh[:, t] + dprev_h"
SLOPE = "da = dnext_h * (1 - next_h**2)"
CARRY = "dprev_h = da @ Wh.T"
STEP_DW = "dWh = prev_h.T @ da"
STEP_DB = "db = da.sum(axis=0)"
DH0 = "    dh0 = dprev_h\n"
RETURN_FORWARD = "    return np.stack(h, axis=1), cache\n"
RETURN_BACKWARD = "    return dx, dh0, dWx, dWh, db\n"
SUM_DWX = "dWx += dWx_t  # the same weights serve every step, so their gradients add up (B5, B6, B7)\n"
SUM_DWH = "        dWh += dWh_t\n"
SUM_DB = "        db += db_t\n"
WHOLE_LOOP = (
    f"{LOOP}        {UPSTREAM}  # B3: own loss, and what step t + 1 sends back\n"
    "        dx[:, t], dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dnext_h, cache[t])\n"
    f"        {SUM_DWX}{SUM_DWH}{SUM_DB}{DH0}"
)


def _window(k: int) -> Edits:
    """Every step's loss goes back by itself, over k more steps and no further."""
    loop = f"""\
    dh0 = np.zeros((N, H), dtype=dh.dtype)
    for s in range(T):
        dprev_h = dh[:, s]
        for t in range(s, max(-1, s - {k} - 1), -1):
            dx_t, dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dprev_h, cache[t])
            dx[:, t] += dx_t
            dWx += dWx_t
            dWh += dWh_t
            db += db_t
        if t == 0:
            dh0 += dprev_h
"""
    return ((WHOLE_LOOP, loop),)


def _chunks(k: int) -> Edits:
    """The carry stops between chunks of k steps."""
    return ((UPSTREAM, f"dnext_h = dh[:, t] + dprev_h * ((t + 1) % {k} != 0)"),)


def _clip(limit: int) -> Edits:
    clip = f"    for gradient in (dWx, dWh, db):\n        np.clip(gradient, -{limit}, {limit}, out=gradient)\n"
    return ((RETURN_BACKWARD, clip + RETURN_BACKWARD),)


CALL = "    dx, dh0, dWx, dWh, db = rnn_backward(dh, cache)\n"
WRITTEN_OUT = """\
    dx, dh0 = np.zeros_like(x), np.zeros_like(h0)
    dWx, dWh, db = np.zeros_like(Wx), np.zeros_like(Wh), np.zeros_like(b)
    for t in reversed(range(T)):
        prev_h = h[:, t - 1] if t > 0 else h0
        da = (dh[:, t] + dh0) * (1 - h[:, t] ** 2)
        dx[:, t] = da @ Wx.T
        dh0 = da @ Wh.T
        dWx += x[:, t].T @ da
        dWh += prev_h.T @ da
        db += da.sum(axis=0)
"""


def _written_out(*edits: tuple[str, str]) -> Edits:
    """The network function does not call rnn_backward: it has the whole loop once more, with a mistake of its own."""
    loop = WRITTEN_OUT
    for old, new in edits:
        assert loop.count(old) == 1, old
        loop = loop.replace(old, new)
    return ((CALL, loop),)


STEP: dict[str, Edits] = {
    "M03": ((CARRY, "dprev_h = dnext_h @ Wh.T"),),
    "M04": ((CARRY, "dprev_h = (dnext_h * (1 - prev_h**2)) @ Wh.T"),),
    "M05": ((CARRY, "dprev_h = da @ Wh"),),
    "M18-without-W": ((CARRY, "dprev_h = da[:, : prev_h.shape[1]].copy()"),),
    "M18-slope-twice": ((CARRY, "dprev_h = (da * (1 - next_h**2)) @ Wh.T"),),
    "M20": ((SLOPE, "da = dnext_h"),),
    "M21": (("cache = (x, prev_h, Wx, Wh, next_h)", "cache = (x, prev_h, Wx, Wh, a)"),),
    "M22": ((SLOPE, "da = dnext_h * (1 - np.tanh(next_h) ** 2)"),),
    "M23": ((SLOPE, "da = dnext_h * (1 - next_h)"),),
    "M24": ((SLOPE, "da = dnext_h * next_h * (1 - next_h)"),),
    "M26": ((SLOPE, "da = 1 - next_h**2"),),
    "M30": ((STEP_DW, "dWh = next_h.T @ da"),),
    "M32": ((STEP_DW, "dWh = da.T @ prev_h"),),
    "M32-dU": (("dWx = x.T @ da", "dWx = da.T @ x"), ("dWx = np.zeros_like(Wx)", "dWx = np.zeros_like(Wx.T)")),
    "M36-unsummed": ((STEP_DB, "db = da"), ("db = np.zeros(H, dtype", "db = np.zeros((N, H), dtype")),
    "M36-mean-batch": ((STEP_DB, "db = da.mean(axis=0)"),),
    "M37-dx": (("dx = da @ Wx.T", "dx = dnext_h @ Wx.T"),),
    "M50-sigmoid": (
        ("next_h = np.tanh(a)", "next_h = 1 / (1 + np.exp(-a))"),
        (SLOPE, "da = dnext_h * next_h * (1 - next_h)"),
    ),
    "M50-turned": (
        ("prev_h @ Wh + b", "prev_h @ Wh.T + b"),
        (CARRY, "dprev_h = da @ Wh"),
        (STEP_DW, "dWh = da.T @ prev_h"),
    ),
    "P6": (
        (IMPORT, IMPORT + "\nbias = np.full(1, 0.3, dtype=np.float32)\n"),
        ("a = x @ Wx + prev_h @ Wh + b ", "a = x @ Wx + prev_h @ Wh + bias "),
    ),
}

STEP_ALONE: dict[str, Edits] = {
    "P1-step": ((SLOPE, "da = dnext_h\n    da *= 1 - next_h**2"),),
}

SEQUENCE: dict[str, Edits] = {
    "M01": ((UPSTREAM, "dnext_h = dh[:, t]"),),
    "M02": ((UPSTREAM, "dnext_h = dh[:, t] if t == T - 1 else dprev_h"),),
    "M07": (("rnn_step_backward(dnext_h, cache[t])", "rnn_step_backward(dh[:, t] + dnext_h, cache[t])"),),
    "M08": ((LOOP, "    for t in range(T):\n"),),
    "M10-k1": _window(1),
    "M10-k2": _window(2),
    "M11-k2": (*_chunks(2), (DH0, "    dh0 = np.zeros_like(dprev_h)\n")),
    "M11-k3": (*_chunks(3), (DH0, "    dh0 = np.zeros_like(dprev_h)\n")),
    "M11-k2-h0-kept": _chunks(2),
    "M12-zeros": ((DH0, "    dh0 = np.zeros_like(dprev_h)\n"),),
    "M12-da1": ((DH0, "    dh0 = dnext_h * (1 - cache[0][-1] ** 2)\n"),),
    "M12-dh1": ((DH0, "    dh0 = dnext_h\n"),),
    "M13": ((DH0, "    dh0 = dprev_h.sum(axis=0)\n"),),
    "M14": (
        (
            SUM_DWX + SUM_DWH,
            "dstate = dnext_h\n"
            "        for s in reversed(range(t + 1)):\n"
            "            _, dstate, dWx_s, dWh_s, _ = rnn_step_backward(dstate, cache[s])\n"
            "            dWx += dWx_s\n"
            "            dWh += dWh_s\n",
        ),
    ),
    "M15": (
        (IMPORT, IMPORT + "\ncarry = {}\n"),
        ("dprev_h = np.zeros((N, H), dtype=dh.dtype)", "dprev_h = carry.get((N, H), np.zeros((N, H), dtype=dh.dtype))"),
        (DH0, "    dh0 = carry[N, H] = dprev_h\n"),
    ),
    "M15-h0": (
        (IMPORT, IMPORT + "\nlast_h = {}\n"),
        ("    prev_h = h0\n", "    prev_h = last_h.get(h0.shape, h0)\n"),
        (RETURN_FORWARD, "    last_h[h0.shape] = prev_h\n" + RETURN_FORWARD),
    ),
    "M09-minus": ((UPSTREAM, "dnext_h = dh[:, t] - dprev_h"),),
    "M16": ((UPSTREAM, "dnext_h = dh[:, t - 1] + dprev_h"),),
    "M16-reversed": ((UPSTREAM, "dnext_h = dh[:, T - 1 - t] + dprev_h"),),
    "M17": ((RETURN_BACKWARD, RETURN_BACKWARD.replace("dx", "dx[:, ::-1]")),),
    "M33": ((SUM_DWH, "        if t > 0:\n            dWh += dWh_t\n"),),
    "M35": (("dWx += dWx_t", "dWx = dWx_t"), ("dWh += dWh_t", "dWh = dWh_t"), ("db += db_t", "db = db_t")),
    "M35-dW": (("dWh += dWh_t", "dWh = dWh_t"),),
    "M36-mean-hidden": ((SUM_DB, "        db += db_t.mean()\n"),),
    "M44-times-N": ((RETURN_BACKWARD, "    return N * dx, N * dh0, N * dWx, N * dWh, N * db\n"),),
    "M44-over-N": ((RETURN_BACKWARD, "    return dx / N, dh0 / N, dWx / N, dWh / N, db / N\n"),),
    "M44-times-T": ((RETURN_BACKWARD, "    return T * dx, T * dh0, T * dWx, T * dWh, T * db\n"),),
    "M44-over-T": ((RETURN_BACKWARD, "    return dx / T, dh0 / T, dWx / T, dWh / T, db / T\n"),),
    "M45-over-N": ((RETURN_BACKWARD, "    return dx, dh0, dWx / N, dWh / N, db / N\n"),),
    "M45-dWh": ((RETURN_BACKWARD, "    return dx, dh0, dWx, dWh / N, db\n"),),
    "M45-over-T": ((RETURN_BACKWARD, "    return dx, dh0, dWx / T, dWh / T, db / T\n"),),
    "M48-1": _clip(1),
    "M48-5": _clip(5),
    "P1": ((UPSTREAM, "dh[:, t] += dprev_h\n        dnext_h = dh[:, t]"),),
    "P2": (
        (IMPORT, IMPORT + "\ntotals = {}\n"),
        ("dWx = np.zeros_like(Wx)", 'dWx = totals.setdefault(("Wx", Wx.shape), np.zeros_like(Wx))'),
        ("dWh = np.zeros_like(Wh)", 'dWh = totals.setdefault(("Wh", Wh.shape), np.zeros_like(Wh))'),
        ("db = np.zeros(H, dtype=dh.dtype)", 'db = totals.setdefault(("b", H), np.zeros(H, dtype=dh.dtype))'),
    ),
    "P3": (
        ("    prev_h = h0\n", "    prev_h = h0.copy()\n"),
        ("        prev_h, step_cache = rnn_step_forward", "        prev_h[:], step_cache = rnn_step_forward"),
    ),
    "P4": (("rnn_step_forward(x[:, t], prev_h, Wx", "rnn_step_forward(x[:, t], h0, Wx"),),
    "P5": ((RETURN_FORWARD, "    h0[:] = prev_h  # where the next batch goes on\n" + RETURN_FORWARD),),
    "P5-cache": (
        (IMPORT, IMPORT + "\nlast_cache = []\n"),
        (RETURN_FORWARD, "    last_cache[:] = cache\n" + RETURN_FORWARD),
        ("    _, _, Wx, Wh, _ = cache[0]\n", "    cache = last_cache\n    _, _, Wx, Wh, _ = cache[0]\n"),
    ),
    "P8": (
        (
            "    h, cache = [], []\n",
            "    h, cache = [], []\n    Wh = np.random.default_rng().standard_normal(Wh.shape, dtype=Wh.dtype) / 10\n",
        ),
    ),
}

DSCORES = "dscores = probs.copy()"
ONE_HOT = "dscores[word] -= 1"
WEIGHT = "dscores *= mask[:, :, None] / N"
LOSS = "loss = -np.sum(mask * np.log(probs[word])) / N"
OUTPUT_DV = "h[:, t].T @ dscores[:, t]"
GRADS = '"dWx": dWx, "dWh": dWh, "db": db, "dW_vocab": dW_vocab, "db_vocab": db_vocab}'

NETWORK: dict[str, Edits] = {
    "M01-network": _written_out(("(dh[:, t] + dh0)", "dh[:, t]")),
    "M05-network": _written_out(("dh0 = da @ Wh.T", "dh0 = da @ Wh")),
    "M20-network": _written_out((" * (1 - h[:, t] ** 2)", "")),
    "M30-network": _written_out(("prev_h.T @ da", "h[:, t].T @ da")),
    "M35-network": _written_out(("dWx +=", "dWx ="), ("dWh +=", "dWh ="), ("db +=", "db =")),
    "M31": ((OUTPUT_DV, "(h[:, t - 1] if t > 0 else h0).T @ dscores[:, t]"),),
    "M32-dV": (
        (OUTPUT_DV, "dscores[:, t].T @ h[:, t]"),
        ("dW_vocab = np.zeros_like(W_vocab)", "dW_vocab = np.zeros_like(W_vocab.T)"),
    ),
    "M40": ((DSCORES, "dscores = -probs"), (ONE_HOT, "dscores[word] += 1")),
    "M41": ((f"    {ONE_HOT}\n", ""),),
    "M43-exp-twice": (("e = np.exp(scores - scores.max(axis=-1, keepdims=True))", "e = np.exp(np.exp(scores))"),),
    "M43-over-time": (("scores.max(axis=-1", "scores.max(axis=1"), ("e.sum(axis=-1", "e.sum(axis=1")),
    "M43-over-batch": (("scores.max(axis=-1", "scores.max(axis=0"), ("e.sum(axis=-1", "e.sum(axis=0")),
    "M44-times-N-network": ((WEIGHT, "dscores *= mask[:, :, None]"),),
    "M44-over-N-network": ((WEIGHT, "dscores *= mask[:, :, None] / N / N"),),
    "M44-times-T-network": ((WEIGHT, "dscores *= mask[:, :, None] * T / N"),),
    "M44-over-T-network": ((WEIGHT, "dscores *= mask[:, :, None] / N / T"),),
    "M44-over-T-loss": ((WEIGHT, "dscores *= mask[:, :, None] / N / T"), (LOSS, f"{LOSS} / T")),
    "M44-valid": (
        (WEIGHT, "dscores *= mask[:, :, None] / mask.sum()"),
        (LOSS, "loss = -np.sum(mask * np.log(probs[word])) / mask.sum()"),
    ),
    "M45-network": (
        (
            GRADS,
            '"dWx": dWx / N, "dWh": dWh / N, "db": db / N, "dW_vocab": dW_vocab / N, "db_vocab": db_vocab / N}',
        ),
    ),
    "M46": ((LOSS, f"{LOSS} / T"),),
    "M46-sum": ((LOSS, "loss = -np.sum(mask * np.log(probs[word]))"),),
    "M47": ((WEIGHT, "dscores /= N"),),
    "M47-loss": ((WEIGHT, "dscores /= N"), (LOSS, "loss = -np.sum(np.log(probs[word])) / N")),
    "P7": ((DSCORES, "dscores = probs"),),
}

MISTAKES: dict[str, Edits] = STEP | STEP_ALONE | SEQUENCE | NETWORK

LEVEL: dict[str, str] = (
    dict.fromkeys(STEP, "step+sequence")
    | dict.fromkeys(STEP_ALONE, "step")
    | dict.fromkeys(SEQUENCE, "sequence")
    | dict.fromkeys(NETWORK, "network")
)

PAIRS: tuple[tuple[str, str], ...] = (
    *product(("M01", "M02", "M04", "M05", "M11-k2", "M10-k1"), ("M20", "M22", "M23")),
    ("M03", "M22"),
    ("M03", "M24"),
    ("M07", "M20"),
    ("M08", "M21"),
    *product(("M01", "M05", "M03"), ("M30", "M32", "M36-mean-batch")),
    ("M01", "M12-zeros"),
    ("M05", "M33"),
    ("M07", "M35-dW"),
    *product(("M20", "M22", "M26"), ("M30", "M33", "M36-mean-batch")),
    ("M26", "M32"),
    ("M24", "M12-dh1"),
    ("M30", "M36-mean-batch"),
    ("M30", "M36-mean-hidden"),
    ("M33", "M36-mean-batch"),
    ("M35-dW", "M12-zeros"),
    ("M32", "M12-dh1"),
    ("M40", "M01"),
    ("M40", "M30"),
    ("M41", "M20"),
    ("M44-times-N-network", "M05"),
    ("M31", "M01"),
    ("M31", "M30"),
    ("M47", "M33"),
    ("M43-exp-twice", "M01"),
)

OUTSIDE: dict[str, Edits] = {
    "input one step late": (("rnn_step_forward(x[:, t], prev_h", "rnn_step_forward(x[:, t - 1], prev_h"),),
    "state halved between steps": (("rnn_step_forward(x[:, t], prev_h", "rnn_step_forward(x[:, t], 0.5 * prev_h"),),
    "carry times 0.9": ((UPSTREAM, "dnext_h = dh[:, t] + 0.9 * dprev_h"),),
    "size of the carry": ((UPSTREAM, "dnext_h = dh[:, t] + np.abs(dprev_h)"),),
    "carry of the neighbour in the batch": ((UPSTREAM, "dnext_h = dh[:, t] + np.roll(dprev_h, 1, axis=0)"),),
    "slope squared": ((SLOPE, "da = dnext_h * (1 - next_h**2) ** 2"),),
    "slope of the state before": ((SLOPE, "da = dnext_h * (1 - prev_h**2)"),),
    "input of the neighbour in the batch": (("dWx = x.T @ da", "dWx = np.roll(x, 1, axis=0).T @ da"),),
    "first sequence left out": ((STEP_DW, "dWh = prev_h[1:].T @ da[1:]"),),
    "rounded to three decimals": ((RETURN_BACKWARD, "    return dx, dh0, dWx, dWh.round(3), db\n"),),
    "size of the bias gradient": ((STEP_DB, "db = np.abs(da).sum(axis=0)"),),
    "later steps count more": ((SUM_DB, "        db += (t + 1) * db_t\n"),),
    "dx summed up over time": (("    dh0 = dprev_h\n", "    dh0 = dprev_h\n    dx = np.cumsum(dx, axis=1)\n"),),
    "softmax twice": (("probs = softmax(scores)", "probs = softmax(softmax(scores))"),),
    "target nearly one": ((ONE_HOT, "dscores[word] -= 0.9"),),
    "only half of the way through the output": (("dh = dscores @ W_vocab.T", "dh = 0.5 * dscores @ W_vocab.T"),),
}

OUTSIDE_NETWORK = ("softmax twice", "target nearly one", "only half of the way through the output")
LEVEL |= {name: "network" if name in OUTSIDE_NETWORK else "sequence" for name in OUTSIDE}

# The first wrong quantity in the order h, o, loss, do, dh, da, sums, dx, dh0, and its step: steps of h counted from 1;
# all others are looked at going back, "last" being T and -2 the step before it.
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "input one step late": ("h", 1),
    "state halved between steps": ("h", 1),
    "carry times 0.9": ("dh", -2),
    "size of the carry": ("dh", -2),
    "carry of the neighbour in the batch": ("dh", -2),
    "slope squared": ("da", "last"),
    "slope of the state before": ("da", "last"),
    "input of the neighbour in the batch": ("dU", None),
    "first sequence left out": ("dW", None),
    "rounded to three decimals": ("dW", None),
    "size of the bias gradient": ("db", None),
    "later steps count more": ("db", None),
    "dx summed up over time": ("dx", "last"),
    "softmax twice": ("loss", None),
    "target nearly one": ("do", "last"),
    "only half of the way through the output": ("dh", "last"),
}
