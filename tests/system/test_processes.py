"""A deployment in many processes: replicas behind one port, and services each in its own."""

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from services.catalog import CATALOGUE
from tests.support.examples import grpcurl
from tests.support.plans import plan, writing
from tests.support.platform import TENANT, Platform
from tests.support.processes import finished
from tests.support.scheduling import Scheduling, spec
from tests.support.turn_client import TurnClient, kind_of
from tests.support.weft_up import WeftUp, weft, weft_up
from weft.agents.v1 import agent_pb2, agent_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.control.v1 import (
    instances_pb2,
    mesh_service_pb2,
    registry_service_pb2,
    splits_pb2,
    traffic_service_pb2,
)
from weft.control.v1.mesh_service_pb2_grpc import MeshServiceStub
from weft.control.v1.registry_service_pb2_grpc import RegistryServiceStub
from weft.control.v1.traffic_service_pb2_grpc import TrafficServiceStub
from weft.scheduler.v1 import tasks_pb2
from weft.state.v1 import session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

__all__ = ["grpcurl"]

pytestmark = pytest.mark.timeout(180)
SECONDS_MAX = 60.0
SUM = {"calls": [{"tool": "calculator", "arguments": {"expression": "6 * 7"}}]}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeftUp]:
    folder = tmp_path_factory.mktemp("replicas")
    options = ("--processes", "2", "--port", "0", "--http-port", "0")
    with weft_up(folder / "log", *options, "--data-dir", folder / "data") as up:
        yield up


def pids(up: WeftUp) -> list[int]:
    said: Any = up.said["processes"]
    return [process["pid"] for process in said]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def serving(up: WeftUp) -> int:
    """How many replicas take calls."""
    instances = up.weft("mesh", "instances", "-o", "json")
    assert instances.code == 0, instances.err
    return sum(each["state"] == "INSTANCE_STATE_SERVING" for each in instances.data)


def test_replicas_share_a_port_and_are_started_again(replicas: WeftUp) -> None:
    assert len(pids(replicas)) == 2
    assert serving(replicas) == 2
    for pid in pids(replicas):
        os.kill(pid, signal.SIGKILL)
        until(lambda: not runs(pid))  # noqa: B023 - called in this round
        # The other one answers at the same address, whether this one is there again or not;
        # a connection may still go to one whose last threads end.
        until(lambda: replicas.weft("whoami").code == 0)
        until(lambda: serving(replicas) == 2)
    assert "process_restarted" in replicas.log


def test_who_ends_it_ends_them_all(tmp_path: Path) -> None:
    options = ("--processes", "2", "--port", "0", "--http-port", "0", "--data-dir")
    for number, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        with weft_up(tmp_path / "log", *options, tmp_path / "data") as up:
            assert up.stop(number) == code
            for pid in pids(up):
                until(lambda: not runs(pid))  # noqa: B023 - called in this round


def test_a_part_that_can_not_start_is_told_and_nothing_stays(tmp_path: Path) -> None:
    options = ("--processes", "2", "--port", "0", "--http-port", "0", "--data-dir")
    ran = weft("up", *options, tmp_path / "data", WEFT_RUNTIME_ADVERTISED_HOST="x" * 300)
    assert ran.code not in (0, None)
    assert "advertised_host" in ran.err
    assert not (tmp_path / "data" / "run" / "address.json").exists()


@pytest.mark.parametrize(
    ("services", "environment", "said"),
    [
        (["state"], {}, "NATS_URL isn't set"),
        (["state", "nonsense"], {"NATS_URL": "nats://127.0.0.1:1"}, "no service nonsense"),
    ],
)
def test_what_can_not_be_served_is_said(
    tmp_path: Path, services: list[str], environment: dict[str, str], said: str
) -> None:
    ran = weft("serve", *services, "--data-dir", tmp_path / "data", **environment)
    assert ran.code == (2 if "nonsense" in services else 1)
    assert said in ran.err


def test_a_replica_that_hangs_is_told_and_replaced(tmp_path: Path) -> None:
    options = ("--processes", "2", "--port", "0", "--http-port", "0", "--data-dir")
    hung = {"WEFT_RUNTIME_HUNG_SECONDS": "4"}
    with weft_up(tmp_path / "log", *options, tmp_path / "data", **hung) as up:
        pid = pids(up)[1]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: "process 2" in waiting_for(up))
        until(lambda: not runs(pid))
        until(lambda: waiting_for(up) == [])
        assert "process_hangs" in up.log
        assert serving(up) == 2


def waiting_for(up: WeftUp) -> list[str]:
    """The parts that aren't ready, as the supervisor says."""
    try:
        with urllib.request.urlopen(f"http://{up.said['http']}/readyz", timeout=10) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    found: list[str] = json.loads(body)["waiting_for"]
    return found


@pytest.fixture(scope="module")
async def split(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Each service in a process of its own."""
    folder = tmp_path_factory.mktemp("split")
    running = Platform(folder / "data", split=True)
    try:
        await running.start()
        yield running
    finally:
        await running.kill()


async def test_a_turn_goes_through_all_of_them(split: Platform) -> None:
    binding = agent_pb2.ToolBinding(tool="calculator")
    agent = await split.apply("splitter", agent_pb2.AgentSpec(tools=[binding]))
    client = TurnClient(await split.session(agent), plan(SUM, writing(seconds=0.2)))
    await client.run(split)
    assert kind_of(client.events[-1]) == "completed"


def test_grpcurl_lists_describes_and_calls_through_the_gateway(
    split: Platform, grpcurl: Path
) -> None:
    def said(*arguments: str) -> str:
        # The key is in the environment: everybody sees arguments.
        keyed = (grpcurl, "-expand-headers", "-H", "authorization: Bearer ${WEFT_API_KEY}")
        key = {**os.environ, "WEFT_API_KEY": split.key}
        done = finished([*keyed, "-plaintext", *arguments], environment=key)
        assert done.returncode == 0, done.stderr
        return done.stdout

    address = split.addresses["grpc"]
    contracts = {each.full_name for entry in CATALOGUE for each in entry.contracts}
    assert set(said(address, "list").split()) >= contracts
    method = "weft.tools.v1.ToolService.ListTools"
    assert "rpc ListTools" in said(address, "describe", method)
    request = json.dumps({"parent": TENANT})
    listed = json.loads(said("-d", request, address, method))
    assert "tenants/default/tools/calculator" in {tool["name"] for tool in listed["tools"]}


async def test_a_caller_is_judged_where_the_call_is_handed_to(split: Platform) -> None:
    queue = Scheduling(split, f"{TENANT}/queues/turns")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await queue.submit(spec("echo"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "agent-turn only" in (refused.value.details() or "")
    agents = AgentServiceStub(split.open_channel)
    with pytest.raises(grpc.aio.AioRpcError) as foreign:
        await agents.GetAgent(agent_service_pb2.GetAgentRequest(name="tenants/no/agents/x"))
    assert foreign.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_split_of_an_agent_is_followed_where_its_sessions_are_made(
    split: Platform,
) -> None:
    agent = await split.apply("drawn", agent_pb2.AgentSpec(instructions="1"))
    agents: Any = AgentServiceStub(split.open_channel)
    second = agent_pb2.Agent(name=agent, spec=agent_pb2.AgentSpec(instructions="2"))
    await agents.UpdateAgent(agent_service_pb2.UpdateAgentRequest(agent=second), timeout=20)
    traffic: Any = TrafficServiceStub(split.open_channel)
    name, sessions = f"{agent}/split", SessionServiceStub(split.open_channel)
    for revision in (1, 2):
        portions = [splits_pb2.Portion(agent_revision=revision, weight=1)]
        request = traffic_service_pb2.SetSplitRequest(name=name, portions=portions)
        await traffic.SetSplit(request, timeout=20)
        made = await sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(parent=agent), timeout=20
        )
        assert made.session.agent_revision == revision


async def test_tasks_and_their_workers_come_through_the_gateway(split: Platform) -> None:
    queue = Scheduling(split, f"{TENANT}/queues/default")

    async def echo(task: Any) -> bytes:
        return bytes(task.payload)

    async with queue.working({"echo": echo}):
        tasks = await asyncio.gather(*(queue.submit(spec(payload=b"x")) for _ in range(50)))
        for task in tasks:
            assert (await queue.done(task.name)).state == tasks_pb2.TASK_STATE_SUCCEEDED


async def test_every_process_is_operated_through_the_gateway(split: Platform) -> None:
    mesh = MeshServiceStub(split.open_channel)
    status = await mesh.GetMeshStatus(mesh_service_pb2.GetMeshStatusRequest())
    assert len(status.instances) > 5
    (state,) = (each for each in status.instances if list(each.services) == ["state"])
    for each in status.instances:
        told = await mesh.DumpInstance(mesh_service_pb2.DumpInstanceRequest(name=each.name))
        assert told.instance.name == each.name
        if "gateway" in each.services:
            # All else is elsewhere, so it knows where.
            assert {found.state for found in told.xds_resources} == {"ACKED"}
    drain = mesh_service_pb2.DrainInstanceRequest(name=state.name)
    with pytest.raises(grpc.aio.AioRpcError) as last:
        await mesh.DrainInstance(drain)
    assert last.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    drain.force = True
    drained = await mesh.DrainInstance(drain)
    assert drained.instance.state == instances_pb2.INSTANCE_STATE_DRAINING
    undrain = mesh_service_pb2.UndrainInstanceRequest(name=state.name)
    undrained = await mesh.UndrainInstance(undrain)
    assert undrained.instance.state == instances_pb2.INSTANCE_STATE_SERVING


async def test_a_process_that_dies_costs_no_call_that_may_run_twice(split: Platform) -> None:
    registry = RegistryServiceStub(split.open_channel)
    agents = AgentServiceStub(split.open_channel)
    wanted = agent_service_pb2.ListAgentsRequest(parent=TENANT)
    listed = await registry.ListInstances(registry_service_pb2.ListInstancesRequest())
    (target,) = (each.target for each in listed.instances if "agents" in each.services)
    began = asyncio.Event()

    async def calls(count: int) -> None:
        for _ in range(count):
            await agents.ListAgents(wanted, timeout=20)
            began.set()

    async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as group:
        calling = [group.create_task(calls(200)) for _ in range(4)]
        await began.wait()
        os.kill(pid_at(target), signal.SIGKILL)
        await asyncio.wait(calling)


def pid_at(target: str) -> int:
    """The process that listens there."""
    port = int(target.rpartition(":")[2])
    sockets = {
        line.split()[9]
        for table in ("tcp", "tcp6")  # gRPC listens on mapped addresses
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    }
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (folder / "fd").iterdir()]
        except OSError:
            continue
        if any(link == f"socket:[{each}]" for link in links for each in sockets):
            return int(folder.name)
    raise AssertionError(f"nobody listens at {target}")
