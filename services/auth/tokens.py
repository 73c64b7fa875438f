"""The RPCs of tokens, and of what a caller may do."""

import base64

from mesh.call import Call
from mesh.clock import NANOSECONDS, Clock
from mesh.errors import FailedPrecondition, InvalidArgument, LimitExceeded
from mesh.ids import new_id
from mesh.principal import Principal
from mesh.security.tokens import ACCESS_SECONDS_MAX, AccessToken, sign_access_token
from services.auth import domain
from services.auth.directory import AccessDirectory
from services.auth.first_start import FIRST_TENANT
from services.auth.requests import Requests
from services.auth.tenants import WrappingKeys
from weft.auth.v1 import access_pb2
from weft.auth.v1 import auth_service_pb2 as pb

MASTER_ROTATION_SECONDS = 10.0


class Tokens:
    """`weft.auth.v1.AuthService`."""

    def __init__(self, directory: AccessDirectory, keys: WrappingKeys, clock: Clock) -> None:
        self._directory = directory
        self._keys = keys
        self._master_rotated = float("-inf")
        self._clock = clock
        self._requests = Requests(directory, clock)

    async def exchange_token(
        self, request: pb.ExchangeTokenRequest, call: Call
    ) -> pb.ExchangeTokenResponse:
        """A token for an API key. Raises CredentialInvalid, in the same words whatever is
        wrong with the key; LimitExceeded where its roles and scopes don't fit a token."""
        principal = self._directory.verify_api_key(request.api_key).principal
        token = self._token(principal)
        try:
            text = sign_access_token(token, self._directory.signing_key())
        except ValueError as error:
            raise LimitExceeded(
                "the API key has too many roles and scopes for a token: use the key itself"
            ) from error
        response = pb.ExchangeTokenResponse(token=text)
        response.expire_time.FromSeconds(token.expire_seconds)
        return response

    async def get_jwks(self, request: pb.GetJwksRequest, call: Call) -> pb.GetJwksResponse:
        """The public keys that tokens are checked with, newest first."""
        now_ns = self._clock.now_ns()
        keys = [key for key in self._directory.signing.keys if not domain.has_expired(key, now_ns)]
        return pb.GetJwksResponse(keys=map(_jwk, reversed(keys)))

    async def who_am_i(self, request: pb.WhoAmIRequest, call: Call) -> pb.WhoAmIResponse:
        """Who calls, and what they may do."""
        caller = self._requests.caller(call)
        response = pb.WhoAmIResponse(
            principal=caller.name,
            tenant=domain.tenant_name(caller.tenant) if caller.tenant else "",
            scopes=sorted(caller.scopes),
        )
        for grant in caller.grants:
            response.grants.add(
                role=grant.role,
                permissions=sorted(grant.permissions),
                resource=grant.resource,
                platform=grant.platform,
            )
        if caller.expire_ns is not None:
            response.expire_time.FromNanoseconds(caller.expire_ns)
        return response

    async def check_access(
        self, request: pb.CheckAccessRequest, call: Call
    ) -> pb.CheckAccessResponse:
        """Whether a principal has a permission, and the role that gives it. A key that isn't
        there or isn't valid has none."""
        resource = request.resource or request.parent
        if resource.split("/")[:2] != request.parent.split("/"):
            raise InvalidArgument.of("resource", f"must be in {request.parent}")
        principal = self._principal(request, call)
        if principal is None:
            return pb.CheckAccessResponse()
        if principal.is_system:
            return pb.CheckAccessResponse(allowed=True)
        role = principal.role_for(request.permission, resource)
        return pb.CheckAccessResponse(allowed=role is not None, role=role or "")

    async def revoke_token(
        self, request: pb.RevokeTokenRequest, call: Call
    ) -> pb.RevokeTokenResponse:
        """Revokes a token before it expires. Ids of tokens that there never were are
        accepted: tokens aren't kept, so nobody knows."""
        made = self._requests.repeatable(call, request)
        # Longer than any that was issued lives, whatever this process's settings are.
        expire_ns = made.now_ns + ACCESS_SECONDS_MAX * NANOSECONDS
        command = domain.RevokeToken(made, request.token_id, expire_ns)
        await self._directory.change(domain.tenant_of(request.parent), command)
        return pb.RevokeTokenResponse()

    async def rotate_signing_key(
        self, request: pb.RotateSigningKeyRequest, call: Call
    ) -> pb.RotateSigningKeyResponse:
        """Makes another key to sign with; it does so once every process knows it."""
        key = await self._directory.rotate_signing_key()
        return pb.RotateSigningKeyResponse(kid=key.kid, sign_time=key.sign_time)

    async def rotate_master_key(
        self, request: pb.RotateMasterKeyRequest, call: Call
    ) -> pb.RotateMasterKeyResponse:
        """Makes another master key, and wraps with it what the one before wrapped."""
        since = self._clock.monotonic() - self._master_rotated
        if since < MASTER_ROTATION_SECONDS:
            raise FailedPrecondition(
                "the master key was replaced a moment ago, and each leaves a file behind",
                retry_seconds=MASTER_ROTATION_SECONDS - since,
            )
        self._master_rotated = self._clock.monotonic()
        try:
            key_id, count = await self._keys.rotate_master_key()
        except BaseException:
            # The next try completes it, and may come at once.
            self._master_rotated = float("-inf")
            raise
        made = self._requests.of(call)
        await self._directory.change(
            made.caller.tenant or FIRST_TENANT, domain.NoteRotation(made, "master", key_id)
        )
        return pb.RotateMasterKeyResponse(key_id=key_id, wrapped_count=count)

    def _token(self, principal: Principal) -> AccessToken:
        now_seconds = self._clock.now_ns() // NANOSECONDS
        expire_seconds = now_seconds + self._directory.settings.token_seconds
        if principal.expire_ns is not None:
            # No token outlives what it was exchanged for.
            ends_seconds = -(-principal.expire_ns // NANOSECONDS)
            expire_seconds = min(expire_seconds, ends_seconds)
        roles = dict.fromkeys(grant.role.rpartition("/")[2] for grant in principal.grants)
        return AccessToken(
            subject=principal.name,
            tenant=principal.tenant,
            roles=tuple(roles),
            scopes=tuple(sorted(principal.scopes)),
            token_id=new_id(),
            issued_seconds=now_seconds,
            expire_seconds=expire_seconds,
        )

    def _principal(self, request: pb.CheckAccessRequest, call: Call) -> Principal | None:
        if not request.principal:
            return self._requests.caller(call)
        if domain.tenant_of(request.principal) != domain.tenant_of(request.parent):
            raise InvalidArgument.of("principal", f"must be in {request.parent}")
        key = self._directory.key(request.principal)
        return key.principal() if key is not None else None


def _jwk(key: access_pb2.SigningKey) -> pb.Jwk:
    """RFC 8037, section 2."""
    encoded = base64.urlsafe_b64encode(key.public_key).rstrip(b"=").decode()
    return pb.Jwk(kty="OKP", crv="Ed25519", kid=key.kid, use="sig", alg="EdDSA", x=encoded)
