"""Budgets of a deployment of two instances, whose model is a real HTTP server that counts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from mesh.ids import new_id
from tests.support.nats import running_nats
from tests.support.openai_server import OpenAIServer, chunk, said, serve_openai, streamed
from tests.support.platform import TENANT, Platform
from tests.support.processes import until
from tests.support.turn_client import TurnClient
from weft.agents.v1 import agent_pb2
from weft.errors.v1 import errors_pb2
from weft.models.v1 import budget_service_pb2 as pb
from weft.models.v1 import budgets_pb2, model_service_pb2, models_pb2
from weft.models.v1.budget_service_pb2_grpc import BudgetServiceStub
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

TURNS = 64
CALL_TOKENS = 16
"""What the server says that each call used."""
SECONDS = 20.0
Pair = tuple[Platform, Platform]


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        yield running


@pytest.fixture
def endpoint(server: OpenAIServer) -> OpenAIServer:
    server.script, server.requests, server.callers = [said("Done.")], [], []
    return server


@pytest.fixture(scope="module")
async def both(
    server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("budgets")
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        environment = {
            "NATS_URL": nats.url,
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_MODEL": "tiny",
            "WEFT_MODELS_BUDGET_WAIT_SECONDS": "3",
        }
        one, two = (
            Platform(folder / name, environment, configured_models=True) for name in ("one", "two")
        )
        for each in (one, two):
            stack.push_async_callback(stopped, each)
        await asyncio.gather(one.start(), two.start())
        yield one, two


@pytest.fixture
async def pair(both: Pair) -> AsyncIterator[Pair]:
    """Both instances; what a test sets is gone behind it."""
    yield both
    request = pb.DeleteBudgetRequest(name=f"{TENANT}/budgets/b")
    with contextlib.suppress(grpc.aio.AioRpcError):
        alive = next(each for each in both if each.channel is not None)
        await budgets_of(alive).DeleteBudget(request, timeout=SECONDS)


async def stopped(platform: Platform) -> None:
    if platform.process is not None:
        await platform.kill()


def budgets_of(platform: Platform) -> Any:
    return BudgetServiceStub(platform.open_channel)


async def set_tokens(platform: Platform, tokens: int, **fields: Any) -> None:
    request = pb.SetBudgetRequest(
        name=f"{TENANT}/budgets/b",
        limit=budgets_pb2.Amount(tokens=tokens),
        window=budgets_pb2.BUDGET_WINDOW_TOTAL,
        **fields,
    )
    await budgets_of(platform).SetBudget(request, timeout=SECONDS)


async def tokens_of(platform: Platform) -> tuple[int, int]:
    """What is spent and held of the budget."""
    request = pb.GetBudgetRequest(name=f"{TENANT}/budgets/b")
    budget = (await budgets_of(platform).GetBudget(request, timeout=SECONDS)).budget
    return budget.spent.tokens, budget.held.tokens


async def bot(platform: Platform) -> str:
    parameters = models_pb2.Parameters(output_tokens_max=10)
    return await platform.apply(f"bot-{new_id()}", agent_pb2.AgentSpec(parameters=parameters))


def reasons(clients: Sequence[TurnClient]) -> list[int]:
    return [each.events[-1].failed.error.reason for each in clients if each.kinds[-1] == "failed"]


async def test_turns_of_two_instances_never_overspend_one_budget(
    pair: Pair, endpoint: OpenAIServer
) -> None:
    one, two = pair
    agent = await bot(one)
    limit = TURNS // 2 * CALL_TOKENS
    await set_tokens(one, limit)
    sessions = [await one.session(agent) for _ in range(TURNS)]
    clients = [TurnClient(session, "Say it.") for session in sessions]
    await asyncio.gather(*(client.run(pair[index % 2]) for index, client in enumerate(clients)))
    kinds = [client.kinds[-1] for client in clients]
    assert set(kinds) == {"completed", "failed"}
    assert set(reasons(clients)) == {errors_pb2.REASON_BUDGET_SPENT}
    # What the endpoint bills: not a token more than the limit.
    assert len(endpoint.requests) == kinds.count("completed")
    assert len(endpoint.requests) * CALL_TOKENS <= limit
    # And nearly all of it could be spent.
    assert len(endpoint.requests) >= TURNS // 4

    # Refused calls never reach the endpoint; with a higher limit the same session goes on.
    refused = next(each for each in clients if each.kinds[-1] == "failed")
    await set_tokens(two, 100 * limit)
    again = TurnClient(refused.session, "Go on.")
    await again.run(one)
    assert again.kinds[-1] == "completed"
    asked = endpoint.requests[-1]["messages"]
    assert [each["content"] for each in asked if each["role"] == "user"] == ["Say it.", "Go on."]

    # What is held goes back by itself, and what was spent is what was billed.
    async with asyncio.timeout(SECONDS):
        while (seen := await tokens_of(two))[1]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)
    assert seen == (len(endpoint.requests) * CALL_TOKENS, 0)
    usage = pb.GetUsageRequest(
        parent=TENANT, group_by=pb.USAGE_GROUPING_SESSION, scope=again.session
    )
    rows = (await budgets_of(one).GetUsage(usage, timeout=SECONDS)).rows
    assert [(row.session, row.calls, row.input_tokens) for row in rows] == [(again.session, 1, 11)]


async def test_who_is_not_an_agent_spends_no_sessions_budget(pair: Pair) -> None:
    one, _ = pair
    request = model_service_pb2.GenerateRequest(
        parent=TENANT, charged_session=f"{TENANT}/agents/bot/sessions/s1"
    )
    request.conversation.messages.add(role=models_pb2.ROLE_USER, text="Say it.")
    models: Any = ModelServiceStub(one.open_channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await models.Generate(request, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    request.charged_session = ""
    await set_tokens(one, 0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await models.Generate(request, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "0 tokens are left" in (caught.value.details() or "")


async def test_a_batch_answers_each_call_by_itself(pair: Pair, endpoint: OpenAIServer) -> None:
    one, _ = pair
    # The first one is slow: nobody waits for it.
    endpoint.script = [
        streamed([1.5, chunk({"content": "late"}), chunk(finish="stop")]),
        said("Done."),
    ]
    request = model_service_pb2.BatchGenerateRequest(parent=TENANT, concurrency_max=2)
    for number in range(20):
        each = request.requests.add(parent=TENANT, model="nobody/has" if number == 7 else "")
        each.conversation.messages.add(role=models_pb2.ROLE_USER, text=f"{number}")
    models: Any = ModelServiceStub(one.open_channel)
    outcomes = [each async for each in models.BatchGenerate(request, timeout=SECONDS)]
    assert sorted(each.index for each in outcomes) == list(range(20))
    assert outcomes[-1].response.message.text == "late"
    errors = {each.index: each.error.code for each in outcomes if each.HasField("error")}
    assert errors == {7: grpc.StatusCode.NOT_FOUND.value[0]}


async def test_what_an_instance_held_that_is_killed_in_the_middle_of_a_call_is_not_spent_again(
    pair: Pair, endpoint: OpenAIServer
) -> None:
    one, _ = pair
    agent = await bot(one)
    session = await one.session(agent)
    await set_tokens(one, 200, scope=agent)
    endpoint.script = [streamed([chunk({"content": "Hal"}), 60.0]), said("Done.")]
    client = TurnClient(session, "Say it.")
    following = asyncio.create_task(client.run(one))

    await until(lambda: len(endpoint.requests) == 1, SECONDS)
    # In a deployment in many processes the mesh chose whose models service makes the call.
    calls_it, other = sorted(pair, key=lambda each: not each.has_port(endpoint.callers[-1][1]))
    held = (await tokens_of(other))[1]
    assert held >= 10
    await calls_it.kill()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    # The other one takes the turn over, with what is left; what was held stays so.
    attached = TurnClient(session, "Say it.", request_id=client.request_id)
    await attached.run(other)
    assert attached.kinds[-1] == "completed"
    spent, still_held = await tokens_of(other)
    assert held <= spent + still_held <= 200
    calls = 0
    while True:
        more = TurnClient(session, "Again.")
        await more.run(other)
        if more.kinds[-1] == "failed":
            break
        calls += 1
    assert set(reasons([more])) == {errors_pb2.REASON_BUDGET_SPENT}
    assert (1 + calls) * CALL_TOKENS + held <= 200
