"""Mistakes to plant in kth.py: text replacements, named as in the catalogue of students' mistakes."""

Edits = tuple[tuple[str, str], ...]

# module globals, for the mistakes that keep something from one call to the next
KEEP = ("import numpy as np\n", "import numpy as np\n\nkept = {}\n")

STATES_START = "    states = [h0]\n"
A = "        a_t = U @ X[:, [t]] + W @ states[-1] + b  # F1\n"
STATE = "        states.append(np.tanh(a_t))  # F2\n"
SCORES = "    P = softmax(V @ H[:, 1:] + c)  # F3, F4\n"
FORWARD = "    H, P = forward_pass(X, h0, RNN)\n"
LOSS = "    loss = -np.mean(np.log(np.sum(Y * P, axis=0)))  # F5\n"
E = "    E = (P - Y) / T  # B1, all steps at once\n"
SUMS_START = "    dU, dW, dV, db, dc = [np.zeros_like(parameter) for parameter in (U, W, V, b, c)]\n"
CARRY_START = "    carry = np.zeros_like(h0)  # what"
LOOP = "    for t in reversed(range(T)):\n"
DV = "        dV += e_t @ h_t.T  # B2\n"
DC = "        dc += e_t  # B2\n"
DH = "        dh_t = V.T @ e_t + carry  # B3\n"
SLOPE = "        da_t = dh_t * (1 - h_t**2)  # B4\n"
DB = "        db += da_t  # B5\n"
DW = "        dW += da_t @ h_before.T  # B6\n"
DU = "        dU += da_t @ x_t.T  # B7\n"
CARRY = "        carry = W.T @ da_t\n"
RETURN = '    return loss, {"U": dU, "W": dW, "V": dV, "b": db, "c": dc}\n'


def window(k: int) -> Edits:
    """Follow every step's loss back over its own last k + 1 steps."""
    return (
        (
            DH + SLOPE + DB + DW + DU + CARRY,
            "        dh_s = V.T @ e_t\n"
            f"        for s in range(t, max(t - {k}, 0) - 1, -1):\n"
            "            da_s = dh_s * (1 - H[:, [s + 1]] ** 2)\n"
            "            db += da_s\n"
            "            dW += da_s @ H[:, [s]].T\n"
            "            dU += da_s @ X[:, [s]].T\n"
            "            dh_s = W.T @ da_s\n",
        ),
    )


def clipped(limit: int) -> Edits:
    """Clip the gradients."""
    return (
        (
            RETURN,
            f"    dU, dW, dV, db, dc = [np.clip(gradient, -{limit}, {limit}) for gradient in (dU, dW, dV, db, dc)]\n"
            + RETURN,
        ),
    )


MISTAKES: dict[str, Edits] = {
    # how dL/dh_t is put together
    "M01": ((DH, "        dh_t = V.T @ e_t\n"),),
    "M02": ((DH, "        dh_t = carry if t < T - 1 else V.T @ e_t\n"),),
    "M03": ((CARRY, "        carry = W.T @ dh_t\n"),),
    "M04": ((CARRY, "        carry = W.T @ (dh_t * (1 - h_before**2))\n"),),
    "M05": ((CARRY, "        carry = W @ da_t\n"),),
    "M07": ((DH, "        dh_t = 2 * V.T @ e_t + carry\n"),),
    "M08": ((LOOP, "    for t in range(T):\n"),),
    "M10-k1": window(1),
    "M10-k2": window(2),
    "M11-k2": ((CARRY, "        carry = W.T @ da_t if t % 2 else np.zeros_like(h0)\n"),),
    "M11-k3": ((CARRY, "        carry = W.T @ da_t if t % 3 else np.zeros_like(h0)\n"),),
    "M14": (
        (CARRY_START, "    total_next = np.zeros_like(h0)\n" + CARRY_START),
        (
            DW + DU,
            "        total = (dh_t + W.T @ total_next) * (1 - h_t**2)\n"
            "        dW += total @ h_before.T\n"
            "        dU += total @ x_t.T\n"
            "        total_next = total\n",
        ),
    ),
    "M15": (
        KEEP,
        (CARRY_START, "    carry = kept.get(h0.shape, np.zeros_like(h0))  # what"),
        (CARRY, CARRY + "    kept[h0.shape] = carry\n"),
    ),
    "M15-h0": (KEEP, (FORWARD, "    h0 = kept.get(h0.shape, h0)\n" + FORWARD + "    kept[h0.shape] = H[:, [-1]]\n")),
    # the slope of tanh
    "M20": ((SLOPE, "        da_t = dh_t\n"),),
    "M21": ((SLOPE, "        a_t = U @ x_t + W @ h_before + b\n        da_t = dh_t * (1 - a_t**2)\n"),),
    "M22": ((SLOPE, "        da_t = dh_t * (1 - np.tanh(h_t) ** 2)\n"),),
    "M23": ((SLOPE, "        da_t = dh_t * (1 - h_t)\n"),),
    "M24": ((SLOPE, "        da_t = dh_t * h_t * (1 - h_t)\n"),),
    "M26": ((SLOPE, "        da_t = 1 - h_t**2\n"),),
    # the sums
    "M30": ((DW, "        dW += da_t @ h_t.T\n"),),
    "M31": ((DV, "        dV += e_t @ h_before.T\n"),),
    "M32": ((DW, "        dW += h_before @ da_t.T\n"),),
    "M32-dU": ((RETURN, RETURN.replace("dU", "dU.T")),),
    "M32-dV": ((RETURN, RETURN.replace("dV", "dV.T")),),
    "M33": ((DW, "        if t > 0:\n            dW += da_t @ h_before.T\n"),),
    "M34-dV": ((DV, "        if t < T - 1:\n            dV += e_t @ h_t.T\n"),),
    "M35": (
        (DB, "        db = da_t\n"),
        (DW, "        dW = da_t @ h_before.T\n"),
        (DU, "        dU = da_t @ x_t.T\n"),
    ),
    "M36-mean-hidden": ((DB, "        db += da_t.mean()\n"),),
    # output layer, loss and scale
    "M40": ((E, "    E = (Y - P) / T\n"),),
    "M41": ((E, "    E = P / T\n"),),
    "M43-axis": (
        ("scores.max(axis=0, keepdims=True)", "scores.max(axis=1, keepdims=True)"),
        ("e.sum(axis=0, keepdims=True)", "e.sum(axis=1, keepdims=True)"),
    ),
    "M43-exp2": ((SCORES, "    P = softmax(np.exp(V @ H[:, 1:] + c))\n"),),
    "M44-times-T": ((LOSS, LOSS.replace("np.mean", "np.sum")), (E, "    E = P - Y\n")),
    "M44-over-T": ((E, "    E = (P - Y) / T**2\n"),),
    "M46": ((E, "    E = P - Y\n"),),
    "M48-c5": clipped(5),
    "M48-c1": clipped(1),
    # right gradients, wrong manners
    "P1": ((E, "    E = Y\n    E -= P\n    E *= -1 / T\n"),),
    "P2": (
        KEEP,
        (
            SUMS_START,
            "    sizes = (*U.shape, *V.shape)\n"
            "    if sizes not in kept:\n"
            "        kept[sizes] = [np.zeros_like(parameter) for parameter in (U, W, V, b, c)]\n"
            "    dU, dW, dV, db, dc = kept[sizes]\n",
        ),
    ),
    "P3": (
        (STATES_START, STATES_START + "    h_t = np.empty_like(h0)\n"),
        (STATE, "        h_t[:] = np.tanh(a_t)\n        states.append(h_t)\n"),
    ),
    "P4": ((A, A.replace("states[-1]", "h0")),),
    "P5": ((RETURN, "    h0[:] = H[:, [-1]]\n" + RETURN),),
    "P5-weights": ((RETURN, "    W -= 0.1 * dW\n" + RETURN),),
    "P6": (
        ("import numpy as np\n", "import numpy as np\n\nbias = np.full((1, 1), 0.1)\n"),
        (A, A.replace("+ b ", "+ bias ")),
    ),
    "P6-c": ((SCORES, "    P = softmax(V @ H[:, 1:])\n"),),
    "P7": (
        (
            LOSS + E,
            "    E = P\n"
            "    E -= Y\n"
            "    E /= T\n"
            "    loss = -np.mean(np.log(np.maximum(np.sum(Y * P, axis=0), 1e-12)))  # never the logarithm of 0\n",
        ),
    ),
    "P8": ((STATES_START, "    W = np.random.standard_normal(W.shape) / 4\n" + STATES_START),),
}

PAIRS: tuple[tuple[str, str], ...] = (
    # two in the recurrence, or one in it and the slope
    ("M01", "M20"),
    ("M01", "M24"),
    ("M02", "M23"),
    ("M03", "M22"),
    ("M05", "M20"),
    ("M05", "M21"),
    ("M05", "M07"),
    ("M07", "M22"),
    ("M08", "M20"),
    ("M11-k3", "M23"),
    # recurrence and a sum
    ("M01", "M31"),
    ("M01", "M33"),
    ("M02", "M30"),
    ("M03", "M36-mean-hidden"),
    ("M04", "M30"),
    ("M05", "M32"),
    ("M05", "M35"),
    ("M07", "M31"),
    ("M11-k2", "M32"),
    # slope and a sum
    ("M20", "M31"),
    ("M20", "M36-mean-hidden"),
    ("M21", "M30"),
    ("M22", "M35"),
    ("M23", "M32"),
    ("M24", "M33"),
    ("M26", "M31"),
    ("M26", "M32"),
    ("M26", "M35"),
    # two sums
    ("M30", "M31"),
    ("M30", "M36-mean-hidden"),
    ("M31", "M32"),
    ("M31", "M33"),
    ("M31", "M35"),
    ("M32", "M36-mean-hidden"),
    ("M33", "M32-dV"),
    # output layer or scale, and anything
    ("M40", "M03"),
    ("M40", "M20"),
    ("M40", "M30"),
    ("M40", "M35"),
    ("M41", "M05"),
    ("M41", "M20"),
    ("M41", "M31"),
    ("M43-axis", "M01"),
    ("M44-over-T", "M20"),
    ("M44-over-T", "M32"),
    ("M44-times-T", "M01"),
    ("M46", "M01"),
    ("M46", "M30"),
    ("M48-c5", "M20"),
)

OUTSIDE: dict[str, Edits] = {
    "input-twice": ((A, A.replace("U @", "2 * U @")),),
    "loss-in-bits": ((LOSS, LOSS.replace("np.log(", "np.log2(")),),
    "target-weakened": ((E, E.replace("Y)", "0.9 * Y)")),),
    "rows-without-mean": ((E, E + "    E = E - E.mean(axis=1, keepdims=True)\n"),),
    "sizes-of-V": ((DH, DH.replace("V.T", "np.abs(V.T)")),),
    "carry-faded": ((CARRY, "        carry = 0.9 * W.T @ da_t\n"),),
    "carry-piles-up": ((CARRY, "        carry = carry + W.T @ da_t\n"),),
    "slope-times-h": ((SLOPE, "        da_t = dh_t * h_t * (1 - h_t**2)\n"),),
    "slope-of-h-before": ((SLOPE, "        da_t = dh_t * (1 - h_before**2)\n"),),
    "input-of-next-step": ((DU, "        dU += da_t @ X[:, [(t + 1) % T]].T\n"),),
    "dW-rounded": ((RETURN, RETURN.replace('"W": dW', '"W": np.round(dW, 3)')),),
    "db-from-sizes": ((DB, "        db += np.abs(da_t)\n"),),
    "dc-centred": ((RETURN, RETURN.replace('"c": dc', '"c": dc - dc.max()')),),
}

LEVEL: dict[str, str] = dict.fromkeys((*MISTAKES, *OUTSIDE), "network")

# Steps: a positive number counts from the first step on (h and o go forward), "last" is T and -2 is T - 1. Going
# back, dh and da of a step come before those of the step before it.
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "input-twice": ("h", 1),
    "loss-in-bits": ("loss", None),
    "target-weakened": ("do", "last"),
    "rows-without-mean": ("do", "last"),
    "sizes-of-V": ("dh", "last"),
    "carry-faded": ("dh", -2),
    "carry-piles-up": ("dh", -3),
    "slope-times-h": ("da", "last"),
    "slope-of-h-before": ("da", "last"),
    "input-of-next-step": ("dU", None),
    "dW-rounded": ("dW", None),
    "db-from-sizes": ("db", None),
    "dc-centred": ("dc", None),
}
