"""Reading what JetStream holds."""

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from mesh.errors import EventStoreUnavailable
from mesh.events.envelope import parse_commit
from mesh.events.jetstream.assets import EVENTS
from mesh.events.jetstream.connection import (
    PAUSE_SECONDS,
    READ_ATTEMPT_SECONDS,
    Batch,
    Connection,
    NoReply,
    NotSent,
    retried,
)
from mesh.events.jetstream.fast_client import StoredMessage
from mesh.events.store import EVERYTHING, Selection, StreamName

PAGE_COMMITS = 1000

_NOT_FOUND = 404
_STALLS_MAX = 200
_MESSAGE_ID = re.compile(rb"^Nats-Msg-Id: *(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LeaderMessage:
    """A stored message as the stream's leader has it."""

    position: int
    message_id: str
    data: bytes


async def from_leader(
    connection: Connection,
    stream: str,
    request: Mapping[str, Any],
    *,
    timeout: float = READ_ATTEMPT_SECONDS,
) -> LeaderMessage | None:
    """One message, never stale, by JetStream's STREAM.MSG.GET; None where there is none."""
    answer = await connection.api(f"STREAM.MSG.GET.{stream}", request, timeout=timeout)
    error = answer.get("error")
    if error is None:
        message = answer["message"]
        headers = base64.b64decode(message.get("hdrs", ""))
        found = _MESSAGE_ID.search(headers)
        message_id = found.group(1).decode() if found else ""
        return LeaderMessage(message["seq"], message_id, base64.b64decode(message.get("data", "")))
    if error.get("code") == _NOT_FOUND and error.get("err_code") == 10037:
        return None
    raise NotSent(f"the stream {stream} isn't ready")


class History:
    """The stored commits, in pages. With `replicated` the leader is asked at the end
    whether it was the end, since a direct get may be answered by a follower."""

    def __init__(self, connection: Connection, replicated: bool) -> None:
        self._connection = connection
        self._replicated = replicated

    async def pages(
        self, subject: str, position: int, page_commits: int = PAGE_COMMITS
    ) -> AsyncGenerator[list[StoredMessage], None]:
        """Messages of `subject`, which may hold wildcards, behind `position`."""
        get = partial(self._batch, subject, page_commits)
        async with aclosing(self._pages(get, subject, position)) as pages:
            async for page in pages:
                yield page

    async def stream_pages(
        self, stream: StreamName, position: int, page_commits: int = PAGE_COMMITS
    ) -> AsyncGenerator[list[StoredMessage], None]:
        """Messages of one stream behind `position`, with their commits parsed. DataDamaged
        where one doesn't parse."""
        get = partial(self._bare_batch, stream, page_commits)
        async with aclosing(self._pages(get, stream.subject, position)) as pages:
            async for page in pages:
                yield page

    async def _pages(
        self, get: Callable[[int], Awaitable[Batch]], subject: str, position: int
    ) -> AsyncGenerator[list[StoredMessage], None]:
        stalls = 0
        while True:
            batch = await retried(partial(get, position))
            if batch.messages:
                position = batch.messages[-1].position
                yield batch.messages
            if not batch.pending and not await self._leader_has(subject, position):
                return
            if not batch.messages:
                stalls += 1
                if stalls > _STALLS_MAX:
                    raise EventStoreUnavailable("the event store's followers lag behind")
                await asyncio.sleep(PAUSE_SECONDS)

    async def _batch(self, subject: str, page_commits: int, position: int) -> Batch:
        request = {"batch": page_commits, "seq": position + 1, "next_by_subj": subject}
        return await self._connection.direct_get(EVENTS, request)

    async def _bare_batch(self, stream: StreamName, page_commits: int, position: int) -> Batch:
        """Where a commit stands is told by the one behind it, and of the last one by the
        end of the batch."""
        name, subject = str(stream), stream.subject
        request = {"batch": page_commits, "seq": position + 1, "next_by_subj": subject}
        bare = await self._connection.bare_get(EVENTS, request)
        if not bare.messages:
            return Batch([], bare.pending)
        commits = [parse_commit(name, data) for data in bare.messages]
        positions = [commit.previous_position for commit in commits[1:]]
        positions.append(bare.last_position)
        if not all(positions):
            # Written before commits told it.
            return await self._batch(subject, page_commits, position)
        messages = [
            StoredMessage(position, subject, data, commit)
            for position, data, commit in zip(positions, bare.messages, commits, strict=True)
        ]
        return Batch(messages, bare.pending)

    async def selected(
        self, selection: Selection, position: int, until: int
    ) -> AsyncGenerator[StoredMessage, None]:
        """Messages of the selected streams behind `position` up to `until`, oldest first."""
        sources = [self._messages(subject, position, until) for subject in selection.subjects]
        async with aclosing(_merged(sources)) as messages:
            async for message in messages:
                yield message

    async def last_position(self, selection: Selection = EVERYTHING) -> int:
        """Position of the last selected commit, as the leader has it; 0 without one."""
        if selection == EVERYTHING:
            return await retried(self._last_sequence)
        positions = [0]
        for subject in selection.subjects:
            request = {"last_by_subj": subject}
            last = await retried(partial(from_leader, self._connection, EVENTS, request))
            if last is not None:
                positions.append(last.position)
        return max(positions)

    async def created(self) -> str:
        """When the stream was made, to the nanosecond: no other one has the same."""
        return str((await retried(self._information))["created"])

    async def size(self) -> tuple[int, int]:
        """How many commits the log holds, and the last one's position."""
        state = (await retried(self._information))["state"]
        return int(state["messages"]), int(state["last_seq"])

    async def _last_sequence(self) -> int:
        return int((await self._information())["state"]["last_seq"])

    async def _information(self) -> Mapping[str, Any]:
        answer = await self._connection.api(f"STREAM.INFO.{EVENTS}", {})
        if "error" in answer:
            raise NoReply("the event store isn't ready")
        return answer

    async def _messages(
        self, subject: str, position: int, until: int
    ) -> AsyncGenerator[StoredMessage, None]:
        async with aclosing(self.pages(subject, position)) as pages:
            async for page in pages:
                for message in page:
                    if message.position > until:
                        return
                    yield message

    async def _leader_has(self, subject: str, position: int) -> bool:
        if not self._replicated:
            return False
        request = {"seq": position + 1, "next_by_subj": subject}
        found = await retried(partial(from_leader, self._connection, EVENTS, request))
        return found is not None


async def _merged(
    sources: list[AsyncGenerator[StoredMessage, None]],
) -> AsyncGenerator[StoredMessage, None]:
    """The messages of all sources by position; each source has them in that order."""
    async with AsyncExitStack() as opened:
        for source in sources:
            await opened.enter_async_context(aclosing(source))
        heads = {source: await anext(source, None) for source in sources}
        while waiting := {source: head for source, head in heads.items() if head is not None}:
            source = min(waiting, key=lambda each: waiting[each].position)
            yield waiting[source]
            heads[source] = await anext(source, None)
