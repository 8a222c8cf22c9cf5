"""The kernel in C does what the readable one does, for every size, and does not depend on how it is run.

Would catch: a block of rows or columns that is cut off wrong, a column beyond H that is read or written, results that
depend on threads or on the other rows of a batch, a state read before it is written, f that is less exact than two
units in the last place, a NaN that gets lost, memory that is not one's own (under the sanitizers), a machine or an
input that should take the other kernel and does not.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import normal, seeded
from torch import Tensor, _vmap_internals
from torch._subclasses.fake_tensor import FakeTensorMode

from manual_bptt import RNN, kernels, rnn
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.kernels import eager, native

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernel in C was not built")
CLOSE = {torch.float64: 1e-12, torch.float32: 100 * torch.finfo(torch.float32).eps}
ALL = (True,) * 6  # gradients
SETS = [isa for isa in range(3) if isa <= native.instructions()]


def drawn(T: int, B: int, H: int, dtype: torch.dtype, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
    shape = (T, B, H) if sizes is None else (sum(sizes), H)
    a, dh = normal(seeded(1), *shape).to(dtype), normal(seeded(2), *shape).to(dtype)
    h0, W = normal(seeded(3), B, H).to(dtype), normal(seeded(4), H, H, scale=0.9 * H**-0.5).to(dtype)
    return a, dh, h0, W


def both(
    T: int, B: int, H: int, dtype: torch.dtype, name: str, sizes: list[int] | None = None, xi: list[float] | None = None
) -> None:
    """Hold both passes against the readable kernel in float64."""
    activation = ACTIVATIONS[name]
    a, dh, h0, W = drawn(T, B, H, dtype, sizes)
    h = native.forward(a.clone(), h0, W, activation, sizes)
    exact = eager.forward(a.double(), h0.double(), W.double(), activation, sizes)
    assert (h - exact).norm() <= CLOSE[dtype] * exact.norm()
    da = native.backward(dh, h, W, activation, sizes, xi)
    slope = activation.slope(h.double())
    exact = eager.backward(dh.double(), slope, W.double(), activation, sizes, xi)
    assert (da - exact).norm() <= CLOSE[dtype] * exact.norm()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_size_up_to_70(dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instructions", lambda: isa)
    for H in range(1, 71):
        both(3, 1 + H % 15, H, dtype, list(ACTIVATIONS)[H % 4])


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("H", [5, 37, 130])
def test_every_number_of_rows(H: int, dtype: torch.dtype, name: str, isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instructions", lambda: isa)
    for B in (1, 2, 3, 4, 5, 6, 7, 13):
        both(4, B, H, dtype, name)
        both(5, B, H, dtype, name, xi=[1.0, 0.0, 1.0, 2.5, 1.0])
        sizes = [B, B, max(1, B - 1), max(1, B // 2), 1]
        both(5, B, H, dtype, name, sizes)
        both(5, B, H, dtype, name, sizes, xi=[1.0, 2.0, 0.0, 1.0, 0.5])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("packed", [False, True])
def test_threads_change_nothing(threads: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    T, B, H = 9, 11, 45
    sizes = [11, 11, 9, 7, 7, 6, 2, 1, 1] if packed else None
    a, dh, h0, W = drawn(T, B, H, torch.float32, sizes)
    activation = ACTIVATIONS["tanh"]
    alone = native.forward(a.clone(), h0, W, activation, sizes)
    alone_back = native.backward(dh, alone, W, activation, sizes)
    monkeypatch.setattr(native, "SHARED", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    together = native.forward(a.clone(), h0, W, activation, sizes)
    assert torch.equal(together, alone)
    assert torch.equal(native.backward(dh, together, W, activation, sizes), alone_back)


def test_a_row_does_not_depend_on_the_others() -> None:
    T, B, H = 6, 13, 50
    a, dh, h0, W = drawn(T, B, H, torch.float32)
    activation = ACTIVATIONS["sigmoid"]
    whole = native.forward(a.clone(), h0, W, activation)
    back = native.backward(dh, whole, W, activation)
    for rows in (slice(0, 1), slice(3, 5), slice(2, 13), slice(12, 13)):
        part = native.forward(a[:, rows].clone(), h0[rows], W, activation)
        assert torch.equal(part, whole[:, rows])
        assert torch.equal(native.backward(dh[:, rows], part, W, activation), back[:, rows])


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The nonlinearity in extended precision."""
    wide = x.astype(np.longdouble)
    if name == "tanh":
        return np.tanh(wide)
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1 / (1 + small), small / (1 + small))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no extended precision to compare with")
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_is_within_two_units_in_the_last_place(dtype: torch.dtype, name: str, isa: int) -> None:
    generator = np.random.default_rng(0)
    largest = 103.9 if dtype == torch.float32 else 744.0
    values = np.concatenate([
        generator.normal(size=200_000) * 3,
        np.exp(generator.uniform(-90, math.log(largest), 200_000)) * generator.choice([-1, 1], 200_000),
        np.linspace(0.59, 0.61, 20_001), np.linspace(-1, 1, 50_001), np.linspace(-largest, -80, 20_001),
    ])  # fmt: skip
    x = torch.from_numpy(values).to(dtype)
    found, truth = native.apply(name, x, isa).numpy(), exact(name, x.numpy())
    unit = np.spacing(np.maximum(np.abs(truth).astype(found.dtype), np.finfo(found.dtype).tiny * 0))
    off = np.abs(found.astype(np.longdouble) - truth) / unit.astype(np.longdouble)
    assert off.max() <= 2, (x[int(off.argmax())], found[off.argmax()])


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_ordinary_number_comes_out_as_torchs(dtype: torch.dtype, name: str, isa: int) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, tiny / 8, -tiny / 8, 1e30, -1e30], dtype=dtype)
    found, wanted = native.apply(name, x, isa), ACTIVATIONS[name].apply(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit()[1:], wanted.signbit()[1:])


def test_a_nan_spoils_its_own_row_alone() -> None:
    a, dh, h0, W = drawn(5, 4, 9, torch.float32)
    a[1, 2, 3] = math.nan
    activation = ACTIVATIONS["relu"]
    h = native.forward(a.clone(), h0, W, activation)
    assert h[1:, 2].isnan().any()
    assert h[:, [0, 1, 3]].isfinite().all()
    da = native.backward(dh, h, W, activation)
    wanted = eager.backward(dh, activation.slope(h), W, activation)
    torch.testing.assert_close(da, wanted, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_nothing_beyond_the_arrays_is_touched() -> None:
    """Guards of NaN around every array, and NaN in what is only written."""
    for H in (1, 7, 16, 17, 33, 70):
        T, B = 3, 5
        a, _, h0, W = drawn(T, B, H, torch.float32)
        wide = torch.full((T * B * H + 128,), math.nan)
        inside = wide[64:-64].view(T, B, H)
        inside.copy_(a)
        native.forward(inside, h0, W, ACTIVATIONS["tanh"])
        assert inside.isfinite().all()
        assert wide[:64].isnan().all()
        assert wide[-64:].isnan().all()


def test_views_that_do_not_lie_together_and_unaligned_ones() -> None:
    T, B, H = 4, 6, 10
    a, _, h0, W = drawn(T, B, H, torch.float64)
    activation = ACTIVATIONS["tanh"]
    wanted = native.forward(a.clone(), h0, W, activation)
    strided = a.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(native.forward(strided, h0.t().contiguous().t(), W.t().contiguous().t(), activation), wanted)
    shifted = torch.empty(a.numel() + 1, dtype=a.dtype)[1:].view_as(a).copy_(a)
    assert torch.equal(native.forward(shifted, h0, W, activation), wanted)


def test_two_threads_at_once_and_after_a_fork() -> None:
    model, x = RNN(6, 40), torch.randn(30, 8, 6)
    wanted = model(x)[0]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(output, wanted) for output in pool.map(lambda _: model(x)[0], range(40)))
    code = (
        "import os, torch; from manual_bptt import RNN; torch.manual_seed(0); torch.set_num_threads(2)\n"
        "from manual_bptt.kernels import native; native.SHARED = 0\n"
        "m, x = RNN(4, 20), torch.randn(9, 8, 4)\n"
        "def run():\n"
        "    a = torch.nn.functional.linear(x, m.weight_ih_l0).contiguous()\n"
        "    from manual_bptt.activations import ACTIVATIONS\n"
        "    return native.forward(a.detach(), torch.zeros(8, 20), m.weight_hh_l0.detach(), ACTIVATIONS['tanh'])\n"
        "torch.set_num_threads(1); x.sum(); torch.get_num_threads = lambda: 2\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def step(_):\n"
        "    return torch.autograd.grad(m(x)[0].sum(), list(m.parameters()))\n"
        "alone = step(0)\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    for each in pool.map(step, range(40)):\n"
        "        assert all(torch.equal(a, b) for a, b in zip(each, alone))\n"
        "first = run(); child = os.fork()\n"
        "if child == 0: os._exit(0 if torch.equal(run(), first) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0


def test_sizes_are_counted_with_64_bits() -> None:
    """The last row of 2^31 numbers is the one that is asked for: rows before it run at no step."""
    T, H = 2, 4
    far = 2**29 + 3  # rows of 4 numbers: beyond 2^31 of them
    starts = array("q", (far, far + 1, far + 2)).tobytes()
    h0, W, a = torch.zeros(1, H), torch.eye(H), torch.ones(2, H)
    base = a.data_ptr() - far * H * 4
    native.library().run(
        0, 0, native.instructions(), native.SHARED, T, 1, H, native.CODES["identity"], starts, base, h0.data_ptr(), 0,
        W.data_ptr(), None,
    )  # fmt: skip
    assert a.tolist() == [[1.0] * 4, [2.0] * 4]


def test_which_kernel_is_taken() -> None:
    tanh = ACTIVATIONS["tanh"]

    def chosen(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> str:
        a, W = (
            torch.empty(*shape, dtype=dtype, device=device),
            torch.empty(shape[-1], shape[-1], dtype=dtype, device=device),
        )
        return kernels.chosen(a, a, W, tanh, None if len(shape) == 3 else (shape[0],), forward=False)

    assert chosen(100, 1, 20) == chosen(4, 4, 20) == "native"
    assert chosen(3, 4, 20) == chosen(9, 20) == "eager"  # few steps: 9 rows of one
    assert chosen(31, 1, 1024) == "eager"  # packing W is not worth it
    assert chosen(32, 1, 1024) == "native"
    assert chosen(100, 1, 20, dtype=torch.bfloat16) == chosen(100, 1, 20, dtype=torch.complex64) == "eager"
    assert chosen(100, 1, 20, device="meta") == "eager"
    with kernels.use("eager"):
        assert chosen(100, 1, 20) == "eager"
        with kernels.use("native"):
            assert chosen(1, 1, 20) == "native"
            assert chosen(1, 1, 20, dtype=torch.bfloat16) == "eager"
        assert chosen(100, 1, 20) == "eager"
    assert chosen(100, 1, 20) == "native"
    with pytest.raises(ValueError, match="use: expected one of whole, native, eager, got 'fast'"):
        kernels.use("fast").__enter__()


@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ("W", (4, 5)),
        ("W", (5, 5)),
        ("W", (4, 4, 1)),
        ("h0", (2, 4)),
        ("h0", (3, 3)),
        ("dh", (6, 3, 5)),
        ("dh", (5, 3, 4)),
        ("steps", (6, 3)),
        ("steps", (0, 3, 4)),
    ],
)
def test_what_does_not_fit_together_never_comes_to_c(changed: str, to: tuple[int, ...]) -> None:
    given = {"steps": torch.zeros(6, 3, 4), "h0": torch.zeros(3, 4), "dh": torch.zeros(6, 3, 4), "W": torch.zeros(4, 4)}
    forward = changed != "dh"
    tanh = ACTIVATIONS["tanh"]

    def takes() -> bool:
        return native.takes(given["steps"], given["h0" if forward else "dh"], given["W"], tanh, None, forward=forward)

    assert takes()
    given[changed] = torch.zeros(to)
    assert not takes()
    rows, h0, W = torch.zeros(6, 4), torch.zeros(3, 4), torch.zeros(4, 4)
    assert native.takes(rows, h0, W, tanh, [3, 2, 1], forward=True)
    assert not native.takes(rows, h0, W, tanh, [3, 2, 2], forward=True)
    assert not native.takes(rows, torch.zeros(1, 4), W, tanh, [1, 2, 3], forward=True)  # no packed sequences
    assert not native.takes(rows, h0, W, tanh, [3, 3, 0], forward=True)
    assert not native.takes(rows, h0, W.double(), tanh, [3, 2, 1], forward=True)


def test_without_the_library_everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = RNN(3, 20, dtype=torch.float64), normal(seeded(1), 9, 4, 3)
    wanted = model(x)[0]
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "_files", list)
    torch.testing.assert_close(model(x)[0], wanted, rtol=1e-12, atol=1e-14)
    assert native.state().startswith("not built;")
    with pytest.raises(ValueError, match="use: expected a kernel that was built, got native, which is not built"):
        kernels.use("native").__enter__()


def test_a_planted_mistake_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above fail for a W that is not transposed: a test of `both`."""
    right = native._run

    def wrong(backward: int, h: Tensor, first: Tensor, da: Tensor | None, W: Tensor, *rest: object) -> None:
        right(backward, h, first, da, W.t(), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "_run", wrong)
    with pytest.raises(AssertionError):
        both(4, 3, 9, torch.float64, "tanh")


@pytest.mark.parametrize("asked", ["x", "h0", "U", "W", "b", "x h0 U W b", "U b", "W x"])
@pytest.mark.parametrize("T", [1, 12])
def test_all_kernels_give_the_gradients_that_are_asked_for(T: int, asked: str) -> None:
    shapes = {"x": (T, 3, 5), "h0": (3, 9), "U": (9, 5), "W": (9, 9), "b": (9,)}
    named = {name: normal(seeded(place), *shape) for place, (name, shape) in enumerate(shapes.items(), 1)}
    wanted = [named[name].requires_grad_() for name in asked.split()]
    weights = normal(seeded(9), T, 3, 9)
    found = []
    for name in kernels.NAMES:
        with kernels.use(name):
            found.append(torch.autograd.grad((rnn(**named) * weights).sum(), wanted))
    for each in zip(*found, strict=True):
        torch.testing.assert_close(each[0], each[2], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(each[1], each[2], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_recurrence_of_every_size(dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the readable kernel in float64; T · B goes over the rows that a weight's gradient takes at a time."""
    monkeypatch.setattr(native, "instructions", lambda: isa)
    for H in range(1, 71):
        T, B, D = (50, 3 + H % 4, 1 + 7 * H % 66) if H % 10 == 0 else (3, 1 + H % 9, 1 + 7 * H % 66)
        whole(T, B, D, H, dtype, list(ACTIVATIONS)[H % 4])


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("T", "B", "D", "H"), [(300, 5, 60, 100), (2000, 1, 30, 63), (4, 700, 70, 50), (7, 400, 3, 130)]
)
def test_a_whole_recurrence_that_goes_back_in_pieces(
    T: int, B: int, D: int, H: int, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "instructions", lambda: isa)
    whole(T, B, D, H, dtype, "tanh")


def swapped(h: Tensor) -> Tensor:
    return h.transpose(0, 1)


def whole(T: int, B: int, D: int, H: int, dtype: torch.dtype, name: str) -> None:
    shapes = [(T, B, D), (B, H), (H, D), (H, H), (H,), (H,), (T, B, H)]
    scales = [1, 1, D**-0.5, 0.9 * H**-0.5, 1, 1, 1]
    drawn = [normal(seeded(i), *shape, scale=s) for i, (shape, s) in enumerate(zip(shapes, scales, strict=True))]
    x, h0, U, W, b, b2, dh = (each.to(dtype) for each in drawn)
    activation = ACTIVATIONS[name]
    assert native.takes_all(x, h0, U, W, b, b2, activation)
    dlast = normal(seeded(7), 1, B, H).to(dtype)
    made = native.forward_all(x, h0, U, W, b, b2, activation, copy=swapped, last=True)
    assert made is not None
    h, copied, last, _ = made
    assert copied is not None
    assert last is not None
    assert copied.shape == (B, T, H)
    copied = copied.transpose(0, 1)
    assert torch.equal(copied, h)
    assert torch.equal(last, h[-1:])
    assert len({each.data_ptr() for each in (h, copied, last)}) == 3
    found = native.backward_all(dh, dlast, h, x, h0, U, W, D, activation, ALL)
    assert found is not None
    assert found[4] is not None
    assert found[5] is not None
    assert found[4].data_ptr() != found[5].data_ptr()
    x, h0, U, W, b, b2, dh = (each.double() for each in (x, h0, U, W, b, b2, dh))
    exact = eager.forward(torch.nn.functional.linear(x, U, b + b2), h0, W, activation)
    assert (h - exact).norm() <= CLOSE[dtype] * exact.norm()
    dh[-1:] += dlast.double()
    da = eager.backward(dh, activation.slope(h.double()), W, activation)
    before = torch.cat((h0[None], h[:-1].double()))
    rows = da.flatten(0, 1)
    wanted = (da @ U, da[0] @ W, rows.t() @ x.flatten(0, 1), rows.t() @ before.flatten(0, 1), rows.sum(0), rows.sum(0))
    for one, two in zip(found, wanted, strict=True):
        assert one is not None
        assert (one - two).norm() <= CLOSE[dtype] * two.norm() + torch.finfo(dtype).eps * da.norm()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("B", [1, 4, 11])
def test_threads_change_nothing_in_a_whole_recurrence(threads: int, B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    T, D, H = 400, 10, 45  # with several sequences the gradients come in pieces
    x, h0, U, W, b, dh = (
        normal(seeded(i), *shape).float()
        for i, shape in enumerate([(T, B, D), (B, H), (H, D), (H, H), (H,), (T, B, H)], 1)
    )
    W, activation = 0.1 * W, ACTIVATIONS["tanh"]

    def run() -> tuple[Tensor | None, ...]:
        made = native.forward_all(x, h0, U, W, b, None, activation, copy=swapped, last=True)
        assert made is not None
        h, copied, last, _ = made
        gradients = native.backward_all(dh, last, h, x, h0, U, W, D, activation, ALL)
        assert gradients is not None
        return h, copied, last, *gradients

    monkeypatch.setattr(native, "SHARED", 10**12)
    alone = run()
    monkeypatch.setattr(native, "SHARED", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert native.has_team()
    for one, two in zip(run(), alone, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("changed", "to"),
    [("x", (6, 2, 5)), ("x", (6, 3, 4)), ("x", (0, 3, 5)), ("x", (6, 3, 5, 1)), ("h0", (2, 4)), ("h0", (3, 5)),
     ("U", (5, 5)), ("U", (4, 5, 1)), ("W", (4, 5)), ("b", (5,)), ("b2", (3,))],
)  # fmt: skip
def test_a_recurrence_that_does_not_fit_together_never_comes_to_c(changed: str, to: tuple[int, ...]) -> None:
    shapes = {"x": (6, 3, 5), "h0": (3, 4), "U": (4, 5), "W": (4, 4), "b": (4,), "b2": (4,)}
    given = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert native.takes_all(**given, activation=ACTIVATIONS["tanh"])
    assert not native.takes_all(**{**given, changed: torch.zeros(to)}, activation=ACTIVATIONS["tanh"])
    assert not native.takes_all(**{**given, changed: given[changed].double()}, activation=ACTIVATIONS["tanh"])
    assert not native.takes_all(**{**given, "x": torch.zeros(6, 3, dtype=torch.int64)}, activation=ACTIVATIONS["tanh"])


@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ("dh", (6, 3, 5)),
        ("x", (6, 3, 4)),
        ("dlast", (3, 4)),
        ("dlast", (1, 2, 4)),
        ("x", (5, 3, 5)),
        ("h0", (2, 4)),
        ("U", (5, 5)),
        ("W", (4, 5)),
        ("h", (18, 4)),
    ],
)
def test_what_hooks_have_replaced_never_comes_to_c(changed: str, to: tuple[int, ...]) -> None:
    shapes = {
        "dh": (6, 3, 4),
        "dlast": (1, 3, 4),
        "h": (6, 3, 4),
        "x": (6, 3, 5),
        "h0": (3, 4),
        "U": (4, 5),
        "W": (4, 4),
    }
    given: dict[str, Any] = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def taken(needed: tuple[bool, ...] = ALL, **other: Tensor | None) -> bool:
        made = native.backward_all(**{**given, **other}, D=5, activation=ACTIVATIONS["tanh"], needed=needed)
        return made is not None

    assert taken()
    assert taken((False, True, False, False, True, True), x=None, h0=None, U=None)
    assert taken(dh=None)
    assert taken(dlast=None)
    for missing in ("x", "h0", "U"):
        assert not taken(**{missing: None})
    assert not taken(**{changed: torch.zeros(to)})


def test_c_gives_back_what_it_has_held() -> None:
    """Where it computes, where it refuses, and where somebody else's code fails on the way."""
    tanh = ACTIVATIONS["tanh"]
    x, h0, U, W, b = (torch.randn(shape) for shape in ((6, 3, 5), (3, 4), (4, 5), (4, 4), (4,)))
    values: list[Any] = [x, h0, U, W, b, b]
    h = torch.randn(6, 3, 4)

    def failing(h: Tensor) -> Tensor:
        raise ZeroDivisionError

    def use() -> None:
        assert native.forward_all(*values, tanh, copy=swapped, last=True, grad=True) is not None
        assert native.forward_all(*values[:2], U.t(), *values[3:], tanh) is None
        assert native.forward_all(*values[:5], b.double(), tanh) is None
        assert native.backward_all(h, None, h, x, h0, U, W, 5, tanh, ALL) is not None
        assert native.backward_all(h, None, h, x[1:], h0, U, W, 5, tanh, ALL) is None
        with pytest.raises(ZeroDivisionError):
            native.forward_all(*values, tanh, copy=failing)
        with pytest.raises(TypeError, match="needed: expected 6 values, got 2"):
            native.backward_all(h, None, h, x, h0, U, W, 5, tanh, (True, False))

    held = [*values, h, None, True, torch.float32, swapped]
    use()
    before = [sys.getrefcount(each) for each in held]
    for _ in range(1000):
        use()
    assert max(abs(sys.getrefcount(each) - was) for each, was in zip(held, before, strict=True)) < 50


def test_a_hook_that_cuts_what_is_kept_is_refused_by_torch() -> None:
    model, x = RNN(3, 4), torch.randn(6, 2, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value[:1]):
        output = model(x)[0]
    with pytest.raises(RuntimeError, match=r"size|shape"):
        output.sum().backward()


class Tagged(Tensor):
    """A subclass that is nothing but its numbers, but wants to be asked about functions."""


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:The PyTorch API of nested tensors")
def test_only_numbers_in_memory_come_to_c() -> None:
    plain = torch.randn(3, 3)
    assert native.plain((plain, torch.nn.Parameter(plain), None, plain.t(), plain.detach().requires_grad_()))
    with torch.inference_mode():
        assert native.plain((torch.randn(3, 3),))
    freed, part = torch.randn(3, 3), torch.randn(6, 3)[3:]
    for each in (freed, part):
        each.untyped_storage().resize_(0)
    with FakeTensorMode():
        fake = torch.empty(3, 3)
    others = {
        "sparse": plain.to_sparse(),
        "sparse, by rows": plain.to_sparse_csr(),
        "of oneDNN": plain.to_mkldnn(),
        "zero without memory": torch._efficientzerotensor((3, 3)),
        "negated lazily": torch.randn(3, 3, dtype=torch.complex64).conj().imag,
        "of another dtype": plain.double(),
        "meta": plain.to("meta"),
        "fake": fake,
        "functional": torch._to_functional_tensor(plain),
        "without numbers": plain[:0],
        "with memory taken away": freed,
        "a part of memory taken away": part,
        "nested": torch.nested.nested_tensor([plain, plain]),
        "a subclass": plain.as_subclass(Tagged),
        "a wrapper that outlives its transform": left_by(torch.func.vmap),
        "one of another transform": left_by(torch.func.grad),
        "one of batched gradients": left_by(_vmap_internals._vmap),
    }
    assert not [name for name, other in others.items() if native.plain((plain, other))]
    assert not native.plain((plain.to(torch.bfloat16),))
    assert not native.plain((plain.to(torch.complex64),))


def left_by(transform: Callable[..., Any]) -> Tensor:
    """What a function that is transformed has seen."""
    left: list[Tensor] = []
    transform(lambda row: left.append(row) or row.sum())(torch.randn(3, 3))
    return left[0]


def test_a_bias_gradient_of_a_million_steps_is_summed_without_losing_any() -> None:
    x, W = torch.zeros(1000, 1000, 1), torch.zeros(2, 2)
    b = torch.zeros(2, requires_grad=True)
    rnn(x, None, torch.zeros(2, 1), W, b, "identity").backward(torch.full((1000, 1000, 2), 0.1))
    assert b.grad is not None
    torch.testing.assert_close(b.grad, torch.full((2,), 1e5), rtol=1e-6, atol=0)


def test_another_version_of_the_library_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    try:
        monkeypatch.setattr(native, "VERSION", -1)
        assert native.library() is None
        assert native.state() == "built, but of another version or machine: install the package again"
    finally:
        native.library.cache_clear()


def test_the_kernel_is_told() -> None:
    cpu = torch.device("cpu")
    assert kernels.taken(10, 1, 10, 20, torch.float32, cpu) == "whole"
    assert kernels.taken(10, 1, 10, 20, torch.bfloat16, cpu) == "eager"
    assert kernels.taken(10, 1, 10, 20, torch.float32, torch.device("meta")) == "eager"
    for name in kernels.NAMES:
        with kernels.use(name):
            assert kernels.taken(10, 1, 10, 20, torch.float64, cpu) == name


def test_when_a_recurrence_is_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tanh = ACTIVATIONS["tanh"]

    def is_whole(T: int, B: int, D: int, H: int) -> bool:
        x, h0, U, W = (torch.empty(shape) for shape in ((T, B, D), (B, H), (H, D), (H, H)))
        return kernels.is_whole(x, h0, U, W, None, None, tanh)

    monkeypatch.setattr(native, "instructions", lambda: 2)
    assert is_whole(1, 1, 10, 20)
    assert is_whole(100, 64, 256, 1024)
    assert not is_whole(1, 1, 64, 512)  # packing W is not worth it
    monkeypatch.setattr(native, "instructions", lambda: 0)
    assert is_whole(10, 4, 10, 20)
    assert not is_whole(100, 64, 64, 128)  # torch's matrix products are faster there
    with kernels.use("whole"):
        assert is_whole(1, 1, 64, 512)
    with kernels.use("native"):
        assert not is_whole(1, 1, 10, 20)


@pytest.mark.parametrize("mode", ["torch.inference_mode()", "FakeTensorMode()"])
def test_the_package_may_be_imported_in_any_mode(mode: str) -> None:
    program = (
        "import torch\nfrom torch._subclasses.fake_tensor import FakeTensorMode\n"
        f"with {mode}:\n    from manual_bptt import kernels\n"
        "print(kernels.taken(10, 1, 10, 20, torch.float32, torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "whole"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build with the sanitizers")
def test_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    source = ROOT / "manual_bptt" / "kernels" / "native.c"
    driver = tmp_path / "driver.c"
    driver.write_text(
        f'#define TOGETHER 4096\n#include "{source}"\n#include <pthread.h>\n'
        "static void (*work_of)(void *);\n"
        "static void *one(void *given) { work_of(given); return NULL; }\n"
        "static void team(void (*work)(void *), void *given, unsigned threads, unsigned flags) {\n"
        "  pthread_t started[8];\n"
        "  work_of = work; (void)flags;\n"
        "  for (unsigned i = 1; i < threads; i++) pthread_create(&started[i], NULL, one, given);\n"
        "  work(given);\n"
        "  for (unsigned i = 1; i < threads; i++) pthread_join(started[i], NULL);\n"
        "}\n"
        "static void *nothing(int64_t n, int wide) {\n"  # NaN, until it is written
        "  void *made = malloc(n * (wide ? 8 : 4)); memset(made, 255, n * (wide ? 8 : 4)); return made;\n"
        "}\n"
        "static void *drawn(int64_t n, int wide) {\n"
        "  void *made = malloc(n * (wide ? 8 : 4));\n"
        "  for (int64_t i = 0; i < n; i++) {\n"
        "    double value = (double)(i * 7919 % 201 - 100) / 500;\n"
        "    if (wide) ((double *)made)[i] = value; else ((float *)made)[i] = (float)value;\n"
        "  }\n"
        "  return made;\n"
        "}\n"
        "static int nan_in(const void *of, int64_t n, int wide) {\n"
        "  for (int64_t i = 0; i < n; i++) {\n"
        "    double value = wide ? ((const double *)of)[i] : ((const float *)of)[i];\n"
        "    if (value != value) return 1;\n"
        "  }\n"
        "  return 0;\n"
        "}\n"
        "int main(void) {\n"
        "  for (int isa = 0; isa <= manual_bptt_isa(); isa++) for (int wide = 0; wide < 2; wide++)\n"
        "  for (int64_t H = 1; H < 70; H += 3) for (int64_t B = 1; B < 9; B++)\n"
        "  for (int back = 0; back < 2; back++) {\n"
        "    int64_t T = 3, size = wide ? 8 : 4, starts[4] = {0, B, 2 * B, 2 * B + (B + 1) / 2}, N = starts[3];\n"
        "    void *h = calloc(N * H, size), *d = calloc(N * H, size), *da = malloc(N * H * size);\n"
        "    void *W = calloc(H * H, size), *f = back ? d : calloc(B * H, size);\n"
        "    double xi[3] = {1, 0.5, 0};\n"
        "    if (manual_bptt_run(back, wide, isa, 3, team, T, B, H, (int)(H % 4), starts, h, f, back ? da : NULL, W,\n"
        "                        back ? xi : NULL)) return 2;\n"
        "    free(h); free(d); free(da); free(W); if (!back) free(f);\n"
        "    if (H % 4) continue;\n"
        "    T = B == 7 ? 40 : 3;\n"  # more rows than a weight's gradient takes at a time, and several pieces
        "    int64_t D = 1 + (H * 7) % 66; N = T * B;\n"
        "    void *x = drawn(N * D, wide), *h0 = drawn(B * H, wide), *U = drawn(H * D, wide), *b = drawn(H, wide);\n"
        "    W = drawn(H * H, wide); h = nothing(N * H, wide); d = drawn(N * H, wide);\n"
        "    void *dx = nothing(N * D, wide), *dh0 = nothing(B * H, wide), *dU = nothing(H * D, wide);\n"
        "    void *dW = nothing(H * H, wide), *db = nothing(H, wide), *db2 = nothing(H, wide);\n"
        "    void *copy = nothing(N * H, wide), *last = nothing(B * H, wide);\n"
        "    Forward forth = {wide, isa, 1 + 2 * back, team, T, B, D, H, 0, x, h0, U, W, b, back ? b : NULL, h,\n"
        "                     back ? copy : NULL, back ? last : NULL};\n"
        "    if (manual_bptt_forward_all(&forth)) return 3;\n"
        "    for (int asked = 63; asked >= 0; asked -= back ? 1 : 63) {\n"
        "      Backward given = {wide, isa, 1 + 2 * back, team, T, B, D, H, 0, asked % 3 ? d : NULL,\n"
        "                        back && asked % 2 ? last : NULL, h, x, h0, U, W,\n"
        "                        asked & 1 ? dx : NULL, asked & 2 ? dh0 : NULL, asked & 4 ? dU : NULL,\n"
        "                        asked & 8 ? dW : NULL, asked & 16 ? db : NULL, asked & 32 ? db2 : NULL};\n"
        "      if (manual_bptt_backward_all(&given)) return 4;\n"
        "    }\n"
        "    if (nan_in(h, N * H, wide) || nan_in(dx, N * D, wide) || nan_in(dh0, B * H, wide)) return 5;\n"
        "    if (nan_in(dU, H * D, wide) || nan_in(dW, H * H, wide) || nan_in(db, H, wide)) return 6;\n"
        "    if (nan_in(db2, H, wide)) return 7;\n"
        "    if (back && (nan_in(copy, N * H, wide) || nan_in(last, B * H, wide))) return 8;\n"
        "    void *all[] = {x, h0, U, W, b, h, d, dx, dh0, dU, dW, db, db2, copy, last};\n"
        "    for (int i = 0; i < 15; i++) free(all[i]);\n"
        "  }\n"
        "  return 0;\n"
        "}\n"
    )
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread", "-Wno-psabi"]
    built = subprocess.run(
        ["gcc", *flags, "-o", str(tmp_path / "driver"), str(driver)], capture_output=True, text=True, check=False
    )
    if built.returncode and "asan" in built.stderr:
        pytest.skip("gcc has no sanitizers here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(tmp_path / "driver")], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
