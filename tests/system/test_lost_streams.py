"""Streams through a gateway to instances that die or hang: the client hears of it long before
the connection's pings would tell, and what nothing came of yet goes to another."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest

from mesh.control.xds.control_plane import ANNOUNCED_SECONDS
from tests.support.eventually import eventually
from tests.support.nats import running_nats
from tests.support.plans import plan, writing
from tests.support.platform import Platform
from tests.support.turn_client import TurnClient, kind_of
from weft.agents.v1 import agent_pb2
from weft.control.v1 import splits_pb2
from weft.control.v1 import traffic_service_pb2 as pb
from weft.control.v1.traffic_service_pb2_grpc import TrafficServiceStub

pytestmark = pytest.mark.timeout(180)
FRONT = ("auth", "blobs", "control", "gateway", "models", "tools", "vectors")
BEHIND = ("agents", "scheduler", "state")
TURNS = 3


@pytest.fixture
async def parts(tmp_path: Any) -> AsyncIterator[tuple[Platform, Platform, Platform]]:
    """A gateway, and two instances behind it, of versions 1 and 2."""
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(tmp_path))
        started = []
        for name, serves in (("front", FRONT), ("1", BEHIND), ("2", BEHIND)):
            environment = {"NATS_URL": nats.url, "WEFT_RUNTIME_VERSION": name}
            weft = Platform(tmp_path / name, environment, split=False, serves=serves)
            stack.push_async_callback(weft.kill)
            await weft.start()
            started.append(weft)
        front, one, two = started
        yield front, one, two


async def only_two(front: Platform) -> None:
    """Gives version 2 all calls of agents."""
    portions = [splits_pb2.Portion(version="2", weight=100)]
    stub: Any = TrafficServiceStub(front.open_channel)
    request = pb.SetSplitRequest(name="services/agents/split", portions=portions)
    async with asyncio.timeout(30):
        while True:
            try:
                await stub.SetSplit(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                # The gateway may not have heard of the version yet.
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                await asyncio.sleep(0.1)
            else:
                break
    # Instances hear of it by their watch, and give calls by it a moment later.
    await asyncio.sleep(10 * ANNOUNCED_SECONDS)


async def test_a_turn_begins_elsewhere_once_its_version_has_nobody_left(
    parts: tuple[Platform, Platform, Platform],
) -> None:
    front, _, two = parts
    agent = await front.apply("bot", agent_pb2.AgentSpec(instructions="x"))
    sessions = [await front.session(agent) for _ in range(TURNS)]
    await only_two(front)
    turns_ended = 0

    async def turns(session: str) -> None:
        """One after the other. A stream that hears nothing ends at its deadline, and raises."""
        nonlocal turns_ended
        while not ended.is_set():
            turn = TurnClient(session, plan({"text": "done"}))
            while not turn.ended:
                try:
                    await turn.run(front)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.1)
            turns_ended += 1

    ended = asyncio.Event()
    running = [asyncio.create_task(turns(session)) for session in sessions]
    await asyncio.sleep(2)
    await two.kill()
    await asyncio.sleep(5)
    before = turns_ended
    await asyncio.sleep(2)
    ended.set()
    await asyncio.gather(*running)
    assert turns_ended > before + TURNS


async def test_the_stream_of_an_instance_that_hangs_is_cut(
    parts: tuple[Platform, Platform, Platform],
) -> None:
    front, _, two = parts
    agent = await front.apply("bot", agent_pb2.AgentSpec(instructions="x"))
    await only_two(front)
    turn = TurnClient(await front.session(agent), plan(writing(seconds=4)))
    following = asyncio.create_task(turn.run(front))
    await eventually(lambda: "token" in map(kind_of, turn.events), seconds=30)
    two.signal(signal.SIGSTOP)
    try:
        with pytest.raises(grpc.aio.AioRpcError, match="who answered is lost") as cut:
            await following
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
        await turn.run(front)
        assert turn.kinds[-1] == "completed"
    finally:
        two.signal(signal.SIGCONT)
