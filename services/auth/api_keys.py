"""The RPCs of API keys."""

from mesh.call import Call
from mesh.clock import NANOSECONDS, Clock
from mesh.ids import new_id
from mesh.security.api_keys import new_api_key
from services.auth import domain
from services.auth.directory import AccessDirectory
from services.auth.requests import Requests, page_of
from weft.auth.v1 import access_pb2
from weft.auth.v1 import api_key_service_pb2 as pb


class ApiKeys:
    """`weft.auth.v1.ApiKeyService`."""

    def __init__(self, directory: AccessDirectory, clock: Clock) -> None:
        self._directory = directory
        self._requests = Requests(directory, clock)

    async def create_api_key(
        self, request: pb.CreateApiKeyRequest, call: Call
    ) -> pb.CreateApiKeyResponse:
        """Makes the key, and gives it the roles that are named, or does neither."""
        tenant = domain.tenant_of(request.parent)
        name = domain.api_key_name(tenant, request.api_key_id or new_id())
        made = self._requests.of(call)
        key = new_api_key()
        roles = tuple(dict.fromkeys(request.roles))
        ttl_ns = request.ttl.ToNanoseconds()
        command = domain.CreateApiKey(
            request=made,
            name=name,
            display_name=request.display_name,
            scopes=tuple(dict.fromkeys(request.scopes)),
            expire_ns=made.now_ns + ttl_ns if request.HasField("ttl") else 0,
            secret=domain.Secret(key.id, self._directory.hmac_of(key)),
            roles=roles,
            bindings=[f"{request.parent}/roleBindings/{new_id()}" for _ in roles],
            resource=request.resource,
        )
        state = await self._directory.change(tenant, command)
        stored = domain.existing_api_key(state, name)
        return pb.CreateApiKeyResponse(api_key=stored.api_key, secret=key.text)

    async def get_api_key(self, request: pb.GetApiKeyRequest, call: Call) -> pb.GetApiKeyResponse:
        """The key, revoked or not, without its secrets."""
        state = self._directory.state(request.name)
        return pb.GetApiKeyResponse(api_key=domain.existing_api_key(state, request.name).api_key)

    async def list_api_keys(
        self, request: pb.ListApiKeysRequest, call: Call
    ) -> pb.ListApiKeysResponse:
        """A page of the tenant's keys, oldest first."""
        keys = [stored.api_key for stored in self._directory.state(request.parent).api_keys]
        page, token = page_of(keys, _age, request.parent, request.page_size, request.page_token)
        return pb.ListApiKeysResponse(api_keys=page, next_page_token=token)

    async def rotate_api_key(
        self, request: pb.RotateApiKeyRequest, call: Call
    ) -> pb.RotateApiKeyResponse:
        """Gives the key another secret."""
        overlap_ns = self._directory.settings.rotation_overlap_seconds * NANOSECONDS
        if request.HasField("overlap"):
            overlap_ns = request.overlap.ToNanoseconds()
        key = new_api_key()
        command = domain.RotateApiKey(
            request=self._requests.of(call),
            name=request.name,
            secret=domain.Secret(key.id, self._directory.hmac_of(key)),
            overlap_ns=overlap_ns,
        )
        state = await self._directory.change(domain.tenant_of(request.name), command)
        stored = domain.existing_api_key(state, request.name)
        return pb.RotateApiKeyResponse(api_key=stored.api_key, secret=key.text)

    async def revoke_api_key(
        self, request: pb.RevokeApiKeyRequest, call: Call
    ) -> pb.RevokeApiKeyResponse:
        """Revokes the key for good."""
        made = self._requests.repeatable(call, request)
        command = domain.RevokeApiKey(made, request.name)
        state = await self._directory.change(domain.tenant_of(request.name), command)
        stored = domain.existing_api_key(state, request.name)
        return pb.RevokeApiKeyResponse(api_key=stored.api_key)


def _age(key: access_pb2.ApiKey) -> str:
    return f"{key.create_time.ToNanoseconds():020d} {key.name}"
