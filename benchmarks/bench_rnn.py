"""Times every implementation at every size, device, thread count and task, after `gate` has let it pass.

    pytest benchmarks --benchmark-json=results.json     about twenty minutes on two cores
    python -m benchmarks.report results.json            the table and the picture
    pytest benchmarks -k "manual_bptt and training"     a part of it
    pytest benchmarks --benchmark-disable               every body once, gradients checked, nothing timed

What is timed, in float32 (`TASKS`):

- forward: h from x, without a graph.
- backward: dU, dW and db from a random gradient on every state; the graph is built outside the clock.
- training step: gradients cleared, forward, backward. No optimiser, it is the same for all; x needs no
  gradient.

How the ratio to nn.RNN is taken. Machines are noisy, and one benchmark runs minutes after the other, so two
times out of pytest-benchmark's table make no trustworthy ratio. Therefore every round of a benchmark is
preceded, outside its clock, by one round of nn.RNN on the same numbers with the same timer: nn.RNN, own,
nn.RNN, own, ... A round is as many calls as fill some milliseconds, of each of the two, at most 40, as in a training
that does nothing else: the first call after one of nn.RNN finds the caches full of somebody else's code. The number
`speed_vs_nn_rnn` in `extra_info` is the median over the rounds of (time of nn.RNN) / (own time), neighbours divided
by neighbours: above 1 is faster than nn.RNN. nn.RNN itself is measured in this way too, against a second copy of
itself: what that ratio misses 1 by is the machine's noise.

The timer waits for the accelerator before it reads the clock. On CUDA, TF32 is off for all.

Where one thread computes the process has one core, and so on (benchmarks/cores.py; on Linux): JAX starts threads of its
own, which no setting keeps from a second core, and is started anew for each number of cores.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from statistics import median, quantiles
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor
from torch.utils.benchmark import timer

from benchmarks import gate
from benchmarks.cores import allowed, on_cores
from benchmarks.implementations import IMPLEMENTATIONS, PEER, Body, Implementation
from benchmarks.problem import Problem, make_problem
from benchmarks.sizes import SIZES, Size
from manual_bptt import kernels
from manual_bptt.kernels import native

WARM_UP_SECONDS = 0.05
BUDGET_SECONDS = 1.0
MIN_ROUNDS, MAX_ROUNDS = 7, 200
ROUND_SECONDS, MOST_CALLS = 0.01, 40

Round = tuple[tuple[list[Body]], dict[str, object]]  # the arguments of `run` as pytest-benchmark takes them


class Benchmark(Protocol):
    """What is used here of pytest-benchmark's fixture, whose own code carries no types."""

    enabled: bool
    group: str | None
    extra_info: dict[str, object]
    stats: Any

    def pedantic(self, target: Callable[[list[Body]], object], *, setup: Callable[[], Round], rounds: int) -> object:
        """Time target(*arguments) in each round, with the arguments of a setup() outside the clock."""


def forward(implementation: Implementation, dh: Tensor) -> Body:
    """Prepare a forward pass without a graph."""
    return torch.no_grad()(implementation.forward)


def backward(implementation: Implementation, dh: Tensor) -> Body:
    """Prepare a backward pass: the graph is built here."""
    return implementation.backward(dh)


def training_step(implementation: Implementation, dh: Tensor) -> Body:
    """Prepare a training step: everything is in it."""
    return implementation.training_step(dh)


#: Task -> prepare(implementation, dh), run outside the clock, which returns the body that is timed.
TASKS: dict[str, Callable[[Implementation, Tensor], Body]] = {
    "forward": forward,
    "backward": backward,
    "training step": training_step,
}


def places() -> list[tuple[str, int]]:
    """Return every (device, CPU threads) to measure at; a CUDA device is fed by one thread."""
    cpu = [("cpu", threads) for threads in sorted({min(n, len(allowed())) for n in (1, 2)})]
    return cpu + [("cuda", 1)] * torch.cuda.is_available()


@contextmanager
def settings(threads: int) -> Iterator[None]:
    """Compute on some CPU threads, each with a core, and in full float32; put back what was set before."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    try:
        with on_cores(threads):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# The sizes come one after the other, so that one problem and one truth need to be kept.
problem_of = lru_cache(maxsize=1)(make_problem)


@lru_cache(maxsize=1)
def truth_of(size: Size) -> dict[str, Tensor]:
    """Return the float64 truth at one size."""
    return gate.truth(problem_of(size))


@cache
def checked(name: str, size: Size, device: str, threads: int) -> dict[str, float]:
    """Return the errors of an implementation that passed the gate under the present settings; else raise."""
    problem = problem_of(size).to(device)
    return gate.check(name, IMPLEMENTATIONS[name].make(problem), problem.dh, truth_of(size))


@cache
def product_rate(device: str, threads: int) -> float:
    """Measure how many multiplications a second torch's matrix product does: two matrices of 1024 × 1024, float32."""
    one, two = (torch.randn(1024, 1024, device=device) for _ in range(2))
    seconds = []
    for _ in range(15):
        start = timer()
        torch.mm(one, two)
        seconds.append(timer() - start)
    return float(1024**3 / median(seconds[5:]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its own, on compiling
@pytest.mark.benchmark(timer=timer)
@pytest.mark.parametrize("name", IMPLEMENTATIONS, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.replace(" ", "_"))
@pytest.mark.parametrize(("device", "threads"), places(), ids=[f"{d}-threads{n}" for d, n in places()])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rnn(benchmark: Benchmark, size: Size, device: str, threads: int, task: str, name: str) -> None:
    absent = IMPLEMENTATIONS[name].absent(size, device, threads, benchmark.enabled)
    if absent:
        pytest.skip(absent)
    if task == "backward" and name == "jax.lax.scan":
        pytest.skip("forward and backward pass are one program in JAX")
    with settings(threads):
        error = checked(name, size, device, threads)
        benchmark.group = f"{size}, {device}, threads: {threads}, {task}"
        benchmark.extra_info.update(
            **size._asdict(),
            implementation=name,
            task=task,
            threads=threads,
            device=device,
            device_name=torch.cuda.get_device_name() if device == "cuda" else "CPU",
            torch=torch.__version__,
            dtype="float32",
            error_vs_float64=error,
            worst_error_vs_float64=max(error.values()),
            product_rate=product_rate(device, threads),
            kernel=kernels.taken(*size, torch.float32, torch.device(device)),  # if none is chosen by hand
            kernel_in_c=native.state(),
        )
        time_beside_peer(benchmark, TASKS[task], name, problem_of(size).to(device))


def time_beside_peer(
    benchmark: Benchmark, prepare: Callable[[Implementation, Tensor], Body], name: str, problem: Problem
) -> None:
    """Run the benchmark, each of its rounds after a round of nn.RNN, and record the ratio."""
    own, peer = IMPLEMENTATIONS[name].make(problem), IMPLEMENTATIONS[PEER].make(problem)
    peer_seconds: list[float] = []  # of a call
    calls = peer_calls = 1

    def next_round() -> Round:
        if benchmark.enabled:
            bodies = [prepare(peer, problem.dh) for _ in range(peer_calls)]
            start = timer()
            run(bodies)
            peer_seconds.append((timer() - start) / peer_calls)
        return ([prepare(own, problem.dh) for _ in range(calls)],), {}

    rounds = 1
    if benchmark.enabled:
        run(next_round()[0][0])  # what is compiled is compiled here
        seconds = warm_up(next_round)
        calls, peer_calls = calls_of(seconds), calls_of(peer_seconds[-1])
        pair = calls * seconds + peer_calls * peer_seconds[-1]
        rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(BUDGET_SECONDS / pair)))
    peer_seconds.clear()
    benchmark.pedantic(run, setup=next_round, rounds=rounds)
    if benchmark.enabled:
        own_seconds = [each / calls for each in benchmark.stats.stats.data]  # one fewer after a round for a profile
        ratios = [theirs / ours for theirs, ours in zip(peer_seconds, own_seconds, strict=False)]
        benchmark.extra_info.update(
            speed_vs_nn_rnn=median(ratios),
            speed_vs_nn_rnn_quartiles=quantiles(ratios, n=4, method="inclusive")[::2],
            nn_rnn_median_seconds=median(peer_seconds),
            calls=calls,
        )


def run(bodies: list[Body]) -> None:
    """Run prepared bodies one after the other; both sides of a ratio go through this call."""
    for body in bodies:
        body()


def calls_of(seconds: float) -> int:
    """Return how many calls of so many seconds make a round."""
    return max(1, min(MOST_CALLS, int(ROUND_SECONDS / seconds)))


def warm_up(next_round: Callable[[], Round]) -> float:
    """Run pairs of rounds of one call for a moment and return the seconds that the second of a pair takes."""
    begin = now = timer()
    while now - begin < WARM_UP_SECONDS:
        (bodies,), _ = next_round()
        start = timer()
        run(bodies)
        now = timer()
    return now - start
