"""What goes wrong in torch_manual.py: replacements of its text that plant known mistakes, pairs of them, unknown ones.

A number M or P is that of docs/coursework.md. A step in OUTSIDE_FIRST_WRONG is "last", counted from the end if
negative, from the start if positive.
"""

from itertools import product

Edits = tuple[tuple[str, str], ...]

_IMPORT = "import torch\n"
_KEPT = (_IMPORT, _IMPORT + "\nkept = {}\n")  # a module global
# rnn_backward
_GRAD_H = "grad_h = grad_output[t] + later"
_GRAD_A = "grad_a = grad_h * (1 - states[t + 1] ** 2)"
_LATER = "later = grad_a @ weight_hh\n"
_DW = "dweight_hh += grad_a.T @ states[t]"
_START = "torch.zeros(N, len(weight_hh), dtype=x.dtype)"
_RETURN = "return dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh\n"
_BODY = """    for t in reversed(range(T)):
        grad_h = grad_output[t] + later
        grad_a = grad_h * (1 - states[t + 1] ** 2)
        dweight_ih += grad_a.T @ x[t]
        dweight_hh += grad_a.T @ states[t]  # states[t] is the state before this step
        dbias_ih += grad_a.sum(dim=0)
        dbias_hh += grad_a.sum(dim=0)
        dx[t] = grad_a @ weight_ih
        later = grad_a @ weight_hh

    dh0 = later
"""
# rnn_loss
_DA = "da = dh * (1 - hs[t + 1] ** 2)"
_CARRY = "carry = da @ weight_hh\n"
_TARGET = "do[rows, y[t]] -= 1"
_MEAN = "do /= T * N"
_LOSS = "        loss = loss - p[rows, y[t]].log().sum() / (T * N)\n"


def _window(k: int) -> Edits:
    windows = f"""    dh0 = torch.zeros_like(states[0])
    for s in range(T):
        grad_a = grad_output[s] * (1 - states[s + 1] ** 2)
        for t in range(s, max(0, s - {k}) - 1, -1):
            dweight_ih += grad_a.T @ x[t]
            dweight_hh += grad_a.T @ states[t]
            dbias_ih += grad_a.sum(dim=0)
            dbias_hh += grad_a.sum(dim=0)
            dx[t] += grad_a @ weight_ih
            later = grad_a @ weight_hh
            if t == 0:
                dh0 += later
            grad_a = later * (1 - states[t] ** 2)

"""
    return ((_BODY, windows),)


def _chunks(k: int) -> tuple[str, str]:
    return _GRAD_H, f"if (t + 1) % {k} == 0:\n            later = torch.zeros_like(later)\n        {_GRAD_H}"


def _parameters_times(factor: str) -> Edits:
    names = ("dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh")
    return ((_RETURN, f"return dx, dh0, {', '.join(name + factor for name in names)}\n"),)


_SEQUENCE: dict[str, Edits] = {
    # recurrence
    "M01": ((_GRAD_H, "grad_h = grad_output[t]"),),
    "M01-zeros": ((f"        {_LATER}", ""),),
    "M02": ((_GRAD_H, "grad_h = later if t < T - 1 else grad_output[t]"),),
    "M03": ((_LATER, "later = grad_h @ weight_hh\n"),),
    "M04": ((_LATER, "later = (grad_h * (1 - states[t] ** 2)) @ weight_hh\n"),),
    "M05": ((_LATER, "later = grad_a @ weight_hh.T\n"),),
    "M07": ((_GRAD_H, "grad_h = grad_output[t] + grad_output[t] + later"),),
    "M08": (("    for t in reversed(range(T)):\n        grad_h", "    for t in range(T):\n        grad_h"),),
    "M10-k0": _window(0),
    "M10-k1": _window(1),
    "M10-k2": _window(2),
    "M11-k2": (_chunks(2),),
    "M11-k3": (_chunks(3),),
    "M11-k3-h0": (_chunks(3), ("dh0 = later", "dh0 = torch.zeros_like(later)")),
    "M12-zeros": (("dh0 = later", "dh0 = torch.zeros_like(later)"),),
    "M12-da1": (("dh0 = later", "dh0 = grad_a"),),
    "M12-dh1": (("dh0 = later", "dh0 = grad_h"),),
    "M13": (("dh0 = later", "dh0 = later.sum(dim=0)"),),
    "M13-rows": (("dh0 = later", "dh0 = torch.zeros_like(later) + later.sum(dim=0)"),),
    "M14": (
        (f"later = {_START}", f"later = longer = {_START}"),
        (
            f"dweight_ih += grad_a.T @ x[t]\n        {_DW}",
            "whole = (grad_h + longer) * (1 - states[t + 1] ** 2)\n        longer = whole @ weight_hh\n"
            "        dweight_ih += whole.T @ x[t]\n        dweight_hh += whole.T @ states[t]",
        ),
    ),
    "M15-carry": (
        _KEPT,
        (f"later = {_START}", f'later = kept.get("later", {_START})'),
        ("dh0 = later", 'dh0 = kept["later"] = later'),
    ),
    "M15-h0": (
        _KEPT,
        ("    states = [h0]\n    h = h0\n", '    h = kept.get("h", h0)\n    states = [h]\n'),
        ("return torch.stack(states[1:])", 'kept["h"] = h\n    return torch.stack(states[1:])'),
    ),
    # derivative of the activation
    "M20": ((_GRAD_A, "grad_a = grad_h"),),
    "M21": (
        ("    states = [h0]\n", "    states, sums = [h0], []\n"),
        ("states.append(h)", "states.append(h)\n        sums.append(a)"),
        (", (x, states, weight_ih", ", (x, states, sums, weight_ih"),
        ("    x, states, weight_ih", "    x, states, sums, weight_ih"),
        (_GRAD_A, "grad_a = grad_h * (1 - sums[t] ** 2)"),
    ),
    "M22": ((_GRAD_A, "grad_a = grad_h * (1 - torch.tanh(states[t + 1]) ** 2)"),),
    "M23": ((_GRAD_A, "grad_a = grad_h * (1 - states[t + 1])"),),
    "M24": ((_GRAD_A, "grad_a = grad_h * states[t + 1] * (1 - states[t + 1])"),),
    "M26": ((_GRAD_A, "grad_a = 1 - states[t + 1] ** 2"),),
    # sums
    "M30": ((_DW, "dweight_hh += grad_a.T @ states[t + 1]"),),
    "M32": ((_DW, "dweight_hh += states[t].T @ grad_a"),),
    "M32-dU": (
        (
            "dweight_ih = torch.zeros_like(weight_ih)\n    dweight_hh",
            "dweight_ih = torch.zeros_like(weight_ih.T)\n    dweight_hh",
        ),
        ("dweight_ih += grad_a.T @ x[t]", "dweight_ih += x[t].T @ grad_a"),
    ),
    "M33": ((_DW, "if t > 0:\n            dweight_hh += grad_a.T @ states[t]"),),
    "M35": (
        ("dweight_ih += grad_a", "dweight_ih = grad_a"),
        ("dweight_hh += grad_a", "dweight_hh = grad_a"),
        ("dbias_ih += grad_a", "dbias_ih = grad_a"),
        ("dbias_hh += grad_a", "dbias_hh = grad_a"),
    ),
    "M36-unsummed": (
        ("dbias_ih = torch.zeros_like(bias_ih)\n    dbias_hh = torch.zeros_like(bias_hh)", "dbias_ih = dbias_hh = 0"),
        ("dbias_ih += grad_a.sum(dim=0)", "dbias_ih = dbias_ih + grad_a"),
        ("dbias_hh += grad_a.sum(dim=0)", "dbias_hh = dbias_hh + grad_a"),
    ),
    "M36-mean-batch": (
        ("dbias_ih += grad_a.sum(dim=0)", "dbias_ih += grad_a.mean(dim=0)"),
        ("dbias_hh += grad_a.sum(dim=0)", "dbias_hh += grad_a.mean(dim=0)"),
    ),
    "M36-mean-hidden": (
        ("dbias_ih += grad_a.sum(dim=0)", "dbias_ih += grad_a.sum(dim=0).mean()"),
        ("dbias_hh += grad_a.sum(dim=0)", "dbias_hh += grad_a.sum(dim=0).mean()"),
    ),
    "M39-zero": (("        dbias_hh += grad_a.sum(dim=0)\n", ""),),
    "M39-halved": (("dbias_ih += grad_a.sum(dim=0)", "dbias_ih += grad_a.sum(dim=0) / 2"),),
    "M39-both-halved": (
        ("dbias_ih += grad_a.sum(dim=0)", "dbias_ih += 0.5 * grad_a.sum(dim=0)"),
        ("dbias_hh += grad_a.sum(dim=0)", "dbias_hh += 0.5 * grad_a.sum(dim=0)"),
    ),
    # scale
    "M44-inverse-N-sequence": ((_GRAD_H, "grad_h = grad_output[t] / N + later"),),
    "M44-inverse-T-sequence": ((_GRAD_H, "grad_h = grad_output[t] / T + later"),),
    "M44-inverse-NT-sequence": ((_GRAD_H, "grad_h = grad_output[t] / (T * N) + later"),),
    "M45-inverse-N": _parameters_times(" / N"),
    "M45-inverse-T": _parameters_times(" / T"),
    "M45-inverse-NT": _parameters_times(" / (T * N)"),
    "M48-parameters": (
        (_RETURN, "return dx, dh0, *(d.clamp(-1, 1) for d in (dweight_ih, dweight_hh, dbias_ih, dbias_hh))\n"),
    ),
    "M48-all": (
        (_RETURN, "return tuple(d.clamp(-1, 1) for d in (dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh))\n"),
    ),
    # protocol
    "P1": ((_GRAD_H, "grad_h = grad_output[t].add_(later)"),),
    "P2": (
        _KEPT,
        *(
            (
                f"    d{name} = torch.zeros_like({name})\n",
                f'    d{name} = kept.setdefault("{name}", torch.zeros_like({name}))\n',
            )
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ),
    ),
    "P3": (("    h = h0\n", "    h = h0.clone()\n"), ("h = torch.tanh(a)", "torch.tanh(a, out=h)")),
    "P4": (("+ h @ weight_hh.T", "+ h0 @ weight_hh.T"),),
    "P5": (("dh0 = later", "dh0 = later\n    weight_hh -= 0.01 * dweight_hh"),),
    "P5-overwritten": (
        _KEPT,
        ("return torch.stack(states[1:])", 'kept["states"] = states\n    return torch.stack(states[1:])'),
        ("bias_ih, bias_hh = cache", 'bias_ih, bias_hh = cache\n    states = kept["states"]'),
    ),
    "P6": (
        (_IMPORT, _IMPORT + "\nbias = torch.full((1,), 0.1)\n"),
        ("@ weight_ih.T + bias_ih + h @", "@ weight_ih.T + bias + h @"),
    ),
    "P8": (
        (
            "    for x_t in x:\n",
            "    weight_hh = torch.randn_like(weight_hh) / len(weight_hh) ** 0.5\n    for x_t in x:\n",
        ),
    ),
}

_NETWORK: dict[str, Edits] = {
    "M01-network": (("dh = do @ weight_ho + carry", "dh = do @ weight_ho"),),
    "M02-network": (("dh = do @ weight_ho + carry", "dh = do @ weight_ho if t == T - 1 else carry"),),
    "M03-network": ((_CARRY, "carry = dh @ weight_hh\n"),),
    "M05-network": ((_CARRY, "carry = da @ weight_hh.T\n"),),
    "M07-network": (("dh = do @ weight_ho + carry", "dh = 2 * do @ weight_ho + carry"),),
    "M12-zeros-network": (('    grads["dh0"] = carry\n', ""),),
    "M20-network": ((_DA, "da = dh"),),
    "M22-network": ((_DA, "da = dh * (1 - torch.tanh(hs[t + 1]) ** 2)"),),
    "M24-network": ((_DA, "da = dh * hs[t + 1] * (1 - hs[t + 1])"),),
    "M26-network": ((_DA, "da = 1 - hs[t + 1] ** 2"),),
    "M30-network": (('grads["dweight_hh"] += da.T @ hs[t]', 'grads["dweight_hh"] += da.T @ hs[t + 1]'),),
    "M31": (("do.T @ hs[t + 1]", "do.T @ hs[t]"),),
    "M32-dV": (
        ('"dweight_ho": torch.zeros_like(weight_ho)', '"dweight_ho": torch.zeros_like(weight_ho.T)'),
        ("do.T @ hs[t + 1]", "hs[t + 1].T @ do"),
    ),
    "M33-network": (
        ('grads["dweight_hh"] += da.T @ hs[t]', 'if t > 0:\n            grads["dweight_hh"] += da.T @ hs[t]'),
    ),
    "M35-network": tuple(
        (f'grads["d{name}"] += da', f'grads["d{name}"] = da')
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ),
    "M39-zero-network": (('        grads["dbias_ih"] += da.sum(dim=0)\n', ""),),
    "M40": ((f"do = ps[t].clone()\n        {_TARGET}", "do = -ps[t]\n        do[rows, y[t]] += 1"),),
    "M41": ((f"        {_TARGET}\n", ""),),
    "M43-axis": (("torch.softmax(o, dim=1)", "torch.softmax(o, dim=0)"),),
    "M43-exp": (("torch.softmax(o, dim=1)", "torch.softmax(o.exp(), dim=1)"),),
    "M44-times-N": ((_MEAN, "do /= T"),),
    "M44-times-T": ((_MEAN, "do /= N"),),
    "M44-times-NT": ((f"        {_MEAN}\n", ""),),
    "M44-inverse-N": ((_MEAN, "do /= T * N * N"),),
    "M44-inverse-T": ((_MEAN, "do /= T * N * T"),),
    "M45-inverse-N-network": (
        (
            "    return loss, grads",
            '    return loss, {k: g if k in ("dx", "dh0") else g / N for k, g in grads.items()}',
        ),
    ),
    "M45-inverse-T-network": (
        (
            "    return loss, grads",
            '    return loss, {k: g if k in ("dx", "dh0") else g / T for k, g in grads.items()}',
        ),
    ),
    "M46": ((_LOSS, _LOSS.replace(" / (T * N)", "")),),
    "M46-times-T": ((_LOSS, _LOSS.replace("(T * N)", "N")),),
    "P4-network": (("bias_ih + hs[t] @", "bias_ih + hs[0] @"),),
    "P7": (
        (_LOSS, ""),
        (f"do = ps[t].clone()\n        {_TARGET}\n", f"do = ps[t]\n        {_TARGET}\n"),
        (f"        {_MEAN}\n", f"{_LOSS.replace('p[', 'ps[t][')}        {_MEAN}\n"),
    ),
}

MISTAKES: dict[str, Edits] = _SEQUENCE | _NETWORK

PAIRS: tuple[tuple[str, str], ...] = (
    *product(("M01", "M03", "M05", "M07"), ("M30", "M32", "M33", "M36-mean-batch", "M39-zero")),
    *product(("M20", "M22"), ("M01", "M05", "M30", "M35")),
    *product(("M26",), ("M01-zeros", "M05", "M30", "M35")),
    ("M30", "M36-mean-hidden"),
    ("M30", "M12-zeros"),
    ("M33", "M39-both-halved"),
    ("M11-k2", "M30"),
    ("M45-inverse-N", "M05"),
    ("M44-inverse-T-sequence", "M22"),
    *product(("M40", "M41", "M43-exp"), ("M01-network", "M20-network", "M30-network")),
    ("M44-times-NT", "M05-network"),
    ("M44-times-T", "M24-network"),
    ("M31", "M01-network"),
    ("M31", "M22-network"),
    ("M31", "M30-network"),
    ("M46", "M35-network"),
    ("M03-network", "M39-zero-network"),
)

_OUTSIDE_SEQUENCE: dict[str, Edits] = {
    "carry-fades": ((_LATER, "later = 0.9 * grad_a @ weight_hh\n"),),
    "carry-of-other-rows": ((_LATER, "later = grad_a.flip(0) @ weight_hh\n"),),
    "times-state": ((_GRAD_A, "grad_a = grad_h * states[t + 1]"),),
    "absolute": ((_GRAD_H, "grad_h = (grad_output[t] + later).abs()"),),
    "loss-of-step-before": ((_GRAD_H, "grad_h = grad_output[t - 1] + later"),),
    "input-of-step-before": (("dweight_ih += grad_a.T @ x[t]", "dweight_ih += grad_a.T @ x[t - 1]"),),
    "inputs-of-other-rows": (("dweight_ih += grad_a.T @ x[t]", "dweight_ih += grad_a.T @ x[t].flip(0)"),),
    "carry-piles-up": ((_LATER, "later = later + grad_a @ weight_hh\n"),),
    "row-left-out": ((_DW, "dweight_hh += grad_a[1:].T @ states[t][1:]"),),
    "rounded": ((_RETURN, _RETURN.replace("dweight_ih", "(1000 * dweight_ih).round() / 1000")),),
    "input-gradient-piles-up": (
        ("dx[t] = grad_a @ weight_ih", "dx[t] = grad_a @ weight_ih + (dx[t + 1] if t + 1 < T else 0)"),
    ),
    "state-kept-partly": (("h = torch.tanh(a)", "h = 0.5 * h + 0.5 * torch.tanh(a)"),),
}
_OUTSIDE_NETWORK: dict[str, Edits] = {
    "squared-output": (("o = hs[t + 1] @", "o = hs[t + 1] ** 2 @"),),
    "square-root-loss": ((_LOSS, _LOSS.replace(".log()", ".sqrt().log()").replace("loss - p", "loss - 3 * p")),),
    "probability-times-error": ((_MEAN, f"do *= ps[t]\n        {_MEAN}"),),
    "target-of-next-row": ((_TARGET, "do[rows, y[t].roll(1)] -= 1"),),
}
OUTSIDE: dict[str, Edits] = _OUTSIDE_SEQUENCE | _OUTSIDE_NETWORK
OUTSIDE_FIRST_WRONG: dict[str, tuple[str, int | str | None]] = {
    "carry-fades": ("dh", -2),
    "carry-of-other-rows": ("dh", -2),
    "times-state": ("da", "last"),
    "absolute": ("dh", "last"),
    "loss-of-step-before": ("dh", "last"),
    "input-of-step-before": ("dU", None),
    "inputs-of-other-rows": ("dU", None),
    "carry-piles-up": ("dh", -3),
    "row-left-out": ("dW", None),
    "rounded": ("dU", None),
    "input-gradient-piles-up": ("dx", -2),
    "state-kept-partly": ("h", 1),
    "squared-output": ("o", 1),
    "square-root-loss": ("loss", None),
    "probability-times-error": ("do", "last"),
    "target-of-next-row": ("do", "last"),
}

LEVEL: dict[str, str] = {
    **dict.fromkeys(_SEQUENCE | _OUTSIDE_SEQUENCE, "sequence"),
    **dict.fromkeys(_NETWORK | _OUTSIDE_NETWORK, "network"),
}
