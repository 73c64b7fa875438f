"""`python -m tests.support.mesh_load TARGET [BOOTSTRAP]`: a client that calls all the time.

TARGET is that of gateways, as `ipv4:HOST:PORT,HOST:PORT`, which are called in turn as by any
client without xDS; or `xds:///weft`, with the bootstrap. What it calls may run twice, so it
is tried again as the client's gRPC knows how to. The first line on its stdin is an API key.
It does what lines of JSON say, and answers each with a line: `start`, `lap`, `stop`.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import grpc.experimental

from mesh.control.xds.bootstrap import install
from mesh.rpc.channel import channel_options
from mesh.rpc.settings import RpcSettings
from tests.support.keyed import bearer
from tests.support.platform import TENANT
from tests.support.processes import end_with_parent
from weft.tools.v1 import tool_service_pb2
from weft.tools.v1.tool_service_pb2_grpc import ToolServiceStub

CALL_SECONDS_MAX = 10.0
CALLS_MAX = 1_000_000
IN_TURN = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                # A server that stops cancels what has come and isn't begun.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}


class Lap:
    """What became of calls."""

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()
        self.answered: list[tuple[float, float]] = []
        """When each began and ended, by the monotonic clock."""

    def as_json(self, since: float | None) -> dict[str, Any]:
        """With `since`, `first_seconds` is from there to the first answer to what was begun
        later."""
        later = [ended for began, ended in self.answered if since is not None and began >= since]
        return {
            "answered": len(self.answered),
            "failed": dict(self.failed),
            "slowest_seconds": max((end - began for began, end in self.answered), default=0.0),
            "first_seconds": min(later) - since if since is not None and later else None,
        }


class Load:
    """Calls through one channel."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self._list = ToolServiceStub(channel).ListTools
        self._metadata = (bearer(key),)
        self._lap = Lap()
        self._loading: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def do(self, command: dict[str, Any]) -> Any:
        """What a command answers."""
        match command["do"]:
            case "start":
                self._lap = Lap()
                self._loading = asyncio.create_task(self._call_always(command["per_second"]))
                return "started"
            case "stop":
                assert self._loading is not None
                self._loading.cancel()
                await asyncio.wait([self._loading, *self._under_way])
        lap, self._lap = self._lap, Lap()
        return lap.as_json(command.get("since"))

    async def _call_always(self, per_second: float) -> None:
        """So many calls a second, whether those before have ended or not."""
        began = time.monotonic()
        for number in range(CALLS_MAX):
            pause = began + number / per_second - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            call = asyncio.create_task(self._call())
            self._under_way.add(call)
            call.add_done_callback(self._under_way.discard)

    async def _call(self) -> None:
        request = tool_service_pb2.ListToolsRequest(parent=TENANT)
        began = time.monotonic()
        try:
            await self._list(request, metadata=self._metadata, timeout=CALL_SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            self._lap.failed[f"{error.code().name}: {error.details()}"] += 1
        else:
            self._lap.answered.append((began, time.monotonic()))


def channel_to(target: str) -> grpc.aio.Channel:
    """The one channel of a client."""
    if target.startswith("xds:"):
        experimental: Any = grpc.experimental
        plain = experimental.insecure_channel_credentials()
        return grpc.aio.secure_channel(target, grpc.xds_channel_credentials(plain))
    ours = [each for each in channel_options(RpcSettings()) if each[0] != "grpc.enable_retries"]
    options = [*ours, ("grpc.service_config", json.dumps(IN_TURN))]
    return grpc.aio.insecure_channel(target, options=options)


async def main(target: str) -> None:
    """Until the end of its input."""
    loop = asyncio.get_running_loop()
    key = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
    load = Load(channel_to(target), key)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await load.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[2:]:
        install(sys.argv[2])
    asyncio.run(main(sys.argv[1]))
