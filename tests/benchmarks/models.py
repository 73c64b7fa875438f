"""What a call of a model costs over the bare HTTP call to the same endpoint, in another process.

The bare call is made by the same HTTP library: it posts the same JSON and reads the stream of
20 words to its end without looking into it. Weft's also checks the request and the answer, passes
breaker and limits, and parses every event; that of a client of another process passes the edge and
gRPC, too. The official client of OpenAI, which parses the same events, is what a program without
Weft would call by.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import openai

from mesh.call import Call
from services.models.provider_settings import ProviderSettings
from services.models.providers import hashing
from services.models.providers.http.chat import Chat
from services.models.service import ModelsService
from services.models.settings import ModelsSettings
from tests.benchmarks.measure import UNLIMITED, alternate, median_ms
from tests.benchmarks.results import Baseline, Goal, Result
from tests.support.budgets import memory_budgets
from tests.support.cached import memory_cache
from tests.support.platform import Platform
from tests.support.processes import line_of, running
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2
from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

ROUNDS = 5
CALLS = 40
SLOW_CALLS = 10
TEXT = "How are events stored, and who may read them? " * 8
OVERHEAD_GOAL = 1.3


def request(model: str) -> pb.GenerateRequest:
    """The call."""
    made = pb.GenerateRequest(parent="tenants/default", model=f"p/{model}")
    made.conversation.messages.add(role=models_pb2.ROLE_USER, text=TEXT)
    return made


def bare(client: httpx2.AsyncClient, url: str, model: str) -> Callable[[], Awaitable[object]]:
    """The call without Weft."""
    settings = ProviderSettings(name="p", base_url=url)
    body = Chat().body(request(model), model, settings)
    headers = {"content-type": "application/json", "accept": "text/event-stream"}

    async def call() -> None:
        target = f"{url}/chat/completions"
        async with client.stream("POST", target, content=body, headers=headers) as response:
            async for _ in response.aiter_bytes():
                continue

    return call


def official(client: openai.AsyncOpenAI, model: str) -> Callable[[], Awaitable[object]]:
    """The call by the official client."""

    async def call() -> None:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": TEXT}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for _ in stream:
            continue

    return call


def ours(service: ModelsService, model: str) -> Callable[[], Awaitable[object]]:
    """The service's handler, in this process."""
    asked = pb.StreamGenerateRequest(request=request(model))

    async def call() -> None:
        about = Call(method="bench", deadline=time.monotonic() + 60, request_id="r")
        async for _ in service.stream_generate(asked, about):
            continue

    return call


def wire(channel: Any, model: str) -> Callable[[], Awaitable[object]]:
    """A client of another process of Weft."""
    stub: Any = ModelServiceStub(channel)
    asked = pb.StreamGenerateRequest(request=request(model))

    async def call() -> None:
        async for _ in stub.StreamGenerate(asked, timeout=60):
            continue

    return call


async def run() -> list[Result]:
    """The results of the rounds."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(running("tests.benchmarks.model_server"))
        url = await line_of(server)
        provider = {"name": "p", "base_url": url, "lists_models": False}
        settings = ModelsSettings.model_validate({"providers": [provider]})
        service = ModelsService(settings, memory_cache(), memory_budgets())
        stack.push_async_callback(service.stop)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=60))
        theirs = openai.AsyncOpenAI(base_url=url, api_key="none")
        stack.push_async_callback(theirs.close)
        folder = Path(stack.enter_context(TemporaryDirectory()))
        variables = {"WEFT_MODELS_PROVIDERS": f'[{{"name": "p", "base_url": "{url}"}}]'}
        weft = Platform(folder / "data", UNLIMITED | variables, split=False, configured_models=True)
        await weft.start()
        stack.push_async_callback(weft.kill)
        variants = {
            f"{name} {model}": _median(way, SLOW_CALLS if model == "slow" else CALLS)
            for model in ("fast", "slow")
            for name, way in (
                ("bare", bare(client, url, model)),
                ("official", official(theirs, model)),
                ("ours", ours(service, model)),
                ("wire", wire(weft.channel, model)),
            )
        }
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
        embedded = [await _hashed_ms() for _ in range(ROUNDS)]
    fast = Baseline("ms, bare HTTP", values["bare fast"])
    slow = Baseline("ms, bare HTTP", values["bare slow"])
    official_fast = Baseline("ms, the official client", values["official fast"])
    goal = Goal(OVERHEAD_GOAL, at_most=True, of_ratio=True)
    return [
        Result("call of a model that takes 50 ms", "ms", values["ours slow"], slow, goal),
        Result("the same, by a client of another process", "ms", values["wire slow"], slow),
        Result("call of a model that answers at once", "ms", values["ours fast"], fast, goal),
        Result(
            "the same, by the official client's measure", "ms", values["ours fast"], official_fast
        ),
        Result("the same, by a client of another process", "ms", values["wire fast"], fast),
        Result("builtin/hashing, a text of 370 characters", "ms", embedded),
    ]


def _median(work: Callable[[], Awaitable[object]], count: int) -> Callable[[], Awaitable[float]]:
    return lambda: median_ms(work, count)


async def _hashed_ms() -> float:
    async def once() -> None:
        hashing.embed(TEXT)

    return await median_ms(once, CALLS)
