"""Tokens made by hand, byte by byte, as no library would make them."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.ids import new_id
from mesh.security.tokens import SigningKey

Sign = Callable[[bytes], bytes]


def encoded(data: bytes | str) -> str:
    """Base64url without padding."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def as_json(value: object) -> str:
    """JSON as short as it gets; a text is taken as it is."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass
class Forge:
    """Makes tokens that are right but for what is asked for. `key` is the deployment's."""

    key: SigningKey
    subject: str
    roles: list[str] = field(default_factory=lambda: ["admin"])

    @property
    def public_bytes(self) -> bytes:
        """The public key, which everybody can have."""
        return self.key.private_key.public_key().public_bytes_raw()

    def header(self, **changes: Any) -> dict[str, Any]:
        """The right header with changes; None takes a parameter out."""
        return _changed({"alg": "EdDSA", "kid": self.key.kid, "typ": "at+jwt"}, changes)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The right claims with changes; None takes a claim out."""
        now = int(time.time())
        right = {
            "iss": "weft",
            "aud": "weft",
            "sub": self.subject,
            "tenant": self.subject.split("/")[1],
            "roles": self.roles,
            "scopes": [],
            "jti": new_id(),
            "iat": now,
            "exp": now + 300,
        }
        return _changed(right, changes)

    def token(
        self,
        header: Mapping[str, Any] | str | None = None,
        claims: Mapping[str, Any] | list[Any] | str | None = None,
        sign: Sign | None = None,
    ) -> str:
        """A token; a header or claims given as text stand in it as they are."""
        first = encoded(as_json(self.header() if header is None else header))
        second = encoded(as_json(self.claims() if claims is None else claims))
        return self.signed(first, second, sign)

    def signed(self, first: str, second: str, sign: Sign | None = None) -> str:
        """A token of parts that are encoded already."""
        message = f"{first}.{second}".encode()
        return f"{first}.{second}.{encoded((sign or self.key.private_key.sign)(message))}"

    def with_claims(self, **changes: Any) -> str:
        """A rightly signed token whose claims are changed."""
        return self.token(claims=self.claims(**changes))

    def with_header(self, **changes: Any) -> str:
        """A rightly signed token whose header is changed."""
        return self.token(header=self.header(**changes))


def other_key() -> Ed25519PrivateKey:
    """A key that isn't the deployment's."""
    return Ed25519PrivateKey.generate()


def _changed(right: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (right | changes).items() if value is not None}
