"""Every RPC with every kind of bad credential: none gets in.

The rows come from the contracts, so a new RPC has its row without anybody's doing; one for
which no valid request can be made here fails.
"""

import asyncio
import base64
import json
import time
from typing import Any, cast

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from mesh.principal import Principal
from mesh.rpc.methods import MethodSpec
from mesh.rpc.open_methods import FOR_EVERY_CALLER, PUBLIC
from mesh.security.api_keys import new_api_key
from tests.contract.test_contracts import METHODS
from tests.security.conftest import Deployment
from tests.support.requests import filled, outcome
from weft.auth.v1 import api_key_service_pb2, auth_service_pb2
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub

REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
GUARDED = [spec for spec in METHODS if spec.path not in PUBLIC]
Metadata = tuple[tuple[str, str], ...]


def _header(value: str) -> Metadata:
    return (("authorization", value),)


def _unsigned(claims: dict[str, Any]) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none', 'typ': 'at+jwt'})}.{part(claims)}."


@pytest.fixture(scope="module")
async def bad(weft: Deployment) -> dict[str, Metadata]:
    """Kinds of bad credentials, by name."""
    keys: Any = ApiKeyServiceStub(weft.keyed("acme"))
    tokens: Any = AuthServiceStub(weft.keyed("acme"))
    good = weft.keys["acme"]
    revoked_name, revoked = await weft.new_key("acme", "admin")
    exchanged = await tokens.ExchangeToken(
        auth_service_pb2.ExchangeTokenRequest(api_key=revoked), timeout=10
    )
    await keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=revoked_name), timeout=10)
    ttl = {"ttl": {"seconds": 1}}
    _, expired = await weft.new_key("acme", "admin", **ttl)
    expires = time.monotonic() + 1.1
    stranger = new_api_key().text
    head, _, tail = good.rpartition("_")
    last = "a" if head[-1] != "a" else "b"
    now = int(time.time())
    claims = {"iss": "weft", "aud": "weft", "sub": "tenants/acme/apiKeys/admin", "iat": now}
    claims |= {"exp": now + 60, "jti": "x", "tenant": "acme", "roles": ["admin"], "scopes": []}
    admin = Principal("tenants/acme/apiKeys/admin", "acme")
    identity = weft.host.access.sign(admin, "agents", "/weft.models.v1.ModelService/Other", 60)
    await asyncio.sleep(max(0.0, expires - time.monotonic()))
    return {
        "none": (),
        "empty": _header(""),
        "no credential behind the scheme": _header("Bearer "),
        "another scheme": _header(f"Basic {base64.b64encode(good.encode()).decode()}"),
        "no scheme": _header(good),
        "garbage": _header("Bearer !\"#$%&'()*+"),
        "a key of nobody": _header(f"Bearer {stranger}"),
        "an altered secret": _header(f"Bearer {head[:-1]}{last}_{tail}"),
        "a wrong checksum": _header(f"Bearer {head}_00000000"),
        "a cut key": _header(f"Bearer {good[:-9]}"),
        "a revoked key": _header(f"Bearer {revoked}"),
        "an expired key": _header(f"Bearer {expired}"),
        "a token of a revoked key": _header(f"Bearer {exchanged.token}"),
        "an unsigned token": _header(f"Bearer {_unsigned(claims)}"),
        "an identity of a service as a token": _header(f"Bearer {identity}"),
        "an identity of a service for another method": (("x-weft-identity", identity),),
        "a key under another header": (("x-api-key", good), ("api-key", good)),
        "two keys": (*_header(f"Bearer {good}"), *_header(f"Bearer {good}")),
        "a key and a forged identity": (
            *_header(f"Bearer {good}"),
            ("x-weft-identity", _unsigned(claims)),
        ),
    }


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.path)
def test_a_valid_request_can_be_made_of_every_contract(spec: MethodSpec) -> None:
    assert spec.violations(filled(spec, "acme")) == []


async def test_no_bad_credential_gets_in(weft: Deployment, bad: dict[str, Metadata]) -> None:
    assert len(bad) >= 12
    entered = []
    for spec in GUARDED:
        request = filled(spec, "acme")
        for kind, metadata in bad.items():
            code = await outcome(weft.channel, spec, request, metadata)
            if code not in REFUSED:
                entered.append((spec.path, kind, code))
    assert entered == []


async def test_the_same_requests_with_a_good_credential_get_past_the_door(
    weft: Deployment,
) -> None:
    """Else the matrix would show nothing."""
    for spec in GUARDED:
        tenant = "default" if spec.policy.platform else "acme"
        if spec.name in ("RevokeApiKey", "RotateApiKey", "EraseSession"):
            continue
        code = await outcome(
            weft.channel, spec, filled(spec, tenant), [weft.credential(tenant)], seconds=2
        )
        assert code not in REFUSED, (spec.path, code)


async def test_without_any_role_a_key_may_do_nothing_but_ask_who_it_is(weft: Deployment) -> None:
    _, bare = await weft.new_key("acme")
    for spec in GUARDED:
        request = filled(spec, "acme")
        code = await outcome(weft.channel, spec, request, [("authorization", f"Bearer {bare}")])
        expected = (
            grpc.StatusCode.OK
            if spec.path in FOR_EVERY_CALLER
            else grpc.StatusCode.PERMISSION_DENIED
        )
        assert code is expected, (spec.path, code)


async def test_reflection_needs_a_credential_as_well(
    weft: Deployment, bad: dict[str, Metadata]
) -> None:
    stub: Any = ServerReflectionStub(cast(Any, weft.channel))
    for kind, metadata in bad.items():
        if "identity" in kind:
            continue
        question = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await anext(aiter(stub.ServerReflectionInfo(iter(question), metadata=metadata)))
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED, kind
