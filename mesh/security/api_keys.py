"""The text of an API key: `weft_<id>_<secret>_<crc32>`.

`id` is a ULID that finds the key, `secret` 256 random bits in lower-case base 32 (RFC 4648)
without padding, `crc32` eight hexadecimal digits over all before its underscore: a typing
error is known without looking anything up, and scanners of leaked secrets can tell a key
from other text. What is stored is the HMAC-SHA256 of the whole text (RFC 2104) under a
pepper that isn't stored with it.
"""

import base64
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field

from mesh.ids import new_id

PREFIX = "weft_"
SECRET_BYTES = 32
KEY_LENGTH = 93

# The last of the secret's 52 characters holds one bit: 256 = 51 * 5 + 1.
_SHAPE = re.compile(r"weft_([0-7][0-9a-hjkmnp-tv-z]{25})_[a-z2-7]{51}[aq]_([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class ApiKeyText:
    """A key as its owner has it. `id` may be shown; `text` is the secret, and isn't in the
    object's own text."""

    id: str
    text: str = field(repr=False)


def new_api_key() -> ApiKeyText:
    """A key that nobody had before."""
    key_id = new_id()
    encoded = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()
    body = f"{PREFIX}{key_id}_{encoded.lower().rstrip('=')}"
    return ApiKeyText(key_id, f"{body}_{_checksum(body)}")


def parse_api_key(text: str) -> ApiKeyText | None:
    """The key that `text` holds; None where it isn't exactly one, whatever it is."""
    if len(text) != KEY_LENGTH:
        return None
    match = _SHAPE.fullmatch(text)
    if match is None or _checksum(text[:-9]) != match[2]:
        return None
    return ApiKeyText(match[1], text)


def hmac_of(pepper: bytes, key: ApiKeyText) -> bytes:
    """What is stored of the key: 32 bytes."""
    return hmac.digest(pepper, key.text.encode(), "sha256")


def same_hmac(left: bytes, right: bytes) -> bool:
    """Whether they are equal, in a time that doesn't tell where they differ."""
    return hmac.compare_digest(left, right)


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
