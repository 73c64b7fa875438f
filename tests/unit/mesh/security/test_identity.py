"""Identities of internal calls: how long they live, and how seldom they are made."""

import base64
import json
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.errors import CredentialInvalid
from mesh.principal import Grant, Principal, system
from mesh.security.identity import (
    Identity,
    IdentitySigner,
    IdentityVerifier,
    ShownKey,
    audience_of,
)
from mesh.security.tokens import ACCESS_BYTES_MAX, AccessToken, SigningKey, sign_access_token
from tests.support.access import MovedClock

ADA = Principal("tenants/acme/apiKeys/ada", "acme")
BY_KEY = replace(ADA, secret_id="01j8zqj4c9x2m6d4t0w3v5y7ab")
GENERATE = "/weft.models.v1.ModelService/Generate"
EMBED = "/weft.models.v1.ModelService/Embed"
DRAIN = "/weft.control.v1.MeshService/DrainInstance"


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
    text = signer.sign(ADA, "gateway", GENERATE, seconds)
    moved.seconds = 4.9
    assert signer.sign(ADA, "gateway", GENERATE, seconds) == text
    moved.seconds += seconds + 4
    assert IdentityVerifier(keys, moved.clock).verify(text, GENERATE).principal == ADA


@pytest.mark.parametrize("seconds", [900.0, 86_400.0, float("inf")])
def test_no_identity_lives_longer_than_a_quarter_of_an_hour(seconds: float) -> None:
    assert lifetime(IdentitySigner(OneKey()).sign(ADA, "gateway", GENERATE, seconds)) == 900


def test_calls_share_an_identity_for_a_few_seconds() -> None:
    moved = MovedClock()
    keys = OneKey()
    signer = IdentitySigner(keys, moved.clock)
    texts = {signer.sign(ADA, "gateway", GENERATE, 1 + number / 100) for number in range(100)}
    assert (len(texts), keys.signed) == (1, 1)
    signer.sign(ADA, "agents", GENERATE, 1)
    signer.sign(system("acme"), "gateway", GENERATE, 1)
    signer.sign(ADA, "gateway", EMBED, 1)
    signer.sign(BY_KEY, "gateway", GENERATE, 1, handed_on=True)
    assert keys.signed == 5
    moved.seconds = 6
    assert signer.sign(ADA, "gateway", GENERATE, 1) not in texts


def test_an_identity_is_checked_once_until_it_expires() -> None:
    moved = MovedClock()
    keys = OneKey()
    text = IdentitySigner(keys, moved.clock).sign(ADA, "gateway", GENERATE, 1)
    verifier = IdentityVerifier(keys, moved.clock)
    for _ in range(10):
        identity = verifier.verify(text, GENERATE)
    assert (identity, keys.verified) == (Identity(ADA, "gateway"), 1)
    moved.seconds = lifetime(text) + 1
    for _ in range(2):
        with pytest.raises(CredentialInvalid):
            verifier.verify(text, GENERATE)


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_weft_calls_for_itself(tenant: str) -> None:
    keys = OneKey()
    text = IdentitySigner(keys).sign(system(tenant), "agents", GENERATE, 5)
    identity = IdentityVerifier(keys).verify(text, GENERATE)
    assert identity == Identity(system(tenant), "agents")
    assert system(tenant).allows("agents.run", "tenants/acme")


def test_an_identity_is_good_for_the_method_that_is_called() -> None:
    keys = OneKey()
    text = IdentitySigner(keys).sign(ADA, "agents", GENERATE, 5)
    verifier = IdentityVerifier(keys)
    for _ in range(2):
        with pytest.raises(CredentialInvalid):
            verifier.verify(text, EMBED)
    assert verifier.verify(text, GENERATE).principal == ADA


def test_what_an_instance_answers_for_itself_no_other_one_takes() -> None:
    keys = OneKey()
    text = IdentitySigner(keys).sign(ADA, "gateway", audience_of(DRAIN, "one"), 5)
    assert IdentityVerifier(keys, instance="one").verify(text, DRAIN).principal == ADA
    for other in ("two", ""):
        with pytest.raises(CredentialInvalid):
            IdentityVerifier(keys, instance=other).verify(text, DRAIN)
    anywhere = IdentitySigner(keys).sign(ADA, "gateway", audience_of(GENERATE, "one"), 5)
    assert IdentityVerifier(keys, instance="two").verify(anywhere, GENERATE).principal == ADA


def test_what_a_token_gives_is_told_as_it_is_by_now() -> None:
    keys = OneKey()
    signer, verifier = IdentitySigner(keys), IdentityVerifier(keys)
    told = []
    for roles in (("worker",), ("developer", "worker")):
        grants = tuple(Grant(f"tenants/acme/roles/{each}", frozenset(), "") for each in roles)
        by_token = replace(ADA, grants=grants, token_id="t1", expire_ns=time.time_ns() + 10**10)
        text = signer.sign(by_token, "gateway", GENERATE, 5, handed_on=True)
        shown = verifier.verify(text, GENERATE).shown
        assert isinstance(shown, AccessToken)
        told.append(shown.roles)
    assert told == [("worker",), ("developer", "worker")]


def test_who_needs_no_credential_is_nobody() -> None:
    keys = OneKey()
    text = IdentitySigner(keys).sign(None, "gateway", GENERATE, 5, handed_on=True)
    assert IdentityVerifier(keys).verify(text, GENERATE) == Identity(None, "gateway")


def test_a_call_from_outside_is_told_of_with_its_key() -> None:
    keys = OneKey()
    text = IdentitySigner(keys).sign(BY_KEY, "gateway", GENERATE, 5, handed_on=True)
    shown = IdentityVerifier(keys).verify(text, GENERATE).shown
    assert shown == ShownKey(BY_KEY.name, BY_KEY.secret_id)


def test_the_longest_token_still_fits_in_the_identity_that_tells_of_it() -> None:
    moved, keys = MovedClock(), OneKey()
    roles = [f"r{number:02}-{'a' * 58}" for number in range(99)]
    now_seconds = moved.clock.now_ns() // 10**9
    ends = now_seconds + 290
    longest = None
    for count in range(len(roles)):
        token = AccessToken(ADA.name, "acme", tuple(roles[:count]), (), "t1", now_seconds, ends)
        try:
            assert len(sign_access_token(token, keys.key)) <= ACCESS_BYTES_MAX
        except ValueError:
            break
        longest = token
    assert longest is not None
    assert len(longest.roles) > 20
    grants = tuple(
        Grant(f"tenants/acme/roles/{role}", frozenset(), "tenants/acme") for role in longest.roles
    )
    by_token = replace(ADA, grants=grants, token_id="t1", expire_ns=ends * 10**9)
    caller, method = "c" * 63, "/weft.scheduler.v1.DeadLetterService/PurgeDeadLetters"
    text = IdentitySigner(keys, moved.clock).sign(by_token, caller, method, 900, handed_on=True)
    identity = IdentityVerifier(keys, moved.clock).verify(text, method)
    assert identity.shown == replace(longest, issued_seconds=now_seconds)


def test_a_call_from_outside_without_a_credential_is_not_handed_on() -> None:
    with pytest.raises(CredentialInvalid):
        IdentitySigner(OneKey()).sign(ADA, "gateway", GENERATE, 5, handed_on=True)
