"""A tools service in memory with MCP servers, which are real processes or real HTTP servers."""

import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mesh.call import Call
from mesh.clock import SYSTEM
from mesh.events.memory import MemoryEventStore
from mesh.events.store import EventStore
from services.tools.egress import EgressPolicy
from services.tools.mcp.servers import McpServers
from services.tools.secrets import ToolSecrets
from services.tools.service import ToolsService
from services.tools.settings import ToolsSettings
from tests.support.cached import memory_cache
from tests.support.keys import memory_keyring
from weft.tools.v1 import mcp_server_service_pb2 as mcp_pb
from weft.tools.v1 import mcp_servers_pb2
from weft.tools.v1 import tool_service_pb2 as pb

PARENT = "tenants/acme"
FAULTY = Path(__file__).with_name("mcp_server.py")
FAULTY_COMMAND = (sys.executable, "-I", "-S", str(FAULTY))
CALL_SECONDS = 30.0


class McpTools:
    """The service, and short ways to call it."""

    def __init__(self, service: ToolsService, events: EventStore) -> None:
        self.service = service
        self.events = events
        servers = service.handlers["weft.tools.v1.McpServerService"]
        assert isinstance(servers, McpServers)
        self.servers = servers

    async def add(
        self, server_id: str, *arguments: str, **fields: Any
    ) -> mcp_servers_pb2.McpServer:
        """Adds a server: the faulty one with these arguments, where no other is given."""
        if not {"stdio", "http"} & set(fields):
            program, *first = FAULTY_COMMAND
            fields["stdio"] = mcp_servers_pb2.McpStdio(
                command=program, arguments=[*first, *arguments]
            )
        request = mcp_pb.AddMcpServerRequest(parent=PARENT, server_id=server_id, **fields)
        return (await self.servers.add_mcp_server(request, a_call())).server

    async def get(self, server_id: str) -> mcp_servers_pb2.McpServer:
        """The server."""
        request = mcp_pb.GetMcpServerRequest(name=f"{PARENT}/mcpServers/{server_id}")
        return (await self.servers.get_mcp_server(request, a_call())).server

    async def delete(self, server_id: str) -> None:
        """Takes it away."""
        request = mcp_pb.DeleteMcpServerRequest(name=f"{PARENT}/mcpServers/{server_id}")
        await self.servers.delete_mcp_server(request, a_call())

    async def invoke(
        self, tool_id: str, arguments: object = (), seconds: float = CALL_SECONDS, **fields: Any
    ) -> pb.InvokeToolResponse:
        """Calls a tool."""
        request = pb.InvokeToolRequest(
            name=f"{PARENT}/tools/{tool_id}", arguments_json=json.dumps(arguments or {}), **fields
        )
        return await self.service.invoke_tool(request, a_call(seconds))

    async def said(self, tool_id: str, arguments: object = (), **fields: Any) -> Any:
        """What a tool answers, which must be JSON."""
        response = await self.invoke(tool_id, arguments, **fields)
        assert not response.is_error, response.content
        return json.loads(response.content)


def a_call(seconds: float = CALL_SECONDS) -> Call:
    """A call from outside."""
    deadline = time.monotonic() + seconds
    return Call(method="/weft.tools.v1.ToolService/Any", deadline=deadline, request_id="t")


@asynccontextmanager
async def mcp_tools(
    folder: Path, *commands: str, events: EventStore | None = None, **settings: Any
) -> AsyncIterator[McpTools]:
    """Serves the tools, with the faulty server and `commands` allowed."""
    store = events if events is not None else MemoryEventStore()
    allowed = (" ".join(FAULTY_COMMAND), *commands)
    made = ToolsSettings(mcp_commands=allowed, **settings)
    nobody: Any = None
    service = ToolsService(
        *(made, store, SYSTEM, nobody, memory_cache(), memory_keyring(), folder),
        functions=nobody,
        instance="instance-1",
    )
    await service.start()
    try:
        yield McpTools(service, store)
    finally:
        await service.stop()


def memory_mcp_servers(folder: Path) -> McpServers:
    """The servicer of MCP servers alone, in memory; the faulty server may be started."""
    settings = ToolsSettings(mcp_commands=(" ".join(FAULTY_COMMAND),))
    secrets = ToolSecrets(memory_keyring())
    parts = (settings, EgressPolicy(), MemoryEventStore(), secrets, SYSTEM, folder, "memory")
    return McpServers(*parts, lambda tenant: ())


def is_running(pid: int) -> bool:
    """Whether there is such a process that hasn't ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def all_gone(*pids: int) -> Callable[[], bool]:
    """Whether all of them have ended, for `until`."""
    return lambda: not any(is_running(pid) for pid in pids)
