"""An edge without locks, for tests of what lies behind it, and one key that opens another."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from prometheus_client import CollectorRegistry

from mesh.errors import CredentialInvalid
from mesh.principal import Grant, Principal
from mesh.rpc.pipeline import Edge, Pipeline
from mesh.rpc.rate_limiter import RateLimiter
from mesh.rpc.settings import RateLimitSettings, RpcSettings
from mesh.runtime.service import Mesh
from mesh.security.identity import Identity, ShownKey, Sign
from mesh.security.tokens import AccessToken, SigningKey

TESTER = Principal("tenants/default/apiKeys/tester", "", is_system=True)


def administrator(tenant: str, *, platform: bool = False) -> Principal:
    """Who may do everything in a tenant."""
    role = f"tenants/{tenant}/roles/admin"
    grant = Grant(role, frozenset({"*"}), f"tenants/{tenant}", platform)
    return Principal(f"tenants/{tenant}/apiKeys/admin", tenant, (grant,))


class Doorkeeper:
    """Knows principals by their header; with `everybody`, whoever comes is that one."""

    def __init__(self, everybody: Principal | None = None, **known: Principal) -> None:
        self.everybody = everybody
        self.known = {f"Bearer {key}": principal for key, principal in known.items()}
        self.refused: list[tuple[Principal, str]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._seen: set[str] = set()

    def authenticate(self, authorization: str) -> Principal:
        found = self.known.get(authorization, self.everybody)
        if found is None:
            raise CredentialInvalid("the credential isn't valid")
        self._seen.add(authorization)
        return found

    def recall(self, shown: ShownKey | AccessToken) -> Principal:
        if self.everybody is not None:
            return self.everybody
        for known in self.known.values():
            if isinstance(shown, ShownKey) and known.secret_id == shown.secret_id:
                return known
            if isinstance(shown, AccessToken) and known.token_id == shown.token_id:
                return known
        raise CredentialInvalid("the credential isn't valid")

    async def caught_up(self) -> bool:
        return False

    def knows(self, authorization: str) -> bool:
        return authorization in self._seen

    def valid(self, principal: Principal) -> bool:
        return principal is self.everybody or principal in self.known.values()

    def denied(self, principal: Principal, method: str) -> None:
        self.refused.append((principal, method))

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def forget(self, key: str) -> None:
        """Revokes a key."""
        del self.known[f"Bearer {key}"]
        for callback in self._callbacks:
            callback()


class NoIdentities:
    """Knows none of Weft's services."""

    def knows_identity(self, text: str) -> bool:
        return False

    def verify(self, text: str, method: str) -> Identity:
        raise CredentialInvalid("the identity isn't valid")


class OneKey:
    """A key set of one key."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()

    def public_key(self, kid: str) -> Ed25519PublicKey | None:
        return self._private.public_key() if kid == "k1" else None

    def signing_key(self) -> SigningKey:
        return SigningKey("k1", self._private)


OPEN_DOOR = Doorkeeper(TESTER)
NO_LIMITS = RateLimitSettings(
    key_reads_per_second=1_000_000,
    key_writes_per_second=1_000_000,
    tenant_reads_per_second=1_000_000,
    tenant_writes_per_second=1_000_000,
)


class OpenAccess(Doorkeeper):
    """What a host knows of who may call: nobody is turned away."""

    def __init__(self) -> None:
        super().__init__(TESTER)

    @property
    def ready(self) -> bool:
        return True

    async def start(self) -> None:
        """It knows everybody already."""

    async def stop(self) -> None:
        """It follows nothing."""

    def verify(self, text: str, method: str) -> Identity:
        raise CredentialInvalid("the identity isn't valid")

    def knows_identity(self, text: str) -> bool:
        return False

    @property
    def sign(self) -> Sign:
        return _unsigned


def _unsigned(
    principal: Principal | None,
    caller: str,
    audience: str,
    seconds: float,
    *,
    handed_on: bool = False,
) -> str:
    return ""


def open_access(mesh: Mesh) -> OpenAccess:
    """For hosts whose services are the test's own."""
    return OpenAccess()


def edge(authenticator: Doorkeeper = OPEN_DOOR) -> Edge:
    """An edge with that doorkeeper, and limits that no test meets."""
    return Edge(
        authenticator=authenticator,
        identities=NoIdentities(),
        rate_limiter=RateLimiter(NO_LIMITS),
    )


def pipeline(
    settings: RpcSettings,
    authenticator: Doorkeeper = OPEN_DOOR,
    registry: CollectorRegistry | None = None,
) -> Pipeline:
    """The pipeline of a server with such an edge."""
    return Pipeline(registry or CollectorRegistry(), settings, edge(authenticator))
