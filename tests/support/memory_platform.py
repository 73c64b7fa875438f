"""A small Weft in memory behind the real RPC server, for what talks to one as a client."""

import asyncio
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mesh.rpc.pipeline import bind
from mesh.rpc.server import RpcServer
from mesh.rpc.settings import RpcSettings
from tests.support.blobs import BlobParts
from tests.support.budgets import memory_budgets
from tests.support.edge import pipeline
from tests.support.functions import FunctionParts
from tests.support.mcp_tools import memory_mcp_servers
from tests.support.memory_access import MemoryAccess, admitting
from tests.support.memory_batches import MemoryBatches
from tests.support.memory_catalogues import (
    MemoryAgents,
    MemoryCollections,
    MemoryModels,
    MemoryTools,
)
from tests.support.memory_instances import MemoryInstances
from tests.support.memory_schedules import MemorySchedules
from tests.support.memory_sessions import MemorySessions
from tests.support.memory_tasks import MemoryTasks
from tests.support.memory_traffic import memory_traffic
from tests.support.memory_turns import MemoryTurns

T = TypeVar("T")
STEP_SECONDS_MAX = 20.0


class MemoryPlatform:
    """All public services on one port of 127.0.0.1, in a thread of their own.

    `restart` cuts every connection and listens on the same port again, as a killed and
    restarted process does; what the services hold stays.
    """

    def __init__(self) -> None:
        self.access = MemoryAccess()
        self.agents = MemoryAgents()
        self.sessions = MemorySessions()
        self.turns = MemoryTurns(self.restart_soon)
        self.tools = MemoryTools()
        self.collections = MemoryCollections()
        self.models = MemoryModels()
        self.budgets = memory_budgets()
        self._folder = tempfile.TemporaryDirectory()
        self.blobs = BlobParts(Path(self._folder.name)).service()
        self.functions = FunctionParts(Path(self._folder.name)).service()
        self.mcp = memory_mcp_servers(Path(self._folder.name))
        self.instances = MemoryInstances()
        self.traffic = memory_traffic(self.agents, self.instances)
        self.tasks = MemoryTasks()
        self.batches = MemoryBatches(self.tasks)
        self.schedules = MemorySchedules()
        self.port = 0
        self._server: RpcServer | None = None
        self._restarts: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serves from here on."""
        self._thread.start()
        self._run(self.traffic.start())
        self._run(self.blobs.start())
        self._run(self.functions.start())
        self._run(self.budgets.start())
        self._run(self.mcp.start())
        self._run(self._listen())

    def stop(self) -> None:
        """Ends serving and the thread."""
        self._run(self._cut())
        self._run(self.traffic.stop())
        self._run(self.blobs.stop())
        self._run(self.functions.stop())
        self._run(self.budgets.stop())
        self._run(self.mcp.stop())
        self._run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STEP_SECONDS_MAX)
        self._folder.cleanup()

    def restart(self) -> None:
        """Cuts every connection, then listens on the same port."""
        self._run(self._restart())

    def restart_soon(self) -> None:
        """Restarts without waiting for it; called by a handler that is to be cut off."""
        task = self._loop.create_task(self._restart())
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    def on_loop(self, change: Callable[[], None]) -> None:
        """Runs a change in the services' thread."""

        async def apply() -> None:
            change()

        self._run(apply())

    async def _restart(self) -> None:
        await self._cut()
        await self._listen()

    async def _cut(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def _listen(self) -> None:
        handlers = {
            "weft.agents.v1.AgentService": self.agents,
            "weft.agents.v1.TurnService": self.turns,
            "weft.agents.v1.StalledTurnService": self.turns,
            "weft.auth.v1.ApiKeyService": self.access,
            "weft.auth.v1.AuditService": self.access,
            "weft.auth.v1.AuthService": self.access,
            "weft.auth.v1.RoleService": self.access,
            "weft.auth.v1.TenantService": self.access,
            "weft.blobs.v1.BlobService": self.blobs,
            "weft.control.v1.MeshService": self.instances,
            "weft.control.v1.RegistryService": self.instances,
            "weft.control.v1.TrafficService": self.traffic,
            "weft.functions.v1.FunctionService": self.functions,
            "weft.models.v1.BudgetService": self.budgets.rpcs,
            "weft.models.v1.ModelService": self.models,
            "weft.scheduler.v1.BatchService": self.batches,
            "weft.scheduler.v1.DeadLetterService": self.tasks,
            "weft.scheduler.v1.QueueService": self.tasks,
            "weft.scheduler.v1.ScheduleService": self.schedules,
            "weft.scheduler.v1.TaskService": self.tasks,
            "weft.scheduler.v1.WorkerService": self.tasks,
            "weft.state.v1.SessionService": self.sessions,
            "weft.state.v1.StateService": self.sessions,
            "weft.tools.v1.McpServerService": self.mcp,
            "weft.tools.v1.ToolService": self.tools,
            "weft.vectors.v1.VectorService": self.collections,
        }
        settings = RpcSettings.model_validate({})
        around = pipeline(settings)
        endpoints = {
            path: replace(endpoint, invoke=admitting(self.access, endpoint))
            for path, endpoint in bind(handlers, around, settings).items()
        }
        self._server = RpcServer(endpoints, settings, around)
        self.port = await self._server.start("127.0.0.1", self.port)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(STEP_SECONDS_MAX)
