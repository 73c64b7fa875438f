"""A session that goes any way that its commands allow, the same for the same seed.

As a program, `python -m tests.support.session_walk SEED MOVES`, it prints the hash of the
state at the end and of its facts folded once more.
"""

import hashlib
import random
import sys
from collections.abc import Callable

from services.state import domain
from tests.support.session_log import (
    CALL_SECONDS,
    IDEMPOTENT,
    IRREVERSIBLE,
    LEASE_NS,
    READ,
    SessionLog,
    folded,
    planned,
)
from weft.errors.v1 import errors_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2, session_pb2

WAIT_NS = CALL_SECONDS * 1_000_000_000 + LEASE_NS
QUEUED_MAX = 3
Move = Callable[[SessionLog, random.Random], object]


def walked(seed: int, moves: int) -> SessionLog:
    """A session after so many moves."""
    choices = random.Random(seed)
    log = SessionLog()
    log.create(
        choices.choice((session_pb2.SUBMIT_POLICY_ENQUEUE, session_pb2.SUBMIT_POLICY_INTERRUPT))
    )
    for _ in range(moves):
        choices.choice(possible_moves(log))(log, choices)
    return log


def possible_moves(log: SessionLog) -> list[Move]:
    """What may be done next."""
    moves: list[Move] = []
    if len(log.state.queued_turns) < QUEUED_MAX:
        moves.append(accept)
    if not log.state.HasField("active_turn"):
        return moves
    turn = log.active
    statuses = {call.status for call in turn.calls}
    if turn.status != session_pb2.TURN_STATUS_RUNNING:
        moves += [cancel]
    else:
        moves += [resume, compact, finish_cancel if turn.cancel_requested else cancel]
        moves += [fail] if len(log.facts) % 5 == 0 else []
        moves += [stall]
    if statuses <= {session_pb2.CALL_STATUS_COMPLETED}:
        moves += [ask, ask, answer]
    if statuses & {session_pb2.CALL_STATUS_PENDING, session_pb2.CALL_STATUS_APPROVED}:
        moves += [run_call, run_call]
    if statuses & set(domain.RUNNING_CALLS):
        moves += [skip_call]
    if session_pb2.CALL_STATUS_WAITING_APPROVAL in statuses:
        moves += [approve]
    if session_pb2.CALL_STATUS_IN_DOUBT in statuses:
        moves += [resolve]
    if session_pb2.CALL_STATUS_STARTED in statuses:
        moves += [doubt, complete_begun]
    return moves


def accept(log: SessionLog, choices: random.Random) -> None:
    log.accept(f"t{len(log.facts)}", choices.choice("abc"), "what? " * choices.randrange(1, 50))


def ask(log: SessionLog, choices: random.Random) -> None:
    effects = choices.choices((READ, IDEMPOTENT, IRREVERSIBLE), k=choices.randrange(1, 4))
    count = len(log.facts)
    log.step(
        *(
            planned(
                f"c{count}-{index}",
                effect,
                requires_approval=choices.random() < 0.3,
                untrusted=choices.random() < 0.2,
            )
            for index, effect in enumerate(effects)
        ),
        text="let me see",
    )


def answer(log: SessionLog, choices: random.Random) -> None:
    log.step(text="so it is " * choices.randrange(1, 50))


def run_call(log: SessionLog, choices: random.Random) -> None:
    call = choices.choice(
        calls_that_are(log, session_pb2.CALL_STATUS_PENDING, session_pb2.CALL_STATUS_APPROVED)
    )
    if call.effect == IRREVERSIBLE:
        log.start_call(call.call.id)
    else:
        log.complete(call.call.id, content="4" * choices.randrange(1, 200))


def complete_begun(log: SessionLog, choices: random.Random) -> None:
    log.complete(choices.choice(calls_that_are(log, session_pb2.CALL_STATUS_STARTED)).call.id)


def doubt(log: SessionLog, choices: random.Random) -> None:
    log.doubt(*(call.call.id for call in calls_that_are(log, session_pb2.CALL_STATUS_STARTED)))


def approve(log: SessionLog, choices: random.Random) -> None:
    call = choices.choice(calls_that_are(log, session_pb2.CALL_STATUS_WAITING_APPROVAL))
    log.approve(call.call.id, approved=choices.random() < 0.7, owner=choices.choice("abc"))


def resolve(log: SessionLog, choices: random.Random) -> None:
    call = choices.choice(calls_that_are(log, session_pb2.CALL_STATUS_IN_DOUBT))
    log.now_ns += WAIT_NS
    resolutions = (
        events_pb2.RESOLUTION_RETRY,
        events_pb2.RESOLUTION_COMPLETED,
        events_pb2.RESOLUTION_FAILED,
    )
    log.resolve(call.call.id, choices.choice(resolutions), owner=choices.choice("abc"))


def resume(log: SessionLog, choices: random.Random) -> None:
    log.resume(choices.choice("abc"))


def compact(log: SessionLog, choices: random.Random) -> None:
    messages = log.state.context.messages
    starts = [i for i, message in enumerate(messages) if message.role == models_pb2.ROLE_USER]
    turn, before = log.active, log.state.compacted_message_count
    count, usage = choices.choice(starts), models_pb2.Usage(input_tokens=3, estimated=True)
    if count:
        log.do(domain.CompactContext(turn.id, turn.epoch, before, count, f"{count} more", usage))


def cancel(log: SessionLog, choices: random.Random) -> None:
    names = [log.active.id, *(turn.id for turn in log.state.queued_turns)]
    log.cancel(choices.choice(names))


def finish_cancel(log: SessionLog, choices: random.Random) -> None:
    log.finish_cancel(choices.choice(("", "so far")))


def fail(log: SessionLog, choices: random.Random) -> None:
    turn = log.active
    reason = errors_pb2.REASON_MODEL_UNAVAILABLE
    log.do(domain.FailTurn(turn.id, turn.epoch, reason, "the model is down", log.now_ns))


def stall(log: SessionLog, choices: random.Random) -> None:
    log.stall(seconds=choices.randrange(1, 1000))


def skip_call(log: SessionLog, choices: random.Random) -> None:
    log.skip_call(choices.choice(calls_that_are(log, *domain.RUNNING_CALLS)).call.id)


def calls_that_are(
    log: SessionLog, *statuses: "session_pb2.CallStatus.ValueType"
) -> list[session_pb2.CallState]:
    """Calls of the open turn with one of the statuses."""
    return [call for call in log.active.calls if call.status in statuses]


def state_hashes(seed: int, moves: int) -> str:
    """Hash of the walk's facts, of its state, and of its facts folded once more."""
    log = walked(seed, moves)
    facts = hashlib.sha256(
        b"".join(fact.SerializeToString(deterministic=True) for _, fact in log.facts)
    )
    hashes = [domain.state_hash(log.state), domain.state_hash(folded(log.facts))]
    return " ".join((facts.hexdigest(), *(each.hex() for each in hashes)))


if __name__ == "__main__":
    print(state_hashes(int(sys.argv[1]), int(sys.argv[2])))
