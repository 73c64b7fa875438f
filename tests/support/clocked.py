"""A whole Weft in this process, on real servers, whose scheduler has a clock that can be set."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest

from mesh.clock import Clock
from mesh.runtime.host import Host
from mesh.runtime.service import Mesh, Service
from mesh.runtime.settings import RuntimeSettings
from services.catalog import CATALOGUE, access
from services.first_key import admitted
from services.scheduler.service import SchedulerService
from services.scheduler.settings import SchedulerSettings
from tests.support.keyed import KeyedChannel, key_of


@dataclass
class SetClock:
    """A clock that is ahead of the system's, and goes on by itself."""

    ahead: timedelta = timedelta()

    @property
    def clock(self) -> Clock:
        """For the code that is given one."""
        return Clock(now_ns=lambda: time.time_ns() + self.ahead // timedelta(microseconds=1) * 1000)

    @property
    def now(self) -> datetime:
        """What it shows."""
        return datetime.now(UTC) + self.ahead

    def go_on(self, seconds: float) -> None:
        """Sets it ahead by so much."""
        self.ahead += timedelta(seconds=seconds)

    def set(self, moment: datetime) -> None:
        """Sets it to a time, which isn't behind what it shows."""
        assert moment >= self.now, "it doesn't go back"
        self.ahead = moment - datetime.now(UTC)


@dataclass
class ClockedWeft:
    """One that serves; it has what `Scheduling` needs of a platform."""

    addresses: dict[str, str]
    channel: Any
    bare: grpc.aio.Channel


class _Clocked:
    """A mesh with another clock."""

    def __init__(self, mesh: Mesh, clock: Clock) -> None:
        self._mesh = mesh
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mesh, name)


@asynccontextmanager
async def clocked_weft(
    data_dir: Path, clock: SetClock, **environment: str
) -> AsyncIterator[ClockedWeft]:
    """Serves on that folder, as after any restart where it was served before."""

    def build(mesh: Mesh) -> Service:
        return SchedulerService(cast(Mesh, _Clocked(mesh, clock.clock)), SchedulerSettings())

    catalogue = tuple(
        replace(entry, build=build) if entry.name == "scheduler" else entry for entry in CATALOGUE
    )
    settings = RuntimeSettings(
        data_dir=data_dir, grpc_port=0, http_port=0, nats_port=0, xds_port=0, notice_seconds=0
    )
    async with AsyncExitStack() as stack:
        # Settings are read while it starts.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            host = await stack.enter_async_context(Host(catalogue, settings, access))
        await admitted(host)
        address = host.addresses["grpc"]
        bare = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield ClockedWeft(dict(host.addresses), KeyedChannel(bare, key_of(host.cluster)), bare)
