"""Clients that nobody here wrote, in Go and in Node, dial `xds:///weft` and follow splits and
failovers under load: the examples, whose calls are made by gRPC's own xDS clients. First where
only the control plane is Weft's, then in a whole deployment."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.control.xds.ads import AdsServer
from mesh.control.xds.bootstrap import VARIABLE, bootstrap
from mesh.control.xds.mesh_view import MeshView, Portion, RoutedService
from tests.support.examples import GOOGLE_APIS, go_example, node_example
from tests.support.platform import TENANT
from tests.support.processes import ROOT, until
from tests.support.weft_up import WeftUp, weft_up
from tests.support.xds_mesh import Backend, backends
from weft.control.v1 import instances_pb2
from weft.tools.v1 import tool_service_pb2

__all__ = ["go_example", "node_example"]

pytestmark = [pytest.mark.timeout(600), pytest.mark.alone]
PER_SECOND = 200
SECONDS_MAX = 30.0
TOOLS = RoutedService("tools", (tool_service_pb2.DESCRIPTOR.services_by_name["ToolService"],))


class ExampleClient:
    """An example that calls all the time, and says who answered."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.failed: Counter[str] = Counter()
        self._process = process

    async def lap(self) -> Counter[str]:
        """Who answered how often since the lap before; what failed is kept."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), SECONDS_MAX)
        assert line, "the example ended"
        said = json.loads(line)
        self.failed.update(said["failed"])
        return Counter(said["answered"])

    async def until(self, *targets: str) -> None:
        """Returns once these have answered all calls of a lap, each of them some."""
        seen: Counter[str] = Counter()
        async with asyncio.timeout(SECONDS_MAX):
            while set(seen) != set(targets):
                seen = await self.lap()

    async def answered(self, calls: int) -> Counter[str]:
        """Who answered so many calls at least."""
        seen: Counter[str] = Counter()
        while seen.total() < calls:
            seen += await self.lap()
        return seen


@asynccontextmanager
async def example(
    command: Sequence[str | Path], bootstrapped: str, key: str = ""
) -> AsyncIterator[ExampleClient]:
    """The example that the command runs, asking whom its bootstrap says."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env={**os.environ, VARIABLE: bootstrapped, "WEFT_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield ExampleClient(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Routing:
    """A control plane, and an example that asks it."""

    def __init__(self, ads: AdsServer, asks: str, command: Sequence[str | Path]) -> None:
        self._ads = ads
        self._asks = asks
        self._command = command

    def set(self, *instances: instances_pb2.Instance, **fields: object) -> None:
        """What the control plane knows from now on."""
        for instance in instances:
            instance.services[:] = ["tools"]
        self._ads.set(MeshView((TOOLS,), instances, **fields))  # type: ignore[arg-type]

    def calling(self) -> AbstractAsyncContextManager[ExampleClient]:
        """The example at work."""
        return example(self._command, self._asks)


@pytest.fixture(scope="module")
async def four() -> AsyncIterator[dict[str, Backend]]:
    async with backends("a", "b", "c", "d") as started:
        yield started


@pytest.fixture(params=["go", "node"])
def program(request: pytest.FixtureRequest) -> list[str | Path]:
    """The command of an example, without what it calls."""
    if request.param == "go":
        return [request.getfixturevalue("go_example")]
    mesh = request.getfixturevalue("node_example") / "mesh.js"
    return ["node", mesh, ROOT / "proto", GOOGLE_APIS]


@pytest.fixture
async def routing(program: list[str | Path]) -> AsyncIterator[Routing]:
    ads = AdsServer()
    port = await ads.start("127.0.0.1:0")
    asks = bootstrap([f"127.0.0.1:{port}"], node="an-example", zone="east")
    yield Routing(ads, asks, [*program, "tenants/acme", str(PER_SECOND)])
    await ads.stop()


async def test_it_follows_a_split(routing: Routing, four: dict[str, Backend]) -> None:
    blue = [four[name].instance(version="blue") for name in "ab"]
    green = [four[name].instance(version="green") for name in "cd"]

    def split(blue_weight: int) -> None:
        portions = (Portion("blue", blue_weight), Portion("green", 100 - blue_weight))
        routing.set(*blue, *green, splits={"tools": portions})

    split(100)
    async with routing.calling() as client:
        await client.until(four["a"].target, four["b"].target)
        for _ in range(3):
            split(0)
            await client.until(four["c"].target, four["d"].target)
            split(100)
            await client.until(four["a"].target, four["b"].target)
        split(90)
        await client.until(*(each.target for each in four.values()))
        answered = await client.answered(1_000)
    assert client.failed == {}
    canary = answered[four["c"].target] + answered[four["d"].target]
    # Five standard deviations.
    assert 0.05 <= canary / answered.total() <= 0.15


async def test_it_goes_to_another_zone_when_its_own_is_lost_and_comes_back(
    routing: Routing, four: dict[str, Backend]
) -> None:
    zones = {"a": "east", "b": "east", "c": "west"}
    routing.set(*(four[name].instance(zone=zone) for name, zone in zones.items()))
    async with routing.calling() as client:
        await client.until(four["a"].target, four["b"].target)
        await four["a"].kill()
        await client.until(four["b"].target)
        await four["b"].kill()
        await client.until(four["c"].target)
        await asyncio.gather(four["a"].start(), four["b"].start())
        await client.until(four["a"].target, four["b"].target)
    assert client.failed == {}


async def test_it_notices_no_process_of_a_deployment_that_is_killed(
    program: list[str | Path], tmp_path: Path
) -> None:
    options = ("--processes", "2", "--port", "0", "--http-port", "0", "--data-dir")
    with weft_up(tmp_path / "log", *options, tmp_path / "data") as up:
        printed = up.weft("mesh", "bootstrap", "--node", "an-example")
        assert printed.code == 0, printed.err
        processes: Any = up.said["processes"]
        load = (TENANT, str(PER_SECOND))
        async with example([*program, *load], printed.out, str(up.said["api_key"])) as client:
            for process in reversed(processes):
                await client.until(*targets(up))
                os.kill(process["pid"], signal.SIGKILL)
                # Started again, it listens elsewhere.
                before = set(targets(up))
                await until(lambda: len(set(targets(up)) - before) == 1, SECONDS_MAX)  # noqa: B023
            await client.until(*targets(up))
    assert client.failed == {}


def targets(up: WeftUp) -> list[str]:
    """Where its processes take calls."""
    listed = up.weft("mesh", "instances", "-o", "json")
    assert listed.code == 0, listed.err
    return [each["target"] for each in listed.data if each["state"] == "INSTANCE_STATE_SERVING"]
