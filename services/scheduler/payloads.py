"""How much the payloads of all queues of a process may take together: they are in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mesh.clock import Clock
from mesh.errors import LimitExceeded

COUNT_SECONDS = 0.1
"""How often they are counted, at most: there may be many queues."""
RETRY_SECONDS = 1.0


class Payloads:
    """`count` says how many bytes the queues hold by now. What is on its way into the log is
    counted until it is there."""

    def __init__(self, bytes_max: int, count: Callable[[], int], clock: Clock) -> None:
        self._bytes_max = bytes_max
        self._count = count
        self._clock = clock
        self._counted = float("-inf")
        self._held_bytes = 0
        self._coming_bytes = 0

    @contextmanager
    def coming(self, size_bytes: int) -> Iterator[None]:
        """Keeps room for payloads while they are stored. LimitExceeded where there is none."""
        now = self._clock.monotonic()
        if now - self._counted >= COUNT_SECONDS:
            self._counted = now
            self._held_bytes = self._count() + self._coming_bytes
        if size_bytes and self._held_bytes + size_bytes > self._bytes_max:
            raise LimitExceeded(
                f"all queues together hold {self._bytes_max} bytes of payloads already",
                retry_seconds=RETRY_SECONDS,
            )
        self._held_bytes += size_bytes
        self._coming_bytes += size_bytes
        try:
            yield
        finally:
            # What came of it is seen when they are counted next.
            self._coming_bytes -= size_bytes
