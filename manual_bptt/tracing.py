"""A small problem worked through, as data: every number of bptt() under its equation. Renders nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_bptt import recurrence
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.network import BPTTResult, bptt
from manual_bptt.readout import outputs, readout_state_gradient
from manual_bptt.targets import weighted_targets

LIMITS = {"T": 8, "N": 4, "D": 6, "H": 6, "K": 6}  # a sheet has to be readable

_F2 = {"tanh": "tanh(a_{t})", "sigmoid": "1 / (1 + exp(−a_{t}))", "relu": "max(0, a_{t})", "identity": "a_{t}"}
_SLOPE = {"tanh": "1 − h_{t}²", "sigmoid": "h_{t} (1 − h_{t})", "relu": "[a_{t} > 0]", "identity": "1"}
_STEP_LOSS = {"cross_entropy": "ℓ_{t} = −Σ_k y_{t}k ln ŷ_{t}k", "squared_error": "ℓ_{t} = ½ Σ_k (ŷ_{t}k − y_{t}k)²"}


@dataclass(frozen=True)
class Problem:
    """One small network, one batch, one loss.

    Attributes:
        parameters: U (H, D), W (H, H), V (K, H) and, where used, b (H,) and c (K,), float64 on the CPU.
        x: (T, N, D).
        targets: As `bptt` takes them: classes (T, N) or numbers (T, N, K), without T for time="last".
        h0: (N, H).
        nonlinearity, loss, time, batch, ignore_index: Options of `bptt`.
    """

    parameters: dict[str, Tensor]
    x: Tensor
    targets: Tensor
    h0: Tensor
    nonlinearity: str = "tanh"
    loss: str = "cross_entropy"
    time: str = "sum"
    batch: str = "sum"
    ignore_index: int = -100

    @property
    def options(self) -> dict[str, Any]:
        """The options, by the names that `bptt` knows them by."""
        return {name: getattr(self, name) for name in ("nonlinearity", "loss", "time", "batch", "ignore_index")}

    def sizes(self) -> dict[str, int]:
        """T, N, D, H and K."""
        T, N, D = self.x.shape
        K, H = self.parameters["V"].shape
        return {"T": T, "N": N, "D": D, "H": H, "K": K}


@dataclass(frozen=True)
class Number:
    """A symbol and its value: a number, a vector or a matrix."""

    symbol: str
    value: Tensor


@dataclass(frozen=True)
class Equation:
    """One equation at one step, in numbers.

    Attributes:
        label: F1-F5 or B1-B8; empty for what is given.
        formula: The equation in symbols; `_` begins an index, which is one word or stands in braces.
        rows: The numbers of each row of the batch, terms first; empty where the rows do not count singly.
        together: The numbers that belong to all rows.
        note: What the symbols do not say, in words.
    """

    label: str
    formula: str
    rows: tuple[tuple[Number, ...], ...] = ()
    together: tuple[Number, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """What happens at one step, or at the end of a pass."""

    title: str
    equations: tuple[Equation, ...]


@dataclass(frozen=True)
class Trace:
    """A worked example.

    Attributes:
        problem: What was worked through.
        given: The arrays of the problem.
        sections: Forward steps 1 to T, the loss, backward steps T to 1, the sums.
        result: What `bptt` returned.
        added_up: The same quantities, put together again from the terms that the sections show.
    """

    problem: Problem
    given: tuple[Equation, ...]
    sections: tuple[Section, ...]
    result: BPTTResult
    added_up: dict[str, Tensor]


def trace(problem: Problem) -> Trace:
    """Work a problem through by `bptt` and lay every number out under its equation.

    Args:
        problem: At most LIMITS large.

    Returns:
        Trace.

    Raises:
        ValueError: A size is above its limit, a number on the way is not finite, or T = N = K with targets (N, K).
        TypeError, ValueError: As `bptt`.
    """
    check_sizes(problem.sizes())
    result = bptt(problem.parameters, problem.x, problem.targets, problem.h0, **problem.options)
    terms = _terms(problem, result)
    T = problem.x.shape[0]
    sheet = _Sheet(problem, result, terms)
    sections = (
        *(Section(f"Forward, step {t}", tuple(sheet.forward(t))) for t in range(1, T + 1)),
        Section("Loss", (sheet.loss(),)),
        *(Section(f"Backward, step {t}", tuple(sheet.backward(t))) for t in range(T, 0, -1)),
        Section("Sums over the steps, and the initial state", tuple(sheet.sums())),
    )
    given = tuple(sheet.given())
    for section in (Section("Given", given), *sections):
        _check_finite(section)
    return Trace(problem, given, sections, result, _added_up(problem, terms))


def check_sizes(sizes: dict[str, int]) -> None:
    """ValueError unless a sheet of these sizes can be read."""
    for name, size in sizes.items():
        if not 1 <= size <= LIMITS[name]:
            raise ValueError(f"expected {name} from 1 to {LIMITS[name]}, since a sheet has to be readable, got {size}")


def _check_finite(section: Section) -> None:
    for equation in section.equations:
        for number in (*(number for row in equation.rows for number in row), *equation.together):
            if not number.value.isfinite().all():
                place = f"{section.title}: {equation.label} {number.symbol}"
                raise ValueError(f"expected numbers that stay finite, but {place} does not; try smaller ones")


@dataclass(frozen=True)
class _Terms:
    """What the equations are made of and `BPTTResult` does not hold; (T, N, …) each."""

    Ux: Tensor  # F1
    Wh: Tensor  # F1
    before: Tensor  # h_{t-1}
    Vh: Tensor  # F3
    powers: Tensor  # F4: exp(o)
    y: Tensor  # targets as vectors; 0 where a step does not count
    s: Tensor  # Σ_k y_k where B1 needs it, else 1
    w: Tensor  # F5: 0 where a step does not count
    losses: Tensor  # F5: ℓ
    outside: Tensor  # B3: Vᵀ do
    later: Tensor  # B3: Wᵀ da of the next step
    slope: Tensor  # B4: f'(a)
    dV: Tensor  # B2, one outer product for each step and row
    dW: Tensor  # B6
    dU: Tensor  # B7


def _terms(problem: Problem, result: BPTTResult) -> _Terms:
    U, W, V = (problem.parameters[name] for name in "UWV")
    y, w, s = _targets(problem, result.o)
    if problem.loss == "cross_entropy":
        losses = -(y * result.o.log_softmax(-1)).sum(-1)
    else:
        losses = (result.y_hat - y).square().sum(-1) / 2
    before = recurrence.states_before(result.h, problem.h0)
    outside = readout_state_gradient(result.do, V)
    activation = ACTIVATIONS[problem.nonlinearity]
    settings = recurrence.Settings(activation)
    return _Terms(
        Ux=recurrence.input_part(problem.x, U, None),
        Wh=before @ W.t(),
        before=before,
        Vh=outputs(result.h, V, None),
        powers=result.o.exp(),
        y=y,
        s=s,
        w=w,
        losses=losses,
        outside=outside,
        later=recurrence.state_gradient(torch.zeros_like(outside), result.da, result.h, W, None, settings),
        slope=activation.times(activation.slope(result.h), torch.ones_like(result.h)),
        dV=_outer(result.do, result.h),
        dW=_outer(result.da, before),
        dU=_outer(result.da, problem.x),
    )


def _targets(problem: Problem, o: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets as vectors (T, N, K), the weights w and the factors s of B1 (T, N); zero where no loss is."""
    ignored = None if problem.loss == "squared_error" else problem.ignore_index
    judged, y, w = weighted_targets("trace", "targets", o, problem.targets, problem.time, problem.batch, ignored)
    if y.ndim == 2:  # classes; one that does not count has become 0 and has no weight
        y = torch.nn.functional.one_hot(y, o.shape[-1]).to(o.dtype) * (w != 0).unsqueeze(-1)
        s = torch.ones_like(w)
    else:
        s = y.sum(-1) if problem.loss == "cross_entropy" else torch.ones_like(w)
    steps = judged.shape[0]
    every_y, every_w, every_s = torch.zeros_like(o), o.new_zeros(o.shape[:2]), o.new_ones(o.shape[:2])
    every_y[-steps:], every_w[-steps:], every_s[-steps:] = y, w, s
    return every_y, every_w, every_s


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """The outer product of every step and row: (T, N, I) and (T, N, J) to (T, N, I, J)."""
    return left.unsqueeze(-1) * right.unsqueeze(-2)


def _added_up(problem: Problem, terms: _Terms) -> dict[str, Tensor]:
    """Every quantity from its terms, each step going on from the terms alone."""
    b, c = problem.parameters.get("b"), problem.parameters.get("c")
    a, o = terms.Ux + terms.Wh, terms.Vh
    a, o = a if b is None else a + b, o if c is None else o + c
    y_hat = terms.powers / terms.powers.sum(-1, keepdim=True) if problem.loss == "cross_entropy" else o
    do = terms.w.unsqueeze(-1) * (terms.s.unsqueeze(-1) * y_hat - terms.y)  # B1
    dh = terms.outside + terms.later  # B3
    da = terms.slope * dh  # B4
    found = {
        "loss": (terms.w * terms.losses).sum(),  # F5
        **{"a": a, "o": o, "y_hat": y_hat, "do": do, "dh": dh, "da": da},
        "dV": terms.dV.sum((0, 1)),  # B2
        "dW": terms.dW.sum((0, 1)),  # B6
        "dU": terms.dU.sum((0, 1)),  # B7
    }
    if b is not None:
        found["db"] = da.sum((0, 1))  # B5
    if c is not None:
        found["dc"] = do.sum((0, 1))  # B2
    return found


def _rows(*numbers: tuple[str, Tensor]) -> tuple[tuple[Number, ...], ...]:
    """Pairs of a symbol and its values (N, …) as the numbers of each row."""
    return tuple(tuple(Number(symbol, value[n]) for symbol, value in numbers) for n in range(numbers[0][1].shape[0]))


@dataclass(frozen=True)
class _Sheet:
    """Puts the numbers of a problem under their equations."""

    problem: Problem
    result: BPTTResult
    terms: _Terms

    def given(self) -> Iterator[Equation]:
        """What the problem consists of."""
        names = [name for name in "UWVbc" if name in self.problem.parameters]
        numbers = tuple(Number(name, self.problem.parameters[name]) for name in names)
        yield Equation("", "", together=numbers, note="parameters")
        yield Equation("", "", _rows(("h_0", self.problem.h0)), note="initial state")
        yield Equation("", "", _rows(*((f"x_{t}", x_t) for t, x_t in enumerate(self.problem.x, 1))), note="inputs")
        targets, last = self.problem.targets, self.problem.time == "last"
        steps = targets.unsqueeze(0) if last else targets
        first = self.problem.x.shape[0] if last else 1
        note = "targets"
        if not targets.is_floating_point():
            note += ", classes counted from 0" if targets.ndim == (1 if last else 2) else ""
            if (targets == self.problem.ignore_index).any():
                note += f"; {self.problem.ignore_index}: does not count"
        yield Equation("", "", _rows(*((f"y_{t}", y_t) for t, y_t in enumerate(steps, first))), note=note)

    def forward(self, t: int) -> Iterator[Equation]:
        """F1-F5 of step t."""
        result, terms, i = self.result, self.terms, t - 1
        b, c = self.problem.parameters.get("b"), self.problem.parameters.get("c")
        parts = [(f"U x_{t}", terms.Ux[i]), (f"W h_{t - 1}", terms.Wh[i])]
        yield self._sum_of_terms("F1", (f"a_{t}", result.a[i]), parts, "b", b)
        f = _F2[self.problem.nonlinearity].format(t=t)
        yield Equation("F2", f"h_{t} = {f}", _rows((f"h_{t}", result.h[i])))
        yield self._sum_of_terms("F3", (f"o_{t}", result.o[i]), [(f"V h_{t}", terms.Vh[i])], "c", c)
        y_hat = (f"ŷ_{t}", result.y_hat[i])
        if self.problem.loss == "cross_entropy":
            powers = ((f"exp(o_{t})", terms.powers[i]), (f"Σ_k exp(o_{t}k)", terms.powers[i].sum(-1)))
            yield Equation("F4", f"ŷ_{t} = exp(o_{t}) / Σ_k exp(o_{t}k)", _rows(*powers, y_hat))
        else:
            yield Equation("F4", f"ŷ_{t} = o_{t}", _rows(y_hat))
        yield self._step_loss(t)

    def _sum_of_terms(
        self, label: str, whole: tuple[str, Tensor], parts: list[tuple[str, Tensor]], name: str, bias: Tensor | None
    ) -> Equation:
        """F1 or F3: the products, the bias where there is one, and what they add up to."""
        if bias is not None:
            parts = [*parts, (name, bias.expand_as(whole[1]))]
        formula = f"{whole[0]} = {' + '.join(symbol for symbol, _ in parts)}"
        return Equation(label, formula, _rows(*parts, whole))

    def _step_loss(self, t: int) -> Equation:
        """F5 of step t: its loss, its weight, and their product."""
        result, terms, i = self.result, self.terms, t - 1
        if self._without_loss(t):
            return Equation("F5", f"w_{t} = 0", note="this step has no loss")
        if self.problem.loss == "cross_entropy":
            first = ((f"ln ŷ_{t}", result.o[i].log_softmax(-1)), (f"y_{t}", terms.y[i]))
        else:
            first = ((f"ŷ_{t}", result.y_hat[i]), (f"y_{t}", terms.y[i]))
        weight, weighted = (f"w_{t}", terms.w[i]), (f"w_{t} ℓ_{t}", terms.w[i] * terms.losses[i])
        formula = _STEP_LOSS[self.problem.loss].format(t=t)
        return Equation("F5", formula, _rows(*first, (f"ℓ_{t}", terms.losses[i]), weight, weighted))

    def _without_loss(self, t: int) -> bool:
        return self.problem.time == "last" and t < self.problem.x.shape[0]

    def loss(self) -> Equation:
        """F5 of the whole sequence."""
        return Equation("F5", f"L = {self._sum} w_t ℓ_t", together=(Number("L", self.result.loss),))

    @property
    def _sum(self) -> str:
        return "Σ_t" if self.problem.x.shape[1] == 1 else "Σ_t Σ_n"

    def backward(self, t: int) -> Iterator[Equation]:
        """B1-B8 of step t."""
        result, terms, i = self.result, self.terms, t - 1
        do, dh, da = (
            (f"d{name}_{t}", value[i]) for name, value in zip("oha", (result.do, result.dh, result.da), strict=True)
        )
        yield self._output_gradient(t)
        yield self._part("B2", self._readout, t, (f"do_{t} h_{t}ᵀ", terms.dV[i]), *([do] if self._has("c") else []))
        V_do, W_da = f"Vᵀ do_{t}", f"Wᵀ da_{t + 1}"
        last = t == self.problem.x.shape[0]
        note = f"no step follows: da_{t + 1} = 0" if last else ""
        yield Equation(
            "B3", f"dh_{t} = {V_do} + {W_da}", _rows((V_do, terms.outside[i]), (W_da, terms.later[i]), dh), note=note
        )
        slope = f"f′(a_{t})"
        formula = f"da_{t} = {slope} ⊙ dh_{t},  {slope} = {_SLOPE[self.problem.nonlinearity].format(t=t)}"
        yield Equation("B4", formula, _rows((slope, terms.slope[i]), dh, da))
        if self._has("b"):
            yield self._part("B5", f"db = {self._sum} da_t", t, da)
        yield self._part("B6", f"dW = {self._sum} da_t h_{{t−1}}ᵀ", t, (f"da_{t} h_{t - 1}ᵀ", terms.dW[i]))
        yield self._part("B7", f"dU = {self._sum} da_t x_tᵀ", t, (f"da_{t} x_{t}ᵀ", terms.dU[i]))
        assert result.dx is not None
        yield Equation("B8", f"dx_{t} = Uᵀ da_{t}", _rows((f"dx_{t}", result.dx[i])))

    def _has(self, bias: str) -> bool:
        return bias in self.problem.parameters

    def _output_gradient(self, t: int) -> Equation:
        """B1 of step t; s is shown where a target does not add up to 1."""
        result, terms, i = self.result, self.terms, t - 1
        y_hat, weight, do = (f"ŷ_{t}", result.y_hat[i]), (f"w_{t}", terms.w[i]), (f"do_{t}", result.do[i])
        if self._without_loss(t):
            return Equation("B1", f"do_{t} = 0", _rows(do), note="this step has no loss")
        y, s = terms.y[i], terms.s[i].unsqueeze(-1)
        if torch.allclose(s, torch.ones_like(s), rtol=0, atol=1e-12):
            difference, scaled, where = f"ŷ_{t} − y_{t}", [], ""
        else:
            difference, scaled = f"s_{t} ŷ_{t} − y_{t}", [(f"s_{t}", terms.s[i])]
            where = f",  s_{t} = Σ_k y_{t}k"
        numbers = (y_hat, (f"y_{t}", y), *scaled, (difference, s * y_hat[1] - y), weight, do)
        return Equation("B1", f"do_{t} = w_{t} ({difference}){where}", _rows(*numbers))

    @property
    def _readout(self) -> str:
        dc = f",  dc = {self._sum} do_t" if self._has("c") else ""
        return f"dV = {self._sum} do_t h_tᵀ{dc}"

    def _part(self, label: str, formula: str, t: int, *numbers: tuple[str, Tensor]) -> Equation:
        """What step t adds to the gradient of a parameter, by rows and, where there are more, their sum."""
        several = self.problem.x.shape[1] > 1
        together = tuple(Number(f"Σ_n {symbol}", value.sum(0)) for symbol, value in numbers) if several else ()
        return Equation(label, formula, _rows(*numbers), together, note=f"the part of t = {t}")

    def sums(self) -> Iterator[Equation]:
        """B2, B5-B7 over all steps and rows, and the initial state's part of B8."""
        result = self.result
        readout = [Number("dV", result.dV)]
        if result.dc is not None:
            readout.append(Number("dc", result.dc))
        yield Equation("B2", self._readout, together=tuple(readout))
        if result.db is not None:
            yield Equation("B5", f"db = {self._sum} da_t", together=(Number("db", result.db),))
        yield Equation("B6", f"dW = {self._sum} da_t h_{{t−1}}ᵀ", together=(Number("dW", result.dW),))
        yield Equation("B7", f"dU = {self._sum} da_t x_tᵀ", together=(Number("dU", result.dU),))
        yield Equation("B8", "dh_0 = Wᵀ da_1", _rows(("dh_0", result.dh0)))
