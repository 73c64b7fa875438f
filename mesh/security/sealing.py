"""Sealing what is stored: AES-256-GCM, each text bound to its place by associated data.

Stored is nonce, ciphertext and tag. The associated data are stream, key id, revision and
type, each delimited: a sealed text opens nowhere else.
"""

import struct
from collections.abc import Callable
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.errors import DataDamaged
from mesh.security.aead import NONCE_BYTES, bound, derived, seal, unseal
from mesh.security.keyring import READ_MODELS, DataKey, Keyring
from mesh.security.secrets import Secrets

_REVISION = struct.Struct(">Q").pack


class StreamSeal:
    """Seals and opens the payloads of one stream with one data key."""

    def __init__(self, stream: str, key: DataKey) -> None:
        self.key_id = key.id
        self._key = key
        self._decrypt = key.aead.decrypt
        self._place = bound((stream, key.id))

    def seal(self, revision: int, event_type: str, plain: bytes) -> bytes:
        """The bytes to store."""
        self._key.sealed += 1
        place = self._place + _REVISION(revision) + _encoded(event_type)
        return seal(self._key.aead, plain, place)

    def open(self, revision: int, event_type: str, stored: bytes) -> bytes:
        """The plain bytes; DataDamaged where `stored` was changed or moved."""
        # A load does this for each event: what `unseal` does, without another call.
        place = self._place + _REVISION(revision) + _encoded(event_type)
        try:
            return self._decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise DataDamaged("a payload was changed, or moved from its place") from None


@lru_cache(maxsize=1_024)
def _encoded(event_type: str) -> bytes:
    # The type is last in the associated data, so that its length needn't be told.
    return event_type.encode()


class SealedCodec:
    """The codec `aes-256-gcm`, with the data keys of a keyring."""

    name = "aes-256-gcm"

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def to_write(self, stream: str) -> StreamSeal:
        """See PayloadCodec."""
        return StreamSeal(stream, await self._keyring.data_key_to_seal(stream))

    async def to_read(self, stream: str, key_id: str) -> StreamSeal:
        """See PayloadCodec."""
        return StreamSeal(stream, await self._keyring.data_key_to_open(stream, key_id))

    def at_hand(self, stream: str, key_id: str) -> StreamSeal | None:
        """See PayloadCodec."""
        key = self._keyring.data_key_at_hand(stream, key_id)
        return StreamSeal(stream, key) if key is not None else None

    def on_erased(self, callback: Callable[[str], None]) -> None:
        """See PayloadCodec."""
        self._keyring.on_erased(callback)


class RowSeal:
    """Seals what a read model copies out of the log, each text bound to its row."""

    def __init__(self, secret: bytes, table: str) -> None:
        self._aead = AESGCM(derived(secret, f"weft read model {table}"))
        self.id = derived(secret, f"weft read model id {table}").hex()[:16]
        """Tells one key from another, and says nothing of it."""

    @classmethod
    async def of(cls, secrets: Secrets, table: str) -> "RowSeal":
        """The seal of a table, the same in every process."""
        return cls(await secrets.secret(READ_MODELS), table)

    def seal(self, row: str, plain: bytes) -> bytes:
        """The bytes to keep."""
        return seal(self._aead, plain, row.encode())

    def open(self, row: str, sealed: bytes) -> bytes:
        """The plain bytes; DataDamaged where they were changed, or are another row's."""
        return unseal(self._aead, sealed, row.encode())
