"""Signed tokens: JWT as RFC 8725 wants it, and no more of JWT than that.

One algorithm, EdDSA over Ed25519 (RFC 8037). The header holds `alg`, `kid` and `typ` and
nothing else, and `kid` only chooses among the deployment's own keys: `jku`, `x5u`, `jwk` and
their like are refused unread. Text, base64 and JSON are taken in their one canonical form,
so that a token has one spelling.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.clock import NANOSECONDS
from mesh.errors import CredentialInvalid
from mesh.ids import RESOURCE_ID

ISSUER = "weft"
AUDIENCE = "weft"
ACCESS_TYPE = "at+jwt"
"""RFC 9068: an access token, which no other kind of token can pass for."""
ACCESS_SECONDS_MAX = 300
LEEWAY_SECONDS = 10
"""How far the clock of who signed may be ahead."""
TOKEN_BYTES_MAX = 4_096
ACCESS_BYTES_MAX = 3_584
"""Leaves room for what an identity that hands a token's call on says beside."""

_ALGORITHM = "EdDSA"
_HEADER_BYTES_MAX = 256
_SIGNATURE_BYTES = 64
_TIME_MAX = 2**40
_PART = re.compile(r"[A-Za-z0-9_-]+")
_KID = re.compile(r"[a-z0-9]{1,64}")
TOKEN_ID = re.compile(r"[a-z0-9-]{1,64}")
SUBJECT = re.compile(f"tenants/({RESOURCE_ID})/apiKeys/{RESOURCE_ID}")
ID = re.compile(RESOURCE_ID)
SCOPE = re.compile(r"[a-z]+\.([a-z_]+|\*)")
_REFUSED = "the credential isn't valid"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that tokens are signed with now."""

    kid: str
    private_key: Ed25519PrivateKey = field(repr=False)


class KeySet(Protocol):
    """The deployment's keys, in memory. `services/auth` implements it."""

    def public_key(self, kid: str) -> Ed25519PublicKey | None:
        """The key of that id; None where there is none, or it is valid no more."""
        ...

    def signing_key(self) -> SigningKey:
        """The key to sign with. Raises Unavailable where none is known yet."""
        ...


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What an access token says. Times are Unix time in seconds; `roles` are ids of roles
    in `tenant`, `scopes` permissions that it is narrowed to, unless there are none."""

    subject: str
    tenant: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    token_id: str
    issued_seconds: int
    expire_seconds: int


def refused() -> CredentialInvalid:
    """The error for any credential that isn't valid: it never says what about it is wrong."""
    return CredentialInvalid(_REFUSED)


def sign_access_token(token: AccessToken, key: SigningKey) -> str:
    """The token as text. ValueError where it has no room for its roles and scopes."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": token.subject,
        "tenant": token.tenant,
        "roles": list(token.roles),
        "scopes": list(token.scopes),
        "jti": token.token_id,
        "iat": token.issued_seconds,
        "exp": token.expire_seconds,
    }
    return sign(claims, ACCESS_TYPE, key, ACCESS_BYTES_MAX)


def verify_access_token(text: str, keys: KeySet, now_ns: int) -> AccessToken:
    """What the token says, once its signature, times and claims are in order.

    Whether its subject still exists and may use it is another question. Raises
    CredentialInvalid.
    """
    claims = verify(text, ACCESS_TYPE, keys)
    allowed = {"iss", "aud", "sub", "tenant", "roles", "scopes", "jti", "iat", "exp", "nbf"}
    _require(claims.keys() <= allowed and claims.keys() | {"nbf"} == allowed)
    _require(claims["iss"] == ISSUER and claims["aud"] == AUDIENCE)
    issued, expire = check_times(claims, now_ns, ACCESS_SECONDS_MAX)
    tenant = matching(claims["tenant"], ID)
    subject = matching(claims["sub"], SUBJECT)
    _require(subject.split("/")[1] == tenant)
    return AccessToken(
        subject=subject,
        tenant=tenant,
        roles=texts(claims["roles"], ID),
        scopes=texts(claims["scopes"], SCOPE),
        token_id=matching(claims["jti"], TOKEN_ID),
        issued_seconds=issued,
        expire_seconds=expire,
    )


def sign(
    claims: Mapping[str, object],
    token_type: str,
    key: SigningKey,
    bytes_max: int = TOKEN_BYTES_MAX,
) -> str:
    """Signed claims as text. ValueError past 4 KiB, which no verifier takes, or fewer."""
    headers = {"kid": key.kid, "typ": token_type}
    text = jwt.encode(dict(claims), key.private_key, algorithm=_ALGORITHM, headers=headers)
    if len(text) > bytes_max:
        raise ValueError(f"a token holds at most {bytes_max} bytes")
    return text


def verify(text: str, token_type: str, keys: KeySet) -> dict[str, Any]:
    """The claims of a token of that type that one of the keys signed; they are still to
    be checked. Raises CredentialInvalid."""
    _require(len(text) <= TOKEN_BYTES_MAX and text.isascii())
    parts = text.split(".")
    _require(len(parts) == 3)
    # Nothing of the payload is looked at before its signature was checked.
    _require(len(_decoded(parts[2])) == _SIGNATURE_BYTES)
    header = _decoded(parts[0])
    _require(len(header) <= _HEADER_BYTES_MAX)
    public_key = keys.public_key(_checked_kid(_object(header), token_type))
    if public_key is None:
        raise refused()
    _decoded(parts[1])
    try:
        payload = jwt.PyJWS().decode(text, public_key, algorithms=[_ALGORITHM])
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError) as error:
        raise refused() from error
    return _object(payload)


def check_times(claims: Mapping[str, Any], now_ns: int, seconds_max: int) -> tuple[int, int]:
    """`iat` and `exp` in seconds, once they and `nbf`, if there is one, allow the token's
    use now. CredentialInvalid where it is too old, too new or lives too long."""
    issued, expire = time_of(claims["iat"]), time_of(claims["exp"])
    not_before = time_of(claims.get("nbf", issued))
    now_seconds = now_ns / NANOSECONDS
    _require(0 < expire - issued <= seconds_max)
    _require(max(issued, not_before) <= now_seconds + LEEWAY_SECONDS)
    # Who asks for another token in time needs no leeway here.
    _require(now_seconds < expire)
    return issued, expire


def _checked_kid(header: Mapping[str, Any], token_type: str) -> str:
    _require(header.keys() == {"alg", "kid", "typ"})
    _require(header["alg"] == _ALGORITHM and header["typ"] == token_type)
    return matching(header["kid"], _KID)


def _decoded(part: str) -> bytes:
    """The bytes of a part in base64url (RFC 4648, section 5) in its one canonical form."""
    _require(_PART.fullmatch(part) is not None)
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError) as error:
        raise refused() from error
    _require(base64.urlsafe_b64encode(data).rstrip(b"=").decode() == part)
    return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise refused() from error
    if not isinstance(value, dict):
        raise refused()
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    _require(len(value) == len(pairs))
    return value


def _refuse_constant(name: str) -> Any:
    raise refused()


def time_of(value: object) -> int:
    """Unix time in seconds, as a claim has it. CredentialInvalid for anything else."""
    # bool is an int to Python, and a float would compare as one.
    if type(value) is not int or not 0 < value < _TIME_MAX:
        raise refused()
    return value


def matching(value: object, pattern: re.Pattern[str]) -> str:
    """The text of a claim. CredentialInvalid where it is none, or isn't of the pattern."""
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise refused()
    return value


def texts(value: object, pattern: re.Pattern[str]) -> tuple[str, ...]:
    """The texts that a claim lists. CredentialInvalid where one isn't of the pattern."""
    if not isinstance(value, list):
        raise refused()
    items: Iterable[object] = value
    return tuple(matching(item, pattern) for item in items)


def _require(condition: bool) -> None:
    if not condition:
        raise refused()
