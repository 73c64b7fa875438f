"""Puts the auth service together."""

from collections.abc import Mapping

from mesh.clock import Clock
from mesh.events.store import EventStore
from services.auth.api_keys import ApiKeys
from services.auth.audit import Audit
from services.auth.directory import AccessDirectory
from services.auth.roles import Roles
from services.auth.tenants import Tenants, WrappingKeys
from services.auth.tokens import Tokens


class AuthService:
    """Tenants, API keys, roles, tokens and the audit trail. The directory is the
    process's, which starts and stops it; `keys` is its keyring."""

    def __init__(
        self, events: EventStore, directory: AccessDirectory, keys: WrappingKeys, clock: Clock
    ) -> None:
        self._handlers: dict[str, object] = {
            "weft.auth.v1.AuthService": Tokens(directory, keys, clock),
            "weft.auth.v1.TenantService": Tenants(directory, keys, clock),
            "weft.auth.v1.ApiKeyService": ApiKeys(directory, clock),
            "weft.auth.v1.RoleService": Roles(directory, clock),
            "weft.auth.v1.AuditService": Audit(events),
        }

    @property
    def handlers(self) -> Mapping[str, object]:
        """What implements each contract."""
        return self._handlers

    async def start(self) -> None:
        """The directory knows everything already."""

    async def stop(self) -> None:
        """Nothing of it outlives a call."""
