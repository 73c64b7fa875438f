"""A nats-server with the catalogue's users, and raw clients of it."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.control.nats_leases import NatsLeases
from mesh.events.jetstream.connection import Login, connect
from mesh.events.jetstream.store import connect_store
from mesh.runtime.nats_server import EmbeddedNats, NatsEndpoint
from mesh.runtime.nats_users import ADMIN, HOST, BusUser, bus_users
from services.catalog import CATALOGUE
from tests.support.nats import instance_of

USERS = {user.name: user for user in bus_users(CATALOGUE)}
_REFUSAL = re.compile(r'permissions violation for (\w+) to "([^"]+)"')
STREAMS = ("EVENTS", "SNAPSHOTS", "OBJ_BLOBS", "TOKENS", "KV_LEASES", "KV_KEYS", "CACHE")


@dataclass
class RawClient:
    """A client as anybody could write one, which notes what the server refuses."""

    client: Client
    refused: set[tuple[str, str]] = field(default_factory=set)
    heard: list[Msg] = field(default_factory=list)

    async def tries(self, sent: Sequence[str], heard: Sequence[str] = ()) -> set[str]:
        """Publishes to subjects and subscribes to subjects; which of them it may, the
        latter as `hear SUBJECT`."""
        self.refused.clear()
        for subject in sent:
            await self.client.publish(subject, b"refused")
        for subject in heard:
            await self.client.subscribe(subject, cb=self._hear)
        await self.settle()
        # The client's library writes what the server said in small letters.
        allowed = {each for each in sent if ("publish", each.lower()) not in self.refused}
        return allowed | {
            f"hear {each}" for each in heard if ("subscription", each.lower()) not in self.refused
        }

    async def settle(self) -> None:
        """Returns when the server has answered to all that was sent."""
        for _ in range(2):
            # The library's ping may overtake what was published before it.
            await self.client.flush()
            await asyncio.sleep(0.05)

    async def asks(self, subject: str, data: bytes = b"") -> dict[str, Any]:
        """The answer's object; empty for one without text."""
        answer = await self.client.request(subject, data, timeout=2)
        parsed: dict[str, Any] = json.loads(answer.data) if answer.data[:1] == b"{" else {}
        return parsed

    async def _hear(self, message: Msg) -> None:
        self.heard.append(message)


@contextlib.asynccontextmanager
async def logged_in(url: str, login: Login) -> AsyncIterator[RawClient]:
    """A client that was let in."""
    refused: set[tuple[str, str]] = set()

    async def note(error: Exception) -> None:
        if found := _REFUSAL.search(str(error)):
            refused.add((found[1], found[2]))

    client = await nats.connect(
        url,
        nkeys_seed=str(login.seed_file),
        inbox_prefix=login.inbox_prefix or "_INBOX",
        allow_reconnect=False,
        error_cb=note,
    )
    try:
        yield RawClient(client, refused)
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def bus(folder: Path) -> AsyncIterator[NatsEndpoint]:
    """The embedded server with the catalogue's users and all streams."""
    server = EmbeddedNats(folder, tuple(USERS.values()), port=0)
    try:
        endpoint = await server.start()
        await make_streams(endpoint)
        yield endpoint
    finally:
        await server.stop()


async def make_streams(endpoint: NatsEndpoint) -> None:
    """As a host does at its start."""
    store = await connect_store(endpoint.url, name="admin", login=endpoint.login(ADMIN))
    keys = {"name": "KV_KEYS", "subjects": ["$KV.KEYS.>"], "storage": "file", "allow_direct": True}
    if "KV_KEYS" not in (await store.connection.api("STREAM.NAMES", {}))["streams"]:
        assert "error" not in await store.connection.api("STREAM.CREATE.KV_KEYS", keys)
    await store.close()
    connection = await connect(endpoint.url, name="lease", login=endpoint.login(USERS[HOST]))
    leases = NatsLeases(connection, instance_of(USERS[HOST]))
    await leases.start()
    await leases.stop()
    await connection.close()


def others(user: BusUser) -> list[BusUser]:
    """All users but one."""
    return [each for each in USERS.values() if each is not user]
