"""Calls that one of Weft's processes hands on for whoever made them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from mesh.principal import Principal
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.forwarding import forwarded
from mesh.rpc.methods import service_of
from mesh.rpc.pipeline import Edge, Pipeline, bind
from mesh.rpc.propagation import IDENTITY_KEY
from mesh.rpc.rate_limiter import RateLimiter
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RateLimitSettings, RpcSettings
from mesh.security.identity import IdentitySigner, IdentityVerifier
from tests.support.edge import Doorkeeper, OneKey, administrator
from tests.support.rpc_service import SmallService
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

SETTINGS = RpcSettings()
VECTORS = "weft.vectors.v1.VectorService"
GET_COLLECTION = f"/{VECTORS}/GetCollection"
NAME = "tenants/acme/collections/docs"
ADA = replace(administrator("acme"), secret_id="ada1")
EVE = Principal("tenants/acme/apiKeys/eve", "acme", secret_id="eve1")
CALLS_PER_SECOND = 5


@dataclass
class Two:
    """A gateway, and the process behind it that has the service."""

    service: SmallService
    signer: IdentitySigner
    gateway: str
    behind: str

    async def get(self, target: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
        """How a call ends that anybody makes."""
        async with grpc.aio.insecure_channel(target) as channel:
            stub: Any = VectorServiceStub(channel)
            call = stub.GetCollection(
                pb.GetCollectionRequest(name=NAME), timeout=5, metadata=metadata
            )
            code: grpc.StatusCode = await call.code()
            return code

    def handed_on(self, principal: Principal, caller: str = "gateway") -> tuple[str, str]:
        """What says to the process behind whose call it is."""
        return IDENTITY_KEY, self.signer.sign(principal, caller, GET_COLLECTION, 5, handed_on=True)


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    keys, service = OneKey(), SmallService()
    service.vectors.collections[NAME] = collections_pb2.Collection(name=NAME)
    signer = IdentitySigner(keys)
    limits = RateLimitSettings(key_reads_per_second=CALLS_PER_SECOND)

    def pipeline() -> Pipeline:
        keeper = Doorkeeper(ada=ADA, eve=EVE)
        callers = {VECTORS: frozenset({"gateway"})}
        edge = Edge(keeper, IdentityVerifier(keys), RateLimiter(limits), callers)
        return Pipeline(CollectorRegistry(), SETTINGS, edge)

    async with AsyncExitStack() as stack:

        async def started(handlers: Any) -> str:
            around = pipeline()
            server = RpcServer(bind(handlers, around, SETTINGS), SETTINGS, around)
            stack.push_async_callback(server.stop)
            return f"127.0.0.1:{await server.start('127.0.0.1', 0)}"

        behind = await started(service.handlers)
        channel = RemoteChannel(behind, SETTINGS, caller="gateway", sign=signer.sign, relays=True)
        stack.push_async_callback(channel.close)
        gateway = await started({VECTORS: forwarded(service_of(VECTORS), channel)})
        yield Two(service, signer, gateway, behind)


async def test_the_caller_is_there_who_it_was_here(two: Two) -> None:
    assert await two.get(two.gateway, bearer("ada")) is grpc.StatusCode.OK
    call = two.service.vectors.calls[-1]
    assert (call.principal, call.caller, call.relayed_by) == (ADA, "", "gateway")


async def test_its_credential_stays_where_it_was_shown(two: Two) -> None:
    assert await two.get(two.gateway, bearer("ada")) is grpc.StatusCode.OK
    assert "authorization" not in two.service.vectors.calls[-1].metadata


async def test_what_the_caller_may_not_do_is_refused_there_too(two: Two) -> None:
    assert await two.get(two.gateway, bearer("eve")) is grpc.StatusCode.PERMISSION_DENIED
    assert await two.get(two.behind, two.handed_on(EVE)) is grpc.StatusCode.PERMISSION_DENIED
    assert not two.service.vectors.calls


@pytest.mark.parametrize("credential", ["ada", "eve", "nobody", ""])
async def test_an_identity_and_a_credential_are_one_too_many(two: Two, credential: str) -> None:
    both = (bearer(credential), two.handed_on(ADA))
    assert await two.get(two.behind, *both) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_credential_that_was_revoked_meanwhile_is_refused(two: Two) -> None:
    gone = replace(ADA, secret_id="gone")
    assert await two.get(two.behind, two.handed_on(gone)) is grpc.StatusCode.UNAUTHENTICATED


async def test_nobody_calls_what_needs_a_credential(two: Two) -> None:
    nobody = (IDENTITY_KEY, two.signer.sign(None, "gateway", GET_COLLECTION, 5))
    assert await two.get(two.behind, nobody) is grpc.StatusCode.UNAUTHENTICATED
    assert await two.get(two.behind, nobody, bearer("ada")) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_service_that_may_not_call_may_not_hand_on(two: Two) -> None:
    handed_on = two.handed_on(ADA, "models")
    assert await two.get(two.behind, handed_on) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("caller", ["gateway", "agents"])
async def test_an_identity_isnt_signed_anew_by_who_hands_calls_on(two: Two, caller: str) -> None:
    own = (IDENTITY_KEY, two.signer.sign(ADA, caller, GET_COLLECTION, 5))
    assert await two.get(two.gateway, own) is grpc.StatusCode.PERMISSION_DENIED
    assert await two.get(two.gateway, two.handed_on(ADA, caller)) is (
        grpc.StatusCode.PERMISSION_DENIED
    )
    assert not two.service.vectors.calls


async def test_a_call_counts_once_for_the_rate(two: Two) -> None:
    handed_on = two.handed_on(ADA)
    codes = [await two.get(two.behind, handed_on) for _ in range(2 * CALLS_PER_SECOND)]
    assert set(codes) == {grpc.StatusCode.OK}
    codes = [await two.get(two.gateway, bearer("ada")) for _ in range(2 * CALLS_PER_SECOND)]
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
