"""Signed URLs: what whoever has one may do, until when, and by whose right.

The grant lies in the URL, readable, beside its HMAC-SHA256 (RFC 2104). It is never more than
its maker may do when it is used: it ends with the credential, the role or the binding that
gave the permission. It is of Weft's own port, since a URL of the store would bring sealed
bytes.
"""

import base64
import binascii
import hmac

from google.protobuf.message import DecodeError

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import PermissionDenied
from mesh.principal import EVERYTHING, Grant, Principal, covers
from mesh.security.aead import derived
from mesh.security.authenticator import Authenticator
from mesh.security.keyring import READ_MODELS
from mesh.security.secrets import Secrets
from weft.blobs.v1 import stored_pb2

PURPOSE = "weft blob urls"
TEXT_LENGTH_MAX = 6_000
GET, PUT = "GET", "PUT"
PERMISSIONS = {GET: "blobs.get", PUT: "blobs.put"}
"""What the HTTP methods of URLs need."""


class UrlSigner:
    """Makes the signed part of URLs, and checks it."""

    def __init__(self, secrets: Secrets, authenticator: Authenticator, clock: Clock) -> None:
        self._secrets = secrets
        self._authenticator = authenticator
        self._clock = clock

    async def sign(self, grant: stored_pb2.UrlGrant, principal: Principal) -> str:
        """The text of a grant that is in the principal's name from here on. PermissionDenied
        where they haven't the permission themselves."""
        permission = PERMISSIONS[grant.method]
        given = _given(principal, permission, grant.name)
        if given is None:
            raise PermissionDenied(
                f"needs the permission {permission} for {grant.name}",
                metadata={"permission": permission, "resource": grant.name},
            )
        role, grant.permission = given
        grant.role, grant.resource = role.role, role.resource
        grant.principal = principal.name
        grant.token_id, grant.secret_id = principal.token_id, principal.secret_id
        grant.scopes.extend(sorted(principal.scopes))
        if principal.expire_ns is not None:
            grant.expire_seconds = min(grant.expire_seconds, principal.expire_ns // NANOSECONDS)
        data = grant.SerializeToString()
        return f"{_text(data)}.{_text(await self._mac(data))}"

    async def check(self, text: str, method: str, name: str) -> stored_pb2.UrlGrant:
        """The grant in `text`, which is for this method and blob. PermissionDenied where it
        isn't, or holds no more; it never says which."""
        data, _, mac = text.partition(".")
        try:
            if len(text) > TEXT_LENGTH_MAX:
                raise _refused()
            raw, given = _bytes(data), _bytes(mac)
            if not hmac.compare_digest(given, await self._mac(raw)):
                raise _refused()
            grant = stored_pb2.UrlGrant.FromString(raw)
        except (DecodeError, ValueError):
            raise _refused() from None
        if (grant.method, grant.name) != (method, name):
            raise _refused()
        if grant.expire_seconds * NANOSECONDS <= self._clock.now_ns():
            raise _refused()
        if not self._authenticator.valid(_principal(grant)):
            raise _refused()
        return grant

    async def _mac(self, data: bytes) -> bytes:
        key = derived(await self._secrets.secret(READ_MODELS), PURPOSE)
        return hmac.digest(key, data, "sha256")


def _given(principal: Principal, permission: str, name: str) -> tuple[Grant, str] | None:
    """Which of the principal's grants has the permission, and by which of its entries."""
    if not principal.allows(permission, name):
        return None
    entries = (permission, f"{permission.partition('.')[0]}.*", EVERYTHING)
    for grant in principal.grants:
        for entry in entries:
            if entry in grant.permissions and covers(grant.resource, name):
                return grant, entry
    return None


def _principal(grant: stored_pb2.UrlGrant) -> Principal:
    """Who made the URL, with no more than it needs."""
    return Principal(
        grant.principal,
        grant.name.split("/")[1],
        (Grant(grant.role, frozenset({grant.permission}), grant.resource),),
        frozenset(grant.scopes),
        token_id=grant.token_id,
        secret_id=grant.secret_id,
    )


def _refused() -> PermissionDenied:
    return PermissionDenied("the URL isn't valid, or not any more")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
