"""The pure core of a session: commands, `decide` and `evolve`.

No clock, no randomness, no I/O: time and ids come in as arguments. The agents
service imports this package too, since it decides and writes a session's turns; it
is the one thing that a service may import of another.
"""

from services.state.domain.commands import (
    AcceptTurn,
    BeginImport,
    Command,
    CompactContext,
    CompleteCalls,
    CompleteStep,
    CreateSession,
    DecideApproval,
    Decision,
    DoubtCalls,
    EraseSession,
    FailTurn,
    FinishCancel,
    ForkSession,
    RequestCancel,
    ResolveCall,
    ResumeTurn,
    StartCall,
)
from services.state.domain.decide import (
    WAITING_STATUSES,
    decide,
    exists,
    find_request,
    refuse_absent,
)
from services.state.domain.evolve import (
    CONTEXT_TOKENS_PER_MESSAGE,
    ENDED_TURNS_MAX,
    FOLD_VERSION,
    QUEUED_TURNS_MAX,
    SESSION_FOLD,
    estimate_tokens,
    evolve,
    state_hash,
)
from services.state.domain.importing import abandon_open_turns, check_follows, renamed
from services.state.domain.names import exports_stream, session_name, session_stream, turn_name
from services.state.domain.stalls import RUNNING_CALLS, fail_turn, skip_call, stall

__all__ = [
    "CONTEXT_TOKENS_PER_MESSAGE",
    "ENDED_TURNS_MAX",
    "FOLD_VERSION",
    "QUEUED_TURNS_MAX",
    "RUNNING_CALLS",
    "SESSION_FOLD",
    "WAITING_STATUSES",
    "AcceptTurn",
    "BeginImport",
    "Command",
    "CompactContext",
    "CompleteCalls",
    "CompleteStep",
    "CreateSession",
    "DecideApproval",
    "Decision",
    "DoubtCalls",
    "EraseSession",
    "FailTurn",
    "FinishCancel",
    "ForkSession",
    "RequestCancel",
    "ResolveCall",
    "ResumeTurn",
    "StartCall",
    "abandon_open_turns",
    "check_follows",
    "decide",
    "estimate_tokens",
    "evolve",
    "exists",
    "exports_stream",
    "fail_turn",
    "find_request",
    "refuse_absent",
    "renamed",
    "session_name",
    "session_stream",
    "skip_call",
    "stall",
    "state_hash",
    "turn_name",
]
