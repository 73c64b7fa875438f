"""What a handler gets, and how it fails."""

from collections.abc import Callable
from dataclasses import dataclass, field

ABORTED = 10
"""Of google.rpc.Code: worth another attempt."""


class TaskFailure(Exception):
    """The attempt failed, with a code of google.rpc.Code: it says whether another attempt
    is worth it."""

    def __init__(self, message: str, code: int = ABORTED) -> None:
        if not isinstance(message, str) or not isinstance(code, int):
            raise TypeError("a TaskFailure has a text, and then a number as its code")
        super().__init__(message)
        self.message = message
        self.code = code


def _unheard(fraction: float, note: str) -> None:
    return


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """A task to run.

    `idempotency_key` is the same in every attempt: whoever passes it on to what it changes
    changes it once. `deadline` is Unix time in seconds. `creator` is who submitted it.

    Where somebody cancels the task, the handler's CancelledError has the reason as its
    argument; it has none where the worker ends, or another worker has the task now.
    """

    name: str
    attempt: int
    capability: str
    payload: bytes
    idempotency_key: str
    deadline: float
    creator: str = ""
    report: Callable[[float, str], None] = field(default=_unheard, repr=False, compare=False)

    def progress(self, fraction: float, note: str = "") -> None:
        """Tells how far it is, from 0 to 1; sent with the next heartbeat. A task of which
        nothing new is told for long is said to have stalled, unless its estimated cost is
        more. From a plain function at most ten times a second."""
        self.report(fraction, note)
