"""Identities of internal calls: how long they live, and how seldom they are made."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.errors import CredentialInvalid
from mesh.principal import Principal, system
from mesh.security.identity import IdentitySigner, IdentityVerifier
from mesh.security.tokens import SigningKey
from tests.support.access import MovedClock

ADA = Principal("tenants/acme/apiKeys/ada", "acme")


class OneKey:
    """A key set of one key, which counts how often it is asked."""

    def __init__(self) -> None:
        self.key = SigningKey("k1", Ed25519PrivateKey.generate())
        self.signed = self.verified = 0

    def signing_key(self) -> SigningKey:
        self.signed += 1
        return self.key

    def public_key(self, kid: str) -> Ed25519PublicKey | None:
        self.verified += 1
        return self.key.private_key.public_key() if kid == "k1" else None


def lifetime(text: str) -> int:
    part = text.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return int(claims["exp"] - claims["iat"])


@pytest.mark.parametrize("seconds", [0.0, 0.5, 4.0, 15.0, 60.0, 290.0, 600.0])
def test_an_identity_outlives_its_call(seconds: float) -> None:
    moved = MovedClock()
    keys = OneKey()
    signer = IdentitySigner(keys, moved.clock)
    text = signer.sign(ADA, "gateway", seconds)
    moved.seconds = 4.9
    assert signer.sign(ADA, "gateway", seconds) == text
    moved.seconds += seconds + 4
    assert IdentityVerifier(keys, moved.clock).verify(text)[0].name == ADA.name


@pytest.mark.parametrize("seconds", [900.0, 86_400.0, float("inf")])
def test_no_identity_lives_longer_than_a_quarter_of_an_hour(seconds: float) -> None:
    assert lifetime(IdentitySigner(OneKey()).sign(ADA, "gateway", seconds)) == 900


def test_calls_share_an_identity_for_a_few_seconds() -> None:
    moved = MovedClock()
    keys = OneKey()
    signer = IdentitySigner(keys, moved.clock)
    texts = {signer.sign(ADA, "gateway", 1 + number / 100) for number in range(100)}
    assert (len(texts), keys.signed) == (1, 1)
    signer.sign(ADA, "agents", 1)
    signer.sign(system("acme"), "gateway", 1)
    assert keys.signed == 3
    moved.seconds = 6
    assert signer.sign(ADA, "gateway", 1) not in texts


def test_an_identity_is_checked_once_until_it_expires() -> None:
    moved = MovedClock()
    keys = OneKey()
    text = IdentitySigner(keys, moved.clock).sign(ADA, "gateway", 1)
    verifier = IdentityVerifier(keys, moved.clock)
    for _ in range(10):
        principal, caller = verifier.verify(text)
    assert (principal.name, caller, keys.verified) == (ADA.name, "gateway", 1)
    moved.seconds = lifetime(text) + 1
    for _ in range(2):
        with pytest.raises(CredentialInvalid):
            verifier.verify(text)


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_weft_calls_for_itself(tenant: str) -> None:
    keys = OneKey()
    text = IdentitySigner(keys).sign(system(tenant), "agents", 5)
    principal, caller = IdentityVerifier(keys).verify(text)
    assert (principal.is_system, principal.tenant, caller) == (True, tenant, "agents")
    assert principal.allows("agents.run", "tenants/acme")
