"""One training in several processes, as torchrun starts them: who this is, and what all agree on. Without it: alone."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: Which one this is.
        count: How many there are.
        device: What this one computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def added(self, *values: float) -> list[float]:
        """The sums of numbers over all processes."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return list(total.tolist())

    def from_first(self, value: float) -> float:
        """A number of the first process."""
        return self.added(value if self.leads else 0.0)[0]


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Join the other processes that torchrun has started, if it has.

    Args:
        device: "cpu" or "cuda"; None: CUDA where there is one.

    Raises:
        ValueError: CUDA was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected --device to be there, got 'cuda', but torch finds no CUDA device")
    cuda = torch.cuda.is_available() if device is None else device == "cuda"
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Processes(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if cuda else "gloo")
    own = torch.device("cuda", local) if cuda else torch.device("cpu")
    try:
        yield Processes(rank, distributed.get_world_size(), own)
        gc.collect()  # what distributes a model talks to the group until it is gone
        distributed.barrier()  # nobody leaves while another may still need somebody to talk to
    finally:
        distributed.destroy_process_group()
