"""Codes with which attempts end: those of google.rpc.Code."""

from enum import IntEnum


class Code(IntEnum):
    """A code of google.rpc.Code that the scheduler itself knows."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    UNAVAILABLE = 14


FINAL = frozenset(
    {
        *(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED),
        *(Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED),
    }
)
"""Trying again wouldn't help."""
