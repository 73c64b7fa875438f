"""What a session's log must be, whatever died while it was written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import Message

from tests.support.platform import Platform
from tests.support.turn_client import TurnClient, events_of, kind_of
from weft.agents.v1 import turn_pb2
from weft.events.v1 import events_pb2 as envelope_pb2
from weft.state.v1 import events_pb2, session_pb2, state_service_pb2

CALL_SECONDS_MAX = 10.0
PAGE_SIZE = 1_000
_FACTS: dict[str, type[Message]] = {
    fact.DESCRIPTOR.full_name: fact
    for fact in vars(events_pb2).values()
    if isinstance(fact, type) and issubclass(fact, Message)
}
_ENDS = (events_pb2.TurnCompleted, events_pb2.TurnFailed, events_pb2.TurnCancelled)


@dataclass(frozen=True)
class Fault:
    """What doesn't hold. `kind` is lost (acknowledged, and not there), doubled (there or
    done more than once), open (a turn that doesn't end) or differs (two accounts of the
    same don't agree)."""

    kind: Literal["lost", "doubled", "open", "differs"]
    what: str


async def stored_events(
    platform: Platform, session: str, after_revision: int = 0
) -> list[envelope_pb2.RecordedEvent]:
    """The session's events behind a revision."""
    events: list[envelope_pb2.RecordedEvent] = []
    token = ""
    while True:
        request = state_service_pb2.ListEventsRequest(
            parent=session, after_revision=after_revision, page_size=PAGE_SIZE, page_token=token
        )
        page = await platform.state.ListEvents(request, timeout=CALL_SECONDS_MAX)
        events += page.events
        token = page.next_page_token
        if not token:
            return events


def fact_of(event: envelope_pb2.RecordedEvent) -> Message:
    """The event's fact."""
    return _FACTS[event.type].FromString(event.payload.value)


async def state_of(platform: Platform, session: str) -> session_pb2.SessionState:
    """The session's state, now."""
    request = state_service_pb2.GetStateRequest(name=session)
    return (await platform.state.GetState(request, timeout=CALL_SECONDS_MAX)).state


def faults_of_log(events: Sequence[envelope_pb2.RecordedEvent]) -> list[Fault]:
    """What is wrong with a session's log: gaps, steps and results recorded twice, turns
    that ended not at all or more than once."""
    faults = []
    revisions = [event.revision for event in events]
    if revisions != list(range(1, len(events) + 1)):
        faults.append(Fault("lost", f"revisions have gaps: {revisions}"))
    once: Counter[str] = Counter()
    accepted, ended = set(), set()
    for event in events:
        match fact_of(event):
            case events_pb2.TurnAccepted() as fact:
                accepted.add(fact.turn)
                once[f"acceptance of request {fact.request_id}"] += 1
            case events_pb2.ModelStepCompleted() as fact:
                once[f"step {fact.step} of turn {fact.turn}"] += 1
            case events_pb2.ToolCallCompleted() as fact:
                once[f"result of {fact.call_id} of turn {fact.turn}"] += 1
            case events_pb2.ToolCallInDoubt() as fact:
                once[f"doubt of {fact.call_id} of turn {fact.turn}"] += 1
            case fact if isinstance(fact, _ENDS):
                ended.add(fact.turn)
                once[f"end of turn {fact.turn}"] += 1
    faults += [
        Fault("doubled", f"{what}: {count} times") for what, count in once.items() if count > 1
    ]
    faults += [Fault("open", f"turn {turn} isn't ended") for turn in sorted(accepted - ended)]
    return faults


async def faults_of_session(platform: Platform, session: str) -> list[Fault]:
    """What is wrong with a session in which no turn is open: with its log, or with the
    states that are made of it."""
    faults = faults_of_log(await stored_events(platform, session))
    request = state_service_pb2.VerifyReplayRequest(name=session)
    verified = await platform.state.VerifyReplay(request, timeout=CALL_SECONDS_MAX)
    if not verified.matches:
        faults.append(Fault("differs", f"{session}: {verified.problem}"))
    return faults


async def faults_of_view(platform: Platform, client: TurnClient) -> list[Fault]:
    """What is wrong with what a client saw of a turn that has ended: events that aren't
    there any more, or weren't shown, or were shown twice."""
    shown = _without_tokens(client.events)
    stored = _without_tokens(await events_of(platform, client.turn))
    if shown == stored:
        return []
    faults = [
        Fault("lost", f"{client.turn}: was shown, isn't stored: {event}")
        for event in shown
        if event not in stored
    ]
    faults += [
        Fault("doubled", f"{client.turn}: was shown twice: {event}")
        for index, event in enumerate(shown)
        if event in shown[:index]
    ]
    kinds = f"{list(map(kind_of, shown))}, stored is {list(map(kind_of, stored))}"
    return faults or [Fault("differs", f"{client.turn}: was shown {kinds}")]


def _without_tokens(events: Sequence[turn_pb2.TurnEvent]) -> list[turn_pb2.TurnEvent]:
    """The events that say facts. Their offsets count the tokens seen before them, which
    aren't stored."""
    facts = []
    for event in events:
        if kind_of(event) != "token":
            fact = turn_pb2.TurnEvent()
            fact.CopyFrom(event)
            fact.offset.ClearField("attempt")
            fact.offset.ClearField("text_length")
            facts.append(fact)
    return facts
