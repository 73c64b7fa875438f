"""The servicer of `weft.tools.v1.ToolService`."""

import hashlib
import re
from collections.abc import Mapping
from functools import partial

from google.protobuf.duration_pb2 import Duration

from mesh import failpoints
from mesh.cache.cache import Cache
from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, LimitExceeded, NotFound
from mesh.events.store import EventStore
from mesh.ids import new_id
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.telemetry import traces
from services.tools.builtin import BuiltinTools, SearchStub, builtin_tools, is_builtin
from services.tools.cached_results import CachedResults
from services.tools.catalogue import ToolCatalogue
from services.tools.domain import (
    Delete,
    Register,
    answered,
    tool_name,
    tool_stream,
    with_etag,
)
from services.tools.functions import FunctionStub, FunctionTools
from services.tools.grpc_methods import GrpcMethods, Invocation
from services.tools.registry import ToolRegistry
from services.tools.results import ToolResult, cut
from services.tools.schema import ArgumentChecker
from services.tools.settings import ToolsSettings
from weft.options.v1 import options_pb2
from weft.tools.v1 import tool_service_pb2 as pb
from weft.tools.v1 import tools_pb2

PAGE_SIZE = 100
PAGE_BYTES_MAX = 2_000_000
SOURCES_MAX = 100

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*):([0-9]{1,5})")
_EFFECTS = (
    options_pb2.EFFECT_READ,
    options_pb2.EFFECT_IDEMPOTENT,
    options_pb2.EFFECT_IRREVERSIBLE,
)


class ToolsService:
    """Keeps a tenant's tools and runs them. `vectors` is a `VectorServiceStub`, `functions` a
    `FunctionServiceStub`."""

    def __init__(
        self,
        settings: ToolsSettings,
        events: EventStore,
        clock: Clock,
        vectors: SearchStub,
        cache: Cache,
        functions: FunctionStub,
    ) -> None:
        self._settings = settings
        self._results = CachedResults(cache)
        self._clock = clock
        self._registry = ToolRegistry(events, clock)
        self._catalogue = ToolCatalogue(events, catch_up_seconds=settings.catch_up_seconds)
        self._builtin = BuiltinTools(clock, vectors)
        self._methods = GrpcMethods(settings)
        self._functions = FunctionTools(functions)
        self._arguments = ArgumentChecker(settings.compiled_max)

    @property
    def handlers(self) -> Mapping[str, object]:
        return {"weft.tools.v1.ToolService": self}

    async def start(self) -> None:
        """Returns once everything that is registered is known."""
        await self._catalogue.start()

    async def stop(self) -> None:
        await self._catalogue.stop()
        await self._methods.close()

    async def get_tool(self, request: pb.GetToolRequest, call: Call) -> pb.GetToolResponse:
        """NotFound where there is none."""
        return pb.GetToolResponse(tool=self._tool(request.name))

    async def list_tools(self, request: pb.ListToolsRequest, call: Call) -> pb.ListToolsResponse:
        """Built-in tools first, then by id; without the descriptors of gRPC methods."""
        after = read_page_token(request.page_token, request.parent)
        rest = [(key, tool) for key, tool in self._sorted(request.parent) if key > after]
        response = pb.ListToolsResponse()
        last = after
        for key, tool in rest[: request.page_size or PAGE_SIZE]:
            listed = response.tools.add()
            listed.CopyFrom(tool)
            if tool.HasField("grpc"):
                listed.grpc.ClearField("descriptors")
            last = key
            if response.ByteSize() > PAGE_BYTES_MAX:
                break
        if len(response.tools) < len(rest):
            response.next_page_token = write_page_token(last, request.parent)
        return response

    async def register_tool(
        self, request: pb.RegisterToolRequest, call: Call
    ) -> pb.RegisterToolResponse:
        """Asks for the method's or function's description and stores the tool.

        Raises AlreadyExists for the id of a built-in tool, LimitExceeded past the bound
        on tools, and what `GrpcMethods.describe` and `FunctionTools.describe` raise.
        """
        _check_registration(request)
        tenant = request.parent.split("/")[1]
        name = tool_name(tenant, request.tool_id)
        stream = tool_stream(name)
        digest = _digest(request)
        state, _ = await self._registry.load(stream)
        earlier = answered(state, request.request_id, digest) if request.request_id else None
        if earlier is not None and earlier.tool is not None:
            # Its first attempt may have ended before this.
            await self._results.forget(name)
            return pb.RegisterToolResponse(tool=earlier.tool)
        if state.tool is None and len(self._catalogue.tools(tenant)) >= self._settings.tools_max:
            raise LimitExceeded(f"a tenant has at most {self._settings.tools_max} tools")
        command = Register(await self._described(name, request, call), digest)
        request_id = request.request_id or new_id()
        outcome = await self._registry.execute(stream, command, request_id, call)
        self._catalogue.put(stream, outcome.revision, outcome.state.tool)
        await self._results.forget(name)
        return pb.RegisterToolResponse(tool=outcome.request.tool)

    async def delete_tool(self, request: pb.DeleteToolRequest, call: Call) -> pb.DeleteToolResponse:
        """NotFound where nothing is registered, InvalidArgument for a built-in tool."""
        if is_builtin(request.name.rpartition("/")[2]):
            raise InvalidArgument.of("name", "is a built-in tool, which can't be deleted")
        stream = tool_stream(request.name)
        request_id = request.request_id or new_id()
        outcome = await self._registry.execute(stream, Delete(request.name), request_id, call)
        self._catalogue.put(stream, outcome.revision, outcome.state.tool)
        await self._results.forget(request.name)
        return pb.DeleteToolResponse()

    async def invoke_tool(self, request: pb.InvokeToolRequest, call: Call) -> pb.InvokeToolResponse:
        """Checks the arguments and runs the tool once.

        Raises ArgumentsRefused, an InvalidArgument, before anything is run, and
        ToolUnavailable where its server can't be reached or didn't answer in time. What
        goes wrong within the tool is a result with `is_error`, for the model to read.
        """
        key = request.idempotency_key
        if not (key.isascii() and key.isprintable()):
            raise InvalidArgument.of("idempotency_key", "must be printable ASCII")
        tool = self._tool(request.name)
        arguments = self._arguments.check(tool, request.arguments_json)
        run = partial(self._answer, tool, arguments, request, call)
        if tool.HasField("cache_ttl"):
            return await self._results.get(tool, arguments, key, run)
        return await run()

    async def _answer(
        self,
        tool: tools_pb2.Tool,
        arguments: Mapping[str, object],
        request: pb.InvokeToolRequest,
        call: Call,
    ) -> pb.InvokeToolResponse:
        result = await self._run(tool, arguments, request, call)
        return pb.InvokeToolResponse(
            content=cut(result.content, self._settings.content_length_max),
            is_error=result.is_error,
            sources=result.sources[:SOURCES_MAX],
        )

    async def _run(
        self,
        tool: tools_pb2.Tool,
        arguments: Mapping[str, object],
        request: pb.InvokeToolRequest,
        call: Call,
    ) -> ToolResult:
        _, tenant, _, tool_id = tool.name.split("/")
        timeout_seconds = min(_seconds(tool.timeout), call.remaining_seconds())
        if timeout_seconds <= 0:
            raise DeadlineExceeded("the deadline passed before the tool was called")
        if failpoints.active():
            failpoints.failpoint(f"tool:{tool_id}:before")
        key = request.idempotency_key
        with traces.tool_span(tool_id, key, call.traceparent) as span:
            if tool.HasField("builtin"):
                result = await self._builtin.invoke(tenant, tool_id, arguments, timeout_seconds)
            else:
                invocation = Invocation(timeout_seconds, key, request.epoch, span.traceparent)
                runs = self._functions if tool.HasField("function") else self._methods
                result = await runs.invoke(tool, arguments, invocation)
        if failpoints.active():
            failpoints.failpoint(f"tool:{tool_id}:after")
        return result

    async def _described(
        self, name: str, request: pb.RegisterToolRequest, call: Call
    ) -> tools_pb2.Tool:
        """The tool as it is to be stored."""
        remaining_seconds = call.remaining_seconds()
        if request.HasField("function"):
            tool = await self._functions.describe(request, remaining_seconds)
        else:
            tool = await self._described_method(request, remaining_seconds)
        tool.name = name
        tool.description = request.description or tool.description
        tool.effect = request.effect
        tool.requires_approval = request.requires_approval
        tool.timeout.FromNanoseconds(int(self._settings.timeout_seconds * 1e9))
        if request.HasField("timeout"):
            tool.timeout.CopyFrom(request.timeout)
        if request.HasField("cache_ttl"):
            tool.cache_ttl.CopyFrom(request.cache_ttl)
        tool.create_time.FromNanoseconds(self._clock.now_ns())
        return with_etag(tool)

    async def _described_method(
        self, request: pb.RegisterToolRequest, remaining_seconds: float
    ) -> tools_pb2.Tool:
        method = await self._methods.describe(
            request.grpc.address, request.grpc.method, remaining_seconds
        )
        return tools_pb2.Tool(
            description=method.description,
            parameters_json_schema=method.parameters_json_schema,
            grpc=tools_pb2.GrpcTool(
                address=request.grpc.address,
                method=request.grpc.method,
                descriptors=method.descriptors,
            ),
        )

    def _tool(self, name: str) -> tools_pb2.Tool:
        _, tenant, _, tool_id = name.split("/")
        if is_builtin(tool_id):
            return builtin_tools(tenant)[tool_id]
        tool = self._catalogue.find(tool_stream(name))
        if tool is None:
            raise NotFound.of("tool", name)
        return tool

    def _sorted(self, parent: str) -> list[tuple[str, tools_pb2.Tool]]:
        """The tenant's tools by the key that orders them, which page tokens hold."""
        tenant = parent.split("/")[1]
        builtin = [(f"0/{tool.name}", tool) for tool in builtin_tools(tenant).values()]
        registered = [(f"1/{tool.name}", tool) for tool in self._catalogue.tools(tenant)]
        return sorted(builtin + registered, key=lambda entry: entry[0])


def _check_registration(request: pb.RegisterToolRequest) -> None:
    if is_builtin(request.tool_id):
        name = f"{request.parent}/tools/{request.tool_id}"
        raise AlreadyExists(f"{name} is a built-in tool", metadata={"resource": name})
    if request.effect not in _EFFECTS:
        raise InvalidArgument.of("effect", "must be read, idempotent or irreversible")
    if request.HasField("timeout") and _seconds(request.timeout) <= 0:
        raise InvalidArgument.of("timeout", "must be more than 0")
    if request.HasField("cache_ttl"):
        if request.effect != options_pb2.EFFECT_READ:
            raise InvalidArgument.of("cache_ttl", "is for tools that only read")
        if _seconds(request.cache_ttl) <= 0:
            raise InvalidArgument.of("cache_ttl", "must be more than 0")
    if request.HasField("grpc") == request.HasField("function"):
        raise InvalidArgument.of("grpc", "either a method or a function makes a tool")
    if request.HasField("function"):
        return
    if request.parameters_json_schema:
        raise InvalidArgument.of("parameters_json_schema", "is for functions")
    match = _ADDRESS.fullmatch(request.grpc.address)
    if match is None or not 0 < int(match[1]) < 65_536:
        raise InvalidArgument.of("grpc.address", "must be host:port, such as localhost:50051")


def _digest(request: pb.RegisterToolRequest) -> bytes:
    body = pb.RegisterToolRequest()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
