"""The pure core of splits: what may be done to one, what it folds into, who gets what."""

from services.control.domain.decide import (
    Change,
    Command,
    Promote,
    Request,
    RollBack,
    RollBackFailing,
    SetSplit,
    check_running,
    decide,
    find_request,
)
from services.control.domain.drawing import drawn
from services.control.domain.evolve import SPLIT_FOLD, State
from services.control.domain.failures import FailureWindow, Served, failing, window_seconds
from services.control.domain.names import (
    AREA,
    PLATFORM,
    agent_of,
    is_split_stream,
    parent_of,
    service_of,
    split_name,
    split_stream,
)

__all__ = [
    "AREA",
    "PLATFORM",
    "SPLIT_FOLD",
    "Change",
    "Command",
    "FailureWindow",
    "Promote",
    "Request",
    "RollBack",
    "RollBackFailing",
    "Served",
    "SetSplit",
    "State",
    "agent_of",
    "check_running",
    "decide",
    "drawn",
    "failing",
    "find_request",
    "is_split_stream",
    "parent_of",
    "service_of",
    "split_name",
    "split_stream",
    "window_seconds",
]
