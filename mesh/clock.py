"""Time, as an argument: code that decides gets a clock instead of reading one."""

import time
from collections.abc import Callable
from dataclasses import dataclass

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks. `now_ns` is Unix time in nanoseconds, for records. `monotonic` is
    seconds that never step back, for leases and deadlines; it goes on while the
    process is stopped."""

    now_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic


SYSTEM = Clock()
