"""Which cores this process runs on: what is given one thread must not find a second core for threads of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CAN_CHOOSE = hasattr(os, "sched_setaffinity")  # Linux; elsewhere all this does nothing
ALL = frozenset(os.sched_getaffinity(0)) if CAN_CHOOSE else frozenset()


@contextmanager
def on_cores(count: int | None) -> Iterator[None]:
    """Keep all threads of this process on so many of its cores, None: on all; afterwards where they were before."""
    before = os.sched_getaffinity(0) if CAN_CHOOSE else set()
    _allow(sorted(ALL)[:count])
    try:
        yield
    finally:
        _allow(before)


def _allow(cores: list[int] | set[int]) -> None:
    if not CAN_CHOOSE:
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)
