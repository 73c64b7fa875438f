"""What the models service charges: calls, embeddings, cached answers, batches."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from mesh.call import Call
from mesh.errors import BudgetSpent, FailedPrecondition, InvalidArgument, PermissionDenied
from services.models import routing
from services.models.batches import generate_each
from services.models.budgets.budgets import Budgets
from services.models.domain import Price
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.support.budgets import PARENT, limit, memory_budgets, set_budget
from tests.support.cached import memory_cache
from tests.support.openai_server import (
    OpenAIServer,
    chunk,
    refused,
    said,
    serve_openai,
    streamed,
)
from tests.support.processes import until
from weft.models.v1 import budget_service_pb2, models_pb2
from weft.models.v1 import model_service_pb2 as pb

SESSION = f"{PARENT}/agents/bot/sessions/s1"
PRICES = {"openai/tiny": Price(1_000_000, 2_000_000, 0), "builtin/hashing": Price()}


def call(caller: str = "") -> Call:
    return Call("test", time.monotonic() + 10, "r1", caller=caller)


def request(text: str = "Say it.", **fields: Any) -> pb.GenerateRequest:
    made = pb.GenerateRequest(parent=PARENT, model="openai/tiny", **fields)
    made.conversation.messages.add(role=models_pb2.ROLE_USER, text=text)
    return made


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serve_openai() as running:
        running.script = [said("Hi ", "there")]
        yield running


@pytest.fixture
def budgets() -> Budgets:
    return memory_budgets(prices=PRICES)


@pytest.fixture
async def service(server: OpenAIServer, budgets: Budgets) -> AsyncIterator[ModelsService]:
    settings = ModelsSettings(openai_base_url=server.base_url, budget_output_tokens_max=99)
    made = ModelsService(settings, memory_cache(), budgets)
    await made.start()
    yield made
    await made.stop()


async def spent(budgets: Budgets) -> int:
    """Tokens that the budget knows to be spent, once all was told."""
    for _ in range(2):
        await budgets._charging._tick()
    wanted = budget_service_pb2.GetBudgetRequest(name=f"{PARENT}/budgets/b")
    budget = (await budgets.rpcs.get_budget(wanted, call())).budget
    assert budget.held.tokens == 0
    return budget.spent.tokens


async def test_an_answer_says_what_it_cost(service: ModelsService) -> None:
    answer = await service.generate(request(), call())
    assert answer.usage.cost_micro_usd == 11 + 2 * 5
    unpriced = request()
    unpriced.model = "openai/other"
    assert not (await service.generate(unpriced, call())).usage.HasField("cost_micro_usd")


async def test_a_covered_call_without_a_bound_gets_one(
    service: ModelsService, budgets: Budgets, server: OpenAIServer
) -> None:
    await service.generate(request(), call())
    assert 99 not in server.requests[-1].values()
    await set_budget(budgets, limit(tokens=1_000), call())
    await service.generate(request(), call())
    assert 99 in server.requests[-1].values()
    await service.generate(request(parameters={"output_tokens_max": 7}), call())
    assert 7 in server.requests[-1].values()
    assert await spent(budgets) == 2 * 16


async def test_a_cached_answer_costs_nothing_whoever_asked_first(
    service: ModelsService, budgets: Budgets, server: OpenAIServer
) -> None:
    await set_budget(budgets, limit(tokens=1_000), call())
    asked = request(cache_ttl={"seconds": 60}, charged_session=SESSION)
    first = await service.generate(asked, call("agents"))
    asked.charged_session = ""
    second = await service.generate(asked, call())
    assert (first.cached, second.cached) == (False, True)
    assert (first.usage.cost_micro_usd, second.usage.cost_micro_usd) == (21, 0)
    assert await spent(budgets) == 16
    assert len(server.requests) == 1


async def test_a_budget_that_is_spent_refuses_nobody_who_waits_for_the_same_answer(
    service: ModelsService, budgets: Budgets
) -> None:
    await set_budget(budgets, limit(tokens=1), call(), scope=SESSION)
    poor = request(cache_ttl={"seconds": 60}, charged_session=SESSION)
    rich = request(cache_ttl={"seconds": 60})
    asked = (service.generate(poor, call("agents")), service.generate(rich, call()))
    refused, answer = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(refused, BudgetSpent)
    assert isinstance(answer, pb.GenerateResponse)
    assert not answer.cached


async def test_only_agents_say_for_which_session_a_call_is(service: ModelsService) -> None:
    asked = request(charged_session=SESSION)
    for caller in ("", "gateway", "tools"):
        with pytest.raises(PermissionDenied):
            await service.generate(asked, call(caller))
    await service.generate(asked, call("agents"))
    asked.charged_session = "tenants/globex/agents/bot/sessions/s1"
    with pytest.raises(InvalidArgument, match="must be in tenants/acme"):
        await service.generate(asked, call("agents"))


async def test_a_stream_that_is_left_costs_what_was_written(
    service: ModelsService, budgets: Budgets, server: OpenAIServer
) -> None:
    await set_budget(budgets, limit(tokens=1_000), call())
    server.script = [streamed([chunk({"content": "x" * 400}), 30.0])]
    asked = pb.StreamGenerateRequest(request=request())
    async with aclosing(service.stream_generate(asked, call())) as parts:
        async for _ in parts:
            break
    # Beside what was read: 100 tokens of text.
    assert 100 < await spent(budgets) < 130


@pytest.mark.parametrize(
    ("where", "least"), [("waits for its turn", 0), ("waits to try again", 0), ("is sent", 1_000)]
)
async def test_a_call_that_is_given_up_costs_what_was_sent(
    where: str, least: int, server: OpenAIServer, budgets: Budgets
) -> None:
    provider = {"name": "openai", "base_url": server.base_url, "concurrency_max": 1}
    service = ModelsService(ModelsSettings(providers=[provider]), memory_cache(), budgets)
    await service.start()
    await set_budget(budgets, limit(tokens=100_000), call())
    silent = streamed([30.0])
    server.script = [refused(429, Retry_After="8")] if where == "waits to try again" else [silent]
    calls = [request("y" * 4_000)]
    if where == "waits for its turn":
        calls.insert(0, request("y"))
    tasks = []
    for asked in calls:
        tasks.append(asyncio.create_task(service.generate(asked, call())))
        await until(lambda: len(server.requests) == 1, 5.0)
    # What happens then needs a moment: the answer comes, or the second call gets in line.
    await asyncio.sleep(0.2)
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert least <= await spent(budgets) < least + 100
    await service.stop()


async def test_embeddings_are_charged(service: ModelsService, budgets: Budgets) -> None:
    await set_budget(budgets, limit(tokens=20), call(), requires_prices=True)
    asked = pb.EmbedRequest(parent=PARENT, texts=["one two three four"])
    asked.cache_ttl.FromSeconds(60)
    used = (await service.embed(asked, call())).usage
    assert used.cost_micro_usd == 0
    # What is kept costs nothing.
    await service.embed(asked, call())
    assert await spent(budgets) == used.input_tokens > 0
    with pytest.raises(BudgetSpent):
        await service.embed(pb.EmbedRequest(parent=PARENT, texts=["many words " * 50]), call())
    unpriced = pb.EmbedRequest(parent=PARENT, texts=["one"], model="openai/embedding")
    with pytest.raises(FailedPrecondition, match="has no price"):
        await service.embed(unpriced, call())


async def test_a_route_goes_on_behind_a_model_without_a_price_where_a_budget_demands_one(
    server: OpenAIServer, budgets: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "PROBE_SECONDS", 0.0)
    route = {"name": "r", "models": ["openai/unpriced", "openai/tiny"], "choose": "latency"}
    settings = ModelsSettings(
        openai_base_url=server.base_url, budget_output_tokens_max=99, routes=[route]
    )
    service = ModelsService(settings, memory_cache(), budgets)
    await service.start()

    async def answered_by() -> str:
        asked = request()
        asked.model = "route/r"
        return (await service.generate(asked, call())).model

    await set_budget(budgets, limit(tokens=10_000), call(), requires_prices=True)
    assert [await answered_by() for _ in range(3)] == ["openai/tiny"] * 3
    # Nobody is kept from it afterwards: it was not at fault.
    await budgets.rpcs.delete_budget(
        budget_service_pb2.DeleteBudgetRequest(name=f"{PARENT}/budgets/b"), call()
    )
    assert await answered_by() == "openai/unpriced"
    await service.stop()


async def test_models_say_their_price(service: ModelsService, budgets: Budgets) -> None:
    listed = await service.list_models(pb.ListModelsRequest(parent=PARENT), call())
    priced = {model.id: model.HasField("price") for model in listed.models}
    # Weft's own cost nothing, and that is known.
    assert priced["builtin/extractive"]


async def test_a_batch_goes_on_where_the_budget_is_spent(
    service: ModelsService, budgets: Budgets
) -> None:
    await set_budget(budgets, limit(tokens=60), call())
    batch = pb.BatchGenerateRequest(parent=PARENT, concurrency_max=1)
    batch.requests.extend(
        request(f"{number}", parameters={"output_tokens_max": 5}) for number in range(6)
    )
    outcomes = [each async for each in service.batch_generate(batch, call())]
    codes = [each.error.code for each in outcomes]
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert codes == [0, 0, 0, exhausted, exhausted, exhausted]
    other = pb.BatchGenerateRequest(parent="tenants/globex", requests=[request()])
    with pytest.raises(InvalidArgument, match=r"requests\[0\].parent"):
        await anext(service.batch_generate(other, call()))


class Generator:
    """Answers each request after it was let go, and knows how many are under way."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.begun = self.under_way = self.cancelled = 0

    async def __call__(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        self.begun += 1
        self.under_way += 1
        try:
            await self.gates.setdefault(request.instructions, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if request.instructions == "5":
            raise ZeroDivisionError
        return pb.GenerateResponse(model=request.instructions)

    def let_go(self, number: int) -> None:
        self.gates.setdefault(str(number), asyncio.Event()).set()


def numbered(count: int) -> list[pb.GenerateRequest]:
    return [pb.GenerateRequest(instructions=str(number)) for number in range(count)]


async def test_no_call_of_a_batch_waits_for_a_slow_one() -> None:
    generate = Generator()
    for number in range(1, 30):
        generate.let_go(number)
    ended = []
    async with aclosing(generate_each(numbered(30), generate, 4)) as outcomes:
        async for outcome in outcomes:
            ended.append(outcome)
            if len(ended) == 29:
                generate.let_go(0)
    assert ended[-1].index == 0
    assert sorted(each.index for each in ended) == list(range(30))
    # A fault of our own is one call's, and says nothing of itself.
    [broken] = [each for each in ended if each.HasField("error")]
    assert (broken.index, broken.error.message) == (5, "internal error")


async def test_a_batch_that_is_left_ends_its_calls() -> None:
    generate = Generator()
    generate.let_go(0)
    async with aclosing(generate_each(numbered(10), generate, 3)) as outcomes:
        await anext(outcomes)
        await passes()
        # One ended, and the next one took its place.
        assert (generate.begun, generate.under_way) == (4, 3)
    assert (generate.under_way, generate.cancelled) == (0, 3)


async def test_a_reader_that_does_not_read_holds_a_batch_up() -> None:
    generate = Generator()
    for number in range(100):
        generate.let_go(number)
    async with aclosing(generate_each(numbered(100), generate, 2)) as outcomes:
        await anext(outcomes)
        await passes()
        # The one that was read, those that are kept, and those that wait to be.
        assert generate.begun <= 1 + 2 + 2


async def passes() -> None:
    for _ in range(500):
        await asyncio.sleep(0)
