"""Who a call between processes is made for, signed: once per request, checked once per
process.

A service that calls another one in a different process says on whose behalf it does, which
service it is, and which method it calls: the identity is good for that one (RFC 8725, 3.9),
so that whoever is called can't pass for the caller elsewhere. What the principal may do was
decided at the edge, so it isn't in it.

A call from outside that is handed on comes with what its credential is known by: it is judged
there as if it had come there, and the credential itself stays where it was shown.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.ids import RESOURCE_ID
from mesh.principal import Principal, system
from mesh.security.tokens import (
    ACCESS_SECONDS_MAX,
    ID,
    ISSUER,
    LEEWAY_SECONDS,
    SCOPE,
    SUBJECT,
    TOKEN_ID,
    AccessToken,
    KeySet,
    check_times,
    matching,
    refused,
    sign,
    texts,
    time_of,
    verify,
)

IDENTITY_TYPE = "weft-identity+jwt"
IDENTITY_SECONDS_MAX = 900
BEHIND_DEADLINE_SECONDS = 5
SIGNED_AGAIN_SECONDS = 5.0
"""For so long calls of one principal and caller share an identity."""
CACHED_MAX = 10_000

_LIFETIMES_SECONDS = (15, 60, 300, IDENTITY_SECONDS_MAX)
OF_AN_INSTANCE = "/weft.control.v1.MeshService/"
"""What begins methods that each instance answers for itself."""
NOBODY = "nobody"
"""Who calls what needs no credential."""

_CLAIMS = {"iss", "aud", "sub", "tenant", "caller", "iat", "exp"}
_KEY_CLAIMS = _CLAIMS | {"secret"}
_TOKEN_CLAIMS = _CLAIMS | {"jti", "roles", "scopes", "until"}
# A schedule submits what its maker may do, and its tasks are its own.
_NAME = re.compile(f"system|tenants/{RESOURCE_ID}/(apiKeys|schedules)/{RESOURCE_ID}")
_TENANT = re.compile(f"({RESOURCE_ID})?")
_CALLER = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class ShownKey:
    """An API key that was shown elsewhere: its name, and the id of its secret."""

    name: str
    secret_id: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What an identity says: the service that calls, and for whom.

    `principal` has no grants; None where nobody is needed to call. `shown` is by what they
    called from outside, where the call is their own and the service only hands it on.
    """

    principal: Principal | None
    caller: str
    shown: ShownKey | AccessToken | None = None


def audience_of(method: str, instance: str) -> str:
    """What an identity for a call of `/package.Service/Method` is for: that method, of whichever
    instance takes the call; or of that one, where each answers for itself."""
    return f"{instance}{method}" if method.startswith(OF_AN_INSTANCE) else method


class Sign(Protocol):
    """Signs for whom a service calls a method; see `IdentitySigner.sign`."""

    def __call__(
        self,
        principal: Principal | None,
        caller: str,
        audience: str,
        seconds: float,
        *,
        handed_on: bool = False,
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class _Signed:
    text: str
    until: float


class IdentitySigner:
    """Signs identities with the deployment's signing key."""

    def __init__(self, keys: KeySet, clock: Clock = SYSTEM) -> None:
        self._keys = keys
        self._clock = clock
        self._signed: OrderedDict[tuple[str, ...], _Signed] = OrderedDict()

    def sign(
        self,
        principal: Principal | None,
        caller: str,
        audience: str,
        seconds: float,
        *,
        handed_on: bool = False,
    ) -> str:
        """The identity for a call of the service `caller` that has `seconds` left; what it
        calls is `audience_of` the method.

        It expires at least 5 s behind the call's deadline, rounded up to one of a few
        lengths so that calls can share it, and after 15 minutes at most. `handed_on` is for
        a call from outside, which its principal's credential is told of with. Raises
        Unavailable where no key is known to sign with, CredentialInvalid where such a
        principal has shown none.
        """
        lifetime = _lifetime(seconds)
        shown: dict[str, object] = _shown(principal) if handed_on and principal else {}
        subject = (principal.name, principal.tenant) if principal else (NOBODY, "")
        key = (*subject, caller, audience, str(lifetime), *map(str, shown.values()))
        signed = self._signed.get(key)
        if signed is None or signed.until <= self._clock.monotonic():
            claims = {"sub": subject[0], "tenant": subject[1], "caller": caller, "aud": audience}
            signed = self._sign(claims | shown, lifetime)
            self._signed[key] = signed
            self._signed.move_to_end(key)
            if len(self._signed) > CACHED_MAX:
                self._signed.popitem(last=False)
        return signed.text

    def _sign(self, claims: dict[str, object], lifetime: int) -> _Signed:
        now_seconds = self._clock.now_ns() // NANOSECONDS
        times = {"iat": now_seconds, "exp": now_seconds + lifetime}
        text = sign({"iss": ISSUER, **claims, **times}, IDENTITY_TYPE, self._keys.signing_key())
        return _Signed(text, self._clock.monotonic() + SIGNED_AGAIN_SECONDS)


@dataclass(frozen=True, slots=True)
class _Verified:
    identity: Identity
    audience: str
    expire_ns: int


class IdentityVerifier:
    """Checks identities for calls of this instance with the deployment's public keys; each
    text once."""

    def __init__(self, keys: KeySet, clock: Clock = SYSTEM, *, instance: str = "") -> None:
        self._keys = keys
        self._clock = clock
        self._instance = instance
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    def verify(self, text: str, method: str) -> Identity:
        """On whose behalf `/package.Service/Method` is called here, and by which service.
        Raises CredentialInvalid."""
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
        if verified.audience != audience_of(method, self._instance):
            raise refused()
        return verified.identity

    def knows_identity(self, text: str) -> bool:
        """Whether it was checked before and found valid."""
        return text in self._verified

    def _verify(self, text: str, now_ns: int) -> _Verified:
        claims = verify(text, IDENTITY_TYPE, self._keys)
        known = claims.keys() in (_CLAIMS, _KEY_CLAIMS, _TOKEN_CLAIMS) and all(
            isinstance(claims[name], str) for name in ("aud", "sub", "tenant", "caller")
        )
        if not known or claims["iss"] != ISSUER:
            raise refused()
        issued_seconds, expire_seconds = check_times(claims, now_ns, IDENTITY_SECONDS_MAX)
        principal = _principal(claims["sub"], claims["tenant"])
        shown: ShownKey | AccessToken | None = None
        if claims.keys() == _KEY_CLAIMS:
            shown = ShownKey(matching(claims["sub"], SUBJECT), matching(claims["secret"], TOKEN_ID))
        elif claims.keys() == _TOKEN_CLAIMS:
            until_seconds = time_of(claims["until"])
            if until_seconds - issued_seconds > ACCESS_SECONDS_MAX + LEEWAY_SECONDS:
                raise refused()
            shown = AccessToken(
                subject=matching(claims["sub"], SUBJECT),
                tenant=claims["tenant"],
                roles=texts(claims["roles"], ID),
                scopes=texts(claims["scopes"], SCOPE),
                token_id=matching(claims["jti"], TOKEN_ID),
                issued_seconds=issued_seconds,
                expire_seconds=until_seconds,
            )
        if _CALLER.fullmatch(claims["caller"]) is None:
            raise refused()
        identity = Identity(principal, claims["caller"], shown)
        return _Verified(identity, claims["aud"], expire_seconds * NANOSECONDS)


def _shown(principal: Principal) -> dict[str, object]:
    """What the credential is known by with which the principal called."""
    if principal.secret_id:
        return {"secret": principal.secret_id}
    if not principal.token_id or principal.expire_ns is None:
        raise refused()
    return {
        "jti": principal.token_id,
        "roles": sorted({grant.role.rpartition("/")[2] for grant in principal.grants}),
        "scopes": sorted(principal.scopes),
        "until": principal.expire_ns // NANOSECONDS,
    }


def _lifetime(seconds: float) -> int:
    wanted = seconds + BEHIND_DEADLINE_SECONDS + SIGNED_AGAIN_SECONDS
    return next((each for each in _LIFETIMES_SECONDS if each >= wanted), IDENTITY_SECONDS_MAX)


def _principal(name: str, tenant: str) -> Principal | None:
    if (name, tenant) == (NOBODY, ""):
        return None
    if _NAME.fullmatch(name) is None or _TENANT.fullmatch(tenant) is None:
        raise refused()
    if name == "system":
        return system(tenant)
    if name.split("/")[1] != tenant:
        raise refused()
    return Principal(name, tenant)
