"""What the RPCs of all contracts of access share: who asks, and pages."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from mesh.call import Call
from mesh.clock import Clock
from mesh.ids import new_id
from mesh.principal import Principal
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.runtime.requests import request_hash
from mesh.security.tokens import refused
from services.auth import domain
from services.auth.directory import AccessDirectory
from weft.auth.v1 import api_key_service_pb2, auth_service_pb2, role_service_pb2

PAGE_SIZE = 100
T = TypeVar("T")
Repeatable = (
    auth_service_pb2.RevokeTokenRequest
    | api_key_service_pb2.RevokeApiKeyRequest
    | role_service_pb2.CreateRoleRequest
    | role_service_pb2.UpdateRoleRequest
    | role_service_pb2.DeleteRoleRequest
    | role_service_pb2.CreateRoleBindingRequest
    | role_service_pb2.DeleteRoleBindingRequest
)
"""The requests with a `request_id`."""


class Requests:
    """Makes the requests that commands answer."""

    def __init__(self, directory: AccessDirectory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    def of(self, call: Call) -> domain.Request:
        """A request that is another one each time: what it makes holds a new secret."""
        return domain.Request(new_id(), b"", self.caller(call), self._clock.now_ns())

    def repeatable(self, call: Call, message: Repeatable) -> domain.Request:
        """A request that may come again; it gets an id where the caller gave none."""
        return domain.Request(
            message.request_id or new_id(),
            request_hash(message),
            self.caller(call),
            self._clock.now_ns(),
        )

    def caller(self, call: Call) -> Principal:
        """Who calls, with what they may do. Raises CredentialInvalid where nobody is known.

        Whom another process calls for is known by name only: its identity tells no grants.
        """
        principal = call.principal
        if principal is None:
            raise refused()
        if principal.is_system or principal.token_id or principal.secret_id:
            return principal
        key = self._directory.key(principal.name)
        if key is None:
            raise refused()
        return key.principal()


def page_of(
    entries: Sequence[T], key_of: Callable[[T], str], parent: str, size: int, token: str
) -> tuple[list[T], str]:
    """A page of the entries, which go by `key_of`, and the token of the next one."""
    after = read_page_token(token, parent)
    ordered = sorted((key_of(entry), index) for index, entry in enumerate(entries))
    rest = [(key, index) for key, index in ordered if key > after]
    page = rest[: size or PAGE_SIZE]
    more = len(page) < len(rest)
    next_token = write_page_token(page[-1][0], parent) if more else ""
    return [entries[index] for _, index in page], next_token
