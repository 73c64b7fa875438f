"""Methods that take a stream of requests, on both paths; no contract has one yet."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mesh import errors
from mesh.call import Call, current_call
from mesh.errors import FieldViolation
from mesh.rpc.channel import RemoteChannel
from mesh.rpc.local import LocalChannel, StubChannel
from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from tests.support.edge import TESTER, Doorkeeper, pipeline
from tests.support.eventually import eventually
from tests.support.relay import relayed
from weft.options.v1 import options_pb2

SERVICE = "weft.test.numbers.NumberService"
SETTINGS = RpcSettings()


def number_class() -> Any:
    """Declares the contract: Sum(stream Number) and Double(stream Number) -> stream."""
    file = descriptor_pb2.FileDescriptorProto(
        name="weft/test/numbers.proto", package="weft.test.numbers", syntax="proto3"
    )
    value = file.message_type.add(name="Number").field.add(name="value", number=1, type=3, label=1)
    value.options.Extensions[options_pb2.bounds].maximum = 100
    service = file.service.add(name="NumberService")
    for name, streams in (("Sum", False), ("Double", True)):
        method = service.method.add(
            name=name,
            input_type=".weft.test.numbers.Number",
            output_type=".weft.test.numbers.Number",
            client_streaming=True,
            server_streaming=streams,
        )
        policy = method.options.Extensions[options_pb2.policy]
        policy.permission, policy.platform = "test.count", True
    pool: Any = descriptor_pool.Default
    pool().AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool().FindMessageTypeByName("weft.test.numbers.Number"))


Number = number_class()


class Numbers:
    async def sum(self, requests: AsyncIterator[Any], call: Call) -> Any:
        assert current_call.get() is call
        return Number(value=sum([request.value async for request in requests]))

    async def double(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        async for request in requests:
            assert current_call.get() is call
            yield Number(value=2 * request.value)


@pytest.fixture(params=["local", "wire"])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[StubChannel]:
    endpoints = bind({SERVICE: Numbers()}, pipeline(SETTINGS), SETTINGS)
    if request.param == "local":
        yield LocalChannel(endpoints)
        return
    server = RpcServer(endpoints, SETTINGS, pipeline(SETTINGS))
    remote = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", SETTINGS)
    yield remote
    await remote.close()
    await server.stop()


async def numbers(*values: int) -> AsyncIterator[Any]:
    for value in values:
        yield Number(value=value)


async def test_a_stream_of_requests_has_one_answer(channel: StubChannel) -> None:
    total = await channel.callable_of(f"/{SERVICE}/Sum")(numbers(1, 2, 3))
    assert total.value == 6


async def test_a_stream_of_requests_has_a_stream_of_answers(channel: StubChannel) -> None:
    answers = channel.callable_of(f"/{SERVICE}/Double")(numbers(1, 2))
    assert [answer.value async for answer in answers] == [2, 4]


async def test_each_request_of_a_stream_is_validated(channel: StubChannel) -> None:
    answers = channel.callable_of(f"/{SERVICE}/Double")(numbers(1, 101))
    assert (await anext(answers)).value == 2
    with pytest.raises(errors.InvalidArgument) as raised:
        await anext(answers)
    assert raised.value.violations == (FieldViolation("value", "must be at most 100"),)


@pytest.mark.parametrize("method", ["Sum", "Double"])
async def test_what_a_client_streams_ends_when_its_credential_is_revoked(method: str) -> None:
    keeper = Doorkeeper(key=TESTER)
    around = pipeline(SETTINGS, keeper)
    server = RpcServer(bind({SERVICE: Numbers()}, around, SETTINGS), SETTINGS, around)
    channel = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", SETTINGS)
    sent, more = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[Any]:
        yield Number(value=1)
        sent.set()
        await more.wait()
        yield Number(value=2)

    call = channel.callable_of(f"/{SERVICE}/{method}")(
        slowly(), metadata=[("authorization", "Bearer key")], timeout=10
    )
    answer = asyncio.ensure_future(anext(call) if method == "Double" else _of(call))
    await asyncio.wait_for(sent.wait(), 5)
    if method == "Double":
        await answer
        answer = asyncio.ensure_future(anext(call))
    await asyncio.sleep(0.05)
    keeper.forget("key")
    with pytest.raises(errors.CredentialInvalid):
        await asyncio.wait_for(answer, 5)
    more.set()
    await channel.close()
    await server.stop()


async def test_half_of_what_a_client_streams_is_cancelled_not_taken_for_all() -> None:
    around, heard = pipeline(SETTINGS), asyncio.Event()

    class Three:
        async def sum(self, requests: AsyncIterator[Any], call: Call) -> Any:
            async for _ in requests:
                heard.set()
            raise errors.InvalidArgument.of("values", "must be three")

    server = RpcServer(bind({SERVICE: Three()}, around, SETTINGS), SETTINGS, around)
    channel = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", SETTINGS)

    async def slowly() -> AsyncIterator[Any]:
        yield Number(value=1)
        await asyncio.Event().wait()

    call = asyncio.ensure_future(channel.callable_of(f"/{SERVICE}/Sum")(slowly()))
    await asyncio.wait_for(heard.wait(), 5)
    call.cancel()
    counts = around._metrics.method(SERVICE, "Sum").counts
    await eventually(lambda: bool(counts))
    assert counts == {"CANCELLED": 1}
    await channel.close()
    await server.stop()


async def _of(call: Any) -> Any:
    return await call


async def test_streams_of_clients_keep_no_calls_out() -> None:
    bounds = RpcSettings(concurrent_calls_max=1, concurrent_streams_max=2)
    around = pipeline(bounds)
    server = RpcServer(bind({SERVICE: Numbers()}, around, bounds), bounds, around)
    channel = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", bounds)
    more = asyncio.Event()

    async def slowly() -> AsyncIterator[Any]:
        yield Number(value=1)
        await more.wait()

    calls = [asyncio.ensure_future(channel.callable_of(f"/{SERVICE}/Sum")(slowly())) for _ in "ab"]
    await eventually(lambda: around._streams._count == 2)
    assert around._calls._count == 0
    with pytest.raises(errors.RateLimited):
        await channel.callable_of(f"/{SERVICE}/Sum")(numbers(1))
    more.set()
    assert [(await call).value for call in calls] == [1, 1]
    await channel.close()
    await server.stop()


@pytest.mark.parametrize("method", ["Sum", "Double"])
async def test_a_connection_that_breaks_under_a_stream_of_requests_is_unavailable(
    method: str,
) -> None:
    """However far it came: half of a message, or in the midst of being sent."""
    around = pipeline(SETTINGS)
    server = RpcServer(bind({SERVICE: Numbers()}, around, SETTINGS), SETTINGS, around)
    behind = await server.start("127.0.0.1", 0)

    async def ceaseless() -> AsyncIterator[Any]:
        while True:
            yield Number(value=1)
            await asyncio.sleep(0)

    for attempt in range(20):
        async with relayed(behind) as relay:
            channel = RemoteChannel(f"127.0.0.1:{relay.port}", SETTINGS)
            begun = channel.callable_of(f"/{SERVICE}/{method}")(ceaseless(), timeout=10)
            call = asyncio.ensure_future(_last(begun) if method == "Double" else _of(begun))
            await relay.until_passed(2_000 + 97 * attempt)
            relay.cut()
            with pytest.raises(errors.Unavailable):
                await asyncio.wait_for(call, 5)
            await channel.close()
    await server.stop()


async def _last(messages: Any) -> Any:
    return [message async for message in messages][-1]
