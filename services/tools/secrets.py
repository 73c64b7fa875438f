"""Secrets that tools are called with: sealed with a key of their tenant, opened for a call.

The log seals what it holds, but shows it to who may watch the tenant; these it never shows.
"""

import hmac

from google.protobuf.message import Message

from mesh.errors import DataDamaged
from mesh.events.store import StreamName
from mesh.security.aead import bound, derived, seal, unseal
from mesh.security.keyring import READ_MODELS, Keyring
from weft.tools.v1 import secrets_pb2

Values = dict[str, str]


class ToolSecrets:
    """Seals and opens the secrets of what a stream registers. Methods may raise
    EventStoreUnavailable while the key store is out of reach."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def seal(self, stream: StreamName, values: Values) -> secrets_pb2.SealedSecrets | None:
        """The sealed values; None where there are none."""
        if not values:
            return None
        key = await self._keyring.data_key_to_seal(str(stream))
        key.sealed += 1
        plain = secrets_pb2.ToolSecrets(values=values).SerializeToString(deterministic=True)
        return secrets_pb2.SealedSecrets(
            key_id=key.id, sealed=seal(key.aead, plain, _place(stream, key.id))
        )

    async def open(self, stream: StreamName, secrets: secrets_pb2.SealedSecrets) -> Values:
        """The values. DataDamaged where they were changed, or moved from another stream."""
        if not secrets.sealed:
            return {}
        key = await self._keyring.data_key_to_open(str(stream), secrets.key_id)
        plain = unseal(key.aead, secrets.sealed, _place(stream, secrets.key_id))
        try:
            return dict(secrets_pb2.ToolSecrets.FromString(plain).values)
        except ValueError:
            raise DataDamaged(f"{stream} has secrets that don't parse") from None

    async def request_hash(self, request: Message) -> bytes:
        """A keyed hash of a request's body but for `request_id`: what is stored of it lets
        nobody try which secret was in it."""
        body = type(request)()
        body.CopyFrom(request)
        body.ClearField("request_id")
        key = derived(await self._keyring.secret(READ_MODELS), "weft tools requests")
        return hmac.digest(key, body.SerializeToString(deterministic=True), "sha256")


def taken_out(named: "secrets_pb2.NamedValue", place: str, values: Values) -> None:
    """Moves the secret of a named value into `values`, at its place."""
    if named.secret:
        values[f"{place}/{named.name}"] = named.secret
        named.is_secret = True
        named.ClearField("secret")
    else:
        named.is_secret = False


def put_in(named: "secrets_pb2.NamedValue", place: str, values: Values) -> str:
    """What stands for a named value."""
    return values.get(f"{place}/{named.name}", "") if named.is_secret else named.value


def _place(stream: StreamName, key_id: str) -> bytes:
    return bound(("weft tool secrets", str(stream), key_id))
