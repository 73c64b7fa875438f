"""Who gets past the edge: credentials, tenants, permissions, over the wire."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc.aio
import pytest

from mesh.errors import (
    CredentialInvalid,
    DeadlineExceeded,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    RateLimited,
    WeftError,
)
from mesh.principal import Grant, Principal
from mesh.rpc.channel import MeshChannel, RemoteChannel
from mesh.rpc.local import LocalChannel
from mesh.rpc.methods import MethodSpec
from mesh.rpc.pipeline import Endpoint, bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from tests.support.edge import Doorkeeper, administrator, pipeline
from tests.support.eventually import eventually
from tests.support.rpc_service import SmallService
from weft.agents.v1 import turn_service_pb2
from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub
from weft.vectors.v1 import collections_pb2
from weft.vectors.v1 import vector_service_pb2 as pb
from weft.vectors.v1.vector_service_pb2_grpc import VectorServiceStub

SETTINGS = RpcSettings(peer_failures_max=3, peer_failures_per_second=0.5)
NAME = "tenants/acme/collections/docs"
READER = Principal(
    "tenants/acme/apiKeys/reader",
    "acme",
    (Grant("tenants/acme/roles/viewer", frozenset({"vectors.get"}), NAME),),
)


class Edge:
    """A small service behind an edge with two keys: `acme` may all, `reader` little."""

    def __init__(self) -> None:
        self.keeper = Doorkeeper(acme=administrator("acme"), reader=READER)
        self.service = SmallService()
        around = self.around = pipeline(SETTINGS, self.keeper)
        self.service.vectors.collections[NAME] = collections_pb2.Collection(name=NAME)
        self.endpoints: dict[str, Endpoint] = bind(self.service.handlers, around, SETTINGS)
        self.server = RpcServer(self.endpoints, SETTINGS, around)
        self.channel: RemoteChannel

    async def get(self, name: str, key: str = "") -> pb.GetCollectionResponse:
        stub: Any = VectorServiceStub(cast(Any, self.channel))
        metadata = [("authorization", f"Bearer {key}")] if key else []
        response: pb.GetCollectionResponse = await stub.GetCollection(
            pb.GetCollectionRequest(name=name), metadata=metadata
        )
        return response

    def run(self, words: str, key: str) -> Any:
        stub: Any = TurnServiceStub(cast(Any, self.channel))
        request = turn_service_pb2.RunTurnRequest(
            session="tenants/acme/agents/a/sessions/s", input=words
        )
        return stub.RunTurn(request, metadata=[("authorization", f"Bearer {key}")])


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    made = Edge()
    port = await made.server.start("127.0.0.1", 0)
    made.channel = RemoteChannel(f"127.0.0.1:{port}", SETTINGS)
    yield made
    await made.channel.close()
    await made.server.stop()


async def refused(call: Any) -> WeftError:
    with pytest.raises(WeftError) as raised:
        await call
    return raised.value


async def test_a_call_without_a_valid_credential_does_not_reach_its_handler(edge: Edge) -> None:
    assert isinstance(await refused(edge.get(NAME)), CredentialInvalid)
    assert isinstance(await refused(edge.get(NAME, "unknown")), CredentialInvalid)
    assert edge.service.vectors.calls == []


async def test_the_handler_learns_who_calls(edge: Edge) -> None:
    await edge.get(NAME, "acme")
    call = edge.service.vectors.calls[0]
    assert (call.actor, call.caller) == ("tenants/acme/apiKeys/admin", "")


async def test_another_tenants_resource_looks_as_if_it_were_not_there(edge: Edge) -> None:
    theirs = await refused(edge.get("tenants/globex/collections/docs", "acme"))
    missing = await refused(edge.get("tenants/acme/collections/none", "acme"))
    assert type(theirs) is type(missing) is NotFound


async def test_what_no_role_gives_is_denied_and_noted(edge: Edge) -> None:
    assert (await edge.get(NAME, "reader")).collection.name == NAME
    error = await refused(edge.get("tenants/acme/collections/other", "reader"))
    assert isinstance(error, PermissionDenied)
    assert error.metadata["permission"] == "vectors.get"
    assert edge.keeper.refused == [(READER, "/weft.vectors.v1.VectorService/GetCollection")]


async def test_two_credentials_are_none(edge: Edge) -> None:
    stub: Any = VectorServiceStub(cast(Any, edge.channel))
    metadata = [("authorization", "Bearer acme"), ("authorization", "Bearer reader")]
    call = stub.GetCollection(pb.GetCollectionRequest(name=NAME), metadata=metadata)
    # Our own client joins them; a foreign one sends both.
    assert isinstance(await refused(call), CredentialInvalid)


async def test_a_stream_ends_when_its_credential_is_revoked(edge: Edge) -> None:
    stream = edge.run("a wait", "acme")
    assert (await anext(stream)).events[0].token.text == "a"
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.05)
    edge.keeper.forget("acme")
    assert isinstance(await refused(waiting), CredentialInvalid)
    await asyncio.wait_for(edge.service.turns.closed.wait(), 5)


async def test_a_stream_ends_when_its_credential_expires(edge: Edge) -> None:
    soon = replace(administrator("acme"), expire_ns=time.time_ns() + 300_000_000)
    edge.keeper.known["Bearer short"] = soon
    stream = edge.run("a wait", "short")
    await anext(stream)
    assert isinstance(await refused(anext(stream)), DeadlineExceeded)


async def test_names_that_no_contract_allows_are_not_kept(edge: Edge) -> None:
    caller = administrator("acme")
    edge.keeper.known["Bearer long"] = caller
    for number in range(5):
        name = f"tenants/acme/collections/{number}" + "x" * 10_000
        assert isinstance(await refused(edge.get(name, "long")), InvalidArgument)
    assert not any(len(name) > 1_000 for _, name in caller._allowed)


async def test_whoever_tries_one_credential_after_the_other_has_to_wait(edge: Edge) -> None:
    for _ in range(3):
        assert isinstance(await refused(edge.get(NAME, "guess")), CredentialInvalid)
    error = await refused(edge.get(NAME, "guess"))
    assert isinstance(error, RateLimited)
    assert error.retry_seconds
    assert error.retry_seconds > 0.5


async def test_whoever_was_let_in_is_not_locked_out_by_others_at_the_address(edge: Edge) -> None:
    await edge.get(NAME, "acme")
    for _ in range(4):
        await refused(edge.get(NAME, "guess"))
    assert isinstance(await refused(edge.get(NAME, "reader")), RateLimited)
    assert (await edge.get(NAME, "acme")).collection.name == NAME


async def test_what_a_stranger_sends_is_not_parsed(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    decode = MethodSpec.decode

    def counting(spec: MethodSpec, data: bytes) -> Any:
        parsed.append(data)
        return decode(spec, data)

    monkeypatch.setattr(MethodSpec, "decode", counting)
    await refused(edge.get(NAME, "guess"))
    assert parsed == []
    await edge.get(NAME, "acme")
    assert len(parsed) == 1


async def test_a_forged_identity_of_a_service_is_no_credential(edge: Edge) -> None:
    stub: Any = VectorServiceStub(cast(Any, edge.channel))
    metadata = [("authorization", "Bearer acme"), ("x-weft-identity", "forged")]
    call = stub.GetCollection(pb.GetCollectionRequest(name=NAME), metadata=metadata)
    assert isinstance(await refused(call), CredentialInvalid)


async def test_reflection_needs_a_credential(edge: Edge) -> None:
    from grpc_reflection.v1alpha import reflection_pb2
    from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

    target = edge.channel._present.channel
    stub: Any = ServerReflectionStub(cast(Any, target))
    question = [reflection_pb2.ServerReflectionRequest(list_services="")]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await anext(aiter(stub.ServerReflectionInfo(iter(question))))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    metadata = (("authorization", "Bearer reader"),)
    answer = await anext(aiter(stub.ServerReflectionInfo(iter(question), metadata=metadata)))
    assert answer.list_services_response.service


def reflected(edge: Edge, key: str, requests: Any) -> Any:
    from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

    stub: Any = ServerReflectionStub(cast(Any, edge.channel._present.channel))
    metadata = (("authorization", f"Bearer {key}"),)
    return aiter(stub.ServerReflectionInfo(requests, metadata=metadata))


async def test_credentials_that_are_tried_at_reflection_count_too(edge: Edge) -> None:
    codes = []
    for _ in range(4):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await anext(reflected(edge, "guess", iter([])))
        codes.append(raised.value.code())
    assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 3 + [grpc.StatusCode.RESOURCE_EXHAUSTED]


async def test_reflection_ends_when_its_credential_is_revoked(edge: Edge) -> None:
    from grpc_reflection.v1alpha import reflection_pb2

    async def asking() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        await asyncio.Event().wait()

    answers = reflected(edge, "acme", asking())
    assert (await anext(answers)).list_services_response.service
    # Until the server waits for the next question, not for this answer to be gone.
    await asyncio.sleep(0.2)
    edge.keeper.forget("acme")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(anext(answers), 5)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_that_nobody_reads_ends_when_its_credential_is_revoked(edge: Edge) -> None:
    from grpc_reflection.v1alpha import reflection_pb2

    async def asking() -> AsyncIterator[Any]:
        for _ in range(3_000):
            name = "weft.auth.v1.ApiKeyService"
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
        await asyncio.Event().wait()

    answers = reflected(edge, "acme", asking())
    await anext(answers)
    streams = edge.around._streams
    # Until what it is sent doesn't fit into the connection any more.
    await asyncio.sleep(1.0)
    assert streams._count == 1
    edge.keeper.forget("acme")
    await eventually(lambda: streams._count == 0)


async def test_those_whose_credential_was_revoked_lock_nobody_out(edge: Edge) -> None:
    streams = [edge.run("a wait", "acme") for _ in range(5)]
    for stream in streams:
        await anext(stream)
    edge.keeper.forget("acme")
    for stream in streams:
        assert isinstance(await refused(anext(stream)), CredentialInvalid)
    assert (await edge.get(NAME, "reader")).collection.name == NAME


async def test_headers_that_can_not_be_credentials_wait_too(edge: Edge) -> None:
    def refusing(authorization: str) -> bool:
        raise CredentialInvalid("the credential isn't valid")

    edge.keeper.knows = refusing  # type: ignore[method-assign]
    for _ in range(3):
        assert isinstance(await refused(edge.get(NAME, "x" * 4_000)), CredentialInvalid)
    assert isinstance(await refused(edge.get(NAME, "x" * 4_000)), RateLimited)


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_health_refuses_what_does_not_parse(edge: Edge, method: str) -> None:
    path = f"/grpc.health.v1.Health/{method}"
    channel: Any = edge.channel._present.channel
    kind = channel.unary_unary if method == "Check" else channel.unary_stream
    call = kind(path)(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (call if method == "Check" else anext(aiter(call)))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_weft_itself_needs_no_credential_in_its_own_process(edge: Edge) -> None:
    stub: Any = VectorServiceStub(cast(Any, LocalChannel(edge.endpoints)))
    assert (await stub.GetCollection(pb.GetCollectionRequest(name=NAME))).collection.name == NAME
    assert edge.service.vectors.calls[0].actor == "system"


def test_a_service_has_no_stub_of_what_the_catalogue_does_not_let_it_call(edge: Edge) -> None:
    channel = MeshChannel(
        edge.endpoints,
        None,
        lambda contract: False,
        SETTINGS,
        caller="tools",
        callees={"weft.vectors.v1.VectorService"},
    )
    VectorServiceStub(cast(Any, channel))
    with pytest.raises(PermissionDenied):
        TurnServiceStub(cast(Any, channel))


def test_limits_are_errors_of_exhaustion() -> None:
    assert issubclass(RateLimited, LimitExceeded)
