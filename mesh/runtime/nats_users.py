"""The users of NATS: one per service, `host` and `admin`, with allow-lists only.

Pure: what each may do follows from what the catalogue says. A service alone in its
process has an account of its own, which imports exactly what it may use. The reason:
nats-server publishes an answer to whatever reply subject a request names, without
asking for permission (measured with 2.15.1: a direct get with another area's subject as
its reply appends there). Between accounts an answer reaches the asking account only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mesh.control.nats_leases import LEASE_PREFIX, LIVE_LEASE_PREFIX
from mesh.errors import FailedPrecondition
from mesh.events.jetstream.assets import (
    BLOBS_BUCKET,
    CACHE,
    CACHE_PREFIX,
    EVENTS,
    LIVE_CACHE_PREFIX,
    LIVE_PREFIX,
    SNAPSHOT_PREFIX,
    SNAPSHOTS,
    TOKEN_PREFIX,
    TOKENS,
)
from mesh.events.jetstream.connection import JETSTREAM_API
from mesh.events.store import SUBJECT_PREFIX
from mesh.runtime.bus_access import BusAccess, KeyUse, union
from mesh.runtime.service import ServiceEntry
from mesh.security.keyring import ONCE

HOST = "host"
"""The user of a process that runs several services."""
ADMIN_NAME = "admin"
SERVICE_API = "weft.js"
"""JetStream's API in the account of a service. Not `$JS.API`: that name is every
account's own, so that a request to it would be answered twice."""

_BLOBS = f"OBJ_{BLOBS_BUCKET}"
_LEASES = "KV_LEASES"
_KEYS = "KV_KEYS"
_KEYS_PREFIX = "$KV.KEYS"
_SESSIONS_AREA = "state"


@dataclass(frozen=True, slots=True)
class BusUser:
    """A user of NATS, and all that it may do.

    `sends` are subjects to publish to, `calls` are calls of JetStream's API with one
    answer, `gets` those with many, `hears` are subjects to subscribe to besides its own
    inboxes. `apart` says that it has an account of its own.
    """

    name: str
    sends: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    gets: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()
    apart: bool = False

    @property
    def inbox(self) -> str:
        """What the subjects of its inboxes begin with."""
        return f"_INBOX_{self.name}"

    @property
    def api(self) -> str:
        """What the subjects of its API calls begin with."""
        return SERVICE_API if self.apart else JETSTREAM_API

    @property
    def publish(self) -> tuple[str, ...]:
        """Subjects that it may publish to. Never empty, since nats-server takes an empty
        list for no restriction: who sends nothing may write to its own inbox."""
        calls = tuple(f"{self.api}.{call}" for call in (*self.calls, *self.gets))
        return (*self.sends, *calls) or (f"{self.inbox}.>",)

    @property
    def subscribe(self) -> tuple[str, ...]:
        """Subjects that it may subscribe to."""
        return (f"{self.inbox}.>", *self.hears)


ADMIN = BusUser(
    ADMIN_NAME,
    sends=tuple(f"{_KEYS_PREFIX}.{name}" for name in ONCE),
    calls=(
        f"STREAM.MSG.GET.{_KEYS}",
        "STREAM.CREATE.*",
        "STREAM.UPDATE.*",
        "STREAM.INFO.*",
        "STREAM.NAMES",
        f"STREAM.PURGE.{SNAPSHOTS}",
    ),
)
"""Makes the streams and brings them up to date, and makes the keys that a deployment has
once; a process uses it only while it starts. It reads and writes no event."""


def bus_users(catalogue: Sequence[ServiceEntry]) -> tuple[BusUser, ...]:
    """All users of a catalogue: `admin`, `host`, and one for each service."""
    host = user_of(HOST, union(entry.bus for entry in catalogue))
    services = (user_of(entry.name, union([entry.bus]), apart=True) for entry in catalogue)
    users = (ADMIN, host, *services)
    if len({user.name for user in users}) < len(users):
        raise ValueError(f"{ADMIN_NAME} and {HOST} name no service, and no name comes twice")
    return users


def process_user(catalogue: Sequence[ServiceEntry]) -> BusUser:
    """The user of a process with these services: the service's own where it is alone."""
    if len(catalogue) == 1:
        return user_of(catalogue[0].name, union([catalogue[0].bus]), apart=True)
    return user_of(HOST, union(entry.bus for entry in catalogue))


def external_user(name: str, catalogue: Sequence[ServiceEntry]) -> BusUser:
    """The user of that name on a server that isn't ours. FailedPrecondition where there is
    none."""
    for user in bus_users(catalogue):
        if user.name == name:
            return user
    raise FailedPrecondition(f"WEFT_RUNTIME_NATS_USER: there is no user {name!r}")


def no_admin() -> FailedPrecondition:
    """What to raise where the user `admin` is needed, and nobody said its seed."""
    return FailedPrecondition(
        f"NATS lets its user {ADMIN_NAME} alone make what Weft needs there:"
        " WEFT_RUNTIME_NATS_ADMIN_SEED_FILE names the file with that user's seed"
    )


def user_of(name: str, access: BusAccess, *, apart: bool = False) -> BusUser:
    """The user that may do what `access` says, and nothing else."""
    grants = [_lease(name), *_log(access), *_keys(access)]
    if access.tokens:
        grants.append(_TOKENS)
    if access.erases:
        grants.append(_ERASURE)
    if access.caches:
        grants.append(_CACHE)
    return BusUser(
        name,
        sends=_sorted(grant.sends for grant in grants),
        calls=_sorted(grant.calls for grant in grants),
        gets=_sorted(grant.gets for grant in grants),
        hears=_sorted(grant.hears for grant in grants),
        apart=apart,
    )


# What is overwritten is found message by message; what lies in memory is just dropped.
_ERASURE = BusUser(
    "",
    calls=(
        f"STREAM.PURGE.{SNAPSHOTS}",
        f"STREAM.PURGE.{TOKENS}",
        f"STREAM.MSG.DELETE.{SNAPSHOTS}",
        f"STREAM.MSG.DELETE.{_BLOBS}",
    ),
    gets=(f"DIRECT.GET.{SNAPSHOTS}", f"DIRECT.GET.{_BLOBS}"),
)
# What one service has forgotten, others may have kept: so a tag isn't one service's. All that
# is done by an invalidation is that something is made once more.
_CACHE = BusUser(
    "",
    sends=(f"{CACHE_PREFIX}.>",),
    calls=(f"STREAM.INFO.{CACHE}",),
    gets=(f"DIRECT.GET.{CACHE}",),
    hears=(f"{LIVE_CACHE_PREFIX}.>",),
)
# A restart of the server takes away what lies in memory: who uses such a stream may
# make it again. JetStream refuses to make one that is there in another shape.
_TOKENS = BusUser(
    "",
    sends=(f"{TOKEN_PREFIX}.>",),
    calls=(f"STREAM.CREATE.{TOKENS}",),
    gets=(f"DIRECT.GET.{TOKENS}",),
    hears=(f"{TOKEN_PREFIX}.>",),
)


def _lease(name: str) -> BusUser:
    """A lease of its own name, and the registry: with its lease each instance says what it is."""
    return BusUser(
        "",
        sends=(f"{LEASE_PREFIX}{name}.*",),
        calls=tuple(f"STREAM.{call}.{_LEASES}" for call in ("CREATE", "INFO")),
        gets=(f"DIRECT.GET.{_LEASES}",),
        hears=(f"{LIVE_LEASE_PREFIX}>",),
    )


def _log(access: BusAccess) -> Iterable[BusUser]:
    if access.reads_log:
        yield BusUser(
            "",
            calls=(
                f"STREAM.INFO.{EVENTS}",
                f"STREAM.MSG.GET.{EVENTS}",
                f"STREAM.MSG.GET.{_BLOBS}",
                f"DIRECT.GET.{SNAPSHOTS}.{SNAPSHOT_PREFIX}.>",
            ),
            gets=(f"DIRECT.GET.{EVENTS}", f"DIRECT.GET.{SNAPSHOTS}"),
            hears=(f"{LIVE_PREFIX}.>",),
        )
    for area in access.appends:
        written = (f"{SUBJECT_PREFIX}.{area}.>", f"{SNAPSHOT_PREFIX}.{area}.>")
        yield BusUser("", sends=(*written, f"$O.{BLOBS_BUCKET}.C.*", f"$O.{BLOBS_BUCKET}.M.*"))


def _keys(access: BusAccess) -> Iterable[BusUser]:
    if access.keys >= KeyUse.READ:
        yield BusUser(
            "",
            calls=(f"STREAM.INFO.{_KEYS}", f"STREAM.MSG.GET.{_KEYS}"),
            gets=(f"DIRECT.GET.{_KEYS}",),
            hears=(f"{_KEYS_PREFIX}.>",),
        )
        for area in access.appends:
            # Of an area, and of each session.
            data_keys = f"{_KEYS_PREFIX}.data.*.{area}"
            sessions = (f"{data_keys}.*.*",) if area == _SESSIONS_AREA else ()
            yield BusUser("", sends=(data_keys, *sessions))
    if access.keys >= KeyUse.DESTROY:
        yield BusUser("", calls=(f"STREAM.MSG.DELETE.{_KEYS}",))
    if access.keys >= KeyUse.KEEP:
        yield BusUser("", sends=(f"{_KEYS_PREFIX}.>",))


def _sorted(subjects: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({subject for each in subjects for subject in each}))
