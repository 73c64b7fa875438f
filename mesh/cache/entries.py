"""What is kept of a value, and how it is sealed. Redis and the disk see hashes and
ciphertext: neither names nor values can be read there."""

import struct
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.clock import NANOSECONDS
from mesh.errors import DataDamaged
from mesh.security.aead import bound, derived, seal, unseal

ID_BYTES = 32
TAG_BYTES = 16
TAGS_MAX = 16
"""Most tags of one value."""
EPOCH_BYTES = 8
SESSION_TAG = "session:"
"""Tags that begin so are of a session: what has one is scrubbed once it is erased."""

_VERSION = 1
_HEADER = struct.Struct(f">BQQ{EPOCH_BYTES}s")
_BODY = struct.Struct(">BB")
_KEY_SECONDS = 86_400
_OF_SESSION = b"s"
_OTHER = b"o"


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where invalidations are known: `position` in the log of invalidations, of which
    `epoch` tells one from another."""

    epoch: bytes
    position: int


NEVER = Mark(b"\0" * EPOCH_BYTES, 0)
"""Of a value without tags, which nothing invalidates."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value, encoded, or with `absent` what is known of there being none. `expire_ns` is
    Unix time; `mark` says which invalidations were known before it was made."""

    value: bytes
    expire_ns: int
    mark: Mark = NEVER
    tags: tuple[bytes, ...] = ()
    absent: bool = False


class Seals:
    """Makes ids and tags of names, and seals entries. Each sealed entry is bound to its id,
    which its tenant, namespace and key give, and to its expiry.

    A key seals what a tenant keeps until one day, so that none seals too much: with random
    nonces it is good for 2**32 texts (NIST SP 800-38D, 8.3).
    """

    def __init__(self, secret: bytes) -> None:
        self._names = derived(secret, "weft cache names")
        values = derived(secret, "weft cache values")

        @lru_cache(maxsize=1_024)
        def aead(tenant: bytes, day: int) -> AESGCM:
            return AESGCM(derived(values, f"{tenant.hex()} {day}"))

        self._aead = aead
        self.tenant = lru_cache(maxsize=1_024)(self._tenant)
        """What stands for a tenant outside memory."""
        self.tag = lru_cache(maxsize=4_096)(self._tag)
        """A tag of a tenant; its first byte says whether it is a session's."""

    def id(self, namespace: str, tenant: str, key: bytes) -> bytes:
        """The id of an entry, the same in every process."""
        named = bound(("entry", namespace, tenant)) + key
        return blake2b(named, key=self._names, digest_size=ID_BYTES).digest()

    def _tag(self, tenant: str, tag: str) -> bytes:
        named = bound(("tag", tenant, tag))
        kind = _OF_SESSION if tag.startswith(SESSION_TAG) else _OTHER
        return kind + blake2b(named, key=self._names, digest_size=TAG_BYTES - 1).digest()

    def _tenant(self, tenant: str) -> bytes:
        return blake2b(bound(("tenant", tenant)), key=self._names, digest_size=TAG_BYTES).digest()

    def seal(self, tenant: bytes, entry_id: bytes, entry: Entry) -> bytes:
        """The bytes to keep outside memory."""
        header = _HEADER.pack(_VERSION, entry.expire_ns, entry.mark.position, entry.mark.epoch)
        plain = b"".join((_BODY.pack(entry.absent, len(entry.tags)), *entry.tags, entry.value))
        aead = self._aead(tenant, _day(entry.expire_ns))
        return header + seal(aead, plain, tenant + entry_id + header)

    def open(self, tenant: bytes, entry_id: bytes, stored: bytes) -> Entry:
        """What was sealed; DataDamaged where it was changed, or is another entry's."""
        header, sealed = stored[: _HEADER.size], stored[_HEADER.size :]
        if len(header) < _HEADER.size or header[0] != _VERSION:
            raise DataDamaged("a cached value isn't one")
        _, expire_ns, position, epoch = _HEADER.unpack(header)
        aead = self._aead(tenant, _day(expire_ns))
        plain = unseal(aead, sealed, tenant + entry_id + header)
        absent, count = _BODY.unpack_from(plain)
        end = _BODY.size + count * TAG_BYTES
        tags = tuple(plain[at : at + TAG_BYTES] for at in range(_BODY.size, end, TAG_BYTES))
        return Entry(plain[end:], expire_ns, Mark(epoch, position), tags, bool(absent))


def is_of_session(tag: bytes) -> bool:
    """Whether it is a session's tag."""
    return tag[:1] == _OF_SESSION


def session_tag(session: str) -> str:
    """The tag of what came from the session of that resource name."""
    return f"{SESSION_TAG}{session}"


def _day(expire_ns: int) -> int:
    return expire_ns // (_KEY_SECONDS * NANOSECONDS)
