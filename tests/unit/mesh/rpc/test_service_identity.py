"""Calls between Weft's own processes: on whose behalf, and by which service."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from mesh.call import Call, current_call
from mesh.clock import SYSTEM
from mesh.errors import CredentialInvalid, NotFound, PermissionDenied, WeftError
from mesh.principal import Principal
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.pipeline import Edge, Pipeline, bind
from mesh.rpc.rate_limiter import RateLimiter
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RateLimitSettings, RpcSettings
from mesh.security.identity import Identity, IdentitySigner, IdentityVerifier
from tests.support.edge import Doorkeeper, OneKey
from tests.support.rpc_service import SmallService
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

SETTINGS = RpcSettings()
NAME = "tenants/acme/collections/docs"
WHO = Principal("tenants/acme/apiKeys/ada", "acme")


class Verifier(IdentityVerifier):
    """Counts the texts that it is asked about."""

    asked: list[str]

    def verify(self, text: str, method: str) -> Identity:
        self.asked.append(text)
        return super().verify(text, method)


@pytest.fixture
async def served() -> AsyncIterator[tuple[SmallService, Verifier, IdentitySigner, str]]:
    """A process that takes calls of the service `tools` only, and of nobody from outside."""
    keys, service, keeper = OneKey(), SmallService(), Doorkeeper()
    service.vectors.collections[NAME] = collections_pb2.Collection(name=NAME)
    verifier = Verifier(keys)
    verifier.asked = []
    callers = {"weft.vectors.v1.VectorService": frozenset({"tools"})}
    edge = Edge(keeper, verifier, RateLimiter(RateLimitSettings()), callers)
    pipeline = Pipeline(CollectorRegistry(), SETTINGS, edge)
    server = RpcServer(bind(service.handlers, pipeline, SETTINGS), SETTINGS, pipeline)
    target = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    yield service, verifier, IdentitySigner(keys), target
    await server.stop()


async def get(channel: RemoteChannel, name: str = NAME) -> None:
    stub: Any = VectorServiceStub(cast(Any, channel))
    token = current_call.set(Call("/outer", SYSTEM.monotonic() + 5, "r1", WHO))
    try:
        await stub.GetCollection(pb.GetCollectionRequest(name=name))
    finally:
        current_call.reset(token)


async def refused(channel: RemoteChannel, name: str = NAME) -> WeftError:
    with pytest.raises(WeftError) as raised:
        await get(channel, name)
    await channel.close()
    return raised.value


async def test_the_next_process_learns_on_whose_behalf_and_by_which_service(
    served: tuple[SmallService, Verifier, IdentitySigner, str],
) -> None:
    service, verifier, signer, target = served
    channel = RemoteChannel(target, SETTINGS, caller="tools", sign=signer.sign)
    for _ in range(3):
        await get(channel)
    await channel.close()
    call = service.vectors.calls[-1]
    assert (call.actor, call.caller) == (WHO.name, "tools")
    # One identity serves the calls of a moment: it is signed and checked once.
    assert len(set(verifier.asked)) == 1


async def test_a_service_that_the_catalogue_does_not_name_is_refused(
    served: tuple[SmallService, Verifier, IdentitySigner, str],
) -> None:
    _, _, signer, target = served
    channel = RemoteChannel(target, SETTINGS, caller="models", sign=signer.sign)
    assert isinstance(await refused(channel), PermissionDenied)


async def test_a_service_acts_in_the_tenant_of_whom_it_acts_for(
    served: tuple[SmallService, Verifier, IdentitySigner, str],
) -> None:
    _, _, signer, target = served
    channel = RemoteChannel(target, SETTINGS, caller="tools", sign=signer.sign)
    assert isinstance(await refused(channel, "tenants/globex/collections/docs"), NotFound)


async def test_an_identity_that_another_deployment_signed_is_none(
    served: tuple[SmallService, Verifier, IdentitySigner, str],
) -> None:
    *_, target = served
    channel = RemoteChannel(target, SETTINGS, caller="tools", sign=IdentitySigner(OneKey()).sign)
    assert isinstance(await refused(channel), CredentialInvalid)


async def test_an_identity_for_another_method_is_none(
    served: tuple[SmallService, Verifier, IdentitySigner, str],
) -> None:
    _, _, signer, target = served

    def sign(
        principal: Principal | None,
        caller: str,
        audience: str,
        seconds: float,
        *,
        handed_on: bool = False,
    ) -> str:
        return signer.sign(
            principal, caller, "/weft.vectors.v1.VectorService/ListCollections", seconds
        )

    channel = RemoteChannel(target, SETTINGS, caller="tools", sign=sign)
    assert isinstance(await refused(channel), CredentialInvalid)
