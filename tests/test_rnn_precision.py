"""RNN and RNNCell in every dtype: half precision, complex numbers, autocast, float64, and torch's default.

Held against torch.nn.RNN at run time: dtypes of results and gradients, and errors. In half precision and under autocast
the rule is at most twice torch.nn.RNN's own error against the float64 truth; complex numbers are held norm-wise, and by
numerical derivatives.

Would catch: a missing or misplaced conjugate, a cast that is not undone in the gradient, a backward pass that autocast
takes over, states or zeros of another dtype than the weights', a result that changes from run to run, and a graph whose
depth grows with T until Python or torch gives up.

Tests that take no device run on the CPU only.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from problems import TOLERANCE, assert_all_close, normal, relative_error, seeded
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import manual_bptt

# torch's own decompositions for forward mode are scripted when they are first asked for
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

T, B, D, H = 11, 9, 6, 16
LENGTHS = (11, 4, 9, 1, 11, 7, 2, 8, 5)
HALF = (torch.bfloat16, torch.float16)
COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}
BOTH = (False, True)
each_half = pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
each_direction = pytest.mark.parametrize("bidirectional", BOTH, ids=["one-way", "both-ways"])


def dense(model: Any, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    return model(x, hx)


ROWS = pack_sequence([torch.arange(length) * B + i for i, length in enumerate(LENGTHS)], enforce_sorted=False)


def packed(model: Any, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """By indexing: torch's own packing knows no gradients of complex numbers."""
    rows = ROWS.to(x.device)
    output, h_n = model(rows._replace(data=x.flatten(0, 1)[rows.data]), hx)
    width = output.data.shape[1]
    return output.data.new_zeros(T * B, width).index_copy(0, rows.data, output.data).view(T, B, width), h_n


def padded(model: Any, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    return model(x, hx, lengths=LENGTHS) if isinstance(model, manual_bptt.RNN) else packed(model, x, hx)


def nested(model: Any, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(model, manual_bptt.RNN):
        return packed(model, x, hx)
    rows = torch.cat([x[:length, i] for i, length in enumerate(LENGTHS)])
    offsets = torch.tensor([0, *LENGTHS], device=x.device).cumsum(0)
    output, h_n = model(torch.nested.nested_tensor_from_jagged(rows, offsets), hx)
    return output.to_padded_tensor(0.0, (B, T, output.shape[2])).transpose(0, 1), h_n


def cells(model: Any, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    h, states = hx[0], []
    for x_t in x:
        h = model(x_t, h)
        states.append(h)
    return torch.stack(states), h


Form = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
FORMS: dict[str, Form] = {"dense": dense, "packed": packed, "lengths": padded, "nested": nested}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))


def trio(dtype: torch.dtype, exact: torch.dtype = torch.float64, cell: bool = False, **options: Any) -> list[nn.Module]:
    """Make this module and torch's with the same weights, and torch's with these weights in the exact dtype."""
    torch.default_generator.manual_seed(2)
    kinds = (manual_bptt.RNNCell, nn.RNNCell) if cell else (manual_bptt.RNN, nn.RNN)
    mine, theirs, truth = (kinds[i](D, H, **options, dtype=t) for i, t in ((0, dtype), (1, dtype), (1, exact)))
    if options.get("nonlinearity") == "relu":
        drive(mine)
    theirs.load_state_dict(mine.state_dict())
    truth.load_state_dict(mine.state_dict())
    return [mine, theirs, truth]


def drive(model: nn.Module) -> None:
    """Drive every unit far up or down by the first input: no sign of a pre-activation may be a matter of rounding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight_ih" in name:
                parameter[:, 0] = 10 * parameter[:, 0].sign()
            elif "weight_hh" in name:
                parameter.mul_(0.2)


def drawn(model: nn.Module, dtype: torch.dtype, steps: int = T) -> dict[str, Tensor]:
    generator = seeded(12)
    directions = 1 + getattr(model, "bidirectional", False)
    places = directions * getattr(model, "num_layers", 1)
    values = {
        "x": normal(generator, steps, B, D),
        "hx": normal(generator, places, B, H, scale=0.7),
        "to output": normal(generator, steps, B, directions * H),
        "to h_n": normal(generator, *((places,) if isinstance(model, nn.RNNBase) else ()), B, H),
    }
    values["x"][..., 0] = values["x"][..., 0].sign()
    return {name: value.to(dtype) for name, value in values.items()}


def solve(
    form: Form,
    model: nn.Module,
    values: dict[str, Tensor],
    forward: AbstractContextManager[Any] | None = None,
    backward: AbstractContextManager[Any] | None = None,
) -> dict[str, Tensor]:
    """Results and every gradient; the upstream gradients are cast to what the results are."""
    inputs = {name: values[name].detach().clone().requires_grad_() for name in ("x", "hx")}
    with forward or nullcontext():
        output, h_n = form(model, *inputs.values())
    of = inputs | dict(model.named_parameters())
    upstream = values["to output"].to(output.dtype), values["to h_n"].to(h_n.dtype)
    with backward or nullcontext():
        gradients = torch.autograd.grad((output, h_n), list(of.values()), upstream)
    return {"output": output, "h_n": h_n} | {f"d{name}": g for name, g in zip(of, gradients, strict=True)}


def exactly(values: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in values.items()}


def dtypes(found: dict[str, Tensor]) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in found.items()}


def at_most_twice_as_wrong(mine: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys() == truth.keys()
    errors = {n: (relative_error(mine[n], truth[n]), relative_error(theirs[n], truth[n])) for n in truth}
    assert all(error > 0 for _, error in errors.values()), "the truth is no truth"
    wrong = {name: pair for name, pair in errors.items() if not pair[0] <= 2 * pair[1]}
    assert not wrong, ", ".join(f"{name}: {error:.1e} > 2 × {torchs:.1e}" for name, (error, torchs) in wrong.items())


OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"nonlinearity": "relu"},
    "no-bias": {"bias": False},
    "two-layers": {"num_layers": 2},
    "both-ways": {"num_layers": 2, "bidirectional": True},
}
# every option on (T, B, D), every other form with as many as there are
CASES = {name: (dense, options) for name, options in OPTIONS.items()} | {
    name: (form, OPTIONS["both-ways"]) for name, form in FORMS.items() if form is not dense
}
each_case = pytest.mark.parametrize(("form", "options"), CASES.values(), ids=list(CASES))
CELLS = [name for name, options in OPTIONS.items() if "num_layers" not in options]
each_cell = pytest.mark.parametrize("options", [OPTIONS[name] for name in CELLS], ids=CELLS)


def half_precision(form: Form, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    mine, theirs, truth = (model.to(device) for model in trio(dtype, cell=form is cells, **options))
    values = {name: value.to(device) for name, value in drawn(mine, dtype).items()}
    found = solve(form, mine, values)
    assert set(dtypes(found).values()) == {dtype}
    with torch.backends.cudnn.flags(enabled=False):
        at_most_twice_as_wrong(found, solve(form, theirs, values), solve(form, truth, exactly(values)))


@each_half
@each_case
def test_half_precision_is_at_most_twice_as_wrong_as_nn_rnn(form, options, dtype, device):
    half_precision(form, options, dtype, device)


@each_half
@each_cell
def test_cells_in_half_precision_are_at_most_twice_as_wrong(options, dtype, device):
    half_precision(cells, options, dtype, device)


def as_real(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.view_as_real(value.resolve_conj()) for name, value in found.items()}


def complex_values(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Small states: tanh has poles."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    real, imaginary = drawn(model, torch.float64), drawn(model, torch.float64)
    return {name: torch.complex(0.3 * value, -0.2 * imaginary[name].flip(-1)).to(dtype) for name, value in real.items()}


@pytest.mark.parametrize("dtype", COMPLEX, ids=["complex64", "complex128"])
@each_direction
@pytest.mark.parametrize("form", [dense, packed, padded, cells])
def test_complex_numbers_are_those_of_nn_rnn(form, bidirectional, dtype, device):
    options = {} if form is cells else {"num_layers": 2, "bidirectional": bidirectional}
    mine, _, exact = trio(dtype, torch.complex128, form is cells, **options)
    values = {name: value.to(device) for name, value in complex_values(mine, dtype).items()}
    exact.load_state_dict(mine.state_dict())
    found = solve(form, mine.to(device), values)
    truth = solve(form, exact.to(device), exactly(values, torch.complex128))
    assert set(dtypes(found).values()) == {dtype}
    assert all(value.imag.norm() > 0.01 * value.norm() for value in truth.values()), "all but real"
    assert_all_close(as_real(found), as_real(truth), TOLERANCE[COMPLEX[dtype]])


def small_complex(*shape: int, seed: int) -> Tensor:
    real, imaginary = (normal(seeded(seed + i), *shape, scale=0.3) for i in (0, 100))
    return torch.complex(real, imaginary).requires_grad_()


def called(model: nn.Module, run: Callable[..., Any], *values: Tensor) -> Any:
    names = [name for name, _ in model.named_parameters()]
    parameters = dict(zip(names, values[2:], strict=True))
    return run(lambda *args, **kwargs: torch.func.functional_call(model, parameters, args, kwargs), *values[:2])


def in_lengths(model: Any, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    return model(x, hx, lengths=[4, 2])


def in_packs(model: Any, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    output, h_n = model(PackedSequence(x.flatten(0, 1)[[0, 1, 2, 3, 4, 6]], torch.tensor([2, 2, 1, 1])), hx)
    return output.data, h_n


OF_COMPLEX = [(manual_bptt.rnn, name) for name in ("tanh", "sigmoid", "identity")]
OF_COMPLEX += [(dense, "sigmoid"), (cells, "identity"), (in_lengths, "tanh"), (in_packs, "tanh")]


@pytest.mark.parametrize(("run", "nonlinearity"), OF_COMPLEX)
def test_numerical_derivatives_of_complex_numbers(run, nonlinearity):
    """Gradients, double backward, forward mode and both together; of dense ones batched too."""
    function = partial(manual_bptt.rnn, nonlinearity=nonlinearity)
    shapes: list[tuple[int, ...]] = [(4, 2, 2), (2, 3), (3, 2), (3, 3), (3,)]
    if run is not manual_bptt.rnn:
        options = {"nonlinearity": nonlinearity, "dtype": torch.complex128}
        model = manual_bptt.RNNCell(2, 3, **options) if run is cells else manual_bptt.RNN(2, 3, **options)
        function = partial(called, model, run)
        shapes = [(4, 2, 2), (1, 2, 3), *(tuple(p.shape) for p in model.parameters())]
    values = [small_complex(*shape, seed=10 + i) for i, shape in enumerate(shapes)]
    modes = {"fast_mode": True, "check_batched_grad": run is dense}
    assert gradcheck(function, values, **modes, check_forward_ad=True, check_batched_forward_grad=run is dense)
    assert gradgradcheck(function, values, **modes, check_fwd_over_rev=True)


@pytest.mark.parametrize("kind", ["RNN", "RNNCell"])
@pytest.mark.parametrize("dtype", COMPLEX, ids=["complex64", "complex128"])
def test_relu_of_complex_numbers_is_refused_as_torch_does(kind, dtype):
    x, refusals = small_complex(4, 2, seed=1).to(dtype), []
    for module in (getattr(manual_bptt, kind), getattr(nn, kind)):
        with pytest.raises(Exception, match="complex") as caught:
            module(2, 3, nonlinearity="relu", dtype=dtype)(x)
        refusals.append(caught.type)
    assert refusals[0] is refusals[1]


def test_rnn_refuses_relu_of_complex_numbers():
    x, U, W = small_complex(4, 2, 2, seed=1), small_complex(3, 2, seed=2), small_complex(3, 3, seed=3)
    with pytest.raises(TypeError, match=r"expected W of a floating dtype, got torch\.complex128"):
        manual_bptt.rnn(x, None, U, W, nonlinearity="relu")


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=dtype)


def mixed_precision(
    form: Form, options: dict[str, Any], dtype: torch.dtype, given: torch.dtype, device: torch.device
) -> None:
    mine, theirs, truth = (model.to(device) for model in trio(torch.float32, cell=form is cells, **options))
    values = {name: value.to(device) for name, value in drawn(mine, given).items()}
    found = solve(form, mine, values, autocast(dtype, device))
    with torch.backends.cudnn.flags(enabled=False):
        expected = solve(form, theirs, values, autocast(dtype, device))
        exact = solve(form, truth, exactly(values))
    assert dtypes(found) == dtypes(expected)
    assert found["output"].dtype == found["h_n"].dtype == dtype
    assert {value.dtype for name, value in found.items() if "weight" in name or "bias" in name} == {torch.float32}
    at_most_twice_as_wrong(found, expected, exact)


@each_half
@pytest.mark.parametrize("cast_before", BOTH, ids=["float32-in", "half-in"])
@each_case
def test_autocast_gives_nn_rnns_dtypes_and_at_most_twice_its_error(form, options, cast_before, dtype, device):
    mixed_precision(form, options, dtype, dtype if cast_before else torch.float32, device)


@each_half
@each_cell
def test_cells_under_autocast(options, dtype, device):
    mixed_precision(cells, options, dtype, torch.float32, device)


def outcome(module: type[nn.Module], of_module: torch.dtype, *inputs: Tensor | None) -> Any:
    try:
        results = module(D, H, dtype=of_module)(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return type(error)
    return [value.dtype for value in (results if isinstance(results, tuple) else (results,))]


@each_half
@pytest.mark.parametrize("kind", ["RNN", "RNNCell"])
@pytest.mark.parametrize("of_input", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_mixture_under_autocast_works_or_fails_as_in_torch(of_input, kind, dtype):
    """On the CPU only: the dtypes of the results, or the type of the exception."""
    steps, places = ((4,), (1,)) if kind == "RNN" else ((), ())
    x, found, truth = torch.full((*steps, 2, D), 3 * D, dtype=of_input), {}, {}
    for of_module in (torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        for of_hx in (None, torch.bfloat16, torch.float32, torch.float64):
            hx = None if of_hx is None else torch.ones(*places, 2, H, dtype=of_hx)
            with torch.autocast("cpu", dtype=dtype):
                found[of_module, of_hx] = outcome(getattr(manual_bptt, kind), of_module, x, hx)
                truth[of_module, of_hx] = outcome(getattr(nn, kind), of_module, x, hx)
    assert found == truth


@each_half
@each_form
def test_a_float64_module_stays_float64_under_autocast(form, dtype, device):
    mine, theirs, _ = (model.to(device) for model in trio(torch.float64, num_layers=2, bidirectional=True))
    values = {name: value.to(device) for name, value in drawn(mine, torch.float64).items()}
    found = solve(form, mine, values, autocast(dtype, device), autocast(dtype, device))
    with torch.backends.cudnn.flags(enabled=False):
        expected = solve(form, theirs, values, autocast(dtype, device))
    assert set(dtypes(found).values()) == set(dtypes(expected).values()) == {torch.float64}
    assert_all_close(found, expected, TOLERANCE[torch.float64])


@each_half
@each_case
def test_backward_inside_the_autocast_region_is_backward_outside(form, options, dtype, device):
    mine = trio(torch.float32, **options)[0].to(device)
    values = {name: value.to(device) for name, value in drawn(mine, torch.float32).items()}
    outside = solve(form, mine, values, autocast(dtype, device))
    inside = solve(form, mine, values, autocast(dtype, device), autocast(dtype, device))
    assert dtypes(inside) == dtypes(outside)
    for name, value in inside.items():
        assert torch.equal(value, outside[name]), name


@each_half
def test_a_float32_forward_pass_with_its_backward_under_autocast_is_float32(dtype, device):
    mine = trio(torch.float32, num_layers=2, bidirectional=True)[0].to(device)
    values = {name: value.to(device) for name, value in drawn(mine, torch.float32).items()}
    plain, found = solve(dense, mine, values), solve(dense, mine, values, None, autocast(dtype, device))
    for name, value in found.items():
        assert torch.equal(value, plain[name]), name


@each_half
def test_autocast_switched_off_inside_leaves_float32(dtype, device):
    mine = trio(torch.float32)[0].to(device)
    values = {name: value.to(device) for name, value in drawn(mine, torch.float32).items()}
    with autocast(dtype, device):
        found = solve(dense, mine, values, torch.autocast(device.type, enabled=False))
    for name, value in solve(dense, mine, values).items():
        assert torch.equal(found[name], value), name


def penalty(model: nn.Module, values: dict[str, Tensor], region: AbstractContextManager[Any]) -> dict[str, Tensor]:
    """Second derivatives: of the squared gradient with respect to the input, all of it in the region."""
    x, parameters = values["x"].clone().requires_grad_(), dict(model.named_parameters())
    with region:
        output, _ = model(x, values["hx"])
        (dx,) = torch.autograd.grad((output * values["to output"]).sum(), x, create_graph=True)
        square = dx.square().sum()
    gradients = torch.autograd.grad(square, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


@each_half
def test_double_backward_under_autocast_is_at_most_twice_as_wrong(dtype, device):
    mine, theirs, truth = (model.to(device) for model in trio(torch.float32, num_layers=2, bidirectional=True))
    values = {name: value.to(device) for name, value in drawn(mine, torch.float32).items()}
    with torch.backends.cudnn.flags(enabled=False):
        expected = penalty(theirs, values, autocast(dtype, device))
        exact = penalty(truth, exactly(values), nullcontext())
    at_most_twice_as_wrong(penalty(mine, values, autocast(dtype, device)), expected, exact)


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_is_that_of_new_modules(dtype, default_dtype):
    default_dtype(dtype)
    for module in (manual_bptt.RNN(D, H), manual_bptt.RNNCell(D, H)):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        output = module(torch.ones(4, D))
        assert (output[0] if isinstance(output, tuple) else output).dtype == dtype


@pytest.mark.parametrize("default", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64])
@pytest.mark.parametrize("form", [dense, packed, padded])
def test_the_default_dtype_changes_nothing_for_other_modules(form, dtype, default, default_dtype):
    mine = manual_bptt.RNN(D, H, 2, bidirectional=True, dtype=dtype)
    values = drawn(mine, dtype)
    before = solve(form, mine, values)
    default_dtype(default)
    after = solve(form, mine, values)
    assert set(dtypes(after).values()) == {dtype}
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert torch.equal(mine(values["x"])[0], mine(values["x"], torch.zeros_like(values["hx"]))[0])


@pytest.mark.parametrize("strict", BOTH, ids=["as-it-is", "deterministic-algorithms"])
@each_form
def test_two_runs_are_bitwise_equal(form, strict, device):
    mine = trio(torch.float32, num_layers=2, bidirectional=True, dropout=0.3)[0].to(device)
    values = {name: value.to(device) for name, value in drawn(mine, torch.float32).items()}
    torch.use_deterministic_algorithms(strict)
    try:
        runs = []
        for _ in range(2):
            torch.manual_seed(0)
            runs.append(solve(form, mine, values))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


LONG = 20_000
ALONG: dict[str, Callable[[Any, Tensor], tuple[Any, Tensor]]] = {
    "dense": lambda model, x: model(x),
    "packed": lambda model, x: model(pack_padded_sequence(x, torch.tensor([LONG]))),
    "lengths": lambda model, x: model(x, lengths=[LONG]),
}


def long_run(module: type[nn.RNNBase], run: Callable[[Any, Tensor], tuple[Any, Tensor]]) -> dict[str, Tensor]:
    torch.default_generator.manual_seed(0)
    model, x = module(2, 3, dtype=torch.float64), normal(seeded(1), LONG, 1, 2).requires_grad_()
    output, h_n = run(model, x)
    output = output.data.unsqueeze(1) if isinstance(output, PackedSequence) else output
    upstream = normal(seeded(2), *output.shape), normal(seeded(3), *h_n.shape)
    of = {"x": x, **dict(model.named_parameters())}
    gradients = torch.autograd.grad((output, h_n), list(of.values()), upstream)
    return {"output": output, "h_n": h_n} | {f"d{name}": g for name, g in zip(of, gradients, strict=True)}


@pytest.fixture(scope="module")
def long_run_of_torch() -> dict[str, Tensor]:
    return long_run(nn.RNN, ALONG["dense"])


@pytest.mark.parametrize("form", ALONG)
def test_twenty_thousand_steps(form, long_run_of_torch):
    """No recursion in the way, and the numbers of torch.nn.RNN at the end of it."""
    assert_all_close(long_run(manual_bptt.RNN, ALONG[form]), long_run_of_torch, TOLERANCE[torch.float64])


def test_a_second_derivative_over_more_steps_than_python_recurses():
    mine = manual_bptt.RNN(2, 3, dtype=torch.float64)
    x = normal(seeded(1), 4000, 1, 2).requires_grad_()
    (dx,) = torch.autograd.grad(mine(x)[0].square().sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.square().sum(), x)
    assert ddx.isfinite().all()
    assert ddx.any()
