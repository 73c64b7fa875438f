"""What nats-py does by itself: the baseline of what Weft does with it."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StorageType, StreamConfig

from weft.events.v1 import events_pb2

READ_SECONDS_MAX = 10.0
PAGE_COMMITS = 1000


class RawNats:
    """A connection of nats-py, as its documentation uses it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._context = client.jetstream()

    async def prepare(self) -> None:
        """Makes a stream like that of the events."""
        await self._context.add_stream(
            StreamConfig(name="RAW", subjects=["raw.>"], storage=StorageType.FILE)
        )

    async def publish(self, subject: str, data: bytes) -> None:
        """Stores a message in the stream of `prepare`."""
        await self._context.publish(f"raw.{subject}", data)

    async def append(self, subject: str, data: bytes, headers: dict[str, str], last: int) -> int:
        """Stores a message behind the one at the position `last` of its subject."""
        headers = {
            **headers,
            "Nats-Msg-Id": secrets.token_hex(16),
            "Nats-Expected-Last-Subject-Sequence": str(last),
        }
        return (await self._context.publish(subject, data, headers=headers)).seq

    async def load(self, stream: str, subject: str, *, no_headers: bool) -> list[events_pb2.Commit]:
        """All commits of a subject, by batched direct gets (NATS ADR-31).

        With headers each message tells its position; without, only the end of a batch does.
        """
        commits: list[events_pb2.Commit] = []
        position = 0
        while True:
            request = {"batch": PAGE_COMMITS, "seq": position + 1, "next_by_subj": subject}
            if no_headers:
                request["no_hdr"] = True
            messages, end = await self._batch(stream, request)
            for message in messages:
                commits.append(events_pb2.Commit.FromString(message.data))
                if not no_headers:
                    position = int((message.headers or {})["Nats-Sequence"])
            if len(messages) < PAGE_COMMITS:
                return commits
            position = int((end.headers or {})["Nats-Last-Sequence"])

    async def _batch(self, stream: str, request: dict[str, object]) -> tuple[list[Msg], Msg]:
        inbox = self._client.new_inbox()
        messages: list[Msg] = []
        ended: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        async def arrived(message: Msg) -> None:
            if message.headers and "Status" in message.headers:
                ended.set_result(message)
            else:
                messages.append(message)

        subscription = await self._client.subscribe(
            inbox, cb=arrived, pending_msgs_limit=0, pending_bytes_limit=0
        )
        try:
            await self._client.publish(
                f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(request), reply=inbox
            )
            end = await asyncio.wait_for(ended, READ_SECONDS_MAX)
        finally:
            await subscription.unsubscribe()
        return messages, end


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RawNats]:
    """A connection to the server at `url`, with the stream of `publish`."""
    client = await nats.connect(url)
    try:
        raw = RawNats(client)
        await raw.prepare()
        yield raw
    finally:
        await client.close()
