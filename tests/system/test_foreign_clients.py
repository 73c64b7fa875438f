"""Clients that know Weft by its contracts alone: Node's from proto/, grpcurl and buf curl by
reflection. Each does its work against a real platform."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.platform import TENANT, Platform, platform
from tests.support.processes import ROOT, finished
from weft.agents.v1 import agent_pb2

GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
GRPCURL_BINARY = ROOT / "build" / "grpcurl" / "v1.9.4" / "grpcurl"
BUF = Path(sysconfig.get_path("scripts")) / "buf"
EXAMPLE = ROOT / "tests" / "examples" / "node"
OFFLINE = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "ECONNRESET")
INSTALL_SECONDS_MAX = 500
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


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The tool, built once from its sources; skips where that isn't possible."""
    if GRPCURL_BINARY.exists():
        return GRPCURL_BINARY
    go = shutil.which("go")
    if go is None:
        pytest.skip("grpcurl is built with Go, which isn't installed")
    done = subprocess.run(
        [go, "install", GRPCURL],
        env={**os.environ, "GOBIN": str(GRPCURL_BINARY.parent)},
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"grpcurl can't be built here: {done.stderr.strip()[-300:]}")
    return GRPCURL_BINARY


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages; skips without node or a registry."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm aren't installed")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = finished([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)
    if any(word in done.stderr for word in OFFLINE):
        pytest.skip("npm can't reach its registry")
    assert done.returncode == 0, done.stderr
    return folder


class TestNode:
    def test_it_makes_an_agent_runs_a_turn_and_watches_its_events(
        self, node_client: Path, address: str
    ) -> None:
        google_apis = sysconfig.get_path("purelib")
        said = ran("node", "client.js", address, ROOT / "proto", google_apis, PLAN, cwd=node_client)
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
        text = (EXAMPLE / "package-lock.json").read_text()
        assert "://" not in text
        packages = json.loads(text)["packages"]
        assert all(package["integrity"] for name, package in packages.items() if name)


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
