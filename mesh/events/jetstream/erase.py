"""Overwriting what JetStream holds, where deleting alone would leave it on the disk."""

from collections.abc import AsyncGenerator
from functools import partial

from mesh.errors import EventStoreUnavailable, Internal
from mesh.events.jetstream.connection import Connection, NoReply, retried
from mesh.events.jetstream.fast_client import StoredMessage
from mesh.events.jetstream.history import from_leader

BATCH_MESSAGES = 64
PASSES_MAX = 8

# No such message, no such sequence, or the deletion failed: who asks again is told.
_NOT_DELETED = frozenset({10037, 10043, 10057})


async def messages_of(
    connection: Connection,
    stream: str,
    subject: str,
    *,
    until: int | None = None,
    batch_messages: int = BATCH_MESSAGES,
) -> AsyncGenerator[StoredMessage, None]:
    """The messages that a stream holds of a subject, oldest first; up to the position
    `until`, where it is given."""
    position = 0
    while until is None or position < until:
        request = {"batch": batch_messages, "seq": position + 1, "next_by_subj": subject}
        batch = await retried(partial(connection.direct_get, stream, request))
        for message in batch.messages:
            if until is not None and message.position > until:
                return
            yield message
            position = message.position
        if not batch.pending or not batch.messages:
            return


async def erase_subject(
    connection: Connection, stream: str, subject: str, *, until: int | None = None
) -> None:
    """Overwrites the messages that a stream holds of a subject, up to the position `until`
    where it is given, with random bytes, and deletes them. Safe to repeat, and while
    another process does the same. EventStoreUnavailable where there are messages again
    and again."""
    for _ in range(PASSES_MAX):
        # What another process erased meanwhile, or what failed, the next pass tells.
        messages = messages_of(connection, stream, subject, until=until)
        positions = [each.position async for each in messages]
        if not positions:
            return
        for position in positions:
            await retried(partial(_erase, connection, stream, position))
    raise EventStoreUnavailable("what is erased is stored again and again")


async def erase_message(connection: Connection, stream: str, position: int) -> None:
    """As `erase_subject`, for the one message at that position, if it is there: the
    stream's leader is asked, so that no other one has to have it yet."""
    for _ in range(PASSES_MAX):
        if await retried(partial(_erase, connection, stream, position)):
            return
        if await retried(partial(from_leader, connection, stream, {"seq": position})) is None:
            return
    raise EventStoreUnavailable("a message can't be erased")


async def _erase(connection: Connection, stream: str, position: int) -> bool:
    """Whether it was erased by this; if not, it may be there or not."""
    request = {"seq": position, "no_erase": False}
    error = (await connection.api(f"STREAM.MSG.DELETE.{stream}", request)).get("error")
    if error is None:
        return True
    if error.get("err_code") in _NOT_DELETED:
        return False
    if error.get("code") in (500, 503):
        raise NoReply("JetStream didn't erase a message")
    raise Internal(
        "JetStream refuses to erase a message", metadata={"code": str(error.get("err_code"))}
    )
