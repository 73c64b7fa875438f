"""A deployment's access on a log in memory: its directory, its service, its first key."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from mesh.call import Call
from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.events.memory import MemoryEventStore, MemoryLog
from mesh.principal import Principal, system
from services.auth.directory import AccessDirectory
from services.auth.first_start import first_start
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from tests.support.memory_keyring import MemoryKeyring


class MovedClock:
    """The system's clocks, moved on by `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.clock = Clock(self.now_ns, self.monotonic)

    def now_ns(self) -> int:
        return time.time_ns() + int(self.seconds * NANOSECONDS)

    def monotonic(self) -> float:
        return time.monotonic() + self.seconds


@dataclass
class Access:
    """One process's access, and what it shares with others on the same log."""

    log: MemoryLog
    keyring: MemoryKeyring
    events: MemoryEventStore
    directory: AccessDirectory
    service: AuthService
    clock: Clock
    admin_key: str = field(default="", repr=False)

    def handler(self, contract: str) -> Any:
        """What implements `weft.auth.v1.<contract>`."""
        return self.service.handlers[f"weft.auth.v1.{contract}"]

    def principal(self, api_key: str) -> Principal:
        """Who presents the API key or token."""
        return self.directory.authenticate(f"Bearer {api_key}")

    def call(self, credential: str = "") -> Call:
        """A call of who presents the credential; of the first administrator without one."""
        principal = self.principal(credential or self.admin_key)
        return Call("/test", time.monotonic() + 10, "r", principal=principal)


def system_call() -> Call:
    """A call of Weft itself."""
    return Call("/test", time.monotonic() + 10, "r", principal=system())


@contextlib.asynccontextmanager
async def access(
    *,
    other: Access | None = None,
    clock: Clock = SYSTEM,
    settings: AuthSettings | None = None,
) -> AsyncIterator[Access]:
    """A process's access; with `other`, of another process of the same deployment."""
    log = other.log if other else MemoryLog()
    keyring = other.keyring if other else MemoryKeyring()
    # Stores in memory hear of each other's commits only where they are one.
    events = other.events if other else MemoryEventStore(log)
    directory = AccessDirectory(events, keyring, clock, settings)
    await directory.start()
    try:
        service = AuthService(events, directory, keyring, clock)
        made = Access(log, keyring, events, directory, service, clock)
        made.admin_key = await first_start(directory, clock) or (other.admin_key if other else "")
        yield made
    finally:
        await directory.stop()
