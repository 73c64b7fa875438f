"""The registry: what instances say of themselves with their leases.

Each renewal of a lease carries its instance, so whoever hears the renewals knows them all
within one renewal's time: there is no second heartbeat. Whether one is gone, the leases
say; they are in doubt while NATS was away or has lost its memory, and nobody goes then.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from mesh.control.nats_leases import (
    ENDED,
    LEASE_PREFIX,
    LEASE_STREAM,
    LIVE_LEASE_PREFIX,
    NatsLeases,
)
from mesh.security.spiffe import HOST
from weft.control.v1 import instances_pb2
from weft.control.v1.instances_pb2 import Instance

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from mesh.events.jetstream.connection import Connection

INSTANCES_MAX = 1_000
"""Most instances that are known at once."""
COLLECTION = "instances/"
"""What an instance's name begins with, before its id."""

_log = structlog.get_logger(__name__)


class NatsRegistry:
    """See the module, and the port `mesh.control.registry.Registry`.

    `own` is this instance, but for where it listens; `load` says how busy it is.
    """

    def __init__(
        self,
        connection: "Connection",
        leases: NatsLeases,
        own: Instance,
        load: Callable[[], instances_pb2.InstanceLoad],
    ) -> None:
        self._connection = connection
        self._leases = leases
        self._own = own
        self._load = load
        self._known: dict[str, Instance] = {}
        self._users: dict[str, str] = {}
        self._full = False
        self._by_service: dict[str, Sequence[Instance]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._say_callbacks: list[Callable[[instances_pb2.InstanceLoad], None]] = []

    async def start(self) -> None:
        """Returns once it knows who is there, and listens for as long as the connection is
        open. EventStoreUnavailable where it can't."""
        self._leases.on_look(self._look)
        await self._connection.subscribe(f"{LIVE_LEASE_PREFIX}>", self._hear)
        there = await self._connection.direct_get(
            LEASE_STREAM, {"multi_last": [f"{LEASE_PREFIX}>"]}
        )
        for message in there.messages:
            self._learn(message.subject, message.data)

    def instances(self, service: str = "") -> Sequence[Instance]:
        """See Registry."""
        found = self._by_service.get(service)
        if found is None:
            by_name = sorted(self._known.values(), key=lambda each: each.name)
            found = tuple(each for each in by_name if not service or service in each.services)
            self._by_service[service] = found
        return found

    def on_change(self, callback: Callable[[], None]) -> None:
        """See Registry."""
        self._callbacks.append(callback)

    def on_say(self, callback: Callable[[instances_pb2.InstanceLoad], None]) -> None:
        """See Registry."""
        self._say_callbacks.append(callback)

    @property
    def draining(self) -> bool:
        """See Registry."""
        return self._own.state == instances_pb2.INSTANCE_STATE_DRAINING

    async def register(self, target: str, xds_target: str = "") -> None:
        """See Registry."""
        self._own.target, self._own.xds_target = target, xds_target
        await self._say(instances_pb2.INSTANCE_STATE_SERVING)

    async def drain(self) -> None:
        """See Registry."""
        if self._leases.instance in self._known:
            await self._say(instances_pb2.INSTANCE_STATE_DRAINING)

    async def _say(self, state: "instances_pb2.InstanceState.ValueType") -> None:
        self._own.state = state
        self._known[self._leases.instance] = self._own
        self._changed()
        await self._leases.say(self._said)

    def _said(self) -> bytes:
        load = self._load()
        for callback in self._say_callbacks:
            callback(load)
        self._own.load.CopyFrom(load)
        return self._own.SerializeToString()

    async def _hear(self, message: "Msg") -> None:
        self._learn(message.subject, message.data)

    def _learn(self, subject: str, data: bytes) -> None:
        key = subject.removeprefix(LEASE_PREFIX).removeprefix(LIVE_LEASE_PREFIX)
        user, _, instance_id = key.rpartition(".")
        if data == ENDED:
            self._leases.end(key)
            self._look()
            return
        if instance_id == self._leases.instance or not data:
            # Itself, or one that holds a lease and takes no calls yet.
            return
        said = _parsed(data)
        if said is None or said.name != COLLECTION + instance_id or not said.services:
            _log.warning("instance_unreadable", instance=instance_id)
            return
        before = self._known.get(instance_id)
        if user not in (HOST, *said.services) or (user != HOST and len(said.services) > 1):
            _log.warning("instance_of_another_user", instance=instance_id, user=user)
            return
        if before is not None and self._users[instance_id] != user:
            _log.warning("instance_of_another_user", instance=instance_id, user=user)
            return
        if before is None and len(self._known) >= INSTANCES_MAX:
            if not self._full:
                _log.warning("instances_too_many", instance=instance_id)
            self._full = True
            return
        self._users[instance_id] = user
        if before is not None and _lasting(before) == _lasting(said):
            before.load.CopyFrom(said.load)
            return
        self._known[instance_id] = said
        self._changed()

    def _look(self) -> None:
        gone = [each for each in self._known if self._leases.expired(each)]
        for instance_id in gone:
            del self._known[instance_id]
            self._users.pop(instance_id, None)
        if gone:
            self._full = False
            self._changed()

    def _changed(self) -> None:
        self._by_service.clear()
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            # Not from here: what fails there must not end the renewals.
            loop.call_soon(callback)


def _parsed(data: bytes) -> Instance | None:
    try:
        return Instance.FromString(data)
    except DecodeError:
        return None


def _lasting(instance: Instance) -> bytes:
    """All that it says but how busy it is."""
    lasting = Instance()
    lasting.CopyFrom(instance)
    lasting.ClearField("load")
    return lasting.SerializeToString(deterministic=True)
