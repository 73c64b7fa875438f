"""Tools whose results are given again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.cache.cache import Cache
from mesh.cache.entries import session_tag
from mesh.call import Call
from mesh.clock import SYSTEM
from mesh.errors import InvalidArgument, ToolUnavailable
from mesh.events.memory import MemoryEventStore
from services.tools.service import ToolsService
from services.tools.settings import ToolsSettings
from tests.support.cached import Hand, memory_cache
from tests.support.grpc_server import serving
from tests.support.keys import memory_keyring
from tests.support.ledger_server import LEDGER
from tests.support.protos import message_type
from weft.options.v1 import options_pb2
from weft.tools.v1 import tool_service_pb2 as pb
from weft.tools.v1 import tools_pb2

PARENT = "tenants/acme"
NO_FOLDER = Path("/nonexistent")
SESSION = f"{PARENT}/agents/bot/sessions/s1"


class Counting:
    """A ledger that counts how often its balance was asked for; `failure` is what it answers
    instead, where there is one."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: grpc.StatusCode | None = None

    async def balance(self, request: Any, context: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.failure is not None:
            await context.abort(self.failure, "no")
        return message_type("ledger.v1.BalanceResponse")(balance=self.asked)


def call(seconds: float = 5) -> Call:
    return Call("/weft.tools.v1.ToolService/Any", time.monotonic() + seconds, "t")


@pytest.fixture
def ledger() -> Counting:
    return Counting()


@pytest.fixture
async def address(ledger: Counting) -> AsyncIterator[str]:
    async with serving({LEDGER: {"Balance": ledger.balance}}) as address:
        yield address


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def cache(hand: Hand) -> Cache:
    return memory_cache(hand.clock)


@pytest.fixture
async def service(cache: Cache, address: str) -> AsyncIterator[ToolsService]:
    nobody: Any = None
    made = ToolsService(
        *(ToolsSettings(), MemoryEventStore(), SYSTEM, nobody, cache, memory_keyring(), NO_FOLDER),
        functions=nobody,
    )
    await made.start()
    await register(made, address)
    yield made
    await made.stop()


async def register(
    service: ToolsService,
    address: str,
    seconds: float | None = 60,
    effect: "options_pb2.Effect.ValueType" = options_pb2.EFFECT_READ,
    **fields: Any,
) -> tools_pb2.Tool:
    request = pb.RegisterToolRequest(
        parent=PARENT,
        tool_id="balance",
        grpc=tools_pb2.GrpcTool(address=address, method=f"{LEDGER}/Balance"),
        effect=effect,
        **fields,
    )
    if seconds is not None:
        request.cache_ttl.FromMilliseconds(round(seconds * 1000))
    return (await service.register_tool(request, call())).tool


async def ask(service: ToolsService, account: str = "ada", key: str = "") -> Any:
    """The balance that the tool answers; what went wrong where it failed."""
    arguments = json.dumps({"account": account})
    request = pb.InvokeToolRequest(
        name=f"{PARENT}/tools/balance", arguments_json=arguments, idempotency_key=key
    )
    response = await service.invoke_tool(request, call())
    return response.content if response.is_error else int(json.loads(response.content)["balance"])


async def test_a_result_is_given_again_for_the_same_arguments(
    service: ToolsService, ledger: Counting, hand: Hand
) -> None:
    assert [await ask(service) for _ in range(3)] == [1, 1, 1]
    assert await ask(service, "bob") == 2
    hand.seconds += 60
    assert await ask(service) == 3


async def test_many_who_ask_at_once_call_it_once(service: ToolsService, ledger: Counting) -> None:
    assert set(await asyncio.gather(*(ask(service) for _ in range(50)))) == {1}
    assert ledger.asked == 1


async def test_without_a_time_nothing_is_kept(
    service: ToolsService, ledger: Counting, address: str
) -> None:
    await register(service, address, None)
    assert [await ask(service) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE], ids=["error", "fault"]
)
async def test_a_failure_reaches_all_who_wait_and_is_not_kept(
    service: ToolsService, ledger: Counting, code: grpc.StatusCode
) -> None:
    ledger.failure = code
    found = await asyncio.gather(*(ask(service) for _ in range(5)), return_exceptions=True)
    assert ledger.asked == 1
    if code is grpc.StatusCode.NOT_FOUND:
        assert set(found) == {"NOT_FOUND: no"}
    else:
        assert {type(each) for each in found} == {ToolUnavailable}
    ledger.failure = None
    assert await ask(service) == 2


async def test_registering_again_forgets_and_so_does_deleting(
    service: ToolsService, address: str
) -> None:
    assert await ask(service) == 1
    await register(service, address)
    assert await ask(service) == 2
    # Another definition has other results, whoever may have forgotten them.
    await register(service, address, description="Other.")
    assert await ask(service) == 3
    await service.delete_tool(pb.DeleteToolRequest(name=f"{PARENT}/tools/balance"), call())
    await register(service, address, description="Other.")
    assert await ask(service) == 4


async def test_what_an_erased_session_asked_for_is_forgotten(
    service: ToolsService, cache: Cache
) -> None:
    assert await ask(service, "ada", f"{SESSION}/turns/t/steps/1/calls/c") == 1
    assert await ask(service, "bob", "cli/x") == 2
    await cache.invalidate("acme", [session_tag(SESSION)])
    assert await ask(service, "bob") == 2
    assert await ask(service, "ada") == 3


@pytest.mark.parametrize("effect", [options_pb2.EFFECT_IDEMPOTENT, options_pb2.EFFECT_IRREVERSIBLE])
async def test_only_what_reads_may_be_given_again(
    service: ToolsService, address: str, effect: "options_pb2.Effect.ValueType"
) -> None:
    with pytest.raises(InvalidArgument, match="cache_ttl"):
        await register(service, address, 60, effect)
    with pytest.raises(InvalidArgument, match="cache_ttl"):
        await register(service, address, 0)
