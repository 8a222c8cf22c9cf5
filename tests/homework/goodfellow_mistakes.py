"""Mistakes to plant in goodfellow.py: text replacements, named as in the catalogue of students' mistakes."""

Edits = tuple[tuple[str, str], ...]

# module globals, for the mistakes that keep something from one call to the next
KEEP = ("import numpy as np\n", "import numpy as np\n\nkept = {}\n")

# the recurrence alone
SUMS_START = "    dx, dU, dW, db = np.zeros_like(x), np.zeros_like(U), np.zeros_like(W), np.zeros_like(W[0])\n"
CARRY_START = "    carry = np.zeros_like(h0)  # what"
DH = "        dh_t = dh[t] + carry  # B3\n"
SLOPE = "        da_t = dh_t * (1 - h[t] ** 2)  # B4\n"
DB = "        db += da_t.sum(axis=0)  # B5\n"
DW = "        dW += da_t.T @ h_prev  # B6\n"
DU = "        dU += da_t.T @ x[t]  # B7\n"
DX = "        dx[t] = da_t @ U  # B8\n"
CARRY = "        carry = da_t @ W\n"
RETURN = '    return {"dx": dx, "dh0": carry, "dU": dU, "dW": dW, "db": db}\n'

# the whole network
LOSS = "    loss = -np.sum(mask * np.log(np.sum(one_hot * p, axis=2)))  # F5\n"
DO = "    do = (p - one_hot) * mask[:, :, None]  # B1\n"
NETWORK_SUMS_START = "    dU, dW, dV, db, dc = [np.zeros_like(parameter) for parameter in (U, W, V, b, c)]\n"
NETWORK_DV = "        dV += do[t].T @ h[t]  # B2\n"
NETWORK_DC = "        dc += do[t].sum(axis=0)  # B2\n"
NETWORK_CARRY = "            dh[t] += da[t + 1] @ W  # B3, from the next step\n"
NETWORK_SLOPE = "        da[t] = dh[t] * (1 - h[t] ** 2)  # B4\n"
NETWORK_DB = "        db += da[t].sum(axis=0)  # B5\n"
NETWORK_DW = "        dW += da[t].T @ h_before[t]  # B6\n"
NETWORK_DU = "        dU += da[t].T @ x[t]  # B7\n"
NETWORK_DX = "        dx[t] = da[t] @ U  # B8\n"
NETWORK_DH0 = "    dh0 = da[0] @ W  # B8\n"


def window(k: int) -> Edits:
    """Follow every step's loss back over its own last k + 1 steps."""
    return (
        (
            DH + SLOPE + DB + DW + DU + DX + CARRY,
            "        dh_s = dh[t]\n"
            f"        for s in range(t, max(t - {k}, 0) - 1, -1):\n"
            "            da_s = dh_s * (1 - h[s] ** 2)\n"
            "            db += da_s.sum(axis=0)\n"
            "            dW += da_s.T @ (h[s - 1] if s > 0 else h0)\n"
            "            dU += da_s.T @ x[s]\n"
            "            dx[s] += da_s @ U\n"
            "            dh_s = da_s @ W\n"
            "            if s == 0:\n"
            "                dh0 += dh_s\n",
        ),
        (SUMS_START, SUMS_START + "    dh0 = np.zeros_like(h0)\n"),
        (RETURN, RETURN.replace("carry", "dh0")),
    )


def factor_before(text: str) -> Edits:
    """Put a factor before the upstream gradient of every step."""
    return ((DH, f"        dh_t = {text} * dh[t] + carry\n"),)


def factor_on_parameters(text: str) -> Edits:
    """Put a factor on the parameters' gradients, not on dx and dh0."""
    return (
        (RETURN, f'    return {{"dx": dx, "dh0": carry, "dU": dU * {text}, "dW": dW * {text}, "db": db * {text}}}\n'),
    )


def network_scale(text: str) -> Edits:
    """Put a factor on the loss, and so on all gradients."""
    return (
        (LOSS, LOSS.replace("-np.sum(", f"-{text} * np.sum(")),
        (DO, f"    do = {text} * (p - one_hot) * mask[:, :, None]\n"),
    )


def network_clip(limit: int) -> Edits:
    """Clip the parameters' gradients."""
    return (
        (
            NETWORK_DH0,
            NETWORK_DH0
            + f"    dU, dW, dV, db, dc = [np.clip(gradient, -{limit}, {limit}) for gradient in (dU, dW, dV, db, dc)]\n",
        ),
    )


MISTAKES: dict[str, Edits] = {
    # the states
    "M50-relu": (
        ("h_t = np.tanh(x_t @ U.T + h_prev @ W.T + b)", "h_t = np.maximum(x_t @ U.T + h_prev @ W.T + b, 0)"),
        (SLOPE, "        da_t = dh_t * (h[t] > 0)\n"),
    ),
    # how dL/dh_t is put together
    "M01": ((DH, "        dh_t = dh[t]\n"),),
    "M01-network": ((NETWORK_CARRY, "            pass\n"),),
    "M02": ((DH, "        dh_t = carry if t < len(x) - 1 else dh[t]\n"),),
    "M02-network": ((NETWORK_CARRY, "            dh[t] = da[t + 1] @ W\n"),),
    "M03": ((CARRY, "        carry = dh_t @ W\n"),),
    "M04": ((CARRY, "        carry = (dh_t * (1 - h_prev**2)) @ W\n"),),
    "M05": ((CARRY, "        carry = da_t @ W.T\n"),),
    "M05-network": (
        (NETWORK_CARRY, "            dh[t] += da[t + 1] @ W.T\n"),
        (NETWORK_DH0, "    dh0 = da[0] @ W.T\n"),
    ),
    "M07": ((DH, "        dh_t = 2 * dh[t] + carry\n"),),
    "M08": (("    for t in reversed(range(len(x))):\n", "    for t in range(len(x)):\n"),),
    "M10-k1": window(1),
    "M10-k2": window(2),
    "M11-k2": ((CARRY, "        carry = da_t @ W if t % 2 else np.zeros_like(h0)\n"),),
    "M11-k3": ((CARRY, "        carry = da_t @ W if t % 3 else np.zeros_like(h0)\n"),),
    "M11-k2-h0": ((CARRY, "        carry = da_t @ W if t % 2 or t == 0 else np.zeros_like(h0)\n"),),
    "M12-zeros": ((RETURN, RETURN.replace("carry", "np.zeros_like(h0)")),),
    "M12-da1": ((RETURN, RETURN.replace("carry", "da_t")),),
    "M12-dh1": ((RETURN, RETURN.replace("carry", "dh_t")),),
    "M13": ((RETURN, RETURN.replace("carry", "carry.sum(axis=0)")),),
    "M14": (
        (CARRY_START, "    total_next = np.zeros_like(h0)\n" + CARRY_START),
        (
            DW + DU,
            "        total = (dh_t + total_next @ W) * (1 - h[t] ** 2)\n"
            "        dW += total.T @ h_prev\n"
            "        dU += total.T @ x[t]\n"
            "        total_next = total\n",
        ),
    ),
    "M15": (
        KEEP,
        (CARRY_START, "    carry = kept.get(h0.shape, np.zeros_like(h0))  # what"),
        (CARRY, CARRY + "    kept[h0.shape] = carry\n"),
    ),
    "M15-h0": (
        KEEP,
        ("    h_prev = h0\n", "    h0 = kept.get(h0.shape, h0)\n    h_prev = h0\n"),
        ("    h = np.stack(states)\n", "    h = np.stack(states)\n    kept[h0.shape] = h[-1].copy()\n"),
    ),
    "M09-minus": ((CARRY, "        carry = -(da_t @ W)\n"),),
    "M09-twice": ((CARRY, "        carry = 2 * da_t @ W\n"),),
    "M18-piles-up": ((CARRY, "        carry = da_t @ W + carry\n"),),
    "M30-wrap": ((("        h_prev = h[t - 1] if t > 0 else h0\n"), "        h_prev = h[t - 1]\n"),),
    "M17-sums": (
        (DU, "        pass\n"),
        (DW, "        das.append(da_t)\n"),
        (CARRY_START, "    das = []\n" + CARRY_START),
        (
            RETURN,
            "    for t in range(len(x)):\n"
            "        dU += das[t].T @ x[t]\n"
            "        dW += das[t].T @ (h[t - 1] if t > 0 else h0)\n" + RETURN,
        ),
    ),
    "M16": ((DH, "        dh_t = (dh[t + 1] if t + 1 < len(x) else 0) + carry\n"),),
    "M16-network": (("        dh[t] = do[t] @ V  # B3", "        dh[t] = do[-1 - t] @ V  # B3"),),
    "M17": ((RETURN, RETURN.replace("dx,", "dx[::-1],")),),
    # the slope of tanh
    "M20": ((SLOPE, "        da_t = dh_t\n"),),
    "M20-network": ((NETWORK_SLOPE, "        da[t] = dh[t]\n"),),
    "M21": ((NETWORK_SLOPE, "        da[t] = dh[t] * (1 - a[t] ** 2)\n"),),
    "M22": ((SLOPE, "        da_t = dh_t * (1 - np.tanh(h[t]) ** 2)\n"),),
    "M23": ((SLOPE, "        da_t = dh_t * (1 - h[t])\n"),),
    "M24": ((SLOPE, "        da_t = dh_t * h[t] * (1 - h[t])\n"),),
    "M26": ((SLOPE, "        da_t = 1 - h[t] ** 2\n"),),
    "M26-network": ((NETWORK_SLOPE, "        da[t] = 1 - h[t] ** 2\n"),),
    # the sums
    "M30": ((DW, "        dW += da_t.T @ h[t]\n"),),
    "M30-network": ((NETWORK_DW, "        dW += da[t].T @ h[t]\n"),),
    "M31": ((NETWORK_DV, "        dV += do[t].T @ h_before[t]\n"),),
    "M32": ((DW, "        dW += h_prev.T @ da_t\n"),),
    "M32-network": ((NETWORK_DW, "        dW += h_before[t].T @ da[t]\n"),),
    "M32-dU": ((RETURN, RETURN.replace('"dU": dU', '"dU": dU.T')),),
    "M32-dV": (('"dV": dV,', '"dV": dV.T,'),),
    "M33": ((DW, "        if t > 0:\n            dW += da_t.T @ h_prev\n"),),
    "M35": (
        (DB, "        db = da_t.sum(axis=0)\n"),
        (DW, "        dW = da_t.T @ h_prev\n"),
        (DU, "        dU = da_t.T @ x[t]\n"),
    ),
    "M35-network": (
        (NETWORK_DB, "        db = da[t].sum(axis=0)\n"),
        (NETWORK_DW, "        dW = da[t].T @ h_before[t]\n"),
        (NETWORK_DU, "        dU = da[t].T @ x[t]\n"),
    ),
    "M36-unsummed": (
        (SUMS_START, SUMS_START.replace("np.zeros_like(W[0])", "np.zeros_like(h0)")),
        (DB, "        db += da_t\n"),
    ),
    "M36-mean-batch": ((DB, "        db += da_t.mean(axis=0)\n"),),
    "M36-mean-hidden": ((DB, "        db += da_t.sum(axis=0).mean()\n"),),
    "M36-mean-batch-network": ((NETWORK_DB, "        db += da[t].mean(axis=0)\n"),),
    # output layer, loss and scale
    "M40": ((DO, "    do = (one_hot - p) * mask[:, :, None]\n"),),
    "M41": ((DO, "    do = p * mask[:, :, None]\n"),),
    "M43-axis": (
        ("o.max(axis=1, keepdims=True)", "o.max(axis=0, keepdims=True)"),
        ("e.sum(axis=1, keepdims=True)", "e.sum(axis=0, keepdims=True)"),
    ),
    "M43-exp2": (("softmax(o[t])", "softmax(np.exp(o[t]))"),),
    "M44-times-N": factor_before("len(h0)"),
    "M44-over-N": factor_before("1 / len(h0)"),
    "M44-times-T": factor_before("len(x)"),
    "M44-over-T": factor_before("1 / len(x)"),
    "M44-over-NT": factor_before("1 / (len(h0) * len(x))"),
    "M44-times-N-network": network_scale("N"),
    "M44-over-N-network": network_scale("(1 / N)"),
    "M44-times-T-network": network_scale("T"),
    "M44-over-T-network": network_scale("(1 / T)"),
    "M44-over-NT-network": network_scale("(1 / (N * T))"),
    "M44-over-valid": network_scale("(1 / mask.sum())"),
    "M44-over-N-gradients": ((DO, DO + "    do /= N\n"),),
    "M44-times-T-gradients": ((DO, DO + "    do *= T\n"),),
    "M45-over-N": factor_on_parameters("(1 / len(h0))"),
    "M45-over-T": factor_on_parameters("(1 / len(x))"),
    "M45-over-N-network": (
        (NETWORK_DH0, NETWORK_DH0 + "    dU, dW, dV, db, dc = [gradient / N for gradient in (dU, dW, dV, db, dc)]\n"),
    ),
    "M46-over-T": (("    return loss, gradients", "    return loss / T, gradients"),),
    "M46-over-N": (("    return loss, gradients", "    return loss / N, gradients"),),
    "M47": ((DO, "    do = p - one_hot\n"),),
    "M47-loss": ((DO, "    do = p - one_hot\n"), (LOSS, LOSS.replace("mask * ", ""))),
    "M48-c5": network_clip(5),
    "M48-c1": network_clip(1),
    # right gradients, wrong manners
    "P1": ((DH, "        dh_t = dh[t]\n        dh_t += carry\n"),),
    "P2": (
        KEEP,
        (
            NETWORK_SUMS_START,
            "    sizes = (*U.shape, *V.shape)\n"
            "    if sizes not in kept:\n"
            "        kept[sizes] = [np.zeros_like(parameter) for parameter in (U, W, V, b, c)]\n"
            "    dU, dW, dV, db, dc = kept[sizes]\n",
        ),
    ),
    "P3": (
        ("    h_prev = h0\n", "    h_prev, h_t = h0, np.empty_like(h0)\n"),
        ("        h_t = np.tanh(", "        h_t[:] = np.tanh("),
    ),
    "P4": (("        h_prev = h_t\n", ""),),
    "P4-network": (("        state = h[t]\n", ""),),
    "P5-cache": (
        KEEP,
        (
            "    return h, (x, h, h0, U, W)\n",
            '    kept["cache"] = (x, h, h0, U, W)\n    return h, kept["cache"]\n',
        ),
        ("    x, h, h0, U, W = cache\n", '    x, h, h0, U, W = kept["cache"]\n'),
    ),
    "P5": ((NETWORK_DH0, NETWORK_DH0 + "    h0[:] = state\n"),),
    "P5-weights": ((NETWORK_DH0, NETWORK_DH0 + "    W -= 0.1 * dW\n"),),
    "P6": (
        ("import numpy as np\n", "import numpy as np\n\nbias = np.full(1, 0.1)\n"),
        ("h_prev @ W.T + b)", "h_prev @ W.T + bias)"),
    ),
    "P7": ((DO, "    do = p\n    do -= one_hot\n    do *= mask[:, :, None]\n"),),
    "P8": (("    T, N, _ = x.shape\n", "    W = np.random.standard_normal(W.shape) / 4\n    T, N, _ = x.shape\n"),),
}

PAIRS: tuple[tuple[str, str], ...] = (
    # two in the recurrence, or one in it and the slope
    ("M01", "M20"),
    ("M01", "M23"),
    ("M02", "M22"),
    ("M03", "M24"),
    ("M05", "M20"),
    ("M05", "M22"),
    ("M05", "M07"),
    ("M02", "M04"),
    ("M07", "M24"),
    ("M08", "M23"),
    ("M11-k2", "M20"),
    ("M01-network", "M26-network"),
    ("M01-network", "M21"),
    ("M05-network", "M20-network"),
    # recurrence and a sum
    ("M01", "M30"),
    ("M01", "M36-mean-hidden"),
    ("M05", "M30"),
    ("M05", "M33"),
    ("M03", "M12-zeros"),
    ("M04", "M32"),
    ("M07", "M35"),
    ("M11-k2", "M36-mean-batch"),
    ("M01-network", "M31"),
    ("M02-network", "M30-network"),
    # slope and a sum
    ("M20", "M30"),
    ("M22", "M32"),
    ("M23", "M33"),
    ("M24", "M35"),
    ("M26", "M30"),
    ("M26", "M36-mean-hidden"),
    ("M20", "M12-dh1"),
    ("M21", "M31"),
    ("M20-network", "M35-network"),
    # two sums
    ("M30", "M36-mean-batch"),
    ("M32", "M36-unsummed"),
    ("M33", "M12-da1"),
    ("M33", "M36-mean-hidden"),
    ("M30", "M32-dU"),
    ("M30-network", "M31"),
    ("M35-network", "M32-dV"),
    # output layer or scale, and anything
    ("M40", "M01-network"),
    ("M40", "M20-network"),
    ("M40", "M30-network"),
    ("M41", "M31"),
    ("M41", "M05-network"),
    ("M44-over-N", "M30"),
    ("M45-over-N", "M01"),
    ("M44-over-T", "M20"),
    ("M44-over-N-network", "M35-network"),
    ("M44-over-T-network", "M05-network"),
    ("M44-times-N-network", "M30-network"),
    ("M45-over-N", "M03"),
    ("M45-over-N-network", "M20-network"),
    ("M47", "M01-network"),
    ("M47", "M31"),
    ("M43-axis", "M20-network"),
)

OUTSIDE: dict[str, Edits] = {
    "bias-twice": (("h_prev @ W.T + b)", "h_prev @ W.T + 2 * b)"),),
    "carry-faded": ((CARRY, "        carry = 0.9 * da_t @ W\n"),),
    "carry-clipped": ((CARRY, "        carry = np.clip(da_t @ W, -0.1, 0.1)\n"),),
    "slope-times-h": ((SLOPE, "        da_t = dh_t * h[t] * (1 - h[t] ** 2)\n"),),
    "input-of-step-before": ((DU, "        dU += da_t.T @ x[t - 1]\n"),),
    "states-of-other-rows": ((DW, "        dW += da_t.T @ np.roll(h_prev, 1, axis=0)\n"),),
    "first-row-dropped": ((DW, "        dW += da_t[1:].T @ h_prev[1:]\n"),),
    "bias-from-sizes": ((DB, "        db += np.abs(da_t).sum(axis=0)\n"),),
    "dx-rounded": ((DX, "        dx[t] = np.round(da_t @ U, 3)\n"),),
    "dx-one-step-early": ((DX, "        dx[t - 1] = da_t @ U\n"),),
    "dh0-transposed": ((RETURN, RETURN.replace("carry", "da_t @ W.T")),),
    "loss-in-bits": ((LOSS, LOSS.replace("np.log(", "np.log2(")),),
    "target-of-next-step": ((DO, DO.replace("one_hot", "np.roll(one_hot, -1, axis=0)")),),
    "sizes-of-V": (("dh[t] = do[t] @ V  #", "dh[t] = do[t] @ np.abs(V)  #"),),
    "running-sum-in-dV": ((NETWORK_DV, "        dV += do[t:].sum(axis=0).T @ h[t]\n"),),
    "largest-row-in-dc": ((NETWORK_DC, "        dc += do[t].max(axis=0)\n"),),
}

# what is planted in one place only, and there in the network
IN_NETWORK = {
    "M21",
    "M31",
    "M32-dV",
    "M40",
    "M41",
    "M43-axis",
    "M43-exp2",
    "M44-over-valid",
    "M44-over-N-gradients",
    "M44-times-T-gradients",
    "M46-over-T",
    "M46-over-N",
    "M47",
    "M47-loss",
    "M48-c5",
    "M48-c1",
    "P2",
    "P5-weights",
    "P7",
    "P8",
    "loss-in-bits",
    "target-of-next-step",
    "sizes-of-V",
    "running-sum-in-dV",
    "largest-row-in-dc",
    "P5",
}
LEVEL: dict[str, str] = {
    key: "network" if key in IN_NETWORK or key.endswith("-network") else "sequence" for key in (*MISTAKES, *OUTSIDE)
}

# Steps: a positive number counts from the first step on (h goes forward), "last" is T and -2 is T - 1. Going back,
# dh and da of a step come before those of the step before it.
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "bias-twice": ("h", 1),
    "carry-faded": ("dh", -2),
    "carry-clipped": ("dh", -2),
    "slope-times-h": ("da", "last"),
    "input-of-step-before": ("dU", None),
    "states-of-other-rows": ("dW", None),
    "first-row-dropped": ("dW", None),
    "bias-from-sizes": ("db", None),
    "dx-rounded": ("dx", "last"),
    "dx-one-step-early": ("dx", "last"),
    "dh0-transposed": ("dh0", None),
    "loss-in-bits": ("loss", None),
    "target-of-next-step": ("do", "last"),
    "sizes-of-V": ("dh", "last"),
    "running-sum-in-dV": ("dV", None),
    "largest-row-in-dc": ("dc", None),
}
