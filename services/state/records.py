"""Events as callers get them."""

from collections.abc import Iterable

from mesh.events.store import StoredCommit
from weft.events.v1 import events_pb2


def recorded(
    commits: Iterable[StoredCommit], types: frozenset[str] = frozenset()
) -> list[events_pb2.RecordedEvent]:
    """The events of the commits, of these types or of all where there is none; without
    those that were erased."""
    events = []
    for stored in commits:
        if stored.erased:
            continue
        commit = stored.commit
        for revision, event in enumerate(commit.events, commit.revision):
            if types and event.type not in types:
                continue
            events.append(
                events_pb2.RecordedEvent(
                    stream=commit.stream,
                    revision=revision,
                    position=stored.position,
                    id=event.id,
                    type=event.type,
                    payload=event.payload,
                    time=commit.time,
                    actor=commit.actor,
                    request_id=commit.request_id,
                )
            )
    return events
