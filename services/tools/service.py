"""The servicer of `weft.tools.v1.ToolService`."""

import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from mesh import failpoints
from mesh.cache.cache import Cache
from mesh.call import Call
from mesh.clock import Clock
from mesh.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionDenied,
)
from mesh.events.store import EventStore, StreamName
from mesh.ids import new_id
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.runtime.requests import request_hash
from mesh.security.keyring import Keyring
from mesh.telemetry import traces
from services.tools.batch import outcomes
from services.tools.builtins.blobs import BlobTools
from services.tools.builtins.builtin import BuiltinCall, BuiltinTools, SearchStub
from services.tools.builtins.definitions import builtin_tools, is_builtin
from services.tools.builtins.sql import databases_of
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
from services.tools.egress import EgressPolicy
from services.tools.functions import FunctionStub, FunctionTools
from services.tools.grpc_credentials import check_secrets, has_secrets, take_secrets
from services.tools.grpc_methods import GrpcMethods, Invocation
from services.tools.long_results import LongResults, session_of
from services.tools.mcp.servers import McpServers
from services.tools.registry import ToolRegistry
from services.tools.results import ToolResult
from services.tools.schema import ArgumentChecker
from services.tools.secrets import ToolSecrets
from services.tools.settings import ToolsSettings
from weft.options.v1 import options_pb2
from weft.tools.v1 import tool_service_pb2 as pb
from weft.tools.v1 import tools_pb2

if TYPE_CHECKING:
    from weft.blobs.v1.blob_service_pb2_grpc import BlobServiceAsyncStub

PAGE_SIZE = 100
PAGE_BYTES_MAX = 2_000_000
AGENTS = "agents"
"""The service that calls tools for sessions, and has judged who may."""

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*):([0-9]{1,5})")
_UNTRUSTED = (tools_pb2.TRUST_UNSPECIFIED, tools_pb2.TRUST_UNTRUSTED)
_EFFECTS = (
    options_pb2.EFFECT_READ,
    options_pb2.EFFECT_IDEMPOTENT,
    options_pb2.EFFECT_IRREVERSIBLE,
)


class ToolsService:
    """Keeps a tenant's tools and runs them. `vectors` is a `VectorServiceStub`, `functions` a
    `FunctionServiceStub`, `blobs` a `BlobServiceStub`; without it results that are too long are
    cut. MCP servers work in a folder of `data_dir`."""

    def __init__(
        self,
        settings: ToolsSettings,
        events: EventStore,
        clock: Clock,
        vectors: SearchStub,
        cache: Cache,
        keyring: Keyring,
        data_dir: Path,
        *,
        functions: FunctionStub,
        blobs: "BlobServiceAsyncStub | None" = None,
        instance: str = "",
    ) -> None:
        self._settings = settings
        self._secrets = ToolSecrets(keyring)
        kept = BlobTools(blobs, settings.content_length_max) if blobs is not None else None
        self._long_results = LongResults(kept, settings)
        self.egress = EgressPolicy(
            settings.egress_allowed_hosts,
            settings.egress_blocked_hosts,
            settings.egress_private_hosts,
        )
        self._results = CachedResults(cache)
        self._clock = clock
        self._registry = ToolRegistry(events, clock)
        self._catalogue = ToolCatalogue(events, catch_up_seconds=settings.catch_up_seconds)
        self._builtin = BuiltinTools(settings, clock, vectors, kept, self.egress)
        self._methods = GrpcMethods(settings, self._secrets)
        self._functions = FunctionTools(functions)
        self._mcp = McpServers(
            *(settings, self.egress, events, self._secrets, clock, data_dir, instance),
            self._taken_ids,
        )
        self._arguments = ArgumentChecker(settings.compiled_max)

    @property
    def handlers(self) -> Mapping[str, object]:
        return {
            "weft.tools.v1.ToolService": self,
            "weft.tools.v1.McpServerService": self._mcp,
        }

    async def start(self) -> None:
        """Returns once everything that is registered is known."""
        await self._catalogue.start()
        await self._mcp.start()

    async def stop(self) -> None:
        await self._mcp.stop()
        await self._catalogue.stop()
        await self._methods.close()
        await self._builtin.close()

    async def get_tool(self, request: pb.GetToolRequest, call: Call) -> pb.GetToolResponse:
        """NotFound where there is none."""
        return pb.GetToolResponse(tool=_shown(self._tool(request.name)))

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
                listed.grpc.ClearField("secrets")
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
        digest = request_hash(request)
        if has_secrets(request.grpc):
            digest = await self._secrets.request_hash(request)
        state, _ = await self._registry.load(stream)
        earlier = answered(state, request.request_id, digest) if request.request_id else None
        if earlier is not None and earlier.tool is not None:
            # Its first attempt may have ended before this.
            await self._results.forget(name)
            return pb.RegisterToolResponse(tool=_shown(earlier.tool))
        if self._mcp.tool(name) is not None and state.tool is None:
            raise AlreadyExists(f"{name} is a tool of an MCP server", metadata={"resource": name})
        if state.tool is None and len(self._catalogue.tools(tenant)) >= self._settings.tools_max:
            raise LimitExceeded(f"a tenant has at most {self._settings.tools_max} tools")
        command = Register(await self._described(name, request, call), digest)
        request_id = request.request_id or new_id()
        outcome = await self._registry.execute(stream, command, request_id, call)
        self._catalogue.put(stream, outcome.revision, outcome.state.tool)
        await self._results.forget(name)
        return pb.RegisterToolResponse(tool=_shown(outcome.request.tool))

    async def delete_tool(self, request: pb.DeleteToolRequest, call: Call) -> pb.DeleteToolResponse:
        """NotFound where nothing is registered, InvalidArgument for a built-in tool, or one
        of an MCP server."""
        stream = tool_stream(request.name)
        if self._catalogue.find(stream) is None:
            self._refuse_not_registered(request.name)
        request_id = request.request_id or new_id()
        outcome = await self._registry.execute(stream, Delete(request.name), request_id, call)
        self._catalogue.put(stream, outcome.revision, outcome.state.tool)
        await self._results.forget(request.name)
        return pb.DeleteToolResponse()

    async def invoke_tool(self, request: pb.InvokeToolRequest, call: Call) -> pb.InvokeToolResponse:
        """Checks the arguments and runs the tool once.

        Raises PermissionDenied where the caller lacks what the tool wants, ArgumentsRefused, an
        InvalidArgument, before anything is run, and
        ToolUnavailable where its server can't be reached or didn't answer in time. What
        goes wrong within the tool is a result with `is_error`, for the model to read.
        """
        key = request.idempotency_key
        if not (key.isascii() and key.isprintable()):
            raise InvalidArgument.of("idempotency_key", "must be printable ASCII")
        tool = self._tool(request.name)
        _check_scopes(tool, call)
        arguments = self._arguments.check(tool, request.arguments_json)
        run = partial(self._answer, tool, arguments, request, call)
        if tool.HasField("cache_ttl"):
            return await self._results.get(tool, arguments, key, run)
        return await run()

    async def batch_invoke(
        self, request: pb.BatchInvokeRequest, call: Call
    ) -> AsyncGenerator[pb.BatchInvokeResponse, None]:
        """What became of each call, as `invoke_tool` tells it, in the order of their ends."""

        async def invoke(item: pb.BatchInvokeItem) -> pb.InvokeToolResponse:
            return await self.invoke_tool(
                pb.InvokeToolRequest(
                    name=f"{request.parent}/tools/{item.tool}",
                    arguments_json=item.arguments_json,
                    idempotency_key=item.idempotency_key,
                ),
                call,
            )

        bound = self._settings.batch_running_max
        running_max = min(request.running_calls_max or bound, bound)
        async with aclosing(outcomes(request.items, invoke, running_max)) as ended:
            async for response in ended:
                yield response

    async def _answer(
        self,
        tool: tools_pb2.Tool,
        arguments: Mapping[str, object],
        request: pb.InvokeToolRequest,
        call: Call,
    ) -> pb.InvokeToolResponse:
        tenant = tool.name.split("/")[1]
        result = await self._run(tool, arguments, request, call)
        key = request.idempotency_key
        session = session_of(tenant, key) if call.caller == AGENTS else ""
        left = call.remaining_seconds()
        response = await self._long_results.answer(tenant, result, session, key, left)
        response.untrusted |= tool.trust in _UNTRUSTED
        return response

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
                session = session_of(tenant, key) if call.caller == AGENTS else ""
                result = await self._builtin.invoke(
                    BuiltinCall(tenant, tool_id, arguments, timeout_seconds, session, key)
                )
            else:
                invocation = Invocation(timeout_seconds, key, request.epoch, span.traceparent)
                result = await self._runner(tool).invoke(tool, arguments, invocation)
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
            tool = await self._described_method(tool_stream(name), request, remaining_seconds)
        tool.name = name
        tool.description = request.description or tool.description
        tool.effect = request.effect
        tool.requires_approval = request.requires_approval
        tool.trust = request.trust or tools_pb2.TRUST_UNTRUSTED
        tool.required_scopes.extend(request.required_scopes)
        tool.timeout.FromNanoseconds(int(self._settings.timeout_seconds * 1e9))
        if request.HasField("timeout"):
            tool.timeout.CopyFrom(request.timeout)
        if request.HasField("cache_ttl"):
            tool.cache_ttl.CopyFrom(request.cache_ttl)
        tool.create_time.FromNanoseconds(self._clock.now_ns())
        return with_etag(tool)

    async def _described_method(
        self, stream: StreamName, request: pb.RegisterToolRequest, remaining_seconds: float
    ) -> tools_pb2.Tool:
        grpc = tools_pb2.GrpcTool()
        grpc.CopyFrom(request.grpc)
        values = take_secrets(grpc)
        method = await self._methods.describe(grpc, values, remaining_seconds)
        grpc.descriptors.CopyFrom(method.descriptors)
        sealed = await self._secrets.seal(stream, values)
        if sealed is not None:
            grpc.secrets.CopyFrom(sealed)
        return tools_pb2.Tool(
            description=method.description,
            parameters_json_schema=method.parameters_json_schema,
            grpc=grpc,
        )

    def _runner(self, tool: tools_pb2.Tool) -> McpServers | FunctionTools | GrpcMethods:
        """What calls a tool that isn't built in."""
        if tool.HasField("mcp"):
            return self._mcp
        return self._functions if tool.HasField("function") else self._methods

    def _tool(self, name: str) -> tools_pb2.Tool:
        _, tenant, _, tool_id = name.split("/")
        # What was registered before there was a built-in tool of that name stays what it is.
        tool = (
            self._catalogue.find(tool_stream(name))
            or self._builtins(tenant).get(tool_id)
            or self._mcp.tool(name)
        )
        if tool is None:
            raise NotFound.of("tool", name)
        return tool

    def _builtins(self, tenant: str) -> Mapping[str, tools_pb2.Tool]:
        return builtin_tools(tenant, databases_of(self._settings, tenant))

    def _sorted(self, parent: str) -> list[tuple[str, tools_pb2.Tool]]:
        """The tenant's tools by the key that orders them, which page tokens hold."""
        tenant = parent.split("/")[1]
        registered = {tool.name: tool for tool in self._catalogue.tools(tenant)}
        builtin = {tool.name: tool for tool in self._builtins(tenant).values()}
        of_servers = {tool.name: tool for tool in self._mcp.tools(tenant)}
        entries = [
            (f"{int(name in registered or name not in builtin)}/{name}", tool)
            for name, tool in (of_servers | builtin | registered).items()
        ]
        return sorted(entries, key=lambda entry: entry[0])

    def _taken_ids(self, tenant: str) -> Collection[str]:
        """Ids of the tenant's tools that aren't of MCP servers."""
        registered = (tool.name.rpartition("/")[2] for tool in self._catalogue.tools(tenant))
        return {*self._builtins(tenant), *registered}

    def _refuse_not_registered(self, name: str) -> None:
        """InvalidArgument where a tool that wasn't registered has that name."""
        if is_builtin(name.rpartition("/")[2]):
            raise InvalidArgument.of("name", "is a built-in tool, which can't be deleted")
        of_server = self._mcp.tool(name)
        if of_server is not None:
            server = of_server.mcp.server
            raise InvalidArgument.of("name", f"is a tool of {server}; exclude it by a rule there")


def _check_scopes(tool: tools_pb2.Tool, call: Call) -> None:
    # What another of Weft's services asks for was decided where the call came in.
    if call.principal is None or call.caller:
        return
    tenant = tool.name.partition("/tools/")[0]
    for scope in tool.required_scopes:
        if not call.principal.allows(scope, tenant):
            raise PermissionDenied(
                f"needs the permission {scope} for {tenant}, which the tool wants",
                metadata={"permission": scope, "resource": tenant},
            )


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
    check_secrets(request.grpc)
    match = _ADDRESS.fullmatch(request.grpc.address)
    if match is None or not 0 < int(match[1]) < 65_536:
        raise InvalidArgument.of("grpc.address", "must be host:port, such as localhost:50051")


def _shown(tool: tools_pb2.Tool | None) -> tools_pb2.Tool | None:
    """The tool without what is nobody's."""
    if tool is None or not tool.grpc.HasField("secrets"):
        return tool
    shown = tools_pb2.Tool()
    shown.CopyFrom(tool)
    shown.grpc.ClearField("secrets")
    return shown


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
