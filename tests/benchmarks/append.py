"""Appends to the event store, against nats-py's `js.publish` of the same bytes and headers."""

import contextlib
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from google.protobuf.wrappers_pb2 import StringValue

from mesh.events.blobs import MemoryBlobStore
from mesh.events.envelope import Envelope
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.events.store import START, CommitDraft, Head, NewEvent, StreamName
from tests.benchmarks.measure import alternate, per_second
from tests.benchmarks.raw_nats import RawNats, connected
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.keys import memory_keyring, sealing
from tests.support.nats import running_nats

ROUNDS = 9
CONCURRENT = 32
DRAFT = CommitDraft(
    events=[NewEvent(StringValue(value="x" * 300))],
    time_ns=1_700_000_000_000_000_000,
    actor="system",
    request_id="01j9zq8x5n4w3v2t1s0r9q8p7m",
)
HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "0" * 64,
    "ce-source": "/bench.acme.0123456789abcdef0123456789abcdef",
    "ce-type": "weft.events.v1.Commit",
}
Append = Callable[[], Awaitable[object]]


def append_to(store: JetStreamEventStore) -> Append:
    """Appends one commit after the other to a stream of its own."""
    stream, head = new_stream(), START

    async def append() -> None:
        nonlocal head
        head = await store.append(stream, DRAFT, head)

    return append


def publish_to(raw: RawNats, data: bytes) -> Append:
    """Publishes one message after the other to a subject of its own."""
    subject, position = new_stream().subject, 0

    async def append() -> None:
        nonlocal position
        position = await raw.append(subject, data, HEADERS, position)

    return append


def new_stream() -> StreamName:
    """A stream that has no commits yet."""
    return StreamName("bench", "acme", (uuid.uuid4().hex,))


async def run() -> list[Result]:
    """The results of the rounds."""
    head = Head(1, 1, bytes(32))
    data = await Envelope(MemoryBlobStore()).seal(new_stream(), DRAFT, head)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats = await stack.enter_async_context(running_nats(folder))
        store = await connect_store(nats.url, name="bench")
        stack.push_async_callback(store.close)
        codecs = sealing(memory_keyring())
        sealed = await connect_store(nats.url, name="sealed", codecs=codecs)
        stack.push_async_callback(sealed.close)
        raw = await stack.enter_async_context(connected(nats.url))
        variants = {
            "one raw": lambda: per_second([publish_to(raw, data)], 300),
            "one": lambda: per_second([append_to(store)], 300),
            "one sealed": lambda: per_second([append_to(sealed)], 300),
            "many raw": lambda: per_second([publish_to(raw, data) for _ in range(CONCURRENT)], 30),
            "many": lambda: per_second([append_to(store) for _ in range(CONCURRENT)], 30),
            "many sealed": lambda: per_second([append_to(sealed) for _ in range(CONCURRENT)], 30),
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    goal = Goal(0.8, at_most=False, of_ratio=True)
    raw_one = Baseline("/s, js.publish", values["one raw"])
    raw_many = Baseline("/s, js.publish", values["many raw"])
    many_name = f"appends, {CONCURRENT} streams at once"
    return [
        Result("appends, one at a time", "/s", values["one"], raw_one, goal),
        Result("the same, sealed", "/s", values["one sealed"], raw_one, goal),
        Result(many_name, "/s", values["many"], raw_many, goal),
        Result("the same, sealed", "/s", values["many sealed"], raw_many, goal),
    ]
