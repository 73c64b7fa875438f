"""Functions as tools: described when they are registered, invoked by the functions service."""

import asyncio
import json
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from mesh.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    ToolUnavailable,
    Unavailable,
)
from services.tools.grpc_methods import Invocation
from services.tools.results import ToolResult, failed
from services.tools.untrusted_schema import SchemaRefused, accepted
from weft.functions.v1 import function_service_pb2, functions_pb2
from weft.tools.v1 import tool_service_pb2 as pb
from weft.tools.v1 import tools_pb2

ANY_OBJECT = '{"type": "object"}'


class GetMethod(Protocol):
    """The stub's GetFunction."""

    def __call__(
        self, request: function_service_pb2.GetFunctionRequest, /, *, timeout: float | None = ...
    ) -> Awaitable[function_service_pb2.GetFunctionResponse]: ...


class InvokeMethod(Protocol):
    """The stub's InvokeFunction."""

    def __call__(
        self, request: function_service_pb2.InvokeFunctionRequest, /, *, timeout: float | None = ...
    ) -> Awaitable[function_service_pb2.InvokeFunctionResponse]: ...


class FunctionStub(Protocol):
    """What tools need of a `FunctionServiceStub`."""

    @property
    def GetFunction(self) -> GetMethod: ...  # noqa: N802 - as generated stubs name it

    @property
    def InvokeFunction(self) -> InvokeMethod: ...  # noqa: N802


class FunctionTools:
    """Describes and invokes functions."""

    def __init__(self, functions: FunctionStub) -> None:
        self._functions = functions

    async def describe(
        self, request: pb.RegisterToolRequest, remaining_seconds: float
    ) -> tools_pb2.Tool:
        """What the function adds to the tool. NotFound where there is no such function or
        version, InvalidArgument where it is another tenant's or the schema is none."""
        tool = request.function
        if not tool.name.startswith(f"{request.parent}/"):
            raise InvalidArgument.of("function.name", "is of another tenant")
        schema = request.parameters_json_schema or ANY_OBJECT
        await asyncio.to_thread(_check_schema, schema)
        wanted = function_service_pb2.GetFunctionRequest(name=tool.name)
        response = await self._functions.GetFunction(wanted, timeout=remaining_seconds)
        function = response.function
        if tool.version and tool.version not in [each.version for each in function.versions]:
            raise NotFound.of("version", f"{tool.version} of {tool.name}")
        short = tool.name.rpartition("/")[2]
        return tools_pb2.Tool(
            description=function.description or f"Calls the function {short}.",
            parameters_json_schema=schema,
            function=tool,
        )

    async def invoke(
        self, tool: tools_pb2.Tool, arguments: Mapping[str, Any], invocation: Invocation
    ) -> ToolResult:
        """Invokes the tool's function once. What goes wrong in it is a result with `is_error`.
        ToolUnavailable where it can't be run right now, or didn't answer in time."""
        request = function_service_pb2.InvokeFunctionRequest(
            name=tool.function.name,
            version=tool.function.version,
            arguments_json=json.dumps(arguments, ensure_ascii=False),
            idempotency_key=invocation.idempotency_key,
        )
        try:
            response = await self._functions.InvokeFunction(
                request, timeout=invocation.timeout_seconds
            )
        except (NotFound, InvalidArgument, FailedPrecondition) as error:
            return failed(error.message)
        except LimitExceeded as error:
            raise ToolUnavailable("too many functions run right now") from error
        except (Unavailable, DeadlineExceeded) as error:
            raise ToolUnavailable("the function didn't answer") from error
        if response.HasField("error"):
            kind = functions_pb2.FunctionErrorKind.Name(response.error.kind)
            word = kind.removeprefix("FUNCTION_ERROR_KIND_").lower()
            return failed(f"{word}: {response.error.message}\n{response.error.trace}".strip())
        return ToolResult(response.result_json)


def _check_schema(schema: str) -> None:
    field = "parameters_json_schema"
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument.of(field, "isn't a JSON Schema") from error
    if not isinstance(parsed, dict) or parsed.get("type") != "object":
        raise InvalidArgument.of(field, "must be of type object")
    try:
        accepted(parsed)
    except SchemaRefused as refused:
        raise InvalidArgument.of(field, f"isn't accepted: {refused}") from refused
