"""Clipping is g ← min(1, θ/‖g‖) g, exactly; torch's own, which adds 10⁻⁶ to the norm, is something else.

Would catch: a factor applied per tensor in place of over all; a gradient of norm θ, or below, that is touched; torch's
10⁻⁶; a norm that is not finite passed over; gradients changed before an error is raised; a bound that cannot be one.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from manual_bptt import clip_gradient_norm, clip_gradient_value


def parameters(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Parameters with gradients of norm 13·scale together, and one without a gradient."""
    made = [torch.zeros(2, dtype=dtype), torch.zeros(3, 1, dtype=dtype), torch.zeros(4, dtype=dtype)]
    made[0].grad = scale * torch.tensor([3.0, 0.0], dtype=dtype)
    made[1].grad = scale * torch.tensor([[4.0], [0.0], [-12.0]], dtype=dtype)
    return made


def gradients(made: list[Tensor]) -> Tensor:
    return torch.cat([each.grad.flatten() for each in made if each.grad is not None])


@pytest.mark.parametrize("bound", [0.1, 1.0, 12.999, 13.0, 13.001, 100.0, math.inf])
def test_the_gradient_is_scaled_by_the_smaller_of_one_and_bound_over_norm(bound):
    made = parameters()
    before = gradients(made)
    norm = clip_gradient_norm(made, bound)
    assert norm.shape == ()
    torch.testing.assert_close(norm, before.norm(), rtol=1e-15, atol=0)
    torch.testing.assert_close(gradients(made), min(1.0, bound / 13) * before, rtol=1e-14, atol=0)
    if bound > 13:
        assert torch.equal(gradients(made), before)
    assert made[2].grad is None


def test_torch_s_own_is_not_exact():
    """It divides by ‖g‖ + 10⁻⁶: what need not be clipped is, and small gradients by half."""
    for scale, bound in ((1.0, 13.0), (1e-6 / 13, 1e-6)):
        exact, theirs = parameters(scale), parameters(scale)
        clip_gradient_norm(exact, bound)
        clip_grad_norm_(theirs, bound)
        torch.testing.assert_close(gradients(exact), gradients(parameters(scale)), rtol=1e-14, atol=0)
        wanted = min(1.0, bound / (13 * scale + 1e-6))
        assert wanted < 1
        torch.testing.assert_close(gradients(theirs), wanted * gradients(parameters(scale)), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.tensor(wanted), torch.tensor(0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_every_dtype_keeps_it(dtype):
    made = parameters(dtype=dtype)
    clip_gradient_norm(made, 1.0)
    assert all(each.grad.dtype == dtype for each in made if each.grad is not None)
    assert gradients(made).abs().square().sum().sqrt().item() == pytest.approx(1.0, rel=1e-2)


def test_a_single_tensor_and_an_iterator_and_nothing():
    made = parameters()
    assert clip_gradient_norm(made[1], 1.0).item() == pytest.approx(160**0.5)
    assert clip_gradient_norm(iter(parameters()), 1.0).item() == pytest.approx(13)
    assert clip_gradient_norm([], 1.0).item() == 0
    zero = parameters(0.0)
    clip_gradient_norm(zero, 1.0)
    assert torch.equal(gradients(zero), torch.zeros(5, dtype=torch.float64))


def test_without_a_bound_even_infinite_gradients_stay_as_they_are():
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([math.inf, 1.0, -2.0])
    assert clip_gradient_norm(parameter, math.inf) == math.inf
    assert parameter.grad.tolist() == [math.inf, 1.0, -2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_raised_or_scaled_as_torch_does(bad):
    made = parameters()
    made[0].grad[1] = bad
    before = [None if each.grad is None else each.grad.clone() for each in made]
    with pytest.raises(RuntimeError, match=r"clip_gradient_norm: expected gradients of a finite norm, got (nan|inf)"):
        clip_gradient_norm(made, 1.0, error_if_nonfinite=True)
    for each, old in zip(made, before, strict=True):
        torch.testing.assert_close(each.grad, old, rtol=0, atol=0, equal_nan=True)
    theirs = parameters()
    theirs[0].grad[1] = bad
    norm = clip_gradient_norm(made, 1.0)
    torch.testing.assert_close(norm, clip_grad_norm_(theirs, 1.0), equal_nan=True)
    torch.testing.assert_close(gradients(made), gradients(theirs), equal_nan=True)


def test_values_are_clipped_each_by_itself():
    made, theirs = parameters(), parameters()
    clip_gradient_value(made, 5)
    clip_grad_value_(theirs, 5)
    assert gradients(made).tolist() == [3, 0, 4, 0, -5]
    assert torch.equal(gradients(made), gradients(theirs))


@pytest.mark.parametrize("clip", [clip_gradient_norm, clip_gradient_value])
@pytest.mark.parametrize("bound", [0, -1.0, math.nan])
def test_a_bound_that_is_not_positive_is_refused(clip, bound):
    made = parameters()
    with pytest.raises(ValueError, match=rf"{clip.__name__}: expected (max_norm|bound) to be positive, got {bound}"):
        clip(made, bound)
    assert torch.equal(gradients(made), gradients(parameters()))


@pytest.mark.parametrize("clip", [clip_gradient_norm, clip_gradient_value])
def test_what_is_no_number_or_tensor_is_refused(clip):
    with pytest.raises(TypeError, match=r"expected (max_norm|bound) to be a number, got str"):
        clip(parameters(), "5")
    with pytest.raises(TypeError, match=r"expected (max_norm|bound) to be a number, got bool"):
        clip(parameters(), True)
    with pytest.raises(TypeError, match=r"expected parameters to be tensors, got int"):
        clip([1], 5.0)
