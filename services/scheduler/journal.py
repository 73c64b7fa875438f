"""Writes one queue's stream: all transitions that wait go into one commit.

A commit takes about as long with one event as with hundreds, and a stream takes one at a
time: what is asked for while one is on its way waits, and goes together with the next.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import Message

from mesh.errors import Internal, WeftError
from mesh.events.aggregate import Aggregate
from mesh.principal import SYSTEM_NAME
from services.scheduler.domain import batches
from services.scheduler.domain.state import QueueState
from weft.scheduler.v1 import events_pb2 as facts

BATCH_MAX = 500
BATCH_BYTES_MAX = 600_000
"""Of the facts of a commit, unless one transition alone has more."""
FACT_BYTES = 256
"""What a fact takes beside its own bytes: ids, type, seal."""
WAITING_MAX = 100_000
GATHER_SECONDS = 0.005
"""How long a commit is held back at most for more that goes with it."""

Decide = Callable[[QueueState], Sequence[Message]]
Facts = Sequence[Message]

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Command:
    actor: str
    decide: Decide
    keys: tuple[str, ...]
    done: "asyncio.Future[Facts]"
    facts: Facts = ()
    error: WeftError | None = field(default=None)
    again: bool = False


class Journal:
    """The transitions of one queue, in order for each task."""

    def __init__(self, aggregate: Aggregate[QueueState]) -> None:
        self._aggregate = aggregate
        self._waiting: deque[_Command] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether too much waits already."""
        return len(self._waiting) >= WAITING_MAX

    def put(
        self, key: str, decide: Decide, *, request_id: str = "", actor: str = SYSTEM_NAME
    ) -> "asyncio.Future[Facts]":
        """Decides and stores a transition of the task `key` (of the whole queue where it is
        empty), which is the actor's doing, together with others of theirs; resolved with the
        facts once they are stored.

        `decide` may be called again on a newer state. What it raises, the future raises;
        EventStoreUnavailable where it isn't known whether the facts are stored.
        """
        done: asyncio.Future[Facts] = asyncio.get_running_loop().create_future()
        keys = (key, f"request {request_id}") if request_id else (key,)
        self._waiting.append(_Command(actor, decide, keys, done))
        if self._task is None:
            # In a context of its own: what many callers asked for is nobody's call.
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        return done

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                await self._commit(self._batch())
        finally:
            self._task = None

    async def _gather(self) -> None:
        """Waits for as long as each turn of the event loop brings more. A commit costs the
        process far more than what one transition adds to it; one that comes alone waits for
        a turn."""
        loop = asyncio.get_running_loop()
        end = loop.time() + GATHER_SECONDS
        known = 0
        while known < len(self._waiting) < BATCH_MAX and loop.time() < end:
            known = len(self._waiting)
            await asyncio.sleep(0)

    def _batch(self) -> list[_Command]:
        """What goes together: what one actor does, of each task one transition, since each is
        decided on the state before the commit; what concerns the queue itself goes alone."""
        batch: list[_Command] = []
        left: list[_Command] = []
        keys: set[str] = set()
        while self._waiting and len(batch) < BATCH_MAX and len(left) < BATCH_MAX:
            command = self._waiting.popleft()
            whole = command.keys == ("",)
            if whole and (batch or left):
                left.append(command)
                break
            anothers = bool(batch) and command.actor != batch[0].actor
            if anothers or not keys.isdisjoint(command.keys):
                # And what comes after it of the same task goes after it.
                keys.update(command.keys)
                left.append(command)
                continue
            keys.update(command.keys)
            batch.append(command)
            if whole:
                break
        self._waiting.extendleft(reversed(left))
        return batch

    async def _commit(self, batch: list[_Command]) -> None:
        fitting = len(batch)

        def decide(state: QueueState) -> Facts:
            nonlocal fitting
            fitting = len(batch)
            found: list[Message] = []
            size_bytes = 0
            open_count, payload_bytes = state.open_count, state.payload_bytes
            state.starting.clear()
            for number, command in enumerate(batch):
                command.facts, command.error = (), None
                try:
                    command.facts = command.decide(state)
                except WeftError as error:
                    command.error = error
                for fact in command.facts:
                    size_bytes += fact.ByteSize() + FACT_BYTES
                if found and size_bytes > BATCH_BYTES_MAX:
                    fitting = number
                    break
                found.extend(command.facts)
                # So that limits count those which go together.
                if state.batches:
                    batches.expect(state, command.facts)
                for fact in command.facts:
                    if isinstance(fact, facts.TaskSubmitted):
                        state.open_count += 1
                        state.payload_bytes += len(fact.spec.payload)
            state.open_count, state.payload_bytes = open_count, payload_bytes
            return found

        try:
            await self._aggregate.execute(decide, actor=batch[0].actor)
            # What didn't fit is decided anew, before all that came after it.
            self._waiting.extendleft(reversed(batch[fitting:]))
            del batch[fitting:]
            again = await self._decided_again(batch)
        except WeftError as error:
            _fail(batch, error)
        except Exception:  # noqa: BLE001 - nobody awaits this task: those who wait are told
            _log.exception("a queue's commit failed", stream=str(self._aggregate.stream))
            _fail(batch, Internal("a fault of Weft's own; the log has it"))
        else:
            for command in batch:
                if command.done.done() or command in again:
                    continue
                if command.error is not None:
                    command.done.set_exception(command.error)
                else:
                    command.done.set_result(command.facts)

    async def _decided_again(self, batch: Sequence[_Command]) -> set[_Command]:
        """Those that were refused on a state behind which another instance had stored
        something: they go once more, before all that waits."""
        refused = [each for each in batch if each.error is not None and not each.again]
        if not refused:
            return set()
        before = self._aggregate.head
        # Where it can't be read, what is known counts.
        with contextlib.suppress(WeftError):
            await self._aggregate.load()
        if self._aggregate.head == before:
            return set()
        for command in refused:
            command.again = True
        self._waiting.extendleft(reversed(refused))
        return set(refused)


def _fail(batch: Sequence[_Command], error: WeftError) -> None:
    for command in batch:
        if not command.done.done():
            command.done.set_exception(command.error or error)
