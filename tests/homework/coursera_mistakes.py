"""Mistakes to plant in the homework file coursera.py, as replacements in its source text.

The keys are the numbers of the catalogue of mistakes, with a suffix where there are variants. The sequence functions
call the cell's functions, so a mistake in a cell shows at both levels.
"""

from itertools import product

Edits = tuple[tuple[str, str], ...]

IMPORT = "import numpy as np\n"
LOOP = "    for t in reversed(range(T)):\n"
UPSTREAM = "da_next = da[:, :, t] + da_prev"
SLOPE = "dz = da_next * (1 - a_next**2)"
CARRY = "da_prev = Waa.T @ dz"
CELL_DW = "dWaa = dz @ a_prev.T"
CELL_DB = "dba = np.sum(dz, axis=1, keepdims=True)"
ZERO_DB = "dba = np.zeros((n_a, 1), dtype=da.dtype)"
DA0 = "    da0 = da_prev\n"
RETURN_FORWARD = "    return np.stack(a, axis=2), np.stack(y_pred, axis=2), caches\n"
RETURN_BACKWARD = '    return {"dx": dx, "da0": da0, "dWax": dWax, "dWaa": dWaa, "dba": dba}\n'
SUM_DWAX = 'dWax += gradients["dWax"]  # the same weights serve every step, so their gradients add up (B5, B6, B7)\n'
SUM_DWAA = '        dWaa += gradients["dWaa"]\n'
SUM_DBA = '        dba += gradients["dba"]\n'
WHOLE_LOOP = (
    f"{LOOP}        {UPSTREAM}  # B3: own loss, and what step t + 1 sends back\n"
    "        gradients = rnn_cell_backward(da_next, caches[t])\n"
    '        da_prev = gradients["da_prev"]\n'
    '        dx[:, :, t] = gradients["dxt"]\n'
    f"        {SUM_DWAX}{SUM_DWAA}{SUM_DBA}{DA0}"
)


def _window(k: int) -> Edits:
    """Every step's loss goes back by itself, over k more steps and no further."""
    loop = f"""\
    da0 = np.zeros((n_a, m), dtype=da.dtype)
    for s in range(T):
        da_prev = da[:, :, s]
        for t in range(s, max(-1, s - {k} - 1), -1):
            gradients = rnn_cell_backward(da_prev, caches[t])
            da_prev = gradients["da_prev"]
            dx[:, :, t] += gradients["dxt"]
            dWax += gradients["dWax"]
            dWaa += gradients["dWaa"]
            dba += gradients["dba"]
        if t == 0:
            da0 += da_prev
"""
    return ((WHOLE_LOOP, loop),)


def _chunks(k: int) -> Edits:
    """The carry stops between chunks of k steps."""
    return ((UPSTREAM, f"da_next = da[:, :, t] + da_prev * ((t + 1) % {k} != 0)"),)


def _clip(limit: int) -> Edits:
    clip = f"    for gradient in (dWax, dWaa, dba):\n        np.clip(gradient, -{limit}, {limit}, out=gradient)\n"
    return ((RETURN_BACKWARD, clip + RETURN_BACKWARD),)


def _scaled(weights: str, rest: str) -> Edits:
    """The returned gradients, those of the parameters and the others, with something written after each."""
    returned = ", ".join(
        f'"{name}": {name}{weights if name in ("dWax", "dWaa", "dba") else rest}'
        for name in ("dx", "da0", "dWax", "dWaa", "dba")
    )
    return ((RETURN_BACKWARD, f"    return {{{returned}}}\n"),)


STEP: dict[str, Edits] = {
    "M03": ((CARRY, "da_prev = Waa.T @ da_next"),),
    "M04": ((CARRY, "da_prev = Waa.T @ (da_next * (1 - a_prev**2))"),),
    "M05": ((CARRY, "da_prev = Waa @ dz"),),
    "M20": ((SLOPE, "dz = da_next"),),
    "M21": (("cache = (a_next, a_prev, xt, parameters)", "cache = (zt, a_prev, xt, parameters)"),),
    "M22": ((SLOPE, "dz = da_next * (1 - np.tanh(a_next) ** 2)"),),
    "M23": ((SLOPE, "dz = da_next * (1 - a_next)"),),
    "M24": ((SLOPE, "dz = da_next * a_next * (1 - a_next)"),),
    "M26": ((SLOPE, "dz = 1 - a_next**2"),),
    "M30": ((CELL_DW, "dWaa = dz @ a_next.T"),),
    "M32": ((CELL_DW, "dWaa = a_prev @ dz.T"),),
    "M32-dU": (
        ("dWax = dz @ xt.T", "dWax = xt @ dz.T"),
        ('dWax = np.zeros_like(parameters["Wax"])', 'dWax = np.zeros_like(parameters["Wax"].T)'),
    ),
    "M36-unsummed": ((CELL_DB, "dba = dz"), (ZERO_DB, "dba = np.zeros((n_a, m), dtype=da.dtype)")),
    "M36-mean-batch": ((CELL_DB, "dba = np.mean(dz, axis=1, keepdims=True)"),),
    "M43-exp-twice": (("e = np.exp(o - o.max(axis=0, keepdims=True))", "e = np.exp(np.exp(o))"),),
    "M43-over-batch": (("o.max(axis=0", "o.max(axis=1"), ("e.sum(axis=0", "e.sum(axis=1")),
    "M37-dx": (("dxt = Wax.T @ dz", "dxt = Wax.T @ da_next"),),
    "P6": (
        (IMPORT, IMPORT + "\nba = np.full((1, 1), 0.3, dtype=np.float32)\n"),
        ('ba, by = parameters["ba"], parameters["by"]', 'by = parameters["by"]'),
    ),
    "P6-by": (("yt_pred = softmax(Wya @ a_next + by)", "yt_pred = softmax(Wya @ a_next)"),),
}

STEP_ALONE: dict[str, Edits] = {
    "P1-step": ((SLOPE, "dz = da_next\n    dz *= 1 - a_next**2"),),
}

SEQUENCE: dict[str, Edits] = {
    "M16": ((UPSTREAM, "da_next = da[:, :, t - 1] + da_prev"),),
    "M17": ((RETURN_BACKWARD, RETURN_BACKWARD.replace("dx,", "dx[:, :, ::-1],")),),
    "M01": ((UPSTREAM, "da_next = da[:, :, t]"),),
    "M02": ((UPSTREAM, "da_next = da[:, :, t] if t == T - 1 else da_prev"),),
    "M07": (("rnn_cell_backward(da_next, caches[t])", "rnn_cell_backward(da[:, :, t] + da_next, caches[t])"),),
    "M08": ((LOOP, "    for t in range(T):\n"),),
    "M10-k1": _window(1),
    "M10-k2": _window(2),
    "M11-k2": (*_chunks(2), (DA0, "    da0 = np.zeros_like(da_prev)\n")),
    "M11-k3": (*_chunks(3), (DA0, "    da0 = np.zeros_like(da_prev)\n")),
    "M11-k2-h0-kept": _chunks(2),
    "M12-zeros": ((DA0, "    da0 = np.zeros_like(da_prev)\n"),),
    "M12-da1": ((DA0, "    da0 = da_next * (1 - caches[0][0] ** 2)\n"),),
    "M12-dh1": ((DA0, "    da0 = da_next\n"),),
    "M13": ((DA0, "    da0 = np.sum(da_prev, axis=1, keepdims=True)\n"),),
    "M14": (
        (
            SUM_DWAX + SUM_DWAA,
            "da_s = da_next\n"
            "        for s in reversed(range(t + 1)):\n"
            "            gradients_s = rnn_cell_backward(da_s, caches[s])\n"
            '            da_s = gradients_s["da_prev"]\n'
            '            dWax += gradients_s["dWax"]\n'
            '            dWaa += gradients_s["dWaa"]\n',
        ),
    ),
    "M15": (
        (IMPORT, IMPORT + "\ncarry = {}\n"),
        (
            "da_prev = np.zeros((n_a, m), dtype=da.dtype)",
            "da_prev = carry.get((n_a, m), np.zeros((n_a, m), dtype=da.dtype))",
        ),
        (DA0, "    da0 = carry[n_a, m] = da_prev\n"),
    ),
    "M15-h0": (
        (IMPORT, IMPORT + "\nlast_a = {}\n"),
        ("    a_next = a0\n", "    a_next = last_a.get(a0.shape, a0)\n"),
        (RETURN_FORWARD, "    last_a[a0.shape] = a_next\n" + RETURN_FORWARD),
    ),
    "M33": ((SUM_DWAA, '        if t > 0:\n            dWaa += gradients["dWaa"]\n'),),
    "M35": (
        ('dWax += gradients["dWax"]', 'dWax = gradients["dWax"]'),
        ('dWaa += gradients["dWaa"]', 'dWaa = gradients["dWaa"]'),
        ('dba += gradients["dba"]', 'dba = gradients["dba"]'),
    ),
    "M35-dW": (('dWaa += gradients["dWaa"]', 'dWaa = gradients["dWaa"]'),),
    "M36-mean-hidden": ((SUM_DBA, '        dba += np.mean(gradients["dba"])\n'),),
    "M44-times-N": _scaled(" * m", " * m"),
    "M44-over-N": _scaled(" / m", " / m"),
    "M44-times-T": _scaled(" * T", " * T"),
    "M44-over-T": _scaled(" / T", " / T"),
    "M45-over-N": _scaled(" / m", ""),
    "M45-over-T": _scaled(" / T", ""),
    "M48-1": _clip(1),
    "M48-5": _clip(5),
    "P1": ((UPSTREAM, "da[:, :, t] += da_prev\n        da_next = da[:, :, t]"),),
    "P2": (
        (IMPORT, IMPORT + "\ntotals = {}\n"),
        (
            'dWax = np.zeros_like(parameters["Wax"])',
            'dWax = totals.setdefault(("Wax", dx.shape[0], n_a), np.zeros_like(parameters["Wax"]))',
        ),
        (
            'dWaa = np.zeros_like(parameters["Waa"])',
            'dWaa = totals.setdefault(("Waa", n_a), np.zeros_like(parameters["Waa"]))',
        ),
        (ZERO_DB, 'dba = totals.setdefault(("ba", n_a), np.zeros((n_a, 1), dtype=da.dtype))'),
    ),
    "P3": (
        ("    a_next = a0\n", "    a_next = a0.copy()\n"),
        ("        a_next, yt_pred, cache = rnn_cell_forward", "        a_next[:], yt_pred, cache = rnn_cell_forward"),
    ),
    "P4": (("rnn_cell_forward(x[:, :, t], a_next, parameters)", "rnn_cell_forward(x[:, :, t], a0, parameters)"),),
    "P5": ((RETURN_FORWARD, "    a0[:] = a_next  # where the next batch goes on\n" + RETURN_FORWARD),),
    "P5-cache": (
        (IMPORT, IMPORT + "\nlast_caches = []\n"),
        (RETURN_FORWARD, "    last_caches[:] = caches\n" + RETURN_FORWARD),
        ("    _, _, x1, parameters = caches[0]\n", "    caches = last_caches\n    _, _, x1, parameters = caches[0]\n"),
    ),
    "P8": (
        (
            "    a, y_pred, caches = [], [], []\n",
            "    a, y_pred, caches = [], [], []\n"
            '    Waa = parameters["Waa"]\n'
            "    Waa = np.random.default_rng().standard_normal(Waa.shape, dtype=Waa.dtype) / 10\n"
            '    parameters = parameters | {"Waa": Waa}\n',
        ),
    ),
}

MISTAKES: dict[str, Edits] = STEP | STEP_ALONE | SEQUENCE

LEVEL: dict[str, str] = (
    dict.fromkeys(STEP, "step+sequence") | dict.fromkeys(STEP_ALONE, "step") | dict.fromkeys(SEQUENCE, "sequence")
)

PAIRS: tuple[tuple[str, str], ...] = (
    *product(("M01", "M02", "M04", "M05", "M11-k2", "M10-k1"), ("M20", "M22", "M24")),
    ("M03", "M22"),
    ("M03", "M23"),
    ("M07", "M20"),
    ("M08", "M21"),
    *product(("M01", "M05", "M03"), ("M30", "M32", "M36-mean-batch")),
    ("M01", "M12-zeros"),
    ("M05", "M33"),
    ("M07", "M35-dW"),
    *product(("M20", "M22", "M26"), ("M30", "M33", "M36-mean-batch")),
    ("M26", "M32"),
    ("M23", "M12-dh1"),
    ("M30", "M36-mean-batch"),
    ("M30", "M36-mean-hidden"),
    ("M33", "M36-mean-batch"),
    ("M35-dW", "M12-zeros"),
    ("M32", "M12-dh1"),
    ("M44-times-N", "M01"),
    ("M44-over-T", "M30"),
    ("M45-over-N", "M05"),
    ("M45-over-N", "M20"),
)

OUTSIDE: dict[str, Edits] = {
    "input one step late": (("rnn_cell_forward(x[:, :, t], a_next", "rnn_cell_forward(x[:, :, t - 1], a_next"),),
    "state halved between steps": (("rnn_cell_forward(x[:, :, t], a_next", "rnn_cell_forward(x[:, :, t], a_next / 2"),),
    "carry times 0.9": ((UPSTREAM, "da_next = da[:, :, t] + 0.9 * da_prev"),),
    "size of the carry": ((UPSTREAM, "da_next = da[:, :, t] + np.abs(da_prev)"),),
    "carry of the neighbour in the batch": ((UPSTREAM, "da_next = da[:, :, t] + np.roll(da_prev, 1, axis=1)"),),
    "slope squared": ((SLOPE, "dz = da_next * (1 - a_next**2) ** 2"),),
    "slope of the state before": ((SLOPE, "dz = da_next * (1 - a_prev**2)"),),
    "input of the neighbour in the batch": (("dWax = dz @ xt.T", "dWax = dz @ np.roll(xt, 1, axis=1).T"),),
    "first sequence left out": ((CELL_DW, "dWaa = dz[:, 1:] @ a_prev[:, 1:].T"),),
    "rounded to three decimals": ((DA0, DA0 + "    dWaa = np.round(dWaa, 3)\n"),),
    "size of the bias gradient": ((CELL_DB, "dba = np.sum(np.abs(dz), axis=1, keepdims=True)"),),
    "later steps count more": ((SUM_DBA, '        dba += (t + 1) * gradients["dba"]\n'),),
    "dx summed up over time": ((DA0, DA0 + "    dx = np.cumsum(dx, axis=2)\n"),),
}

LEVEL |= dict.fromkeys(OUTSIDE, "sequence")

# The first wrong quantity in the order h, o, loss, do, dh, da, sums, dx, dh0, and its step: steps of h and o counted
# from 1; all others are looked at going back, "last" being T and -2 the step before it.
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
}
