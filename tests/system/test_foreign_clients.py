"""Clients and a worker that know Weft by its contracts alone: Node's from proto/, grpcurl and
buf curl by reflection. Each does its work against a real platform."""

import asyncio
import json
import os
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.examples import EXAMPLES, GOOGLE_APIS, grpcurl, node_example
from tests.support.platform import TENANT, Platform, platform
from tests.support.processes import ROOT, finished, until
from tests.support.scheduling import DEFAULT, Scheduling, spec
from weft.agents.v1 import agent_pb2
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1 import tasks_pb2

__all__ = ["grpcurl", "node_example"]

BUF = Path(sysconfig.get_path("scripts")) / "buf"
SUCCEEDED = tasks_pb2.TASK_STATE_SUCCEEDED
FAILED = tasks_pb2.TASK_STATE_FAILED
CANCELLED = tasks_pb2.TASK_STATE_CANCELLED
SERVICES = {
    "grpc.health.v1.Health",
    "weft.agents.v1.AgentService",
    "weft.agents.v1.TurnService",
    "weft.auth.v1.ApiKeyService",
    "weft.auth.v1.AuditService",
    "weft.auth.v1.AuthService",
    "weft.auth.v1.RoleService",
    "weft.auth.v1.TenantService",
    "weft.models.v1.ModelService",
    "weft.scheduler.v1.DeadLetterService",
    "weft.scheduler.v1.QueueService",
    "weft.scheduler.v1.TaskService",
    "weft.scheduler.v1.WorkerService",
    "weft.state.v1.SessionService",
    "weft.state.v1.StateService",
    "weft.tools.v1.ToolService",
    "weft.vectors.v1.VectorService",
}
PLAN = json.dumps(
    {
        "steps": [
            {"calls": [{"tool": "calculator", "arguments": {"expression": "6*7"}}]},
            {"text": "It is 42.", "tokens": 3},
        ]
    }
)
# The key is in the environment, not among the arguments, which everybody on the machine sees.
KEYED = ("-expand-headers", "-H", "authorization: Bearer ${WEFT_API_KEY}")
RUN_TURN = "weft.agents.v1.TurnService.RunTurn"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """A platform with the scripted model, and an agent that calculates."""
    folder = tmp_path_factory.mktemp("foreign") / "data"
    async with platform(folder) as running:
        spec = agent_pb2.AgentSpec(tools=[agent_pb2.ToolBinding(tool="calculator")])
        await running.apply("bot", spec)
        yield running


@pytest.fixture
def address(running: Platform, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where it serves; the key is in the environment of what a test runs."""
    monkeypatch.setenv("WEFT_API_KEY", running.key)
    return running.addresses["grpc"]


def ran(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command says; AssertionError with all of it where it fails."""
    done = finished(command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documents(text: str) -> list[dict[str, object]]:
    """JSON documents, one after the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        document, place = decoder.raw_decode(text, place)
        found.append(document)
        while place < len(text) and text[place].isspace():
            place += 1
    return found


def kinds_of(answers: list[dict[str, object]]) -> list[str]:
    """The kinds of the turn events in the answers of RunTurn."""
    events: list[dict[str, object]] = [
        event
        for answer in answers
        for event in answer["events"]  # type: ignore[attr-defined]
    ]
    return [next(kind for kind in event if kind not in ("offset", "time")) for event in events]


class TestNode:
    def test_it_makes_an_agent_runs_a_turn_and_watches_its_events(
        self, node_example: Path, address: str
    ) -> None:
        command = ("node", "client.js", address, ROOT / "proto", GOOGLE_APIS, PLAN)
        said = ran(*command, cwd=node_example)
        lines = documents(said)
        assert lines[0] == {"agent": f"{TENANT}/agents/from-node", "revision": "1"}
        events = [line["turn_event"] for line in lines if "turn_event" in line]
        assert [event for event in events if event != "token"] == [
            "accepted",
            "model_step",
            "tool_call",
            "tool_result",
            "model_step",
            "completed",
        ]
        watched = [line for line in lines if "session_event" in line]
        assert [line["revision"] for line in watched] == ["1", "2", "3", "4", "5", "6"]
        assert watched[0]["session_event"] == "weft.state.v1.SessionCreated"
        assert watched[-1]["session_event"] == "weft.state.v1.TurnCompleted"
        assert lines[-1] == {"error": "NOT_FOUND"}

    def test_its_packages_are_pinned_without_an_address(self) -> None:
        text = (EXAMPLES / "node" / "package-lock.json").read_text()
        assert "://" not in text
        packages = json.loads(text)["packages"]
        assert all(package["integrity"] for name, package in packages.items() if name)


class NodeWorker:
    """`worker.js` in a process; what it says is kept."""

    def __init__(self, folder: Path, address_file: Path, key: str) -> None:
        self.said: list[dict[str, Any]] = []
        self._folder = folder
        self._address_file = address_file
        self._key = key
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it."""
        self._process = await asyncio.create_subprocess_exec(
            *("node", "worker.js", str(self._address_file), str(ROOT / "proto")),
            *(GOOGLE_APIS, DEFAULT, "node-1"),
            cwd=self._folder,
            env={**os.environ, "WEFT_API_KEY": self._key},
            stdout=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read())

    async def until_said(self, **what: object) -> dict[str, Any]:
        """The first document with all of that."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found.extend(said for said in self.said if what.items() <= said.items())
            return bool(found)

        await until(is_there, 30)
        return found[0]

    def terminate(self) -> None:
        """Asks it to end."""
        assert self._process is not None
        self._process.terminate()

    async def gone(self) -> int:
        """Its exit code once it has ended by itself."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), 30)

    async def kill(self) -> None:
        """Ends it where it still runs."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.said.append(json.loads(line))


class TestNodeWorker:
    @pytest.fixture
    async def scheduling(self, tmp_path: Path) -> AsyncIterator[Scheduling]:
        """A scheduler of this test's own, since it is killed."""
        settings = {"WEFT_SCHEDULER_HEARTBEAT_SECONDS": "0.1"}
        async with platform(tmp_path / "data", **settings) as weft:
            yield Scheduling(weft)

    @pytest.fixture
    async def worker(
        self, node_example: Path, scheduling: Scheduling, tmp_path: Path
    ) -> AsyncIterator[NodeWorker]:
        self.address_file = tmp_path / "address"
        self.tell_address(scheduling)
        worker = NodeWorker(node_example, self.address_file, scheduling.platform.key)
        try:
            await worker.start()
            await worker.until_said(welcome="node-1")
            yield worker
        finally:
            await worker.kill()

    def tell_address(self, scheduling: Scheduling) -> None:
        """Says where the scheduler is by now."""
        fresh = self.address_file.with_suffix(".new")
        fresh.write_text(scheduling.platform.addresses["grpc"])
        fresh.replace(self.address_file)

    async def test_it_runs_tasks_and_reports_what_became_of_them(
        self, scheduling: Scheduling, worker: NodeWorker
    ) -> None:
        tasks = [await scheduling.submit(spec(payload=b"%d" % number)) for number in range(20)]
        for number, task in enumerate(tasks):
            done = await scheduling.done(task.name)
            assert (done.state, done.result) == (SUCCEEDED, b"%d" % number)
            assert done.attempts[0].worker == "node-1"
        refused = await scheduling.done((await scheduling.submit(spec("refuse"))).name)
        assert refused.state == FAILED
        assert (refused.attempts[0].code, refused.reason) == (3, "not such a one")
        assert (await scheduling.stats()).dead_letters == 1

    async def test_it_is_heard_of_and_hears_that_a_task_is_cancelled(
        self, scheduling: Scheduling, worker: NodeWorker
    ) -> None:
        task = await scheduling.submit(spec("wait", b"600000"))
        await scheduling.until(task.name, lambda each: each.progress == 0.5)
        request = task_pb.CancelTaskRequest(name=task.name, reason="enough")
        await scheduling.tasks.CancelTask(request)
        done = await scheduling.done(task.name)
        assert (done.state, done.reason) == (CANCELLED, "enough")
        await worker.until_said(recorded=task.name, stale=False)

    async def test_it_ends_what_it_has_before_it_goes(
        self, scheduling: Scheduling, worker: NodeWorker
    ) -> None:
        task = await scheduling.submit(spec("wait", b"500"))
        await worker.until_said(begun=task.name)
        worker.terminate()
        assert await worker.gone() == 0
        assert (await scheduling.get(task.name)).state == SUCCEEDED
        left = await scheduling.submit(spec())
        assert left.reason == "no worker is attached"

    async def test_it_goes_on_with_its_task_when_its_scheduler_was_killed(
        self, scheduling: Scheduling, worker: NodeWorker
    ) -> None:
        goes_on = await scheduling.submit(spec("wait", b"4000"))
        # Done while nobody is there to hear of it.
        unheard = await scheduling.submit(spec("wait", b"1000"))
        for task in (goes_on, unheard):
            await worker.until_said(begun=task.name)
        await scheduling.platform.kill()
        await worker.until_said(detached="UNAVAILABLE")
        worker.said.clear()
        await scheduling.platform.start()
        self.tell_address(scheduling)
        again = await worker.until_said(welcome="node-1")
        assert set(again["goes_on_with"]) == {goes_on.name, unheard.name}
        for task in (goes_on, unheard):
            done = await scheduling.done(task.name)
            assert (done.state, done.result) == (SUCCEEDED, task.spec.payload)
            assert [each.worker for each in done.attempts] == ["node-1"]


class TestGrpcurl:
    def test_it_lists_what_is_there(self, grpcurl: Path, address: str) -> None:
        listed = ran(grpcurl, *KEYED, "-plaintext", address, "list").split()
        assert set(listed) >= SERVICES | {"grpc.reflection.v1.ServerReflection"}
        methods = ran(grpcurl, *KEYED, "-plaintext", address, "list", "weft.agents.v1.TurnService")
        assert RUN_TURN in methods.split()

    @pytest.mark.parametrize(
        ("symbol", "expected"),
        [
            (RUN_TURN, "returns ( stream .weft.agents.v1.RunTurnResponse )"),
            ("weft.agents.v1.TurnService", "rpc RunTurn"),
            ("weft.agents.v1.RunTurnRequest", "message RunTurnRequest"),
            ("weft.state.v1.TurnStatus", "TURN_STATUS_COMPLETED"),
            ("grpc.health.v1.Health.Check", "HealthCheckResponse"),
            ("grpc.reflection.v1.ServerReflection", "rpc ServerReflectionInfo"),
            ("", "weft.vectors.v1.VectorService is a service"),
        ],
    )
    def test_it_describes_services_methods_and_messages(
        self, grpcurl: Path, address: str, symbol: str, expected: str
    ) -> None:
        said = ran(
            grpcurl, *KEYED, "-plaintext", address, "describe", *([symbol] if symbol else [])
        )
        assert expected in said

    def test_it_is_told_that_a_symbol_is_unknown(self, grpcurl: Path, address: str) -> None:
        done = finished([grpcurl, *KEYED, "-plaintext", address, "describe", "no.such.Thing"])
        assert done.returncode != 0
        assert "not found" in done.stderr

    async def test_it_calls_and_streams(
        self, grpcurl: Path, address: str, running: Platform
    ) -> None:
        session = await running.session(f"{TENANT}/agents/bot")
        request = json.dumps({"session": session, "input": PLAN})
        method = "weft.agents.v1.TurnService/RunTurn"
        answers = documents(ran(grpcurl, *KEYED, "-plaintext", "-d", request, address, method))
        assert kinds_of(answers)[0] == "accepted"
        assert kinds_of(answers)[-1] == "completed"
        listed = documents(
            ran(
                *(grpcurl, *KEYED, "-plaintext", "-d", json.dumps({"name": session}), address),
                "weft.state.v1.SessionService/GetSession",
            )
        )
        assert listed[0]["session"]["revision"] == "6"  # type: ignore[index]

    def test_errors_come_with_their_details(self, grpcurl: Path, address: str) -> None:
        request = json.dumps({"name": f"{TENANT}/agents/nobody"})
        method = "weft.agents.v1.AgentService/GetAgent"
        done = finished([grpcurl, *KEYED, "-plaintext", "-d", request, address, method])
        assert done.returncode != 0
        assert "NotFound" in done.stderr
        assert "RESOURCE_NOT_FOUND" in done.stderr


class TestBufCurl:
    @pytest.fixture(autouse=True)
    def headers(self, tmp_path: Path, running: Platform) -> None:
        """The file from which it takes the key."""
        self.header_file = tmp_path / "headers"
        self.header_file.write_text(f"authorization: Bearer {running.key}\n")

    def curl(self, address: str, *arguments: str) -> list[str | Path]:
        *options, path = arguments
        plain = ("curl", "--protocol", "grpc", "--http2-prior-knowledge")
        keyed = ["-H", f"@{self.header_file}"]
        if "--reflect=false" not in options:
            keyed += ["--reflect-header", f"@{self.header_file}"]
        return [BUF, *plain, *keyed, *options, f"http://{address}{path}"]

    @pytest.mark.parametrize("protocol", ["grpc-v1", "grpc-v1alpha"])
    def test_it_lists_what_is_there_by_both_reflections(self, address: str, protocol: str) -> None:
        listing = ("--reflect-protocol", protocol, "--list-services", "")
        assert set(ran(*self.curl(address, *listing)).split()) >= SERVICES
        methods = ran(*self.curl(address, "--reflect-protocol", protocol, "--list-methods", ""))
        assert RUN_TURN.replace("Service.", "Service/") in methods.split()

    async def test_it_calls_and_streams(self, address: str, running: Platform) -> None:
        session = await running.session(f"{TENANT}/agents/bot")
        request = json.dumps({"session": session, "input": PLAN})
        method = "/weft.agents.v1.TurnService/RunTurn"
        answers = documents(ran(*self.curl(address, "-d", request, method)))
        assert kinds_of(answers)[0] == "accepted"
        assert kinds_of(answers)[-1] == "completed"

    def test_it_needs_no_reflection_with_the_contracts(self, address: str) -> None:
        request = json.dumps({"parent": TENANT})
        method = "/weft.agents.v1.AgentService/ListAgents"
        options = ("--schema", str(ROOT), "--reflect=false", "-d", request, method)
        if not (ROOT / "build" / "googleapis").exists():
            pytest.skip("google/api is put under build/ by `make check`")
        (answer,) = documents(ran(*self.curl(address, *options)))
        assert "agents" in answer

    def test_errors_come_with_their_code(self, address: str) -> None:
        request = json.dumps({"parent": "tenants/Not A Tenant"})
        method = "/weft.agents.v1.AgentService/ListAgents"
        done = finished(self.curl(address, "-d", request, method))
        assert done.returncode != 0
        assert "invalid_argument" in done.stdout + done.stderr
