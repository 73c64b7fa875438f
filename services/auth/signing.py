"""The keys that tokens and identities are signed with, as a process knows them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import Message

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import EventStoreUnavailable, Unavailable, WeftError
from mesh.events.aggregate import Aggregate, Repository
from mesh.events.fold import evolved
from mesh.events.store import EventStore, StoredCommit
from mesh.ids import new_id
from mesh.security.identity import IDENTITY_SECONDS_MAX
from mesh.security.secrets import Secrets
from mesh.security.tokens import LEEWAY_SECONDS, SigningKey
from services.auth import domain
from services.auth.domain import SigningState
from services.auth.settings import AuthSettings
from weft.auth.v1 import access_pb2

DESTROYED_BEHIND_SECONDS = 60
"""So long after another key signs, the private part of the one before is destroyed."""
VALID_BEHIND_SECONDS = IDENTITY_SECONDS_MAX + LEEWAY_SECONDS + 60
"""So long after another key signs, the one before verifies: longer than what it signed."""

_Decide = Callable[[SigningState, str, bytes], Sequence[Message]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Public:
    key: Ed25519PublicKey
    sign_ns: int
    expire_ns: int | None


class SigningKeys:
    """A KeySet in memory, which makes the first key and those that follow it.

    `put` and `apply` tell it what the log says; private parts are fetched from the key
    store when a key signs, now or soon.
    """

    def __init__(
        self, events: EventStore, secrets: Secrets, clock: Clock, settings: AuthSettings
    ) -> None:
        self._log = Repository(events, domain.SIGNING_FOLD, clock=clock)
        self._secrets = secrets
        self._clock = clock
        self._settings = settings
        self._state = SigningState()
        self._public: dict[str, _Public] = {}
        self._private: dict[str, SigningKey] = {}
        self._lost: set[str] = set()
        self._destroyed: set[str] = set()
        self._making = asyncio.Lock()
        self._pending = ""

    @property
    def state(self) -> SigningState:
        """The keys that there are, oldest first."""
        return self._state

    def apply(self, stored: StoredCommit) -> None:
        """Learns of a commit in the log."""
        if stored.head.revision > self._state.revision:
            self.put(evolved(domain.SIGNING_FOLD, self._state, stored))

    def put(self, state: SigningState) -> None:
        """Takes a state over, unless a newer one is known."""
        if state.revision < self._state.revision:
            return
        self._state = state
        self._public = {key.kid: _public(key) for key in state.keys}
        self._private = {kid: key for kid, key in self._private.items() if kid in self._public}
        self._destroyed &= self._public.keys()
        self._lost &= self._public.keys()

    def public_key(self, kid: str) -> Ed25519PublicKey | None:
        """See KeySet."""
        found = self._public.get(kid)
        if found is None:
            return None
        if found.expire_ns is not None and found.expire_ns <= self._clock.now_ns():
            return None
        return found.key

    def signing_key(self) -> SigningKey:
        """See KeySet: the newest whose time has come and whose private part is here."""
        now_ns = self._clock.now_ns()
        for kid, public in reversed(self._public.items()):
            if public.sign_ns <= now_ns and kid in self._private:
                return self._private[kid]
        raise Unavailable("no key to sign with is known yet")

    async def start(self) -> None:
        """Returns once there is a key to sign with. May raise EventStoreUnavailable."""
        if not self._state.keys:
            await self._make(self._decide_first)
        await self._load()
        await self._replace_lost()

    async def tend(self) -> None:
        """Fetches what is missing, destroys what signs no more, and makes another key once
        the newest is too old. May raise EventStoreUnavailable: what is known stays."""
        await self._load()
        await self._replace_lost()
        if domain.is_aged(self._state, self._clock.now_ns(), self._age_ns_max()):
            await self._make(self._decide_aged)

    async def rotate(self) -> access_pb2.SigningKey:
        """Makes another key, which signs once every process knows it. Raises
        FailedPrecondition where that was done too often, EventStoreUnavailable."""
        await self._make(self._decide_rotation)
        return self._state.keys[-1]

    def _decide_first(self, state: SigningState, kid: str, key: bytes) -> Sequence[Message]:
        return domain.decide_first(state, kid, key, now_ns=self._clock.now_ns())

    def _decide_rotation(self, state: SigningState, kid: str, key: bytes) -> Sequence[Message]:
        now_ns = self._clock.now_ns()
        return domain.decide_rotation(
            state,
            kid,
            key,
            now_ns=now_ns,
            sign_ns=now_ns + int(self._settings.signing_lead_seconds * NANOSECONDS),
            valid_ns=VALID_BEHIND_SECONDS * NANOSECONDS,
        )

    def _decide_aged(self, state: SigningState, kid: str, key: bytes) -> Sequence[Message]:
        # Another process may have been faster.
        if not domain.is_aged(state, self._clock.now_ns(), self._age_ns_max()):
            return []
        return self._decide_rotation(state, kid, key)

    async def _replace_lost(self) -> None:
        """Makes a key that signs at once where the newest one never will."""
        if self._state.keys[-1].kid in self._lost:
            await self._make(self._decide_replacement)

    def _decide_replacement(self, state: SigningState, kid: str, key: bytes) -> Sequence[Message]:
        if state.keys[-1].kid not in self._lost:
            return []
        now_ns = self._clock.now_ns()
        valid_ns = VALID_BEHIND_SECONDS * NANOSECONDS
        return domain.decide_rotation(
            state, kid, key, now_ns=now_ns, sign_ns=now_ns, valid_ns=valid_ns
        )

    def _age_ns_max(self) -> int:
        return int(self._settings.signing_key_days_max * 86_400 * NANOSECONDS)

    async def _make(self, decide: _Decide) -> None:
        """Commits what `decide` says of a new key, and learns which keys there are then."""
        async with self._making:
            aggregate = self._log.open(domain.SIGNING_STREAM)
            kid = self._pending = await self._unused_kid(aggregate)
            seed = await self._secrets.secret(secret_name(kid))
            public_key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
            try:
                await aggregate.execute(
                    # An earlier try may be stored only now.
                    lambda state: [] if _has(state, kid) else decide(state, kid, public_key)
                )
            except EventStoreUnavailable:
                # Whether it is stored is unknown: the next one that is made finds out.
                raise
            except WeftError:
                await self._discard(kid)
                raise
            self.put((await aggregate.acknowledged()).state)
            if kid not in self._public:
                # Another process made one first.
                await self._discard(kid)
            self._pending = ""
        await self._load()

    async def _unused_kid(self, aggregate: Aggregate[SigningState]) -> str:
        """The id of a key that was begun and isn't stored, so that its private part isn't
        left behind; else a new one."""
        if not self._pending:
            return new_id()
        stored = _has(await aggregate.load(), self._pending)
        return new_id() if stored else self._pending

    async def _discard(self, kid: str) -> None:
        """Destroys the private part of a key that isn't stored and won't be."""
        await self._secrets.destroy(secret_name(kid))
        self._pending = ""

    async def _load(self) -> None:
        signing, ended = self._parted(self._clock.now_ns())
        for kid in signing:
            if kid not in self._private and kid not in self._lost:
                await self._fetch(kid)
        for kid in ended:
            self._private.pop(kid, None)
            if kid not in self._destroyed:
                await self._secrets.destroy(secret_name(kid))
                self._destroyed.add(kid)

    def _parted(self, now_ns: int) -> tuple[list[str], list[str]]:
        """Ids of the keys that sign now or later, and of those that another one follows."""
        kids = list(self._public)
        signing = [kid for kid in kids if self._public[kid].sign_ns <= now_ns]
        first = kids.index(signing[-1]) if signing else 0
        behind_ns = DESTROYED_BEHIND_SECONDS * NANOSECONDS
        settled = bool(signing) and self._public[signing[-1]].sign_ns + behind_ns <= now_ns
        return kids[first:], kids[:first] if settled else []

    async def _fetch(self, kid: str) -> None:
        seed = await self._secrets.secret(secret_name(kid))
        private = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._public.get(kid)
        if public is None:
            return
        if private.public_key().public_bytes_raw() != public.key.public_bytes_raw():
            # Its private part is gone: what it signed still verifies, another one must sign.
            _log.error("signing_key_lost", kid=kid)
            self._lost.add(kid)
            return
        self._private[kid] = SigningKey(kid, private)


def secret_name(kid: str) -> str:
    """Under which name the key store has the private part of the key `kid`."""
    return f"signing.{kid}"


def _has(state: SigningState, kid: str) -> bool:
    return any(key.kid == kid for key in state.keys)


def _public(key: access_pb2.SigningKey) -> _Public:
    return _Public(
        key=Ed25519PublicKey.from_public_bytes(key.public_key),
        sign_ns=key.sign_time.ToNanoseconds(),
        expire_ns=key.expire_time.ToNanoseconds() if key.HasField("expire_time") else None,
    )
