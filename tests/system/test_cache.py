"""Results of a tool in the caches of two processes, on one NATS and one Valkey."""

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from mesh.runtime.valkey_server import EmbeddedValkey
from tests.support.grpc_server import serving
from tests.support.ledger_server import LEDGER
from tests.support.nats import running_nats
from tests.support.platform import TENANT, Platform, platform
from tests.support.processes import until
from tests.support.protos import message_type
from weft.agents.v1 import agent_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import session_service_pb2
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub
from weft.tools.v1 import tool_service_pb2, tools_pb2

SECONDS_MAX = 10.0
TTL_SECONDS = 600


class Counting:
    """A ledger that answers how often it was asked, and by which keys."""

    def __init__(self) -> None:
        self.asked = 0

    async def balance(self, request: Any, context: Any) -> Any:
        self.asked += 1
        return message_type("ledger.v1.BalanceResponse")(balance=self.asked)


class Pair:
    """Two processes, and a tool that both have."""

    def __init__(self, running: list[Platform], valkey: EmbeddedValkey, address: str) -> None:
        self.running = running
        self.valkey = valkey
        self.address = address

    async def register(self, number: int, tool: str) -> None:
        request = tool_service_pb2.RegisterToolRequest(
            parent=TENANT,
            tool_id=tool,
            grpc=tools_pb2.GrpcTool(address=self.address, method=f"{LEDGER}/Balance"),
            effect=options_pb2.EFFECT_READ,
            cache_ttl=Duration(seconds=TTL_SECONDS),
        )
        await self.running[number].tools.RegisterTool(request, timeout=SECONDS_MAX)

    async def ask(self, number: int, tool: str, account: str = "ada", key: str = "") -> int:
        """The balance, as that process answers it."""
        request = tool_service_pb2.InvokeToolRequest(
            name=f"{TENANT}/tools/{tool}",
            arguments_json=json.dumps({"account": account}),
            idempotency_key=key,
        )
        tools = self.running[number].tools
        response = await tools.InvokeTool(request, timeout=SECONDS_MAX, wait_for_ready=True)
        assert not response.is_error, response.content
        return int(json.loads(response.content)["balance"])

    async def until_told(self, number: int, tool: str, balance: int) -> None:
        """Returns once that process answers so."""
        async with asyncio.timeout(SECONDS_MAX):
            while await self.ask(number, tool) != balance:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    async def looks(self, number: int) -> dict[tuple[str, str], int]:
        """How looks of the process ended, by level and result."""
        url = f"http://{self.running[number].addresses['http']}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())
        found = {}
        for line in text.decode().splitlines():
            if line.startswith('weft_cache_looks_total{level="'):
                labels = dict(part.split("=", 1) for part in line[23 : line.index("}")].split(","))
                key = (labels["level"].strip('"'), labels["result"].strip('"'))
                found[key] = int(float(line.rpartition(" ")[2]))
        return found


@pytest.fixture(scope="module")
def ledger() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory, ledger: Counting) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("cache")
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        valkey = EmbeddedValkey(folder / "shared", shared=True)
        stack.push_async_callback(valkey.stop)
        await valkey.start()
        address = await stack.enter_async_context(serving({LEDGER: {"Balance": ledger.balance}}))
        given = {
            "NATS_URL": nats.url,
            "REDIS_URL": valkey.url,
            "WEFT_RUNTIME_REDIS_PASSWORD_FILE": str(valkey.password_file),
            # On a busy machine they are patient.
            "WEFT_CACHE_REDIS_TIMEOUT_SECONDS": "1",
            "WEFT_CACHE_DISK_TIMEOUT_SECONDS": "1",
        }
        running = await asyncio.gather(
            *(
                stack.enter_async_context(platform(folder / name, **given))
                for name in ("one", "two")
            )
        )
        yield Pair(list(running), valkey, address)


async def test_what_one_asked_for_the_other_has_and_what_one_forgets_the_other_forgets(
    pair: Pair, ledger: Counting
) -> None:
    await pair.register(0, "shared")
    first = await pair.ask(0, "shared")
    assert await pair.ask(0, "shared") == first
    # What the other has, it gets from Redis a moment later.
    await pair.until_told(1, "shared", first)
    assert ledger.asked == first
    if not pair.running[0].split:
        assert (await pair.looks(1))["redis", "hit"] >= 1
    await pair.register(1, "shared")
    assert await pair.ask(1, "shared") == first + 1
    await pair.until_told(0, "shared", first + 1)


async def test_a_restart_finds_it_again_though_redis_is_empty(pair: Pair) -> None:
    await pair.register(0, "kept")
    first = await pair.ask(0, "kept")
    assert await pair.running[0].stop() == 0
    died = pair.valkey.pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    await until(lambda: pair.valkey.pid not in (None, died))
    await pair.running[0].start()
    # Until it has caught up with what was forgotten meanwhile, it asks.
    await pair.until_told(0, "kept", first)


async def test_nothing_of_an_erased_session_is_given_again(pair: Pair) -> None:
    agent = await pair.running[0].apply("forgetful", agent_pb2.AgentSpec())
    session = await pair.running[0].session(agent)
    await pair.register(0, "erased")
    first = await pair.ask(0, "erased", "ada", f"{session}/turns/t/steps/1/calls/c")
    await pair.until_told(1, "erased", first)
    sessions = SessionServiceStub(pair.running[1].open_channel)
    request = session_service_pb2.EraseSessionRequest(name=session)
    await sessions.EraseSession(request, timeout=SECONDS_MAX)
    async with asyncio.timeout(SECONDS_MAX):
        for number in (0, 1):
            while await pair.ask(number, "erased") == first:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)


async def test_no_call_fails_while_redis_is_killed(pair: Pair) -> None:
    await pair.register(0, "under-load")
    ended = asyncio.Event()
    answered = 0

    async def client(number: int) -> None:
        nonlocal answered
        count = 0
        while not ended.is_set():
            count += 1
            await pair.ask(number % 2, "under-load", f"account {count % 20} {count // 200}")
            answered += 1

    clients = [asyncio.create_task(client(number)) for number in range(4)]
    for _ in range(3):
        died, before = pair.valkey.pid, answered
        assert died is not None
        os.kill(died, signal.SIGKILL)
        await until(lambda died=died: pair.valkey.pid not in (None, died), 60)  # type: ignore[misc]
        await until(
            lambda before=before: answered > before + 100 or any(each.done() for each in clients),  # type: ignore[misc]
            60,
        )
    ended.set()
    # An exception of one would be raised here.
    await asyncio.gather(*clients)
