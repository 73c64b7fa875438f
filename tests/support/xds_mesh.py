"""A small mesh: backends in processes, a client in one, and instances that stand for them."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

from google.protobuf import json_format

from mesh.control.xds.mesh_view import Portion, RoutedService
from tests.support.processes import line_of, running
from weft.control.v1 import instances_pb2
from weft.state.v1 import session_service_pb2
from weft.vectors.v1 import vector_service_pb2

SERVICES = (
    RoutedService("state", (session_service_pb2.DESCRIPTOR.services_by_name["SessionService"],)),
    RoutedService("vectors", (vector_service_pb2.DESCRIPTOR.services_by_name["VectorService"],)),
)


def instance_at(
    name: str, target: str, *, zone: str = "", version: str = "1", **fields: Any
) -> instances_pb2.Instance:
    """An instance of both services that takes calls."""
    return instances_pb2.Instance(
        name=f"instances/{name}",
        services=["state", "vectors"],
        target=target,
        zone=zone,
        version=version,
        **{"state": instances_pb2.INSTANCE_STATE_SERVING, **fields},
    )


class Backend:
    """A backend by its name; it keeps its port when it is started again. It says that each
    call costs it so much of a processor."""

    def __init__(self, name: str, call_cpu_seconds: float = 0.0) -> None:
        self.name = name
        self._call_cpu_seconds = call_cpu_seconds
        self.target = ""
        self._process: asyncio.subprocess.Process | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once it listens."""
        port = self.target.rpartition(":")[2] or 0
        module = "tests.support.xds_backend"
        self._process = await self._stack.enter_async_context(
            running(module, self.name, port, self._call_cpu_seconds)
        )
        self.target = await line_of(self._process)
        assert self.target, "it ended at its start"

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        await self._stack.aclose()

    def instance(self, **fields: Any) -> instances_pb2.Instance:
        """What the registry would know of it."""
        return instance_at(self.name, self.target, **fields)


class Client:
    """A client's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def call(self, method: str, names: Sequence[str]) -> list[str]:
        """Who answered each name."""
        answers: list[str] = await self._do(do="call", method=method, names=list(names))
        return answers

    async def start(self, method: str, names: Sequence[str], per_second: int) -> None:
        """Begins to call all the time, for these names in turn."""
        await self._do(do="start", method=method, names=list(names), per_second=per_second)

    async def know(
        self,
        instances: Sequence[instances_pb2.Instance],
        *,
        splits: Mapping[str, Sequence[Portion]] | None = None,
        zone: str = "",
    ) -> None:
        """What its registry tells it, by which it places sessions."""
        told = [json_format.MessageToDict(each) for each in instances]
        shares = {name: list(map(asdict, each)) for name, each in (splits or {}).items()}
        await self._do(do="know", instances=told, splits=shares, zone=zone)

    async def lap(self) -> dict[str, Any]:
        """What was answered since the last one."""
        lap: dict[str, Any] = await self._do(do="lap")
        return lap

    async def stop(self) -> dict[str, Any]:
        """Ends the load; its last lap."""
        lap: dict[str, Any] = await self._do(do="stop")
        return lap

    async def reopen(self) -> None:
        """Closes its channel and makes another."""
        await self._do(do="reopen")

    async def _do(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        answer = await line_of(self._process)
        assert answer, "the client ended"
        return json.loads(answer)


@asynccontextmanager
async def client(bootstrap: str) -> AsyncIterator[Client]:
    """A client that asks whom the bootstrap says."""
    async with running("tests.support.xds_client", bootstrap) as process:
        yield Client(process)


@asynccontextmanager
async def backends(*names: str, **costs: float) -> AsyncIterator[dict[str, Backend]]:
    """Backends by name, killed at the end; `costs` are what a call costs some of them."""
    made = {name: Backend(name, costs.get(name, 0.0)) for name in (*names, *costs)}
    try:
        await asyncio.gather(*(backend.start() for backend in made.values()))
        yield made
    finally:
        for backend in made.values():
            await backend.kill()
