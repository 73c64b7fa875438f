"""Loads of a session with 10,000 events in commits of ten.

`store.read` is measured against nats-py's batched direct gets and the parsing of the same
commits: without headers, which is all that reading needs, and with them.
"""

import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from mesh.events.aggregate import Repository
from mesh.events.jetstream.assets import EVENTS
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.events.store import START, CommitDraft, NewEvent, StreamName
from services.state.domain import SESSION_FOLD
from tests.benchmarks.measure import Variant, alternate
from tests.benchmarks.raw_nats import RawNats, connected
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.keys import memory_keyring, sealing
from tests.support.nats import running_nats
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2

ROUNDS = 9
LOADS = 5
EVENTS_COUNT = 10_000
COMMIT_EVENTS = 10
SESSION = "tenants/acme/agents/bot/sessions"


class Loads:
    """One long session. Each method loads it once; the value is in events/s."""

    def __init__(self, store: JetStreamEventStore, raw: RawNats) -> None:
        self._store = store
        self._raw = raw
        self._stream = StreamName("state", "acme", ("bot", uuid.uuid4().hex))

    async def prepare(self) -> None:
        """Writes the session."""
        facts = _facts(f"{SESSION}/{self._stream.key[-1]}")
        head = START
        for _ in range(EVENTS_COUNT // COMMIT_EVENTS):
            events = [NewEvent(next(facts)) for _ in range(COMMIT_EVENTS)]
            draft = CommitDraft(events, time.time_ns(), actor="system", request_id="bench")
            head = await self._store.append(self._stream, draft, head)

    async def read(self) -> float:
        """All commits by `EventStore.read`."""
        started = time.perf_counter()
        commits = 0
        async for page in self._store.read(self._stream):
            commits += len(page)
        return _rate(commits, started)

    async def fold(self) -> float:
        """The session's state by `Repository.load`, from its first event on."""
        repository = Repository(self._store, SESSION_FOLD)
        started = time.perf_counter()
        loaded = await repository.load(self._stream, snapshots=False)
        return _rate(loaded.commits, started)

    async def raw_headers(self) -> float:
        """All commits by nats-py, with headers."""
        return await self._raw_load(no_headers=False)

    async def raw_bare(self) -> float:
        """All commits by nats-py, without headers."""
        return await self._raw_load(no_headers=True)

    async def _raw_load(self, *, no_headers: bool) -> float:
        started = time.perf_counter()
        commits = await self._raw.load(EVENTS, self._stream.subject, no_headers=no_headers)
        return _rate(len(commits), started)


def _rate(commits: int, started: float) -> float:
    assert commits == EVENTS_COUNT // COMMIT_EVENTS, commits
    return EVENTS_COUNT / (time.perf_counter() - started)


def _facts(session: str) -> Iterator[Message]:
    """The facts of a session whose turns never end to come."""
    yield events_pb2.SessionCreated(session=session, agent_revision=1)
    number = 0
    while True:
        number += 1
        yield from _turn_facts(f"turn{number}")


def _turn_facts(turn: str) -> Iterator[Message]:
    call = models_pb2.ToolCall(id="c1", tool="calculator", arguments_json='{"expression": "1+1"}')
    message = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, tool_calls=[call])
    planned = events_pb2.PlannedCall(call_id="c1", effect=1, idempotency_key=f"{turn}/1/c1")  # type: ignore[arg-type]
    answer = models_pb2.Message(role=models_pb2.ROLE_ASSISTANT, text="It is two.")
    usage = models_pb2.Usage(input_tokens=10, output_tokens=5)
    yield events_pb2.TurnAccepted(turn=turn, request_id=turn, input="What is 1+1?", owner="me")
    yield events_pb2.ModelStepCompleted(
        turn=turn, step=1, message=message, usage=usage, calls=[planned]
    )
    yield events_pb2.ToolCallCompleted(turn=turn, call_id="c1", content="2")
    yield events_pb2.ModelStepCompleted(turn=turn, step=2, message=answer, usage=usage)
    yield events_pb2.TurnCompleted(turn=turn, text="It is two.")


async def median_of(load: Variant) -> float:
    """The median of a few loads, since one takes but some milliseconds."""
    return statistics.median([await load() for _ in range(LOADS)])


async def run() -> list[Result]:
    """The results of the rounds."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats = await stack.enter_async_context(running_nats(folder))
        store = await connect_store(nats.url, name="bench")
        stack.push_async_callback(store.close)
        raw = await stack.enter_async_context(connected(nats.url))
        loads = Loads(store, raw)
        await loads.prepare()
        codecs = sealing(memory_keyring())
        sealed_store = await connect_store(nats.url, name="sealed", codecs=codecs)
        stack.push_async_callback(sealed_store.close)
        sealed = Loads(sealed_store, raw)
        await sealed.prepare()
        variants = {
            "raw bare": lambda: median_of(loads.raw_bare),
            "read": lambda: median_of(loads.read),
            "raw headers": lambda: median_of(loads.raw_headers),
            "fold": lambda: median_of(loads.fold),
            "read sealed": lambda: median_of(sealed.read),
            "fold sealed": lambda: median_of(sealed.fold),
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    goal = Goal(0.8, at_most=False, of_ratio=True)
    bare = Baseline("events/s, direct gets without headers", values["raw bare"])
    headers = Baseline("events/s, direct gets with headers", values["raw headers"])
    plain = Baseline("events/s, unsealed", values["read"])
    folded = Baseline("events/s, unsealed", values["fold"])
    return [
        Result("load of 10,000 events, store.read", "events/s", values["read"], bare, goal),
        Result("the same against headers", "events/s", values["read"], headers, goal),
        Result("load and fold of them, Repository.load", "events/s", values["fold"], bare),
        Result("load of 10,000 sealed events", "events/s", values["read sealed"], bare),
        Result("the same against unsealed ones", "events/s", values["read sealed"], plain),
        Result("load and fold of sealed ones", "events/s", values["fold sealed"], folded),
    ]
