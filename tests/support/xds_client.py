"""`python -m tests.support.xds_client BOOTSTRAP`: a client of the mesh, in a process of its own.

gRPC has one xDS client per process. It does what lines of JSON on its stdin say, and answers
each with a line: `know`, `call`, `start`, `lap`, `stop`, `reopen`.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format

from mesh.control.xds.bootstrap import install
from mesh.control.xds.mesh_view import MeshView, Portion
from mesh.control.xds.placement import Placement
from mesh.errors import WeftError
from mesh.rpc.channel import MeshChannel, XdsChannel, mesh_connection
from mesh.rpc.local import StubChannel
from mesh.rpc.settings import RpcSettings
from tests.support.processes import end_with_parent
from tests.support.xds_mesh import SERVICES
from weft.control.v1 import instances_pb2
from weft.state.v1 import session_service_pb2
from weft.vectors.v1 import vector_service_pb2

COLLECTIONS = "/weft.vectors.v1.VectorService/GetCollection"
SESSIONS = "/weft.state.v1.SessionService/GetSession"
CALL_SECONDS_MAX = 5.0
CONCURRENT_MAX = 50
CALLS_MAX = 1_000_000


class Lap:
    """Who answered how often, what failed, and the slowest answer."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.first_after_seconds: dict[str, float] = {}
        self.started = time.monotonic()
        self.slowest_seconds = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "answered": dict(self.answered),
            "failed": dict(self.failed),
            "first_after_seconds": self.first_after_seconds,
            "slowest_seconds": self.slowest_seconds,
        }


class Client:
    """Calls by one channel, some of them all the time."""

    def __init__(self) -> None:
        self._view = MeshView()
        self._zone = ""
        self._open()
        self._lap = Lap()
        self._loading: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[str]] = set()

    async def do(self, command: dict[str, Any]) -> Any:
        """What a command answers."""
        does: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "call": self._call,
            "know": self._know,
            "start": self._start,
            "lap": self._next_lap,
            "stop": self._stop,
            "reopen": self._reopen,
        }
        return await does[command.pop("do")](command)

    async def _know(self, command: dict[str, Any]) -> str:
        """As its own control plane would, in a process of Weft."""
        instances = [
            json_format.ParseDict(each, instances_pb2.Instance()) for each in command["instances"]
        ]
        splits = {
            name: tuple(Portion(**each) for each in portions)
            for name, portions in command["splits"].items()
        }
        self._view = MeshView(SERVICES, tuple(instances), splits, plain_text=True)
        if command["zone"] != self._zone:
            self._zone = command["zone"]
            await self._reopen(command)
        return "known"

    async def _call(self, command: dict[str, Any]) -> list[str]:
        """Who answered each of the names, in their order."""
        free = asyncio.Semaphore(CONCURRENT_MAX)

        async def one(name: str) -> str:
            async with free:
                method = command["method"]
                channel = self._once if method == SESSIONS else self._channel
                return await self._asked(channel, method, name)

        return list(await asyncio.gather(*map(one, command["names"])))

    async def _start(self, command: dict[str, Any]) -> str:
        """So many calls a second, whether those before have ended or not."""
        self._lap = Lap()
        self._loading = asyncio.create_task(self._load(command))
        return "started"

    async def _next_lap(self, command: dict[str, Any]) -> dict[str, Any]:
        """What came since the last one."""
        lap, self._lap = self._lap, Lap()
        return lap.as_json()

    async def _stop(self, command: dict[str, Any]) -> dict[str, Any]:
        """Ends the load, once all of its calls have."""
        assert self._loading is not None
        self._loading.cancel()
        await asyncio.wait([self._loading, *self._under_way])
        return await self._next_lap(command)

    async def _reopen(self, command: dict[str, Any]) -> str:
        await self._connection.close()
        self._open()
        return "reopened"

    def _open(self) -> None:
        """As a service reaches others."""
        settings = RpcSettings()
        self._connection = mesh_connection(settings)
        # Where a session's call goes: what is tried again goes to any instance.
        placement = Placement(lambda: self._view, self._zone)
        self._once = XdsChannel(self._connection, settings, placement=placement)
        self._channel = MeshChannel({}, self._once, lambda contract: True, settings)

    async def _load(self, command: dict[str, Any]) -> None:
        names, began = command["names"], time.monotonic()
        for number in range(CALLS_MAX):
            pause = began + number / command["per_second"] - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            name = names[number % len(names)]
            call = asyncio.create_task(self._asked(self._channel, command["method"], name))
            self._under_way.add(call)
            call.add_done_callback(self._under_way.discard)

    async def _asked(self, channel: StubChannel, method: str, name: str) -> str:
        started = time.monotonic()
        try:
            answer = await answered_by(channel, method, name)
        except WeftError as error:
            self._lap.failed[f"{type(error).__name__}: {error.message}"] += 1
            return f"failed: {error.message}"
        lap, now = self._lap, time.monotonic()
        lap.answered[answer] += 1
        lap.first_after_seconds.setdefault(answer, now - lap.started)
        lap.slowest_seconds = max(lap.slowest_seconds, now - started)
        return answer


async def answered_by(channel: StubChannel, method: str, name: str) -> str:
    """Who answered a call for the resource of that name."""
    call = channel.callable_of(method)
    if method == COLLECTIONS:
        request: Any = vector_service_pb2.GetCollectionRequest(name=name)
        return str((await call(request, timeout=CALL_SECONDS_MAX)).collection.name)
    request = session_service_pb2.GetSessionRequest(name=name)
    return str((await call(request, timeout=CALL_SECONDS_MAX)).session.name)


async def main() -> None:
    client = Client()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await client.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    end_with_parent()
    install(sys.argv[1])
    asyncio.run(main())
