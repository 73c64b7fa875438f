"""Methods of gRPC servers as tools: describing them, and calling them."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from mesh.errors import InvalidArgument, LimitExceeded, NotFound, ToolUnavailable
from services.tools.channels import Channels
from services.tools.comments import comments_of
from services.tools.domain import tool_stream
from services.tools.grpc_credentials import (
    NOT_TRUSTED,
    ServerAccess,
    is_not_trusted,
    metadata_of,
)
from services.tools.lru import Lru
from services.tools.message_schema import message_schema
from services.tools.reflection import ReflectionBounds, build_pool, describe_service
from services.tools.results import ToolResult, cut, failed
from services.tools.schema import ArgumentsRefused
from services.tools.secrets import ToolSecrets, Values
from services.tools.settings import ToolsSettings
from weft.tools.v1 import tools_pb2

SCHEMA_LENGTH_MAX = 262_144
DESCRIPTION_LENGTH_MAX = 8_192
STATUS_LENGTH_MAX = 1_000
REQUESTS = "requests"
"""The one argument of a method whose client streams: an array of requests."""

_NOT_DESCRIBED = "the tool ran, but its answer isn't the message that it described"
_UNANSWERED = {
    grpc.StatusCode.UNAVAILABLE: "can't be reached",
    grpc.StatusCode.DEADLINE_EXCEEDED: "took too long",
}
_TOO_LARGE = ("CLIENT: Received message larger", "Received message larger")
_BROKEN_OFF_CODES = frozenset(
    (
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
    )
)
# How the texts of grpcio 1.78.2 begin where the server didn't say how the call ended.
_BROKEN_OFF = (
    "No status received",
    "Received RST_STREAM",
    "Received http2 header with status",
    "Stream removed",
)


@dataclass(frozen=True, slots=True)
class DescribedMethod:
    """What is told of a method. `descriptors` are without comments."""

    description: str
    parameters_json_schema: str
    descriptors: descriptor_pb2.FileDescriptorSet


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a server is told of a call besides its arguments. `epoch` is 0 where nobody
    owns the call, `idempotency_key` and `traceparent` are empty where there is none."""

    timeout_seconds: float
    idempotency_key: str = ""
    epoch: int = 0
    traceparent: str = ""

    def metadata(self) -> list[tuple[str, str]]:
        """The call's metadata."""
        pairs = [
            ("idempotency-key", self.idempotency_key),
            ("x-weft-epoch", str(self.epoch) if self.epoch else ""),
            ("traceparent", self.traceparent),
        ]
        return [(key, value) for key, value in pairs if value]


@dataclass(frozen=True, slots=True)
class _Compiled:
    pool: Any
    request_type: type[Message]
    response_type: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def streams(self) -> bool:
        """Whether there are more messages than one, either way."""
        return self.client_streaming or self.server_streaming

    def requests(self, arguments: Mapping[str, Any]) -> Sequence[Message]:
        """The requests that the arguments are. ArgumentsRefused where they don't fit."""
        bodies = arguments[REQUESTS] if self.client_streaming else [arguments]
        requests = []
        for body in bodies:
            request = self.request_type()
            try:
                json_format.ParseDict(body, request, descriptor_pool=self.pool)
            except (json_format.ParseError, TypeError, ValueError) as error:
                text = cut(f"the arguments don't fit the request: {error}", STATUS_LENGTH_MAX)
                raise ArgumentsRefused(text) from None
            requests.append(request)
        return requests


class GrpcMethods:
    """Describes and calls methods of gRPC servers."""

    def __init__(self, settings: ToolsSettings, secrets: ToolSecrets) -> None:
        self._settings = settings
        self._secrets = secrets
        self._channels = Channels(settings.channels_max, settings.response_bytes_max)
        self._compiled: Lru[str, _Compiled] = Lru(settings.compiled_max)

    async def close(self) -> None:
        """Closes all connections."""
        await self._channels.close()

    async def describe(
        self, tool: tools_pb2.GrpcTool, secrets: Values, remaining_seconds: float
    ) -> DescribedMethod:
        """What is told of the tool's method: by its descriptors, where it brings them, else by
        its server.

        Raises NotFound, InvalidArgument where the method takes no JSON object, LimitExceeded
        past the bounds, and what `describe_service` raises.
        """
        service, _, name = tool.method.partition("/")
        bounds = ReflectionBounds(
            seconds=min(self._settings.reflection_seconds, remaining_seconds),
            files_max=self._settings.reflection_files_max,
            bytes_max=self._settings.reflection_bytes_max,
        )
        if tool.descriptors.file:
            files = descriptor_pb2.FileDescriptorSet()
            files.CopyFrom(tool.descriptors)
            bounds.check(len(files.file), files.ByteSize())
        else:
            metadata = metadata_of(tool, secrets)
            async with self._channels.use(ServerAccess(tool, secrets)) as channel:
                files = await describe_service(channel, tool.address, service, bounds, metadata)
        found = _method(build_pool(files), service, name)
        comments = comments_of(files)
        try:
            schema = message_schema(found.input_type, comments)
        except RecursionError:
            raise LimitExceeded("the request's messages lead too deep to be described") from None
        if schema is None:
            raise InvalidArgument.of("grpc.method", "takes a request that is no JSON object")
        if found.client_streaming:
            schema = _streamed(schema, self._settings.stream_items_max)
        written = json.dumps(schema, ensure_ascii=False)
        if len(written) > SCHEMA_LENGTH_MAX:
            raise LimitExceeded(
                f"the schema of a request has at most {SCHEMA_LENGTH_MAX} characters"
            )
        for file in files.file:
            file.ClearField("source_code_info")
        sentence = f"Calls {name} of {service}."
        description = comments.get(found.full_name) or sentence
        return DescribedMethod(cut(description, DESCRIPTION_LENGTH_MAX), written, files)

    async def invoke(
        self, tool: tools_pb2.Tool, arguments: Mapping[str, Any], invocation: Invocation
    ) -> ToolResult:
        """Calls the tool's method once.

        Raises ArgumentsRefused where the request's type can't hold the arguments. A status
        that the server answers is a result with `is_error`. ToolUnavailable where it can't
        be reached, broke the call off or didn't answer in time, LimitExceeded where its
        answer is too large to be read: then it may have run.
        """
        method = self._compiled.get(tool.etag, lambda: _compile(tool.grpc))
        requests = method.requests(arguments)
        secrets = await self._secrets.open(tool_stream(tool.name), tool.grpc.secrets)
        metadata = [*invocation.metadata(), *metadata_of(tool.grpc, secrets)]
        try:
            async with self._channels.use(ServerAccess(tool.grpc, secrets)) as channel:
                call = partial(
                    _callable(channel, f"/{tool.grpc.method}", method),
                    timeout=invocation.timeout_seconds,
                    metadata=metadata,
                )
                if method.streams:
                    return await self._collected(call(_stream(requests)), method)
                # None where the answer can't be parsed: grpc logs it and says no more.
                response: Message | None = await call(requests[0])
        except grpc.aio.AioRpcError as error:
            return self._failure(tool.grpc.address, error)
        return failed(_NOT_DESCRIBED) if response is None else _result([response], method)

    async def _collected(self, answers: Any, method: _Compiled) -> ToolResult:
        """What a stream brings, up to the bounds and within the time; then the call is ended."""
        responses: list[Message] = []
        size = 0
        try:
            async for response in answers:
                if response is None:
                    return failed(_NOT_DESCRIBED)
                size += response.ByteSize()
                is_full = len(responses) >= self._settings.stream_items_max
                if is_full or (responses and size > self._settings.response_bytes_max):
                    return _cut_off(responses, method)
                responses.append(response)
        except grpc.aio.AioRpcError as error:
            is_over = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if not (is_over and responses and method.server_streaming):
                raise
            return _cut_off(responses, method)
        finally:
            answers.cancel()
        if not responses and not method.server_streaming:
            return failed("the tool ran, but its server sent no answer")
        return _result(responses, method)

    def _failure(self, address: str, error: grpc.aio.AioRpcError) -> ToolResult:
        """What the server said of its failure; raises where grpc said it in its stead."""
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(_TOO_LARGE):
            raise LimitExceeded(
                "the tool ran, but its answer can't be read: it has more than"
                f" {self._settings.response_bytes_max} bytes"
            ) from error
        reason = _UNANSWERED.get(code)
        if code in _BROKEN_OFF_CODES and details.startswith(_BROKEN_OFF):
            reason = "broke the call off, and may have run it"
        if is_not_trusted(error):
            reason = NOT_TRUSTED
        if reason is not None:
            raise ToolUnavailable(f"the tool's server at {address} {reason}") from error
        return failed(cut(f"{code.name}: {details or 'no message'}", STATUS_LENGTH_MAX))


def _method(pool: Any, service: str, name: str) -> MethodDescriptor:
    try:
        found: MethodDescriptor = pool.FindServiceByName(service).methods_by_name[name]
    except KeyError:
        raise NotFound.of("method", f"{service}/{name}") from None
    return found


def _compile(grpc_tool: tools_pb2.GrpcTool) -> _Compiled:
    pool = build_pool(grpc_tool.descriptors)
    service, _, name = grpc_tool.method.partition("/")
    method = _method(pool, service, name)
    return _Compiled(
        pool,
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
        method.client_streaming,
        method.server_streaming,
    )


def _callable(channel: grpc.aio.Channel, path: str, method: _Compiled) -> Any:
    """The method; one that streams either way as one that does both: on the wire a single
    message is a short stream."""
    kind = channel.stream_stream if method.streams else channel.unary_unary
    make: Any = kind
    return make(
        path,
        request_serializer=method.request_type.SerializeToString,
        response_deserializer=method.response_type.FromString,
    )


async def _stream(requests: Sequence[Message]) -> AsyncIterator[Message]:
    for request in requests:
        yield request


def _streamed(schema: Mapping[str, Any], items_max: int) -> dict[str, Any]:
    """The schema of an array of requests. References to the request's own schema stay right:
    it becomes a definition."""
    request = dict(schema)
    definitions = request.pop("$defs", {})
    moved = json.loads(
        json.dumps({"request": request, **definitions}).replace('"$ref": "#"', _REQUEST_REFERENCE)
    )
    return {
        "type": "object",
        "properties": {
            REQUESTS: {
                "type": "array",
                "description": "The requests, in the order in which they are sent.",
                "items": {"$ref": "#/$defs/request"},
                "maxItems": items_max,
            }
        },
        "required": [REQUESTS],
        "additionalProperties": False,
        "$defs": moved,
    }


_REQUEST_REFERENCE = '"$ref": "#/$defs/request"'


def _cut_off(responses: Sequence[Message], method: _Compiled) -> ToolResult:
    result = _result(responses, method)
    note = f"\n[cut: the stream went on behind {len(responses)} messages]"
    return replace(result, content=result.content + note)


def _result(responses: Sequence[Message], method: _Compiled) -> ToolResult:
    """The answer as JSON; an array of what was streamed."""
    try:
        written = [
            json_format.MessageToDict(
                response,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
                descriptor_pool=method.pool,
            )
            for response in responses
        ]
    except (json_format.Error, TypeError, ValueError):
        return failed("the tool ran, but its answer can't be written as JSON")
    content = written if method.server_streaming else written[0]
    return ToolResult(json.dumps(content, ensure_ascii=False))
