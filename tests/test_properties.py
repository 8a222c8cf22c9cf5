"""What holds for every network, at random small sizes: no example was chosen, and little of it needs a witness.

Would catch: a size or a combination that nobody thought of, rows of a batch that mix, a state or gradient that is not
carried across the border when a sequence is cut in two, a gradient that is not linear in what comes down.
"""

import hypothesis
import torch
from hypothesis import strategies
from problems import (
    NONLINEARITIES,
    TOLERANCE,
    Problem,
    Sizes,
    assert_all_close,
    by_bptt,
    by_create_graph,
    by_functions,
    gradient_names,
    leaves,
    make_problem,
    normal,
    seeded,
    truth_of,
)
from torch import Tensor

from manual_bptt import rnn

EXACT = TOLERANCE[torch.float64]
PARAMETERS = ("dU", "dW", "dV", "db", "dc")
for_all = hypothesis.settings(deadline=None, max_examples=25, derandomize=True, database=None)

size = strategies.integers(1, 6)
every_size = strategies.builds(Sizes, T=size, B=size, D=size, H=size, K=size)
every_problem = strategies.builds(
    make_problem,
    every_size,
    nonlinearity=strategies.sampled_from(NONLINEARITIES),
    kind=strategies.sampled_from(["indices", "ignored-class-0", "soft", "unnormalised", "squared-error"]),
    time=strategies.sampled_from(["sum", "mean"]),
    with_h0=strategies.booleans(),
    biases=strategies.sampled_from(["bc", "b", "c", ""]),
    tokens=strategies.booleans(),
    seed=strategies.integers(0, 2**32),
)
every_full_problem = strategies.builds(  # h0, biases and vectors, so that every gradient exists
    make_problem,
    every_size,
    nonlinearity=strategies.sampled_from(NONLINEARITIES),
    kind=strategies.sampled_from(["indices", "soft", "squared-error"]),
    seed=strategies.integers(0, 2**32),
)


def rows(problem: Problem, chosen: Tensor) -> Problem:
    """Return the problem of some rows of the batch, in the order given."""
    parts = {"x": problem.x[:, chosen], "targets": problem.targets[:, chosen]}
    return Problem(**{**vars(problem), **parts, "h0": None if problem.h0 is None else problem.h0[chosen]})


def recurrence(problem: Problem) -> dict[str, Tensor]:
    """Return the arguments of rnn() by name."""
    return {name: problem.tensors()[name] for name in ("x", "h0", "U", "W", "b")}


def solve(inputs: dict[str, Tensor], nonlinearity: str, upstream: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the states and every gradient under an upstream gradient."""
    named = leaves(inputs)
    h = rnn(**named, nonlinearity=nonlinearity)
    found = torch.autograd.grad(h, list(named.values()), upstream)
    return h.detach(), {"d" + name: slope for name, slope in zip(named, found, strict=True)}


@for_all
@hypothesis.given(every_problem)
def test_everything_equals_the_plain_loop(problem):
    truth = truth_of(problem)
    for solution in (by_functions(problem), by_create_graph(problem), by_bptt(problem)):
        assert gradient_names(problem) <= solution.keys()
        assert_all_close(solution, truth, EXACT)


@for_all
@hypothesis.given(every_full_problem, strategies.floats(-2, 2), strategies.floats(-2, 2))
def test_gradients_are_linear_in_what_comes_down(problem, alpha, beta):
    nonlinearity, inputs = problem.options["nonlinearity"], recurrence(problem)
    T, B, H = len(problem.x), problem.x.shape[1], len(inputs["W"])
    G1, G2 = normal(seeded(1), T, B, H), normal(seeded(2), T, B, H)
    _, first = solve(inputs, nonlinearity, G1)
    _, second = solve(inputs, nonlinearity, G2)
    _, together = solve(inputs, nonlinearity, alpha * G1 + beta * G2)
    # the sum may cancel: the error is judged beside its parts
    for name, slope in together.items():
        parts = alpha * first[name], beta * second[name]
        scale = max(part.norm().item() for part in parts)
        assert (slope - sum(parts)).norm() <= EXACT * scale, name


@for_all
@hypothesis.given(every_full_problem, strategies.data())
def test_a_sequence_may_be_cut_anywhere(problem, data):
    """States are carried forward as h0, gradients back as dh0; the parameters' gradients add up."""
    nonlinearity, inputs = problem.options["nonlinearity"], recurrence(problem)
    T, B, H = len(problem.x), problem.x.shape[1], len(inputs["W"])
    hypothesis.assume(T > 1)
    cut = data.draw(strategies.integers(1, T - 1), label="cut")
    G = normal(seeded(3), T, B, H)
    h, whole = solve(inputs, nonlinearity, G)

    h_early = rnn(**{**inputs, "x": problem.x[:cut]}, nonlinearity=nonlinearity)
    h_late, late = solve({**inputs, "x": problem.x[cut:], "h0": h_early[-1]}, nonlinearity, G[cut:])
    G_early = torch.cat((G[: cut - 1], (G[cut - 1] + late["dh0"]).unsqueeze(0)))
    h_early, early = solve({**inputs, "x": problem.x[:cut]}, nonlinearity, G_early)

    joined = {name: early[name] + late[name] for name in ("dU", "dW", "db")}
    joined |= {"h": torch.cat((h_early, h_late)), "dx": torch.cat((early["dx"], late["dx"])), "dh0": early["dh0"]}
    assert_all_close(joined, {"h": h, **whole}, EXACT)


@for_all
@hypothesis.given(every_full_problem, strategies.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(problem, random):
    order = list(range(problem.x.shape[1]))
    random.shuffle(order)
    straight, shuffled = by_bptt(problem), by_bptt(rows(problem, torch.tensor(order)))
    expected = {
        name: value if name in (*PARAMETERS, "loss") else value[order] if name == "dh0" else value[:, order]
        for name, value in straight.items()
    }
    assert_all_close(shuffled, expected, EXACT)


@for_all
@hypothesis.given(every_full_problem)
def test_a_batch_is_the_sum_of_its_rows(problem):
    whole = by_bptt(problem)
    singles = [by_bptt(rows(problem, torch.tensor([row]))) for row in range(problem.x.shape[1])]
    summed = {name: torch.stack([single[name] for single in singles]).sum(0) for name in (*PARAMETERS, "loss")}
    assert_all_close(summed, whole, EXACT)
    for name in ("a", "h", "o", "y_hat", "do", "dh", "da", "dx"):
        assert_all_close({name: torch.cat([single[name] for single in singles], 1)}, whole, EXACT)


@for_all
@hypothesis.given(every_full_problem)
def test_a_loss_at_one_step_says_nothing_about_later_inputs(problem):
    nonlinearity, inputs = problem.options["nonlinearity"], recurrence(problem)
    T, B, H = len(problem.x), problem.x.shape[1], len(inputs["W"])
    for t in range(T):
        G = torch.zeros(T, B, H, dtype=torch.float64)
        G[t] = normal(seeded(4), B, H)
        _, found = solve(inputs, nonlinearity, G)
        assert found["dx"][t + 1 :].count_nonzero() == 0
