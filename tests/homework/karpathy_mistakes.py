"""Mistakes to plant in karpathy.py: text replacements, named as in the catalogue of students' mistakes."""

Edits = tuple[tuple[str, str], ...]

# module globals, for the mistakes that keep something from one call to the next
KEEP = ("import numpy as np\n", "import numpy as np\n\nkept = {}\n")

START = "    h, p = [hprev], []\n"
A = "        a = Wxh @ one_hot(inputs[t]) + Whh @ h[t] + bh  # F1\n"
STATE = "        h.append(np.tanh(a))  # F2\n"
SOFTMAX = "        e = np.exp(o - o.max())"
LOSS = "        loss -= np.log(p[t][targets[t], 0])  # F5\n"
CARRY_START = "    carry = np.zeros_like(hprev)  # what"
SUMS_START = (
    "    dWxh, dWhh, dWhy = np.zeros_like(Wxh), np.zeros_like(Whh), np.zeros_like(Why)\n"
    "    dbh, dby = np.zeros_like(bh), np.zeros_like(by)\n"
)
LOOP = "    for t in reversed(range(T)):\n"
DO = "        do = p[t].copy()\n        do[targets[t]] -= 1  # B1\n"
DWHY = "        dWhy += do @ h[t + 1].T  # B2\n"
DBY = "        dby += do  # B2\n"
DH = "        dh = Why.T @ do + carry  # B3\n"
SLOPE = "        da = dh * (1 - h[t + 1] ** 2)  # B4\n"
DBH = "        dbh += da  # B5\n"
DWHH = "        dWhh += da @ h[t].T  # B6\n"
DWXH = "        dWxh += da @ one_hot(inputs[t]).T  # B7\n"
CARRY = "        carry = Whh.T @ da\n"
CLIP = "        np.clip(gradient, -5, 5, out=gradient)"
RETURN = "    return loss, dWxh, dWhh, dWhy, dbh, dby, h[T]\n"


def window(k: int) -> Edits:
    """Follow every step's loss back over its own last k + 1 steps."""
    return (
        (
            DH + SLOPE + DBH + DWHH + DWXH + CARRY,
            "        dh = Why.T @ do\n"
            f"        for s in range(t, max(t - {k}, 0) - 1, -1):\n"
            "            da = dh * (1 - h[s + 1] ** 2)\n"
            "            dbh += da\n"
            "            dWhh += da @ h[s].T\n"
            "            dWxh += da @ one_hot(inputs[s]).T\n"
            "            dh = Whh.T @ da\n",
        ),
    )


def scale(text: str) -> Edits:
    """Put a factor on the loss, and so on all gradients."""
    return ((LOSS, LOSS.replace("np.log", f"{text} * np.log")), (DO, DO + f"        do *= {text}\n"))


MISTAKES: dict[str, Edits] = {
    # how dL/dh_t is put together
    "M01": ((DH, "        dh = Why.T @ do\n"),),
    "M02": ((DH, "        dh = carry if t < T - 1 else Why.T @ do\n"),),
    "M03": ((CARRY, "        carry = Whh.T @ dh\n"),),
    "M04": ((CARRY, "        carry = Whh.T @ (dh * (1 - h[t] ** 2))\n"),),
    "M05": ((CARRY, "        carry = Whh @ da\n"),),
    "M07": ((DH, "        dh = 2 * Why.T @ do + carry\n"),),
    "M08": ((LOOP, "    for t in range(T):\n"),),
    "M10-k1": window(1),
    "M10-k2": window(2),
    "M11-k2": ((CARRY, "        carry = Whh.T @ da if t % 2 else np.zeros_like(hprev)\n"),),
    "M11-k3": ((CARRY, "        carry = Whh.T @ da if t % 3 else np.zeros_like(hprev)\n"),),
    "M14": (
        (CARRY_START, "    total_next = np.zeros_like(hprev)\n" + CARRY_START),
        (
            DWHH + DWXH,
            "        total = (dh + Whh.T @ total_next) * (1 - h[t + 1] ** 2)\n"
            "        dWhh += total @ h[t].T\n"
            "        dWxh += total @ one_hot(inputs[t]).T\n"
            "        total_next = total\n",
        ),
    ),
    "M15": (
        KEEP,
        (CARRY_START, "    carry = kept.get(hprev.shape, np.zeros_like(hprev))  # what"),
        (CARRY, CARRY + "    kept[hprev.shape] = carry\n"),
    ),
    "M15-h0": (
        KEEP,
        (START, "    hprev = kept.get(hprev.shape, hprev)\n" + START),
        (RETURN, "    kept[hprev.shape] = h[T].copy()\n" + RETURN),
    ),
    # the slope of tanh
    "M20": ((SLOPE, "        da = dh\n"),),
    "M21": (
        (START, "    pre, h, p = [], [hprev], []\n"),
        (STATE, "        pre.append(a)\n" + STATE),
        (SLOPE, "        da = dh * (1 - pre[t] ** 2)\n"),
    ),
    "M22": ((SLOPE, "        da = dh * (1 - np.tanh(h[t + 1]) ** 2)\n"),),
    "M23": ((SLOPE, "        da = dh * (1 - h[t + 1])\n"),),
    "M24": ((SLOPE, "        da = dh * h[t + 1] * (1 - h[t + 1])\n"),),
    "M26": ((SLOPE, "        da = 1 - h[t + 1] ** 2\n"),),
    # the sums
    "M30": ((DWHH, "        dWhh += da @ h[t + 1].T\n"),),
    "M31": ((DWHY, "        dWhy += do @ h[t].T\n"),),
    "M32": ((DWHH, "        dWhh += h[t] @ da.T\n"),),
    "M32-dU": ((RETURN, RETURN.replace("dWxh", "dWxh.T")),),
    "M32-dV": ((RETURN, RETURN.replace("dWhy", "dWhy.T")),),
    "M33": ((DWHH, "        if t > 0:\n            dWhh += da @ h[t].T\n"),),
    "M35": (
        (DBH, "        dbh = da\n"),
        (DWHH, "        dWhh = da @ h[t].T\n"),
        (DWXH, "        dWxh = da @ one_hot(inputs[t]).T\n"),
    ),
    "M36-mean-hidden": ((DBH, "        dbh += da.mean()\n"),),
    # output layer, loss and scale
    "M40": ((DO, "        do = -p[t]\n        do[targets[t]] += 1\n"),),
    "M41": ((DO, "        do = p[t].copy()\n"),),
    "M43-axis": (
        (SOFTMAX, "        e = np.exp(o - o.max(axis=1, keepdims=True))"),
        ("p.append(e / e.sum())", "p.append(e / e.sum(axis=1, keepdims=True))"),
    ),
    "M43-exp2": ((SOFTMAX, "        o = np.exp(o)\n" + SOFTMAX),),
    "M44-times-T": scale("T"),
    "M44-over-T": scale("(1 / T)"),
    "M44-times-T-gradients": ((DO, DO + "        do *= T\n"),),
    "M44-over-T-gradients": ((DO, DO + "        do /= T\n"),),
    "M46": ((RETURN, RETURN.replace("loss", "loss / T")),),
    "M48-c1": ((CLIP, CLIP.replace("5", "1")),),
    "M48-none": ((CLIP, "        pass"),),
    # right gradients, wrong manners
    "P2": (
        KEEP,
        (
            SUMS_START,
            "    if Wxh.shape not in kept:\n"
            "        kept[Wxh.shape] = [np.zeros_like(weights) for weights in (Wxh, Whh, Why, bh, by)]\n"
            "    dWxh, dWhh, dWhy, dbh, dby = kept[Wxh.shape]\n",
        ),
    ),
    "P3": (
        (START, START + "    state = np.empty_like(hprev)\n"),
        (STATE, "        state[:] = np.tanh(a)\n        h.append(state)\n"),
    ),
    "P4": ((A, A.replace("h[t]", "hprev")),),
    "P5": ((RETURN, "    hprev[:] = h[T]\n" + RETURN),),
    "P5-weights": ((RETURN, "    Whh[:] -= 0.1 * dWhh\n" + RETURN),),
    "P6": (
        ("import numpy as np\n", "import numpy as np\n\nbias = np.full((1, 1), 0.1)\n"),
        (A, A.replace("bh", "bias")),
    ),
    # the loss is not a number: the logarithm of p - 1
    "P7": ((LOSS, ""), (DO, DO.replace(".copy()", "") + LOSS)),
    "P8": ((START, "    Whh = np.random.standard_normal((hidden_size, hidden_size)) / 4\n" + START),),
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
    ("M07", "M21"),
    ("M08", "M23"),
    ("M11-k2", "M20"),
    # recurrence and a sum
    ("M01", "M30"),
    ("M01", "M36-mean-hidden"),
    ("M02", "M31"),
    ("M03", "M33"),
    ("M04", "M32"),
    ("M05", "M30"),
    ("M05", "M31"),
    ("M07", "M35"),
    ("M11-k2", "M36-mean-hidden"),
    # slope and a sum
    ("M20", "M30"),
    ("M21", "M31"),
    ("M22", "M32"),
    ("M23", "M33"),
    ("M24", "M35"),
    ("M26", "M30"),
    ("M26", "M31"),
    ("M26", "M36-mean-hidden"),
    # two sums
    ("M30", "M31"),
    ("M30", "M36-mean-hidden"),
    ("M31", "M32"),
    ("M31", "M33"),
    ("M31", "M35"),
    ("M33", "M36-mean-hidden"),
    ("M30", "M32-dV"),
    # output layer or scale, and anything
    ("M40", "M01"),
    ("M40", "M05"),
    ("M40", "M20"),
    ("M40", "M31"),
    ("M41", "M01"),
    ("M41", "M23"),
    ("M41", "M30"),
    ("M43-axis", "M20"),
    ("M44-over-T", "M05"),
    ("M44-over-T", "M30"),
    ("M44-times-T", "M35"),
    ("M44-over-T", "M26"),
    ("M48-c1", "M20"),
)

OUTSIDE: dict[str, Edits] = {
    "input-of-step-before": ((A, A.replace("inputs[t]", "inputs[t - 1]")),),
    "log-of-two": ((LOSS, LOSS.replace("np.log(", "np.log2(")),),
    "target-weakened": ((DO, DO.replace("-= 1", "-= 0.9")),),
    "sizes-of-Why": ((DH, DH.replace("Why.T", "np.abs(Why.T)")),),
    "carry-faded": ((CARRY, "        carry = 0.9 * Whh.T @ da\n"),),
    "clip-in-the-loop": ((CARRY, "        carry = np.clip(Whh.T @ da, -0.1, 0.1)\n"),),
    "carry-with-h": ((CARRY, "        carry = Whh.T @ da * h[t]\n"),),
    "slope-times-h": ((SLOPE, "        da = dh * h[t + 1] * (1 - h[t + 1] ** 2)\n"),),
    "target-in-dWxh": ((DWXH, DWXH.replace("inputs", "targets")),),
    "dWhh-from-start": ((DWHH, "        dWhh += da @ h[0].T\n"),),
    "running-sum-in-dWhy": ((DWHY + DBY, DBY + "        dWhy += dby @ h[t + 1].T\n"),),
    "dbh-from-sizes": ((DBH, "        dbh += np.abs(da)\n"),),
    "dby-rounded": ((CLIP, CLIP + "\n    dby = np.round(dby, 3)"),),
}

LEVEL: dict[str, str] = dict.fromkeys((*MISTAKES, *OUTSIDE), "network")

# Steps: a positive number counts from the first step on (h goes forward), "last" is T and -2 is T - 1. Going back,
# dh and da of a step come before those of the step before it.
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "input-of-step-before": ("h", 1),
    "log-of-two": ("loss", None),
    "target-weakened": ("do", "last"),
    "sizes-of-Why": ("dh", "last"),
    "carry-faded": ("dh", -2),
    "clip-in-the-loop": ("dh", -2),
    "carry-with-h": ("dh", -2),
    "slope-times-h": ("da", "last"),
    "target-in-dWxh": ("dU", None),
    "dWhh-from-start": ("dW", None),
    "running-sum-in-dWhy": ("dV", None),
    "dbh-from-sizes": ("db", None),
    "dby-rounded": ("dc", None),
}
