"""The token stream port on a JetStream stream in memory."""

import asyncio
from collections.abc import AsyncGenerator

import structlog
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg

from mesh.errors import DataDamaged, DataErased, EventStoreUnavailable, LimitExceeded
from mesh.events.codec import PLAIN, Codecs
from mesh.events.jetstream.assets import TOKEN_PREFIX, TOKENS
from mesh.events.jetstream.connection import Connection, NotSent, retried
from mesh.events.store import StreamName
from weft.events.v1 import events_pb2

PAST_MESSAGES_MAX = 1_000
WAITING_MESSAGES_MAX = 1_024
PUBLISHING_MAX = 4_096

_DELTA_TYPE = events_pb2.TokenDelta.DESCRIPTOR.full_name
_log = structlog.get_logger(__name__)


class JetStreamTokenStream:
    """Tokens are sent without an acknowledgement: one that is lost, or too large for a
    message, comes again with the fact that ends its step."""

    def __init__(self, connection: Connection, codecs: Codecs = PLAIN) -> None:
        self._connection = connection
        self._codecs = codecs
        self._publishing: set[asyncio.Task[None]] = set()

    def publish(self, stream: StreamName, turn: str, data: bytes) -> None:
        """See TokenStream."""
        if len(self._publishing) >= PUBLISHING_MAX:
            return
        task = asyncio.create_task(self._publish(stream, turn, data))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def follow(self, stream: StreamName, turn: str) -> AsyncGenerator[bytes, None]:
        """See TokenStream. What can't be opened is as good as lost."""
        subject = _subject(stream, turn)
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
                opened = await open_delta(self._codecs, stream, turn, message.data)
                if opened is not None:
                    yield opened
            while True:
                opened = await open_delta(self._codecs, stream, turn, await coming.get())
                if opened is not None:
                    yield opened
        finally:
            await subscription.unsubscribe()

    async def forget(self, stream: StreamName) -> None:
        """See TokenStream. It lies in the server's memory."""

        async def purge() -> None:
            request = {"filter": f"{TOKEN_PREFIX}.{stream}.>"}
            if "error" in await self._connection.api(f"STREAM.PURGE.{TOKENS}", request):
                raise NotSent("JetStream isn't ready")

        await retried(purge)

    async def _publish(self, stream: StreamName, turn: str, data: bytes) -> None:
        try:
            sealed = await seal_delta(self._codecs, stream, turn, data)
            await self._connection.publish(_subject(stream, turn), sealed)
        except (EventStoreUnavailable, LimitExceeded, DataErased):
            return


async def seal_delta(codecs: Codecs, stream: StreamName, turn: str, data: bytes) -> bytes:
    """The message that carries a delta of the turn, and opens for no other turn or use."""
    codec = codecs.writing
    seal = await codec.to_write(str(stream))
    payload = seal.seal(0, _kind(turn), data)
    delta = events_pb2.TokenDelta(codec=codec.name, key_id=seal.key_id, payload=payload)
    return delta.SerializeToString()


async def open_delta(codecs: Codecs, stream: StreamName, turn: str, message: bytes) -> bytes | None:
    """The delta in a message; None where it was changed, moved or erased."""
    try:
        delta = events_pb2.TokenDelta.FromString(message)
        if delta.codec != codecs.writing.name:
            raise DataDamaged("it isn't sealed as all are")
        seal = await codecs.writing.to_read(str(stream), delta.key_id)
        return seal.open(0, _kind(turn), delta.payload)
    except (DecodeError, DataDamaged, DataErased) as error:
        _log.debug("a token delta can't be opened", stream=str(stream), error=str(error))
        return None


def _kind(turn: str) -> str:
    # No event has revision 0, and no message's name a slash.
    return f"{_DELTA_TYPE}/{turn}"


def _subject(stream: StreamName, turn: str) -> str:
    return f"{TOKEN_PREFIX}.{stream}.{turn}"
