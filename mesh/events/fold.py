"""What folds a stream's events into a state."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import DataDamaged
from mesh.events.store import StoredCommit, StreamName
from weft.events.v1 import events_pb2

S = TypeVar("S")


@dataclass(slots=True)
class Place:
    """Where an event stands: its revision, and when its commit was decided."""

    revision: int
    time: Timestamp


@dataclass(frozen=True)
class Fold(Generic[S]):
    """How events become a state. Pure: `evolve` takes its state over and returns the
    next one. `version` grows whenever the same events fold into another state, which
    discards older snapshots. `origin` names the stream and revision that a stream's
    first event continues, if it is a fork. A state so large that to encode it would hold
    up the process has `parts`: pieces that joined are what `encode` gives, of the state as
    it is when the first one is asked for."""

    version: int
    events: Sequence[type[Message]]
    initial: Callable[[], S]
    evolve: Callable[[S, Message, Place], S]
    encode: Callable[[S], bytes]
    decode: Callable[[bytes], S]
    origin: Callable[[Message], tuple[StreamName, int] | None] = lambda event: None
    parts: Callable[[S], Iterator[bytes]] | None = None
    _types: dict[str, type[Message]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._types.update({event.DESCRIPTOR.full_name: event for event in self.events})

    def encoded(self, state: S) -> Iterator[bytes]:
        """Its bytes in pieces; the first one fixes what they tell."""
        return self.parts(state) if self.parts is not None else iter((self.encode(state),))

    def open(self, event: events_pb2.Event) -> Message | None:
        """The event's message; None where its type is unknown and may be ignored."""
        event_type = self._types.get(event.type)
        if event_type is None:
            if event.may_ignore:
                return None
            raise DataDamaged(
                f"this version doesn't know events of type {event.type}; use a newer one",
                metadata={"type": event.type},
            )
        try:
            return event_type.FromString(event.payload.value)
        except DecodeError as error:
            raise DataDamaged(f"event {event.id} of type {event.type} doesn't parse") from error


def evolved(fold: Fold[S], state: S, stored: StoredCommit) -> S:
    """The state after a commit. Takes `state` over. Raises DataDamaged where the commit
    can't be read."""
    place = Place(stored.commit.revision - 1, stored.commit.time)
    for event in stored.commit.events:
        place.revision += 1
        message = fold.open(event)
        if message is not None:
            state = fold.evolve(state, message, place)
    return state
