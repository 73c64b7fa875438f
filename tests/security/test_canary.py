"""Two hundred marked secrets through every path that takes one: none comes out in logs,
traces, metrics, errors or process arguments."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from starlette.responses import JSONResponse

from tests.support.keyed import KeyedChannel, bearer
from tests.support.openai_server import OpenAIServer, serve_openai
from tests.support.processes import until
from tests.support.weft_up import WEFT, WeftUp, environment, weft_up
from weft.agents.v1 import agent_pb2, agent_service_pb2, turn_service_pb2
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.agents.v1.turn_service_pb2_grpc import TurnServiceStub
from weft.auth.v1 import api_key_service_pb2, auth_service_pb2
from weft.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from weft.state.v1 import session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
from weft.tools.v1 import tool_service_pb2, tools_pb2
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

TENANT = "tenants/default"
SECRETS_MIN = 200
FREE_PORTS = ("--port", "0", "--http-port", "0")
HEADERS = ("authorization", "x-api-key", "cookie", "proxy-authorization", "x-weft-identity")

pytestmark = pytest.mark.timeout(300)


class Canaries:
    """Secrets with a mark, and all that was seen."""

    def __init__(self) -> None:
        self.secrets: list[str] = []
        self.seen: dict[str, list[str]] = {}

    def new(self) -> str:
        """Another one."""
        secret = f"canary{len(self.secrets):04d}qzxj"
        self.secrets.append(secret)
        return secret

    def issued(self, secret: str) -> str:
        """A secret that Weft itself made, which only who asked for it may see."""
        # What a key begins with is its id, which isn't secret.
        self.secrets.append(secret.split("_")[2] if secret.startswith("weft_") else secret)
        return secret

    def see(self, place: str, text: str) -> None:
        """Something that somebody beside the caller can read, or an error that says it back."""
        self.seen.setdefault(place, []).append(text)

    def found(self) -> list[tuple[str, str]]:
        """Which secret was seen where."""
        return [
            (place, secret)
            for place, texts in self.seen.items()
            for secret in self.secrets
            if secret in "\n".join(texts)
        ]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps the text of what it is sent."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.texts.append(str(request))
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    made = Collector()
    server = grpc.aio.server()
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made, f"http://127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture(scope="module")
async def endpoint() -> AsyncIterator[OpenAIServer]:
    """A model's endpoint that refuses every key, and repeats it in its error."""
    async with serve_openai() as served:

        async def refuse() -> JSONResponse:
            said = served.headers[-1].get("authorization", "")
            return JSONResponse({"error": {"message": f"Incorrect API key: {said}"}}, 401)

        served.script = [refuse]
        yield served


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture(scope="module")
def up(
    tmp_path_factory: pytest.TempPathFactory,
    collector: tuple[Collector, str],
    endpoint: OpenAIServer,
    canaries: Canaries,
) -> Iterator[WeftUp]:
    folder = tmp_path_factory.mktemp("canary")
    provider = {"name": "other", "base_url": endpoint.base_url, "api_key": canaries.new()}
    variables = {
        "WEFT_MODELS_PROVIDERS": json.dumps([provider]),
        "WEFT_MODELS_ROUTES": '[{"name": "each", "models": ["openai/m", "other/m"]}]',
        "OPENAI_API_KEY": canaries.new(),
        "OPENAI_BASE_URL": endpoint.base_url,
        "OPENAI_MODEL": "m",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector[1],
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "WEFT_RPC_PEER_FAILURES_MAX": "100000",
    }
    log = folder / "up.log"
    arguments = ("--data-dir", folder / "data", *FREE_PORTS, "--log-level", "debug")
    with weft_up(log, *arguments, **variables) as running:
        yield running


def see_error(canaries: Canaries, place: str, error: grpc.aio.AioRpcError) -> None:
    trailing = [f"{key}={value!r}" for key, value in error.trailing_metadata() or ()]
    canaries.see(f"error of {place}", f"{error.code()} {error.details()} {trailing}")


def see_arguments(canaries: Canaries, process: psutil.Process) -> None:
    for each in (process, *process.children(recursive=True)):
        canaries.see("process arguments", " ".join(each.cmdline()))


async def attempted(canaries: Canaries, place: str, call: Any) -> Any:
    """The answer of a call, or None where it is refused; the error is looked at."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        see_error(canaries, place, error)
        return None


async def keys_and_tokens(canaries: Canaries, channel: Any, bare: grpc.aio.Channel) -> None:
    """Keys that are made, exchanged, rotated, used after their end; keys that are invented."""
    keys: Any = ApiKeyServiceStub(channel)
    tokens: Any = AuthServiceStub(channel)
    for number in range(20):
        request = api_key_service_pb2.CreateApiKeyRequest(parent=TENANT, api_key_id=f"k{number}")
        secret = canaries.issued((await keys.CreateApiKey(request, timeout=10)).secret)
        exchange = auth_service_pb2.ExchangeTokenRequest(api_key=secret)
        token = canaries.issued((await tokens.ExchangeToken(exchange, timeout=10)).token)
        name = f"{TENANT}/apiKeys/k{number}"
        rotated = await keys.RotateApiKey(
            api_key_service_pb2.RotateApiKeyRequest(name=name), timeout=10
        )
        canaries.issued(rotated.secret)
        await keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name), timeout=10)
        for old in (secret, token):
            metadata = [bearer(old)]
            call: Any = AuthServiceStub(bare).WhoAmI(
                auth_service_pb2.WhoAmIRequest(), metadata=metadata, timeout=10
            )
            await attempted(canaries, "a revoked credential", call)
    for _ in range(20):
        exchange = auth_service_pb2.ExchangeTokenRequest(api_key=f"weft_{canaries.new()}_x_00")
        await attempted(canaries, "ExchangeToken", tokens.ExchangeToken(exchange, timeout=10))


async def headers(canaries: Canaries, bare: grpc.aio.Channel) -> None:
    """Credentials under right and wrong names."""
    stub: Any = AgentServiceStub(bare)
    request = agent_service_pb2.ListAgentsRequest(parent=TENANT)
    for _ in range(10):
        for name in HEADERS:
            metadata = ((name, f"Bearer {canaries.new()}"),)
            call = stub.ListAgents(request, metadata=metadata, timeout=10)
            await attempted(canaries, name, call)


async def requests(canaries: Canaries, channel: Any) -> None:
    """Secrets where none belongs: arguments of tools, addresses, bytes that don't parse."""
    tools: Any = ToolServiceStub(channel)
    for _ in range(15):
        arguments = json.dumps({"expression": "1+1", "password": canaries.new()})
        call = tool_service_pb2.InvokeToolRequest(
            name=f"{TENANT}/tools/calculator", arguments_json=arguments
        )
        await attempted(canaries, "InvokeTool", tools.InvokeTool(call, timeout=10))
        address = f"user:{canaries.new()}@127.0.0.1:1"
        register = tool_service_pb2.RegisterToolRequest(
            parent=TENANT,
            tool_id="credit",
            grpc=tools_pb2.GrpcTool(address=address, method="bank.v1.Ledger/Credit"),
            effect=2,  # type: ignore[arg-type]
        )
        await attempted(canaries, "RegisterTool", tools.RegisterTool(register, timeout=10))
        raw = channel.unary_unary("/weft.auth.v1.AuthService/ExchangeToken")
        broken = b"\x0a\x7f" + canaries.new().encode()
        await attempted(canaries, "bytes that don't parse", raw(broken, timeout=10))
        long = auth_service_pb2.ExchangeTokenRequest(api_key=canaries.new() + "x" * 500)
        await attempted(canaries, "bounds", raw(long.SerializeToString(), timeout=10))


async def turns(canaries: Canaries, channel: Any) -> None:
    """A turn whose model refuses Weft's own key."""
    spec = agent_pb2.AgentSpec(model="route/each")
    request = agent_service_pb2.CreateAgentRequest(parent=TENANT, agent_id="a", spec=spec)
    await AgentServiceStub(channel).CreateAgent(request, timeout=10)
    session = await SessionServiceStub(channel).CreateSession(
        session_service_pb2.CreateSessionRequest(parent=f"{TENANT}/agents/a"), timeout=10
    )
    run = turn_service_pb2.RunTurnRequest(session=session.session.name, input="hello")
    stub: Any = TurnServiceStub(channel)
    async for response in stub.RunTurn(run, timeout=30):
        canaries.see("events of a turn", str(response))


def commands(canaries: Canaries, up: WeftUp) -> None:
    """Commands with a key that isn't valid, and with one that is."""
    for debug in ("0", "1"):
        for words in (("agent", "list"), ("doctor",), ("whoami",), ("call",)):
            secret = f"weft_01j0000000000000000000000_{canaries.new()}_00000000"
            process = subprocess.Popen(
                [WEFT, *words],
                env=environment(WEFT_API_KEY=secret, WEFT_ADDRESS=up.address, WEFT_DEBUG=debug),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            see_arguments(canaries, psutil.Process(process.pid))
            said, _ = process.communicate(timeout=30)
            canaries.see(f"command {words}", said)


async def test_no_secret_comes_out(
    canaries: Canaries, up: WeftUp, collector: tuple[Collector, str], endpoint: OpenAIServer
) -> None:
    key = canaries.issued(str(up.said["api_key"]))
    async with grpc.aio.insecure_channel(up.address) as bare:
        channel: Any = KeyedChannel(bare, key)
        await keys_and_tokens(canaries, channel, bare)
        await headers(canaries, bare)
        await requests(canaries, channel)
        await turns(canaries, channel)
    await asyncio.to_thread(commands, canaries, up)
    assert endpoint.headers, "the model's endpoint was asked"
    see_arguments(canaries, psutil.Process(up.process.pid))
    async with httpx2.AsyncClient() as client:
        canaries.see("metrics", (await client.get(f"http://{up.said['http']}/metrics")).text)
    await until(lambda: bool(collector[0].texts), 20)
    # A batch more than the first one.
    await asyncio.sleep(0.5)
    canaries.see("traces", "\n".join(collector[0].texts))
    canaries.see("log", up.log)
    for path in Path(str(up.log_file)).parent.rglob("*.log"):
        canaries.see("logs of servers", path.read_text(errors="replace"))
    assert len(canaries.secrets) >= SECRETS_MIN
    assert "request_id" in up.log, "the log holds what was logged"
    assert canaries.found() == []
