"""Calling models and tools for a turn: the effects between its commits."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mesh.clock import Clock
from mesh.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelBadAnswer,
    ModelUnavailable,
    NotFound,
    ToolUnavailable,
    Unavailable,
    WeftError,
)
from services.agents import context
from services.agents.settings import AgentsSettings
from weft.agents.v1 import agent_pb2
from weft.models.v1 import model_service_pb2, models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import events_pb2, session_pb2
from weft.tools.v1 import tool_service_pb2, tools_pb2

if TYPE_CHECKING:
    from weft.models.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from weft.tools.v1.tool_service_pb2_grpc import ToolServiceAsyncStub

CATALOGUE_SECONDS = 2.0
"""How long what the tool catalogue said is taken for true."""
LOOKUP_SECONDS = 5.0
TOOL_SECONDS = 30.0
CACHE_ENTRIES_MAX = 4_096
ERROR_LENGTH_MAX = 1_024
BACKOFF_SECONDS_MAX = 2.0
LeaseHeld = Callable[[], Awaitable[None]]
T = TypeVar("T")
_Parts = AsyncIterator[model_service_pb2.StreamGenerateResponse]


class CallInDoubt(Exception):
    """An irreversible call was begun, and whether it took effect is unknown."""


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool as an agent may call it."""

    tool: tools_pb2.Tool
    binding: agent_pb2.ToolBinding
    definition: models_pb2.ToolDefinition

    @property
    def requires_approval(self) -> bool:
        """Whether a person must approve each call."""
        return self.tool.requires_approval or self.binding.requires_approval

    @property
    def seconds_max(self) -> float:
        """How long a call may take."""
        return self.tool.timeout.ToMilliseconds() / 1000 or TOOL_SECONDS


class Effects:
    """What a turn does to the world, by the stubs of models and tools."""

    def __init__(
        self,
        models: "ModelServiceAsyncStub",
        tools: "ToolServiceAsyncStub",
        settings: AgentsSettings,
        clock: Clock,
    ) -> None:
        self._models = models
        self._tools = tools
        self._settings = settings
        self._clock = clock
        self._catalogue: dict[tuple[str, bytes], tuple[float, BoundTool]] = {}
        self._windows: dict[str, tuple[float, int]] = {}

    async def bound_tools(self, agent: agent_pb2.Agent) -> dict[str, BoundTool]:
        """The agent's tools by id; those that aren't registered any more are left out."""
        tenant = agent.name.rsplit("/agents/", 1)[0]
        bound = {}
        for binding in agent.spec.tools:
            tool = await self._bound(f"{tenant}/tools/{binding.tool}", binding)
            if tool is not None:
                bound[binding.tool] = tool
        return bound

    async def _bound(self, name: str, binding: agent_pb2.ToolBinding) -> BoundTool | None:
        key = (name, binding.SerializeToString(deterministic=True))
        cached = self._catalogue.get(key)
        now = self._clock.monotonic()
        if cached is not None and now < cached[0]:
            return cached[1]
        request = tool_service_pb2.GetToolRequest(name=name)
        try:
            response = await self._looked_up(
                lambda: self._tools.GetTool(request, timeout=LOOKUP_SECONDS)
            )
        except NotFound:
            return None
        definition = context.definition(response.tool, binding.fixed_arguments_json)
        bound = BoundTool(response.tool, binding, definition)
        if len(self._catalogue) >= CACHE_ENTRIES_MAX:
            self._catalogue.clear()
        self._catalogue[key] = (now + CATALOGUE_SECONDS, bound)
        return bound

    async def window_tokens(self, parent: str, model: str) -> int:
        """Tokens that fit in one call of the model. Raises InvalidArgument where no
        provider offers it and the window can't be known."""
        key = f"{parent}/{model}"
        cached = self._windows.get(key)
        now = self._clock.monotonic()
        if cached is not None and now < cached[0]:
            return cached[1]
        request = model_service_pb2.ListModelsRequest(parent=parent)
        listed = await self._looked_up(
            lambda: self._models.ListModels(request, timeout=LOOKUP_SECONDS)
        )
        for offered in listed.models:
            if offered.id == model or (not model and offered.is_default):
                self._windows[key] = (now + 60.0, offered.context_tokens_max)
                return offered.context_tokens_max
        # A provider may serve models that it doesn't list; the smallest window is safe.
        provider = model.split("/", 1)[0] + "/"
        windows = [m.context_tokens_max for m in listed.models if m.id.startswith(provider)]
        if not windows:
            raise InvalidArgument.of("model", f"no provider offers {model or 'a default model'}")
        self._windows[key] = (now + 60.0, min(windows))
        return min(windows)

    async def generate(
        self, request: model_service_pb2.GenerateRequest, seconds_max: float
    ) -> model_service_pb2.GenerateResponse:
        """One whole answer."""
        until = time.monotonic() + seconds_max
        return await self._once_served(
            lambda: self._models.Generate(request, timeout=_left(until)), seconds_max
        )

    async def stream(
        self, request: model_service_pb2.GenerateRequest, seconds_max: float
    ) -> AsyncGenerator[model_service_pb2.StreamGenerateResponse, None]:
        """One answer as it comes; ends with the whole. Raises ModelBadAnswer where the
        whole doesn't come."""
        asked = model_service_pb2.StreamGenerateRequest(request=request)
        until = time.monotonic() + seconds_max

        async def begun() -> tuple[_Parts, model_service_pb2.StreamGenerateResponse | None]:
            parts = aiter(self._models.StreamGenerate(asked, timeout=_left(until)))
            return parts, await anext(parts, None)

        # What was shown can't be taken back here: later parts aren't waited for.
        parts, part = await self._once_served(begun, seconds_max)
        completed = False
        while part is not None:
            completed = part.HasField("completed")
            yield part
            part = await anext(parts, None)
        if not completed:
            raise ModelBadAnswer("the model's answer ended before it was whole")

    async def call(
        self,
        session: str,
        call: session_pb2.CallState,
        binding: agent_pb2.ToolBinding,
        epoch: int,
        seconds_left: float,
        lease_held: LeaseHeld,
    ) -> tool_service_pb2.InvokeToolResponse:
        """The result of a tool call; faults of the tool are results too, for the model.

        `lease_held` is awaited right before each attempt; what it raises prevents it.
        Raises CallInDoubt where an irreversible call may or may not have taken effect.
        """
        tenant = "/".join(session.split("/")[:2])
        request = tool_service_pb2.InvokeToolRequest(
            name=f"{tenant}/tools/{call.call.tool}",
            arguments_json=context.arguments(call.call, binding.fixed_arguments_json),
            idempotency_key=call.idempotency_key,
            epoch=epoch,
        )
        timeout = min(call.timeout.ToMilliseconds() / 1000 or TOOL_SECONDS, seconds_left)
        if call.effect == options_pb2.EFFECT_IRREVERSIBLE:
            await lease_held()
            return await self._call_once(request, timeout)
        return await self._call_repeatedly(request, timeout, lease_held)

    async def _call_once(
        self, request: tool_service_pb2.InvokeToolRequest, timeout: float
    ) -> tool_service_pb2.InvokeToolResponse:
        try:
            return await self._tools.InvokeTool(request, timeout=timeout)
        except (NotFound, InvalidArgument) as error:
            # Refused before anything was done.
            return _failed(error)
        except WeftError as error:
            raise CallInDoubt from error

    async def _call_repeatedly(
        self, request: tool_service_pb2.InvokeToolRequest, timeout: float, lease_held: LeaseHeld
    ) -> tool_service_pb2.InvokeToolResponse:
        backoff = self._settings.tool_backoff_seconds
        until = time.monotonic() + timeout
        attempts = 0
        while True:
            await lease_held()
            try:
                return await self._tools.InvokeTool(request, timeout=_left(until))
            except WeftError as error:
                attempts += not is_unserved(error)
                again = isinstance(error, Unavailable | DeadlineExceeded)
                tried = attempts == self._settings.tool_attempts_max
                if not again or tried or time.monotonic() + backoff >= until:
                    return _failed(error)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)

    async def _looked_up(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What is read; who answers such a call too late is as good as away."""

        async def asked() -> T:
            try:
                return await ask()
            except DeadlineExceeded as error:
                raise Unavailable(error.message) from error

        return await self._once_served(asked, math.inf)

    async def _once_served(self, ask: Callable[[], Awaitable[T]], seconds_max: float) -> T:
        """What a service answers. While no instance of it can be reached it is asked again:
        its process may be about to start. What is in doubt by that, the caller may repeat."""
        until = time.monotonic() + min(seconds_max, self._settings.unserved_seconds)
        backoff = self._settings.tool_backoff_seconds
        while True:
            try:
                return await ask()
            except Unavailable as error:
                if not is_unserved(error) or time.monotonic() + backoff >= until:
                    raise
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)


def is_unserved(error: WeftError) -> bool:
    """Whether a service of Weft's own couldn't be reached, rather than what stands behind it."""
    return isinstance(error, Unavailable) and not isinstance(
        error, ModelUnavailable | ToolUnavailable
    )


def _left(until: float) -> float:
    return max(0.01, until - time.monotonic())


def _failed(error: WeftError) -> tool_service_pb2.InvokeToolResponse:
    return tool_service_pb2.InvokeToolResponse(
        content=error.message[:ERROR_LENGTH_MAX], is_error=True
    )


def planned_calls(
    session: str,
    turn: str,
    step: int,
    message: models_pb2.Message,
    tools: dict[str, BoundTool],
) -> list[events_pb2.PlannedCall]:
    """What the catalogue says of the calls that a model asks for. A tool that the agent
    may not call is planned as a read: the runner answers it without calling anything."""
    planned = []
    for call in message.tool_calls:
        bound = tools.get(call.tool)
        plan = events_pb2.PlannedCall(
            call_id=call.id,
            effect=bound.tool.effect if bound else options_pb2.EFFECT_READ,
            idempotency_key=f"{session}/turns/{turn}/steps/{step}/calls/{call.id}",
            requires_approval=bound.requires_approval if bound else False,
        )
        plan.timeout.FromMilliseconds(int((bound.seconds_max if bound else TOOL_SECONDS) * 1000))
        planned.append(plan)
    return planned
