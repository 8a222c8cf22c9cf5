"""Which cores this process runs on: what is given one thread must not find a second core for threads of its own.

Cores are what the system calls processors: two of them may be halves of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CAN_CHOOSE = hasattr(os, "sched_setaffinity")  # Linux; elsewhere all threads stay on all cores


def allowed() -> list[int]:
    """The cores that this thread may run on now; where that cannot be asked, all there are."""
    return sorted(os.sched_getaffinity(0)) if CAN_CHOOSE else list(range(os.cpu_count() or 1))


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep all threads of this process on the first cores of this one, at most so many; afterwards as before.

    Threads that begin meanwhile keep to them in the end. Where the system forbids it, nothing happens.
    """
    before: dict[int, set[int]] = {}
    cores = allowed()[:count]
    try:
        for thread in map(int, os.listdir("/proc/self/task") if CAN_CHOOSE else ()):
            with suppress(OSError):  # it has ended, or may not be moved
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, cores)
        yield
    finally:
        for thread, own in before.items():
            with suppress(OSError):
                os.sched_setaffinity(thread, own)
