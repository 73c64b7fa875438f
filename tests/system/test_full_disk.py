"""A disk that has no room left, on a small file system of its own."""

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import grpc.aio
import orjson

from tests.support.plans import plan, writing
from tests.support.platform import SPLIT, Platform, platform
from tests.support.small_disk import fill, small_disk
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2
from weft.state.v1 import state_service_pb2

__all__ = ["small_disk"]
SESSIONS_MAX = 500
READY_SECONDS_MAX = 30.0


async def ready(http: str) -> bool:
    """Whether all parts are ready; where not, only the event store isn't, nor, in the split
    topology, the processes that stand on it."""

    def get() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://{http}/readyz", timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    status, body = await asyncio.to_thread(get)
    waiting = orjson.loads(body)["waiting_for"]
    if SPLIT:
        # They are asked one after the other, and so may wait a moment longer than it.
        assert {each for each in waiting if not each.startswith("process ")} <= {"events"}
    else:
        assert status == 200 or waiting == ["events"]
    return status == 200


async def sessions_until_refused(
    running: Platform, agent: str
) -> tuple[list[str], grpc.aio.AioRpcError]:
    sessions: list[str] = []
    while len(sessions) < SESSIONS_MAX:
        try:
            sessions.append(await running.session(agent))
        except grpc.aio.AioRpcError as error:
            return sessions, error
    raise AssertionError("the disk isn't full")


async def test_a_full_disk_is_told_and_passes_by_itself(small_disk: Path) -> None:
    async with platform(small_disk / "data") as running:
        agent = await running.apply("bot", agent_pb2.AgentSpec())
        slow = TurnClient(await running.session(agent), plan(writing(seconds=3.0)))
        await slow.until(running, "token")
        fill(small_disk / "filler")

        sessions, refused = await sessions_until_refused(running, agent)
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.details() == "the disk of the event store is full"
        assert not await ready(running.addresses["http"])

        (small_disk / "filler").unlink()
        # The turn whose end found no room goes on by itself.
        await slow.run(running)
        assert slow.kinds[-1] == "completed"
        async with asyncio.timeout(READY_SECONDS_MAX):
            while SPLIT and not await ready(running.addresses["http"]):  # noqa: ASYNC110 - HTTP
                await asyncio.sleep(0.1)
        assert await ready(running.addresses["http"])
        for session in (slow.session, *sessions):
            request = state_service_pb2.VerifyReplayRequest(name=session)
            assert (await running.state.VerifyReplay(request, timeout=10)).matches
        stopped = await running.stop()
        assert stopped == 0, running.log_file.read_text()
        await running.start()
        await TurnClient(slow.session, "after a restart").run(running)
