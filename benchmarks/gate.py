"""The gate before every time: an implementation whose numbers are wrong is refused; no clock is read here."""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.implementations import Implementation, unrolled
from benchmarks.problem import Problem

#: The largest norm-wise error that float32 is allowed against the float64 truth.
LIMIT = 100 * torch.finfo(torch.float32).eps


def truth(problem: Problem) -> dict[str, Tensor]:
    """Return h, dU, dW and db in float64, on the CPU, by autograd on the plain loop.

    The float32 numbers of the problem are taken as exact, so their rounding counts against nobody.
    """
    exact = problem.to("cpu").to(torch.float64)
    leaves = [p.clone().requires_grad_() for p in (exact.U, exact.W, exact.b)]
    h = unrolled(exact.x, exact.h0, *leaves)
    dU, dW, db = torch.autograd.grad(h, leaves, exact.dh)
    return {"h": h.detach(), "dU": dU, "dW": dW, "db": db}


def errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ‖found − expected‖ / ‖expected‖ of every expected tensor by its name."""
    return {
        name: float(torch.linalg.vector_norm(found[name].detach().cpu().double() - value))
        / float(torch.linalg.vector_norm(value))
        for name, value in expected.items()
    }


def check(name: str, implementation: Implementation, dh: Tensor, expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Run an implementation once with a graph, forward and backward, and once without; compare with the truth.

    Args:
        name: what to call the implementation where it fails.
        implementation: ready to run, float32.
        dh: (T, B, H), the upstream gradient, on the implementation's device.
        expected: h (T, B, H), dU (H, D), dW (H, H), db (H,) as `truth` returns them.

    Returns:
        The norm-wise error of every tensor.

    Raises:
        AssertionError: An error is above LIMIT, or not a number.
    """
    with torch.no_grad():
        h_without_graph = implementation.states(implementation.forward())
    h = implementation.states(implementation.training_step(dh)())
    results = {"h": h, "h without graph": h_without_graph, **implementation.gradients()}
    found = errors(results, {**expected, "h without graph": expected["h"]})
    wrong = [f"{tensor} {error:.1e}" for tensor, error in found.items() if not error <= LIMIT]
    if wrong:
        raise AssertionError(
            f"{name}: expected norm-wise errors against float64 of at most {LIMIT:.1e}, "
            f"got {', '.join(wrong)}: nothing was timed"
        )
    return found
