"""The log of access, followed: what nobody foresaw is said to who waits."""

import pytest

from mesh.clock import SYSTEM
from mesh.errors import Internal
from mesh.events.memory import MemoryEventStore
from mesh.events.store import StoredCommit
from services.auth import domain
from services.auth.following import AccessFollowing
from services.auth.settings import AuthSettings
from tests.support.events import appended
from tests.support.eventually import eventually


async def test_an_error_of_whoever_applies_it_fails_the_start_and_not_the_stop() -> None:
    def surprised(stored: StoredCommit) -> None:
        raise KeyError("unforeseen")

    async def tend() -> None:
        raise AssertionError("isn't called")

    store = MemoryEventStore()
    await appended(store, domain.access_stream("acme"), "a")
    following = AccessFollowing(store, surprised, tend, SYSTEM, AuthSettings())
    with pytest.raises(Internal):
        await following.start()
    await following.stop()


async def test_an_error_of_whoever_tends_it_ends_no_trust() -> None:
    tended = []

    async def tend() -> None:
        tended.append(following.trusted_until)
        raise KeyError("unforeseen")

    settings = AuthSettings(contact_interval_seconds=0.02)
    following = AccessFollowing(MemoryEventStore(), lambda stored: None, tend, SYSTEM, settings)
    await following.start()
    await eventually(lambda: len(tended) > 2)
    assert tended == sorted(set(tended))
    await following.stop()
