"""How fast a worker's messages are read: what comes faster waits on the worker's side."""

from mesh.clock import Clock
from weft.scheduler.v1 import worker_service_pb2 as pb

BURST_SECONDS = 1.0
"""So much of what may come in a second may come at once."""


class Pace:
    """Lets so many entries of messages through in a second (the generic cell rate algorithm,
    ITU-T I.371)."""

    def __init__(self, entries_per_second: float, clock: Clock) -> None:
        self._seconds_each = 1 / entries_per_second
        self._clock = clock
        self._due = clock.monotonic() - BURST_SECONDS

    def wait_seconds(self, entries: int) -> float:
        """How long to read nothing more, after so many."""
        now = self._clock.monotonic()
        self._due = max(self._due, now - BURST_SECONDS) + entries * self._seconds_each
        return max(0.0, self._due - now)


def entries_of(request: pb.AttachRequest | pb.AttachSharedRequest) -> int:
    """How much there is to do about a message: a heartbeat may tell of a thousand tasks."""
    return max(1, len(request.heartbeat.running), len(request.reports.reports))
