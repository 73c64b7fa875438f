"""Overwriting what JetStream holds, where deleting alone would leave it on the disk."""

from collections.abc import AsyncGenerator
from functools import partial

from mesh.errors import EventStoreUnavailable, Internal
from mesh.events.jetstream.connection import Connection, NoReply, retried
from mesh.events.jetstream.fast_client import StoredMessage

BATCH_MESSAGES = 64
PASSES_MAX = 8

# No such message, no such sequence, or the deletion failed: who asks again is told.
_NOT_DELETED = frozenset({10037, 10043, 10057})


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
    deletes them. Safe to repeat, and while another process does the same.
    EventStoreUnavailable where there are messages again and again."""
    for _ in range(PASSES_MAX):
        # What another process erased meanwhile, or what failed, the next pass tells.
        positions = [each.position async for each in messages_of(connection, stream, subject)]
        if not positions:
            return
        for position in positions:
            await retried(partial(_erase, connection, stream, position))
    raise EventStoreUnavailable("what is erased is stored again and again")


async def _erase(connection: Connection, stream: str, position: int) -> None:
    request = {"seq": position, "no_erase": False}
    error = (await connection.api(f"STREAM.MSG.DELETE.{stream}", request)).get("error")
    if error is None or error.get("err_code") in _NOT_DELETED:
        return
    if error.get("code") in (500, 503):
        raise NoReply("JetStream didn't erase a message")
    raise Internal(
        "JetStream refuses to erase a message", metadata={"code": str(error.get("err_code"))}
    )
