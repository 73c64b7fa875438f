"""What a server says of its load at the end of each answer (ORCA), by which gRPC's clients
give one that is busy fewer calls.

Source: xds.data.orca.v3, gRPC proposals A51 and A58.
"""

import math
import os
import time
from collections.abc import Callable, Sequence

from weft.xds.v1 import load_pb2

LOAD_KEY = "endpoint-load-metrics-bin"
RENEWED_SECONDS = 0.1
"""How old a report may be."""
TOLD_SECONDS = 0.01
"""Between two answers that tell it. Each that does costs some 4 us, a hundred a second nothing
that could be seen; and many clients hear of it in turns."""
SETTLING_SECONDS = 1.0
"""Over how long a rate is averaged: it is 63 % of a sudden change after that. Of a tenth of a
second alone, a few calls would make it jump."""


class LoadReport:
    """The report of this process. `totals` gives how many calls it has ended so far, and how
    many of them by a fault of the server."""

    def __init__(
        self,
        totals: Callable[[], tuple[int, int]],
        monotonic: Callable[[], float] = time.monotonic,
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self._read: Callable[[], tuple[float, ...]] = lambda: (cpu_seconds(), *totals())
        self._monotonic = monotonic
        self._processors = os.cpu_count() or 1
        self._renewed = monotonic()
        self._before: tuple[float, ...] = self._read()
        self._rates = [0.0] * len(self._before)
        self._told = -math.inf
        self._trailing: Sequence[tuple[str, bytes]] = ()

    def trailing(self) -> Sequence[tuple[str, bytes]]:
        """The trailing metadata that tell it; none where another answer told it just now."""
        now = self._monotonic()
        if now - self._told < TOLD_SECONDS:
            return ()
        self._told = now
        if now - self._renewed >= RENEWED_SECONDS:
            self._renew(now)
        return self._trailing

    def _renew(self, now: float) -> None:
        seconds = now - self._renewed
        share = 1 - math.exp(-seconds / SETTLING_SECONDS)
        values = self._read()
        for index, (value, before) in enumerate(zip(values, self._before, strict=True)):
            self._rates[index] += share * ((value - before) / seconds - self._rates[index])
        self._before, self._renewed = values, now
        cpu, calls, errors = self._rates
        report = load_pb2.OrcaLoadReport(
            cpu_utilization=cpu / self._processors, rps_fractional=calls, eps=errors
        )
        self._trailing = ((LOAD_KEY, report.SerializeToString()),)
