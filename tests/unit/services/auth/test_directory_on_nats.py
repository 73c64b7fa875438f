"""Two processes' directories on a real nats-server."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.errors import CredentialInvalid, Unavailable
from mesh.events.jetstream.store import connect_store
from mesh.ids import new_id
from mesh.principal import system
from mesh.security.api_keys import new_api_key
from services.auth import domain
from services.auth.directory import AccessDirectory
from services.auth.first_start import first_start
from services.auth.settings import AuthSettings
from tests.support.eventually import eventually
from tests.support.memory_keyring import MemoryKeyring
from tests.support.nats import NatsServer, harmed_nats_server, nats_server

__all__ = ["harmed_nats_server", "nats_server"]

SEEN_SECONDS_MAX = 5.0


@asynccontextmanager
async def directory(
    server: NatsServer, keyring: MemoryKeyring, settings: AuthSettings | None = None
) -> AsyncIterator[AccessDirectory]:
    store = await connect_store(server.url, name="test")
    made = AccessDirectory(store, keyring, settings=settings)
    await made.start()
    yield made
    await made.stop()
    await store.close()


def accepts(directory: AccessDirectory, key: str) -> bool:
    try:
        directory.authenticate(f"Bearer {key}")
    except CredentialInvalid:
        return False
    return True


def request() -> domain.Request:
    return domain.Request(new_id(), b"", system(), time.time_ns())


async def test_a_revocation_is_seen_by_the_other_process_in_time(
    harmed_nats_server: NatsServer,
) -> None:
    keyring = MemoryKeyring()
    async with (
        directory(harmed_nats_server, keyring) as one,
        directory(harmed_nats_server, keyring) as two,
    ):
        await first_start(one)
        key = new_api_key()
        name = domain.api_key_name("default", "k")
        secret = domain.Secret(key.id, one.hmac_of(key))
        create = domain.CreateApiKey(request(), name, "", (), 0, secret, (), (), "")
        await one.change("default", create)
        await eventually(lambda: accepts(two, key.text), SEEN_SECONDS_MAX)
        await two.change("default", domain.RevokeApiKey(request(), name))
        assert not accepts(two, key.text)
        await eventually(lambda: not accepts(one, key.text), SEEN_SECONDS_MAX)
    # What starts later reads it from the log.
    async with directory(harmed_nats_server, keyring) as three:
        assert not accepts(three, key.text)
        assert await first_start(three) is None


async def test_credentials_outlive_a_restart_of_the_log_and_no_more(
    harmed_nats_server: NatsServer,
) -> None:
    settings = AuthSettings(stale_seconds_max=1.5, contact_interval_seconds=0.1)
    async with directory(harmed_nats_server, MemoryKeyring(), settings) as one:
        key = await first_start(one)
        assert key is not None
        await harmed_nats_server.kill()
        assert accepts(one, key)

        def refuses() -> bool:
            try:
                accepts(one, key)
            except Unavailable:
                return True
            return False

        await eventually(refuses, 10)
        with pytest.raises(Unavailable):
            one.verify_api_key(key)
        await harmed_nats_server.start()
        await eventually(lambda: not refuses(), 15)
        assert accepts(one, key)
