"""MCP servers over streamable HTTP, of the protocol's newest version."""

from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ToolUnavailable
from tests.support.eventually import eventually
from tests.support.mcp_legacy import LegacyServer
from tests.support.mcp_modern import ModernServer
from tests.support.mcp_tools import PARENT, mcp_tools
from weft.tools.v1 import mcp_servers_pb2

PRIVATE = frozenset({"127.0.0.1"})


async def test_a_server_of_the_newest_version_is_listed_called_and_listed_again(
    tmp_path: Path,
) -> None:
    async with (
        ModernServer().serving() as server,
        mcp_tools(tmp_path, egress_private_hosts=PRIVATE) as tools,
    ):
        http = mcp_servers_pb2.McpHttp(url=server.url)
        http.headers.add(name="authorization", secret="Bearer canary-1b")
        added = await tools.add("m", http=http)
        assert set(added.tools) == {f"{PARENT}/tools/m-add", f"{PARENT}/tools/m-grow"}
        assert (await tools.invoke("m-add", {"a": 2, "b": 3})).content == "5"
        status = (await tools.get("m")).status
        assert status.protocol_version == "2026-07-28"
        assert {each["authorization"] for each in server.headers} == {"Bearer canary-1b"}
        assert {each["accept-encoding"] for each in server.headers} == {"identity"}
        assert (await tools.invoke("m-grow")).content == "grown"
        await eventually(lambda: tools.servers.tool(f"{PARENT}/tools/m-grown") is not None, 20)
        assert (await tools.invoke("m-grown")).content == "here"


async def test_an_answer_that_is_too_large_is_none(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"egress_private_hosts": PRIVATE, "mcp_message_bytes_max": 4_096}
    async with (
        ModernServer("long " * 1_000).serving() as server,
        mcp_tools(tmp_path, **bounds) as tools,
    ):
        with pytest.raises(ToolUnavailable):
            await tools.add("m", http=mcp_servers_pb2.McpHttp(url=server.url))


@pytest.mark.parametrize(
    "gone",
    [
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "Session not found"}},
        {"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": "Who?"}},
        "no such session",
    ],
    ids=["typescript", "python", "text"],
)
async def test_a_server_that_forgot_its_sessions_is_called_in_a_new_one(
    tmp_path: Path, gone: Any
) -> None:
    async with (
        LegacyServer(gone).serving() as server,
        mcp_tools(tmp_path, egress_private_hosts=PRIVATE) as tools,
    ):
        await tools.add("l", http=mcp_servers_pb2.McpHttp(url=server.url))
        assert (await tools.invoke("l-ran")).content == "call 1"
        server.forget()
        assert (await tools.invoke("l-ran")).content == "call 2"
        assert server.calls == ["ran", "ran"]


async def test_what_the_server_says_is_told_from_an_answer_that_is_none(tmp_path: Path) -> None:
    async with (
        LegacyServer("").serving() as server,
        mcp_tools(tmp_path, egress_private_hosts=PRIVATE) as tools,
    ):
        await tools.add("l", http=mcp_servers_pb2.McpHttp(url=server.url))
        for tool in ("l-not-json", "l-accepted"):
            with pytest.raises(ToolUnavailable, match="answered no result"):
                await tools.invoke(tool)
        answer = await tools.invoke("l-own-error")
        assert (answer.is_error, answer.content) == (True, "error -32001: no such customer")


@pytest.mark.parametrize("tool", ["silent", "flooding", "headless"])
async def test_nothing_is_read_of_the_answer_to_a_call_that_is_over(
    tmp_path: Path, tool: str
) -> None:
    async with (
        LegacyServer("").serving() as server,
        mcp_tools(tmp_path, egress_private_hosts=PRIVATE) as tools,
    ):
        await tools.add("l", http=mcp_servers_pb2.McpHttp(url=server.url))
        with pytest.raises(ToolUnavailable, match="took too long"):
            await tools.invoke(f"l-{tool}", seconds=2.0)
        assert server.calls == [tool]
        await eventually(lambda: server.open_calls == 0, 20)
        assert (await tools.invoke("l-ran")).content == "call 2"
        assert (await tools.get("l")).status.connects == 1
