"""Forged tokens: none is accepted, whatever the attacker knows, short of the signing key.

Most are signed with the right key all the same, so that nothing but the check in question
can refuse them.
"""

import base64
import hashlib
import hmac
import json
import string
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, given
from hypothesis import strategies as st

from mesh.errors import CredentialInvalid
from mesh.ids import new_id
from mesh.principal import Principal
from mesh.security.identity import Identity, IdentitySigner, IdentityVerifier
from tests.support.access import Access, access
from tests.support.forging import Forge, as_json, encoded, other_key
from weft.auth.v1 import api_key_service_pb2, auth_service_pb2, tenant_service_pb2

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group that Ed25519 signs in (RFC 8032)."""
ADMIN = "tenants/default/apiKeys/admin"
GENERATE = "/weft.models.v1.ModelService/Generate"


@dataclass
class World:
    """What an attacker meets."""

    access: Access
    forge: Forge
    revoked_subject: str

    def accepts(self, token: str) -> Principal:
        return self.access.directory.authenticate(f"Bearer {token}")


@pytest.fixture(scope="module")
async def world() -> AsyncIterator[World]:
    async with access() as made:
        request = tenant_service_pb2.CreateTenantRequest(tenant_id="acme")
        await made.handler("TenantService").create_tenant(request, made.call())
        keys = made.handler("ApiKeyService")
        created = await keys.create_api_key(
            api_key_service_pb2.CreateApiKeyRequest(parent="tenants/default"), made.call()
        )
        name = created.api_key.name
        await keys.revoke_api_key(api_key_service_pb2.RevokeApiKeyRequest(name=name), made.call())
        forge = Forge(made.directory.signing_key(), ADMIN)
        yield World(made, forge, name)


def mac(name: str, secret: Callable[[Forge], bytes]) -> Callable[[World], str]:
    def make(world: World) -> str:
        digest = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}[name]
        sign = lambda message: hmac.digest(secret(world.forge), message, digest)  # noqa: E731
        return world.forge.token(world.forge.header(alg=name), sign=sign)

    return make


def public_pem(forge: Forge) -> bytes:
    public = forge.key.private_key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def header(**changes: Any) -> Callable[[World], str]:
    return lambda world: world.forge.with_header(**changes)


def claims(**changes: Any) -> Callable[[World], str]:
    return lambda world: world.forge.with_claims(**changes)


def lifetime(issued: float, expire: float, **more: float) -> Callable[[World], str]:
    """A token whose times are so many seconds from now."""

    def make(world: World) -> str:
        now = int(time.time())
        changes = {name: now + seconds for name, seconds in more.items()}
        return world.forge.with_claims(iat=now + issued, exp=now + expire, **changes)

    return make


def unsigned(algorithm: str) -> Callable[[World], str]:
    return lambda world: world.forge.token(
        world.forge.header(alg=algorithm), sign=lambda message: b""
    )


def signature(change: Callable[[bytes], bytes]) -> Callable[[World], str]:
    def make(world: World) -> str:
        sign = world.forge.key.private_key.sign
        return world.forge.token(sign=lambda message: change(sign(message)))

    return make


def text(change: Callable[[str], str]) -> Callable[[World], str]:
    return lambda world: change(world.forge.token())


def part(index: int, change: Callable[[str], str]) -> Callable[[World], str]:
    """One part changed after it was signed."""

    def make(world: World) -> str:
        parts = world.forge.token().split(".")
        parts[index] = change(parts[index])
        return ".".join(parts)

    return make


def signed_parts(first: Callable[[str], str], second: Callable[[str], str]) -> Any:
    """Parts spelt otherwise, and signed as they are spelt."""

    def make(world: World) -> str:
        forge = world.forge
        one, two = encoded(as_json(forge.header())), encoded(as_json(forge.claims()))
        return forge.signed(first(one), second(two))

    return make


def raw_claims(change: Callable[[str], str]) -> Callable[[World], str]:
    return lambda world: world.forge.token(claims=change(as_json(world.forge.claims())))


def raw_header(change: Callable[[str], str]) -> Callable[[World], str]:
    return lambda world: world.forge.token(header=change(as_json(world.forge.header())))


def same(part_text: str) -> str:
    return part_text


def loose_bits(part_text: str) -> str:
    """The same bytes under another last character, where it has bits to spare."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    padded = part_text + "=" * (-len(part_text) % 4)
    for letter in alphabet:
        other = part_text[:-1] + letter
        if other != part_text and base64.urlsafe_b64decode(
            other + "=" * (-len(other) % 4)
        ) == base64.urlsafe_b64decode(padded):
            return other
    return part_text + "A"


def by_another_key(world: World) -> str:
    return world.forge.token(sign=other_key().sign)


def by_its_own_key(**where: Callable[[bytes], Any]) -> Callable[[World], str]:
    """Signed by the attacker's key, which the header brings along."""

    def make(world: World) -> str:
        key = other_key()
        public = key.public_key().public_bytes_raw()
        changes = {name: value(public) for name, value in where.items()}
        return world.forge.token(world.forge.header(**changes), sign=key.sign)

    return make


def jwk(public: bytes) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": encoded(public)}


def with_rsa(algorithm: str) -> Callable[[World], str]:
    def make(world: World) -> str:
        key = rsa.generate_private_key(65537, 2048)
        pad = (
            padding.PKCS1v15()
            if algorithm == "RS256"
            else padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)
        )
        return world.forge.token(
            world.forge.header(alg=algorithm),
            sign=lambda message: key.sign(message, pad, hashes.SHA256()),
        )

    return make


def with_ec(world: World) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return world.forge.token(
        world.forge.header(alg="ES256"),
        sign=lambda message: key.sign(message, ec.ECDSA(hashes.SHA256())),
    )


def malleable(signed: bytes) -> bytes:
    """S + L: the other number that solves the equation, which RFC 8032 forbids."""
    number = int.from_bytes(signed[32:], "little") + ORDER
    return signed[:32] + number.to_bytes(32, "little")


def identity(world: World) -> str:
    signer = IdentitySigner(world.access.directory)
    return signer.sign(Principal(ADMIN, "default"), "gateway", GENERATE, 10)


def identity_as_access(world: World) -> str:
    return world.forge.with_header(typ="weft-identity+jwt")


def nested(world: World) -> str:
    return world.forge.token(world.forge.header(cty="JWT"), claims=json.dumps(world.forge.token()))


def encrypted(world: World) -> str:
    first = encoded(as_json({"alg": "dir", "enc": "A256GCM", "kid": world.forge.key.kid}))
    return f"{first}..{encoded(b'n' * 12)}.{encoded(as_json(world.forge.claims()))}.{'t' * 22}"


def of_a_revoked_key(world: World) -> str:
    return world.forge.with_claims(sub=world.revoked_subject)


def detached(world: World) -> str:
    first, _, third = world.forge.token().split(".")
    return f"{first}..{third}"


FORGED: dict[str, Callable[[World], str]] = {
    # No signature at all, in every spelling that was ever accepted somewhere.
    "none": unsigned("none"),
    "None": unsigned("None"),
    "NONE": unsigned("NONE"),
    "nOnE": unsigned("nOnE"),
    "an empty algorithm": unsigned(""),
    "none with a signature": lambda world: world.forge.with_header(alg="none"),
    "no algorithm": lambda world: world.forge.token(world.forge.header(alg=None)),
    "a stripped signature": text(lambda token: token.rpartition(".")[0] + "."),
    "two parts": text(lambda token: token.rpartition(".")[0]),
    "one part": text(lambda token: token.split(".")[1]),
    "nothing": lambda world: "",
    "dots": lambda world: "..",
    # Another algorithm than the one there is.
    "HS256 by the public key": mac("HS256", lambda forge: forge.public_bytes),
    "HS384 by the public key": mac("HS384", lambda forge: forge.public_bytes),
    "HS512 by the public key": mac("HS512", lambda forge: forge.public_bytes),
    "HS256 by the public key in PEM": mac("HS256", public_pem),
    "HS256 by an empty secret": mac("HS256", lambda forge: b""),
    "HS256 by the kid": mac("HS256", lambda forge: forge.key.kid.encode()),
    "ES256": with_ec,
    "RS256": with_rsa("RS256"),
    "PS256": with_rsa("PS256"),
    "Ed25519 as a name": header(alg="Ed25519"),
    "the algorithm in lower case": header(alg="eddsa"),
    "the algorithm in upper case": header(alg="EDDSA"),
    "the algorithm as an array": header(alg=["EdDSA"]),
    "the algorithm with a space": header(alg="EdDSA "),
    # Another key.
    "by another key": by_another_key,
    "no kid": header(kid=None),
    "an unknown kid": header(kid="01aaaaaaaaaaaaaaaaaaaaaaaa"),
    "an empty kid": header(kid=""),
    "a kid that is a path": header(kid="../../../../dev/null"),
    "a kid that is a query": header(kid="x' UNION SELECT 'secret'--"),
    "a kid that is a URL": header(kid="http://127.0.0.1:1/key"),
    "a kid that is a command": header(kid="key|/usr/bin/id"),
    "a kid that is an array": lambda world: world.forge.with_header(kid=[world.forge.key.kid]),
    "a kid that is an object": header(kid={"$ne": ""}),
    "a kid that is a number": header(kid=1),
    "a kid with NUL": lambda world: world.forge.with_header(kid=world.forge.key.kid + "\0"),
    "a kid in upper case": lambda world: world.forge.with_header(kid=world.forge.key.kid.upper()),
    "its key by jwk": by_its_own_key(jwk=jwk),
    "its key by jwk and kid": by_its_own_key(jwk=jwk, kid=lambda public: "mine"),
    "its key by jku": by_its_own_key(jku=lambda public: "http://127.0.0.1:1/jwks"),
    "its key by x5u": by_its_own_key(x5u=lambda public: "http://127.0.0.1:1/x5"),
    "its key by x5c": by_its_own_key(x5c=lambda public: [encoded(public)]),
    # A header that says more, though the signature is right.
    "jku": header(jku="http://127.0.0.1:1/jwks"),
    "jwk": lambda world: world.forge.with_header(jwk=jwk(world.forge.public_bytes)),
    "x5u": header(x5u="http://127.0.0.1:1/x5"),
    "x5c": header(x5c=["MII="]),
    "crit": header(crit=["exp"]),
    "crit of something unknown": header(crit=["weft"], weft=1),
    "b64": header(b64=False, crit=["b64"]),
    "zip": header(zip="DEF"),
    "cty": header(cty="JWT"),
    # Another kind of token.
    "no typ": header(typ=None),
    "typ JWT": header(typ="JWT"),
    "typ in upper case": header(typ="AT+JWT"),
    "typ with application/": header(typ="application/at+jwt"),
    "an identity": identity,
    "claims of an access token as an identity": identity_as_access,
    "a nested token": nested,
    "an encrypted token": encrypted,
    "a detached payload": detached,
    # Claims that are somebody else's.
    "no iss": claims(iss=None),
    "another iss": claims(iss="https://example.org"),
    "iss as an array": claims(iss=["weft"]),
    "no aud": claims(aud=None),
    "another aud": claims(aud="weft-internal"),
    "aud as an array": claims(aud=["weft"]),
    "several aud": claims(aud=["weft", "other"]),
    "no sub": claims(sub=None),
    "an empty sub": claims(sub=""),
    "sub as a number": claims(sub=1),
    "sub of nobody": claims(sub="tenants/default/apiKeys/nobody"),
    "sub of another tenant": claims(sub="tenants/acme/apiKeys/admin"),
    "sub system": claims(sub="system"),
    "sub with a newline": claims(sub=ADMIN + "\n"),
    "sub with NUL": claims(sub=ADMIN + "\0"),
    "tenant of another": claims(tenant="acme"),
    "tenant of nobody": claims(sub="tenants/none/apiKeys/admin", tenant="none"),
    "no tenant": claims(tenant=None),
    "an empty tenant": claims(tenant=""),
    "tenant *": claims(tenant="*"),
    "tenant _system": claims(sub="tenants/_system/apiKeys/a", tenant="_system"),
    "no roles": claims(roles=None),
    "roles as a text": claims(roles="admin"),
    "roles as an object": claims(roles={"admin": True}),
    "a role that is a number": claims(roles=[1]),
    "no scopes": claims(scopes=None),
    "other scopes than the key's": claims(scopes=["agents.get"]),
    "no jti": claims(jti=None),
    "jti as a number": claims(jti=7),
    "an empty jti": claims(jti=""),
    "a claim that is unknown": claims(admin=True),
    "of a revoked key": of_a_revoked_key,
    # Times.
    "expired": lifetime(-310, -10),
    "expired a second ago": lifetime(-200, -1),
    "issued in the future": lifetime(60, 300),
    "not valid yet": lifetime(0, 300, nbf=60),
    "lives too long": lifetime(0, 301),
    "lived too long": lifetime(-86_400, 200),
    "ends before it begins": lifetime(5, 1),
    "no exp": claims(exp=None),
    "no iat": claims(iat=None),
    "exp as a text": claims(exp=str(int(time.time()) + 100)),
    "exp as a float": claims(exp=time.time() + 100),
    "exp as true": claims(exp=True),
    "exp as an array": claims(exp=[int(time.time()) + 100]),
    "a huge exp": claims(exp=10**30),
    "a negative exp": claims(exp=-1),
    "exp of a thousand digits": raw_claims(
        lambda text: text.replace('"exp":', '"exp":' + "9" * 999)
    ),
    "exp NaN": raw_claims(lambda text: text.rpartition(":")[0] + ":NaN}"),
    "exp Infinity": raw_claims(lambda text: text.rpartition(":")[0] + ":Infinity}"),
    "exp 1e10": raw_claims(lambda text: text.rpartition(":")[0] + ":1e10}"),
    # The signature, another one or the same in other words.
    "a truncated signature": signature(lambda signed: signed[:-1]),
    "an extended signature": signature(lambda signed: signed + b"\0"),
    "an empty signature": signature(lambda signed: b""),
    "a signature of zeros": signature(lambda signed: bytes(64)),
    "a signature with one bit changed": signature(
        lambda signed: bytes([signed[0] ^ 1]) + signed[1:]
    ),
    "S + L": signature(malleable),
    "halves changed over": signature(lambda signed: signed[32:] + signed[:32]),
    "signature in hexadecimal": signature(lambda signed: signed.hex().encode()),
    "changed claims": part(1, lambda claims: encoded('{"sub":"x"}')),
    "changed header": part(0, lambda header: header[:-1] + ("A" if header[-1] != "A" else "Q")),
    # Spellings.
    "a padded signature": part(2, lambda signed: signed + "=="),
    "padded claims": signed_parts(same, lambda claims: claims + "="),
    "a padded header": signed_parts(lambda header: header + "=", same),
    "loose bits in the signature": part(2, loose_bits),
    "loose bits in the claims": signed_parts(same, loose_bits),
    "a space in the claims": signed_parts(same, lambda claims: claims[:8] + " " + claims[8:]),
    "a newline in the signature": part(2, lambda signed: signed[:8] + "\n" + signed[8:]),
    "a newline behind": text(lambda token: token + "\n"),
    "a space before": text(lambda token: " " + token),
    "NUL behind": text(lambda token: token + "\0"),
    "NUL in the claims": raw_claims(lambda text: text[:-1] + "\0}"),
    "standard base64": part(2, lambda signed: "+/" + signed[2:]),
    "percent": text(lambda token: token.replace(".", "%2E", 1)),
    "a dot more": text(lambda token: token + "."),
    "four parts": text(lambda token: token + ".AAAA"),
    "other letters": text(lambda token: "е" + token[1:]),  # noqa: RUF001
    "twice": text(lambda token: f"{token},{token}"),
    "in quotes": text(lambda token: f'"{token}"'),
    # JSON.
    "a claim twice": raw_claims(lambda text: text[:-1] + ',"sub":"tenants/default/apiKeys/admin"}'),
    "exp twice": raw_claims(lambda text: text[:-1] + ',"exp":9999999999}'),
    "alg twice": raw_header(lambda text: '{"alg":"none",' + text[1:]),
    "kid twice": raw_header(lambda text: text[:-1] + ',"kid":"x"}'),
    "claims as an array": lambda world: world.forge.token(claims=[world.forge.claims()]),
    "claims as a text": lambda world: world.forge.token(claims='"claims"'),
    "claims null": lambda world: world.forge.token(claims="null"),
    "claims empty": lambda world: world.forge.token(claims="{}"),
    "claims not JSON": lambda world: world.forge.token(claims="{'sub': 1}"),
    "claims with more behind": raw_claims(lambda text: text + "{}"),
    "claims with a mark before": raw_claims(lambda text: "\ufeff" + text),
    "claims not UTF-8": lambda world: world.forge.signed(
        encoded(as_json(world.forge.header())), encoded(b'{"sub":"\xff"}')
    ),
    "claims nested deeply": lambda world: world.forge.token(claims="[" * 2_500),
    "header as an array": raw_header(lambda text: f"[{text}]"),
    "header null": raw_header(lambda text: "null"),
    "header nested deeply": raw_header(lambda text: "[" * 2_500),
    "a name in other letters": raw_header(lambda text: text.replace('"alg"', '"аlg"')),  # noqa: RUF001
    "a header with an escape": raw_header(lambda text: text.replace('"kid"', '"\\u0000kid"')),
    # Sizes.
    "a huge token": claims(jti="a" * 5_000),
    "a huge header": header(kid="a" * 3_000),
    "a megabyte": text(lambda token: token + "A" * 1_000_000),
}


def test_there_are_enough_classes() -> None:
    assert len(FORGED) >= 40


def test_a_token_made_by_hand_is_accepted_where_nothing_is_wrong_with_it(world: World) -> None:
    """Else the forged ones might be refused for another reason than theirs."""
    assert world.accepts(world.forge.token()).name == ADMIN
    now = int(time.time())
    assert world.accepts(world.forge.with_claims(nbf=now, iat=now + 5, exp=now + 200)).token_id


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_token_is_refused(world: World, name: str) -> None:
    token = FORGED[name](world)
    with pytest.raises(CredentialInvalid) as raised:
        world.accepts(token)
    assert raised.value.message == "the credential isn't valid"
    # It isn't accepted the second time either.
    with pytest.raises(CredentialInvalid):
        world.accepts(token)


@pytest.mark.parametrize(
    "name", sorted(set(FORGED) - {"an identity", "claims of an access token as an identity"})
)
def test_a_forged_token_is_no_identity(world: World, name: str) -> None:
    with pytest.raises(CredentialInvalid):
        IdentityVerifier(world.access.directory).verify(FORGED[name](world), GENERATE)


def test_an_access_token_is_no_identity(world: World) -> None:
    verifier = IdentityVerifier(world.access.directory)
    for token in (world.forge.token(), identity_as_access(world)):
        with pytest.raises(CredentialInvalid):
            verifier.verify(token, GENERATE)


def test_an_identity_names_whom_the_call_is_for(world: World) -> None:
    found = IdentityVerifier(world.access.directory).verify(identity(world), GENERATE)
    # Who it is, and nothing that they may do.
    assert found == Identity(Principal(ADMIN, "default"), "gateway")


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "tenants/acme/apiKeys/admin"},
        {"sub": "nobody"},
        {"tenant": "acme"},
        {"tenant": "*"},
        {"caller": ""},
        {"caller": 1},
        {"caller": None},
        {"aud": "weft"},
        {"aud": "/weft.models.v1.ModelService/Embed"},
        {"aud": "/weft.models.v1.ModelService/"},
        {"sub": "system", "secret": "a"},
        {"sub": "nobody", "tenant": "", "secret": "a"},
        {"sub": "tenants/default/schedules/nightly", "secret": "a"},
        {"jti": "a", "roles": [], "scopes": [], "until": lambda now: now + 400},
        {"aud": [GENERATE]},
        {"aud": None},
        {"secret": 1},
        {"secret": ["a"]},
        {"secret": "a", "jti": "b"},
        {"jti": "a"},
        {"jti": "a", "roles": [], "scopes": []},
        {"jti": "a", "roles": ["*"], "scopes": [], "until": 2**33},
        {"jti": "a", "roles": [], "scopes": ["everything"], "until": 2**33},
        {"jti": "a", "roles": [], "scopes": [], "until": True},
        {"iss": "other"},
        {"exp": lambda now: now + 2_000},
        {"exp": lambda now: now - 1},
        {"iat": lambda now: now + 60},
        {"grants": ["*"]},
    ],
)
def test_a_forged_identity_is_refused(world: World, changes: dict[str, Any]) -> None:
    now = int(time.time())
    right = {
        "iss": "weft",
        "aud": GENERATE,
        "sub": ADMIN,
        "tenant": "default",
        "caller": "gateway",
        "iat": now,
        "exp": now + 15,
    }
    head = world.forge.header(typ="weft-identity+jwt")
    verifier = IdentityVerifier(world.access.directory)
    assert verifier.verify(world.forge.token(head, right), GENERATE).caller == "gateway"
    # Times are of now, which may be minutes after the tests were collected.
    made = {name: value(now) if callable(value) else value for name, value in changes.items()}
    wrong = {name: value for name, value in (right | made).items() if value is not None}
    with pytest.raises(CredentialInvalid):
        verifier.verify(world.forge.token(head, wrong), GENERATE)


LETTERS = string.ascii_letters + string.digits + "-_.=+/ "


@given(place=st.integers(0, 10_000), letter=st.sampled_from(LETTERS))
def test_no_character_of_a_token_can_be_another(world: World, place: int, letter: str) -> None:
    token = world.forge.token()
    place %= len(token)
    assume(token[place] != letter)
    with pytest.raises(CredentialInvalid):
        world.accepts(token[:place] + letter + token[place + 1 :])


@given(st.text(max_size=300))
def test_garbage_is_refused_and_nothing_else_happens(world: World, text: str) -> None:
    for header in (text, f"Bearer {text}", f"Bearer weft_{text}", f"Bearer a.{text}.b"):
        with pytest.raises(CredentialInvalid):
            world.access.directory.authenticate(header)


async def test_a_revoked_token_is_refused_at_once(world: World) -> None:
    token_id = new_id()
    token = world.forge.with_claims(jti=token_id)
    principal = world.accepts(token)
    request = auth_service_pb2.RevokeTokenRequest(parent="tenants/default", token_id=token_id)
    await world.access.handler("AuthService").revoke_token(request, world.access.call())
    with pytest.raises(CredentialInvalid):
        world.accepts(token)
    assert not world.access.directory.valid(principal)


def test_roles_of_a_token_give_no_more_than_the_key_has(world: World) -> None:
    request = world.forge.with_claims(roles=["viewer", "made-up"])
    assert world.accepts(request).grants == ()


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNzd29yZA==",
        "{token}",
        "Bearer{token}",
        "Bearer  {token}",
        "Bearer\t{token}",
        "Token {token}",
        "Bearer {token} {token}",
        "Bearer {token}\r\nx-other: 1",
        "Bearer \ud800{token}",
    ],
)
def test_another_header_holds_no_credential(world: World, authorization: str) -> None:
    header = authorization.replace("{token}", world.forge.token())
    with pytest.raises(CredentialInvalid):
        world.access.directory.authenticate(header)


def test_nothing_that_was_verified_can_be_read_out_of_the_cache(world: World) -> None:
    token = world.forge.token()
    world.accepts(token)
    assert hashlib.sha256(f"Bearer {token}".encode()).digest() in world.access.directory._verified
    assert token not in repr(vars(world.access.directory))
