"""Every slip of the two source documents in numbers: the right formula holds, the printed one does not.

Would catch: a "correction" in docs/derivation.md that is itself wrong, or one that corrects nothing because
the printed formula gives the same number. The truth is always torch autograd (once a complex step in NumPy)
on a forward pass written in this file, in the column form of the documents; nothing of the project is
imported. The table "Slips in the source documents" of docs/derivation.md names each of these tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

EXACT = 1e-12  # float64, at most some hundred operations
DIFFERENT = 1e-2  # a printed formula counts as wrong only when it misses by more than one per cent


@dataclass(frozen=True)
class Network:
    """One sequence through F1 to F5 with the graph kept: vectors are columns, lists run over t = 1..T."""

    U: Tensor  # (H, D)
    W: Tensor  # (H, H)
    V: Tensor  # (K, H)
    b: Tensor  # (H,)
    c: Tensor  # (K,)
    h0: Tensor  # (H,)
    x: list[Tensor]  # each (D,)
    y: list[Tensor]  # each (K,), one-hot
    a: list[Tensor]  # each (H,)
    h: list[Tensor]  # each (H,)
    o: list[Tensor]  # each (K,)
    loss: Tensor  # softmax + cross-entropy, summed over time

    def grad(self, *wanted: Tensor) -> tuple[Tensor, ...]:
        """Autograd's dL/d(wanted)."""
        return torch.autograd.grad(self.loss, wanted, retain_graph=True)

    @property
    def y_hat(self) -> list[Tensor]:
        """Network outputs F4."""
        return [o.softmax(0) for o in self.o]

    @property
    def h_prev(self) -> list[Tensor]:
        """h_0 .. h_{T-1}."""
        return [self.h0, *self.h[:-1]]


def network(
    *,
    T: int = 6,
    D: int = 3,
    H: int = 4,
    K: int = 5,
    f: Callable[[Tensor], Tensor] = torch.tanh,
    seed: int = 0,
) -> Network:
    """A generic problem: D != H != K, h0 != 0, W not symmetric, |a| around 1, a loss at every step."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    U, W, V = leaf(H, D, scale=D**-0.5), leaf(H, H, scale=H**-0.5), leaf(K, H)
    b, c, h0 = leaf(H, scale=0.3), leaf(K, scale=0.3), leaf(H, scale=0.7)
    x = [leaf(D) for _ in range(T)]
    classes = torch.randint(K, (T,), generator=generator)
    y = list(torch.nn.functional.one_hot(classes, K).to(torch.float64))
    a, h, o = [], [], []
    state = h0
    for x_t in x:
        a.append(U @ x_t + W @ state + b)
        state = f(a[-1])
        h.append(state)
        o.append(V @ state + c)
    loss = torch.stack([-y_t @ o_t.log_softmax(0) for y_t, o_t in zip(y, o, strict=True)]).sum()
    return Network(U, W, V, b, c, h0, x, y, a, h, o, loss)


def error(got: Tensor, truth: Tensor) -> float:
    """Norm of the difference, relative to the truth's norm."""
    assert got.shape == truth.shape
    return size(got - truth) / size(truth)


def size(tensor: Tensor) -> float:
    """Root of the sum of squares."""
    return float(tensor.detach().norm())


def spectral_norm(matrix: Tensor) -> float:
    """Largest singular value."""
    return float(torch.linalg.matrix_norm(matrix.detach(), 2))


def spectral_radius(matrix: Tensor) -> float:
    """Largest modulus of an eigenvalue."""
    return float(torch.linalg.eigvals(matrix.detach()).abs().max())


def outer_sum(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The sum over t of left_t right_tᵀ."""
    return torch.stack([torch.outer(p, q) for p, q in zip(left, right, strict=True)]).sum(0)


def backward_states(net: Network, slopes: Sequence[Tensor]) -> list[Tensor]:
    """dL/dh_t by B1, B3 and B4, where slopes[t-1] takes the place of f'(a_t)."""
    carry = torch.zeros_like(net.h0)
    dh: list[Tensor] = []
    for y_hat, y, slope in zip(reversed(net.y_hat), reversed(net.y), reversed(slopes), strict=True):
        dh.insert(0, net.V.T @ (y_hat - y) + carry)
        carry = net.W.T @ (slope * dh[0])
    return dh


def last_to_first(W: Tensor, *, T: int, f: Callable[[Tensor], Tensor], h0: Tensor, b: Tensor) -> Tensor:
    """The Jacobian ∂h_T/∂h_0 of h_t = f(W h_{t-1} + b), by autograd: entry (i, j) is ∂h_T,i/∂h_0,j."""

    def run(state: Tensor) -> Tensor:
        for _ in range(T):
            state = f(W @ state + b)
        return state

    return jacobian(run, h0)


def identity(a: Tensor) -> Tensor:
    return a


def matrix(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


# Document 000, sections 1.3 and 1.4: notation, layout, output layer


def test_u_and_w_change_places_between_the_sections():
    net = network(D=4, H=4)  # with D = H the mix-up fits every shape
    da = net.grad(*net.a)
    hidden_to_hidden, input_to_hidden = net.grad(net.W, net.U)  # U and W of section 1.3, in this order
    dU_of_section_1_4, dW_of_section_1_4 = outer_sum(da, net.x), outer_sum(da, net.h_prev)
    assert error(dW_of_section_1_4, hidden_to_hidden) < EXACT
    assert error(dU_of_section_1_4, input_to_hidden) < EXACT
    assert error(dU_of_section_1_4, hidden_to_hidden) > DIFFERENT
    assert error(dW_of_section_1_4, input_to_hidden) > DIFFERENT


def test_denominator_layout_example_ends_with_row_m_of_a():
    A = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(4, 3)  # m = 4, n = 3
    numerator_layout = jacobian(lambda x: A @ x, torch.ones(3, dtype=torch.float64))
    denominator_layout = numerator_layout.T
    m, n = A.shape
    assert torch.equal(denominator_layout, A.T)
    assert denominator_layout[1, m - 1] == A[m - 1, 1]  # A_m2
    assert denominator_layout[1, m - 1] != A[n - 1, 1]  # A_n2 as printed


def test_softmax_jacobian_is_negative_off_the_diagonal():
    o = network().o[0].detach()
    y_hat = o.softmax(0)
    truth = jacobian(lambda z: z.softmax(0), o)
    right = torch.diag(y_hat) - torch.outer(y_hat, y_hat)
    printed = torch.where(torch.eye(len(o), dtype=torch.bool), right, torch.outer(y_hat, y_hat))
    assert error(right, truth) < EXACT
    assert error(printed, truth) > DIFFERENT
    assert size(truth.sum(0)) < EXACT  # probabilities keep their sum
    assert size(printed.sum(0)) > DIFFERENT


def test_softmax_cases_meet_only_with_the_minus_and_component_i():
    net = network()
    (truth,) = net.grad(net.o[0])
    y, y_hat = net.y[0], net.y_hat[0]
    j = int(y.argmax())
    off = torch.arange(len(y)) != j
    printed_cases = -torch.where(off, y[j] * y_hat, y[j] * (1 - y_hat))  # without the minus
    printed_form = (y_hat[j] - y[j]).expand_as(y)  # index j in every component
    assert error(y_hat - y, truth) < EXACT
    assert error(-torch.where(off, -y[j] * y_hat, y[j] * (1 - y_hat)), truth) < EXACT
    assert error(printed_cases, truth) > DIFFERENT
    assert error(printed_form, truth) > DIFFERENT
    assert error(printed_cases[off], -truth[off]) < EXACT  # what the missing minus does


def test_chain_of_the_output_layer_runs_backwards_in_denominator_layout():
    net = network(H=5, K=5)  # K = H: the wrong order fits the next link too
    y, y_hat = net.y[0], net.y_hat[0]
    (do,) = net.grad(net.o[0])
    dL_dy_hat = (-y / y_hat)[:, None]  # a column, as the denominator layout has it
    dy_hat_do = jacobian(lambda z: z.softmax(0), net.o[0].detach()).T
    assert error((dy_hat_do @ dL_dy_hat)[:, 0], do) < EXACT
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        dL_dy_hat @ dy_hat_do
    # As a row it gives the same numbers, but only because the softmax Jacobian is symmetric:
    assert error((dL_dy_hat.T @ dy_hat_do)[0], do) < EXACT
    do_dh = net.V.T  # ∂o/∂h in denominator layout
    truth = jacobian(lambda h: net.V.detach() @ h, net.h[0].detach()).T @ do
    assert error(do_dh @ do, truth) < EXACT
    assert error(do @ do_dh, truth) > DIFFERENT


def test_chain_for_dv_starts_from_dv_not_dc():
    net = network()
    dV, dc = net.grad(net.V, net.c)
    assert dV.shape == net.V.shape
    assert dc.shape == net.c.shape != dV.shape
    do = net.grad(*net.o)
    assert error(outer_sum(do, net.h), dV) < EXACT
    assert error(dc[:, None].expand_as(dV), dV) > DIFFERENT  # the only way to read dV = dc at all


def test_dv_is_an_outer_product():
    net = network()
    (dV,) = net.grad(net.V)
    errors = [y_hat - y for y_hat, y in zip(net.y_hat, net.y, strict=True)]
    assert error(outer_sum(errors, net.h), dV) < EXACT
    with pytest.raises(RuntimeError, match="must match"):
        errors[0] * net.h[0]  # K != H: the product as printed does not exist
    square = network(H=5, K=5)
    (dV,) = square.grad(square.V)
    errors = [y_hat - y for y_hat, y in zip(square.y_hat, square.y, strict=True)]
    printed = torch.stack([e * h for e, h in zip(errors, square.h, strict=True)]).sum(0)  # K = H: a vector
    assert printed.shape != dV.shape
    assert error(printed, dV.diagonal()) < EXACT  # it is the diagonal alone
    assert error(torch.diag(printed), dV) > DIFFERENT


# Document 000, section 1.4: recurrent layer


def test_da_dw_is_a_third_order_object():
    net = network()
    h, W = net.h[0].detach(), net.W.detach()
    H = len(h)
    truth = jacobian(lambda matrix: matrix @ h, W)  # entry (i, j, k) is ∂a_i/∂W_jk
    right = torch.einsum("ij,k->ijk", torch.eye(H, dtype=torch.float64), h)
    assert error(right, truth) < EXACT
    assert int((truth != 0).sum()) == H * H
    assert torch.diag(h).shape != truth.shape
    printed = torch.zeros_like(truth)  # diag(hᵀ) keeps ∂a_j/∂W_jj alone
    index = torch.arange(H)
    printed[index, index, index] = h
    assert int((printed != 0).sum()) == H
    assert error(printed, truth) > DIFFERENT

    da = net.grad(*net.a)
    (dW,) = net.grad(net.W)
    contracted = torch.zeros_like(W)  # the sum over i of dL/da_i ∂a_i/∂W_jk, and over t
    for d, state in zip(da, net.h_prev, strict=True):
        contracted += torch.einsum("i,ij,k->jk", d, torch.eye(H, dtype=torch.float64), state.detach())
    assert error(contracted, dW) < EXACT


def test_diag_products_are_not_the_outer_products_they_are_set_equal_to():
    net = network()
    da = net.grad(*net.a)
    dW, dU = net.grad(net.W, net.U)
    assert error(outer_sum(da, net.h_prev), dW) < EXACT
    assert error(outer_sum(da, net.x), dU) < EXACT
    printed = torch.stack([torch.diag(h) @ d for h, d in zip(net.h_prev, da, strict=True)]).sum(0)
    assert printed.shape == net.b.shape != dW.shape
    assert error(printed, dW.diagonal()) < EXACT  # the diagonal of dW, nothing else of it
    assert error(torch.diag(printed), dW) > DIFFERENT
    with pytest.raises(RuntimeError, match="size mismatch"):
        torch.diag(net.x[0]) @ da[0]  # D != H: diag(xᵀ) does not even fit


def test_du_takes_the_input_of_its_own_step():
    net = network()
    da = net.grad(*net.a)
    (dU,) = net.grad(net.U)
    assert error(outer_sum(da, net.x), dU) < EXACT
    for x in net.x:  # one x without a time index, whichever it is
        assert error(outer_sum(da, [x] * len(da)), dU) > DIFFERENT


# Document 000, sections 1.5 and 1.6: vanishing and exploding


def test_tanh_derivative_reaches_one():
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.tanh(zero), zero)
    assert slope.item() == 1.0
    assert np.tanh(1e-30j).imag / 1e-30 == 1.0  # complex step
    assert not 0 < slope.item() < 1  # the open interval leaves out the value that is there
    a = np.linspace(-8.0, 8.0, 1001)
    slopes = np.tanh(a + 1e-30j).imag / 1e-30
    assert 0 < slopes.min() < slopes.max() <= 1.0


def test_powers_fall_from_the_last_step_on():
    net = network(T=7, f=identity)
    T, t = len(net.h), 3
    step = {s: net.V.T @ (net.y_hat[s - 1] - net.y[s - 1]) for s in range(t - 1, T + 1)}
    (truth,) = net.grad(net.h[t - 2])  # dL/dh_{t-1}

    def total(power: Callable[[int], int]) -> Tensor:
        terms = [torch.linalg.matrix_power(net.W.T, power(s)) @ g for s, g in step.items()]
        return torch.stack(terms).sum(0)

    def printed(s: int) -> int:
        return s - (t - 1) if s <= t else (T - t + 1) + (T - s)

    assert [printed(s) for s in (T, T - 1, T - 2, t, t - 1)] == [T - t + 1, T - t + 2, T - t + 3, 1, 0]
    assert error(total(lambda s: s - t + 1), truth) < EXACT
    assert error(total(printed), truth) > DIFFERENT


def test_tanh_prime_is_taken_at_a_not_at_h():
    net = network()
    truth = net.grad(*net.h)
    right = backward_states(net, [1 - h**2 for h in net.h])
    printed = backward_states(net, [1 - torch.tanh(h) ** 2 for h in net.h])  # tanh(h)' read at its word
    assert error(torch.stack(right), torch.stack(truth)) < EXACT
    assert error(torch.stack(printed), torch.stack(truth)) > DIFFERENT
    at_a = torch.autograd.grad(torch.tanh(net.a[0]).sum(), net.a[0])[0]
    assert error(1 - net.h[0] ** 2, at_a) < EXACT


def test_near_terms_stay_when_the_far_term_vanishes():
    net = network(T=60)
    (truth,) = net.grad(net.h[0])
    terms, path = [], torch.eye(len(net.h0), dtype=torch.float64)
    for s, h in enumerate(net.h):  # the path from step s+1 back to step 1
        if s > 0:
            path = path @ net.W.T @ torch.diag(1 - h**2)
        terms.append(path @ net.V.T @ (net.y_hat[s] - net.y[s]))
    assert error(torch.stack(terms).sum(0), truth) < EXACT
    assert size(terms[-1]) / size(truth) < 1e-6  # the far term is gone,
    assert error(terms[0], truth) > DIFFERENT  # and still step 1 is not left alone,
    assert error(torch.stack(terms[:30]).sum(0), truth) < 1e-3  # the steps near it are there,
    assert size(truth) > 0.1  # and the sum has not vanished


def test_small_entries_of_w_can_still_explode():
    H, T = 8, 40
    zeros = torch.zeros(H, dtype=torch.float64)
    W = 0.3 + 0.1 * torch.rand(H, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert 0 < float(W.min()) < float(W.max()) < 1  # every entry of Wᵀ diag(tanh') is small
    grown = last_to_first(W, T=T, f=torch.tanh, h0=zeros, b=zeros)  # at a = 0, where tanh' = 1
    assert spectral_norm(grown) > 1e15
    # The size that decides is a singular value, not an entry:
    assert spectral_norm(W) > 1
    shrunk = last_to_first(0.9 / spectral_norm(W) * W, T=T, f=torch.tanh, h0=zeros, b=zeros)
    assert spectral_norm(shrunk) <= 0.9**T * (1 + 1e-9)


def test_the_printed_explosion_condition_holds_and_the_gradient_vanishes():
    W, b, h0 = matrix([1.5, 0.8], [0.3, 1.2]), vector(1.0, 1.5), vector(0.9, 0.8)
    h = h0
    for _ in range(20):
        h = torch.tanh(W @ h + b)
        assert bool((W @ torch.tanh(h) > 1).all())  # the condition at every step, as printed
    saturated = last_to_first(W, T=20, f=torch.tanh, h0=h0, b=b)
    assert spectral_norm(W) > 1
    assert spectral_norm(saturated) < 1e-20


def test_sigma_max_above_one_is_necessary_for_exploding_but_not_sufficient():
    zeros = torch.zeros(2, dtype=torch.float64)
    W = matrix([0.5, 10.0], [0.0, 0.5])  # not normal: both eigenvalues are 0.5
    assert spectral_norm(W) > 10
    assert spectral_norm(last_to_first(W, T=100, f=identity, h0=zeros, b=zeros)) < 1e-20  # not sufficient
    grown = last_to_first(2 * torch.eye(2, dtype=torch.float64), T=30, f=identity, h0=zeros, b=zeros)
    assert spectral_norm(grown) == pytest.approx(2.0**30)  # above one it can explode,
    net = network()
    for sigma in (0.5, 0.95):  # below one it cannot, whatever the states: that is "necessary"
        W = sigma / spectral_norm(net.W) * net.W.detach()
        for T in (1, 5, 30):
            shrunk = last_to_first(W, T=T, f=torch.tanh, h0=net.h0.detach(), b=net.b.detach())
            assert 0 < spectral_norm(shrunk) <= sigma**T * (1 + 1e-9)


# Document 003


def test_eigenvalue_minus_two_explodes():
    zeros = torch.zeros(2, dtype=torch.float64)
    minus_two, half = matrix([-2.0, 1.0], [0.0, 0.3]), matrix([0.5, 1.0], [0.0, 0.3])
    for W in (minus_two, half):
        assert bool((torch.linalg.eigvals(W).real < 1).all())  # every eigenvalue "smaller than 1"
    grown = last_to_first(minus_two, T=40, f=identity, h0=zeros, b=zeros)
    shrunk = last_to_first(half, T=40, f=identity, h0=zeros, b=zeros)
    assert spectral_radius(minus_two) == pytest.approx(2)
    assert spectral_norm(grown) >= 2.0**40
    assert spectral_radius(half) == pytest.approx(0.5)
    assert spectral_norm(shrunk) < 1e-10
    rotation = matrix([0.0, -1.1], [1.1, 0.0])  # eigenvalues ±1.1i are not ordered with 1 at all
    grown = last_to_first(rotation, T=100, f=identity, h0=zeros, b=zeros)
    assert spectral_radius(rotation) == pytest.approx(1.1)
    assert spectral_norm(grown) == pytest.approx(1.1**100)


def test_eigenvalues_decide_only_the_limit_of_equal_factors():
    zeros = torch.zeros(2, dtype=torch.float64)
    W = matrix([0.9, 5.0], [0.0, 0.9])
    assert spectral_radius(W) == pytest.approx(0.9)
    assert spectral_norm(last_to_first(W, T=10, f=identity, h0=zeros, b=zeros)) > 15  # grows at first
    assert spectral_norm(last_to_first(W, T=400, f=identity, h0=zeros, b=zeros)) < 1e-10  # then vanishes
    jordan = matrix([1.0, 1.0], [0.0, 1.0])  # both eigenvalues exactly 1, and still no bound
    assert spectral_norm(last_to_first(jordan, T=200, f=identity, h0=zeros, b=zeros)) > 200
    # Slopes that change from step to step: both factors have only the eigenvalue 0, their product grows.
    W = matrix([0.0, 2.0], [2.0, 0.0])
    first, second = W @ torch.diag(vector(1.0, 0.0)), W @ torch.diag(vector(0.0, 1.0))
    assert spectral_radius(first) == pytest.approx(0, abs=1e-6)
    assert spectral_radius(second) == pytest.approx(0, abs=1e-6)
    assert spectral_norm(torch.linalg.matrix_power(first @ second, 20)) == pytest.approx(4.0**20)


def test_h_t_feeds_h_t_plus_1_and_not_the_reverse():
    net = network(f=identity)
    for t in range(len(net.h) - 1):
        for later in (net.h[t + 1], net.o[t]):
            (forward,) = torch.autograd.grad(later.sum(), net.h[t], retain_graph=True)
            assert size(forward) > DIFFERENT  # what follows depends on h_t
            (reverse,) = torch.autograd.grad(net.h[t].sum(), later, retain_graph=True, allow_unused=True)
            assert reverse is None  # h_t does not depend on it


def test_total_times_total_counts_paths_twice():
    net = network(f=identity)
    (dW,) = net.grad(net.W)
    total = net.grad(*net.h)  # dL/dh_t with every later step in it

    def through_every_earlier_step(weights: Sequence[Tensor]) -> Tensor:
        """The sum over t of weights_t times the total derivative of h_t with respect to W."""
        terms = [
            torch.autograd.grad(h, net.W, grad_outputs=g, retain_graph=True)[0]
            for g, h in zip(weights, net.h, strict=True)
        ]
        return torch.stack(terms).sum(0)

    own_loss = [net.V.T @ (y_hat - y) for y_hat, y in zip(net.y_hat, net.y, strict=True)]
    assert error(outer_sum(total, net.h_prev), dW) < EXACT  # total dL/dh_t, immediate ∂h_t/∂W
    assert error(through_every_earlier_step(own_loss), dW) < EXACT  # immediate, total: right as well
    assert error(through_every_earlier_step(total), dW) > DIFFERENT  # both total
    assert error(outer_sum(own_loss, net.h_prev), dW) > DIFFERENT  # both immediate
