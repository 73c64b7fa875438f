"""The registry: what instances say of themselves with their leases.

Each renewal of a lease carries its instance, so whoever hears the renewals knows them all
within one renewal's time: there is no second heartbeat. Whether one is gone, the leases
say; they are in doubt while NATS was away or has lost its memory, and nobody goes then.
What NATS would keep for longer than a lease is nobody's word: nothing would end it.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from mesh.control.leases import LEASE_SECONDS
from mesh.control.nats_leases import (
    ENDED,
    LEASE_PREFIX,
    LEASE_STREAM,
    LIVE_LEASE_PREFIX,
    RENEW_SECONDS,
    TTL_HEADER,
    NatsLeases,
)
from mesh.events.jetstream.connection import TooMany
from mesh.ids import user_of_instance
from mesh.security.spiffe import HOST
from weft.control.v1 import instances_pb2
from weft.control.v1.instances_pb2 import Instance

if TYPE_CHECKING:
    from mesh.events.jetstream.connection import Connection
    from mesh.events.jetstream.fast_client import StoredMessage

INSTANCES_MAX = 1_000
"""Most instances that are known at once."""
COLLECTION = "instances/"
"""What an instance's name begins with, before its id."""

_SERVING = instances_pb2.INSTANCE_STATE_SERVING
_TTL = re.compile(rb"\r\n%b:([^\r]*)" % TTL_HEADER.encode())
_SECONDS = re.compile(rb" *(\d{1,9})s? *")
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
        self._told: set[str] = set()
        self._by_service: dict[str, Sequence[Instance]] = {}
        self._serving: dict[str, Sequence[Instance]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._say_callbacks: list[Callable[[instances_pb2.InstanceLoad], None]] = []

    async def start(self) -> None:
        """Returns once it knows who is there, and listens for as long as the connection is
        open. EventStoreUnavailable where it can't."""
        self._leases.on_look(self._look)
        await self._connection.follow_stored(f"{LIVE_LEASE_PREFIX}>", self._learn)
        try:
            there = await self._connection.direct_get(
                LEASE_STREAM, {"multi_last": [f"{LEASE_PREFIX}>"]}
            )
        except TooMany:
            # More than there may be; who is there says so again, and is heard.
            await asyncio.sleep(2 * RENEW_SECONDS)
            return
        for message in there.messages:
            self._learn(message)

    def instances(self, service: str = "") -> Sequence[Instance]:
        """See Registry."""
        found = self._by_service.get(service)
        if found is None:
            by_name = sorted(self._known.values(), key=lambda each: each.name)
            found = tuple(each for each in by_name if not service or service in each.services)
            if found:
                # Callers may ask for any name; those that nobody has aren't kept.
                self._by_service[service] = found
        return found

    def serving(self, service: str = "") -> Sequence[Instance]:
        """See Registry."""
        found = self._serving.get(service)
        if found is None:
            found = tuple(each for each in self.instances(service) if each.state == _SERVING)
            if found:
                self._serving[service] = found
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
        await self._say(_SERVING)

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

    def _learn(self, message: "StoredMessage") -> None:
        """Raises nothing, since the connection's reading would end."""
        key, data = message.subject.removeprefix(LEASE_PREFIX), message.data
        user, _, instance_id = key.rpartition(".")
        if data == ENDED:
            self._leases.end(key)
            self._look()
            return
        if not _ends_with_lease(message.headers):
            self._leases.disregard(key)
            self._tell_once("instance_without_end", key)
            return
        self._leases.regard(key)
        if instance_id == self._leases.instance or not data:
            # Itself, or one that holds a lease and takes no calls yet.
            return
        said = _parsed(data)
        if said is None or said.name != COLLECTION + instance_id:
            self._tell_once("instance_unreadable", key)
            return
        if user_of_instance(instance_id) != user or not _may_serve(user, said.services):
            self._tell_once("instance_not_its_users", key)
            return
        before = self._known.get(instance_id)
        if before is None and len(self._known) >= INSTANCES_MAX:
            self._tell_once("instances_too_many", key)
            return
        if before is not None and _lasting(before) == _lasting(said):
            before.load.CopyFrom(said.load)
            return
        self._known[instance_id] = said
        self._changed()

    def _look(self) -> None:
        gone = [each for each in self._known if self._leases.expired(each)]
        for instance_id in gone:
            del self._known[instance_id]
        if gone:
            self._told.discard("instances_too_many")
            self._changed()

    def _tell_once(self, event: str, key: str) -> None:
        """That what is stored under that key is passed over."""
        # Whoever stores such may do so as often as it likes.
        if event not in self._told:
            _log.warning(event, key=key)
        self._told.add(event)

    def _changed(self) -> None:
        self._by_service.clear()
        self._serving.clear()
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            # Not from here: what fails there must not end the renewals.
            loop.call_soon(callback)


def _may_serve(user: str, services: Sequence[str]) -> bool:
    """Whether an instance of that user of NATS is believed to serve these."""
    return list(services) == [user] or (user == HOST and bool(services))


def _ends_with_lease(headers: bytes) -> bool:
    """Whether NATS removes the message no later than a lease ends. Of several such headers NATS
    goes by the first one."""
    found = _TTL.search(headers)
    seconds = _SECONDS.fullmatch(found[1]) if found is not None else None
    return seconds is not None and 0 < int(seconds[1]) <= LEASE_SECONDS


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
