"""The reference MCP servers, unchanged, as tools of a real deployment; what is left of a server's
process when Weft, or it, is killed; what an agent sees of it."""

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.errors import ToolUnavailable
from tests.support.eventually import eventually
from tests.support.examples import mcp_servers
from tests.support.mcp_tools import (
    FAULTY_COMMAND,
    McpTools,
    all_gone,
    is_running,
    mcp_tools,
)
from tests.support.platform import TENANT, Platform, one_process
from weft.tools.v1 import mcp_server_service_pb2 as mcp_pb
from weft.tools.v1 import mcp_servers_pb2
from weft.tools.v1 import tool_service_pb2 as pb
from weft.tools.v1.mcp_server_service_pb2_grpc import McpServerServiceStub

__all__ = ["mcp_servers"]

pytestmark = pytest.mark.timeout(600)
SECONDS = 60
ALLOWED = {"WEFT_TOOLS_MCP_COMMANDS": json.dumps([" ".join(FAULTY_COMMAND)])}


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def node() -> str:
    """The program; its fixture skips where there is none."""
    found = shutil.which("node")
    assert found is not None
    return found


def entry(mcp_servers: Path, server: str) -> str:
    return str(mcp_servers / f"node_modules/@modelcontextprotocol/server-{server}/dist/index.js")


def stdio(*arguments: str) -> mcp_servers_pb2.McpStdio:
    return mcp_servers_pb2.McpStdio(command=node(), arguments=arguments)


@asynccontextmanager
async def over_http(mcp_servers: Path, port: int) -> AsyncIterator[str]:
    """The server `everything` over streamable HTTP; gives its URL."""
    process = await asyncio.create_subprocess_exec(
        *(node(), entry(mcp_servers, "everything"), "streamableHttp"),
        env={**os.environ, "PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        await process.wait()


@pytest.fixture(scope="module")
async def tools(
    tmp_path_factory: pytest.TempPathFactory, mcp_servers: Path
) -> AsyncIterator[McpTools]:
    """Both reference servers over stdio."""
    folder = tmp_path_factory.mktemp("peers")
    (folder / "files").mkdir()
    (folder / "files" / "a.txt").write_text("what is in a file")
    everything = entry(mcp_servers, "everything")
    filesystem = entry(mcp_servers, "filesystem")
    allowed = [f"{node()} {everything} stdio", f"{node()} {filesystem} {folder / 'files'}"]
    private = frozenset({"127.0.0.1"})
    async with mcp_tools(folder / "data", *allowed, egress_private_hosts=private) as made:
        await asyncio.gather(
            made.add("everything", stdio=stdio(everything, "stdio")),
            made.add("files", stdio=stdio(filesystem, str(folder / "files"))),
        )
        yield made


class TestReferenceServers:
    async def test_everything_over_stdio(self, tools: McpTools) -> None:
        assert (await tools.invoke("everything-echo", {"message": "hi"})).content == "Echo: hi"
        summed = await tools.invoke("everything-get-sum", {"a": 2, "b": 3})
        assert summed.content == "The sum of 2 and 3 is 5."
        environment = await tools.said("everything-get-env")
        assert set(environment) == {"PATH", "HOME", "TMPDIR", "LANG"}
        image = (await tools.invoke("everything-get-tiny-image")).content
        assert "[image, image/png, " in image
        weather = await tools.said("everything-get-structured-content", {"location": "Chicago"})
        assert weather["conditions"]
        linked = await tools.invoke("everything-get-resource-links", {"count": 2})
        assert len(linked.sources) == 2
        long = {"duration": 0.4, "steps": 2}
        done = await tools.invoke("everything-trigger-long-running-operation", long)
        assert done.content.startswith("Long running operation completed")

    async def test_the_file_system_within_its_folder(self, tools: McpTools) -> None:
        allowed = (await tools.get("files")).stdio.arguments[-1]
        read = await tools.invoke("files-read-text-file", {"path": f"{allowed}/a.txt"})
        assert read.content.startswith("what is in a file")
        outside = await tools.invoke("files-read-text-file", {"path": "/etc/passwd"})
        assert outside.is_error
        await tools.invoke("files-write-file", {"path": f"{allowed}/b.txt", "content": "x"})
        written = await tools.invoke("files-read-text-file", {"path": f"{allowed}/b.txt"})
        assert written.content.startswith("x")

    async def test_everything_over_http_with_a_header_and_after_a_restart(
        self, tools: McpTools, mcp_servers: Path
    ) -> None:
        port = free_port()
        async with over_http(mcp_servers, port) as url:
            http = mcp_servers_pb2.McpHttp(url=url)
            http.headers.add(name="authorization", secret="Bearer canary-9f")
            added = await tools.add("web", http=http)
            assert "canary-9f" not in str(added)
            assert len(added.tools) > 10
            assert (await tools.invoke("web-echo", {"message": "hi"})).content == "Echo: hi"
            long = {"duration": 0.4, "steps": 2}
            done = await tools.invoke("web-trigger-long-running-operation", long)
            assert done.content.startswith("Long running operation completed")
            status = (await tools.get("web")).status
            assert status.state == mcp_servers_pb2.MCP_SERVER_STATE_CONNECTED
            assert status.protocol_version == "2025-11-25"
        with pytest.raises(ToolUnavailable):
            await tools.invoke("web-echo", {"message": "hi"})
        async with over_http(mcp_servers, port):
            async with asyncio.timeout(SECONDS):
                while True:
                    try:
                        again = await tools.invoke("web-echo", {"message": "again"})
                        break
                    except ToolUnavailable:
                        await asyncio.sleep(0.1)
            assert again.content == "Echo: again"
        # The server is another one, which knows of no session.
        async with over_http(mcp_servers, port):
            with pytest.raises(ToolUnavailable):
                await tools.invoke("web-echo", {"message": "hi"})
            async with asyncio.timeout(SECONDS):
                while (await tools.get("web")).status.connects < 3:
                    await asyncio.gather(
                        tools.invoke("web-echo", {"message": "hi"}), return_exceptions=True
                    )
                    await asyncio.sleep(0.1)
            assert (await tools.invoke("web-echo", {"message": "hi"})).content == "Echo: hi"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Platform]:
    async with one_process(tmp_path / "data", **ALLOWED) as found:
        yield found


async def add(weft: Platform, server_id: str) -> mcp_servers_pb2.McpServer:
    program, *arguments = FAULTY_COMMAND
    request = mcp_pb.AddMcpServerRequest(
        parent=TENANT,
        server_id=server_id,
        stdio=mcp_servers_pb2.McpStdio(command=program, arguments=arguments),
    )
    stub: Any = McpServerServiceStub(weft.open_channel)
    answer = await stub.AddMcpServer(request, timeout=SECONDS)
    server: mcp_servers_pb2.McpServer = answer.server
    return server


async def said(weft: Platform, tool_id: str) -> Any:
    request = pb.InvokeToolRequest(name=f"{TENANT}/tools/{tool_id}", arguments_json="{}")
    answer = await weft.tools.InvokeTool(request, timeout=SECONDS)
    assert not answer.is_error, answer.content
    assert answer.untrusted
    return json.loads(answer.content)


class TestKills:
    async def test_a_killed_weft_leaves_no_process_and_the_next_one_knows_the_server(
        self, running: Platform
    ) -> None:
        await add(running, "s")
        left = await said(running, "s-spawn")
        assert is_running(left["child"])
        await running.kill()
        await eventually(all_gone(left["pid"], left["child"]), 15)
        await running.start()
        again = await said(running, "s-place")
        assert again["pid"] != left["pid"]
        # What the killed one left of folders is gone.
        assert len(list((running.data_dir / "mcp").iterdir())) == 1
        assert await running.stop() == 0
        assert not is_running(again["pid"])

    async def test_a_killed_server_is_started_again_and_an_unallowed_one_isnt(
        self, running: Platform
    ) -> None:
        await add(running, "s")
        first = (await said(running, "s-place"))["pid"]
        os.kill(first, signal.SIGKILL)
        await eventually(all_gone(first))
        await asyncio.sleep(0.2)
        assert (await said(running, "s-place"))["pid"] != first
        await running.kill()
        await running.start(WEFT_TOOLS_MCP_COMMANDS="[]")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await said(running, "s-place")
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        listed = await running.tools.ListTools(
            pb.ListToolsRequest(parent=TENANT, page_size=1_000), timeout=SECONDS
        )
        assert f"{TENANT}/tools/s-place" in {tool.name for tool in listed.tools}


async def test_it_works_where_each_service_has_a_process_of_its_own(tmp_path: Path) -> None:
    weft = Platform(tmp_path / "data", ALLOWED, split=True)
    try:
        await weft.start()
        await add(weft, "s")
        assert (await said(weft, "s-place"))["files"] == []
    finally:
        await weft.kill()
