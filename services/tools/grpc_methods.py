"""Methods of gRPC servers as tools: describing them, and calling them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from mesh.errors import InvalidArgument, LimitExceeded, NotFound, ToolUnavailable
from services.tools.channels import Channels
from services.tools.comments import comments_of
from services.tools.lru import Lru
from services.tools.message_schema import message_schema
from services.tools.reflection import ReflectionBounds, build_pool, describe_service
from services.tools.results import ToolResult, cut, failed
from services.tools.schema import ArgumentsRefused
from services.tools.settings import ToolsSettings
from weft.tools.v1 import tools_pb2

SCHEMA_LENGTH_MAX = 262_144
DESCRIPTION_LENGTH_MAX = 8_192
STATUS_LENGTH_MAX = 1_000

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
    """What reflection tells of a method. `descriptors` are without comments."""

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


class GrpcMethods:
    """Describes and calls the methods of servers that speak reflection."""

    def __init__(self, settings: ToolsSettings) -> None:
        self._settings = settings
        self._channels = Channels(settings.channels_max, settings.response_bytes_max)
        self._compiled: Lru[str, _Compiled] = Lru(settings.compiled_max)

    async def close(self) -> None:
        """Closes all connections."""
        await self._channels.close()

    async def describe(
        self, address: str, method: str, remaining_seconds: float
    ) -> DescribedMethod:
        """What the server at `address` tells of `package.Service/Method`.

        Raises NotFound, InvalidArgument where the method streams or takes no JSON
        object, and what `describe_service` raises.
        """
        service, _, name = method.partition("/")
        bounds = ReflectionBounds(
            seconds=min(self._settings.reflection_seconds, remaining_seconds),
            files_max=self._settings.reflection_files_max,
            bytes_max=self._settings.reflection_bytes_max,
        )
        async with self._channels.use(address) as channel:
            files = await describe_service(channel, address, service, bounds)
        found = _method(build_pool(files), service, name)
        if found.client_streaming or found.server_streaming:
            raise InvalidArgument.of("grpc.method", "streams; only unary methods can be tools")
        comments = comments_of(files)
        schema = message_schema(found.input_type, comments)
        if schema is None:
            raise InvalidArgument.of("grpc.method", "takes a request that is no JSON object")
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
        request = method.request_type()
        try:
            json_format.ParseDict(arguments, request, descriptor_pool=method.pool)
        except (json_format.ParseError, TypeError, ValueError) as error:
            text = cut(f"the arguments don't fit the request: {error}", STATUS_LENGTH_MAX)
            raise ArgumentsRefused(text) from None
        try:
            async with self._channels.use(tool.grpc.address) as channel:
                call = channel.unary_unary(
                    f"/{tool.grpc.method}",
                    request_serializer=method.request_type.SerializeToString,
                    response_deserializer=method.response_type.FromString,
                )
                # None where the answer can't be parsed: grpc logs it and says no more.
                response: Message | None = await call(
                    request,
                    timeout=invocation.timeout_seconds,
                    metadata=invocation.metadata(),
                )
        except grpc.aio.AioRpcError as error:
            return self._failure(tool.grpc.address, error)
        if response is None:
            return failed("the tool ran, but its answer isn't the message that it described")
        return _result(response, method.pool)

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
    )


def _result(response: Message, pool: Any) -> ToolResult:
    try:
        content = json_format.MessageToDict(
            response,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            descriptor_pool=pool,
        )
    except (json_format.Error, TypeError, ValueError):
        return failed("the tool ran, but its answer can't be written as JSON")
    return ToolResult(json.dumps(content, ensure_ascii=False))
