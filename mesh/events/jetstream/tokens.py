"""The token stream port on a JetStream stream in memory."""

import asyncio
from collections.abc import AsyncGenerator

from nats.aio.msg import Msg

from mesh.errors import EventStoreUnavailable, LimitExceeded
from mesh.events.jetstream.assets import TOKEN_PREFIX, TOKENS
from mesh.events.jetstream.connection import Connection
from mesh.events.store import StreamName

PAST_MESSAGES_MAX = 1_000
WAITING_MESSAGES_MAX = 1_024
PUBLISHING_MAX = 4_096


class JetStreamTokenStream:
    """Tokens are sent without an acknowledgement: one that is lost, or too large for a
    message, comes again with the fact that ends its step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._publishing: set[asyncio.Task[None]] = set()

    def publish(self, stream: StreamName, turn: str, data: bytes) -> None:
        """See TokenStream."""
        if len(self._publishing) >= PUBLISHING_MAX:
            return
        task = asyncio.create_task(self._publish(f"{TOKEN_PREFIX}.{stream}.{turn}", data))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def follow(self, stream: StreamName, turn: str) -> AsyncGenerator[bytes, None]:
        """See TokenStream."""
        subject = f"{TOKEN_PREFIX}.{stream}.{turn}"
        coming: asyncio.Queue[bytes] = asyncio.Queue(WAITING_MESSAGES_MAX)

        async def arrived(message: Msg) -> None:
            # What a slow watcher misses comes again with the end of the step.
            if not coming.full():
                coming.put_nowait(message.data)

        subscription = await self._connection.subscribe(subject, arrived)
        try:
            past = await self._connection.direct_get(
                TOKENS, {"batch": PAST_MESSAGES_MAX, "seq": 1, "next_by_subj": subject}
            )
            # A message may come both ways: who follows goes by the text's offset.
            for message in past.messages:
                yield message.data
            while True:
                yield await coming.get()
        finally:
            await subscription.unsubscribe()

    async def _publish(self, subject: str, data: bytes) -> None:
        try:
            await self._connection.publish(subject, data)
        except (EventStoreUnavailable, LimitExceeded):
            return
