"""AES-256-GCM with a random nonce (NIST SP 800-38D), and what binds a text to its place."""

import os
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh.errors import DataDamaged

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


def bound(parts: Iterable[str]) -> bytes:
    """The parts, each behind its length: no two lists of parts give the same bytes."""
    encoded = [part.encode() for part in parts]
    return b"".join([len(part).to_bytes(4, "big") + part for part in encoded])


def seal(aead: AESGCM, plain: bytes, place: bytes) -> bytes:
    """Nonce, ciphertext and tag; opened only with the same `place`."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + aead.encrypt(nonce, plain, place)


def unseal(aead: AESGCM, sealed: bytes, place: bytes) -> bytes:
    """What was sealed; DataDamaged where it isn't what `seal` made for this key and place."""
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise DataDamaged("a sealed text is too short to be one")
    try:
        return aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
    except InvalidTag:
        raise DataDamaged("a sealed text was changed, or moved from its place") from None


def derived(key: bytes, purpose: str) -> bytes:
    """Another key of 32 bytes for one purpose, by HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(key)
