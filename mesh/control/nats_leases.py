"""Leases in a NATS key-value bucket: a key per instance, which NATS removes after 1 s.

Why nobody is claimed too early. NATS starts a key's second when it has the renewal,
the instance counts its own from before it sent it: `held` ends first. A missing key is
therefore proof, with two exceptions. The bucket lies in memory and may be lost with its
keys: so nothing is claimed until one and the same bucket was seen without a break for a
whole lease, by when whatever was held before it is over. And a key may be newer than
our last look: so an instance is called gone only by a look that began after somebody
asked for it, hence after the work that it was asked for.

Whose lease it is, its subject says: a user of NATS may write those of its own name only,
`host` or a service. An instance's id says the same name, and its lease is the one key where
both agree. So no service ends another one's lease, speaks for it or keeps it alive. Who ends
in order says so there, and whoever hears it needn't wait for the key to go. A key that NATS
doesn't remove in time is no lease: whoever hears of one has it disregarded.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import structlog

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.control.leases import LEASE_SECONDS
from mesh.errors import EventStoreUnavailable
from mesh.ids import user_of_instance

RENEW_SECONDS = 0.3

LEASE_PREFIX = "$KV.LEASES."
"""Subject of a lease, without the user's name and the instance's id. What an instance says of
itself is the message's data."""
LIVE_LEASE_PREFIX = "weft.leases."
"""Where the bucket tells of what it stores: who listens there hears of everybody with each
renewal. What a user of another account sent isn't told to accounts but by that."""
ENDED = b"ended"
"""What an instance says last."""
TTL_HEADER = "Nats-TTL"

LEASE_STREAM = "KV_LEASES"
_BUCKET = {
    "name": LEASE_STREAM,
    "subjects": [LEASE_PREFIX + ">"],
    "storage": "memory",
    "max_msgs_per_subject": 1,
    "max_bytes": 8_000_000,
    # What somebody stores for longer than a lease goes, too, unless it is for ever.
    "max_age": 2 * round(LEASE_SECONDS) * NANOSECONDS,
    "discard": "new",
    "allow_msg_ttl": True,
    "allow_direct": True,
    "allow_rollup_hdrs": True,
    "republish": {"src": f"{LEASE_PREFIX}>", "dest": f"{LIVE_LEASE_PREFIX}>"},
}
_STREAM_NOT_FOUND = 10059
_REQUEST_SECONDS_MAX = 0.5
_START_SECONDS_MAX = 10.0
_ASKED_MAX = 10_000
_NEVER = float("-inf")

_log = structlog.get_logger(__name__)


class Reply(Protocol):
    """An answer of NATS."""

    @property
    def data(self) -> bytes: ...


class Connection(Protocol):
    """What is needed of `mesh.events.jetstream.connection.Connection`; both calls raise
    EventStoreUnavailable where no answer came."""

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float,
    ) -> Reply: ...

    async def api(
        self, call: str, request: Mapping[str, Any], *, timeout: float
    ) -> dict[str, Any]: ...

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None: ...


class NatsLeases:
    """See the module, and the port `mesh.control.leases.Leases`; `instance` is an id as
    `mesh.ids.new_instance_id` makes it for the process's user of NATS.

    `predecessor` is the run before this one on the same data folder: this process has
    its lock, so that one is gone as soon as its key is, without watching for a lease. The
    bucket lies on so many `replicas`: nobody could renew while the only one that has it is away.
    """

    def __init__(
        self,
        connection: Connection,
        instance: str,
        *,
        predecessor: str | None = None,
        replicas: int = 1,
        clock: Clock = SYSTEM,
    ) -> None:
        self._bucket_shape = {**_BUCKET, "num_replicas": replicas}
        self._connection = connection
        self._instance = instance
        self._subject = f"{LEASE_PREFIX}{user_of_instance(instance)}.{instance}"
        self._predecessor = predecessor
        self._clock = clock
        self._held_until = _NEVER
        self._problem = "its answers were errors, or none"
        self._bucket: str | None = None
        self._bucket_since = _NEVER
        self._looked = _NEVER
        self._keys: frozenset[str] = frozenset()
        self._ended: set[str] = set()
        self._disregarded: dict[str, float] = {}
        self._present: frozenset[str] = frozenset()
        self._asked: dict[str, float] = {}
        self._loop: asyncio.Task[None] | None = None
        self._saying: Callable[[], bytes] = bytes
        self._look_callbacks: list[Callable[[], None]] = []

    @property
    def instance(self) -> str:
        return self._instance

    def held(self) -> bool:
        return self._clock.monotonic() < self._held_until

    def expired(self, instance: str) -> bool:
        if instance == self._instance:
            return False
        if instance == self._predecessor:
            # Dead, unless this folder is a copy of one whose process lives on: then its
            # key is renewed.
            return self._looked > _NEVER and instance not in self._present
        now = self._clock.monotonic()
        if len(self._asked) >= _ASKED_MAX:
            self._asked.clear()
        asked = self._asked.setdefault(instance, now)
        watched = now - self._looked < LEASE_SECONDS and now - self._bucket_since >= LEASE_SECONDS
        return watched and asked < self._looked and instance not in self._present

    async def start(self) -> None:
        """Takes the lease and goes on renewing it; EventStoreUnavailable after 10 s."""
        self._connection.on_reconnect(self._forget_bucket)
        deadline = self._clock.monotonic() + _START_SECONDS_MAX
        while not self.held():
            await self._turn()
            if self._clock.monotonic() > deadline:
                raise EventStoreUnavailable(f"NATS didn't grant a lease: {self._problem}")
            if not self.held():
                await asyncio.sleep(0.05)
        self._loop = asyncio.create_task(self._run(), name="lease renewal")

    async def stop(self) -> None:
        """Gives the lease back, so that others see at once that it is over."""
        if self._loop:
            self._loop.cancel()
            await asyncio.wait({self._loop})
        self._held_until = _NEVER
        with contextlib.suppress(EventStoreUnavailable):
            await self._send(ENDED)

    def end(self, key: str) -> None:
        """Whoever holds the lease with that key, `{user}.{instance}`, said that it ends."""
        self._ended.add(key)
        self._find_present()

    def disregard(self, key: str) -> None:
        """What was stored under that key, `{user}.{instance}`, is no lease."""
        if len(self._disregarded) >= _ASKED_MAX:
            # They count again: in doubt nobody is gone.
            self._disregarded.clear()
        self._disregarded[key] = self._clock.monotonic()
        self._find_present()

    def regard(self, key: str) -> None:
        """What is stored under that key by now is a lease."""
        if self._disregarded.pop(key, None) is not None:
            self._find_present()

    def _find_present(self) -> None:
        held = self._keys - self._ended - self._disregarded.keys()
        self._present = frozenset(map(_holder, held))

    def on_look(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each look at whose leases are there."""
        self._look_callbacks.append(callback)

    async def say(self, what: Callable[[], bytes]) -> None:
        """Renews the lease at once, and from now on with `what` this instance then says of
        itself. Where NATS can't be reached, the next renewal says it."""
        self._saying = what
        await self._renew()

    async def _run(self) -> None:
        while True:
            started = self._clock.monotonic()
            await self._turn()
            spent = self._clock.monotonic() - started
            await asyncio.sleep(max(0.0, RENEW_SECONDS - spent))

    async def _turn(self) -> None:
        held = self.held()
        await asyncio.gather(self._renew(), self._look())
        if held and not self.held():
            _log.warning("lease_lost", instance=self._instance)
        for callback in self._look_callbacks:
            callback()

    async def _renew(self) -> None:
        sent = self._clock.monotonic()
        try:
            answer = await self._send(self._saying())
        except EventStoreUnavailable as error:
            self._problem = error.message
            return
        if "error" not in json.loads(answer.data):
            self._held_until = sent + LEASE_SECONDS

    async def _send(self, data: bytes) -> Reply:
        return await self._connection.request(
            self._subject,
            data,
            headers={TTL_HEADER: f"{LEASE_SECONDS:.0f}s"},
            timeout=_REQUEST_SECONDS_MAX,
        )

    async def _look(self) -> None:
        """Reads whose keys are there. Stream info is one small message, and always the
        leader's view, which a direct get isn't."""
        began = self._clock.monotonic()
        try:
            found = await self._connection.api(
                f"STREAM.INFO.{LEASE_STREAM}",
                {"subjects_filter": LEASE_PREFIX + ">"},
                timeout=_REQUEST_SECONDS_MAX,
            )
            if found.get("error", {}).get("err_code") == _STREAM_NOT_FOUND:
                await self._connection.api(
                    f"STREAM.CREATE.{LEASE_STREAM}",
                    self._bucket_shape,
                    timeout=_REQUEST_SECONDS_MAX,
                )
        except EventStoreUnavailable:
            await self._forget_bucket()
            return
        if "error" in found:
            await self._forget_bucket()
            return
        now = self._clock.monotonic()
        if found["created"] != self._bucket or now - self._looked > LEASE_SECONDS:
            self._bucket, self._bucket_since = found["created"], now
        self._looked = began
        subjects = found["state"].get("subjects") or {}
        self._keys = frozenset(subject.removeprefix(LEASE_PREFIX) for subject in subjects)
        self._ended &= self._keys
        self._disregarded = {
            # One that was heard of since the look began may not be among its keys yet.
            key: since
            for key, since in self._disregarded.items()
            if key in self._keys or since >= began
        }
        self._find_present()
        for instance in self._present & self._asked.keys():
            del self._asked[instance]

    async def _forget_bucket(self) -> None:
        self._bucket = None
        self._looked = _NEVER


def _holder(key: str) -> str:
    """The instance whose lease is stored under that key, `{user}.{instance}`; empty where it is
    nobody's."""
    user, _, instance = key.rpartition(".")
    # Of the version before, an id names no user: in doubt nobody is gone.
    return instance if user_of_instance(instance) in (user, "") else ""
