"""Sealing what is stored: AES-256-GCM, each text bound to its place by associated data.

Stored is nonce, ciphertext and tag. The associated data are stream, key id, revision and
type, each delimited: a sealed text opens nowhere else.
"""

from collections.abc import Callable

from mesh.security.aead import bound, seal, unseal
from mesh.security.keyring import DataKey, Keyring

REVISION_BYTES = 8


class StreamSeal:
    """Seals and opens the payloads of one stream with one data key."""

    def __init__(self, stream: str, key: DataKey) -> None:
        self.key_id = key.id
        self._key = key
        self._aead = key.aead
        self._place = bound((stream, key.id))

    def seal(self, revision: int, event_type: str, plain: bytes) -> bytes:
        """The bytes to store."""
        self._key.sealed += 1
        return seal(self._aead, plain, self._associated(revision, event_type))

    def open(self, revision: int, event_type: str, stored: bytes) -> bytes:
        """The plain bytes; DataDamaged where `stored` was changed or moved."""
        return unseal(self._aead, stored, self._associated(revision, event_type))

    def _associated(self, revision: int, event_type: str) -> bytes:
        # The type is last, so that its length needn't be told.
        return b"".join(
            (self._place, revision.to_bytes(REVISION_BYTES, "big"), event_type.encode())
        )


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
