"""Budgets: what a call costs more that one or three of them cover, with the real log. The model is
an HTTP server on the loopback; the step alone is measured beside it."""

import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from mesh.call import Call
from mesh.clock import SYSTEM
from mesh.events.aggregate import Repository
from mesh.events.jetstream.store import JetStreamEventStore, connect_store
from mesh.ids import new_id
from services.models.budgets.budgets import Budgets
from services.models.budgets.usage import Caller
from services.models.domain import BUDGET_FOLD, USAGE_FOLD, Price
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.benchmarks.measure import alternate, median_ms
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.budgets import limit, set_budget
from tests.support.cached import memory_cache
from tests.support.keys import memory_keyring, sealing
from tests.support.nats import running_nats
from tests.support.openai_server import said, serve_openai
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

ROUNDS = 9
CALLS = 60
STEPS = 1_000
MODEL = "openai/tiny"
COVERING = (0, 1, 3)
SPARE = 10**12
CHEAP = Goal(1.1, at_most=True, of_ratio=True)


async def run() -> list[Result]:
    """The results of the rounds."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats = await stack.enter_async_context(running_nats(folder))
        store = await connect_store(nats.url, name="bench", codecs=sealing(memory_keyring()))
        stack.push_async_callback(store.close)
        server = await stack.enter_async_context(serve_openai())
        server.script = [said("Done.")]
        settings = ModelsSettings(openai_base_url=server.base_url)
        budgets = made(store, folder)
        service = ModelsService(settings, memory_cache(), budgets)
        await service.start()
        stack.push_async_callback(service.stop)
        for count in COVERING:
            await cover(budgets, count)
        variants: dict[str, Callable[[], Awaitable[float]]] = {}
        for count in COVERING:
            variants[f"call {count}"] = partial(median_ms, partial(call, service, count), CALLS)
            variants[f"step {count}"] = partial(steps_us, budgets, count)
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    bare = Baseline("ms, no budget", values["call 0"])
    step = Baseline("us, no budget", values["step 0"])
    return [
        Result("model call over HTTP, one budget covers it", "ms", values["call 1"], bare, CHEAP),
        Result("the same, three budgets", "ms", values["call 3"], bare, CHEAP),
        Result("the step around a call, one budget", "us", values["step 1"], step),
        Result("the same, three budgets", "us", values["step 3"], step),
    ]


def made(store: JetStreamEventStore, folder: Path) -> Budgets:
    """Budgets on the real log."""
    return Budgets(
        store,
        Repository(store, BUDGET_FOLD),
        Repository(store, USAGE_FOLD),
        folder,
        memory_keyring(),
        {MODEL: Price(150_000, 600_000, 75_000)}.get,
        instance=new_id(),
        clock=SYSTEM,
        wait_seconds=1.0,
    )


def caller(count: int) -> Caller:
    """One whom so many budgets cover."""
    parent = f"tenants/covered-{count}"
    return Caller(parent, f"{parent}/agents/bot/sessions/s1" if count > 1 else "", MODEL)


async def cover(budgets: Budgets, count: int) -> None:
    """Sets them: of the tenant, its agent, its session."""
    parent = caller(count).parent
    scopes = (parent, f"{parent}/agents/bot", f"{parent}/agents/bot/sessions/s1")
    for number, scope in enumerate(scopes[:count]):
        amount = limit(micro_usd=SPARE, tokens=SPARE)
        name = f"b{number}"
        await set_budget(budgets, amount, context(), budget=name, parent=parent, scope=scope)


def context() -> Call:
    """A call of an agent's."""
    return Call("bench", time.monotonic() + 30, "r1", caller="agents")


async def call(service: ModelsService, count: int) -> None:
    """A whole call of the model."""
    of = caller(count)
    request = pb.GenerateRequest(parent=of.parent, charged_session=of.session, model=MODEL)
    request.conversation.messages.add(role=models_pb2.ROLE_USER, text="Say it.")
    await service.generate(request, context())


async def steps_us(budgets: Budgets, count: int) -> float:
    """Mean time of setting aside and charging, commits among it, in microseconds."""
    of = caller(count)
    started = time.perf_counter()
    for _ in range(STEPS):
        with await budgets.charge(of, 200, 500, 5.0) as charge:
            charge.finish(models_pb2.Usage(input_tokens=200, output_tokens=100))
    return (time.perf_counter() - started) / STEPS * 1e6
