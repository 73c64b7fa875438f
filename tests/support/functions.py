"""Functions on parts in memory, and running source in a sandbox by itself."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from mesh.call import Call
from mesh.clock import Clock
from mesh.events.memory import MemoryEventStore
from mesh.principal import Grant, Principal
from mesh.runtime.service import Mesh
from mesh.security.keyring import Keyring
from services.functions.sandbox.backends import choose
from services.functions.sandbox.launcher import Keeper
from services.functions.sandbox.limits import Ended, Invocation, Limits
from services.functions.service import FunctionsService
from services.functions.settings import FunctionsSettings
from tests.support.clocked import SetClock
from tests.support.keys import memory_keyring
from weft.functions.v1 import function_service_pb2 as pb
from weft.functions.v1 import functions_pb2

PARENT = "tenants/acme"
LIMITS = Limits(
    timeout_seconds=20.0,
    cpu_seconds=20,
    memory_bytes=256 << 20,
    threads=16,
    open_files=64,
    output_bytes=1 << 20,
    scratch_bytes=4 << 20,
)


@dataclass
class FunctionParts:
    """What the service stands on, in memory; it outlives the service, as in a restart."""

    data_dir: Path
    clock: SetClock = field(default_factory=SetClock)
    events: MemoryEventStore = field(default_factory=MemoryEventStore)
    keyring: Keyring = field(default_factory=memory_keyring)

    def service(self, settings: FunctionsSettings | None = None) -> FunctionsService:
        """A service that isn't started, on these parts."""
        mesh = SimpleNamespace(
            data_dir=self.data_dir,
            clock=Clock(
                now_ns=self.clock.clock.now_ns,
                monotonic=lambda: time.monotonic() + self.clock.ahead.total_seconds(),
            ),
            events=self.events,
            keyring=self.keyring,
        )
        return FunctionsService(cast(Mesh, mesh), settings or FunctionsSettings())

    def pass_time(self, seconds: float) -> None:
        """Sets the clock ahead."""
        self.clock.ahead += timedelta(seconds=seconds)


def call(seconds: float = 30) -> Call:
    """A call of somebody who may do all in tenant `acme`."""
    grant = Grant("tenants/acme/roles/r", frozenset({"*"}), PARENT)
    caller = Principal("tenants/acme/apiKeys/k", "acme", (grant,))
    method = "/weft.functions.v1.FunctionService/Any"
    return Call(method, deadline=time.monotonic() + seconds, request_id="r1", principal=caller)


async def deploy(
    service: FunctionsService, function_id: str, source: str, **fields: Any
) -> functions_pb2.Function:
    """Deploys the source."""
    request = pb.DeployFunctionRequest(
        parent=PARENT, function_id=function_id, source=source, **fields
    )
    return (await service.deploy_function(request, call())).function


async def invoke(
    service: FunctionsService, function_id: str, arguments_json: str = "", **fields: Any
) -> pb.InvokeFunctionResponse:
    """Invokes a function."""
    request = pb.InvokeFunctionRequest(
        name=f"{PARENT}/functions/{function_id}", arguments_json=arguments_json, **fields
    )
    return await service.invoke_function(request, call())


@asynccontextmanager
async def keeping(name: str, folder: Path) -> AsyncIterator[Keeper]:
    """A keeper of sandboxes of that back end. FailedPrecondition where it isn't to be had."""
    keeper = Keeper(choose(name), folder)
    try:
        yield keeper
    finally:
        await keeper.stop()


async def run(
    keeper: Keeper, source: str, arguments_json: str = "null", limits: Limits = LIMITS
) -> tuple[Ended, str]:
    """How one invocation of `handler` ended, and what it printed."""
    printed = bytearray()
    sandbox = await keeper.sandbox()
    invocation = Invocation(source, "handler", arguments_json)
    ended = await sandbox.run(invocation, limits, lambda stream, data: printed.extend(data))
    return ended, printed.decode(errors="replace")
