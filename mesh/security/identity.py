"""Who a call between processes is made for, signed: once per request, checked once per
process.

A service that calls another one in a different process says on whose behalf it does, and
which service it is. What the principal may do was decided at the edge, so it isn't in it.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.ids import RESOURCE_ID
from mesh.principal import Principal, system
from mesh.security.tokens import (
    ISSUER,
    KeySet,
    check_times,
    refused,
    sign,
    verify,
)

IDENTITY_TYPE = "weft-identity+jwt"
IDENTITY_AUDIENCE = "weft-internal"
IDENTITY_SECONDS_MAX = 900
BEHIND_DEADLINE_SECONDS = 5
SIGNED_AGAIN_SECONDS = 5.0
"""For so long calls of one principal and caller share an identity."""
CACHED_MAX = 10_000

_LIFETIMES_SECONDS = (15, 60, 300, IDENTITY_SECONDS_MAX)
_CLAIMS = {"iss", "aud", "sub", "tenant", "caller", "iat", "exp"}
# A schedule submits what its maker may do, and its tasks are its own.
_NAME = re.compile(f"system|tenants/{RESOURCE_ID}/(apiKeys|schedules)/{RESOURCE_ID}")
_TENANT = re.compile(f"({RESOURCE_ID})?")
_CALLER = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class _Signed:
    text: str
    until: float


class IdentitySigner:
    """Signs identities with the deployment's signing key."""

    def __init__(self, keys: KeySet, clock: Clock = SYSTEM) -> None:
        self._keys = keys
        self._clock = clock
        self._signed: OrderedDict[tuple[str, str, str, int], _Signed] = OrderedDict()

    def sign(self, principal: Principal, caller: str, seconds: float) -> str:
        """The identity for a call of the service `caller` that has `seconds` left.

        It expires at least 5 s behind the call's deadline, rounded up to one of a few
        lengths so that calls can share it, and after 15 minutes at most. Raises
        Unavailable where no key is known to sign with.
        """
        lifetime = _lifetime(seconds)
        key = (principal.name, principal.tenant, caller, lifetime)
        signed = self._signed.get(key)
        if signed is None or signed.until <= self._clock.monotonic():
            signed = self._sign(principal, caller, lifetime)
            self._signed[key] = signed
            self._signed.move_to_end(key)
            if len(self._signed) > CACHED_MAX:
                self._signed.popitem(last=False)
        return signed.text

    def _sign(self, principal: Principal, caller: str, lifetime: int) -> _Signed:
        now_seconds = self._clock.now_ns() // NANOSECONDS
        claims = {
            "iss": ISSUER,
            "aud": IDENTITY_AUDIENCE,
            "sub": principal.name,
            "tenant": principal.tenant,
            "caller": caller,
            "iat": now_seconds,
            "exp": now_seconds + lifetime,
        }
        text = sign(claims, IDENTITY_TYPE, self._keys.signing_key())
        return _Signed(text, self._clock.monotonic() + SIGNED_AGAIN_SECONDS)


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    caller: str
    expire_ns: int


class IdentityVerifier:
    """Checks identities with the deployment's public keys; each text once."""

    def __init__(self, keys: KeySet, clock: Clock = SYSTEM) -> None:
        self._keys = keys
        self._clock = clock
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    def verify(self, text: str) -> tuple[Principal, str]:
        """On whose behalf the call is made, and the service that makes it. The principal
        has no grants. Raises CredentialInvalid."""
        now_ns = self._clock.now_ns()
        verified = self._verified.get(text)
        if verified is None:
            verified = self._verify(text, now_ns)
            self._verified[text] = verified
            if len(self._verified) > CACHED_MAX:
                self._verified.popitem(last=False)
        if now_ns >= verified.expire_ns:
            del self._verified[text]
            raise refused()
        return verified.principal, verified.caller

    def knows_identity(self, text: str) -> bool:
        """Whether it was checked before and found valid."""
        return text in self._verified

    def _verify(self, text: str, now_ns: int) -> _Verified:
        claims = verify(text, IDENTITY_TYPE, self._keys)
        known = claims.keys() == _CLAIMS and all(
            isinstance(claims[name], str) for name in ("sub", "tenant", "caller")
        )
        if not known or claims["iss"] != ISSUER or claims["aud"] != IDENTITY_AUDIENCE:
            raise refused()
        _, expire_seconds = check_times(claims, now_ns, IDENTITY_SECONDS_MAX)
        principal = _principal(claims["sub"], claims["tenant"])
        if _CALLER.fullmatch(claims["caller"]) is None:
            raise refused()
        return _Verified(principal, claims["caller"], expire_seconds * NANOSECONDS)


def _lifetime(seconds: float) -> int:
    wanted = seconds + BEHIND_DEADLINE_SECONDS + SIGNED_AGAIN_SECONDS
    return next((each for each in _LIFETIMES_SECONDS if each >= wanted), IDENTITY_SECONDS_MAX)


def _principal(name: str, tenant: str) -> Principal:
    if _NAME.fullmatch(name) is None or _TENANT.fullmatch(tenant) is None:
        raise refused()
    if name == "system":
        return system(tenant)
    if name.split("/")[1] != tenant:
        raise refused()
    return Principal(name, tenant)
