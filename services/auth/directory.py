"""Who may do what, in the memory of every process."""

import asyncio
import contextvars
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.errors import NotFound, Unavailable
from mesh.events.aggregate import Aggregate, Repository
from mesh.events.fold import evolved
from mesh.events.store import EventStore, StoredCommit, StreamName
from mesh.principal import Principal
from mesh.security import api_keys
from mesh.security.identity import Identity, IdentitySigner, IdentityVerifier, ShownKey, Sign
from mesh.security.keyring import PEPPER
from mesh.security.secrets import Secrets
from mesh.security.tokens import (
    TOKEN_BYTES_MAX,
    AccessToken,
    SigningKey,
    refused,
    verify_access_token,
)
from services.auth import domain
from services.auth.access import KeyAccess, SecretAccess, TenantAccess, Use
from services.auth.background import Background
from services.auth.checkpoint import CHECKPOINT_COMMITS, load_checkpoint, save_checkpoint
from services.auth.denials import Denials
from services.auth.following import ACCESS, AccessFollowing
from services.auth.settings import AuthSettings
from services.auth.signing import SigningKeys
from weft.auth.v1 import access_pb2
from weft.auth.v1 import events_pb2 as facts

USES_INTERVAL_SECONDS = 1.0
AUTHORIZATION_LENGTH_MAX = TOKEN_BYTES_MAX + 64
_ENDLESS_NS = 2**63


class _Verified(NamedTuple):
    """A credential that was verified; while `access` is current and it hasn't expired, it
    still is valid. The signature of a `token` needn't be checked again after that."""

    principal: Principal
    access: TenantAccess
    expire_ns: int
    use: Use
    token: AccessToken | None = None


class AccessDirectory:
    """Implements `Access` (hence `Authenticator`) and `KeySet` in every process: `await
    start()` before the first service, `await stop()` after the last, also where `start`
    failed.

    It follows the log of access, sees what others commit a moment later and what this
    process commits at once. While the log can't be reached it goes on with what it
    knows, for `stale_seconds_max`; then, and once the log can't be read, it refuses every
    credential with Unavailable, since one of them may have been revoked meanwhile.
    """

    def __init__(
        self,
        events: EventStore,
        secrets: Secrets,
        clock: Clock = SYSTEM,
        settings: AuthSettings | None = None,
        *,
        instance: str = "",
    ) -> None:
        self.settings = settings or AuthSettings()
        self._events = events
        self._secrets = secrets
        self._clock = clock
        self._pepper = b""
        self._tenants: dict[str, TenantAccess] = {}
        self._by_secret: dict[str, TenantAccess] = {}
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._callbacks: list[Callable[[], None]] = []
        self._since_checkpoint = 0
        self._used: set[tuple[str, str]] = set()
        self._signing = SigningKeys(events, secrets, clock, self.settings)
        self._access_log = Repository(events, domain.ACCESS_FOLD, clock=clock)
        self._catching_up: asyncio.Task[None] | None = None
        self._following = AccessFollowing(events, self._apply, self._tend, clock, self.settings)
        self._uses = Background("uses", self._flush_uses, USES_INTERVAL_SECONDS)
        self._denials = Denials(events, clock, self.settings.denied_interval_seconds)
        self._identities = IdentityVerifier(self, clock, instance=instance)
        self._signer = IdentitySigner(self, clock)

    async def start(self) -> None:
        """Returns once it knows all credentials and has a key to sign with."""
        self._pepper = await self._secrets.secret(PEPPER)
        kept = await load_checkpoint(self._events, await self._events.last_position(ACCESS))
        known, position = kept or (access_pb2.DirectoryState(), 0)
        self._restore(known)
        await self._following.start(position)
        await self._signing.start()
        self._uses.start()
        self._denials.start()

    async def stop(self) -> None:
        """Notes what is still to be noted, and ends following."""
        await self._following.stop()
        await self._uses.stop()
        await self._denials.stop()

    @property
    def ready(self) -> bool:
        """See Access."""
        following = self._following
        return following.failure is None and self._clock.monotonic() < following.trusted_until

    def authenticate(self, authorization: str) -> Principal:
        """See Authenticator."""
        self._refuse_stale()
        digest = _digest(authorization)
        now_ns = self._clock.now_ns()
        found = self._verified.get(digest)
        if found is None or not found.access.current:
            found = self._verify_again(found, authorization, now_ns)
            self._remember(digest, found)
        elif found.expire_ns <= now_ns:
            del self._verified[digest]
            raise refused()
        else:
            self._verified.move_to_end(digest)
        if now_ns >= found.use.due_ns:
            self._note_use(found, now_ns)
        return found.principal

    def recall(self, shown: ShownKey | AccessToken) -> Principal:
        """See Authenticator."""
        self._refuse_stale()
        now_ns = self._clock.now_ns()
        if isinstance(shown, ShownKey):
            access = self._by_secret.get(shown.secret_id)
            secret = access.secrets[shown.secret_id] if access is not None else None
            if secret is None or secret.key.name != shown.name or _expired(secret, now_ns):
                raise refused()
            return secret.principal
        # What begins so is no digest of a header.
        known_by = f"token {shown.token_id} {shown.roles}".encode()
        found = self._verified.get(known_by)
        if found is None or not found.access.current:
            found = self._permitted(shown, now_ns)
            self._remember(known_by, found)
        if found.expire_ns <= now_ns:
            raise refused()
        return found.principal

    async def caught_up(self) -> bool:
        """See Authenticator. Those who ask at one time ask once."""
        known = self._following.position
        if self._catching_up is None:
            # In a context of its own: many callers wait for it.
            self._catching_up = asyncio.create_task(
                self._following.catch_up(), context=contextvars.Context()
            )
            self._catching_up.add_done_callback(self._has_caught_up)
        await asyncio.shield(self._catching_up)
        return self._following.position > known

    def _has_caught_up(self, _: "asyncio.Task[None]") -> None:
        self._catching_up = None

    def knows(self, authorization: str) -> bool:
        """See Authenticator."""
        return _digest(authorization) in self._verified

    def valid(self, principal: Principal) -> bool:
        """See Authenticator. What was given in addition changes nothing; what was taken
        back does."""
        if principal.is_system:
            return True
        now_ns = self._clock.now_ns()
        access = self._tenants.get(principal.tenant)
        key = access.keys.get(principal.name) if access is not None else None
        if access is None or key is None or not key.is_valid(now_ns):
            return False
        if principal.token_id in access.revoked_tokens:
            return False
        expire_ns = principal.expire_ns
        if principal.secret_id:
            secret = access.secrets.get(principal.secret_id)
            if secret is None:
                return False
            expire_ns = secret.principal.expire_ns
        return (expire_ns is None or now_ns < expire_ns) and key.still_gives(principal)

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """See Authenticator."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def denied(self, principal: Principal, method: str) -> None:
        """See Authenticator."""
        self._denials.record(principal, method)

    def verify(self, text: str, method: str) -> Identity:
        """See Identities."""
        return self._identities.verify(text, method)

    def knows_identity(self, text: str) -> bool:
        """See Identities."""
        return self._identities.knows_identity(text)

    @property
    def sign(self) -> Sign:
        """See Access."""
        return self._signer.sign

    def public_key(self, kid: str) -> Ed25519PublicKey | None:
        """See KeySet."""
        return self._signing.public_key(kid)

    def signing_key(self) -> SigningKey:
        """See KeySet."""
        return self._signing.signing_key()

    @property
    def tenants(self) -> Mapping[str, TenantAccess]:
        """All tenants by id."""
        return self._tenants

    def state(self, name: str) -> domain.State:
        """The state of the tenant of that name, or of what is under it; not to be changed,
        and good until the next await. Raises NotFound where there is no such tenant."""
        access = self._tenants.get(domain.tenant_of(name))
        if access is None:
            raise NotFound.of("tenant", domain.tenant_name(domain.tenant_of(name)))
        return access.state

    @property
    def signing(self) -> access_pb2.SigningState:
        """The keys that tokens are signed with, oldest first."""
        return self._signing.state

    def key(self, name: str) -> KeyAccess | None:
        """The API key of that name, unless there is none or it isn't valid any more."""
        access = self._tenants.get(domain.tenant_of(name))
        key = access.keys.get(name) if access is not None else None
        return key if key is not None and key.is_valid(self._clock.now_ns()) else None

    def verify_api_key(self, text: str) -> SecretAccess:
        """The secret that the text of an API key is. Raises CredentialInvalid, Unavailable."""
        self._refuse_stale()
        now_ns = self._clock.now_ns()
        found = self._verified_key(text, now_ns)
        secret = found.access.secrets[found.principal.secret_id]
        if now_ns >= found.use.due_ns:
            self._note_use(found, now_ns)
        return secret

    def hmac_of(self, key: api_keys.ApiKeyText) -> bytes:
        """What is stored of an API key."""
        return api_keys.hmac_of(self._pepper, key)

    async def change(self, tenant: str, command: domain.Command) -> domain.State:
        """Decides and commits; the state of the tenant of that id once it is stored, not to
        be changed. Raises what `decide` raises, EventStoreUnavailable."""
        aggregate = await self._commit(tenant, command)
        loaded = await aggregate.acknowledged()
        self._put(tenant, loaded.state)
        return self._tenants[tenant].state if tenant in self._tenants else loaded.state

    async def _commit(self, tenant: str, command: domain.Command) -> Aggregate[domain.State]:
        aggregate = self._access_log.open(domain.access_stream(tenant))
        request_id = "" if isinstance(command, domain.UseApiKeys) else command.request.id
        await aggregate.execute(lambda state: domain.decide(state, command), request_id)
        return aggregate

    async def rotate_signing_key(self) -> access_pb2.SigningKey:
        """Makes another key to sign with. Raises FailedPrecondition where that was done too
        often, EventStoreUnavailable."""
        return await self._signing.rotate()

    def _verify_again(self, found: _Verified | None, authorization: str, now_ns: int) -> _Verified:
        if found is not None and found.token is not None and now_ns < found.expire_ns:
            return self._permitted(found.token, now_ns)
        return self._verify(authorization, now_ns)

    def _verify(self, authorization: str, now_ns: int) -> _Verified:
        scheme, _, credential = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise refused()
        if credential.startswith(api_keys.PREFIX):
            return self._verified_key(credential, now_ns)
        return self._permitted(verify_access_token(credential, self._signing, now_ns), now_ns)

    def _verified_key(self, text: str, now_ns: int) -> _Verified:
        parsed = api_keys.parse_api_key(text)
        if parsed is None:
            raise refused()
        access = self._by_secret.get(parsed.id)
        secret = access.secrets.get(parsed.id) if access is not None else None
        # An unknown id takes as long as a known one.
        known = secret.hmac if secret is not None else bytes(32)
        same = api_keys.same_hmac(api_keys.hmac_of(self._pepper, parsed), known)
        if access is None or secret is None or not same:
            raise refused()
        if _expired(secret, now_ns):
            raise refused()
        expire_ns = secret.principal.expire_ns
        ends_ns = _ENDLESS_NS if expire_ns is None else expire_ns
        return _Verified(secret.principal, access, ends_ns, secret.key.use)

    def _permitted(self, token: AccessToken, now_ns: int) -> _Verified:
        """What a token that is signed gives, if its subject still may use it."""
        access = self._tenants.get(token.tenant)
        key = access.keys.get(token.subject) if access is not None else None
        if access is None or key is None or not key.is_valid(now_ns):
            raise refused()
        if token.token_id in access.revoked_tokens or set(token.scopes) != key.scopes:
            raise refused()
        expire_ns = token.expire_seconds * NANOSECONDS
        return _Verified(key.token_principal(token), access, expire_ns, key.use, token)

    def _remember(self, digest: bytes, found: _Verified) -> None:
        self._verified[digest] = found
        self._verified.move_to_end(digest)
        if len(self._verified) > self.settings.verified_max:
            self._verified.popitem(last=False)

    def _refuse_stale(self) -> None:
        if not self.ready:
            raise Unavailable("credentials can't be checked: their log is out of reach")

    def _apply(self, stored: StoredCommit) -> None:
        stream = StreamName.parse(stored.commit.stream)
        self._since_checkpoint += 1
        if stream == domain.SIGNING_STREAM:
            self._signing.apply(stored)
        elif stream.key == ("access",):
            self._apply_access(stream.tenant, stored)

    def _apply_access(self, tenant: str, stored: StoredCommit) -> None:
        known = self._tenants.get(tenant)
        state = known.state if known is not None else domain.State()
        if stored.head.revision <= state.revision:
            return
        state = evolved(domain.ACCESS_FOLD, state, stored)
        used = facts.ApiKeyUsed.DESCRIPTOR.full_name
        if known is None or any(event.type != used for event in stored.commit.events):
            self._compile(tenant, state)

    def _put(self, tenant: str, state: domain.State) -> None:
        """Takes over a state that this process committed, unless a newer one is known."""
        known = self._tenants.get(tenant)
        if state.tenant.name and (known is None or known.state.revision < state.revision):
            self._compile(tenant, state)

    def _compile(self, tenant: str, state: domain.State) -> None:
        known = self._tenants.get(tenant)
        uses = {}
        if known is not None:
            known.current = False
            uses = {name: key.use for name, key in known.keys.items()}
            for secret_id in known.secrets:
                del self._by_secret[secret_id]
        access = self._tenants[tenant] = TenantAccess(state, uses)
        self._by_secret.update(dict.fromkeys(access.secrets, access))
        for callback in tuple(self._callbacks):
            callback()

    def _restore(self, state: access_pb2.DirectoryState) -> None:
        for tenant in state.tenants:
            self._compile(domain.tenant_of(tenant.tenant.name), tenant)
        self._signing.put(state.signing)

    async def _tend(self) -> None:
        await self._signing.tend()
        if self._since_checkpoint >= CHECKPOINT_COMMITS:
            self._since_checkpoint = 0
            known = access_pb2.DirectoryState(
                tenants=[access.state for access in self._tenants.values()],
                signing=self._signing.state,
            )
            await save_checkpoint(self._events, known, self._following.position)

    def _note_use(self, found: _Verified, now_ns: int) -> None:
        found.use.due_ns = now_ns + int(self.settings.last_used_interval_seconds * NANOSECONDS)
        self._used.add((found.principal.tenant, found.principal.name))
        self._uses.wake()

    async def _flush_uses(self) -> None:
        interval_ns = int(self.settings.last_used_interval_seconds * NANOSECONDS)
        for tenant in {tenant for tenant, _ in self._used}:
            used = {each for each in self._used if each[0] == tenant}
            names = frozenset(name for _, name in used)
            now_ns = self._clock.now_ns()
            command = domain.UseApiKeys(names, now_ns, interval_ns)
            # What it changes is told by the log soon enough: nothing is decided on it.
            await self._commit(tenant, command)
            self._used -= used


def _expired(secret: SecretAccess, now_ns: int) -> bool:
    expire_ns = secret.principal.expire_ns
    return expire_ns is not None and expire_ns <= now_ns


def _digest(authorization: str) -> bytes:
    """What is kept of a header: nobody can read a credential out of this memory's cache."""
    if len(authorization) > AUTHORIZATION_LENGTH_MAX or not authorization.isascii():
        raise refused()
    return hashlib.sha256(authorization.encode()).digest()
