"""Calls of tools against the same calls without Weft: a built-in one, a method of a gRPC server,
a tool of an MCP server over stdio. The tools service in one process, its event store in memory;
the servers in processes of their own."""

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from services.tools.builtins import calculator
from tests.benchmarks.measure import alternate, median_ms
from tests.benchmarks.results import Baseline, Result
from tests.support.ledger_server import LEDGER
from tests.support.mcp_tools import FAULTY_COMMAND, PARENT, McpTools, a_call, mcp_tools
from tests.support.processes import running, until
from tests.support.protos import message_type
from weft.options.v1 import options_pb2
from weft.tools.v1 import tool_service_pb2 as pb
from weft.tools.v1 import tools_pb2

ROUNDS = 9
CALLS = 200
EXPRESSION = "(2 + 3) * 1.5"


async def run() -> list[Result]:
    """The results of the rounds."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tools = await stack.enter_async_context(mcp_tools(folder / "data"))
        address = await _ledger(stack, folder)
        method = tools_pb2.GrpcTool(address=address, method=f"{LEDGER}/Balance")
        request = pb.RegisterToolRequest(
            parent=PARENT, tool_id="balance", grpc=method, effect=options_pb2.EFFECT_READ
        )
        await tools.service.register_tool(request, a_call())
        await tools.add("s")
        works: dict[str, Callable[[], Awaitable[object]]] = {
            "built-in": _calling(tools, "calculator", f'{{"expression": "{EXPRESSION}"}}'),
            "evaluate": _evaluated,
            "gRPC": _calling(tools, "balance", '{"account": "ann"}'),
            "bare gRPC": await _bare_grpc(stack, address),
            "MCP": _calling(tools, "s-echo", '{"a": 1}'),
            "bare MCP": await _bare_mcp(stack),
        }
        variants = {name: _measured(work) for name, work in works.items()}
        await alternate(1, variants)
        values = await alternate(ROUNDS, variants)
    return [
        Result(
            "built-in tool", "ms", values["built-in"], Baseline("its function", values["evaluate"])
        ),
        Result(
            "gRPC method as a tool",
            "ms",
            values["gRPC"],
            Baseline("the bare call", values["bare gRPC"]),
        ),
        Result(
            "MCP tool over stdio",
            "ms",
            values["MCP"],
            Baseline("the bare client", values["bare MCP"]),
        ),
    ]


def _measured(work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
    return lambda: median_ms(work, CALLS)


def _calling(tools: McpTools, tool_id: str, arguments: str) -> Callable[[], Awaitable[object]]:
    request = pb.InvokeToolRequest(name=f"{PARENT}/tools/{tool_id}", arguments_json=arguments)
    return lambda: tools.service.invoke_tool(request, a_call())


async def _evaluated() -> str:
    return calculator.evaluate(EXPRESSION)


async def _ledger(stack: AsyncExitStack, folder: Path) -> str:
    """Starts the server; its address."""
    file = folder / "address"
    await stack.enter_async_context(
        running(
            "tests.support.ledger_server",
            *("--port", 0, "--file", folder / "ledger", "--address-file", file),
        )
    )
    await until(lambda: file.exists() and bool(file.read_text()))
    return file.read_text().strip()


async def _bare_grpc(stack: AsyncExitStack, address: str) -> Callable[[], Awaitable[object]]:
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    request_type: Any = message_type("ledger.v1.BalanceRequest")
    response_type: Any = message_type("ledger.v1.BalanceResponse")
    method: Any = channel.unary_unary(
        f"/{LEDGER}/Balance",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )
    request = request_type(account="ann")

    async def call() -> object:
        return await method(request, timeout=30)

    return call


async def _bare_mcp(stack: AsyncExitStack) -> Callable[[], Awaitable[object]]:
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters

    program, *arguments = FAULTY_COMMAND
    parameters = StdioServerParameters(command=program, args=arguments)
    client = await stack.enter_async_context(Client(parameters))
    await client.list_tools()

    async def call() -> object:
        return await client.call_tool("echo", {"a": 1}, read_timeout_seconds=30)

    return call
