"""Overwriting what JetStream holds, where deleting alone would leave it on the disk."""

from collections.abc import AsyncGenerator
from functools import partial

from mesh.errors import Internal
from mesh.events.jetstream.connection import Connection, NoReply, StoredMessage, retried

BATCH_MESSAGES = 64

_NO_MESSAGE = 10057
_NOT_FOUND = 404


async def messages_of(
    connection: Connection, stream: str, subject: str
) -> AsyncGenerator[StoredMessage, None]:
    """The messages that a stream holds of a subject, oldest first."""
    position = 0
    while True:
        request = {"batch": BATCH_MESSAGES, "seq": position + 1, "next_by_subj": subject}
        batch = await retried(partial(connection.direct_get, stream, request))
        for message in batch.messages:
            yield message
            position = message.position
        if not batch.pending or not batch.messages:
            return


async def erase_subject(connection: Connection, stream: str, subject: str) -> None:
    """Overwrites the messages that a stream holds of a subject with random bytes, and
    deletes them. Safe to repeat."""
    async for message in messages_of(connection, stream, subject):
        await retried(partial(_erase, connection, stream, message.position))


async def _erase(connection: Connection, stream: str, position: int) -> None:
    request = {"seq": position, "no_erase": False}
    error = (await connection.api(f"STREAM.MSG.DELETE.{stream}", request)).get("error")
    if error is None or error.get("err_code") == _NO_MESSAGE or error.get("code") == _NOT_FOUND:
        return
    if error.get("code") in (500, 503):
        raise NoReply("JetStream didn't erase a message")
    raise Internal(
        "JetStream refuses to erase a message", metadata={"code": str(error.get("err_code"))}
    )
