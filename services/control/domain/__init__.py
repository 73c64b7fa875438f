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
    taker_of,
)
from services.control.domain.turns import REVISIONS_TOLD_MAX, NewTurns, split_key

__all__ = [
    "AREA",
    "PLATFORM",
    "REVISIONS_TOLD_MAX",
    "SPLIT_FOLD",
    "Change",
    "Command",
    "FailureWindow",
    "NewTurns",
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
    "is_split_stream",
    "parent_of",
    "service_of",
    "split_key",
    "split_name",
    "split_stream",
    "taker_of",
    "window_seconds",
]
