"""The key store port on a JetStream stream, which `nats kv` reads as the bucket KEYS.

nats-server leaves the bytes of a message that a newer one of its subject replaces in the
file, and can't overwrite them any more (measured with 2.15.1: with one message per
subject the old one still lay in its block, and deleting it answered `no message found`).
So the stream keeps a few messages per subject, and after each put those before it are
deleted with erasure, which writes random bytes over them.
"""

from collections.abc import AsyncGenerator, Callable
from functools import partial

from nats.aio.msg import Msg

from mesh.events.jetstream.append import DEFAULT_BOUNDS, Publisher
from mesh.events.jetstream.assets import KEYS, KEYS_PREFIX
from mesh.events.jetstream.connection import Connection, NoReply, retried
from mesh.events.jetstream.erase import erase_message, erase_subject, messages_of
from mesh.events.jetstream.fast_client import StoredMessage
from mesh.events.jetstream.history import from_leader
from mesh.events.store import HeadConflict
from mesh.security.key_store import KeyConflict, OnPut, StoredKey, checked_name

PAGE_KEYS = 500

_SUBJECT_START = len(KEYS_PREFIX) + 1


class JetStreamKeyStore:
    """A KeyStore on the stream KV_KEYS; revisions are its sequences."""

    def __init__(
        self, connection: Connection, disk_full: Callable[[], bool] = lambda: False
    ) -> None:
        self._connection = connection
        self._publisher = Publisher(connection, DEFAULT_BOUNDS, disk_full, stream=KEYS)

    async def get(self, name: str) -> StoredKey | None:
        """See KeyStore."""
        request = {"last_by_subj": _subject(name)}
        message = await retried(partial(from_leader, self._connection, KEYS, request))
        return StoredKey(message.data, message.position) if message else None

    async def put(self, name: str, value: bytes, revision: int) -> int:
        """See KeyStore."""
        subject = _subject(name)
        try:
            position = await self._publisher.append(subject, value, {}, revision)
        except HeadConflict:
            raise KeyConflict("the key has changed", metadata={"key": name}) from None
        if revision:
            # Named, since a replica that answers a read may not have it yet.
            await erase_message(self._connection, KEYS, revision)
            await erase_subject(self._connection, KEYS, subject, until=position - 1)
        return position

    async def destroy(self, name: str) -> None:
        """See KeyStore."""
        # Another process may put it once more meanwhile.
        await erase_subject(self._connection, KEYS, _subject(name))

    async def list(self, prefix: str) -> AsyncGenerator[tuple[str, StoredKey], None]:
        """See KeyStore."""
        until = await self._last_position()
        async for message in self._messages(f"{_subject(prefix)}.>", until):
            yield message.subject[_SUBJECT_START:], StoredKey(message.data, message.position)

    async def scrub(self) -> None:
        """See KeyStore."""
        state = (await retried(self._information))["state"]
        if state["messages"] == state.get("num_subjects", 0):
            return
        newest: dict[str, int] = {}
        async for message in self._messages(f"{KEYS_PREFIX}.>", int(state["last_seq"])):
            replaced = newest.get(message.subject)
            newest[message.subject] = message.position
            if replaced is not None:
                await erase_message(self._connection, KEYS, replaced)

    async def watch(self, callback: OnPut) -> None:
        """See KeyStore."""

        async def put(message: Msg) -> None:
            callback(message.subject[_SUBJECT_START:], message.data)

        await self._connection.subscribe(f"{KEYS_PREFIX}.>", put)

    def _messages(self, subject: str, until: int) -> AsyncGenerator[StoredMessage, None]:
        return messages_of(self._connection, KEYS, subject, until=until, batch_messages=PAGE_KEYS)

    async def _last_position(self) -> int:
        return int((await retried(self._information))["state"]["last_seq"])

    async def _information(self) -> dict[str, dict[str, int]]:
        answer = await self._connection.api(f"STREAM.INFO.{KEYS}", {})
        if "error" in answer:
            raise NoReply("the key store isn't ready")
        return answer


def _subject(name: str) -> str:
    return f"{KEYS_PREFIX}.{checked_name(name)}"
